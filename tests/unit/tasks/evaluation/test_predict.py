from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tasks.evaluation import predict
from tasks.evaluation.sums import Floats
from tasks.head import fitted
from tests.unit.tasks.evaluation import embedded


def test_test_outputs__are_those_of_the_test_rows_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = ["test", "train", "validation", "test"]
    manifest = embedded.manifest(tmp_path / "m", ["a", "b", "a", "b"], splits, ["a", "b"])
    vectors = embedded.embeddings(tmp_path / "c", {"identity": [[1.0], [2.0], [3.0], [4.0]]})

    def outputs(x: Floats) -> Floats:
        return np.hstack([x, 1 - x]).astype(np.float32)

    def load(folder: Path) -> SimpleNamespace:
        assert folder == tmp_path / "head"
        return SimpleNamespace(classes=("a", "b"), outputs=outputs)

    monkeypatch.setattr(fitted, "load", load)
    got, classes = predict.test_outputs(manifest, vectors, tmp_path / "head")
    np.testing.assert_array_equal(got, [[1, 0], [4, -3]])
    assert got.dtype == np.float64
    assert classes == ("a", "b")
