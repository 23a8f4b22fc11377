"""What trainings leave that is only worth its time: activations and teachers' answers, of which the newest
stay."""

import shutil
from pathlib import Path

PREFIXES, TEACHERS = 3, 6  # that are kept


def tidy(state: Path) -> None:
    """Removes the older ones; who still reads one keeps it until it is closed."""
    for old in _older(state / "prefixes", "*.activations", PREFIXES):
        for suffix in (".json", ".activations", ".lock"):  # what says that it is whole goes first
            old.with_suffix(suffix).unlink(missing_ok=True)
    for old in _older(state / "teachers", "*", TEACHERS):
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)


def _older(folder: Path, pattern: str, kept: int) -> list[Path]:
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
    return found[:-kept]
