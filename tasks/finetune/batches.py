"""Batches in an order that the seed and the epoch give: any of them can be made without those before
it, on any number of workers and processes.

Legend: N samples, B samples of a batch (of one process), K outputs, S side of the crop in px.
"""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tasks.errors import RegraftError
from tasks.finetune.images import Images, threads
from tasks.finetune.views import Views

_ORDER = 1  # of the streams of random numbers that a seed gives, the one of the order
_REPEATED = 1_000_000  # views between those of a sample that is drawn twice in an epoch


@dataclass(frozen=True)
class Batch:
    """Samples as a step sees them."""

    x: Tensor  # uint8 [B, 3, S, S], channels last in memory; or activations, float [B, ...]
    y: Tensor  # targets, float32 [B, K], see `losses.targets`
    weight: Tensor  # in the loss, float32 [B]; 0 where a sample has no label
    rows: Tensor  # of the samples, int64 [B]
    views: Tensor  # number of each sample's view, int64 [B]

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device; from pinned memory the copy goes on while the host does."""
        return Batch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))

    def pin_memory(self) -> "Batch":
        """In memory that a GPU reads by itself; `DataLoader` calls it."""
        return Batch(*(getattr(self, field.name).pin_memory() for field in fields(self)))


class Batches:
    """The batches of one process, which takes the rows `rank::world` of each."""

    def __init__(
        self,
        images: Images,
        digests: Sequence[str],
        targets: Tensor,
        weight: Tensor,
        views: Views,
        *,
        batch: int,
        seed: int,
        sampling: Tensor | None = None,
        cached_views: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ) -> None:
        """
        Args:
            digests: of the samples [N].
            targets: [N, K].
            weight: of each sample in the loss [N].
            batch: samples in a batch of all processes together.
            sampling: weight by which each sample is drawn, with replacement [N]; None: each once.
            cached_views: an epoch sees view `epoch` of a sample, or `epoch` modulo this.
            workers: processes that make batches; 0: this one, with as many threads as torch has.
        """
        self.steps = -(-len(images) // batch)  # per epoch
        self._images, self._digests = images, digests
        self._targets, self._weight, self._views = targets, weight, views
        self._seed, self._sampling, self._cached = seed, sampling, cached_views
        self._rank, self._world, self._workers = rank, world, workers

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (from 0), from number `start` on.

        Raises:
            DataError: a sample's file vanished or changed.
        """
        made = _Epoch(self, *self.drawn(epoch))
        if self._workers == 0:
            with threads() as pool:
                for number in range(start, self.steps):
                    yield made.batch(number, pool)
            return
        loader = DataLoader(
            made,
            batch_size=None,  # an item is a batch
            sampler=range(start, self.steps),
            num_workers=self._workers,
            pin_memory=torch.cuda.is_available(),
            # Forked workers share the images that are held; others would each get a copy.
            multiprocessing_context="fork" if sys.platform == "linux" else None,
            generator=torch.Generator(),  # else it draws from that of the training steps
        )
        for item in loader:
            if isinstance(item, RegraftError):
                raise item
            yield item

    def drawn(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The samples of an epoch in their order, and the number of each one's view, int64 [N].

        A sample that is drawn again is another view each time.
        """
        rows = order(len(self._images), self._seed, epoch, self._sampling)
        earlier = _earlier(rows)
        if self._cached:
            return rows, (epoch + earlier) % self._cached
        return rows, epoch + earlier * _REPEATED

    def part(self, number: int) -> Tensor:
        """The places in an epoch's order that batch `number` of this process takes, int64 [B].

        Batches are as large as each other, but for one sample: a last one of few would be a step as long as
        any on the word of these, and batch normalisation can't be trained on one.
        """
        count = len(self._images)
        start, end = (at * count // self.steps for at in (number, number + 1))
        # Where there are fewer samples than processes, it goes on at the beginning.
        end = max(end, start + self._world)
        return torch.arange(start + self._rank, end, self._world) % count

    def batch(self, rows: Tensor, views: Tensor, pool: Executor | None = None) -> Batch:
        """Some samples and the numbers of their views [B], by the threads of `pool`."""
        size = self._views.size
        x = torch.empty((len(rows), size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)

        def cut(place: int, row: int, number: int) -> None:
            x[place] = self._views(self._images[row], self._digests[row], number)

        run = map if pool is None else pool.map
        list(run(cut, range(len(rows)), rows.tolist(), views.tolist()))
        return self.of(x, rows, views)

    def of(self, x: Tensor, rows: Tensor, views: Tensor) -> Batch:
        """Samples [B] as `x` shows them."""
        return Batch(x, self._targets[rows], self._weight[rows], rows, views)


def order(count: int, seed: int, epoch: int, sampling: Tensor | None) -> Tensor:
    """The samples of an epoch, int64 [N]: each once, or drawn with replacement by the weights [N]."""
    random = np.random.default_rng((seed, epoch, _ORDER))
    if sampling is None:
        return torch.from_numpy(random.permutation(count))
    weights = sampling.double().numpy()
    return torch.from_numpy(random.choice(count, count, p=weights / weights.sum()))


def _earlier(rows: Tensor) -> Tensor:
    """How often each of [N] occurs before its place."""
    found, places = rows.sort(stable=True)
    earlier = torch.empty_like(rows)
    earlier[places] = torch.arange(len(rows)) - torch.searchsorted(found, found)
    return earlier


class _Epoch(Dataset[Batch | RegraftError]):
    """Number of a batch -> the batch, of one epoch."""

    def __init__(self, batches: Batches, rows: Tensor, views: Tensor) -> None:
        self._batches, self._rows, self._views = batches, rows, views

    def batch(self, number: int, pool: Executor | None = None) -> Batch:
        part = self._batches.part(number)
        return self._batches.batch(self._rows[part], self._views[part], pool)

    def __getitem__(self, number: int) -> Batch | RegraftError:
        """As a worker gives it: what it raises would arrive with a trace in its message."""
        try:
            return self.batch(number)
        except RegraftError as error:
            return error
