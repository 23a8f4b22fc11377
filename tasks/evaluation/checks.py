"""How one number is held against one limit, and how both are written."""

import math
from collections.abc import Mapping

from tasks.params import LOWER_IS_BETTER
from tasks.records import Check

# Sums in another order differ in the last digits; a difference of -0.02 is within a margin of 0.02.
ROUNDING = 1e-9

VALUE = "value"  # among the numbers of a check, the one that its threshold is for


def at_least(check: str) -> bool:
    """Whether the threshold of this check is the least value allowed; else it is the greatest."""
    return check in ("min_test_samples", "speedup") or (
        check.startswith("floor.") and check.removeprefix("floor.") not in LOWER_IS_BETTER
    )


def within(check: str, value: float, limit: float) -> bool:
    """Whether the value respects the check's threshold; NaN never does."""
    return value >= limit - ROUNDING if at_least(check) else value <= limit + ROUNDING


def failed(
    check: str, detail: str, *, threshold: float | None = None, numbers: Mapping[str, float] | None = None
) -> Check:
    """A check that fails whatever its number is."""
    return Check(check=check, passed=False, detail=detail, threshold=threshold, numbers=dict(numbers or {}))


def granted(
    check: str, detail: str, *, threshold: float | None = None, numbers: Mapping[str, float] | None = None
) -> Check:
    """A check that there is nothing to fail by."""
    return Check(check=check, passed=True, detail=detail, threshold=threshold, numbers=dict(numbers or {}))


def limited(
    check: str,
    what: str,
    value: float,
    limit: float | None,
    *,
    percent: bool = False,
    unit: str = "",
    numbers: Mapping[str, float] | None = None,
    said: str = "",
) -> Check:
    """Holds a number against the greatest value allowed; of a check that is `at_least`, the least.

    Args:
        what: the number's name, in words.
        limit: None: there is no limit, and the check is listed as passed.
        percent: write both as percentages.
        unit: behind the number and the limit.
        numbers: what else belongs to it.
        said: what else there is to say, after the number.
    """

    def written(number: float) -> str:
        return f"{number:.1%}" if percent else f"{digits(number)}{unit}"

    told = {VALUE: value, **(numbers or {})}
    more = f" ({said})" if said else ""
    if limit is None:
        shown = written(value) if math.isfinite(value) else "not a number"
        return granted(check, f"{what} {shown}{more}; no limit set", numbers=told)
    if not math.isfinite(value):
        return failed(check, f"{what} is not a number: {value}", threshold=limit, numbers=told)
    passed = within(check, value, limit)
    shown, bound = _told_apart(value, limit, percent, unit)
    signs = ("≥", "<", "the least") if at_least(check) else ("≤", ">", "the greatest")
    detail = (
        f"{what} {shown}{more} {signs[0]} {bound}"
        if passed
        else f"{what} {shown}{more} {signs[1]} {bound}, {signs[2]} allowed"
    )
    return Check(check=check, passed=passed, detail=detail, numbers=told, threshold=limit)


def counted(number: int, thing: str) -> str:
    """`1 sample`, `2 samples`"""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def signed(value: float) -> str:
    """`+0.004`, `−0.006`, and `0.000` for exactly nothing."""
    if not math.isfinite(value):
        return "NaN"
    return "0.000" if value == 0 else f"{value:+.3f}".replace("-", "−")


def plain_limit(value: float) -> str:
    """Two digits, or as many as the value has: 0.70, 0.705."""
    text = f"{value:.2f}"
    return text if float(text) == value else repr(value)


def apart(value: float, limit: float) -> str:
    """Three digits, or as many as tell the value from the limit: never `0.700 < 0.70`."""
    digits = 3
    while abs(value - limit) > ROUNDING and float(f"{value:.{digits}f}") == limit:
        digits += 1
    return f"{value:.{digits}f}"


def _told_apart(value: float, limit: float, percent: bool, unit: str) -> tuple[str, str]:
    """Both as text, with as many digits as tell one from the other."""
    if percent:
        value, limit, unit = 100 * value, 100 * limit, " %"
    digits = 1 if percent else 3
    if not percent and max(abs(value), abs(limit)) >= 10:
        digits = 0
    while abs(value - limit) > ROUNDING and f"{value:.{digits}f}" == f"{limit:.{digits}f}":
        digits += 1
    return f"{value:,.{digits}f}{unit}", f"{limit:,.{10}f}".rstrip("0").rstrip(".") + unit


def digits(number: float) -> str:
    """Three digits at least: 0.0214, 35.7, 1,235."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"
