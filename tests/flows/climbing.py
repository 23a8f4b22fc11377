"""Commands that climb the ladder, on small data that a frozen network with random weights does not tell
apart well enough and a trained one does."""

import csv
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.flows.workplace import Workplace

FORK, KILL_AT = (Path(__file__).with_name(name) for name in ("fork.py", "kill_at.py"))
CLASSES = ("coarse", "fine")
PER_CLASS = 120
ADDED = 10  # of each class
SIDE = 32  # px
EPOCHS = 10
TAUGHT = 6  # epochs of a student

_LONG_S = 900.0  # on a machine that does much else

# That the frozen network misses, and the trained one does not.
FLOOR = 0.9
PARAMS = """
data: {{target: {target}, min_per_class: 1, validation_fraction: 0.3}}
embedding: {embedding}
head: {{kind: {kind}, strengths: [0.01, 0.1], folds: 2}}
evaluation:
  {{bootstrap: 100, baseline_samples: 0, learning_repeats: 0, robustness_samples: 0, latency_samples: 2}}
gate:
  {{metric: {metric}, floors: [{{metric: {metric}, limit: {limit}}}], margin: {margin}, min_test_samples: 10,
   max_miscalibration: null, max_robustness_loss: null, max_label_errors: null}}
finetune:
  {{epochs: {epochs}, batch: 16, learning_rate: 3.0e-3, trial_samples: 40, {finetune}}}
distill:
  {{weights: random, image_size: 32, learning_rate: 3.0e-3, epochs: {taught}, views: 2, margin: 0.2,
   {distill}}}
"""
NETWORK = "{backbone: 'timm:test_resnet', weights: random, image_size: 32}"
USUAL: dict[str, Any] = {
    "target": "class", "embedding": NETWORK, "kind": "logistic", "metric": "balanced_accuracy",
    "limit": FLOOR, "margin": 0.5, "epochs": EPOCHS, "taught": TAUGHT, "finetune": "when: auto",
    "distill": "student: ''",
}  # fmt: skip
# A floor that anything reaches; but not to be worse than the champion.
LOW: dict[str, Any] = {"limit": 0.3, "margin": 0.05}
STUDENT = "student: 'timm:test_resnet:0.5', min_speedup: 0.1, max_size: {size}, teachers: [{teachers}]"
WORTH = "when: auto, method: last_blocks, worth_per_point: 1000, price_per_hour: 0.01"
TINY: dict[str, Any] = {"epochs": 2, "finetune": "when: always"}


class Ended(NamedTuple):
    """A command that ended."""

    status: int
    out: str
    err: str

    @property
    def told(self) -> Any:
        assert self.status == 0, self.err
        return json.loads(self.out.splitlines()[-1])


# Data


def stripes(label: str, number: int) -> Image.Image:
    """Faint stripes in any direction on noise and a pattern of the image's own: those of one class are
    nearer to each other than those of the other."""
    noise = np.random.default_rng([CLASSES.index(label), number])
    y, x = np.mgrid[:SIDE, :SIDE]
    pixels = 128 + noise.normal(0, 15, (SIDE, SIDE, 3))
    for channel in range(3):
        across, down, phase = noise.uniform(-1, 1, 3)
        pixels[:, :, channel] += 30 * np.cos((across * x + down * y) * 0.2 + 4 * phase)
    angle, phase = noise.uniform(0, np.pi), noise.uniform(0, 2 * np.pi)
    frequency = 1.5 if label == "fine" else 1.2
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * frequency + phase)
    return Image.fromarray((pixels + 25 * wave[:, :, None]).clip(0, 255).astype(np.uint8))


def draw(folder: Path, per_class: int) -> Path:
    for label in CLASSES:
        (folder / label).mkdir(parents=True)
        for number in range(per_class):
            stripes(label, number).save(folder / label / f"{number:03}.png")
    return folder


def tabled(folder: Path, label: Callable[[str, int], object]) -> Path:
    """A table of the images of a new folder."""
    draw(folder, PER_CLASS)
    with (folder / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label"))
        rows.writerows(
            (f"{of}/{number:03}.png", label(of, number)) for of in CLASSES for number in range(PER_CLASS)
        )
    return folder / "table.csv"


# Runs


def adapt(place: Workplace, data: Path, name: str = "stripes", **values: Any) -> list[str]:
    params = place.params(PARAMS.format(**{**USUAL, **values}))
    return ["adapt", "--json", "--data", str(data), "--name", name, "--params", str(params)]


def run(place: Workplace, api_url: str, commands: Mapping[str, Sequence[str]]) -> dict[str, Ended]:
    """The commands one after another."""
    given = json.dumps(list(commands.values()))
    done = place.run(sys.executable, FORK, api_url, place.state, given=given, timeout_s=_LONG_S)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return {name: Ended(*json.loads(line)) for name, line in zip(commands, lines, strict=True)}


def climbs(place: Workplace, api_url: str) -> dict[str, Ended]:
    """From the first version on, one after another on one state."""
    data, grown = draw(place.root / "stripes", PER_CLASS), draw(place.root / "more", PER_CLASS + ADDED)
    never, fresh, pixels = "when: never", "when: always, seed: 7", "{backbone: 'regraft:pixels'}"
    commands = {
        "climbed": adapt(place, data),
        "again": adapt(place, data),
        "held": adapt(place, data, **LOW),
        "never": adapt(place, data, margin=0.05, finetune=never),
        "pixels": adapt(place, data, "pixels", embedding=pixels, limit=0.99),
        "pixels always": adapt(place, data, "pixels", embedding=pixels, finetune="when: always"),
        "student": adapt(place, data, distill=STUDENT.format(size=2, teachers="best")),
        "student kept": adapt(place, data, distill=STUDENT.format(size=0.01, teachers="best")),
        "grown": adapt(place, grown, distill=STUDENT.format(size=2, teachers="champion, '2'")),
        "unknown": adapt(place, data, finetune=fresh, distill=STUDENT.format(size=2, teachers="'99'")),
    }
    return run(place, api_url, commands)


def kills(place: Workplace, api_url: str) -> dict[str, Ended]:
    """A command that is killed while it trains, and when it has trained, then run plainly; a trial; and the
    other targets."""
    data = draw(place.root / "stripes", PER_CLASS)
    plain = adapt(place, data, finetune="when: auto, checkpoint_s: 1")
    traps = json.dumps([["tasks.finetune.task:append", 2], ["tasks.registry.training_run:finish", 1]])
    killed = place.run(sys.executable, KILL_AT, api_url, place.state, traps, *plain, timeout_s=_LONG_S)
    ended = [json.loads(line)[0] for line in killed.stdout.splitlines() if line.startswith("[")]
    assert ended == [-signal.SIGKILL, -signal.SIGKILL], killed.stdout + killed.stderr
    labels = tabled(place.root / "labels", lambda of, number: f"{of} | even" if number % 2 else of)
    sizes = tabled(place.root / "sizes", lambda of, number: CLASSES.index(of) * 5 + number / PER_CLASS)
    of_labels: dict[str, Any] = {"target": "labels", "kind": "multilabel", "metric": "macro_f1", "limit": 0.1}
    of_sizes: dict[str, Any] = {"target": "number", "kind": "ridge", "metric": "mae", "limit": 9, "margin": 9}
    commands = {
        "plain": plain,
        "tried": adapt(place, data, "tried", **LOW, finetune=WORTH),
        "labels": adapt(place, labels, "labels", **of_labels, **TINY),
        "number": adapt(place, sizes, "sizes", **of_sizes, **TINY),
    }
    return run(place, api_url, commands)
