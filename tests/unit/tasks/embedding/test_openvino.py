import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.embedding.forward import TorchForward, distance
from tasks.records import Backbone, Embedder

pytest.importorskip("openvino")

from tasks.embedding import openvino as routes
from tasks.embedding.openvino import OpenVinoForward


@pytest.fixture(scope="module")
def backbone(small: Embedder) -> Backbone:
    return small.backbones[0]


@pytest.fixture(scope="module")
def converted(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one conversion left."""
    root = tmp_path_factory.mktemp("openvino")
    OpenVinoForward(backbone, root / "converted")
    assert [path.name for path in root.iterdir()] == ["converted"]
    return root / "converted"


@pytest.fixture
def folder(converted: Path, tmp_path: Path) -> Path:
    """A copy of it, alone in its folder."""
    return Path(shutil.copytree(converted, tmp_path / "alone" / "converted"))


def answer(forward: OpenVinoForward | TorchForward, size: int = 64) -> bytes:
    noise = torch.Generator().manual_seed(0)
    crops = torch.randint(256, (forward.batch, 3, size, size), generator=noise, dtype=torch.uint8)
    (vectors,) = forward(crops.contiguous(memory_format=torch.channels_last))
    return vectors.tobytes()


def test_openvino__converted_network_is_read_back(
    backbone: Backbone, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "_converted", lambda *_: pytest.fail("converted again"))
    found = np.frombuffer(answer(OpenVinoForward(backbone, folder)), dtype=np.float32)
    plain = np.frombuffer(answer(TorchForward(backbone)), dtype=np.float32)
    # Weights in half precision would be at 1e-7.
    assert distance(found.reshape(-1, 256), plain.reshape(-1, 256)) <= 1e-9


@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone", "digests", "empty"])
def test_openvino__damaged_network_is_converted_anew(backbone: Backbone, folder: Path, damage: str) -> None:
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    weights = bytearray(files["model.bin"])
    if damage == "flipped":
        weights[len(weights) // 2] ^= 0x40
        (folder / "model.bin").write_bytes(weights)
    elif damage == "truncated":
        (folder / "model.bin").write_bytes(weights[:-1])
    elif damage == "gone":
        (folder / "model.xml").unlink()
    elif damage == "digests":
        (folder / "digests.json").write_text("{")
    else:
        for file in folder.iterdir():
            file.unlink()

    again = answer(OpenVinoForward(backbone, folder))

    assert (folder / "model.bin").read_bytes() == files["model.bin"]
    assert [path.name for path in folder.parent.iterdir()] == ["converted"]
    assert answer(OpenVinoForward(backbone, folder)) == again


def test_openvino__two_that_convert_at_once_both_work(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = routes._keep

    def twice(model: object, folder: Path) -> None:
        keep(model, folder)  # another process, in the meantime
        keep(model, folder)

    monkeypatch.setattr(routes, "_keep", twice)
    first = answer(OpenVinoForward(backbone, tmp_path / "converted"))
    assert answer(OpenVinoForward(backbone, tmp_path / "converted")) == first


def test_openvino__works_where_the_converted_network_cannot_be_kept(
    backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert answer(OpenVinoForward(backbone, tmp_path / "file" / "converted"))
    assert "file/converted: can't be kept" in caplog.text


IMPORTS = """
import socket, sys
def refuse(*_): raise AssertionError("a connection was opened")
socket.socket.connect = refuse
import tasks.embedding.openvino
import openvino
assert sys.modules.get("openvino_telemetry") is None
openvino.Core()
"""


def test_openvino__import_writes_nothing_and_calls_nobody(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    keep = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        env={**keep, "HOME": str(home)},
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == []
