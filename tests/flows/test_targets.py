"""Labels and numbers through the whole flow, samples left out by name, and a ranking of backbones."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tasks.params import METRICS
from tasks.registry.tracking import tracking_uri
from tests.flows.workplace import CLASSES, Workplace, add_images

FORK = Path(__file__).with_name("fork.py")
NAMES = {"global": "dent | wide", "local": "dent", "nominal": ""}
SIZES = {"global": 9.0, "local": 3.0, "nominal": 0.0}
PER_CLASS = 40
COMMON = """
data: {{target: {target}, min_per_class: 1, exclude: [{exclude}]}}
head: {{kind: {kind}, strengths: [{strengths}], folds: 2}}
evaluation:
  {{bootstrap: 100, baseline_samples: 40, learning_repeats: 1, robustness_samples: 4, latency_samples: 2}}
gate:
  {{metric: {metric}, floors: [{{metric: {metric}, limit: {limit}}}], min_test_samples: 5, margin: 9,
   max_miscalibration: null, max_robustness_loss: null}}
finetune: {{when: never}}
"""
LABELS = {"target": "labels", "kind": "multilabel", "metric": "macro_f1", "limit": 0.2, "exclude": ""}
NUMBER = {"target": "number", "kind": "ridge", "metric": "mae", "limit": 5, "exclude": ""}
LEFT_OUT = "local/0003.jpg"

Run = Mapping[str, Any]


@pytest.fixture(scope="module")
def place(new_place: Callable[[str], Workplace]) -> Workplace:
    """`labels.csv` and `sizes.csv` of the same images."""
    made = new_place("targets")
    for name, truth in (("labels", NAMES), ("sizes", SIZES)):
        folder = made.root / name
        for label in CLASSES:
            add_images(folder, label, 0, PER_CLASS)
        with (folder / f"{name}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("path", "label", "line"))
            for label in CLASSES:
                for number in range(PER_CLASS):
                    value = truth[label] if name == "labels" else SIZES[label] + number / PER_CLASS
                    rows.writerow((f"{label}/{number:04}.jpg", value, f"line {number % 2}"))
    return made


@pytest.fixture(scope="module")
def runs(place: Workplace, api_url: str) -> dict[str, Run]:
    """The commands in turn; what each printed."""

    def adapt(name: str, values: Mapping[str, object], strengths: str = "0.01, 0.1") -> list[str]:
        params = place.params(COMMON.format(**values, strengths=strengths))
        table = place.root / name / f"{name}.csv"
        return ["adapt", "--json", "--data", str(table), "--params", str(params)]

    commands = {
        "labels": adapt("labels", LABELS),
        "number": adapt("sizes", NUMBER),
        "number again": adapt("sizes", {**NUMBER, "exclude": f"{LEFT_OUT}, nowhere.jpg"}, "0.02, 0.2"),
        "rank": ["backbones", "rank", str(place.root / "labels" / "labels.csv"), "--json"],
    }
    ranked = place.params(
        "embedding: {layers: [blocks.2, network], pooling: [mean]}\n"
        + COMMON.format(**LABELS, strengths="0.01")
    )
    commands["rank"] += ["--params", str(ranked)]
    done = place.run(sys.executable, FORK, api_url, place.state, given=json.dumps(list(commands.values())))
    assert done.returncode == 0, done.stderr
    told = {}
    for name, line in zip(commands, done.stdout.splitlines(), strict=True):
        finished = subprocess.CompletedProcess(commands[name], *json.loads(line))
        assert finished.returncode == 0, f"{name}: {finished.stderr}"
        told[name] = json.loads(finished.stdout.splitlines()[-1])
    return told


def _served(place: Workplace, name: str, images: list[Path]) -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:  # what MLflow is told otherwise stays for all later tests
        patch.setenv("MLFLOW_TRACKING_URI", tracking_uri(place.settings))
        model = mlflow.pyfunc.load_model(f"models:/{name}/1")
    answer = model.predict(pd.DataFrame({"image": [file.read_bytes() for file in images]}))
    assert isinstance(answer, pd.DataFrame)
    return answer


def _predictions(place: Workplace, run: Run) -> pd.DataFrame:
    (folder,) = (place.state / "mlflow" / "artifacts").rglob(f"{run['run_id']}/artifacts")
    found: pd.DataFrame = pq.read_table(folder / "evaluation" / "predictions.parquet").to_pandas()
    return found


def test_labels__are_registered_and_served_as_they_were_judged(
    place: Workplace, runs: Mapping[str, Run]
) -> None:
    run = runs["labels"]
    assert run["state"] == "registered"
    assert set(run["metrics"]) == set(METRICS["labels"])
    judged = _predictions(place, run)
    answer = _served(place, "labels", [place.root / "labels" / path for path in judged["path"]])
    assert set(answer.columns) == {"labels", "probabilities"}
    for name in ("dent", "wide"):
        of_name = [probabilities[name] for probabilities in answer["probabilities"]]
        np.testing.assert_allclose(of_name, judged[f"p:{name}"], atol=1e-4)


def test_numbers__are_registered_and_served_as_they_were_judged(
    place: Workplace, runs: Mapping[str, Run]
) -> None:
    run = runs["number"]
    assert run["state"] == "registered"
    assert set(run["metrics"]) == set(METRICS["number"])
    assert run["metrics"]["mae"]["value"] < np.mean([abs(s - np.mean([9, 3, 0])) for s in (9, 3, 0)])
    judged = _predictions(place, run)
    answer = _served(place, "sizes", [place.root / "sizes" / path for path in judged["path"]])
    np.testing.assert_allclose(answer["value"], judged["predicted"].astype(float), atol=1e-3)


def test_numbers__are_compared_with_the_champion_slice_by_slice(
    place: Workplace, runs: Mapping[str, Run]
) -> None:
    run = runs["number again"]
    assert run["model"] == {"name": "sizes", "version": "2", "alias": "challenger"}
    checks = {check["check"]: check for check in run["gate"]["reasons"]}
    assert "against version 1" in checks["champion"]["detail"]
    assert set(run["champion_metrics"]) == set(METRICS["number"])


def test_exclude__leaves_the_named_sample_out_and_nothing_else(
    place: Workplace, runs: Mapping[str, Run]
) -> None:
    before, after = runs["number"]["dataset"]["samples"], runs["number again"]["dataset"]["samples"]
    assert (before, after) == (3 * PER_CLASS, 3 * PER_CLASS - 1)
    assert runs["number again"]["embedding"] == {"computed": 0, "cached": after}
    manifests = [
        json.loads(file.read_text()) for file in (place.state / "stages" / "manifest").glob("*/record.json")
    ]
    excluding = [one for one in manifests if one["excluded"]]
    assert {bad["path"] for one in excluding for bad in one["excluded"]} == {LEFT_OUT}
    assert {name for one in excluding for name in one["unmatched"]} == {"nowhere.jpg"}


def test_report__is_one_page_with_the_verdict(runs: Mapping[str, Run]) -> None:
    for name in ("labels", "number", "number again"):
        page = Path(runs[name]["report"]).read_text(encoding="utf-8")
        assert "Passed" in page
        assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*', page) == []


def test_rank__lists_each_layer_with_its_loss(runs: Mapping[str, Run]) -> None:
    ranked = runs["rank"]["ranked"]
    assert len(ranked) >= 2
    assert any("blocks.2" in one["name"] for one in ranked)
    assert all(one["loss"]["value"] > 0 and np.isfinite(one["logme"]) for one in ranked)
