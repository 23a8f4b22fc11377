import json
import shutil
import sqlite3
import sys
from urllib.request import urlopen

import pandas as pd
import pyarrow.parquet as pq
import pytest

from tasks.params import METRICS
from tests.flows.workplace import BROKEN, Done, Workplace, content

PREDICT = """
import json, sys
import mlflow
import pandas as pd
tracking, uri, files = sys.argv[1], sys.argv[2], json.loads(sys.stdin.read())
mlflow.set_tracking_uri(tracking)
model = mlflow.pyfunc.load_model(uri)
answer = model.predict(pd.DataFrame({"image": [open(file, "rb").read() for file in files]}))
print(json.dumps(answer["probabilities"].tolist()))
"""


# The first run


def test_first_run__registers_the_first_champion(first_run: Done) -> None:
    assert first_run.told["state"] == "registered"
    assert first_run.told["model"] == {"name": "tiles", "version": "1", "alias": "champion"}
    assert first_run.aliases == {"champion": "1", "challenger": "1"}


def test_first_run__json_has_the_promised_keys(first_run: Done) -> None:
    told = first_run.told
    assert set(told) >= {
        "state", "dataset", "embedding", "metrics", "champion_metrics", "gate", "model", "seconds"
    }  # fmt: skip
    assert set(told["dataset"]) == {"digest", "samples", "quarantined"}
    assert set(told["embedding"]) == {"computed", "cached"}
    assert set(told["metrics"]) == set(METRICS["class"])
    assert all(set(interval) == {"value", "low", "high"} for interval in told["metrics"].values())
    assert all(m["low"] <= m["value"] <= m["high"] for name, m in told["metrics"].items() if name != "ece")
    assert told["champion_metrics"] is None
    assert set(told["gate"]) == {"passed", "reasons"}
    assert all(set(reason) >= {"check", "passed", "detail"} for reason in told["gate"]["reasons"])
    assert set(told["model"]) == {"name", "version", "alias"}
    assert set(told["seconds"]) >= {
        "version data", "audit images", "build manifest", "embed", "train head", "package",
        "audit embeddings", "evaluate", "measure robustness", "compare baselines", "try package",
        "write report", "register",
    }  # fmt: skip
    assert all(isinstance(seconds, float) for seconds in told["seconds"].values())


def test_first_run__embeds_every_sample(first_run: Done) -> None:
    assert first_run.told["dataset"]["samples"] == 180
    assert first_run.told["embedding"] == {"computed": 180, "cached": 0}


def test_first_run__broken_files_below_the_limit_are_set_aside(place: Workplace, first_run: Done) -> None:
    assert first_run.told["dataset"]["quarantined"] == 2
    audits = list((place.state / "stages" / "audit").glob("*/audit.json"))
    assert audits
    for audit in audits:
        quarantined = json.loads(audit.read_text())["quarantined"]
        assert {bad["path"]: bad["reason"].split(" (")[0] for bad in quarantined} == {
            BROKEN[0]: "empty file",
            BROKEN[1]: "truncated",
        }


def test_first_run__gate_passed_on_every_check(first_run: Done) -> None:
    gate = first_run.result.gate
    assert gate.passed
    assert {reason.check for reason in gate.reasons} >= {
        "min_test_samples", "floor.balanced_accuracy", "floor.ece", "champion"
    }  # fmt: skip
    assert all(reason.passed for reason in gate.reasons)


# The second


def test_second_run__finds_nothing_to_do(first_run: Done, second_run: Done) -> None:
    told = second_run.told
    assert told["state"] == "unchanged"
    assert told["embedding"] == {"computed": 0, "cached": 180}
    for same in ("dataset", "metrics", "champion_metrics", "gate", "model", "head", "run_id"):
        assert told[same] == first_run.told[same], same
    assert second_run.versions == ("1",)
    assert not {"embed", "train head", "register"} & set(told["seconds"])


def test_runs__are_completed_flow_runs(
    place: Workplace, api_url: str, first_run: Done, second_run: Done
) -> None:
    first, second = (done.result.links["prefect"].rsplit("/", 1)[1] for done in (first_run, second_run))
    with sqlite3.connect(place.state / "prefect" / "prefect.db") as database:  # of an API of its own
        states = dict(database.execute("SELECT id, state_name FROM flow_run"))
    assert states == {first: "Completed"}
    with urlopen(f"{api_url}/flow_runs/{second}", timeout=30) as answer:
        assert json.load(answer)["state"]["name"] == "Completed"


# New images


def test_grown_run__computes_the_new_images_alone(grown_run: Done) -> None:
    assert grown_run.told["dataset"]["samples"] == 200
    assert grown_run.told["embedding"] == {"computed": 20, "cached": 180}


def test_grown_run__is_compared_with_the_champion_on_the_same_samples(grown_run: Done) -> None:
    told = grown_run.told
    assert set(told["champion_metrics"]) == set(METRICS["class"])
    (reason,) = [r for r in grown_run.result.gate.reasons if r.check == "champion"]
    assert reason.passed
    assert reason.check.startswith("champion")


