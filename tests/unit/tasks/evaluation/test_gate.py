import math

import pytest

from tasks.evaluation.gate import decide
from tasks.params import Floor, GateParams
from tasks.records import Decision, Difference, Evaluation, Interval, Reason

PARAMS = GateParams(
    floors=(Floor(metric="balanced_accuracy", limit=0.7), Floor(metric="ece", limit=0.15)),
    metric="balanced_accuracy",
    margin=0.02,
    min_test_samples=50,
)
GOOD = {
    "balanced_accuracy": Interval(value=0.784, low=0.741, high=0.823),
    "ece": Interval(value=0.05, low=0.03, high=0.08),
}


def difference(value: float, low: float, high: float, metric: str = "balanced_accuracy") -> Difference:
    return Difference(metric=metric, value=value, low=low, high=high)


def evaluation(
    metrics: dict[str, Interval] = GOOD,
    *,
    samples: int = 378,
    version: str | None = None,
    differences: tuple[Difference, ...] = (),
) -> Evaluation:
    return Evaluation(
        digest="e",
        folder="unused",
        samples=samples,
        metrics=metrics,
        per_class={},
        per_slice={},
        slice_samples={},
        champion_version=version,
        champion_metrics=None if version is None else metrics,
        differences={d.metric: d for d in differences},
    )


def reason(decision: Decision, check: str) -> Reason:
    [found] = [reason for reason in decision.reasons if reason.check == check]
    return found


def test_gate__first_model_passes_by_the_floors_alone() -> None:
    got = decide(evaluation(), PARAMS, champion_version=None)
    assert got.passed
    assert got.champion_version is None
    assert [(r.check, r.passed, r.detail) for r in got.reasons] == [
        ("min_test_samples", True, "378 test samples ≥ 50"),
        ("floor.balanced_accuracy", True, "balanced_accuracy 0.784 [0.741, 0.823] ≥ 0.70"),
        ("floor.ece", True, "ece 0.050 [0.030, 0.080] ≤ 0.15"),
        ("champion", True, "no champion yet: the floors decide alone"),
    ]


def test_gate__too_few_test_samples_fail() -> None:
    got = decide(evaluation(samples=49), PARAMS, champion_version=None)
    assert not got.passed
    assert reason(got, "min_test_samples").detail == "49 test samples < 50, the least allowed"
    assert decide(evaluation(samples=50), PARAMS, champion_version=None).passed


@pytest.mark.parametrize(
    ("metric", "value", "passed"),
    [
        ("balanced_accuracy", 0.7, True),
        ("balanced_accuracy", 0.6999, False),
        ("ece", 0.15, True),
        ("ece", 0.1501, False),
        ("balanced_accuracy", 0.1 + 0.6, True),  # 0.7 but for the last digit
    ],
)
def test_gate__floor_is_the_least_or_greatest_value_allowed(metric: str, value: float, passed: bool) -> None:
    changed = {**GOOD, metric: Interval(value=value, low=0.0, high=1.0)}
    got = decide(evaluation(changed), PARAMS, champion_version=None)
    assert got.passed is passed
    assert reason(got, f"floor.{metric}").passed is passed


def test_gate__failed_floor_never_reads_as_if_it_had_passed() -> None:
    changed = {
        "balanced_accuracy": Interval(value=0.69996, low=0.6, high=0.8),
        "ece": Interval(value=0.2, low=0.1, high=0.3),
    }
    got = decide(evaluation(changed), PARAMS, champion_version=None)
    assert reason(got, "floor.balanced_accuracy").detail == (
        "balanced_accuracy 0.69996 [0.600, 0.800] < 0.70, the least allowed"
    )
    assert reason(got, "floor.ece").detail == "ece 0.200 [0.100, 0.300] > 0.15, the greatest allowed"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["value", "low", "high"])
def test_gate__nan_metric_fails_closed(bad: float, field: str) -> None:
    changed = GOOD["balanced_accuracy"].model_copy(update={field: bad})
    got = decide(evaluation({**GOOD, "balanced_accuracy": changed}), PARAMS, champion_version=None)
    assert not got.passed
    assert "balanced_accuracy is not a number" in reason(got, "floor.balanced_accuracy").detail


def test_gate__infinitely_good_is_no_number_either() -> None:
    changed = {**GOOD, "ece": Interval(value=-math.inf, low=-math.inf, high=-math.inf)}
    assert not decide(evaluation(changed), PARAMS, champion_version=None).passed


