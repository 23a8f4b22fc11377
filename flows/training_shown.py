"""What a training shows in the Prefect UI while it runs."""

import base64
import logging
import time
from collections.abc import Sequence
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from tasks.finetune.progress import Progress
from tasks.progress import duration
from tasks.records import Epoch, Tuned

log = logging.getLogger(__name__)

ARTIFACT_SECONDS = 3.0  # between two updates of the progress artifact


class TrainingShown:
    """A progress artifact, and after each epoch a table and the learning curves. That they can't be
    written costs nothing but them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._history: dict[int, Epoch] = {}
        self._made: dict[str, UUID] = {}
        self._written = -ARTIFACT_SECONDS

    def __call__(self, lines: Sequence[Progress]) -> None:
        """The next lines of progress."""
        try:
            self._show(lines)
        except Exception as error:
            _warn(error)

    def complete(self, tuned: Tuned) -> None:
        """All epochs, also those of attempts elsewhere."""
        try:
            self._epochs(tuned.history, len(tuned.history))
        except Exception as error:
            _warn(error)

    def _show(self, lines: Sequence[Progress]) -> None:
        last, now = lines[-1], time.monotonic()
        epochs = [line.record for line in lines if line.record is not None]
        if now - self._written >= ARTIFACT_SECONDS or epochs:
            self._written = now
            self._progress(last)
        if epochs:
            self._history |= {epoch.epoch: epoch for epoch in epochs}
            history = [self._history[number] for number in sorted(self._history)]
            self._epochs(history, last.epochs)

    def _epochs(self, history: Sequence[Epoch], epochs: int) -> None:
        self._markdown(table(self._name, history, epochs))
        self._curves(history, epochs)

    def _progress(self, line: Progress) -> None:
        percent, text = 100 * line.step / max(1, line.steps), told(line)
        if known := self._made.get("fine-tune"):
            update_progress_artifact(known, percent, description=text)
        else:
            self._keep("fine-tune", create_progress_artifact(percent, key="fine-tune", description=text))

    def _markdown(self, text: str) -> None:
        if known := self._made.get("epochs"):
            _update(known, text)
        else:
            self._keep("epochs", create_markdown_artifact(text, key="fine-tune-epochs", description="Epochs"))

    def _curves(self, history: Sequence[Epoch], epochs: int) -> None:
        from tasks.evaluation.course_plot import course  # matplotlib

        url = f"data:image/png;base64,{base64.b64encode(course(history, epochs)).decode()}"
        if known := self._made.get("curves"):
            _update(known, url)
        else:
            self._keep(
                "curves",
                create_image_artifact(url, key="fine-tune-curves", description="Learning curves"),
            )

    def _keep(self, what: str, made: object) -> None:
        if isinstance(made, UUID):
            self._made[what] = made


def told(line: Progress) -> str:
    """`epoch 2 of 10, step 40 of 200, loss 0.4123, 61.3 samples/s, 4,200 MB on the GPU, 42 s left`."""
    parts = [
        f"epoch {line.epoch} of {line.epochs}",
        f"step {line.step:,} of {line.steps:,}",
        f"loss {line.loss:.4g}",
        f"{line.samples_per_s:,.1f} samples/s",
    ]
    if line.memory_mb is not None:
        parts.append(f"{line.memory_mb:,.0f} MB on the GPU")
    if line.seconds_left is not None:
        parts.append(f"{duration(line.seconds_left)} left")
    return ", ".join(parts)


def table(name: str, history: Sequence[Epoch], epochs: int) -> str:
    """The epochs so far as Markdown."""
    rows = "\n".join(
        f"| {epoch.epoch} | {epoch.loss:.4f} | {epoch.validation_loss:.4f} | {epoch.validation:.4f}"
        f" | {epoch.learning_rate:.2g} | {epoch.seconds:.1f} | {epoch.samples_per_s:,.1f} |"
        for epoch in history
    )
    return f"""# Fine-tuning {name}: {len(history)} of {epochs} epochs

| epoch | training loss | validation loss | validation score | learning rate | seconds | samples/s |
|---:|---:|---:|---:|---:|---:|---:|
{rows}
"""


def _warn(error: Exception) -> None:
    log.warning("fine-tune: progress can't be shown (%s)", type(error).__name__)


def _update(artifact: UUID, data: str) -> None:
    with get_client(sync_client=True) as client:
        client.update_artifact(artifact, ArtifactUpdate(data=data))
