"""The report and the ranking of backbones as Prefect tasks."""

import json
from typing import TYPE_CHECKING

from prefect import task

from tasks.params import HeadParams
from tasks.records import (
    DatasetVersion,
    Decision,
    Embeddings,
    Evidence,
    Head,
    Ladder,
    Manifest,
    Report,
    Tuned,
)
from tasks.settings import Settings
from tasks.stage import build_once
from tasks.task import options, stage_folder

if TYPE_CHECKING:
    from tasks.report.ranking import Candidates, Ranking


@task(name="write report", **options())
def write_report(
    name: str,
    decision: Decision,
    evidence: Evidence,
    head: Head,
    manifest: Manifest,
    dataset: DatasetVersion,
    embeddings: Embeddings,
    lineage: dict[str, str],
    ladder: Ladder | None = None,
    tuned: Tuned | None = None,
) -> Report:
    """One page for people, and the model card."""
    from tasks.report import page

    return build_once(
        stage_folder(
            "report",
            name,
            decision,
            evidence.baselines,
            head,
            manifest,
            embeddings,
            json.dumps(lineage),
            ladder,
            tuned,
        ),
        Report,
        lambda out: page.run(
            out,
            name=name,
            decision=decision,
            evaluation=evidence.evaluation,
            findings=evidence.findings,
            baselines=evidence.baselines,
            robustness=evidence.robustness,
            trial=evidence.trial,
            head=head,
            manifest=manifest,
            data=dataset.data,
            lineage=lineage,
            embeddings=embeddings,
            ladder=ladder,
            tuned=tuned,
        ),
    )


# Its arguments name no more than what is in the cache, so that the result is found again by them.
@task(name="rank backbones", **options())
def rank_candidates(
    manifest: Manifest, candidates: "Candidates", params: HeadParams, metric: str
) -> "Ranking":
    """Candidates by LogME and by a cross-validated head."""
    from tasks.report import ranking

    return build_once(
        stage_folder("ranking", manifest, candidates, params, metric),
        ranking.Ranking,
        lambda out: ranking.run(
            out, manifest, candidates, params, metric, memory_bytes=Settings().memory_bytes
        ),
    )
