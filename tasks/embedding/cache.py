"""The embedding cache: content digest → vector, in immutable packed segments.

    <root>/<fingerprint>/backbone.json            what the vectors are, for people
    <root>/<fingerprint>/<SHA-256 of it>.arrow    rows (key: 16 bytes, vector: D float32)

A key is the first 16 bytes of the SHA-256 of a sample's bytes. A segment is written under a
temporary name, synced and renamed; its name is its content, so any number of processes may write
at once, and a segment that does not match its name is set aside and its samples embedded again.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.embedding.source import file_digest
from tasks.errors import CacheError

log = logging.getLogger(__name__)

KEY_BYTES = 16


def pack(digests: Sequence[str]) -> NDArray[np.bytes_]:
    """Hex digests to packed keys [N]."""
    keys = b"".join(bytes.fromhex(digest[: 2 * KEY_BYTES]) for digest in digests)
    return np.frombuffer(keys, dtype=f"S{KEY_BYTES}")


class EmbeddingCache:
    """The vectors of one fingerprint."""

    def __init__(self, root: Path, fingerprint: str, dim: int) -> None:
        self.folder = root / fingerprint
        self.dim = dim
        self.folder.mkdir(parents=True, exist_ok=True)
        self._segments: list[NDArray[np.float32]] = []  # each [rows, D], memory-mapped
        self._known: set[str] = set()
        self._keys = np.empty(0, dtype=f"S{KEY_BYTES}")  # sorted
        self._places = np.empty((0, 2), dtype=np.int64)  # (segment, row) of each key
        self.refresh()

    def __len__(self) -> int:
        return len(self._keys)

    def refresh(self) -> None:
        """Takes in segments that were written since, by this process or another."""
        keys, places = [self._keys], [self._places]
        for file in sorted(self.folder.glob("*.arrow")):
            if file.name in self._known or not self._intact(file):
                continue
            segment_keys, vectors = self._read(file)
            rows = np.arange(len(segment_keys), dtype=np.int64)
            keys.append(segment_keys)
            places.append(np.stack([np.full_like(rows, len(self._segments)), rows], axis=1))
            self._segments.append(vectors)
            self._known.add(file.name)
        # Two writers may have embedded the same sample: either row will do, the first is taken.
        self._keys, first = np.unique(np.concatenate(keys), return_index=True)
        self._places = np.concatenate(places)[first]

    def missing(self, digests: Sequence[str]) -> list[str]:
        """Those of `digests` that are not in the cache, each once, in their order."""
        present = self._find(pack(digests)) >= 0
        return list(dict.fromkeys(d for d, found in zip(digests, present, strict=True) if not found))

    def gather(self, digests: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of `digests`, [N, D].

        Raises:
            CacheError: some are not in the cache.
        """
        found = self._find(pack(digests))
        if (found < 0).any():
            lacking = int((found < 0).sum())
            first = digests[int(np.argmax(found < 0))]
            raise CacheError(
                f"{self.folder}: {lacking:,} of {len(digests):,} samples are not in the cache"
                f" (first: {first}); embed them first"
            )
        vectors = np.empty((len(digests), self.dim), dtype=np.float32)
        places = self._places[found]
        for segment in np.unique(places[:, 0]):
            of_segment = places[:, 0] == segment
            vectors[of_segment] = self._segments[segment][places[of_segment, 1]]
        return vectors

    def append(self, digests: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Writes a segment; when this returns it survives a crash.

        Args:
            digests: N hex digests.
            vectors: [N, D], finite.
        """
        right = vectors.shape == (len(digests), self.dim) and vectors.dtype == np.float32
        if not right or not np.isfinite(vectors).all():
            raise CacheError(
                f"{self.folder}: refused a segment of {vectors.dtype} {vectors.shape} for {len(digests)}"
                f" samples of {self.dim} float32, or with values that are not finite"
            )
        keys = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(KEY_BYTES), len(digests), [None, pa.py_buffer(pack(digests).tobytes())]
        )
        values = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        table = pa.table({"key": keys, "vector": pa.FixedSizeListArray.from_arrays(values, self.dim)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        content = sink.getvalue()
        write_durably(self.folder / f"{hashlib.sha256(content).hexdigest()}.arrow", content)
        self.refresh()

    def segments(self) -> Iterator[Path]:
        """The files, in no particular order."""
        yield from self.folder.glob("*.arrow")

    def _find(self, keys: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Place of each key in the sorted index, -1 where it is not."""
        at = np.searchsorted(self._keys, keys)
        at[at == len(self._keys)] = 0
        known = self._keys[at] == keys if len(self._keys) else np.zeros(len(keys), dtype=bool)
        return np.where(known, at, -1)

    def _intact(self, file: Path) -> bool:
        with suppress(FileNotFoundError):  # another process has set it aside in the meantime
            if file_digest(file) == file.stem:
                return True
            file.rename(file.with_suffix(".damaged"))
            log.warning("%s: damaged segment set aside as .damaged; its samples are embedded again", file)
        return False

    def _read(self, file: Path) -> tuple[NDArray[np.bytes_], NDArray[np.float32]]:
        table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        key = table["key"].combine_chunks()
        vector = table["vector"].combine_chunks()
        if vector.type.list_size != self.dim:
            raise CacheError(f"{file}: holds vectors of {vector.type.list_size}, not {self.dim} dimensions")
        keys = np.frombuffer(key.buffers()[1], dtype=f"S{KEY_BYTES}", count=len(key))
        vectors = vector.flatten().to_numpy(zero_copy_only=True).reshape(len(vector), self.dim)
        return keys, vectors


def write_durably(file: Path, content: bytes | memoryview) -> None:
    """Writes under a temporary name, syncs, renames, syncs the folder."""
    handle, name = tempfile.mkstemp(prefix=".", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(file)
    finally:
        Path(name).unlink(missing_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
