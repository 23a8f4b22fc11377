"""What climbing brings on real images, and what it costs: through the command that a user types, and
for few labels by the stages themselves."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from tasks.settings import ROOT
from tests.bench import harness, samples
from tests.bench.harness import Row

SEEDS = (0, 1, 2)
METRIC = "balanced_accuracy"
TRAINING = {"epochs": 9, "augment": ["hflip", "vflip"]}
FLOOR = {"gate": {"floors": [{"metric": METRIC, "limit": 0.9}, {"metric": "ece", "limit": 0.15}]}}
QUICK = {"baseline_samples": 0, "robustness_samples": 0}  # of what is judged beside it


def run() -> Iterator[Row]:
    yield from _surface()
    yield _digits()
    yield from _student()


def adapt(state: Path, params: Mapping[str, Any], *more: str) -> dict[str, Any]:
    """The result of `regraft adapt --json`."""
    file = state / "params.yaml"
    state.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(params))  # JSON is YAML
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from flows.cli import main; main()",
            "adapt",
            "--json",
            "--params",
            str(file),
            *more,
        ],
        env={**os.environ, "REGRAFT_STATE": str(state)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-500:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def rung(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A rung of a result's ladder."""
    return next(one for one in result["ladder"] if one["name"] == name)


def _surface() -> Iterator[Row]:
    """With `auto` and a floor of .90 the flow climbs by itself, and registers."""
    values, seconds, told = [], [], []
    with samples.scratch() as root:
        for seed in SEEDS:
            params = {**FLOOR, "finetune": {**TRAINING, "seed": seed}, "evaluation": QUICK}
            found = adapt(root / "state", params, "--name", f"surface-{seed}")
            tuned, frozen = rung(found, "lp_ft"), rung(found, "frozen")
            if found["state"] != "registered" or not tuned["chosen"]:
                raise RuntimeError(f"seed {seed}: {found['state']}, {found['climb']}")
            test = tuned["test"]
            values.append(test["value"])
            seconds.append(tuned["seconds"])
            told.append(f"{test['value']:.3f} [{test['low']:.3f}, {test['high']:.3f}]")
    value = median(values)
    note = (
        f"`regraft adapt`, auto, floor .90, lp_ft, {TRAINING['epochs']} epochs at 224 px; test split, seeds"
        f" 0 to 2: {', '.join(told)}; frozen {frozen['test']['value']:.3f}"
    )
    yield Row(
        "Surface inspection, balanced accuracy of the best rung",
        value,
        0.97,
        value / 0.97,
        "",
        1.0,
        None,
        note,
    )
    yield harness.below("the same, training, embedding and head", seconds, 600.0, "s", note="on 2 cores")


def _digits() -> Row:
    """A case where transfer hardly helps: `auto` must not climb for nothing."""
    digits = load_digits()
    with samples.scratch() as root:
        for at, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            folder = root / "digits" / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            pixels = Image.fromarray((image * 15.9).astype(np.uint8)).resize(
                (64, 64), Image.Resampling.BICUBIC
            )
            pixels.save(folder / f"{at:04d}.png")
        params = {
            "embedding": {"image_size": 64},
            "finetune": {"worth_per_point": 0.001, "augment": []},
            "gate": {"max_leakage": None, "floors": [{"metric": METRIC, "limit": 0.8}]},
            "evaluation": {"robustness_samples": 0},
        }
        found = adapt(root / "state", params, "--data", str(root / "digits"))
        page = Path(found["report"]).read_text(encoding="utf-8")
    climbed = len(found["ladder"]) > 1
    said = "hardly helps" in page
    return Row(
        "Digits: says that transfer hardly helps, and does not climb",
        float(said and not climbed), 1.0, float(said and not climbed), "", 1.0, None, found["climb"],
    )  # fmt: skip


def _student() -> Iterator[Row]:
    """A student of half the side of the input: a quarter of the pixels."""
    size = {"student": "timm:tf_efficientnet_lite0", "image_size": 112, "epochs": 20, "views": 8}
    with samples.scratch() as root:
        params = {
            **FLOOR,
            "finetune": {**TRAINING, "seed": 0},
            "evaluation": QUICK,
            "distill": {**size, "margin": 0.05, "min_speedup": 2.0},
        }
        found = adapt(root / "state", params)
    teacher, student = rung(found, "lp_ft"), rung(found, "student")
    numbers = {check["check"]: check["numbers"] for check in found["gate"]["reasons"]}
    speedup = numbers.get("speedup", {}).get("value")
    lost = teacher["test"]["value"] - student["test"]["value"]
    reached, of = (one["test"]["value"] for one in (student, teacher))
    note = f"lite0 at 112 px of lite0 at 224 px; {METRIC} on the test split {reached:.3f} of {of:.3f}"
    yield Row(
        "Student's images/s, as a multiple of its teacher's",
        speedup or 0.0,
        2.0,
        (speedup or 0.0) / 2,
        "",
        1.0,
        None,
        note,
    )
    yield Row(
        "Points that it loses", 100 * lost, 1.0, 1.0 if lost <= 0.01 else 0.01 / lost, "", 1.0, None, note
    )
