from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from tasks.finetune.trunk import Unit, units

# Network -> the number of its units, and the modules that the first, the second and the last begin with.
NETWORKS = {
    "timm:test_efficientnet": (7, "conv_stem", "blocks.0", "conv_head"),
    "timm:test_resnet": (5, "conv1", "layer1", "layer4"),
    "timm:test_vit": (7, "patch_embed", "blocks.0", "blocks.5"),
    "timm:test_vit2": (9, "patch_embed", "blocks.0", "blocks.7"),
    "timm:test_vit3": (11, "patch_embed", "blocks.0", "attn_pool"),
    "timm:test_convnext": (5, "stem", "stages.0", "stages.3"),
    "timm:test_nfnet": (6, "stem", "stages.0", "final_conv"),
    "timm:test_byobnet": (5, "stem", "stages.0", "stages.3"),
    "timm:tf_efficientnet_lite0": (9, "conv_stem", "blocks.0", "conv_head"),
    "timm:resnet18": (5, "conv1", "layer1", "layer4"),
    "timm:mobilenetv3_small_050": (8, "conv_stem", "blocks.0", "conv_head"),
    "timm:convnext_atto": (5, "stem", "stages.0", "stages.3"),
    "timm:swin_tiny_patch4_window7_224": (5, "patch_embed", "layers.0", "layers.3"),
    "timm:vit_tiny_patch16_224": (13, "patch_embed", "blocks.0", "blocks.11"),
    "torchvision:resnet18": (5, "conv1", "layer1", "layer4"),
    "torchvision:mobilenet_v3_small": (14, "features.0", "features.1", "classifier"),
    "torchvision:vit_b_16": (
        13,
        "conv_proj",
        "encoder.layers.encoder_layer_0",
        "encoder.layers.encoder_layer_11",
    ),
    "torchvision:efficientnet_b0": (9, "features.0", "features.1", "features.8"),
    "torchvision:convnext_tiny": (8, "features.0", "features.1", "features.7"),
    "torchvision:vgg11": (9, "features.0", "features.3", "classifier"),
}


def network_of(backbone: str) -> nn.Module:
    """Without its classifier, and without memory for its weights."""
    library, name = backbone.split(":")
    network: nn.Module
    if library == "timm":
        try:
            with torch.device("meta"):
                network = timm.create_model(name, num_classes=0)
        except (RuntimeError, NotImplementedError):  # it computes a table
            network = timm.create_model(name, num_classes=0).to("meta")
        return network.eval()
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None)
    linear = [key for key, module in network.named_modules() if isinstance(module, nn.Linear)]
    network.set_submodule(linear[-1], nn.Identity())
    return network.eval()


@pytest.mark.parametrize("backbone", NETWORKS)
def test_units__hold_each_tensor_once_in_the_order_of_the_forward_pass(backbone: str) -> None:
    network = network_of(backbone)
    found = units(network)
    count, first, second, last = NETWORKS[backbone]
    assert (len(found), found[0].name, found[1].name, found[-1].name) == (count, first, second, last)

    tensors = [name for name, _ in (*network.named_parameters(), *network.named_buffers())]
    assert {name: sum(unit.holds(name) for unit in found) for name in tensors} == dict.fromkeys(tensors, 1)

    called: list[int] = []
    for name, module in network.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            places = [at for at, unit in enumerate(found) if unit.holds(f"{name}.weight")]
            for place in places:
                module.register_forward_pre_hook(lambda *_, place=place: called.append(place))
    size: Any = getattr(network, "default_cfg", {"input_size": (3, 224, 224)})["input_size"]
    network(torch.zeros(1, *size, device="meta"))
    assert called == sorted(called)
    assert set(called) == set(range(count))


def test_units__of_lite0_are_stem_stages_and_head() -> None:
    found = [unit.names for unit in units(network_of("timm:tf_efficientnet_lite0"))]
    stages = [(f"blocks.{stage}",) for stage in range(7)]
    assert found == [
        ("conv_stem", "bn1"),
        *stages,
        ("conv_head", "bn2", "global_pool", "classifier"),
    ]


def test_units__positions_and_tokens_belong_to_the_input() -> None:
    timms = units(network_of("timm:test_vit"))[0]
    assert {"cls_token", "pos_embed"} < set(timms.names)
    torchvisions = units(network_of("torchvision:vit_b_16"))[0]
    assert set(torchvisions.names) == {
        "conv_proj",
        "class_token",
        "encoder.pos_embedding",
        "encoder.dropout",
    }


def test_units__branches_of_a_block_are_no_units() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
            self.short = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    found = units(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), Block()))
    assert found == (Unit(("0", "1")), Unit(("2",)))


def test_units__of_a_network_without_layers() -> None:
    class Gain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))

    assert units(Gain()) == (Unit(("gain",)),)


def test_unit__holds_by_whole_names() -> None:
    unit = Unit(("blocks.1", "pos"))
    held = [name for name in ("blocks.1.w", "blocks.10.w", "pos", "pos2", "blocks.1") if unit.holds(name)]
    assert held == ["blocks.1.w", "pos", "blocks.1"]
