"""Content-addressed results of stages: a stage with the same inputs, parameters and code is run
once, and a folder that exists is complete."""

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from pydantic import BaseModel

from tasks.errors import RegraftError
from tasks.records import Record, StageRecord, digest_of

R = TypeVar("R", bound=StageRecord)


@lru_cache
def code_digest() -> str:
    """Hex SHA-256 over the source of the `tasks` package, its templates included, and the versions of
    the libraries that compute results."""
    root = Path(__file__).parent
    sources = hashlib.sha256()
    for file in sorted(file for file in root.rglob("*") if file.suffix in (".py", ".jinja", ".css")):
        sources.update(f"{file.relative_to(root)}\0".encode())
        sources.update(hashlib.sha256(file.read_bytes()).digest())
    for library in ("numpy", "pandas", "pillow", "pyarrow", "scikit-learn", "scipy", "torch"):
        sources.update(f"{library} {importlib.metadata.version(library)}\0".encode())
    return sources.hexdigest()


def stage_key(stage: str, *inputs: BaseModel | str | int | None) -> str:
    """Names the result of a stage by its inputs (records by their identity), parameters and code."""
    parts = [part.identity if isinstance(part, Record) else part for part in inputs]
    return digest_of(stage, code_digest(), *parts)[:32]


def build_once(folder: Path, record: type[R], build: Callable[[Path], R]) -> R:
    """The record in `folder`; where there is none, `build` makes one in a temporary folder, which
    then takes the name `folder` in one step. Two builders at once both succeed; one result stays.
    """
    if (folder / "record.json").exists():
        return record.load(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name[:8]}-", dir=folder.parent))
    try:
        build(made).save()
        sync_tree(made)
        try:
            made.rename(folder)
        except OSError:
            if not (folder / "record.json").exists():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return record.load(folder)


def build_anew(folder: Path, record: type[R], build: Callable[[Path], R]) -> R:
    """Like `build_once`, but builds also where there is a record. That one stays if the new one has
    its digest; it gives way if the new one has another, or can't be built for a reason of ours."""
    fresh = folder.with_name(f"{folder.name}-{uuid4().hex[:8]}")
    old = fresh.with_name(f"{fresh.name}-old")
    try:
        digest = build_once(fresh, record, build).digest
        if not (folder / "record.json").exists() or record.load(folder).digest != digest:
            _move(folder, old)
            _move(fresh, folder)
    except RegraftError:
        _move(folder, old)
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return build_once(folder, record, build)


def _move(folder: Path, to: Path) -> None:
    with suppress(OSError):  # there is none, or another builder was quicker
        folder.rename(to)


def sync_tree(folder: Path) -> None:
    """Flushes all files of `folder` to the disk."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
