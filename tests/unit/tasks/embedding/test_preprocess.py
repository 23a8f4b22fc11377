import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tasks.embedding.decode import from_image
from tasks.embedding.preprocess import batch, crop, crops
from tasks.records import Preprocess

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
VIEWS = ("identity", "hflip", "vflip", "crop-0", "crop-7")


def how(resize: int, size: int, interpolation: str = "bilinear") -> Preprocess:
    return Preprocess.model_validate(
        {"resize": resize, "size": size, "interpolation": interpolation, "mean": (0, 0, 0), "std": (1, 1, 1)}
    )


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def digest(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def counted(width: int, height: int) -> Tensor:
    """[3, height, width] whose red says the column and whose green says the row."""
    image = torch.zeros((3, height, width), dtype=torch.uint8)
    image[0] = torch.arange(width)
    image[1] = torch.arange(height)[:, None]
    return image


def by_pil(image: Image.Image, preprocess: Preprocess) -> NDArray[np.uint8]:
    """The reference: the whole image resized, then its centre [size, size, 3]."""
    scale, size = preprocess.resize / min(image.size), preprocess.size
    resized = (
        max(preprocess.resize, round(image.width * scale)),
        max(preprocess.resize, round(image.height * scale)),
    )
    left, top = (resized[0] - size) // 2, (resized[1] - size) // 2
    whole = np.asarray(image.resize(resized, RESAMPLING[preprocess.interpolation]))
    return whole[top : top + size, left : left + size]


def assert_within_one(found: Tensor, wanted: NDArray[np.uint8], interpolation: str) -> None:
    apart = np.abs(found.permute(1, 2, 0).numpy().astype(int) - wanted)
    if interpolation == "bicubic":  # torch's 15-bit weights: see the module
        assert apart.max() <= 2
        assert (apart > 1).sum() <= max(1, apart.size // 100_000)
    else:
        assert apart.max() <= 1


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
    image = counted(width, height)
    wanted = image[:, top : top + size, left : left + size]
    preprocess = how(min(width, height), size)
    assert torch.equal(crop(image, preprocess), wanted)
    assert torch.equal(crop(image, preprocess, "hflip"), wanted.flip(2))
    assert torch.equal(crop(image, preprocess, "vflip"), wanted.flip(1))


def test_crop__halving_averages_with_the_triangle_of_twice_the_width() -> None:
    # A step from 0 to 240 between the columns 2 and 3 of 6; the triangle filter is widened by the
    # scale 2: at output column 1, centred on 3.0, columns 1.5, 2.5, 3.5, 4.5 weigh 1, 3, 3, 1.
    image = torch.zeros((3, 2, 6), dtype=torch.uint8)
    image[:, :, 3:] = 240
    middle = crop(image, how(1, 1))
    assert middle.flatten().tolist() == [120, 120, 120]  # (1·0 + 3·0 + 3·240 + 1·240) / 8


SIZES = [
    (500, 375), (375, 500), (61, 47), (47, 61), (50, 50), (20, 17), (1, 1), (2, 2), (17, 5),  # either way
    (200, 33), (33, 200), (200, 3), (3, 200), (1, 50), (50, 1), (90, 32), (32, 90),  # long
    (258, 64), (64, 258), (1031, 257),  # reduced more down than across, and the reverse
    (30, 29), (36, 20), (20, 36), (32, 31), (37, 37), (28, 30), (28, 28), (30, 60), (60, 30),
]  # fmt: skip


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "size"), [(32, 28), (28, 28), (9, 3), (71, 64)])
def test_crop__is_within_a_255th_of_pil(resize: int, size: int, interpolation: str) -> None:
    preprocess = how(resize, size, interpolation)
    for width, height in SIZES:
        image = noise(width, height)
        found = crop(from_image(image), preprocess)
        assert found.shape == (3, size, size)
        assert found.dtype == torch.uint8
        assert_within_one(found, by_pil(image, preprocess), interpolation)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (3000, 1999), (97, 91), (3, 2000), (1800, 250)])
def test_crop__of_photograph_sizes_is_within_a_255th_of_pil(
    size: tuple[int, int], interpolation: str
) -> None:
    small = noise(size[0] // 8 + 1, size[1] // 8 + 1)
    image = small.resize(size, Image.Resampling.BICUBIC)
    # The reference would be 256 × 170,667 for the longest.
    preprocess = how(25, 24, interpolation) if size == (3, 2000) else how(256, 224, interpolation)
    assert_within_one(crop(from_image(image), preprocess), by_pil(image, preprocess), interpolation)


def test_crop__end_of_the_square_at_the_width_of_the_image() -> None:
    # 282 × 188 is resized to 384 × 256: the square ends at (384 + 180) / 2 = 282, the image's own
    # width, at which torch would leave out the pass across.
    image, preprocess = noise(282, 188), how(256, 180)
    assert_within_one(crop(from_image(image), preprocess), by_pil(image, preprocess), "bilinear")


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 50), (50, 1), (3, 1000), (40, 40)])
@pytest.mark.parametrize("view", VIEWS)
def test_crop__of_one_colour_keeps_it(width: int, height: int, view: str) -> None:
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1).expand(3, height, width)
    found = crop(image, how(32, 28), view, digest(0))
    assert torch.equal(found, image[:, :1, :1].expand(3, 28, 28))


@pytest.mark.parametrize(("width", "height"), [(6_000_000, 1), (1, 6_000_000), (90_000, 100)])
@pytest.mark.parametrize("view", ["identity", "crop-0"])
def test_crop__of_a_panorama_does_not_resize_all_of_it(width: int, height: int, view: str) -> None:
    image = torch.zeros((height, width, 3), dtype=torch.uint8).permute(2, 0, 1)
    # Resized as a whole it would have 224 × 1.3e9 and 224 × 201,600 pixels.
    found = crop(image, how(224, 224, "bicubic"), view, digest(0))
    assert found.shape == (3, 224, 224)


