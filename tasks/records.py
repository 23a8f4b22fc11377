"""The small frozen records that travel between stages: ids, digests and paths, never tensors.

Every record has a `digest`, which says what its content is: equal digests mean equal content.
A record that lies in a folder (`folder`) is written there as `record.json`, last of all.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, PlainSerializer

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def digest_of(*parts: object) -> str:
    """Hex SHA-256 of the canonical JSON of `parts` (records and parameters included)."""
    plain = [p.model_dump(mode="json") if isinstance(p, BaseModel) else p for p in parts]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Record(BaseModel):
    """A frozen value with a content digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str

    @property
    def identity(self) -> str:
        """What the results of later stages depend on."""
        return self.digest


class StageRecord(Record):
    """What a stage leaves behind: `folder` holds its files and `record.json`."""

    folder: str

    @property
    def path(self) -> Path:
        return Path(self.folder)

    def save(self) -> Self:
        """Writes `record.json` into the folder."""
        (self.path / "record.json").write_text(self.model_dump_json(indent=2) + "\n")
        return self

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads the record of `folder`; the folder may have been moved since it was written."""
        values = json.loads((folder / "record.json").read_text())
        return cls.model_validate({**values, "folder": str(folder)})


class Rejected(BaseModel):
    """A sample that was set aside, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    reason: str


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

    samples: int
    classes: tuple[str, ...]  # sorted
    slices: tuple[str, ...]  # names of the slice columns
    counts: dict[str, dict[str, int]]  # split -> label -> samples
    conflicts: tuple[Rejected, ...]  # exact duplicates with different labels (kept, reported)
    left_out: tuple[Rejected, ...]  # training copies of content that validation or test holds
    quarantined: int

    @property
    def file(self) -> Path:
        return self.path / "manifest.parquet"


class Preprocess(BaseModel):
    """From a decoded RGB image to the backbone's input [3, size, size]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize: int  # shorter side after resizing, px
    size: int  # side of the centre crop, px
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


Pooling = Literal["mean", "max", "std", "cls"]


class Block(Record):
    """One kind of vector: what one layer of a backbone gives for one view of an image. `digest` is
    its fingerprint, the namespace in the cache: whatever changes the vectors changes it."""

    layer: str  # `network`: the architecture's own pooled output; else the name of a module
    pooling: tuple[Pooling, ...]  # concatenated in this order; empty for `network`
    view: str  # identity, hflip, vflip, crop-K
    parts: tuple[int, ...]  # length of each pooling's part

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return sum(self.parts)


class Backbone(Record):
    """A frozen backbone, fully determined, and the blocks that are taken from it."""

    name: str  # `timm:NAME` or `torchvision:NAME[@WEIGHTS]`
    weights: str  # path of the safetensors file
    weights_digest: str  # hex SHA-256 of that file
    library: str  # of the architecture, with its version: `timm 1.0.31`
    preprocess: Preprocess
    precision: Literal["float32", "bfloat16"]  # of the forward pass; vectors are float32
    blocks: tuple[Block, ...]


class Embedder(Record):
    """From an image to its embedding: the blocks of all backbones, concatenated."""

    backbones: tuple[Backbone, ...]

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(block for backbone in self.backbones for block in backbone.blocks)

    @property
    def dim(self) -> int:
        """D, length of an embedding."""
        return sum(block.dim for block in self.blocks)


class Embeddings(Record):
    """A complete set of cached embeddings for a manifest (completeness was proved)."""

    root: str  # the folder of all caches
    blocks: tuple[Block, ...]  # an embedding is their concatenation
    computed: int  # distinct samples embedded now
    cached: int  # distinct samples found in the cache

    @property
    def dim(self) -> int:
        """D, length of an embedding."""
        return sum(block.dim for block in self.blocks)


class Head(StageRecord):
    """A fitted linear head: `head.safetensors` and `head.json` in `folder`."""

    classes: tuple[str, ...]
    strength: float  # chosen C, the inverse of the L2 strength
    strengths: dict[str, float]  # C -> cross-validated log loss
    temperature: float


def _number_or_name(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


# JSON has no NaN, and a null would not load as a number: `nan` and `inf` are written as text, so
# that a broken metric reaches the gate, which fails closed.
Number = Annotated[float, PlainSerializer(_number_or_name, when_used="json")]


class Interval(BaseModel):
    """A point estimate with its bootstrap 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: Number
    low: Number
    high: Number


class Difference(BaseModel):
    """Challenger minus champion on the same samples (paired bootstrap)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    value: Number
    low: Number
    high: Number


class Champion(Record):
    """The version that serves today, brought to this machine."""

    name: str
    version: str
    folder: str  # its package: model.json, the weights of its backbones, head.safetensors
    embedder: Embedder


class Evaluation(StageRecord):
    """Numbers on the test split; `folder` holds metrics.json, predictions.parquet,
    confusion.png, reliability.png and their CSV twins."""

    samples: int  # of the test split
    metrics: dict[str, Interval]
    per_class: dict[str, dict[str, Interval]]  # label -> metric -> interval
    per_slice: dict[str, dict[str, Interval]]  # `column=value` -> metric -> interval
    slice_samples: dict[str, int]
    champion_version: str | None
    champion_metrics: dict[str, Interval] | None
    differences: dict[str, Difference]  # metric -> challenger minus champion


class Reason(BaseModel):
    """One check of the gate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    check: str
    passed: bool
    detail: str


class Decision(Record):
    """The gate's verdict. `digest` covers the inputs, numbers and thresholds."""

    passed: bool
    champion_version: str | None
    reasons: tuple[Reason, ...]


class RegisteredVersion(BaseModel):
    """A version in the model registry."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    alias: str | None  # the highest alias it holds: champion, else challenger


class Promotion(RegisteredVersion):
    """The champion after `promote`, and what that changed."""

    changed: bool  # False: it was the champion already
    before: str | None  # the champion until then
    by: str
    reason: str
    at: str  # UTC, ISO 8601


class Registration(BaseModel):
    """Where a run was recorded, and the version it made (if the gate passed)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    run_url: str
    version: RegisteredVersion | None


class DatasetFacts(BaseModel):
    """The part of a result that says what the data was."""

    digest: str
    samples: int
    quarantined: int


class EmbeddingFacts(BaseModel):
    computed: int
    cached: int


class GateFacts(BaseModel):
    passed: bool
    reasons: tuple[Reason, ...]


class HeadFacts(BaseModel):
    strength: float
    temperature: float


class AdaptResult(BaseModel):
    """What an adapt run ends with; printed by `regraft adapt --json`. Keys are added, never removed."""

    state: Literal["registered", "rejected", "unchanged"]
    dataset: DatasetFacts
    embedding: EmbeddingFacts
    head: HeadFacts
    metrics: dict[str, Interval]
    champion_metrics: dict[str, Interval] | None
    gate: GateFacts
    model: RegisteredVersion | None
    seconds: dict[str, float]  # task -> seconds
    run_id: str  # of MLflow
    links: dict[str, str]  # `prefect`, `mlflow`: where to look further
