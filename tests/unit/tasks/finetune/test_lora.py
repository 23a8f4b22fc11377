import copy
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from tasks.finetune.lora import SCALE, attach, merge
from tests.unit.tasks.embedding.conftest import seeded


def network() -> nn.Module:
    torch.manual_seed(0)
    return seeded(timm.create_model("test_efficientnet", num_classes=0), 0)


def noise(size: int = 64) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def adapters(of: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name: tensor
        for name, tensor in of.named_parameters()
        if name.endswith((".weight.0.a", ".weight.0.b"))
    }


def test_attach__changes_nothing_at_the_start_and_trains_adapters_alone() -> None:
    plain, adapted = network(), network()
    names = attach(adapted, rank=2, seed=0)
    torch.testing.assert_close(adapted(noise()), plain(noise()), rtol=0, atol=0)
    trained = {name for name, tensor in adapted.named_parameters() if tensor.requires_grad}
    assert trained == set(adapters(adapted))
    assert len(trained) == 2 * len(names)
    # Each dense convolution has one, no depthwise one.
    dense = [n for n, m in plain.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    grouped = [n for n, m in plain.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert grouped
    assert names == [name for name in dense if name not in grouped]


@pytest.mark.parametrize(
    "layer", [nn.Linear(6, 4), nn.Conv2d(2, 4, 3, bias=False)], ids=["linear", "convolution"]
)
def test_attach__adds_a_product_of_low_rank(layer: nn.Module) -> None:
    before = layer.weight.detach().clone()  # type: ignore[operator]
    attach(layer, rank=2, seed=0)
    a, b = adapters(layer).values()
    assert (len(a), b.shape) == (2, (4, 2))
    with torch.no_grad():
        b.copy_(torch.arange(8.0).view(4, 2))
    added = (layer.weight - before).flatten(1)  # type: ignore[operator]
    torch.testing.assert_close(added, SCALE * torch.arange(8.0).view(4, 2) @ a)
    assert torch.linalg.matrix_rank(added) == 2


def test_attach__rank_is_at_most_that_of_the_weight() -> None:
    layer = nn.Linear(6, 4)
    attach(layer, rank=100, seed=0)
    assert [tuple(tensor.shape) for tensor in adapters(layer).values()] == [(4, 6), (4, 4)]


def test_attach__is_a_function_of_the_seed() -> None:
    first, second, other = network(), network(), network()
    for each, seed in ((first, 1), (second, 1), (other, 2)):
        attach(each, rank=2, seed=seed)
    pairs = zip(adapters(first).values(), adapters(second).values(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    name = "conv_stem.parametrizations.weight.0.a"
    assert not torch.equal(adapters(first)[name], adapters(other)[name])


@pytest.mark.parametrize("kind", ["efficientnet", "vit", "torchvision"])
def test_merge__keeps_the_outputs_and_the_names(kind: str) -> None:
    if kind == "torchvision":
        plain: nn.Module = torchvision.models.VisionTransformer(
            image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32
        )
    else:
        sized: dict[str, Any] = {"img_size": 64} if kind == "vit" else {}
        plain = timm.create_model(f"test_{kind}", num_classes=0, **sized)
    seeded(plain, 0)
    adapted = copy.deepcopy(plain)
    attach(adapted, rank=4, seed=0)
    with torch.no_grad():
        for name, tensor in adapters(adapted).items():
            if name.endswith(".b"):
                tensor.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.1)
        expected = adapted(noise())
        assert (expected - plain(noise())).abs().max() > 1e-3
        merged = copy.deepcopy(adapted)
        merge(merged)
        torch.testing.assert_close(merged(noise()), expected)
    assert sorted(merged.state_dict()) == sorted(plain.state_dict())
    plain.load_state_dict(merged.state_dict(), strict=True)
    torch.testing.assert_close(plain(noise()), expected)
