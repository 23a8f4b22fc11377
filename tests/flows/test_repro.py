"""`dvc repro` over a version that was checked out gives the head that the flow registered."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import conformal_clip_data
import pytest
import yaml

from tasks.params import DataParams, EvaluationParams, FinetuneParams, Floor, GateParams, HeadParams, Params
from tasks.settings import ROOT

BIN = Path(sys.executable).parent
PARAMS = Params(
    data=DataParams(min_per_class=1),
    head=HeadParams(strengths=(0.01, 0.1), folds=2),
    evaluation=EvaluationParams(
        bootstrap=100, baseline_samples=0, learning_repeats=0, robustness_samples=0, latency_samples=2
    ),
    gate=GateParams(
        floors=(Floor(metric="balanced_accuracy", limit=0.2),), min_test_samples=5, max_miscalibration=None
    ),
    finetune=FinetuneParams(when="never"),
)


def command(*arguments: str, cwd: Path, api_url: str | None = None) -> str:
    ours = {"REGRAFT_STATE": str(cwd / ".regraft"), "REGRAFT_FORWARD": "torch"}
    api = {"PREFECT_API_URL": api_url} if api_url else {}
    done = subprocess.run(
        [str(BIN / arguments[0]), *arguments[1:]],
        cwd=cwd,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **ours, **api},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, api_url: str) -> Path:
    """A copy of the repository in which a version was made and its data checked out."""
    folder = tmp_path_factory.mktemp("repro")
    repository = folder / "repository"
    for folder_name in ("tasks", "flows", ".dvc"):
        shutil.copytree(ROOT / folder_name, repository / folder_name)
    for file_name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / file_name, repository / file_name)
    (repository / "params.yaml").write_text(yaml.safe_dump(PARAMS.model_dump(mode="json")))
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    images = folder / "images"
    for label in ("nominal", "local", "global"):
        (images / label).mkdir(parents=True)
        for file in sorted((conformal_clip_data.textile_simulated_root() / label).glob("*.jpg"))[:40]:
            shutil.copy(file, images / label)
    command(
        *("regraft", "adapt", "--json", "--data", str(images), "--name", "small", "--params", "params.yaml"),
        cwd=repository,
        api_url=api_url,
    )
    # The cache of embeddings goes, so that both ways have to compute every vector themselves.
    shutil.rmtree(repository / ".regraft" / "embeddings")
    command("regraft", "data", "checkout", "models:/small/1", cwd=repository)
    command("dvc", "repro", cwd=repository)
    return repository


def test_repro__head_equals_the_flows_bit_for_bit(checkout: Path) -> None:
    (of_flow,) = (checkout / ".regraft" / "stages" / "head").iterdir()
    of_dvc = checkout / ".regraft" / "repro" / "head"
    for name in ("head.safetensors", "head.json"):
        assert (of_dvc / name).read_bytes() == (of_flow / name).read_bytes()


def test_repro__second_run_has_nothing_to_do(checkout: Path) -> None:
    assert "Data and pipelines are up to date." in command("dvc", "repro", cwd=checkout)


def test_repro__metrics_are_the_flows(checkout: Path) -> None:
    shown = json.loads(command("dvc", "metrics", "show", "--json", cwd=checkout))
    (metrics,) = (file["data"] for file in shown[""]["data"].values())
    (of_flow,) = (checkout / ".regraft" / "stages" / "evaluation").iterdir()
    record = json.loads((of_flow / "record.json").read_text())
    assert metrics["log_loss"] == record["metrics"]["log_loss"]["value"]


def test_repro__plots_hold_every_test_sample(checkout: Path) -> None:
    command("dvc", "plots", "show", "--out", "plots", cwd=checkout)
    page = (checkout / "plots" / "index.html").read_text()
    assert "confusion" in page
    assert "reliability" in page
