"""The gate: a pure function from numbers to a decision with reasons. It fails closed: what is
missing, empty or no number is a failure, and every check is listed, whatever the others say."""

import math

from tasks.errors import GateError
from tasks.evaluation import judged_beside, judged_data, student
from tasks.evaluation.checks import (
    ROUNDING,
    VALUE,
    apart,
    counted,
    digits,
    failed,
    granted,
    limited,
    plain_limit,
    within,
)
from tasks.evaluation.power import COUNTED, detectable
from tasks.evaluation.student import Student
from tasks.params import LOWER_IS_BETTER, Floor, GateParams
from tasks.records import (
    Check,
    Decision,
    Evaluation,
    Findings,
    Interval,
    Robustness,
    Target,
    Trial,
    digest_of,
)

# Greatest difference of the packaged model's outputs from the evaluated ones (of numbers in root mean
# squared errors). Both compute the same in float32; a batch of one may round otherwise.
PACKAGED = 1e-3
AFTER_FLOORS = (
    "champion", "slices", "calibration", "robustness", "leakage", "group_leaks", "quarantined",
    "label_errors", "latency", "size", "package",
)  # fmt: skip
STUDENT = "student"  # among a decision's thresholds, where it is of a student: those of `student.CHECKS`
# May pass without a number: there is no champion, no slice, or no such thing for the target.
WITHOUT_NUMBER = ("champion", "slices", "calibration", "robustness", "label_errors")


def decide(
    evaluation: Evaluation,
    params: GateParams,
    *,
    champion_version: str | None,
    champion_problem: str | None = None,
    findings: Findings | None,
    robustness: Robustness | None,
    trial: Trial | None,
    quarantined_fraction: float,
    target: Target,
    distilled: Student | None = None,
) -> Decision:
    """Decides whether the challenger may be registered.

    Floors hold for the point estimates. For the comparison see `judged_beside.champion`,
    `judged_beside.slices` and `judged_beside.robustness`; without a champion the other checks decide alone.

    Args:
        evaluation: of the challenger, and of the champion on the same test samples.
        params: the thresholds.
        champion_version: the version that serves today, as the registry has it; None if none does.
        champion_problem: why it could not be loaded or evaluated, if it could not.
        findings: of the audit.
        robustness: None: switched off.
        trial: of the packaged model.
        quarantined_fraction: share of the data that was set aside.
        target: of the data.
        distilled: where the challenger is a student: what it is judged by beside its teacher.

    Returns:
        The decision; its reasons are the checks, in a fixed order. Its digest covers all the rest.

    Raises:
        GateError: the evaluation is of another target.
    """
    if evaluation.target != target:
        raise GateError(
            f"the evaluation is of target {evaluation.target}, the data of target {target}; "
            "evaluate a head of this data"
        )
    against = judged_beside.Against(champion_version, champion_problem)
    reasons = (
        _enough_samples(evaluation, params),
        *(_floor(evaluation.metrics.get(floor.metric), floor) for floor in params.floors),
        judged_beside.champion(evaluation, params, against),
        judged_beside.slices(evaluation, params, against),
        _calibration(evaluation, params.max_miscalibration),
        judged_beside.robustness(robustness, params, against),
        *judged_data.checks(findings, params, evaluation.samples, quarantined_fraction, target),
        *_package(trial, params, evaluation),
        *(() if distilled is None else student.checks(distilled, evaluation, trial, params.metric)),
    )
    records = {"evaluation": evaluation, "findings": findings, "robustness": robustness, "trial": trial}
    decision = Decision(
        digest="",
        passed=all(reason.passed for reason in reasons),
        mode=params.mode,
        champion_version=champion_version,
        inputs={
            **{name: record.digest for name, record in records.items() if record is not None},
            **({"package": trial.package} if trial else {}),
            **(distilled.inputs if distilled else {}),
        },
        thresholds={
            **params.model_dump(mode="json"),
            **({STUDENT: distilled.thresholds} if distilled else {}),
        },
        reasons=reasons,
    )
    return decision.model_copy(update={"digest": _digest(decision)})


