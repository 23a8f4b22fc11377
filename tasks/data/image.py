"""From the bytes of an image file to 8-bit RGB: one decoder for the audit, the embedding and the
served model, so that all three see the same pixels."""

import struct
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import (
    ExifTags,
    Image,
    TiffImagePlugin,  # noqa: F401  # importing registers a format; else the first file registers all
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

DECODER = "1"  # raise it when the verdict or the pixels for any file change
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")

# PIL's own check warns or raises at a fixed number of pixels when a file is opened, before ours
# could name the limit; `decode` checks each image against `max_pixels` before any pixel is read.
Image.MAX_IMAGE_PIXELS = None

_WHITE = (255, 255, 255)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF tags


class BadImage(ValueError):  # noqa: N818  # it is the image that is bad, not the program
    """The file is not an image that can be used; the text is a short reason."""


def decode(content: bytes, max_pixels: int) -> Image.Image:
    """The first frame of an image file as upright 8-bit RGB.

    Transparency is composited on white; 16-bit grey is divided by 257 and rounded; float pixels
    must lie in 0–1 and are multiplied by 255; CMYK is inverted only where an Adobe marker says
    that it is stored inverted.

    Args:
        content: the file's bytes (JPEG, PNG, BMP, GIF, TIFF, WebP or PPM).
        max_pixels: limit on width × height, checked before any pixel is decoded.

    Raises:
        BadImage: empty, no image, truncated, damaged, too large, or of an unusable pixel type.
    """
    if not content:
        raise BadImage("empty file")
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            check_size(image.width, image.height, max_pixels)
            image.load()
            if image.format == "PNG" and b"IEND" not in content:  # PIL is content with the pixels
                raise BadImage("truncated (no end marker)")
            return _upright_rgb(image)
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(f"not an image ({len(content):,} bytes)") from None
    except MemoryError:
        raise BadImage("too large for the memory of this machine") from None
    # PIL's decoders signal damage by all of these, depending on the format and the place.
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
        RuntimeError,
        AttributeError,
        ZeroDivisionError,
    ) as error:
        raise BadImage(_damage(error)) from None


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuses an image without pixels, or with more than `max_pixels` (BadImage)."""
    pixels = width * height
    if pixels <= 0:
        raise BadImage(f"no pixels ({width} × {height})")
    if pixels > max_pixels:
        raise BadImage(f"too large: {_amount(pixels)}, limit {_amount(max_pixels)}")


def _amount(pixels: int) -> str:
    if pixels < 1_000_000:
        return f"{pixels:,} pixels"
    return f"{pixels / 1e6:.3g} megapixels" if pixels < 1e9 else f"{pixels / 1e6:,.0f} megapixels"


def _damage(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    lower = text.lower()
    if any(sign in lower for sign in ("truncated", "reached eof", "not enough image data")):
        return f"truncated ({text})"
    return f"damaged ({text})"


def _upright_rgb(image: Image.Image) -> Image.Image:
    orientation = _orientation(image)
    rgb = _rgb(image)
    if orientation in _UPRIGHT:
        return rgb.transpose(_UPRIGHT[orientation])
    return rgb if rgb is not image else image.copy()


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8. PIL has already turned TIFFs when it loaded them."""
    if image.format == "TIFF":
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF, which PIL meets with many types of error: the pixels are good
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode.startswith("I"):
        return _rgb_from_integers(image)
    if mode == "F":
        return _rgb_from_floats(image)
    if mode == "CMYK":
        return _rgb_from_cmyk(image)
    if "transparency" in image.info or mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return _on_white(image)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # PIL converts premultiplied grey to LA alone
        image = image.convert("LA")
    transparent = image.convert("RGBA")
    paper = Image.new("RGBA", image.size, (*_WHITE, 255))
    return Image.alpha_composite(paper, transparent).convert("RGB")


def _rgb_from_integers(image: Image.Image) -> Image.Image:
    """Grey with 16 bits (modes I;16 and I) to 8 bits; 12-bit TIFFs use their own range."""
    values = np.asarray(image).astype(np.int64)  # [H, W]
    full = 65_535
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        if tags.get(_BITS_PER_SAMPLE) == (12,):
            full = 4_095
        if tags.get(_PHOTOMETRIC) == 0:  # white is zero; PIL inverts only 8 bits and fewer
            values = full - values
    if values.min() < 0 or values.max() > full:
        raise BadImage(f"integer pixels outside 0–{full:,}")
    grey = ((values * 255 + full // 2) // full).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    return _rgb_from_grey(grey)


def _rgb_from_floats(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float32)  # [H, W]
    if not (values.min() >= 0 and values.max() <= 1):  # NaN fails both
        raise BadImage("float pixels outside 0–1")
    return _rgb_from_grey(np.rint(values * 255).astype(np.uint8))


def _rgb_from_grey(grey: npt.NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(grey).convert("RGB")


def _rgb_from_cmyk(image: Image.Image) -> Image.Image:
    """PIL takes every CMYK JPEG for Adobe's inverted kind; those without the marker are not."""
    if image.format == "JPEG" and "adobe" not in image.info:
        image = Image.fromarray(255 - np.asarray(image), mode="CMYK")
    return image.convert("RGB")
