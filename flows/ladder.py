"""The ladder: from the frozen backbone to a trained one, and down to a small student; each rung is
climbed only where that pays, and judged by the same gate on the same test split."""

from typing import NamedTuple

from flows import artifacts
from flows.distilling import learn, prepare
from flows.rung import Ground, Judged, judge, trained
from flows.trial import plan
from flows.tuning import start_finetune
from tasks.embedding.source import embedder_of
from tasks.errors import RegraftError
from tasks.evaluation.task import choose_rung, draw_ladder
from tasks.finetune.request import FinetuneRequest
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
    lesson = prepare(ground) if ground.params.distill.student else None
    climb, params = plan(ground, frozen)
    if climb.climb:
        try:
            rungs.append(_tuned(ground, frozen, params))
        except RegraftError as error:
            # Nobody asked for it, and there is a model that is good enough without.
            if params.finetune.when == "always" or not frozen.decision.passed:
                raise
            climb = climb.model_copy(update={"reason": f"{climb.reason} Training failed: {error}"})

    # By the validation split alone: what the test split chose could not be judged by it.
    choice = _choice(ground, rungs)
    best, reason = rungs[choice.index], choice.reason
    if lesson is not None:
        student = learn(ground, frozen, best, lesson)
        rungs.append(student)
        choice = _choice(ground, rungs)
        # Of other teachers it may be as good, and still worse than what this run found.
        behind = not lesson.of_best and _choice(ground, [student, best]).index == 1
        if not student.decision.passed:
            reason = f"{reason} The student did not pass, so it is not taken."
        elif behind:
            reason = f"{reason} The student passed beside its teachers, but is worse than {best.name}."
        else:
            best, reason = student, f"{reason} The student passed beside its teachers, and is taken."

    shown = [
        _rung(one, validation, one is best, ground.params)
        for one, validation in zip(rungs, choice.validation, strict=True)
    ]
    ladder = draw_ladder(climb, shown, reason, ground.params.gate)
    artifacts.publish_ladder(ladder)
    return Climbed(ladder, best)


def _tuned(ground: Ground, frozen: Judged, params: Params) -> Judged:
    """The rung with a trained backbone; further backbones stay beside it as they are."""
    backbone = trained(frozen.embedder)
    request = FinetuneRequest.of(ground.name, ground.dataset, ground.manifest, backbone, params)
    tuned = start_finetune(request)
    others = [one for one in frozen.embedder.backbones if one is not backbone]
    embedder = embedder_of([tuned.backbone, *others])
    return judge(ground, params.finetune.method, embedder, frozen=frozen, tuned=tuned)


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
