"""One rung of the ladder: a backbone, frozen or trained, with its head, judged like any other."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from flows.champion import Incumbent, champion_on_test
from flows.embedding import embed
from flows.evidence import examine
from tasks.evaluation.student import Student
from tasks.evaluation.task import decide, evaluate_beside
from tasks.head.task import train_head
from tasks.params import PIXELS, Params
from tasks.records import (
    Audit,
    Backbone,
    DatasetVersion,
    Decision,
    Embedder,
    Embeddings,
    Evidence,
    Head,
    Manifest,
    ModelPackage,
    Teacher,
    Tuned,
)
from tasks.registry.task import measure_throughput, package_model

FROZEN = "frozen"


@dataclass(frozen=True)
class Ground:
    """What all rungs stand on."""

    name: str  # of the model
    params: Params
    dataset: DatasetVersion
    audit: Audit
    manifest: Manifest

    @cached_property
    def incumbent(self) -> Incumbent:
        """The champion is judged anew on today's test split, never by its old numbers; one that can't be
        loaded closes the gate."""
        return champion_on_test(self.name, self.manifest, self.dataset, self.params.data)


@dataclass(frozen=True)
class Judged:
    """A rung with the gate's decision."""

    name: str  # frozen, the method of training, or student
    embedder: Embedder  # of the blocks that the head stands on
    embeddings: Embeddings  # of these
    head: Head
    package: ModelPackage
    evidence: Evidence
    decision: Decision
    seconds: float  # of training, embedding and fitting the head
    tuned: Tuned | None = None
    student: Student | None = None  # what it is judged by beside its teacher

    def as_teacher(self) -> Teacher:
        return Teacher(
            digest=self.package.digest,
            folder=str(self.package.package),
            embedder=self.embedder,
            embeddings=self.embeddings,
        )


def trained(embedder: Embedder) -> Backbone:
    """The backbone that fine-tuning trains: the first one with weights."""
    networks = [one for one in embedder.backbones if one.name != PIXELS]
    return (networks or embedder.backbones)[0]


def judge(
    ground: Ground,
    name: str,
    embedder: Embedder,
    *,
    frozen: Judged | None = None,
    tuned: Tuned | None = None,
    teachers: Sequence[Teacher] = (),
) -> Judged:
    """Embeds, fits the head, packages and examines the model, and asks the gate.

    Args:
        frozen: the rung with the frozen backbone, where this one was trained.
        tuned: how it was trained.
        teachers: of a student.
    """
    params, manifest, dataset = ground.params, ground.manifest, ground.dataset
    suffix = f" of {name}" if frozen else ""
    began = time.monotonic()
    # Only samples that the cache lacks are computed, whatever else changed.
    embeddings = embed(manifest, dataset, embedder, params.data, name=f"embed{suffix}")
    head = train_head.with_options(name=f"train head{suffix}")(manifest, embeddings, params.head)
    seconds = time.monotonic() - began + (tuned.seconds if tuned else 0.0)
    # From here on, only the blocks that the head stands on; what is judged is what would be registered.
    chosen, seen = embedder.select(head.blocks), embeddings.select(head.blocks)
    package = package_model(chosen, head, params.data.max_pixels)
    before, incumbent = frozen.evidence if frozen else None, ground.incumbent
    evidence = examine(
        ground.audit, manifest, dataset, chosen, seen, head, package, incumbent, params, before
    )
    student = None
    if teachers:
        some, how = list(teachers), params.evaluation
        student = Student(
            params.distill,
            tuple(one.digest for one in some),
            evaluate_beside(manifest, seen, head, some, how),
            measure_throughput(package, some, manifest, dataset, how),
        )
    decision = decide(evidence, params.gate, incumbent.version, incumbent.problem, manifest.target, student)
    return Judged(name, chosen, seen, head, package, evidence, decision, seconds, tuned, student)
