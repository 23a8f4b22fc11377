"""The environment in which Prefect, MLflow and the flows run: everything in one state folder, on
loopback, without telemetry. What the user has set already stays."""

import os

from tasks.settings import Settings


def environment(settings: Settings, *, api_url: str | None) -> dict[str, str]:
    """Variables for this process, or for a server or worker.

    Args:
        api_url: of the Prefect API; None: an API of this process's own, on the same database.
    """
    state = settings.root
    values = {
        "REGRAFT_STATE": str(state),
        "PREFECT_HOME": str(state / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(state / "prefect" / "results"),
        # The default is pickle, which is neither written nor read here.
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "DVC_NO_ANALYTICS": "true",
        "MPLBACKEND": "Agg",
    }
    if api_url is not None:
        values["PREFECT_API_URL"] = api_url
    else:
        values["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "true"
    own = {"REGRAFT_STATE", "PREFECT_RESULTS_DEFAULT_SERIALIZER", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"}
    return {name: value for name, value in values.items() if name in own or name not in os.environ}


def enter(settings: Settings, *, api_url: str | None) -> None:
    """Sets the variables for this process; call it before Prefect or MLflow is imported."""
    (settings.root / "prefect").mkdir(parents=True, exist_ok=True)
    os.environ.update(environment(settings, api_url=api_url))
    # Prefect's own lines go to its API and its log file; the terminal is for the result.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
