"""The embedding cache: content digest → vector, in immutable segments on this disk and, where one is
configured, in a tier that many machines share.

    <root>/<fingerprint>/block.json         what the vectors are, for people; its age is the last use
    <root>/<fingerprint>/<digest>.arrow     a segment, see segment.py
    <root>/<fingerprint>/keys/              which keys the tier's segments hold, see tier.py

A key is the first 16 bytes of the SHA-256 of a sample's bytes. Any number of processes may read,
write and compact at once without locks: a segment appears whole under a name that is its content,
and one that does not match its name is set aside and its samples count as missing.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from tasks.embedding.index import KeyIndex, Places
from tasks.embedding.segment import (
    KEY_BYTES,
    SUFFIX,
    THREADS,
    DamagedError,
    Identity,
    Keys,
    Segment,
    Vectors,
    damaged,
    identity,
    in_threads,
    publish,
    set_aside,
    sync,
)
from tasks.embedding.segment import write as write_segment
from tasks.errors import CacheError

if TYPE_CHECKING:
    from tasks.embedding.tier import Tier

DESCRIPTION = "block.json"
_LISTINGS = 10  # of a folder that others write to all the time
_COPY_BYTES = 256 << 10  # by a thread of `gather` at once: they stay in its cache


def pack(digests: Sequence[str]) -> NDArray[np.bytes_]:
    """Hex digests to packed keys [N].

    Raises:
        CacheError: one is no digest.
    """
    text = "".join([digest[: 2 * KEY_BYTES] for digest in digests])
    try:
        keys = bytes.fromhex(text)
    except ValueError:
        keys = b""
    if len(keys) != KEY_BYTES * len(digests):
        raise CacheError("some digest has fewer than 32 hex characters")
    return np.frombuffer(keys, dtype=f"S{KEY_BYTES}")


def pairs(keys: NDArray[np.bytes_]) -> Keys:
    """Packed keys [N] as the segments hold them, [N, 2]."""
    return keys.view(np.uint64).reshape(-1, 2)


class EmbeddingCache:
    """The vectors of one fingerprint."""

    def __init__(self, root: Path, fingerprint: str, dim: int, tier: "Tier | None" = None) -> None:
        """Opens the cache; with a tier, also uploads the segments that it lacks.

        Raises:
            CacheError: the folder can't be made, it holds vectors of another dimension, or the tier
                can't be read.
        """
        self.folder = root / fingerprint
        self.dim = dim
        self._segments: dict[str, Segment] = {}  # name -> segment
        self._index: tuple[KeyIndex, list[Segment]] | None = None
        self._lost = 0  # segments set aside since opening
        self._unsent: list[Segment] = []  # the tier failed
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True, exist_ok=True)
                sync(root)
        except OSError as error:
            raise CacheError(f"{self.folder}: can't be made ({error.strerror})") from None
        self._shared = tier.namespace(fingerprint, self.folder) if tier is not None else None
        self.refresh()
        self.push()
        self._note_use()

    def __len__(self) -> int:
        """How many samples are here."""
        return self._indexed()[0].distinct()

    def segments(self) -> Iterator[Path]:
        """The files, in no particular order."""
        yield from self.folder.glob(f"*{SUFFIX}")

    def refresh(self) -> None:
        """Takes in what was written since, by this process or another, here or in the tier."""
        listed, gone = self._listed(), True
        while gone:
            files = [self.folder / name for name in sorted(listed - set(self._segments))]
            found = in_threads(_read, files)
            for file, one in zip(files, found, strict=True):
                self._take(file, one)
            gone = any(one is None for one in found)  # compacted: into one that is listed now
            listed = self._listed() if gone else listed
        for name in set(self._segments) - listed:
            self._drop(name)
        if self._shared is not None:
            self._shared.refresh()

    def missing(self, digests: Sequence[str]) -> list[str]:
        """Those of `digests` that are neither here nor in the tier, each once, in their order.

        Rows that are here are checked, if this process has not done so already.
        """
        keys = pairs(pack(digests))
        lacking = np.flatnonzero(self.find(keys) < 0)
        if self._shared is not None and len(lacking):
            lacking = lacking[~self._shared.holds(keys[lacking], self._segments)]
        return list(dict.fromkeys(digests[number] for number in lacking.tolist()))

    def fetch(self, digests: Sequence[str]) -> None:
        """Brings those of `digests` that only the tier has: the segments that hold them.

        Raises:
            CacheError: the tier can't be read, or this disk can't be written to.
        """
        self._fetch(pairs(pack(digests)))

    def gather(self, digests: Sequence[str], out: Vectors | None = None) -> Vectors:
        """The vectors of `digests`, [N, D].

        Args:
            out: [N, D], may be columns of a larger matrix; the vectors are written there.

        Raises:
            CacheError: some are not in the cache.
        """
        return self.gather_keys(pairs(pack(digests)), out)

    def gather_keys(self, keys: Keys, out: Vectors | None = None) -> Vectors:
        """`gather` for keys [N, 2]."""
        places = self.find(keys)
        if (places < 0).any():  # they may have been written, or moved, since this was opened
            self.refresh()
            self._fetch(keys)
            places = self.find(keys)
        lacking = np.flatnonzero(places < 0)
        if len(lacking):
            remedy = "damaged segments were set aside: run again" if self._lost else "embed them first"
            raise CacheError(
                f"{self.folder}: {len(lacking):,} of {len(keys):,} samples are not in the cache"
                f" (first: {keys[lacking[0]].tobytes().hex()}); {remedy}"
            )
        if out is None:
            out = np.empty((len(keys), self.dim), dtype=np.float32)
        self._copy(places, out)
        return out

    def append(self, digests: Sequence[str], vectors: Vectors) -> None:
        """Writes a segment; when this returns it survives a crash, and the tier has it.

        Args:
            digests: N hex digests.
            vectors: [N, D], finite.

        Raises:
            CacheError: the vectors are not such, or the disk or the tier can't be written to.
        """
        right = vectors.shape == (len(digests), self.dim) and vectors.dtype == np.float32
        if not right or not np.isfinite(vectors).all():
            raise CacheError(
                f"{self.folder}: refused a segment of {vectors.dtype} {vectors.shape} for {len(digests)}"
                f" samples of {self.dim} float32, or with values that are not finite"
            )
        if not digests:
            return
        try:
            file = write_segment(self.folder, pairs(pack(digests)), vectors)
        except OSError as error:
            if not self.folder.is_dir():
                raise self._removed() from None
            raise CacheError(
                f"{self.folder}: can't write {len(digests):,} embeddings ({error.strerror or error});"
                " what was written before is kept: make room or give the right to write, then run again"
            ) from None
        found = _read(file)
        self._take(file, found)
        if isinstance(found, tuple):
            raise CacheError(f"{file}: can't be read back as it was written; check the disk")
        if found is None:  # it was compacted already
            self.refresh()
            self.push()
        elif self._shared is not None:
            self._upload([*self._unsent, found])

    def push(self) -> None:
        """Uploads the segments that hold samples which the tier lacks.

        Raises:
            CacheError: the tier can't be written to.
        """
        if self._shared is not None:
            self._upload(self._shared.lacks(list(self._segments.values())))

    def find(self, keys: Keys) -> Places:
        """Where each key [N, 2] is on this disk, -1 where it is not; what it names was checked."""
        while True:
            # To read the map of a file that was cut would kill the process.
            for one in [one for one in self._segments.values() if one.changed()]:
                self._drop(one.file.name)
                self._open(one.file)
            index, segments = self._indexed()
            places = index.find(keys)
            asked = [(segments[part], rows) for part, _, rows in index.split(places[places >= 0])]
            bad = damaged(asked)
            if not bad:
                return places
            for one in bad:
                self._set_aside(one.file, one.identity, "its vectors have changed")

    def _copy(self, places: Places, vectors: Vectors) -> None:
        """Writes the vectors at places that `find` gave into `vectors`, [N, D]."""
        if not len(places):
            return
        index, segments = self._indexed()
        memory, starts = _side_by_side([one.vectors for one in segments])
        parts, rows = index.where(places)
        at = starts[parts] + rows * self.dim
        block = max(1, _COPY_BYTES // (4 * self.dim))

        def copy(first: int) -> None:
            for begin in range(first * block, len(at), THREADS * block):
                vectors[begin : begin + block] = memory[at[begin : begin + block]]

        in_threads(copy, range(min(THREADS, -(-len(at) // block))))

    def _fetch(self, keys: Keys) -> None:
        if self._shared is None:
            return
        again = True
        while again:
            files, again = self._shared.fetch(keys[self.find(keys) < 0], self._segments)
            for file in files:
                self._open(file)

    def _upload(self, segments: Sequence[Segment]) -> None:
        assert self._shared is not None
        for one in damaged([(one, None) for one in segments]):
            self._set_aside(one.file, one.identity, "its vectors have changed")
        self._unsent = [one for one in segments if self._segments.get(one.file.name) is one]
        try:
            self._shared.upload(self._unsent)
        except CacheError as error:
            raise CacheError(
                f"{error}; the embeddings are safe in {self.folder}: once the tier can be written to,"
                " run again, and they are uploaded"
            ) from None
        self._unsent = []

    def _listed(self) -> set[str]:
        """Names of the segments. A listing that a compaction overlaps may miss both the old names
        and the new, so it is taken until two are the same."""
        before: set[str] | None = None
        for _ in range(_LISTINGS):
            try:
                listed = {file.name for file in self.folder.iterdir() if file.suffix == SUFFIX}
            except FileNotFoundError:
                raise self._removed() from None
            if listed == before:
                break
            before = listed
        return listed

    def _removed(self) -> CacheError:
        return CacheError(f"{self.folder}: was removed (pruned?) while it was in use; run again")

    def _open(self, file: Path) -> None:
        self._take(file, _read(file))

    def _take(self, file: Path, one: Segment | tuple[Identity, str] | None) -> None:
        if isinstance(one, tuple):
            self._set_aside(file, *one)
        elif one is not None and one.header.dim != self.dim:
            raise CacheError(f"{file}: holds vectors of {one.header.dim}, not {self.dim} dimensions")
        elif one is not None:
            self._segments[file.name] = one
            self._index = None

    def _set_aside(self, file: Path, seen: Identity, reason: str) -> None:
        set_aside(file, seen, reason)
        self._drop(file.name)
        self._lost += 1

    def _drop(self, name: str) -> None:
        if self._segments.pop(name, None) is not None:
            self._index = None

    def _note_use(self) -> None:
        """A hint for `prune`; who may only read can't give it, and need not."""
        file = self.folder / DESCRIPTION
        with suppress(OSError, CacheError):
            os.utime(file)
            if self._shared is not None:
                self._shared.describe(file)

    def _indexed(self) -> tuple[KeyIndex, list[Segment]]:
        if self._index is None:
            segments = [self._segments[name] for name in sorted(self._segments)]
            self._index = KeyIndex([one.keys for one in segments]), segments
        return self._index


