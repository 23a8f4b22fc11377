"""The environment in which Prefect, MLflow and the flows run: everything in one state folder, on
loopback, without telemetry. What the user has set already stays."""

import os

from tasks.settings import Settings


def environment(settings: Settings, *, api_url: str) -> dict[str, str]:
    """Variables for this process, or for a server or worker that uses the Prefect API at `api_url`."""
    state = settings.root
    values = {
        "PREFECT_HOME": str(state / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(state / "prefect" / "results"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DVC_NO_ANALYTICS": "true",
        "MPLBACKEND": "Agg",
    }
    ours = {
        "REGRAFT_STATE": str(state),
        "REGRAFT_HOST": settings.host,
        "REGRAFT_PREFECT_PORT": str(settings.prefect_port),
        "REGRAFT_MLFLOW_PORT": str(settings.mlflow_port),
        "PREFECT_API_URL": api_url,
        # The default is pickle, which is neither written nor read here.
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    ours |= dict.fromkeys(("no_proxy", "NO_PROXY"), _no_proxy(settings.host))
    return {**{name: value for name, value in values.items() if name not in os.environ}, **ours}


def enter(settings: Settings, *, api_url: str) -> None:
    """Sets the variables for this process; call it before Prefect or MLflow is imported."""
    (settings.root / "prefect").mkdir(parents=True, exist_ok=True)
    os.environ.update(environment(settings, api_url=api_url))
    # Prefect's own lines go to its API and its log file; the terminal is for the result.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


def _no_proxy(host: str) -> str:
    """Hosts that are reached without a proxy: those of the user, and the local servers."""
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if known.strip() == "*":
        return known
    return ",".join(dict.fromkeys([*filter(None, known.split(",")), host, "127.0.0.1", "localhost"]))
