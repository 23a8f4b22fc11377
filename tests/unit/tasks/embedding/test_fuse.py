from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from tasks.embedding.fuse import fused

EXAMPLE = torch.zeros(1, 3, 32, 32)


def noise(count: int, size: int) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def normalisations(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def drawn(network: nn.Module) -> nn.Module:
    """With statistics as training leaves them."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return network.eval()


@torch.inference_mode()
def assert_same(one: nn.Module, other: nn.Module, x: Tensor) -> None:
    a, b = one(x), other(x)
    assert (a - b).abs().max() <= 1e-5 * a.abs().max()


class Used(nn.Module):
    """The convolution's output goes elsewhere too, where `use` takes it."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self._use = use

    def forward(self, x: Tensor) -> Tensor:
        before = self.conv(x)
        return self._use(self.bn(before), before)


class Swapped(nn.Module):
    """Children in another order than they are called in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(self.bn(x))
        return result


class Shared(nn.Module):
    """One convolution, called twice; the normalisation follows the second call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.bn(self.conv(self.conv(x)))
        return result


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("timm:test_efficientnet", 13, 0),  # normalisation with an activation of its own
        # Its stem is a sequence of modules that ends in a convolution; the layer behind is outside.
        ("timm:test_resnet", 15, 1),
        ("torchvision:resnet18", 20, 0),
    ],
)
def test_fused__computes_the_same_with_folded_normalisation(
    weights_of: Callable[..., Path], name: str, before: int, after: int
) -> None:
    library, architecture = name.split(":")
    create = timm.create_model if library == "timm" else torchvision.models.get_model
    network: nn.Module = create(architecture)
    network.load_state_dict(load_file(weights_of(name)))
    network.eval()
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}

    folded = fused(network, torch.zeros(1, 3, 64, 64))

    assert (normalisations(network), normalisations(folded)) == (before, after)
    assert_same(network, folded, noise(4, 64))
    # The network itself is as it was.
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())


def test_fused__is_frozen() -> None:
    network = fused(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), EXAMPLE)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_fused__wanted_outputs_stay() -> None:
    network = drawn(
        nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
            nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)),
        )
    )
    seen: dict[str, list[Tensor]] = {"0.0": [], "0.1": [], "1.1": []}
    folded = fused(network, EXAMPLE, keep=set(seen))
    assert normalisations(folded) == 1  # that behind 0.0
    for each in (network, folded):
        for name, outputs in seen.items():
            each.get_submodule(name).register_forward_hook(lambda *call, to=outputs: to.append(call[2]))
        with torch.inference_mode():
            each(noise(2, 32))
    for name, (a, b) in seen.items():
        torch.testing.assert_close(a, b, msg=name)


def test_fused__modules_within_a_wanted_normalisation_stay() -> None:
    network = timm.create_model("test_efficientnet").eval()
    assert "bn1.act" in dict(fused(network, EXAMPLE, keep={"bn1.act"}).named_modules())


@pytest.mark.parametrize(
    "use",
    [
        lambda after, before: after + before,
        lambda after, before: torch.cat([after, before]),
        lambda after, before: after * before.mean((2, 3), keepdim=True),
        lambda after, before: after.add_(before.relu()),
    ],
    ids=["sum", "concatenation", "gate", "in place"],
)
def test_fused__convolution_whose_output_is_used_elsewhere_stays(
    use: Callable[[Tensor, Tensor], Tensor],
) -> None:
    network = drawn(Used(use))
    folded = fused(network, EXAMPLE)
    assert normalisations(folded) == 1
    assert_same(network, folded, noise(2, 32))


@pytest.mark.parametrize("network", [Swapped(), Shared()], ids=["swapped", "shared"])
def test_fused__neighbours_that_do_not_follow_each_other_stay(network: nn.Module) -> None:
    folded = fused(drawn(network), EXAMPLE)
    assert normalisations(folded) == 1
    assert_same(network, folded, noise(2, 32))


def test_fused__statistics_of_the_batch_stay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert normalisations(fused(network, EXAMPLE)) == 1


def test_fused__convolution_without_and_normalisation_without_weights() -> None:
    network = drawn_plain = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False))
    assert isinstance(drawn_plain[1], nn.BatchNorm2d)
    assert drawn_plain[1].running_mean is not None
    drawn_plain[1].running_mean.fill_(0.3)
    network.eval()
    folded = fused(network, EXAMPLE)
    assert normalisations(folded) == 0
    assert_same(network, folded, noise(2, 32))
