"""Small datasets of real image files."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

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
