import math

import pytest

from tasks.evaluation.gate import verify
from tasks.records import Difference, Interval, McNemar
from tests.unit.tasks.evaluation.judged import (
    ABSOLUTE,
    PARAMS,
    ROBUSTNESS,
    SUPERIOR,
    difference,
    evaluation,
    judge,
    reason,
)


def test_champion__not_worse_than_the_champion_passes() -> None:
    compared = evaluation(version="3", differences=(difference(0.004, -0.006, 0.014),))
    got = judge(compared, PARAMS, champion="3")
    assert got.passed
    assert got.champion_version == "3"
    assert reason(got, "champion").detail == (
        "balanced_accuracy +0.004 [−0.006, +0.014] against version 3, may be at most 0.02 worse"
    )


def test_champion__better_on_average_but_maybe_worse_fails() -> None:
    compared = evaluation(version="3", differences=(difference(0.010, -0.031, 0.050),))
    got = judge(compared, PARAMS, champion="3")
    assert not got.passed
    assert reason(got, "champion").detail == (
        "balanced_accuracy +0.010 [−0.031, +0.050] against version 3: "
        "may be 0.031 worse, more than the 0.02 allowed"
    )


def test_champion__margin_itself_is_allowed_whatever_the_rounding() -> None:
    low = 0.78 - 0.80  # -0.020000000000000018
    compared = evaluation(version="3", differences=(difference(0.0, low, 0.02),))
    assert judge(compared, PARAMS, champion="3").passed


def test_champion__bound_beyond_the_interval_decides() -> None:
    # 50 samples on which nobody differed: the interval has no width, the bound says 2.01² / 50.
    found = difference(0.0, 0.0, 0.0, at_worst=0.0808, unseen=0.0808)
    got = judge(evaluation(version="3", differences=(found,)), PARAMS, champion="3")
    assert not got.passed
    assert reason(got, "champion").detail == (
        "balanced_accuracy 0.000 [0.000, 0.000] against version 3: may be 0.081 worse, more than the 0.02 "
        "allowed; with so few test samples (of the rarest class) also models that differ on none of them may "
        "be 0.081 apart"
    )
    same = difference(0.0, 0.0, 0.0)
    assert judge(evaluation(version="3", differences=(same,)), PARAMS, champion="3").passed


def test_champion__without_a_bound_non_inferiority_is_not_shown() -> None:
    found = difference(0.0, 0.0, 0.0, at_worst=math.nan)
    got = judge(evaluation(version="3", differences=(found,)), PARAMS, champion="3")
    assert not got.passed
    assert reason(got, "champion").detail.endswith("by how much it may be worse is not known")
    verify(got)


@pytest.mark.parametrize(("samples", "passed"), [(1, True), (189, True), (190, False), (378, False)])
def test_champion__that_lacks_the_classes_of_most_samples_is_no_measure(samples: int, passed: bool) -> None:
    better = difference(0.5, 0.4, 0.6, p_better=0.001)
    found = evaluation(version="3", differences=(better,), unknown=("cat",))
    found = found.model_copy(update={"unknown_samples": samples})
    for params in (PARAMS, SUPERIOR):
        got = judge(found, params, champion="3")
        assert reason(got, "champion").passed is passed
        assert f"which does not know cat ({samples} of 378 test samples)" in reason(got, "champion").detail
        verify(got)
    assert ("use gate.mode absolute once" in reason(got, "champion").detail) is not passed
    assert judge(found, ABSOLUTE, champion="3").passed


@pytest.mark.parametrize(("high", "passed"), [(0.02, True), (0.021, False)])
def test_champion__of_a_loss_the_upper_end_is_the_worse_one(high: float, passed: bool) -> None:
    params = PARAMS.model_copy(update={"metric": "log_loss"})
    compared = evaluation(version="3", differences=(difference(-0.05, -0.30, high, "log_loss"),))
    assert judge(compared, params, champion="3").passed is passed


def test_champion__champion_that_cannot_be_loaded_fails_closed() -> None:
    got = judge(evaluation(), PARAMS, champion="3", problem="model.json is missing")
    assert not got.passed
    assert (
        reason(got, "champion").detail == "no comparison with the champion, version 3: model.json is missing"
    )


def test_champion__problem_without_a_known_version_fails_closed() -> None:
    got = judge(evaluation(), PARAMS, problem="the registry does not answer")
    assert not got.passed
    assert reason(got, "champion").detail == "no comparison with the champion: the registry does not answer"


