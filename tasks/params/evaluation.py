"""How data and model are judged."""

from typing import Literal

from pydantic import Field

from tasks.params.metrics import Metric
from tasks.params.section import Section


class AuditParams(Section):
    """What the embeddings say about the data."""

    similarity: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Least cosine of the embeddings of near-duplicates.",
    )
    pixels: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Least correlation of the detail of their thumbnails, mirrored or not.",
    )
    outliers: float = Field(
        5.0,
        gt=0,
        description="Distance to the class, in robust standard deviations, from which a sample is an outlier.",
    )
    listed: int = Field(24, ge=1, le=400, description="Worst cases of each kind on a contact sheet.")
    seed: int = Field(0, ge=0, description="Seed of the test for a shift.")


class EvaluationParams(Section):
    """The numbers on the test split, and beside them what else the model could have been."""

    bootstrap: int = Field(1000, ge=100, le=100_000, description="Resamples behind each interval.")
    alpha: float = Field(0.05, gt=0, lt=0.5, description="Level of the tests; intervals cover 1 - alpha.")
    calibration_bins: int = Field(
        15, ge=2, le=100, description="Equal-width confidence bins of the expected calibration error."
    )
    baseline_samples: int = Field(
        1000,
        ge=0,
        description="Samples on which random weights and raw pixels are compared with the backbone; each is embedded once more. 0: no comparison.",
    )
    learning_repeats: int = Field(
        3, ge=0, le=100, description="Repeats of each point of the learning curve; 0: no curve."
    )
    robustness_samples: int = Field(
        48,
        ge=0,
        description="Test samples that are disturbed in five ways at three strengths; 15 forward passes each, cached. 0: no such check.",
    )
    latency_samples: int = Field(
        30,
        ge=2,
        le=1000,
        description="Requests of one image that the packaged model answers before it is registered.",
    )
    seed: int = Field(0, ge=0, description="Seed of the bootstrap and of the subsets.")


class Floor(Section):
    """An absolute requirement on one metric."""

    metric: Metric = Field(description="Metric on the test split.")
    limit: float = Field(description="Least value (greatest for log_loss, brier, ece, mae, rmse).")


class GateParams(Section):
    """What a model must prove before it is registered."""

    mode: Literal["non_inferior", "superior", "absolute"] = Field(
        "non_inferior",
        description="Against the champion: non_inferior (not worse than the margin), superior (better), or absolute (not compared).",
    )
    floors: tuple[Floor, ...] = Field(
        (Floor(metric="balanced_accuracy", limit=0.65), Floor(metric="ece", limit=0.15)),
        min_length=1,
        description="Absolute requirements, whatever serves today.",
    )
    metric: Metric = Field("balanced_accuracy", description="Metric of the comparison with the champion.")
    margin: float = Field(
        0.05,
        ge=0,
        description="The challenger may be worse than the champion by at most this much, at the worse end of the interval of the paired difference. For mae and rmse in the label's unit, to be given.",
    )
    min_test_samples: int = Field(
        50, ge=1, description="Fewer test samples (groups count once) decide nothing: the gate fails."
    )
    slices: tuple[str, ...] = Field(
        (),
        description="Slices (column or column=value) that must be in the test split. Every slice of the data is compared, named or not.",
    )
    min_slice_samples: int = Field(
        30,
        ge=2,
        description="Slices with fewer samples (groups count once) are shown, not judged; one that is named in slices fails the gate.",
    )
    max_miscalibration: float | None = Field(
        0.1,
        ge=0,
        le=1,
        description="Greatest calibration error beyond what chance alone gives a calibrated model; empty: no limit.",
    )
    max_latency_ms: float | None = Field(
        None,
        gt=0,
        description="Greatest p95 of a request of one image to the packaged model, ms; empty: no limit.",
    )
    max_size_mb: float | None = Field(
        None, gt=0, description="Greatest size of the packaged model, MB; empty: no limit."
    )
    max_robustness_loss: float | None = Field(
        0.05,
        ge=0,
        description="Disturbed images may cost the challenger this much more of the metric than the champion, in the mean; more beyond chance fails. For mae and rmse in the label's unit, to be given; empty: no limit.",
    )
    max_leakage: float | None = Field(
        0.02,
        ge=0,
        le=1,
        description="Greatest share of test samples with a near-duplicate in train; empty: no limit.",
    )
    max_quarantined: float | None = Field(
        0.05, ge=0, le=1, description="Greatest share of quarantined samples; empty: no limit."
    )
    max_label_errors: float | None = Field(
        0.2, ge=0, le=1, description="Greatest estimated share of wrong labels; empty: no limit."
    )
