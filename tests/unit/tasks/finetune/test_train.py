import copy
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from tasks.errors import FinetuneError
from tasks.finetune import losses
from tasks.finetune import train as loop
from tasks.finetune.answers import Answers, Layout, filled
from tasks.finetune.batches import Batch
from tasks.finetune.course import Weights
from tasks.finetune.distill import distillation
from tasks.finetune.prefix import CachedPrefix, split
from tasks.finetune.prefixed import Prefixed
from tasks.finetune.train import Preempted, weights_of
from tasks.finetune.views import Views
from tasks.params import DistillParams
from tests.unit.tasks.finetune.toy import (
    CLASSES,
    CPU,
    DIGESTS,
    HOW,
    STEPS,
    TRAIN,
    N,
    Noting,
    Stopping,
    Toy,
    attempts,
    batches,
    difference,
    network,
    objective,
    toy,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_train__learns_what_can_be_learned(tmp_path: Path, name: str) -> None:
    some = toy(tmp_path, network(name), epochs=5)
    some.model.eval()
    with torch.no_grad():
        loss, score = some.judge()
    assert (round(loss, 5), score) == (round(math.log(2), 5), 0.5)  # a head of zeros knows nothing
    trained = some.train()
    history = trained.course.history
    assert history[-1].loss < history[0].loss / 4
    assert history[-1].validation_loss < math.log(2) / 4
    assert (trained.chosen, trained.score) == ("last", 1.0)
    assert [(one.epoch, one.step) for one in history] == [(n, n * STEPS) for n in range(1, 6)]
    # The model is left as it was judged.
    some.model.eval()
    with torch.no_grad():
        assert some.judge() == (history[-1].validation_loss, history[-1].validation)
    assert [line.record for line in some.lines if line.kind == "epoch"] == history


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_train__learning_rates_follow_the_schedule_of_each_group(tmp_path: Path, optimiser: str) -> None:
    some = toy(
        tmp_path, epochs=2, layer_decay=0.5, learning_rate=1e-3, head_learning_rate=8e-3, warmup=0.34,
        optimiser=optimiser, weight_decay=0.1,
    )  # fmt: skip
    seen: list[dict[int, tuple[float, float]]] = []

    def note(of: torch.optim.Optimizer, *_: object) -> None:
        seen.append(
            {id(p): (g["lr"], g["weight_decay"]) for g in of.param_groups for p in g["params"]}
        )  # fmt: skip

    handle = register_optimizer_step_pre_hook(note)
    trained = some.train()
    handle.remove()
    # 2 of 6 steps warm up; then half a cosine: 1, (1 + cos 45°) / 2, 1/2, (1 + cos 135°) / 2.
    factors = [1 / 3, 2 / 3, 1, 0.8535534, 0.5, 0.1464466]
    named = dict(some.model.named_parameters())
    for name, peak, decay in [
        ("head.weight", 8e-3, 0.1),
        ("head.bias", 8e-3, 0),
        ("network.conv_head.weight", 1e-3, 0.1),
        ("network.bn2.weight", 1e-3, 0),
        ("network.conv_stem.weight", 1e-3 / 2**6, 0.1),  # six units are above it
    ]:
        assert [each[id(named[name])][0] for each in seen] == pytest.approx([peak * f for f in factors])
        assert {each[id(named[name])][1] for each in seen} == {decay}
    rates = [each.learning_rate for each in trained.course.history]
    assert rates == pytest.approx([1e-3, 1e-3 * 0.1464466])


def noted(some: Toy) -> list[Weights]:
    """The weights that are judged, in turn."""
    found: list[Weights] = []
    judge = some.judge

    def noting() -> tuple[float, float]:
        found.append(some.weights())
        return judge()

    some.judge = noting
    return found


def scripted(some: Toy, scores: list[float], losses: list[float] | None = None) -> list[Weights]:
    """As `noted`; validation says what is written here, in turn."""
    found: list[Weights] = []

    def judge() -> tuple[float, float]:
        found.append(some.weights())
        at = len(found) - 1
        return (losses[at] if losses else 1.0), scores[at]

    some.judge = judge
    return found


def test_train__gradual_unfreezes_from_the_top(tmp_path: Path) -> None:
    some = toy(tmp_path, method="gradual", epochs=4)
    seen = [some.weights(), *noted_while_trained(some)]
    changed = [
        {name for name in after if not torch.equal(before[name], after[name])}
        for before, after in itertools.pairwise(seen)
    ]
    assert changed[0] == {"head.weight", "head.bias"}
    # Of 7 units the k-th from the top in epoch ⌈2 k / 7⌉: three of them first.
    top = ("head.", "network.conv_head.", "network.bn2.", "network.blocks.4.", "network.blocks.3.")
    assert {name for name, _ in some.model.named_parameters() if name.startswith(top)} < changed[1]
    assert all(name.startswith(top) for name in changed[1])
    assert changed[2] == changed[3] == set(seen[0])


def noted_while_trained(some: Toy) -> list[Weights]:
    found = noted(some)
    some.train()
    return found


def test_train__patience_ends_with_the_weights_of_the_best_epoch(tmp_path: Path) -> None:
    some = toy(tmp_path, epochs=20, patience=2)
    # The loss does not fall below that of epoch 2; the score of the same epoch is the best.
    seen = scripted(some, [0.5, 0.9, 0.7, 0.8], [0.7, 0.5, 0.6, 0.55])
    trained = some.train()
    assert len(seen) == len(trained.course.history) == 4
    assert (trained.chosen, trained.score) == ("epoch 2", 0.9)
    assert difference(some.weights(), seen[1]) == 0
    assert difference(seen[1], seen[3]) > 1e-3


def test_train__loss_that_still_falls_has_no_end_before_the_last_epoch(tmp_path: Path) -> None:
    some = toy(tmp_path, epochs=4, patience=1)
    scripted(some, [0.5, 0.4, 0.3, 0.2], [0.7, 0.6, 0.5, 0.4])
    trained = some.train()
    assert (len(trained.course.history), trained.chosen) == (4, "epoch 1")


def test_train__average_of_the_steps_is_judged_and_taken(tmp_path: Path) -> None:
    some = toy(tmp_path, epochs=2, average=0.5)
    seen = noted(some)
    expected = {name: tensor.double() for name, tensor in some.weights().items()}
    taken = 0

    def update(*_: object) -> None:
        nonlocal taken
        decay = min(0.5, (1 + taken) / (10 + taken))
        taken += 1
        for name, tensor in some.weights().items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor
            else:
                expected[name] = tensor.double()

    handle = register_optimizer_step_post_hook(update)
    trained = some.train()
    handle.remove()
    assert taken == 2 * STEPS
    assert difference(some.weights(), expected) < 1e-6
    assert difference(seen[-1], some.weights()) == 0
    assert trained.score == trained.course.history[-1].validation


def test_train__average_does_not_change_the_training(tmp_path: Path) -> None:
    plain, averaged = toy(tmp_path / "plain"), toy(tmp_path / "averaged", average=0.9)
    assert [each.train().course.losses for each in (plain, averaged)] == [0, 0]
    (one, other) = (each.how.checkpoints.latest() for each in (plain, averaged))
    assert one is not None
    assert other is not None
    assert difference(one.part("model"), other.part("model")) == 0
    assert difference(one.part("model"), averaged.weights()) > 1e-3


@pytest.mark.parametrize(("of_two", "chosen"), [(0.8, "soup of 2"), (0.65, "last")])
def test_train__soup_is_taken_where_validation_gains(tmp_path: Path, of_two: float, chosen: str) -> None:
    some = toy(tmp_path, epochs=3, soup=2)
    # Three epochs; then the best one, and its mean with the second, which is judged again if it is taken.
    seen = scripted(some, [0.5, 0.6, 0.7, 0.7, of_two, of_two])
    trained = some.train()
    assert len(seen) == (6 if of_two == 0.8 else 5)
    assert (trained.chosen, trained.score) == (chosen, max(0.7, of_two))
    mean = {
        name: (seen[2][name] + tensor) / 2 if tensor.is_floating_point() else tensor
        for name, tensor in seen[1].items()
    }
    assert difference(some.weights(), mean if of_two == 0.8 else seen[2]) < 1e-6


@pytest.mark.parametrize(
    ("scores", "part"), [([0.6, 0.9, 0.8], 0.5), ([0.6, 0.7, 0.95], 0.75), ([0.1, 0.7, 0.2], 1)]
)
def test_train__interpolation_is_taken_where_validation_gains(
    tmp_path: Path, scores: list[float], part: float
) -> None:
    some = toy(tmp_path, epochs=1, interpolate=True)
    before = some.weights()
    seen = scripted(some, [0.7, *scores])
    trained = some.train()
    assert trained.chosen == ("last" if part == 1 else f"interpolated {part:g}")
    assert trained.score == max(0.7, *scores)
    expected = {
        name: (1 - part) * before[name] + part * tensor if tensor.is_floating_point() else tensor
        for name, tensor in seen[0].items()
    }
    assert difference(some.weights(), expected) < 1e-6


def test_train__interpolation_after_a_resumption_begins_where_training_began(tmp_path: Path) -> None:
    quiet = toy(tmp_path / "quiet", epochs=1, interpolate=True)
    scripted(quiet, [0.1, 0.2, 0.4, 0.3])
    quiet.train()

    def toys() -> Iterator[Toy]:
        while True:
            one = toy(tmp_path / "stopped", epochs=1, interpolate=True)
            scripted(one, [0.1, 0.2, 0.4, 0.3])
            yield one

    stopped, trained, _ = attempts(toys())
    assert trained.chosen == "interpolated 0.5"
    assert difference(stopped.weights(), quiet.weights()) == 0


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_train__parts_of_a_batch_are_the_same_step(tmp_path: Path, optimiser: str) -> None:
    found, calls = [], []
    for accumulate in (1, 4):
        # Batch statistics would differ; so would Adam's steps where a gradient is nothing but rounding.
        some = toy(
            tmp_path / str(accumulate), accumulate=accumulate, batch_norm="frozen", epochs=2,
            optimiser=optimiser, learning_rate=1e-4, head_learning_rate=1e-4,
        )  # fmt: skip
        nn.init.normal_(some.model.head.weight, generator=torch.Generator().manual_seed(0))
        before, seen = some.weights(), noted_batches(some)
        some.train()
        found.append(some.weights())
        calls.append([len(batch.rows) for batch in seen])
        assert difference(before, found[-1]) > 1e-4
    assert calls == [[8] * 6, [2] * 24]
    assert difference(*found) < 1e-5


def noted_batches(some: Toy) -> list[Batch]:
    """What the objective is given."""
    found: list[Batch] = []
    of = some.objective

    def noting(logits: Tensor, features: Tensor, batch: Batch) -> Tensor:
        assert logits.dtype == features.dtype == torch.float32
        found.append(batch)
        return of(logits, features, batch)

    some.objective = noting
    return found


def test_train__weights_of_samples_count(tmp_path: Path) -> None:
    """Those without weight leave the others theirs."""
    some = toy(tmp_path, epochs=1, batch=N, optimiser="sgd", batch_norm="frozen", clip=0, warmup=0)
    weight = torch.arange(N) % 4 // 2  # 0 0 1 1 ...
    source = batches(some.how.params)
    source._weight = weight.float()
    some.source = source
    gradients: list[Tensor] = []

    def note(*_: object) -> None:
        assert some.model.head.weight.grad is not None
        gradients.append(some.model.head.weight.grad.clone())

    handle = register_optimizer_step_pre_hook(note)
    model = copy.deepcopy(some.model)
    some.train()
    handle.remove()
    some_rows = weight.nonzero().flatten()
    rows, views = batches(some.how.params).drawn(0)
    views_of = dict(zip(rows.tolist(), views.tolist(), strict=True))
    view = Views(some.how.params.augment, HOW, 0)
    x = torch.stack([view(TRAIN[row], DIGESTS[row], views_of[row]) for row in some_rows.tolist()])
    y = losses.targets(TRAIN.y[some_rows.numpy()], CLASSES, "class")
    (losses.loss(model.eval()(x)[0], y, "class").sum() / N).backward()  # type: ignore[no-untyped-call]
    assert model.head.weight.grad is not None
    torch.testing.assert_close(gradients[0], model.head.weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_train__loss_that_is_no_number_ends_it(tmp_path: Path, broken: str) -> None:
    some = toy(tmp_path, warmup=0)
    calls = 0

    def failing(logits: Tensor, features: Tensor, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        found = objective(logits, features, batch)
        if calls <= 4:
            return found
        # The derivative of the square root at 0 is infinite, its value is not.
        return found * float("nan") if broken == "loss" else found + (0 * logits).square().sum().sqrt()

    some.objective = failing
    # Step 4 of 9: (1 + cos 80°) / 2 of the peak.
    what = "nan" if broken == "loss" else r"0\.\d+"
    with pytest.raises(
        FinetuneError, match=rf"^step 4: the loss is {what} and its gradient's norm nan at the learning rate"
        r" 0\.0059; lower finetune\.learning_rate",
    ):  # fmt: skip
        some.train()
    state = some.how.checkpoints.latest()
    assert state is not None
    assert state.step == STEPS  # of the epoch before
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.tensors.values())


@pytest.mark.parametrize("names", [("mixup",), ("cutmix",), ("hflip", "mixup", "cutmix")])
def test_train__batches_are_mixed(tmp_path: Path, names: tuple[str, ...]) -> None:
    some = toy(tmp_path, augment=names)
    seen = noted_batches(some)
    trained = some.train()
    y = torch.cat([batch.y for batch in seen])
    assert bool(((y > 0) & (y < 1)).any())
    torch.testing.assert_close(y.sum(1), torch.ones(len(y)))
    assert trained.course.history[-1].validation_loss < math.log(2)


def test_train__bfloat16_is_near_float32(tmp_path: Path) -> None:
    found = []
    for precision in ("float32", "bfloat16"):
        some = toy(tmp_path / precision, precision=precision, epochs=1, optimiser="sgd")
        noted_batches(some)  # which looks at the types
        found.append((some.train().course.history[0].loss, some.weights()))
    (loss, exact), (near, rough) = found
    assert 0 < abs(loss - near) < 0.02
    assert 0 < difference(exact, rough) < 0.05
    assert all(tensor.dtype != torch.bfloat16 for tensor in rough.values())


class Small(nn.Module):
    """A memory that holds three samples."""

    def __init__(self, model: nn.Module, seen: list[int]) -> None:
        super().__init__()
        self.model, self.seen = model, seen

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(len(x))
        found: tuple[Tensor, Tensor] = self.model(x)
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        return found


def test_train__short_memory_halves_the_batch_and_is_remembered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def made(name: str) -> Toy:
        return toy(tmp_path / name, batch_norm="frozen", optimiser="sgd", epochs=1, clip=0)

    quiet = made("quiet")
    quiet.train()
    some, seen = made("short"), cast(list[int], [])
    some.forward = Small(some.model, seen)
    with caplog.at_level(logging.WARNING):
        some.train()
    assert seen == [8, 4, *[2] * 4, *[2] * 4, *[2] * 4]  # two attempts, then three steps
    assert [record.message for record in caplog.records if "2 do: from now on" in record.message]
    assert some.how.fitting.parts == 4
    assert difference(some.weights(), quiet.weights()) < 1e-5  # no gradient counts twice
    # The next training knows.
    later, seen = made("short"), []
    later.how.checkpoints.clear()
    later.forward = Small(later.model, seen)
    later.train()
    assert seen == [2] * 12


Make = Callable[[Path], Toy]


def variant(**values: Any) -> Make:
    def make(folder: Path) -> Toy:
        options: dict[str, Any] = {} if values.get("method") == "lora" else {"drop_rate": 0.3}
        return toy(folder, network(**options), **{"epochs": 2, **values})

    return make


def sampled(folder: Path) -> Toy:
    some = toy(folder, epochs=2)
    some.source = batches(some.how.params, sampling=1.0 + torch.arange(N))
    return some


def with_cached_views(folder: Path) -> Toy:
    some = toy(folder, method="last_blocks", blocks=2, epochs=3, cached_views=2, augment=("crop", "hflip"))
    assert some.trainable.first is not None
    cut = split(some.model, some.trainable.first)
    assert cut is not None
    params = some.how.params
    cached = CachedPrefix(
        folder / "prefixes", cut[0], weights="w", augment=params.augment, seed=0, views=2, digests=DIGESTS,
        precision="float32",
    )  # fmt: skip
    cached.fill(TRAIN, Views(params.augment, HOW, 0))
    some.source, some.forward = Prefixed(batches(params), cached), cut[1]
    return some


def answers(folder: Path) -> Answers:
    def ask(rows: Any) -> tuple[Any, Any]:
        chance = [np.random.default_rng(row) for row in rows]
        said = np.stack([one.normal(size=(2, CLASSES)) for one in chance]).astype(np.float32)
        features = np.stack([one.normal(size=(2, 5)) for one in chance]).astype(np.float32)
        return said, features

    return filled(folder, Layout(N, 2, CLASSES, 5, 8), range(N), ask)


def distilled(folder: Path) -> Toy:
    some = toy(folder, epochs=2)
    some.source = batches(some.how.params, cached_views=2)
    some.objective = distillation(
        DistillParams(student="timm:x", features=1.0, labels=0.3), "class", answers(folder / "answers"),
        features=some.model.features, seed=0,
    )  # fmt: skip
    return some


VARIANTS: dict[str, Make] = {
    "adamw": variant(augment=("crop", "hflip", "colour")),
    "sgd": variant(optimiser="sgd", augment=("mixup", "cutmix")),
    "average": variant(average=0.9),
    "soup": variant(soup=2, interpolate=True),
    "patience": variant(patience=3),
    "gradual": variant(method="gradual", epochs=3),
    "lora": variant(method="lora", rank=2),
    "norm_only": variant(method="norm_only"),
    "accumulate": variant(accumulate=2),
    "sampling": sampled,
    "cached views": with_cached_views,
    "distillation": distilled,
}


def everything(some: Toy) -> Weights:
    """The model's weights, and the objective's own."""
    own = weights_of(some.objective) if isinstance(some.objective, nn.Module) else {}
    return some.weights() | {f"objective.{name}": tensor for name, tensor in own.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_train__stopped_after_each_step_is_the_quiet_run_bit_for_bit(tmp_path: Path, name: str) -> None:
    quiet = VARIANTS[name](tmp_path / "quiet")
    before = everything(quiet)
    expected = quiet.train()
    assert difference(before, everything(quiet)) > 1e-3
    if name == "distillation":
        assert not torch.equal(before["objective.projection.weight"], quiet_projection(quiet))

    def again() -> Iterator[Toy]:
        while True:
            some = VARIANTS[name](tmp_path / "stopped")
            torch.seed()  # as another process would have it
            yield some

    stopped, found, count = attempts(again())
    assert count == quiet.how.params.epochs * STEPS + 1  # the last one has the rest of the last epoch
    assert difference(everything(stopped), everything(quiet)) == 0
    assert (found.chosen, found.score) == (expected.chosen, expected.score)
    times = {"seconds", "samples_per_s"}
    assert [one.model_dump(exclude=times) for one in found.course.history] == [
        one.model_dump(exclude=times) for one in expected.course.history
    ]
    assert all(one.samples_per_s > 0 for one in found.course.history)


def quiet_projection(some: Toy) -> Tensor:
    return everything(some)["objective.projection.weight"]


def test_train__seed_changes_it(tmp_path: Path) -> None:
    found = []
    for seed in (0, 1):
        some = toy(tmp_path / str(seed), network(drop_rate=0.3), seed=seed, epochs=1)
        some.train()
        found.append(some.weights())
    assert difference(*found) > 1e-4


def test_train__checkpoints_of_another_training_are_refused(tmp_path: Path) -> None:
    toy(tmp_path, epochs=1).train()
    other = toy(tmp_path, epochs=1)
    other.how = replace(other.how, key="other")
    with pytest.raises(FinetuneError, match=r"checkpoints: holds checkpoints of another training; remove"):
        other.train()


class Failing(Noting):
    """A store that is away when the second checkpoint is to be saved."""

    def save(self, state: Any) -> None:
        if getattr(self, "steps", None) == [STEPS]:
            self.steps.append(-1)
            raise FinetuneError(f"{self.place}: checkpoints can't be written or read there (gone)")
        super().save(state)


def test_train__store_that_is_away_for_a_while_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quiet = toy(tmp_path / "quiet")
    quiet.train()
    some = toy(tmp_path / "failing")
    checkpoints = Failing(some.how.checkpoints.place, 2, cast(Any, None))
    some.how = replace(some.how, checkpoints=checkpoints)
    with caplog.at_level(logging.WARNING):
        some.train()
    assert [record.message for record in caplog.records] == [
        f"{checkpoints.place}: checkpoints can't be written or read there (gone); training goes on"
    ]
    assert checkpoints.steps == [STEPS, -1, 3 * STEPS]
    assert difference(some.weights(), quiet.weights()) == 0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time passes where a test says so."""
    made = Clock()
    monkeypatch.setattr(loop, "time", made)
    return made


def slow(some: Toy, clock: Clock, step_s: float, judged_s: float) -> Toy:
    of, judge = some.objective, some.judge

    def slowly(logits: Tensor, features: Tensor, batch: Batch) -> Tensor:
        clock.now += step_s
        return of(logits, features, batch)

    def judged() -> tuple[float, float]:
        clock.now += judged_s
        return judge()

    some.objective, some.judge = slowly, judged
    return some


def test_train__checkpoint_whenever_its_time_has_come(tmp_path: Path, clock: Clock) -> None:
    some = slow(toy(tmp_path, checkpoint_s=15, batch=2, epochs=2, keep=100), clock, 10, 0)
    some.train()
    # 12 steps an epoch: after 20 s each time, and at the end.
    assert cast(Noting, some.how.checkpoints).steps == [*range(2, 13, 2), 12, *range(14, 25, 2), 24]


def test_train__progress_is_reported_every_other_second(tmp_path: Path, clock: Clock) -> None:
    some = slow(toy(tmp_path, batch=2, epochs=1), clock, 0.75, 0)
    some.train()
    assert [(line.kind, line.step) for line in some.lines] == [
        *(("step", step) for step in (3, 6, 9, 12)),  # after 2.25 s each
        ("epoch", 12),
    ]
    assert some.lines[0].loss > 0
    assert some.lines[0].learning_rate == pytest.approx(1e-2 * (1 + math.cos(math.pi / 11)) / 2)


def test_train__seconds_of_all_attempts_are_counted_once(tmp_path: Path, clock: Clock) -> None:
    def made() -> Toy:
        some = slow(toy(tmp_path, epochs=2), clock, 1, 10)
        prepared = {"here": {"views": 5.0}} if clock.now < 3 else {"there": {"views": 7.0, "answers": 2.0}}
        some.how = replace(some.how, prepared=prepared)
        return some

    some = made()
    some.source = Stopping(some.source, some.how.stop, 2)
    with pytest.raises(Preempted):
        some.train()
    clock.now += 1000  # nobody trained
    some = made()
    some.source = Stopping(some.source, some.how.stop, 1)  # the rest of the epoch, which is not judged yet
    with pytest.raises(Preempted):
        some.train()
    clock.now += 1000
    course = made().train().course
    assert [one.seconds for one in course.history] == [3, 3]
    assert course.history[0].samples_per_s == N / 3
    assert course.seconds == 2 * (3 * 1 + 10)
    assert (course.prepared_s("views"), course.prepared_s("answers"), course.prepared_s()) == (12, 2, 14)


def test_train__all_processes_hear_what_the_first_one_judged(tmp_path: Path) -> None:
    """Else one would end early, and the others wait for it."""

    class Second:
        rank, world, device = 1, 1, torch.device("cpu")

        def __init__(self) -> None:
            self.given: list[Tensor] = []

        def total(self, tensor: Tensor) -> Tensor:
            if tensor.shape != (2,) or tensor.dtype != torch.float64:
                return tensor
            self.given.append(tensor)
            return tensor + torch.tensor([0.25, 0.75])  # the first one's

        def __getattr__(self, name: str) -> Any:
            return getattr(CPU, name)

    some, second = toy(tmp_path, epochs=1), Second()
    some.how = replace(some.how, processes=cast(Any, second))
    trained = some.train()
    assert [given.tolist() for given in second.given] == [[0, 0]]
    assert (trained.course.history[0].validation_loss, trained.score) == (0.25, 0.75)
    assert some.how.checkpoints.latest() is None  # the first one's to write
