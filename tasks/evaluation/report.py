"""Markdown for the Prefect artifacts. Whatever comes from the data (labels, paths, reasons) is
escaped: it can't break a table, format text, make links or inject HTML."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from tasks.evaluation.gate import signed
from tasks.params import LOWER_IS_BETTER, METRICS
from tasks.records import (
    SPLITS,
    Audit,
    DatasetVersion,
    Decision,
    Difference,
    Evaluation,
    Interval,
    Manifest,
    Rejected,
)

LISTED = 20  # rejected samples
ROWS = 100  # of a table of classes or slices
TEXT_LENGTH = 200  # characters of a text from the data

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "|": "&#124;", "@": "&#64;"}
# An underscore within a word formats nothing, and `global_defect` reads better as it is.
_FORMATTING = re.compile(r"[\\`*\[\]~$]|(?<![^\W_])_|_(?![^\W_])")


def data_report(version: DatasetVersion, audit: Audit, manifest: Manifest) -> str:
    """What the data is, how it was split, and what was set aside."""
    quarantined = f"{audit.quarantined_fraction:.1%} of the files"
    return _joined(
        "# Data",
        _table(
            ("", ""),
            (
                ("Source", escape(version.source)),
                ("Version (DVC)", escape(version.digest)),
                ("Layout", _layout(version)),
                ("Size", f"{version.files:,} files, {_size(version.size_bytes)}"),
                ("Samples", f"{manifest.samples:,} in {len(manifest.classes):,} classes"),
                ("Manifest", escape(manifest.digest)),
                ("Slices", ", ".join(map(escape, manifest.slices)) or "none"),
            ),
        ),
        "## Samples",
        _counts(manifest),
        _rejected("Not versioned", version.rejected, "The source holds them, the version does not."),
        _rejected("Quarantined", audit.quarantined, f"{quarantined}; no later stage sees them."),
        _rejected("Conflicting labels", manifest.conflicts, "The same bytes with different labels; kept."),
        _rejected(
            "Left out of training",
            manifest.left_out,
            "Copies of samples that the validation or test split holds.",
        ),
    )


def gate_report(decision: Decision, evaluation: Evaluation) -> str:
    """The verdict, its reasons and all numbers behind them."""
    compared = evaluation.champion_version is not None
    return _joined(
        f"# Gate {'passed' if decision.passed else 'failed'}",
        _verdict(decision),
        _table(
            ("Check", "Result", "Numbers and reason"),
            (
                (escape(r.check), "passed" if r.passed else "**failed**", escape(r.detail))
                for r in decision.reasons
            ),
        ),
        f"## Metrics on {evaluation.samples:,} test samples",
        _metrics(evaluation),
        "In brackets: 95 % intervals (bootstrap). "
        + ("Difference: challenger minus champion, paired. " if compared else "")
        + "↑ higher is better, ↓ lower is better.",
        "## Classes" if evaluation.per_class else "",
        _per_class(evaluation),
        "## Slices" if evaluation.per_slice else "",
        _per_slice(evaluation),
    )


def escape(text: str) -> str:
    """Text from the data as Markdown that shows it and does nothing else.

    Control and direction characters become �, white space a single space; long texts are cut.
    """
    visible = "".join(c if c.isprintable() else " " if c.isspace() else "�" for c in text)
    visible = " ".join(visible.split())
    if len(visible) > TEXT_LENGTH:
        visible = visible[: TEXT_LENGTH - 1] + "…"
    plain = "".join(_ENTITIES.get(c, c) for c in _FORMATTING.sub(r"\\\g<0>", visible))
    # GitHub's flavour makes links of bare addresses.
    return plain.replace("://", "&#58;//").replace("www.", "www&#46;").replace("WWW.", "WWW&#46;")


def _joined(*blocks: str) -> str:
    return "\n\n".join(block for block in blocks if block) + "\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], right: int | None = None) -> str:
    """A table; columns from `right` on are aligned right."""
    rule = ["---" if right is None or i < right else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def _layout(version: DatasetVersion) -> str:
    kinds = {
        "folders": "a folder per class",
        "split_folders": "a folder per split, in it a folder per class",
        "table": "a table",
    }
    table = f" ({escape(version.table)})" if version.table else ""
    return kinds[version.layout] + table


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _counts(manifest: Manifest) -> str:
    """Samples by class and split."""

    def row(name: str, labels: Sequence[str]) -> tuple[str, ...]:
        by_split = [sum(manifest.counts.get(split, {}).get(label, 0) for label in labels) for split in SPLITS]
        return (name, *(f"{count:,}" for count in (*by_split, sum(by_split))))

    shown, more = manifest.classes[:ROWS], manifest.classes[ROWS:]
    rows = [row(escape(label), [label]) for label in shown]
    if more:
        rows.append(row(f"{len(more):,} more classes", more))
    rows.append(row("**All**", manifest.classes))
    return _table(("Class", *(split.capitalize() for split in SPLITS), "All"), rows, right=1)


def _rejected(title: str, samples: Sequence[Rejected], meaning: str) -> str:
    if not samples:
        return ""
    listed = _table(("Path", "Reason"), ((escape(s.path), escape(s.reason)) for s in samples[:LISTED]))
    more = f"and {len(samples) - LISTED:,} more" if len(samples) > LISTED else ""
    return _joined(f"## {title}: {len(samples):,}", meaning, listed, more).rstrip("\n")


def _verdict(decision: Decision) -> str:
    failed = [escape(reason.check) for reason in decision.reasons if not reason.passed]
    compared = next((reason for reason in decision.reasons if reason.check == "champion"), None)
    if decision.champion_version is not None:
        against = f"the champion is version {escape(decision.champion_version)}"
    elif compared is not None and not compared.passed:
        against = "the champion could not be compared"
    else:
        against = "there is no champion yet"
    if decision.passed:
        return f"The model may be registered: all {len(decision.reasons)} checks passed; {against}."
    return (
        f"The model may not be registered: {len(failed)} of {len(decision.reasons)} checks failed "
        f"({', '.join(failed)}); {against}."
    )


def _metrics(evaluation: Evaluation) -> str:
    champion = evaluation.champion_metrics
    header = ["Metric", "Challenger"]
    if champion is not None:
        header += [f"Champion (version {escape(str(evaluation.champion_version))})", "Difference"]
    rows = []
    for name in METRICS:
        row = [f"{name} {'↓' if name in LOWER_IS_BETTER else '↑'}", _interval(evaluation.metrics.get(name))]
        if champion is not None:
            row += [_interval(champion.get(name)), _difference(evaluation.differences.get(name))]
        rows.append(row)
    return _table(header, rows, right=1)


def _per_class(evaluation: Evaluation) -> str:
    names = ("precision", "recall", "f1")
    rows, note = _worst(evaluation.per_class, "f1", "classes")
    return _numbers("Class", names, rows, note)


def _per_slice(evaluation: Evaluation) -> str:
    rows, note = _worst(evaluation.per_slice, "balanced_accuracy", "slices")
    return _numbers("Slice", METRICS, rows, note, evaluation.slice_samples)


def _worst(
    table: Mapping[str, Mapping[str, Interval]], by: str, things: str
) -> tuple[Mapping[str, Mapping[str, Interval]], str]:
    """All rows, or the worst ROWS of a longer table (what is not a number counts as worst)."""
    if len(table) <= ROWS:
        return table, ""

    def value(name: str) -> float:
        found = table[name].get(by)
        return found.value if found is not None and math.isfinite(found.value) else -math.inf

    worst = sorted(table, key=value)[:ROWS]
    note = f"The {ROWS} {things} with the lowest {by}, and {len(table) - ROWS:,} more."
    return {name: table[name] for name in worst}, note


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
        lines.append([escape(name), *count, *(_interval(values.get(metric)) for metric in metrics)])
    return _joined(_table(header, lines, right=1), note).rstrip("\n")


def _interval(number: Interval | None) -> str:
    if number is None:
        return "missing"
    if not math.isfinite(number.value):
        return "not a number"
    return f"{number.value:.3f} [{number.low:.3f}, {number.high:.3f}]"


def _difference(number: Difference | None) -> str:
    if number is None:
        return "missing"
    if not math.isfinite(number.value):
        return "not a number"
    return f"{signed(number.value)} [{signed(number.low)}, {signed(number.high)}]"
