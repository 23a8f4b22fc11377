import hashlib
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from tasks.embedding import segment
from tasks.embedding.segment import DamagedError, Header, Keys, Segment, damaged, set_aside, write

DIM = 3


def keys_of(*names: str) -> Keys:
    content = b"".join(hashlib.sha256(name.encode()).digest()[:16] for name in names)
    return np.frombuffer(content, dtype=np.uint64).reshape(-1, 2)


def vectors_of(rows: int) -> NDArray[np.float32]:
    return np.arange(rows * DIM, dtype=np.float32).reshape(rows, DIM)


def is_damaged(file: Path) -> bool:
    segment.forget()
    try:
        return damaged([(Segment(file), None)]) != []
    except DamagedError:
        return True


def test_segment__gives_back_its_rows_in_the_order_of_the_keys(tmp_path: Path) -> None:
    keys, vectors = keys_of(*"abcde"), vectors_of(5)
    one = Segment(write(tmp_path, keys, vectors))
    order = sorted(range(5), key=lambda row: keys[row].tobytes())
    np.testing.assert_array_equal(one.keys, keys[order])
    np.testing.assert_array_equal(one.vectors, vectors[order])
    assert not one.vectors.flags.owndata  # a view of the map


def test_segment__sample_that_is_written_twice_is_there_once(tmp_path: Path) -> None:
    one = Segment(write(tmp_path, keys_of("a", "a"), vectors_of(2)))
    assert one.header.rows == 1
    np.testing.assert_array_equal(one.vectors, vectors_of(1))  # the first


def test_segment__is_named_by_the_digest_of_its_header(tmp_path: Path) -> None:
    file = write(tmp_path, keys_of("a", "b"), vectors_of(2))
    text = pa.ipc.open_file(file).schema.metadata[b"regraft"]
    assert file.name == hashlib.sha256(text).hexdigest() + ".arrow"
    header = Header.read(text, file.stem)
    assert (header.rows, header.dim, header.merged) == (2, DIM, "")
    table = pa.ipc.open_file(file).read_all()
    assert header.keys == hashlib.sha256(b"".join(table["key"].to_pylist())).hexdigest()
    raw = b"".join(np.array(row, dtype=np.float32).tobytes() for row in table["vector"].to_pylist())
    assert header.chunks == (hashlib.sha256(raw).hexdigest(),)


def test_segment__same_rows_have_the_same_name_and_a_merged_one_never(tmp_path: Path) -> None:
    keys, vectors = keys_of("a", "b"), vectors_of(2)
    assert write(tmp_path, keys, vectors) == write(tmp_path, keys[::-1], vectors[::-1])
    assert write(tmp_path, keys, vectors, merged="1") != write(tmp_path, keys, vectors, merged="2")
    assert len(list(tmp_path.iterdir())) == 3


def test_segment__is_readable_by_arrow_pandas_and_a_dataset_reader(tmp_path: Path) -> None:
    import pyarrow.dataset as ds

    keys = keys_of("a", "b")
    expected = sorted(key.tobytes() for key in keys)
    file = write(tmp_path, keys, vectors_of(2))
    table = pa.ipc.open_file(file).read_all()
    assert table.schema.field("key").type == pa.binary(16)
    assert table.schema.field("vector").type == pa.list_(pa.float32(), DIM)
    assert table["key"].to_pylist() == expected
    frame = pd.read_feather(file)  # Feather version 2 is the Arrow file format
    assert list(frame["key"]) == expected
    assert ds.dataset(file, format="ipc").count_rows() == 2


def test_segment__any_byte_that_changes_is_found(tmp_path: Path) -> None:
    file = write(tmp_path, keys_of("a", "b", "c"), vectors_of(3))
    content = file.read_bytes()
    assert not is_damaged(file)
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        assert is_damaged(file), f"byte {place} of {len(content)}"


def test_segment__any_other_length_is_found(tmp_path: Path) -> None:
    file = write(tmp_path, keys_of("a", "b", "c"), vectors_of(3))
    content = file.read_bytes()
    for length in [*range(0, len(content), 5), len(content) - 1]:
        file.write_bytes(content[:length])
        assert is_damaged(file), f"{length} of {len(content)} bytes"
    file.write_bytes(content + b"\0")
    assert is_damaged(file)


def test_segment__under_the_name_of_another_is_damaged(tmp_path: Path) -> None:
    one = write(tmp_path, keys_of("a"), vectors_of(1))
    other = write(tmp_path, keys_of("b"), vectors_of(1))
    one.replace(other)
    with pytest.raises(DamagedError, match="its name is not the digest of its header"):
        Segment(other)


def test_segment__only_chunks_that_are_used_are_checked_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "_CHUNK_BYTES", 4 * DIM * 2)  # two rows a chunk
    file = write(tmp_path, keys_of(*"abcde"), vectors_of(5))
    one = Segment(file)
    assert len(one.header.chunks) == 3
    assert one.unverified(np.array([4, 0])) == [0, 2]
    assert damaged([(one, np.array([4]))]) == []
    assert one.unverified() == [0, 1]
    renamed = file.rename(tmp_path / "renamed")
    assert Segment(renamed, file.stem).unverified() == [0, 1]  # the process remembers
    segment.forget()
    assert Segment(renamed, file.stem).unverified() == [0, 1, 2]


def test_segment__damage_in_one_chunk_is_that_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "_CHUNK_BYTES", 4 * DIM * 2)
    file = write(tmp_path, keys_of(*"abcde"), vectors_of(5))
    at = file.read_bytes().index(Segment(file).vectors[2].tobytes())
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
    one = Segment(file)
    assert damaged([(one, np.array([0, 1, 4]))]) == []
    assert damaged([(one, np.array([3]))]) == [one]


def test_set_aside__another_file_that_took_the_name_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path, keys_of("a"), vectors_of(1))
    seen = segment.identity(file)
    content = file.read_bytes()
    with file.open("rb"):  # so that the new file can't have the old inode
        file.unlink()
        file.write_bytes(content)
        assert set_aside(file, seen, "seen earlier") is None
    assert [left.name for left in tmp_path.iterdir()] == [file.name]
    with caplog.at_level(logging.WARNING):
        set_aside(file, segment.identity(file), "for a test")
    assert f"{file}: damaged segment (for a test), set aside" in caplog.text
    assert set_aside(file, seen, "gone already") is None


def test_publish__a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail(_: object) -> str:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        segment.publish(tmp_path, fail)
    assert list(tmp_path.iterdir()) == []
