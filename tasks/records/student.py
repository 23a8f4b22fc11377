"""Records of a student: how it does beside its teacher."""

from pydantic import BaseModel, ConfigDict, Field

from tasks.records.embedding import Embedder, Embeddings
from tasks.records.record import Number, StageRecord


class TeacherPackage(BaseModel):
    """A packaged model that a student learns from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str = Field(pattern=r"^[0-9a-f]{64}$")  # of the package; it becomes part of paths
    folder: str  # of the package
    embedder: Embedder


class Teacher(TeacherPackage):
    """One that the student is compared with too."""

    embeddings: Embeddings  # the test split, as its backbones see it


class Throughput(StageRecord):
    """The packaged student and its teachers, which answered the same images in turn. Numbers of several
    teachers are those of all together."""

    package: str  # digest of the student's
    teachers: tuple[str, ...]  # digests of theirs
    samples: int  # images in a round
    rounds: int
    images_per_s: Number  # median of the rounds
    teacher_images_per_s: Number
    speedup: Number  # median of what each round gives
    size_mb: Number
    teacher_size_mb: Number