def verify(decision: Decision) -> None:
    """Whether the decision is as it was made: its digest covers its content, every check is there, and
    the verdict follows from the checks, as these do from their numbers and the thresholds.

    Raises:
        GateError: it is not; the message says what was found.
    """
    if decision.digest != _digest(decision):
        raise GateError("the decision was changed after it was made: its digest is another's; decide again")
    thresholds = {name: value for name, value in decision.thresholds.items() if name != STUDENT}
    try:
        params = GateParams.model_validate(thresholds)
        further = student.limits(decision.thresholds[STUDENT]) if STUDENT in decision.thresholds else []
    except ValueError:  # pydantic's too
        raise GateError("the decision's thresholds are not parameters of the gate; decide again") from None
    floors = (f"floor.{floor.metric}" for floor in params.floors)
    expected = ("min_test_samples", *floors, *AFTER_FLOORS, *(student.CHECKS if further else ()))
    names = tuple(reason.check for reason in decision.reasons)
    if names != expected:
        raise GateError(f"the decision lists the checks {', '.join(names)}, not {', '.join(expected)}")
    if decision.mode != params.mode:
        raise GateError(f"the decision is of mode {decision.mode}, its thresholds of {params.mode}")
    for check, limit in zip(decision.reasons, [*_limits(params), *further], strict=True):
        if check.check != "slices" and check.threshold != limit:
            raise GateError(f"{check.check} was held against {check.threshold}, not {limit} as set")
        if check.passed and not _follows(check, decision):
            raise GateError(f"{check.check} is listed as passed, but its numbers do not pass")
    if decision.passed != all(check.passed for check in decision.reasons):
        raise GateError("the decision's verdict is not that of its checks; decide again")


def _digest(decision: Decision) -> str:
    return digest_of("gate", decision.model_dump(mode="json", exclude={"digest"}))


def _limits(params: GateParams) -> list[float | None]:
    """The threshold of each check, in order; none of `slices`, whose alpha is the evaluation's."""
    after: dict[str, float | None] = {
        "champion": judged_beside.worst_allowed(params),
        "calibration": params.max_miscalibration,
        "robustness": params.max_robustness_loss,
        "leakage": params.max_leakage,
        "group_leaks": 0.0,
        "quarantined": params.max_quarantined,
        "label_errors": params.max_label_errors,
        "latency": params.max_latency_ms,
        "size": params.max_size_mb,
        "package": PACKAGED,
    }
    floors = [floor.limit for floor in params.floors]
    return [float(params.min_test_samples), *floors, *(after.get(name) for name in AFTER_FLOORS)]


def _follows(check: Check, decision: Decision) -> bool:
    """Whether a check that passed does so by its numbers."""
    if check.check in student.CHECKS:
        return student.follows(check)
    if check.threshold is None:
        return True
    compared = decision.champion_version is not None and decision.mode != "absolute"
    if VALUE not in check.numbers:
        return check.check in WITHOUT_NUMBER and not (check.check == "champion" and compared)
    value = check.numbers[VALUE]
    if check.check == "champion" and not check.numbers.get("unknown", 1.0) <= judged_beside.UNKNOWN:
        return False
    if check.check == "champion" and decision.mode == "superior":
        return judged_beside.is_superior(check.numbers)
    if check.check == "slices":
        return value > check.threshold
    return within(check.check, value, check.threshold)


def _enough_samples(evaluation: Evaluation, params: GateParams) -> Check:
    """Of samples that are grouped each group counts once: they may all be right or wrong together."""
    samples, units, least = evaluation.samples, evaluation.units, params.min_test_samples
    seen = detectable(evaluation, params.metric)
    enough = units >= least
    shown = f"{samples:,} test samples"
    if units != samples:
        shown = f"{shown} in {counted(units, 'group')} (single ones included): {units:,}"
    detail = f"{shown} {'≥' if enough else '<'} {least:,}"
    if not enough:
        detail += ", the least allowed"
    if not math.isfinite(seen):
        power = f"the smallest difference in {params.metric} that they show is not known"
    elif seen >= 1 and params.metric in COUNTED:
        power = f"they show no difference in {params.metric} at 80 % power"
    else:
        power = f"the smallest difference in {params.metric} that they show at 80 % power is {seen:.2g}"
    return Check(
        check="min_test_samples",
        passed=enough,
        detail=f"{detail}; {power}",
        numbers={VALUE: units, "samples": samples, "detectable": seen},
        threshold=least,
    )


