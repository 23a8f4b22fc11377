"""Records of the evaluation stage: what the gate judges by."""

import math

from pydantic import BaseModel, ConfigDict, Field

from tasks.records.audit import Findings
from tasks.records.record import Interval, Number, StageRecord, Target


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
    # By how much the challenger may be worse (see `compare.worst`), and what of it would stay if the two
    # differed on no sample. Without these numbers there is no proof: the gate fails.
    at_worst: Number = math.nan
    unseen: Number = math.nan


class McNemar(BaseModel):
    """The exact paired test of two accuracies (binomial, one-sided p-values)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    only_challenger: int  # samples that the challenger alone has right
    only_champion: int
    p_better: float
    p_worse: float


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
    units: int = 0  # groups, and samples without one, that it is made of; 0: not known, the gate fails
    alpha: float  # intervals cover 1 - alpha
    metrics: dict[str, Interval]
    standard_errors: dict[str, Number]  # metric -> bootstrap standard error
    chance_ece: Number | None  # not of numbers: the ECE that a calibrated model has at this size, in the mean
    per_class: dict[str, dict[str, Interval]]  # label -> metric -> interval
    per_slice: dict[str, dict[str, Interval]]  # `column=value` -> metric -> interval
    slice_samples: dict[str, int]
    slice_units: dict[str, int] = Field(default_factory=dict)
    selective: Selective | None
    champion_version: str | None
    champion_metrics: dict[str, Interval] | None
    # Classes or labels of test samples that the champion does not know, and how many samples have one.
    unknown_classes: tuple[str, ...] = ()
    unknown_samples: int = 0
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
    # Loss minus the champion's, on the same samples; none: not compared.
    difference: Interval | None = None


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


class Trial(StageRecord):
    """The packaged model tried: requests of one image, as they will be served."""

    package: str  # digest of what was tried
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
