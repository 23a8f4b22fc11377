from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.data.stack import row_digests
from tasks.embedding.sample import Sample
from tasks.errors import DataError
from tasks.finetune.batches import Batch, Batches, order
from tasks.finetune.images import Images
from tasks.finetune.views import Views
from tasks.records import Preprocess

HOW = Preprocess(resize=12, size=10, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
N = 11

Make = Callable[..., Batches]


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Rows of a stack of noise."""
    images = np.random.default_rng(0).integers(0, 256, (N, 16, 20, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    return [Sample(digest, tmp_path / "x.npy", row) for row, digest in enumerate(row_digests(images))]


@pytest.fixture
def make(samples: list[Sample]) -> Make:
    """Batches of 4 of all samples; further arguments are theirs."""

    def of(count: int = N, memory: int = 10**9, **arguments: object) -> Batches:
        used = samples[:count]
        values = {"batch": 4, "seed": 0, **arguments}
        return Batches(
            Images(used, HOW, 10**6, memory),
            [sample.digest for sample in used],
            torch.eye(N)[:count],
            torch.arange(count) / 2,
            Views(["crop", "hflip", "colour"], HOW, 0),
            **values,  # type: ignore[arg-type]
        )

    return of


def same(a: Batch, b: Batch) -> bool:
    names = ("x", "y", "weight", "rows", "views")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def all_same(a: Iterator[Batch], b: Iterator[Batch]) -> bool:
    return all(same(*pair) for pair in zip(a, b, strict=True))


def rows(batches: Iterator[Batch]) -> list[int]:
    return torch.cat([batch.rows for batch in batches]).tolist()


# One process


def test_batches__an_epoch_has_each_sample_once(make: Make) -> None:
    batches = make()
    assert batches.steps == 3
    found = list(batches.epoch(0))
    assert [len(batch.rows) for batch in found] == [3, 4, 4]
    assert sorted(rows(iter(found))) == list(range(N))


def test_batches__hold_what_belongs_to_their_rows(make: Make, samples: list[Sample]) -> None:
    views, images = Views(["crop", "hflip", "colour"], HOW, 0), Images(samples, HOW, 10**6, 0)
    for batch in make().epoch(5):
        assert batch.x.shape == (len(batch.rows), 3, 10, 10)
        assert batch.x.dtype == torch.uint8
        assert batch.x.is_contiguous(memory_format=torch.channels_last)
        assert (batch.rows.dtype, batch.views.dtype) == (torch.int64, torch.int64)
        assert batch.views.tolist() == [5] * len(batch.rows)
        for place, row in enumerate(batch.rows.tolist()):
            assert torch.equal(batch.x[place], views(images[row], samples[row].digest, 5))
            assert batch.y[place, row] == 1
            assert batch.weight[place] == row / 2


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_batches__from_any_start_are_the_tail_of_the_epoch(make: Make, start: int) -> None:
    whole = list(make().epoch(2))
    assert all_same(make().epoch(2, start), iter(whole[start:]))


def test_batches__order_changes_with_epoch_and_seed(make: Make) -> None:
    first = rows(make().epoch(0))
    assert rows(make().epoch(0)) == first
    assert rows(make().epoch(1)) != first
    assert rows(make(seed=1).epoch(0)) != first


def test_batches__draw_nothing_from_the_generator_of_the_process(make: Make) -> None:
    before = torch.get_rng_state()
    for workers in (0, 2):
        list(make(workers=workers).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_batches__cached_views_come_round(make: Make) -> None:
    batches = make(cached_views=3)
    numbers = [{int(view) for batch in batches.epoch(epoch) for view in batch.views} for epoch in range(7)]
    assert numbers == [{0}, {1}, {2}, {0}, {1}, {2}, {0}]
    assert all_same(batches.epoch(1), make().epoch(1))


def test_batch__to_a_device_moves_everything(make: Make) -> None:
    batch = next(make().epoch(0))
    moved = batch.to("meta")
    assert {getattr(moved, name).device.type for name in ("x", "y", "weight", "rows", "views")} == {"meta"}
    assert same(batch.to("cpu"), batch)


# Workers and processes


@pytest.mark.parametrize("memory", [0, 10**9])
@pytest.mark.parametrize("workers", [1, 2])
def test_batches__of_workers_are_those_of_this_process(make: Make, workers: int, memory: int) -> None:
    assert all_same(make(workers=workers, memory=memory).epoch(3, 1), make().epoch(3, 1))
    batch = next(make(workers=workers).epoch(0))
    assert batch.x.is_contiguous(memory_format=torch.channels_last)


def test_batches__of_many_threads_are_those_of_one(make: Make) -> None:
    before = torch.get_num_threads()
    alone = list(make().epoch(0))
    try:
        torch.set_num_threads(4)
        assert all_same(make().epoch(0), iter(alone))
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches__sample_that_changed_is_named_in_one_line(
    make: Make, samples: list[Sample], workers: int
) -> None:
    batches = make(workers=workers, memory=0)
    np.save(samples[0].file, np.zeros((N, 16, 20, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=r"^[^\n]*x\.npy: changed during the run; run again$"):
        list(batches.epoch(0))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_batches__parts_of_all_processes_are_the_whole_batch(make: Make, world: int) -> None:
    parts = [make(rank=rank, world=world).epoch(1) for rank in range(world)]
    for whole, *some in zip(make().epoch(1), *parts, strict=True):
        for rank, part in enumerate(some):
            places = torch.arange(rank, len(whole.rows), world)
            if len(places):
                wanted = Batch(
                    whole.x[places],
                    whole.y[places],
                    whole.weight[places],
                    whole.rows[places],
                    whole.views[places],
                )
                assert same(part, wanted)


def test_batches__are_as_large_as_each_other_but_for_one_sample(make: Make) -> None:
    # 9 samples in batches of 4 are three of three, not two of four and one that stands for a step.
    assert [len(batch.rows) for batch in make(9).epoch(0)] == [3, 3, 3]


def test_batches__last_batch_wraps_round_to_give_every_process_a_sample(make: Make) -> None:
    # 5 samples in batches of 4: the first has two, for three processes.
    parts = [next(iter(make(5, rank=rank, world=3).epoch(0))).rows.tolist() for rank in range(3)]
    drawn = rows(make(5).epoch(0))
    assert parts == [[drawn[0]], [drawn[1]], [drawn[2]]]
    last = [list(make(2, rank=rank, world=3).epoch(0))[-1].rows.tolist() for rank in range(3)]
    drawn = rows(make(2).epoch(0))
    assert last == [[drawn[0]], [drawn[1]], [drawn[0]]]


def test_batches__fewer_samples_than_processes(make: Make) -> None:
    assert [rows(make(1, rank=rank, world=3).epoch(0)) for rank in range(3)] == [[0]] * 3


# Order


def test_order__is_a_permutation_of_seed_and_epoch() -> None:
    found = order(100, 7, 3, None)
    assert found.dtype == torch.int64
    assert sorted(found.tolist()) == list(range(100))
    assert torch.equal(found, order(100, 7, 3, None))
    assert not torch.equal(found, order(100, 3, 7, None))


def test_order__of_sampling_draws_by_the_weights() -> None:
    weights = torch.tensor([1.0, 0.0, 3.0]).repeat(1000)
    drawn = order(3000, 0, 0, weights)
    counts = torch.bincount(drawn % 3, minlength=3).tolist()
    assert counts[1] == 0
    assert counts[2] / 3000 == pytest.approx(0.75, abs=0.04)  # five standard deviations of .008
    assert len(set(drawn.tolist())) < 2000  # with replacement
    assert torch.equal(drawn, order(3000, 0, 0, weights))
    assert not torch.equal(drawn, order(3000, 0, 1, weights))


def views_of(batches: Batches, epoch: int) -> dict[int, list[int]]:
    """Sample -> the numbers of its views in an epoch."""
    found: dict[int, list[int]] = {}
    drawn: tuple[Tensor, Tensor] = batches.drawn(epoch)
    for row, view in zip(*(part.tolist() for part in drawn), strict=True):
        found.setdefault(row, []).append(view)
    return found


def test_batches__sample_that_is_drawn_again_is_another_view(make: Make) -> None:
    sampling = torch.tensor([5.0, 5.0] + [0.1] * (N - 2))
    found = views_of(make(sampling=sampling), 2)
    assert max(len(views) for views in found.values()) >= 3
    for views in found.values():
        assert views[0] == 2
        assert len(set(views)) == len(views)
    for row, views in views_of(make(sampling=sampling, cached_views=3), 2).items():
        assert views == [(2 + earlier) % 3 for earlier in range(len(found[row]))]
