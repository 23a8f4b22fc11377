"""The small frozen records that travel between stages: ids, digests and paths, never tensors.

Every record has a `digest`, which says what its content is: equal digests mean equal content.
A record that lies in a folder (`folder`) is written there as `record.json`, last of all.
"""

import hashlib
import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, PlainSerializer

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

# What a label is: one class, any number of labels, or a number.
Target = Literal["class", "labels", "number"]


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
    view: str  # identity, hflip, vflip, crop-K; disturbed: noise-2, hflip+noise-2
    parts: tuple[int, ...]  # length of each pooling's part

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return sum(self.parts)


class Backbone(Record):
    """A frozen backbone, fully determined, and the blocks that are taken from it."""

    name: str  # `timm:NAME`, `torchvision:NAME[@WEIGHTS]` or `regraft:pixels`
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

    def select(self, blocks: Collection[str]) -> Self:
        """The embedder of only these blocks (digests), in its own order."""
        if all(block.digest in blocks for block in self.blocks):
            return self
        kept = []
        for backbone in self.backbones:
            some = tuple(block for block in backbone.blocks if block.digest in blocks)
            if some:
                digest = digest_of([block.digest for block in some])
                kept.append(backbone.model_copy(update={"blocks": some, "digest": digest}))
        digest = digest_of([block.digest for backbone in kept for block in backbone.blocks])
        return self.model_copy(update={"digest": digest, "backbones": tuple(kept)})


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

    def select(self, blocks: Collection[str]) -> Self:
        """The embeddings of only these blocks (digests), in their own order."""
        kept = tuple(block for block in self.blocks if block.digest in blocks)
        if kept == self.blocks:
            return self
        digest = digest_of(self.digest, [block.digest for block in kept])
        return self.model_copy(update={"digest": digest, "blocks": kept})


Kind = Literal["logistic", "prototype", "knn", "mlp", "multilabel", "ridge"]


class Score(BaseModel):
    """A cross-validated loss (log loss; of numbers the mean squared error): mean and standard error
    over the folds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    standard_error: float


class Confidence(BaseModel):
    """From which top probability on an answer is right as often as wanted (on validation)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: float  # wanted
    threshold: float  # least top probability
    answered: float  # share of the validation samples that reach it


class Conformal(BaseModel):
    """Split-conformal sets: all classes with at least the threshold's probability (on validation)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    coverage: float  # wanted
    threshold: float


class Head(StageRecord):
    """A fitted head: `head.safetensors`, `head.json` and `held_out.parquet` in `folder`.

    `held_out.parquet` has a row per training sample in the manifest's order: digest, path, label,
    outputs (list of K float32: what the folds that did not see the sample say, calibrated).
    """

    target: Target
    kind: Kind
    classes: tuple[str, ...]  # of a number none
    blocks: tuple[str, ...]  # digests of the embedding's blocks that it stands on, in their order
    strength: float | None  # chosen C, the inverse of the L2 strength; of knn k, of mlp epochs, of prototype none
    strengths: dict[str, float]  # candidate -> cross-validated loss
    kinds: dict[str, Score]  # of kind auto: each candidate's loss
    inputs: dict[str, Score]  # of inputs chosen: each tried choice of blocks
    calibration: Literal["none", "temperature", "vector"]
    temperature: float  # 1 unless the calibration is that
    confidence: Confidence | None  # none where no threshold gives the wanted precision
    conformal: Conformal | None


class Shift(BaseModel):
    """A classifier two-sample test: can the samples of two sets be told apart?"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    between: str  # `train and test`, `the champion's train and what came since`
    samples: tuple[int, int]
    accuracy: float  # held out; .5: they can't
    p_value: float


class Findings(StageRecord):
    """What the embeddings say about the data; `folder` holds audit.json, review.csv (for a labeller)
    and a contact sheet of each kind (near-duplicates.png, label-errors.png, outliers.png)."""

    near_duplicates: int  # pairs
    leaked: int  # test samples with a near-duplicate in train
    leakage: float  # their share
    group_leaks: tuple[str, ...]  # groups with samples in several splits
    label_errors: int  # flagged samples
    label_error_rate: float | None  # estimated share of wrong labels; none: not estimated for this target
    outliers: int
    confusable: tuple[tuple[str, str, float], ...]  # pairs of classes, share that is mistaken, worst first
    imbalance: float | None  # largest class / smallest class, in train
    shifts: tuple[Shift, ...]
    notes: tuple[str, ...]  # what could not be looked at, and why


