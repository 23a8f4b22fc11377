"""Outputs of a head for the test split."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.embedding.gather import gather
from tasks.head import fitted
from tasks.records import Embeddings, Manifest


def test_outputs(
    manifest: Manifest, embeddings: Embeddings, head_folder: Path
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Outputs [N, K] for the test rows in the manifest's order, and the classes.

    Of classes and labels K = C calibrated probabilities; of a number K = 1 value, and no classes.

    Raises:
        CacheError: an embedding is missing.
        RegistryError: the folder holds no readable head.
    """
    table = pq.read_table(manifest.file, columns=["digest"], filters=[("split", "=", "test")])
    head = fitted.load(head_folder)
    outputs = head.outputs(gather(embeddings, table["digest"].to_pylist()))
    return np.asarray(outputs, dtype=np.float64), tuple(head.classes)
