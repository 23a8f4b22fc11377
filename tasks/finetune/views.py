"""Augmented views of an image: what a network sees of a sample in an epoch.

Everything random in a view is a function of the seed, the sample's digest and the view's number, so
that order, threads, processes and interruptions change nothing.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torchvision.transforms import v2

from tasks.embedding.preprocess import LONG, crop, resized_up_to, stacked
from tasks.params.finetune import Augmentation
from tasks.records import Preprocess

# In the order in which they are applied, after the crop.
_CHANGES: Mapping[str, Callable[[], Any]] = {
    "hflip": v2.RandomHorizontalFlip,
    "vflip": v2.RandomVerticalFlip,
    "randaugment": v2.RandAugment,  # two changes of magnitude 9 of 30, https://arxiv.org/abs/1909.13719
    "colour": lambda: v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.05),
}


class Views:
    """The views that some augmentations give; those of whole batches (`mix`) change none.

    Many threads may call it at once.
    """

    def __init__(self, augment: Sequence[Augmentation], preprocess: Preprocess, seed: int) -> None:
        self.size = preprocess.size  # S
        self._preprocess, self._seed = preprocess, seed
        self._crops = "crop" in augment
        self._changes = [change() for name, change in _CHANGES.items() if name in augment]

    def __call__(self, image: Tensor, digest: str, number: int) -> Tensor:
        """View `number` of a sample, uint8 [3, S, S]; it may share memory with `image`.

        Args:
            image: uint8 [3, h, w], `resized`.
            digest: of the sample.
        """
        name = f"{self._seed} {digest}"
        if self._crops:  # .35 to 1 of the area
            view = crop(image, self._preprocess, f"crop-{number}", name)
        else:
            view = plain(image, self._preprocess)
        if self._changes:
            with _Seeded(f"{name} {number}"):
                for change in self._changes:
                    view = change(view)
        return view


def plain(image: Tensor, preprocess: Preprocess) -> Tensor:
    """The view without augmentation, uint8 [3, S, S]: of a `resized` image, bit for bit what
    `embedding.preprocess.crop` gives of the original one. It shares memory with `image`."""
    size = preprocess.size
    top, left = (image.shape[1] - size) // 2, (image.shape[2] - size) // 2
    return image[:, top : top + size, left : left + size]


def resized(image: Tensor, preprocess: Preprocess) -> Tensor:
    """An image uint8 [C, H, W] with its shorter side resized to `preprocess.resize`, channels last in
    memory.

    Of panoramas it is the centre [C, S, S]: the embedding sees no more of them either.
    """
    height, width = image.shape[1:]
    scale = preprocess.resize / min(height, width)
    # As `embedding.preprocess.crop` has it, whose kernels give the same pixels if they stop early.
    whole = (max(preprocess.resize, round(height * scale)), max(preprocess.resize, round(width * scale)))
    if whole == (height, width):
        return image
    end = (max(whole) - preprocess.size) // 2 + preprocess.size
    if end > LONG * preprocess.size:  # where it resizes the square alone, by PIL
        return crop(image, preprocess)
    return resized_up_to(stacked([image]), whole, whole, preprocess)[0]


class _Seeded(TorchFunctionMode):
    """Draws of this thread come from a generator of their own.

    torchvision's transforms draw from the one generator of the process, which the other threads use
    as well: the views of one would change those of another, and the dropout of a training step.
    """

    def __init__(self, seed: str) -> None:
        super().__init__()
        number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
        self._generator = torch.Generator().manual_seed(number)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWS:
            kwargs = {**kwargs, "generator": self._generator}
        return func(*args, **kwargs)


_DRAWS = {torch.rand, torch.randint, torch.randperm, torch.normal, Tensor.uniform_, Tensor.random_}
