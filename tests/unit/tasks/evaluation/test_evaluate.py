import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks.errors import DataError
from tasks.evaluation import plots
from tasks.evaluation.evaluate import ChampionResult, run
from tasks.evaluation.sums import Floats
from tasks.params import METRICS, EvaluationParams, GateParams
from tasks.records import Confidence, Conformal, Evaluation, Manifest, Target
from tests.unit.tasks.evaluation.judged import judge, reason

PARAMS = EvaluationParams(bootstrap=100)
CLASSES = ("cat", "dog")
# Test rows: cat, cat, dog, dog, dog; the second and the last are wrong.
LABELS = ["cat", "cat", "dog", "dog", "dog"]
P = np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [0.4, 0.6], [0.6, 0.4]])
SITES = ["north", "north", "south", None, "south"]

Evaluate = Callable[..., Evaluation]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    frame = pd.DataFrame(
        {
            "digest": [f"d{i}" for i in range(7)],
            "path": [f"{i}.jpg" for i in range(7)],
            "label": ["dog", *LABELS, "cat"],
            "split": ["train", *["test"] * 5, "validation"],
            "site": ["west", *SITES, "west"],
        }
    )
    frame.to_parquet(tmp_path / "manifest.parquet")
    return Manifest(
        digest="m", folder=str(tmp_path), samples=7, classes=CLASSES, slices=("site",),
        counts={}, conflicts=(), left_out=(), quarantined=0,
    )  # fmt: skip


@pytest.fixture
def evaluate(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(plots, "save", lambda _figure, file: file.touch())  # test_plots draws

    def call(
        p: Floats = P,
        classes: tuple[str, ...] = CLASSES,
        champion: ChampionResult | None = None,
        params: EvaluationParams = PARAMS,
        confidence: Confidence | None = None,
        conformal: Conformal | None = None,
    ) -> Evaluation:
        return run(out, manifest, p, classes, champion, params, confidence=confidence, conformal=conformal)

    return call


def test_evaluate__numbers_are_those_of_the_test_rows(evaluate: Evaluate) -> None:
    got = evaluate()
    assert got.samples == 5
    assert got.metrics["accuracy"].value == pytest.approx(3 / 5)
    assert got.metrics["balanced_accuracy"].value == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert got.per_class["dog"]["precision"].value == pytest.approx(2 / 3)
    assert got.champion_version is None
    assert got.champion_metrics is None
    assert got.differences == {}


def test_evaluate__slices_without_test_samples_are_left_out(evaluate: Evaluate) -> None:
    got = evaluate()
    assert got.slice_samples == {"site=(missing)": 1, "site=north": 2, "site=south": 2}
    assert got.per_slice["site=north"]["accuracy"].value == pytest.approx(1 / 2)
    assert got.per_slice["site=(missing)"]["accuracy"].value == 1


def test_evaluate__writes_the_files(evaluate: Evaluate) -> None:
    folder = evaluate().path
    assert {file.name for file in folder.iterdir()} == {
        "metrics.json", "predictions.parquet", "confusion.png", "confusion.csv", "reliability.png",
        "reliability.csv",
    }  # fmt: skip
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) == {*METRICS["class"], "samples"}
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    predictions = pd.read_parquet(folder / "predictions.parquet")
    assert predictions.columns.tolist() == [
        "digest", "path", "label", "predicted", "confidence", "p:cat", "p:dog",
    ]  # fmt: skip
    assert predictions["digest"].tolist() == ["d1", "d2", "d3", "d4", "d5"]
    assert predictions["predicted"].tolist() == ["cat", "dog", "dog", "dog", "cat"]
    assert predictions["confidence"].tolist() == [0.9, 0.7, 0.8, 0.6, 0.6]
    assert (folder / "confusion.csv").read_text().splitlines()[:3] == [
        "actual,predicted",
        "cat,cat",
        "cat,dog",
    ]


def test_evaluate__identical_champion_differs_by_nothing(evaluate: Evaluate) -> None:
    got = evaluate(champion=ChampionResult("3", CLASSES, P))
    assert got.champion_version == "3"
    assert got.champion_metrics == got.metrics
    assert {(d.value, d.low, d.high) for d in got.differences.values()} == {(0.0, 0.0, 0.0)}


def test_evaluate__order_of_the_champions_classes_does_not_matter(evaluate: Evaluate) -> None:
    got = evaluate(champion=ChampionResult("3", ("dog", "cat"), P[:, ::-1]))
    assert got.champion_metrics == got.metrics


