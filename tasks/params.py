"""`params.yaml`, parsed once into frozen models. The same models are the flows' parameters,
so the form in the Prefect UI shows each field with its description and bounds."""

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.errors import ParamsError
from tasks.records import Pooling

Fraction = Annotated[float, Field(ge=0, le=1)]

BUILTIN = "builtin:surface-inspection"  # the dataset that the extra `demo` ships

NETWORK = "network"  # the layer that is an architecture's own pooled output

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "brier", "ece")
Metric = Literal["accuracy", "balanced_accuracy", "macro_f1", "log_loss", "brier", "ece"]
LOWER_IS_BETTER: frozenset[str] = frozenset({"log_loss", "brier", "ece"})


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataParams(Section):
    """How a dataset is versioned, checked and split."""

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
        pattern=r"^(timm|torchvision):[A-Za-z0-9_.@-]+$",
        description="timm:NAME or torchvision:NAME[@WEIGHTS].",
    )
    weights: str = Field(
        "auto",
        description="auto (the installed package's weights, else the model hub), or the path of a .safetensors file.",
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
    """The linear head on the cached embeddings."""

    strengths: tuple[float, ...] = Field(
        (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0),
        min_length=1,
        description="Candidates for C, the inverse of the L2 strength; cross-validation chooses.",
    )
    folds: int = Field(
        5, ge=2, le=20, description="Folds of the cross-validation, on the training split only."
    )
    max_iterations: int = Field(1000, ge=10, description="Limit on the solver's iterations for each fit.")
    seed: int = Field(0, ge=0, description="Seed of the folds.")

    @model_validator(mode="after")
    def _strengths_are_positive_and_distinct(self) -> Self:
        if min(self.strengths) <= 0 or len(set(self.strengths)) < len(self.strengths):
            raise ValueError("strengths must be positive and distinct")
        return self


class EvaluationParams(Section):
    """The numbers on the test split."""

    bootstrap: int = Field(1000, ge=100, le=100_000, description="Resamples behind each 95 % interval.")
    calibration_bins: int = Field(
        15, ge=2, le=100, description="Equal-width confidence bins of the expected calibration error."
    )
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")


class Floor(Section):
    """An absolute requirement on one metric."""

    metric: Metric = Field(description="Metric on the test split.")
    limit: float = Field(description="Least value (greatest for log_loss, brier, ece).", allow_inf_nan=False)


class GateParams(Section):
    """What a model must prove before it is registered."""

    floors: tuple[Floor, ...] = Field(
        (Floor(metric="balanced_accuracy", limit=0.65), Floor(metric="ece", limit=0.15)),
        min_length=1,
        description="Absolute requirements, whatever serves today.",
    )
    metric: Metric = Field("balanced_accuracy", description="Metric of the comparison with the champion.")
    margin: float = Field(
        0.02,
        ge=0,
        le=1,
        description="The challenger may be worse than the champion by at most this much, at the worse end of the 95 % interval of the paired difference.",
    )
    min_test_samples: int = Field(
        50, ge=1, description="Fewer test samples than this decide nothing: the gate fails."
    )


class Params(Section):
    """All parameters of the adapt flow."""

    data: DataParams = DataParams()
    embedding: EmbeddingParams = EmbeddingParams()
    head: HeadParams = HeadParams()
    evaluation: EvaluationParams = EvaluationParams()
    gate: GateParams = GateParams()


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
