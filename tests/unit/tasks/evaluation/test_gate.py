import math

import pytest

from tasks.errors import GateError
from tasks.evaluation.gate import AFTER_FLOORS, decide, verify
from tasks.params import Floor, GateParams
from tasks.records import Decision, Interval, digest_of
from tests.unit.tasks.evaluation.judged import (
    ABSOLUTE,
    FINDINGS,
    GOOD,
    PARAMS,
    SUPERIOR,
    TRIAL,
    difference,
    evaluation,
    judge,
    reason,
)

NAMES = ("min_test_samples", "floor.balanced_accuracy", "floor.ece", *AFTER_FLOORS)


def test_gate__first_model_is_judged_by_itself() -> None:
    got = judge(evaluation())
    assert got.passed
    assert got.champion_version is None
    assert [(r.check, r.passed, r.detail) for r in got.reasons] == [
        (
            "min_test_samples",
            True,
            # (1.96 + 0.84) · √2 · .02
            "378 test samples ≥ 50; the smallest difference in balanced_accuracy that they show at "
            "80 % power is 0.079",
        ),
        ("floor.balanced_accuracy", True, "balanced_accuracy 0.784 [0.741, 0.823] ≥ 0.70"),
        ("floor.ece", True, "ece 0.050 [0.030, 0.080] ≤ 0.15"),
        ("champion", True, "no champion yet: the other checks decide alone"),
        ("slices", True, "nothing to judge: the data has no slices"),
        (
            "calibration",
            True,
            "calibration error beyond chance 0.020 (0.050, of a calibrated model 0.030) ≤ 0.1",
        ),
        ("robustness", True, "disturbed images cost 0.100 of balanced_accuracy; no champion yet"),
        ("leakage", True, "test samples with a near-duplicate in train 0.3 % (1 sample) ≤ 2 %"),
        ("group_leaks", True, "no group is in several splits"),
        ("quarantined", True, "quarantined samples 1.0 % ≤ 5 %"),
        ("label_errors", True, "estimated wrong labels 3.0 % (9 flagged) ≤ 20 %"),
        ("latency", True, "p95 31 ms (p50 20 ms, 30 requests of one image); no limit set"),
        ("size", True, "packaged model 14.2 MB; no limit set"),
        ("package", True, "outputs of the packaged model differ from the evaluated ones by at most 1e-07"),
    ]
    verify(got)


def test_gate__every_check_has_its_numbers_and_threshold() -> None:
    got = judge(evaluation(version="3", differences=(difference(0.0, -0.01, 0.01),)), champion="3")
    assert {r.check: (r.numbers.get("value"), r.threshold) for r in got.reasons} == {
        "min_test_samples": (378, 50),
        "floor.balanced_accuracy": (0.784, 0.7),
        "floor.ece": (0.05, 0.15),
        "champion": (0.01, 0.02),
        "slices": (None, 0.05),
        "calibration": (pytest.approx(0.02), 0.1),
        "robustness": (-0.02, 0.05),  # the lower end of the difference
        "leakage": (1 / 378, 0.02),
        "group_leaks": (0, 0),
        "quarantined": (0.01, 0.05),
        "label_errors": (0.03, 0.2),
        "latency": (31, None),
        "size": (14.2, None),
        "package": (1e-7, 1e-3),
    }


def test_gate__too_few_test_samples_fail() -> None:
    got = judge(evaluation(samples=49))
    assert not got.passed
    assert reason(got, "min_test_samples").detail.startswith("49 test samples < 50, the least allowed; ")
    assert judge(evaluation(samples=50)).passed


def test_gate__groups_count_once() -> None:
    got = judge(evaluation(samples=120, units=2))
    assert not got.passed
    assert reason(got, "min_test_samples").detail.startswith(
        "120 test samples in 2 groups (single ones included): 2 < 50, the least allowed; "
    )
    # ⌈log2(2 / .05)⌉ = 6 losses are needed: two groups can't show anything.
    assert "show no difference in balanced_accuracy" in reason(got, "min_test_samples").detail
    verify(got)


def test_gate__units_that_are_not_known_fail() -> None:
    assert not reason(judge(evaluation(units=0)), "min_test_samples").passed


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
    got = judge(evaluation(changed), PARAMS)
    assert reason(got, f"floor.{metric}").passed is passed


def test_gate__failed_floor_never_reads_as_if_it_had_passed() -> None:
    changed = {
        "balanced_accuracy": Interval(value=0.69996, low=0.6, high=0.8),
        "ece": Interval(value=0.2, low=0.1, high=0.3),
    }
    got = judge(evaluation(changed), PARAMS)
    assert reason(got, "floor.balanced_accuracy").detail == (
        "balanced_accuracy 0.69996 [0.600, 0.800] < 0.70, the least allowed"
    )
    assert reason(got, "floor.ece").detail == "ece 0.200 [0.100, 0.300] > 0.15, the greatest allowed"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["value", "low", "high"])
