"""From the bytes of an image file to a uint8 tensor, by the quickest decoder that gives exactly the
pixels of `tasks.data.image.decode`.

torchvision decodes plain JPEG and WebP files: one C++ call without the GIL, straight into the
tensor. PIL decodes everything else; also PNG, since a damaged one, even one that PIL accepts, kills
the process in torchvision 0.29. Which of them is decided by the header's bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, decode_webp

from tasks.data.image import decode

# Tables and a comment.
_JPEG_PLAIN = frozenset(b"\xc4\xdb\xdd\xfe")


@dataclass(frozen=True)
class _Header:
    """A file that torchvision decodes exactly as PIL does."""

    decoder: Callable[..., Tensor]
    width: int  # as stored, before the orientation is applied
    height: int
    orientation: int = 1  # EXIF, 1 to 8


def pixels(content: bytes, max_pixels: int) -> Tensor:
    """The first frame of an image file as upright RGB: uint8 [3, H, W], channels last in memory.

    The pixels are those of `tasks.data.image.decode`, bit for bit. The verdict on a file is not: it
    must have passed the audit, since torchvision accepts some damaged files that PIL refuses. For
    files that were not audited (the served model's), use `from_image(decode(...))`.

    Args:
        content: the file's bytes.
        max_pixels: limit on width × height, checked before any pixel is decoded.

    Raises:
        BadImage: empty, no image, too large or (in most cases) damaged.
    """
    header = _header(content)
    if header is None or header.width * header.height > max_pixels:
        return from_image(decode(content, max_pixels))  # which refuses what is too large
    try:
        # A copy: a tensor can't lie on memory that is read-only.
        image = header.decoder(
            torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB
        )
    except (RuntimeError, ValueError):
        return from_image(decode(content, max_pixels))
    if image.shape != (3, header.height, header.width):
        return from_image(decode(content, max_pixels))
    return _upright(image.permute(1, 2, 0), header.orientation).permute(2, 0, 1)


def from_image(image: Image.Image) -> Tensor:
    """An RGB image as uint8 [3, H, W], channels last in memory."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _upright(image: Tensor, orientation: int) -> Tensor:
    """[H, W, 3] as stored to [H, W, 3] as it must be seen."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(0, 1)
    flips = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}.get(orientation, ())
    return image.flip(flips).contiguous() if flips else image.contiguous()


def _header(content: bytes) -> _Header | None:
    """What the header says, or None: to be decoded by PIL."""
    try:
        if content.startswith(b"\xff\xd8"):
            return _jpeg(content)
        if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
            return _webp(content)
    except IndexError:  # ended too early
        pass
    return None


def _jpeg(content: bytes) -> _Header | None:
    """Baseline and progressive files of 8 bits with one component or three."""
    at, frame, exif, xmp = 2, b"", b"", False
    while True:
        kind, length = content[at + 1], _big(content, at + 2, 2)
        segment = content[at + 4 : at + 2 + length]
        if content[at] != 0xFF:
            return None
        if kind == 0xDA:  # start of scan
            break
        if kind in (0xC0, 0xC1, 0xC2) and not frame:  # start of frame, Huffman coded
            frame = segment
        elif kind == 0xE1 and segment.startswith(b"Exif"):
            if exif:  # in pieces
                return None
            exif = segment
        elif kind == 0xE1:
            xmp = xmp or b"tiff:Orientation" in segment
        elif kind == 0xE2 and segment.startswith(b"MPF\0"):
            return None  # several images
        elif not 0xE0 <= kind <= 0xEF and kind not in _JPEG_PLAIN:
            return None
        at += 2 + length
    orientation = _orientation(exif, xmp)
    if orientation is None or frame[0] != 8 or frame[5] not in (1, 3):
        return None
    return _Header(decode_jpeg, _big(frame, 3, 2), _big(frame, 1, 2), orientation)


def _orientation(exif: bytes, xmp: bool) -> int | None:
    """None where PIL must say: EXIF damaged, or the orientation in XMP alone."""
    tags = Image.Exif()
    try:
        if exif:
            tags.load(exif)
        value = tags.get(ExifTags.Base.Orientation, None if xmp else 1)
    except Exception:  # PIL meets damaged EXIF with many types of error
        return None
    return value if isinstance(value, int) else None


def _webp(content: bytes) -> _Header | None:
    """Simple files, lossy or lossless, without alpha, metadata or animation."""
    if content[12:16] == b"VP8 " and content[23:26] == b"\x9d\x01\x2a":
        return _Header(decode_webp, _little(content, 26, 2) & 0x3FFF, _little(content, 28, 2) & 0x3FFF)
    if content[12:16] == b"VP8L" and content[20] == 0x2F:
        bits = _little(content, 21, 4)
        if not bits >> 28 & 1:  # alpha is used
            return _Header(decode_webp, (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    return None


def _big(content: bytes, at: int, size: int) -> int:
    return int.from_bytes(content[at : at + size], "big")


def _little(content: bytes, at: int, size: int) -> int:
    return int.from_bytes(content[at : at + size], "little")
