"""Records of the data stage."""

from pathlib import Path
from typing import Literal

from tasks.records.record import Rejected, StageRecord, Target, digest_of


class DatasetVersion(StageRecord):
    """A dataset as DVC has it. `folder` holds `data/` (the files) and `data.dvc`.

    `digest` is DVC's MD5 of the directory (it ends in `.dir`).
    """

    source: str
    layout: Literal["folders", "split_folders", "table"]
    table: str | None  # the table's path below data/, for layout `table`
    files: int
    size_bytes: int
    rejected: tuple[Rejected, ...]  # entries of the source that could not be versioned

    @property
    def identity(self) -> str:
        return digest_of(self.digest, self.layout, self.table, [bad.model_dump() for bad in self.rejected])

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def dvc_file(self) -> Path:
        return self.path / "data.dvc"


class Audit(StageRecord):
    """Every file of a version, read and decoded once.

    `files.parquet` has a row (path, digest, size, width, height) per good image file, and per image
    of a stack (`x.npy#17`), sorted by path; `audit.json` lists what was quarantined.
    """

    samples: int
    quarantined: tuple[Rejected, ...]
    quarantined_fraction: float


class Manifest(StageRecord):
    """`manifest.parquet`: a row per sample, sorted by (digest, path), with the columns
    digest (hex SHA-256 of the bytes; for an image of a stack, of its shape and pixels), path, label,
    split, group, size, width, height and any slice columns."""

    target: Target = "class"
    samples: int
    classes: tuple[str, ...]  # sorted; of a number none
    slices: tuple[str, ...]  # names of the slice columns
    counts: dict[str, dict[str, int]]  # split -> label -> samples; of a number split -> `` -> samples
    conflicts: tuple[Rejected, ...]  # exact duplicates with different labels (kept, reported)
    left_out: tuple[Rejected, ...]  # training copies of content that validation or test holds
    excluded: tuple[Rejected, ...] = ()  # by data.exclude
    unmatched: tuple[str, ...] = ()  # entries of data.exclude that name no sample
    quarantined: int

    @property
    def file(self) -> Path:
        return self.path / "manifest.parquet"
