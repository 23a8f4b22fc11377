"""What was found, as a list that a labeller can work through, and as contact sheets."""

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from tasks.audit import sheet
from tasks.audit.duplicates import Duplicates, weaker
from tasks.audit.label_errors import LabelErrors
from tasks.audit.outliers import Outliers
from tasks.audit.rows import Rows
from tasks.audit.sheet import Case, Line
from tasks.audit.thumbnails import image_of

EXCLUDE = "exclude"
# What begins so is run as a formula when a spreadsheet opens the file.
FORMULA = ("=", "+", "-", "@", "\t", "\r")
# The head that is judged says what looks wrong: without those samples its metrics would be too good.
_JUDGES = "it is of {split}, which judges: relabel it if it is wrong, never exclude it"


@dataclass(frozen=True)
class Entry:
    """A row of review.csv: a sample that somebody should look at. `action` is theirs to fill in; to
    leave a sample out, its digest or path goes to `data.exclude`.

    Only of near-duplicates `exclude` is suggested: which they are has nothing to do with what the head
    says of them. A label error or outlier of validation or test is to be relabelled in the source or to
    stay, and its reason says so."""

    digest: str
    path: str
    split: str
    label: str
    kind: str  # near_duplicate, label_error, outlier
    suggested: str  # of a near-duplicate `exclude`, of a label error the label, of an outlier nothing
    score: float  # greater is worse: correlation, 1 - odds of the label, robust standard deviations
    reason: str
    action: str = ""


def entries(rows: Rows, duplicates: Duplicates, errors: LabelErrors, outliers: Outliers) -> list[Entry]:
    """Near-duplicates, label errors, outliers; of each kind the worst first."""
    columns = {name: rows.text(name) for name in ("digest", "path", "split", "label")}

    def entry(row: int, kind: str, suggested: str, score: float, reason: str) -> Entry:
        own = {name: column[row] for name, column in columns.items()}
        if kind != "near_duplicate" and own["split"] != "train":
            reason += f"; {_JUDGES.format(split=own['split'])}"
        return Entry(**own, kind=kind, suggested=suggested, score=round(float(score), 4), reason=reason)

    listed = []
    for at, out_second in enumerate(weaker(rows, duplicates).tolist()):
        pair = [
            int(rows.first_row[number[at]]) for number in (duplicates.pairs.first, duplicates.pairs.second)
        ]
        out, kept = pair[::-1] if out_second else pair
        reason = (
            f"{'mirror image' if duplicates.pairs.mirrored[at] else 'near-duplicate'} of"
            f" {columns['path'][kept]} in {columns['split'][kept]}"
        )
        if columns["label"][out] != columns["label"][kept]:
            reason += f", which is labelled {columns['label'][kept]}"
        listed.append(entry(out, "near_duplicate", EXCLUDE, duplicates.pairs.correlation[at], reason))
    for row, suggested, score, reason in zip(
        errors.rows.tolist(), errors.suggested, errors.score.tolist(), errors.reasons, strict=True
    ):
        listed.append(entry(row, "label_error", suggested, score, reason))
    for row, score in zip(outliers.rows.tolist(), outliers.score.tolist(), strict=True):
        where = "the other samples" if rows.target != "class" else f"class {columns['label'][row]}"
        listed.append(
            entry(row, "outlier", "", score, f"{score:.1f} robust standard deviations from {where}")
        )
    return listed


def write_csv(file: Path, listed: Sequence[Entry]) -> None:
    """A header and a row for each entry (UTF-8). A cell that a spreadsheet would take for a formula has
    an apostrophe before it, which is not part of the path or label; numbers and digests never need one.
    """
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(Entry.__dataclass_fields__))  # \r\n: so a \r in a path is quoted
        writer.writeheader()
        for entry in listed:
            writer.writerow({name: _harmless(cell) for name, cell in asdict(entry).items()})


def _harmless(cell: str | float) -> str | float:
    if isinstance(cell, float) or not cell.startswith(FORMULA):
        return cell
    try:
        return cell if math.isfinite(float(cell)) else f"'{cell}"  # -5 is a label too
    except ValueError:
        return f"'{cell}"


def draw_sheets(
    out: Path,
    data: Path,
    rows: Rows,
    duplicates: Duplicates,
    errors: LabelErrors,
    outliers: Outliers,
    most: int,
) -> None:
    """Writes near-duplicates.png, label-errors.png and outliers.png, each with at most `most` cases;
    none where nothing was found.

    Args:
        data: folder that the manifest's paths are relative to.
    """
    read = partial(image_of, data)
    for file, title, about, found, make in (
        (
            "near-duplicates.png",
            "Near-duplicates",
            "Pairs of images that are the same but for their file: re-encoded, resized or mirrored."
            " Pairs across train and test come first: the test is easier than it should be by those.",
            len(duplicates),
            partial(_pair, rows, duplicates),
        ),
        (
            "label-errors.png",
            "Labels that are likely wrong",
            "What the label says against what a model says that did not see the image."
            " The model may be wrong too: look at the image.",
            len(errors.rows),
            partial(_error, rows, errors),
        ),
        (
            "outliers.png",
            "Outliers",
            "Images that are far from others of their kind: damaged, another subject, or rare and valuable.",
            len(outliers.rows),
            partial(_outlier, rows, outliers),
        ),
    ):
        shown = min(found, most)
        if shown:
            count = f"{found:,} found" if shown == found else f"the worst {shown:,} of {found:,}"
            sheet.draw(
                out / file, f"{title}: {count}", about, [make(number) for number in range(shown)], read
            )


def _facts(rows: Rows, row: int) -> tuple[str, tuple[Line, Line]]:
    """The path, and the lines that every image has."""
    sample = rows.frame.iloc[row]
    path, label, split = str(sample["path"]), str(sample["label"]), str(sample["split"])
    return path, (Line(path, path=True), Line(f"{split}, label: {label or '(none)'}"))


def _pair(rows: Rows, found: Duplicates, at: int) -> Case:
    pairs = found.pairs
    both = [int(rows.first_row[number[at]]) for number in (pairs.first, pairs.second)]
    labels = {str(rows.frame.iloc[row]["label"]) for row in both}
    notes = ["mirrored"] if pairs.mirrored[at] else []
    notes += ["across train and test"] if found.leaks[at] else []
    notes += ["labels differ"] if len(labels) > 1 else []
    return Case(
        tuple(_facts(rows, row) for row in both),
        (
            Line(", ".join(notes) or "near-duplicate", strong=bool(notes)),
            Line(f"pixels {pairs.correlation[at]:.3f}, embeddings {found.cosine[at]:.3f}"),
        ),
    )


def _error(rows: Rows, found: LabelErrors, at: int) -> Case:
    row, score = int(found.rows[at]), float(found.score[at])
    measure = "deviations off" if rows.target == "number" else "score"
    return Case(
        (_facts(rows, row),),
        (
            Line(f"suggested: {found.suggested[at] or '(none)'}", strong=True),
            Line(f"{measure} {score:.2f}" if measure == "score" else f"{score:.1f} {measure}"),
        ),
    )


def _outlier(rows: Rows, found: Outliers, at: int) -> Case:
    facts = _facts(rows, int(found.rows[at]))
    return Case((facts,), (Line(f"{found.score[at]:.1f} deviations", strong=True),))
