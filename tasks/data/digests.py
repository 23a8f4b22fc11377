"""What is known of files that did not change: a memo from (path, size, modification time, inode) to
the digest of the content, so that an unchanged file isn't read again.

Nothing is compared but for equality, so a clock that jumps does no harm. The memo of a dataset is one
Arrow stream with its SHA-256 behind it; a damaged one is passed over."""

import hashlib
import os
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.records import DatasetVersion, digest_of

# size -1: the file's status can't be read; it equals no memo.
FILES = pa.schema({"path": pa.string(), "size": pa.int64(), "modified_ns": pa.int64(), "inode": pa.uint64()})
_MEMO = FILES.append(pa.field("digest", pa.string()))
_CHECKSUM = hashlib.sha256().digest_size


def scan(folder: Path) -> pa.Table:
    """All files below a folder, links followed, as `FILES`: path relative to it with slashes. Reads
    names and statuses alone.

    One thread: a status takes longer to become Python's than the system to give, so more threads
    are slower (measured with 2 and 4).
    """
    paths, sizes, times, inodes = [], [], [], []
    left = [""]
    while left:
        prefix = left.pop()
        # By descriptor: the system then looks up names in the folder, not whole paths.
        place = os.open(folder / prefix, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(place) as items:
                for item in items:
                    path = f"{prefix}{item.name}"
                    if item.is_dir():
                        left.append(f"{path}/")
                        continue
                    size, modified, inode = _status(item)
                    paths.append(path)
                    sizes.append(size)
                    times.append(modified)
                    inodes.append(inode)
        finally:
            os.close(place)
    numbers = (np.array(sizes, np.int64), np.array(times, np.int64), np.array(inodes, np.uint64))
    return pa.table([pa.array(paths, pa.string()), *map(pa.array, numbers)], schema=FILES)


def place(folder: Path, version: DatasetVersion) -> Path:
    """Where the memo of a dataset lies: one for all versions of a source, and one for each folder
    that a version was checked out into."""
    checked_out = version.source.startswith("dvc:")
    return folder / f"{digest_of(version.folder if checked_out else version.source)[:32]}.arrow"


def known(files: pa.Table, memo: pa.Table) -> pa.StringArray:
    """The digest of each of `files` (see `scan`) that is as the memo has it; null for the others."""
    at = pc.index_in(files["path"].combine_chunks(), memo["path"].combine_chunks())
    same = pc.is_valid(at)
    for column in FILES.names[1:]:
        equal = pc.equal(files[column].combine_chunks(), memo[column].combine_chunks().take(at))
        same = pc.and_(same, pc.fill_null(equal, False))
    return pc.if_else(same, memo["digest"].combine_chunks().take(at), pa.scalar(None, pa.string()))


def load(file: Path) -> pa.Table:
    """The memo in `file`; an empty one where there is none, or it is damaged."""
    try:
        content = memoryview(file.read_bytes())
    except FileNotFoundError:
        return _MEMO.empty_table()
    stream, checksum = content[:-_CHECKSUM], content[-_CHECKSUM:]
    if hashlib.sha256(stream).digest() != checksum:
        return _MEMO.empty_table()
    memo = pa.ipc.open_stream(pa.py_buffer(stream)).read_all()
    return memo if memo.schema == _MEMO else _MEMO.empty_table()


def save(file: Path, files: pa.Table, digests: pa.StringArray) -> None:
    """Replaces the memo in one step: the files whose digest isn't null."""
    memo = files.append_column("digest", digests).filter(pc.is_valid(digests))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _MEMO) as writer:
        writer.write_table(memo)
    stream = sink.getvalue()
    file.parent.mkdir(parents=True, exist_ok=True)
    arriving = file.with_name(f".{file.name}.{uuid4().hex}")
    try:
        with arriving.open("wb") as out:
            out.write(stream)
            out.write(hashlib.sha256(stream).digest())
        arriving.replace(file)
    finally:
        arriving.unlink(missing_ok=True)


def _status(item: os.DirEntry[str]) -> tuple[int, int, int]:
    try:
        status = item.stat()
    except OSError:
        return -1, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ino
