"""Records of datasets as the stages take them, made without the stages before."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.embedding.extract import Sample
from tasks.records import DatasetVersion, Manifest, digest_of


def manifest(some: Sequence[Sample], data: Path, folder: Path) -> Manifest:
    """A manifest of files below `data`, all in the training split."""
    folder.mkdir(parents=True, exist_ok=True)
    ordered = sorted(some, key=lambda sample: sample.digest)
    columns = {
        "digest": [sample.digest for sample in ordered],
        "path": [str(sample.file.relative_to(data)) for sample in ordered],
        "split": ["train"] * len(ordered),
    }
    pq.write_table(pa.table(columns), folder / "manifest.parquet")
    return Manifest(
        digest=digest_of(columns["digest"]),
        folder=str(folder),
        samples=len(ordered),
        classes=("any",),
        slices=(),
        counts={"train": {"any": len(ordered)}},
        conflicts=(),
        left_out=(),
        quarantined=0,
    )


def version(folder: Path, files: int, size_bytes: int) -> DatasetVersion:
    """The version whose files lie in `folder/data`."""
    return DatasetVersion(
        digest="0" * 32 + ".dir",
        folder=str(folder),
        source=str(folder),
        layout="folders",
        table=None,
        files=files,
        size_bytes=size_bytes,
        rejected=(),
    )
