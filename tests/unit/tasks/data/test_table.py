import io

import pandas as pd
import pytest

from tasks.data import table
from tasks.errors import DataError


def parquet(frame: pd.DataFrame) -> bytes:
    out = io.BytesIO()
    frame.to_parquet(out)
    return out.getvalue()


def failure(content: bytes, name: str = "t.csv") -> str:
    with pytest.raises(DataError) as caught:
        table.read(content, name)
    return str(caught.value)


def test_table__columns_and_slices() -> None:
    rows, rejected = table.read(b"site,path,label,split\nRome, a.png ,cat,dev\nNA,b/./c.png,dog,\n", "t.csv")
    assert rejected == ()
    assert table.slice_columns(rows) == ("site",)
    assert rows.to_dict("list") == {
        "path": ["a.png", "b/c.png"],
        "label": ["cat", "dog"],
        "split": ["validation", ""],
        "group": ["", ""],
        "site": ["Rome", "NA"],
        "row": [2, 3],
    }


def test_table__numbers_become_strings() -> None:
    frame = pd.DataFrame(
        {"path": ["a", "b"], "label": [7, 12], "patient": pd.array([3, None], dtype="Int64")}
    )
    rows, _ = table.read(parquet(frame), "t.parquet")
    assert list(rows["label"]) == ["7", "12"]
    assert list(rows["patient"]) == ["3", ""]
    rows, _ = table.read(b"path,label\na,007\nb,1.50\n", "t.csv")
    assert list(rows["label"]) == ["007", "1.50"]


def test_table__missing_columns_are_named_with_those_found() -> None:
    assert failure(b"file,label\na,b\n") == "t.csv: has no column path; columns found: file, label"
    assert failure(b"a;b\n1;2\n") == "t.csv: has no column path and label; columns found: a;b"


def test_table__that_is_none() -> None:
    assert failure(b"") == "t.csv: is empty; a table needs a header with path,label and a row per file"
    assert failure(b"PAR1 no", "t.parquet").startswith("t.parquet: is not a Parquet table (")
    assert failure(b"path,label\n\xff\xfe,b\n").startswith("t.csv: is not a CSV (UTF-8, commas) table (")


def test_table__reserved_and_double_columns() -> None:
    assert "'digest' can't be used as a slice" in failure(b"path,label,digest\na,b,c\n")
    assert "has the column label twice" in failure(b"path,label,label \na,b,c\n")


def test_table__rows_with_unusable_paths_are_rejected_with_their_row() -> None:
    content = (
        b"path,label\n/etc/passwd,x\n../up.png,x\na/../../up.png,x\n,x\nno-label.png,\n"
        b".git/a.png,x\nok.png,x\n"
    )
    rows, rejected = table.read(content, "t.csv")
    assert list(rows["path"]) == ["ok.png"]
    assert [(bad.path, bad.reason) for bad in rejected] == [
        ("/etc/passwd", "row 2: the path is absolute; it must be relative to the table's folder"),
        ("../up.png", "row 3: the path leaves the table's folder"),
        ("../up.png", "row 4: the path leaves the table's folder"),
        ("(row 5)", "row 5: no path"),
        ("no-label.png", "row 6: no label"),
        (".git/a.png", "row 7: a file of git or DVC"),
    ]


def test_table__same_path_twice_needs_one_label() -> None:
    rows, rejected = table.read(b"path,label\na,x\n./a,x\nb,y\n", "t.csv")
    assert list(rows["path"]) == ["a", "b"]
    assert rejected == ()
    assert failure(b"path,label\na,x\nb,y\na,z\n") == (
        "t.csv: a has two labels ('x' in row 2, 'z' in row 4); keep one row for it"
    )


def test_table__unknown_split_is_named_with_its_row() -> None:
    assert failure(b"path,label,split\na,x,train\nb,x,hold\n") == (
        "t.csv, row 3: 'hold' is not a split; use train, validation or test, or leave the cell blank"
    )


def test_table__of_sets_of_labels_an_empty_one_is_kept() -> None:
    content = b"path,label\na,\nb,x\n"
    rows, rejected = table.read(content, "t.csv", "labels")
    assert (list(rows["label"]), rejected) == (["", "x"], ())
    assert [bad.path for bad in table.read(content, "t.csv")[1]] == ["a"]
