import ast
import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tasks.data import store, version
from tasks.data.mirror import Mirrored
from tasks.data.source import list_source
from tasks.data.version import checkout, version_data
from tasks.errors import DataError
from tasks.params import DataParams
from tasks.records import DatasetVersion
from tasks.settings import Settings

PARAMS = DataParams()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    }


def dvc_digest(files: Mapping[str, bytes]) -> str:
    """DVC's digest of a folder: MD5 of the JSON list of its files, sorted by path."""
    listed = [
        {"md5": hashlib.md5(content, usedforsecurity=False).hexdigest(), "relpath": path}
        for path, content in sorted(files.items(), key=lambda item: item[0].split("/"))
    ]
    text = json.dumps(listed, sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"


def workspace(settings: Settings) -> Path:
    (folder,) = (path for path in (settings.root / "data").iterdir() if path.is_dir())
    return folder


def test_version__a_later_version_leaves_the_files_of_an_earlier_one(pets: Path, settings: Settings) -> None:
    first = version_data(str(pets), PARAMS, settings)
    before = contents(first.data)
    (pets / "cat/00.png").unlink()
    (pets / "dog/00.png").write_bytes(b"other")
    second = version_data(str(pets), PARAMS, settings)
    assert contents(first.data) == before
    assert contents(second.data) == contents(pets)
    assert (first.digest in first.dvc_file.read_text(), second.digest in second.dvc_file.read_text()) == (
        True,
        True,
    )


def test_version__record_says_what_dvc_has(pets: Path, settings: Settings) -> None:
    got = version_data(str(pets), PARAMS, settings)
    assert got.digest == dvc_digest(contents(pets))
    assert (got.files, got.size_bytes) == (40, sum(map(len, contents(pets).values())))
    assert (got.source, got.layout, got.table, got.rejected) == (str(pets), "folders", None, ())
    assert got.path.parent == settings.root / "versions"
    assert workspace(settings).name.startswith("pets-")
    assert contents(got.data) == contents(pets)
    assert f"md5: {got.digest}" in got.dvc_file.read_text()


def test_version__users_files_are_neither_linked_nor_changed(pets: Path, settings: Settings) -> None:
    def look() -> dict[str, tuple[int, ...]]:
        files = [file for file in pets.rglob("*") if file.is_file()]
        return {str(f): (f.stat().st_mode, f.stat().st_nlink, f.stat().st_mtime_ns) for f in files}

    before = look()
    got = version_data(str(pets), PARAMS, settings)
    assert look() == before
    copy = (got.data / "cat/00.png").stat()
    assert (copy.st_nlink, oct(copy.st_mode & 0o777)) == (3, "0o444")  # snapshot, workspace, DVC's cache


def test_version__nothing_new_asks_nothing_of_dvc(
    pets: Path, settings: Settings, no_dvc: Callable[[], None], mirrored: list[Mirrored]
) -> None:
    first = version_data(str(pets), PARAMS, settings)
    no_dvc()
    assert version_data(f"{pets}/", PARAMS, settings) == first
    assert mirrored[1] == Mirrored((), (), (), ())


def test_version__only_new_and_changed_files_are_copied(
    pets: Path, settings: Settings, mirrored: list[Mirrored], make_png: Callable[[int], bytes]
) -> None:
    version_data(str(pets), PARAMS, settings)
    fresh = [f"cat/new-{number:02}.png" for number in range(20)]
    for number, path in enumerate(fresh):
        (pets / path).write_bytes(make_png(300 + number))
    (pets / "dog/03.png").write_bytes(make_png(999))
    (pets / "dog/04.png").unlink()
    got = version_data(str(pets), PARAMS, settings)
    assert mirrored[1] == Mirrored((*fresh, "dog/03.png"), ("dog/04.png",), (), ())
    assert got.digest == dvc_digest(contents(pets))
    assert contents(got.data) == contents(pets)


def test_version__a_file_may_become_a_folder_and_back(pets: Path, settings: Settings) -> None:
    version_data(str(pets), PARAMS, settings)
    file = pets / "cat/00.png"
    content = file.read_bytes()
    file.unlink()
    file.mkdir()
    (file / "inner.png").write_bytes(content)
    assert contents(version_data(str(pets), PARAMS, settings).data) == contents(pets)
    shutil.rmtree(file)
    file.write_bytes(content)
    assert contents(version_data(str(pets), PARAMS, settings).data) == contents(pets)


def test_version__old_versions_keep_their_content(pets: Path, settings: Settings, tmp_path: Path) -> None:
    old_files = contents(pets)
    old = version_data(str(pets), PARAMS, settings).dvc_file.read_text()
    (pets / "cat/00.png").write_bytes(b"another content")
    version_data(str(pets), PARAMS, settings)
    assert contents(checkout(old, tmp_path / "old", settings).data) == old_files


def test_version__checkout_needs_the_remote_alone(pets: Path, settings: Settings, tmp_path: Path) -> None:
    (pets / "cat/broken").symlink_to("nowhere")
    made = version_data(str(pets), PARAMS, settings)
    text = made.dvc_file.read_text()
    shutil.rmtree(settings.root / "data")
    for part in ("cache", "site"):
        shutil.rmtree(settings.root / "dvc" / part)
    (pets / "cat/broken").unlink()

    got = checkout(text, tmp_path / "there", settings)
    assert contents(got.data) == contents(pets)
    assert got == made.model_copy(update={"folder": str(tmp_path / "there"), "source": f"dvc:{made.digest}"})
    assert got.dvc_file.read_text() == text
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["data", "data.dvc"]
    status = (got.data / "cat/00.png").stat()
    assert (status.st_nlink, bool(status.st_mode & 0o200)) == (1, True)  # the user may edit it


def test_version__checkout_overwrites_nothing_unless_forced(
    pets: Path, settings: Settings, tmp_path: Path
) -> None:
    text = version_data(str(pets), PARAMS, settings).dvc_file.read_text()
    there = tmp_path / "there"
    checkout(text, there, settings)
    checkout(text, there, settings)  # the same files are no obstacle

    (there / "data/cat/00.png").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"1 files would be overwritten \(cat/00.png\)"):
        checkout(text, there, settings)
    assert (there / "data/cat/00.png").read_bytes() == b"mine"
    (there / "data/mine.txt").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"holds 1 files that are not in this version \(mine.txt\)"):
        checkout(text, there, settings)

    assert contents(checkout(text, there, settings, force=True).data) == contents(pets)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: [",
        "outs: []",
        "outs: [{md5: 1, path: data}]",
        "outs: [{md5: 0123456789abcdef0123456789abcdef.dir, size: 1, nfiles: 1, hash: md5, path: ../up}]",
        "outs: [{md5: 0123456789abcdef0123456789abcdef.dir, size: 1, nfiles: 1, hash: md5, path: data}]\n"
        "cmd: touch /tmp/owned",
        "outs: [{md5: 0123456789abcdef0123456789abcdef.dir, size: 1, nfiles: 1, hash: md5, path: data}]\n"
        "wdir: ../..",
    ],
)
def test_version__checkout_refuses_what_is_no_version(text: str, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.dvc: is not the \.dvc file of a dataset version"):
        checkout(text, tmp_path / "there", settings)


def test_version__checkout_of_what_the_remote_lacks(pets: Path, settings: Settings, tmp_path: Path) -> None:
    text = version_data(str(pets), PARAMS, settings).dvc_file.read_text()
    shutil.rmtree(settings.root / "dvc")
    with pytest.raises(DataError, match="DVC could not pull from"):
        checkout(text, tmp_path / "there", settings)
    assert list((tmp_path / "there").iterdir()) == []


def test_version__table_keeps_its_name_and_only_its_files(pets: Path, settings: Settings) -> None:
    (pets / "named.csv").write_text("path,label\ncat/00.png,cat\ndog/01.png,dog\ngone.png,dog\n")
    got = version_data(str(pets / "named.csv"), PARAMS, settings)
    assert (got.layout, got.table, got.files) == ("table", "named.csv", 3)
    assert sorted(contents(got.data)) == ["cat/00.png", "dog/01.png", "named.csv"]
    assert [bad.reason for bad in got.rejected] == ["row 4: no such file"]


def test_version__a_lost_remote_is_filled_again(pets: Path, settings: Settings, tmp_path: Path) -> None:
    text = version_data(str(pets), PARAMS, settings).dvc_file.read_text()
    shutil.rmtree(settings.root / "dvc" / "remote")
    version_data(str(pets), PARAMS, settings)
    shutil.rmtree(settings.root / "dvc" / "cache")
    assert contents(checkout(text, tmp_path / "there", settings).data) == contents(pets)


def test_version__another_remote_gets_everything(pets: Path, settings: Settings, tmp_path: Path) -> None:
    version_data(str(pets), PARAMS, settings)
    other = settings.model_copy(update={"dvc_remote": str(tmp_path / "other, with 100 % 'signs' #1")})
    text = version_data(str(pets), PARAMS, other).dvc_file.read_text()
    shutil.rmtree(settings.root / "dvc")
    assert contents(checkout(text, tmp_path / "there", other).data) == contents(pets)


def test_version__a_copy_edited_in_the_workspace_is_made_good(
    pets: Path, settings: Settings, tmp_path: Path
) -> None:
    first = version_data(str(pets), PARAMS, settings)
    (settings.root / "dvc" / "remote").rename(tmp_path / "old-remote")
    data = workspace(settings) / "data"
    copy = data / "cat/00.png"
    copy.chmod(0o644)
    copy.write_bytes(b"scribble")  # through the hard link, into DVC's cache
    (data / "cat/01.png").unlink()
    (data / "stray").write_bytes(b"x")

    again = version_data(str(pets), PARAMS, settings)
    assert again == first
    assert contents(again.data) == contents(pets)
    text = again.dvc_file.read_text()
    shutil.rmtree(settings.root / "dvc" / "cache")
    assert contents(checkout(text, tmp_path / "there", settings).data) == contents(pets)


def test_version__file_that_vanishes_while_it_is_copied_is_rejected(
    pets: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = list_source

    def list_then_remove(*arguments: Any) -> Any:
        listing = listed(*arguments)
        (pets / "cat/00.png").unlink(missing_ok=True)
        return listing

    monkeypatch.setattr(version, "list_source", list_then_remove)
    got = version_data(str(pets), PARAMS, settings)
    assert got.files == 39
    assert [(bad.path, bad.reason) for bad in got.rejected] == [
        ("cat/00.png", "can't be read (No such file or directory)")
    ]


STEPS = ["mirror", "store.add", "store.push", "remember", "_write_state"]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_version__a_failure_between_any_steps_is_made_good(
    step: str, after: bool, pets: Path, settings: Settings, tmp_path: Path, make_png: Callable[[int], bytes]
) -> None:
    version_data(str(pets), PARAMS, settings)
    (pets / "cat/00.png").write_bytes(make_png(777))
    (pets / "dog/00.png").unlink()
    (pets / "dog/new.png").write_bytes(make_png(778))

    module, name = (store, step.removeprefix("store.")) if step.startswith("store.") else (version, step)
    whole = getattr(module, name)

    def broken(*arguments: Any) -> Any:
        if after:
            whole(*arguments)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, broken)
        with pytest.raises(KeyboardInterrupt):
            version_data(str(pets), PARAMS, settings)

    check_made_good(pets, settings, tmp_path)


KILLED = """
import os, signal, sys
from pathlib import Path
from tasks.data.version import version_data
from tasks.params import DataParams
from tasks.settings import Settings

where, count = sys.argv[3], int(sys.argv[4])
calls = 0

def deadly(module, name):
    whole = getattr(module, name)
    def counted(*arguments, **named):
        global calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*arguments, **named)
    setattr(module, name, counted)

if where == "copying":
    from tasks.data import mirror
    deadly(mirror, "_line")
elif where == "linking":
    deadly(os, "link")
else:
    import dvc_objects.fs.local as local
    deadly(local, "copyfile")
version_data(sys.argv[1], DataParams(), Settings(state=Path(sys.argv[2])))
"""


@pytest.mark.parametrize(("where", "count"), [("copying", 17), ("linking", 9), ("pushing", 11)])
def test_version__kill_9_is_made_good(
    where: str, count: int, pets: Path, settings: Settings, tmp_path: Path
) -> None:
    arguments = [sys.executable, "-c", KILLED, str(pets), str(settings.root), where, str(count)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    check_made_good(pets, settings, tmp_path)


def check_made_good(pets: Path, settings: Settings, tmp_path: Path) -> None:
    got = version_data(str(pets), PARAMS, settings)
    assert got.digest == dvc_digest(contents(pets))
    assert contents(got.data) == contents(pets)
    assert not (workspace(settings) / "arriving").exists()
    shutil.rmtree(settings.root / "dvc" / "cache")
    there = checkout(got.dvc_file.read_text(), tmp_path / "there", settings)
    assert contents(there.data) == contents(pets)


def test_version__torn_files_of_a_killed_process_are_replaced(pets: Path, settings: Settings) -> None:
    got = version_data(str(pets), PARAMS, settings)
    torn = workspace(settings)
    (torn / "data.dvc").write_text("outs:\n- md5: 12")
    (torn / ".dvc/config").write_text("[cor")
    (torn / ".dvc/tmp/rwlock").write_text('{"write": {')
    (torn / "pushed.json").write_text('{"dig')
    with (torn / "memo.jsonl").open("a") as memo:
        memo.write('["cat/00')
    assert version_data(str(pets), PARAMS, settings) == got


def test_version__two_processes_at_once_agree(pets: Path, settings: Settings) -> None:
    script = (
        "import sys; from pathlib import Path; from tasks.data.version import version_data as v; "
        "from tasks.params import DataParams as P; from tasks.settings import Settings as S; "
        "print(v(sys.argv[1], P(), S(state=Path(sys.argv[2]))).digest)"
    )
    arguments = [sys.executable, "-c", script, str(pets), str(settings.root)]
    both = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    # The digest and nothing else: DVC must not write to stdout.
    assert [process.communicate()[0] for process in both] == [f"{dvc_digest(contents(pets))}\n"] * 2


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    top = tmp_path / "project"
    (top / "deep").mkdir(parents=True)
    git(top, "init", "--quiet")
    git(top, "config", "user.name", "Someone")
    git(top, "config", "user.email", "someone@example.com")
    monkeypatch.chdir(top / "deep")
    return top


def git(top: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=top, check=True, capture_output=True, text=True).stdout


def test_version__git_commit_holds_the_dvc_file_alone(
    pets: Path, settings: Settings, repository: Path, make_png: Callable[[int], bytes]
) -> None:
    (repository / "other.txt").write_text("mine")
    git(repository, "add", "other.txt")
    params = DataParams(git_commit=True)
    first = version_data(str(pets), params, settings)
    version_data(str(pets), params, settings)
    assert git(repository, "log", "--format=%s").splitlines() == [f"Data version {first.digest}"]
    assert git(repository, "show", "--format=", "--name-only").split() == ["data.dvc"]
    assert git(repository, "status", "--porcelain") == "A  other.txt\n"
    assert (repository / "data.dvc").read_text() == first.dvc_file.read_text()

    (pets / "cat/new.png").write_bytes(make_png(500))
    second = version_data(str(pets), params, settings)
    assert git(repository, "log", "--format=%s").splitlines()[0] == f"Data version {second.digest}"


def test_version__git_commit_replaces_no_foreign_dvc_file(
    pets: Path, settings: Settings, repository: Path
) -> None:
    (repository / "data.dvc").write_text("outs:\n- path: data\n")
    with pytest.raises(DataError, match=r"data\.dvc: was not written by Regraft and is not replaced"):
        version_data(str(pets), DataParams(git_commit=True), settings)


def test_version__git_commit_outside_a_repository(
    pets: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"data\.git_commit: .* is not in a git repository; run `git init`"):
        version_data(str(pets), DataParams(git_commit=True), settings)


def test_version__errors_of_dvc_hide_secrets(
    pets: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-of-mine")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no answer from https://me:pass@host/x for s3cr3t-of-mine")

    monkeypatch.setattr("dvc.repo.Repo.push", fail)
    with pytest.raises(DataError) as caught:
        version_data(str(pets), PARAMS, settings)
    assert str(caught.value) == (
        f"DVC could not push to {settings.root}/dvc/remote: "
        "no answer from https://host/x for <AWS_SECRET_ACCESS_KEY>"
    )


def test_version__one_module_imports_dvc() -> None:
    importers = set()
    for file in Path(version.__file__).parents[1].rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] in ("dvc", "dvc_data", "dvc_objects") for name in names):
                importers.add(file.name)
    assert importers == {"store.py"}


def test_version__record_survives_its_json(pets: Path, settings: Settings) -> None:
    got = version_data(str(pets), PARAMS, settings)
    assert DatasetVersion.model_validate_json(got.model_dump_json()) == got
