"""What the entries of `dvc repro` share: the stages of the flow, as commands over fixed places.

The dataset is `data` (with `data.dvc`) in the working directory, as `regraft data checkout` leaves
it; each stage writes `.regraft/repro/<stage>` below it, as dvc.yaml says. The embedding cache is the
flow's.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from tasks.errors import RegraftError
from tasks.params import Params, load_params


def place(stage: str) -> Path:
    """Where the result of a stage lies."""
    return Path(".regraft", "repro", stage).resolve()


def fresh(stage: str) -> Path:
    """The same, empty."""
    folder = place(stage)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def stage(run: Callable[[Params], None]) -> None:
    """Runs a stage with the parameters of params.yaml; an error is one line."""
    try:
        run(load_params(Path("params.yaml")))
    except RegraftError as error:
        sys.exit(f"error: {error}")