def test_grown_run__is_the_challenger_and_the_champion_stays(grown_run: Done) -> None:
    assert grown_run.told["state"] == "registered"
    assert grown_run.told["model"] == {"name": "tiles", "version": "2", "alias": "challenger"}
    assert grown_run.aliases == {"champion": "1", "challenger": "2"}
    assert grown_run.versions == ("1", "2")


def test_grown_run__old_samples_stay_in_their_splits(
    place: Workplace, first_run: Done, grown_run: Done
) -> None:
    tables = [
        pq.read_table(file).to_pandas().set_index("path")["split"]
        for file in (place.state / "stages" / "manifest").rglob("manifest.parquet")
    ]
    small, large = sorted(tables, key=len)
    assert (len(small), len(large)) == (180, 200)
    assert large[small.index].equals(small)


# A gate that can't pass, with another head


def test_rejected_run__registers_nothing(grown_run: Done, rejected_run: Done) -> None:
    told = rejected_run.told  # the exit status was 0
    assert told["state"] == "rejected"
    assert told["model"] is None
    assert not told["gate"]["passed"]
    failed = {reason["check"] for reason in told["gate"]["reasons"] if not reason["passed"]}
    assert failed == {"floor.balanced_accuracy"}
    assert rejected_run.versions == grown_run.versions
    assert rejected_run.aliases == grown_run.aliases


def test_rejected_run__another_head_needs_no_embedding(rejected_run: Done) -> None:
    assert rejected_run.told["embedding"] == {"computed": 0, "cached": 200}
    assert rejected_run.result.head.strength in (0.02, 0.2)


def test_rejected_run__stays_rejected_when_nothing_changed(rejected_run: Done, rejected_again: Done) -> None:
    told = rejected_again.told
    assert told["state"] == "unchanged"
    assert told["model"] is None
    assert told["gate"] == rejected_run.told["gate"]
    assert rejected_again.versions == rejected_run.versions


# What is left behind. These come after the runs, so that they see all that was written.


def test_state__holds_no_pickle(place: Workplace, rejected_again: Done) -> None:
    files = [file for file in place.state.rglob("*") if file.is_file()]
    named = {".pkl", ".pickle", ".joblib", ".pt", ".pth"}
    assert [file for file in files if file.suffix in named] == []
    # A pickle of protocol 2 or more starts with its number and ends with a full stop.
    starts = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
    contents = ((file, file.read_bytes()) for file in files)
    assert [file for file, data in contents if data.startswith(starts) and data.endswith(b".")] == []


def test_state__prefects_results_are_json(place: Workplace, rejected_again: Done) -> None:
    results = [file for file in (place.state / "prefect" / "results").rglob("*") if file.is_file()]
    assert len(results) > 5
    for file in results:
        record = json.loads(file.read_text())
        if "metadata" in record:
            assert record["metadata"]["serializer"]["type"] == "json"


def test_state__is_the_only_place_that_is_written_to(
    place: Workplace, given: dict[str, str], rejected_again: Done
) -> None:
    assert list(content(place.cwd)) == []
    # Matplotlib looks for the machine's fonts once for each user.
    assert [path for path in content(place.home) if not path.startswith(".cache/matplotlib/")] == []
    assert list(content(place.temporary)) == []
    now = content(place.data)
    assert {path: now[path] for path in given} == given
    assert len(now) == len(given) + 20


def test_pyfunc__answers_what_the_evaluation_saw(place: Workplace, first_run: Done) -> None:
    # The evaluation of the run that made version 1, as MLflow keeps it.
    (run,) = (place.state / "mlflow" / "artifacts").rglob(f"{first_run.result.run_id}/artifacts")
    expected: pd.DataFrame = pq.read_table(run / "evaluation" / "predictions.parquet").to_pandas()
    manifest = pq.read_table(run / "data" / "manifest.parquet", filters=[("split", "=", "test")]).to_pandas()
    files = manifest.set_index("digest")["path"]
    names = [str(place.data / files[digest]) for digest in expected["digest"]]
    assert len(names) > 20

    store = f"sqlite:///{place.state}/mlflow/mlflow.db"
    done = place.run(sys.executable, "-c", PREDICT, store, "models:/tiles/1", given=json.dumps(names))

    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    for row, answer in zip(expected.to_dict("records"), answers, strict=True):
        assert set(answer) == {"global", "local", "nominal"}
        for label, probability in answer.items():
            assert probability == pytest.approx(row[f"p:{label}"], abs=1e-4)


def test_checkout__brings_back_the_exact_files(
    place: Workplace, given: dict[str, str], rejected_again: Done
) -> None:
    # The last test of this state: without the cache there is only the remote.
    shutil.rmtree(place.state / "dvc" / "cache")
    to = place.root / "back"
    done = place.regraft("data", "checkout", "models:/tiles/1", "--to", to)
    assert done.returncode == 0, done.stderr
    assert content(to / "data") == given
