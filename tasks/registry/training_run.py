"""The MLflow run of a fine-tuning: one for a key, on whatever machines and in however many attempts it
is trained; and by it the trained weights travel."""

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run, RunTag
from mlflow.exceptions import MlflowException

from tasks.embedding.source import file_digest
from tasks.errors import RegistryError, public
from tasks.finetune.request import FinetuneRequest
from tasks.lock import locked
from tasks.records import Backbone, TeacherPackage, Tuned
from tasks.registry.names import check_name
from tasks.registry.package import DESCRIPTION, read
from tasks.registry.tracking import connect, experiment, lock, tracking_uri
from tasks.registry.training_metrics import Metrics
from tasks.settings import Settings
from tasks.stage import code_digest, sync_tree

KEY = "regraft.finetune_key"
KIND = "regraft.kind"
WEIGHTS = "regraft.weights_sha256"  # of a finished run: of tuned/weights.safetensors
TUNED = "tuned"  # folder of the result
BEFORE = "backbone"  # folder of the weights that it starts from
TEACHERS = "teachers"  # folder of the packages that a student learns from
FILES = ("weights.safetensors", "history.json", "curves.png", "record.json")
WAIT_S = 120.0  # for MLflow, at the end
_PAUSE_S = 3.0
# What does not pass by waiting.
_FINAL = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "PERMISSION_DENIED")


def start(name: str, key: str, request: FinetuneRequest, settings: Settings) -> str:
    """The id of the run of the fine-tuning `key` in the experiment of the model `name`; it is made where
    there is none.

    Raises:
        RegistryError: MLflow does not answer, or the name can't be used.
    """
    client = connect(settings)
    with lock(settings, f"model-{check_name(name)}"):
        place = experiment(client, name, settings).experiment_id
        found = client.search_runs(
            [place], f"tags.`{KEY}` = '{key}'", order_by=["start_time ASC"], max_results=1
        )
        # The tags travel with the creation, so that no run can be without them.
        run = (
            found[0]
            if found
            else client.create_run(place, tags=_tags(key, request), run_name=f"{request.kind}-{key[:8]}")
        )
        given = {name: value for name, value in _params(request).items() if name not in run.data.params}
        for param, value in given.items():
            client.log_param(run.info.run_id, param, value)
        if run.info.status not in ("RUNNING", "FINISHED"):
            client.update_run(run.info.run_id, status="RUNNING")
        return str(run.info.run_id)


def is_finished(run_id: str, settings: Settings) -> bool:
    """Whether the run has its trained weights.

    Raises:
        RegistryError: MLflow does not answer, or has no such run.
    """
    try:
        return _is_finished(connect(settings).get_run(run_id))
    except MlflowException as error:
        reason = " ".join(str(error).split())[:300]
        raise RegistryError(f"MLflow run {run_id}: can't be looked up ({reason}); run again") from None


def keep_backbone(run_id: str, backbone: Backbone, settings: Settings) -> None:
    """Puts the weights that training starts from beside it, for a machine that has them from nowhere.

    Raises:
        RegistryError: MLflow does not answer.
    """
    client = connect(settings)
    name = f"{backbone.weights_digest}.safetensors"
    if f"{BEFORE}/{name}" in {file.path for file in client.list_artifacts(run_id, BEFORE)}:
        return
    with tempfile.TemporaryDirectory(prefix="regraft-run-") as folder:
        file = Path(folder) / name
        file.symlink_to(Path(backbone.weights).resolve())
        client.log_artifact(run_id, str(file), BEFORE)


def fetch_backbone(run_id: str, backbone: Backbone, store: Path, settings: Settings) -> Path:
    """Brings those weights into `store`.

    Raises:
        RegistryError: the run lacks them, or they are not those of the digest.
    """
    name = f"{backbone.weights_digest}.safetensors"
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=store) as folder:
        file = _download(connect(settings), run_id, f"{BEFORE}/{name}", Path(folder))
        _prove(file, backbone.weights_digest, run_id)
        return file.replace(store / name)


def keep_teacher(run_id: str, teacher: TeacherPackage, settings: Settings) -> None:
    """Puts a package that a student learns from beside it, `model.json` last.

    Raises:
        RegistryError: MLflow does not answer.
    """
    client, place = connect(settings), f"{TEACHERS}/{teacher.digest}"
    there = {Path(file.path).name for file in client.list_artifacts(run_id, place)}
    if DESCRIPTION in there:
        return
    files = sorted(Path(teacher.folder).iterdir(), key=lambda file: file.name == DESCRIPTION)
    for file in files:
        client.log_artifact(run_id, str(file), place)


def fetch_teacher(run_id: str, teacher: TeacherPackage, settings: Settings) -> TeacherPackage:
    """That package on this machine: where it was made, or brought from the run.

    Raises:
        RegistryError: the run lacks it, or what it holds is not what its digest says.
    """
    store = settings.root / "packages"
    for folder in (Path(teacher.folder), store / teacher.digest):
        with suppress(RegistryError):
            return _proved(folder, teacher.digest)
    with locked(settings.root / "locks" / f"package-{teacher.digest}.lock"):
        with suppress(RegistryError):  # whoever waited finds it
            return _proved(store / teacher.digest, teacher.digest)
        store.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".fetch-", dir=store))
        try:
            found = _download(connect(settings), run_id, f"{TEACHERS}/{teacher.digest}", made)
            _proved(found, teacher.digest)
            shutil.rmtree(store / teacher.digest, ignore_errors=True)
            found.rename(store / teacher.digest)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return _proved(store / teacher.digest, teacher.digest)


