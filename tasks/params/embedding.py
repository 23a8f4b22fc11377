"""What it is embedded with."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.params.section import Section
from tasks.records import Pooling

# An architecture of a library, and the part of its channels that is kept.
NAMED = r"(timm|torchvision):[A-Za-z0-9_.@-]+(:0\.\d?[1-9])?"
PIXELS = "regraft:pixels"  # no network: the means of 16 x 16 squares


RANDOM = "random"  # weights before any training


NETWORK = "network"  # the layer that is an architecture's own pooled output


class BackboneParams(Section):
    """A frozen backbone, and what is taken from it."""

    backbone: str = Field(
        "timm:tf_efficientnet_lite0",
        pattern=rf"^({NAMED}|regraft:pixels)$",
        description="timm:NAME, torchvision:NAME[@WEIGHTS], or regraft:pixels (no network: the means of 16 × 16 squares). NAME:WIDTH (0.01 to 0.99, such as timm:resnet18:0.5) is a convolutional network with this part of the channels of every layer, which has to be trained (distill.student).",
    )
    weights: str = Field(
        "auto",
        description="auto (the installed package's weights, else the model hub), the path of a .safetensors file, or random (untrained, to compare with).",
    )
    image_size: int | None = Field(
        None,
        ge=16,
        le=2048,
        description="Side of the input, px; empty: what the weights were trained with. Larger is slower and sees smaller defects.",
    )
    layers: tuple[str, ...] = Field(
        ("network",),
        min_length=1,
        description="Layers whose outputs are concatenated: network (the architecture's own pooled output) or names of its modules, such as blocks.4.",
    )
    pooling: tuple[Pooling, ...] = Field(
        ("mean",),
        min_length=1,
        description="How a module's output is reduced over places or tokens; several are concatenated. cls is for tokens only.",
    )
    views: tuple[Annotated[str, Field(pattern=r"^(identity|hflip|vflip|crop-(0|[1-9]\d{0,2}))$")], ...] = (
        Field(
            ("identity",),
            min_length=1,
            description="Views of each image whose embeddings are concatenated: identity, hflip, vflip, crop-K (the K-th seeded random crop). Each costs a forward pass.",
        )
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Of the forward pass. bfloat16 is about twice as quick where the hardware has it; its vectors are another cache.",
    )

    @model_validator(mode="after")
    def _each_counts(self) -> Self:
        for name in ("layers", "pooling", "views"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise ValueError(f"{name} must be distinct")
        if self.backbone == PIXELS and (self.weights != "auto" or self.layers != (NETWORK,)):
            raise ValueError(f"{PIXELS} has no weights and no layers; leave weights and layers out")
        if set(self.layers) == {NETWORK} and self.pooling != ("mean",):
            raise ValueError(
                "pooling has no effect on the layer network, which is pooled as it was trained; name modules in layers"
            )
        return self


class EmbeddingParams(BackboneParams):
    """The frozen backbone and how it sees an image."""

    others: tuple[BackboneParams, ...] = Field(
        (),
        description="Further backbones, whose embeddings follow in the same pass over the data.",
    )
