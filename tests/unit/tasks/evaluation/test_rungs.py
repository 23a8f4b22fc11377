import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.evaluation.compare import differences
from tasks.evaluation.metrics import Bootstrap, bootstrap
from tasks.evaluation.rungs import Judged, choose, expected_gain, on_validation, validation_interval
from tasks.head.fitted import Calibration, FittedHead
from tasks.head.linear import Linear
from tasks.params import EvaluationParams
from tasks.records import Head
from tests.unit.tasks.evaluation.embedded import embeddings, manifest

COUNT = 200


def right(count: int, samples: int = COUNT, *, groups: list[str] | None = None, seed: int = 0) -> Bootstrap:
    """A model that has the first `count` of the samples right, of two classes in turn."""
    truth = np.arange(samples) % 2
    said = np.where(np.arange(samples) < count, truth, 1 - truth)
    p = np.where(np.arange(2) == said[:, None], 0.9, 0.1)
    return bootstrap(p, truth, resamples=400, seed=seed, groups=groups)


def undefined() -> Bootstrap:
    return bootstrap(np.full((COUNT, 2), math.nan), np.arange(COUNT) % 2, resamples=400, seed=0)


def test_choose__a_dearer_rung_has_to_gain_more_than_a_standard_error() -> None:
    # 20 samples of 200 are right with the dearer one alone: +0.1, standard error sqrt(.1 * .9 / 200) = 0.021.
    found = choose([Judged("frozen", right(150)), Judged("full", right(170))], "accuracy")
    assert found.index == 1
    assert found.reason.startswith("full is taken, by the accuracy gained on validation: full against frozen")
    assert "+0.100, more than one standard error (0.02" in found.reason


def test_choose__the_rule_is_one_standard_error_of_the_paired_difference() -> None:
    # One sample more: +0.005, and its standard error is sqrt(.005 * .995 / 200) = 0.005 (of the bootstrap).
    frozen, full = right(150), right(151)
    [gain, error] = [
        getattr(differences(full, frozen)["accuracy"], name) for name in ("value", "standard_error")
    ]
    assert gain == pytest.approx(0.005)
    assert error == pytest.approx(math.sqrt(0.005 * 0.995 / COUNT), rel=0.1)
    found = choose([Judged("frozen", frozen), Judged("full", full)], "accuracy")
    assert found.index == (1 if gain > error else 0)
    # The separate standard errors (0.03 each) would have hidden a gain of 4 samples (0.02, paired 0.01).
    assert choose([Judged("frozen", right(150)), Judged("full", right(154))], "accuracy").index == 1


def test_choose__equal_rungs_are_the_cheaper_one() -> None:
    found = choose([Judged("frozen", right(150)), Judged("full", right(150))], "accuracy")
    assert found.index == 0
    assert found.reason == (
        "frozen is taken, by the accuracy gained on validation: full against frozen 0.000, no more than one"
        " standard error (0.000)."
    )


def test_choose__each_is_held_against_the_one_that_was_taken() -> None:
    rungs = [Judged("frozen", right(150)), Judged("lp_ft", right(180)), Judged("full", right(160))]
    found = choose(rungs, "accuracy")
    assert found.index == 1
    assert "; full against lp_ft −0.100, no more than" in found.reason


def test_choose__lower_is_better_where_it_is() -> None:
    rungs = [Judged("frozen", right(150)), Judged("full", right(180))]
    found = choose(rungs, "log_loss")
    assert found.index == 1
    assert "by the log loss saved on validation: full against frozen +0.3" in found.reason
    assert choose(rungs[::-1], "log_loss").index == 0


def test_choose__what_can_not_be_judged_gives_way() -> None:
    assert choose([Judged("frozen", undefined()), Judged("full", right(20))], "accuracy").index == 1
    found = choose([Judged("frozen", right(20)), Judged("full", undefined())], "accuracy")
    assert found.index == 0
    assert "full against frozen can't be compared" in found.reason


def test_choose__one_unit_tells_nothing() -> None:
    one = ["a"] * COUNT
    found = choose(
        [Judged("frozen", right(100, groups=one)), Judged("full", right(200, groups=one))], "accuracy"
    )
    assert found.index == 0
    assert "too few samples" in found.reason


def test_choose__a_single_rung_is_taken_and_none_is_an_error() -> None:
    assert choose([Judged("frozen", right(150))], "accuracy").reason == (
        "frozen is taken, the only rung (accuracy 0.750 on validation)."
    )
    with pytest.raises(ValueError, match="no rung"):
        choose([], "accuracy")


def test_choose__rungs_of_other_resamples_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in samples, seed"):
        choose([Judged("frozen", right(150)), Judged("full", right(160, seed=1))], "accuracy")


def test_expected_gain__the_share_of_the_error_is_carried_to_all_samples() -> None:
    # Of the trial: error .4 frozen, .1 tuned, so a quarter stays. All samples: .2 frozen, so .05 tuned.
    found = expected_gain(right(120), right(180), right(160), "accuracy")
    assert found.value == pytest.approx(0.15)
    assert 0 < found.low < 0.15 < found.high < 0.25


