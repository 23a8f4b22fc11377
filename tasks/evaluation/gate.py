"""The gate: a pure function from numbers to a decision with reasons. It fails closed: what is
missing, empty or no number is a failure, and every check is listed, whatever the others say."""

import math

from tasks.params import LOWER_IS_BETTER, Floor, GateParams
from tasks.records import Decision, Difference, Evaluation, Interval, Reason, digest_of

# Sums in another order differ in the last digits; a difference of -0.02 is within a margin of 0.02.
ROUNDING = 1e-9


def decide(
    evaluation: Evaluation,
    params: GateParams,
    *,
    champion_version: str | None,
    champion_problem: str | None = None,
) -> Decision:
    """Decides whether the challenger may be registered.

    Floors hold for the point estimates. Against the champion, the worse end of the 95 % interval
    of the paired difference may be worse by the margin at most: a non-inferiority test (Piaggio et
    al. 2012, https://doi.org/10.1001/jama.2012.87802). Without a champion the floors decide alone.

    Args:
        evaluation: of the challenger, and of the champion on the same test samples.
        params: the thresholds.
        champion_version: the version that serves today, as the registry has it; None if none does.
        champion_problem: why it could not be loaded or evaluated, if it could not.

    Returns:
        The decision; its reasons are the checks, in a fixed order.
    """
    reasons = (
        _enough_samples(evaluation.samples, params.min_test_samples),
        *(_floor(evaluation.metrics.get(floor.metric), floor) for floor in params.floors),
        _against_champion(evaluation, params, champion_version, champion_problem),
    )
    passed = all(reason.passed for reason in reasons)
    numbers = {
        "samples": evaluation.samples,
        "metrics": {name: _exact(i) for name, i in evaluation.metrics.items()},
        "differences": {name: _exact(d) for name, d in evaluation.differences.items()},
    }
    return Decision(
        digest=digest_of(
            "gate", evaluation.digest, numbers, params, champion_version, champion_problem, passed
        ),
        passed=passed,
        champion_version=champion_version,
        reasons=reasons,
    )


def signed(value: float) -> str:
    """`+0.004`, `−0.006`, and `0.000` for exactly nothing."""
    if not math.isfinite(value):
        return "NaN"
    return "0.000" if value == 0 else f"{value:+.3f}".replace("-", "−")


def _enough_samples(samples: int, least: int) -> Reason:
    enough = samples >= least
    detail = f"{samples:,} test samples {'≥' if enough else '<'} {least:,}"
    return Reason(
        check="min_test_samples", passed=enough, detail=detail if enough else f"{detail}, the least allowed"
    )


def _floor(measured: Interval | None, floor: Floor) -> Reason:
    check = f"floor.{floor.metric}"
    if measured is None:
        return Reason(check=check, passed=False, detail=f"{floor.metric} is missing from the evaluation")
    if not _finite(measured):
        return Reason(check=check, passed=False, detail=f"{floor.metric} is not a number: {_plain(measured)}")
    lower = floor.metric in LOWER_IS_BETTER
    passed = measured.value <= floor.limit + ROUNDING if lower else measured.value >= floor.limit - ROUNDING
    value = _apart(measured.value, floor.limit)
    shown = f"{floor.metric} {value} [{measured.low:.3f}, {measured.high:.3f}]"
    limit = _limit(floor.limit)
    if passed:
        return Reason(check=check, passed=True, detail=f"{shown} {'≤' if lower else '≥'} {limit}")
    detail = f"{shown} > {limit}, the greatest allowed" if lower else f"{shown} < {limit}, the least allowed"
    return Reason(check=check, passed=False, detail=detail)


def _against_champion(
    evaluation: Evaluation, params: GateParams, version: str | None, problem: str | None
) -> Reason:
    failed, metric = _champion_failure(evaluation, params.metric, version, problem), params.metric
    if failed is not None:
        return Reason(check="champion", passed=False, detail=failed)
    if version is None:
        return Reason(check="champion", passed=True, detail="no champion yet: the floors decide alone")
    difference = evaluation.differences[metric]
    worse_by = difference.high if metric in LOWER_IS_BETTER else -difference.low
    shown = (
        f"{metric} {signed(difference.value)} [{signed(difference.low)}, {signed(difference.high)}] "
        f"against version {version}"
    )
    margin = _limit(params.margin)
    if worse_by <= params.margin + ROUNDING:
        return Reason(check="champion", passed=True, detail=f"{shown}, may be at most {margin} worse")
    detail = f"{shown}: may be {_apart(worse_by, params.margin)} worse, more than the {margin} allowed"
    return Reason(check="champion", passed=False, detail=detail)


def _champion_failure(
    evaluation: Evaluation, metric: str, version: str | None, problem: str | None
) -> str | None:
    """Why there is no comparison to judge by, where there should be one."""
    champion = "the champion" if version is None else f"the champion, version {version},"
    if problem is not None:
        return f"no comparison with {champion.rstrip(',')}: {problem}"
    compared = evaluation.champion_version
    if version is None:
        return None if compared is None else f"compared with version {compared}, which is not the champion"
    if compared is None:
        return f"{champion} was not evaluated on these test samples"
    if compared != version:
        return f"compared with version {compared}, but the champion is version {version}"
    difference = evaluation.differences.get(metric)
    if difference is None:
        return f"the difference in {metric} from {champion} is missing from the evaluation"
    if not _finite(difference):
        return f"the difference in {metric} from {champion} is not a number: {_plain(difference)}"
    return None


def _finite(numbers: Interval | Difference) -> bool:
    return all(map(math.isfinite, (numbers.value, numbers.low, numbers.high)))


def _plain(numbers: Interval | Difference) -> str:
    return f"{numbers.value:.3f} [{numbers.low:.3f}, {numbers.high:.3f}]"


def _exact(numbers: Interval | Difference) -> list[str]:
    """Texts, because the digest refuses NaN."""
    return [repr(numbers.value), repr(numbers.low), repr(numbers.high)]


def _limit(value: float) -> str:
    """Two digits, or as many as the value has: 0.70, 0.705."""
    text = f"{value:.2f}"
    return text if float(text) == value else repr(value)


def _apart(value: float, limit: float) -> str:
    """Three digits, or as many as tell the value from the limit: never `0.700 < 0.70`."""
    digits = 3
    while abs(value - limit) > ROUNDING and float(f"{value:.{digits}f}") == limit:
        digits += 1
    return f"{value:.{digits}f}"
