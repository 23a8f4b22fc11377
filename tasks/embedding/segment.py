"""One immutable file of packed rows: an Arrow IPC file whose name proves its content.

    key: fixed_size_binary(16)          sorted, each once
    vector: fixed_size_list<float32, D>

The schema's metadata holds, under `regraft`, a JSON text with the digests of the keys, of each
chunk of vectors, and of the frame (every byte that is neither key nor vector, with its own digest
as zeros). The file is named by the SHA-256 of that text. So opening one checks the text, the frame
and the keys; a chunk of vectors is checked when it is first used, once in a process; and no Arrow
structure is parsed before its bytes are known to be right.
"""

import hashlib
import json
import logging
import mmap
import os
import struct
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO, Self, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.errors import CacheError

log = logging.getLogger(__name__)

KEY_BYTES = 16
SUFFIX = ".arrow"
THREADS = min(8, os.cpu_count() or 1)  # more would wait for the disk or the memory
_VERSION = 1
_CHUNK_BYTES = 1 << 20  # of vectors under one digest: what the use of one row has to check
_FIELD = "regraft"
_START = b'{"chunk_rows":'  # the text's keys are sorted
_NO_FRAME = "0" * 64

Keys = NDArray[np.uint64]  # [N, 2]: the 16 bytes of each key as they lie in the file
Vectors = NDArray[np.float32]  # [N, D]
Identity = tuple[int, int, int, int]  # device, inode, size in bytes, modification time in ns

A = TypeVar("A")
B = TypeVar("B")

# What this process has checked of each file: its frame and keys, and which chunks. A file that is
# renamed stays the same one.
_checked: dict[Identity, NDArray[np.bool_]] = {}


class DamagedError(CacheError):
    """A segment's bytes are not those that its name stands for."""


