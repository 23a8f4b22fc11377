import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks.embedding.cache import DESCRIPTION
from tasks.embedding.compact import compact
from tasks.embedding.maintain import export, list_spaces, prune, verify
from tasks.errors import CacheError
from tests.unit.tasks.embedding.numbered import DIM, ONE, TWO, append, check, digest, fill, opened

DAY = 86_400


def test_list__each_fingerprint_with_counts_and_what_it_is(tmp_path: Path) -> None:
    segments = [append(tmp_path, [1, 2]), append(tmp_path, [3])]
    append(tmp_path, [1], TWO).write_bytes(b"damaged")
    (tmp_path / TWO / "x.damaged").touch()
    about = {
        "backbone": {"name": "timm:a", "precision": "float32"},
        "block": {"layer": "stages.2", "pooling": ["mean", "std"], "view": "hflip"},
    }
    (tmp_path / ONE / DESCRIPTION).write_text(json.dumps(about))
    one, two = list_spaces(tmp_path)
    assert (one.fingerprint, one.place, one.what) == (ONE, "here", "timm:a stages.2 mean+std hflip float32")
    assert (one.segments, one.rows, one.bytes) == (2, 3, sum(file.stat().st_size for file in segments))
    assert (two.segments, two.rows, two.bytes, two.damaged, two.what) == (0, 0, 0, 2, "")


def test_list__of_nothing_is_empty(tmp_path: Path) -> None:
    assert list_spaces(tmp_path / "none") == []


def test_list__age_is_that_of_the_last_opening_and_the_future_counts_as_now(tmp_path: Path) -> None:
    append(tmp_path, [1])
    note = tmp_path / ONE / DESCRIPTION
    note.touch()
    now = note.stat().st_mtime
    os.utime(note, (now - 3 * DAY, now - 3 * DAY))
    assert 3 <= list_spaces(tmp_path)[0].unused_days < 3.1
    os.utime(note, (now + 3 * DAY, now + 3 * DAY))
    assert list_spaces(tmp_path)[0].unused_days == 0
    opened(tmp_path)
    assert list_spaces(tmp_path)[0].unused_days < 0.1


def test_verify__reads_every_byte_and_sets_damage_aside(tmp_path: Path) -> None:
    bad, good = append(tmp_path, [1, 2]), append(tmp_path, [3])
    other = append(tmp_path, [1], TWO)
    other.write_bytes(other.read_bytes()[:-1])
    check(tmp_path, [1, 2, 3])  # so that this process has seen it intact
    before = bad.stat()
    content = bytearray(bad.read_bytes())
    content[content.index(np.full(DIM, 2, dtype=np.float32).tobytes())] ^= 1
    bad.write_bytes(content)
    os.utime(bad, ns=(before.st_atime_ns, before.st_mtime_ns))  # a disk that rots tells nobody

    found = verify(tmp_path)

    assert found.damaged == (str(bad), str(other))
    assert (found.segments, found.rows, found.bytes) == (1, 1, good.stat().st_size)
    assert bad.with_suffix(".damaged").exists()
    assert other.with_suffix(".damaged").exists()
    assert opened(tmp_path).missing([digest(n) for n in (1, 2, 3)]) == [digest(1), digest(2)]
    assert verify(tmp_path, ONE).damaged == ()


def test_maintain__unknown_fingerprint_is_named(tmp_path: Path) -> None:
    for act in (
        lambda: verify(tmp_path, "none"),
        lambda: compact(tmp_path, "none"),
        lambda: export(tmp_path, "none", tmp_path / "a.parquet"),
        lambda: prune(tmp_path, fingerprints=["none"]),
    ):
        with pytest.raises(CacheError, match=f"^{tmp_path}: holds nothing of the fingerprint none$"):
            act()


def test_prune__is_a_dry_run_first(tmp_path: Path) -> None:
    size = append(tmp_path, [1, 2]).stat().st_size
    append(tmp_path, [3], TWO)
    would = prune(tmp_path, fingerprints=[ONE])
    assert (would.segments, would.rows, would.bytes, would.dry_run) == (1, 2, size, True)
    assert [space.fingerprint for space in list_spaces(tmp_path)] == [ONE, TWO]
    did = prune(tmp_path, fingerprints=[ONE], dry_run=False)
    assert did.model_copy(update={"dry_run": True, "spaces": would.spaces}) == would
    assert [folder.name for folder in tmp_path.iterdir()] == [TWO]


