"""Small backbones with seeded weights, and real images."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conformal_clip_data
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from tasks.embedding.backbone import resolve
from tasks.embedding.extract import Sample
from tasks.embedding.forward import Forward, TorchForward
from tasks.params import EmbeddingParams
from tasks.records import Backbone, Embedder

SMALL = "timm:test_efficientnet"


def seeded(network: nn.Module, seed: int) -> nn.Module:
    """The network with every tensor drawn anew where it would be constant: an untrained normalisation
    changes nothing, and whoever leaves it out would not be found out."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.add_(0.2 * torch.randn_like(tensor))
    return network.eval()


@pytest.fixture(scope="session")
def weights_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The safetensors file of an architecture, with its classifier, for inputs of `size` px."""
    folder = tmp_path_factory.mktemp("weights")

    def write(backbone: str, seed: int = 0, size: int = 64) -> Path:
        library, name = backbone.split(":")
        file = folder / f"{library}-{name}-{seed}-{size}.safetensors"
        if not file.exists():
            torch.manual_seed(seed)
            if library == "timm":
                fixed = timm.get_pretrained_cfg(name).fixed_input_size  # type: ignore[union-attr]
                sized: dict[str, Any] = {"img_size": size} if fixed else {}
                network = timm.create_model(name, **sized)
            else:
                network = torchvision.models.get_model(name, weights=None)
            save_file(seeded(network, seed).state_dict(), file)
        return file

    return write


@pytest.fixture(scope="session")
def resolved(
    weights_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Embedder]:
    """A backbone by name with seeded weights; further arguments are parameters."""
    store = tmp_path_factory.mktemp("store")

    def make(backbone: str = SMALL, size: int = 64, seed: int = 0, **params: object) -> Embedder:
        values = {"backbone": backbone, "weights": str(weights_of(backbone, seed, size)), "image_size": size}
        return resolve(EmbeddingParams.model_validate({**values, **params}), store)

    return make


@pytest.fixture(scope="session")
def small(resolved: Callable[..., Embedder]) -> Embedder:
    return resolved(SMALL, 64)


@pytest.fixture(scope="session")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return resolve(EmbeddingParams(), tmp_path_factory.mktemp("lite0"))


@pytest.fixture(scope="session")
def photos() -> list[Sample]:
    """Eleven real images: not a multiple of the batch."""
    root = Path(str(conformal_clip_data.textile_simulated_root()))
    files = sorted((root / "local").iterdir())[:6] + sorted((root / "nominal").iterdir())[:5]
    return [Sample(hashlib.sha256(file.read_bytes()).hexdigest(), file) for file in files]


@pytest.fixture(scope="session", params=["torch", "openvino"])
def route(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Backbone], Forward]:
    """Each route of the forward pass on a CPU."""
    store = tmp_path_factory.mktemp("forward")
    made: dict[str, Forward] = {}  # a conversion takes seconds

    def of(backbone: Backbone) -> Forward:
        if request.param == "torch":
            return made.setdefault(backbone.digest, TorchForward(backbone))
        converted = pytest.importorskip("tasks.embedding.openvino").OpenVinoForward
        if backbone.digest not in made:
            made[backbone.digest] = converted(backbone, store / backbone.digest)
        return made[backbone.digest]

    return of
