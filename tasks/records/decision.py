"""The gate's verdict, and the report of it."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.records.record import Number, Record, StageRecord


class Check(BaseModel):
    """One check of the gate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    check: str
    passed: bool
    detail: str  # the numbers and the reason, in words
    numbers: dict[str, Number] = {}
    threshold: Number | None = None


class Decision(Record):
    """The gate's verdict: frozen, complete, and checked by its own digest (see `gate.verify`), which
    covers every other field."""

    passed: bool
    mode: str
    champion_version: str | None
    inputs: dict[str, str]  # what was judged: record -> digest
    thresholds: dict[str, Any]  # the parameters of the gate
    reasons: tuple[Check, ...]


class Report(StageRecord):
    """`folder` holds report.html (self-contained), card.md (the model card) and the pictures."""
