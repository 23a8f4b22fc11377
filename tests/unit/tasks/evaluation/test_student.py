import math
from typing import Any

import pytest

from tasks.errors import GateError
from tasks.evaluation.gate import AFTER_FLOORS, verify
from tasks.evaluation.student import CHECKS, Student, named
from tasks.params import DistillParams, GateParams
from tasks.records import Check, Decision, Difference, Evaluation, Interval, Trial, digest_of
from tasks.records.student import Throughput
from tests.unit.tasks.evaluation.judged import (
    ABSOLUTE,
    GOOD,
    PARAMS,
    SUPERIOR,
    TRIAL,
    difference,
    evaluation,
    judge,
    reason,
)

DISTILL = DistillParams(student="timm:test_vit", margin=0.02, min_speedup=2.0, max_size=0.5)
THROUGHPUT = Throughput(
    digest="s", folder="unused", package="p", teachers=("q",), samples=30, rounds=5,
    images_per_s=300, teacher_images_per_s=100, speedup=3.0, size_mb=4.0, teacher_size_mb=16.0,
)  # fmt: skip


def beside(found: Difference | None = None, **changed: Any) -> Evaluation:
    """The student beside the teacher `q`: at worst 0.01 worse."""
    made = evaluation(version="q", differences=(found or difference(0.0, -0.01, 0.01),))
    return made.model_copy(update={"digest": "b", **changed})


def student(**changed: Any) -> Student:
    values: dict[str, Any] = {
        "params": DISTILL,
        "teachers": ("q",),
        "beside": beside(),
        "throughput": THROUGHPUT,
        **changed,
    }
    return Student(**values)


def measured(**changed: float) -> Student:
    return student(throughput=THROUGHPUT.model_copy(update=changed))


def decided(one: Student, params: GateParams = PARAMS, trial: Trial | None = TRIAL) -> Decision:
    return judge(evaluation(), params, trial=trial, distilled=one)


def check(one: Student, name: str, trial: Trial | None = TRIAL) -> Check:
    return reason(decided(one, trial=trial), name)


def test_gate__decision_without_a_student_is_as_it_ever_was() -> None:
    # The digest that this decision had when there were no students.
    assert judge(evaluation()).digest == "a65419ecbe673fc68faba44db93989ecbbe93b0cf738b48f50c3b33f4768d41c"


@pytest.mark.parametrize("params", [PARAMS, SUPERIOR, ABSOLUTE])
def test_gate__student_has_further_checks_in_every_mode(params: GateParams) -> None:
    got = decided(student(), params)
    assert got.passed
    assert [found.check for found in got.reasons][-len(AFTER_FLOORS) - 3 :] == [*AFTER_FLOORS, *CHECKS]
    assert [(found.check, found.detail) for found in got.reasons[-3:]] == [
        (
            "teacher",
            "balanced_accuracy 0.000 [−0.010, +0.010] against its teacher, may be at most 0.02 worse",
        ),
        ("speedup", "speedup 3.000× (300 images/s, its teacher 100) ≥ 2×"),
        ("student_size", "package 25.0 % (4 MB, its teacher's 16 MB) ≤ 50 %"),
    ]
    assert [(found.numbers["value"], found.threshold) for found in got.reasons[-3:]] == [
        (0.01, 0.02),
        (3.0, 2.0),
        (0.25, 0.5),
    ]
    assert got.inputs["teacher"] == "q"
    assert (got.inputs["beside_teacher"], got.inputs["throughput"]) == ("b", "s")
    verify(got)
    verify(Decision.model_validate_json(got.model_dump_json()))


@pytest.mark.parametrize(("at_worst", "passed"), [(0.02, True), (0.0201, False), (0.3, False)])
def test_teacher__margin_is_of_the_worse_end(at_worst: float, passed: bool) -> None:
    got = decided(student(beside=beside(difference(0.0, -0.01, 0.01, at_worst=at_worst))))
    assert reason(got, "teacher").passed is passed
    assert got.passed is passed
    verify(got)


