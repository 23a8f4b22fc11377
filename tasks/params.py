"""`params.yaml`, parsed once into frozen models. The same models are the flows' parameters,
so the form in the Prefect UI shows each field with its description and bounds."""

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.errors import ParamsError
from tasks.records import Pooling, Target

Fraction = Annotated[float, Field(ge=0, le=1)]

BUILTIN = "builtin:surface-inspection"  # the dataset that the extra `demo` ships

PIXELS = "regraft:pixels"  # no network: the means of 16 x 16 squares
RANDOM = "random"  # weights before any training
NETWORK = "network"  # the layer that is an architecture's own pooled output

METRICS: dict[Target, tuple[str, ...]] = {  # what is measured of each target
    "class": ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "brier", "ece"),
    "labels": ("subset_accuracy", "macro_f1", "micro_f1", "log_loss", "brier", "ece"),
    "number": ("r2", "mae", "rmse"),
}
Metric = Literal[
    "accuracy", "balanced_accuracy", "macro_f1", "log_loss", "brier", "ece",
    "subset_accuracy", "micro_f1", "r2", "mae", "rmse",
]  # fmt: skip
LOWER_IS_BETTER: frozenset[str] = frozenset({"log_loss", "brier", "ece", "mae", "rmse"})
KINDS: dict[Target, tuple[str, ...]] = {  # of heads
    "class": ("logistic", "prototype", "knn", "mlp", "auto"),
    "labels": ("multilabel",),
    "number": ("ridge",),
}


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataParams(Section):
    """How a dataset is versioned, checked and split."""

    target: Target = Field(
        "class",
        description="What a label is: class (one name), labels (any number of names, separated by |), or number.",
    )
    exclude: tuple[str, ...] = Field(
        (),
        description="Samples that are left out: paths as in the dataset, or digests, as the audit's review.csv lists them.",
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=0.9, description="Share of the samples (or groups) in the test split."
    )
    validation_fraction: float = Field(
        0.1,
        gt=0,
        lt=0.9,
        description="Share of the samples (or groups) in the validation split, which calibrates the head.",
    )
    split_seed: int = Field(
        0,
        ge=0,
        description="Seed of the hash that assigns splits. Another seed is another split of everything: numbers are no longer comparable.",
    )
    min_per_class: int = Field(
        2, ge=1, description="Samples that every class needs in each split; fewer is an error."
    )
    max_pixels: int = Field(
        50_000_000,
        ge=1,
        description="Larger images (width × height, px) are quarantined without being decoded.",
    )
    max_quarantined_fraction: Fraction = Field(
        0.05, description="The run fails when more than this share of the samples is quarantined."
    )
    follow_links: bool = Field(
        False,
        description="Follow symbolic links that lead outside the dataset's folder; otherwise such files are quarantined.",
    )
    git_commit: bool = Field(
        False,
        description="Commit the .dvc file of each new data version to the git repository of the working directory.",
    )

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> Self:
        if self.test_fraction + self.validation_fraction >= 0.95:
            raise ValueError(
                "test_fraction + validation_fraction must be below 0.95, or nothing is left to train on"
            )
        return self


