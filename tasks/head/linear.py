"""A linear head: standardise, one affine map to logits, divide by the temperature, softmax."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.special import log_softmax

from tasks.errors import RegistryError


@dataclass(frozen=True)
class LinearHead:
    """D = length of an embedding, C = number of classes."""

    classes: tuple[str, ...]
    mean: NDArray[np.float64]  # [D], of the training split
    scale: NDArray[np.float64]  # [D], standard deviation of the training split, never 0
    weight: NDArray[np.float64]  # [C, D]
    bias: NDArray[np.float64]  # [C]
    temperature: float

    def logits(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """[N, D] to [N, C], before the temperature."""
        standard = (embeddings.astype(np.float64) - self.mean) / self.scale
        return standard @ self.weight.T + self.bias

    def predict_proba(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """[N, D] to calibrated probabilities [N, C], in the order of `classes`."""
        probabilities: NDArray[np.float64] = np.exp(
            log_softmax(self.logits(embeddings) / self.temperature, axis=1)
        )
        return probabilities

    def save(self, folder: Path) -> None:
        """Writes head.safetensors (float64) and head.json."""
        arrays = {"mean": self.mean, "scale": self.scale, "weight": self.weight, "bias": self.bias}
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, folder / "head.safetensors")
        values = {"format": 1, "classes": self.classes, "temperature": self.temperature}
        (folder / "head.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            RegistryError: a file is missing, damaged, or of another format.
        """
        try:
            values = json.loads((folder / "head.json").read_text(encoding="utf-8"))
            arrays = load_file(folder / "head.safetensors")
        except (OSError, ValueError, SafetensorError) as error:
            raise RegistryError(f"{folder}: holds no readable head ({error})") from None
        if values.get("format") != 1:
            raise RegistryError(f"{folder}/head.json: format {values.get('format')!r} is not known, only 1")
        try:
            return cls(tuple(values["classes"]), **arrays, temperature=values["temperature"])
        except (KeyError, TypeError) as error:
            raise RegistryError(f"{folder}: holds no whole head ({error})") from None
