import hashlib
import io
import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.data.image import BadImage
from tasks.data.stack import Rows, check_stack, is_stack, row_digest, split_path

IMAGES = np.arange(5 * 4 * 6 * 3, dtype=np.uint8).reshape(5, 4, 6, 3)


def saved(folder: Path, array: NDArray[np.generic], name: str = "x.npy") -> Path:
    file = folder / name
    np.save(file, array, allow_pickle=array.dtype.hasobject)
    return file if file.exists() else file.with_name(f"{name}.npy")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("cat/x.npy#17", ("cat/x.npy", 17)),
        ("cat/x.npy#0", ("cat/x.npy", 0)),
        ("cat/X.NPY#3", ("cat/X.NPY", 3)),
        ("cat/a#1.npy#2", ("cat/a#1.npy", 2)),
        ("x.npy#1.npy#2", ("x.npy#1.npy", 2)),
        ("cat/x.npy", ("cat/x.npy", None)),
        ("cat/x.npy#017", ("cat/x.npy#017", None)),
        ("cat/x.npy#-1", ("cat/x.npy#-1", None)),
        ("cat/x.npy#1.png", ("cat/x.npy#1.png", None)),
        ("cat/x.npy#", ("cat/x.npy#", None)),
        ("cat/x.npy#٣", ("cat/x.npy#٣", None)),
        ("cat/x.png#1", ("cat/x.png#1", None)),
        ("c#/a#b.png", ("c#/a#b.png", None)),
        (".npy#1", (".npy#1", None)),
    ],
)
def test_split_path__a_row_or_a_file(path: str, expected: tuple[str, int | None]) -> None:
    assert split_path(path) == expected


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (IMAGES, (5, 4, 6, 3)),
        (IMAGES[..., :1], (5, 4, 6, 1)),
        (IMAGES[..., 0], (5, 4, 6, 1)),
        (IMAGES[:1], (1, 4, 6, 3)),
        (np.asfortranarray(np.ones((1, 1, 7, 1), np.uint8)), (1, 1, 7, 1)),  # no order to speak of
    ],
)
def test_stack__images_are_as_saved(array: NDArray[np.uint8], shape: tuple[int, ...], tmp_path: Path) -> None:
    file = saved(tmp_path, array)
    assert is_stack(file)
    stack = check_stack(file, 42)
    assert stack.shape == shape
    images = array.reshape(shape)
    assert np.array_equal(stack.read(range(shape[0])), images)
    some = [shape[0] - 1, 0, shape[0] // 2, 0]
    assert np.array_equal(stack.read(some), images[some])


def test_stack__that_became_shorter_is_not_read(tmp_path: Path) -> None:
    stack = check_stack(saved(tmp_path, IMAGES), 24)
    stack.file.write_bytes(stack.file.read_bytes()[:-1])
    with pytest.raises(BadImage, match="truncated"):
        stack.read([3, 4])


def test_stack__digest_of_a_row_is_over_its_shape_and_bytes(tmp_path: Path) -> None:
    stack = check_stack(saved(tmp_path, IMAGES), 24)
    expected = [
        hashlib.sha256(b"regraft stack 1 uint8 4x6x3\n" + image.tobytes()).digest() for image in IMAGES
    ]
    assert stack.digests(0, 5) == b"".join(expected)
    assert stack.digests(2, 4) == b"".join(expected[2:4])
    assert [row_digest(image) for image in stack.read(range(5))] == [row.hex() for row in expected]


def test_stack__digests_are_the_same_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = check_stack(saved(tmp_path, IMAGES), 24)
    whole = stack.digests(0, 5)
    monkeypatch.setattr("tasks.data.stack._CHUNK", 2 * 4 * 6 * 3)  # two rows
    assert stack.digests(0, 5) == whole


def test_stack__same_pixels_in_another_shape_are_another_image() -> None:
    assert row_digest(IMAGES[0]) != row_digest(IMAGES[0].reshape(6, 4, 3))


def test_stack__row_beyond_the_last(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"no such row; the stack has 5 \(from 0\)"):
        check_stack(saved(tmp_path, IMAGES), 24).read([0, 5])


def test_rows__are_unpacked_as_packed() -> None:
    rows = Rows((2, 4, 6, 3), b"\n" * 32 + b" " * 32)
    assert Rows.unpack(rows.pack()) == rows
    assert rows.digest == hashlib.sha256(rows.pack()).hexdigest()


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (IMAGES.astype(np.float32), "array of float32; uint8 is needed"),
        (IMAGES.astype(np.int8), "array of int8; uint8 is needed"),
        (IMAGES.astype(object), "array of Python objects; uint8 is needed"),
        (np.asfortranarray(IMAGES), "array in Fortran order; save np.ascontiguousarray of it"),
        (IMAGES[0], "shape 4 × 6 × 3 is that of one image; save it as [1, H, W, C]"),
        (IMAGES[0, 0], "shape 6 × 3; [N, H, W], [N, H, W, 1] or [N, H, W, 3] is needed"),
        (np.uint8(1), "shape none; [N, H, W], [N, H, W, 1] or [N, H, W, 3] is needed"),
        (
            IMAGES.reshape(5, 4, 9, 2),
            "shape 5 × 4 × 9 × 2; [N, H, W], [N, H, W, 1] or [N, H, W, 3] is needed",
        ),
        (IMAGES[:0], "no pixels (shape 0 × 4 × 6 × 3)"),
        (IMAGES[:, :0], "no pixels (shape 5 × 0 × 6 × 3)"),
        (np.zeros((1, 5, 5), np.uint8), "too large: 25 pixels, limit 24 pixels"),
    ],
)
def test_stack__what_is_none(array: NDArray[np.generic], reason: str, tmp_path: Path) -> None:
    with pytest.raises(BadImage) as caught:
        check_stack(saved(tmp_path, np.asanyarray(array)), 24)
    assert str(caught.value) == reason


