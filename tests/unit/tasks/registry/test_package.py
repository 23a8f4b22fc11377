import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.embedding.backbone import load
from tasks.embedding.extract import embed_images
from tasks.errors import RegistryError
from tasks.head.linear import LinearHead
from tasks.records import Backbone
from tasks.registry import package


def _edit(folder: Path, **values: object) -> None:
    file = folder / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_package__answers_what_its_parts_answer(
    written: Path, backbone: Backbone, head_folder: Path, images: list[bytes]
) -> None:
    opened = [Image.open(BytesIO(content)).convert("RGB") for content in images]
    embeddings = embed_images(load(backbone), opened, backbone)
    expected = LinearHead.load(head_folder).predict_proba(embeddings)

    probabilities = package.read(written).predict_proba(images)

    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


def test_package__of_no_images_is_an_empty_table(written: Path) -> None:
    assert package.read(written).predict_proba([]).shape == (0, 3)


def test_package__works_in_another_folder_without_its_sources(
    written: Path, tmp_path: Path, images: list[bytes]
) -> None:
    before = package.read(written)
    moved = written.rename(tmp_path / "elsewhere")
    after = package.read(moved)
    assert after.backbone.weights == str(moved / "backbone.safetensors")
    assert after.digest == before.digest
    assert json.loads((moved / "model.json").read_text())["backbone"]["weights"] == "backbone.safetensors"
    assert after.predict_proba(images[:1]).shape == (1, 3)


def test_package__bad_image_is_named(written: Path, images: list[bytes]) -> None:
    with pytest.raises(package.BadInputError, match="image 1: not an image") as error:
        package.read(written).predict_proba([images[0], b"no image", images[1]])
    assert error.value.index == 1


def test_package__too_many_pixels_are_refused(written: Path) -> None:
    file = BytesIO()
    Image.new("RGB", (101, 100)).save(file, "PNG")  # the limit is 10,000
    with pytest.raises(package.BadInputError, match="image 0: too large"):
        package.read(written).predict_proba([file.getvalue()])


@pytest.mark.parametrize("name", ["backbone.safetensors", "head.safetensors", "head.json"])
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


def test_read__weights_that_the_backbone_does_not_name_are_refused(written: Path) -> None:
    described = json.loads((written / "model.json").read_text())["backbone"]
    _edit(written, backbone={**described, "weights_digest": "0" * 64})
    with pytest.raises(RegistryError, match="is not the file that timm:test_efficientnet was resolved with"):
        package.read(written)


def test_read__other_format_is_refused(written: Path) -> None:
    _edit(written, format=2)
    with pytest.raises(RegistryError, match="has format 2, this Regraft reads format 1"):
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
    (written / "backbone.safetensors").rename(tmp_path / "outside.safetensors")
    outside = str(tmp_path / "outside.safetensors") if absolute else "../outside.safetensors"
    described = json.loads((written / "model.json").read_text())
    files = {**described["files"], outside: described["backbone"]["weights_digest"]}
    del files["backbone.safetensors"]
    _edit(written, backbone={**described["backbone"], "weights": outside}, files=files)
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
    tmp_path: Path, backbone: Backbone, head_folder: Path
) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other")
    swapped = backbone.model_copy(update={"weights": str(other)})
    with pytest.raises(RegistryError, match="is not the file that"):
        package.write(tmp_path / "package", swapped, head_folder, max_pixels=1)
    assert not (tmp_path / "package" / "model.json").exists()
