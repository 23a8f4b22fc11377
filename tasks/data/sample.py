"""A part of a manifest, for what need not see every sample."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.data.labels import names
from tasks.data.split import position
from tasks.records import SPLITS, Manifest, Split, digest_of


def run(out: Path, manifest: Manifest, take: Mapping[Split, int], seed: int) -> Manifest:
    """Writes `manifest.parquet` with part of the rows into `out`: columns, order and classes as in
    `manifest`.

    A sample is taken by a seeded hash of its content, the smallest first, copies together: a dataset
    that grows keeps most of its sample, and so most of what was computed for it.

    Args:
        take: split -> rows at most; a split that is not named has none.
    """
    table = pq.read_table(manifest.file)
    splits, digests = table["split"].to_pylist(), table["digest"].to_pylist()
    taken: list[int] = []
    for name, count in take.items():
        rows = [row for row, split in enumerate(splits) if split == name]
        places = {row: position(digests[row], seed) for row in rows}
        taken += sorted(rows, key=lambda row: (places[row], row))[:count]
    sample = table.take(pa.array(sorted(taken), type=pa.int64()))
    pq.write_table(sample, out / "manifest.parquet")
    return manifest.model_copy(
        update={
            "digest": digest_of(manifest.classes, manifest.target, sample.to_pydict()),
            "folder": str(out),
            "samples": sample.num_rows,
            "counts": {name: _counts(manifest, sample, name) for name in SPLITS},
            "conflicts": (),
            "left_out": (),
        }
    )


def _counts(manifest: Manifest, sample: pa.Table, split: Split) -> dict[str, int]:
    """Label -> samples of a split; of a number `` -> samples."""
    labels = sample.filter(pc.equal(sample["split"], split))["label"].to_pylist()
    if manifest.target == "number":
        return {"": len(labels)}
    if manifest.target == "labels":
        labels = [name for several in labels for name in names(several)]
    found = Counter(labels)
    return {name: found[name] for name in manifest.classes}
