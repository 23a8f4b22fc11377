import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from tasks.embedding.cache import EmbeddingCache, pack, write_durably
from tasks.errors import CacheError
from tasks.settings import ROOT

DIM = 3
A, B, C, D = (hashlib.sha256(name.encode()).hexdigest() for name in "abcd")


def rows(*firsts: float) -> NDArray[np.float32]:
    """A vector [first, first + 0.25, first + 0.5] for each of `firsts`."""
    return np.array([[first, first + 0.25, first + 0.5] for first in firsts], dtype=np.float32)


def opened(root: Path) -> EmbeddingCache:
    return EmbeddingCache(root, "fingerprint", DIM)


def filled(root: Path, digests: Sequence[str] = (A, B), *firsts: float) -> Path:
    """The only segment of a cache that holds `digests`."""
    cache = opened(root)
    cache.append(digests, rows(*(firsts or range(len(digests)))))
    (segment,) = cache.segments()
    return segment


def test_pack__key_is_the_first_sixteen_bytes_of_the_digest() -> None:
    digest = "00" + "11" * 15 + "22" * 16
    assert pack([digest]).tobytes() == b"\x00" + b"\x11" * 15


def test_cache__gives_back_what_was_appended(tmp_path: Path) -> None:
    opened(tmp_path).append([A, B], rows(1, 2))
    np.testing.assert_array_equal(opened(tmp_path).gather([A, B]), rows(1, 2))


