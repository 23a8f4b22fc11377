"""The engine as the cases use it: one place that knows its functions."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tasks.embedding.backbone import resolve
from tasks.embedding.decode import pixels
from tasks.embedding.extract import Extractor, Sample, extract
from tasks.embedding.forward import Forward, forward_for, threads
from tasks.embedding.gather import open_caches
from tasks.embedding.preprocess import batch
from tasks.params import DataParams, EmbeddingParams
from tasks.records import Backbone, Embedder, Preprocess
from tasks.settings import Settings
from tests.bench import samples

MAX_PIXELS = DataParams().max_pixels


def embedder(name: str, image_size: int | None = None) -> Embedder:
    """`name` with the weights of an installed package (timm) or with random ones (torchvision)."""
    library, architecture = name.split(":", 1)
    weights = "auto" if library == "timm" else str(samples.random_weights(architecture))
    params = EmbeddingParams(backbone=name, weights=weights, image_size=image_size)
    return resolve(params, samples.place() / "weights")


def backbone(name: str, image_size: int | None = None) -> Backbone:
    return embedder(name, image_size).backbones[0]


def route(of: Backbone) -> Forward:
    """The quickest route here, as a run chooses it."""
    return forward_for(of, samples.place() / "forward", Settings())


def digested(files: Sequence[Path]) -> list[Sample]:
    return [Sample(hashlib.sha256(file.read_bytes()).hexdigest(), file) for file in files]


def extraction(some: Sequence[Sample], of: Backbone, forward: Forward, root: Path) -> Callable[[], None]:
    """From files to durable segments in an empty cache; the network is loaded already."""

    def once() -> None:
        for segment in root.rglob("*.arrow"):
            segment.unlink()
        caches = open_caches(of.blocks, root)
        every = {sample.digest for sample in some}
        lacking = {block.digest: every for block in of.blocks}
        extract(some, [Extractor(of, of.blocks, forward)], caches, lacking, MAX_PIXELS)

    return once


def forward_loop(forward: Forward, size: int, count: int) -> Callable[[], None]:
    """The bare forward pass over `count` ready crops, on as many threads as a run has."""
    noise = np.random.default_rng(0).integers(0, 256, (forward.batch, size, size, 3), dtype=np.uint8)
    crops = torch.from_numpy(noise).permute(0, 3, 1, 2)  # [B, 3, S, S], channels last

    def one() -> None:
        forward(crops)

    return in_threads([one] * (count // forward.batch))


def decode_loop(files: Sequence[Path], how: Preprocess, size: int) -> Callable[[], None]:
    """Files to crops, `size` files at a time, on as many threads as a run has."""

    def one(some: Sequence[Path]) -> Callable[[], None]:
        return lambda: decode_some([file.read_bytes() for file in some], how)

    return in_threads([one(files[at : at + size]) for at in range(0, len(files), size)])


def decode_some(contents: Sequence[bytes], how: Preprocess) -> None:
    """The contents of files to crops, on this thread."""
    batch([pixels(content, MAX_PIXELS) for content in contents], how)


def in_threads(calls: Sequence[Callable[[], None]]) -> Callable[[], None]:
    """Runs the calls on as many threads as a run has, each of which computes on one core."""

    def call(one: Callable[[], None]) -> None:
        torch.set_num_threads(1)  # of this thread
        one()

    def all_of_them() -> None:
        with ThreadPoolExecutor(threads()) as pool:
            list(pool.map(call, calls))

    return all_of_them


def eager_loop(network: torch.nn.Module, inputs: Tensor, count: int) -> Callable[[], None]:
    """torch's eager forward pass over `count` images in batches like `inputs`, on all threads."""

    def once() -> None:
        torch.set_num_threads(threads())
        with torch.inference_mode():
            for _ in range(max(1, count // len(inputs))):
                network(inputs)

    return once
