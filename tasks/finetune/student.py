"""How a student is trained: by its own number of epochs and rate, on views of single images."""

from collections.abc import Sequence

from tasks.finetune.request import effective
from tasks.finetune.spec import Distillation
from tasks.params import DistillParams, EmbeddingParams, FinetuneParams, Params
from tasks.params.finetune import MIXES
from tasks.records import Backbone, Manifest, Teacher
from tasks.stage import stage_key

_JUDGED_BY = {"margin", "min_speedup", "max_size"}  # of `distill`: they change no weight


def student_params(params: Params) -> FinetuneParams:
    """All layers from the weights that `distill.weights` names, with a new head."""
    wished = params.distill
    return params.finetune.model_copy(
        update={
            "method": "full",
            "epochs": wished.epochs,
            "learning_rate": wished.learning_rate,
            "augment": tuple(name for name in params.finetune.augment if name not in MIXES),
            "batch_norm": "trained",
            "balance": "none",
            "cached_views": 0,
            "interpolate": False,
            "label_smoothing": 0.0,
        }
    )


def student_embedding(params: Params) -> EmbeddingParams:
    """The student before it learns, with the layer `network` alone."""
    wished = params.distill
    return EmbeddingParams(backbone=wished.student, weights=wished.weights, image_size=wished.image_size)


def student_key(
    manifest: Manifest,
    student: Backbone,
    teachers: Sequence[Teacher],
    how: Distillation,
    params: FinetuneParams,
    unlabelled: str,
) -> str:
    """Names a student's training by all that determines its weights.

    Args:
        unlabelled: digest of the further images.
    """
    wished = how.params.model_dump(mode="json", exclude={*_JUDGED_BY, "unlabelled"})
    return stage_key(
        "student",
        manifest,
        student,
        *(one.digest for one in teachers),
        DistillParams.model_validate(wished),
        effective(params),
        how.data.max_pixels,
        unlabelled,
    )
