"""A small backbone with seeded weights and a head for it."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tasks.embedding.backbone import resolve
from tasks.head.linear import LinearHead
from tasks.params import EmbeddingParams
from tasks.records import Backbone
from tasks.registry import package

CLASSES = ("cat", "dog", "fox")


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    weights = timm.create_model("test_efficientnet", num_classes=0).state_dict()
    save_file(weights, folder / "weights.safetensors")
    params = EmbeddingParams(
        backbone="timm:test_efficientnet", weights=str(folder / "weights.safetensors"), image_size=32
    )
    return resolve(params, folder)


@pytest.fixture(scope="session")
def head_folder(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> Path:
    folder = tmp_path_factory.mktemp("head")
    chance = np.random.default_rng(0)
    LinearHead(
        classes=CLASSES,
        mean=np.zeros(backbone.dim),
        scale=np.ones(backbone.dim),
        weight=chance.normal(size=(len(CLASSES), backbone.dim)),
        bias=np.zeros(len(CLASSES)),
        temperature=2.0,
    ).save(folder)
    return folder


@pytest.fixture
def written(tmp_path: Path, backbone: Backbone, head_folder: Path) -> Path:
    return package.write(tmp_path / "package", backbone, head_folder, max_pixels=10_000)


@pytest.fixture(scope="session")
def images() -> list[bytes]:
    """Three PNG files of 48 × 40 px noise."""
    chance = np.random.default_rng(1)
    files = []
    for _ in range(3):
        file = BytesIO()
        Image.fromarray(chance.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    return files