def finish(run_id: str, tuned: Tuned, progress: Path, settings: Settings, wait_s: float = WAIT_S) -> None:
    """Sends what is left of the numbers, and the result; ends the run. It may be repeated.

    Raises:
        RegistryError: MLflow was away for longer than `wait_s`; the training is kept.
    """

    def send() -> None:
        client = connect(settings)
        run = client.get_run(run_id)
        if _is_finished(run) and run.data.tags[WEIGHTS] == tuned.backbone.weights_digest:
            return
        if run.info.status != "RUNNING":
            client.update_run(run_id, status="RUNNING")
        Metrics(run_id, progress, settings).send(tuned.history)
        for name in FILES:
            if (tuned.path / name).exists():
                client.log_artifact(run_id, str(tuned.path / name), TUNED)
        tags = {
            WEIGHTS: tuned.backbone.weights_digest,
            "regraft.tuned": tuned.digest,
            "regraft.chosen": tuned.chosen,
            "regraft.hardware": tuned.hardware,
            "regraft.code": code_digest(),  # of the machine that trained
        }
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        client.set_terminated(run_id, "FINISHED")

    _retried(send, tuned.path, wait_s, settings)


def give_up(run_id: str, settings: Settings) -> None:
    """Marks the run as failed, unless another attempt has finished it; where MLflow does not answer it
    stays as it is."""
    try:
        client = connect(settings)
        if client.get_run(run_id).info.status != "FINISHED":
            client.set_terminated(run_id, "FAILED")
    except (RegistryError, MlflowException):
        return  # why the training failed is what has to be told


def fetch(run_id: str, to: Path, settings: Settings) -> Path:
    """Brings the result of a finished run to the folder `to`; returns that.

    Raises:
        RegistryError: MLflow does not answer, the run is not finished, or its weights are not those
            that it was finished with.
    """
    client = connect(settings)
    digest = client.get_run(run_id).data.tags.get(WEIGHTS)
    if digest is None:
        raise RegistryError(f"MLflow run {run_id}: holds no trained weights; run again to train them")
    weights = to / "weights.safetensors"
    if weights.is_file() and file_digest(weights) == digest and (to / "record.json").exists():
        return to
    to.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{to.name}-", dir=to.parent))
    try:
        found = _download(client, run_id, TUNED, made)
        _prove(found / "weights.safetensors", digest, run_id)
        sync_tree(found)
        shutil.rmtree(to, ignore_errors=True)
        found.rename(to)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return to


def _tags(key: str, request: FinetuneRequest) -> dict[str, str]:
    taught = request.distillation
    return {
        KEY: key,
        KIND: request.kind,
        **({} if taught is None else {"regraft.teachers": ", ".join(one.digest for one in taught.teachers)}),
        "regraft.manifest": request.manifest,
        "regraft.backbone": request.backbone.name,
        "regraft.backbone_sha256": request.backbone.weights_digest,
        "mlflow.source.name": "regraft finetune",
        "mlflow.source.type": "JOB",
    }


def _params(request: FinetuneRequest) -> dict[str, str]:
    fields = request.finetune.model_dump(mode="json")
    flat = {f"finetune.{name}": value for name, value in fields.items()}
    if request.distillation is not None:
        wished = request.distillation.params.model_dump(mode="json")
        flat |= {f"distill.{name}": value for name, value in wished.items()}
    flat |= {"backbone": request.backbone.name, "image_size": request.backbone.preprocess.size}
    return {name: str(value) for name, value in flat.items()}


def _is_finished(run: Run) -> bool:
    return run.info.status == "FINISHED" and WEIGHTS in run.data.tags


def _retried(act: Callable[[], None], kept: Path, wait_s: float, settings: Settings) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return act()
        except MlflowException as error:
            reason = " ".join(str(error).split())[:300]
            if error.error_code in _FINAL:
                raise RegistryError(
                    f"MLflow refuses the training in {kept} ({reason}); it is kept: mend that and run again"
                ) from None
        except (RegistryError, OSError) as error:
            reason = str(error)
        if time.monotonic() > deadline:
            raise RegistryError(
                f"MLflow at {public(tracking_uri(settings))} took no result for {wait_s:.0f} s ({reason});"
                f" the training is kept in {kept}: run again to send it"
            )
        time.sleep(_PAUSE_S)  # between two tries


def _download(client: MlflowClient, run_id: str, path: str, to: Path) -> Path:
    try:
        return Path(client.download_artifacts(run_id, path, str(to)))
    except (MlflowException, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RegistryError(
            f"MLflow run {run_id}: {path} can't be downloaded ({reason}); run again"
        ) from None


def _proved(folder: Path, digest: str) -> TeacherPackage:
    package = read(folder)
    if package.digest != digest:
        raise RegistryError(f"{folder}: is the package {package.digest}, not {digest}; run again")
    return TeacherPackage(digest=digest, folder=str(folder), embedder=package.embedder)


def _prove(file: Path, digest: str, run_id: str) -> None:
    if not file.is_file() or (found := file_digest(file)) != digest:
        what = f"has SHA-256 {found}" if file.is_file() else "is missing"
        raise RegistryError(
            f"MLflow run {run_id}: {file.name} {what}, not {digest} as it was recorded;"
            " delete the run and run again"
        )
