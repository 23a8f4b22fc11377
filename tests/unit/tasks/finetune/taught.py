"""Tiny packages and images for students and teachers."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.embedding.backbone import resolve
from tasks.embedding.sample import Sample
from tasks.head.fitted import Calibration, FittedHead
from tasks.head.linear import Linear
from tasks.params import EmbeddingParams
from tasks.records import Kind, Target
from tasks.registry import package
from tasks.registry.package import Package

CLASSES = ("cat", "dog", "fox")
KINDS: dict[Target, Kind] = {"class": "logistic", "labels": "multilabel", "number": "ridge"}


def packaged(
    folder: Path,
    target: Target = "class",
    classes: Sequence[str] = CLASSES,
    backbone: str = "timm:test_efficientnet",
    seed: int = 0,
    **params: Any,
) -> Package:
    """A package with a seeded head, whose calibration counts."""
    values = {"backbone": backbone, "weights": "random", "image_size": 32, **params}
    embedder = resolve(EmbeddingParams.model_validate(values), folder / "store")
    chance = np.random.default_rng(seed)
    outputs = max(1, len(classes))
    model = Linear(
        mean=np.zeros(embedder.dim),
        scale=np.ones(embedder.dim),
        weight=chance.normal(size=(outputs, embedder.dim)),
        bias=np.zeros(outputs),
    )
    calibration = Calibration(np.full(outputs, 0.5), np.linspace(0, 1, outputs))
    head = folder / f"head-{seed}-{target}"
    head.mkdir(parents=True)
    FittedHead(target, KINDS[target], tuple(classes), model, calibration).save(head)
    return package.read(package.write(folder / f"package-{seed}-{target}", embedder, head, max_pixels=10_000))


def images(folder: Path, count: int = 5) -> list[Sample]:
    """PNG files of noise, of several sizes."""
    chance = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for number in range(count):
        file = folder / f"{number}.png"
        Image.fromarray(chance.integers(0, 256, (40 + number, 48, 3), dtype=np.uint8)).save(file)
        samples.append(Sample(hashlib.sha256(file.read_bytes()).hexdigest(), file))
    return samples
