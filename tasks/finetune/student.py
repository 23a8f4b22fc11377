"""How a student is trained: by its own number of epochs and rate, on views of single images."""

from collections.abc import Sequence

from tasks.finetune.request import FinetuneRequest, effective
from tasks.finetune.spec import Distillation
from tasks.params import DistillParams, EmbeddingParams, FinetuneParams, Params
from tasks.params.finetune import MIXES
from tasks.records import Backbone, DatasetVersion, Manifest, Teacher
from tasks.stage import stage_key

_JUDGED_BY = {"margin", "min_speedup", "max_size"}  # of `distill`: they change no weight


def student_params(params: Params) -> FinetuneParams:
    """All layers from the weights that `distill.weights` names, with a new head."""
    wished = params.distill
    return params.finetune.changed(
        method="full",
        epochs=wished.epochs,
        learning_rate=wished.learning_rate,
        augment=tuple(name for name in params.finetune.augment if name not in MIXES),
        batch_norm="trained",
        balance="none",
        cached_views=0,
        interpolate=False,
        label_smoothing=0.0,
    )


def student_embedding(params: Params) -> EmbeddingParams:
    """The student before it learns, with the layer `network` alone."""
    wished = params.distill
    return EmbeddingParams(backbone=wished.student, weights=wished.weights, image_size=wished.image_size)


def student_request(
    name: str,
    dataset: DatasetVersion,
    manifest: Manifest,
    student: Backbone,
    teachers: Sequence[Teacher],
    params: Params,
    unlabelled: str,
) -> FinetuneRequest:
    """The request for a student.

    Args:
        student: before it learns, with the layer `network` alone.
        params: with an absolute path of further images.
        unlabelled: digest of the further images.
    """
    how = student_params(params)
    distillation = Distillation(
        params=params.distill, data=params.data, teachers=tuple(teachers), unlabelled=unlabelled
    )
    return FinetuneRequest(
        name=name,
        key=_key(manifest, student, distillation, how),
        dvc_file=dataset.dvc_file.read_text(encoding="utf-8"),
        data=params.data,
        manifest=manifest.digest,
        backbone=student,
        head=params.head,
        finetune=how,
        distillation=distillation,
    )


def _key(
    manifest: Manifest,
    student: Backbone,
    how: Distillation,
    params: FinetuneParams,
) -> str:
    """Names a student's training by all that determines its weights."""
    wished = how.params.model_dump(mode="json", exclude={*_JUDGED_BY, "unlabelled"})
    return stage_key(
        "student",
        manifest,
        student,
        *(one.digest for one in how.teachers),
        DistillParams.model_validate(wished),
        effective(params),
        how.data.max_pixels,
        how.unlabelled,
    )
