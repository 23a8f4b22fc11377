import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tasks.data.image import BadImage, decode

LIMIT = 50_000_000


def stored(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(content: bytes) -> list[tuple[int, int, int]]:
    image = decode(content, LIMIT)
    assert image.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


def reason(content: bytes, limit: int = LIMIT) -> str:
    with pytest.raises(BadImage) as caught:
        decode(content, limit)
    return str(caught.value)


def test_image__rgb_and_grey_keep_their_values() -> None:
    colour = Image.new("RGB", (2, 1))
    colour.putpixel((0, 0), (1, 2, 3))
    colour.putpixel((1, 0), (250, 128, 0))
    assert pixels(stored(colour)) == [(1, 2, 3), (250, 128, 0)]
    assert pixels(stored(colour, "BMP")) == [(1, 2, 3), (250, 128, 0)]
    assert pixels(stored(colour, "PPM")) == [(1, 2, 3), (250, 128, 0)]
    assert pixels(stored(colour, "TIFF")) == [(1, 2, 3), (250, 128, 0)]
    assert pixels(stored(colour, "WEBP", lossless=True)) == [(1, 2, 3), (250, 128, 0)]
    assert pixels(stored(Image.new("L", (1, 1), 77))) == [(77, 77, 77)]


def test_image__one_bit_is_black_and_white() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert pixels(stored(image)) == [(0, 0, 0), (255, 255, 255)]


def test_image__palette_gives_its_colours_and_its_transparent_index_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert pixels(stored(image)) == [(10, 20, 30), (200, 100, 50)]
    assert pixels(stored(image, transparency=0)) == [(255, 255, 255), (200, 100, 50)]
    assert pixels(stored(image, "GIF", transparency=1))[1] == (255, 255, 255)


def test_image__palette_with_partial_transparency_is_composited() -> None:
    image = Image.new("P", (1, 1))
    image.putpalette([0, 0, 0])
    # alpha 51 of 255 = a fifth of black on white: 255 × 4/5 = 204
    assert pixels(stored(image, transparency=b"\x33")) == [(204, 204, 204)]


def test_image__alpha_is_composited_on_white() -> None:
    # 255 × (1 − 51/255) = 204 from the paper, 100 × 51/255 = 20 from the image
    assert pixels(stored(Image.new("RGBA", (1, 1), (100, 0, 0, 51)))) == [(224, 204, 204)]
    assert pixels(stored(Image.new("LA", (1, 1), (100, 51)))) == [(224, 224, 224)]
    assert pixels(stored(Image.new("RGBA", (1, 1), (9, 9, 9, 0)))) == [(255, 255, 255)]


def test_image__colour_key_of_rgb_and_grey_becomes_white() -> None:
    assert pixels(stored(Image.new("RGB", (1, 1), (5, 6, 7)), transparency=(5, 6, 7))) == [(255, 255, 255)]
    assert pixels(stored(Image.new("L", (1, 1), 9), transparency=9)) == [(255, 255, 255)]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_image__16_bit_grey_is_divided_by_257(kind: str) -> None:
    values = np.array([[0, 257, 32_896, 65_535]], dtype=np.uint16)
    # 32,896 / 257 = 128; clipping would give 255
    expected = [(0,) * 3, (1,) * 3, (128,) * 3, (255,) * 3]
    assert pixels(stored(Image.fromarray(values), kind)) == expected


def test_image__16_bit_grey_with_the_bytes_of_a_big_endian_tiff() -> None:
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 514, 65_535))
    assert pixels(stored(image, "TIFF")) == [(2, 2, 2), (255, 255, 255)]


def test_image__integers_beyond_16_bits_are_refused() -> None:
    assert reason(stored(Image.new("I", (1, 1), 70_000), "TIFF")) == "integer pixels outside 0–65,535"


def test_image__floats_from_0_to_1_are_scaled_and_others_refused() -> None:
    values = np.array([[0.0, 0.2, 1.0]], dtype=np.float32)
    assert pixels(stored(Image.fromarray(values), "TIFF")) == [(0,) * 3, (51,) * 3, (255,) * 3]
    assert reason(stored(Image.fromarray(values * 300), "TIFF")) == "float pixels outside 0–1"
    assert reason(stored(Image.fromarray(values * np.float32("nan")), "TIFF")) == "float pixels outside 0–1"


def without_adobe_marker(jpeg: bytes) -> bytes:
    start = jpeg.index(b"\xff\xee")
    length = int.from_bytes(jpeg[start + 2 : start + 4], "big")
    return jpeg[:start] + jpeg[start + 2 + length :]


