"""Evaluation and gate as Prefect tasks."""

from pathlib import Path

from prefect import task

from tasks.evaluation import gate
from tasks.params import EvaluationParams, GateParams, HeadParams
from tasks.records import (
    Baselines,
    Champion,
    Decision,
    Embeddings,
    Evaluation,
    Evidence,
    Head,
    Manifest,
    Robustness,
    Target,
)
from tasks.settings import Settings
from tasks.stage import build_once
from tasks.task import options, stage_folder

# The science is imported where it runs: scikit-learn and matplotlib take seconds that a run in which
# nothing changed need not wait for.


@task(name="evaluate", **options("evaluation"))
def evaluate_head(
    manifest: Manifest,
    embeddings: Embeddings,
    head: Head,
    champion: Champion | None,
    champion_embeddings: Embeddings | None,
    params: EvaluationParams,
) -> Evaluation:
    """The challenger and the champion on the same test samples."""
    from tasks.evaluation import evaluate, predict

    def build(out: Path) -> Evaluation:
        theirs = None
        if champion is not None and champion_embeddings is not None:
            outputs, classes = predict.test_outputs(manifest, champion_embeddings, Path(champion.folder))
            theirs = evaluate.ChampionResult(champion.version, classes, outputs)
        outputs, classes = predict.test_outputs(manifest, embeddings, head.path)
        return evaluate.run(
            out,
            manifest,
            outputs,
            classes,
            theirs,
            params,
            confidence=head.confidence,
            conformal=head.conformal,
        )

    folder = stage_folder("evaluation", manifest, embeddings, head, champion, champion_embeddings, params)
    return build_once(folder, Evaluation, build)


@task(name="measure robustness", **options("robustness"))
def measure_robustness(
    sample: Manifest,
    embeddings: Embeddings,
    head: Head,
    champion: Champion | None,
    champion_embeddings: Embeddings | None,
    params: EvaluationParams,
    metric: str,
) -> Robustness:
    """What disturbed images cost the challenger and the champion."""
    from tasks.evaluation import robustness

    folder = stage_folder(
        "robustness", sample, embeddings, head, champion, champion_embeddings, params, metric
    )
    theirs = Path(champion.folder) if champion else None
    return build_once(
        folder,
        Robustness,
        lambda out: robustness.run(
            out,
            sample,
            embeddings,
            head.path,
            champion_embeddings,
            theirs,
            metric,
            resamples=params.bootstrap,
            alpha=params.alpha,
            seed=params.seed,
        ),
    )


@task(name="compare baselines", **options("baselines"))
def compare_baselines(
    manifest: Manifest,
    embeddings: Embeddings,
    sample: Manifest | None,
    baseline_embeddings: Embeddings | None,
    head: Head,
    head_params: HeadParams,
    params: EvaluationParams,
    metric: str,
) -> Baselines:
    """The model beside what it has to beat, and its learning curve."""
    from tasks.evaluation import baselines

    folder = stage_folder(
        "baselines", manifest, embeddings, sample, baseline_embeddings, head, head_params, params, metric
    )
    return build_once(
        folder,
        Baselines,
        lambda out: baselines.run(
            out,
            manifest,
            embeddings,
            sample,
            baseline_embeddings,
            head,
            head_params,
            params,
            metric,
            memory_bytes=Settings().memory_bytes,
        ),
    )


@task(name="gate", **options())
def decide(
    evidence: Evidence,
    params: GateParams,
    champion_version: str | None,
    champion_problem: str | None,
    target: Target,
) -> Decision:
    return gate.decide(
        evidence.evaluation,
        params,
        champion_version=champion_version,
        champion_problem=champion_problem,
        findings=evidence.findings,
        robustness=evidence.robustness,
        trial=evidence.trial,
        quarantined_fraction=evidence.quarantined_fraction,
        target=target,
    )
