import base64
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.report import pictures


def opened(address: str | None) -> Image.Image:
    assert address is not None
    return Image.open(BytesIO(base64.b64decode(address.partition("base64,")[2])))


def stack(file: Path, images: np.ndarray) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": images.shape}
    with file.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(images.tobytes())


def test_sample__is_made_small(tmp_path: Path) -> None:
    Image.new("RGB", (960, 480), "red").save(tmp_path / "a.png")
    assert opened(pictures.sample(tmp_path, "a.png")).size == (240, 120)


def test_sample__of_a_stack_is_its_row(tmp_path: Path) -> None:
    stack(tmp_path / "x.npy", np.stack([np.full((4, 6, 1), grey, dtype=np.uint8) for grey in (10, 200)]))
    image = opened(pictures.sample(tmp_path, "x.npy#1"))
    assert image.size == (6, 4)
    assert image.getpixel((0, 0)) == (200, 200, 200)


def test_sample__that_cannot_be_shown_is_none(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    stack(tmp_path / "x.npy", np.zeros((1, 4, 6, 1), dtype=np.uint8))
    for path in ("bad.png", "gone.png", "x.npy#1", "x.npy", ".", "a\0b.png"):
        assert pictures.sample(tmp_path, path) is None


def test_sample__outside_of_the_data_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    assert pictures.sample(tmp_path / "data", "../secret.png") is None
    assert pictures.sample(tmp_path / "data", str(tmp_path / "secret.png")) is None


def test_png__goes_in_as_it_is_unless_it_is_large(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "small.png")
    Image.new("RGB", (4800, 300), "blue").save(tmp_path / "large.png")
    small = pictures.png(tmp_path / "small.png")
    assert small is not None
    assert base64.b64decode(small.partition("base64,")[2]) == (tmp_path / "small.png").read_bytes()
    assert opened(pictures.png(tmp_path / "large.png")).size == (2400, 150)
    assert pictures.png(tmp_path / "gone.png") is None
