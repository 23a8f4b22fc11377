"""Writing the registry: one MLflow run for an adapt run, and one version if the gate passed."""

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import yaml
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, LoggedModel, LoggedModelOutput, Metric, Param, Run, RunTag
from mlflow.entities.logged_model_status import LoggedModelStatus
from mlflow.models import Model

from tasks.errors import RegistryError, public
from tasks.evaluation.gate import verify
from tasks.records import RegisteredVersion, Registration
from tasks.registry import bundle, names, package
from tasks.registry.adapt_run import AdaptRun, decision_file, metrics, parameters, tags
from tasks.registry.names import CHALLENGER, RUN_KEY, check_name
from tasks.registry.promote import first_champion
from tasks.registry.tracking import connect, experiment, lock, tracking_uri
from tasks.registry.versions import RESULT, aliases, find_run, registered, version_of_run
from tasks.settings import Settings

MODEL = "model"


def record(run: AdaptRun, result: Mapping[str, object], settings: Settings) -> Registration:
    """Records an adapt run in MLflow; registers a version only if `run.decision` passed.

    May be repeated, also after it was killed: there is one MLflow run and at most one version for
    a `run_key`. `result` is kept as JSON, with the key `registration` added (see `finished`).

    Raises:
        RegistryError: the name can't be used, or the package can't be made.
    """
    client = connect(settings)
    with lock(settings, f"model-{check_name(run.name)}"):
        entry = find_run(client, run.run_key, run.name) or _create_run(client, run, settings)
        run_id = entry.info.run_id
        version = version_of_run(client, run.name, run.run_key)
        if version is None:
            if entry.info.status != "RUNNING":
                client.update_run(run_id, status="RUNNING")
            _log_files(client, run, run_id)
            model = _log_model(client, run, entry) if run.decision.passed else None
            _log_numbers(client, run, entry, model)
            number = _create_version(client, run, run_id, model, settings) if model else None
        else:
            number = str(version.version)
            if entry.info.status == "FINISHED":
                return _registration(client, run.name, entry, number, settings)
        if number is not None:
            _set_aliases(client, run, number)
        registration = _registration(client, run.name, entry, number, settings)
        stored = {**result, "registration": registration.model_dump(mode="json")}
        client.log_text(run_id, json.dumps(stored, indent=2, allow_nan=False) + "\n", RESULT)
        client.set_terminated(run_id, "FINISHED")
        return registration


def _create_run(client: MlflowClient, run: AdaptRun, settings: Settings) -> Run:
    # The key travels with the creation, so that no run can be without it.
    return client.create_run(
        experiment(client, run.name, settings).experiment_id,
        tags={RUN_KEY: run.run_key, "mlflow.source.name": "regraft adapt", "mlflow.source.type": "JOB"},
        run_name=f"adapt-{run.run_key[:8]}",
    )