@pytest.mark.parametrize(
    ("compared", "differences", "champion", "detail"),
    [
        (None, (), "3", "the champion, version 3, was not evaluated on these test samples"),
        ("2", (difference(0, 0, 0),), "3", "compared with version 2, but the champion is version 3"),
        ("2", (difference(0, 0, 0),), None, "compared with version 2, which is not the champion"),
        ("3", (), "3", "the difference in balanced_accuracy from the champion, version 3, is missing"),
        (
            "3",
            (difference(math.nan, math.nan, math.nan),),
            "3",
            "the difference in balanced_accuracy from the champion, version 3, is not a number",
        ),
        ("3", (difference(0.1, math.nan, 0.2),), "3", "is not a number"),
        ("3", (difference(0.1, 0.0, math.inf),), "3", "is not a number"),
        ("3", (difference(0.1, 0.0, 0.2, "accuracy"),), "3", "is missing from the evaluation"),
    ],
)
def test_champion__champion_that_was_not_compared_fails_closed(
    compared: str | None, differences: tuple[Difference, ...], champion: str | None, detail: str
) -> None:
    got = judge(evaluation(version=compared, differences=differences), PARAMS, champion=champion)
    assert not got.passed
    assert detail in reason(got, "champion").detail


def test_champion__superior_needs_the_lower_end_above_nothing() -> None:
    better = evaluation(version="3", differences=(difference(0.03, 0.002, 0.05, p_better=0.01),))
    got = reason(judge(better, SUPERIOR, champion="3"), "champion")
    assert got.passed
    assert got.detail.endswith("against version 3: better beyond chance (p = 0.01)")
    maybe = evaluation(version="3", differences=(difference(0.03, 0.0, 0.05, p_better=0.01),))
    got = reason(judge(maybe, SUPERIOR, champion="3"), "champion")
    assert not got.passed
    assert "not shown to be better (the interval holds 0 or less)" in got.detail


@pytest.mark.parametrize("p", [0.026, math.nan])
def test_champion__superior_needs_the_paired_test_to_agree(p: float) -> None:
    found = evaluation(version="3", differences=(difference(0.03, 0.002, 0.05, p_better=p),))
    assert not reason(judge(found, SUPERIOR, champion="3"), "champion").passed


@pytest.mark.parametrize(
    ("mcnemar", "passed", "detail"),
    [
        (
            McNemar(only_challenger=12, only_champion=2, p_better=0.006, p_worse=1),
            True,
            "better beyond chance",
        ),
        (
            McNemar(only_challenger=5, only_champion=0, p_better=1 / 32, p_worse=1),
            False,
            "McNemar's test p = 0.031",
        ),
        (None, False, "McNemar's test is missing"),
    ],
)
def test_champion__superior_in_accuracy_needs_mcnemar(
    mcnemar: McNemar | None, passed: bool, detail: str
) -> None:
    params = SUPERIOR.model_copy(update={"metric": "accuracy"})
    shown = difference(0.03, 0.002, 0.05, "accuracy", p_better=0.01)
    found = evaluation(version="3", differences=(shown,), mcnemar=mcnemar)
    got = reason(judge(found, params, champion="3"), "champion")
    assert got.passed is passed
    assert detail in got.detail


def test_champion__superior_in_a_loss_is_lower() -> None:
    params = SUPERIOR.model_copy(update={"metric": "log_loss"})
    for value, passed in ((-0.1, True), (0.1, False)):
        shown = difference(value, value - 0.05, value + 0.05, "log_loss", p_better=0.001)
        found = evaluation(version="3", differences=(shown,))
        assert reason(judge(found, params, champion="3"), "champion").passed is passed


@pytest.mark.parametrize("problem", [None, "model.json is missing"])
def test_champion__absolute_does_not_ask_the_champion(problem: str | None) -> None:
    worse = evaluation(version="3", differences=(difference(-0.3, -0.4, -0.2),))
    got = judge(worse, ABSOLUTE, champion="3", problem=problem)
    assert got.passed
    assert "not judged in mode absolute" in reason(got, "champion").detail
    assert reason(got, "champion").threshold is None


def test_champion__first_model_passes_in_every_mode() -> None:
    for params in (PARAMS, SUPERIOR, ABSOLUTE):
        assert judge(evaluation(), params).passed


def sliced(p_worse: dict[str, float], samples: int = 40, value: float = -0.1) -> dict[str, Difference]:
    return {name: difference(value, value - 0.1, value + 0.1, p_worse=p) for name, p in p_worse.items()}


def test_slices__one_that_is_worse_beyond_chance_fails() -> None:
    # Holm: .01 of three is .03, at most .05; the others are not.
    found = sliced({"site=a": 0.01, "site=b": 0.2, "site=c": 0.9})
    compared = evaluation(
        version="3",
        differences=(difference(0.0, -0.01, 0.01),),
        slice_samples=dict.fromkeys(found, 40),
        slice_differences=found,
    )
    got = reason(judge(compared, champion="3"), "slices")
    assert not got.passed
    assert got.detail == "3 slices: worse in balanced_accuracy beyond chance: site=a (−0.100, p = 0.03)"
    assert got.numbers == {
        "value": pytest.approx(0.03), "judged": 3, "p site=a": pytest.approx(0.03),
        "p site=b": pytest.approx(0.4), "p site=c": pytest.approx(0.9),
    }  # fmt: skip
    assert judge(compared, ABSOLUTE, champion="3").passed


