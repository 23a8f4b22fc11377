"""Records of the registry."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tasks.records.embedding import Embedder
from tasks.records.record import Record, StageRecord, Target


class Champion(Record):
    """The version that serves today, brought to this machine."""

    name: str
    version: str
    folder: str  # its package: model.json, the weights of its backbones, head.safetensors
    embedder: Embedder
    target: Target
    package: str = ""  # digest of the package
    manifest: str | None = None  # path of the manifest it was trained on, where its run has it


class ModelPackage(StageRecord):
    """What will be registered, made before it is judged: `folder` holds `package/`."""

    size_bytes: int

    @property
    def package(self) -> Path:
        return self.path / "package"


class RegisteredVersion(BaseModel):
    """A version in the model registry."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    alias: str | None  # the highest alias it holds: champion, else challenger


class Promotion(RegisteredVersion):
    """The champion after `promote`, and what that changed."""

    changed: bool  # False: it was the champion already
    before: str | None  # the champion until then
    by: str
    reason: str
    at: str  # UTC, ISO 8601


class Registration(BaseModel):
    """Where a run was recorded, and the version it made (if the gate passed)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    run_url: str
    version: RegisteredVersion | None
