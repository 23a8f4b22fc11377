import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from tasks.errors import FinetuneError
from tasks.finetune import prefix as prefixes
from tasks.finetune.network import Tunable
from tasks.finetune.prefix import CachedPrefix, Prefix, split
from tasks.finetune.trainable import plan
from tasks.finetune.trunk import units
from tasks.params import FinetuneParams
from tasks.records import Preprocess
from tests.unit.tasks.embedding.conftest import seeded

HOW = Preprocess(resize=32, size=32, interpolation="bilinear", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.1))
DIGESTS = tuple(f"{row:02d}" for row in range(5))
VIEWS = 3


def network_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module
    if name == "torchvision vit":
        network = torchvision.models.VisionTransformer(
            image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32
        )
        network.heads = nn.Sequential()
    elif name == "torchvision mobilenet":
        network = torchvision.models.mobilenet_v3_small(weights=None)
    elif name == "swin":
        network = timm.models.SwinTransformer(
            img_size=32, patch_size=4, window_size=4, embed_dim=12, depths=(2, 2, 2), num_heads=(2, 2, 2),
            num_classes=0,
        )  # fmt: skip
    else:
        sized: dict[str, Any] = {"img_size": 32} if "vit" in name else {}
        network = timm.create_model(name, num_classes=0, **sized)
    return seeded(network, 0)


def model_of(network: nn.Module) -> Tunable:
    model = Tunable(network, HOW, 2, "timm:x")
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return model


def crops(count: int = 4) -> Tensor:
    chance = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 3, 32, 32), generator=chance, dtype=torch.uint8)


