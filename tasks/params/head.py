"""What is trained on the embeddings."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tasks.params.section import Section


class HeadParams(Section):
    """The head on the cached embeddings."""

    kind: Literal["logistic", "prototype", "knn", "mlp", "auto", "multilabel", "ridge"] = Field(
        "logistic",
        description="Of classes: logistic, prototype and knn (few samples), mlp (one hidden layer), or auto: the cheapest within one standard error of the best. Of labels: multilabel. Of numbers: ridge.",
    )
    inputs: Literal["concatenated", "chosen"] = Field(
        "concatenated",
        description="Of several blocks (layers, views, backbones): all of them, or those that cross-validation chooses.",
    )
    imbalance: Literal["none", "balanced", "logit_adjustment"] = Field(
        "none",
        description="For rare classes: balanced (each class weighs the same in the loss) or logit_adjustment (logits minus the log of the class's share).",
    )
    strengths: tuple[float, ...] = Field(
        (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0),
        min_length=1,
        description="Candidates for C, the inverse of the L2 strength; cross-validation chooses.",
    )
    neighbours: tuple[int, ...] = Field(
        (1, 3, 5, 10, 20), min_length=1, description="Candidates for k of kind knn; cross-validation chooses."
    )
    hidden: int = Field(256, ge=2, le=65_536, description="Units of the hidden layer of kind mlp.")
    folds: int = Field(
        5, ge=2, le=20, description="Folds of the cross-validation, on the training split only."
    )
    tolerance: float = Field(
        5e-5,
        gt=0,
        le=1e-2,
        description="Greatest entry of the gradient at which the solver stops, for each fold and strength.",
    )
    max_iterations: int = Field(1000, ge=10, description="Limit on the solver's iterations for each fit.")
    precision: float = Field(
        0.99, gt=0, lt=1, description="Wanted share of right answers among those that the model is sure of."
    )
    coverage: float = Field(
        0.9, gt=0, lt=1, description="Share of samples whose class is to be in the conformal set."
    )
    seed: int = Field(0, ge=0, description="Seed of the folds and of kind mlp.")

    @model_validator(mode="after")
    def _candidates_are_positive_and_distinct(self) -> Self:
        for name in ("strengths", "neighbours"):
            given = getattr(self, name)
            if min(given) <= 0 or len(set(given)) < len(given):
                raise ValueError(f"{name} must be positive and distinct")
        return self
