from typing import Any

import pytest
import timm
import torch
from torch import nn

from tasks.errors import FinetuneError
from tasks.finetune.network import Tunable
from tasks.finetune.trainable import Trainable, plan
from tasks.params import FinetuneParams
from tasks.records import Preprocess

HOW = Preprocess(resize=32, size=32, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
UNITS = 7  # of test_efficientnet: the stem, five stages, the last convolution


def model(name: str = "test_efficientnet", **options: Any) -> Tunable:
    return Tunable(timm.create_model(name, num_classes=0, **options), HOW, 3, f"timm:{name}")


def planned(of: Tunable, **values: Any) -> Trainable:
    return plan(of, FinetuneParams.model_validate(values))


def trained(of: nn.Module) -> set[str]:
    return {name for name, parameter in of.named_parameters() if parameter.requires_grad}


def in_train_mode(of: Tunable) -> set[str]:
    """Layers in train mode: normalisation, and whatever has no parts."""
    return {
        name
        for name, m in of.network.named_modules()
        if m.training and (isinstance(m, nn.BatchNorm2d) or not list(m.children()))
    }


def norms(of: Tunable) -> dict[str, nn.Module]:
    return {name: m for name, m in of.network.named_modules() if isinstance(m, nn.BatchNorm2d)}


@pytest.mark.parametrize("method", ["full", "lp_ft", "scratch"])
def test_plan__all_weights_slower_towards_the_input(method: str) -> None:
    of = model()
    found = planned(of, method=method, layer_decay=0.5, weight_decay=0.1)
    assert trained(of) == {name for name, _ in of.named_parameters()}
    assert found.count == sum(parameter.numel() for parameter in of.parameters())
    assert found.first == 0
    factors = {name: group.factor for group in found.groups for name in group.names}
    assert factors["network.conv_stem.weight"] == 0.5 ** (UNITS - 1)
    assert factors["network.blocks.4.0.conv_pw.weight"] == 0.5
    assert factors["network.conv_head.weight"] == factors["network.bn2.weight"] == 1
    assert factors["head.weight"] == factors["head.bias"] == 1
    assert [group.head for group in found.groups] == [name.startswith("head") for name in firsts(found)]


def firsts(found: Trainable) -> list[str]:
    return [group.names[0] for group in found.groups]


def test_plan__each_parameter_is_in_one_group() -> None:
    of = model()
    found = planned(of, method="full")
    grouped = [parameter for group in found.groups for parameter in group.parameters]
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in of.parameters()}
    assert len(grouped) == len(list(of.parameters()))
    named = dict(of.named_parameters())
    for group in found.groups:
        assert [id(named[name]) for name in group.names] == [id(each) for each in group.parameters]


@pytest.mark.parametrize("name", ["test_efficientnet", "test_efficientnet_gn", "test_convnext", "test_vit4"])
def test_plan__biases_normalisation_and_vectors_do_not_decay(name: str) -> None:
    of = model(name, **({"img_size": 32} if "vit" in name else {}))
    found = planned(of, method="full", weight_decay=0.1)
    decays = {name: group.decay for group in found.groups for name in group.names}
    named = dict(of.named_parameters())
    assert {name for name, decay in decays.items() if decay} == {
        name for name, parameter in named.items() if parameter.ndim > 1
    }
    assert set(decays.values()) == {0.0, 0.1}


def test_plan__last_blocks() -> None:
    of = model()
    found = planned(of, method="last_blocks", blocks=2)
    prefixes = ("network.blocks.4.", "network.conv_head.", "network.bn2.", "head.")
    expected = {name for name, _ in of.named_parameters() if name.startswith(prefixes)}
    assert trained(of) == expected
    assert found.first == UNITS - 2
    found.start_epoch(0)
    assert trained(of) == expected
    # The rest stays as it is, the statistics of its normalisation too.
    late = in_train_mode(of)
    assert {"conv_head", "bn2", "blocks.4.0.conv_pw"} < late
    assert all(_is_late(name) for name in late)


def _is_late(name: str) -> bool:
    return name.startswith(("blocks.4.", "conv_head", "bn2", "global_pool", "classifier"))


def test_plan__more_blocks_than_there_are() -> None:
    planned(model(), method="last_blocks", blocks=7)
    with pytest.raises(FinetuneError, match=r"^finetune\.blocks 8: timm:test_efficientnet has 7; choose"):
        planned(model(), method="last_blocks", blocks=8)


