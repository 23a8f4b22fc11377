"""Stacks of array images: a NumPy file (`x.npy`, uint8) with N images of one size, of which row 17
is the sample `x.npy#17`."""

import hashlib
import math
import re
import tokenize
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from tasks.data.image import BadImage, check_size

VERSION = "1"  # raise it when the verdict or the digests for any stack change
SUFFIX = ".npy"

_MAGIC = b"\x93NUMPY"
_CHUNK = 8 << 20  # bytes read at a time
# One way to write each row, so that a path parses back to the row that it was made from.
_ROW = re.compile(rf"(.+{re.escape(SUFFIX)})#(0|[1-9][0-9]{{0,17}})", re.DOTALL | re.IGNORECASE)
# What NumPy's parser of headers raises, depending on the damage.
_DAMAGE = (
    ValueError,
    SyntaxError,
    TypeError,
    OverflowError,
    MemoryError,
    RecursionError,
    tokenize.TokenError,
)


def split_path(path: str) -> tuple[str, int | None]:
    """The file of a sample and its row: `cat/x.npy#17` is row 17 of `cat/x.npy`. Every other path
    is a file with one sample (row None), whatever signs its name holds."""
    match = _ROW.fullmatch(path)
    return (match[1], int(match[2])) if match else (path, None)


def is_stack(file: Path) -> bool:
    """Whether a file is named and begins like a NumPy array; it may be a bad one all the same."""
    if file.suffix.lower() != SUFFIX:
        return False
    with file.open("rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


@dataclass(frozen=True)
class Stack:
    """The checked header of a stack."""

    file: Path
    offset: int  # bytes before the first row
    shape: tuple[int, int, int, int]  # N, H, W, C; C is 1 or 3

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:])

    def read(self, rows: Sequence[int]) -> NDArray[np.uint8]:
        """Some of the images, [len(rows), H, W, C].

        Raises:
            BadImage: there is no such row, or the file has become shorter.
            OSError: can't be read.
        """
        if max(rows) >= self.rows:
            raise BadImage(no_row(self.rows))
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        size = self.row_bytes
        with self.file.open("rb") as stream:
            at = 0
            while at < len(rows):
                end = at + 1
                while end < len(rows) and rows[end] == rows[end - 1] + 1:  # side by side: one read
                    end += 1
                stream.seek(self.offset + rows[at] * size)
                if stream.readinto(images[at:end].data.cast("B")) < (end - at) * size:
                    raise BadImage("truncated (became shorter while it was read)")
                at = end
        return images

    def digests(self, start: int, stop: int) -> bytes:
        """The digests (32 bytes each, see `row_digest`) of the rows from `start` to before `stop`.

        The rows are read, not mapped: a disk that fails then raises OSError and kills nothing.

        Raises:
            BadImage: the file has become shorter.
        """
        size, known = self.row_bytes, hashlib.sha256(_header(self.shape[1:]))
        per_chunk = max(1, _CHUNK // size)
        digests = []
        with self.file.open("rb") as stream:
            stream.seek(self.offset + start * size)
            for first in range(start, stop, per_chunk):
                wanted = (min(first + per_chunk, stop) - first) * size
                chunk = memoryview(stream.read(wanted))
                if len(chunk) < wanted:
                    raise BadImage("truncated (became shorter while it was read)")
                for at in range(0, wanted, size):
                    row = known.copy()
                    row.update(chunk[at : at + size])
                    digests.append(row.digest())
        return b"".join(digests)


@dataclass(frozen=True)
class Rows:
    """What is known of all rows of a stack."""

    shape: tuple[int, ...]  # N, H, W, C
    digests: bytes  # 32 for each row, see `row_digest`

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the stack."""
        return hashlib.sha256(self.pack()).hexdigest()

    def pack(self) -> bytes:
        return _header(self.shape) + self.digests

    @classmethod
    def unpack(cls, content: bytes) -> Self:
        """What was packed."""
        header, _, digests = content.partition(b"\n")
        return cls(tuple(int(length) for length in header.rsplit(b" ", 1)[1].split(b"x")), digests)


def check_stack(file: Path, max_pixels: int) -> Stack:
    """Reads the header of a stack and checks it against the file; no pixel is read.

    Args:
        max_pixels: limit on width × height of an image.

    Raises:
        BadImage: not a NumPy file, not uint8, not of the shape [N, H, W], [N, H, W, 1] or
            [N, H, W, 3], in Fortran order, too large, or the file is shorter or longer than its
            header says.
        OSError: can't be read.
    """
    with file.open("rb") as stream:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of headers that Python 2 wrote
                read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
                shape, fortran, dtype = read[npy.read_magic(stream)](stream)
        except KeyError:
            raise BadImage("a NumPy file for structured arrays; uint8 is needed") from None
        except _DAMAGE as error:
            reason = "truncated" if "EOF" in str(error) else "damaged"
            raise BadImage(f"{reason} (not the header of a NumPy file)") from None
        offset = stream.tell()
        has = stream.seek(0, 2) - offset
    if dtype != np.dtype(np.uint8):
        raise BadImage(f"array of {'Python objects' if dtype.hasobject else dtype}; uint8 is needed")
    of_images = _images(shape)
    if fortran and not _same_in_both_orders(shape):
        raise BadImage("array in Fortran order; save np.ascontiguousarray of it")
    check_size(of_images[2], of_images[1], max_pixels)
    needs = math.prod(of_images)
    if has != needs:
        how = "truncated" if has < needs else "damaged"
        raise BadImage(f"{how} ({has:,} bytes of pixels, the header says {needs:,})")
    return Stack(file, offset, of_images)


def row_digest(row: NDArray[np.uint8]) -> str:
    """Hex SHA-256 over a header with the shape, and the pixels of an image [H, W, C]."""
    return row_digests(row[None])[0]


def row_digests(images: NDArray[np.uint8]) -> list[str]:
    """`row_digest` of each of [N, H, W, C]."""
    known = hashlib.sha256(_header(images.shape[1:]))
    content, size = np.ascontiguousarray(images).reshape(-1).data, math.prod(images.shape[1:])
    digests = []
    for at in range(0, len(content), size):
        row = known.copy()
        row.update(content[at : at + size])
        digests.append(row.hexdigest())
    return digests


def no_row(rows: int) -> str:
    """Why a row beyond the last can't be used."""
    return f"no such row; the stack has {rows:,} (from 0)"


def _header(shape: tuple[int, ...]) -> bytes:
    return f"regraft stack {VERSION} uint8 {'x'.join(map(str, shape))}\n".encode()


def _images(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    said = " × ".join(map(str, shape)) or "none"
    if len(shape) == 3 and shape[2] in (1, 3, 4):
        raise BadImage(f"shape {said} is that of one image; save it as [1, H, W, C]")
    if len(shape) == 3:
        shape = (*shape, 1)
    if len(shape) != 4 or shape[3] not in (1, 3):
        raise BadImage(f"shape {said}; [N, H, W], [N, H, W, 1] or [N, H, W, 3] is needed")
    if min(shape) < 1:
        raise BadImage(f"no pixels (shape {said})")
    rows, height, width, channels = (int(length) for length in shape)
    return rows, height, width, channels


def _same_in_both_orders(shape: tuple[int, ...]) -> bool:
    return sum(length != 1 for length in shape) <= 1
