"""What is recorded of an adapt run: its inputs, and the numbers, parameters and tags they give."""

import hashlib
import json
import math
from dataclasses import dataclass

from tasks.evaluation.markdown import escape
from tasks.evaluation.student import Student
from tasks.params import Params
from tasks.records import (
    Audit,
    DatasetVersion,
    Decision,
    Embedder,
    Evidence,
    Head,
    Ladder,
    Manifest,
    ModelPackage,
    Report,
    Tuned,
    digest_of,
)
from tasks.registry.names import BLOCKS, CHAMPION_VERSION, DATA, DECISION, DECISION_FILE, PASSED, RUN_KEY
from tasks.stage import code_digest


@dataclass(frozen=True, kw_only=True)
class AdaptRun:
    """All that is recorded of an adapt run."""

    name: str  # of the model, and of the MLflow experiment
    run_key: str  # names the run by its inputs
    params: Params
    data: DatasetVersion
    audit: Audit
    manifest: Manifest
    embedder: Embedder
    head: Head
    package: ModelPackage
    evidence: Evidence
    decision: Decision
    report: Report
    ladder: Ladder | None = None
    tuned: Tuned | None = None  # of the rung that was taken
    student: Student | None = None  # where that is one: what it was judged by beside its teacher
    flow_run_id: str | None = None  # of Prefect
    flow_run_url: str | None = None
    git_commit: str | None = None


def metrics(run: AdaptRun) -> dict[str, float]:
    """Numbers by name; those of the champion and the differences are prefixed, ends of intervals
    end in `_low` and `_high`. NaN is left out."""
    evidence, evaluation = run.evidence, run.evidence.evaluation
    measured = {"": evaluation.metrics, "champion_": evaluation.champion_metrics or {}}
    optional = {
        "head_strength": run.head.strength,
        "label_error_rate": evidence.findings.label_error_rate,
        "robustness_loss": evidence.robustness.loss if evidence.robustness else None,
        "transfer": evidence.baselines.transfer.value if evidence.baselines.transfer else None,
    }
    numbers: dict[str, float] = {
        "test_samples": evaluation.samples,
        "head_temperature": run.head.temperature,
        "leakage": evidence.findings.leakage,
        "latency_p50_ms": evidence.trial.p50_ms,
        "latency_p95_ms": evidence.trial.p95_ms,
        "size_mb": evidence.trial.size_mb,
        **{name: value for name, value in optional.items() if value is not None},
    }
    for prefix, intervals in measured.items():
        for metric, interval in intervals.items():
            numbers |= _with_interval(prefix + metric, interval.value, interval.low, interval.high)
    for metric, change in evaluation.differences.items():
        numbers |= _with_interval(f"difference_{metric}", change.value, change.low, change.high)
    return {key: float(value) for key, value in numbers.items() if not math.isnan(value)}


def _with_interval(key: str, value: float, low: float, high: float) -> dict[str, float]:
    return {key: value, f"{key}_low": low, f"{key}_high": high}


def tags(run: AdaptRun) -> dict[str, str]:
    """Digests of all that the run came from, the verdict, and where it ran."""
    optional = {
        "regraft.flow_run_id": run.flow_run_id,
        "regraft.flow_run_url": run.flow_run_url,
        "mlflow.source.git.commit": run.git_commit,
    }
    taken = next((rung.name for rung in run.ladder.rungs if rung.chosen), None) if run.ladder else None
    trained = run.tuned.backbone.weights_digest if run.tuned else None
    optional |= {"regraft.rung": taken, "regraft.tuned_weights": trained}
    verdict = "passed" if run.decision.passed else "rejected"
    reasons = "\n".join(
        f"- {'passed' if r.passed else '**failed**'}: {escape(f'{r.check}: {r.detail}')}"
        for r in run.decision.reasons
    )
    return {
        RUN_KEY: run.run_key,
        DATA: run.data.digest,
        "regraft.manifest": run.manifest.digest,
        "regraft.params": digest_of(run.params),
        "regraft.code": code_digest(),
        "regraft.embedder": run.embedder.digest,
        BLOCKS: " ".join(block.digest for block in run.embedder.blocks),
        "regraft.head": run.head.digest,
        "regraft.findings": run.evidence.findings.digest,
        "regraft.evaluation": run.evidence.evaluation.digest,
        DECISION: run.decision.digest,
        DECISION_FILE: hashlib.sha256(decision_file(run.decision)).hexdigest(),
        PASSED: str(run.decision.passed).lower(),
        # Whom it was compared with: where that failed, the next run is to try again.
        CHAMPION_VERSION: run.evidence.evaluation.champion_version or "",
        "mlflow.note.content": f"The gate {verdict} this model.\n\n{reasons}",
        **{key: value for key, value in optional.items() if value is not None},
    }


def parameters(params: Params) -> dict[str, str]:
    """Parameters under dotted names; lists as JSON: `head.folds` -> `5`."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = value if isinstance(value, str) else json.dumps(value)

    walk("", params.model_dump(mode="json"))
    return flat


def decision_file(decision: Decision) -> bytes:
    """The stored form of a decision; its SHA-256 is a tag of the version."""
    return (decision.model_dump_json(indent=2) + "\n").encode()