@dataclass(frozen=True)
class Header:
    """The text that names a segment. Digests are hex SHA-256."""

    chunk_rows: int
    chunks: tuple[str, ...]  # of each `chunk_rows` vectors
    dim: int
    frame: str
    keys: str
    merged: str  # of a compaction's output: makes its name unique for ever; "" otherwise
    rows: int
    version: int = _VERSION

    @property
    def text(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @property
    def name(self) -> str:
        return hashlib.sha256(self.text).hexdigest()

    @classmethod
    def read(cls, text: bytes, name: str) -> Self:
        """Raises DamagedError where `text` does not hash to `name`."""
        if hashlib.sha256(text).hexdigest() != name:
            raise DamagedError("its name is not the digest of its header")
        values = json.loads(text)
        if values["version"] != _VERSION:
            raise CacheError(f"{name}{SUFFIX}: written by another version of Regraft; use that, or prune it")
        return cls(**{**values, "chunks": tuple(values["chunks"])})


class Segment:
    """A segment whose frame and keys were checked, mapped into memory.

    `keys` [rows, 2] and `vectors` [rows, D] are views of the map, `content`, which outlives the
    file's name.
    """

    def __init__(self, file: Path, name: str | None = None) -> None:
        """Opens `file`, which is to be the segment `name` (None: the one that it is named after).

        Raises:
            FileNotFoundError: it has gone.
            DamagedError: with the reason.
            CacheError: it is of another version.
        """
        self.file = file
        while True:
            self.identity = identity(file)
            if not self.identity[2]:  # bytes
                raise DamagedError("it is empty")
            with pa.memory_map(str(file)) as mapped:
                content = memoryview(mapped.read_buffer())
            if identity(file) == self.identity:
                break  # else it was replaced in between
        self.header, keys_at = _header(content, name or file.stem)
        vectors_at = keys_at + KEY_BYTES * self.header.rows
        end = vectors_at + 4 * self.header.dim * self.header.rows
        if end > len(content):
            raise DamagedError(f"it is truncated to {len(content):,} bytes")
        if self.identity not in _checked:
            if _frame(content[:keys_at].tobytes(), content[end:].tobytes(), self.header) != self.header.frame:
                raise DamagedError("bytes around its rows have changed")
            if hashlib.sha256(content[keys_at:vectors_at]).hexdigest() != self.header.keys:
                raise DamagedError("its keys have changed")
            _checked[self.identity] = np.zeros(len(self.header.chunks), dtype=np.bool_)
        self.content = content
        self._verified = _checked[self.identity]
        self.keys: Keys = np.frombuffer(content[keys_at:vectors_at], dtype=np.uint64).reshape(-1, 2)
        self.vectors: Vectors = np.frombuffer(content[vectors_at:end], dtype=np.float32).reshape(
            -1, self.header.dim
        )

    def changed(self) -> bool:
        """Whether the file was written to since it was opened. One that has gone has not: compaction
        removes names, and the map keeps the content."""
        try:
            return identity(self.file) != self.identity
        except FileNotFoundError:
            return False

    def unverified(self, rows: NDArray[np.int64] | None = None) -> list[int]:
        """The chunks that hold `rows` (None: all) and were not checked yet."""
        if self._verified.all():
            return []
        wanted = np.full(len(self._verified), rows is None)
        if rows is not None:
            wanted[rows // self.header.chunk_rows] = True
        return np.flatnonzero(wanted & ~self._verified).tolist()

    def verify(self, chunk: int) -> bool:
        """Whether a chunk's vectors are those that were written."""
        rows = self.vectors[chunk * self.header.chunk_rows : (chunk + 1) * self.header.chunk_rows]
        self._verified[chunk] = hashlib.sha256(rows.data).hexdigest() == self.header.chunks[chunk]
        return bool(self._verified[chunk])


def forget() -> None:
    """Has every byte checked again of the segments that are opened from now on."""
    _checked.clear()


def damaged(asked: Iterable[tuple[Segment, NDArray[np.int64] | None]]) -> list[Segment]:
    """Checks the chunks that hold the given rows (None: all) of each segment; those that are bad."""
    jobs = [(segment, chunk) for segment, rows in asked for chunk in segment.unverified(rows)]
    good = in_threads(lambda job: job[0].verify(job[1]), jobs)
    bad = {id(job[0]): job[0] for job, intact in zip(jobs, good, strict=True) if not intact}
    return list(bad.values())


def in_threads(act: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """`act` on each item; hashlib, numpy's sorts and its copies let other threads run."""
    if len(items) < 2:  # a pool costs more
        return [act(item) for item in items]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(act, items))


def set_aside(file: Path, seen: Identity, reason: str) -> Path | None:
    """Renames a damaged segment to `.damaged` and says so; None where it could not be renamed.

    Args:
        seen: the file that was found damaged; another that has taken its name since stays.
    """
    aside = file.with_suffix(".damaged")
    try:
        file.rename(aside)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):  # another process has set it aside
            log.warning("%s: damaged segment (%s), not used; could not be set aside: %s", file, reason, error)
        return None
    with suppress(FileNotFoundError, PermissionError):
        if identity(aside)[1] != seen[1]:  # inodes
            aside.rename(file)
            return None
        os.utime(aside)  # it is kept for a while from now on
    log.warning("%s: damaged segment (%s), set aside as .damaged; its samples are missing", file, reason)
    return aside


def write(folder: Path, keys: Keys, vectors: Vectors, merged: str = "") -> Path:
    """Writes a segment of N rows; when this returns it survives a crash. Of rows with the same key
    the first is written.

    Args:
        merged: any unique text, for the output of a compaction.

    Raises:
        OSError: the disk is full, or the folder may not be written to.
    """
    order = sorted_once(keys)
    if not np.array_equal(order, np.arange(len(keys))):  # a large one in order is not copied
        keys, vectors = keys[order], vectors[order]
    packed, rows = np.ascontiguousarray(keys), np.ascontiguousarray(vectors)  # [M, 2], [M, D]
    chunk_rows = max(1, _CHUNK_BYTES // rows[:1].nbytes)
    chunks = [rows[start : start + chunk_rows].data for start in range(0, len(rows), chunk_rows)]
    digests = tuple(in_threads(lambda chunk: hashlib.sha256(chunk).hexdigest(), chunks))
    keys_digest = hashlib.sha256(packed.data).hexdigest()
    draft = Header(chunk_rows, digests, rows.shape[1], _NO_FRAME, keys_digest, merged, len(rows))
    return publish(folder, lambda stream: _fill(stream, draft, packed, rows))


def _fill(stream: BinaryIO, draft: Header, keys: Keys, vectors: Vectors) -> str:
    """Writes the file with the draft of its header, then the frame's digest into it; its name."""
    # Not pa.array, which imports pandas.
    key = pa.FixedSizeBinaryArray.from_buffers(pa.binary(KEY_BYTES), len(keys), [None, pa.py_buffer(keys)])
    values = pa.Array.from_buffers(pa.float32(), vectors.size, [None, pa.py_buffer(vectors)])
    vector = pa.FixedSizeListArray.from_arrays(values, draft.dim)
    schema = pa.schema([("key", key.type), ("vector", vector.type)], metadata={_FIELD: draft.text})
    batch = pa.RecordBatch.from_arrays([key, vector], schema=schema)
    with pa.ipc.new_file(stream, schema) as writer:
        writer.write_batch(batch)
    stream.flush()
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        keys_at = _keys_at(content)
        end = keys_at + keys.nbytes + vectors.nbytes
        head, tail = content[:keys_at], content[end:]
        expected = content[keys_at : keys_at + keys.nbytes] == keys.tobytes()
    if not expected or head.count(draft.text) != 1 or tail.count(draft.text) != 1:
        raise CacheError("pyarrow lays out Arrow files in another way than is read here; use an earlier one")
    header = replace(draft, frame=_frame(head, tail, draft))
    stream.seek(0)
    stream.write(head.replace(draft.text, header.text))
    stream.seek(end)
    stream.write(tail.replace(draft.text, header.text))
    return header.name + SUFFIX


def publish(folder: Path, fill: Callable[[BinaryIO], str], durable: bool = True) -> Path:
    """Has `fill` write a temporary file and say its name, and renames it.

    Args:
        durable: survives a crash when this returns, at the price of waiting for the disk.
    """
    temporary = folder / f".{uuid.uuid4().hex}"
    try:
        with temporary.open("x+b") as stream:
            file = folder / fill(stream)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        with suppress(OSError):
            temporary.unlink()
    if durable:
        sync(folder)
    return file


def sync(folder: Path) -> None:
    """Makes names that were added to a folder survive a crash."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_header(file: Path) -> Header:
    """The header alone, checked against the name; raises as Segment does."""
    if not file.stat().st_size:
        raise DamagedError("it is empty")
    with pa.memory_map(str(file)) as mapped:
        return _header(memoryview(mapped.read_buffer()), file.stem)[0]


def prefixes(keys: Keys) -> NDArray[np.uint64]:
    """The first half of each key as a number, so that their order is that of the keys' bytes."""
    return np.ascontiguousarray(keys[:, 0]).view(">u8").astype(np.uint64)


def sorted_once(keys: Keys) -> NDArray[np.int64]:
    """Where each distinct key first stands, in the order of their bytes."""
    seconds = np.ascontiguousarray(keys[:, 1]).view(">u8").astype(np.uint64)
    order = np.lexsort((seconds, prefixes(keys)))  # stable
    found = keys[order]
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = (found[1:] != found[:-1]).any(axis=1)
    return order[new]


def identity(file: Path) -> Identity:
    status = file.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _keys_at(content: "memoryview | mmap.mmap") -> int:
    """Where the rows begin: after the magic and two messages, each 8 bytes and as many as those say.

    https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format
    """
    schema = struct.unpack_from("<I", content, 12)[0]
    batch = struct.unpack_from("<I", content, 16 + schema + 4)[0]
    return int(16 + schema + 8 + batch)


def _header(content: memoryview, name: str) -> tuple[Header, int]:
    """The header of a file's content, and where its keys begin."""
    try:
        keys_at = _keys_at(content)
        head = content[:keys_at].tobytes()
        start = head.index(_START)
        text = head[start : head.index(b"}", start) + 1]
    except (struct.error, ValueError):
        raise DamagedError("it has no header") from None
    return Header.read(text, name), keys_at


def _frame(head: bytes, tail: bytes, header: Header) -> str:
    """Digest of the bytes around the rows, with the digest itself as zeros."""
    blank = replace(header, frame=_NO_FRAME).text
    digest = hashlib.sha256(head.replace(header.text, blank))
    digest.update(tail.replace(header.text, blank))
    return digest.hexdigest()
