import os
import random
import select
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from tasks.embedding.compact import compact, fragments
from tests.unit.tasks.embedding.numbered import (
    DIM,
    ONE,
    TWO,
    append,
    check,
    digest,
    ended,
    fill,
    forked,
    opened,
)

DAY = 86_400


def test_compact__small_segments_become_one_sorted_by_key(tmp_path: Path) -> None:
    for start in range(0, 30, 3):
        append(tmp_path, range(start, start + 3))
    done = compact(tmp_path, ONE)
    assert (done.before.segments, done.before.rows) == (10, 30)
    assert (done.after.segments, done.after.rows) == (1, 30)
    assert done.after.bytes < done.before.bytes
    (file,) = check(tmp_path, range(30)).segments()
    keys = pa.ipc.open_file(file).read_all()["key"].to_pylist()
    assert keys == sorted(bytes.fromhex(digest(n)[:32]) for n in range(30))
    again = compact(tmp_path, ONE)
    assert again.before == again.after == done.after
    assert file.exists()  # one alone is left as it is


def test_compact__sample_in_two_segments_is_there_once(tmp_path: Path) -> None:
    large = append(tmp_path, range(100))
    # Another writer, which did not see the first one's segment.
    one, two = opened(tmp_path / "a"), opened(tmp_path / "a")
    for cache, first in ((one, 0), (two, 50)):
        fill(cache, range(first, first + 100))
    done = compact(tmp_path / "a", ONE, target_bytes=4_000)  # neither is small
    assert (done.before.rows, done.after.rows) == (200, 150)
    assert compact(tmp_path, ONE, target_bytes=1_000).after.segments == 1  # one alone, and large
    assert large.exists()


def test_compact__large_ones_are_left_and_outputs_have_the_size_asked_for(tmp_path: Path) -> None:
    large = append(tmp_path, range(1_000, 1_400))
    for start in range(0, 400, 40):
        append(tmp_path, range(start, start + 40))
    row = 16 + 4 * DIM
    done = compact(tmp_path, ONE, target_bytes=200 * row)
    assert large.exists()
    assert (done.before.segments, done.after.segments) == (1 + 10, 1 + 400 // 200)
    check(tmp_path, [*range(400), *range(1_000, 1_400)])


def test_compact__damage_is_set_aside_and_not_given_a_new_name(tmp_path: Path) -> None:
    segments = [append(tmp_path, [n]) for n in range(4)]
    content = bytearray(segments[2].read_bytes())
    content[content.index(np.full(DIM, 2, dtype=np.float32).tobytes())] ^= 1
    segments[2].write_bytes(content)
    done = compact(tmp_path, ONE)
    assert done.after.rows == 3
    assert opened(tmp_path).missing([digest(n) for n in range(4)]) == [digest(2)]


def test_compact__removes_what_killed_writers_left_but_nothing_young(tmp_path: Path) -> None:
    append(tmp_path, [1])
    old, young, future = (tmp_path / ONE / f".{name}" for name in ("old", "young", "future"))
    for file in (old, young, future):
        file.touch()
    now = young.stat().st_mtime
    os.utime(old, (now - 2 * DAY, now - 2 * DAY))
    os.utime(future, (now + 400 * DAY, now + 400 * DAY))  # a clock that jumped
    assert compact(tmp_path, ONE).leftovers == 1
    assert (old.exists(), young.exists(), future.exists()) == (False, True, True)


def test_compact__removes_what_was_set_aside_a_month_ago_and_temporaries_of_keys(tmp_path: Path) -> None:
    segments = [append(tmp_path, [n]) for n in range(2)]
    (tmp_path / ONE / "keys").mkdir()
    temporary = tmp_path / ONE / "keys" / ".left"
    temporary.touch()
    now = temporary.stat().st_mtime
    os.utime(temporary, (now - 2 * DAY, now - 2 * DAY))
    for segment in segments:
        segment.write_bytes(b"damaged")
        os.utime(segment, (now - 40 * DAY, now - 40 * DAY))
    assert compact(tmp_path, ONE).leftovers == 1  # the age of what is set aside counts from then
    old, young = (segment.with_suffix(".damaged") for segment in segments)
    os.utime(old, (now - 31 * DAY, now - 31 * DAY))
    assert compact(tmp_path, ONE).leftovers == 1
    assert (old.exists(), young.exists(), temporary.exists()) == (False, True, False)


def test_fragments__are_the_segments_below_half_the_target(tmp_path: Path) -> None:
    large = append(tmp_path, range(1_000, 1_400)).stat().st_size
    for start in range(0, 9, 3):
        append(tmp_path, range(start, start + 3))
    assert fragments(tmp_path, ONE) == 4
    assert fragments(tmp_path, ONE, target_bytes=2 * large) == 3  # half of the target is not small
    compact(tmp_path, ONE, target_bytes=2 * large)
    assert fragments(tmp_path, ONE, target_bytes=2 * large) == 1
    assert fragments(tmp_path, TWO) == 0


def test_compact__beside_a_writer_a_reader_and_another_compactor(tmp_path: Path) -> None:
    for start in range(0, 60, 3):
        append(tmp_path, range(start, start + 3))
    stop, told = os.pipe()

    def write() -> None:
        cache = opened(tmp_path)
        for start in range(60, 240, 3):
            fill(cache, range(start, start + 3))

    def until_told(act: Callable[[], object]) -> None:
        os.close(told)
        while not select.select([stop], [], [], 0)[0]:
            act()

    def read() -> None:
        cache = check(tmp_path, range(60))
        until_told(lambda: (check(tmp_path, range(60)), cache.gather([digest(n) for n in range(60)])))

    others = [forked(read), forked(lambda: until_told(lambda: compact(tmp_path, ONE, target_bytes=3_000)))]
    writer = forked(write)
    compacted = 0
    while os.waitid(os.P_PID, writer, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        compact(tmp_path, ONE)
        compacted += 1
    assert ended(writer) == 0
    os.close(told)
    os.close(stop)
    assert [ended(other) for other in others] == [0, 0]
    assert compacted > 0
    check(tmp_path, range(240))
    assert (compact(tmp_path, ONE).after.segments, len(opened(tmp_path))) == (1, 240)
    assert list(tmp_path.rglob("*.damaged")) == []


def test_compact__killed_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    chance = random.Random(0)
    for kill in range(12):
        cache = opened(tmp_path)
        for start in range(kill * 15, kill * 15 + 15, 3):
            fill(cache, range(start, start + 3))
        told, tell = os.pipe()

        def run(tell: int = tell) -> None:
            os.write(tell, b".")
            compact(tmp_path, ONE, target_bytes=2_000)

        child = forked(run)
        os.read(told, 1)
        select.select([], [], [], chance.uniform(0, 0.015))  # a random moment
        os.kill(child, signal.SIGKILL)
        ended(child)
        os.close(tell)
        os.close(told)
        check(tmp_path, range(kill * 15 + 15))
    done = compact(tmp_path, ONE)
    assert (done.after.segments, done.after.rows) == (1, 180)