def test_crop__of_columns_shows_the_right_ones_of_a_panorama() -> None:
    image = counted(250, 4)
    # 250 × 4 to 2,000 × 32: the square of 32 starts at 984 = 123 columns of 8, and shows 123 … 126.
    found = crop(image, how(32, 32))
    assert found[0, 0, [4, 12, 20, 28]].tolist() == [123, 124, 125, 126]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("size", [(28, 28), (40, 28), (28, 41), (32, 32), (80, 60), (9, 200)])
def test_crops__alone_in_a_stack_and_in_every_layout_are_the_same(
    size: tuple[int, int], view: str, interpolation: str
) -> None:
    preprocess = how(32, 28, interpolation)
    images = [from_image(noise(*size, seed)) for seed in range(7)]
    digests = [digest(seed) for seed in range(7)]
    alone = torch.stack(
        [crop(*one) for one in zip(images, [preprocess] * 7, [view] * 7, digests, strict=True)]
    )
    planes = torch.stack(images)
    for stack in (planes, planes.contiguous(memory_format=torch.channels_last), planes.permute(0, 2, 3, 1)):
        assert torch.equal(crops(stack, preprocess, view, digests), alone)
        assert torch.equal(crops(stack[2:4], preprocess, view, digests[2:4]), alone[2:4])
    assert torch.equal(batch(images, preprocess, view, digests), alone)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("resize", [28, 33, 130])
def test_crops__of_grey_are_those_of_its_rgb(resize: int, count: int, view: str) -> None:
    grey = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8))
    digests = [digest(at) for at in range(count)]
    preprocess = how(resize, 28, "bicubic")
    found = crops(grey, preprocess, view, digests)
    assert found.shape == (count, 3, 28, 28)
    for at, image in enumerate(grey):
        rgb = image[None].expand(3, -1, -1)
        assert torch.equal(found[at], crop(rgb, preprocess, view, digests[at]))
    assert torch.equal(crops(grey[:, None], preprocess, view, digests), found)


def test_crops__of_the_right_size_are_not_copied() -> None:
    stack = torch.zeros((1000, 28, 28), dtype=torch.uint8)
    assert crops(stack, how(28, 28)).data_ptr() == stack.data_ptr()


def test_batch__of_mixed_sizes_is_each_in_its_place_on_every_thread() -> None:
    sizes = [(28, 28), (500, 375), (28, 28), (30, 20), (375, 500), (500, 375), (3, 900), (30, 20), (28, 28)]
    images = [from_image(noise(*size, seed)) for seed, size in enumerate(sizes)]
    digests = [digest(seed) for seed in range(len(sizes))]
    preprocess = how(256, 224, "bicubic")
    for view in ("identity", "crop-1"):
        alone = [crop(image, preprocess, view, name) for image, name in zip(images, digests, strict=True)]
        found = batch(images, preprocess, view, digests)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(found, torch.stack(alone))

        def again(start: int, view: str = view) -> Tensor:
            torch.set_num_threads(1)
            return batch(images[start:], preprocess, view, digests[start:])

        with ThreadPoolExecutor(3) as pool:
            for start, part in enumerate(pool.map(again, range(len(images)))):
                assert torch.equal(part, found[start:])
    assert batch([], preprocess, "identity", []).shape == (0, 3, 224, 224)


def box(width: int, height: int, name: object, number: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of a crop that is as large as its box would be resized to: the
    corners of an image that counts its columns and rows."""
    far = crop(counted(width, height), how(640, 640), f"crop-{number}", digest(name))
    left, right, top, bottom = (int(far[c].min() if low else far[c].max()) for c in (0, 1) for low in (1, 0))
    return left, top, right - left + 1, bottom - top + 1


def test_random_crop__has_an_allowed_area_and_ratio_and_moves() -> None:
    boxes = [box(160, 120, name, number) for name in range(6) for number in range(3)]
    assert len(set(boxes)) == len(boxes)
    for left, top, width, height in boxes:
        assert 0 <= left <= 160 - width
        assert 0 <= top <= 120 - height
        assert 0.34 <= width * height / (160 * 120) <= 1  # .35, less the rounding of the sides
        assert 0.74 <= width / height <= 1.35


def test_random_crop__depends_on_the_digest_and_the_number_alone() -> None:
    torch.manual_seed(0)
    first = box(160, 120, "a", 0)
    torch.manual_seed(1)
    assert box(160, 120, "a", 0) == first
    # The first draws of sha256("<digest> crop-0 0") are .0473, .3391 (even), .4435, .4589: an area of
    # 19,200 · (.35 + .65 · .0473) = 7,310 with a ratio of 1 + .3391 / 3 = 1.113 is 90 × 81, upright
    # for an odd draw; it lies at 71 · .4589 = 32.6 and 40 · .4435 = 17.7, both rounded down.
    assert first == (32, 17, 90, 81)


def test_random_crop__of_a_panorama_is_a_box_of_an_allowed_ratio_somewhere() -> None:
    boxes = [box(200, 3, name, 0) for name in range(5)]
    assert {(width, height) for _, _, width, height in boxes} == {(4, 3)}  # 3 · 4/3
    assert len({left for left, *_ in boxes}) > 1


def test_random_crop__without_a_digest_for_each_image_is_refused() -> None:
    images = [counted(9, 9)] * 2
    with pytest.raises(ValueError, match="crop-0 of 2 images needs as many digests, not 0"):
        batch(images, how(8, 8), "crop-0", [])
    with pytest.raises(ValueError, match="needs as many digests, not 1"):
        crops(torch.stack(images), how(8, 8), "crop-0", ["a"])
