"""What trainings leave that is only worth its time: activations, teachers' answers and packages, of which
the newest stay; and what was on its way when a process was killed."""

import shutil
import time
from pathlib import Path

PREFIXES, TEACHERS = 3, 6  # that are kept
_ABANDONED_S = 86_400.0  # no transfer takes so long


def tidy(state: Path) -> None:
    """Removes the older ones; who still reads one keeps it until it is closed."""
    for old in _older(state / "prefixes", "*.activations", PREFIXES):
        for suffix in (".json", ".activations", ".lock"):  # what says that it is whole goes first
            old.with_suffix(suffix).unlink(missing_ok=True)
    for name in ("teachers", "packages"):
        for old in _older(state / name, "[!.]*", TEACHERS):
            if old.is_dir():
                shutil.rmtree(old, ignore_errors=True)
    for left in (*state.glob(".checkpoint-*"), *state.glob("packages/.fetch-*")):
        if time.time() - left.stat().st_mtime > _ABANDONED_S:
            shutil.rmtree(left, ignore_errors=True)


def _older(folder: Path, pattern: str, kept: int) -> list[Path]:
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
    return found[:-kept]
