"""The gate's checks of the data: what the audit found, and what was set aside."""

import math

from tasks.evaluation.checks import VALUE, counted, failed, granted, limited
from tasks.params import GateParams
from tasks.records import Check, Findings, Target

LISTED = 5  # groups named in a reason


def checks(
    findings: Findings | None, params: GateParams, test_samples: int, quarantined: float, target: Target
) -> tuple[Check, ...]:
    """Leakage between train and test, groups in several splits, quarantined samples, wrong labels.

    A test sample that could not be compared counts as leaked.
    """
    return (
        _leakage(findings, params.max_leakage, test_samples),
        _groups(findings),
        limited("quarantined", "quarantined samples", quarantined, params.max_quarantined, percent=True),
        _label_errors(findings, params.max_label_errors, target),
    )


def _leakage(findings: Findings | None, limit: float | None, test_samples: int) -> Check:
    what = "test samples with a near-duplicate in train"
    if findings is None:
        return _unaudited("leakage", limit)
    numbers = {"samples": float(findings.leaked), "unchecked": float(findings.unchecked)}
    if findings.truncated and limit is not None:
        detail = "so many images look alike that not all pairs of train and test were kept; remove copies"
        return failed("leakage", detail, threshold=limit, numbers=numbers)
    share = (findings.leaked + findings.unchecked) / test_samples if test_samples else math.nan
    said = counted(findings.leaked, "sample")
    if findings.unchecked:
        said += f", and {findings.unchecked:,} without detail to compare"
    return limited("leakage", what, share, limit, percent=True, numbers=numbers, said=said)


def _groups(findings: Findings | None) -> Check:
    """No limit here: a group on both sides is an error of the split."""
    if findings is None:
        return _unaudited("group_leaks", 0.0)
    leaks = findings.group_leaks
    if not leaks:
        return granted("group_leaks", "no group is in several splits", threshold=0.0, numbers={VALUE: 0})
    more = f" and {len(leaks) - LISTED:,} more" if len(leaks) > LISTED else ""
    detail = f"groups with samples in several splits: {', '.join(leaks[:LISTED])}{more}"
    return failed("group_leaks", detail, threshold=0.0, numbers={VALUE: len(leaks)})


def _label_errors(findings: Findings | None, limit: float | None, target: Target) -> Check:
    if findings is None:
        return _unaudited("label_errors", limit)
    rate = findings.label_error_rate
    if rate is None:
        if target != "class" or limit is None:
            return granted("label_errors", f"not estimated for target {target}", threshold=limit)
        return failed("label_errors", "the share of wrong labels was not estimated", threshold=limit)
    said = f"{findings.label_errors:,} flagged"
    numbers = {"flagged": float(findings.label_errors)}
    return limited(
        "label_errors", "estimated wrong labels", rate, limit, percent=True, numbers=numbers, said=said
    )


def _unaudited(check: str, limit: float | None) -> Check:
    if limit is None:
        return granted(check, "the data was not audited; no limit set", numbers={VALUE: math.nan})
    return failed(check, "the data was not audited", threshold=limit)
