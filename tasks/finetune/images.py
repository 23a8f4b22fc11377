"""The images that training goes through again and again, held decoded as far as memory allows."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import torch
from torch import Tensor

from tasks.data.image import BadImage
from tasks.embedding.sample import Sample, decoded
from tasks.errors import DataError
from tasks.finetune.views import resized
from tasks.records import Preprocess

_WAVE = 16  # images for each thread that are decoded before it is seen whether they fit


class Images:
    """N images, `resized`. Many threads may read them at once."""

    def __init__(
        self, samples: Sequence[Sample], preprocess: Preprocess, max_pixels: int, memory_bytes: int
    ) -> None:
        """Decodes the first images, on as many threads as torch has, until `memory_bytes` are full;
        the others are decoded again whenever they are asked for.

        Raises:
            DataError: a file vanished or changed since the manifest was made, or can't be decoded.
        """
        self._samples = tuple(samples)
        self._preprocess = preprocess
        self._max_pixels = max_pixels
        # [C, h, w], C = 1 of grey ones; those that resizing enlarges as they were before.
        self._held: list[Tensor] = []
        self._enlarged: set[int] = set()
        self._fill(memory_bytes)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, row: int) -> Tensor:
        """uint8 [3, h, w], the shorter side of `preprocess.resize`; not to be changed.

        Raises:
            DataError: as above.
        """
        if row >= len(self._held):
            image = resized(self._decoded(row), self._preprocess)
        elif row in self._enlarged:
            image = resized(self._held[row], self._preprocess)
        else:
            image = self._held[row]
        return image.expand(3, -1, -1)

    def _fill(self, memory_bytes: int) -> None:
        rows, free = range(len(self._samples)), memory_bytes
        wave = _WAVE * torch.get_num_threads()
        if memory_bytes <= 0:
            return
        with threads() as pool:
            for start in rows[::wave]:
                for image, enlarged in pool.map(self._load, rows[start : start + wave]):
                    free -= image.nbytes
                    if free < 0:
                        return
                    if enlarged:
                        self._enlarged.add(len(self._held))
                    self._held.append(image)

    def _load(self, row: int) -> tuple[Tensor, bool]:
        """What is held of an image, and whether it is yet to be enlarged."""
        image = self._decoded(row)
        result = resized(image, self._preprocess)
        return (image, True) if image.nbytes < result.nbytes else (result, False)

    def _decoded(self, row: int) -> Tensor:
        sample = self._samples[row]
        try:
            return decoded(sample, self._max_pixels)
        except BadImage as error:
            raise DataError(f"{sample.file}: {error}; it passed the audit, so run again") from None


@contextmanager
def threads() -> Iterator[Executor]:
    """As many threads as torch has, of which each computes by itself alone."""
    count = torch.get_num_threads()
    all_there = Barrier(count)

    def alone(_: int) -> None:
        torch.get_num_threads()  # a thread's first call takes over what was last set in any thread
        torch.set_num_threads(1)  # kept per thread
        all_there.wait()

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(alone, range(count)))
        torch.set_num_threads(count)  # of this thread, and of those that other libraries start
        yield pool