def _side_by_side(arrays: Sequence[Vectors]) -> tuple[Vectors, NDArray[np.int64]]:
    """Arrays [rows, D] anywhere in memory as one, which has a row at every fourth byte from the first
    of them to the last, and where each of them begins in it. Rows of many segments are then copied by
    one call; those between the segments must never be looked at.
    """
    addresses = np.array([array.ctypes.data for array in arrays])
    first, size = int(addresses.argmin()), arrays[0][:1].nbytes
    end = max(array.ctypes.data + array.nbytes for array in arrays)
    shape = ((end - size - int(addresses[first])) // 4 + 1, arrays[0].shape[1])
    memory = as_strided(arrays[first], shape, strides=(4, 4), writeable=False)
    return memory, (addresses - addresses[first]) // 4


def _read(file: Path) -> Segment | tuple[Identity, str] | None:
    """A segment; or what was damaged, and how; or None where it has gone."""
    try:
        seen = identity(file)
        try:
            return Segment(file)
        except DamagedError as error:
            return seen, str(error)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise CacheError(f"{file}: can't be read ({error.strerror})") from None


def write_durably(file: Path, content: bytes | memoryview) -> None:
    """Writes under a temporary name, syncs, renames, syncs the folder."""

    def fill(stream: BinaryIO) -> str:
        stream.write(content)
        return file.name

    publish(file.parent, fill)
