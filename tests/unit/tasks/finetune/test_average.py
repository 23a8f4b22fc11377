from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from tasks.errors import FinetuneError
from tasks.finetune.average import Average, greedy_soup, interpolated


class Number(nn.Module):
    """A weight, a statistic and a counter."""

    statistic: Tensor
    counter: Tensor

    def __init__(self, weight: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight], dtype=dtype))
        self.register_buffer("statistic", torch.tensor(weight, dtype=dtype))
        self.register_buffer("counter", torch.tensor(int(weight)))

    def become(self, weight: float) -> None:
        with torch.no_grad():
            for tensor in self.state_dict().values():
                tensor.fill_(weight)


def test_average__of_the_first_steps_forgets_the_start_quickly() -> None:
    model = Number(100.0)
    average = Average(model, 0.999)
    model.become(10.0)
    average.update(model)  # decay (1 + 0) / (10 + 0) = 0.1: 0.1 x 100 + 0.9 x 10 = 19
    assert average.tensors()["weight"].item() == pytest.approx(19)
    model.become(8.0)
    average.update(model)  # decay (1 + 1) / (10 + 1) = 2 / 11: (2 x 19 + 9 x 8) / 11 = 10
    found = average.tensors()
    assert found["weight"].item() == pytest.approx(10)
    assert found["statistic"].item() == pytest.approx(10)
    assert (found["counter"].item(), found["counter"].dtype) == (8, torch.int64)
    assert average.updates == 2
    assert model.weight.item() == 8.0


def test_average__decay_ends_at_its_own() -> None:
    model = Number(0.0)
    average = Average(model, 0.5)
    average.load(average.tensors(), updates=1000)  # (1 + 1000) / (10 + 1000) = 0.99, more than 0.5
    model.become(8.0)
    average.update(model)
    assert average.tensors()["weight"].item() == 4.0


def test_average__goes_on_from_a_checkpoint_bit_for_bit() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    whole = Average(model, 0.9)
    other = Average(model, 0.9)
    for number in range(6):
        if number == 3:
            other = Average(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), 0.9)
            other.load({name: tensor.clone() for name, tensor in whole.tensors().items()}, 3)
        torch.manual_seed(number)
        model(torch.randn(5, 3))  # moves the statistics
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        whole.update(model)
        other.update(model)
    expected = whole.tensors()
    assert expected["1.num_batches_tracked"].item() == 6
    for name, tensor in other.tensors().items():
        assert torch.equal(tensor, expected[name]), name


def test_average__small_steps_of_bfloat16_are_not_lost() -> None:
    model = Number(256.0, torch.bfloat16)
    average = Average(model, 0.999)
    average.load(average.tensors(), 10**6)
    model.become(257.0 + 1)  # 256 + 0.001 x 2 is 256 in bfloat16
    for _ in range(10):
        average.update(model)
    assert average.tensors()["weight"].item() == pytest.approx(256 + 2 * (1 - 0.999**10), abs=1e-3)


def test_average__of_another_network_is_refused() -> None:
    with pytest.raises(FinetuneError, match=r"^bias: "):
        Average(nn.Linear(2, 3), 0.9).load(nn.Linear(2, 3, bias=False).state_dict(), 1)


def test_interpolated__lies_between() -> None:
    before, after = Number(2.0).state_dict(), Number(10.0).state_dict()
    found = interpolated(before, after, 0.25)  # 2 + 0.25 x 8
    assert (found["weight"].item(), found["statistic"].item(), found["counter"].item()) == (4.0, 4.0, 10)
    assert (before["weight"].item(), after["weight"].item()) == (2.0, 10.0)


def test_interpolated__ends_are_bit_for_bit() -> None:
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        before, after = {"w": torch.randn(1000).to(dtype)}, {"w": torch.randn(1000).to(dtype)}
        for part, end in ((0.0, before), (1.0, after)):
            found = interpolated(before, after, part)["w"]
            assert found.dtype == dtype
            assert torch.equal(found, end["w"])


def test_interpolated__other_shapes_are_refused() -> None:
    with pytest.raises(FinetuneError, match=r"^w: is missing or of another shape"):
        interpolated(
            {"w": torch.zeros(2), "v": torch.zeros(1)}, {"w": torch.zeros(3), "v": torch.zeros(1)}, 0.5
        )


def soup_of(weights: list[float], best_at: float) -> tuple[float, int, list[float]]:
    """The soup of one weight each, which is the better the nearer it is to `best_at`; and what was judged."""
    judged = []

    def judge(tensors: Mapping[str, Tensor]) -> float:
        judged.append(tensors["weight"].item())
        return -abs(judged[-1] - best_at)

    soup, count = greedy_soup([Number(weight).state_dict() for weight in weights], judge)
    return soup["weight"].item(), count, judged


def test_soup__takes_what_does_not_harm() -> None:
    # 4 is 1 off. (4 + 8) / 2 = 6 is as far from 5: taken. (4 + 8 + 30) / 3 = 14: not.
    # (4 + 8 + 3) / 3 = 5: taken.
    weight, count, judged = soup_of([4.0, 8.0, 30.0, 3.0], best_at=5.0)
    assert judged == pytest.approx([4, 6, 14, 5])
    assert weight == pytest.approx(5)
    assert count == 3


def test_soup__of_one_is_itself() -> None:
    assert soup_of([4.0], best_at=0.0)[:2] == (4.0, 1)
    assert soup_of([4.0, 100.0], best_at=4.0)[:2] == (4.0, 1)


def test_soup__score_that_is_no_number_keeps_a_candidate_out() -> None:
    candidates = [Number(weight).state_dict() for weight in (1.0, 3.0)]
    soup, count = greedy_soup(candidates, lambda tensors: 0.0 if tensors["weight"] == 1 else float("nan"))
    assert (soup["weight"].item(), count) == (1.0, 1)
