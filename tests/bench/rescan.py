"""Finding the digests of 100,000 files that did not change since they were hashed, against hashing
them again."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from tasks.data import audit, content, digests
from tasks.params import DataParams
from tests.bench import dataset, harness, samples
from tests.bench.harness import Row

FILES, FILE_BYTES = 100_000, 50_000
PARAMS = DataParams()


def run() -> Iterator[Row]:
    with samples.scratch() as folder:
        data = folder / "data"
        _fill(data)
        version = dataset.version(folder, FILES, FILES * FILE_BYTES)
        state, out = folder / "state", folder / "out"
        out.mkdir()
        audit.run(out, version, PARAMS, state)
        memo = digests.place(state / "digests", version)

        def rescan() -> None:
            files = digests.scan(data)
            assert digests.known(files, digests.load(memo)).null_count == 0

        def rehash() -> None:
            files = digests.scan(data)
            nothing = pa.nulls(len(files), pa.string())
            found = content.look(data, files, nothing, state / "verified", PARAMS.max_pixels)
            assert found.digests.null_count == 0

        seconds = harness.interleaved({"ours": rescan, "rehash": rehash})
    about = f"{FILES:,} JPEGs of {FILE_BYTES // 1000} kB in the page cache, known to be good images"
    yield harness.row(
        f"re-scan of {FILES:,} unchanged files",
        seconds["ours"],
        seconds["rehash"],
        unit="s",
        goal=10.0,
        note=f"{about}: statuses and the memo; against reading and hashing on all threads",
        limits="one status of each file, which Python and the system take two microseconds for, while"
        " hashing reads from memory; on a disk the ratio is that of the disk",
    )


def _fill(data: Path) -> None:
    """Small JPEGs, each with its own bytes after the end marker."""
    image = BytesIO()
    Image.new("RGB", (32, 32), (90, 120, 30)).save(image, "JPEG")
    head = image.getvalue()
    rest = np.random.default_rng(0).bytes(FILE_BYTES - len(head) - 8)
    for number in range(FILES):
        folder = data / f"{number // 1000:03d}"
        if number % 1000 == 0:
            folder.mkdir(parents=True)
        (folder / f"{number % 1000:03d}.jpg").write_bytes(head + number.to_bytes(8, "big") + rest)
