import io
import random

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from tasks.data.image import FORMATS, BadImage
from tasks.data.image import decode as reference
from tasks.embedding import decode
from tasks.embedding.decode import from_image, pixels

LIMIT = 50_000_000
SIZES = [(1, 1), (1, 9), (17, 1), (33, 47), (64, 64)]  # width, height


def picture(mode: str = "RGB", size: tuple[int, int] = (33, 47)) -> Image.Image:
    """Smooth colours with noise: every block of a JPEG differs."""
    chance = np.random.default_rng(0)
    rgb = Image.fromarray(chance.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(size)
    noise = chance.integers(0, 40, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(np.asarray(rgb) // 2 + noise).convert(mode)


def stored(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif[0x0112] = orientation
    return exif


def expected(content: bytes) -> Tensor:
    return torch.from_numpy(np.array(reference(content, LIMIT))).permute(2, 0, 1)


def with_xmp(orientation: int, **options: object) -> bytes:
    xmp = b'<rdf:Description tiff:Orientation="%d"/>' % orientation
    return stored(picture(), "JPEG", xmp=xmp, **options)


def with_sampling(subsampling: str, factors: int) -> bytes:
    """A JPEG of 64 × 64 whose luma has other sampling factors with as many blocks in a unit; its
    pixels are shuffled, but it is a valid file."""
    content = stored(picture(size=(64, 64)), "JPEG", subsampling=subsampling)
    frame = content.index(b"\xff\xc0")
    return content[: frame + 11] + bytes([factors]) + content[frame + 12 :]


QUICK = {
    **{f"JPEG {mode} {size}": stored(picture(mode, size), "JPEG") for mode in ("L", "RGB") for size in SIZES},
    **{f"JPEG {s}": stored(picture(), "JPEG", subsampling=s) for s in ("4:4:4", "4:2:2", "4:2:0")},
    "JPEG 4:4:0": with_sampling("4:2:2", 0x12),
    "JPEG 4:1:1": with_sampling("4:2:0", 0x41),
    "JPEG progressive": stored(picture(), "JPEG", progressive=True),
    "JPEG quality 5": stored(picture(), "JPEG", quality=5),
    "JPEG quality 100": stored(picture(), "JPEG", quality=100, optimize=True),
    "JPEG in RGB": stored(picture(), "JPEG", keep_rgb=True),
    "JPEG with restarts": stored(picture(), "JPEG", restart_marker_blocks=2),
    "JPEG with a profile": stored(picture(), "JPEG", icc_profile=bytes(70_000)),
    "JPEG with a comment": stored(picture(), "JPEG", comment="a"),
    "JPEG with EXIF and XMP": with_xmp(8, exif=turned(6)),
    **{f"JPEG turned {o}": stored(picture(), "JPEG", exif=turned(o)) for o in range(10)},
    **{f"JPEG L turned {o}": stored(picture("L"), "JPEG", exif=turned(o)) for o in (5, 6)},
    **{f"WEBP {size}": stored(picture(size=size), "WEBP", quality=80) for size in SIZES},
    **{f"WEBP lossless {size}": stored(picture(size=size), "WEBP", lossless=True) for size in SIZES},
}


def animated(kind: str) -> bytes:
    other = Image.new("RGB", (33, 47), (1, 2, 3))
    return stored(picture(), kind, save_all=True, append_images=[other])


def text(key: str, value: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text(key, value)
    return info


BY_PIL = {
    **{
        f"{kind} {mode} {size}": stored(picture(mode, size), kind)
        for kind in ("PNG", "BMP", "GIF", "TIFF", "PPM")
        for mode in ("L", "RGB")
        for size in SIZES
    },
    **{f"TIFF turned {o}": stored(picture(), "TIFF", exif=turned(o)) for o in range(1, 9)},
    **{f"PNG turned {o}": stored(picture(), "PNG", exif=turned(o)) for o in range(1, 9)},
    **{f"WEBP turned {o}": stored(picture(), "WEBP", exif=turned(o)) for o in range(1, 9)},
    "JPEG CMYK": stored(picture("CMYK"), "JPEG"),
    "JPEG turned by XMP": with_xmp(6),
    "JPEG turned by XMP, other EXIF": with_xmp(6, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"),
    "JPEG with damaged EXIF": stored(picture(), "JPEG", exif=b"Exif\0\0broken"),
    "JPEG of several images": stored(picture(), "MPO", save_all=True, append_images=[picture("L")]),
    "PNG RGBA": stored(picture("RGBA"), "PNG"),
    "PNG LA": stored(picture("LA"), "PNG"),
    "PNG palette": stored(picture("P"), "PNG"),
    "PNG palette, transparent": stored(picture("P"), "PNG", transparency=3),
    "PNG 1 bit": stored(picture("1"), "PNG"),
    "PNG 16 bits": stored(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100), "PNG"),
    "PNG with a colour key": stored(Image.new("RGB", (3, 2), (5, 6, 7)), "PNG", transparency=(5, 6, 7)),
    "PNG with a key for grey": stored(Image.new("L", (3, 2), 9), "PNG", transparency=9),
    "PNG turned by XMP": stored(picture(), "PNG", pnginfo=text("XML:com.adobe.xmp", 'tiff:Orientation="6"')),
    "PNG animated": animated("PNG"),
    "WEBP with alpha": stored(Image.new("RGBA", (9, 9), (9, 80, 3, 40)), "WEBP"),
    "WEBP lossless with alpha": stored(Image.new("RGBA", (9, 9), (9, 80, 3, 40)), "WEBP", lossless=True),
    "WEBP animated": animated("WEBP"),
    "GIF animated": animated("GIF"),
}


def refuse(*_: object, **__: object) -> Tensor:
    raise AssertionError("the other decoder was used")


@pytest.mark.parametrize("content", QUICK.values(), ids=QUICK)
def test_pixels__of_plain_files_are_pils_without_pil(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = expected(content)
    monkeypatch.setattr(decode, "decode", refuse)
    image = pixels(content, LIMIT)
    assert image.dtype == torch.uint8
    assert torch.equal(image, wanted)
    assert image.permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize("content", BY_PIL.values(), ids=BY_PIL)
def test_pixels__of_all_other_files_are_pils_by_pil(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("decode_jpeg", "decode_webp"):
        monkeypatch.setattr(decode, name, refuse)
    image = pixels(content, LIMIT)
    assert torch.equal(image, expected(content))
    assert image.permute(1, 2, 0).is_contiguous()


def test_pixels__every_format_of_the_audit_is_tested() -> None:
    assert {name.split()[0] for name in (*QUICK, *BY_PIL)} == set(FORMATS)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_pixels__too_many_are_refused_before_they_are_decoded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = stored(Image.new("RGB", (20, 10)), kind)
    assert pixels(content, 200).shape == (3, 10, 20)
    for name in ("decode_jpeg", "decode_webp"):
        monkeypatch.setattr(decode, name, refuse)
    with pytest.raises(BadImage, match="too large: 200 pixels, limit 199 pixels"):
        pixels(content, 199)


@pytest.mark.parametrize("wrong", [RuntimeError("damaged"), None])
def test_pixels__where_torchvision_fails_pil_says(
    wrong: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> Tensor:
        if wrong:
            raise wrong
        return torch.zeros((3, 1, 1), dtype=torch.uint8)  # of another size than the header's

    monkeypatch.setattr(decode, "decode_jpeg", fails)
    content = QUICK["JPEG turned 6"]
    assert torch.equal(pixels(content, LIMIT), expected(content))


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xd8", b"RIFF\0\0\0\0WEBP", b"text", QUICK["JPEG 4:2:0"][:60]],
)
def test_pixels__of_no_image_are_refused(content: bytes) -> None:
    with pytest.raises(BadImage):
        pixels(content, LIMIT)


@pytest.mark.parametrize(
    "name", ["JPEG turned 6", "JPEG progressive", "WEBP (33, 47)", "WEBP lossless (33, 47)"]
)
def test_pixels__of_a_damaged_header_are_an_image_or_refused(name: str) -> None:
    chance = random.Random(0)
    for _ in range(150):
        content = bytearray(QUICK[name])
        content[chance.randrange(min(len(content), 300))] = chance.randrange(256)
        try:
            image = pixels(bytes(content[: chance.choice((len(content), chance.randrange(300)))]), 10**6)
        except BadImage:
            continue
        assert image.dtype == torch.uint8
        assert image.ndim == 3


def test_from_image__is_the_image_channels_first() -> None:
    image = Image.new("RGB", (3, 2), (1, 2, 3))
    image.putpixel((2, 1), (7, 8, 9))
    tensor = from_image(image)
    assert tensor.shape == (3, 2, 3)
    assert tensor[:, 1, 2].tolist() == [7, 8, 9]
    assert tensor[:, 0, 0].tolist() == [1, 2, 3]
    tensor[0, 0, 0] = 99
    assert image.getpixel((0, 0)) == (1, 2, 3)  # no shared memory