class BackboneParams(Section):
    """A frozen backbone, and what is taken from it."""

    backbone: str = Field(
        "timm:tf_efficientnet_lite0",
        pattern=r"^((timm|torchvision):[A-Za-z0-9_.@-]+|regraft:pixels)$",
        description="timm:NAME, torchvision:NAME[@WEIGHTS], or regraft:pixels (no network: the means of 16 × 16 squares).",
    )
    weights: str = Field(
        "auto",
        description="auto (the installed package's weights, else the model hub), the path of a .safetensors file, or random (untrained, to compare with).",
    )
    image_size: int | None = Field(
        None,
        ge=16,
        le=2048,
        description="Side of the input, px; empty: what the weights were trained with. Larger is slower and sees smaller defects.",
    )
    layers: tuple[str, ...] = Field(
        ("network",),
        min_length=1,
        description="Layers whose outputs are concatenated: network (the architecture's own pooled output) or names of its modules, such as blocks.4.",
    )
    pooling: tuple[Pooling, ...] = Field(
        ("mean",),
        min_length=1,
        description="How a module's output is reduced over places or tokens; several are concatenated. cls is for tokens only.",
    )
    views: tuple[Annotated[str, Field(pattern=r"^(identity|hflip|vflip|crop-(0|[1-9]\d{0,2}))$")], ...] = (
        Field(
            ("identity",),
            min_length=1,
            description="Views of each image whose embeddings are concatenated: identity, hflip, vflip, crop-K (the K-th seeded random crop). Each costs a forward pass.",
        )
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Of the forward pass. bfloat16 is about twice as quick where the hardware has it; its vectors are another cache.",
    )

    @model_validator(mode="after")
    def _each_counts(self) -> Self:
        for name in ("layers", "pooling", "views"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise ValueError(f"{name} must be distinct")
        if self.backbone == PIXELS and (self.weights != "auto" or self.layers != (NETWORK,)):
            raise ValueError(f"{PIXELS} has no weights and no layers; leave weights and layers out")
        if set(self.layers) == {NETWORK} and self.pooling != ("mean",):
            raise ValueError(
                "pooling has no effect on the layer network, which is pooled as it was trained; name modules in layers"
            )
        return self


class EmbeddingParams(BackboneParams):
    """The frozen backbone and how it sees an image."""

    others: tuple[BackboneParams, ...] = Field(
        (),
        description="Further backbones, whose embeddings follow in the same pass over the data.",
    )


class HeadParams(Section):
    """The head on the cached embeddings."""

    kind: Literal["logistic", "prototype", "knn", "mlp", "auto", "multilabel", "ridge"] = Field(
        "logistic",
        description="Of classes: logistic, prototype and knn (few samples), mlp (one hidden layer), or auto: the cheapest within one standard error of the best. Of labels: multilabel. Of numbers: ridge.",
    )
    inputs: Literal["concatenated", "chosen"] = Field(
        "concatenated",
        description="Of several blocks (layers, views, backbones): all of them, or those that cross-validation chooses.",
    )
    imbalance: Literal["none", "balanced", "logit_adjustment"] = Field(
        "none",
        description="For rare classes: balanced (each class weighs the same in the loss) or logit_adjustment (logits minus the log of the class's share).",
    )
    strengths: tuple[float, ...] = Field(
        (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0),
        min_length=1,
        description="Candidates for C, the inverse of the L2 strength; cross-validation chooses.",
    )
    neighbours: tuple[int, ...] = Field(
        (1, 3, 5, 10, 20), min_length=1, description="Candidates for k of kind knn; cross-validation chooses."
    )
    hidden: int = Field(256, ge=2, le=65_536, description="Units of the hidden layer of kind mlp.")
    folds: int = Field(
        5, ge=2, le=20, description="Folds of the cross-validation, on the training split only."
    )
    tolerance: float = Field(
        2e-5,
        gt=0,
        le=1e-2,
        description="Greatest entry of the gradient at which the solver stops, for each fold and strength.",
    )
    max_iterations: int = Field(1000, ge=10, description="Limit on the solver's iterations for each fit.")
    precision: float = Field(
        0.99, gt=0, lt=1, description="Wanted share of right answers among those that the model is sure of."
    )
    coverage: float = Field(
        0.9, gt=0, lt=1, description="Share of samples whose class is to be in the conformal set."
    )
    seed: int = Field(0, ge=0, description="Seed of the folds and of kind mlp.")

    @model_validator(mode="after")
    def _candidates_are_positive_and_distinct(self) -> Self:
        for name in ("strengths", "neighbours"):
            given = getattr(self, name)
            if min(given) <= 0 or len(set(given)) < len(given):
                raise ValueError(f"{name} must be positive and distinct")
        return self


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
    limit: float = Field(
        description="Least value (greatest for log_loss, brier, ece, mae, rmse).", allow_inf_nan=False
    )


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
        0.02,
        ge=0,
        description="The challenger may be worse than the champion by at most this much, at the worse end of the interval of the paired difference.",
    )
    min_test_samples: int = Field(
        50, ge=1, description="Fewer test samples than this decide nothing: the gate fails."
    )
    slices: tuple[str, ...] = Field(
        (),
        description="Slices (column or column=value) that must be in the test split. Every slice of the data is compared, named or not.",
    )
    min_slice_samples: int = Field(
        30, ge=2, description="Smaller slices are shown, not judged; a slice named in slices fails the gate."
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
        description="Disturbed images may cost the challenger this much more of the metric than the champion, in the mean; empty: no limit.",
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


class Params(Section):
    """All parameters of the adapt flow."""

    data: DataParams = DataParams()
    embedding: EmbeddingParams = EmbeddingParams()
    head: HeadParams = HeadParams()
    audit: AuditParams = AuditParams()
    evaluation: EvaluationParams = EvaluationParams()
    gate: GateParams = GateParams()

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        target = self.data.target
        if self.head.kind not in KINDS[target]:
            raise ValueError(
                f"head.kind {self.head.kind} is not for data.target {target}; use {' or '.join(KINDS[target])}"
            )
        for where, metric in (
            ("gate.metric", self.gate.metric),
            *((f"gate.floors.{at}.metric", floor.metric) for at, floor in enumerate(self.gate.floors)),
        ):
            if metric not in METRICS[target]:
                raise ValueError(
                    f"{where} {metric} is not for data.target {target}; use {', '.join(METRICS[target])}"
                )
        blocks = sum(len(one.layers) * len(one.views) for one in (self.embedding, *self.embedding.others))
        if self.head.inputs == "chosen" and blocks == 1:
            raise ValueError(
                "head.inputs chosen has no effect on one block; name more layers, views or others"
            )
        if self.head.imbalance != "none" and target != "class":
            raise ValueError(f"head.imbalance has no effect on data.target {target}")
        return self


def load_params(file: Path) -> Params:
    """Reads a parameters file; fields that it leaves out keep their defaults.

    Raises:
        ParamsError: the file is missing, is not YAML, or has unknown or invalid fields; the
            message names each.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParamsError(
            f"{file}: can't be read ({error.strerror}); name an existing parameters file"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{file}: is not YAML ({' '.join(str(error).split())})") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ParamsError(f"{file}: must be a mapping with the sections {', '.join(Params.model_fields)}")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise ParamsError(f"{file}: {explain(error)}") from None


def explain(error: ValidationError, *, values: bool = True) -> str:
    """One line for all problems: `head.fold: unknown field; …`.

    Args:
        values: say what was given; not where it may be a secret.
    """
    lines = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"]) or "parameters"
        what = "unknown field" if problem["type"] == "extra_forbidden" else problem["msg"]
        shown = values and not isinstance(problem["input"], dict)
        given = f" (given: {problem['input']!r})" if shown else ""
        lines.append(f"{where}: {what}{given}")
    return "; ".join(lines)
