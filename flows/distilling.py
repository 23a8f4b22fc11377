"""Down the ladder: a small student of the best rung, of the champion, or of other versions."""

from dataclasses import dataclass
from pathlib import Path

from flows.embedding import embed
from flows.rung import Ground, Judged, judge
from flows.tuning import start_finetune
from tasks.embedding.source import embedder_of, file_digest
from tasks.embedding.task import resolve_embedder
from tasks.errors import FinetuneError
from tasks.finetune import unlabelled
from tasks.finetune.student import student_embedding, student_request
from tasks.finetune.task import check_teacher, list_unlabelled
from tasks.head.folds import check_validation
from tasks.params import Params
from tasks.records import Backbone, Teacher
from tasks.registry.task import current_champion, load_version

STUDENT = "student"
BEST = "best"
CHAMPION = "champion"


@dataclass(frozen=True)
class Lesson:
    """What a student is, and what it learns from."""

    student: Backbone
    teachers: tuple[Teacher | None, ...]  # none: the best rung of this run
    params: Params  # with absolute paths
    unlabelled: str  # digest of the further images

    @property
    def of_best(self) -> bool:
        return None in self.teachers


def behind(name: str, params: Params) -> tuple[str, ...]:
    """Digests of what `distill` names by its place alone: the champion, further images, and weights."""
    wished = params.distill
    if not wished.student:
        return ()
    champion = current_champion(name) or "" if CHAMPION in wished.teachers else ""
    folder, weights = Path(wished.unlabelled).expanduser(), Path(wished.weights).expanduser()
    listed = unlabelled.listing(folder, params.data.follow_links) if wished.unlabelled else ""
    return (champion, listed, file_digest(weights) if weights.is_file() else "")


def prepare(ground: Ground) -> Lesson:
    """Finds the student, its teachers and its images, so that what is wrong is said before hours of training.

    Raises:
        FinetuneError: a teacher is not there.
        BackboneError: the student's weights can't be had.
        DataError: the folder of further images can't be used, or there are too few validation samples.
    """
    params = ground.params
    check_validation(ground.manifest)
    resolve = resolve_embedder.with_options(name="resolve student")
    (student,) = resolve(student_embedding(params)).backbones
    teachers = tuple(None if name == BEST else _version(ground, name) for name in params.distill.teachers)
    folder, further = params.distill.unlabelled, ""
    if folder:
        folder = str(Path(folder).expanduser().resolve())  # the process that trains has another directory
        further = list_unlabelled(folder, ground.manifest, params.data)
    wished = params.distill.model_copy(update={"unlabelled": folder})
    return Lesson(student, teachers, params.model_copy(update={"distill": wished}), further)


def learn(ground: Ground, frozen: Judged, best: Judged, lesson: Lesson) -> Judged:
    """Trains the student, and judges it beside its teachers.

    Raises:
        RegraftError: training can't be done; see `start_finetune`.
    """
    named = [one or best.as_teacher() for one in lesson.teachers]
    teachers = list({one.digest: one for one in named}.values())  # the champion may be the best too
    request = student_request(
        ground.name,
        ground.dataset,
        ground.manifest,
        lesson.student,
        teachers,
        lesson.params,
        lesson.unlabelled,
    )
    tuned = start_finetune(request)
    embedder = embedder_of([tuned.backbone])
    return judge(ground, STUDENT, embedder, frozen=frozen, tuned=tuned, teachers=teachers)


def _version(ground: Ground, name: str) -> Teacher:
    """`champion` or the number of a version, with the test split as it sees it."""
    incumbent = ground.incumbent
    if name != CHAMPION:
        version = load_version(ground.name, name)
    elif incumbent.champion is not None:
        version = incumbent.champion
    else:
        problem = incumbent.problem or "there is none yet"
        raise FinetuneError(f"distill.teachers: champion: {problem}; name {BEST}")
    check_teacher(version.folder, version.package, ground.manifest)
    embeddings = embed(
        ground.manifest, ground.dataset, version.embedder, ground.params.data, ("test",), "embed for teacher"
    )
    return Teacher(
        digest=version.package, folder=version.folder, embedder=version.embedder, embeddings=embeddings
    )
