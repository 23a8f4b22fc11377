"""The audit of the embeddings as a Prefect task."""

from pathlib import Path

from prefect import task

from tasks.params import AuditParams
from tasks.records import Champion, DatasetVersion, Embeddings, Findings, Head, Manifest
from tasks.stage import build_once
from tasks.task import options, stage_folder


# Prefect remembers nothing of it: whether the champion's manifest was at hand is part of the key.
@task(name="audit embeddings", **options())
def audit_embeddings(
    manifest: Manifest,
    dataset: DatasetVersion,
    embeddings: Embeddings,
    head: Head,
    champion: Champion | None,
    params: AuditParams,
) -> Findings:
    """Near-duplicates, leakage, label errors, outliers and shifts."""
    from tasks.audit import audit

    before = Path(champion.manifest) if champion and champion.manifest else None
    known = champion.digest if champion and before else None
    return build_once(
        stage_folder("findings", manifest, embeddings, head, known, params),
        Findings,
        lambda out: audit.run(out, manifest, dataset.data, embeddings, head, before, params),
    )
