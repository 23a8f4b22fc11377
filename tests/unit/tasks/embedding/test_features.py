from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin

from tasks.embedding.features import Features, Output, outputs_of
from tasks.errors import BackboneError
from tasks.records import Backbone, Block, Preprocess
from tests.unit.tasks.embedding.conftest import seeded

HOW = Preprocess(
    resize=40, size=32, interpolation="bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
NETWORK = Output("network", ())


def crops(count: int = 3, size: int = 32) -> Tensor:
    chance = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, size, size), generator=chance, dtype=torch.uint8)


def standardised(crops: Tensor) -> Tensor:
    mean, std = torch.tensor(HOW.mean), torch.tensor(HOW.std)
    return (crops / 255 - mean[:, None, None]) / std[:, None, None]


def features(network: nn.Module, *outputs: Output) -> Features:
    return Features(network.eval(), HOW, outputs, "timm:x")


@torch.inference_mode()
def assert_gives(network: nn.Module, expected: dict[Output, Tensor]) -> None:
    found = features(network, *expected)(crops())
    assert len(found) == len(expected)
    for one, (output, other) in zip(found, expected.items(), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=f"{output}")


class Plain(nn.Module):
    """A stem, whose output the activation overwrites, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.act = nn.ReLU(inplace=True)
        self.pair = nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.idle = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        self.pair((x, x))
        result: Tensor = self.pool(x)[:, :, 0, 0]
        return result


# What is pooled


def test_features__standardise_as_the_plain_way() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Flatten())
    nn.init.dirac_(network[0].weight)  # type: ignore[arg-type]
    assert_gives(network, {NETWORK: standardised(crops()).flatten(1)})


@torch.inference_mode()
def test_features__pool_places_of_a_convolution() -> None:
    network = seeded(Plain(), 0)
    stem = network.stem(standardised(crops()))  # type: ignore[operator]
    mean, most, deviation = stem.mean((2, 3)), stem.amax((2, 3)), stem.std((2, 3), correction=0)
    assert_gives(
        network,
        {
            # As the stem gave it, not as the activation left it.
            Output("stem", ("mean", "max", "std")): torch.cat([mean, most, deviation], 1),
            Output("stem", ("std", "mean")): torch.cat([deviation, mean], 1),
            Output("act", ("mean",)): stem.relu().mean((2, 3)),
            NETWORK: stem.relu().mean((2, 3)),
        },
    )


@torch.inference_mode()
def test_features__of_a_timm_transformer_tell_the_class_token_from_places() -> None:
    network = seeded(timm.create_model("test_vit", num_classes=0, img_size=32), 0)
    x = standardised(crops())
    (tokens,) = network.get_intermediate_layers(x, n=[3], return_prefix_tokens=True)  # type: ignore[operator]
    places, cls = tokens[0], tokens[1][:, 0]
    assert places.shape == (3, 4, 64)  # of 16 × 16 px
    assert_gives(
        network,
        {
            Output("blocks.3", ("cls", "mean")): torch.cat([cls, places.mean(1)], 1),
            Output("blocks.3", ("max", "std")): torch.cat([places.amax(1), places.std(1, correction=0)], 1),
            NETWORK: network(x),
        },
    )


@torch.inference_mode()
def test_features__registers_are_neither_places_nor_class_tokens() -> None:
    network = seeded(timm.create_model("test_vit3", num_classes=0, img_size=64), 0)
    crop = crops(1, 64)
    x = standardised(crop)
    (tokens,) = network.get_intermediate_layers(x, n=[1], return_prefix_tokens=True)  # type: ignore[operator]
    assert [part.shape[1] for part in tokens] == [16, 1]
    (found,) = features(network, Output("blocks.1", ("mean",)))(crop)
    torch.testing.assert_close(found, tokens[0].mean(1), rtol=1e-4, atol=1e-5)
    with pytest.raises(BackboneError, match=r"timm:x: layer blocks\.1 has no class token; use mean, max or"):
        features(network, Output("blocks.1", ("cls",)))(crop)


@torch.inference_mode()
def test_features__of_a_torchvision_transformer() -> None:
    network = VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32
    )
    network.heads = nn.Sequential()
    seeded(network, 0)
    x = network._process_input(standardised(crops()))
    tokens = torch.cat([network.class_token.expand(3, -1, -1), x], 1) + network.encoder.pos_embedding
    for layer in list(network.encoder.layers)[:2]:
        tokens = layer(tokens)
    assert tokens.shape == (3, 1 + 16, 16)
    assert_gives(
        network,
        {
            Output("encoder.layers.encoder_layer_1", ("cls", "mean", "max", "std")): torch.cat(
                [
                    tokens[:, 0],
                    tokens[:, 1:].mean(1),
                    tokens[:, 1:].amax(1),
                    tokens[:, 1:].std(1, correction=0),
                ],
                1,
            ),
            NETWORK: network(standardised(crops())),
        },
    )


def timm_swin() -> nn.Module:
    return SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=12, depths=(2, 2), num_heads=(2, 2), num_classes=0
    )


def torchvision_swin() -> nn.Module:
    network: nn.Module = TorchvisionSwin(
        patch_size=[4, 4], embed_dim=12, depths=[2, 2], num_heads=[2, 2], window_size=[4, 4]
    )
    network.head = nn.Identity()
    return network


@pytest.mark.parametrize(
    ("network", "path"),
    [(timm_swin(), ["patch_embed", "layers.0"]), (torchvision_swin(), ["features.0", "features.1"])],
    ids=["timm", "torchvision"],
)
@torch.inference_mode()
def test_features__channels_may_be_last(network: nn.Module, path: list[str]) -> None:
    seeded(network, 0)
    x = standardised(crops())
    for name in path:
        x = network.get_submodule(name)(x)
    assert x.shape == (3, 8, 8, 12)  # places of 4 × 4 px
    mean, most = x.mean((1, 2)), x.amax((1, 2))
    assert_gives(network, {Output(path[-1], ("mean", "max")): torch.cat([mean, most], 1)})


def test_features__of_one_place() -> None:
    network = seeded(Plain(), 0)
    with torch.inference_mode():
        pooled = network(standardised(crops()))
    assert_gives(network, {Output("pool", ("mean", "std")): torch.cat([pooled, torch.zeros(3, 8)], 1)})


# What can't be


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (Output("nosuch", ("mean",)), r"has no layer nosuch; it has act, idle, pair, pool, stem$"),
        (Output("idle", ("mean",)), "layer idle takes no part in the forward pass"),
        (Output("pair", ("mean",)), "layer pair does not give one tensor"),
        (Output("stem", ("mean", "cls")), "layer stem has no class token; use mean, max or std"),
    ],
)
def test_features__layer_that_cannot_be_taken_is_named(output: Output, message: str) -> None:
    with pytest.raises(BackboneError, match=f"^timm:x: {message}"):
        features(Plain(), output)(crops())


def test_features__many_layers_are_named_outermost_first() -> None:
    network = timm.create_model("test_efficientnet", num_classes=0)
    with pytest.raises(BackboneError) as error:
        features(network, Output("blocks.9", ("mean",)))
    assert str(error.value) == (
        "timm:x: has no layer blocks.9; it has blocks, bn1, bn2, classifier, conv_head, conv_stem,"
        " global_pool, blocks.0, blocks.1, blocks.2, blocks.3, blocks.4, ..."
    )


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        ("head", r"\[3, 24\]"),  # no places any more
        ("layers.0.blocks.0.attn", r"\[12, 16, 12\]"),  # four windows an image: rows are not images
        ("layers.0.blocks.0.attn.softmax", r"\[12, 2, 16, 16\]"),
    ],
)
@torch.inference_mode()
def test_features__output_without_places_is_refused(layer: str, shape: str) -> None:
    with pytest.raises(BackboneError, match=rf"layer {layer} gives {shape} for 3 images.*choose another"):
        features(timm_swin(), Output(layer, ("mean",)))(crops())


# Passes


@torch.inference_mode()
def test_features__passes_of_many_threads_are_kept_apart() -> None:
    together = Barrier(4, timeout=30)

    class Waiting(Plain):
        def forward(self, x: Tensor) -> Tensor:
            result = super().forward(x)
            together.wait()  # all have noted their stem
            return result

    waiting, plain = Waiting(), Plain()
    plain.load_state_dict(waiting.state_dict())
    model = features(waiting, Output("stem", ("mean",)), NETWORK)
    alone = features(plain, Output("stem", ("mean",)), NETWORK)
    inputs = [crops(8)[2 * part : 2 * part + 2] for part in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(torch.inference_mode()(model), inputs))
    for given, gave in zip(inputs, found, strict=True):
        for one, other in zip(gave, alone(given), strict=True):
            torch.testing.assert_close(one, other)


def test_outputs_of__views_share_a_pass() -> None:
    def block(layer: str, view: str) -> Block:
        pooling = () if layer == "network" else ("mean",)
        return Block.model_validate(
            {"digest": layer + view, "layer": layer, "pooling": pooling, "view": view, "parts": (3,)}
        )

    views = ("identity", "hflip")
    blocks = tuple(block(layer, view) for view in views for layer in ("network", "a"))
    backbone = Backbone(
        digest="", name="timm:x", weights="", weights_digest="", library="", preprocess=HOW,
        precision="float32", blocks=blocks,
    )  # fmt: skip
    assert outputs_of(backbone) == [NETWORK, Output("a", ("mean",))]
