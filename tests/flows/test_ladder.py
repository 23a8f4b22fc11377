"""The ladder through the command line: trained backbones, students, a trial, and a training that is
killed."""

import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from tasks.registry.tracking import connect, tracking_uri
from tests.flows.climbing import ADDED, CLASSES, EPOCHS, FLOOR, PER_CLASS, TAUGHT, Ended, climbs, kills
from tests.flows.workplace import Workplace

Told = Mapping[str, Any]


@pytest.fixture(scope="module")
def place(new_place: Callable[[str], Workplace]) -> Workplace:
    return new_place("ladder")


@pytest.fixture(scope="module")
def elsewhere(new_place: Callable[[str], Workplace]) -> Workplace:
    return new_place("ladder-killed")


@pytest.fixture(scope="module")
def runs(place: Workplace, elsewhere: Workplace, api_url: str) -> dict[str, Ended]:
    """Two states at once."""
    with ThreadPoolExecutor(2) as both:
        found = [both.submit(climbs, place, api_url), both.submit(kills, elsewhere, api_url)]
        return {name: ended for one in found for name, ended in one.result().items()}


def client(place: Workplace) -> MlflowClient:
    return connect(place.settings)


def checks(told: Told) -> dict[str, Told]:
    return {check["check"]: check for check in told["gate"]["reasons"]}


def rungs(told: Told) -> dict[str, Told]:
    return {rung["name"]: rung for rung in told["ladder"]}


def trainings(place: Workplace, name: str = "stripes", kind: str = "finetune") -> list[Any]:
    """The MLflow runs of fine-tunings of a model (or of students: distill), the oldest first."""
    experiment = client(place).get_experiment_by_name(name)
    assert experiment is not None
    return list(
        client(place).search_runs(
            [experiment.experiment_id], f"tags.`regraft.kind` = '{kind}'", order_by=["start_time ASC"]
        )
    )


def epochs(journal: Path) -> list[int]:
    """Numbers of the epochs that trainings with one key told of."""
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    return [line["epoch"] for line in lines if line["kind"] == "epoch"]