def test_evaluate__champion_that_lacks_a_class_pays_for_it(evaluate: Evaluate) -> None:
    # It knows no dogs: right for the cats alone, and certain that a dog is none.
    got = evaluate(champion=ChampionResult("3", ("cat",), np.ones((5, 1))))
    assert got.champion_metrics is not None
    assert got.champion_metrics["balanced_accuracy"].value == pytest.approx((1 + 0) / 2)
    assert got.champion_metrics["log_loss"].value == pytest.approx(-math.log(np.finfo(float).eps) * 3 / 5)
    assert got.differences["accuracy"].value == pytest.approx(3 / 5 - 2 / 5)
    assert (got.unknown_classes, got.unknown_samples) == (("dog",), 3)


def test_evaluate__renamed_classes_are_no_victory(evaluate: Evaluate) -> None:
    got = evaluate(champion=ChampionResult("3", ("Cat", "Dog"), P))
    assert (got.unknown_classes, got.unknown_samples) == (CLASSES, 5)
    found = reason(judge(got, GateParams(min_test_samples=1), champion="3"), "champion")
    assert not found.passed
    assert "does not know cat, dog (5 of 5 test samples): were classes renamed?" in found.detail


def test_evaluate__class_that_only_the_champion_knows_is_a_mistake_of_its_own(evaluate: Evaluate) -> None:
    p = np.hstack([np.tile([0.1], (5, 1)), P * 0.9])  # a tenth goes to birds, which there are none of
    p[0] = [1.0, 0.0, 0.0]
    got = evaluate(champion=ChampionResult("3", ("bird", *CLASSES), p))
    assert got.champion_metrics is not None
    assert got.champion_metrics["accuracy"].value == pytest.approx(2 / 5)
    assert got.metrics["accuracy"].value == pytest.approx(3 / 5)
    assert set(got.per_class) == set(CLASSES)
    predictions = pd.read_parquet(got.path / "predictions.parquet")
    assert predictions["champion_predicted"].tolist() == ["bird", "dog", "dog", "dog", "cat"]
    assert "p:bird" not in predictions


def test_evaluate__label_that_the_challenger_lacks_counts_as_wrong(evaluate: Evaluate) -> None:
    got = evaluate(p=np.ones((5, 1)), classes=("cat",))
    assert got.metrics["balanced_accuracy"].value == pytest.approx(1 / 2)
    assert set(got.per_class) == set(CLASSES)


