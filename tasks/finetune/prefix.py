"""The network cut before the first unit that is trained: what lies before is computed once for each view
of each sample, and training starts from there.

What is cached are the tensors that enter the unit, in two files of a folder: `<digest>.activations`, rows
of raw numbers, and `<digest>.json`, which says what they are and how many of them are whole. It is
written after those, chunk by chunk, so a run that is killed carries on, and what was half written is
computed again.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from tasks.embedding.source import decoding, library_of
from tasks.errors import FinetuneError
from tasks.finetune.cut import Prefix, Suffix, noise, split
from tasks.lock import locked
from tasks.records import digest_of

__all__ = ["CachedPrefix", "Pictures", "Prefix", "Suffix", "View", "split"]

VERSION = 1  # raise it when the same inputs give other activations
CHUNK_BYTES = 64 << 20  # of activations that a killed run loses at most

View = Callable[[Tensor, str, int], Tensor]  # uint8 [3, h, w], digest, number to uint8 [3, S, S]


class Pictures(Protocol):
    """Decoded images, uint8 [3, h, w] each."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Tensor: ...


class CachedPrefix:
    """The activations of K views of N samples, in a file in `folder`. Several processes may ask for it
    at once."""

    def __init__(
        self,
        folder: Path,
        prefix: Prefix,
        *,
        weights: str,
        augment: Sequence[str],
        seed: int,
        views: int,
        digests: Sequence[str],
        precision: Literal["float32", "bfloat16"],
        batch: int | None = None,
    ) -> None:
        """
        Args:
            weights: digest of the backbone's weights.
            augment: names of what changes the images; seed: of that.
            views: K.
            digests: of the N samples.
            precision: of the forward pass, and of what is kept.
            batch: crops in a forward pass; the results hardly depend on it. None: as suits the device.
        """
        self._prefix, self._digests, self._views = prefix, tuple(digests), views
        self._precision = precision
        self._device = next(prefix.model.parameters()).device
        self._batch = batch or (16 if self._device.type == "cpu" else 64)
        with self._autocast():
            one = prefix(noise(prefix.model)[:1])
        self.shape = tuple(one.shape[1:])  # of an activation
        self._dtype = np.dtype(np.float32 if precision == "float32" else np.int16)  # bfloat16: its bits
        how = prefix.model.preprocess
        name = prefix.model.name
        self.digest = digest_of(
            *(f"prefix {VERSION}", decoding(), library_of(name), name, weights, prefix.unit, how),
            *(list(augment), seed, views, list(digests), precision),
        )
        self._file = folder / f"{self.digest[:32]}.activations"
        self._description = self._file.with_suffix(".json")
        self._map: np.memmap[Any, Any] | None = None

    @property
    def bytes(self) -> int:
        """Of the whole file."""
        return self._count * self._dtype.itemsize * int(np.prod(self.shape))

    @property
    def _count(self) -> int:
        return len(self._digests) * self._views

    @torch.inference_mode()
    def fill(
        self, images: Pictures, views: View, progress: Callable[[int, int], None] = lambda done, of: None
    ) -> None:
        """Computes what is missing.

        Args:
            images: the samples, in the order of their digests.
            views: view v of an image, a function of image, digest and v alone.
            progress: called with the number of views that are done, and that there are.

        Raises:
            FinetuneError: the disk is too small.
        """
        # Whoever comes second waits, and finds it filled.
        with locked(self._file.with_suffix(".lock")):
            done = self._done()
            if done < self._count:
                self._continue(images, views, progress, done)
            self._map = np.memmap(self._file, self._dtype, "r", shape=(self._count, *self.shape))

    def batch(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """The activations of samples `rows` int64 [B] in their views `numbers` int64 [B]: [B, ...], in
        the precision that they are kept in.

        Raises:
            FinetuneError: they are not filled, or there is no such view.
        """
        if self._map is None:
            raise FinetuneError(f"{self._file}: cached views are read before they are filled")
        if not bool(((numbers >= 0) & (numbers < self._views)).all()):
            raise FinetuneError(
                f"{self._file}: holds the views 0 to {self._views - 1}, not {numbers.tolist()}"
            )
        found = torch.from_numpy(np.asarray(self._map[(rows * self._views + numbers).numpy()]))
        return found if self._precision == "float32" else found.view(torch.bfloat16)

    def _continue(
        self, images: Pictures, views: View, progress: Callable[[int, int], None], done: int
    ) -> None:
        self._make_room(done)
        kept = np.memmap(self._file, self._dtype, "r+", shape=(self._count, *self.shape))
        written, chunk = done, max(self._batch, CHUNK_BYTES * self._count // max(1, self.bytes))
        for crops in self._crops(images, views, done):
            with self._autocast():
                crops = crops.to(self._device).contiguous(memory_format=torch.channels_last)
                found = self._prefix(crops).to("cpu")
            kept[done : done + len(crops)] = self._stored(found)
            done += len(crops)
            if done - written >= chunk or done == self._count:
                kept.flush()
                self._describe(done)
                written = done
            progress(done, self._count)

    def _crops(self, images: Pictures, views: View, done: int) -> Iterator[Tensor]:
        """Batches [B, 3, S, S] from a place on: all views of a sample, then the next sample."""
        crops: list[Tensor] = []
        for row in range(done // self._views, len(self._digests)):
            image = images[row]
            for number in range(max(0, done - row * self._views), self._views):
                crops.append(views(image, self._digests[row], number))
                if len(crops) == self._batch:
                    yield torch.stack(crops)
                    crops = []
        if crops:
            yield torch.stack(crops)

    def _stored(self, activation: Tensor) -> np.ndarray[Any, Any]:
        if self._precision == "float32":
            return activation.float().numpy()
        return activation.to(torch.bfloat16).view(torch.int16).numpy()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._precision == "bfloat16")

    def _identity(self) -> dict[str, Any]:
        return {"digest": self.digest, "shape": list(self.shape), "precision": self._precision}

    def _done(self) -> int:
        """Activations that are whole."""
        try:
            values = json.loads(self._description.read_text(encoding="utf-8"))
            size = self._file.stat().st_size
        except (OSError, ValueError):
            return 0
        done = values.pop("done", 0) if isinstance(values, dict) else 0
        return done if values == self._identity() and size == self.bytes and done <= self._count else 0

    def _make_room(self, done: int) -> None:
        """The file at its full length; an unfinished one keeps what it has."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        if not done:
            self._description.unlink(missing_ok=True)
            self._file.unlink(missing_ok=True)
            free = shutil.disk_usage(self._file.parent).free
            if self.bytes > free:
                raise FinetuneError(
                    f"{self._file.parent}: {self._views} views of {len(self._digests):,} samples take"
                    f" {self.bytes / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free; lower"
                    " finetune.cached_views, or set it to 0"
                )
            with self._file.open("wb") as stream:
                stream.truncate(self.bytes)

    def _describe(self, done: int) -> None:
        part = self._description.with_suffix(".part")
        with part.open("w", encoding="utf-8") as stream:
            json.dump({**self._identity(), "done": done}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(self._description)
