"""Peak memory of extracting 100,000 images, above that with the model loaded."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tasks.embedding.extract import Extractor, extract
from tasks.embedding.gather import open_caches
from tests.bench import engine, harness, samples
from tests.bench.harness import Row

IMAGES, SIZE = 100_000, 64  # px; the number of images matters, not the network's work
BACKBONE = "timm:tf_efficientnet_lite0"
LIMIT_MB = 2_000.0


def run() -> Iterator[Row]:
    with samples.scratch() as folder:
        command = [sys.executable, "-m", "tests.bench.memory", str(folder), str(IMAGES)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    peak, loaded, seconds = map(float, done.stdout.split())
    yield harness.below(
        f"memory of extracting {IMAGES:,} images",
        [peak],
        LIMIT_MB,
        "MB",
        note=f"peak resident memory of a fresh process above the {loaded:,.0f} MB with the model loaded,"
        f" file pages included; {BACKBONE.partition(':')[2]} at {SIZE} px, {IMAGES / seconds:,.0f} images/s",
        limits="results on their way to a segment, and mapped segments while they are checked",
    )


def main(folder: Path, images: int) -> None:
    """Prints megabytes at the peak above the model, megabytes with the model, and seconds."""
    files = folder / "data"
    files.mkdir()
    backbone = engine.backbone(BACKBONE, SIZE)
    forward = engine.route(backbone)
    engine.forward_loop(forward, SIZE, 4 * forward.batch)()
    loaded = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    some = samples.copies(files, images)
    caches = open_caches(backbone.blocks, folder / "cache")
    every = {sample.digest for sample in some}
    lacking = {block.digest: every for block in backbone.blocks}
    start = time.perf_counter()
    extract(some, [Extractor(backbone, backbone.blocks, forward)], caches, lacking, engine.MAX_PIXELS)
    for cache in caches.values():
        assert not cache.missing([sample.digest for sample in some])
    print((_peak() - loaded) / 1e6, loaded / 1e6, time.perf_counter() - start)


def _peak() -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
