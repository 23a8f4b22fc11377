"""What a model is judged by. Robustness and baselines need embeddings of their own, of a sample, which
the cache keeps like any others."""

from flows.champion import Incumbent
from flows.embedding import embed
from tasks.audit.task import audit_embeddings
from tasks.data.task import TRAIN_SHARE, sample_manifest
from tasks.embedding.disturb import disturbed
from tasks.embedding.task import resolve_baselines
from tasks.evaluation.task import compare_baselines, evaluate_head, measure_robustness
from tasks.params import Params
from tasks.records import (
    Audit,
    Baselines,
    DatasetVersion,
    Embedder,
    Embeddings,
    Evidence,
    Head,
    Manifest,
    ModelPackage,
    Robustness,
)
from tasks.registry.task import try_package


def examine(
    audit: Audit,
    manifest: Manifest,
    dataset: DatasetVersion,
    embedder: Embedder,
    embeddings: Embeddings,
    head: Head,
    package: ModelPackage,
    incumbent: Incumbent,
    params: Params,
    frozen: Evidence | None = None,
) -> Evidence:
    """Data, numbers, robustness, baselines and the packaged model; all of the challenger and, where there
    is one, the champion.

    Args:
        frozen: of the frozen backbone, where this one was trained. Its findings and baselines hold here
            too: they say what the data is, and what was known before these labels were seen.
    """
    champion = incumbent.champion
    return Evidence(
        quarantined_fraction=audit.quarantined_fraction,
        findings=(
            frozen.findings
            if frozen
            else audit_embeddings(manifest, dataset, embeddings, head, champion, params.audit)
        ),
        evaluation=evaluate_head(
            manifest, embeddings, head, champion, incumbent.embeddings, params.evaluation
        ),
        robustness=_robustness(manifest, dataset, embedder, head, incumbent, params),
        baselines=frozen.baselines if frozen else _baselines(manifest, dataset, embeddings, head, params),
        trial=try_package(package, manifest, dataset, embeddings, head, champion, params.evaluation),
    )


def _robustness(
    manifest: Manifest,
    dataset: DatasetVersion,
    embedder: Embedder,
    head: Head,
    incumbent: Incumbent,
    params: Params,
) -> Robustness | None:
    wanted = params.evaluation.robustness_samples
    if not wanted:
        return None
    sample = sample_manifest(manifest, {"test": wanted}, params.evaluation.seed)

    def seen_by(one: Embedder, name: str) -> Embeddings:
        return embed(sample, dataset, disturbed(one), params.data, ("test",), name=name)

    champion = incumbent.champion
    theirs = seen_by(champion.embedder, "embed disturbed for champion") if champion else None
    ours = seen_by(embedder, "embed disturbed")
    return measure_robustness(sample, ours, head, champion, theirs, params.evaluation, params.gate.metric)


def _baselines(
    manifest: Manifest, dataset: DatasetVersion, embeddings: Embeddings, head: Head, params: Params
) -> Baselines:
    wanted = params.evaluation.baseline_samples
    sample = others = None
    if wanted:
        train = round(TRAIN_SHARE * wanted)
        sample = sample_manifest(manifest, {"train": train, "test": wanted - train}, params.evaluation.seed)
        embedder = resolve_baselines(params.embedding)
        others = embed(sample, dataset, embedder, params.data, ("train", "test"), name="embed baselines")
    return compare_baselines(
        manifest, embeddings, sample, others, head, params.head, params.evaluation, params.gate.metric
    )
