"""Backbones without training: random weights and raw pixels."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tasks.embedding import forward as routes
from tasks.embedding.backbone import baseline_embedder, load, resolve
from tasks.embedding.decode import pixels
from tasks.embedding.disturb import disturbed
from tasks.embedding.extract import Extractor, Sample
from tasks.embedding.forward import TorchForward, forward_for
from tasks.embedding.source import baseline_params, named, source_identity
from tasks.params import EmbeddingParams
from tasks.records import Backbone, Embedder
from tasks.settings import Settings

SMALL = "timm:test_efficientnet"


def params(**values: object) -> EmbeddingParams:
    return EmbeddingParams.model_validate({"backbone": SMALL, "image_size": 64, **values})


def only(embedder: Embedder) -> Backbone:
    (backbone,) = embedder.backbones
    return backbone


@pytest.fixture(scope="module")
def of_pixels(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return only(resolve(EmbeddingParams(backbone="regraft:pixels"), tmp_path_factory.mktemp("store")))


@pytest.mark.parametrize("name", [SMALL, "torchvision:mobilenet_v3_small"])
def test_random_weights__are_the_same_every_time_and_leave_the_generator_alone(
    tmp_path: Path, name: str
) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = only(resolve(params(backbone=name, weights="random"), tmp_path))
    assert torch.equal(torch.rand(1), expected)
    torch.rand(5)
    again = only(resolve(params(backbone=name, weights="random"), tmp_path / "elsewhere"))
    assert again.digest == first.digest
    # As good as any weights: they are loaded from their file.
    state = load(first).state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in load(again).state_dict().items())


def test_random_weights__need_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.embedding.backbone.urlopen", lambda *_, **__: pytest.fail("asked the hub"))
    backbone = only(resolve(params(weights="random"), tmp_path))
    assert (backbone.name, [block.dim for block in backbone.blocks]) == (SMALL, [256])


def test_pixels__are_the_means_of_the_image(of_pixels: Backbone, photos: list[Sample]) -> None:
    extractor = Extractor(of_pixels, of_pixels.blocks, TorchForward(of_pixels))
    images = [pixels(sample.file.read_bytes(), 10**7) for sample in photos[:3]]
    (found,) = extractor(images, [sample.digest for sample in photos[:3]]).values()
    assert found.shape == (3, 768)
    # A photo of 250 px: the mean of a colour is that of all its pixels, up to the rounding of the resize.
    whole = np.stack([image.float().mean((1, 2)).numpy() for image in images]) / 255
    np.testing.assert_allclose(found.reshape(3, 3, 256).mean(2), whole, atol=3e-3)


def test_pixels__fingerprint_is_their_own_version_and_not_the_packages(
    of_pixels: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert of_pixels.library == "regraft 1"
    assert named(of_pixels) == of_pixels
    monkeypatch.setattr("tasks.embedding.source.PIXELS_VERSION", 2)
    assert named(of_pixels).blocks[0].digest != of_pixels.blocks[0].digest


def test_forward_for__pixels_are_computed_by_torch(
    of_pixels: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "_rate", lambda *_: pytest.fail("measured"))
    settings = Settings(state=tmp_path, forward="auto", cache_url=None)
    assert type(forward_for(of_pixels, tmp_path, settings)) is TorchForward


def test_baseline_embedder__is_the_backbones_untrained_then_pixels(tmp_path: Path) -> None:
    given = params(
        weights="/nowhere/x.safetensors", layers=["network", "blocks.3"], views=["identity", "hflip"]
    )
    made = baseline_embedder(given, tmp_path)
    random, of_pixels = made.backbones
    assert (random.name, of_pixels.name) == (SMALL, "regraft:pixels")
    assert random == only(resolve(given.model_copy(update={"weights": "random"}), tmp_path))
    assert [(block.layer, block.view) for block in random.blocks] == [
        ("network", "identity"), ("blocks.3", "identity"), ("network", "hflip"), ("blocks.3", "hflip")
    ]  # fmt: skip
    assert made.blocks[-1].parts == (768,)


def test_baseline_params__names_an_architecture_once_and_pixels_once() -> None:
    vit = {"backbone": "timm:test_vit", "layers": ["blocks.2"]}
    other = {"backbone": SMALL, "image_size": 64, "weights": "other.safetensors", "layers": ["blocks.3"]}
    made = baseline_params(params(others=[vit, other, {"backbone": "regraft:pixels"}]))
    named = [(one.backbone, one.weights, one.layers) for one in (made, *made.others)]
    assert named == [
        (SMALL, "random", ("network",)),
        ("timm:test_vit", "random", ("blocks.2",)),
        ("regraft:pixels", "auto", ("network",)),
    ]
    alone = baseline_params(EmbeddingParams(backbone="regraft:pixels"))
    assert (alone.backbone, alone.others) == ("regraft:pixels", ())


def test_source_identity__knows_random_weights_and_pixels() -> None:
    identities = [source_identity(params(weights="random")), source_identity(baseline_params(params()))]
    assert len(set(identities)) == 2


def test_forward_for__disturbed_views_take_the_route_that_was_measured_for_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed")
    folders: list[Path] = []

    def convert(backbone: Backbone, folder: Path) -> TorchForward:
        folders.append(folder)
        return TorchForward(backbone)

    # In the place of the module, whose import takes seconds.
    stub = SimpleNamespace(OpenVinoForward=convert)
    monkeypatch.setitem(sys.modules, "tasks.embedding.openvino", stub)
    monkeypatch.setattr(routes, "_agree", lambda *_: True)
    embedder = resolve(params(weights="random"), tmp_path / "weights")
    settings = Settings(state=tmp_path, forward="openvino", cache_url=None)
    for backbone in (only(embedder), only(disturbed(embedder))):
        forward_for(backbone, tmp_path / "forward", settings)
    assert len(folders) == 2
    assert len(set(folders)) == 1
    (deeper,) = resolve(params(weights="random", layers=["blocks.3"]), tmp_path / "weights").backbones
    forward_for(deeper, tmp_path / "forward", settings)
    assert len(set(folders)) == 2