def test_teacher__worse_than_the_margin_says_by_how_much() -> None:
    got = check(student(beside=beside(difference(-0.1, -0.15, -0.05))), "teacher")
    assert got.detail == (
        "balanced_accuracy −0.100 [−0.150, −0.050] against its teacher: may be 0.150 worse, more than the "
        "0.02 allowed"
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["value", "low", "high", "at_worst"])
def test_teacher__what_is_no_number_fails(field: str, bad: float) -> None:
    found = difference(0.0, -0.01, 0.01).model_copy(update={field: bad})
    got = decided(student(beside=beside(found)))
    assert not reason(got, "teacher").passed
    assert "is not a number" in reason(got, "teacher").detail or "not known" in reason(got, "teacher").detail
    verify(got)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"beside": None}, "the student was not evaluated beside its teacher"),
        ({"beside": beside(champion_version="r")}, "compared with r, which is not its teacher"),
        ({"beside": beside(champion_version=None)}, "compared with nothing, which is not its teacher"),
        ({"teachers": ("q", "r")}, "compared with q, which is not its teacher"),
        (
            {"beside": beside(differences={})},
            "the difference in balanced_accuracy from its teacher is missing",
        ),
        ({"beside": beside(samples=377)}, "what was compared with its teacher is not what is judged"),
        ({"beside": beside(units=377)}, "what was compared with its teacher is not what is judged"),
        ({"beside": beside(alpha=0.4)}, "what was compared with its teacher is not what is judged"),
        ({"beside": beside(metrics={})}, "what was compared with its teacher is not what is judged"),
        (
            {"beside": beside(metrics={"balanced_accuracy": Interval(value=0.785, low=0.7, high=0.9)})},
            "what was compared with its teacher is not what is judged",
        ),
        ({"beside": beside(unknown_samples=1)}, "its teacher does not know the classes of 1 test sample"),
    ],
)
def test_teacher__without_a_comparison_it_fails(changed: dict[str, Any], why: str) -> None:
    got = decided(student(**changed))
    assert not got.passed
    assert reason(got, "teacher").detail.startswith(why)
    verify(got)


@pytest.mark.parametrize(("speedup", "passed"), [(2.0, True), (1.999, False), (0.1, False)])
def test_speedup__has_a_least_value(speedup: float, passed: bool) -> None:
    got = decided(measured(speedup=speedup))
    assert reason(got, "speedup").passed is passed
    verify(got)


def test_speedup__that_is_too_little_reads_so() -> None:
    got = check(measured(speedup=1.9999, images_per_s=200), "speedup")
    assert got.detail == "speedup 1.9999× (200 images/s, its teacher 100) < 2×, the least allowed"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, -1.0])
@pytest.mark.parametrize("field", ["speedup", "images_per_s", "teacher_images_per_s"])
def test_speedup__what_is_no_number_fails(field: str, bad: float) -> None:
    got = decided(measured(**{field: bad}))
    assert not got.passed
    assert reason(got, "speedup").detail.startswith("the speedup is not a number")
    verify(got)


@pytest.mark.parametrize(("size", "passed"), [(8.0, True), (8.01, False), (20.0, False)])
def test_student_size__has_a_greatest_value(size: float, passed: bool) -> None:
    got = decided(measured(size_mb=size))
    assert reason(got, "student_size").passed is passed
    verify(got)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
@pytest.mark.parametrize("field", ["size_mb", "teacher_size_mb"])
def test_student_size__what_is_no_number_fails(field: str, bad: float) -> None:
    got = decided(measured(**{field: bad}))
    assert not got.passed
    assert reason(got, "student_size").detail.startswith("the size is not a number")
    verify(got)


