import os
import shutil
import threading
from pathlib import Path

import pytest

from tasks.params import HeadParams
from tasks.records import Embeddings, Head
from tasks.stage import build_once, code_digest, stage_key


def head(folder: Path, strength: float = 1.0) -> Head:
    return Head(
        digest=str(strength),
        folder=str(folder),
        target="class",
        kind="logistic",
        classes=("a", "b"),
        blocks=("block",),
        strength=strength,
        strengths={"1.0": 0.5},
        kinds={},
        inputs={},
        calibration="none",
        temperature=1.0,
        confidence=None,
        conformal=None,
    )


def build(out: Path, strength: float = 1.0) -> Head:
    (out / "head.json").write_text(str(strength))
    return head(out, strength)


def test_build_once__builds_the_first_time_only(tmp_path: Path) -> None:
    calls = []

    def count(out: Path) -> Head:
        calls.append(out)
        return build(out)

    first = build_once(tmp_path / "head" / "key", Head, count)
    second = build_once(tmp_path / "head" / "key", Head, count)
    assert len(calls) == 1
    assert first == second == head(tmp_path / "head" / "key")
    assert (first.path / "head.json").read_text() == "1.0"


def test_build_once__crash_in_the_build_leaves_nothing(tmp_path: Path) -> None:
    def crash(out: Path) -> Head:
        build(out)
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        build_once(tmp_path / "key", Head, crash)
    assert list(tmp_path.iterdir()) == []
    assert build_once(tmp_path / "key", Head, build).strength == 1.0


def test_build_once__what_a_killed_builder_left_is_not_taken_for_a_result(tmp_path: Path) -> None:
    # A process that was killed leaves its temporary folder, even one with a record in it.
    killed = tmp_path / ".key-abcdef"
    killed.mkdir()
    build(killed, strength=9.0).save()
    assert build_once(tmp_path / "key", Head, build).strength == 1.0


def test_build_once__result_of_the_faster_builder_stays(tmp_path: Path) -> None:
    folder = tmp_path / "key"

    def slow(out: Path) -> Head:
        assert build_once(folder, Head, lambda inner: build(inner, 2.0)).strength == 2.0
        return build(out, 1.0)

    assert build_once(folder, Head, slow).strength == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_build_once__many_builders_at_once_all_succeed_with_one_result(tmp_path: Path) -> None:
    folder, together = tmp_path / "key", threading.Barrier(8, timeout=30)
    results: list[Head] = []

    def builder(strength: float) -> None:
        def at_once(out: Path) -> Head:
            together.wait()
            return build(out, strength)

        results.append(build_once(folder, Head, at_once))

    threads = [threading.Thread(target=builder, args=(float(n),)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(results) == 8
    assert len({result.strength for result in results}) == 1
    assert (folder / "head.json").read_text() == str(results[0].strength)
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_build_once__place_that_cannot_be_taken_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    (tmp_path / "key" / "stray").write_text("")  # a folder without a record is no result
    with pytest.raises(OSError, match="not empty"):
        build_once(tmp_path / "key", Head, build)


def test_build_once__folder_that_was_moved_is_found_where_it_is(tmp_path: Path) -> None:
    built = build_once(tmp_path / "here" / "key", Head, build)
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = build_once(tmp_path / "there" / "key", Head, build)
    assert moved.path == tmp_path / "there" / "key"
    assert moved.digest == built.digest


def test_build_once__all_is_on_the_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def note_fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def note_rename(self: Path, target: Path) -> Path:
        synced.append("renamed")
        return rename(self, target)

    monkeypatch.setattr("os.fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    build_once(tmp_path / "key", Head, build)
    assert set(synced[: synced.index("renamed")]) >= {"record.json", "head.json"}


def test_stage_key__changes_with_stage_parameters_inputs_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    params = HeadParams()
    keys = [
        stage_key("head", params),
        stage_key("heads", params),
        stage_key("head", HeadParams(folds=3)),
        stage_key("head", params, "more"),
        stage_key("head", params, None),
        stage_key("head", params, head(Path(), 2.0)),
    ]
    monkeypatch.setattr("tasks.stage.code_digest", lambda: "other code")
    keys.append(stage_key("head", params))
    assert len(set(keys)) == len(keys)


def test_stage_key__records_count_by_their_digest_alone() -> None:
    here, there = head(Path("/here")), head(Path("/there"))
    assert stage_key("evaluation", here) == stage_key("evaluation", there)
    done = {"digest": "a", "root": "/r", "blocks": ()}
    # That they came from the cache this time changes nothing.
    now = Embeddings.model_validate({**done, "computed": 5, "cached": 0})
    later = Embeddings.model_validate({**done, "computed": 0, "cached": 5})
    assert stage_key("head", now) == stage_key("head", later)


def test_code_digest__is_a_sha256_of_this_package() -> None:
    assert len(bytes.fromhex(code_digest())) == 32
    assert code_digest() == code_digest()
