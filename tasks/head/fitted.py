"""A fitted head as it is stored, loaded and served: numpy, and nothing that can run from its files.

head.json         format, kind, target, classes, calibration, thresholds
head.safetensors  the numbers of the kind, and the calibration's scale and bias
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.special import expit, log_softmax

from tasks.errors import RegistryError
from tasks.head.linear import Linear, Matrix, Rows, UnitLinear
from tasks.head.neighbours import Neighbours
from tasks.head.perceptron import Perceptron
from tasks.records import Confidence, Conformal, Kind, Target

FORMAT = 2
FILES = ("head.safetensors", "head.json")


class Model(Protocol):
    """A frozen dataclass of arrays."""

    def logits(self, x: Rows) -> Matrix:
        """[N, D] to [N, K]; of a number the value itself."""
        ...


MODELS: Mapping[Kind, type[Linear] | type[Neighbours] | type[Perceptron]] = {
    "logistic": Linear,
    "multilabel": Linear,
    "ridge": Linear,
    "prototype": UnitLinear,
    "knn": Neighbours,
    "mlp": Perceptron,
}


@dataclass(frozen=True)
class Calibration:
    """logits * scale + bias; a temperature T is the scale 1/T for all."""

    scale: Matrix  # [K]
    bias: Matrix  # [K]

    @classmethod
    def none(cls, outputs: int) -> "Calibration":
        """Leaves the logits of `outputs` columns as they are."""
        return cls(np.ones(outputs), np.zeros(outputs))

    def __call__(self, logits: Matrix) -> Matrix:
        """[N, K] to [N, K]."""
        return logits * self.scale + self.bias


@dataclass(frozen=True)
class FittedHead:
    """From embeddings to outputs. D = length of an embedding, K = number of outputs: the classes,
    or 1 for a number."""

    target: Target
    kind: Kind
    classes: tuple[str, ...]  # of a number none
    model: Model
    calibration: Calibration
    confidence: Confidence | None = None
    conformal: Conformal | None = None

    def logits(self, x: Rows) -> Matrix:
        """[N, D] to [N, K], before the calibration."""
        return self.model.logits(x)

    def outputs(self, x: Rows) -> Matrix:
        """[N, D] to [N, K]: calibrated probabilities in the order of `classes` (of classes they sum
        to 1, of labels each is its own), or the number."""
        return outputs_of(self.calibration(self.logits(x)), self.target)

    def with_thresholds(self, confidence: Confidence | None, conformal: Conformal | None) -> "FittedHead":
        """The same head, and from where on its answers are to be trusted."""
        return replace(self, confidence=confidence, conformal=conformal)

    def save(self, folder: Path) -> None:
        """Writes head.safetensors and head.json."""
        arrays: dict[str, NDArray[Any]] = {**vars(self.model)}
        arrays |= {f"calibration.{name}": value for name, value in vars(self.calibration).items()}
        save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, folder / FILES[0])
        values = {
            "format": FORMAT,
            "kind": self.kind,
            "target": self.target,
            "classes": self.classes,
            "confidence": self.confidence and self.confidence.model_dump(),
            "conformal": self.conformal and self.conformal.model_dump(),
        }
        (folder / FILES[1]).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def outputs_of(logits: Matrix, target: Target) -> Matrix:
    """Calibrated logits [N, K] to probabilities, or to the number that they are."""
    if target == "number":
        return logits
    outputs: Matrix = np.exp(log_softmax(logits, axis=1)) if target == "class" else expit(logits)
    return outputs


def load(folder: Path) -> FittedHead:
    """Reads what `FittedHead.save` wrote.

    Raises:
        RegistryError: a file is missing, damaged, or of another format.
    """
    try:
        values = json.loads((folder / FILES[1]).read_text(encoding="utf-8"))
        arrays = load_file(folder / FILES[0])
    except (OSError, ValueError, SafetensorError) as error:
        raise RegistryError(f"{folder}: holds no readable head ({error})") from None
    version = values.get("format") if isinstance(values, dict) else None
    if version != FORMAT:
        raise RegistryError(
            f"{folder}/head.json: format {version!r} is not known, only {FORMAT};"
            " use the Regraft that wrote it, or adapt anew"
        )
    try:
        return _assembled(values, arrays)
    except (KeyError, TypeError, ValidationError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RegistryError(f"{folder}: holds no whole head ({reason})") from None


def _assembled(values: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> FittedHead:
    kind, target, classes = values["kind"], values["target"], tuple(values["classes"])
    if kind not in MODELS or target not in get_args(Target):
        raise ValueError(f"kind {kind!r} of target {target!r} is not known")
    own = {name: value for name, value in arrays.items() if not name.startswith("calibration.")}
    calibration = Calibration(arrays["calibration.scale"], arrays["calibration.bias"])
    model = MODELS[kind](**own)
    outputs = 1 if target == "number" else len(classes)
    some = np.zeros((1, len(own["mean"])), dtype=np.float32)
    if calibration(model.logits(some)).shape != (1, outputs):  # also where shapes do not go together
        raise ValueError(f"its arrays are not of {outputs} outputs")
    return FittedHead(
        target=target,
        kind=kind,
        classes=classes,
        model=model,
        calibration=calibration,
        confidence=values["confidence"] and Confidence.model_validate(values["confidence"]),
        conformal=values["conformal"] and Conformal.model_validate(values["conformal"]),
    )
