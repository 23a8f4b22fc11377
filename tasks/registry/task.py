"""The registry as Prefect tasks. MLflow takes seconds to import, so it is imported when needed."""

from pathlib import Path
from typing import Any

from prefect import task

from tasks.params import EvaluationParams
from tasks.records import (
    Champion,
    DatasetVersion,
    Embedder,
    Embeddings,
    Head,
    Manifest,
    ModelPackage,
    Promotion,
    Registration,
    Trial,
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


@task(name="register", **options())
def register(run: AdaptRun, result: dict[str, Any]) -> Registration:
    """Records the run; registers a version if the gate passed. Idempotent by the run's key."""
    from tasks.registry.register import record

    return record(run, result, Settings())


@task(name="promote", **options())
def promote_version(name: str, version: str, by: str, reason: str) -> Promotion:
    from tasks.registry.promote import promote

    return promote(name, version, by, reason, Settings())
