"""Batches that start from cached activations, instead of from images."""

from collections.abc import Iterator
from dataclasses import dataclass

from tasks.finetune.batches import Batch, Batches
from tasks.finetune.prefix import CachedPrefix


@dataclass(frozen=True)
class Prefixed:
    """The batches of `batches`, whose `x` are what enters the first trained unit."""

    batches: Batches
    cached: CachedPrefix

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return self.batches.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (from 0), from number `start` on."""
        rows, views = self.batches.drawn(epoch)
        for number in range(start, self.steps):
            part = self.batches.part(number)
            x = self.cached.batch(rows[part], views[part])
            yield self.batches.of(x, rows[part], views[part])
