"""Markdown of the data: what it is, and what the audit found in it."""

from collections.abc import Sequence

from tasks.evaluation.markdown import LISTED, escape, joined, number, rejected, table
from tasks.records import SPLITS, Audit, DatasetVersion, Findings, Manifest, Rejected

ROWS = 100  # of a table of classes


def data_report(version: DatasetVersion, audit: Audit, manifest: Manifest) -> str:
    """What the data is, how it was split, and what was set aside."""
    quarantined = f"{audit.quarantined_fraction:.1%} of the files"
    return joined(
        "# Data",
        table(
            ("", ""),
            (
                ("Source", escape(version.source)),
                ("Version (DVC)", escape(version.digest)),
                ("Layout", _layout(version)),
                ("Size", f"{version.files:,} files, {_size(version.size_bytes)}"),
                ("Samples", _samples(manifest)),
                ("Manifest", escape(manifest.digest)),
                ("Slices", ", ".join(map(escape, manifest.slices)) or "none"),
            ),
        ),
        "## Samples",
        _counts(manifest),
        rejected("Not versioned", version.rejected, "The source holds them, the version does not."),
        rejected("Quarantined", audit.quarantined, f"{quarantined}; no later stage sees them."),
        rejected("Excluded", manifest.excluded, "By `data.exclude` in the parameters."),
        rejected(
            "Entries of data.exclude that name no sample",
            [Rejected(path=entry, reason="not in the data") for entry in manifest.unmatched],
            "They have no effect.",
        ),
        rejected("Conflicting labels", manifest.conflicts, "The same bytes with different labels; kept."),
        rejected(
            "Left out of training",
            manifest.left_out,
            "Copies of samples that the validation or test split holds.",
        ),
    )


def audit_report(findings: Findings) -> str:
    """What the embeddings say about the data."""
    imbalance = "not measured" if findings.imbalance is None else f"{findings.imbalance:,.1f} to 1"
    rate = findings.label_error_rate
    return joined(
        "# Audit",
        "From the embeddings. `review.csv` lists the samples for a labeller; contact sheets show the worst.",
        table(
            ("", ""),
            (
                ("Near-duplicates", f"{findings.near_duplicates:,} pairs"),
                (
                    "Leakage",
                    f"{findings.leaked:,} test samples ({findings.leakage:.1%}) nearly repeat one of train",
                ),
                ("Groups in several splits", _named(findings.group_leaks)),
                (
                    "Label errors",
                    f"{findings.label_errors:,} flagged; "
                    + ("share not estimated" if rate is None else f"{rate:.1%} of the labels, estimated"),
                ),
                ("Outliers", f"{findings.outliers:,}"),
                ("Largest class to smallest, in train", imbalance),
            ),
        ),
        "## Confusable classes" if findings.confusable else "",
        table(
            ("Class", "Mistaken for", "Share"),
            (
                (escape(one), escape(other), f"{share:.1%}")
                for one, other, share in findings.confusable[:LISTED]
            ),
            right=2,
        )
        if findings.confusable
        else "",
        "## Shifts" if findings.shifts else "",
        table(
            ("Between", "Samples", "Told apart", "p"),
            (
                (
                    escape(shift.between),
                    f"{shift.samples[0]:,} and {shift.samples[1]:,}",
                    f"{shift.accuracy:.1%}",
                    number(shift.p_value),
                )
                for shift in findings.shifts
            ),
            right=1,
        )
        if findings.shifts
        else "",
        "Told apart: how often a classifier says right from which of the two a sample is; 50 % is chance."
        if findings.shifts
        else "",
        "## Not looked at" if findings.notes else "",
        "\n".join(f"- {escape(note)}" for note in findings.notes),
    )


def _named(names: Sequence[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return f"{len(names):,}: {', '.join(map(escape, names[:LISTED]))}{more}"


def _samples(manifest: Manifest) -> str:
    if manifest.target == "number":
        return f"{manifest.samples:,}, each with a number"
    what = "classes" if manifest.target == "class" else "labels"
    return f"{manifest.samples:,} in {len(manifest.classes):,} {what}"


def _layout(version: DatasetVersion) -> str:
    kinds = {
        "folders": "a folder per class",
        "split_folders": "a folder per split, in it a folder per class",
        "table": "a table",
    }
    named = f" ({escape(version.table)})" if version.table else ""
    return kinds[version.layout] + named


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _counts(manifest: Manifest) -> str:
    """Samples by class and split. A sample with several labels counts for each, so these have no sum."""

    def row(name: str, labels: Sequence[str]) -> tuple[str, ...]:
        by_split = [sum(manifest.counts.get(split, {}).get(label, 0) for label in labels) for split in SPLITS]
        return (name, *(f"{count:,}" for count in (*by_split, sum(by_split))))

    shown, more = manifest.classes[:ROWS], manifest.classes[ROWS:]
    rows = [row(escape(label), [label]) for label in shown]
    if more:
        rows.append(row(f"{len(more):,} more classes", more))
    if manifest.target != "labels":
        rows.append(row("**All**", manifest.classes or [""]))
    what = "Label" if manifest.target == "labels" else "Class"
    return table((what, *(split.capitalize() for split in SPLITS), "All"), rows, right=1)
