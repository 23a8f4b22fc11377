"""What a served model answers: columns by what the labels are.

class    label; confidence, its probability; accepted, whether that reaches the threshold from which
         answers are right as often as `head.precision` asks; prediction_set, all classes that the
         conformal threshold leaves (true class among them as often as `head.coverage` asks);
         probabilities of all classes
labels   labels, those with probability one half or more; probabilities of all
number   value
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.head.fitted import FittedHead
from tasks.records import Target

COLUMNS: dict[Target, tuple[str, ...]] = {
    "class": ("label", "confidence", "accepted", "prediction_set", "probabilities"),
    "labels": ("labels", "probabilities"),
    "number": ("value",),
}


def answers(head: FittedHead, outputs: NDArray[np.float64]) -> dict[str, list[Any]]:
    """The columns of the answer, from the head's outputs [N, K]."""
    if head.target == "number":
        return {"value": [float(row[0]) for row in outputs]}
    classes = head.classes
    probabilities = [dict(zip(classes, map(float, row), strict=True)) for row in outputs]
    if head.target == "labels":
        return {
            "labels": [_named(classes, row >= 0.5) for row in outputs],
            "probabilities": probabilities,
        }
    best = outputs.argmax(axis=1) if len(outputs) else []
    confidence = [float(row[column]) for row, column in zip(outputs, best, strict=True)]
    # Without a threshold that keeps the promise, no answer is sure, and every class stays possible.
    sure = head.confidence.threshold if head.confidence else np.inf
    possible = head.conformal.threshold if head.conformal else 0.0
    return {
        "label": [classes[column] for column in best],
        "confidence": confidence,
        "accepted": [value >= sure for value in confidence],
        "prediction_set": [_named(classes, row >= possible) for row in outputs],
        "probabilities": probabilities,
    }


def _named(classes: tuple[str, ...], chosen: NDArray[np.bool_]) -> list[str]:
    return [name for name, take in zip(classes, chosen, strict=True) if take]
