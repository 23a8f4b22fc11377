"""The registry as Prefect tasks. MLflow takes seconds to import, so it is imported when needed."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from prefect import task

from tasks.finetune import bring
from tasks.finetune.request import FinetuneRequest
from tasks.finetune.spec import Distillation
from tasks.params import EvaluationParams
from tasks.records import (
    Backbone,
    Champion,
    DatasetVersion,
    Embedder,
    Embeddings,
    Head,
    Manifest,
    ModelPackage,
    Promotion,
    Registration,
    Teacher,
    Throughput,
    Trial,
    Tuned,
)
from tasks.registry.adapt_run import AdaptRun
from tasks.settings import Settings
from tasks.stage import build_anew, build_once
from tasks.task import options, stage_folder


@task(name="look for a finished run", **options())
def find_finished(name: str, run_key: str) -> dict[str, Any] | None:
    """The stored result of a run with the same data, parameters and code that still holds."""
    from tasks.registry.versions import finished

    return finished(run_key, name, Settings())


def current_champion(name: str) -> str | None:
    """The champion's version, where its package can't be had."""
    from tasks.registry.tracking import connect
    from tasks.registry.versions import champion_version

    return champion_version(connect(Settings()), name)


@task(name="load champion", **options())
def load_champion(name: str) -> Champion | None:
    """The version that serves today."""
    from tasks.registry.versions import champion

    return champion(name, Settings())


@task(name="load version", **options())
def load_version(name: str, number: str) -> Champion:
    """A version of the model, whatever its alias."""
    from tasks.registry.versions import bring

    return bring(name, number, Settings())


@task(name="package", **options("package"))
def package_model(embedder: Embedder, head: Head, max_pixels: int) -> ModelPackage:
    """The model as it will be registered, so that it can be judged as that."""
    from tasks.registry import package

    return build_once(
        stage_folder("package", embedder, head, max_pixels),
        ModelPackage,
        lambda out: package.run(out, embedder, head.path, max_pixels),
    )


@task(name="try package", **options())
def try_package(
    made: ModelPackage,
    manifest: Manifest,
    dataset: DatasetVersion,
    embeddings: Embeddings,
    head: Head,
    champion: Champion | None,
    params: EvaluationParams,
) -> Trial:
    """Answers requests with the packaged model: how quickly, and whether they are the judged ones."""
    from tasks.evaluation import predict
    from tasks.registry import trial

    theirs = Path(champion.folder) if champion else None

    def build(out: Path) -> Trial:
        outputs, _ = predict.test_outputs(manifest, embeddings, head.path)
        return trial.run(
            out,
            made.package,
            manifest,
            dataset.data,
            outputs,
            theirs,
            params.latency_samples,
            params.seed,
        )

    folder = stage_folder("trial", made, manifest, embeddings, head, champion, params)
    # Measured anew by each run that comes so far: a busy moment is not to decide for ever.
    return build_anew(folder, Trial, build)


@task(name="try student", **options())
def measure_throughput(
    made: ModelPackage,
    teachers: list[Teacher],
    manifest: Manifest,
    dataset: DatasetVersion,
    params: EvaluationParams,
) -> Throughput:
    """How much quicker the packaged student answers than its teachers."""
    from tasks.registry import trial

    def build(out: Path) -> Throughput:
        folders = [Path(one.folder) for one in teachers]
        return trial.throughput(
            out, made.package, folders, manifest, dataset.data, params.latency_samples, params.seed
        )

    digests = [one.digest for one in teachers]
    return build_anew(stage_folder("throughput", made, *digests, manifest, params), Throughput, build)


@task(name="register", **options())
def register(run: AdaptRun, result: dict[str, Any]) -> Registration:
    """Records the run; registers a version if the gate passed. Idempotent by the run's key."""
    from tasks.registry.register import record

    return record(run, result, Settings())


@task(name="promote", **options())
def promote_version(name: str, version: str, by: str, reason: str) -> Promotion:
    from tasks.registry.promote import promote

    return promote(name, version, by, reason, Settings())


@task(name="open training run", **options())
def open_training_run(request: FinetuneRequest) -> str:
    """The id of the MLflow run of a fine-tuning, which there is once."""
    from tasks.registry.training_run import start

    return start(request.name, request.key, request, Settings())


def sending_metrics(run_id: str, progress: Path) -> AbstractContextManager[object]:
    """While it is entered, the lines of the file `progress` go to MLflow; when that is away, later."""
    from tasks.registry.training_metrics import Metrics

    return Metrics(run_id, progress, Settings())


@task(name="close training run", **options())
def close_training_run(run_id: str, tuned: Tuned, progress: Path) -> None:
    """Sends the trained weights, the history and the curves, and what is left of the numbers."""
    from tasks.evaluation.ladder_plots import curves
    from tasks.registry.training_run import finish

    file = tuned.path / "curves.png"
    if not file.exists():
        curves(file, tuned)
    finish(run_id, tuned, progress, Settings())


def give_up_training_run(run_id: str) -> None:
    """Marks the run of a training that failed."""
    from tasks.registry.training_run import give_up

    give_up(run_id, Settings())


@task(name="keep weights", **options())
def keep_backbone(run_id: str, backbone: Backbone) -> None:
    """Puts the weights that training starts from into its run, for the machine that trains."""
    from tasks.registry import training_run

    training_run.keep_backbone(run_id, backbone, Settings())


@task(name="fetch weights", **options())
def fetch_backbone(wanted: Backbone, run_id: str) -> Backbone:
    """The backbone with the weights that its training's run holds."""
    from tasks.registry import training_run

    settings = Settings()
    store = settings.root / "weights"
    return bring.with_weights(wanted, training_run.fetch_backbone(run_id, wanted, store, settings))


@task(name="keep teachers", **options())
def keep_teachers(run_id: str, distillation: Distillation) -> None:
    """Puts the packages that a student learns from into its run, for the machine that trains."""
    from tasks.registry import training_run

    for teacher in distillation.teachers:
        training_run.keep_teacher(run_id, teacher, Settings())


@task(name="fetch teachers", **options())
def fetch_teachers(distillation: Distillation, run_id: str) -> Distillation:
    """The same with its packages on this machine."""
    from tasks.registry import training_run

    found = tuple(training_run.fetch_teacher(run_id, one, Settings()) for one in distillation.teachers)
    return distillation.model_copy(update={"teachers": found})


@task(name="fetch tuned", **options())
def fetch_tuned(run_id: str) -> Tuned:
    """What a finished fine-tuning came to, brought to this machine."""
    from tasks.registry.training_run import fetch

    settings = Settings()
    return bring.placed(Tuned.load(fetch(run_id, settings.root / "tuned" / run_id, settings)))


def is_trained(run_id: str) -> bool:
    """Whether a fine-tuning is finished."""
    from tasks.registry.training_run import is_finished

    return is_finished(run_id, Settings())
