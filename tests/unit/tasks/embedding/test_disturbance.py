import hashlib
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.embedding.disturbance import disturb
from tasks.embedding.views import all_disturbances

SIZE = 32
ONE, TWO = "1" * 64, "2" * 64
PINNED = {
    "noise": "516a635c62dff244",
    "blur": "59d04777b2deced4",
    "brightness": "36185cda4d265433",
    "contrast": "5a2f1d22ea3064f6",
}


def crops(count: int = 2, size: int = SIZE) -> Tensor:
    """Triangular waves, channels last."""
    image, row, column, channel = np.ogrid[:count, :size, :size, :3]
    waves = 255 - abs((40 * image + (5 + 3 * channel) * row + 17 * column) % 510 - 255)
    return torch.from_numpy(waves.astype(np.uint8)).permute(0, 3, 1, 2)


def plain(red: int, green: int, blue: int) -> Tensor:
    return torch.tensor([red, green, blue], dtype=torch.uint8).view(1, 3, 1, 1).repeat(1, 1, SIZE, SIZE)


def one(image: Tensor, view: str, digest: str = ONE) -> Tensor:
    return disturb(image[None], view, [digest])[0]


def test_disturb__undisturbed_view_is_left_alone() -> None:
    images = crops()
    assert disturb(images, "hflip", []) is images


@pytest.mark.parametrize("view", all_disturbances())
def test_disturb__depends_on_crop_digest_and_view_alone(view: str) -> None:
    images = crops(3)
    together = disturb(images, view, [ONE, TWO, ONE])
    assert together.shape == images.shape
    assert together.dtype == torch.uint8
    assert together.is_contiguous(memory_format=torch.channels_last)
    for at, digest in enumerate([ONE, TWO, ONE]):
        assert torch.equal(one(images[at].contiguous(), view, digest), together[at])


def test_disturb__gives_these_pixels() -> None:
    # Pinned: when they change, so must views.VERSION, or caches hold two kinds of vectors. JPEG is
    # left out: its pixels are those of Pillow's library, whose version is in every fingerprint.
    found = {
        kind: hashlib.sha256(
            b"".join(
                disturb(crops(), f"{kind}-{strength}", [ONE, TWO]).contiguous().numpy().tobytes()
                for strength in (1, 2, 3)
            )
        ).hexdigest()[:16]
        for kind in ("noise", "blur", "brightness", "contrast")
    }
    assert found == PINNED


@pytest.mark.parametrize("kind", ["noise", "blur", "jpeg", "brightness", "contrast"])
def test_disturb__stronger_is_further_off(kind: str) -> None:
    images = crops(1, size=160)  # the weakest blur is less than a pixel in small ones
    off = [
        float((disturb(images, f"{kind}-{strength}", [ONE]).float() - images.float()).square().mean())
        for strength in (1, 2, 3)
    ]
    assert 0 < off[0] < off[1] < off[2]


@pytest.mark.parametrize(("strength", "share"), [(1, 0.08), (2, 0.18)])
def test_noise__has_the_deviation_of_imagenet_c(strength: int, share: float) -> None:
    grey = plain(128, 128, 128)[0]
    noise = one(grey, f"noise-{strength}").double() - 128
    # 3,072 draws; clipping at 2.8 deviations takes a little off the stronger one.
    assert float(noise.std()) == pytest.approx(255 * share, rel=0.06)
    assert float(noise.mean()) == pytest.approx(0, abs=3 * 255 * share / math.sqrt(noise.numel()))


def test_noise__differs_by_digest_and_view() -> None:
    grey = plain(128, 128, 128)[0]
    found = [one(grey, view, d) for view, d in [("noise-1", ONE), ("noise-1", TWO), ("hflip+noise-1", ONE)]]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_blur__spreads_a_point_as_a_bell_and_keeps_a_plain_image() -> None:
    assert torch.equal(disturb(plain(10, 128, 255), "blur-3", [ONE]), plain(10, 128, 255))
    points = torch.zeros(3, 224, 224, dtype=torch.uint8)
    points[:, 100:120, 100:120] = 255  # a square, for a point fades to nothing
    blurred = one(points, "blur-1")[0].double()
    # 1 px at 224 px. An edge's profile is the normal distribution: half a pixel inside, Φ(.5) = .6915.
    assert blurred[110, 100] == pytest.approx(255 * 0.6915, abs=2)
    assert blurred[110, 99] == pytest.approx(255 * (1 - 0.6915), abs=2)
    assert blurred[110, 110] == 255
    assert float(blurred.sum()) == pytest.approx(20 * 20 * 255, rel=0.01)


def test_blur__is_as_wide_for_the_eye_whatever_the_size() -> None:
    small, large = (torch.zeros(3, size, size, dtype=torch.uint8) for size in (112, 224))
    small[:, :, 56:], large[:, :, 112:] = 255, 255
    narrow, wide = one(small, "blur-3")[0, 50].float(), one(large, "blur-3")[0, 100].float()
    torch.testing.assert_close(narrow, wide.view(-1, 2).mean(1), atol=2, rtol=0)


def test_brightness__raises_the_value_and_keeps_the_hue() -> None:
    # .3 of 255 is 76 (rounded to even): the largest channel 100 becomes 176, the others grow alike.
    found = disturb(plain(100, 50, 0), "brightness-2", [ONE])
    assert found[0, :, 0, 0].tolist() == [176, 88, 0]
    assert disturb(plain(0, 0, 0), "brightness-2", [ONE])[0, :, 0, 0].tolist() == [76, 76, 76]
    assert disturb(plain(240, 120, 60), "brightness-2", [ONE])[0, :, 0, 0].tolist() == [255, 128, 64]


def test_contrast__brings_each_channel_nearer_to_its_mean() -> None:
    image = plain(100, 0, 0)
    image[:, 0, :, : SIZE // 2] = 200  # red: mean 150
    found = disturb(image, "contrast-1", [ONE])
    assert found[0, :, 0, 0].tolist() == [170, 0, 0]  # 150 + .4 * 50
    assert found[0, :, 0, -1].tolist() == [130, 0, 0]


def test_disturb__each_crop_needs_its_digest() -> None:
    with pytest.raises(ValueError, match="noise-1 of 2 crops needs as many digests, not 1"):
        disturb(crops(), "noise-1", [ONE])
