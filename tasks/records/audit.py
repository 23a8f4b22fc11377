"""Records of the audit stage."""

from pydantic import BaseModel, ConfigDict

from tasks.records.record import StageRecord


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
    unchecked: int  # test samples without detail to compare: any of them may be leaked too
    truncated: bool  # so many pairs look alike that some across train and test were left out: so may more
    group_leaks: tuple[str, ...]  # groups with samples in several splits
    label_errors: int  # flagged samples
    label_error_rate: float | None  # estimated share of wrong labels; none: not estimated for this target
    outliers: int
    confusable: tuple[tuple[str, str, float], ...]  # pairs of classes, share that is mistaken, worst first
    imbalance: float | None  # largest class / smallest class, in train
    shifts: tuple[Shift, ...]
    notes: tuple[str, ...]  # what could not be looked at, and why
