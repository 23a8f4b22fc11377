"""28 × 28 array images, against a Dataset that handles each of them."""

from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tasks.data.stack import row_digest
from tasks.embedding.extract import Sample
from tasks.embedding.preprocess import crops
from tasks.records import Preprocess
from tests.bench import engine, harness, machine, samples
from tests.bench.harness import Row

COUNT = 16_384
BATCH = 256


class PerItem(Dataset[Tensor]):
    """The usual way: each image through PIL and v1 transforms."""

    def __init__(self, images: NDArray[np.uint8], how: Preprocess, resized: bool) -> None:
        transforms: Any = import_module("torchvision.transforms")
        steps = [transforms.ToTensor(), transforms.Normalize(how.mean, how.std)]
        self.images = images
        self.transform = transforms.Compose([transforms.Resize(how.resize), *steps] if resized else steps)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        found: Tensor = self.transform(Image.fromarray(self.images[index]).convert("RGB"))
        return found


def run() -> Iterator[Row]:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 28, 28), dtype=np.uint8)
    yield _batches(images, 28)
    yield _batches(images, 32)
    yield _extraction(images)


def _how(size: int) -> Preprocess:
    return Preprocess(
        resize=size, size=size, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )


def _per_item(images: NDArray[np.uint8], size: int) -> tuple[str, harness.Side]:
    """Over all images, with the quickest number of workers."""

    def loop(some: NDArray[np.uint8], workers: int) -> harness.Side:
        data = PerItem(some, _how(size), size != 28)
        loader = DataLoader(data, BATCH, num_workers=workers, persistent_workers=workers > 0)

        def once() -> None:
            for _ in loader:
                pass

        return once

    best = harness.quickest({str(workers): loop(images[:4096], workers) for workers in (0, 1, 2)})
    return best, loop(images, int(best))


def _batches(images: NDArray[np.uint8], size: int) -> Row:
    how = _how(size)
    stack = torch.from_numpy(images)

    def batch(at: int) -> None:
        found = crops(stack[at : at + BATCH], how)
        found.float().div_(127.5).sub_(1)  # [B, 3, S, S]: what the network's first step does

    ours = engine.in_threads([partial(batch, at) for at in range(0, COUNT, BATCH)])

    workers, per_item = _per_item(images, size)
    seconds = harness.interleaved({"ours": ours, "per item": per_item}, rounds=7)
    resized = "" if size == 28 else f", resized to {size}"
    return harness.row(
        f"28 × 28 array images{resized}",
        seconds["ours"],
        seconds["per item"],
        unit="images/s",
        work=COUNT,
        goal=100.0 if size == 28 else None,
        note=f"{machine.cores()} threads, batches of {BATCH} to standardised floats; against"
        f" Image.fromarray, ToTensor, Normalize{' and Resize' if resized else ''} on each and a"
        f" DataLoader with {workers} workers (best of 0, 1, 2)",
        limits="the floats are twelve times the bytes read, and their writing is most of the time",
    )


class _NoNetwork:
    """A forward pass that costs nothing."""

    batch = BATCH

    def __call__(self, crops: Tensor) -> list[NDArray[np.float32]]:
        return [np.zeros((len(crops), 8), dtype=np.float32)]


def _extraction(images: NDArray[np.uint8]) -> Row:
    """The whole way of a run but the network: rows checked against their digests, and segments."""
    backbone = engine.backbone("torchvision:resnet18", 28)
    block = backbone.blocks[0].model_copy(update={"parts": (8,)})
    backbone = backbone.model_copy(update={"blocks": (block,)})
    with samples.scratch() as root:
        file = root / "stack.npy"
        np.save(file, images)
        rows: Sequence[Sample] = [
            Sample(row_digest(image[..., None]), file, number) for number, image in enumerate(images)
        ]
        workers, per_item = _per_item(images, 28)
        seconds = harness.interleaved(
            {"ours": engine.extraction(rows, backbone, _NoNetwork(), root / "cache"), "per item": per_item}
        )
    return harness.row(
        "28 × 28 array images through a run without a network",
        seconds["ours"],
        seconds["per item"],
        unit="images/s",
        work=COUNT,
        note="rows of a stack checked against their digests, resized from 28 to 32 px and cut, and the"
        f" writing of segments; against the Dataset of the figure above with {workers} workers",
    )
