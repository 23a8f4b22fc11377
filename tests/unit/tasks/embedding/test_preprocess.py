import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tasks.embedding.preprocess import crop, standardise
from tasks.records import Preprocess


def how(resize: int, size: int, interpolation: str = "bilinear") -> Preprocess:
    return Preprocess.model_validate(
        {
            "resize": resize,
            "size": size,
            "interpolation": interpolation,
            "mean": (0.5, 0.25, 0.0),
            "std": (0.5, 0.25, 1.0),
        }
    )


def counted(width: int, height: int) -> tuple[Image.Image, NDArray[np.uint8]]:
    """An image whose red says the column and whose green says the row, and its array [H, W, 3]."""
    array = np.zeros((height, width, 3), dtype=np.uint8)
    array[..., 0] = np.arange(width)
    array[..., 1] = np.arange(height)[:, None]
    return Image.fromarray(array), array


@pytest.mark.parametrize(
    ("width", "height", "size", "left", "top"),
    [
        (4, 2, 2, 1, 0),  # landscape: (4 - 2) // 2
        (2, 4, 2, 0, 1),  # portrait
        (5, 3, 1, 2, 1),  # odd: the middle pixel
        (5, 3, 2, 1, 0),  # even of odd: rounded down
        (3, 3, 3, 0, 0),
        (7, 3, 3, 2, 0),
    ],
)
def test_crop__at_the_original_size_takes_the_centre_unchanged(
    width: int, height: int, size: int, left: int, top: int
) -> None:
    image, array = counted(width, height)
    expected = array[top : top + size, left : left + size]
    np.testing.assert_array_equal(crop(image, how(min(width, height), size)), expected)


def test_crop__halving_averages_with_the_triangle_of_twice_the_width() -> None:
    # A step from 0 to 240 between the columns 2 and 3 of 6; PIL widens the triangle filter by the
    # scale 2: at output column 1, centred on 3.0, columns 1.5, 2.5, 3.5, 4.5 weigh 1, 3, 3, 1.
    array = np.zeros((2, 6, 3), dtype=np.uint8)
    array[:, 3:] = 240
    middle = crop(Image.fromarray(array), how(1, 1))
    assert middle.shape == (1, 1, 3)
    np.testing.assert_array_equal(middle[0, 0], [120, 120, 120])  # (1·0 + 3·0 + 3·240 + 1·240) / 8


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("width", "height"), [(61, 47), (47, 61), (50, 50), (200, 33), (33, 200), (20, 17)])
def test_crop__is_the_centre_of_the_whole_image_resized(width: int, height: int, interpolation: str) -> None:
    chance = np.random.default_rng(0)
    image = Image.fromarray(chance.integers(0, 256, (height, width, 3), dtype=np.uint8))
    size = (round(width * 32 / min(width, height)), round(height * 32 / min(width, height)))
    resampling = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    left, top = (size[0] - 28) // 2, (size[1] - 28) // 2
    whole = np.asarray(image.resize(size, resampling))[top : top + 28, left : left + 28]

    cut = crop(image, how(32, 28, interpolation))

    assert cut.shape == (28, 28, 3)
    assert cut.dtype == np.uint8
    assert np.abs(cut.astype(int) - whole.astype(int)).max() <= 1  # a rounding between the passes


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 50), (50, 1), (3, 1000)])
def test_crop__extreme_shapes_give_the_right_size_and_colour(width: int, height: int) -> None:
    image = Image.new("RGB", (width, height), (10, 20, 30))
    np.testing.assert_array_equal(crop(image, how(32, 28)), np.full((28, 28, 3), (10, 20, 30)))


def test_standardise__is_the_formula_for_each_channel() -> None:
    crops = [np.full((2, 2, 3), (0, 51, 255), dtype=np.uint8), np.full((2, 2, 3), (255, 255, 0), np.uint8)]
    x = standardise(crops, how(2, 2))
    assert x.shape == (2, 3, 2, 2)
    assert x.dtype == torch.float32
    # (x / 255 − mean) / std: (0 − .5)/.5, (.2 − .25)/.25, (1 − 0)/1 and (1 − .5)/.5, (1 − .25)/.25, 0
    expected = torch.tensor([[-1.0, -0.2, 1.0], [1.0, 3.0, 0.0]])
    for row in (0, 1):
        for column in (0, 1):
            torch.testing.assert_close(x[:, :, row, column], expected)


def test_standardise__lies_in_the_memory_order_of_the_crops() -> None:
    x = standardise([np.zeros((4, 4, 3), dtype=np.uint8)], how(4, 4))
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_standardise__is_exact_for_every_byte() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    x = standardise([np.stack([values] * 3, axis=-1)], how(16, 16))
    exact = (np.arange(256) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(x[0, 0].numpy().ravel(), exact, atol=2e-7)
