"""What an adapt run ends with."""

from typing import Literal

from pydantic import BaseModel

from tasks.records.decision import Check
from tasks.records.finetune import Rung
from tasks.records.head import Kind
from tasks.records.record import Interval
from tasks.records.registry import RegisteredVersion


class DatasetFacts(BaseModel):
    """The part of a result that says what the data was."""

    digest: str
    samples: int
    quarantined: int


class EmbeddingFacts(BaseModel):
    computed: int
    cached: int


class AuditFacts(BaseModel):
    near_duplicates: int
    leakage: float
    label_errors: int
    outliers: int


class GateFacts(BaseModel):
    passed: bool
    reasons: tuple[Check, ...]


class HeadFacts(BaseModel):
    kind: Kind
    strength: float | None
    temperature: float


class AdaptResult(BaseModel):
    """What an adapt run ends with; printed by `regraft adapt --json`. Keys are added, never removed."""

    state: Literal["registered", "rejected", "unchanged"]
    dataset: DatasetFacts
    embedding: EmbeddingFacts
    head: HeadFacts
    audit: AuditFacts
    rung: str = "frozen"  # of the ladder: the one that was taken
    ladder: tuple[Rung, ...] = ()
    climb: str = ""  # why it was climbed, or not
    metrics: dict[str, Interval]
    champion_metrics: dict[str, Interval] | None
    gate: GateFacts
    model: RegisteredVersion | None
    seconds: dict[str, float]  # task -> seconds
    run_id: str  # of MLflow
    report: str  # path of report.html on the machine that made it
    links: dict[str, str]  # `prefect`, `mlflow`, `report`: where to look further
