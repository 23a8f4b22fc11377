"""The ladder: from the frozen backbone to a trained one, and down to a small student; each rung is
climbed only where that pays, and judged by the same gate on the same test split."""

from typing import NamedTuple

from flows import artifacts
from flows.distilling import learn
from flows.rung import Ground, Judged, judge
from flows.trial import plan
from flows.tuning import start_finetune
from tasks.embedding.source import embedder_of
from tasks.evaluation.task import choose_rung, draw_ladder
from tasks.params import Params
from tasks.records import Interval, Ladder, Rung, RungChoice

_HOUR_S = 3600.0


class Climbed(NamedTuple):
    """All rungs, and the one that is taken."""

    ladder: Ladder
    best: Judged


def climb(ground: Ground, frozen: Judged) -> Climbed:
    """The rungs above the frozen one, as far as they pay, and the choice among all.

    Raises:
        FinetuneError: training was asked for, and can't be done.
    """
    rungs = [frozen]
    climb, params = plan(ground, frozen)
    if climb.climb:
        tuned = start_finetune(
            ground.name, ground.dataset, ground.manifest, frozen.embedder.backbones[0], params
        )
        embedder = embedder_of([tuned.backbone])
        rungs.append(judge(ground, params.finetune.method, embedder, frozen=frozen, tuned=tuned))

    # By the validation split alone: what the test split chose could not be judged by it.
    choice = _choice(ground, rungs)
    best, reason = rungs[choice.index], choice.reason
    if ground.params.distill.student:
        student = learn(ground, frozen, best)
        rungs.append(student)
        choice = _choice(ground, rungs)
        if student.decision.passed:
            best, reason = student, f"{reason} The student passed beside its teacher and takes its place."
        else:
            reason = f"{reason} The student did not pass, so its teacher stays."

    shown = [
        _rung(one, validation, one is best, ground.params)
        for one, validation in zip(rungs, choice.validation, strict=True)
    ]
    ladder = draw_ladder(climb, shown, reason, ground.params.gate)
    artifacts.publish_ladder(ladder)
    return Climbed(ladder, best)


def _choice(ground: Ground, rungs: list[Judged]) -> RungChoice:
    some = [(one.name, one.embeddings, one.head) for one in rungs]
    return choose_rung(ground.manifest, some, ground.params.evaluation, ground.params.gate.metric)


def _rung(one: Judged, validation: Interval, chosen: bool, params: Params) -> Rung:
    metric, trial = params.gate.metric, one.evidence.trial
    return Rung(
        name=one.name,
        backbone=", ".join(backbone.name for backbone in one.embedder.backbones),
        metric=metric,
        validation=validation,
        test=one.evidence.evaluation.metrics[metric],
        passed=one.decision.passed,
        failed=tuple(check.check for check in one.decision.reasons if not check.passed),
        seconds=one.seconds,
        price=one.seconds / _HOUR_S * params.finetune.price_per_hour,
        size_mb=trial.size_mb,
        latency_ms=trial.p50_ms,
        chosen=chosen,
    )