def _log_files(client: MlflowClient, run: AdaptRun, run_id: str) -> None:
    with tempfile.TemporaryDirectory(prefix="regraft-run-") as name:
        folder = Path(name)
        for name, path in _results(run).items():
            shutil.copytree(path, folder / name, ignore=shutil.ignore_patterns("record.json"))
        (folder / "data").mkdir()
        for file in (run.data.dvc_file, run.audit.path / "audit.json", run.manifest.file):
            shutil.copyfile(file, folder / "data" / file.name)
        (folder / "decision.json").write_bytes(decision_file(run.decision))
        plain = run.params.model_dump(mode="json")
        (folder / "params.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
        client.log_artifacts(run_id, str(folder))


def judged(run: AdaptRun) -> dict[str, str]:
    """What the decision has to be about: digests by name."""
    evidence = run.evidence
    records = {
        "evaluation": evidence.evaluation,
        "findings": evidence.findings,
        "robustness": evidence.robustness,
        "trial": evidence.trial,
        "package": run.package,
    }
    of_student = run.student.inputs if run.student else {}
    return {name: record.digest for name, record in records.items() if record is not None} | of_student


def _results(run: AdaptRun) -> dict[str, Path]:
    """Folder of the MLflow run -> what a stage left."""
    evidence = run.evidence
    found = {
        "evaluation": evidence.evaluation,
        "audit": evidence.findings,
        "baselines": evidence.baselines,
        "robustness": evidence.robustness,
        "report": run.report,
        "ladder": run.ladder,
    }
    return {name: record.path for name, record in found.items() if record is not None}


def _log_model(client: MlflowClient, run: AdaptRun, entry: Run) -> LoggedModel:
    """The logged model of the run, complete; one that was cut short is filled again."""
    experiments = [entry.info.experiment_id]
    found = client.search_logged_models(experiments, f"tags.`{RUN_KEY}` = '{run.run_key}'", max_results=1)
    model = (
        found[0]
        if found
        else client.create_logged_model(
            entry.info.experiment_id, MODEL, entry.info.run_id, tags={RUN_KEY: run.run_key}
        )
    )
    if model.status != LoggedModelStatus.READY:
        description = Model(
            artifact_path=model.artifact_location,
            run_id=entry.info.run_id,
            model_uuid=model.model_id,
            model_id=model.model_id,
        )
        with tempfile.TemporaryDirectory(prefix="regraft-model-") as folder:
            made = run.package.package
            saved = bundle.save(Path(folder) / MODEL, made, run.head.target, description)
            client.set_logged_model_tags(model.model_id, {names.PACKAGE: package.read(made).digest})
            client.log_model_artifacts(model.model_id, str(saved))
        model = client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    outputs = entry.outputs.model_outputs if entry.outputs else []
    if model.model_id not in {output.model_id for output in outputs}:
        client.log_outputs(entry.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
    return client.get_logged_model(model.model_id)


def _log_numbers(client: MlflowClient, run: AdaptRun, entry: Run, model: LoggedModel | None) -> None:
    now = int(time.time() * 1000)
    of_model = {metric.key for metric in model.metrics or ()} if model else set()
    points = [
        Metric(key, value, now, 0, model_id=model.model_id if model else None)
        for key, value in metrics(run).items()
        # A value that is there already would become a second point of its history.
        if entry.data.metrics.get(key) != value or (model and key not in of_model)
    ]
    given = [
        Param(key, value) for key, value in parameters(run.params).items() if key not in entry.data.params
    ]
    marks = [RunTag(key, value) for key, value in tags(run).items()]
    client.log_batch(entry.info.run_id, metrics=points, params=given, tags=marks)
    source = json.dumps({"uri": run.data.source})
    dataset = Dataset(name=run.name, digest=run.data.digest[:36], source_type="local", source=source)
    client.log_inputs(entry.info.run_id, [DatasetInput(dataset)])


def _create_version(
    client: MlflowClient, run: AdaptRun, run_id: str, model: LoggedModel, settings: Settings
) -> str:
    verify(run.decision)
    if not run.decision.passed:
        raise RegistryError(f"{run.name}: the gate rejected this run; only a passed decision is registered")
    if run.decision.inputs != judged(run):
        raise RegistryError(
            f"{run.name}: the decision is not about this model and these numbers; decide again"
        )
    if aliases(client, run.name) is None:
        client.create_registered_model(run.name)
    ours = {key: value for key, value in tags(run).items() if key.startswith("regraft.")}
    # One call: a version without these tags would be found by no later run, nor be promoted.
    version = client.create_model_version(
        name=run.name,
        # Not `models:/<id>`: a local store would look that up at the global tracking URI.
        source=model.artifact_location,
        run_id=run_id,
        model_id=model.model_id,
        tags={**ours, names.PACKAGE: model.tags[names.PACKAGE]},
        run_link=_run_url(run_id, model.experiment_id, settings),
        description=(run.report.path / "card.md").read_text(encoding="utf-8")[:5000],  # MLflow's limit
    )
    return str(version.version)


def _set_aliases(client: MlflowClient, run: AdaptRun, number: str) -> None:
    held = aliases(client, run.name) or {}
    # A run that is finished late must not take the alias from a newer version.
    if CHALLENGER not in held or int(held[CHALLENGER]) < int(number):
        client.set_registered_model_alias(run.name, CHALLENGER, number)
    first_champion(client, run.name, number)


def _registration(
    client: MlflowClient, name: str, entry: Run, number: str | None, settings: Settings
) -> Registration:
    version: RegisteredVersion | None = registered(client, name, number) if number is not None else None
    url = _run_url(entry.info.run_id, entry.info.experiment_id, settings)
    return Registration(run_id=entry.info.run_id, run_url=url, version=version)


def _run_url(run_id: str, experiment_id: str, settings: Settings) -> str:
    uri = public(tracking_uri(settings))
    server = uri.rstrip("/") if uri.startswith("http") else settings.mlflow_url
    return f"{server}/#/experiments/{experiment_id}/runs/{run_id}"
