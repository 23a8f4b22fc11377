"""What teachers say of every view of every sample, computed once and kept on the disk.

    <folder>/outputs.f32    [N, V, K] float32: log-probabilities, logits, or numbers
    <folder>/features.f16   [N, V, D] float16: the teachers' embeddings, where they are wanted
    <folder>/chunks.jsonl   a line for each finished chunk of samples, with the SHA-256 of its bytes

N samples (each content once), V views, K outputs, D features. Whoever opens the folder computes every
chunk that has no line, or other bytes than its line says: a process may die, or the machine, at any time.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.embedding.cache import write_durably
from tasks.embedding.forward import threads
from tasks.errors import FinetuneError
from tasks.lock import locked

HELD_BYTES = 512 << 20  # of a table that a GPU keeps; a larger one is read from the disk, row by row
_WAITING = 2  # chunks for each thread that are computed ahead of what is written
_BLOCK = 1 << 22  # numbers that are looked at together, of a table on the disk
_LEAST_SPREAD = 1e-6
_GREATEST = float(np.finfo(np.float16).max)

Floats = NDArray[np.float32]
# From the numbers of some samples to their outputs [n, V, K], and features [n, V, D] or none.
Ask = Callable[[Sequence[int]], tuple[Floats, Floats | None]]


@dataclass(frozen=True)
class Layout:
    """Of the two tables."""

    samples: int  # N
    views: int  # V
    outputs: int  # K
    features: int  # D; 0: they are not kept
    chunk: int  # samples that are computed together

    @property
    def chunks(self) -> int:
        return -(-self.samples // self.chunk)

    def rows(self, chunk: int) -> range:
        """The samples of a chunk."""
        return range(chunk * self.chunk, min(self.samples, (chunk + 1) * self.chunk))

    @property
    def tables(self) -> tuple[tuple[str, type[np.float32] | type[np.float16], int], ...]:
        """Name, type and width of each file."""
        both = (("outputs.f32", np.float32, self.outputs), ("features.f16", np.float16, self.features))
        return both if self.features else both[:1]


class Answers:
    """The answers to some samples, which may come in any order and more than once."""

    def __init__(self, folder: Path, layout: Layout, places: Sequence[int]) -> None:
        self.layout = layout
        self._places = torch.tensor(places, dtype=torch.int64)  # row of a sample -> its number in the tables
        self._tables = [
            # Copy on write: torch takes no memory that is read-only.
            torch.from_numpy(
                np.memmap(folder / name, dtype, "c", shape=(layout.samples, layout.views, width))
            )
            for name, dtype, width in layout.tables
        ]
        self._held: dict[tuple[int, torch.device], Tensor] = {}

    def __len__(self) -> int:
        return len(self._places)

    def outputs(self, rows: Tensor, views: Tensor) -> Tensor:
        """[B, K] float32 of the views [B] of some samples [B], where these tensors are."""
        return self._of(0, rows, views)

    def features(self, rows: Tensor, views: Tensor) -> Tensor:
        """[B, D] float32, likewise; each feature has mean 0 and variance 1 over all samples and views."""
        if not self.layout.features:
            raise FinetuneError("the teacher's features were not kept; ask for them (distill.features > 0)")
        centre, spread = (one.to(rows.device) for one in self._standard)
        return (self._of(1, rows, views) - centre) / spread

    def _of(self, table: int, rows: Tensor, views: Tensor) -> Tensor:
        whole = self._tables[table]
        if rows.device.type != "cpu" and whole.nbytes <= HELD_BYTES:
            key = (table, rows.device)
            if key not in self._held:
                self._held[key] = whole.to(rows.device)
                self._held.setdefault((-1, rows.device), self._places.to(rows.device))
            return self._held[key][self._held[-1, rows.device][rows], views].float()
        try:
            found = whole[self._places[rows.cpu()], views.cpu()]
        except IndexError:
            raise FinetuneError(
                f"the teacher answered {self.layout.views} views of {len(self):,} samples; view"
                f" {int(views.max())} of sample {int(rows.max())} is none of them (distill.views)"
            ) from None
        return found.to(rows.device).float()

    @cached_property
    def _standard(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each feature, [D]."""
        table = self._tables[1].flatten(0, 1)  # [N V, D]
        total, squares = torch.zeros(2, table.shape[1], dtype=torch.float64)
        for some in torch.split(table, max(1, _BLOCK // table.shape[1])):
            exact = some.double()
            total += exact.sum(0)
            squares += exact.square().sum(0)
        mean = total / len(table)
        deviation = (squares / len(table) - mean.square()).clamp(min=0).sqrt()
        # A feature that never changes says nothing; it is 0 everywhere.
        return mean.float(), torch.where(deviation > _LEAST_SPREAD, deviation, 1.0).float()


def filled(
    folder: Path,
    layout: Layout,
    places: Sequence[int],
    ask: Ask,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Answers:
    """The answers in `folder`, which names all that they depend on; what is missing or damaged is computed.

    Of several processes on one machine one computes, and the others wait for it.

    Args:
        places: row of a sample -> its number, 0 to N - 1.
        ask: is called in as many threads as there are cores.
        progress: told how many samples of how many are done.

    Raises:
        FinetuneError: an answer is no number, or the disk is full.
    """
    with locked(folder / "lock"), _opened(folder, layout) as files:
        done = _finished(folder, layout, files)
        missing = [chunk for chunk in range(layout.chunks) if chunk not in done]
        finished = sum(len(layout.rows(chunk)) for chunk in done)
        with (folder / "chunks.jsonl").open("a", encoding="utf-8") as journal:
            for chunk, contents in _asked(layout, missing, ask):
                try:
                    for file, content, width in zip(files, contents, _widths(layout), strict=True):
                        _write(file, content, chunk * layout.chunk * width)
                    journal.write(_line(chunk, contents))
                    journal.flush()
                except OSError as error:
                    reason = f"the teacher's answers can't be written ({error.strerror})"
                    raise FinetuneError(f"{folder}: {reason}; make room and run again") from None
                finished += len(layout.rows(chunk))
                progress(finished, layout.samples)
    return Answers(folder, layout, places)


@contextmanager
def _opened(folder: Path, layout: Layout) -> Iterator[list[int]]:
    """The tables as file descriptors, each as long as it will be."""
    with ExitStack() as stack:
        files = []
        for (name, _, _), width in zip(layout.tables, _widths(layout), strict=True):
            file = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
            stack.callback(os.close, file)
            if os.fstat(file).st_size != layout.samples * width:
                os.ftruncate(file, layout.samples * width)
            files.append(file)
        yield files


def _widths(layout: Layout) -> list[int]:
    """Bytes of a sample in each table."""
    return [layout.views * width * np.dtype(dtype).itemsize for _, dtype, width in layout.tables]


def _finished(folder: Path, layout: Layout, files: Sequence[int]) -> set[int]:
    """The chunks whose bytes are those of their line; other lines are taken out."""
    journal = folder / "chunks.jsonl"
    text = journal.read_text(encoding="utf-8", errors="replace") if journal.exists() else ""
    good: dict[int, str] = {}
    for line in text.splitlines(keepends=True):
        try:
            chunk = int(json.loads(line)["chunk"])
        except (ValueError, KeyError, TypeError):  # the last line of a process that died
            continue
        if not 0 <= chunk < layout.chunks or chunk in good:
            continue
        rows = layout.rows(chunk)
        contents = [
            os.pread(file, len(rows) * width, rows.start * width)
            for file, width in zip(files, _widths(layout), strict=True)
        ]
        if line == _line(chunk, contents):
            good[chunk] = line
    if text != "".join(good.values()):
        write_durably(journal, "".join(good.values()).encode())
    return set(good)


def _line(chunk: int, contents: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return json.dumps({"chunk": chunk, "sha256": digest.hexdigest()}) + "\n"


def _asked(layout: Layout, chunks: Sequence[int], ask: Ask) -> Iterator[tuple[int, list[bytes]]]:
    """Each chunk with the bytes of its tables, as they get ready."""
    left = iter(chunks)
    running: dict[Future[list[bytes]], int] = {}
    with ThreadPoolExecutor(threads()) as pool:
        try:
            while True:
                for chunk in islice(left, _WAITING * threads() - len(running)):
                    running[pool.submit(_bytes, layout, chunk, ask)] = chunk
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _bytes(layout: Layout, chunk: int, ask: Ask) -> list[bytes]:
    rows = layout.rows(chunk)
    contents = []
    for given, (name, dtype, width) in zip(ask(rows), layout.tables, strict=False):
        shape = (len(rows), layout.views, width)
        if given is None or given.shape != shape:
            raise ValueError(f"{name}: {None if given is None else given.shape} is not {shape}")
        if not np.isfinite(given).all():
            raise FinetuneError(
                f"the teacher answers some of samples {rows.start} to {rows.stop - 1} with what is no number;"
                " leave it out of distill.teachers"
            )
        # The few activations beyond the range of float16 are cut: a student can't match them anyway.
        kept = np.clip(given, -_GREATEST, _GREATEST) if dtype is np.float16 else given
        contents.append(np.ascontiguousarray(kept, dtype=dtype).tobytes())
    return contents


def _write(file: int, content: bytes, at: int) -> None:
    left = memoryview(content)
    while left:
        written = os.pwrite(file, left, at)
        left, at = left[written:], at + written
