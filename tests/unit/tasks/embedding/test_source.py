import hashlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.embedding import source
from tasks.errors import BackboneError
from tasks.params import BackboneParams, EmbeddingParams
from tests.unit.tasks.embedding.conftest import SMALL


def test_source_identity__names_weights_size_and_backbone(weights_of: Callable[..., Path]) -> None:
    one, other = str(weights_of(SMALL, 1)), str(weights_of(SMALL, 2))
    identities = [
        source.source_identity(EmbeddingParams(backbone=backbone, weights=weights, image_size=size))
        for backbone, weights, size in [
            ("timm:test_efficientnet", one, 32),
            ("timm:test_efficientnet", other, 32),
            ("timm:test_efficientnet", one, 48),
            ("timm:test_vit", one, 32),
            ("torchvision:resnet18", one, 32),
        ]
    ]
    assert len(set(identities)) == 5


@pytest.mark.parametrize("further", [False, True])
def test_source_identity__changes_with_the_files_content(
    weights_of: Callable[..., Path], tmp_path: Path, further: bool
) -> None:
    file = tmp_path / "mine.safetensors"
    file.write_bytes(weights_of(SMALL).read_bytes())
    params = (
        EmbeddingParams(others=(BackboneParams(weights=str(file)),))
        if further
        else EmbeddingParams(weights=str(file))
    )
    before = source.source_identity(params)
    file.write_bytes(file.read_bytes() + b"\0")
    assert source.source_identity(params) != before


@pytest.mark.parametrize("name", ["timm", "torchvision", "torch", "pillow"])
def test_source_identity__changes_with_the_library(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    params = EmbeddingParams(others=(BackboneParams(backbone="torchvision:resnet18"),))
    before, version = source.source_identity(params), importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda of: "99" if of == name else version(of))
    assert source.source_identity(params) != before


def test_source_identity__changes_with_what_is_taken() -> None:
    params = [
        EmbeddingParams(),
        EmbeddingParams(layers=("blocks.4",)),
        EmbeddingParams(layers=("blocks.4",), pooling=("max",)),
        EmbeddingParams(views=("hflip",)),
        EmbeddingParams(precision="bfloat16"),
        EmbeddingParams(others=(BackboneParams(views=("hflip",)),)),
    ]
    assert len({source.source_identity(one) for one in params}) == len(params)


def test_source_identity__changes_with_the_version_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = source.source_identity(EmbeddingParams())
    monkeypatch.setattr(source, "EMBEDDING_VERSION", source.EMBEDDING_VERSION + 1)
    assert source.source_identity(EmbeddingParams()) != before


def test_packaged_file__is_there_for_lite0_only() -> None:
    file = source.packaged_file("timm:tf_efficientnet_lite0")
    assert file is not None
    assert file.is_file()
    assert source.packaged_file("timm:resnet18") is None


@pytest.mark.parametrize("name", ["weights.pth", "weights.pkl", "weights"])
def test_local_file__other_than_safetensors_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"")
    with pytest.raises(BackboneError, match=r"must be `auto`, `random` or a \.safetensors file"):
        source.local_file(str(file))


def test_local_file__missing_is_an_error() -> None:
    with pytest.raises(BackboneError, match=r"embedding\.weights: none\.safetensors: no such file"):
        source.local_file("none.safetensors")


def test_file_digest__is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    assert source.file_digest(file) == hashlib.sha256(b"abc").hexdigest()
