"""Whether to climb: where the gate asks for it, or where a trial on some samples expects a gain that is
worth its price."""

from pathlib import Path

from flows import artifacts
from flows.embedding import embed
from flows.rung import Ground, Judged, trained
from flows.tuning import start_finetune
from tasks.data import units
from tasks.data.task import sample_manifest
from tasks.embedding.source import embedder_of
from tasks.errors import RegraftError
from tasks.evaluation.task import choose_rung, expect_gain
from tasks.finetune.bring import with_weights
from tasks.finetune.climb import Expected, expected_seconds, plan_climb, trial_needed
from tasks.finetune.halving import Halved, candidates, halve, settled
from tasks.finetune.request import FinetuneRequest
from tasks.head.task import train_head
from tasks.params import FinetuneParams, Params
from tasks.records import Climb, Embedder, Embeddings, Head, Split, Tuned

_EPOCHS = 2  # of the first round
_ROUNDS = 2


def plan(ground: Ground, frozen: Judged) -> tuple[Climb, Params]:
    """Whether to climb, and the parameters with which: those that were wished, or of them what a trial
    found best.

    Raises:
        FinetuneError: `finetune.when` is always, and it can't be.
    """
    params, name = ground.params, trained(frozen.embedder).name
    validation = len(set(units.of_split(ground.manifest, "validation")))
    expected, halved, untried = None, None, ""
    if trial_needed(params.finetune, frozen.decision, backbone=name, validation_units=validation):
        try:
            expected, halved = _tried(ground, frozen)
            params = params.model_copy(update={"finetune": settled(params.finetune, halved.best)})
        except RegraftError as error:  # what is there is good enough without it
            untried = str(error)
    reached = None
    if validation:
        rung = (frozen.name, frozen.embeddings, frozen.head)
        taken = choose_rung(ground.manifest, [rung], params.evaluation, params.gate.metric)
        reached = taken.validation[0].value
    made = plan_climb(
        params.finetune,
        frozen.decision,
        params.gate.metric,
        backbone=name,
        validation_units=validation,
        frozen=reached,
        expected=expected,
        trial=halved.points if halved else (),
        untried=untried,
    )
    artifacts.publish_climb(made)
    return made, params


def _tried(ground: Ground, frozen: Judged) -> tuple[Expected, Halved]:
    """A trial on some training samples, and what it says of all of them."""
    params, manifest, dataset = ground.params, ground.manifest, ground.dataset
    take: dict[Split, int] = {"train": params.finetune.trial_samples, "validation": manifest.samples}
    sample = sample_manifest(manifest, take, params.finetune.seed)
    backbone = trained(frozen.embedder)
    backbone = with_weights(backbone, Path(backbone.weights))

    def headed(embedder: Embedder, name: str) -> tuple[Embeddings, Head]:
        seen = embed(sample, dataset, embedder, params.data, ("train", "validation"), f"embed {name}")
        return seen, train_head.with_options(name=f"train head {name}")(sample, seen, params.head)

    def train(candidate: FinetuneParams) -> Tuned:
        wished = params.model_copy(update={"finetune": candidate})
        return start_finetune(FinetuneRequest.of(ground.name, dataset, sample, backbone, wished, take))

    halved = halve(candidates(params.finetune, _EPOCHS), train, _ROUNDS)
    gain = expect_gain(
        sample,
        headed(frozen.embedder, "frozen, in the trial"),
        headed(embedder_of([halved.tuned.backbone]), "tuned, in the trial"),
        (frozen.embeddings, frozen.head),
        params.evaluation,
        params.gate.metric,
    )
    tried, whole = (sum(one.counts["train"].values()) for one in (sample, manifest))
    return Expected(gain, expected_seconds(halved.tuned, tried, whole, params.finetune.epochs)), halved
