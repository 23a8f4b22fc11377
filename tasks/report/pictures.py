"""Pictures that travel within the page: as `data:` addresses, so that it needs no network and no file."""

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.data.image import BadImage, decode
from tasks.data.stack import check_stack, no_row, split_path

SIDE = 240  # px of a sample's longer side
GREATEST_SIDE = 2400  # px of a picture; a larger one is made smaller
GREATEST_BYTES = 1_500_000  # of a PNG; a larger one goes in as JPEG
UNLIMITED = 1 << 62  # pixels: the audit has checked the images of a manifest


def png(file: Path) -> str | None:
    """A PNG file as an address; None where there is none, or none that can be read."""
    try:
        content = file.read_bytes()
        with Image.open(BytesIO(content), formats=("PNG",)) as image:
            image.load()
            if max(image.size) <= GREATEST_SIDE and len(content) <= GREATEST_BYTES:
                return _address(content, "png")
            smaller = image.convert("RGB")
    except (OSError, SyntaxError, ValueError):
        return None
    smaller.thumbnail((GREATEST_SIDE, GREATEST_SIDE), Image.Resampling.LANCZOS)
    return _address(_jpeg(smaller, quality=85), "jpeg")


def sample(data: Path, path: str) -> str | None:
    """A sample of the dataset as a small picture; None where it can't be shown.

    Args:
        data: the folder of the dataset's files.
        path: of the sample below it, as in the manifest (`x.npy#17` is row 17 of a stack).
    """
    name, row = split_path(path)
    try:
        file = (data / name).resolve(strict=True)
        if not file.is_relative_to(data.resolve()):  # the data names its files, and only those
            return None
        image = decode(file.read_bytes(), UNLIMITED) if row is None else _of_stack(file, row)
    except (OSError, ValueError):
        return None
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return _address(_jpeg(small, quality=90), "jpeg")


def _of_stack(file: Path, row: int) -> Image.Image:
    stack = check_stack(file, UNLIMITED)
    if row >= stack.rows:
        raise BadImage(no_row(stack.rows))
    pixels = stack.read([row])[0]  # [H, W, C]
    return Image.fromarray(np.squeeze(pixels, axis=2) if pixels.shape[2] == 1 else pixels).convert("RGB")


def _jpeg(image: Image.Image, quality: int) -> bytes:
    content = BytesIO()
    image.save(content, "JPEG", quality=quality)
    return content.getvalue()


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
