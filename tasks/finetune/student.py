"""How a student is trained: by its own number of epochs and rate, on views of single images."""

from tasks.finetune.teacher import single
from tasks.params import EmbeddingParams, FinetuneParams, Params


def student_params(params: Params) -> FinetuneParams:
    """All layers from the weights that `distill.weights` names, with a new head."""
    wished = params.distill
    return params.finetune.model_copy(
        update={
            "method": "full",
            "epochs": wished.epochs,
            "learning_rate": wished.learning_rate,
            "augment": single(params.finetune.augment),
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
