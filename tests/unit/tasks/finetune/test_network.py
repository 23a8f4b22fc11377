import copy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tasks.embedding.backbone import load, resolve
from tasks.embedding.features import Features, outputs_of
from tasks.embedding.weights import tuned_on
from tasks.errors import FinetuneError
from tasks.finetune.lora import attach, merge
from tasks.finetune.network import Tunable, export, scratch, tunable
from tasks.head.fitted import Calibration, FittedHead
from tasks.head.linear import Linear, UnitLinear
from tasks.params import EmbeddingParams
from tasks.records import Backbone, Kind, Preprocess, Target
from tests.unit.tasks.embedding.conftest import seeded

HOW = Preprocess(resize=32, size=32, interpolation="bilinear", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.1))
TARGETS: dict[Kind, Target] = {"logistic": "class", "multilabel": "labels", "ridge": "number"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def backbone(store: Path) -> Backbone:
    return resolved(store)


def resolved(store: Path, **params: object) -> Backbone:
    torch.manual_seed(0)
    file = store / "before.safetensors"
    save_file(seeded(timm.create_model("test_efficientnet"), 0).state_dict(), file)
    values = {"backbone": "timm:test_efficientnet", "weights": str(file), "image_size": 32, **params}
    return resolve(EmbeddingParams.model_validate(values), store).backbones[0]


def crops(count: int = 3) -> Tensor:
    chance = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, 32, 32), generator=chance, dtype=torch.uint8)


@torch.inference_mode()
def features_of(backbone: Backbone) -> Tensor:
    """As the embedding stage computes them."""
    model = Features(load(backbone), backbone.preprocess, outputs_of(backbone), backbone.name)
    features: Tensor = model(crops())[0]
    return features


