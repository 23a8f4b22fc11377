"""Shifts: between the splits, and against what the champion was trained on."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.audit import duplicates, two_sample
from tasks.audit.duplicates import Duplicates
from tasks.audit.rows import Bools, Rows, Vectors
from tasks.audit.space import Space
from tasks.records import Shift

_Side = tuple[str, list[str], list[str]]  # name of the comparison, digests of its two sides


def find(
    rows: Rows, vectors: Vectors, space: Space, alike: Duplicates, champion: Path | None, seed: int
) -> tuple[tuple[Shift, ...], list[str]]:
    """The tests of train against validation and test, and of the champion's train against what came
    since; and what could not be tested, with the reason.

    Args:
        champion: what the champion was trained on (manifest.parquet, or its folder).
    """
    independent = _independent(rows, alike, seed)
    notes: list[str] = []
    shifts = []
    for between, first, second in _sides(rows, vectors, independent, champion, notes):
        least = two_sample.LEAST
        if min(len(first), len(second)) < least:
            notes.append(
                f"no shift between {between}: {len(first):,} and {len(second):,} independent samples,"
                f" {least} of each are needed"
            )
            continue
        a, b = (space.project(vectors, two_sample.chosen(side, seed)) for side in (first, second))
        shifts.append(two_sample.c2st(between, a, b))
    return tuple(shifts), notes


def _sides(
    rows: Rows, vectors: Vectors, independent: Bools, champion: Path | None, notes: list[str]
) -> Iterator[_Side]:
    split = np.array(rows.text("split"), dtype=object)[rows.first_row]
    contents = np.array(rows.contents, dtype=object)
    train = contents[independent & (split == "train")].tolist()
    for name in ("validation", "test"):
        yield f"train and {name}", train, contents[independent & (split == name)].tolist()
    if champion is None:
        return
    try:
        file = champion / "manifest.parquet" if champion.is_dir() else champion
        told = pq.read_table(file, columns=["digest", "split"])
    except (OSError, pa.ArrowException) as error:
        # Not the message: it names the folder, and the same findings are to read the same anywhere.
        why = type(error).__name__
        notes.append(f"no shift against the champion's data: its manifest can't be read ({why})")
        return
    pairs = list(zip(told["digest"].to_pylist(), told["split"].to_pylist(), strict=True))
    # Near-duplicates and groups of samples that are no longer here aren't known.
    left_out = set(contents[~independent].tolist())
    trained = dict.fromkeys(digest for digest, name in pairs if name == "train" and digest not in left_out)
    there = vectors.present(list(trained))
    if len(there) < len(trained):
        notes.append(
            f"{len(trained) - len(there):,} of {len(trained):,} samples that the champion was trained on have"
            f" no embedding here; the shift is judged by the other {len(there):,}"
        )
    known = {digest for digest, _ in pairs}
    new = [digest for digest in contents[independent].tolist() if digest not in known]
    yield "the champion's train and what came since", there, new


def _independent(rows: Rows, alike: Duplicates, seed: int) -> Bools:
    """Of each group and each cluster of near-duplicates one content, [contents]: else the classifier
    would know what it is judged on."""
    rank = {digest: at for at, digest in enumerate(two_sample.shuffled(rows.contents, seed))}
    groups = np.array(rows.text("group"), dtype=object)[rows.first_row]
    cluster = duplicates.clusters(len(rows.contents), alike)
    taken: set[tuple[str, object]] = set()
    kept = np.zeros(len(rows.contents), dtype=np.bool_)
    for at in sorted(range(len(rows.contents)), key=lambda at: rank[rows.contents[at]]):
        keys: set[tuple[str, object]] = {("cluster", int(cluster[at]))}
        if groups[at]:
            keys.add(("group", groups[at]))
        kept[at] = taken.isdisjoint(keys)
        if kept[at]:
            taken |= keys
    return kept