def test_slices__many_are_not_worse_by_chance() -> None:
    found = sliced({f"site={i}": 0.01 for i in range(10)})
    compared = evaluation(
        version="3",
        differences=(difference(0.0, -0.01, 0.01),),
        slice_samples=dict.fromkeys(found, 40),
        slice_differences=found,
    )
    got = reason(judge(compared, champion="3"), "slices")
    assert got.passed
    assert got.detail == "10 slices: none worse in balanced_accuracy beyond chance (least p = 0.1, site=0)"


def test_slices__small_ones_are_not_judged() -> None:
    found = sliced({"site=a": 0.001, "site=b": 0.9})
    compared = evaluation(
        version="3",
        differences=(difference(0.0, -0.01, 0.01),),
        slice_samples={"site=a": 29, "site=b": 30},
        slice_differences=found,
    )
    got = reason(judge(compared, champion="3"), "slices")
    assert got.passed
    assert got.detail.startswith("1 slice, 1 more have fewer than 30 samples: none worse")


def test_slices__groups_count_once() -> None:
    found = evaluation(slice_samples={"site=a": 40}, slice_units={"site=a": 4})
    assert reason(judge(found), "slices").detail == "nothing to judge: no slice has 30 samples"
    got = reason(judge(found, PARAMS.model_copy(update={"slices": ("site",)})), "slices")
    assert (got.passed, got.detail) == (
        False, "slice site=a has 40 test samples in 4 groups, fewer than 30",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "passed", "detail"),
    [
        ("site=a", True, ""),
        ("site=z", False, "slice site=z has no test samples"),
        ("colour", False, "slice colour has no test samples"),
        ("site", False, "slice site=b has 5 test samples, fewer than 30"),
        ("site=b", False, "slice site=b has 5 test samples, fewer than 30"),
        ("day", True, ""),
    ],
)
def test_slices__named_ones_must_be_there(name: str, passed: bool, detail: str) -> None:
    params = PARAMS.model_copy(update={"slices": (name,)})
    found = evaluation(slice_samples={"site=a": 40, "site=b": 5, "day=1": 30})
    for mode in (params, params.model_copy(update={"mode": "absolute"})):
        got = reason(judge(found, mode), "slices")
        assert got.passed is passed
        assert detail in got.detail


@pytest.mark.parametrize("broken", [{}, {"site=a": difference(0.1, 0.0, 0.2, p_worse=math.nan)}])
def test_slices__without_a_number_fail_closed(broken: dict[str, Difference]) -> None:
    compared = evaluation(
        version="3",
        differences=(difference(0.0, -0.01, 0.01),),
        slice_samples={"site=a": 40},
        slice_differences=broken,
    )
    got = reason(judge(compared, champion="3"), "slices")
    assert not got.passed
    assert "missing or not a number in site=a" in got.detail


def test_slices__champion_that_can_not_be_loaded_fails_closed() -> None:
    got = judge(evaluation(slice_samples={"site=a": 40}), champion="3", problem="gone")
    assert [r.check for r in got.reasons if not r.passed] == ["champion", "slices"]


@pytest.mark.parametrize(
    ("loss", "theirs", "low", "passed"),
    [
        (0.14, 0.09, 0.01, True),
        (0.25, 0.09, 0.05, True),  # the limit itself
        (0.15, 0.09, 0.051, False),
        (math.nan, 0.09, 0.0, False),
        (0.1, math.nan, 0.0, False),
        (0.1, 0.09, math.nan, False),
        (0.1, 0.09, None, False),
        (0.1, None, 0.0, False),
    ],
)
def test_robustness__fails_where_more_harm_than_the_limit_is_shown(
    loss: float, theirs: float | None, low: float | None, passed: bool
) -> None:
    compared = evaluation(version="3", differences=(difference(0.0, -0.01, 0.01),))
    more = None if low is None else Interval(value=loss - (theirs or 0), low=low, high=0.3)
    measured = ROBUSTNESS.model_copy(update={"loss": loss, "champion_loss": theirs, "difference": more})
    got = judge(compared, champion="3", robustness=measured)
    assert reason(got, "robustness").passed is passed
    assert got.passed is passed
    verify(got)


def test_robustness__says_by_how_much_the_losses_differ() -> None:
    compared = evaluation(version="3", differences=(difference(0.0, -0.01, 0.01),))
    assert reason(judge(compared, champion="3"), "robustness").detail == (
        "disturbed images cost 0.100 of balanced_accuracy, the champion 0.090: +0.010 [−0.020, +0.040], "
        "at least -0.020 (48 samples) ≤ 0.05"
    )


def test_robustness__without_a_champion_is_shown() -> None:
    alone = ROBUSTNESS.model_copy(update={"champion_loss": None, "loss": 0.9})
    got = reason(judge(evaluation(), robustness=alone), "robustness")
    assert (got.passed, got.detail) == (
        True,
        "disturbed images cost 0.900 of balanced_accuracy; no champion yet",
    )


def test_robustness__switched_off_is_said() -> None:
    got = reason(judge(evaluation(), robustness=None), "robustness")
    assert (got.passed, got.detail) == (True, "switched off (evaluation.robustness_samples is 0)")
