import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from tasks.embedding import backbone as backbones
from tasks.embedding import source
from tasks.embedding.source import embedder_of, fingerprint
from tasks.embedding.weights import TUNED, keep, read_checkpoint
from tasks.errors import BackboneError
from tasks.params import EmbeddingParams
from tasks.records import Backbone, Block, Embedder, digest_of

SMALL = "timm:test_efficientnet"


def resnet(name: str, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """A state dict of seeded random weights, with the classifier."""
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = torchvision.models.get_model(name, weights=None).state_dict()
    file = folder / f"{name}.safetensors"
    save_file(tensors, file)
    return file, tensors


def params(
    name: str, weights: Path | str = "auto", size: int | None = None, **more: object
) -> EmbeddingParams:
    values = {"backbone": name, "weights": str(weights), "image_size": size, **more}
    return EmbeddingParams.model_validate(values)


def only(embedder: Embedder) -> Backbone:
    (backbone,) = embedder.backbones
    return backbone


@pytest.fixture
def backbone(small: Embedder) -> Backbone:
    return only(small)


@pytest.fixture
def block(small: Embedder) -> Block:
    (block,) = small.blocks
    return block


# identity


def test_resolve__identity_changes_with(resolved: Callable[..., Embedder]) -> None:
    embedders = [
        resolved(),
        resolved(seed=1),
        resolved(size=48),
        resolved(layers=["blocks.3"]),
        resolved(layers=["blocks.2"]),
        resolved(layers=["blocks.3"], pooling=["max"]),
        resolved(layers=["blocks.3"], pooling=["max", "mean"]),
        resolved(layers=["blocks.3"], pooling=["mean", "max"]),
        resolved(views=["hflip"]),
        resolved(views=["crop-0"]),
        resolved(views=["crop-1"]),
        resolved(precision="bfloat16"),
    ]
    fingerprints = [block.digest for embedder in embedders for block in embedder.blocks]
    assert len(set(fingerprints)) == len(embedders)
    assert len({embedder.digest for embedder in embedders}) == len(embedders)


def test_resolve__block_keeps_its_fingerprint_whatever_it_is_taken_with(
    resolved: Callable[..., Embedder],
) -> None:
    alone = [resolved(layers=[layer], views=[view]).blocks[0] for layer, view in [
        ("network", "identity"), ("blocks.3", "identity"), ("network", "hflip"), ("blocks.3", "hflip")
    ]]  # fmt: skip
    together = resolved(layers=["network", "blocks.3"], views=["identity", "hflip"])
    assert together.blocks == tuple(alone)
    swapped = resolved(layers=["blocks.3", "network"], views=["identity", "hflip"])
    assert swapped.digest != together.digest  # other embeddings of the same blocks


def test_resolve__identity_is_the_same_wherever_the_weights_lie(
    small: Embedder, weights_of: Callable[..., Path], tmp_path: Path
) -> None:
    again = backbones.resolve(params(SMALL, weights_of(SMALL), 64), tmp_path / "elsewhere")
    assert only(again).weights != only(small).weights
    assert again.digest == small.digest


@pytest.mark.parametrize(
    "change",
    [
        {"name": "timm:test_efficientnet_ln"},
        {"weights_digest": "0" * 64},
        {"library": "timm 99"},
        {"precision": "bfloat16"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_fingerprint__changes_with(backbone: Backbone, block: Block, change: dict[str, object]) -> None:
    assert fingerprint(backbone, block) == block.digest
    assert fingerprint(backbone.model_copy(update=change), block) != block.digest


@pytest.mark.parametrize(
    "change",
    [
        {"resize": 33},
        {"size": 31},
        {"interpolation": "bilinear"},
        {"mean": (0.0, 0.0, 0.0)},
        {"std": (2.0, 2.0, 2.0)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_fingerprint__changes_with_preprocessing(
    backbone: Backbone, block: Block, change: dict[str, object]
) -> None:
    preprocess = backbone.preprocess.model_copy(update=change)
    assert preprocess != backbone.preprocess
    changed = backbone.model_copy(update={"preprocess": preprocess})
    assert fingerprint(changed, block) != block.digest


@pytest.mark.parametrize("what", ["EMBEDDING_VERSION", "DECODER"])
def test_fingerprint__changes_with_the_version_of_the_code(
    backbone: Backbone, block: Block, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(source, what, "1000")
    assert fingerprint(backbone, block) != block.digest


@pytest.mark.parametrize("library", ["timm", "pillow", "torchvision", "torch"])
def test_embedder_of__has_the_fingerprints_of_what_is_installed(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    assert embedder_of([backbone]).backbones == (backbone,)
    version = importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda of: "99.1" if of == library else version(of))
    (later,) = embedder_of([backbone]).backbones
    assert {block.digest for block in later.blocks}.isdisjoint(block.digest for block in backbone.blocks)
    assert [block.parts for block in later.blocks] == [block.parts for block in backbone.blocks]


# blocks


def test_resolve__blocks_are_layers_within_views(resolved: Callable[..., Embedder]) -> None:
    embedder = resolved(
        layers=["blocks.3", "network"], pooling=["mean", "max", "std"], views=["identity", "hflip"]
    )
    assert [(b.layer, b.pooling, b.view, b.parts) for b in embedder.blocks] == [
        ("blocks.3", ("mean", "max", "std"), "identity", (48, 48, 48)),
        ("network", (), "identity", (256,)),
        ("blocks.3", ("mean", "max", "std"), "hflip", (48, 48, 48)),
        ("network", (), "hflip", (256,)),
    ]
    assert embedder.dim == 2 * (3 * 48 + 256)


def test_resolve__further_backbones_follow(
    resolved: Callable[..., Embedder], weights_of: Callable[..., Path]
) -> None:
    vit = {"backbone": "timm:test_vit", "weights": str(weights_of("timm:test_vit")), "image_size": 64}
    embedder = resolved(others=[{**vit, "layers": ["blocks.2"], "pooling": ["cls", "mean"]}])
    assert [backbone.name for backbone in embedder.backbones] == [SMALL, "timm:test_vit"]
    assert [block.parts for block in embedder.blocks] == [(256,), (64, 64)]
    assert embedder.blocks[0] == resolved().blocks[0]


def test_resolve__backbone_that_is_named_twice_is_refused(
    resolved: Callable[..., Embedder], weights_of: Callable[..., Path]
) -> None:
    again = {"backbone": SMALL, "weights": str(weights_of(SMALL)), "image_size": 64}
    message = r"embedding\.others: names a backbone with the same layers and views twice"
    with pytest.raises(BackboneError, match=message):
        resolved(others=[again])
    with pytest.raises(BackboneError, match=message):  # one of its blocks alone
        resolved(others=[{**again, "layers": ["blocks.3", "network"]}])
    flipped = {**again, "views": ["hflip"]}
    with pytest.raises(BackboneError, match=message):
        resolved(others=[flipped, flipped])
    assert len(resolved(others=[flipped]).blocks) == 2


@pytest.mark.parametrize(
    ("layers", "pooling", "message"),
    [
        (["blocks.9"], ["mean"], r"has no layer blocks\.9; it has blocks, bn1, "),
        (["classifier"], ["mean"], r"layer classifier gives \[1, 256\] for 1 images, which has no places"),
        (["blocks.3"], ["cls"], r"layer blocks\.3 has no class token; use mean, max or std"),
    ],
)
def test_resolve__layer_that_cannot_be_taken_is_an_error(
    resolved: Callable[..., Embedder], layers: list[str], pooling: list[str], message: str
) -> None:
    with pytest.raises(BackboneError, match=f"{SMALL}: {message}"):
        resolved(layers=layers, pooling=pooling)


def test_resolve__lite0_is_as_it_was_trained(lite0: Embedder) -> None:
    assert lite0.dim == 1280
    assert only(lite0).preprocess.model_dump() == {
        "resize": 256,  # 224 / 0.875
        "size": 224,
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    }


def test_resolve__another_size_keeps_the_share_of_the_image(
    weights_of: Callable[..., Path], tmp_path: Path
) -> None:
    config = timm.get_pretrained_cfg("test_efficientnet")
    assert config is not None
    side = config.input_size[-1]
    resized = int(side / config.crop_pct)
    found = only(backbones.resolve(params(SMALL, weights_of(SMALL), 2 * side), tmp_path)).preprocess
    assert (found.size, found.resize) == (2 * side, 2 * resized)


def test_resolve__vision_transformer_takes_another_size(resolved: Callable[..., Embedder]) -> None:
    found = resolved("timm:test_vit", 96)
    assert backbones.load(only(found))(torch.zeros(1, 3, 96, 96)).shape == (1, found.dim)


# local weights


def test_resolve__torchvision_network_without_its_classifier(tmp_path: Path) -> None:
    file, tensors = resnet("resnet18", tmp_path)
    found = backbones.resolve(params("torchvision:resnet18", file, 64), tmp_path / "store")
    reference = torchvision.models.resnet18(weights=None).eval()
    reference.load_state_dict(tensors)
    reference.fc = torch.nn.Identity()
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    with torch.inference_mode():
        vector = backbones.load(only(found))(image)
        expected = reference(image)

    assert found.dim == 512
    torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-5)


def test_resolve__own_classifier_in_the_file_stays_behind(tmp_path: Path) -> None:
    _, tensors = resnet("resnet18", tmp_path)
    of_ten_classes = {**tensors, "fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    without = {key: tensor for key, tensor in tensors.items() if not key.startswith("fc.")}
    found = []
    for name, some in (("own", of_ten_classes), ("none", without)):
        save_file(some, tmp_path / f"{name}.safetensors")
        chosen = params("torchvision:resnet18", tmp_path / f"{name}.safetensors", 64)
        found.append(backbones.resolve(chosen, tmp_path / "store").digest)
    assert found[0] == found[1]


def test_resolve__weights_of_before_batch_counters_are_taken(tmp_path: Path) -> None:
    # Checkpoints of PyTorch before 0.4.1 have none (torchvision's resnets); evaluation uses none.
    _, tensors = resnet("resnet18", tmp_path)
    old = {key: tensor for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")}
    assert len(old) == 102
    save_file(old, tmp_path / "old.safetensors")
    found = backbones.resolve(params("torchvision:resnet18", tmp_path / "old.safetensors", 64), tmp_path)
    assert found.dim == 512


@pytest.mark.parametrize(
    ("wanted", "given", "message"),
    [
        ("resnet34", "resnet18", "the weights lack"),
        ("resnet18", "resnet34", "the weights have .* tensors that it has not"),  # all its keys, and more
        ("shufflenet_v2_x1_0", "shufflenet_v2_x0_5", "the weights do not fit"),  # the same keys, other shapes
    ],
)
def test_resolve__weights_of_another_architecture_are_refused(
    tmp_path: Path, wanted: str, given: str, message: str
) -> None:
    file, _ = resnet(given, tmp_path)
    with pytest.raises(BackboneError, match=f"torchvision:{wanted}: {message}"):
        backbones.resolve(params(f"torchvision:{wanted}", file, 64), tmp_path / "store")
    assert not list((tmp_path / "store").glob("*"))


def test_load__other_weights_than_resolved_are_refused(
    weights_of: Callable[..., Path], tmp_path: Path
) -> None:
    found = only(backbones.resolve(params(SMALL, weights_of(SMALL), 64), tmp_path))
    file = Path(found.weights)
    file.write_bytes(weights_of(SMALL, 1).read_bytes())
    with pytest.raises(BackboneError, match=r"is missing or not the weights"):
        backbones.load(found)
    file.unlink()
    with pytest.raises(BackboneError, match=r"is missing or not the weights"):
        backbones.load(found)


def test_load__network_is_frozen(backbone: Backbone) -> None:
    network = backbones.load(backbone)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


# names and the hub


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:nosuch", "has no such model; see timm.list_models"),
        ("torchvision:nosuch", "has no such classifier"),
        ("torchvision:fcn_resnet50", "has no such classifier"),  # it segments
        ("torchvision:squeezenet1_0", "its classifier is not linear"),
        ("torchvision:resnet18@NOSUCH", "no such weights; resnet18 has IMAGENET1K_V1"),
    ],
)
def test_resolve__unknown_name_is_an_error(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(BackboneError, match=f"{name}: .*{message}"):
        backbones.resolve(params(name), tmp_path)


def _unreachable(*_: object, **__: object) -> None:
    raise URLError("no route to host")


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
def test_resolve__offline_without_packaged_weights_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(backbones, "urlopen", _unreachable)
    monkeypatch.setattr("torch.hub.download_url_to_file", _unreachable)
    with pytest.raises(BackboneError) as error:
        backbones.resolve(params(name), tmp_path)
    assert str(error.value) == (
        f"{name}: no installed package ships its weights and the model hub can't be reached"
        " (no route to host); give a local file in embedding.weights"
    )
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_resolve__hub_that_answers_is_asked_for_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(address: str, timeout: float) -> None:
        raise HTTPError(address, 403, "no", None, None)  # type: ignore[arg-type]

    def create(name: str, size: int | None, *, pretrained: bool = False) -> torch.nn.Module:
        if pretrained:
            raise RuntimeError("no such file on the hub")
        network: torch.nn.Module = timm.create_model(name, num_classes=0)
        return network

    monkeypatch.setattr(backbones, "urlopen", refused)
    monkeypatch.setattr(backbones, "timm_network", create)
    with pytest.raises(BackboneError, match=r"can't be reached \(RuntimeError\)"):
        backbones.resolve(params("timm:resnet18"), tmp_path)


def test_resolve__torchvision_weights_are_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, tensors = resnet("resnet18", tmp_path)
    asked = []

    def download(address: str, to: str, prefix: str, progress: bool) -> None:
        asked.append((address, prefix))
        torch.save(tensors, to)

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    first = backbones.resolve(params("torchvision:resnet18", size=64), tmp_path)
    second = backbones.resolve(params("torchvision:resnet18@IMAGENET1K_V1", size=64), tmp_path)

    assert only(first).weights_digest == only(second).weights_digest
    ((address, prefix),) = asked
    assert address.endswith(f"resnet18-{prefix}.pth")


def test_resolve__size_that_the_network_cannot_take_is_an_error(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = tmp_path / "convnext.safetensors"
    save_file(timm.create_model("test_convnext", num_classes=0).state_dict(), file)
    with pytest.raises(BackboneError, match="timm:test_convnext: does not take 16 px images"):
        backbones.resolve(params("timm:test_convnext", file, 16), tmp_path / "store")


def test_resolve__weights_that_were_tuned_are_known_again(
    resolved: Callable[..., Embedder], weights_of: Callable[..., Path], tmp_path: Path
) -> None:
    plain = resolved(SMALL, 64).backbones[0]
    assert plain.tuned is None
    tensors = read_checkpoint(Path(plain.weights))
    file, digest = keep(tensors, tmp_path / "trained", {TUNED: "m" * 64})
    params = EmbeddingParams(backbone=SMALL, weights=str(file), image_size=64)
    (first,) = backbones.resolve(params, tmp_path / "store").backbones
    # The file in the store says so too, and is the same: nothing is embedded twice.
    assert (first.tuned, first.weights_digest) == ("m" * 64, digest)
    again = params.model_copy(update={"weights": first.weights})
    (second,) = backbones.resolve(again, tmp_path / "other").backbones
    assert (second.tuned, second.blocks) == ("m" * 64, first.blocks)
    # Weights that say something else are other weights.
    assert first.blocks[0].digest != plain.blocks[0].digest
    assert source.source_identity(params) != source.source_identity(
        params.model_copy(update={"weights": str(weights_of(SMALL, 0, 64))})
    )


def test_resolve__random_weights_of_a_tuned_backbone_are_not_tuned(tmp_path: Path) -> None:
    network = timm.create_model("test_efficientnet", num_classes=0)
    file, _ = keep(dict(network.state_dict()), tmp_path, {TUNED: "m"})
    params = EmbeddingParams(backbone=SMALL, weights=str(file), image_size=64)
    found = backbones.baseline_embedder(params, tmp_path / "store")
    assert [backbone.tuned for backbone in found.backbones] == [None, None]


def test_fingerprint__does_not_change_with_what_a_backbone_was_tuned_on(
    backbone: Backbone, block: Block
) -> None:
    tuned = backbone.model_copy(update={"tuned": "m"})
    assert fingerprint(tuned, block) == fingerprint(backbone, block)
    # Nor with the field: this is what was described before there was it.
    names = ("name", "weights_digest", "library", "preprocess", "precision")
    values = backbone.model_dump(mode="json")
    described = {name: values[name] for name in names}
    expected = digest_of(source.decoding(), described, block.layer, block.pooling, block.view)
    assert fingerprint(backbone, block) == expected


def test_named__stays_tuned(backbone: Backbone) -> None:
    assert source.named(backbone.model_copy(update={"tuned": "m"})).tuned == "m"
