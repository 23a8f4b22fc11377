"""Probabilities of a head for the test split."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.embedding.gather import gather
from tasks.head.linear import LinearHead
from tasks.records import Embeddings, Manifest


def test_probabilities(
    manifest: Manifest, embeddings: Embeddings, head_folder: Path
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Probabilities [N, C] for the test rows in the manifest's order, and the C classes.

    Raises:
        CacheError: an embedding is missing.
        RegistryError: the folder holds no readable head.
    """
    table = pq.read_table(manifest.file, columns=["digest"], filters=[("split", "=", "test")])
    head = LinearHead.load(head_folder)
    return head.predict_proba(gather(embeddings, table["digest"].to_pylist())), head.classes
