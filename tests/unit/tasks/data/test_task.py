from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.data.task import audit_images, version_data
from tasks.errors import DataError
from tasks.params import DataParams
from tasks.settings import Settings
from tasks.task import stage_folder

PARAMS = DataParams()


@pytest.fixture(autouse=True)
def state(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_STATE", str(settings.state))


def test_audit_images__rehash_replaces_a_result_that_no_longer_holds(pets: Path) -> None:
    dataset = version_data.fn(str(pets), PARAMS)
    whole = audit_images.fn(dataset, PARAMS)
    (dataset.data / "cat/00.png").unlink()
    assert audit_images.fn(dataset, PARAMS) == whole

    less = audit_images.fn(dataset, PARAMS, rehash=True)
    assert (less.samples, less.folder) == (39, whole.folder)
    assert audit_images.fn(dataset, PARAMS) == less


def test_audit_images__rehash_that_finds_the_same_leaves_the_result(pets: Path) -> None:
    dataset = version_data.fn(str(pets), PARAMS)
    first = audit_images.fn(dataset, PARAMS)
    before = (first.path / "files.parquet").stat()
    assert audit_images.fn(dataset, PARAMS, rehash=True) == first
    after = (first.path / "files.parquet").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [folder.name for folder in first.path.parent.iterdir()] == [first.path.name]


def test_audit_images__rehash_that_fails_leaves_no_result_that_passed(
    pets: Path, make_png: Callable[[int], bytes]
) -> None:
    dataset = version_data.fn(str(pets), PARAMS)
    audit_images.fn(dataset, PARAMS)
    for number in range(20):
        (dataset.data / f"cat/{number:02}.png").unlink()
        (dataset.data / f"cat/{number:02}.png").write_bytes(b"scribble")
    for rehash in (True, False):
        with pytest.raises(DataError, match="20 of 40 files quarantined"):
            audit_images.fn(dataset, PARAMS, rehash=rehash)
    assert list(stage_folder("audit", dataset, PARAMS).parent.iterdir()) == []
