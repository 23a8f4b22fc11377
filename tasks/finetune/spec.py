"""What a training process is given: references and parameters, as one JSON file."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from tasks.params import DataParams, DistillParams, FinetuneParams
from tasks.records import Backbone, Manifest, TeacherPackage


class Distillation(BaseModel):
    """What a student learns from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    params: DistillParams
    data: DataParams  # of further images
    teachers: tuple[TeacherPackage, ...]
    unlabelled: str = ""  # digest of the further images


class Spec(BaseModel):
    """One training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str  # names the training by all that determines it
    manifest: Manifest
    data: Path  # folder that the manifest's paths are relative to
    backbone: Backbone  # with the layer `network` alone
    head: Path | None  # folder of the head that training starts from
    params: FinetuneParams
    distillation: Distillation | None
    max_pixels: int
    memory_bytes: int  # of images that are held
    state: Path  # the state folder
    checkpoints: str  # a folder, or s3://bucket/prefix
    out: Path  # folder for the result

    @property
    def progress(self) -> Path:
        return self.out / "progress.jsonl"

    def save(self) -> Path:
        """Writes it into its folder; returns the file."""
        file = self.out / "spec.json"
        file.write_text(self.model_dump_json(indent=2) + "\n")
        return file

    @classmethod
    def load(cls, file: Path) -> Self:
        return cls.model_validate_json(file.read_bytes())
