"""The forward pass on CUDA, against the one on the CPU. Skipped without a GPU."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from tasks.embedding.backbone import resolve_backbone
from tasks.embedding.forward import TorchForward, distance, forward_for
from tasks.params import BackboneParams
from tasks.records import Backbone
from tasks.settings import Settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

GPU = [torch.device("cuda", 0)]


@pytest.fixture(scope="module", params=["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(timm.create_model(request.param).state_dict(), file)
    return f"timm:{request.param}", file


def backbone(network: tuple[str, Path], store: Path, precision: str = "float32") -> Backbone:
    name, file = network
    params = {"backbone": name, "weights": str(file), "precision": precision}
    return resolve_backbone(BackboneParams.model_validate(params), store)


def crops(count: int) -> Tensor:
    noise = torch.randint(256, (count, 3, 224, 224), generator=torch.Generator().manual_seed(1))
    return noise.to(torch.uint8).contiguous(memory_format=torch.channels_last)


def test_gpu__float32_agrees_with_the_cpu(network: tuple[str, Path], tmp_path: Path) -> None:
    described = backbone(network, tmp_path)
    on_gpu, on_cpu = TorchForward(described, GPU), TorchForward(described)
    some = crops(on_gpu.batch)
    (there,), (here,) = on_gpu(some), on_cpu(some[: on_cpu.batch])
    assert distance(there[: on_cpu.batch], here) <= 1e-6


def test_gpu__bfloat16_is_near(network: tuple[str, Path], tmp_path: Path) -> None:
    exact, rough = backbone(network, tmp_path), backbone(network, tmp_path, "bfloat16")
    assert exact.digest != rough.digest
    forward = TorchForward(exact, GPU)
    some = crops(forward.batch)
    (a,), (b,) = forward(some), TorchForward(rough, GPU)(some)
    assert 0 < distance(a, b) <= 1e-2


def test_gpu__many_threads_get_their_own_vectors(network: tuple[str, Path], tmp_path: Path) -> None:
    forward = TorchForward(backbone(network, tmp_path), GPU)
    batches = [crops(forward.batch).roll(shift, 0) for shift in range(8)]
    alone = [forward(batch)[0] for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda batch: forward(batch)[0], batches))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_gpu__is_what_the_engine_takes(network: tuple[str, Path], tmp_path: Path) -> None:
    route = forward_for(backbone(network, tmp_path), tmp_path, Settings(state=tmp_path))
    assert isinstance(route, TorchForward)
    assert route.batch == 128