def begin(found: Trainable) -> list[int]:
    """The epoch from which each unit is trained, from the top."""
    epochs: dict[str, int] = {}
    for group in found.groups:
        if not group.head:
            parts = group.names[0].split(".")
            unit = {"conv_stem": 0, "bn1": 0, "conv_head": 6, "bn2": 6}.get(parts[1], -1)
            epochs[str(unit if unit >= 0 else int(parts[2]) + 1)] = group.from_epoch
    return [epochs[str(unit)] for unit in reversed(range(UNITS))]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (20, [1, 2, 3, 4, 5, 6, 7]),
        (14, [1, 2, 3, 4, 5, 6, 7]),
        (8, [1, 2, 2, 3, 3, 4, 4]),  # ⌈k · 4 / 7⌉
        (2, [1] * 7),
    ],
)
def test_plan__gradual_has_unfrozen_all_by_half_of_the_epochs(epochs: int, expected: list[int]) -> None:
    assert begin(planned(model(), method="gradual", epochs=epochs)) == expected


def test_plan__gradual_begins_with_the_head_alone() -> None:
    of = model()
    found = planned(of, method="gradual", epochs=20)
    assert (found.first, found.count) == (0, sum(parameter.numel() for parameter in of.parameters()))
    found.start_epoch(0)
    assert trained(of) == {"head.weight", "head.bias"}
    assert in_train_mode(of) == set()
    found.start_epoch(1)
    assert trained(of) == {
        "head.weight",
        "head.bias",
        "network.conv_head.weight",
        "network.bn2.weight",
        "network.bn2.bias",
    }
    assert "bn2" in in_train_mode(of)
    assert "bn1" not in in_train_mode(of)
    found.start_epoch(7)
    assert trained(of) == {name for name, _ in of.named_parameters()}
    assert "bn1" in in_train_mode(of)


def test_plan__gradual_needs_two_epochs() -> None:
    with pytest.raises(FinetuneError, match=r"^finetune\.epochs 1: method gradual"):
        planned(model(), method="gradual", epochs=1)


def test_plan__lora_trains_adapters_and_the_head() -> None:
    of = model()
    before = sum(parameter.numel() for parameter in of.parameters())
    found = planned(of, method="lora", rank=1)
    names = trained(of)
    assert {name for name in names if name.startswith("head")} == {"head.weight", "head.bias"}
    assert all(name.endswith((".weight.0.a", ".weight.0.b")) for name in names if "head." not in name)
    assert (found.first, found.count) == (
        0,
        sum(p.numel() for name, p in of.named_parameters() if name in names),
    )
    assert found.count < before / 10


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # Weight and bias of each.
        ("test_efficientnet", 2 * 13),
        ("test_convnext", None),
        ("test_efficientnet_evos", None),
    ],
)
def test_plan__norm_only(name: str, count: int | None) -> None:
    of = model(name)
    found = planned(of, method="norm_only")
    names = trained(of) - {"head.weight", "head.bias"}
    assert names
    assert all(of.get_parameter(name).ndim == 1 for name in names)
    layers = {type(of.get_submodule(name.rpartition(".")[0])).__name__ for name in names}
    assert all("Norm" in layer for layer in layers)
    if count is not None:
        assert len(names) == 2 * len(norms(of))
    assert all(group.decay == 0 for group in found.groups if not group.head)


def test_plan__nothing_to_train_is_said() -> None:
    with pytest.raises(
        FinetuneError, match=r"^timm:test_nfnet: has no layers that finetune\.method norm_only"
    ):
        planned(model("test_nfnet"), method="norm_only")


def test_start_epoch__frozen_statistics_stay_while_their_affine_part_is_trained() -> None:
    of = model()
    found = planned(of, method="full", batch_norm="frozen")
    found.start_epoch(0)
    assert not any(norm.training for norm in norms(of).values())
    assert of.network.get_submodule("conv_head").training
    assert "network.bn1.weight" in trained(of)
    statistics = {name: m.running_mean.clone() for name, m in norms(of).items()}  # type: ignore[operator]
    of(torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8))
    assert all(torch.equal(m.running_mean, statistics[name]) for name, m in norms(of).items())  # type: ignore[arg-type]


def test_start_epoch__follows_evaluation() -> None:
    of = model()
    found = planned(of, method="last_blocks", blocks=1)
    of.eval()
    found.start_epoch(1)
    assert norms(of)["bn2"].training
    assert not norms(of)["bn1"].training


def test_start_epoch__a_training_leaves_what_is_frozen_bit_for_bit() -> None:
    of = model(drop_path_rate=0.5)
    found = planned(of, method="last_blocks", blocks=1)
    before = {name: tensor.clone() for name, tensor in of.state_dict().items()}
    optimiser = torch.optim.SGD([parameter for group in found.groups for parameter in group.parameters], 0.1)
    found.start_epoch(0)
    torch.manual_seed(0)
    nn.init.normal_(of.head.weight)
    logits, _ = of(torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8))
    logits.square().sum().backward()
    optimiser.step()
    changed = {name for name, tensor in of.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[1] for name in changed if name.startswith("network.")} == {"conv_head", "bn2"}
    assert "network.bn2.running_mean" in changed