def test_gate__nan_metric_fails_closed(bad: float, field: str) -> None:
    changed = GOOD["balanced_accuracy"].model_copy(update={field: bad})
    got = judge(evaluation({**GOOD, "balanced_accuracy": changed}), PARAMS)
    assert not got.passed
    assert "balanced_accuracy is not a number" in reason(got, "floor.balanced_accuracy").detail


def test_gate__infinitely_good_is_no_number_either() -> None:
    changed = {**GOOD, "ece": Interval(value=-math.inf, low=-math.inf, high=-math.inf)}
    assert not judge(evaluation(changed), PARAMS).passed


def test_gate__missing_metric_fails_closed() -> None:
    got = judge(evaluation({"ece": GOOD["ece"]}), PARAMS)
    assert not got.passed
    assert reason(got, "floor.balanced_accuracy").detail == "balanced_accuracy is missing from the evaluation"


def test_gate__empty_evaluation_fails_every_floor() -> None:
    got = judge(evaluation({}, samples=0), PARAMS)
    assert [r.check for r in got.reasons if not r.passed] == [
        "min_test_samples",
        "floor.balanced_accuracy",
        "floor.ece",
        "calibration",
        "leakage",
    ]


def test_gate__all_checks_are_listed_whatever_fails() -> None:
    got = judge(
        evaluation({}, samples=0),
        champion="3",
        problem="gone",
        findings=None,
        robustness=None,
        trial=None,
        quarantined=math.nan,
    )
    assert tuple(r.check for r in got.reasons) == NAMES
    # There are no slices, robustness is switched off, and speed and size have no limit.
    assert [r.check for r in got.reasons if r.passed] == ["slices", "robustness", "latency", "size"]
    verify(got)


@pytest.mark.parametrize(
    ("ece", "chance", "passed", "detail"),
    [
        (
            0.12,
            0.02,
            True,
            "calibration error beyond chance 0.100 (0.120, of a calibrated model 0.020) ≤ 0.1",
        ),
        (0.14, 0.02, False, "0.120 (0.140, of a calibrated model 0.020) > 0.1, the greatest allowed"),
        (0.01, 0.02, True, "beyond chance 0.000"),
        (math.nan, 0.02, False, "is not a number"),
        (0.05, math.nan, False, "is not a number"),
        (0.05, None, False, "the calibration error is missing"),
    ],
)
def test_gate__calibration_beyond_chance(ece: float, chance: float | None, passed: bool, detail: str) -> None:
    found = evaluation({**GOOD, "ece": Interval(value=ece, low=ece, high=ece)})
    got = reason(judge(found.model_copy(update={"chance_ece": chance})), "calibration")
    assert got.passed is passed
    assert detail in got.detail


def test_gate__latency_and_size_have_limits_where_set() -> None:
    params = PARAMS.model_copy(update={"max_latency_ms": 30.0, "max_size_mb": 14.2})
    got = judge(evaluation(), params)
    assert reason(got, "latency").detail == (
        "p95 31 ms (p50 20 ms, 30 requests of one image) > 30 ms, the greatest allowed"
    )
    assert reason(got, "size").passed
    assert [r.check for r in judge(evaluation(), params, trial=None).reasons if not r.passed] == [
        "latency",
        "size",
        "package",
    ]


@pytest.mark.parametrize("difference", [0.01, math.nan, math.inf])
def test_gate__package_that_answers_otherwise_fails(difference: float) -> None:
    got = judge(evaluation(), trial=TRIAL.model_copy(update={"largest_difference": difference}))
    assert [r.check for r in got.reasons if not r.passed] == ["package"]


def test_gate__number_has_no_calibration() -> None:
    params = GateParams(floors=(Floor(metric="r2", limit=0.5),), metric="mae")
    found = evaluation({"r2": Interval(value=0.7, low=0.6, high=0.8)}).model_copy(
        update={"target": "number", "chance_ece": None}
    )
    got = judge(found, params, findings=FINDINGS.model_copy(update={"label_error_rate": None}))
    assert got.passed
    assert reason(got, "calibration").detail == "a number states no probability"
    assert reason(got, "label_errors").detail == "not estimated for target number"
    verify(got)


@pytest.mark.parametrize(("apart", "passed"), [(0.5, True), (5.0, False)])
def test_gate__packaged_number_is_held_against_its_error(apart: float, passed: bool) -> None:
    params = GateParams(floors=(Floor(metric="rmse", limit=5000),), metric="mae")
    found = evaluation({"rmse": Interval(value=1000, low=900, high=1100)}).model_copy(
        update={"target": "number"}
    )
    got = judge(found, params, trial=TRIAL.model_copy(update={"largest_difference": apart}))
    assert reason(got, "package").passed is passed
    assert f"{apart / 1000:g} of the rmse" in reason(got, "package").detail
    verify(got)


