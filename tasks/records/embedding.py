"""Records of the embedding stage."""

from collections.abc import Collection
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from tasks.records.record import Record, digest_of


class Preprocess(BaseModel):
    """From a decoded RGB image to the backbone's input [3, size, size]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize: int  # shorter side after resizing, px
    size: int  # side of the centre crop, px
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


Pooling = Literal["mean", "max", "std", "cls"]


class Block(Record):
    """One kind of vector: what one layer of a backbone gives for one view of an image. `digest` is
    its fingerprint, the namespace in the cache: whatever changes the vectors changes it."""

    layer: str  # `network`: the architecture's own pooled output; else the name of a module
    pooling: tuple[Pooling, ...]  # concatenated in this order; empty for `network`
    view: str  # identity, hflip, vflip, crop-K; disturbed: noise-2, hflip+noise-2
    parts: tuple[int, ...]  # length of each pooling's part

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return sum(self.parts)


class Backbone(Record):
    """A frozen backbone, fully determined, and the blocks that are taken from it."""

    name: str  # `timm:NAME`, `torchvision:NAME[@WEIGHTS]`, either with `:WIDTH`, or `regraft:pixels`
    weights: str  # path of the safetensors file
    weights_digest: str  # hex SHA-256 of that file
    library: str  # of the architecture, with its version: `timm 1.0.31`
    preprocess: Preprocess
    precision: Literal["float32", "bfloat16"]  # of the forward pass; vectors are float32
    tuned: str | None = None  # digest of the manifest whose training split its weights were trained on
    blocks: tuple[Block, ...]

    @model_serializer(mode="wrap")
    def _as_ever_where_not_tuned(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `tuned` where it says nothing: such records, and what is named after their content,
        are the same as before there was the field."""
        values: dict[str, Any] = handler(self)
        return values if values.get("tuned") is not None else _without(values, "tuned")


class Embedder(Record):
    """From an image to its embedding: the blocks of all backbones, concatenated."""

    backbones: tuple[Backbone, ...]

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(block for backbone in self.backbones for block in backbone.blocks)

    @property
    def dim(self) -> int:
        """D, length of an embedding."""
        return sum(block.dim for block in self.blocks)

    def select(self, blocks: Collection[str]) -> Self:
        """The embedder of only these blocks (digests), in its own order."""
        if all(block.digest in blocks for block in self.blocks):
            return self
        kept = []
        for backbone in self.backbones:
            some = tuple(block for block in backbone.blocks if block.digest in blocks)
            if some:
                digest = digest_of([block.digest for block in some])
                kept.append(backbone.model_copy(update={"blocks": some, "digest": digest}))
        digest = digest_of([block.digest for backbone in kept for block in backbone.blocks])
        return self.model_copy(update={"digest": digest, "backbones": tuple(kept)})


class Embeddings(Record):
    """A complete set of cached embeddings for a manifest (completeness was proved)."""

    root: str  # the folder of all caches
    blocks: tuple[Block, ...]  # an embedding is their concatenation
    computed: int  # distinct samples embedded now
    cached: int  # distinct samples found in the cache
    # `Backbone.tuned` by the digest of a block, of those whose backbone has it.
    tuned: dict[str, str] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _as_ever_where_not_tuned(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return values if values.get("tuned") else _without(values, "tuned")

    @property
    def dim(self) -> int:
        """D, length of an embedding."""
        return sum(block.dim for block in self.blocks)

    def select(self, blocks: Collection[str]) -> Self:
        """The embeddings of only these blocks (digests), in their own order."""
        kept = tuple(block for block in self.blocks if block.digest in blocks)
        if kept == self.blocks:
            return self
        digest = digest_of(self.digest, [block.digest for block in kept])
        tuned = {block.digest: self.tuned[block.digest] for block in kept if block.digest in self.tuned}
        return self.model_copy(update={"digest": digest, "blocks": kept, "tuned": tuned})


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}
