"""Small grey pictures of the samples, made once for each content and kept in a cache of their own."""

import importlib.metadata
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.data.image import DECODER, BadImage, decode
from tasks.data.stack import check_stack, split_path
from tasks.embedding.cache import EmbeddingCache
from tasks.errors import DataError
from tasks.records import digest_of

SIDE = 16  # px
_VERSION = 1  # raise it when the code computes others than before
_BATCH = 4_096  # samples that go to the cache at a time
_LEAST = 8  # px of a part: in less there is no detail
_GREY = (0.299, 0.587, 0.114)  # of R, G and B


def thumbnails(
    data: Path,
    files: Mapping[str, str],
    root: Path,
    share: float = 1.0,
    height: float = 0.5,
) -> NDArray[np.uint8]:
    """The thumbnails [N, 16, 16] of `files`; only those that the cache lacks are decoded.

    Args:
        data: folder that the paths are relative to.
        files: digest -> path.
        root: folder of the cache, 1 KB for each content.
        share: of the width and of the height that is looked at. Where less than 8 px are left, the
            thumbnail is black.
        height: at which the middle of that part is, from 0 (above) to 1; its sides are alike.

    Raises:
        DataError: a file vanished or changed since the manifest was made.
    """
    digests = list(files)
    version = importlib.metadata.version("pillow")
    part = (
        () if share == 1 else (share, height)
    )  # those of the whole have their name from before there were others
    name = digest_of("thumbnail", _VERSION, SIDE, DECODER, version, *part)
    cache = EmbeddingCache(root, name, SIDE * SIDE)
    lacking = sorted(cache.missing(digests), key=lambda digest: _place(files[digest]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # reading and decoding leave the GIL
        for start in range(0, len(lacking), _BATCH):
            some = lacking[start : start + _BATCH]
            step = -(-len(some) // (os.cpu_count() or 1))
            parts = [some[at : at + step] for at in range(0, len(some), step)]
            made = pool.map(
                lambda part: _made(data, [files[digest] for digest in part], share, height), parts
            )
            cache.append(some, np.concatenate(list(made)))
    out = np.empty((len(digests), SIDE, SIDE), dtype=np.uint8)
    for start in range(0, len(digests), _BATCH):
        found = cache.gather(digests[start : start + _BATCH])
        out[start : start + len(found)] = np.rint(found).reshape(-1, SIDE, SIDE)
    return out


def image_of(data: Path, path: str) -> Image.Image:
    """A sample as an RGB image; `path` may name a row of a stack.

    Raises:
        DataError: the file vanished or changed since the manifest was made.
    """
    file, row = split_path(path)
    try:
        # Its size was checked by the audit of the files.
        if row is None:
            return decode((data / file).read_bytes(), sys.maxsize)
        pixels = check_stack(data / file, sys.maxsize).read([row])[0]  # [H, W, C]
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    except (BadImage, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{data / file}: can't be read any more ({why}); the data changed: run again"
        ) from None


def _made(data: Path, paths: Sequence[str], share: float, height: float) -> NDArray[np.float32]:
    """[len(paths), 256]; one image is in memory at a time."""
    return np.stack([_thumbnail(image_of(data, path), share, height) for path in paths])


def _thumbnail(image: Image.Image, share: float, height: float) -> NDArray[np.float32]:
    if share == 1:
        seen = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    elif min(image.size) * share < _LEAST:
        return np.zeros(SIDE * SIDE, dtype=np.float32)
    else:
        # Fractions of a pixel count, else a part of a copy of another size would not be the same; for
        # which a box filter is too coarse (noise at 3/5 of the size correlates by .87, so by .99).
        left, top = (1 - share) / 2 * image.width, (height - share / 2) * image.height
        box = (left, top, left + share * image.width, top + share * image.height)
        seen = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box)
    small = np.asarray(seen, dtype=np.float32)  # [16, 16, 3]
    grey: NDArray[np.float32] = (small @ np.array(_GREY, dtype=np.float32)).reshape(-1)
    return grey


def _place(path: str) -> tuple[str, int]:
    """Where a sample lies: images of a stack side by side."""
    file, row = split_path(path)
    return file, row or 0