def test_stack__file_that_is_shorter_or_longer_than_its_header_says(tmp_path: Path) -> None:
    file = saved(tmp_path, IMAGES)
    whole = file.read_bytes()
    for content, reason in (
        (whole[:-1], r"truncated \(359 bytes of pixels, the header says 360\)"),
        (whole + b"x", r"damaged \(361 bytes of pixels, the header says 360\)"),
        (whole[:20], r"truncated \(not the header"),
        (whole.replace(b"(5, 4", b"(9999999999999999999, 4"), "header"),
        (whole.replace(b"(5, 4, 6, 3)", b"(-5,-4, 6, 3"), "header"),
        (whole.replace(b"(5, 4, 6, 3)", b"(-5,-4,6, 3)"), "no pixels"),
    ):
        file.write_bytes(content)
        with pytest.raises(BadImage, match=reason):
            check_stack(file, 24)


def test_stack__that_becomes_shorter_while_it_is_read(tmp_path: Path) -> None:
    stack = check_stack(saved(tmp_path, IMAGES), 24)
    stack.file.write_bytes(stack.file.read_bytes()[:-1])
    with pytest.raises(BadImage, match="truncated"):
        stack.digests(0, 5)


def test_stack__flipped_bytes_of_the_header_never_raise_anything_else(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, IMAGES)
    chance = random.Random(0)
    file = tmp_path / "x.npy"
    good = 0
    for _ in range(200):
        content = bytearray(buffer.getvalue())
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(6, 128)] = chance.randrange(256)
        file.write_bytes(content)
        with suppress(BadImage):
            good += check_stack(file, 24).read(range(5)).shape == (5, 4, 6, 3)
    assert good < 200


def test_stack__only_numpy_files_named_so(tmp_path: Path) -> None:
    whole = saved(tmp_path, IMAGES).read_bytes()
    (tmp_path / "x.png").write_bytes(whole)
    (tmp_path / "text.npy").write_bytes(b"text")
    (tmp_path / "X.NPY").write_bytes(whole)
    assert [is_stack(tmp_path / name) for name in ("x.png", "text.npy", "X.NPY")] == [False, False, True]
