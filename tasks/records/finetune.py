"""Records of the ladder: what was trained, what it cost, and which rung was chosen."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from tasks.records.embedding import Backbone
from tasks.records.record import Interval, Number, Record, StageRecord


class Epoch(BaseModel):
    """What an epoch of training came to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int  # from 1
    step: int  # steps taken so far
    loss: Number  # mean over the epoch's steps, of the training samples as they were augmented
    validation_loss: Number
    validation: (
        Number  # the gate's metric (accuracy of labels, R² of numbers, where that has intervals alone)
    )
    learning_rate: float  # of the backbone's last block, at the epoch's end
    seconds: float
    samples_per_s: float


class Tuned(StageRecord):
    """A trained backbone; `folder` holds weights.safetensors (of the backbone alone) and history.json."""

    backbone: Backbone  # with `tuned` set; its weights lie in the folder
    method: str
    history: tuple[Epoch, ...]
    chosen: str  # which weights: last, best, average, interpolated 0.7, soup of 3
    validation: Number  # the metric of the chosen weights
    trained: int  # parameters that were trained
    parameters: int  # of backbone and head
    steps: int
    batch: int  # in one pass of one process; smaller than asked for where memory was short
    accumulate: int
    precision: Literal["float32", "bfloat16"]
    hardware: str
    seconds: float  # of training, all attempts together
    cached_s: float  # of them for cached views


class TrialPoint(BaseModel):
    """One candidate of the trial that `auto` makes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    learning_rate: float
    epochs: int
    validation: Number
    validation_loss: Number


class Climb(Record):
    """Whether to climb, and the numbers that say so."""

    climb: bool
    when: str
    reason: str  # in words
    metric: str
    failed_floors: tuple[str, ...]
    frozen: Number | None  # the metric of the frozen rung on validation
    expected_gain: Interval | None  # of the metric; none: no trial was needed
    expected_seconds: float | None
    price: float | None  # expected, in the user's currency
    worth: float | None  # of the expected gain
    trial: tuple[TrialPoint, ...]


class Rung(BaseModel):
    """One rung of the ladder, as it was judged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  # frozen, the method, or student
    backbone: str
    metric: str
    validation: Interval
    test: Interval
    passed: bool  # its gate
    failed: tuple[str, ...]  # checks
    seconds: float  # of what this rung adds: embedding and head, or training
    price: float
    size_mb: float
    latency_ms: float  # p50
    chosen: bool


class RungChoice(BaseModel):
    """Which rung is taken, by the validation split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    reason: str  # in a sentence
    validation: tuple[Interval, ...]  # of each rung


class Ladder(StageRecord):
    """`folder` holds ladder.json and ladder.png."""

    metric: str
    climb: Climb
    rungs: tuple[Rung, ...]
    reason: str  # of the choice, in words
