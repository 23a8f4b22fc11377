import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from torch import Tensor

from tasks.errors import FinetuneError
from tasks.finetune.answers import Answers, Floats, Layout, filled
from tasks.finetune.batches import Batch
from tasks.finetune.distill import distillation, hint, matching
from tasks.params import DistillParams

LOGITS = torch.tensor([[1.0, -1.0, 0.5], [0.0, 2.0, 0.0]])
SAID = torch.tensor([[0.2, 0.1, -0.5], [1.0, 1.0, -2.0]])


def told(folder: Path, outputs: Tensor, features: Tensor | None = None) -> Answers:
    """A teacher's answers [N, K] to one view of N samples."""

    def ask(rows: Sequence[int]) -> tuple[Floats, Floats | None]:
        kept = None if features is None else features[list(rows), None].numpy()
        return outputs[list(rows), None].numpy(), kept

    width = 0 if features is None else features.shape[1]
    return filled(folder, Layout(len(outputs), 1, outputs.shape[1], width, 1), range(len(outputs)), ask)


def batch(y: Tensor, weight: Sequence[float]) -> Batch:
    rows = torch.arange(len(y))
    return Batch(torch.zeros(len(y)), y, torch.tensor(weight), rows, torch.zeros_like(rows))


def test_matching__classes_by_softened_divergence() -> None:
    p, q = softmax(SAID.double().numpy() / 3, axis=1), softmax(LOGITS.double().numpy() / 3, axis=1)
    expected = 9 * (p * np.log(p / q)).sum(axis=1)
    np.testing.assert_allclose(matching(LOGITS, SAID, "class", 3.0), expected, rtol=1e-4)


def test_matching__labels_by_the_cross_entropy_of_each_less_its_own() -> None:
    p, q = expit(SAID.double().numpy() / 2), expit(LOGITS.double().numpy() / 2)

    def entropy(of: Any) -> Any:
        return -(p * np.log(of) + (1 - p) * np.log(1 - of)).sum(axis=1)

    np.testing.assert_allclose(
        matching(LOGITS, SAID, "labels", 2.0), 4 * (entropy(q) - entropy(p)), rtol=1e-4
    )


def test_matching__numbers_by_the_squared_error() -> None:
    found = matching(torch.tensor([[3.0], [1.0]]), torch.tensor([[1.0], [1.0]]), "number", 5.0)
    assert found.tolist() == [4.0, 0.0]


@pytest.mark.parametrize("target", ["class", "labels", "number"])
def test_matching__is_nothing_where_both_agree(target: Any) -> None:
    said = SAID[:, :1] if target == "number" else SAID
    assert torch.allclose(matching(said, said, target, 4.0), torch.zeros(2), atol=1e-6)


def test_matching__gradient_keeps_its_size_when_it_is_hot() -> None:
    # Hinton et al., equation 4: of logits of mean 0, (z - v) / K at a high temperature, times T² / T².
    said = SAID - SAID.mean(1, keepdim=True)
    logits = (LOGITS - LOGITS.mean(1, keepdim=True)).double().requires_grad_()
    [gradient] = torch.autograd.grad(matching(logits, said.double(), "class", 1e4).sum(), logits)
    np.testing.assert_allclose(gradient, ((logits - said) / 3).detach(), atol=1e-3)


def test_distillation__labels_and_teacher_share_the_loss(tmp_path: Path) -> None:
    params = DistillParams(labels=0.25, temperature=2.0)
    objective = distillation(params, "class", told(tmp_path, SAID), features=5, seed=0)
    y = torch.eye(3)[[0, 2]]
    found = objective(LOGITS, torch.zeros(2, 5), batch(y, [1.0, 2.0]))
    true = -LOGITS.log_softmax(1)[[0, 1], [0, 2]]
    expected = 0.75 * matching(LOGITS, SAID, "class", 2.0) + 0.25 * torch.tensor([1.0, 2.0]) * true
    assert torch.allclose(found, expected)
    assert list(objective.parameters()) == []


