"""The command line in processes of its own, on a small dataset of real images."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import conformal_clip_data
from mlflow.entities.model_registry import ModelVersion

from tasks.records import AdaptResult
from tasks.registry.tracking import connect
from tasks.settings import Settings

REGRAFT = Path(sys.executable).with_name("regraft")
CLASSES = ("global", "local", "nominal")
PER_CLASS = 60
# Two broken files of 182 are below the limit of 5 %.
BROKEN = ("local/empty.jpg", "nominal/cut.jpg")

PARAMS = """
data: {min_per_class: 1}
head: {strengths: [0.01, 0.1], folds: 2}
evaluation:
  {bootstrap: 200, baseline_samples: 40, learning_repeats: 1, robustness_samples: 4, latency_samples: 3}
gate:
  floors: [{metric: balanced_accuracy, limit: 0.3}, {metric: ece, limit: 0.9}]
  min_test_samples: 10
  margin: 0.5
  max_miscalibration: null
  max_robustness_loss: null
finetune: {when: never}
"""
# Another head, and a floor that no model reaches.
STRICT = PARAMS.replace("[0.01, 0.1]", "[0.02, 0.2]").replace("limit: 0.3}", "limit: 0.999}")


@dataclass(frozen=True)
class Workplace:
    """Where commands run: everything that they may touch lies in `root`."""

    root: Path

    def __post_init__(self) -> None:
        for folder in (self.cwd, self.home, self.temporary):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def data(self) -> Path:
        return self.root / "tiles"

    @property
    def cwd(self) -> Path:
        return self.root / "cwd"

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    @property
    def settings(self) -> Settings:
        return Settings(state=self.state)

    def environment(self, api_url: str | None = None) -> dict[str, str]:
        """This process's without what would lead elsewhere.

        Args:
            api_url: of a Prefect API that is up; without it a command starts its own, which takes
                seconds.
        """
        ours = ("REGRAFT_", "PREFECT_", "MLFLOW_", "XDG_", "MPL")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        api = {"PREFECT_API_URL": api_url} if api_url else {}
        # To convert the network and measure it takes seconds; test_builtin does.
        forward = {"REGRAFT_FORWARD": "torch"}
        return {**kept, "HOME": str(self.home), "TMPDIR": str(self.temporary), **forward, **api}

    def params(self, text: str) -> Path:
        file = self.root / f"{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
        file.write_text(text)
        return file

    def run(
        self,
        *command: str | Path,
        given: str | None = None,
        api_url: str | None = None,
        timeout_s: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(part) for part in command],
            input=given,
            cwd=self.cwd,
            env=self.environment(api_url),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def regraft(self, *arguments: str | Path, api_url: str | None = None) -> subprocess.CompletedProcess[str]:
        """The command line, with this state folder."""
        return self.run(REGRAFT, *arguments, "--state", self.state, api_url=api_url)

    def adapt(self, text: str = PARAMS, api_url: str | None = None) -> dict[str, Any]:
        """`regraft adapt --json` on the dataset; what it printed."""
        arguments = ("--data", self.data, "--params", self.params(text))
        done = self.regraft("adapt", "--json", *arguments, api_url=api_url)
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return told

    def versions(self) -> dict[str, ModelVersion]:
        """Number -> version in the registry, with its aliases."""
        client = connect(self.settings)
        found = client.search_model_versions(f"name = '{self.data.name}'")
        return {str(v.version): client.get_model_version(v.name, str(v.version)) for v in found}

    def aliases(self) -> dict[str, str]:
        """Alias -> number."""
        return {
            alias: number for number, version in self.versions().items() for alias in list(version.aliases)
        }


@dataclass(frozen=True)
class Done:
    """A command that ran, and what the registry held then."""

    told: dict[str, Any]
    result: AdaptResult
    aliases: Mapping[str, str]
    versions: tuple[str, ...]


def images(label: str) -> list[Path]:
    return sorted((Path(str(conformal_clip_data.textile_simulated_root())) / label).iterdir())


def add_images(data: Path, label: str, first: int, last: int) -> None:
    (data / label).mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(images(label)[first:last], first):
        shutil.copyfile(file, data / label / f"{number:04}.jpg")


def make_dataset(data: Path) -> None:
    """60 images of each class, and two broken files."""
    for label in CLASSES:
        add_images(data, label, 0, PER_CLASS)
    (data / BROKEN[0]).write_bytes(b"")
    (data / BROKEN[1]).write_bytes(images("nominal")[500].read_bytes()[:2000])


def content(folder: Path) -> dict[str, str]:
    """Path -> digest of every file below a folder."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def seen(place: Workplace, told: dict[str, Any]) -> Done:
    return Done(told, AdaptResult.model_validate(told), place.aliases(), tuple(sorted(place.versions())))
