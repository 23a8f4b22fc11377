"""lightly-train's `embed` on the same images with the same backbone, in its own environment."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from tests.bench import harness, lightly_side, samples
from tests.bench.harness import Row

PACKAGE = "lightly-train==0.18.0"  # lightly_side.py builds its checkpoint from this version's classes
IMAGES = 384
BATCHES = (8, 32, 128)  # 128 is its default
SIDE = Path(lightly_side.__file__)
LIMITS = "both sides run the same convolutions; start-up is a part that neither saves much of"


def run() -> Iterator[Row]:
    python = _environment()
    with samples.scratch() as folder:
        data = folder / "data"
        data.mkdir()
        for file in samples.jpegs(IMAGES):
            shutil.copy(file, data)
        weights = samples.random_weights(lightly_side.ARCHITECTURE)
        checkpoint = folder / "last.ckpt"
        _run(folder, python, SIDE, "checkpoint", weights, checkpoint)

        def lightly(batch: int) -> tuple[float, float]:
            out = folder / "out.pt"
            return _timed(folder, python, SIDE, "embed", data, checkpoint, out, batch)

        tried = {batch: lightly(batch)[1] for batch in BATCHES}
        best = min(tried, key=tried.__getitem__)

        def regraft() -> tuple[float, float]:
            return _timed(folder, sys.executable, "-m", "tests.bench.embed_side", data, folder / "state")

        rounds = []
        for number in range(harness.ROUNDS + 1):
            if number % 2:
                theirs, ours = lightly(best), regraft()
            else:
                ours, theirs = regraft(), lightly(best)
            rounds.append((ours, theirs))
    for place, what in ((0, "whole command"), (1, "after the imports")):
        yield harness.row(
            f"embedding by lightly-train, {what}",
            [ours[place] for ours, _ in rounds[1:]],
            [theirs[place] for _, theirs in rounds[1:]],
            unit="s",
            goal=1.5,
            note=f"{IMAGES} JPEGs of {samples.WIDTH} × {samples.HEIGHT} px at 224 px,"
            f" {lightly_side.ARCHITECTURE}, each in a process of its own: hashing, manifest, extraction,"
            f" segments and gather; against the `embed` of {PACKAGE}, batch {best} (the best of {BATCHES}),"
            " workers auto",
            limits=LIMITS,
        )


def _environment() -> Path:
    """Its Python; made once, with our torch, so that uv need not fetch another."""
    folder = samples.place() / "lightly-train"
    python = folder / "bin" / "python"
    marker = folder / PACKAGE
    if not marker.exists():
        uv = Path(sys.executable).with_name("uv")
        same = [f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "torchvision")]
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, PACKAGE, *same], check=True)
        marker.touch()
    return python


def _run(folder: Path, *command: str | Path | int) -> str:
    quiet = {
        "LIGHTLY_TRAIN_EVENTS_DISABLED": "1",  # it would report its use over the network
        "LIGHTLY_TRAIN_CACHE_DIR": str(folder / "cache"),
    }
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command[1]}: exit status {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


def _timed(folder: Path, *command: str | Path | int) -> tuple[float, float]:
    """Seconds of the whole command, and those that it tells."""
    start = time.perf_counter()
    told = _run(folder, *command)
    return time.perf_counter() - start, float(told.rsplit("seconds ", 1)[1])
