"""Markdown for the Prefect artifacts."""

import math
from collections.abc import Mapping, Sequence

from tasks.evaluation.data_report import audit_report, data_report
from tasks.evaluation.evidence_report import baselines_report, robustness_report
from tasks.evaluation.ladder_report import climb_report, ladder_report
from tasks.evaluation.markdown import difference, escape, interval, joined, number, table
from tasks.params import LOWER_IS_BETTER, METRICS
from tasks.records import Decision, Difference, Evaluation, Interval

__all__ = [
    "audit_report",
    "baselines_report",
    "climb_report",
    "data_report",
    "escape",
    "gate_report",
    "ladder_report",
    "robustness_report",
]

ROWS = 100  # of a table of classes or slices
# The metric by which the worst slices are found.
WORST = {"class": "balanced_accuracy", "labels": "macro_f1", "number": "mae"}


def gate_report(decision: Decision, evaluation: Evaluation) -> str:
    """The verdict, its reasons and all numbers behind them."""
    compared = evaluation.champion_version is not None
    return joined(
        f"# Gate {'passed' if decision.passed else 'failed'}",
        _verdict(decision),
        table(
            ("Check", "Result", "Numbers and reason"),
            (
                (escape(r.check), "passed" if r.passed else "**failed**", escape(r.detail))
                for r in decision.reasons
            ),
        ),
        f"## Metrics on {evaluation.samples:,} test samples",
        _metrics(evaluation),
        f"In brackets: {_coverage(evaluation.alpha)} intervals (bootstrap). "
        + ("Difference: challenger minus champion, paired. " if compared else "")
        + "↑ higher is better, ↓ lower is better.",
        _selective(evaluation),
        "## Classes" if evaluation.per_class else "",
        _per_class(evaluation),
        "## Slices" if evaluation.per_slice else "",
        _per_slice(evaluation),
        "## Slices against the champion" if evaluation.slice_differences else "",
        _slice_differences(evaluation),
    )


def _coverage(alpha: float) -> str:
    """`95 %`, `99.9 %`"""
    return f"{round(100 * (1 - alpha), 3):g} %"


def _verdict(decision: Decision) -> str:
    failed = [escape(reason.check) for reason in decision.reasons if not reason.passed]
    compared = next((reason for reason in decision.reasons if reason.check == "champion"), None)
    if decision.champion_version is not None:
        against = f"the champion is version {escape(decision.champion_version)}"
    elif compared is not None and not compared.passed:
        against = "the champion could not be compared"
    else:
        against = "there is no champion yet"
    mode = f"mode {escape(decision.mode)}"
    if decision.passed:
        return f"The model may be registered: all {len(decision.reasons)} checks passed; {against}; {mode}."
    return (
        f"The model may not be registered: {len(failed)} of {len(decision.reasons)} checks failed "
        f"({', '.join(failed)}); {against}; {mode}."
    )


def _metrics(evaluation: Evaluation) -> str:
    champion = evaluation.champion_metrics
    header = ["Metric", "Challenger"]
    if champion is not None:
        header += [f"Champion (version {escape(str(evaluation.champion_version))})", "Difference"]
    rows = []
    for name in METRICS[evaluation.target]:
        row = [_arrow(name), interval(evaluation.metrics.get(name))]
        if champion is not None:
            row += [interval(champion.get(name)), difference(evaluation.differences.get(name))]
        rows.append(row)
    return table(header, rows, right=1)


def _selective(evaluation: Evaluation) -> str:
    """What became of the head's thresholds, in words."""
    found = evaluation.selective
    if found is None:
        return ""
    lines = []
    if math.isfinite(found.answered):
        sure = f", and is right in {found.precision:.1%} of them" if math.isfinite(found.precision) else ""
        lines.append(f"It is sure of {found.answered:.1%} of the samples{sure}.")
    if math.isfinite(found.coverage):
        lines.append(
            f"Conformal sets hold the class of {found.coverage:.1%}, "
            f"with {found.set_size:.2f} classes in the mean."
        )
    return " ".join(lines)


def _per_class(evaluation: Evaluation) -> str:
    names = ("precision", "recall", "f1")
    rows, note = _worst(evaluation.per_class, "f1", "classes")
    return _numbers("Label" if evaluation.target == "labels" else "Class", names, rows, note)


def _per_slice(evaluation: Evaluation) -> str:
    rows, note = _worst(evaluation.per_slice, WORST[evaluation.target], "slices")
    return _numbers("Slice", METRICS[evaluation.target], rows, note, evaluation.slice_samples)


def _slice_differences(evaluation: Evaluation) -> str:
    """The slices in which the challenger does worst beside the champion."""
    if not evaluation.slice_differences:
        return ""
    metric = WORST[evaluation.target]
    found = {name: of.get(metric) for name, of in evaluation.slice_differences.items()}
    ranked = sorted(found, key=lambda name: (_p_worse(found[name]), name))
    lines = (
        (
            escape(name),
            f"{evaluation.slice_samples.get(name, 0):,}",
            difference(found[name]),
            number(_p_worse(found[name])),
        )
        for name in ranked[:ROWS]
    )
    more = f"And {len(ranked) - ROWS:,} more." if len(ranked) > ROWS else ""
    listed = table(("Slice", "Samples", f"{_arrow(metric)}, difference", "p of worse"), lines, right=1)
    return joined(listed, more).rstrip("\n")


def _p_worse(compared: Difference | None) -> float:
    return compared.p_worse if compared is not None and math.isfinite(compared.p_worse) else -math.inf


def _arrow(metric: str) -> str:
    return f"{metric} {'↓' if metric in LOWER_IS_BETTER else '↑'}"


def _worst(
    found: Mapping[str, Mapping[str, Interval]], by: str, things: str
) -> tuple[Mapping[str, Mapping[str, Interval]], str]:
    """All rows, or the worst ROWS of a longer table (what is not a number counts as worst)."""
    if len(found) <= ROWS:
        return found, ""
    lower = by in LOWER_IS_BETTER

    def value(name: str) -> float:
        measured = found[name].get(by)
        if measured is None or not math.isfinite(measured.value):
            return -math.inf
        return -measured.value if lower else measured.value

    worst = sorted(found, key=value)[:ROWS]
    extreme = "highest" if lower else "lowest"
    note = f"The {ROWS} {things} with the {extreme} {by}, and {len(found) - ROWS:,} more."
    return {name: found[name] for name in worst}, note


def _numbers(
    what: str,
    metrics: Sequence[str],
    rows: Mapping[str, Mapping[str, Interval]],
    note: str,
    samples: Mapping[str, int] | None = None,
) -> str:
    if not rows:
        return ""
    header = [what, *(["Samples"] if samples is not None else []), *metrics]
    lines = []
    for name, values in rows.items():
        count = [f"{samples.get(name, 0):,}"] if samples is not None else []
        lines.append([escape(name), *count, *(interval(values.get(metric)) for metric in metrics)])
    return joined(table(header, lines, right=1), note).rstrip("\n")
