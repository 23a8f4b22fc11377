import hashlib
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tasks.embedding import embed
from tasks.embedding.gather import gather
from tasks.errors import RegistryError
from tasks.head import fitted
from tasks.records import Embedder, Manifest
from tasks.registry import package
from tasks.settings import Settings


def _edit(folder: Path, **values: object) -> None:
    file = folder / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def _described(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "model.json").read_text())
    return values


def _edit_backbone(folder: Path, number: int, **values: object) -> None:
    embedder = _described(folder)["embedder"]
    embedder["backbones"][number] |= values
    _edit(folder, embedder=embedder)


def test_package__answers_what_the_head_answers_on_the_cached_embeddings(
    written: Path, embedder: Embedder, head_folder: Path, images: list[bytes], tmp_path: Path
) -> None:
    assert [block.dim for block in embedder.blocks] == [256, 96, 256, 96, 64]
    digests = [hashlib.sha256(content).hexdigest() for content in images]
    for digest, content in zip(digests, images, strict=True):
        (tmp_path / f"{digest}.png").write_bytes(content)
    rows = {"digest": digests, "path": [f"{digest}.png" for digest in digests], "split": ["test"] * 3}
    pq.write_table(pa.table(rows), tmp_path / "manifest.parquet")
    manifest = Manifest(
        digest="m", folder=str(tmp_path), samples=3, classes=(), slices=(), counts={}, conflicts=(),
        left_out=(), quarantined=0,
    )  # fmt: skip
    settings = Settings(state=tmp_path / "state", forward="auto", cache_url=None)
    cached = embed.run(manifest, tmp_path, embedder, settings, 10_000)
    expected = fitted.load(head_folder).outputs(gather(cached, digests))
    assert expected.max() < 0.999  # so that an agreement says something

    probabilities = package.read(written).outputs(images)

    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


def test_package__of_no_images_is_an_empty_table(written: Path) -> None:
    assert package.read(written).outputs([]).shape == (0, 3)


def test_package__works_in_another_folder_without_its_sources(
    written: Path, tmp_path: Path, images: list[bytes]
) -> None:
    before = package.read(written)
    moved = written.rename(tmp_path / "elsewhere")
    after = package.read(moved)
    names = ["backbone-0.safetensors", "backbone-1.safetensors"]
    assert [backbone.weights for backbone in after.embedder.backbones] == [str(moved / n) for n in names]
    assert after.digest == before.digest
    assert [b["weights"] for b in _described(moved)["embedder"]["backbones"]] == names
    assert after.outputs(images[:1]).shape == (1, 3)


def test_package__bad_image_is_named(written: Path, images: list[bytes]) -> None:
    with pytest.raises(package.BadInputError, match="image 1: not an image") as error:
        package.read(written).outputs([images[0], b"no image", images[1]])
    assert error.value.index == 1


def test_package__too_many_pixels_are_refused(written: Path) -> None:
    file = BytesIO()
    Image.new("RGB", (101, 100)).save(file, "PNG")  # the limit is 10,000
    with pytest.raises(package.BadInputError, match="image 0: too large"):
        package.read(written).outputs([file.getvalue()])


@pytest.mark.parametrize(
    "name", ["backbone-0.safetensors", "backbone-1.safetensors", "head.safetensors", "head.json"]
)
def test_read__changed_file_is_refused(written: Path, name: str) -> None:
    content = bytearray((written / name).read_bytes())
    content[-3] ^= 1
    (written / name).write_bytes(content)
    with pytest.raises(RegistryError, match=f"{name}: was changed"):
        package.read(written)


def test_read__missing_file_is_refused(written: Path) -> None:
    (written / "head.json").unlink()
    with pytest.raises(RegistryError, match=r"lacks head\.json"):
        package.read(written)


