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
TRAINING = {"epochs": 8, "augment": ["hflip", "vflip"]}
FLOOR = {"gate": {"floors": [{"metric": METRIC, "limit": 0.9}, {"metric": "ece", "limit": 0.15}]}}
QUICK = {"baseline_samples": 0, "robustness_samples": 0}  # of what is judged beside it
STUDENT = {"student": "timm:tf_efficientnet_lite0:0.5", "features": 1.0, "epochs": 20}
JUDGED = {"margin": 0.05, "min_speedup": 2.0}


def run() -> Iterator[Row]:
    yield _digits()
    with samples.scratch() as root:
        climbed = [_surface(root / "state", seed) for seed in SEEDS]
        yield from _best(climbed)
        teacher = rung(climbed[0], "lp_ft")["test"]["value"]
        yield from _small(teacher, [_distilled(root / "state", seed) for seed in SEEDS])


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


def _surface(state: Path, seed: int) -> dict[str, Any]:
    """With `auto` and a floor of .90 the flow climbs by itself, and registers."""
    params = {**FLOOR, "finetune": {**TRAINING, "seed": seed}, "evaluation": QUICK}
    found = adapt(state, params, "--name", f"surface-{seed}")
    if found["state"] != "registered" or not rung(found, "lp_ft")["chosen"]:
        raise RuntimeError(f"seed {seed}: {found['state']}, {found['climb']}")
    return found


def _best(climbed: list[dict[str, Any]]) -> Iterator[Row]:
    tuned = [rung(found, "lp_ft") for found in climbed]
    value = median(one["test"]["value"] for one in tuned)
    told = ", ".join(_told(one["test"]) for one in tuned)
    note = (
        f"`regraft adapt`, auto, floor .90, lp_ft, {TRAINING['epochs']} epochs at 224 px; test split, seeds"
        f" 0 to 2: {told}; frozen {_told(rung(climbed[0], 'frozen')['test'])}"
    )
    name = "Surface inspection, balanced accuracy of the best rung"
    yield Row(name, value, 0.97, value / 0.97, "", 1.0, None, note)
    seconds = [one["seconds"] for one in tuned]
    yield harness.below("the same, training, embedding and head", seconds, 600.0, "s", note="on 2 cores")


def _told(score: Mapping[str, float]) -> str:
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


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


def _distilled(state: Path, seed: int) -> dict[str, Any]:
    """A student of the version that the first seed registered."""
    params = {
        **FLOOR,
        "finetune": {"when": "never", "augment": TRAINING["augment"], "seed": seed},
        "evaluation": QUICK,
        "distill": {**STUDENT, **JUDGED, "teachers": ["1"]},
    }
    found = adapt(state, params, "--name", f"surface-{SEEDS[0]}")
    if not rung(found, "student")["chosen"]:
        raise RuntimeError(f"seed {seed}: the student was refused ({rung(found, 'student')})")
    return found


def _small(teacher: float, distilled: list[dict[str, Any]]) -> Iterator[Row]:
    speedups, lost, told = [], [], []
    for found in distilled:
        student = rung(found, "student")["test"]
        (speedup,) = (check for check in found["gate"]["reasons"] if check["check"] == "speedup")
        speedups.append(speedup["numbers"]["value"])
        lost.append(100 * (teacher - student["value"]))
        told.append(_told(student))
    note = (
        f"{STUDENT['student']} from ImageNet weights, {STUDENT['epochs']} epochs; {METRIC} on the"
        f" test split, seeds 0 to 2: {', '.join(told)}; its teacher (lite0) {teacher:.3f}"
    )
    speedup, points = median(speedups), median(lost)
    name = "Student's images/s, as a multiple of its teacher's"
    yield Row(name, speedup, 2.0, speedup / 2.0, "", 1.0, None, note)
    name, met = "Points of balanced accuracy that it loses", points <= 1.0
    yield Row(name, points, 1.0, 1.0 if met else 1.0 / points, "", 1.0, None, "median of three seeds")
