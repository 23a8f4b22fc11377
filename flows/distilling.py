"""Down the ladder: a small student of the best rung, of the champion, or of other versions."""

from flows.embedding import embed
from flows.rung import Ground, Judged, judge
from flows.training_shown import TrainingShown
from tasks.embedding.source import embedder_of
from tasks.embedding.task import resolve_embedder
from tasks.errors import FinetuneError
from tasks.finetune.spec import Distillation
from tasks.finetune.student import student_embedding, student_params
from tasks.finetune.task import tune
from tasks.records import Teacher
from tasks.registry.task import load_version
from tasks.stage import stage_key

STUDENT = "student"


def learn(ground: Ground, frozen: Judged, best: Judged) -> Judged:
    """Trains a student of `distill.teachers`, and judges it beside them.

    Raises:
        FinetuneError: a teacher is not there, or training can't be done.
    """
    params, manifest = ground.params, ground.manifest
    teachers = [_teacher(ground, name, best) for name in params.distill.teachers]
    resolve = resolve_embedder.with_options(name="resolve student")
    (backbone,) = resolve(student_embedding(params)).backbones
    how = student_params(params)
    distillation = Distillation(params=params.distill, data=params.data, teachers=tuple(teachers))
    digests = [one.digest for one in teachers]
    key = stage_key("student", manifest, backbone, *digests, params.distill, how, params.data)
    tuned = tune(
        manifest,
        ground.dataset,
        backbone,
        None,
        how,
        key,
        params.data.max_pixels,
        distillation,
        TrainingShown(f"{ground.name}, student"),
    )
    embedder = embedder_of([tuned.backbone])
    return judge(ground, STUDENT, embedder, frozen=frozen, tuned=tuned, teachers=teachers)


def _teacher(ground: Ground, name: str, best: Judged) -> Teacher:
    """`best`, `champion` or the number of a version, with the test split as it sees it."""
    if name == "best":
        return best.as_teacher()
    incumbent = ground.incumbent
    if name == "champion":
        if incumbent.champion is None:
            raise FinetuneError(
                f"distill.teachers: champion: {incumbent.problem or 'there is none yet'}; name best"
            )
        version = incumbent.champion
    else:
        version = load_version(ground.name, name)
    embeddings = embed(
        ground.manifest, ground.dataset, version.embedder, ground.params.data, ("test",), "embed for teacher"
    )
    return Teacher(
        digest=version.package, folder=version.folder, embedder=version.embedder, embeddings=embeddings
    )
