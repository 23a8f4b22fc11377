"""The small frozen records that travel between stages: ids, digests and paths, never tensors.

Every record has a `digest`, which says what its content is: equal digests mean equal content.
A record that lies in a folder (`folder`) is written there as `record.json`, last of all.
"""

from tasks.records.audit import Findings, Shift
from tasks.records.data import Audit, DatasetVersion, Manifest
from tasks.records.decision import Check, Decision, Report
from tasks.records.embedding import Backbone, Block, Embedder, Embeddings, Pooling, Preprocess
from tasks.records.evaluation import (
    Baselines,
    CurvePoint,
    Difference,
    Evaluation,
    Evidence,
    McNemar,
    Robustness,
    Selective,
    Trial,
)
from tasks.records.finetune import Climb, Epoch, Ladder, Rung, RungChoice, TrialPoint, Tuned
from tasks.records.head import Confidence, Conformal, Head, Kind, Score
from tasks.records.record import (
    SPLITS,
    Interval,
    Number,
    Record,
    Rejected,
    Split,
    StageRecord,
    Target,
    digest_of,
)
from tasks.records.registry import Champion, ModelPackage, Promotion, RegisteredVersion, Registration
from tasks.records.result import AdaptResult, AuditFacts, DatasetFacts, EmbeddingFacts, GateFacts, HeadFacts
from tasks.records.student import Teacher, TeacherPackage, Throughput

__all__ = [
    "SPLITS",
    "AdaptResult",
    "Audit",
    "AuditFacts",
    "Backbone",
    "Baselines",
    "Block",
    "Champion",
    "Check",
    "Climb",
    "Confidence",
    "Conformal",
    "CurvePoint",
    "DatasetFacts",
    "DatasetVersion",
    "Decision",
    "Difference",
    "Embedder",
    "EmbeddingFacts",
    "Embeddings",
    "Epoch",
    "Evaluation",
    "Evidence",
    "Findings",
    "GateFacts",
    "Head",
    "HeadFacts",
    "Interval",
    "Kind",
    "Ladder",
    "Manifest",
    "McNemar",
    "ModelPackage",
    "Number",
    "Pooling",
    "Preprocess",
    "Promotion",
    "Record",
    "RegisteredVersion",
    "Registration",
    "Rejected",
    "Report",
    "Robustness",
    "Rung",
    "RungChoice",
    "Score",
    "Selective",
    "Shift",
    "Split",
    "StageRecord",
    "Target",
    "Teacher",
    "TeacherPackage",
    "Throughput",
    "Trial",
    "TrialPoint",
    "Tuned",
    "digest_of",
]
