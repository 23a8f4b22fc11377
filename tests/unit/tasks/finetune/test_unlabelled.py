import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tasks.data import content
from tasks.data.stack import row_digest
from tasks.errors import DataError
from tasks.finetune.unlabelled import Unlabelled, find
from tasks.params import DataParams
from tasks.records import Manifest

LENIENT = DataParams(max_quarantined_fraction=0.9)


def picture(file: Path, light: int) -> str:
    """Writes an image; returns the digest of its content."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (light, 0, 0)).save(file, "PNG")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def manifest(folder: Path, digests: dict[str, str]) -> Manifest:
    """Of samples, each content with its split."""
    folder.mkdir(exist_ok=True)
    columns = {"digest": list(digests), "split": list(digests.values())}
    schema = pa.schema({"digest": pa.string(), "split": pa.string()})
    pq.write_table(pa.table(columns, schema=schema), folder / "manifest.parquet")
    return Manifest(
        digest="m", folder=str(folder), samples=len(digests), classes=("a", "b"), slices=(), counts={},
        conflicts=(), left_out=(), quarantined=0,
    )  # fmt: skip


def found(tmp_path: Path, held: dict[str, str] | None = None, params: DataParams = LENIENT) -> Unlabelled:
    listed = manifest(tmp_path / "files", held or {})
    return find(tmp_path / "more", listed, params, tmp_path / "state")


def names(got: Unlabelled) -> set[str]:
    return {sample.file.name for sample in got.samples}


def test_unlabelled__images_below_a_folder(tmp_path: Path) -> None:
    digests = [picture(tmp_path / "more" / name, light) for light, name in enumerate(["a.png", "x/y/b.png"])]
    picture(tmp_path / "more" / ".hidden" / "c.png", 9)
    picture(tmp_path / "more" / ".d.png", 10)
    got = found(tmp_path, params=DataParams())
    assert [sample.digest for sample in got.samples] == sorted(digests)
    assert names(got) == {"a.png", "b.png"}
    assert all(sample.file.is_file() and sample.row is None for sample in got.samples)
    assert got.quarantined == ()


@pytest.mark.parametrize("split", ["test", "validation", "train"])
def test_unlabelled__content_of_the_dataset_is_left_out(tmp_path: Path, split: str) -> None:
    digest = picture(tmp_path / "more" / "a.png", 1)
    picture(tmp_path / "more" / "b.png", 2)
    shutil.copy(tmp_path / "more" / "a.png", tmp_path / "more" / "renamed.png")
    got = found(tmp_path, {digest: split})
    assert names(got) == {"b.png"}
    assert got.held == 1


def test_unlabelled__same_content_counts_once(tmp_path: Path) -> None:
    picture(tmp_path / "more" / "b.png", 1)
    shutil.copy(tmp_path / "more" / "b.png", tmp_path / "more" / "a.png")
    assert names(found(tmp_path)) == {"a.png"}


def test_unlabelled__bad_files_are_set_aside_and_counted(tmp_path: Path) -> None:
    for light in range(4):
        picture(tmp_path / "more" / f"{light}.png", light)
    (tmp_path / "more" / "text.png").write_text("no image")
    (tmp_path / "more" / "empty.jpg").touch()
    (tmp_path / "more" / "broken.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "more" / "pipe")
    got = found(tmp_path)
    assert len(got.samples) == 4
    assert {bad.path: bad.reason for bad in got.quarantined} == {
        "broken.png": "can't be read (No such file or directory)",
        "empty.jpg": "empty file",
        "pipe": "not a regular file",
        "text.png": "not an image (8 bytes)",
    }
    assert got.quarantined_fraction == 4 / 8


def test_unlabelled__too_many_bad_files_are_an_error(tmp_path: Path) -> None:
    picture(tmp_path / "more" / "a.png", 1)
    (tmp_path / "more" / "text.png").write_text("no image")
    with pytest.raises(
        DataError, match=r"text\.png: not an image .*; 1 files quarantined \(50\.00%\), limit 5\.00%"
    ):
        found(tmp_path, params=DataParams())


def test_unlabelled__links_lead_nowhere_else(tmp_path: Path) -> None:
    picture(tmp_path / "more" / "a.png", 1)
    picture(tmp_path / "elsewhere" / "b.png", 2)
    (tmp_path / "more" / "link.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "more" / "circle").symlink_to(tmp_path / "more")
    got = found(tmp_path)
    assert names(got) == {"a.png"}
    assert [bad.path for bad in got.quarantined] == ["circle", "link.png"]
    followed = found(tmp_path, params=LENIENT.model_copy(update={"follow_links": True}))
    assert names(followed) == {"a.png", "link.png"}


def test_unlabelled__rows_of_a_stack_are_images(tmp_path: Path) -> None:
    images = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8)
    (tmp_path / "more").mkdir()
    with (tmp_path / "more" / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, images, allow_pickle=False)
    held = row_digest(images[0][:, :, None])
    [sample] = found(tmp_path, {held: "test"}).samples
    assert (sample.file.name, sample.row) == ("x.npy", 1)


def test_unlabelled__known_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "more" / "a.png", 1)
    first = found(tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(content, "_read", refuse)
    assert found(tmp_path) == first


def test_unlabelled__digest_is_of_what_is_left(tmp_path: Path) -> None:
    digest = picture(tmp_path / "more" / "a.png", 1)
    picture(tmp_path / "more" / "b.png", 2)
    both = found(tmp_path)
    assert found(tmp_path).digest == both.digest
    assert found(tmp_path, {digest: "test"}).digest != both.digest


def test_unlabelled__folder_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"distill\.unlabelled: .*more: no such folder"):
        found(tmp_path)
    digest = picture(tmp_path / "more" / "a.png", 1)
    with pytest.raises(
        DataError, match="no images that could be used; the dataset holds all 1; name another"
    ):
        found(tmp_path, {digest: "train"})
