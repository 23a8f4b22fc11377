"""A small backbone with seeded weights, and real images."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import conformal_clip_data
import pytest
import timm
import torch
from safetensors.torch import save_file

from tasks.embedding.backbone import resolve
from tasks.embedding.extract import Sample
from tasks.params import EmbeddingParams
from tasks.records import Backbone

SMALL = "timm:test_efficientnet"


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A safetensors file for `timm:test_efficientnet` with weights of a seed."""
    folder = tmp_path_factory.mktemp("small-weights")

    def write(seed: int) -> Path:
        file = folder / f"{seed}.safetensors"
        torch.manual_seed(seed)
        save_file(timm.create_model("test_efficientnet", num_classes=0).state_dict(), file)
        return file

    return write


@pytest.fixture(scope="session")
def small(small_weights: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    params = EmbeddingParams(backbone=SMALL, weights=str(small_weights(0)), image_size=32)
    return resolve(params, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return resolve(EmbeddingParams(), tmp_path_factory.mktemp("lite0"))


@pytest.fixture(scope="session")
def photos() -> list[Sample]:
    """Eleven real images: not a multiple of the batch."""
    root = Path(str(conformal_clip_data.textile_simulated_root()))
    files = sorted((root / "local").iterdir())[:6] + sorted((root / "nominal").iterdir())[:5]
    return [Sample(hashlib.sha256(file.read_bytes()).hexdigest(), file) for file in files]