def test_prune__by_age_and_by_reference_all_conditions_apply(tmp_path: Path) -> None:
    new, old, served = "0" * 64, "a" * 64, "b" * 64
    for name, days in ((new, 1), (old, 40), (served, 40)):
        append(tmp_path, [1], name)
        note = tmp_path / name / DESCRIPTION
        note.touch()
        os.utime(note, (note.stat().st_mtime - days * DAY,) * 2)

    def chosen(**conditions: object) -> list[str]:
        return [space.fingerprint for space in prune(tmp_path, **conditions).spaces]  # type: ignore[arg-type]

    assert chosen(unused_days=30) == [old, served]
    assert chosen(referenced={served}) == [new, old]
    assert chosen(unused_days=30, referenced={served}) == [old]
    assert chosen(fingerprints=[new], unused_days=30) == []
    with pytest.raises(CacheError, match="say what to remove"):
        prune(tmp_path)


def test_prune__folders_that_are_no_fingerprints_are_let_alone(tmp_path: Path) -> None:
    append(tmp_path, [1])
    for name in ("datasets", "1" * 63, "1" * 65, "A" * 64):
        append(tmp_path, [1], name)
    assert [space.fingerprint for space in prune(tmp_path, referenced=[], dry_run=False).spaces] == [ONE]
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["1" * 63, "1" * 65, "A" * 64, "datasets"]


def test_prune__under_a_running_job_is_named(tmp_path: Path) -> None:
    append(tmp_path, [1])
    job = opened(tmp_path)
    prune(tmp_path, referenced=[], dry_run=False)
    for act in (
        job.refresh,
        lambda: fill(job, [2]),
        lambda: job.gather([digest(2)]),
    ):
        with pytest.raises(
            CacheError, match=rf"^{job.folder}: was removed .* while it was in use; run again$"
        ):
            act()


def test_prune__a_reader_goes_on_and_a_killed_removal_is_finished_by_the_next(tmp_path: Path) -> None:
    append(tmp_path, [1])
    append(tmp_path, [1], TWO)
    reader = opened(tmp_path)
    (tmp_path / ".pruned-before").mkdir()
    assert [space.fingerprint for space in list_spaces(tmp_path)] == [ONE, TWO]
    prune(tmp_path, fingerprints=[ONE], dry_run=False)
    assert reader.gather([digest(1)])[0, 0] == 1
    assert [folder.name for folder in tmp_path.iterdir()] == [TWO]


def test_export__each_sample_once_in_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.embedding.maintain._GROUP_BYTES", 10 * (16 + 4 * DIM))
    first, second = opened(tmp_path), opened(tmp_path)  # neither sees the other's
    for cache, numbers in ((first, range(20)), (second, range(10, 40))):
        fill(cache, numbers)
    to = tmp_path / "out" / "a.parquet"
    to.parent.mkdir()
    done = export(tmp_path, ONE, to)
    assert (done.file, done.segments, done.rows, done.bytes) == (str(to), 2, 40, to.stat().st_size)
    file = pq.ParquetFile(to)
    assert file.num_row_groups == 4
    table = file.read()
    got = dict(zip(table["digest_prefix"].to_pylist(), table["vector"].to_pylist(), strict=True))
    assert got == {digest(n)[:32]: [n] * DIM for n in range(40)}
    assert list(to.parent.iterdir()) == [to]


def test_export__that_fails_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    append(tmp_path, [1])
    with pytest.raises(CacheError, match=r"a\.parquet: can't be written \(No such file or directory\)"):
        export(tmp_path, ONE, tmp_path / "none" / "a.parquet")
    opened(tmp_path, "empty")
    with pytest.raises(CacheError, match="empty: holds no embeddings"):
        export(tmp_path, "empty", tmp_path / "a.parquet")
    assert not (tmp_path / "a.parquet").exists()