def test_distillation__sample_without_a_label_learns_from_the_teacher_alone(tmp_path: Path) -> None:
    params = DistillParams(labels=0.25)
    objective = distillation(params, "class", told(tmp_path, SAID), features=5, seed=0)
    found = [
        objective(LOGITS, torch.zeros(2, 5), batch(torch.eye(3)[[label, label]], [0.0, 0.0]))
        for label in (0, 1)
    ]
    assert torch.equal(found[0], found[1])
    assert torch.allclose(found[0], 0.75 * matching(LOGITS, SAID, "class", 2.0))


def test_distillation__numbers_are_standardised_as_the_labels_are(tmp_path: Path) -> None:
    said = torch.tensor([[30.0], [10.0]])
    objective = distillation(
        DistillParams(labels=0.0), "number", told(tmp_path, said), features=5, seed=0, standard=(20.0, 10.0)
    )
    found = objective(torch.tensor([[1.0], [1.0]]), torch.zeros(2, 5), batch(torch.zeros(2, 1), [1.0, 1.0]))
    assert found.tolist() == [0.0, 4.0]  # the teacher says +1 and -1


def test_hint__is_the_mean_squared_error() -> None:
    assert hint(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])).tolist() == [(1 + 4) / 2]


def test_distillation__features_are_matched_through_a_projection_that_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = torch.randn(32, 5)
    theirs = own @ torch.randn(5, 4)
    said = torch.zeros(32, 3)
    params = DistillParams(labels=0.0, features=2.0)
    objective = distillation(params, "class", told(tmp_path, said, theirs), features=5, seed=0)
    assert {name: tuple(one.shape) for name, one in objective.state_dict().items()} == {
        "projection.weight": (4, 5),
        "projection.bias": (4,),
    }
    given = batch(torch.eye(3)[[0] * 32], [1.0] * 32)
    optimiser = torch.optim.Adam(objective.parameters(), lr=0.05)
    losses = []
    for _ in range(150):
        loss = objective(said, own, given).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 1
    assert losses[-1] < 0.01


def test_distillation__features_of_the_student_learn_too(tmp_path: Path) -> None:
    params = DistillParams(features=1.0)
    objective = distillation(params, "class", told(tmp_path, SAID, torch.eye(2)), features=5, seed=0)
    features = torch.randn(2, 5, requires_grad=True)
    loss = objective(LOGITS, features, batch(torch.eye(3)[[0, 1]], [1.0, 1.0])).sum()
    [gradient] = torch.autograd.grad(loss, features)
    assert (gradient.abs().sum(1) > 0).all()


def test_distillation__projection_is_by_the_seed_alone(tmp_path: Path) -> None:
    params, answers = DistillParams(features=1.0), told(tmp_path, SAID, torch.eye(2))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = distillation(params, "class", answers, features=5, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = distillation(params, "class", answers, features=5, seed=1).state_dict()
    other = distillation(params, "class", answers, features=5, seed=2).state_dict()
    assert torch.equal(first["projection.weight"], second["projection.weight"])
    assert not torch.equal(first["projection.weight"], other["projection.weight"])


def test_distillation__half_precision_changes_no_loss(tmp_path: Path) -> None:
    params = DistillParams(features=1.0)
    objective = distillation(params, "class", told(tmp_path, SAID, torch.eye(2)), features=5, seed=0)
    given = batch(torch.eye(3)[[0, 1]], [1.0, 1.0])
    features = torch.ones(2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        found = objective(LOGITS, features, given)
    assert found.dtype == torch.float32
    assert torch.equal(found, objective(LOGITS, features, given))


def test_distillation__features_that_were_not_kept_are_missed(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=r"distill\.features"):
        distillation(DistillParams(features=1.0), "class", told(tmp_path, SAID), features=5, seed=0)


def test_matching__class_that_the_teacher_rules_out_is_no_nan() -> None:
    found = matching(torch.zeros(1, 2), torch.tensor([[0.0, -50.0]]), "class", 1.0)
    assert found.item() == pytest.approx(math.log(2))
