"""Small backbones with seeded weights and a head for them."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tasks.embedding.backbone import resolve
from tasks.head.fitted import Calibration, FittedHead
from tasks.head.linear import Linear
from tasks.params import EmbeddingParams
from tasks.records import Embedder
from tasks.registry import package

CLASSES = ("cat", "dog", "fox")


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    """Two backbones with several layers and views: blocks of 256, 96, 256, 96 and 64 numbers."""
    folder = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(0)
    values: list[dict[str, Any]] = []
    sizes: list[tuple[str, dict[str, Any]]] = [("test_efficientnet", {}), ("test_vit", {"img_size": 32})]
    for name, sized in sizes:
        file = folder / f"{name}.safetensors"
        save_file(timm.create_model(name, num_classes=0, **sized).state_dict(), file)
        values.append({"backbone": f"timm:{name}", "weights": str(file), "image_size": 32})
    params = {
        **values[0],
        "layers": ["network", "blocks.3"],
        "pooling": ["mean", "std"],
        "views": ["identity", "crop-0"],
        "others": [{**values[1], "layers": ["blocks.2"], "pooling": ["cls"]}],
    }
    return resolve(EmbeddingParams.model_validate(params), folder)


@pytest.fixture(scope="session")
def head_folder(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Path:
    folder = tmp_path_factory.mktemp("head")
    chance = np.random.default_rng(0)
    model = Linear(
        mean=np.zeros(embedder.dim),
        scale=np.ones(embedder.dim),
        weight=chance.normal(size=(len(CLASSES), embedder.dim)),
        bias=np.zeros(len(CLASSES)),
    )
    FittedHead("class", "logistic", CLASSES, model, Calibration(np.full(3, 0.5), np.zeros(3))).save(folder)
    return folder


@pytest.fixture
def written(tmp_path: Path, embedder: Embedder, head_folder: Path) -> Path:
    return package.write(tmp_path / "package", embedder, head_folder, max_pixels=10_000)


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