def test_expected_gain__a_trial_on_all_samples_is_its_own_gain() -> None:
    frozen, tuned = right(120), right(180)
    found = expected_gain(frozen, tuned, frozen, "accuracy")
    plain = differences(tuned, frozen)["accuracy"]
    assert (found.value, found.low, found.high) == pytest.approx((plain.value, plain.low, plain.high))


def test_expected_gain__of_equals_is_nothing() -> None:
    found = expected_gain(right(120), right(120), right(160), "accuracy")
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_expected_gain__what_is_worse_gains_less_than_nothing() -> None:
    # Errors .2 frozen, .3 tuned: half as much again, of .1: -0.05.
    found = expected_gain(right(160), right(140), right(180), "accuracy")
    assert found.value == pytest.approx(-0.05)
    assert found.high < 0


def test_expected_gain__above_zero_is_better_where_lower_is_better() -> None:
    frozen, tuned, of_all = right(120), right(180), right(160)
    loss = {name: one.points["log_loss"] for name, one in (("f", frozen), ("t", tuned), ("a", of_all))}
    found = expected_gain(frozen, tuned, of_all, "log_loss")
    assert found.value == pytest.approx(loss["a"] - loss["a"] * loss["t"] / loss["f"])
    assert found.value > 0


def test_expected_gain__without_an_error_nothing_is_left_to_gain() -> None:
    # Half a sample of 200 counts as wrong, since less can't be told.
    assert expected_gain(right(200), right(200), right(200), "accuracy").value == 0
    assert expected_gain(right(120), right(200), right(160), "accuracy").value == pytest.approx(
        0.2 * (1 - 0.0025 / 0.4)
    )


def test_expected_gain__one_unit_has_no_interval() -> None:
    one = ["a"] * COUNT
    found = expected_gain(right(100, groups=one), right(200, groups=one), right(100, groups=one), "accuracy")
    assert found.value > 0
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_expected_gain__of_other_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in samples"):
        expected_gain(right(120), right(180), right(80, 100), "accuracy")


def test_validation_interval__is_that_of_the_metric() -> None:
    found = validation_interval(right(150), "accuracy")
    assert found.value == 0.75
    # Normal approximation: 1.96 * sqrt(.75 * .25 / 200) = 0.06.
    assert found.low == pytest.approx(0.69, abs=0.015)
    assert validation_interval(right(150), "accuracy", alpha=0.3).low > found.low


def test_on_validation__judges_the_validation_rows_alone(tmp_path: Path) -> None:
    # The vector is 1 for b and -1 for a, but on test the other way round: only validation is right.
    labels = ["a", "b"] * 6
    splits = ["train"] * 4 + ["validation"] * 4 + ["test"] * 4
    signs: NDArray[np.float64] = np.array([[1.0 if label == "b" else -1.0] for label in labels])
    signs[8:] *= -1
    head = saved(tmp_path / "head", ("a", "b"))
    made = manifest(tmp_path / "manifest", labels, splits, ("a", "b"))
    some = embeddings(tmp_path / "cache", {"identity": signs})
    found = on_validation(made, some, head, EvaluationParams(bootstrap=100))
    assert len(found.truth) == 4
    assert found.points["accuracy"] == 1
    assert found.draws["accuracy"].shape == (100,)


def test_on_validation__a_head_that_lacks_a_class_pays_for_it(tmp_path: Path) -> None:
    labels = ["a", "b", "c"] * 2
    made = manifest(tmp_path / "manifest", labels, ["train"] * 3 + ["validation"] * 3, ("a", "b", "c"))
    signs = [[1.0 if label == "b" else -1.0] for label in labels]
    some = embeddings(tmp_path / "cache", {"identity": signs})
    found = on_validation(made, some, saved(tmp_path / "head", ("a", "b")), EvaluationParams(bootstrap=100))
    assert found.outputs.shape == (3, 3)
    assert found.points["accuracy"] == pytest.approx(2 / 3)


def test_on_validation__a_group_is_one_unit(tmp_path: Path) -> None:
    labels = ["a", "b"] * 3
    groups = ["", "", "g", "g", "g", ""]
    splits = ["train"] * 2 + ["validation"] * 4
    made = manifest(tmp_path / "manifest", labels, splits, ("a", "b"), groups=groups)
    some = embeddings(tmp_path / "cache", {"identity": np.ones((6, 1))})
    found = on_validation(made, some, saved(tmp_path / "head", ("a", "b")), EvaluationParams(bootstrap=100))
    assert found.size == 2


def saved(folder: Path, classes: tuple[str, ...]) -> Head:
    """A head that says the second class where the vector is positive."""
    folder.mkdir(parents=True)
    weight = np.array([[-4.0], [4.0]])
    model = Linear(np.zeros(1), np.ones(1), weight, np.zeros(2))
    FittedHead("class", "logistic", classes, model, Calibration(np.ones(2), np.zeros(2))).save(folder)
    return Head(
        digest="h", folder=str(folder), target="class", kind="logistic", classes=classes, blocks=(),
        strength=1.0, strengths={}, kinds={}, inputs={}, calibration="none", temperature=1, confidence=None,
        conformal=None,
    )  # fmt: skip