@pytest.mark.parametrize("name", ["speedup", "student_size"])
def test_throughput__must_be_of_what_is_judged(name: str) -> None:
    other = TRIAL.model_copy(update={"package": "other"})
    cases = [
        (student(throughput=None), TRIAL, "the packaged student was not tried beside its teacher"),
        (student(), other, "what was tried beside its teacher is not the package that is judged"),
        (student(), None, "what was tried beside its teacher is not the package that is judged"),
        (
            student(teachers=("q", "r")),
            TRIAL,
            "the packaged student was tried beside other teachers than its own",
        ),
    ]
    for one, trial, why in cases:
        got = check(one, name, trial)
        assert (got.passed, got.detail) == (False, why)


def test_named__several_teachers_have_one_name() -> None:
    assert named(["q"]) == "q"
    assert named(["q", "r"]) == named(("q", "r")) != named(["r", "q"])


def forged(one: Student, **changes: Any) -> Decision:
    """A decision with other content, and the digest that this would have."""
    changed = decided(one).model_copy(update=changes)
    content = changed.model_dump(mode="json", exclude={"digest"})
    return changed.model_copy(update={"digest": digest_of("gate", content)})


@pytest.mark.parametrize(
    ("one", "name"),
    [
        (student(beside=beside(difference(-0.1, -0.15, -0.05))), "teacher"),
        (student(beside=None), "teacher"),
        (student(beside=beside(difference(0.0, -0.1, 0.1, at_worst=-math.inf))), "teacher"),
        (measured(speedup=1.0), "speedup"),
        (measured(speedup=math.nan), "speedup"),
        (measured(speedup=math.inf), "speedup"),
        (student(throughput=None), "speedup"),
        (measured(size_mb=15.0), "student_size"),
    ],
)
def test_verify__students_checks_must_follow_from_their_numbers(one: Student, name: str) -> None:
    failing = decided(one)
    assert next(found.check for found in failing.reasons if not found.passed) == name
    checks = tuple(found.model_copy(update={"passed": True}) for found in failing.reasons)
    with pytest.raises(GateError, match=f"{name} is listed as passed, but its numbers do not pass"):
        verify(forged(one, passed=True, reasons=checks))


def test_verify__students_limits_must_be_those_that_were_set() -> None:
    one = measured(speedup=1.5)
    checks = tuple(
        found.model_copy(update={"passed": True, "threshold": 1.0}) if found.check == "speedup" else found
        for found in decided(one).reasons
    )
    with pytest.raises(GateError, match=r"speedup was held against 1.0, not 2.0 as set"):
        verify(forged(one, passed=True, reasons=checks))


def test_verify__students_checks_may_not_be_left_out() -> None:
    failing = decided(measured(speedup=1.0))
    with pytest.raises(GateError, match="lists the checks"):
        verify(forged(measured(speedup=1.0), passed=True, reasons=failing.reasons[:-3]))


@pytest.mark.parametrize(
    "kept", [None, {}, [], {"margin": 0.5}, {"margin": -1.0, "min_speedup": 1.0, "max_size": 1.0}]
)
def test_verify__students_thresholds_must_be_parameters(kept: Any) -> None:
    thresholds = {**decided(student()).thresholds, "student": kept}
    with pytest.raises(GateError, match="not parameters of the gate"):
        verify(forged(student(), thresholds=thresholds))


def test_gate__digest_covers_what_a_student_is_judged_by() -> None:
    decisions = [
        judge(evaluation()),
        decided(student()),
        decided(student(params=DISTILL.model_copy(update={"margin": 0.03}))),
        decided(student(params=DISTILL.model_copy(update={"min_speedup": 1.5}))),
        decided(student(params=DISTILL.model_copy(update={"max_size": 0.6}))),
        decided(student(beside=beside(digest="c"))),
        decided(measured(images_per_s=301)),
        decided(student(throughput=THROUGHPUT.model_copy(update={"digest": "t"}))),
    ]
    assert len({decision.digest for decision in decisions}) == len(decisions)
    assert GOOD["balanced_accuracy"].value == 0.784
