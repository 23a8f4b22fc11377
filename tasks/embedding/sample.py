"""What a sample is on the disk: an image file or a row of a stack, read, and refused where it is not
what the manifest was made of."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from tasks.data.image import BadImage
from tasks.data.stack import Stack, check_stack, row_digests
from tasks.embedding.decode import pixels
from tasks.errors import DataError


@dataclass(frozen=True, slots=True)
class Sample:
    """An image file, or a row of a stack of images, and the digest that it had when the manifest
    was made."""

    digest: str
    file: Path
    row: int | None = None


def decoded(sample: Sample, max_pixels: int) -> Tensor:
    """A sample's image, uint8 [3, H, W]; a row of a grey stack is [1, H, W].

    Raises:
        DataError: the file vanished or changed since the manifest was made.
        BadImage: a file that the audit passed can't be decoded.
    """
    if sample.row is None:
        return pixels(_content(sample), max_pixels)
    return rows([sample], [sample.row])[0]


def rows(samples: Sequence[Sample], numbers: Sequence[int]) -> Tensor:
    """Rows of one stack, uint8 [N, C, H, W]; grey ones have C = 1.

    Raises:
        DataError: the file vanished or changed since the manifest was made.
    """
    file = samples[0].file
    try:
        images = _stack(file).read(numbers)  # [N, H, W, C]
    except (OSError, BadImage) as error:
        raise DataError(f"{file}: changed during the run ({error}); run again") from None
    for sample, digest in zip(samples, row_digests(images), strict=True):
        _check(sample, digest)
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _content(sample: Sample) -> bytes:
    try:
        content = sample.file.read_bytes()
    except OSError as error:
        raise DataError(f"{sample.file}: vanished during the run ({error.strerror}); run again") from None
    _check(sample, hashlib.sha256(content).hexdigest())
    return content


@lru_cache(maxsize=64)
def _stack(file: Path) -> Stack:
    return check_stack(file, max_pixels=2**62)


def _check(sample: Sample, digest: str) -> None:
    if digest != sample.digest:
        raise DataError(f"{sample.file}: changed during the run; run again")
