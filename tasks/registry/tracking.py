"""Where MLflow is."""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from mlflow import MlflowClient
from mlflow.entities import Experiment

from tasks.errors import RegistryError, public
from tasks.lock import locked
from tasks.settings import Settings

# Of `mlflow server`. Its job runner is eight further processes, which nothing here uses.
SERVER_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def tracking_uri(settings: Settings) -> str:
    """`MLFLOW_TRACKING_URI`, else a SQLite file in the state folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{settings.root}/mlflow/mlflow.db"


def artifacts_folder(settings: Settings) -> Path:
    """Where runs and models lie when the state folder is the store."""
    return settings.root / "mlflow" / "artifacts"


def connect(settings: Settings) -> MlflowClient:
    """A client of the tracking store and registry; a local store is set up at the first call.

    Raises:
        RegistryError: the server does not answer.
    """
    uri = tracking_uri(settings)
    if uri.startswith("sqlite:"):
        (settings.root / "mlflow").mkdir(parents=True, exist_ok=True)
        with lock(settings, "store"):  # two processes that create the tables at once collide
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
        return client
    if uri.startswith(("http:", "https:")):
        _require_answer(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _require_answer(uri: str) -> None:
    """Asks once, shortly: MLflow's own client tries for minutes, without a word."""
    try:
        urlopen(f"{uri.rstrip('/')}/health", timeout=10).close()  # noqa: S310 - http, as checked
    except HTTPError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise RegistryError(
            f"MLflow at {public(uri)} does not answer ({reason}); start it, or see MLFLOW_TRACKING_URI"
        ) from None


def experiment(client: MlflowClient, name: str, settings: Settings) -> Experiment:
    """The experiment of the model `name`, made where there is none; call it under the model's lock.

    Raises:
        RegistryError: it was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        # A server says itself where artifacts lie. With a local store the place is given as a file
        # URI, so that the same store can be used behind `mlflow server` too.
        local = client.tracking_uri.startswith("sqlite:")
        location = (artifacts_folder(settings) / name).as_uri() if local else None
        found = client.get_experiment(client.create_experiment(name, artifact_location=location))
    if found.lifecycle_stage != "active":
        raise RegistryError(f"{name}: this MLflow experiment was deleted; restore it or use another name")
    return found


def server_options(settings: Settings) -> list[str]:
    """Options of `mlflow server` under which it shares the local store with direct use."""
    folder = artifacts_folder(settings)
    return [
        *("--backend-store-uri", f"sqlite:///{settings.root}/mlflow/mlflow.db"),
        *("--artifacts-destination", str(folder)),
        *("--default-artifact-root", folder.as_uri()),
    ]


def lock(settings: Settings, name: str) -> AbstractContextManager[None]:
    """Holds the lock `name` of this state folder."""
    return locked(settings.root / "locks" / f"{name}.lock")