def test_evaluate__nan_reaches_the_gate_and_fails_there(evaluate: Evaluate) -> None:
    p = P.copy()
    p[2, 1] = np.nan
    got = evaluate(p=p)
    assert all(math.isnan(got.metrics[name].value) for name in METRICS["class"])
    assert got.per_slice["site=north"]["accuracy"].value == pytest.approx(1 / 2)  # the NaN is elsewhere
    assert not judge(got, GateParams(min_test_samples=1)).passed
    metrics = json.loads((got.path / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert metrics == {"samples": 5}
    predictions = pd.read_parquet(got.path / "predictions.parquet")
    assert predictions["predicted"].isna().tolist() == [False, False, True, False, False]
    assert len((got.path / "confusion.csv").read_text().splitlines()) == 1 + 4


def test_evaluate__nan_survives_saving_and_loading(evaluate: Evaluate) -> None:
    saved = evaluate(p=np.full((5, 2), np.nan)).save()
    loaded = Evaluation.load(saved.path)
    assert math.isnan(loaded.metrics["accuracy"].value)
    assert loaded.model_dump_json() == saved.model_dump_json()


def test_evaluate__nan_of_the_champion_reaches_the_gate(evaluate: Evaluate) -> None:
    got = evaluate(champion=ChampionResult("3", CLASSES, np.full((5, 2), np.nan)))
    assert math.isnan(got.differences["balanced_accuracy"].value)
    decision = judge(got, GateParams(min_test_samples=1), champion="3")
    assert not reason(decision, "champion").passed


@pytest.mark.parametrize(("rows", "columns"), [(4, 2), (5, 3)])
def test_evaluate__probabilities_of_other_samples_are_refused(
    rows: int, columns: int, evaluate: Evaluate
) -> None:
    wrong = np.full((rows, columns), 1 / columns)
    with pytest.raises(DataError, match=r"challenger: outputs .* 5 test samples and 2 classes"):
        evaluate(p=wrong)
    with pytest.raises(DataError, match="champion version 3"):
        evaluate(champion=ChampionResult("3", CLASSES, wrong))


def test_evaluate__digest_covers_all_inputs(evaluate: Evaluate) -> None:
    nan = P.copy()
    nan[0, 0] = np.nan
    evaluations = [
        evaluate(),
        evaluate(p=P[:, ::-1].copy()),
        evaluate(p=nan),
        evaluate(params=EvaluationParams(bootstrap=100, seed=1)),
        evaluate(champion=ChampionResult("3", CLASSES, P)),
        evaluate(champion=ChampionResult("4", CLASSES, P)),
        evaluate(champion=ChampionResult("4", CLASSES, P[:, ::-1])),
        evaluate(conformal=Conformal(coverage=0.9, threshold=0.1)),
    ]
    assert len({e.digest for e in evaluations}) == len(evaluations)
    assert evaluate().digest == evaluations[0].digest


def test_evaluate__champion_beside_itself_is_not_inferior_and_not_superior(evaluate: Evaluate) -> None:
    got = evaluate(champion=ChampionResult("3", CLASSES, P))
    assert got.mcnemar is not None
    assert (got.mcnemar.only_challenger, got.mcnemar.p_better) == (0, 1)
    assert {d.p_better for d in got.differences.values()} == {1.0}
    for mode, passed in (("non_inferior", True), ("superior", False)):
        params = GateParams.model_validate({"mode": mode, "min_test_samples": 1})
        assert reason(judge(got, params, champion="3"), "champion").passed is passed


def test_evaluate__slices_are_compared_on_their_rows(evaluate: Evaluate) -> None:
    got = evaluate(champion=ChampionResult("3", CLASSES, P[:, ::-1]))  # right where the challenger is wrong
    assert set(got.slice_differences) == set(got.per_slice)
    assert got.slice_differences["site=south"]["accuracy"].value == pytest.approx(1 / 2 - 1 / 2)
    assert got.slice_differences["site=(missing)"]["accuracy"].value == pytest.approx(1)
    assert got.mcnemar is not None
    assert (got.mcnemar.only_challenger, got.mcnemar.only_champion) == (3, 2)


def test_evaluate__thresholds_are_tried_on_the_test_samples(evaluate: Evaluate) -> None:
    got = evaluate(
        confidence=Confidence(precision=0.9, threshold=0.65, answered=0.5),
        conformal=Conformal(coverage=0.9, threshold=0.35),
    )
    assert got.selective is not None
    assert got.selective.answered == pytest.approx(3 / 5)
    assert got.selective.precision == pytest.approx(2 / 3)
    assert got.selective.coverage == pytest.approx(4 / 5)
    assert got.selective.set_size == pytest.approx((1 + 1 + 1 + 2 + 2) / 5)


def test_evaluate__alpha_is_that_of_the_intervals(evaluate: Evaluate) -> None:
    wide, narrow = (evaluate(params=EvaluationParams(bootstrap=100, alpha=a)) for a in (0.02, 0.4))
    assert (wide.alpha, narrow.alpha) == (0.02, 0.4)
    assert wide.metrics["accuracy"].low < narrow.metrics["accuracy"].low


def test_evaluate__chance_ece_is_what_these_samples_allow(evaluate: Evaluate) -> None:
    got = evaluate()
    assert got.chance_ece is not None
    assert 0.1 < got.chance_ece < 0.5
    assert math.isnan(evaluate(p=np.full((5, 2), np.nan)).chance_ece or 0)


def rewritten(manifest: Manifest, target: Target, **columns: list[object]) -> Manifest:
    """A manifest of the test rows alone, with these columns."""
    frame = pd.read_parquet(manifest.file)
    test = frame[frame["split"] == "test"].copy()
    for name, values in columns.items():
        test[name] = np.array(values, dtype=object)
    test.to_parquet(manifest.file)
    return manifest.model_copy(update={"target": target, "slices": ()})


def test_evaluate__groups_are_resampled_together(manifest: Manifest, tmp_path: Path) -> None:
    grouped = rewritten(manifest, "class", group=["g", "g", "", None, "g"])
    (tmp_path / "o").mkdir()
    got = run(tmp_path / "o", grouped, P, CLASSES, None, EvaluationParams(bootstrap=400))
    # Three units (the group with 1 of 3 right, two single ones that are right): a resample without the
    # group has accuracy 1, one of the group alone 1/3.
    assert got.metrics["accuracy"].high == 1
    assert got.metrics["accuracy"].low == pytest.approx(1 / 3)
    assert (got.samples, got.units) == (5, 3)


def test_evaluate__slices_have_their_units(manifest: Manifest, tmp_path: Path) -> None:
    grouped = rewritten(manifest, "class", group=["g", "g", "h", None, "h"])
    (tmp_path / "o").mkdir()
    got = run(tmp_path / "o", grouped.model_copy(update={"slices": ("site",)}), P, CLASSES, None, PARAMS)
    assert got.slice_units == {"site=(missing)": 1, "site=north": 1, "site=south": 1}
    assert got.units == 3


def test_evaluate__retired_labels_of_the_champion_dilute_nothing(manifest: Manifest, tmp_path: Path) -> None:
    labelled = rewritten(manifest, "labels", label=["cat|dog", "cat", "", "dog", "dog"])
    outputs = np.full((5, 2), 0.5)
    retired = tuple(f"old {number}" for number in range(97))
    champion = ChampionResult("3", (*CLASSES, *retired), np.full((5, 99), 0.5))
    made = []
    for name, theirs in (("alone", None), ("beside", champion)):
        (tmp_path / name).mkdir()
        made.append(run(tmp_path / name, labelled, outputs, CLASSES, theirs, PARAMS))
    assert made[1].metrics == made[0].metrics
    assert made[1].metrics["log_loss"].value == pytest.approx(math.log(2))
    assert made[1].metrics["brier"].value == pytest.approx(0.25)
    assert made[1].chance_ece == made[0].chance_ece
    assert made[1].differences["log_loss"].value == 0
    assert (made[1].unknown_classes, made[1].unknown_samples) == ((), 0)


def test_evaluate__samples_with_labels_that_the_champion_lacks_are_counted(
    manifest: Manifest, tmp_path: Path
) -> None:
    labelled = rewritten(manifest, "labels", label=["cat|dog", "cat", "", "dog", "owl|dog"])
    champion = ChampionResult("3", ("cat",), np.full((5, 1), 0.5))
    (tmp_path / "o").mkdir()
    got = run(tmp_path / "o", labelled, np.full((5, 2), 0.5), CLASSES, champion, PARAMS)
    assert (got.unknown_classes, got.unknown_samples) == (("dog", "owl"), 3)


def test_evaluate__labels(manifest: Manifest, tmp_path: Path) -> None:
    labelled = rewritten(manifest, "labels", label=["cat|dog", "cat", "", "dog", "dog"])
    (tmp_path / "o").mkdir()
    outputs = np.array([[0.9, 0.8], [0.9, 0.6], [0.1, 0.2], [0.2, 0.7], [0.1, 0.9]])
    champion = ChampionResult("3", ("dog", "owl"), np.array([[0.8, 0.1]] * 5))
    got = run(tmp_path / "o", labelled, outputs, CLASSES, champion, PARAMS)
    assert got.target == "labels"
    assert set(got.metrics) == set(METRICS["labels"])
    assert got.metrics["subset_accuracy"].value == pytest.approx(4 / 5)
    assert got.per_class["dog"]["precision"].value == pytest.approx(3 / 4)
    assert got.champion_metrics is not None
    assert got.champion_metrics["subset_accuracy"].value == pytest.approx(2 / 5)
    predictions = pd.read_parquet(got.path / "predictions.parquet")
    assert predictions["predicted"].tolist() == ["cat|dog", "cat|dog", "", "dog", "dog"]
    assert predictions["confidence"].tolist() == pytest.approx([0.8, 0.6, 0.8, 0.7, 0.9])
    assert (got.path / "reliability.csv").exists()
    assert not (got.path / "confusion.csv").exists()


def test_evaluate__number(manifest: Manifest, tmp_path: Path) -> None:
    numbers = rewritten(manifest, "number", label=["1", "2.5", "3", "4", "5"])
    (tmp_path / "o").mkdir()
    outputs = np.array([[1.0], [2.5], [3.0], [4.0], [7.0]])
    champion = ChampionResult("3", (), outputs - 1)
    got = run(tmp_path / "o", numbers, outputs, (), champion, PARAMS)
    assert set(got.metrics) == set(METRICS["number"])
    assert got.metrics["mae"].value == pytest.approx(2 / 5)
    assert got.differences["mae"].value == pytest.approx((2 - (4 * 1 + 1)) / 5)
    assert (got.per_class, got.chance_ece, got.mcnemar, got.selective) == ({}, None, None, None)
    predictions = pd.read_parquet(got.path / "predictions.parquet")
    assert predictions["predicted"].tolist() == [1.0, 2.5, 3.0, 4.0, 7.0]
    assert (got.path / "predicted.csv").exists()


def test_evaluate__label_that_is_no_number_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    numbers = rewritten(manifest, "number", label=["1", "two", "3", "nan", "5"])
    with pytest.raises(DataError, match="2 of 5 test samples have a label that is no finite number"):
        run(tmp_path, numbers, np.zeros((5, 1)), (), None, PARAMS)


def test_evaluate__champion_of_another_target_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    numbers = rewritten(manifest, "number", label=["1", "2", "3", "4", "5"])
    with pytest.raises(DataError, match=r"champion version 3: outputs .* and their numbers"):
        run(tmp_path, numbers, np.zeros((5, 1)), (), ChampionResult("3", CLASSES, P), PARAMS)