def artifact(api_url: str, told: Told, key: str) -> str:
    """What a flow run shows under a key."""
    found = {"artifacts": {"flow_run_id": {"any_": [told["links"]["prefect"].rsplit("/", 1)[1]]}}}
    body = json.dumps({**found, "limit": 200}).encode()
    request = Request(f"{api_url}/artifacts/filter", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as answer:
        (shown,) = [one["data"] for one in json.load(answer) if one["key"] == key]
    return str(shown)


# The trained backbone


def test_climbed__failed_floor_leads_to_a_tuned_backbone_that_passes(runs: Mapping[str, Ended]) -> None:
    told = runs["climbed"].told
    frozen, tuned = told["ladder"]
    assert told["climb"].startswith("A floor of the gate failed with the frozen backbone: ")
    assert (frozen["name"], frozen["passed"], frozen["chosen"]) == ("frozen", False, False)
    assert frozen["failed"] == ["floor.balanced_accuracy"]
    assert frozen["test"]["value"] < FLOOR <= tuned["test"]["value"]
    assert (tuned["name"], tuned["passed"], tuned["chosen"]) == ("lp_ft", True, True)
    assert tuned["validation"]["value"] > frozen["validation"]["value"]
    assert tuned["seconds"] > 0
    assert (told["state"], told["rung"]) == ("registered", "lp_ft")
    assert told["model"] == {"name": "stripes", "version": "1", "alias": "champion"}
    assert told["metrics"]["balanced_accuracy"] == tuned["test"]


def test_climbed__again_changes_nothing(runs: Mapping[str, Ended]) -> None:
    first, again = runs["climbed"].told, runs["again"].told
    assert again["state"] == "unchanged"
    assert again["embedding"] == {"computed": 0, "cached": 2 * PER_CLASS}
    for same in ("rung", "ladder", "climb", "metrics", "gate", "model", "run_id"):
        assert again[same] == first[same], same


def test_climbed__version_names_rung_and_weights(place: Workplace, runs: Mapping[str, Ended]) -> None:
    told = runs["climbed"].told
    version = client(place).get_model_version("stripes", "1")
    training = trainings(place)[0]
    assert version.tags["regraft.rung"] == told["rung"] == "lp_ft"
    assert version.tags["regraft.tuned_weights"] == training.data.tags["regraft.weights_sha256"]


def test_climbed__mlflow_has_the_numbers_of_each_epoch(place: Workplace, runs: Mapping[str, Ended]) -> None:
    assert runs["climbed"].status == 0
    training = trainings(place)[0]
    assert training.info.status == "FINISHED"
    steps_of_epoch = -(-sum(training_samples(place, runs["climbed"].told)) // 16)
    for key in ("epoch", "validation_loss", "validation", "epoch_loss"):
        points = client(place).get_metric_history(training.info.run_id, key)
        assert sorted(point.step for point in points) == [
            steps_of_epoch * epoch for epoch in range(1, EPOCHS + 1)
        ], key


def training_samples(place: Workplace, told: Told) -> list[int]:
    """Of each class in the training split."""
    splits = pq.read_table(_kept(place, told) / "data" / "manifest.parquet").to_pandas()
    return list(splits[splits["split"] == "train"].groupby("label").size())


def _kept(place: Workplace, told: Told) -> Path:
    """What MLflow keeps of a run."""
    (folder,) = (place.state / "mlflow" / "artifacts").rglob(f"{told['run_id']}/artifacts")
    return folder


def test_climbed__registered_model_answers_what_was_judged(
    place: Workplace, runs: Mapping[str, Ended]
) -> None:
    for version, command in (("1", "climbed"), ("2", "student")):
        judged = pq.read_table(
            _kept(place, runs[command].told) / "evaluation" / "predictions.parquet"
        ).to_pandas()
        assert len(judged) > 30
        with pytest.MonkeyPatch.context() as patch:  # what MLflow is told otherwise stays for later tests
            patch.setenv("MLFLOW_TRACKING_URI", tracking_uri(place.settings))
            model = mlflow.pyfunc.load_model(f"models:/stripes/{version}")
        images = [(place.root / "stripes" / path).read_bytes() for path in judged["path"]]
        answer = model.predict(pd.DataFrame({"image": images}))
        for label in CLASSES:
            answered = [probabilities[label] for probabilities in answer["probabilities"]]
            np.testing.assert_allclose(answered, judged[f"p:{label}"], atol=1e-4)


def test_ladder__trains_each_key_once(place: Workplace, runs: Mapping[str, Ended]) -> None:
    # Two data versions; of each a tuned backbone and a student, whatever else the gate is told. Before the
    # unknown teacher was missed, nothing was trained.
    assert runs["unknown"].status
    journals = sorted(len(epochs(file)) for file in (place.state / "finetune").glob("*.jsonl"))
    assert journals == [TAUGHT, TAUGHT, EPOCHS, EPOCHS]
    keys = [training.data.tags["regraft.finetune_key"] for training in trainings(place)]
    assert len(set(keys)) == len(keys) == 2


# Not climbed


def test_held__floors_that_hold_need_no_training(runs: Mapping[str, Ended]) -> None:
    told = runs["held"].told
    assert told["climb"] == (
        "The gate's floor holds, and finetune.worth_per_point is 0, so no trial was needed and the backbone"
        " stays frozen."
    )
    assert list(rungs(told)) == ["frozen"]
    assert checks(told)["floor.balanced_accuracy"]["passed"]


def test_never__failing_floor_is_not_climbed(runs: Mapping[str, Ended]) -> None:
    told = runs["never"].told
    assert told["climb"] == "finetune.when is never, so the backbone stays frozen."
    assert (told["state"], told["rung"], list(rungs(told))) == ("rejected", "frozen", ["frozen"])
    assert not checks(told)["floor.balanced_accuracy"]["passed"]


def test_never__tuned_champion_is_judged_anew_and_stays(place: Workplace, runs: Mapping[str, Ended]) -> None:
    for command in ("held", "never"):
        told = runs[command].told
        assert told["champion_metrics"] == runs["climbed"].told["metrics"]
        check = checks(told)["champion"]
        assert not check["passed"]
        assert "against version 1" in check["detail"]
        assert (told["state"], told["model"]) == ("rejected", None)
    assert str(client(place).get_model_version_by_alias("stripes", "champion").version) == "1"


def test_pixels__have_nothing_to_train(runs: Mapping[str, Ended]) -> None:
    told = runs["pixels"].told
    assert told["state"] == "rejected"
    assert told["climb"] == (
        "regraft:pixels has no weights to train, so the backbone stays frozen, although"
        " floor.balanced_accuracy failed."
    )


def test_pixels__asked_for_training_is_an_error_of_one_line(runs: Mapping[str, Ended]) -> None:
    ended = runs["pixels always"]
    assert ended.status == 1
    (line,) = ended.err.splitlines()
    assert line.startswith("error: regraft:pixels has no weights to train, and finetune.when is always; ")


# The trial


def test_tried__decision_follows_from_the_trials_numbers(
    elsewhere: Workplace, api_url: str, runs: Mapping[str, Ended]
) -> None:
    told = runs["tried"].told
    (ladder,) = _kept(elsewhere, told).rglob("ladder.json")
    climb = json.loads(ladder.read_text())["climb"]
    gain, points = climb["expected_gain"], climb["trial"]
    assert climb["price"] == pytest.approx(climb["expected_seconds"] / 3600 * 0.01)
    assert climb["worth"] == pytest.approx(gain["value"] / 0.01 * 1000)
    assert climb["climb"] == (gain["low"] > 0 and climb["worth"] > climb["price"])
    assert list(rungs(told)) == ["frozen", *(["last_blocks"] if climb["climb"] else [])]
    # Three learning rates for two epochs, and the better half of them for four.
    assert [point["epochs"] for point in points] == [2, 2, 2, 4, 4]
    first = sorted(points[:3], key=lambda point: (-point["validation"], point["validation_loss"]))
    assert [p["learning_rate"] for p in points[3:]] == [p["learning_rate"] for p in first[:2]]
    shown = artifact(api_url, told, "climb")
    assert ("# Climbed" if climb["climb"] else "# Not climbed") in shown
    assert f"Expected gain in balanced_accuracy: {gain['value']:.3f}" in shown
    assert len(re.findall(r"^\| last_blocks +\|", shown, re.MULTILINE)) == len(points)


# The student


def test_student__that_passes_beside_its_teacher_is_registered(
    place: Workplace, runs: Mapping[str, Ended]
) -> None:
    told = runs["student"].told
    assert list(rungs(told)) == ["frozen", "lp_ft", "student"]
    assert (told["state"], told["rung"]) == ("registered", "student")
    assert told["model"] == {"name": "stripes", "version": "2", "alias": "challenger"}
    for name in ("teacher", "speedup", "student_size"):
        assert checks(told)[name]["passed"], name
    assert [name for name, rung in rungs(told).items() if rung["chosen"]] == ["student"]
    tags = client(place).get_model_version("stripes", "2").tags
    assert tags["regraft.rung"] == "student"
    assert (
        tags["regraft.tuned_weights"]
        == (trainings(place, kind="distill")[0].data.tags["regraft.weights_sha256"])
    )


def test_student__that_is_too_large_leaves_its_teacher_in_place(runs: Mapping[str, Ended]) -> None:
    told = runs["student kept"].told
    student = rungs(told)["student"]
    assert (student["passed"], student["failed"], student["chosen"]) == (False, ["student_size"], False)
    assert told["rung"] == "lp_ft"
    assert not {"teacher", "speedup", "student_size"} & set(checks(told))
    assert (told["state"], told["model"]["version"]) == ("registered", "3")


def test_student__learns_from_the_champion_and_a_version_at_once(
    place: Workplace, runs: Mapping[str, Ended]
) -> None:
    told = runs["grown"].told
    packages = {
        client(place).get_model_version("stripes", version).tags["regraft.package"] for version in ("1", "2")
    }
    taught = [
        json.loads(file.read_text()) for file in (place.state / "stages").glob("throughput/*/record.json")
    ]
    assert packages in [set(one["teachers"]) for one in taught]
    assert list(rungs(told)) == ["frozen", "lp_ft", "student"]


def test_student__of_an_unknown_version_is_an_error_of_one_line(runs: Mapping[str, Ended]) -> None:
    ended = runs["unknown"]
    assert ended.status == 1
    (line,) = ended.err.splitlines()
    assert line == "error: stripes: has no version 99; see `regraft models list`"


# New data


def test_grown__frozen_backbone_embeds_the_new_images_alone(runs: Mapping[str, Ended]) -> None:
    told = runs["grown"].told
    assert told["embedding"] == {"computed": 2 * ADDED, "cached": 2 * PER_CLASS}


def test_grown__backbone_is_trained_anew(place: Workplace, runs: Mapping[str, Ended]) -> None:
    assert runs["grown"].told["ladder"]
    first, second = (training.data.tags for training in trainings(place))
    for key in ("regraft.finetune_key", "regraft.weights_sha256", "regraft.manifest"):
        assert first[key] != second[key], key
    assert first["regraft.backbone_sha256"] == second["regraft.backbone_sha256"]


# Killed


def test_killed__training_carries_on_to_the_weights_of_a_quiet_run(
    place: Workplace, elsewhere: Workplace, runs: Mapping[str, Ended]
) -> None:
    quiet, killed = trainings(place)[0], trainings(elsewhere)
    assert runs["plain"].told["rung"] == "lp_ft"
    (training,) = killed
    assert training.info.status == "FINISHED"
    for tag in ("regraft.finetune_key", "regraft.weights_sha256"):
        assert training.data.tags[tag] == quiet.data.tags[tag], tag
    told_of = epochs(elsewhere.state / "finetune" / f"{training.data.tags['regraft.finetune_key']}.jsonl")
    assert told_of == sorted(set(told_of))  # it did not begin anew
    points = client(elsewhere).get_metric_history(training.info.run_id, "validation_loss")
    assert len(points) == len({point.step for point in points}) == EPOCHS


def test_killed__is_registered_once_with_the_numbers_of_a_quiet_run(
    elsewhere: Workplace, runs: Mapping[str, Ended]
) -> None:
    quiet, told = runs["climbed"].told, runs["plain"].told
    assert told["model"] == {"name": "stripes", "version": "1", "alias": "champion"}
    assert len(client(elsewhere).search_model_versions("name = 'stripes'")) == 1
    assert told["metrics"] == quiet["metrics"]


# Other targets


@pytest.mark.parametrize(("name", "metric"), [("labels", "macro_f1"), ("number", "mae")])
def test_targets__climb_too(runs: Mapping[str, Ended], name: str, metric: str) -> None:
    told = runs[name].told
    frozen, tuned = told["ladder"]
    assert told["climb"].startswith("finetune.when is always, so the backbone is trained")
    assert (frozen["name"], tuned["name"]) == ("frozen", "lp_ft")
    for rung in (frozen, tuned):
        assert rung["metric"] == metric
        assert np.isfinite([rung["validation"]["value"], rung["test"]["value"]]).all()
    assert checks(told)["package"]["passed"]
    assert told["state"] == "registered"
