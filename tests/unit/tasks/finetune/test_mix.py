from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tasks.finetune.batches import Batch
from tasks.finetune.mix import mixed
from tasks.params.finetune import Augmentation


def batch(count: int = 8, size: int = 16, weight: Sequence[float] | None = None) -> Batch:
    """Sample i has one colour, 10 i, and class i."""
    x = torch.arange(count, dtype=torch.uint8).mul(10).view(-1, 1, 1, 1).expand(-1, 3, size, size)
    return Batch(
        x.contiguous(memory_format=torch.channels_last),
        torch.eye(count),
        torch.ones(count) if weight is None else torch.tensor(weight),
        torch.arange(count),
        torch.zeros(count, dtype=torch.int64),
    )


def partners(found: Batch) -> list[tuple[float, int]]:
    """Of each sample its own share and the other sample's number."""
    pairs = []
    for row, y in enumerate(found.y):
        others = [other for other in y.nonzero().flatten().tolist() if other != row]
        pairs.append((float(y[row]), others[0] if others else row))
    return pairs


def is_mixup(found: Batch) -> bool:
    """Whether each image still has one colour."""
    return all(len(image.unique()) == 1 for image in found.x)


def test_mixed__without_a_mix_is_the_batch_itself() -> None:
    given = batch()
    assert mixed(given, ["hflip", "crop"], 0, 0) is given


def test_mixup__mixes_pixels_and_targets_by_the_same_share() -> None:
    for step in range(20):
        found = mixed(batch(), ["mixup"], 0, step)
        assert found.x.dtype == torch.uint8
        assert found.x.is_contiguous(memory_format=torch.channels_last)
        for row, (share, other) in enumerate(partners(found)):
            wanted = share * 10 * row + (1 - share) * 10 * other
            assert (found.x[row].float() - wanted).abs().max() <= 0.5 + 1e-4  # rounded
        assert torch.allclose(found.y.sum(1), torch.ones(8))


def test_cutmix__mixes_targets_by_the_area_that_is_left() -> None:
    shares = []
    for step in range(30):
        found = mixed(batch(), ["cutmix"], 0, step)
        for row, (share, _) in enumerate(partners(found)):
            left = (found.x[row, 0] == 10 * row).float().mean()
            assert share == pytest.approx(float(left), abs=1e-6)
        changed = found.x[:, 0] != batch().x[:, 0]  # [B, H, W]
        for image in changed[changed.flatten(1).any(1)]:  # a box, the same for all
            assert torch.equal(image, image.any(1)[:, None] & image.any(0)[None])
            assert torch.equal(image, changed.any(0))
        assert found.x.is_contiguous(memory_format=torch.channels_last)
        shares.append(min(share for share, _ in partners(found)))
    assert min(shares) < 0.5 < 0.9 < max(shares)  # boxes of all sizes


def test_mixed__pairs_are_a_permutation() -> None:
    for step in range(10):
        pairs = partners(mixed(batch(), ["mixup"], 0, step))
        assert sorted(other for _, other in pairs) == list(range(8))
        assert len({round(share, 5) for share, other in pairs if share < 1}) <= 1  # one share a batch


def test_mixed__depends_on_seed_and_step_alone() -> None:
    names: list[Augmentation] = ["cutmix", "mixup"]
    torch.manual_seed(0)
    first = mixed(batch(), names, 3, 5)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = mixed(batch(), ["mixup", "hflip", "cutmix"], 3, 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.y, again.y)
    for seed, step in [(3, 6), (4, 5), (5, 3)]:
        assert not torch.equal(mixed(batch(), names, seed, step).y, first.y)


def test_mixed__takes_one_of_two_as_often() -> None:
    found = [mixed(batch(), ["mixup", "cutmix"], 0, step) for step in range(100)]
    assert 30 <= sum(is_mixup(one) for one in found) <= 70  # of 100, with a standard deviation of 5


def test_mixed__leaves_the_given_batch_as_it_was() -> None:
    given = batch()
    for step in range(5):
        mixed(given, ["mixup", "cutmix"], 0, step)
    assert torch.equal(given.x, batch().x)
    assert torch.equal(given.y, batch().y)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixed__loss_is_the_weighted_mixture_of_both_losses(name: Augmentation) -> None:
    weight = [0.0, 0.0, 1.0, 2.0, 0.5, 3.0, 0.0, 1.0]  # two without a label meet, too
    logits = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).log_softmax(1)

    def losses(y: Tensor, w: Tensor) -> Tensor:
        return -w * (y * logits).sum(1)

    for step in range(20):
        # The same pairs and share as with equal weights, from which they are read.
        pairs = partners(mixed(batch(), [name], 0, step))
        share = torch.tensor([one for one, _ in pairs])
        other = torch.tensor([one for _, one in pairs])
        given, found = batch(weight=weight), mixed(batch(weight=weight), [name], 0, step)
        wanted = share * losses(given.y, given.weight)
        wanted += (1 - share) * losses(given.y[other], given.weight[other])
        assert torch.isfinite(found.y).all()
        torch.testing.assert_close(losses(found.y, found.weight), wanted)


def test_mixed__of_one_sample_is_itself() -> None:
    given = batch(1)
    for step in range(4):
        found = mixed(given, ["mixup", "cutmix"], 0, step)
        assert torch.equal(found.x, given.x)
        torch.testing.assert_close(found.y, given.y)
