import hashlib
import os
import random
import resource
import select
import signal
import subprocess
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.embedding import cache as cache_module
from tasks.embedding.cache import DESCRIPTION, EmbeddingCache, pack, write_durably
from tasks.errors import CacheError
from tests.unit.tasks.embedding.numbered import DIM, digest, ended, forked

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


def test_cache__gathers_into_columns_of_a_larger_matrix(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.append([A, B], rows(1, 2))
    cache.append([C], rows(3))
    matrix = np.zeros((3, 2 * DIM), dtype=np.float32)
    cache.gather([C, A, B], out=matrix[:, DIM:])
    np.testing.assert_array_equal(matrix, np.hstack([np.zeros((3, DIM)), rows(3, 1, 2)]))
    np.testing.assert_array_equal(cache.gather([A, B], out=matrix[:2, :DIM]), rows(1, 2))


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
    with pytest.raises(CacheError, match=rf"2 of 3 samples are not in the cache \(first: {C[:32]}\); embed"):
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


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "another's name"])
def test_cache__damaged_segment_is_set_aside(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    segment = filled(tmp_path, (A, B), 1, 2)
    content = bytearray(segment.read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    elif damage == "flipped":
        content[content.index(rows(2).tobytes())] ^= 1
    elif damage == "emptied":
        content.clear()
    else:
        segment = segment.rename(segment.with_name("0" * 64 + ".arrow"))
    segment.write_bytes(content)

    cache = opened(tmp_path)

    assert cache.missing([A, B]) == [A, B]
    assert not segment.exists()
    assert segment.with_suffix(".damaged").read_bytes() == bytes(content)
    assert f"{segment}: damaged segment" in caplog.text
    cache.append([A, B], rows(1, 2))
    np.testing.assert_array_equal(opened(tmp_path).gather([A, B]), rows(1, 2))


def test_cache__gather_that_meets_damage_takes_the_row_from_another_segment(tmp_path: Path) -> None:
    for others in ((B, C), (C, D)):  # whichever of the two is looked into first
        root = tmp_path / others[0]
        damaged = filled(root, (A, B), 1, 2)
        opened(root).append([A, *others], rows(1, 3, 4))
        (intact,) = set(opened(root).segments()) - {damaged}
        for bad in (damaged, intact):
            content = bad.read_bytes()
            bad.write_bytes(content.replace(rows(1).tobytes(), rows(9).tobytes()))
            np.testing.assert_array_equal(opened(root).gather([A]), rows(1))
            bad.with_suffix(".damaged").unlink(missing_ok=True)
            bad.write_bytes(content)


def test_cache__gather_that_meets_damage_alone_says_run_again(tmp_path: Path) -> None:
    segment = filled(tmp_path, (A, B), 1, 2)
    segment.write_bytes(segment.read_bytes().replace(rows(2).tobytes(), rows(9).tobytes()))
    cache = opened(tmp_path)
    with pytest.raises(CacheError, match=r"2 of 2 samples .* damaged segments were set aside: run again"):
        cache.gather([A, B])
    assert segment.with_suffix(".damaged").exists()


@pytest.mark.parametrize("length", [0, 100, -1])
def test_cache__segment_that_is_cut_while_it_is_open_is_not_read(tmp_path: Path, length: int) -> None:
    # A map of a file that has become shorter would kill the process.
    segment = filled(tmp_path, (A, B), 1, 2)
    cache = opened(tmp_path)
    cache.gather([A, B])
    segment.write_bytes(segment.read_bytes()[:length])
    assert cache.missing([A, B]) == [A, B]
    assert segment.with_suffix(".damaged").exists()


def test_cache__segment_that_is_changed_while_it_is_open_is_checked_again(tmp_path: Path) -> None:
    segment = filled(tmp_path, (A, B), 1, 2)
    cache = opened(tmp_path)
    cache.gather([A, B])
    segment.write_bytes(segment.read_bytes().replace(rows(2).tobytes(), rows(9).tobytes()))
    assert cache.missing([A, B]) == [A, B]


def test_cache__segment_that_vanishes_is_read_on_by_who_has_it(tmp_path: Path) -> None:
    segment = filled(tmp_path, (A,), 1)
    cache = opened(tmp_path)
    segment.unlink()
    np.testing.assert_array_equal(cache.gather([A]), rows(1))
    cache.refresh()
    assert cache.missing([A]) == [A]


def test_cache__segment_that_vanishes_between_listing_and_opening_is_listed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = filled(tmp_path, (A,), 1)
    read = cache_module._read

    def compact_first(file: Path) -> object:
        if file == old and old.exists():
            old.rename(tmp_path / "moved")
            filled(tmp_path, (A, B), 1, 2)
        return read(file)

    monkeypatch.setattr(cache_module, "_read", compact_first)
    assert opened(tmp_path).missing([A, B]) == []


def test_cache__damage_leaves_other_segments_readable(tmp_path: Path) -> None:
    segment = filled(tmp_path, (A,), 1)
    opened(tmp_path).append([B], rows(2))
    segment.write_bytes(segment.read_bytes()[:-1])
    cache = opened(tmp_path)
    assert cache.missing([A, B]) == [A]
    np.testing.assert_array_equal(cache.gather([B]), rows(2))


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


def write_numbers(root: Path, numbers: Iterable[int], tell: Callable[[], object] = lambda: None) -> None:
    """Appends segments of three samples each, and tells of each; a sample's vector is its number."""
    cache = opened(root)
    listed = list(numbers)
    for start in range(0, len(listed), 3):
        some = listed[start : start + 3]
        cache.append([digest(n) for n in some], np.array([[n] * DIM for n in some], dtype=np.float32))
        tell()


def check_numbers(root: Path, numbers: Sequence[int]) -> EmbeddingCache:
    cache = opened(root)
    digests = [digest(n) for n in numbers]
    assert cache.missing(digests) == []
    np.testing.assert_array_equal(cache.gather(digests)[:, 0], numbers)
    return cache


def test_cache__two_writers_of_the_same_samples_at_once(tmp_path: Path) -> None:
    opened(tmp_path)
    ready, go = os.pipe()

    def write(first: int) -> None:
        os.read(ready, 1)
        write_numbers(tmp_path, range(first, first + 60))

    writers = [forked(partial(write, first)) for first in (0, 30, 0)]
    os.write(go, b"123")
    assert [ended(writer) for writer in writers] == [0, 0, 0]
    assert len(check_numbers(tmp_path, range(90))) == 90
    assert {file.suffix for file in (tmp_path / "fingerprint").iterdir()} == {".arrow"}


def test_cache__writer_that_is_killed_at_any_moment_loses_nothing_that_was_written(tmp_path: Path) -> None:
    chance = random.Random(0)
    whole, killed = 0, 0  # samples whose append has returned
    for _ in range(50):
        told, tell = os.pipe()

        numbers = range(whole, whole + 3_000)
        writer = forked(partial(write_numbers, tmp_path, numbers, partial(os.write, tell, b".")))
        os.close(tell)
        os.read(told, 1)
        select.select([], [], [], chance.uniform(0, 0.02))  # a random moment
        os.kill(writer, signal.SIGKILL)
        killed += ended(writer) == -signal.SIGKILL
        with os.fdopen(told, "rb") as stream:
            whole += 3 * (1 + len(stream.read()))
        check_numbers(tmp_path, range(whole))
    assert killed == 50
    files = list((tmp_path / "fingerprint").iterdir())
    assert {file.suffix for file in files if not file.name.startswith(".")} == {".arrow"}


def test_cache__temporary_file_of_a_killed_writer_is_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write() -> None:
        monkeypatch.setattr(os, "fsync", lambda _: os._exit(9))  # written, neither synced nor renamed
        opened(tmp_path).append([A], rows(1))

    opened(tmp_path)
    assert ended(forked(write)) == 9
    (left,) = (tmp_path / "fingerprint").iterdir()
    assert left.name.startswith(".")
    cache = opened(tmp_path)
    assert cache.missing([A]) == [A]
    cache.append([A], rows(1))
    np.testing.assert_array_equal(opened(tmp_path).gather([A]), rows(1))


def refusal(act: Callable[[], object]) -> str:
    """What `act` is refused with, in a child whose limits and rights it may change."""
    told, tell = os.pipe()

    def say() -> None:
        try:
            act()
        except CacheError as error:
            os.write(tell, str(error).encode())

    assert ended(forked(say)) == 0
    os.close(tell)
    with os.fdopen(told) as stream:
        return stream.read()


def test_cache__full_disk_is_a_clear_error_and_earlier_rows_stay(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.getuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("may not mount a small disk")
    try:
        cache = EmbeddingCache(disk, "fingerprint", 1_000)
        cache.append([A], np.full((1, 1_000), 1, dtype=np.float32))
        many = [digest(n) for n in range(20)]
        with pytest.raises(CacheError) as full:
            cache.append(many, np.ones((20, 1_000), dtype=np.float32))
        assert str(full.value) == (
            f"{cache.folder}: can't write 20 embeddings (No space left on device); what was written before"
            " is kept: make room or give the right to write, then run again"
        )
        again = EmbeddingCache(disk, "fingerprint", 1_000)
        assert again.missing([*many, A]) == many
        assert again.gather([A])[0, 0] == 1
        assert [file.suffix for file in again.folder.iterdir()] == [".arrow"]  # nothing half-written stays
        del cache, again
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_cache__file_that_may_not_grow_is_a_clear_error(tmp_path: Path) -> None:
    filled(tmp_path, (A,), 1)

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, 4_096))
        cache = opened(tmp_path)
        cache.append([digest(n) for n in range(500)], np.ones((500, DIM), dtype=np.float32))

    assert "can't write 500 embeddings (File too large)" in refusal(write)
    np.testing.assert_array_equal(opened(tmp_path).gather([A]), rows(1))
    assert [file.suffix for file in (tmp_path / "fingerprint").iterdir()] == [".arrow"]


def test_cache__folder_that_may_not_be_written_to_can_be_read(tmp_path: Path) -> None:
    segment = filled(tmp_path, (A,), 1)
    bad = filled(tmp_path / "damaged", (B,), 2)
    bad.write_bytes(b"damaged")
    bad.rename(segment.parent / bad.name)
    segment.parent.chmod(0o555)
    tmp_path.chmod(0o555)

    def as_nobody(act: Callable[[Path], object]) -> str:
        def run() -> None:
            os.chdir(tmp_path)  # the folders above it are closed to others
            if not os.getuid():
                os.setgid(65534)
                os.setuid(65534)
            act(Path())

        return refusal(run)

    def read(root: Path) -> None:
        cache = opened(root)
        np.testing.assert_array_equal(cache.gather([A]), rows(1))
        assert cache.missing([A, B]) == [B]

    assert as_nobody(read) == ""
    assert as_nobody(lambda root: opened(root).append([C], rows(3))) == (
        "fingerprint: can't write 1 embeddings (Permission denied); what was written before is kept: make"
        " room or give the right to write, then run again"
    )
    assert (
        as_nobody(lambda root: EmbeddingCache(root, "new", DIM)) == "new: can't be made (Permission denied)"
    )
    tmp_path.chmod(0o755)
    segment.parent.chmod(0o755)


@pytest.mark.parametrize("at", [0, 4_102_444_800], ids=["1970", "2100"])
def test_cache__clock_that_jumps_changes_no_data(tmp_path: Path, at: int) -> None:
    segment = filled(tmp_path, (A, B), 1, 2)
    note = segment.with_name(DESCRIPTION)
    note.write_text("{}")
    cache = opened(tmp_path)
    cache.gather([A])
    os.utime(segment, (at, at))
    os.utime(note, (at, at))
    np.testing.assert_array_equal(cache.gather([A, B]), rows(1, 2))
    cache.append([C], rows(3))
    assert opened(tmp_path).missing([A, B, C]) == []
    assert list(tmp_path.rglob("*.damaged")) == []


def test_cache__opening_notes_the_use(tmp_path: Path) -> None:
    note = filled(tmp_path).with_name(DESCRIPTION)
    note.write_text("{}")
    os.utime(note, (0, 0))
    opened(tmp_path)
    assert note.stat().st_mtime > 0


def test_write_durably__replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a"
    write_durably(file, b"one")
    write_durably(file, b"two")
    assert file.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [file]
