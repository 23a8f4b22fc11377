"""Evaluation and gate as Prefect tasks."""

from pathlib import Path

from prefect import task

from tasks.evaluation import gate
from tasks.evaluation.student import Student
from tasks.params import EvaluationParams, GateParams, HeadParams
from tasks.records import (
    Baselines,
    Champion,
    Climb,
    Decision,
    Embeddings,
    Evaluation,
    Evidence,
    Head,
    Interval,
    Ladder,
    Manifest,
    Robustness,
    Rung,
    RungChoice,
    Target,
    Teacher,
    digest_of,
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
    student: Student | None = None,
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
        distilled=student,
    )


@task(name="compare with teacher", **options())
def evaluate_beside(
    manifest: Manifest,
    embeddings: Embeddings,
    head: Head,
    teachers: list[Teacher],
    params: EvaluationParams,
) -> Evaluation:
    """A student and its teachers on the same test samples; they stand in the champion's place."""
    from tasks.evaluation import evaluate, predict
    from tasks.evaluation.teachers import averaged

    def build(out: Path) -> Evaluation:
        said = []
        for one in teachers:
            outputs, classes = predict.test_outputs(manifest, one.embeddings, Path(one.folder))
            said.append(evaluate.ChampionResult(one.digest, classes, outputs))
        outputs, classes = predict.test_outputs(manifest, embeddings, head.path)
        theirs = averaged(said, manifest.classes, manifest.target)
        return evaluate.run(out, manifest, outputs, classes, theirs, params)

    digests = [one.digest for one in teachers]
    folder = stage_folder("beside_teacher", manifest, embeddings, head, *digests, params)
    return build_once(folder, Evaluation, build)


@task(name="choose rung", **options())
def choose_rung(
    manifest: Manifest,
    rungs: list[tuple[str, Embeddings, Head]],
    params: EvaluationParams,
    metric: str,
) -> RungChoice:
    """The rung to take, by the validation split; the cheapest comes first."""
    from tasks.evaluation import rungs as science

    judged = [
        science.Judged(name, science.on_validation(manifest, embeddings, head, params))
        for name, embeddings, head in rungs
    ]
    choice = science.choose(judged, metric)
    return RungChoice(
        index=choice.index,
        reason=choice.reason,
        validation=tuple(science.validation_interval(one.validation, metric, params.alpha) for one in judged),
    )


@task(name="expect gain", **options())
def expect_gain(
    manifest: Manifest,
    frozen: tuple[Embeddings, Head],
    tuned: tuple[Embeddings, Head],
    frozen_of_all: tuple[Embeddings, Head],
    params: EvaluationParams,
    metric: str,
) -> Interval:
    """What fine-tuning on all samples would gain, from a trial on some (see `rungs.expected_gain`).

    Args:
        manifest: of the trial, with all validation samples.
    """
    from tasks.evaluation import rungs as science

    before, after, of_all = (
        science.on_validation(manifest, embeddings, head, params)
        for embeddings, head in (frozen, tuned, frozen_of_all)
    )
    return science.expected_gain(before, after, of_all, metric, params.alpha)


@task(name="draw ladder", **options())
def draw_ladder(climb: Climb, rungs: list[Rung], reason: str, params: GateParams) -> Ladder:
    """The ladder as a record, with its picture."""
    from tasks.evaluation import ladder

    told = digest_of(climb, [rung.model_dump(mode="json") for rung in rungs], reason)
    return build_once(
        stage_folder("ladder", told, params),
        Ladder,
        lambda out: ladder.run(out, climb, rungs, reason, params),
    )
