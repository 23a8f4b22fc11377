"""The list of samples that everything later works from: label, split and slices of each."""

import hashlib
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data import labels, split, table
from tasks.errors import DataError
from tasks.params import DataParams
from tasks.records import Audit, DatasetVersion, Manifest, Rejected, Split, Target

_COLUMNS = ("digest", "path", "label", "split", "group", "size", "width", "height")
_SHOWN = 10  # labels of one content that a report names
_STRENGTH = {"train": 0, "validation": 1, "test": 2}  # who keeps content that two splits hold


def run(out: Path, version: DatasetVersion, audit: Audit, params: DataParams) -> Manifest:
    """Writes `manifest.parquet` into `out`.

    A given split is kept, and holds for the whole group; other samples are split by a hash of their
    group or content. While no validation samples are given, some of the given train become that.
    Content that occurs in several splits stays in the one that judges (test, then validation).
    `data.exclude` takes samples out before all that.

    Labels are written in one way: of the target `labels` sorted names with | between them (none is
    an empty label), of a number the shortest text that reads as the same float.

    Raises:
        DataError: no samples are left, no test samples were given, a group was given to several
            splits, a label is no number where one is needed, or a class (of numbers a split) has
            too few samples.
    """
    frame, excluded, unmatched = _without_excluded(_samples(version, audit, params.target), params)
    frame["label"] = labels.normal(frame["label"], frame["path"], params.target)
    slices = tuple(column for column in frame.columns if column not in _COLUMNS)
    frame = frame[[*_COLUMNS, *slices]].sort_values(["digest", "path"], ignore_index=True)
    frame["split"] = _assigned(frame, params)
    conflicts = _conflicts(frame)
    frame, left_out = _without_copies(frame)
    classes = labels.classes(frame["label"], params.target)
    counts = labels.counts(frame["label"], frame["split"], classes, params.target)
    labels.check_counts(counts, classes, params.target, params.min_per_class)
    pq.write_table(
        pa.Table.from_pandas(frame, schema=_schema(slices), preserve_index=False), out / "manifest.parquet"
    )
    return Manifest(
        digest=_digest(frame, classes, params.target),
        folder=str(out),
        target=params.target,
        samples=len(frame),
        classes=classes,
        slices=slices,
        counts=counts,
        conflicts=conflicts,
        left_out=left_out,
        excluded=excluded,
        unmatched=unmatched,
        quarantined=len(audit.quarantined),
    )


def _schema(slices: tuple[str, ...]) -> pa.Schema:
    numbers = {"size": pa.int64(), "width": pa.int32(), "height": pa.int32()}
    return pa.schema([(name, numbers.get(name, pa.string())) for name in (*_COLUMNS, *slices)])


def _samples(version: DatasetVersion, audit: Audit, target: Target) -> pd.DataFrame:
    """The good files with their label, and the given split ("" where none), group and slices."""
    files: pd.DataFrame = pq.read_table(audit.path / "files.parquet").to_pandas()
    if version.layout == "table":
        assert version.table is not None
        rows, _ = table.read((version.data / version.table).read_bytes(), version.table, target)
        merged: pd.DataFrame = files.merge(
            rows.drop(columns="row"), on="path", how="inner", validate="one_to_one"
        )
        return merged
    parts = files["path"].str.split("/")
    files["group"] = ""
    if version.layout == "split_folders":
        files["split"] = [split.named(part[0]) for part in parts]
        files["label"] = [part[1] for part in parts]
    else:
        files["split"] = ""
        files["label"] = [part[0] for part in parts]
    return files


def _without_excluded(
    frame: pd.DataFrame, params: DataParams
) -> tuple[pd.DataFrame, tuple[Rejected, ...], tuple[str, ...]]:
    """The other samples, those that `data.exclude` names by path or digest, and its entries that name
    none. The reason ends with the split that the sample would be of, where that is given, or where all
    are hashed: samples taken out of test change what a model is judged on.

    Raises:
        DataError: nothing is left.
    """
    exclude = params.exclude
    if not exclude:
        return frame, (), ()
    by_path, by_digest = frame["path"].isin(exclude), frame["digest"].isin(exclude)
    out = by_path | by_digest
    if out.all():
        raise DataError(f"data.exclude names all {len(frame):,} samples; leave some to train on")
    reasons = {True: "data.exclude names its path", False: "data.exclude names its digest"}
    splits = frame["split"] if frame["split"].any() else pd.Series(_hashed(frame, params), frame.index)
    excluded = [
        Rejected(path=path, reason=reasons[bool(named)] + (f"; of {where}" if where else ""))
        for path, named, where in zip(frame.loc[out, "path"], by_path[out], splits[out], strict=True)
    ]
    known = {*frame.loc[out, "path"], *frame.loc[out, "digest"]}
    unmatched = tuple(sorted({entry for entry in exclude if entry not in known}))
    return (
        frame[~out].reset_index(drop=True),
        tuple(sorted(excluded, key=lambda sample: sample.path)),
        unmatched,
    )