def test_gate__missing_metric_fails_closed() -> None:
    got = decide(evaluation({"ece": GOOD["ece"]}), PARAMS, champion_version=None)
    assert not got.passed
    assert reason(got, "floor.balanced_accuracy").detail == "balanced_accuracy is missing from the evaluation"


def test_gate__empty_evaluation_fails_every_floor() -> None:
    got = decide(evaluation({}, samples=0), PARAMS, champion_version=None)
    assert [r.check for r in got.reasons if not r.passed] == [
        "min_test_samples",
        "floor.balanced_accuracy",
        "floor.ece",
    ]


def test_gate__not_worse_than_the_champion_passes() -> None:
    compared = evaluation(version="3", differences=(difference(0.004, -0.006, 0.014),))
    got = decide(compared, PARAMS, champion_version="3")
    assert got.passed
    assert got.champion_version == "3"
    assert reason(got, "champion").detail == (
        "balanced_accuracy +0.004 [−0.006, +0.014] against version 3, may be at most 0.02 worse"
    )


def test_gate__better_on_average_but_maybe_worse_fails() -> None:
    compared = evaluation(version="3", differences=(difference(0.010, -0.031, 0.050),))
    got = decide(compared, PARAMS, champion_version="3")
    assert not got.passed
    assert reason(got, "champion").detail == (
        "balanced_accuracy +0.010 [−0.031, +0.050] against version 3: "
        "may be 0.031 worse, more than the 0.02 allowed"
    )


def test_gate__margin_itself_is_allowed_whatever_the_rounding() -> None:
    low = 0.78 - 0.80  # -0.020000000000000018
    compared = evaluation(version="3", differences=(difference(0.0, low, 0.02),))
    assert decide(compared, PARAMS, champion_version="3").passed


@pytest.mark.parametrize(("high", "passed"), [(0.02, True), (0.021, False)])
def test_gate__of_a_loss_the_upper_end_is_the_worse_one(high: float, passed: bool) -> None:
    params = PARAMS.model_copy(update={"metric": "log_loss"})
    compared = evaluation(version="3", differences=(difference(-0.05, -0.30, high, "log_loss"),))
    assert decide(compared, params, champion_version="3").passed is passed


def test_gate__champion_that_cannot_be_loaded_fails_closed() -> None:
    got = decide(evaluation(), PARAMS, champion_version="3", champion_problem="model.json is missing")
    assert not got.passed
    assert (
        reason(got, "champion").detail == "no comparison with the champion, version 3: model.json is missing"
    )


def test_gate__problem_without_a_known_version_fails_closed() -> None:
    got = decide(evaluation(), PARAMS, champion_version=None, champion_problem="the registry does not answer")
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
def test_gate__champion_that_was_not_compared_fails_closed(
    compared: str | None, differences: tuple[Difference, ...], champion: str | None, detail: str
) -> None:
    got = decide(evaluation(version=compared, differences=differences), PARAMS, champion_version=champion)
    assert not got.passed
    assert detail in reason(got, "champion").detail


def test_gate__all_checks_are_listed_whatever_fails() -> None:
    got = decide(evaluation({}, samples=0), PARAMS, champion_version="3", champion_problem="gone")
    assert [r.check for r in got.reasons] == [
        "min_test_samples",
        "floor.balanced_accuracy",
        "floor.ece",
        "champion",
    ]
    assert not any(r.passed for r in got.reasons)


def test_gate__digest_covers_inputs_numbers_and_thresholds() -> None:
    nan = Interval(value=math.nan, low=math.nan, high=math.nan)
    compared = evaluation(version="3", differences=(difference(0.0, 0.0, 0.0),))
    decisions = [
        decide(evaluation(), PARAMS, champion_version=None),
        decide(evaluation(samples=379), PARAMS, champion_version=None),
        decide(evaluation({**GOOD, "ece": nan}), PARAMS, champion_version=None),
        decide(evaluation().model_copy(update={"digest": "f"}), PARAMS, champion_version=None),
        decide(evaluation(), PARAMS.model_copy(update={"margin": 0.03}), champion_version=None),
        decide(evaluation(), PARAMS, champion_version="3"),
        decide(evaluation(), PARAMS, champion_version="3", champion_problem="gone"),
        decide(compared, PARAMS, champion_version="3"),
    ]
    assert len({decision.digest for decision in decisions}) == len(decisions)
    assert decide(evaluation(), PARAMS, champion_version=None) == decisions[0]