def _number_or_name(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


# JSON has no NaN, and a null would not load as a number: `nan` and `inf` are written as text, so
# that a broken metric reaches the gate, which fails closed.
Number = Annotated[float, PlainSerializer(_number_or_name, when_used="json")]


class Interval(BaseModel):
    """A point estimate with its bootstrap interval, which covers 1 - alpha."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: Number
    low: Number
    high: Number


class Difference(BaseModel):
    """Challenger minus champion on the same samples (paired bootstrap; the p-values by paired
    randomisation). Better is lower where the metric says so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    value: Number
    low: Number
    high: Number
    standard_error: Number
    p_better: Number  # one-sided, of: the challenger is not better
    p_worse: Number  # one-sided, of: the challenger is not worse


class McNemar(BaseModel):
    """The exact paired test of two accuracies (binomial, one-sided p-values)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    only_challenger: int  # samples that the challenger alone has right
    only_champion: int
    p_better: float
    p_worse: float


class Champion(Record):
    """The version that serves today, brought to this machine."""

    name: str
    version: str
    folder: str  # its package: model.json, the weights of its backbones, head.safetensors
    embedder: Embedder
    target: Target
    manifest: str | None = None  # path of the manifest it was trained on, where its run has it


class Selective(BaseModel):
    """What became of the head's thresholds on the test split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    answered: Number  # share of samples whose confidence reaches the threshold
    precision: Number  # share of right answers among them
    coverage: Number  # share of samples whose class is in the conformal set
    set_size: Number  # mean number of classes in it


class Evaluation(StageRecord):
    """Numbers on the test split; `folder` holds metrics.json, predictions.parquet, and PNG files with CSV
    twins: confusion (of classes), reliability (of classes and labels), predicted (of numbers)."""

    target: Target = "class"
    samples: int  # of the test split
    alpha: float  # intervals cover 1 - alpha
    metrics: dict[str, Interval]
    standard_errors: dict[str, Number]  # metric -> bootstrap standard error
    chance_ece: Number | None  # not of numbers: the ECE that a calibrated model has at this size, in the mean
    per_class: dict[str, dict[str, Interval]]  # label -> metric -> interval
    per_slice: dict[str, dict[str, Interval]]  # `column=value` -> metric -> interval
    slice_samples: dict[str, int]
    selective: Selective | None
    champion_version: str | None
    champion_metrics: dict[str, Interval] | None
    differences: dict[str, Difference]  # metric -> challenger minus champion
    mcnemar: McNemar | None
    slice_differences: dict[str, dict[str, Difference]]  # `column=value` -> metric -> difference


class Robustness(StageRecord):
    """What disturbed images cost; `folder` holds robustness.png and robustness.csv."""

    samples: int
    metric: str
    clean: Number
    disturbed: dict[str, tuple[Number, ...]]  # noise, blur, … -> the metric at each strength
    loss: Number  # clean - disturbed in the mean (turned round where lower is better)
    champion_clean: Number | None
    champion_disturbed: dict[str, tuple[Number, ...]] | None
    champion_loss: Number | None


class CurvePoint(BaseModel):
    """A point of the learning curve: the metric with part of the training samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fraction: float
    samples: int
    value: Number  # mean over the repeats
    low: Number  # least and greatest of the repeats
    high: Number


class Baselines(StageRecord):
    """The model beside what it has to beat; `folder` holds baselines.json, baselines.png and
    learning_curve.png. All are judged on the same test samples."""

    metric: str
    train_samples: int  # of the comparison
    test_samples: int
    rows: dict[str, Interval]  # backbone, random_weights, raw_pixels, majority -> the metric
    transfer: Difference | None  # backbone minus random_weights: does transfer help?
    curve: tuple[CurvePoint, ...]  # on all samples
    doubled: Interval | None  # the curve's extrapolation to twice the training samples


class ModelPackage(StageRecord):
    """What will be registered, made before it is judged: `folder` holds `package/`."""

    size_bytes: int

    @property
    def package(self) -> Path:
        return self.path / "package"


class Trial(StageRecord):
    """The packaged model tried: requests of one image, as they will be served."""

    samples: int
    p50_ms: float
    p95_ms: float
    size_mb: float
    largest_difference: Number  # of its outputs from the evaluated ones
    champion_p50_ms: float | None
    champion_p95_ms: float | None
    champion_size_mb: float | None


class Evidence(BaseModel):
    """All that the gate judges by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quarantined_fraction: float
    findings: Findings
    evaluation: Evaluation
    robustness: Robustness | None  # none: switched off
    baselines: Baselines
    trial: Trial


class Check(BaseModel):
    """One check of the gate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    check: str
    passed: bool
    detail: str  # the numbers and the reason, in words
    numbers: dict[str, Number] = {}
    threshold: Number | None = None


class Decision(Record):
    """The gate's verdict: frozen, complete, and checked by its own digest (see `gate.verify`), which
    covers every other field."""

    passed: bool
    mode: str
    champion_version: str | None
    inputs: dict[str, str]  # what was judged: record -> digest
    thresholds: dict[str, Any]  # the parameters of the gate
    reasons: tuple[Check, ...]


class Report(StageRecord):
    """`folder` holds report.html (self-contained), card.md (the model card) and the pictures."""


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


class AuditFacts(BaseModel):
    near_duplicates: int
    leakage: float
    label_errors: int
    outliers: int


class GateFacts(BaseModel):
    passed: bool
    reasons: tuple[Check, ...]


class HeadFacts(BaseModel):
    kind: Kind
    strength: float | None
    temperature: float


class AdaptResult(BaseModel):
    """What an adapt run ends with; printed by `regraft adapt --json`. Keys are added, never removed."""

    state: Literal["registered", "rejected", "unchanged"]
    dataset: DatasetFacts
    embedding: EmbeddingFacts
    head: HeadFacts
    audit: AuditFacts
    metrics: dict[str, Interval]
    champion_metrics: dict[str, Interval] | None
    gate: GateFacts
    model: RegisteredVersion | None
    seconds: dict[str, float]  # task -> seconds
    run_id: str  # of MLflow
    report: str  # path of report.html on the machine that made it
    links: dict[str, str]  # `prefect`, `mlflow`, `report`: where to look further
