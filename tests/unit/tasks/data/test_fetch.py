from pathlib import Path

import pytest

from tasks.data import store
from tasks.data.version import version_data
from tasks.errors import DataError
from tasks.params import DataParams
from tasks.settings import Settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cat/1.png", "cat/2.png", "dog/ä b.png"):
        file = tmp_path / "pets" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return tmp_path / "pets"


def test_fetch__brings_the_named_files_and_no_others(folder: Path, tmp_path: Path) -> None:
    settings = Settings(state=tmp_path / "state", dvc_remote=str(tmp_path / "remote"))
    version = version_data(str(folder), DataParams(), settings)
    # Another machine has nothing but the remote.
    other = Settings(state=tmp_path / "other", dvc_remote=str(tmp_path / "remote"))
    to = tmp_path / "to"
    store.fetch(version.digest, ["dog/ä b.png", "cat/1.png", "cat/1.png"], to, other)
    brought = {str(path.relative_to(to)) for path in to.rglob("*.png")}
    assert brought == {"cat/1.png", "dog/ä b.png"}
    assert (to / "dog" / "ä b.png").read_bytes() == "dog/ä b.png".encode()


def test_fetch__file_that_the_version_lacks_is_an_error(folder: Path, tmp_path: Path) -> None:
    settings = Settings(state=tmp_path / "state")
    version = version_data(str(folder), DataParams(), settings)
    with pytest.raises(DataError, match=r"could not fetch .*cat/3.png"):
        store.fetch(version.digest, ["cat/3.png"], tmp_path / "to", settings)
