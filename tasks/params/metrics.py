"""What is measured, and which heads there are, for each kind of target."""

from typing import Literal

from tasks.records import Target

METRICS: dict[Target, tuple[str, ...]] = {  # what is measured of each target
    "class": ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "brier", "ece"),
    "labels": ("subset_accuracy", "macro_f1", "micro_f1", "log_loss", "brier", "ece"),
    "number": ("r2", "mae", "rmse"),
}


Metric = Literal[
    "accuracy", "balanced_accuracy", "macro_f1", "log_loss", "brier", "ece",
    "subset_accuracy", "micro_f1", "r2", "mae", "rmse",
]  # fmt: skip


LOWER_IS_BETTER: frozenset[str] = frozenset({"log_loss", "brier", "ece", "mae", "rmse"})


# In the unit of the labels: no default limit fits them.
IN_LABEL_UNITS: frozenset[str] = frozenset({"mae", "rmse"})


KINDS: dict[Target, tuple[str, ...]] = {  # of heads
    "class": ("logistic", "prototype", "knn", "mlp", "auto"),
    "labels": ("multilabel",),
    "number": ("ridge",),
}
