"""What the files of a dataset hold: the digest and size in px of every image, and of every row of a
stack. Only files of which that isn't known are read."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.data import verified
from tasks.data.image import BadImage, decode
from tasks.data.stack import SUFFIX, Rows, Stack, check_stack, is_stack, split_path
from tasks.records import Rejected

SAMPLES = pa.schema(
    {
        "path": pa.string(),
        "digest": pa.string(),
        "size": pa.int64(),  # bytes of the file, or of the row
        "width": pa.int32(),
        "height": pa.int32(),
    }
)
_BATCH = 64  # files that a thread takes at a time
_ROW_BYTES = 32 << 20  # of a stack, that a thread takes at a time

Sizes = dict[str, tuple[int, int]]  # digest -> width, height of a good image, px


@dataclass(frozen=True)
class Content:
    """What was found in some files."""

    samples: pa.Table  # good ones, as `SAMPLES`
    digests: pa.StringArray  # of each of the files; null where it can't be read
    bad: tuple[Rejected, ...]
    stacks: dict[str, int]  # path -> rows, of good stacks


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    digest: str | None = None  # hex SHA-256
    size: int = 0  # bytes
    width: int = 0
    height: int = 0
    stack: Stack | None = None
    rows: Rows | None = None
    reason: str | None = None  # why it is quarantined


def look(data: Path, files: pa.Table, known: pa.StringArray, memory: Path, max_pixels: int) -> Content:
    """Finds the samples in `files`.

    Args:
        files: as `digests.scan` gives them.
        known: the digest of each file, where it is known; null: the file is read.
        memory: folder of what is known of contents, see `verified`.
        max_pixels: limit on width × height of an image.
    """
    images = verified.images(memory)
    at = pc.index_in(known, images["digest"].combine_chunks())
    width, height = (images[side].combine_chunks().take(at).fill_null(0) for side in ("width", "height"))
    pixels = width.to_numpy().astype(np.int64) * height.to_numpy()
    # A known image above the limit is decoded all the same, for the reason in its words.
    fits = pa.array((pixels > 0) & (pixels <= max_pixels))
    columns = [files["path"].combine_chunks(), known, files["size"].combine_chunks(), width, height]
    samples = [pa.table(columns, schema=SAMPLES).filter(fits)]
    left = pc.indices_nonzero(pc.invert(fits))
    if not len(left):
        return Content(samples[0], known, (), {})

    sizes = dict(zip(images["digest"].to_pylist(), _pairs(images["width"], images["height"]), strict=True))
    jobs = list(zip(files["path"].take(left).to_pylist(), known.take(left).to_pylist(), strict=True))
    read = _read_all(data, jobs, sizes, memory, max_pixels)
    good = [file for file in read if file.reason is None and file.rows is None]
    samples.append(_table(SAMPLES, [(f.path, f.digest, f.size, f.width, f.height) for f in good]))
    samples += [_rows_table(file.path, file.rows) for file in read if file.rows is not None]
    fresh = {f.digest: (f.digest, f.width, f.height) for f in good if f.digest not in sizes}
    verified.remember_images(memory, _table(verified.SIZES, sorted(fresh.values())))
    digests = np.array(known.to_pylist(), dtype=object)
    digests[left.to_numpy()] = [file.digest for file in read]
    return Content(
        pa.concat_tables(samples),
        pa.array(digests, pa.string()),
        tuple(Rejected(path=file.path, reason=file.reason) for file in read if file.reason is not None),
        {file.path: file.rows.shape[0] for file in read if file.rows is not None},
    )


def _pairs(width: pa.ChunkedArray, height: pa.ChunkedArray) -> Iterator[tuple[int, int]]:
    return zip(width.to_pylist(), height.to_pylist(), strict=True)


def _table(schema: pa.Schema, rows: Sequence[tuple[object, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema)


def _rows_table(path: str, rows: Rows) -> pa.Table:
    count, height, width, channels = rows.shape
    numbers = pa.array(np.arange(count)).cast(pa.string())
    hex_digests = rows.digests.hex().encode()
    length = len(hex_digests) // count
    digests = pa.array(np.frombuffer(hex_digests, f"S{length}").astype(str), pa.string())
    sides = [pa.repeat(pa.scalar(value, pa.int32()), count) for value in (width, height)]
    size = pa.repeat(pa.scalar(height * width * channels, pa.int64()), count)
    paths = pc.binary_join_element_wise(pa.scalar(path), numbers, "#")
    return pa.table([paths, digests, size, *sides], schema=SAMPLES)


def _read_all(
    data: Path, jobs: Sequence[tuple[str, str | None]], sizes: Sizes, memory: Path, max_pixels: int
) -> list[_File]:
    """Reads files, each given by its path and what is known of its digest."""

    def read_some(some: Sequence[tuple[str, str | None]]) -> list[_File]:
        return [
            _known_stack(path, digest, memory, max_pixels) or _read(data, path, sizes, max_pixels)
            for path, digest in some
        ]

    batches = [jobs[start : start + _BATCH] for start in range(0, len(jobs), _BATCH)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # reading, hashing and decoding leave the GIL
        files = [file for some in pool.map(read_some, batches) for file in some]
        return [_hashed(file, pool, memory) if file.stack is not None else file for file in files]


def _known_stack(path: str, digest: str | None, memory: Path, max_pixels: int) -> _File | None:
    if digest is None or not path.lower().endswith(SUFFIX):
        return None
    rows = verified.stack_rows(memory, digest)
    if rows is None or rows.shape[1] * rows.shape[2] > max_pixels:
        return None
    return _File(path, digest, rows=rows)


def _read(data: Path, path: str, sizes: Sizes, max_pixels: int) -> _File:
    if split_path(path)[1] is not None:
        return _File(path, reason="the name reads as a row of a stack; rename the file")
    file = data / path
    digest = None
    try:
        if is_stack(file):
            return _File(path, stack=check_stack(file, max_pixels))
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        width, height = sizes.get(digest, (0, 0))
        if not 0 < width * height <= max_pixels:
            width, height = decode(content, max_pixels).size
    except OSError as error:
        return _File(path, reason=f"can't be read ({error.strerror})")
    except BadImage as error:
        return _File(path, digest, reason=str(error))
    return _File(path, digest, len(content), width, height)


def _hashed(file: _File, pool: Executor, memory: Path) -> _File:
    """A stack with the digests of its rows."""
    stack = file.stack
    assert stack is not None
    step = max(1, _ROW_BYTES // stack.row_bytes)
    starts = range(0, stack.rows, step)
    stops = [min(start + step, stack.rows) for start in starts]
    try:
        rows = Rows(stack.shape, b"".join(pool.map(stack.digests, starts, stops)))
    except OSError as error:
        return replace(file, reason=f"can't be read ({error.strerror})")
    except BadImage as error:
        return replace(file, reason=str(error))
    verified.remember_stack(memory, rows)
    return replace(file, digest=rows.digest, rows=rows)
