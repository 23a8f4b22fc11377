"""Records of the head stage."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from tasks.records.record import StageRecord, Target

Kind = Literal["logistic", "prototype", "knn", "mlp", "multilabel", "ridge"]


class Score(BaseModel):
    """A loss on what was held out (log loss; of numbers the mean squared error): mean and standard error
    over the folds, or over the units of the validation split."""

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
    outputs (list of K float32: what the folds that did not see the sample say, calibrated). Where the
    head is judged on validation its rows are those of the validation split, and the outputs those of a
    choice and a calibration that did not see the sample.
    """

    target: Target
    kind: Kind
    classes: tuple[str, ...]  # of a number none
    blocks: tuple[str, ...]  # digests of the embedding's blocks that it stands on, in their order
    strength: (
        float | None
    )  # chosen C, the inverse of the L2 strength; of knn k, of mlp epochs, of prototype none
    strengths: dict[str, float]  # candidate -> loss on what was held out
    kinds: dict[str, Score]  # of kind auto: each candidate's loss
    inputs: dict[str, Score]  # of inputs chosen: each tried choice of blocks
    calibration: Literal["none", "temperature", "vector"]
    temperature: float  # 1 unless the calibration is that
    confidence: Confidence | None  # none where no threshold gives the wanted precision
    conformal: Conformal | None
    # What chose and calibrated it: what each fold of the training split held out, or, where a backbone
    # was trained on the labels of all folds, the validation split.
    judged_on: Literal["folds", "validation"] = "folds"
