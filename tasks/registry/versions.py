"""Reading the registry: versions, the champion, and the data behind a version."""

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ConfigDict

from tasks.embedding.source import embedder_of
from tasks.errors import RegistryError, public
from tasks.records import Champion, RegisteredVersion, digest_of
from tasks.registry import package
from tasks.registry.names import (
    BLOCKS,
    CHALLENGER,
    CHAMPION,
    CHAMPION_VERSION,
    DATA,
    DECISION,
    PACKAGE,
    PACKAGE_FOLDER,
    PASSED,
    RUN_KEY,
    check_name,
)
from tasks.registry.tracking import connect, lock, tracking_uri
from tasks.settings import Settings
from tasks.stage import sync_tree

log = logging.getLogger(__name__)

PARAMS = "params.yaml"  # artifact of a run
RESULT = "result.json"  # artifact of a finished run
_URI = re.compile(r"models:/([^/@]+)(?:/(\d+)|@([^/@]+))")


class VersionInfo(BaseModel):
    """A version as `regraft models` shows it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    aliases: tuple[str, ...]
    created: datetime  # UTC
    metrics: dict[str, float]  # of its run
    decision: str | None  # digest of the decision that let it in; None: not registered by Regraft
    passed: bool
    run_id: str | None
    tags: dict[str, str]


def list_versions(settings: Settings, name: str | None = None) -> list[VersionInfo]:
    """All versions of one model or of all, by name, the newest first.

    Raises:
        RegistryError: there is no model of this name.
    """
    client = connect(settings)
    if name is not None and aliases(client, check_name(name)) is None:
        raise RegistryError(
            f"{name}: no such model at {public(tracking_uri(settings))}; see `regraft models list`"
        )
    held: dict[str, dict[str, str]] = {}
    found = []
    for version in _search(client, f"name='{name}'" if name else None):
        if version.name not in held:
            held[version.name] = aliases(client, version.name) or {}
        found.append(
            VersionInfo(
                name=version.name,
                version=str(version.version),
                aliases=tuple(
                    sorted(a for a, v in held[version.name].items() if str(v) == str(version.version))
                ),
                created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
                metrics=_metrics(client, version.run_id),
                decision=version.tags.get(DECISION),
                passed=version.tags.get(PASSED) == "true",
                run_id=version.run_id or None,
                tags=dict(version.tags),
            )
        )
    return sorted(found, key=lambda v: (v.name, -int(v.version)))


def referenced_blocks(settings: Settings) -> set[str]:
    """Fingerprints of the embeddings that any registered version of any model stands on."""
    return {
        block
        for version in _search(connect(settings), None)
        for block in version.tags.get(BLOCKS, "").split()
    }


def aliases(client: MlflowClient, name: str) -> dict[str, str] | None:
    """Alias -> version of the model `name`; None where there is no such model."""
    try:
        held = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return {alias: str(version) for alias, version in held.items()}


def champion_version(client: MlflowClient, name: str) -> str | None:
    """The version that has the alias `champion`."""
    return (aliases(client, name) or {}).get(CHAMPION)


def version_of_run(client: MlflowClient, name: str, run_key: str) -> ModelVersion | None:
    """The version that the adapt run `run_key` made."""
    return next(_search(client, f"name='{name}' and tags.`{RUN_KEY}`='{run_key}'"), None)


def find_run(client: MlflowClient, run_key: str, name: str) -> Run | None:
    """The MLflow run of the adapt run `run_key` of the model `name`."""
    found = client.get_experiment_by_name(name)
    if found is None:
        return None
    runs = client.search_runs(
        [found.experiment_id], f"tags.`{RUN_KEY}` = '{run_key}'", order_by=["start_time ASC"], max_results=1
    )
    return runs[0] if runs else None


def finished(run_key: str, name: str, settings: Settings) -> dict[str, Any] | None:
    """The result of an adapt run that need not be repeated: it is complete, and either its version
    still exists or the champion it was rejected against is still the champion."""
    client = connect(settings)
    run = find_run(client, run_key, check_name(name))
    if run is None or run.info.status != "FINISHED":
        return None
    if run.data.tags.get(PASSED) == "true":
        valid = version_of_run(client, name, run_key) is not None
    else:
        valid = run.data.tags.get(CHAMPION_VERSION) == (champion_version(client, name) or "")
    if not valid:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = client.download_artifacts(run.info.run_id, RESULT, folder)
        result: dict[str, Any] = json.loads(Path(file).read_text())
    if _failed(result, "latency"):  # the machine may have been busy
        return None
    if version := result["registration"]["version"]:  # aliases may have moved since
        result["registration"]["version"] = registered(client, name, version["version"]).model_dump()
    return result


def _failed(result: dict[str, Any], check: str) -> bool:
    reasons = result.get("gate", {}).get("reasons", [])
    return any(reason["check"] == check and not reason["passed"] for reason in reasons)


def get_version(client: MlflowClient, name: str, version: str) -> ModelVersion:
    """A version with its tags.

    Raises:
        RegistryError: there is none.
    """
    try:
        return client.get_model_version(check_name(name), version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise RegistryError(f"{name}: has no version {version}; see `regraft models list`") from None
        raise


def registered(client: MlflowClient, name: str, version: str) -> RegisteredVersion:
    """The record of a version, with the highest alias it holds now."""
    held = aliases(client, name) or {}
    alias = next((a for a in (CHAMPION, CHALLENGER) if held.get(a) == str(version)), None)
    return RegisteredVersion(name=name, version=str(version), alias=alias)


def champion(name: str, settings: Settings) -> Champion | None:
    """Brings the champion's package to this machine; None where there is no champion yet.

    Raises:
        RegistryError: it can't be had, is damaged, or was not made by Regraft.
    """
    number = champion_version(connect(settings), check_name(name))
    return None if number is None else bring(name, number, settings)


def bring(name: str, number: str, settings: Settings) -> Champion:
    """Brings the package of a version to `<state>/models/<name>/<version>`.

    Raises:
        RegistryError: as for `champion`, or there is no such version.
    """
    client = connect(settings)
    version = get_version(client, check_name(name), number)
    digest = version.tags.get(PACKAGE)
    if digest is None:
        raise RegistryError(
            f"{name} version {number}: was not registered by Regraft; promote another version,"
            f" or, if it is the champion, take the alias `{CHAMPION}` from it"
        )
    folder = settings.root / "models" / name / number
    # The digest tells a folder of another registry's version with the same number.
    if _digest(folder) != digest:
        with _into(folder) as made:
            # Not `models:/NAME/1`: MLflow would look that up at the global registry URI.
            location = client.get_model_version_download_uri(name, number)
            _download(settings, f"{location}/{PACKAGE_FOLDER}", made)
            if _digest(made) != digest:
                raise RegistryError(
                    f"{name} version {number}: its package is not the one that was registered"
                )
    content = package.read(folder)
    return Champion(
        digest=digest_of("champion", name, number, content.digest),
        name=name,
        version=number,
        folder=str(folder),
        embedder=embedder_of(content.embedder.backbones),
        target=content.head.target,
        package=content.digest,
        manifest=_manifest(f"models:/{name}/{number}", settings),
    )


@dataclass(frozen=True)
class Origin:
    """What made a version."""

    dvc_file: str  # the text of its data.dvc
    manifest: Path  # a local Parquet file
    params: str  # the text of its params.yaml, complete


def origin_of(model_uri: str, settings: Settings) -> Origin:
    """The data and parameters that made a version.

    Args:
        model_uri: `models:/NAME/3` or `models:/NAME@champion`.

    Raises:
        RegistryError: it is no such address, or the version's run does not hold its data.
    """
    parts = _URI.fullmatch(model_uri)
    if parts is None:
        raise RegistryError(f"{model_uri}: must look like models:/NAME/3 or models:/NAME@champion")
    name, number, alias = parts.groups()
    client = connect(settings)
    if alias is not None:
        number = (aliases(client, check_name(name)) or {}).get(alias)
        if number is None:
            raise RegistryError(f"{model_uri}: no version has this alias; see `regraft models list`")
    version = get_version(client, name, number)
    digest = version.tags.get(DATA)
    if digest is None or not version.run_id:
        raise RegistryError(f"{model_uri}: was not registered by Regraft, so its data is not known")
    folder = settings.root / "models" / name / f"{number}-data"
    try:
        with lock(settings, f"package-{name}"), _into(folder) as made:
            location = client.get_run(version.run_id).info.artifact_uri
            _download(settings, f"{location}/data", made)
            client.download_artifacts(version.run_id, PARAMS, str(made))
        text = (folder / "data.dvc").read_text(encoding="utf-8")
        params = (folder / PARAMS).read_text(encoding="utf-8")
    except (MlflowException, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RegistryError(f"{model_uri}: its run does not hold its data any more ({reason})") from None
    if digest not in text:
        raise RegistryError(f"{model_uri}: its data.dvc does not name the data version {digest}")
    return Origin(text, folder / "manifest.parquet", params)


def _manifest(model_uri: str, settings: Settings) -> str | None:
    """What the version was trained on; None where its run has no data any more."""
    try:
        return str(origin_of(model_uri, settings).manifest)
    except RegistryError as error:
        log.warning("%s", error)
        return None


def _search(client: MlflowClient, query: str | None) -> Iterator[ModelVersion]:
    token: str | None = None
    while True:
        page = client.search_model_versions(query, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _metrics(client: MlflowClient, run_id: str | None) -> dict[str, float]:
    try:
        return dict(client.get_run(run_id).data.metrics) if run_id else {}
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # the run was deleted for good
            return {}
        raise


def _digest(folder: Path) -> str | None:
    """Digest of the good package in `folder`; None where there is none."""
    try:
        return package.read(folder).digest
    except RegistryError:
        return None


@contextmanager
def _into(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when all went well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield made
        sync_tree(made)
        old = made.with_name(made.name + ".old")
        if folder.exists():
            folder.rename(old)
        made.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _download(settings: Settings, uri: str, out: Path) -> None:
    """Fills the folder `out` with the folder at `uri`."""
    where = tracking_uri(settings)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=out.parent) as folder:
        try:
            found = download_artifacts(artifact_uri=uri, dst_path=folder, tracking_uri=where)
        except (MlflowException, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise RegistryError(f"{uri}: can't be downloaded from {public(where)} ({reason})") from None
        for file in Path(found).iterdir():
            file.replace(out / file.name)
