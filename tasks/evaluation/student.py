"""The gate's further checks of a student: it is as good as its teacher, quicker and smaller."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.evaluation.checks import ROUNDING, VALUE, counted, digits, failed, granted, limited, signed, within
from tasks.evaluation.judged_beside import inferiority
from tasks.params import DistillParams
from tasks.records import Check, Evaluation, Trial, digest_of
from tasks.records.student import Throughput

CHECKS = ("teacher", "speedup", "student_size")
_SHARED = ("target", "samples", "units", "alpha")  # of two evaluations of one student
_LIMITS = ("margin", "min_speedup", "max_size")  # of `distill`, in the order of the checks


@dataclass(frozen=True)
class Student:
    """What a student is judged by beside what every model is; what is missing fails."""

    params: DistillParams
    teachers: tuple[str, ...]  # digests of their packages
    beside: Evaluation | None  # of the student, with its teacher in the champion's place, called `named`
    throughput: Throughput | None

    @property
    def teacher(self) -> str:
        return named(self.teachers)

    @property
    def thresholds(self) -> dict[str, float]:
        """As a decision keeps them."""
        return {name: float(getattr(self.params, name)) for name in _LIMITS}

    @property
    def inputs(self) -> dict[str, str]:
        """What was judged: record -> digest."""
        records = {"beside_teacher": self.beside, "throughput": self.throughput}
        return {
            "teacher": self.teacher,
            **{name: record.digest for name, record in records.items() if record is not None},
        }


def named(teachers: Sequence[str]) -> str:
    """The one teacher by the digest of its package; several by a digest of theirs."""
    return teachers[0] if len(teachers) == 1 else digest_of("teachers", list(teachers))


def checks(student: Student, evaluation: Evaluation, trial: Trial | None, metric: str) -> tuple[Check, ...]:
    """The checks of CHECKS, in that order.

    Args:
        evaluation: of the student, that the rest of the gate judges.
        trial: of the package that it judges.
        metric: of the comparison.
    """
    return (
        _teacher(student, evaluation, metric),
        _speedup(student, trial),
        _size(student, trial),
    )


def limits(thresholds: object) -> list[float | None]:
    """The thresholds of the checks, from what a decision keeps of them.

    Raises:
        ValueError: they are not what `Student.thresholds` gives.
    """
    if not isinstance(thresholds, dict) or tuple(sorted(thresholds)) != tuple(sorted(_LIMITS)):
        raise ValueError(f"thresholds of a student are {', '.join(_LIMITS)}")
    params = DistillParams.model_validate(thresholds)
    return [getattr(params, name) for name in _LIMITS]


def follows(check: Check) -> bool:
    """Whether a check that passed does so by its numbers."""
    value = check.numbers.get(VALUE, math.nan)
    return (
        check.threshold is not None and math.isfinite(value) and within(check.check, value, check.threshold)
    )


def _teacher(student: Student, evaluation: Evaluation, metric: str) -> Check:
    """Non-inferiority to the teacher on the same test samples, by the same resamples, as to a champion
    (see `judged_beside.champion`); here whatever the gate's mode is."""
    limit, beside = float(student.params.margin), student.beside
    why_not = _not_compared(student, evaluation, metric)
    if why_not is not None or beside is None:
        return failed("teacher", why_not or "", threshold=limit)
    found = beside.differences[metric]
    numbers = {
        VALUE: found.at_worst,
        "difference": found.value,
        "low": found.low,
        "high": found.high,
        "p_better": found.p_better,
        "p_worse": found.p_worse,
        "alpha": beside.alpha,
    }
    shown = f"{metric} {signed(found.value)} [{signed(found.low)}, {signed(found.high)}] against its teacher"
    passed, detail = inferiority(shown, found, limit)
    made = granted if passed else failed
    return made("teacher", detail, threshold=limit, numbers=numbers)


def _not_compared(student: Student, evaluation: Evaluation, metric: str) -> str | None:
    """Why there is no comparison to judge by."""
    beside = student.beside
    if beside is None:
        return "the student was not evaluated beside its teacher"
    if beside.champion_version != student.teacher:
        return f"compared with {(beside.champion_version or 'nothing')[:12]}, which is not its teacher"
    own, its = evaluation.metrics.get(metric), beside.metrics.get(metric)
    others = own is None or its is None or abs(own.value - its.value) > ROUNDING
    if others or any(getattr(evaluation, name) != getattr(beside, name) for name in _SHARED):
        return f"what was compared with its teacher is not what is judged ({metric} or the samples differ)"
    if beside.unknown_samples:
        return f"its teacher does not know the classes of {counted(beside.unknown_samples, 'test sample')}"
    found = beside.differences.get(metric)
    if found is None:
        return f"the difference in {metric} from its teacher is missing from the evaluation"
    if not all(map(math.isfinite, (found.value, found.low, found.high))):
        plain = f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
        return f"the difference in {metric} from its teacher is not a number: {plain}"
    return None


def _untried(student: Student, trial: Trial | None) -> str | None:
    """Why there is no measurement to judge by."""
    measured = student.throughput
    if measured is None:
        return "the packaged student was not tried beside its teacher"
    if trial is None or measured.package != trial.package:
        return "what was tried beside its teacher is not the package that is judged"
    if measured.teachers != student.teachers:
        return "the packaged student was tried beside other teachers than its own"
    return None


def _speedup(student: Student, trial: Trial | None) -> Check:
    limit, measured = float(student.params.min_speedup), student.throughput
    why_not = _untried(student, trial)
    if why_not is not None or measured is None:
        return failed("speedup", why_not or "", threshold=limit)
    numbers = {
        VALUE: measured.speedup,
        "images_per_s": measured.images_per_s,
        "teacher_images_per_s": measured.teacher_images_per_s,
    }
    rates = (measured.images_per_s, measured.teacher_images_per_s)
    if not all(math.isfinite(one) and one > 0 for one in (measured.speedup, *rates)):
        plain = f"{measured.speedup:g} ({rates[0]:g} and {rates[1]:g} images/s)"
        return failed("speedup", f"the speedup is not a number: {plain}", threshold=limit, numbers=numbers)
    said = f"{digits(rates[0])} images/s, its teacher {digits(rates[1])}"
    return limited("speedup", "speedup", measured.speedup, limit, unit="×", numbers=numbers, said=said)


def _size(student: Student, trial: Trial | None) -> Check:
    limit, measured = float(student.params.max_size), student.throughput
    why_not = _untried(student, trial)
    if why_not is not None or measured is None:
        return failed("student_size", why_not or "", threshold=limit)
    own, its = measured.size_mb, measured.teacher_size_mb
    numbers = {"size": own, "teacher": its}
    if not (math.isfinite(own) and math.isfinite(its) and own > 0 and its > 0):
        detail = f"the size is not a number: {own:g} MB, its teacher {its:g} MB"
        return failed("student_size", detail, threshold=limit, numbers=numbers)
    said = f"{digits(own)} MB, its teacher's {digits(its)} MB"
    return limited("student_size", "package", own / its, limit, percent=True, numbers=numbers, said=said)