def _floor(measured: Interval | None, floor: Floor) -> Check:
    check = f"floor.{floor.metric}"
    if measured is None:
        return failed(check, f"{floor.metric} is missing from the evaluation", threshold=floor.limit)
    numbers = {VALUE: measured.value, "low": measured.low, "high": measured.high}
    if not all(map(math.isfinite, numbers.values())):
        plain = f"{measured.value:.3f} [{measured.low:.3f}, {measured.high:.3f}]"
        detail = f"{floor.metric} is not a number: {plain}"
        return failed(check, detail, threshold=floor.limit, numbers=numbers)
    lower = floor.metric in LOWER_IS_BETTER
    passed = within(check, measured.value, floor.limit)
    value = apart(measured.value, floor.limit)
    shown = f"{floor.metric} {value} [{measured.low:.3f}, {measured.high:.3f}]"
    limit = plain_limit(floor.limit)
    if passed:
        detail = f"{shown} {'≤' if lower else '≥'} {limit}"
    else:
        detail = (
            f"{shown} > {limit}, the greatest allowed" if lower else f"{shown} < {limit}, the least allowed"
        )
    return Check(check=check, passed=passed, detail=detail, numbers=numbers, threshold=floor.limit)


def _calibration(evaluation: Evaluation, limit: float | None) -> Check:
    """The ECE beyond what a calibrated model shows at this number of samples."""
    if evaluation.target == "number":
        return granted("calibration", "a number states no probability", threshold=limit)
    measured, chance = evaluation.metrics.get("ece"), evaluation.chance_ece
    if measured is None or chance is None:
        if limit is None:
            return granted("calibration", "not measured; no limit set")
        return failed("calibration", "the calibration error is missing from the evaluation", threshold=limit)
    beyond = max(measured.value - chance, 0.0) if math.isfinite(measured.value - chance) else math.nan
    return limited(
        "calibration",
        "calibration error beyond chance",
        beyond,
        limit,
        numbers={"ece": measured.value, "chance": chance},
        said=f"{measured.value:.3f}, of a calibrated model {chance:.3f}",
    )


def _package(trial: Trial | None, params: GateParams, evaluation: Evaluation) -> tuple[Check, ...]:
    if trial is None:
        missing = "the packaged model was not tried"
        limits = {"latency": params.max_latency_ms, "size": params.max_size_mb}
        return (
            *(
                granted(name, f"{missing}; no limit set")
                if limit is None
                else failed(name, missing, threshold=limit)
                for name, limit in limits.items()
            ),
            failed("package", f"{missing}: its outputs may not be the evaluated ones", threshold=PACKAGED),
        )
    beside = {
        "champion_p50": trial.champion_p50_ms,
        "champion_p95": trial.champion_p95_ms,
        "champion": trial.champion_size_mb,
    }
    theirs = {name: number for name, number in beside.items() if number is not None}
    size = theirs.pop("champion", None)
    times = f"p50 {digits(trial.p50_ms)} ms, {trial.samples:,} requests of one image"
    if "champion_p95" in theirs:
        times += f"; champion's p95 {digits(theirs['champion_p95'])} ms"
    return (
        limited(
            "latency",
            "p95",
            trial.p95_ms,
            params.max_latency_ms,
            unit=" ms",
            numbers={"p50": trial.p50_ms, **theirs},
            said=times,
        ),
        limited(
            "size",
            "packaged model",
            trial.size_mb,
            params.max_size_mb,
            unit=" MB",
            numbers={} if size is None else {"champion": size},
            said="" if size is None else f"champion's {digits(size)} MB",
        ),
        _same_outputs(trial, evaluation),
    )


def _same_outputs(trial: Trial, evaluation: Evaluation) -> Check:
    """The model evaluated is the model registered."""
    value, unit = trial.largest_difference, ""
    error = evaluation.metrics.get("rmse")
    if evaluation.target == "number" and error is not None and error.value > 0:
        value, unit = value / error.value, " of the rmse"  # numbers have a scale of their own
    numbers = {VALUE: value}
    if not math.isfinite(value):
        detail = "the packaged model's outputs are not numbers"
        return failed("package", detail, threshold=PACKAGED, numbers=numbers)
    same = value <= PACKAGED + ROUNDING
    detail = f"outputs of the packaged model differ from the evaluated ones by at most {value:.1g}{unit}"
    if not same:
        detail += f", more than the {PACKAGED:g} allowed: it is not the model that was evaluated"
    return Check(check="package", passed=same, detail=detail, numbers=numbers, threshold=PACKAGED)