def test_cache__gathers_in_the_order_asked_and_repeats(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.append([A, B], rows(1, 2))
    cache.append([C], rows(3))
    np.testing.assert_array_equal(cache.gather([C, A, C, B]), rows(3, 1, 3, 2))


def test_cache__key_that_ends_in_zero_bytes_is_found(tmp_path: Path) -> None:
    # numpy's fixed-length byte strings drop trailing zeros when they are shown; the key has them.
    zeros, other = "ab" + "00" * 31, "ab" + "00" * 14 + "01" + "00" * 16
    cache = opened(tmp_path)
    cache.append([zeros, other], rows(1, 2))
    np.testing.assert_array_equal(opened(tmp_path).gather([other, zeros]), rows(2, 1))


def test_cache__empty_has_nothing(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    assert len(cache) == 0
    assert cache.missing([A, B]) == [A, B]
    assert cache.gather([]).shape == (0, DIM)


def test_cache__reports_missing_once_and_in_order(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.append([B], rows(1))
    assert cache.missing([D, B, A, D, B]) == [D, A]


def test_cache__gather_of_missing_is_an_error_with_counts(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.append([A], rows(1))
    with pytest.raises(CacheError, match=rf"2 of 3 samples are not in the cache \(first: {C}\)"):
        cache.gather([A, C, D])


def test_cache__sample_of_two_writers_is_there_once(tmp_path: Path) -> None:
    one, other = opened(tmp_path), opened(tmp_path)  # neither sees the other's segment
    one.append([A, B], rows(1, 2))
    other.append([B, C], rows(2, 3))
    both = opened(tmp_path)
    assert len(list(both.segments())) == 2
    assert len(both) == 3
    np.testing.assert_array_equal(both.gather([A, B, C]), rows(1, 2, 3))


def test_cache__same_segment_twice_is_one_file(tmp_path: Path) -> None:
    opened(tmp_path).append([A], rows(1))
    opened(tmp_path).append([A], rows(1))
    assert len(list(opened(tmp_path).segments())) == 1


def test_cache__refresh_sees_another_writer(tmp_path: Path) -> None:
    reader = opened(tmp_path)
    opened(tmp_path).append([A], rows(1))
    assert reader.missing([A]) == [A]
    reader.refresh()
    assert reader.missing([A]) == []


def test_cache__fingerprints_do_not_mix(tmp_path: Path) -> None:
    opened(tmp_path).append([A], rows(1))
    assert EmbeddingCache(tmp_path, "another", DIM).missing([A]) == [A]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied"])
def test_cache__damaged_segment_is_set_aside(tmp_path: Path, damage: str) -> None:
    segment = filled(tmp_path, (A, B), 1, 2)
    content = bytearray(segment.read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    else:
        content.clear()
    segment.write_bytes(content)

    cache = opened(tmp_path)

    assert cache.missing([A, B]) == [A, B]
    assert not segment.exists()
    assert segment.with_suffix(".damaged").read_bytes() == bytes(content)
    cache.append([A, B], rows(1, 2))
    np.testing.assert_array_equal(opened(tmp_path).gather([A, B]), rows(1, 2))


def test_cache__damage_leaves_other_segments_readable(tmp_path: Path) -> None:
    segment = filled(tmp_path, (A,), 1)
    opened(tmp_path).append([B], rows(2))
    segment.write_bytes(segment.read_bytes()[:-1])
    cache = opened(tmp_path)
    assert cache.missing([A, B]) == [A]
    np.testing.assert_array_equal(cache.gather([B]), rows(2))


def test_cache__segment_that_vanishes_while_it_is_checked_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two processes find the same damaged segment: the other has set it aside already.
    segment = filled(tmp_path)
    segment.write_bytes(b"damaged")

    def check_late(file: Path) -> str:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(file.with_suffix(".damaged"))
        return digest

    monkeypatch.setattr("tasks.embedding.cache.file_digest", check_late)
    assert opened(tmp_path).missing([A]) == [A]


def test_cache__temporary_file_of_a_killed_writer_is_never_read(tmp_path: Path) -> None:
    # The writer dies when its segment is written, but neither synced nor renamed.
    script = f"""
import os
import numpy as np
from pathlib import Path
from tasks.embedding.cache import EmbeddingCache
cache = EmbeddingCache(Path({str(tmp_path)!r}), "fingerprint", {DIM})
os.fsync = lambda descriptor: os._exit(9)
cache.append([{A!r}], np.ones((1, {DIM}), dtype=np.float32))
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 9
    (left,) = (tmp_path / "fingerprint").iterdir()
    assert left.name.startswith(".")

    cache = opened(tmp_path)

    assert cache.missing([A]) == [A]
    cache.append([A], rows(1))
    np.testing.assert_array_equal(opened(tmp_path).gather([A]), rows(1))


def test_cache__segment_is_named_by_its_content(tmp_path: Path) -> None:
    segment = filled(tmp_path)
    assert segment.name == hashlib.sha256(segment.read_bytes()).hexdigest() + ".arrow"


def test_cache__segment_is_a_standard_arrow_file(tmp_path: Path) -> None:
    segment = filled(tmp_path, (A, B), 1, 2)
    table = pa.ipc.open_file(segment).read_all()
    assert table.schema.field("key").type == pa.binary(16)
    assert table.schema.field("vector").type == pa.list_(pa.float32(), DIM)
    assert table["key"].to_pylist() == [bytes.fromhex(A)[:16], bytes.fromhex(B)[:16]]
    assert table["vector"].to_pylist() == [[1.0, 1.25, 1.5], [2.0, 2.25, 2.5]]


def test_cache__segment_is_readable_by_pandas_and_by_a_dataset_reader(tmp_path: Path) -> None:
    import pyarrow.dataset as ds

    segment = filled(tmp_path, (A, B), 1, 2)
    frame = pd.read_feather(segment)  # Feather version 2 is the Arrow file format
    assert list(frame["key"]) == [bytes.fromhex(A)[:16], bytes.fromhex(B)[:16]]
    np.testing.assert_array_equal(np.stack(list(frame["vector"])), rows(1, 2))
    assert ds.dataset(segment, format="ipc").count_rows() == 2


@pytest.mark.parametrize(
    "vectors",
    [
        np.zeros((2, DIM + 1), dtype=np.float32),
        np.zeros((1, DIM), dtype=np.float32),
        np.array([[0, 0, 0], [0, np.nan, 0]], dtype=np.float32),
        np.array([[0, 0, np.inf], [0, 0, 0]], dtype=np.float32),
    ],
    ids=["wrong dimension", "row lacking", "nan", "inf"],
)
def test_cache__bad_vectors_are_refused(tmp_path: Path, vectors: NDArray[np.float32]) -> None:
    cache = opened(tmp_path)
    with pytest.raises(CacheError, match="refused a segment"):
        cache.append([A, B], vectors)
    assert list(cache.segments()) == []


def test_cache__other_float_type_is_refused(tmp_path: Path) -> None:
    # A segment of float64 would be written well, and read back as another shape.
    with pytest.raises(CacheError, match="float64"):
        opened(tmp_path).append([A], np.zeros((1, DIM)))  # type: ignore[arg-type]


def test_cache__segment_of_another_dimension_is_an_error(tmp_path: Path) -> None:
    segment = filled(tmp_path)
    with pytest.raises(CacheError, match=f"{segment.name}: holds vectors of 3, not 4 dimensions"):
        EmbeddingCache(tmp_path, "fingerprint", 4)


def test_cache__two_processes_append_at_once(tmp_path: Path) -> None:
    # 20 segments of 3 rows each; of the 60 samples of each, 30 are the other's too.
    script = f"""
import hashlib, sys
import numpy as np
from pathlib import Path
from tasks.embedding.cache import EmbeddingCache
first = int(sys.argv[1])
cache = EmbeddingCache(Path({str(tmp_path)!r}), "fingerprint", {DIM})
print("ready", flush=True)
sys.stdin.read()
for start in range(first, first + 60, 3):
    numbers = range(start, start + 3)
    digests = [hashlib.sha256(str(n).encode()).hexdigest() for n in numbers]
    cache.append(digests, np.array([[n] * {DIM} for n in numbers], dtype=np.float32))
"""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, first],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for first in ("0", "30")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    for writer in writers:
        assert writer.wait(60) == 0

    cache = opened(tmp_path)

    assert len(cache) == 90
    digests = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(90)]
    np.testing.assert_array_equal(cache.gather(digests)[:, 0], np.arange(90))
    assert {file.suffix for file in cache.folder.iterdir()} == {".arrow"}


def test_write_durably__replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a"
    write_durably(file, b"one")
    write_durably(file, b"two")
    assert file.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [file]
