"""Small datasets of real image files."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tasks.data import mirror as mirror_module
from tasks.data import store, version
from tasks.data.mirror import Mirrored
from tasks.data.source import Entry
from tasks.settings import Settings


def png(shade: int, side: int = 8) -> bytes:
    """A grey square; another shade is another content."""
    out = io.BytesIO()
    Image.new("RGB", (side, side), (shade % 256, shade // 256, 7)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "state")


@pytest.fixture
def make_png() -> Callable[[int], bytes]:
    return png


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Twenty cats and twenty dogs, each of another content."""
    root = tmp_path / "pets"
    for number in range(20):
        for offset, label in ((0, "cat"), (100, "dog")):
            file = root / label / f"{number:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(offset + number))
    return root


@pytest.fixture
def mirrored(monkeypatch: pytest.MonkeyPatch) -> list[Mirrored]:
    """What each call of `version_data` copied."""
    calls: list[Mirrored] = []

    def spy(entries: tuple[Entry, ...], workspace: Path, anew: bool) -> Mirrored:
        calls.append(mirror_module.mirror(entries, workspace, anew))
        return calls[-1]

    monkeypatch.setattr(version, "mirror", spy)
    return calls


@pytest.fixture
def no_dvc(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        def fail(*_: object) -> None:
            raise AssertionError("DVC was called")

        monkeypatch.setattr(store, "add", fail)
        monkeypatch.setattr(store, "push", fail)

    return forbid
