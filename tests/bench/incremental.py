"""The embed stage on data of which one hundredth is new, against the first run."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tasks.embedding import embed
from tasks.embedding.extract import Sample
from tasks.settings import Settings
from tests.bench import dataset, engine, harness, samples
from tests.bench.harness import Row

FIRST, MORE = 2_000, 20
ROUNDS = 5
BACKBONE = "timm:tf_efficientnet_lite0"


def run() -> Iterator[Row]:
    some = engine.digested(samples.jpegs(FIRST + MORE))
    with samples.scratch() as folder:
        # One after the other in each round: the second needs what the first left.
        stage = [_stage(some, folder) for _ in range(ROUNDS + 1)][1:]
        alone = [_alone(some, folder) for _ in range(ROUNDS + 1)][1:]
    about = f"{MORE} images more than the {FIRST:,} of the first run, {BACKBONE.partition(':')[2]}"
    limits = (
        "a hundredth of the images is a hundredth of the forward passes; the rest is opening the network"
        " and the cache, which takes as long for few images as for many"
    )
    yield harness.row(
        "embedding data + 1 %, against the first run",
        [after for _, after in stage],
        [before for before, _ in stage],
        unit="s",
        goal=50.0,
        note=f"{about}: the whole stage in a process that has imported torch, loading the network included",
        limits=limits,
    )
    yield harness.row(
        "extracting 1 % more, against the first run",
        [after for _, after in alone],
        [before for before, _ in alone],
        unit="s",
        note=f"{about}: with the network loaded",
    )


def _stage(some: list[Sample], folder: Path) -> tuple[float, float]:
    """Seconds of the first run, and of that on more data."""
    settings = Settings(state=folder / "state")
    shutil.rmtree(settings.root / "embeddings", ignore_errors=True)
    embedder = engine.embedder(BACKBONE)
    data = some[0].file.parent
    seconds = []
    for name, part in (("first", some[:FIRST]), ("more", some)):
        manifest = dataset.manifest(part, data, folder / name)
        start = time.perf_counter()
        done = embed.run(manifest, data, embedder, settings, engine.MAX_PIXELS)
        seconds.append(time.perf_counter() - start)
        assert done.computed == (FIRST if name == "first" else MORE)
    return seconds[0], seconds[1]


def _alone(some: list[Sample], folder: Path) -> tuple[float, float]:
    """The same of extraction with the network loaded."""
    backbone = engine.backbone(BACKBONE)
    forward = engine.route(backbone)
    seconds = []
    for part in (some[:FIRST], some[FIRST:]):
        once = engine.extraction(part, backbone, forward, folder / "alone")
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[1]
