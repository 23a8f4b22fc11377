"""The main job as `make adapt` runs it: the built-in dataset with the parameters of params.yaml."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import log_loss
from threadpoolctl import threadpool_limits

from tasks.head.fit import split_data
from tasks.records import Block, Embeddings, Head, Manifest


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("builtin") / "state"


@pytest.fixture(scope="module")
def result(state: Path) -> dict[str, Any]:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("regraft")), "adapt", "--json", "--state", str(state)],
        cwd=state.parent,
        env={k: v for k, v in os.environ.items() if not k.startswith(("REGRAFT_", "PREFECT_", "MLFLOW_"))},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.fixture(scope="module")
def manifest(state: Path, result: dict[str, Any]) -> Manifest:
    (folder,) = (state / "stages" / "manifest").iterdir()
    return Manifest.load(folder)


def embeddings(state: Path) -> Embeddings:
    (head,) = (state / "stages" / "head").iterdir()
    (digest,) = Head.load(head).blocks
    described = state / "embeddings" / digest / "block.json"
    block = Block.model_validate(json.loads(described.read_text())["block"])
    return Embeddings(digest="", root=str(state / "embeddings"), blocks=(block,), computed=0, cached=2000)


def test_builtin__first_version_is_the_champion(result: dict[str, Any]) -> None:
    assert result["state"] == "registered"
    assert result["model"] == {"name": "surface-inspection", "version": "1", "alias": "champion"}
    assert result["dataset"]["samples"] == 2000
    assert result["dataset"]["quarantined"] == 0
    assert result["embedding"] == {"computed": 2000, "cached": 0}


def test_builtin__every_class_is_in_every_split(manifest: Manifest) -> None:
    total = {label: sum(counts[label] for counts in manifest.counts.values()) for label in manifest.classes}
    assert total == {"global": 500, "local": 500, "nominal": 1000}
    assert all(min(counts.values()) > 0 for counts in manifest.counts.values())


def test_builtin__log_loss_is_within_half_a_percent_of_scikit_learn(
    state: Path, result: dict[str, Any], manifest: Manifest
) -> None:
    x: NDArray[np.float32]
    x, y = split_data(manifest, embeddings(state), "train")
    x_test, y_test = split_data(manifest, embeddings(state), "test")
    # The strengths of scikit-learn's own grid (Cs=10) among which the optimum lies; the weaker ones
    # take minutes.
    strengths = np.logspace(-4, 4, 10)[3:6]
    reference = LogisticRegressionCV(
        Cs=strengths,
        scoring="neg_log_loss",
        cv=5,
        max_iter=2000,
        l1_ratios=(0,),
        use_legacy_attributes=False,
    )
    with threadpool_limits(1):  # products this small are several times slower on more threads
        reference.fit(x, y)
    assert strengths[0] < reference.C_ < strengths[-1]
    expected = log_loss(y_test, reference.predict_proba(x_test))
    assert result["metrics"]["log_loss"]["value"] <= 1.005 * expected


def test_builtin__backbone_separates_the_classes_better_than_chance(result: dict[str, Any]) -> None:
    assert result["metrics"]["balanced_accuracy"]["low"] > 1 / 3
