import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tasks.embedding.decode import pixels
from tasks.embedding.preprocess import crop
from tasks.finetune.views import Views, plain, resized
from tasks.params.finetune import Augmentation
from tasks.records import Preprocess

DIGEST = "5e" * 32


def how(resize: int, size: int, interpolation: str = "bilinear") -> Preprocess:
    return Preprocess.model_validate(
        {"resize": resize, "size": size, "interpolation": interpolation, "mean": (0, 0, 0), "std": (1, 1, 1)}
    )


def photograph(width: int, height: int, seed: int = 0) -> Tensor:
    """Noise, coarse and fine, as a JPEG file has it."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8))
    grain = random.normal(0, 40, (height, width, 3))
    values = np.asarray(coarse.resize((width, height))) + grain
    file = io.BytesIO()
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return pixels(file.getvalue(), 10**8)


def counted(width: int, height: int) -> Tensor:
    """[3, height, width] whose red says the column and whose green says the row."""
    image = torch.zeros((3, height, width), dtype=torch.uint8)
    image[0] = torch.arange(width)
    image[1] = torch.arange(height)[:, None]
    return image


def seen(names: list[Augmentation], count: int = 40, image: Tensor | None = None) -> list[Tensor]:
    views = Views(names, how(12, 8), seed=0)
    shown = counted(16, 12) if image is None else image
    return [views(shown, DIGEST, number) for number in range(count)]


# Without augmentation

SIZES = [
    (500, 375), (375, 500), (333, 512), (282, 188), (61, 47), (50, 50), (20, 17), (1, 1), (17, 5),
    (258, 64), (64, 258), (1031, 257), (30, 29), (28, 28), (32, 32), (37, 32), (32, 57), (30, 60),
    (200, 33), (3, 200), (1, 50), (1000, 140), (1020, 140), (2000, 33),  # up to panoramas
]  # fmt: skip


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "size"), [(32, 28), (28, 28), (33, 28), (71, 64)])
def test_plain__is_what_the_embedding_sees_bit_for_bit(resize: int, size: int, interpolation: str) -> None:
    preprocess = how(resize, size, interpolation)
    for width, height in SIZES:
        image = photograph(width, height)
        assert torch.equal(plain(resized(image, preprocess), preprocess), crop(image, preprocess))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(500, 375), (250, 250), (375, 501), (3000, 1999), (1920, 256)])
def test_plain__of_photograph_sizes_is_what_the_embedding_sees(
    size: tuple[int, int], interpolation: str
) -> None:
    image, preprocess = photograph(*size), how(256, 224, interpolation)
    assert torch.equal(plain(resized(image, preprocess), preprocess), crop(image, preprocess))


def test_resized__holds_the_whole_image() -> None:
    # 40 × 20 to a shorter side of 10: every second pixel of what changes slowly.
    image = counted(40, 20) * 4
    found = resized(image, how(10, 8))
    assert found.shape == (3, 10, 20)
    assert found[0, 5, 5:15].tolist() == [4 * 2 * column + 2 for column in range(5, 15)]


def test_resized__of_the_right_size_is_not_copied() -> None:
    image = counted(16, 12)
    assert resized(image, how(12, 8)) is image


def test_resized__of_grey_is_one_channel_of_its_rgb() -> None:
    grey = photograph(60, 40)[:1]
    for preprocess in (how(32, 28), how(32, 3)):  # the latter: a panorama
        rgb = resized(grey.expand(3, -1, -1), preprocess)
        assert torch.equal(resized(grey, preprocess), rgb[:1])


def test_resized__of_a_panorama_does_not_resize_all_of_it() -> None:
    # As a whole it would have 256 × 1.5e9 pixels.
    image = torch.zeros((1, 6_000_000, 3), dtype=torch.uint8).permute(2, 0, 1)
    assert resized(image, how(256, 224)).shape == (3, 224, 224)


# What each augmentation does


def test_views__without_names_show_the_centre() -> None:
    # 16 × 12, of which the square of 8 starts at (16 - 8) / 2 and (12 - 8) / 2.
    wanted = counted(16, 12)[:, 2:10, 4:12]
    assert all(torch.equal(view, wanted) for view in seen([]))


@pytest.mark.parametrize(("name", "axis"), [("hflip", 2), ("vflip", 1)])
def test_views__flips_show_the_centre_or_its_mirror_image_as_often(name: Augmentation, axis: int) -> None:
    centre = counted(16, 12)[:, 2:10, 4:12]
    flipped = [torch.equal(view, centre.flip(axis)) for view in seen([name], 200)]
    assert all(flip or torch.equal(view, centre) for flip, view in zip(flipped, seen([name]), strict=False))
    assert 70 <= sum(flipped) <= 130  # of 200, with a standard deviation of 7


def test_views__crop_shows_at_least_a_third_of_the_image_anywhere() -> None:
    views = Views(["crop"], how(96, 320), seed=0)
    boxes = set()
    for number in range(40):
        far = views(counted(128, 96), DIGEST, number)
        width, height = (int(far[c].max()) - int(far[c].min()) + 1 for c in (0, 1))
        assert 0.34 <= width * height / (128 * 96) <= 1  # .35, less the rounding of the sides
        assert 0.74 <= width / height <= 1.35
        boxes.add((int(far[0].min()), int(far[1].min()), width, height))
    assert len(boxes) == 40


def test_views__randaugment_and_colour_change_pixels_differently_each_time() -> None:
    image = photograph(16, 12)
    centre = plain(image, how(12, 8))
    for name in ("randaugment", "colour"):
        found = seen([name], 12, image)
        assert sum(not torch.equal(view, centre) for view in found) >= 8
        assert len({view.contiguous().numpy().tobytes() for view in found}) >= 8


def test_views__colour_keeps_every_pixel_in_its_place() -> None:
    image = torch.full((3, 12, 16), 40, dtype=torch.uint8)
    image[:, 5, 6] = 200  # 5 - 2 down and 6 - 4 across in the crop
    for view in seen(["colour"], 10, image):
        bright = view.sum(0)
        assert int(bright.argmax()) == 3 * 8 + 2
        assert len(set(bright.flatten().tolist())) == 2


def test_views__names_of_mixes_and_the_order_of_names_change_nothing() -> None:
    image = photograph(16, 12)
    forth = seen(["hflip", "crop", "colour"], 6, image)
    back = seen(["colour", "mixup", "crop", "cutmix", "hflip"], 6, image)
    assert all(torch.equal(a, b) for a, b in zip(forth, back, strict=True))


ALL: list[Augmentation] = ["hflip", "vflip", "crop", "randaugment", "colour"]


def test_views__have_the_size_of_the_crop_for_every_shape() -> None:
    views = Views(ALL, how(12, 8), seed=0)
    for width, height in [(12, 12), (40, 12), (12, 13), (8, 8)]:
        for number in range(10):
            view = views(counted(width, height), DIGEST, number)
            assert view.shape == (3, 8, 8)
            assert view.dtype == torch.uint8


# What a view depends on


def test_views__depend_on_seed_digest_and_number_alone() -> None:
    image, preprocess = photograph(32, 24), how(24, 20)
    torch.manual_seed(0)
    first = Views(ALL, preprocess, seed=0)(image, DIGEST, 3)
    torch.manual_seed(1)
    views = Views(ALL, preprocess, seed=0)
    views(image, DIGEST, 0)
    assert torch.equal(views(image, DIGEST, 3), first)
    others = [
        views(image, DIGEST, 4),
        views(image, "00" * 32, 3),
        Views(ALL, preprocess, seed=1)(image, DIGEST, 3),
    ]
    assert not any(torch.equal(other, first) for other in others)


def test_views__draw_nothing_from_the_generator_of_the_process() -> None:
    before = torch.get_rng_state()
    seen(ALL)
    assert torch.equal(torch.get_rng_state(), before)


def test_views__of_many_threads_are_those_of_one() -> None:
    image, views = photograph(32, 24), Views(ALL, how(24, 20), seed=0)
    alone = [views(image, DIGEST, number) for number in range(60)]
    start = threading.Barrier(4)

    def again(_: int) -> list[Tensor]:
        start.wait()
        return [views(image, DIGEST, number) for number in range(60)]

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(again, range(4)):
            assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))
