"""Every route of the forward pass against the plain way, written out here."""

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from tasks.embedding import forward as routes
from tasks.embedding.backbone import load
from tasks.embedding.decode import pixels
from tasks.embedding.extract import Sample
from tasks.embedding.features import Features, outputs_of
from tasks.embedding.forward import Forward, TorchForward, batch_for, forward_for
from tasks.embedding.preprocess import crop
from tasks.errors import BackboneError
from tasks.records import Backbone, Embedder
from tasks.settings import Settings

LIMIT = 10_000_000  # px
Route = Callable[[Backbone], Forward]
Resolved = Callable[..., Embedder]
Vectors = NDArray[np.float32]


def far(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """The largest 1 - cos between rows."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    return float((1 - (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))).max())


def assert_agree(a: Vectors, b: Vectors) -> None:
    """Also in what tells the images apart: most of a vector of random weights is the same for all."""
    assert far(a, b) <= 1e-6
    assert far(a - b.mean(0), b - b.mean(0)) <= 1e-6


def crops_of(photos: list[Sample], backbone: Backbone) -> Tensor:
    return torch.stack([crop(pixels(p.file.read_bytes(), LIMIT), backbone.preprocess) for p in photos])


def run(forward: Forward, crops: Tensor) -> list[Vectors]:
    """Of any number of crops, padded with others."""
    batch = crops[torch.arange(forward.batch) % len(crops)].contiguous(memory_format=torch.channels_last)
    return [vectors[: len(crops)] for vectors in forward(batch)]


def standardised(crops: Tensor, backbone: Backbone) -> Tensor:
    mean, std = torch.tensor(backbone.preprocess.mean), torch.tensor(backbone.preprocess.std)
    return (crops / 255 - mean[:, None, None]) / std[:, None, None]


def moments(x: Tensor) -> Tensor:
    """Mean, largest and standard deviation of [B, C, H, W]."""
    return torch.cat([x.mean((2, 3)), x.amax((2, 3)), x.std((2, 3), correction=0)], 1)


# The plain way, network by network: what each layer gives


def efficientnet(net: nn.Module, x: Tensor) -> list[Tensor]:
    y = stem = net.bn1(net.conv_stem(x))  # type: ignore[operator]
    for stage in list(net.blocks)[:4]:  # type: ignore[arg-type]
        y = stage(y)
    return [net(x), moments(stem), moments(y)]


def resnet(net: nn.Module, x: Tensor) -> list[Tensor]:
    # The stem's activation overwrites what the normalisation gave.
    found = create_feature_extractor(net, {"flatten": "a", "layer2.0.conv1": "b", "layer3": "c"})(x)
    return [found["a"], moments(net.bn1(net.conv1(x))), moments(found["b"]), moments(found["c"])]  # type: ignore[operator]


def transformer(net: nn.Module, x: Tensor) -> list[Tensor]:
    (tokens,) = net.get_intermediate_layers(x, n=[2], return_prefix_tokens=True)  # type: ignore[operator]
    places, cls = tokens[0], tokens[1][:, 0]
    parts = [cls, places.mean(1), places.amax(1), places.std(1, correction=0)]
    return [torch.cat(parts, 1), net(x)]


def mambaout(net: nn.Module, x: Tensor) -> list[Tensor]:
    y = net.stages[:2](net.stem(x))  # type: ignore[index, operator]
    assert y.shape[1:] == (8, 8, 32)  # channels last
    return [moments(y.permute(0, 3, 1, 2)), net(x)]


THREE, FOUR = ["mean", "max", "std"], ["cls", "mean", "max", "std"]
CASES = {
    "timm:test_efficientnet": (efficientnet, ["network", "bn1", "blocks.3"], THREE),
    "torchvision:resnet18": (resnet, ["network", "bn1", "layer2.0.conv1", "layer3"], THREE),
    "timm:test_vit": (transformer, ["blocks.2", "network"], FOUR),
    "timm:test_mambaout": (mambaout, ["stages.1", "network"], THREE),
}


@pytest.mark.parametrize("name", CASES)
def test_routes__give_what_the_plain_way_gives(
    name: str, resolved: Resolved, weights_of: Callable[..., Path], route: Route, photos: list[Sample]
) -> None:
    plain, layers, pooling = CASES[name]
    (backbone,) = resolved(name, layers=layers, pooling=pooling).backbones
    library, architecture = name.split(":")
    if library == "timm":
        sized: dict[str, Any] = {"img_size": 64} if "vit" in name else {}
        network: nn.Module = timm.create_model(architecture, num_classes=0, **sized)
        network.load_state_dict(load_file(weights_of(name)), strict=False)  # without a classifier
    else:
        network = torchvision.models.get_model(architecture, weights=None)
        network.load_state_dict(load_file(weights_of(name)))
    crops = crops_of(photos, backbone)
    with torch.inference_mode():
        expected = plain(network.eval(), standardised(crops, backbone))

    found = run(route(backbone), crops)

    assert [vectors.shape[1] for vectors in found] == [block.dim for block in backbone.blocks]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        assert_agree(one, other.numpy())


def test_routes__give_what_the_plain_way_gives_for_trained_weights_and_pil(
    lite0: Embedder, route: Route, photos: list[Sample]
) -> None:
    (backbone,) = lite0.backbones
    cuts = []
    for photo in photos[:4]:
        image = Image.open(photo.file).convert("RGB")
        scale = 256 / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        resized = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (resized.width - 224) // 2, (resized.height - 224) // 2
        cuts.append(np.asarray(resized.crop((left, top, left + 224, top + 224))))
    of_pil = torch.tensor(np.stack(cuts)).permute(0, 3, 1, 2)
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    network.load_state_dict(load(backbone).state_dict())
    with torch.inference_mode():
        reference = network((of_pil / 255 - 0.5) / 0.5).numpy()

    (same_pixels,) = run(route(backbone), of_pil)
    (from_files,) = run(route(backbone), crops_of(photos[:4], backbone))

    assert_agree(same_pixels, reference)
    assert far(from_files, reference) <= 1e-3  # the pixels differ by up to 1/255


def test_routes__bfloat16_is_near_and_has_another_fingerprint(
    resolved: Resolved, route: Route, photos: list[Sample]
) -> None:
    layers = {"layers": ["network", "blocks.3"], "pooling": THREE}
    (exact,), (near,) = resolved(**layers).backbones, resolved(**layers, precision="bfloat16").backbones
    crops = crops_of(photos, exact)
    for one, other in zip(run(route(exact), crops), run(route(near), crops), strict=True):
        assert other.dtype == np.float32
        assert far(one, other) <= 1e-2
    assert not {block.digest for block in exact.blocks} & {block.digest for block in near.blocks}


def test_torch__bfloat16_is_the_precision_of_the_pass(resolved: Resolved, photos: list[Sample]) -> None:
    (exact,), (near,) = resolved().backbones, resolved(precision="bfloat16").backbones
    crops = crops_of(photos, exact)
    assert far(run(TorchForward(exact), crops)[0], run(TorchForward(near), crops)[0]) > 1e-7


def test_routes__many_threads_at_once_give_the_same_bits(
    resolved: Resolved, route: Route, photos: list[Sample]
) -> None:
    (backbone,) = resolved(layers=["network", "blocks.3"], pooling=THREE).backbones
    forward, crops = route(backbone), crops_of(photos, backbone)
    parts = [crops[start : start + 3] for start in (0, 3, 6, 8)] * 3

    def call(part: Tensor) -> bytes:
        torch.set_num_threads(1)
        return b"".join(vectors.tobytes() for vectors in run(forward, part))

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(4) as four:
        assert list(four.map(call, parts)) == list(one.map(call, parts))


# The choice


@pytest.fixture
def backbone(small: Embedder) -> Backbone:
    return small.backbones[0]


def settings(choice: str, state: Path) -> Settings:
    return Settings.model_validate({"state": state, "forward": choice})


def kind(forward: Forward) -> str:
    return {"TorchForward": "torch", "OpenVinoForward": "openvino"}[type(forward).__name__]


def measure(monkeypatch: pytest.MonkeyPatch, rates: dict[str, float]) -> list[str]:
    """Has the measurement find these rates; the routes that it was asked for."""
    asked: list[str] = []

    def rate(forward: Forward, _: Backbone) -> float:
        asked.append(kind(forward))
        return rates[asked[-1]]

    monkeypatch.setattr(routes, "_rate", rate)
    return asked


def test_forward_for__torch_is_taken_as_it_is(backbone: Backbone, tmp_path: Path) -> None:
    assert kind(forward_for(backbone, tmp_path / "forward", settings("torch", tmp_path))) == "torch"
    assert list(tmp_path.iterdir()) == []


def test_forward_for__openvino_that_is_not_installed(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found(name) if name != "openvino" else None)
    with pytest.raises(
        BackboneError, match="OpenVINO is not installed; install the extra `cpu`, or set auto"
    ):
        forward_for(backbone, tmp_path, settings("openvino", tmp_path))
    assert kind(forward_for(backbone, tmp_path, settings("auto", tmp_path))) == "torch"


@pytest.mark.parametrize("quicker", ["torch", "openvino"])
def test_forward_for__the_quicker_route_is_remembered(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quicker: str
) -> None:
    pytest.importorskip("openvino")
    asked = measure(monkeypatch, {"torch": 1.0, "openvino": 1.0} | {quicker: 2.0})
    store = tmp_path / "forward"
    assert kind(forward_for(backbone, store, settings("auto", tmp_path))) == quicker
    assert sorted(asked) == ["openvino", "torch"]

    monkeypatch.setattr(routes, "_agree", lambda *_: pytest.fail("measured again"))
    if quicker == "torch":
        monkeypatch.setattr("tasks.embedding.openvino._converted", lambda *_: pytest.fail("converted"))
    assert kind(forward_for(backbone, store, settings("auto", tmp_path))) == quicker
    assert len(asked) == 2


def test_forward_for__other_circumstances_are_measured_anew(
    resolved: Resolved, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    asked = measure(monkeypatch, {"torch": 1.0, "openvino": 2.0})
    forward_for(backbone, tmp_path, settings("auto", tmp_path))
    forward_for(resolved(seed=1).backbones[0], tmp_path, settings("auto", tmp_path))
    monkeypatch.setattr(routes, "threads", lambda: 99)
    forward_for(backbone, tmp_path, settings("auto", tmp_path))
    assert len(asked) == 6


def test_forward_for__measures(backbone: Backbone, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    chosen = forward_for(backbone, tmp_path, settings("auto", tmp_path))
    (memo,) = tmp_path.glob("*.route")
    assert memo.read_text() == kind(chosen)


def test_forward_for__route_that_gives_other_vectors_is_refused(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino")

    class Off(Features):
        """Off by 1 - cos of about 1e-5."""

        def forward(self, crops: Tensor) -> tuple[Tensor, ...]:
            (vectors,) = super().forward(crops)
            sign = torch.arange(vectors.shape[1]) % 2 * 2 - 1
            return (vectors + 5e-3 * sign * vectors.square().mean(1, keepdim=True).sqrt(),)

    monkeypatch.setattr("tasks.embedding.openvino.Features", Off)
    asked = measure(monkeypatch, {"torch": 1.0, "openvino": 2.0})
    assert kind(forward_for(backbone, tmp_path, settings("auto", tmp_path))) == "torch"
    assert asked == []
    assert "timm:test_efficientnet: OpenVinoForward is off by 1 - cos = 1." in caplog.text
    with pytest.raises(BackboneError, match="timm:test_efficientnet gives other vectors there; set auto"):
        forward_for(backbone, tmp_path, settings("openvino", tmp_path))


@pytest.mark.parametrize("choice", ["torch", "auto", "openvino"])
def test_forward_for__weights_that_changed_are_refused(
    weights_of: Callable[..., Path], resolved: Resolved, tmp_path: Path, choice: str
) -> None:
    (backbone,) = resolved().backbones
    other = weights_of(backbone.name, 1)
    with pytest.raises(BackboneError, match="is missing or not the weights that timm:test_efficientnet was"):
        forward_for(backbone.model_copy(update={"weights": str(other)}), tmp_path, settings(choice, tmp_path))


# Batches and distances


@pytest.mark.parametrize(("size", "rows"), [(224, 4), (448, 4), (160, 8), (112, 16), (32, 196), (16, 256)])
def test_batch_for__holds_about_as_many_pixels_whatever_the_size(size: int, rows: int) -> None:
    assert batch_for(size) == rows


def test_distance__is_the_largest_of_all_rows() -> None:
    a = np.array([[1, 0], [1, 1], [3, 4]], dtype=np.float32)
    b = np.array([[2, 0], [1, 1], [4, 3]], dtype=np.float32)
    assert routes.distance(a, a) == pytest.approx(0)
    assert routes.distance(a, b) == pytest.approx(1 - 24 / 25)


def test_distance__rows_of_zeros_are_equal_to_each_other_alone() -> None:
    zeros, ones = np.zeros((1, 2), dtype=np.float32), np.ones((1, 2), dtype=np.float32)
    assert routes.distance(zeros, zeros) == 0
    assert routes.distance(zeros, ones) == 1


def test_outputs_of__order_is_that_of_the_blocks(resolved: Resolved) -> None:
    (backbone,) = resolved(layers=["blocks.3", "network"], views=["hflip", "identity"]).backbones
    assert [output.layer for output in outputs_of(backbone)] == ["blocks.3", "network"]
    assert [(b.layer, b.view) for b in backbone.blocks] == [
        ("blocks.3", "hflip"),
        ("network", "hflip"),
        ("blocks.3", "identity"),
        ("network", "identity"),
    ]
