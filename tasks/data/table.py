"""A dataset's table: which files, their labels, and what else is known of each."""

import posixpath
from io import BytesIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data import split
from tasks.errors import DataError
from tasks.records import Rejected, Target

SUFFIXES = (".csv", ".parquet")
COLUMNS = ("path", "label", "split", "group")  # the further ones are slices
RESERVED = ("digest", "size", "width", "height", "row")  # columns that Regraft adds
_FORBIDDEN_PARTS = {".git", ".hg", ".dvc", ".dvcignore"}  # DVC leaves them out of every version


def read(content: bytes, name: str, target: Target = "class") -> tuple[pd.DataFrame, tuple[Rejected, ...]]:
    """The rows of a table that can be used, and the others with their reasons.

    The frame's columns are strings: path (normalised), label, split and group (empty where not
    given), then the slice columns in the table's order; `row` counts as a spreadsheet does (the
    header is row 1). A path that comes twice is kept once.

    Args:
        content: the file's bytes.
        name: for messages; the suffix tells CSV from Parquet.
        target: a sample without a label is one of `labels`; of others it is rejected.

    Raises:
        DataError: not a table, no columns path and label, an unknown split, or one path with two
            labels.
    """
    frame = _parse(content, name)
    frame.columns = [str(column).strip() for column in frame.columns]
    _check_columns(list(frame.columns), name)
    for column in ("split", "group"):
        if column not in frame:
            frame[column] = ""
    for column in COLUMNS:
        frame[column] = frame[column].str.strip()
    frame["row"] = range(2, len(frame) + 2)
    slices = [column for column in frame.columns if column not in (*COLUMNS, "row")]
    frame = frame[[*COLUMNS, *slices, "row"]]
    frame["split"] = _splits(frame, name)
    frame["path"] = [_normal(path) for path in frame["path"]]

    reasons = [
        _problem(path, label, target) for path, label in zip(frame["path"], frame["label"], strict=True)
    ]
    rejected = tuple(
        Rejected(path=path or f"(row {row})", reason=f"row {row}: {reason}")
        for path, row, reason in zip(frame["path"], frame["row"], reasons, strict=True)
        if reason is not None
    )
    good = frame[[reason is None for reason in reasons]]
    _check_labels(good, name)
    return good.drop_duplicates("path").reset_index(drop=True), rejected


def slice_columns(frame: pd.DataFrame) -> tuple[str, ...]:
    """The names of the slice columns of a frame from `read`."""
    return tuple(column for column in frame.columns if column not in (*COLUMNS, "row"))


def _parse(content: bytes, name: str) -> pd.DataFrame:
    if not content.strip():
        raise DataError(f"{name}: is empty; a table needs a header with path,label and a row per file")
    try:
        if name.lower().endswith(".parquet"):
            return _text(pq.read_table(BytesIO(content)))
        # A blank cell stays "", and a class called NA stays NA. index_col=False: a row with too
        # many cells must not push the columns to the right.
        return pd.read_csv(
            BytesIO(content), dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False
        ).fillna("")
    except DataError:
        raise
    except (pa.ArrowException, ValueError, OSError) as error:
        kind = "Parquet" if name.lower().endswith(".parquet") else "CSV (UTF-8, commas)"
        raise DataError(f"{name}: is not a {kind} table ({' '.join(str(error).split())})") from None


def _text(table: pa.Table) -> pd.DataFrame:
    """All columns as strings; integers without a decimal point, nulls as ""."""
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
            raise DataError(
                f"column {name} of the table is of type {column.type}; a text or number is needed"
            )
        columns[name] = column.cast(pa.string()).fill_null("").to_pylist()
    return pd.DataFrame(columns, dtype=str)


def _check_columns(columns: list[str], name: str) -> None:
    found = ", ".join(columns) or "none"
    missing = [column for column in ("path", "label") if column not in columns]
    if missing:
        raise DataError(f"{name}: has no column {' and '.join(missing)}; columns found: {found}")
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{name}: has the column {', '.join(twice)} twice; columns found: {found}")
    reserved = [column for column in columns if column in RESERVED or not column]
    if reserved:
        raise DataError(
            f"{name}: the column {reserved[0]!r} can't be used as a slice; rename it "
            f"(not allowed: {', '.join(RESERVED)} and a blank name)"
        )


def _splits(frame: pd.DataFrame, name: str) -> pd.Series:
    meant: dict[str, str] = {"": ""}
    for given in frame["split"].unique():
        if given:
            try:
                meant[given] = split.named(given)
            except DataError as error:
                row = frame.loc[frame["split"] == given, "row"].iloc[0]
                raise DataError(f"{name}, row {row}: {error}, or leave the cell blank") from None
    return frame["split"].map(meant)


def _normal(path: str) -> str:
    return posixpath.normpath(path) if path else ""


def _problem(path: str, label: str, target: Target) -> str | None:
    if not path:
        return "no path"
    if path.startswith("/"):
        return "the path is absolute; it must be relative to the table's folder"
    parts = path.split("/")
    if parts[0] == "..":
        return "the path leaves the table's folder"
    if path == "." or "\0" in path:
        return "not the path of a file"
    if not _FORBIDDEN_PARTS.isdisjoint(parts):
        return "a file of git or DVC"
    return None if label or target == "labels" else "no label"


def _check_labels(frame: pd.DataFrame, name: str) -> None:
    again = frame[frame.duplicated("path", keep=False)]
    for path, rows in again.groupby("path", sort=False):
        if rows["label"].nunique() > 1:
            labels = ", ".join(
                f"{label!r} in row {row}" for label, row in zip(rows["label"], rows["row"], strict=True)
            )
            raise DataError(f"{name}: {path} has two labels ({labels}); keep one row for it")
