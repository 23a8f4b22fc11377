"""What all records are made of."""

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, PlainSerializer

Split = Literal["train", "validation", "test"]


SPLITS: tuple[Split, ...] = ("train", "validation", "test")


# What a label is: one class, any number of labels, or a number.
Target = Literal["class", "labels", "number"]


def digest_of(*parts: object) -> str:
    """Hex SHA-256 of the canonical JSON of `parts` (records and parameters included)."""
    plain = [p.model_dump(mode="json") if isinstance(p, BaseModel) else p for p in parts]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Record(BaseModel):
    """A frozen value with a content digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str

    @property
    def identity(self) -> str:
        """What the results of later stages depend on."""
        return self.digest


class StageRecord(Record):
    """What a stage leaves behind: `folder` holds its files and `record.json`."""

    folder: str

    @property
    def path(self) -> Path:
        return Path(self.folder)

    def save(self) -> Self:
        """Writes `record.json` into the folder."""
        (self.path / "record.json").write_text(self.model_dump_json(indent=2) + "\n")
        return self

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads the record of `folder`; the folder may have been moved since it was written."""
        values = json.loads((folder / "record.json").read_text())
        return cls.model_validate({**values, "folder": str(folder)})


class Rejected(BaseModel):
    """A sample that was set aside, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    reason: str


def _number_or_name(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


# JSON has no NaN, and a null would not load as a number: `nan` and `inf` are written as text, so
# that a broken metric reaches the gate, which fails closed.
Number = Annotated[float, PlainSerializer(_number_or_name, when_used="json")]


class Interval(BaseModel):
    """A point estimate with its bootstrap interval, which covers 1 - alpha."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: Number
    low: Number
    high: Number
