"""The finetune stage as Prefect tasks."""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from prefect import task

from tasks import progress
from tasks.errors import FinetuneError
from tasks.finetune import bring
from tasks.finetune.progress import Progress, append
from tasks.finetune.spec import Distillation
from tasks.finetune.tidy import tidy
from tasks.lock import locked
from tasks.params import DataParams, FinetuneParams
from tasks.records import Backbone, DatasetVersion, Head, Manifest, Tuned
from tasks.settings import Settings
from tasks.stage import build_once, stage_key
from tasks.task import options

log = logging.getLogger(__name__)

Watch = Callable[[Sequence[Progress]], None]


@task(name="bring data", **options())
def bring_dataset(dvc_file: str) -> DatasetVersion:
    """The data version on this machine."""
    return bring.dataset(dvc_file, Settings())


@task(name="find weights", **options())
def find_backbone(wanted: Backbone) -> Backbone | None:
    """The backbone, where this machine has its weights or gets them by its name."""
    return bring.backbone(wanted, Settings().root / "weights")


@task(name="list unlabelled", **options())
def list_unlabelled(folder: str, manifest: Manifest, params: DataParams) -> str:
    """Digest of the further images below `folder`, which are checked."""
    from tasks.finetune import unlabelled

    return unlabelled.find(Path(folder), manifest, params, Settings().root).digest


@task(name="check teacher", **options())
def check_teacher(folder: str, digest: str, manifest: Manifest) -> None:
    """Raises FinetuneError where the package in `folder` can't teach the classes of the manifest."""
    from tasks.finetune.teacher import columns
    from tasks.head import fitted

    classes = () if manifest.target == "number" else manifest.classes
    columns(fitted.load(Path(folder)), classes, manifest.target, digest)


# Its result is found by its folder; `watch` is no part of that.
@task(name="fine-tune", **options())
def tune(
    manifest: Manifest,
    dataset: DatasetVersion,
    backbone: Backbone,
    head: Head | None,
    params: FinetuneParams,
    key: str,
    max_pixels: int,
    distillation: Distillation | None = None,
    watch: Watch = lambda lines: None,
) -> Tuned:
    """Trains once for a key; what was begun before, also elsewhere, is carried on.

    Args:
        key: names the training by all that determines it.
        watch: told of progress; whatever it raises, training goes on.
    """
    from tasks.finetune import run  # torch

    settings = Settings()
    journal = progress_file(settings, key)
    journal.parent.mkdir(parents=True, exist_ok=True)

    def note(lines: Sequence[Progress]) -> None:
        for line in lines:
            with suppress(OSError):  # a full disk costs numbers, not the training
                append(journal, line)
        progress.report("fine-tune", lines[-1].step, lines[-1].steps)
        try:
            watch(lines)
        except Exception as error:
            log.warning("fine-tune: progress can't be shown (%s)", type(error).__name__)

    def build(out: Path) -> Tuned:
        return run.run(
            out,
            manifest,
            dataset.data,
            backbone,
            head,
            params,
            settings,
            key=key,
            max_pixels=max_pixels,
            distillation=distillation,
            watch=note,
        )

    # One at a time on the devices that this process sees; whoever waited for the same one finds it made.
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace("/", "-")
    with locked(settings.root / "locks" / f"training-{devices}.lock"):
        tuned = bring.placed(build_once(tuned_folder(settings, key), Tuned, build))
    tidy(settings.root)
    return tuned


def clear_checkpoints(key: str) -> None:
    """Removes those of a training whose result MLflow has: until then another machine may need them."""
    from tasks.finetune.checkpoint import Checkpoints, checkpoints_place  # torch

    settings = Settings()
    try:
        Checkpoints(checkpoints_place(settings, key), 1, settings).clear()
    except FinetuneError as error:  # they are no longer needed
        log.warning("%s", error)


def tuned_here(settings: Settings, key: str) -> Tuned | None:
    """The result of a training that was made on this machine."""
    folder = tuned_folder(settings, key)
    return bring.placed(Tuned.load(folder)) if (folder / "record.json").exists() else None


def tuned_folder(settings: Settings, key: str) -> Path:
    """Where the result of a training lies."""
    return settings.root / "stages" / "finetune" / stage_key("finetune", key)


def progress_file(settings: Settings, key: str) -> Path:
    """All lines of progress of all attempts on this machine, which outlive the attempt."""
    return settings.root / "finetune" / f"{key}.jsonl"
