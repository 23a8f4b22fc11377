"""Evaluation and gate as Prefect tasks."""

from pathlib import Path

from prefect import task

from tasks.evaluation import gate
from tasks.params import EvaluationParams, GateParams
from tasks.records import Champion, Decision, Embeddings, Evaluation, Head, Manifest
from tasks.stage import build_once
from tasks.task import options, stage_folder


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
    from tasks.evaluation import evaluate, predict  # matplotlib: not needed where the numbers are there

    def build(out: Path) -> Evaluation:
        theirs = None
        if champion is not None and champion_embeddings is not None:
            probabilities, classes = predict.test_probabilities(
                manifest, champion_embeddings, Path(champion.folder)
            )
            theirs = evaluate.ChampionResult(champion.version, classes, probabilities)
        probabilities, classes = predict.test_probabilities(manifest, embeddings, head.path)
        return evaluate.run(out, manifest, probabilities, classes, theirs, params)

    folder = stage_folder("evaluation", manifest, embeddings, head, champion, champion_embeddings, params)
    return build_once(folder, Evaluation, build)


@task(name="gate", **options())
def decide(
    evaluation: Evaluation, params: GateParams, champion_version: str | None, champion_problem: str | None
) -> Decision:
    return gate.decide(
        evaluation, params, champion_version=champion_version, champion_problem=champion_problem
    )
