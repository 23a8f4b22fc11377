"""What an adapt run knows of itself: its name and key, and its result."""

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from prefect.runtime import flow_run

from flows.rung import Judged
from tasks.errors import public
from tasks.params import Params
from tasks.records import (
    AdaptResult,
    Audit,
    AuditFacts,
    DatasetFacts,
    DatasetVersion,
    Embedder,
    EmbeddingFacts,
    GateFacts,
    HeadFacts,
    Ladder,
    Manifest,
    Registration,
    Report,
    digest_of,
)
from tasks.registry.adapt_run import AdaptRun
from tasks.settings import ROOT, Settings
from tasks.stage import code_digest
from tasks.task import seconds_of


@dataclass(frozen=True)
class Run:
    """Identity of an adapt run."""

    name: str  # of the model
    key: str  # equal for runs of the same data, parameters, code and embedder
    params: Params
    dataset: DatasetVersion
    embedder: Embedder

    @classmethod
    def of(
        cls,
        name: str,
        params: Params,
        dataset: DatasetVersion,
        audit: Audit,
        embedder: Embedder,
        further: Sequence[str] = (),
    ) -> Self:
        """
        Args:
            further: digests of what the parameters name by its place.
        """
        what = (name, dataset.identity, audit.digest, params, code_digest(), embedder.digest)
        key = digest_of(*what, *further)
        return cls(name, key, params, dataset, embedder)

    def result(
        self,
        audit: Audit,
        manifest: Manifest,
        frozen: Judged,
        best: Judged,
        ladder: Ladder,
        report: Report,
    ) -> AdaptResult:
        """The result so far; `registered` completes it."""
        head, evidence, decision = best.head, best.evidence, best.decision
        findings = evidence.findings
        return AdaptResult(
            state="registered" if decision.passed else "rejected",
            dataset=DatasetFacts(
                digest=self.dataset.digest,
                samples=manifest.samples,
                quarantined=len(audit.quarantined),
            ),
            embedding=EmbeddingFacts(computed=frozen.embeddings.computed, cached=frozen.embeddings.cached),
            head=HeadFacts(kind=head.kind, strength=head.strength, temperature=head.temperature),
            audit=AuditFacts(
                near_duplicates=findings.near_duplicates,
                leakage=findings.leakage,
                label_errors=findings.label_errors,
                outliers=findings.outliers,
            ),
            rung=best.name,
            ladder=ladder.rungs,
            climb=ladder.climb.reason,
            metrics=evidence.evaluation.metrics,
            champion_metrics=evidence.evaluation.champion_metrics,
            gate=GateFacts(passed=decision.passed, reasons=decision.reasons),
            model=None,
            seconds={},
            run_id="",
            report=str(report.path / "report.html"),
            links={},
        )

    def lineage(self, best: Judged) -> dict[str, str]:
        """What made the model, for people."""
        tuned = best.tuned
        told = {
            "Data source": public(self.dataset.source),
            "Data version (DVC)": self.dataset.digest,
            "Rung": best.name,
            "Backbones": ", ".join(backbone.name for backbone in best.embedder.backbones),
            "Embedder": best.embedder.digest,
            "Trained": f"{tuned.steps:,} steps on {tuned.hardware}, weights {tuned.chosen}" if tuned else "",
            "Parameters": digest_of(self.params),
            "Code": code_digest(),
            "Commit": _git_commit() or "",
            "Prefect run": _flow_run_url(),
        }
        return {what: value for what, value in told.items() if value}

    def record(
        self,
        audit: Audit,
        manifest: Manifest,
        best: Judged,
        ladder: Ladder,
        report: Report,
    ) -> AdaptRun:
        """All that MLflow keeps."""
        return AdaptRun(
            name=self.name,
            run_key=self.key,
            params=self.params,
            data=self.dataset,
            audit=audit,
            manifest=manifest,
            embedder=best.embedder,
            head=best.head,
            package=best.package,
            evidence=best.evidence,
            decision=best.decision,
            report=report,
            ladder=ladder,
            tuned=best.tuned,
            student=best.student,
            flow_run_id=flow_run.id,
            flow_run_url=_flow_run_url(),
            git_commit=_git_commit(),
        )

    def registered(self, result: AdaptResult, registration: Registration) -> AdaptResult:
        return result.model_copy(
            update={
                "model": registration.version,
                "run_id": registration.run_id,
                "seconds": seconds_of(flow_run.id),
                "links": {
                    "prefect": _flow_run_url(),
                    "mlflow": registration.run_url,
                    "report": f"{registration.run_url}/artifacts/report/report.html",
                },
            }
        )

    def unchanged(self, finished: dict[str, Any]) -> AdaptResult:
        """The result of the finished run, told again: nothing was computed now."""
        registration = Registration.model_validate(finished.pop("registration"))
        before = AdaptResult.model_validate(finished)
        samples = before.embedding.computed + before.embedding.cached
        told = before.model_copy(
            update={"state": "unchanged", "embedding": EmbeddingFacts(computed=0, cached=samples)}
        )
        return self.registered(told, registration)


def model_name(data: str) -> str:
    """A model's name after its data: the last part of the path, in the letters a name may have; with
    a digest where other letters had to go, so that two folders do not become one model."""
    place = data if ":" in data else str(Path(data).expanduser().resolve())
    stem = re.sub(r"\.(csv|parquet)$", "", re.split(r"[/:]", place.rstrip("/"))[-1])
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:80]
    return name if name == stem else f"{name or 'model'}-{digest_of(stem)[:8]}"


def _flow_run_url() -> str:
    return f"{os.environ.get('PREFECT_UI_URL', Settings().prefect_url)}/runs/flow-run/{flow_run.id}"


def _git_commit() -> str | None:
    """The commit of the code, with `-dirty` where it was edited; None outside a repository."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--match", ""]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