def head(kind: Kind, length: int, outputs: int = 3, unit: bool = False) -> FittedHead:
    chance = np.random.default_rng(0)
    outputs = 1 if kind == "ridge" else outputs
    arrays = (
        chance.normal(size=length),
        np.repeat(chance.uniform(0.1, 3, size=2), [length // 2, length - length // 2]),
        chance.normal(size=(outputs, length)) / length**0.5,
        10 * chance.normal(size=outputs) if kind == "ridge" else chance.normal(size=outputs),
    )
    return FittedHead(
        target=TARGETS.get(kind, "class"),
        kind=kind,
        classes=() if kind == "ridge" else tuple("abcdefgh"[:outputs]),
        model=(UnitLinear if unit else Linear)(*arrays),
        calibration=Calibration.none(1)
        if kind == "ridge"
        else Calibration(chance.uniform(0.5, 2, size=outputs), chance.normal(size=outputs)),
    )


def test_tunable__standardises_crops_as_the_plain_way() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Flatten())
    nn.init.dirac_(plain[0].weight)  # type: ignore[arg-type]
    model = Tunable(plain, HOW, 2, "timm:x")
    mean, std = (torch.tensor(values)[:, None, None] for values in (HOW.mean, HOW.std))
    standardised = (crops() / 255 - mean) / std
    assert model.features == 3 * 32 * 32
    torch.testing.assert_close(model.embed(crops()), standardised.flatten(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.embed(standardised), standardised.flatten(1))


def test_tunable__gives_the_features_of_the_embedding_and_logits_of_zero(backbone: Backbone) -> None:
    model = tunable(backbone, 3, None, 0).eval()
    logits, features = model(crops())
    torch.testing.assert_close(features, features_of(backbone))
    assert logits.tolist() == [[0.0] * 3] * 3
    assert all(parameter.requires_grad for parameter in model.parameters())
    names = set(model.state_dict())
    assert names == {*(f"network.{name}" for name in load(backbone).state_dict()), "head.weight", "head.bias"}


@pytest.mark.parametrize("kind", TARGETS)
def test_tunable__starts_with_the_calibrated_logits_of_the_head(kind: Kind, backbone: Backbone) -> None:
    features = features_of(backbone)
    start = head(kind, features.shape[1])
    expected = start.calibration(start.logits(features.numpy()))
    logits, _ = tunable(backbone, expected.shape[1], start, 0).eval()(crops())
    np.testing.assert_allclose(logits.detach(), expected, atol=1e-4)
    assert np.ptp(expected) > 1e-2  # of a number over the images, not of outputs alone


def test_tunable__starts_with_zeros_where_the_head_is_no_affine_map(backbone: Backbone) -> None:
    start = head("prototype", features_of(backbone).shape[1], unit=True)
    logits, _ = tunable(backbone, 3, start, 0)(crops())
    assert not logits.any()


def test_tunable__head_over_other_blocks_is_refused(backbone: Backbone, store: Path) -> None:
    length = features_of(backbone).shape[1]
    two = resolved(store, layers=["network", "blocks.3"])
    message = r"^timm:test_efficientnet: the head stands on .* of the layer network alone; fit one on that"
    with pytest.raises(FinetuneError, match=message):
        tunable(two, 3, head("logistic", two.blocks[0].dim + two.blocks[1].dim), 0)
    with pytest.raises(FinetuneError, match=message):
        tunable(two, 3, head("logistic", length), 0, (two.blocks[1].digest,))
    mirrored = resolved(store, views=["hflip"])
    with pytest.raises(FinetuneError, match=message):  # that layer, of mirrored images
        tunable(mirrored, 3, head("logistic", length), 0)
    with pytest.raises(FinetuneError, match=message):
        tunable(backbone, 3, head("logistic", length + 1), 0)
    chosen = tunable(two, 3, head("logistic", length), 0, (two.blocks[0].digest,))
    assert chosen.head.weight.any()


def test_tunable__head_of_other_outputs_is_refused(backbone: Backbone) -> None:
    with pytest.raises(FinetuneError, match=r"the head has 3 outputs, 5 are wanted; fit it"):
        tunable(backbone, 5, head("logistic", features_of(backbone).shape[1]), 0)


def test_tunable__leaves_the_random_state_alone(backbone: Backbone) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    tunable(backbone, 3, None, 0)
    scratch(backbone, 3, 0)
    assert torch.equal(torch.rand(1), expected)


def test_tunable__copies_and_other_memory_formats_give_the_same(backbone: Backbone) -> None:
    start = head("logistic", features_of(backbone).shape[1])
    model = tunable(backbone, 3, start, 0).eval()
    copied = copy.deepcopy(model).to(memory_format=torch.channels_last)
    with torch.no_grad():
        model.head.weight.zero_()
        expected, _ = tunable(backbone, 3, start, 0).eval()(crops())
        found, _ = copied(crops().contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_tunable__logits_are_float32_under_autocast(backbone: Backbone) -> None:
    model = tunable(backbone, 3, head("logistic", features_of(backbone).shape[1]), 0).eval()
    with torch.autocast("cpu", torch.bfloat16):
        logits, features = model(crops())
    assert (logits.dtype, features.dtype) == (torch.float32, torch.float32)
    exact = features @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(logits, exact, rtol=1e-5, atol=1e-5)


def test_tunable__compiles_as_one_graph(backbone: Backbone) -> None:
    model = tunable(backbone, 3, head("logistic", features_of(backbone).shape[1]), 0).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(crops())[0], model(crops())[0])


def test_scratch__weights_are_of_the_seed(backbone: Backbone) -> None:
    def stem(seed: int) -> Tensor:
        return scratch(backbone, 3, seed).network.get_parameter("conv_stem.weight")

    assert torch.equal(stem(1), stem(1))
    assert not torch.equal(stem(1), stem(2))
    assert not torch.equal(stem(1), load(backbone).get_parameter("conv_stem.weight"))


def test_scratch__pixels_have_none(store: Path) -> None:
    pixels = resolve(EmbeddingParams.model_validate({"backbone": "regraft:pixels"}), store).backbones[0]
    with pytest.raises(FinetuneError, match=r"^regraft:pixels: has no weights to train"):
        scratch(pixels, 3, 0)


def test_export__gives_a_backbone_with_the_trained_features(backbone: Backbone, tmp_path: Path) -> None:
    model = tunable(backbone, 3, None, 0).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    model.train()(crops())  # moves the statistics
    exported = export(backbone, model.network, tmp_path, "manifest")
    assert exported.tuned == "manifest"
    assert exported.weights_digest != backbone.weights_digest
    assert exported.blocks[0].digest != backbone.blocks[0].digest
    assert exported.digest != backbone.digest
    features = features_of(exported)
    torch.testing.assert_close(features, model.eval().embed(crops()).detach(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(features, features_of(backbone), rtol=1e-2)


def test_export__equal_weights_make_equal_digests(backbone: Backbone, tmp_path: Path) -> None:
    plain = load(backbone)
    adapted = load(backbone)
    attach(adapted, rank=2, seed=0)
    merge(adapted)  # B is 0
    exported = [
        export(backbone, network, tmp_path / str(at), "manifest")
        for at, network in enumerate((plain, plain.to(memory_format=torch.channels_last), adapted))
    ]
    assert len({each.weights_digest for each in exported}) == 1
    assert len({each.digest for each in exported}) == 1
    # The file says what they were trained on.
    assert {tuned_on(Path(each.weights)) for each in exported} == {"manifest"}


def test_export__refuses_what_is_no_number_and_what_is_not_merged(backbone: Backbone, tmp_path: Path) -> None:
    broken, adapted = load(backbone), load(backbone)
    broken.get_parameter("bn1.weight").data[0] = float("nan")
    with pytest.raises(FinetuneError, match=r"1 tensors are not finite \(first: bn1\.weight\)"):
        export(backbone, broken, tmp_path, "manifest")
    attach(adapted, rank=2, seed=0)
    with pytest.raises(FinetuneError, match="merge them first"):
        export(backbone, adapted, tmp_path, "manifest")
    assert not list(tmp_path.iterdir())