def test_gate__evaluation_of_another_target_is_refused() -> None:
    with pytest.raises(GateError, match="target class, the data of target number; evaluate a head of this"):
        decide(
            evaluation(),
            PARAMS,
            champion_version=None,
            findings=None,
            robustness=None,
            trial=None,
            quarantined_fraction=0,
            target="number",
        )


def test_gate__digest_covers_inputs_numbers_and_thresholds() -> None:
    nan = Interval(value=math.nan, low=math.nan, high=math.nan)
    compared = evaluation(version="3", differences=(difference(0.0, 0.0, 0.0),))
    decisions = [
        judge(evaluation()),
        judge(evaluation(samples=379)),
        judge(evaluation({**GOOD, "ece": nan})),
        judge(evaluation().model_copy(update={"digest": "f"})),
        judge(evaluation(), PARAMS.model_copy(update={"margin": 0.03})),
        judge(evaluation(), champion="3"),
        judge(evaluation(), champion="3", problem="gone"),
        judge(compared, champion="3"),
        judge(evaluation(), findings=FINDINGS.model_copy(update={"digest": "g"})),
        judge(evaluation(), quarantined=0.02),
        judge(evaluation(), ABSOLUTE),
    ]
    assert len({decision.digest for decision in decisions}) == len(decisions)
    assert judge(evaluation()) == decisions[0]
    assert decisions[0].inputs == {
        **{"evaluation": "e", "findings": "f", "robustness": "r", "trial": "t"},
        "package": "p",
    }


def test_verify__decision_that_was_stored_is_as_it_was_made() -> None:
    nan = Interval(value=math.nan, low=math.nan, high=math.nan)
    for made in (judge(evaluation()), judge(evaluation({**GOOD, "ece": nan}), champion="3")):
        verify(Decision.model_validate_json(made.model_dump_json(indent=2)))


@pytest.mark.parametrize("params", [PARAMS, SUPERIOR, ABSOLUTE])
def test_verify__every_mode(params: GateParams) -> None:
    for found in (difference(0.03, 0.01, 0.05, p_better=0.001), difference(-0.1, -0.2, 0.0, p_worse=0.001)):
        compared = evaluation(
            version="3",
            differences=(found,),
            slice_samples={"a=1": 40, "a=2": 5},
            slice_differences={"a=1": found, "a=2": found},
        )
        verify(judge(compared, params, champion="3"))


def forged(**changes: object) -> Decision:
    """A decision with other content, and the digest that this would have."""
    made = judge(evaluation({**GOOD, "ece": Interval(value=0.2, low=0.1, high=0.3)}))
    changed = made.model_copy(update=changes)
    content = changed.model_dump(mode="json", exclude={"digest"})
    return changed.model_copy(update={"digest": digest_of("gate", content)})


def test_verify__changed_content_is_noticed() -> None:
    made = judge(evaluation())
    for change in ({"champion_version": "4"}, {"passed": False}, {"digest": "0" * 64}, {"reasons": ()}):
        with pytest.raises(GateError, match="digest"):
            verify(made.model_copy(update=change))


def test_verify__verdict_must_follow_from_the_checks() -> None:
    with pytest.raises(GateError, match="verdict is not that of its checks"):
        verify(forged(passed=True))


def test_verify__checks_must_follow_from_their_numbers() -> None:
    checks = [check.model_copy(update={"passed": True}) for check in forged().reasons]
    with pytest.raises(GateError, match=r"floor.ece is listed as passed, but its numbers do not pass"):
        verify(forged(passed=True, reasons=tuple(checks)))


def test_verify__limits_must_be_those_that_were_set() -> None:
    checks = [
        check.model_copy(update={"passed": True, "threshold": 0.5}) if check.check == "floor.ece" else check
        for check in forged().reasons
    ]
    with pytest.raises(GateError, match=r"floor.ece was held against 0.5, not 0.15"):
        verify(forged(passed=True, reasons=tuple(checks)))


def test_verify__no_check_may_be_left_out() -> None:
    with pytest.raises(GateError, match="lists the checks"):
        verify(forged(passed=True, reasons=tuple(c for c in forged().reasons if c.passed)))


def test_verify__champion_can_not_pass_without_numbers() -> None:
    first = judge(evaluation())
    changed = first.model_copy(update={"champion_version": "3"})
    content = changed.model_dump(mode="json", exclude={"digest"})
    with pytest.raises(GateError, match="champion is listed as passed"):
        verify(changed.model_copy(update={"digest": digest_of("gate", content)}))


def test_verify__thresholds_must_be_parameters() -> None:
    with pytest.raises(GateError, match="not parameters of the gate"):
        verify(forged(thresholds={"margin": -1}))
