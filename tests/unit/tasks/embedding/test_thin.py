from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from tasks.embedding import source
from tasks.embedding.backbone import load, resolve_backbone
from tasks.embedding.thin import thin
from tasks.embedding.weights import read_checkpoint
from tasks.errors import BackboneError
from tasks.finetune import bring
from tasks.params import BackboneParams, EmbeddingParams

HALF = "timm:test_efficientnet:0.5"
KEPT = slice(0, None, 2)  # of a half
NETWORKS = ["test_efficientnet", "test_resnet", "test_byobnet", "mobilenetv3_small_100"]


def half(weights: Path | str, **more: object) -> BackboneParams:
    values = {"backbone": HALF, "weights": str(weights), "image_size": 64, **more}
    return BackboneParams.model_validate(values)


@pytest.fixture
def whole(weights_of: Callable[..., Path]) -> Path:
    return weights_of("timm:test_efficientnet")


@pytest.mark.parametrize("width", [0.25, 0.5, 0.75, 0.33])
@pytest.mark.parametrize("name", NETWORKS)
def test_thin__gives_a_network_of_so_many_channels(name: str, width: float) -> None:
    network, before = (timm.create_model(name, num_classes=0).eval() for _ in range(2))
    thin(network, width, name)
    images = torch.zeros(2, 3, 64, 64)
    with torch.inference_mode():
        assert network(images).shape == (2, round(before(images).shape[1] * width))
    for path, module in network.named_modules():
        own: Any = before.get_submodule(path)
        if isinstance(module, nn.Conv2d):
            assert module.out_channels == round(own.out_channels * width)
            assert module.weight.shape == (
                module.out_channels, module.in_channels // module.groups, *own.kernel_size
            )  # fmt: skip
            assert module.weight.requires_grad


def test_thin__learns_in_all_its_weights() -> None:
    network: nn.Module = timm.create_model("test_efficientnet", num_classes=0).train()
    thin(network, 0.5, HALF)
    network(torch.randn(4, 3, 64, 64)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert all(parameter.grad.shape == parameter.shape for parameter in network.parameters())  # type: ignore[union-attr]


def test_thin__channels_that_say_nothing_can_go() -> None:
    """A network whose odd channels are silent computes the same without them."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(),
        nn.Conv2d(8, 12, 1, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for module in network:
            for parameter in module.parameters(recurse=False):
                parameter[1::2] = 0
    images = torch.randn(5, 3, 16, 16)
    with torch.inference_mode():
        expected = network(images)[:, KEPT]
        thin(network, 0.5, "small")
        assert torch.allclose(network(images), expected, atol=1e-6)
    assert [module.num_features for module in network if isinstance(module, nn.BatchNorm2d)] == [4]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("timm:test_vit:0.5", r"the network \(VisionTransformer\) is no convolution, linear layer or batch"),
        ("timm:test_convnext:0.5", r"stem\.1 \(LayerNorm2d\) is no convolution"),
        ("timm:cspresnet50:0.5", r" to 0\.5 \(not enough values to unpack"),  # a fixed split
        ("timm:resnext26ts:0.33", r" to 0\.33 \("),  # 32 groups
        ("torchvision:densenet121:0.33", r" to 0\.33 \("),  # concatenated
        ("torchvision:shufflenet_v2_x1_0:0.5", "its channels get mixed up"),
        ("torchvision:alexnet:0.5", "its channels get mixed up"),  # places and channels, flattened
    ],
)
def test_resolve__what_does_not_go_by_channel_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=f"{name}: can't be thinned.*{reason}"):
        resolve_backbone(half("auto", backbone=name), tmp_path)  # before weights are looked for


@pytest.mark.parametrize("name", ["timm:regnety_002", "torchvision:resnet18", "timm:mobilenetv3_small_050"])
def test_resolve__networks_of_other_kinds_are_thinned(name: str, tmp_path: Path) -> None:
    found = resolve_backbone(half("random", backbone=f"{name}:0.5"), tmp_path)
    whole = resolve_backbone(half("random", backbone=name), tmp_path)
    assert 2 * found.blocks[0].dim == whole.blocks[0].dim


def test_resolve__size_that_the_whole_network_does_not_take_is_said(tmp_path: Path) -> None:
    params = half("random", backbone="torchvision:inception_v3:0.5", image_size=32)
    with pytest.raises(BackboneError, match=r"inception_v3:0\.5: does not take 32 px images \("):
        resolve_backbone(params, tmp_path)


def test_resolve__thin_backbone_has_the_weights_of_the_whole_one(whole: Path, tmp_path: Path) -> None:
    found = resolve_backbone(half(whole), tmp_path)
    tensors, trained = read_checkpoint(Path(found.weights)), read_checkpoint(whole)
    assert (found.name, found.blocks[0].parts) == (HALF, (128,))
    assert torch.equal(tensors["conv_stem.weight"], trained["conv_stem.weight"][KEPT])
    assert torch.equal(tensors["conv_head.weight"], trained["conv_head.weight"][KEPT, KEPT])
    assert torch.equal(tensors["bn2.running_var"], trained["bn2.running_var"][KEPT])
    network, images = load(found), torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert network(images).shape == (2, 128)
    # The file of the thin weights, as a tuned student has it, is taken as it is.
    again = resolve_backbone(half(found.weights), tmp_path / "other")
    assert (again.weights_digest, again.digest) == (found.weights_digest, found.digest)


def test_resolve__random_weights_of_a_thin_backbone_are_seeded(tmp_path: Path) -> None:
    one, other = (resolve_backbone(half("random"), tmp_path / name) for name in ("one", "other"))
    assert one.digest == other.digest
    assert one.digest != resolve_backbone(half("random", image_size=48), tmp_path).digest


def test_resolve__packaged_weights_are_thinned_too(tmp_path: Path) -> None:
    params = BackboneParams(backbone="timm:tf_efficientnet_lite0:0.25", image_size=64)
    whole = resolve_backbone(params.model_copy(update={"backbone": "timm:tf_efficientnet_lite0"}), tmp_path)
    found = resolve_backbone(params, tmp_path)
    stem = "conv_stem.weight"
    kept = read_checkpoint(Path(found.weights))[stem]
    assert torch.equal(kept, read_checkpoint(Path(whole.weights))[stem][::4])
    assert found.preprocess == whole.preprocess
    assert len(load(found).state_dict()) == len(load(whole).state_dict())
    # Another machine finds them by the name.
    brought = bring.backbone(found, tmp_path / "elsewhere")
    assert brought is not None
    assert (brought.weights_digest, brought.digest) == (found.weights_digest, found.digest)


def test_source_identity__changes_with_the_packaged_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    params = EmbeddingParams(backbone="timm:tf_efficientnet_lite0:0.5")
    before = source.source_identity(params)
    monkeypatch.setattr(source, "file_digest", lambda file: "of other weights")
    assert source.source_identity(params) != before


def test_resolve__weights_of_another_width_are_refused(whole: Path, tmp_path: Path) -> None:
    found = resolve_backbone(half(whole), tmp_path)
    other = half(found.weights, backbone="timm:test_efficientnet:0.75")
    with pytest.raises(BackboneError, match=r"timm:test_efficientnet:0\.75: the weights do not fit \("):
        resolve_backbone(other, tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm:x", ("timm:x", 1.0)),
        ("timm:x:0.5", ("timm:x", 0.5)),
        ("torchvision:x@W:0.25", ("torchvision:x@W", 0.25)),
        ("regraft:pixels", ("regraft:pixels", 1.0)),
    ],
)
def test_width_of(name: str, expected: tuple[str, float]) -> None:
    assert source.width_of(name) == expected
