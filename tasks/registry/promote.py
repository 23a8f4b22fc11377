"""Moving the alias `champion`."""

import hashlib
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from tasks.errors import GateError, RegistryError
from tasks.evaluation.gate import verify
from tasks.records import Decision, Promotion
from tasks.registry.names import CHAMPION, DECISION, DECISION_FILE, PACKAGE, check_name
from tasks.registry.tracking import connect, lock
from tasks.registry.versions import champion_version, get_version
from tasks.settings import Settings

BY = "regraft.promoted_by"
REASON = "regraft.promoted_reason"
AT = "regraft.promoted_at"
BEFORE = "regraft.promoted_before"  # the champion until then; empty: there was none


def promote(name: str, version: str, by: str, reason: str, settings: Settings) -> Promotion:
    """Makes a version the champion; tags of the version say who did it, why, when, and which
    version was the champion before. Does nothing to a version that is the champion already.

    Raises:
        RegistryError: there is no such version, or no passed decision stands behind it.
    """
    client = connect(settings)
    with lock(settings, f"model-{check_name(name)}"):
        found = get_version(client, name, version)
        number = str(found.version)
        before = champion_version(client, name)
        if before == number:
            return _promotion(name, number, found.tags, changed=False)
        _check(client, found)
        tags = _move(client, name, number, before, by, reason)
        return _promotion(name, number, tags, changed=True)


def first_champion(client: MlflowClient, name: str, version: str) -> None:
    """Makes a passed version the champion of a model that has none; call it under the model's lock."""
    if champion_version(client, name) is None:
        _move(client, name, version, None, "regraft", "the first version that passed the gate")


def _move(
    client: MlflowClient, name: str, version: str, before: str | None, by: str, reason: str
) -> dict[str, str]:
    tags = {BY: by, REASON: reason, AT: datetime.now(UTC).isoformat(timespec="seconds"), BEFORE: before or ""}
    # The alias comes last: a champion that nobody is on record for can't arise.
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
    client.set_registered_model_alias(name, CHAMPION, version)
    return tags


def _promotion(name: str, version: str, tags: dict[str, str], *, changed: bool) -> Promotion:
    return Promotion(
        name=name,
        version=version,
        alias=CHAMPION,
        changed=changed,
        before=tags.get(BEFORE) or None,
        by=tags.get(BY, ""),
        reason=tags.get(REASON, ""),
        at=tags.get(AT, ""),
    )


def _check(client: MlflowClient, version: ModelVersion) -> None:
    """Raises RegistryError unless the version's tags and its run agree on a passed decision."""
    what = f"{version.name} version {version.version}"
    digest, file_digest = version.tags.get(DECISION), version.tags.get(DECISION_FILE)
    if digest is None or file_digest is None or not version.run_id:
        raise RegistryError(
            f"{what}: carries no decision; only versions that Regraft registered are promoted"
        )
    try:
        with tempfile.TemporaryDirectory() as folder:
            content = Path(client.download_artifacts(version.run_id, "decision.json", folder)).read_bytes()
        decision = Decision.model_validate_json(content)
    except (MlflowException, OSError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RegistryError(f"{what}: decision.json of its run can't be read ({reason})") from None
    if decision.digest != digest or hashlib.sha256(content).hexdigest() != file_digest:
        raise RegistryError(f"{what}: decision.json of its run is not the decision it was registered with")
    try:
        verify(decision)
    except GateError as error:
        raise RegistryError(f"{what}: {error}") from None
    if decision.inputs.get("package") != version.tags.get(PACKAGE):
        raise RegistryError(f"{what}: its decision is about another package")
    if not decision.passed:
        failed = "; ".join(f"{r.check}: {r.detail}" for r in decision.reasons if not r.passed)
        raise RegistryError(f"{what}: the gate rejected it ({failed})")