def _assigned(frame: pd.DataFrame, params: DataParams) -> list[str]:
    """A split for every row, given ones first."""
    hashed = _hashed(frame, params)
    given = list(frame["split"])
    if not any(given):
        return [*hashed]
    given = _of_the_group(frame["group"], given)
    assigned = [own or other for own, other in zip(given, hashed, strict=True)]
    if "test" not in assigned:
        raise DataError(
            "the given split has no test samples; name some test, or leave the split out to split by content"
        )
    if "validation" not in assigned:
        # A tenth of train, say: hashed as ever, so that new data moves no old sample.
        held_out = split.assign(_keys(frame), params.split_seed, 0.0, params.validation_fraction)
        assigned = [other if own == "train" else own for own, other in zip(assigned, held_out, strict=True)]
    return assigned


def _hashed(frame: pd.DataFrame, params: DataParams) -> list[Split]:
    """The split of every row where none is given."""
    return split.assign(_keys(frame), params.split_seed, params.test_fraction, params.validation_fraction)


def _keys(frame: pd.DataFrame) -> list[str]:
    """Not the unit of `units.keys`: that an image joins two groups later must move no old sample."""
    return [group or digest for group, digest in zip(frame["group"], frame["digest"], strict=True)]


def _of_the_group(groups: pd.Series, given: list[str]) -> list[str]:
    """Rows without a given split take that of their group.

    Raises:
        DataError: a group is given to several splits.
    """
    of_group: dict[str, str] = {}
    for group, own in zip(groups, given, strict=True):
        if group and own and of_group.setdefault(group, own) != own:
            raise DataError(
                f"group {group!r} is given to {of_group[group]} and to {own}; a group belongs to one split"
            )
    return [own or of_group.get(group, "") for group, own in zip(groups, given, strict=True)]


def _conflicts(frame: pd.DataFrame) -> tuple[Rejected, ...]:
    found = []
    for _, rows in frame[frame.duplicated("digest", keep=False)].groupby("digest"):
        if rows["label"].nunique() > 1:
            shown = rows.drop_duplicates("label").head(_SHOWN)  # of many copies, one of each label
            said = ", ".join(
                f"{path} is labelled {label}"
                for path, label in zip(shown["path"], shown["label"], strict=True)
            )
            found += [
                Rejected(path=path, reason=f"same content, other label: {said}") for path in rows["path"]
            ]
    return tuple(sorted(found, key=lambda conflict: conflict.path))


def _without_copies(frame: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Rejected, ...]]:
    """Leaves out the copies of content that a stronger split holds."""
    strength = frame["split"].map(_STRENGTH)
    strongest = strength.groupby(frame["digest"]).transform("max")
    loses = strength < strongest
    winner = frame[~loses].drop_duplicates("digest").set_index("digest")
    left_out = []
    for row in frame[loses].to_dict("records"):
        kept = winner.loc[row["digest"]]
        reason = f"left out of {row['split']}: same content as {kept['path']} in {kept['split']}"
        left_out.append(Rejected(path=row["path"], reason=reason))
    return frame[~loses].reset_index(drop=True), tuple(sorted(left_out, key=lambda copy: copy.path))


def _digest(frame: pd.DataFrame, classes: tuple[str, ...], target: Target) -> str:
    """Hex SHA-256 over the target, the classes, the columns and every row."""
    columns = list(frame.columns)
    # Of classes without their target: so manifests had their digests when there was no other.
    head = [classes, columns] if target == "class" else [target, classes, columns]
    total = hashlib.sha256(json.dumps(head).encode())
    for row in frame.itertuples(index=False, name=None):
        total.update(json.dumps(row).encode())
    return total.hexdigest()
