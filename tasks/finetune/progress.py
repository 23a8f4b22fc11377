"""How far a training is, as lines of JSON in a file: the process that trains adds them, another one
follows."""

import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from tasks.records import Epoch
from tasks.records.record import Number


class Progress(BaseModel):
    """A line: after some step, or at the end of an epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["step", "epoch"]
    epoch: int  # from 1
    epochs: int
    step: int  # taken so far, in all epochs
    steps: int  # of all epochs
    loss: Number
    learning_rate: float
    samples_per_s: float  # of all processes
    memory_mb: float | None = None  # the most that was allocated on the GPU
    seconds_left: float | None = None
    at: str  # UTC, ISO 8601
    record: Epoch | None = None  # of a line of an epoch

    @model_validator(mode="after")
    def _record_is_of_an_epoch(self) -> Self:
        if (self.kind == "epoch") != (self.record is not None):
            raise ValueError("a line of an epoch has its record, one of a step has none")
        return self


def append(file: Path, progress: Progress) -> None:
    """Adds a line, which outlives this process (though not the machine's loss of power)."""
    line = progress.model_dump_json().encode() + b"\n"
    with file.open("a+b") as stream:
        if stream.tell():
            stream.seek(-1, 2)
            if stream.read(1) != b"\n":  # a process was killed while it wrote
                line = b"\n" + line
        stream.write(line)


def follow(file: Path, offset: int) -> tuple[list[Progress], int]:
    """The whole lines from byte `offset` on, and the offset of what comes after them; where there is
    no file yet, none."""
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            content = stream.read()
    except FileNotFoundError:
        return [], offset
    whole = content[: content.rfind(b"\n") + 1]
    found = []
    for line in whole.splitlines():
        try:
            found.append(Progress.model_validate_json(line))
        except ValidationError:
            continue  # its writer was killed in the middle of it
    return found, offset + len(whole)


class Rate:
    """How quick the last steps of an epoch were; an epoch has one of its own, so that what is between
    epochs does not count."""

    def __init__(
        self, steps: int, epochs: int, window: int = 20, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """From now on.

        Args:
            steps: of all epochs.
            window: steps that count.
        """
        self.samples_per_s = 0.0  # until a step has ended
        self._steps, self._epochs, self._clock = steps, epochs, clock
        self._step_s: float | None = None
        self._marks = deque([(clock(), 0)], maxlen=window + 1)  # when a step ended; samples until then

    def add(self, samples: int) -> None:
        """A step of so many samples has ended."""
        self._marks.append((self._clock(), self._marks[-1][1] + samples))
        (start, before), (end, done) = self._marks[0], self._marks[-1]
        if end > start:
            self.samples_per_s = (done - before) / (end - start)
            self._step_s = (end - start) / (len(self._marks) - 1)

    def progress(
        self, epoch: int, step: int, loss: float, learning_rate: float, record: Epoch | None = None
    ) -> Progress:
        """A line after `step` steps in epoch `epoch` (from 0), which `record` ends."""
        cuda = torch.cuda.is_available()
        return Progress(
            kind="step" if record is None else "epoch",
            epoch=epoch + 1,
            epochs=self._epochs,
            step=step,
            steps=self._steps,
            loss=loss,
            learning_rate=learning_rate,
            samples_per_s=self.samples_per_s,
            memory_mb=torch.cuda.max_memory_allocated() / 1e6 if cuda else None,
            seconds_left=None if self._step_s is None else (self._steps - step) * self._step_s,
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            record=record,
        )
