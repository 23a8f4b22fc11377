"""What the cases work on: real images of the packaged dataset, and files of random weights."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from tasks.embedding.extract import Sample
from tasks.settings import Settings

WIDTH, HEIGHT = 500, 375  # px, the usual size of ImageNet's photographs
JPEG_QUALITY = 90


def place() -> Path:
    """The bench's folder in the state folder."""
    folder = Settings().root / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards, on the disk that the state lies on."""
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=place()) as folder:
        yield Path(folder)


def packaged() -> list[Path]:
    """The 2,000 JPEGs of 250 × 250 px that the extra `demo` ships."""
    return sorted(Path(str(import_module("conformal_clip_data").textile_simulated_root())).rglob("*.jpg"))


def jpegs(count: int) -> list[Path]:
    """`count` distinct 500 × 375 JPEGs: mosaics of 2 × 2 packaged images, whose detail is that of
    real pictures where enlarged ones would be smooth and quick to decode."""
    folder = place() / f"jpegs-{WIDTH}x{HEIGHT}"
    folder.mkdir(exist_ok=True)
    files = [folder / f"{number:05d}.jpg" for number in range(count)]
    sources = packaged()
    for number, file in enumerate(files):
        if file.exists():
            continue
        rng = np.random.default_rng(number)
        mosaic = Image.new("RGB", (WIDTH, HEIGHT))
        for at, source in enumerate(rng.choice(len(sources), 4, replace=False)):
            with Image.open(sources[source]) as tile:
                mosaic.paste(tile, (250 * (at % 2), 250 * (at // 2) - int(rng.integers(0, 125))))
        content = BytesIO()
        mosaic.save(content, "JPEG", quality=JPEG_QUALITY)
        part = file.with_suffix(".part")
        part.write_bytes(content.getvalue())
        part.replace(file)
    return files


def copies(folder: Path, count: int) -> list[Sample]:
    """`count` packaged JPEGs, each with a number after the end marker, so that their contents are
    distinct."""
    sources = [file.read_bytes() for file in packaged()]
    made = []
    for number in range(count):
        if number % 1000 == 0:
            (folder / f"{number // 1000:03d}").mkdir()
        content = sources[number % len(sources)] + number.to_bytes(8, "big")
        file = folder / f"{number // 1000:03d}" / f"{number % 1000:03d}.jpg"
        file.write_bytes(content)
        made.append(Sample(hashlib.sha256(content).hexdigest(), file))
    return made


def random_weights(architecture: str) -> Path:
    """A safetensors file of torchvision's random weights, the same ones every time."""
    file = place() / "weights" / f"{architecture}.safetensors"
    if not file.exists():
        torch.manual_seed(0)
        models: Any = import_module("torchvision.models")
        tensors = models.get_model(architecture, weights=None).state_dict()
        file.parent.mkdir(exist_ok=True)
        part = file.with_suffix(".part")
        save_file(tensors, part)
        part.replace(file)
    return file


def random_digests(count: int, seed: int) -> list[str]:
    """Hex SHA-256s that no content has."""
    data = np.random.default_rng(seed).bytes(32 * count).hex()
    return [data[start : start + 64] for start in range(0, len(data), 64)]
