"""A tiny training: noise of some colours, which a network learns to tell apart in a few steps."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from torch import Tensor, nn

from tasks.finetune import losses
from tasks.finetune.batches import Batch, Batches
from tasks.finetune.checkpoint import Checkpoints, State
from tasks.finetune.course import Weights
from tasks.finetune.distributed import Processes
from tasks.finetune.images import Images
from tasks.finetune.memory import Fitting
from tasks.finetune.network import Tunable
from tasks.finetune.progress import Progress
from tasks.finetune.stop import Stop
from tasks.finetune.train import Judge, Objective, Preempted, Setting, Source, Trained, train, weights_of
from tasks.finetune.trainable import Trainable, plan
from tasks.finetune.views import Views
from tasks.params import FinetuneParams
from tasks.records import Preprocess
from tasks.settings import Settings

SIZE = 32
HOW = Preprocess(resize=SIZE, size=SIZE, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
CLASSES, N, BATCH = 2, 24, 8
STEPS = N // BATCH  # of an epoch
CPU = Processes(0, 1, torch.device("cpu"))


def picture(label: int, number: int, size: int = SIZE) -> Tensor:
    """uint8 [3, size, size]: noise, in which one colour is a little stronger."""
    chance = np.random.default_rng((label, number))
    pixels = chance.integers(0, 150, (3, size, size), dtype=np.uint8)
    pixels[label] += 60
    return torch.from_numpy(pixels)


class Pictures:
    """Of all classes in turn."""

    def __init__(self, count: int = N, first: int = 0) -> None:
        self.y = np.arange(count) % CLASSES
        self._images = [picture(int(label), first + row) for row, label in enumerate(self.y)]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> Tensor:
        return self._images[row]


TRAIN, VALIDATION = Pictures(), Pictures(12, first=N)
DIGESTS = [f"{row:02d}" for row in range(N)]


def network(name: str = "test_efficientnet", **options: Any) -> Tunable:
    """The same weights each time."""
    torch.manual_seed(0)
    made = timm.create_model(name, num_classes=0, **options)
    return Tunable(made, HOW, CLASSES, f"timm:{name}").to(memory_format=torch.channels_last)


def judge_of(model: Tunable) -> Judge:
    """Cross entropy and balanced accuracy on the validation images."""
    y = losses.targets(VALIDATION.y, CLASSES, "class")

    def judge() -> tuple[float, float]:
        logits, _ = model(torch.stack([VALIDATION[row] for row in range(len(VALIDATION))]))
        score = losses.score(logits.detach().double().numpy(), VALIDATION.y, "class")
        return float(losses.loss(logits, y, "class").mean()), score

    return judge


def objective(logits: Tensor, features: Tensor, batch: Batch) -> Tensor:
    return losses.loss(logits, batch.y, "class") * batch.weight


class Stopping:
    """Batches, after so many of which `stop` is asked for."""

    def __init__(self, source: Source, stop: Stop, after: int) -> None:
        self._source, self._stop, self._left = source, stop, after

    @property
    def steps(self) -> int:
        return self._source.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in self._source.epoch(epoch, start):
            self._left -= 1
            self._stop.wanted = self._left <= 0
            yield batch


class Noting(Checkpoints):
    """Checkpoints that know the steps at which they were saved."""

    steps: list[int]

    def save(self, state: State) -> None:
        self.__dict__.setdefault("steps", []).append(state.step)
        super().save(state)


@dataclass
class Toy:
    """What `train` is given; may be changed before."""

    model: Tunable
    trainable: Trainable
    source: Source
    objective: Objective
    judge: Judge
    how: Setting
    lines: list[Progress]
    forward: nn.Module | None = None

    def train(self) -> Trained:
        return train(
            self.model, self.trainable, self.source, self.objective, self.judge, self.how, self.forward
        )

    def weights(self) -> Weights:
        return weights_of(self.model)


def params_of(**values: Any) -> FinetuneParams:
    given = {"epochs": 3, "batch": BATCH, "learning_rate": 1e-2, **values}
    return FinetuneParams.model_validate(given)


def batches(params: FinetuneParams, **values: Any) -> Batches:
    given = {"batch": params.batch, "seed": params.seed, "cached_views": params.cached_views, **values}
    targets = losses.targets(TRAIN.y, CLASSES, "class", params.label_smoothing)
    views = Views(params.augment, HOW, params.seed)
    return Batches(cast(Images, TRAIN), DIGESTS, targets, torch.ones(N), views, **given)


def toy(folder: Path, of: Tunable | None = None, **values: Any) -> Toy:
    """A training whose checkpoints lie in `folder`."""
    params, model = params_of(**values), of or network()
    lines: list[Progress] = []
    how = Setting(
        key="key",
        params=params,
        processes=CPU,
        precision="bfloat16" if params.precision == "bfloat16" else "float32",
        checkpoints=Noting(str(folder / "checkpoints"), params.keep, Settings()),
        fitting=Fitting(folder / "memory.json", ("toy",), params.batch, params.accumulate),
        report=lines.append,
        stop=Stop(),
        prepared={},
    )
    return Toy(model, plan(model, params), batches(params), objective, judge_of(model), how, lines)


def attempts(toys: Iterator[Toy]) -> tuple[Toy, Trained, int]:
    """Trains to the end in as many attempts as it takes, each of which is stopped after a step."""
    for number in range(1, 100):
        toy = next(toys)
        toy.source = Stopping(toy.source, toy.how.stop, 1)
        try:
            return toy, toy.train(), number
        except Preempted:
            continue
    raise AssertionError


def difference(one: Weights, other: Weights) -> float:
    """The greatest one, over all tensors."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)