def test_image__cmyk_jpeg_with_and_without_adobes_inversion() -> None:
    # No ink is white, full cyan is (0, 255, 255).
    white = stored(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG", quality=100)
    cyan = stored(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=100)
    assert b"Adobe" in white
    assert pixels(white)[0] == (255, 255, 255)
    assert np.allclose(pixels(cyan)[0], (0, 255, 255), atol=2)
    # The stored samples are 255 − ink. Without the marker they are ink: white reads as all inks.
    plain = without_adobe_marker(white)
    assert b"Adobe" not in plain
    assert pixels(plain)[0] == (0, 0, 0)


def test_image__ycck_jpeg() -> None:
    cmyk = stored(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG", quality=100)
    at = cmyk.index(b"Adobe") + 11
    ycck = cmyk[:at] + b"\x02" + cmyk[at + 1 :]
    # The samples are all 255: Y = 255, Cb = Cr = 255 decode to R = 255 + 1.402 × 127 → 255,
    # G = 255 − 0.344 × 127 − 0.714 × 127 = 121, B → 255; libjpeg gives C = 255 − R = 0, M = 134,
    # Y = 0, K = 255, and these are stored inverted: inks 255, 121, 255, 0 → R = 0, G = 134, B = 0.
    assert np.allclose(pixels(ycck)[0], (0, 134, 0), atol=2)


@pytest.mark.parametrize(
    ("orientation", "expected"),
    # The stored rows are "ab" over "cd"; what the viewer must see, row by row.
    [(1, "abcd"), (2, "badc"), (3, "dcba"), (4, "cdab"), (5, "acbd"), (6, "cadb"), (7, "dbca"), (8, "bdac")],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_image__exif_orientation_is_applied(orientation: int, expected: str, kind: str) -> None:
    shades = {"a": 10, "b": 80, "c": 160, "d": 240}
    image = Image.fromarray(np.array([[10, 80], [160, 240]], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert [pixel[0] for pixel in pixels(stored(image, kind, exif=exif))] == [shades[one] for one in expected]


def test_image__turned_image_has_its_upright_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(stored(Image.new("RGB", (30, 20)), "JPEG", exif=exif), LIMIT).size == (20, 30)


def test_image__damaged_exif_does_no_harm() -> None:
    content = stored(Image.new("RGB", (4, 4), (255, 255, 255)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert pixels(content)[0] == (255, 255, 255)


def test_image__first_frame_of_an_animation() -> None:
    red, blue = (Image.new("RGB", (2, 2), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    content = stored(red, "GIF", save_all=True, append_images=[blue])
    assert pixels(content)[0] == (255, 0, 0)


def test_image__empty_and_text_and_unlisted_formats_are_no_images() -> None:
    assert reason(b"") == "empty file"
    assert reason(b"not an image") == "not an image (12 bytes)"
    assert reason(stored(Image.new("RGB", (4, 4)), "ICO")).startswith("not an image (")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP", "PPM"])
def test_image__a_file_cut_off_anywhere_is_noticed(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    content = stored(noise, kind)
    for share in (0.02, 0.3, 0.6, 0.9):
        assert reason(content[: int(len(content) * share)])


def test_image__truncated_is_called_truncated() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind in ("JPEG", "PNG", "BMP"):
        content = stored(noise, kind)
        assert reason(content[: len(content) // 2]).startswith("truncated (")


def test_image__flipped_bytes_never_raise_anything_else() -> None:
    generator = np.random.default_rng(1)
    noise = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for kind in ("JPEG", "PNG", "BMP", "GIF", "WEBP", "PPM"):
        content = stored(noise, kind)
        for _ in range(150):
            damaged = bytearray(content)
            for place in generator.integers(0, len(content), 4):
                damaged[place] = generator.integers(0, 256)
            with contextlib.suppress(BadImage):
                decode(bytes(damaged), LIMIT)


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("error")
def test_image__too_many_pixels_are_refused_before_decoding() -> None:
    assert reason(bomb(14_000, 12_000)) == "too large: 168 megapixels, limit 50 megapixels"
    assert reason(bomb(60_000, 60_000)) == "too large: 3,600 megapixels, limit 50 megapixels"
    assert reason(bomb(20, 10), 199) == "too large: 200 pixels, limit 199 pixels"
    assert decode(stored(Image.new("L", (20, 10))), 200).size == (20, 10)


def test_image__twelve_bit_tiff_uses_its_whole_range() -> None:
    # Two 12-bit samples, 0xFFF and 0x800, are packed into three bytes: 255 and 2048 × 255 / 4095 = 128.
    data = bytes([0xFF, 0xF8, 0x00])
    tags = [
        (256, 3, 2), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1),
        (273, 4, 200), (277, 3, 1), (278, 3, 1), (279, 4, 3),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags
    )
    head = b"II*\0" + struct.pack("<I", 8) + directory + b"\0\0\0\0"
    assert pixels(head.ljust(200, b"\0") + data) == [(255, 255, 255), (128, 128, 128)]
