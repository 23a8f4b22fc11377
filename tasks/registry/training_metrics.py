"""The numbers of a training on their way to MLflow. They lie in a file and are sent behind the
training's back: MLflow may be away for as long as it likes, at the cost of nothing but delay."""

import json
import logging
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from mlflow import MlflowClient
from mlflow.entities import Metric

from tasks.finetune.progress import Progress, follow
from tasks.records import Epoch
from tasks.registry.tracking import connect
from tasks.settings import Settings

log = logging.getLogger(__name__)

BATCH = 1000  # MLflow's limit for one call
EVERY_S = 5.0
_LEAVE_S = 15.0  # for a last try; what is not sent then, stays in the file


class Metrics:
    """Sends the lines of a progress file as metrics of a run, from a thread of its own.

    A number is known by its key and step. Numbers that the run has already are not sent again: those of
    steps that were taken twice because a training was killed after its checkpoint, and those whose
    sending was not noted before the process died. How far the file was sent is noted beside it, so that
    the next process sends the rest.
    """

    def __init__(self, run_id: str, file: Path, settings: Settings, every_s: float = EVERY_S) -> None:
        self._run_id = run_id
        self._file = file
        self._settings = settings
        self._every_s = every_s
        self._sent = file.with_suffix(".sent")
        self._known: set[tuple[str, int]] | None = None  # what the run has; none: not asked yet
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._silent = False  # an outage was told

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tries once more, for a while; never raises."""
        self._end.set()
        self._thread.join(_LEAVE_S)

    def send(self, history: Sequence[Epoch] = ()) -> None:
        """Sends what is new in the file, and what the run lacks of these epochs.

        Raises:
            RegistryError: MLflow does not answer.
            MlflowException: it refuses.
        """
        with self._lock:
            client = connect(self._settings)  # asks first, shortly: MLflow's own client tries for minutes
            if self._known is None:
                self._known = _logged(client, self._run_id)
            lines, offset = follow(self._file, self._offset())
            points = [*_of_lines(lines), *_of_history(history, lines)]
            new: dict[tuple[str, int], Metric] = {}
            for point in points:
                if (point.key, point.step) not in self._known:
                    new.setdefault((point.key, point.step), point)
            for batch in _batches(list(new.values())):
                client.log_batch(self._run_id, metrics=batch)
                self._known |= {(point.key, point.step) for point in batch}
            self._note(offset)

    def _run(self) -> None:
        while True:
            ended = self._end.wait(self._every_s)
            try:
                self.send()
                self._silent = False
            except Exception as error:  # whatever MLflow or the disk does, training goes on
                if not self._silent:
                    log.warning("MLflow: numbers are kept until it answers (%s)", error)
                self._silent = True
            if ended:
                return

    def _offset(self) -> int:
        with suppress(OSError, ValueError, KeyError):
            noted = json.loads(self._sent.read_text())
            # Another run has nothing of it; a shorter file is another one.
            if noted["run_id"] == self._run_id and noted["offset"] <= self._file.stat().st_size:
                return int(noted["offset"])
        return 0

    def _note(self, offset: int) -> None:
        fresh = self._sent.with_suffix(".sent.new")
        fresh.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps({"run_id": self._run_id, "offset": offset}))
        fresh.replace(self._sent)


def _logged(client: MlflowClient, run_id: str) -> set[tuple[str, int]]:
    """Key and step of all numbers that the run has."""
    keys = client.get_run(run_id).data.metrics
    return {(key, point.step) for key in keys for point in client.get_metric_history(run_id, key)}


def _of_lines(lines: Iterable[Progress]) -> Iterator[Metric]:
    for line in lines:
        at = _milliseconds(line.at)
        if line.record is not None:
            yield from _of_epoch(line.record, at)
            continue
        numbers = {
            "loss": line.loss,
            "learning_rate": line.learning_rate,
            "samples_per_s": line.samples_per_s,
            "memory_mb": line.memory_mb,
        }
        yield from _metrics(numbers, line.step, at)


def _of_history(history: Iterable[Epoch], lines: Sequence[Progress]) -> Iterator[Metric]:
    at = _milliseconds(lines[-1].at) if lines else int(datetime.now().timestamp() * 1000)
    for epoch in history:
        yield from _of_epoch(epoch, at)


def _of_epoch(epoch: Epoch, at: int) -> Iterator[Metric]:
    numbers = {
        "epoch": epoch.epoch,
        "epoch_loss": epoch.loss,
        "validation_loss": epoch.validation_loss,
        "validation": epoch.validation,
        "epoch_seconds": epoch.seconds,
    }
    yield from _metrics(numbers, epoch.step, at)


def _metrics(numbers: Mapping[str, float | None], step: int, at: int) -> Iterator[Metric]:
    for key, value in numbers.items():
        if value is not None and math.isfinite(value):
            yield Metric(key, float(value), at, step)


def _milliseconds(at: str) -> int:
    return int(datetime.fromisoformat(at).timestamp() * 1000)


def _batches(points: Sequence[Metric]) -> Iterator[Sequence[Metric]]:
    for start in range(0, len(points), BATCH):
        yield points[start : start + BATCH]
