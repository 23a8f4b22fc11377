"""Content-addressed results of stages: a stage with the same inputs, parameters and code is run
once, and a folder that exists is complete."""

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from tasks.errors import RegraftError
from tasks.records import Record, StageRecord, digest_of

R = TypeVar("R", bound=StageRecord)


@lru_cache
def code_digest() -> str:
    """Hex SHA-256 over the source of the `tasks` package and the versions of the libraries that
    compute results."""
    root = Path(__file__).parent
    sources = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        sources.update(f"{file.relative_to(root)}\0".encode())
        sources.update(hashlib.sha256(file.read_bytes()).digest())
    for library in ("numpy", "pandas", "pillow", "pyarrow", "scikit-learn", "scipy", "torch"):
        sources.update(f"{library} {importlib.metadata.version(library)}\0".encode())
    return sources.hexdigest()


def stage_key(stage: str, *inputs: BaseModel | str | None) -> str:
    """Names the result of a stage by its inputs (records by their identity), parameters and code."""
    parts = [part.identity if isinstance(part, Record) else part for part in inputs]
    return digest_of(stage, code_digest(), *parts)[:32]


def build_once(folder: Path, record: type[R], build: Callable[[Path], R], anew: bool = False) -> R:
    """The record in `folder`; where there is none, `build` makes one in a temporary folder, which
    then takes the name `folder` in one step. Two builders at once both succeed; one result stays.

    Args:
        anew: build also where there is a record, which stays only if the new one has its digest.
    """
    if (folder / "record.json").exists() and not anew:
        return record.load(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name[:8]}-", dir=folder.parent))
    try:
        try:
            digest = build(made).save().digest
        except RegraftError:  # what is there no longer holds
            shutil.rmtree(folder, ignore_errors=True)
            raise
        sync_tree(made)
        if anew and (folder / "record.json").exists() and record.load(folder).digest != digest:
            folder.rename(made / "replaced")
        try:
            made.rename(folder)
        except OSError:
            if not (folder / "record.json").exists():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return record.load(folder)


def sync_tree(folder: Path) -> None:
    """Flushes all files of `folder` to the disk."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
