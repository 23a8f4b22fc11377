"""A copy of a dataset in the workspace, kept up to date by copying only what changed.

The user's files are read, never linked or touched. A memo (one JSON line per file, appended as
files arrive) says which state of the source each copy shows; a copy that differs from its memo in
size, time or inode is made anew. So a mirror that was killed at any moment is completed by the next.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tasks.data.source import Entry
from tasks.records import Rejected

_CHUNK = 1 << 20  # bytes
_THREADS = 8  # copying waits for the disk or the network, not for the processor
_UNREADABLE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EISDIR, errno.ELOOP)

Copy = tuple[int, int, int]  # size in bytes, modification time in ns, inode
Memo = dict[str, tuple[str, Copy]]  # path -> token of the source, the copy that shows it


@dataclass(frozen=True)
class Mirrored:
    """What one call of `mirror` did."""

    copied: tuple[str, ...]
    removed: tuple[str, ...]
    rejected: tuple[Rejected, ...]  # could not be read
    edited: tuple[str, ...]  # copies that someone changed in place, or that showed another content

    @property
    def changed(self) -> bool:
        return bool(self.copied or self.removed)


def mirror(entries: Sequence[Entry], workspace: Path, anew: bool = False) -> Mirrored:
    """Makes `<workspace>/data` hold exactly the files of `entries`.

    A file is copied to a temporary name and renamed, so a hard link of the old content (DVC's
    cache) never sees the new one.

    Args:
        anew: trust no memo: read every file, and compare it with its copy.
    """
    data, arriving = workspace / "data", workspace / "arriving"
    shutil.rmtree(arriving, ignore_errors=True)
    arriving.mkdir(parents=True)
    data.mkdir(exist_ok=True)
    memo = load(workspace)
    copies = dict(_copies(data))
    wanted = {entry.path for entry in entries}
    removed = sorted(set(copies) - wanted)
    for path in removed:
        (data / path).unlink()
    _remove_empty_folders(data)

    def current(entry: Entry) -> bool:
        token, copy = memo.get(entry.path, ("", None))
        return token == _token(entry) and copy is not None and copies.get(entry.path) == copy

    stale = [entry for entry in entries if anew or not current(entry)]
    edited = {path for path in copies if path in memo and _edited(memo[path][1], copies[path])}
    rejected = []
    copied = []
    with (
        (workspace / "memo.jsonl").open("a", encoding="utf-8") as journal,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        if journal.tell():
            journal.write("\n")  # a line that a kill cut off must not swallow the next
        numbered = (
            (entry, arriving / str(number), data / entry.path, anew) for number, entry in enumerate(stale)
        )
        for entry, result in zip(stale, pool.map(_bring, numbered), strict=True):
            if isinstance(result, str):
                rejected.append(Rejected(path=entry.path, reason=result))
                (data / entry.path).unlink(missing_ok=True)
                continue
            if not current(entry) or result != copies.get(entry.path):
                journal.write(_line(entry.path, _token(entry), result))
                journal.flush()
            if result != copies.get(entry.path):
                copied.append(entry.path)
                if current(entry):
                    edited.add(entry.path)
    arriving.rmdir()
    return Mirrored(tuple(copied), tuple(removed), tuple(rejected), tuple(sorted(edited)))


def remember(entries: Sequence[Entry], workspace: Path) -> None:
    """Writes the memo anew from the copies as they are now (DVC replaces them by links)."""
    copies = dict(_copies(workspace / "data"))
    lines = [
        _line(entry.path, _token(entry), copies[entry.path]) for entry in entries if entry.path in copies
    ]
    fresh = workspace / "memo.jsonl.new"
    fresh.write_text("".join(lines), encoding="utf-8")
    fresh.replace(workspace / "memo.jsonl")


def load(workspace: Path) -> Memo:
    """The memo; a damaged line is left out, later lines win."""
    memo: Memo = {}
    file = workspace / "memo.jsonl"
    if not file.exists():
        return memo
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                path, token, size, modified, inode = json.loads(line)
            except ValueError:
                continue
            memo[path] = (token, (size, modified, inode))
    return memo


def _line(path: str, token: str, copy: Copy) -> str:
    return json.dumps([path, token, *copy]) + "\n"


def _token(entry: Entry) -> str:
    return f"{entry.size}-{entry.token}"


def _edited(remembered: Copy, found: Copy) -> bool:
    return remembered[2] == found[2] and remembered != found


def _bring(job: tuple[Entry, Path, Path, bool]) -> Copy | str:
    """The new copy, or with `compare` the old one if it shows the same; or why there is none."""
    entry, arriving, place, compare = job
    try:
        entry.copy(arriving)
        if compare and place.is_file() and not place.is_symlink() and _same(arriving, place):
            arriving.unlink()
            return _copy(place.lstat())
        place.parent.mkdir(parents=True, exist_ok=True)
        status = arriving.stat()
        arriving.replace(place)
    except OSError as error:
        arriving.unlink(missing_ok=True)
        if error.errno is not None and error.errno not in _UNREADABLE:
            raise  # a full disk or a lost network is no property of this file
        return f"can't be read ({error.strerror or error})"
    return _copy(status)


def _same(one: Path, other: Path) -> bool:
    with one.open("rb") as left, other.open("rb") as right:
        while (some := left.read(_CHUNK)) == right.read(_CHUNK):
            if not some:
                return True
    return False


def _copies(folder: Path, prefix: str = "") -> Iterator[tuple[str, Copy]]:
    with os.scandir(folder) as items:
        for item in items:
            if item.is_dir(follow_symlinks=False):
                yield from _copies(Path(item.path), f"{prefix}{item.name}/")
            else:
                yield f"{prefix}{item.name}", _copy(item.stat(follow_symlinks=False))


def _copy(status: os.stat_result) -> Copy:
    return status.st_size, status.st_mtime_ns, status.st_ino


def _remove_empty_folders(data: Path) -> None:
    for folder, _, _ in os.walk(data, topdown=False):
        if folder != str(data) and not any(os.scandir(folder)):
            Path(folder).rmdir()