@pytest.mark.parametrize(("number", "name"), [(0, "timm:test_efficientnet"), (1, "timm:test_vit")])
def test_read__weights_that_a_backbone_does_not_name_are_refused(
    written: Path, number: int, name: str
) -> None:
    _edit_backbone(written, number, weights_digest="0" * 64)
    with pytest.raises(RegistryError, match=f"is not the file that {name} was resolved with"):
        package.read(written)


@pytest.mark.parametrize("number", [1, 2, None])
def test_read__other_format_is_refused(written: Path, number: int | None) -> None:
    _edit(written, format=number)
    message = (
        f"has format {number}, this Regraft reads format 3; use the Regraft that wrote it, or adapt anew"
    )
    with pytest.raises(RegistryError, match=message):
        package.read(written)


def test_read__file_that_is_not_listed_is_refused(written: Path) -> None:
    files = _described(written)["files"]
    del files["backbone-1.safetensors"]
    _edit(written, files=files)
    with pytest.raises(RegistryError, match=r"must list exactly backbone-0\.safetensors, backbone-1\."):
        package.read(written)


def test_read__unknown_field_is_refused_by_name(written: Path) -> None:
    _edit(written, extra=1)
    with pytest.raises(RegistryError, match=r"model\.json: extra: "):
        package.read(written)


def test_read__classes_that_are_not_the_heads_are_refused(written: Path) -> None:
    _edit(written, classes=["cat", "dog", "owl"])
    with pytest.raises(RegistryError, match="name different classes"):
        package.read(written)


@pytest.mark.parametrize("absolute", [True, False])
def test_read__path_that_leads_outside_is_refused(written: Path, tmp_path: Path, absolute: bool) -> None:
    (written / "backbone-1.safetensors").rename(tmp_path / "outside.safetensors")
    outside = str(tmp_path / "outside.safetensors") if absolute else "../outside.safetensors"
    files = _described(written)["files"]
    files[outside] = files.pop("backbone-1.safetensors")
    _edit(written, files=files)
    _edit_backbone(written, 1, weights=outside)
    with pytest.raises(RegistryError, match="names a file outside the package"):
        package.read(written)


def test_read__link_that_leads_outside_is_refused(written: Path, tmp_path: Path) -> None:
    (written / "head.json").rename(tmp_path / "head.json")
    (written / "head.json").symlink_to(tmp_path / "head.json")
    with pytest.raises(RegistryError, match="names a file outside the package"):
        package.read(written)


def test_read__folder_without_a_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="is not a package"):
        package.read(tmp_path)


def test_write__other_weights_than_the_backbones_are_refused(
    tmp_path: Path, embedder: Embedder, head_folder: Path
) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other")
    first, second = embedder.backbones
    swapped = embedder.model_copy(
        update={"backbones": (first, second.model_copy(update={"weights": str(other)}))}
    )
    with pytest.raises(RegistryError, match="is not the file that timm:test_vit was"):
        package.write(tmp_path / "package", swapped, head_folder, max_pixels=1)
    assert not (tmp_path / "package" / "model.json").exists()


def test_package__of_a_tuned_backbone_says_so(embedder: Embedder, head_folder: Path, tmp_path: Path) -> None:
    first, *others = embedder.backbones
    tuned = embedder.model_copy(update={"backbones": (first.model_copy(update={"tuned": "m" * 64}), *others)})
    written = package.read(package.write(tmp_path / "tuned", tuned, head_folder, 10_000))
    assert [backbone.tuned for backbone in written.embedder.backbones] == ["m" * 64, None]
    plain = package.read(package.write(tmp_path / "plain", embedder, head_folder, 10_000))
    assert written.digest != plain.digest


def test_package__of_before_there_were_tuned_backbones_is_read_unchanged(written: Path) -> None:
    fields = {"digest", "name", "weights", "weights_digest", "library", "preprocess", "precision", "blocks"}
    # What is written now is what was written then, to the key.
    assert [set(one) for one in _described(written)["embedder"]["backbones"]] == [fields] * 2
    assert [backbone.tuned for backbone in package.read(written).embedder.backbones] == [None, None]