@pytest.mark.parametrize(
    "name",
    [
        "test_efficientnet",
        "test_resnet",
        "test_vit",
        "test_vit3",
        "test_convnext",
        "swin",
        "torchvision vit",
        "torchvision mobilenet",
    ],
)
def test_split__parts_give_what_the_whole_gives(name: str) -> None:
    model = model_of(network_of(name)).eval()
    expected, features = model(crops())
    count = len(units(model.network))
    assert count > 2
    for unit in {1, count // 2, count - 1}:
        cut = split(model, unit)
        assert cut is not None
        before, after = cut
        logits, found = after(before(crops()))
        torch.testing.assert_close(found, features, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_split__nothing_lies_before_the_first_unit() -> None:
    assert split(model_of(network_of("test_resnet")), 0) is None


def test_split__trains_the_model_itself() -> None:
    model = model_of(network_of("test_efficientnet"))
    trainable = plan(model, FinetuneParams(method="last_blocks", blocks=2))
    assert trainable.first is not None
    cut = split(model, trainable.first)
    assert cut is not None
    before, after = cut
    trainable.start_epoch(0)
    activation = before(crops())
    logits, _ = after(activation)
    logits.square().sum().backward()
    gradients = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert gradients == {name for group in trainable.groups for name in group.names}
    # One step by the parts is one step by the whole, the statistics included.
    whole = model_of(network_of("test_efficientnet"))
    other = plan(whole, FinetuneParams(method="last_blocks", blocks=2))
    other.start_epoch(0)
    whole(crops())[0].square().sum().backward()
    for of, groups in ((model, trainable.groups), (whole, other.groups)):
        assert of.training
        torch.optim.SGD([each for group in groups for each in group.parameters], 1e-3).step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, whole.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)


def test_split__leaves_modes_and_weights_as_they_are() -> None:
    model = model_of(network_of("test_efficientnet")).train()
    model.network.get_submodule("blocks.1").eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    split(model, 3)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_split__frozen_part_is_in_eval_mode_whatever_the_model_is_in() -> None:
    model = model_of(network_of("test_efficientnet"))
    cut = split(model, 3)
    assert cut is not None
    expected = cut[0](crops())
    model.train()
    assert torch.equal(cut[0](crops()), expected)
    assert model.network.get_submodule("bn2").training


def test_split__rest_compiles() -> None:
    model = model_of(network_of("test_vit")).eval()
    cut = split(model, 4)
    assert cut is not None
    compiled = torch.compile(cut[1], backend="eager")
    for part in (crops(4), crops(2)):
        torch.testing.assert_close(compiled(cut[0](part))[0], model(part)[0], rtol=1e-4, atol=1e-4)


class Skipping(nn.Module):
    """Its last layer sees what the first one gave."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        result: Tensor = (self.third(self.second(x)) + x).mean((2, 3))
        return result


class Measuring(Skipping):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.third(self.second(self.first(x)) + self.first.weight.sum()).mean((2, 3))
        return result


@pytest.mark.parametrize(
    ("network", "reason"),
    [(Skipping(), "its features would differ by"), (Measuring(), "'_Zeros' object has")],
)
def test_split__what_is_no_chain_is_refused(network: nn.Module, reason: str) -> None:
    torch.manual_seed(0)
    model = model_of(network)
    with pytest.raises(
        FinetuneError, match=rf"^timm:x: can't be cut before third \({reason}.*cached_views 0$"
    ):
        split(model, 2)


class Pictures:
    """Grey images; notes which are asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(DIGESTS)

    def __getitem__(self, row: int) -> Tensor:
        self.asked.append(row)
        chance = torch.Generator().manual_seed(row)
        return torch.randint(256, (3, 40, 36), generator=chance, dtype=torch.uint8)


def view(image: Tensor, digest: str, number: int) -> Tensor:
    return image[:, number : number + 32, int(digest) % 3 :][:, :, :32]


@pytest.fixture(scope="module")
def cut() -> Prefix:
    found = split(model_of(network_of("test_efficientnet")), 4)
    assert found is not None
    return found[0]


def cached(folder: Path, cut: Prefix, **changed: Any) -> CachedPrefix:
    values: dict[str, Any] = {
        "weights": "w", "augment": ("crop",), "seed": 0, "views": VIEWS, "digests": DIGESTS,
        "precision": "float32", "batch": 4,
    }  # fmt: skip
    return CachedPrefix(folder, cut, **{**values, **changed})


def expected(cut: Prefix, rows: Sequence[int], numbers: Sequence[int]) -> Tensor:
    pictures = Pictures()
    return torch.cat(
        [
            cut(view(pictures[row], DIGESTS[row], number)[None])
            for row, number in zip(rows, numbers, strict=True)
        ]
    )


def test_cached_prefix__gives_each_view_of_each_sample(tmp_path: Path, cut: Prefix) -> None:
    of, seen = cached(tmp_path, cut), []
    of.fill(Pictures(), view, lambda done, count: seen.append((done, count)))
    assert seen == [(4, 15), (8, 15), (12, 15), (15, 15)]
    rows, numbers = [4, 0, 2, 2, 4], [2, 0, 1, 0, 0]
    found = of.batch(torch.tensor(rows), torch.tensor(numbers))
    assert (found.dtype, found.is_inference()) == (torch.float32, False)
    torch.testing.assert_close(found, expected(cut, rows, numbers), rtol=1e-5, atol=1e-5)
    assert of.bytes == sum(file.stat().st_size for file in tmp_path.glob("*.activations"))


def test_cached_prefix__bfloat16_takes_half(tmp_path: Path, cut: Prefix) -> None:
    of = cached(tmp_path, cut, precision="bfloat16")
    of.fill(Pictures(), view)
    assert 2 * of.bytes == cached(tmp_path, cut).bytes
    found = of.batch(torch.tensor([3]), torch.tensor([1]))
    assert found.dtype == torch.bfloat16
    exact = expected(cut, [3], [1])
    assert 0 < (found - exact).abs().max() < 0.05 * exact.abs().max()


def test_cached_prefix__is_computed_once(tmp_path: Path, cut: Prefix) -> None:
    cached(tmp_path, cut).fill(Pictures(), view)
    pictures, again = Pictures(), cached(tmp_path, cut)
    again.fill(pictures, view)
    assert pictures.asked == []
    torch.testing.assert_close(
        again.batch(torch.tensor([1]), torch.tensor([2])), expected(cut, [1], [2]), rtol=1e-5, atol=1e-5
    )


class KilledError(Exception):
    pass


def test_cached_prefix__carries_on_after_the_last_whole_chunk(
    tmp_path: Path, cut: Prefix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefixes, "CHUNK_BYTES", 8 * cached(tmp_path, cut).bytes // 15)  # two batches

    def killed(done: int, _count: int) -> None:
        if done == 12:
            raise KilledError

    with pytest.raises(KilledError):
        cached(tmp_path, cut).fill(Pictures(), view, killed)
    (description,) = tmp_path.glob("*.json")
    assert json.loads(description.read_text())["done"] == 8
    # What was written after the chunk may be anything.
    (file,) = tmp_path.glob("*.activations")
    content = file.read_bytes()
    half = len(content) * 8 // 15
    file.write_bytes(content[:half] + b"\xff" * (len(content) - half))

    pictures, of = Pictures(), cached(tmp_path, cut)
    of.fill(pictures, view)
    assert pictures.asked == [2, 3, 4]  # view 2 of sample 2 is the ninth
    rows = [row for row in range(5) for _ in range(VIEWS)]
    numbers = list(range(VIEWS)) * 5
    found = of.batch(torch.tensor(rows), torch.tensor(numbers))
    torch.testing.assert_close(found, expected(cut, rows, numbers), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "changed",
    [
        {"weights": "v"},
        {"augment": ("hflip",)},
        {"seed": 1},
        {"views": 2},
        {"digests": (*DIGESTS[:4], "99")},
        {"precision": "bfloat16"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_cached_prefix__of_anything_else_is_another(
    tmp_path: Path, cut: Prefix, changed: dict[str, Any]
) -> None:
    cached(tmp_path, cut).fill(Pictures(), view)
    pictures = Pictures()
    cached(tmp_path, cut, **changed).fill(pictures, view)
    assert pictures.asked == [0, 1, 2, 3, 4]


def test_cached_prefix__of_another_unit_is_another(tmp_path: Path, cut: Prefix) -> None:
    other = split(cut.model, 5)
    assert other is not None
    assert cached(tmp_path, cut).digest != cached(tmp_path, other[0]).digest


@pytest.mark.parametrize("damage", ["shorter", "gone", "no JSON", "other"])
def test_cached_prefix__damaged_files_are_computed_again(tmp_path: Path, cut: Prefix, damage: str) -> None:
    cached(tmp_path, cut).fill(Pictures(), view)
    (file,), (description,) = tmp_path.glob("*.activations"), tmp_path.glob("*.json")
    if damage == "shorter":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "gone":
        file.unlink()
    elif damage == "no JSON":
        description.write_text("{")
    else:
        description.write_text(description.read_text().replace("float32", "bfloat16"))
    pictures, of = Pictures(), cached(tmp_path, cut)
    of.fill(pictures, view)
    assert pictures.asked == [0, 1, 2, 3, 4]
    torch.testing.assert_close(
        of.batch(torch.tensor([4]), torch.tensor([2])), expected(cut, [4], [2]), rtol=1e-5, atol=1e-5
    )


def test_cached_prefix__is_not_read_before_it_is_filled(tmp_path: Path, cut: Prefix) -> None:
    with pytest.raises(FinetuneError, match="cached views are read before they are filled"):
        cached(tmp_path, cut).batch(torch.tensor([0]), torch.tensor([0]))


def test_cached_prefix__view_that_is_not_there(tmp_path: Path, cut: Prefix) -> None:
    of = cached(tmp_path, cut)
    of.fill(Pictures(), view)
    with pytest.raises(FinetuneError, match=r"holds the views 0 to 2, not \[3\]"):
        of.batch(torch.tensor([0]), torch.tensor([3]))  # it would be a view of the next sample


def test_cached_prefix__disk_that_is_too_small(
    tmp_path: Path, cut: Prefix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(FinetuneError, match=r"3 views of 5 samples take 0\.0 GB, 0\.0 GB are free; lower"):
        cached(tmp_path, cut).fill(Pictures(), view)
    assert [file.suffix for file in tmp_path.iterdir()] == [".lock"]
