"""From decoded images to a backbone's input: views, resizing and cropping of uint8 tensors.

torch resizes uint8 images three to five times as quickly as PIL, and within 1/255 of it at each
pixel; but bicubic filters that enlarge, or reduce by less than 1.6, give 2/255 for about one value
in a million, since torch rounds their weights to 15 bits, PIL to 22. A crop depends on its image,
the view and the digest alone: alone or in a stack, on any thread, it is the same bit for bit.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from tasks.embedding.decode import from_image
from tasks.records import Preprocess

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_REACH = {"bilinear": 1, "bicubic": 2}  # of the filter to each side, in pixels of the coarser grid

# Of a random crop, as in "Going deeper with convolutions", https://arxiv.org/abs/1409.4842
_SCALE = (0.35, 1.0)  # its part of the image's area
_RATIO = 4 / 3  # of its longer to its shorter side, at most
_ATTEMPTS = 10

# torch resizes from the image's left and upper edge up to the crop; beyond this many times the
# crop's side (panoramas), PIL is quicker, which resizes the crop alone.
LONG = 4
_SMALL = 64 * 64  # pixels up to which images of equal size are stacked: a call costs more than the copy


def crop(image: Tensor, how: Preprocess, view: str = "identity", digest: str = "") -> Tensor:
    """One view of one image.

    `identity` resizes the shorter side to `how.resize` and cuts the centre; `hflip` and `vflip`
    mirror that; `crop-K` resizes a random box of the image, which depends on its size, `digest` and
    K alone.

    Args:
        image: uint8 [3, H, W], any size.
        digest: of the sample's bytes, hex; used by `crop-K` only.

    Returns:
        uint8 [3, size, size], channels last in memory; it may share memory with `image`.
    """
    return _views(stacked([image]), how, view, [digest])[0]


def batch(
    images: Sequence[Tensor], how: Preprocess, view: str = "identity", digests: Sequence[str] = ()
) -> Tensor:
    """One view of each of B images of any size, as `crop` gives it.

    Args:
        images: each uint8 [3, H, W].
        digests: as many; may be empty unless the view is `crop-K`.

    Returns:
        uint8 [B, 3, size, size], channels last in memory.
    """
    digests = _digests(digests, len(images), view)
    out = torch.empty((len(images), how.size, how.size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    groups: dict[tuple[int, ...], list[int]] = {}  # of small images, by size
    for at, image in enumerate(images):
        if image.shape[1] * image.shape[2] <= _SMALL:
            groups.setdefault(tuple(image.shape), []).append(at)
        else:
            out[at] = crop(image, how, view, digests[at])
    for group in groups.values():
        found = _views(stacked([images[at] for at in group]), how, view, [digests[at] for at in group])
        for at, one in zip(group, found, strict=True):  # `out[group] = found` is 20 times slower
            out[at] = one
    return out


def crops(images: Tensor, how: Preprocess, view: str = "identity", digests: Sequence[str] = ()) -> Tensor:
    """One view of each of B images of one size, as `crop` gives it, in one call.

    Args:
        images: uint8 [B, 3, H, W], or grey [B, 1, H, W] or [B, H, W], or [B, H, W, 3] where H is
            neither 1 nor 3.
        digests: as many; may be empty unless the view is `crop-K`.

    Returns:
        uint8 [B, 3, size, size]; grey is repeated without a copy, and images that need no resizing
        share memory with `images`.
    """
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)
    return _views(images, how, view, _digests(digests, len(images), view)).expand(-1, 3, -1, -1)


def _digests(digests: Sequence[str], count: int, view: str) -> Sequence[str]:
    if len(digests) != count and (digests or view.startswith("crop-")):
        raise ValueError(f"{view} of {count} images needs as many digests, not {len(digests)}")
    return digests or [""] * count


def stacked(images: Sequence[Tensor]) -> Tensor:
    """[B, 3, H, W] with the strides of channels last, for which torch has kernels that are five times
    as quick as for those of `image[None]`."""
    rows = [image.permute(1, 2, 0) for image in images]  # [H, W, 3]
    return (rows[0].contiguous()[None] if len(rows) == 1 else torch.stack(rows)).permute(0, 3, 1, 2)


def _views(images: Tensor, how: Preprocess, view: str, digests: Sequence[str]) -> Tensor:
    """[B, C, H, W] to [B, C, size, size]."""
    if view.startswith("crop-"):
        height, width = images.shape[2:]
        boxes = [_random_box(height, width, f"{digest} {view}") for digest in digests]
        cut = [images[i : i + 1, :, y : y + h, x : x + w] for i, (y, x, h, w) in enumerate(boxes)]
        return torch.cat([_resized(one, (how.size, how.size), (0, 0), how) for one in cut])
    found = _centre(images, how)
    return found if view == "identity" else found.flip(-1 if view == "hflip" else -2)


def _centre(images: Tensor, how: Preprocess) -> Tensor:
    """[B, C, H, W] to [B, C, size, size]."""
    height, width = images.shape[2:]
    scale = how.resize / min(height, width)
    resized = (max(how.resize, round(height * scale)), max(how.resize, round(width * scale)))
    corner = ((resized[0] - how.size) // 2, (resized[1] - how.size) // 2)
    return _resized(images, resized, corner, how)


def _resized(images: Tensor, resized: tuple[int, int], corner: tuple[int, int], how: Preprocess) -> Tensor:
    """Of [B, C, H, W] resized to `resized`, the square of `how.size` at `corner` (top, left)."""
    (top, left), (bottom, right) = corner, (corner[0] + how.size, corner[1] + how.size)
    if tuple(images.shape[2:]) != resized:
        if max(bottom, right) > LONG * how.size:
            return torch.stack([_resized_by_pil(image, resized, corner, how) for image in images])
        images = resized_up_to(images, resized, (bottom, right), how)
    return images[:, :, top:bottom, left:right]


def _vertical_first(before: tuple[int, int], after: tuple[int, int]) -> bool:
    """The order of Pillow 13's two passes. Bicubic results overshoot and are clipped between the
    passes, so that the order is seen."""
    down, across = before[0] - after[0], before[1] - after[1]
    return down > 0 and down > 2 * across


def resized_up_to(images: Tensor, resized: tuple[int, int], end: tuple[int, int], how: Preprocess) -> Tensor:
    """At least the part of the resized images above and left of `end` (bottom, right)."""
    count, channels, height, width = images.shape
    if channels == 1 and count >= 4:  # the kernel works on four channels: four grey images at once
        fours = count // 4 * 4
        found = resized_up_to(images[:fours].reshape(-1, 4, height, width), resized, end, how)
        found = found.reshape(fours, 1, *found.shape[2:])
        if fours == count:
            return found
        return torch.cat([found, resized_up_to(images[fours:], resized, end, how)])
    # `F.interpolate` can't stop early: it takes a size or a scale.
    resize = getattr(torch.ops.aten, f"_upsample_{how.interpolation}2d_aa").default
    scales = (resized[0] / height, resized[1] / width)
    # The kernel passes over an axis if, and only if, its size changes.
    bottom = height if resized[0] == height else end[0] + (end[0] == height)
    right = width if resized[1] == width else end[1] + (end[1] == width)
    if _vertical_first((height, width), resized):
        images = resize(images, (bottom, width), False, *scales)
    result: Tensor = resize(images, (bottom, right), False, *scales)
    return result


def _resized_by_pil(
    image: Tensor, resized: tuple[int, int], corner: tuple[int, int], how: Preprocess
) -> Tensor:
    """`_resized` of one image [C, H, W] by PIL, which computes the square alone."""
    cut, span = [], []  # for each axis: the pixels within the filter's reach, and the square among them
    for before, after, start in zip(image.shape[1:], resized, corner, strict=True):
        scale = before / after
        begin, end = start * scale, (start + how.size) * scale
        margin = _REACH[how.interpolation] * max(scale, 1) + 1
        offset = max(0, math.floor(begin - margin))
        cut.append(slice(offset, math.ceil(end + margin)))
        span.append((begin - offset, end - offset))
    resampling = _RESAMPLING[how.interpolation]
    small = Image.fromarray(image[:, cut[0], cut[1]].expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
    for axis in (0, 1) if _vertical_first((image.shape[1], image.shape[2]), resized) else (1, 0):
        (first, last), (width, height) = span[axis], small.size
        if axis == 0:
            small = small.resize((width, how.size), resampling, (0, first, width, last))
        else:
            small = small.resize((how.size, height), resampling, (first, 0, last, height))
    return from_image(small)[: len(image)]


def _random_box(height: int, width: int, seed: str) -> tuple[int, int, int, int]:
    """Top, left, height and width of a box much as torchvision's RandomResizedCrop draws it, but by
    sums, products and square roots alone, which give the same result on every machine.

    Where none of the attempts fits (panoramas), the largest box that has an allowed ratio.
    """
    for attempt in range(_ATTEMPTS):
        hashed = hashlib.sha256(f"{seed} {attempt}".encode()).digest()
        draws = [int.from_bytes(hashed[at : at + 8], "big") for at in (0, 8, 16, 24)]  # each of 64 bits
        area = height * width * (_SCALE[0] + (_SCALE[1] - _SCALE[0]) * draws[0] / 2**64)
        ratio = 1 + (_RATIO - 1) * (draws[1] >> 1) / 2**63
        long, short = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        h, w = (long, short) if draws[1] & 1 else (short, long)
        if 0 < h <= height and 0 < w <= width:
            break
    else:
        h, w = min(height, max(1, round(width * _RATIO))), min(width, max(1, round(height * _RATIO)))
    return draws[2] * (height - h + 1) >> 64, draws[3] * (width - w + 1) >> 64, h, w
