"""A package: one folder with all that turns image bytes into answers, and nothing to run.

model.json              format version, embedder, classes, pixel limit, digests of the files
backbone-N.safetensors  weights of the N-th backbone, counted from 0
head.safetensors        weights of the head
head.json               kind, classes and calibration of the head
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.data.image import BadImage, decode
from tasks.embedding.source import file_digest
from tasks.errors import RegistryError
from tasks.head import fitted
from tasks.head.fitted import FittedHead
from tasks.records import Embedder, ModelPackage

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.embedding.extract import Extractor

FORMAT = 3
DESCRIPTION = "model.json"
_HEAD = ("head.safetensors", "head.json")


class BadInputError(ValueError):
    """An image of a request can't be used: which one (counted from 0), and why."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"image {index}: {reason}")
        self.index = index
        self.reason = reason


class _Description(BaseModel):
    """The content of `model.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[3]
    embedder: Embedder  # `weights` are relative to the package
    classes: tuple[str, ...]
    max_pixels: int
    files: dict[str, str]  # name -> hex SHA-256


@dataclass(frozen=True)
class Package:
    """A package that was read and checked."""

    folder: Path
    digest: str  # hex SHA-256 of model.json, which holds the digests of the other files
    embedder: Embedder  # `weights` are files in this folder
    classes: tuple[str, ...]
    max_pixels: int

    def outputs(self, images: Sequence[bytes]) -> NDArray[np.float64]:
        """What the head says of encoded images.

        Args:
            images: N files' contents (JPEG, PNG, ...).

        Returns:
            [N, K] float64: probabilities in the order of `classes`, or (K = 1) numbers.

        Raises:
            BadInputError: one of them is not an image, or has more than `max_pixels`.
        """
        if not images:
            return np.empty((0, max(1, len(self.classes))))
        decoded = list(self._decoded(images))
        digests = [hashlib.sha256(content).hexdigest() for content in images]
        vectors: dict[str, NDArray[np.float32]] = {}
        for extractor in self._extractors:
            vectors |= extractor(decoded, digests)
        embeddings = np.concatenate([vectors[block.digest] for block in self.embedder.blocks], axis=1)
        return self.head.outputs(embeddings)  # [N, K]

    def warm_up(self) -> None:
        """Loads the networks now, which the first prediction would do otherwise."""
        _ = self._extractors, self.head

    def _decoded(self, images: Sequence[bytes]) -> Iterator["Tensor"]:
        from tasks.embedding.decode import from_image

        for index, content in enumerate(images):
            try:
                yield from_image(decode(content, self.max_pixels))
            except BadImage as error:
                raise BadInputError(index, str(error)) from None

    @cached_property
    def _extractors(self) -> "list[Extractor]":
        # torch takes seconds to import, and a package is often read without being run.
        from tasks.embedding.extract import Extractor
        from tasks.embedding.forward import TorchForward

        return [
            Extractor(backbone, backbone.blocks, TorchForward(backbone))
            for backbone in self.embedder.backbones
        ]

    @cached_property
    def head(self) -> FittedHead:
        return fitted.load(self.folder)


def run(out: Path, embedder: Embedder, head_folder: Path, max_pixels: int) -> ModelPackage:
    """The stage: writes a package into `out/package`.

    Raises: as `write`.
    """
    made = read(write(out / "package", embedder, head_folder, max_pixels))
    size = sum(file.stat().st_size for file in made.folder.iterdir())
    return ModelPackage(digest=made.digest, folder=str(out), size_bytes=size)


def write(out: Path, embedder: Embedder, head_folder: Path, max_pixels: int) -> Path:
    """Writes a package into the folder `out`, `model.json` last; returns `out`.

    Raises:
        RegistryError: the weights are not the ones that a backbone names, or the folder has no head.
    """
    out.mkdir(parents=True, exist_ok=True)
    weights = {f"backbone-{number}.safetensors": each for number, each in enumerate(embedder.backbones)}
    sources = {name: Path(backbone.weights) for name, backbone in weights.items()}
    sources |= {name: head_folder / name for name in _HEAD}
    for name, source in sources.items():
        if not source.is_file():
            raise RegistryError(f"{source}: is missing; a package can't be made without it")
        shutil.copyfile(source, out / name)
    files = {name: file_digest(out / name) for name in sources}
    for name, backbone in weights.items():
        if files[name] != backbone.weights_digest:
            raise RegistryError(f"{backbone.weights}: is not the file that {backbone.name} was resolved with")
    description = _Description(
        format=FORMAT,
        embedder=_with_weights(embedder, list(weights)),
        classes=fitted.load(out).classes,
        max_pixels=max_pixels,
        files=files,
    )
    (out / DESCRIPTION).write_text(description.model_dump_json(indent=2) + "\n")
    return out


def read(folder: Path) -> Package:
    """Reads the package in `folder` and checks every file of it against its digest.

    Raises:
        RegistryError: it is not a package, has another format version, names files outside the
            folder, or a file is missing or was changed.
    """
    content, description = _describe(folder)
    backbones = description.embedder.backbones
    needed = {*(backbone.weights for backbone in backbones), *_HEAD}
    if set(description.files) != needed:
        raise RegistryError(
            f"{folder / DESCRIPTION}: must list exactly {', '.join(sorted(needed))} in `files`"
        )
    for name, digest in description.files.items():
        file = _inside(folder, name)
        if not file.is_file():
            raise RegistryError(f"{folder}: lacks {name}; download the package again")
        if file_digest(file) != digest:
            raise RegistryError(f"{file}: was changed since the package was written (SHA-256 differs)")
    for backbone in backbones:
        if description.files[backbone.weights] != backbone.weights_digest:
            file = folder / backbone.weights
            raise RegistryError(f"{file}: is not the file that {backbone.name} was resolved with")
    if fitted.load(folder).classes != description.classes:
        raise RegistryError(f"{folder}: model.json and head.json name different classes")
    return Package(
        folder=folder,
        digest=hashlib.sha256(content).hexdigest(),
        embedder=_with_weights(
            description.embedder, [str(_inside(folder, backbone.weights)) for backbone in backbones]
        ),
        classes=description.classes,
        max_pixels=description.max_pixels,
    )


def _with_weights(embedder: Embedder, files: Sequence[str]) -> Embedder:
    backbones = tuple(
        backbone.model_copy(update={"weights": file})
        for backbone, file in zip(embedder.backbones, files, strict=True)
    )
    return embedder.model_copy(update={"backbones": backbones})


def _describe(folder: Path) -> tuple[bytes, _Description]:
    file = folder / DESCRIPTION
    try:
        content = file.read_bytes()
        values = json.loads(content)
    except OSError as error:
        raise RegistryError(f"{folder}: is not a package ({DESCRIPTION}: {error.strerror})") from None
    except ValueError:
        raise RegistryError(f"{file}: is not JSON") from None
    version = values.get("format") if isinstance(values, dict) else None
    if version != FORMAT:
        raise RegistryError(
            f"{file}: has format {version!r}, this Regraft reads format {FORMAT};"
            " use the Regraft that wrote it, or adapt anew (with gate.mode absolute if it is the champion)"
        )
    try:
        return content, _Description.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise RegistryError(f"{file}: {where}: {problem['msg']}") from None


def _inside(folder: Path, name: str) -> Path:
    """The file `name` of the package; a link or `..` that leads out of it is refused."""
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise RegistryError(f"{folder / DESCRIPTION}: names a file outside the package: {name}")
    return file
