"""What a user may name as a dataset, listed without reading the images: a folder, a table, an S3
prefix, or the built-in set."""

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from tasks.data import split, stack, table
from tasks.errors import DataError
from tasks.params import BUILTIN, DataParams
from tasks.records import Rejected, Target
from tasks.settings import Settings

Layout = Literal["folders", "split_folders", "table"]
_OUTSIDE = "link leads outside the dataset's folder (data.follow_links would follow it)"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a dataset."""

    path: str  # relative to the dataset, with slashes
    size: int  # bytes
    token: str  # another token means that the content may have changed
    copy: Callable[[Path], None] = field(compare=False, repr=False)  # writes the file anew


@dataclass(frozen=True)
class Listing:
    """The files of a dataset, sorted by path."""

    source: str  # canonical: two spellings of one source are equal
    layout: Layout
    table: str | None  # path of the table, for layout `table`
    entries: tuple[Entry, ...]
    rejected: tuple[Rejected, ...]


def list_source(source: str, params: DataParams, settings: Settings) -> Listing:
    """Lists the dataset that `source` names.

    Args:
        source: `builtin:surface-inspection`, a folder of class folders (or of split folders with
            class folders), a .csv or .parquet table with the columns path and label, or one of
            the last three under `s3://bucket/`.

    Raises:
        DataError: there is no such dataset, or it is none.
    """
    if source.startswith("builtin:"):
        return _folder(_builtin(source), source, params)
    if source.startswith("s3://"):
        from tasks.data import s3  # boto3 takes a while to import

        return s3.list_s3(source, settings, params.target)
    if "://" in source:
        raise DataError(f"{source}: name a folder, a .csv or .parquet table, s3://bucket/prefix or {BUILTIN}")
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(f"{source}: no such folder or table")
    path = path.resolve()
    _check_apart(path if path.is_dir() else path.parent, settings, path.is_dir())
    if path.is_dir():
        return _folder(path, str(path), params)
    if path.suffix.lower() in table.SUFFIXES:
        return _table(path, params)
    raise DataError(f"{source}: name a folder of class folders, or a .csv or .parquet table")


def folder_listing(source: str, files: Iterable[Entry], rejected: Sequence[Rejected]) -> Listing:
    """Tells class folders from split folders, and leaves out files that lie in neither.

    Raises:
        DataError: no class folders, or only one.
    """
    files = [entry for entry in files if "/" in entry.path]
    firsts = {entry.path.split("/", 1)[0] for entry in files}
    if not firsts:
        why = f"; {rejected[0].path}: {rejected[0].reason}" if rejected else ""
        raise DataError(
            f"{source}: has no class folders with files; put the images of each class in one{why}"
        )
    layout: Layout = "folders"
    depth = 0  # of the class folder
    if all(first.lower() in split.NAMES for first in firsts):
        layout, depth = "split_folders", 1
        files = [entry for entry in files if entry.path.count("/") >= 2]
        bare = sorted(firsts - {entry.path.split("/", 1)[0] for entry in files})
        if bare:
            raise DataError(f"{source}: {', '.join(bare)} is named like a split but holds no class folders")
    classes = {entry.path.split("/")[depth] for entry in files}
    if len(classes) < 2:
        raise DataError(f"{source}: has only one class ({', '.join(classes)}); two are needed")
    return Listing(source, layout, None, _sorted(files), tuple(rejected))


def table_listing(
    source: str,
    name: str,
    content: bytes,
    find: Callable[[str], Entry | str],
    target: Target = "class",
) -> Listing:
    """Lists the files that a table names, or of which it names rows; `find` gives a path's entry, or
    why there is none.

    Raises:
        DataError: see `table.read`; or no file can be used, or all have one class.
    """
    rows, rejected = table.read(content, source, target)
    bad = list(rejected)
    files: dict[str, Entry | str] = {name: "is the table itself"}
    labels = set()
    for path, label, row in zip(rows["path"], rows["label"], rows["row"], strict=True):
        file, _ = stack.split_path(path)
        if file not in files:
            files[file] = find(file)
        found = files[file]
        if isinstance(found, str):
            bad.append(Rejected(path=path, reason=f"row {row}: {found}"))
        else:
            labels.add(label)
    if not labels:
        why = f"; {bad[0].path}: {bad[0].reason}" if bad else ""
        raise DataError(f"{source}: no row names a usable file{why}")
    if len(labels) < 2 and target == "class":
        raise DataError(f"{source}: has only one class ({', '.join(labels)}); two are needed")
    files[name] = Entry(name, len(content), _token(content), partial(_write, content))
    entries = [found for found in files.values() if isinstance(found, Entry)]
    return Listing(source, "table", name, _sorted(entries), tuple(bad))


def _sorted(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=lambda entry: entry.path))


def _token(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(content: bytes, to: Path) -> None:
    to.write_bytes(content)


def _builtin(source: str) -> Path:
    if source != BUILTIN:
        raise DataError(f"{source}: there is no such built-in dataset; use {BUILTIN}")
    try:
        from conformal_clip_data import textile_simulated_root
    except ImportError:
        raise DataError(f"{source}: not installed; pip install 'regraft[demo]'") from None
    return Path(str(textile_simulated_root()))


def _check_apart(folder: Path, settings: Settings, is_folder: bool) -> None:
    """The state must not be listed as a part of the dataset (a hidden folder never is)."""
    if is_folder and settings.root.is_relative_to(folder):
        inner = settings.root.relative_to(folder).parts
        if not any(part.startswith(".") for part in inner):
            raise DataError(
                f"{folder}: holds the state folder {settings.root}; name another with REGRAFT_STATE"
            )


def _folder(root: Path, source: str, params: DataParams) -> Listing:
    walk = _Walk(root, params.follow_links)
    walk.run()
    return folder_listing(source, walk.entries, walk.rejected)


def _table(file: Path, params: DataParams) -> Listing:
    root = file.parent
    parents: dict[str, bool] = {}  # folder -> it lies within the root, links followed

    def find(path: str) -> Entry | str:
        place = root / path
        if not _is_utf8(path):
            return "the name is not UTF-8"
        try:
            status = place.lstat()
            linked = stat.S_ISLNK(status.st_mode)
            if linked:
                status = place.stat()
        except FileNotFoundError:
            return "broken link" if place.is_symlink() else "no such file"
        except OSError as error:
            return f"can't be read ({error.strerror})"
        if not stat.S_ISREG(status.st_mode):
            return "not a file"
        if not params.follow_links:
            parent = str(place.parent)
            if parent not in parents:
                parents[parent] = place.parent.resolve().is_relative_to(root)
            if not parents[parent] or (linked and not place.resolve().is_relative_to(root)):
                return _OUTSIDE
        return _local(path, place, status)

    return table_listing(str(file), file.name, file.read_bytes(), find, params.target)


def _local(path: str, place: Path, status: os.stat_result) -> Entry:
    # The change time too: an edit that keeps size and modification time still moves it.
    token = f"{status.st_mtime_ns}-{status.st_ctime_ns}-{status.st_ino}"
    return Entry(path, status.st_size, token, partial(shutil.copyfile, place))


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Walk:
    """Lists a folder, links included, without leaving it."""

    def __init__(self, root: Path, follow_links: bool) -> None:
        self.entries: list[Entry] = []
        self.rejected: list[Rejected] = []
        self._root = root.resolve()
        self._follow = follow_links

    def run(self) -> None:
        root = self._root.stat()
        # The last item: the folders above, to notice a link that leads back to one of them.
        stack: list[tuple[str, Path, tuple[tuple[int, int], ...]]] = [
            ("", self._root, ((root.st_dev, root.st_ino),))
        ]
        while stack:
            prefix, folder, above = stack.pop()
            for item in self._items(folder):
                path = f"{prefix}{item.name}"
                status = self._status(path, item)
                if isinstance(status, str):
                    self._reject(path, status)
                elif stat.S_ISDIR(status.st_mode):
                    here = (status.st_dev, status.st_ino)
                    if here in above:
                        self._reject(path, "link leads to a folder that holds it")
                    else:
                        stack.append((f"{path}/", Path(item.path), (*above, here)))
                elif not stat.S_ISREG(status.st_mode):
                    self._reject(path, "not a regular file")
                elif prefix:  # files beside the class folders belong to no class
                    self.entries.append(_local(path, Path(item.path), status))

    def _items(self, folder: Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as items:
                return sorted(
                    (item for item in items if not item.name.startswith(".")), key=lambda item: item.name
                )
        except OSError as error:
            raise DataError(f"{folder}: can't be read ({error.strerror})") from None

    def _status(self, path: str, item: os.DirEntry[str]) -> os.stat_result | str:
        """The status of the file, links followed; or why it can't be used."""
        if not _is_utf8(path):
            return "the name is not UTF-8"
        try:
            if not item.is_symlink():
                return item.stat(follow_symlinks=False)
            status = item.stat()
        except FileNotFoundError:
            return "broken link" if item.is_symlink() else "vanished while it was listed"
        except OSError as error:  # a circle of links, say
            return f"can't be read ({error.strerror})"
        if self._follow or Path(item.path).resolve().is_relative_to(self._root):
            return status
        return _OUTSIDE

    def _reject(self, path: str, reason: str) -> None:
        readable = os.fsencode(path).decode("utf-8", "backslashreplace")
        self.rejected.append(Rejected(path=readable, reason=reason))
