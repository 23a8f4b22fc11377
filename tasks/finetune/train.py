"""The training loop.

Everything random is a function of the seed and the number of a step, an epoch or a view, so a run that
was stopped anywhere carries on from its last checkpoint to the same weights, bit for bit on one CPU.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn

from tasks.errors import FinetuneError
from tasks.finetune.average import Average
from tasks.finetune.batches import Batch
from tasks.finetune.checkpoint import Checkpoints, State, flatten, restore
from tasks.finetune.course import Course, Weights, choose
from tasks.finetune.distributed import Processes
from tasks.finetune.memory import Fitting
from tasks.finetune.mix import mixed
from tasks.finetune.network import Tunable
from tasks.finetune.progress import Progress, Rate
from tasks.finetune.schedule import factor
from tasks.finetune.spent import Prepared
from tasks.finetune.stop import Stop
from tasks.finetune.trainable import Trainable
from tasks.params import FinetuneParams
from tasks.records import Epoch, digest_of

# Logits [B, K], features [B, D] and the batch to losses [B], in which the batch's weights are counted. Of a
# module its own parameters are trained too.
Objective = Callable[[Tensor, Tensor, Batch], Tensor]
Judge = Callable[[], tuple[float, float]]  # the model as it is: its loss (lower) and score (higher is better)

log = logging.getLogger(__name__)

_REPORTED_S = 2.0
_CHECKED_STEPS = 20  # on a GPU the losses are looked at this often: each look waits for it
_MOMENTUM = 0.9


class Preempted(Exception):  # noqa: N818 - it is no error
    """The process was asked to end; a checkpoint holds all that it did."""


class Source(Protocol):
    """The batches of this process."""

    @property
    def steps(self) -> int: ...  # of an epoch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Setting:
    """Where and in what a training runs."""

    key: str  # of the training: a checkpoint of another one is refused
    params: FinetuneParams
    processes: Processes
    precision: Literal["float32", "bfloat16"]
    checkpoints: Checkpoints
    fitting: Fitting
    report: Callable[[Progress], None]
    stop: Stop
    prepared: Prepared  # seconds before the first step


@dataclass(frozen=True)
class Trained:
    """The end of a training, whose model holds the chosen weights."""

    chosen: str
    score: float
    course: Course


def train(
    model: Tunable,
    trainable: Trainable,
    source: Source,
    objective: Objective,
    judge: Judge,
    how: Setting,
    forward: nn.Module | None = None,
) -> Trained:
    """Trains `model` and leaves it with the weights that validation chose.

    Args:
        forward: what turns a batch's `x` into logits and features, by parameters of `model`; default: it.

    Raises:
        Preempted: a signal asked for the end; the same call carries on.
        FinetuneError: the loss is no number, memory is short, or the checkpoints are another training's.
    """
    loop = _Loop(model, trainable, source, objective, judge, how, forward or model)
    while not loop.ended:
        loop.epoch()
    return loop.finish()


class _Loop:
    def __init__(
        self,
        model: Tunable,
        trainable: Trainable,
        source: Source,
        objective: Objective,
        judge: Judge,
        how: Setting,
        forward: nn.Module,
    ) -> None:
        self._model, self._trainable, self._source = model, trainable, source
        self._objective, self._judge, self._how = objective, judge, how
        self._params, self._device = how.params, how.processes.device
        self._before = weights_of(model)
        self._optimiser = _optimiser(trainable, objective, how.params)
        self._average = Average(model, how.params.average) if how.params.average else None
        self._course = self._resumed()
        self._course.prepared |= how.prepared
        self._counted = time.monotonic()  # until when the seconds are counted
        self._compiled = cast(nn.Module, torch.compile(forward)) if how.params.compile else forward
        self._forward = self._compiled
        self._pending: list[tuple[int, float, Tensor]] = []  # step, learning rate, (loss, norm)

    @property
    def ended(self) -> bool:
        return self._course.ended(self._params)

    def epoch(self) -> None:
        """One pass over the training samples, from where a checkpoint left it."""
        course, how = self._course, self._how
        epoch, steps = len(course.history), self._source.steps
        self._trainable.start_epoch(epoch)
        self._forward = how.processes.wrap(self._compiled)  # anew: other parameters may be trained now
        rate = Rate(steps * self._params.epochs, self._params.epochs)
        saved = reported = self._count()
        if course.step == epoch * steps:
            course.epoch_began = course.seconds
        for batch in self._source.epoch(epoch, course.step - epoch * steps):
            self._step(batch.to(self._device))
            now = self._count()
            rate.add(len(batch.rows) * how.processes.world)
            if now - reported > _REPORTED_S:
                reported = now
                self._look()
                lr = self._learning_rate(course.step - 1)
                how.report(rate.progress(epoch, course.step, course.loss, lr))
            if how.processes.any(how.stop.wanted):
                self._try_to_save()
                raise Preempted
            if how.processes.any(now - saved > self._params.checkpoint_s):
                saved = now
                self._try_to_save()
        self._look()
        self._judged(epoch, rate)
        self._try_to_save()

    def finish(self) -> Trained:
        """Leaves the model with the weights that validation chose."""
        chosen, weights, score = choose(self._params, self._before, self._course, self._score)
        load(self._model, weights)
        self._count()
        return Trained(chosen, score, self._course)

    def _step(self, batch: Batch) -> None:
        """One update of the weights."""
        how, step = self._how, self._course.step
        torch.manual_seed(int(digest_of("step", self._params.seed, step)[:15], 16))
        for group in self._optimiser.param_groups:
            group["lr"] = group["peak"] * self._factor(step)
        batch = mixed(batch, self._params.augment, self._params.seed, step)
        count = how.processes.total(torch.tensor(float(len(batch.rows)), device=self._device))

        def backward(part: Batch, last: bool) -> Tensor:
            with how.processes.synchronised(self._forward, last):
                with self._autocast():
                    logits, features = self._forward(part.x)
                losses = self._objective(logits.float(), features.float(), part)
                loss = losses.sum() / count  # of this process; DDP takes the mean of them
                (loss * how.processes.world).backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        loss = how.fitting.run(batch, backward, self._optimiser.zero_grad)
        for parameter in self._own():  # which DDP does not know
            if parameter.grad is not None:
                parameter.grad = how.processes.total(parameter.grad) / how.processes.world
        trained = [p for group in self._optimiser.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, self._params.clip or float("inf"))
        lr = self._learning_rate(step)
        self._pending.append((step, lr, torch.stack([how.processes.total(loss), norm.detach()])))
        if self._device.type == "cpu" or len(self._pending) >= _CHECKED_STEPS:
            self._look()
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update(self._model)
        self._course.step += 1

    def _look(self) -> None:
        """Adds the losses that were not looked at yet.

        Raises:
            FinetuneError: one of them, or its gradient, is no number. What was saved is from before.
        """
        for step, lr, values in self._pending:
            loss, norm = values.tolist()
            if not (abs(loss) < float("inf") and norm < float("inf")):
                raise FinetuneError(
                    f"step {step}: the loss is {loss:g} and its gradient's norm {norm:g} at the learning rate"
                    f" {lr:.2g}; lower finetune.learning_rate, or clip. The last checkpoint before it is kept"
                )
            self._course.losses += loss
            self._course.loss = loss
        self._pending.clear()

    def _factor(self, step: int) -> float:
        steps = self._source.steps * self._params.epochs
        return factor(step, steps, round(self._params.warmup * steps))

    def _learning_rate(self, step: int) -> float:
        """Of the backbone's last block."""
        return self._params.learning_rate * self._factor(step)

    def _count(self) -> float:
        """Counts the seconds until now, which it returns."""
        now = time.monotonic()
        self._course.seconds += now - self._counted
        self._counted = now
        return now

    def _autocast(self) -> AbstractContextManager[object]:
        if self._how.precision == "float32":
            return nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16)

    def _judged(self, epoch: int, rate: Rate) -> None:
        """Ends an epoch: what validation says of the weights, or of their average."""
        course, steps, lr = self._course, self._source.steps, self._learning_rate(self._course.step - 1)
        seconds = course.seconds - course.epoch_began
        weights = weights_of(self._model)
        if self._average is not None:
            weights = _copied(self._average.tensors())
        loss, score = self._score_both(weights)
        found = Epoch(
            epoch=epoch + 1,
            step=course.step,
            loss=course.losses / steps,
            validation_loss=loss,
            validation=score,
            learning_rate=lr,
            seconds=seconds,
            # Of an epoch whose last step an earlier process took, all its steps tell.
            samples_per_s=rate.samples_per_s or steps * self._params.batch / max(seconds, 1e-9),
        )
        course.end_epoch(found, weights, self._params)
        self._how.report(rate.progress(epoch, course.step, found.loss, lr, found))

    def _score(self, weights: Mapping[str, Tensor]) -> float:
        return self._score_both(weights)[1]

    def _score_both(self, weights: Mapping[str, Tensor]) -> tuple[float, float]:
        """Of other weights than the model's, which are put back."""
        own = weights_of(self._model)
        load(self._model, weights)
        self._model.eval()
        with torch.inference_mode():
            found = torch.tensor(self._judge(), dtype=torch.float64, device=self._device)
        load(self._model, own)
        processes = self._how.processes
        # That of the first process, for all: their statistics of normalisation differ.
        loss, score = processes.total(found if processes.rank == 0 else torch.zeros_like(found)).tolist()
        return loss, score

    def _try_to_save(self) -> None:
        """A store that is away for a while costs no training."""
        self._look()
        try:
            self._save()
        except FinetuneError as error:
            log.warning("%s; training goes on", error)

    def _save(self) -> None:
        self._look()
        if self._how.processes.rank:
            return
        self._count()
        moments, optimiser = flatten(self._optimiser.state_dict())
        tensors = {f"model.{name}": tensor for name, tensor in weights_of(self._model).items()}
        tensors |= {f"optimiser.{name}": tensor for name, tensor in moments.items()}
        if self._average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self._average.tensors().items()}
        tensors |= {f"objective.{name}": tensor for name, tensor in self._objective_weights().items()}
        tensors |= self._course.tensors()
        values = {"key": self._how.key, "optimiser": optimiser, **self._course.values()}
        self._how.checkpoints.save(State(self._course.step, tensors, values))

    def _own(self) -> list[nn.Parameter]:
        """The parameters of the objective."""
        return list(self._objective.parameters()) if isinstance(self._objective, nn.Module) else []

    def _objective_weights(self) -> Weights:
        return weights_of(self._objective) if isinstance(self._objective, nn.Module) else {}

    def _resumed(self) -> Course:
        state = self._how.checkpoints.latest()
        if state is None:
            return Course()
        if state.values["key"] != self._how.key:
            raise FinetuneError(
                f"{self._how.checkpoints.place}: holds checkpoints of another training; remove them"
            )
        load(self._model, state.part("model"))
        if isinstance(self._objective, nn.Module):
            load(self._objective, state.part("objective"))
        self._optimiser.load_state_dict(restore(state.part("optimiser"), state.values["optimiser"]))
        if self._average is not None:
            self._average.load(state.part("average"), state.step)
        return Course.of(state)


def weights_of(model: nn.Module) -> Weights:
    """A copy of all parameters and buffers that are kept, on the CPU."""
    return _copied(model.state_dict())


def load(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies weights into the model, where they are."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(weights[name])


def _copied(tensors: Mapping[str, Tensor]) -> Weights:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _optimiser(trainable: Trainable, objective: Objective, params: FinetuneParams) -> torch.optim.Optimizer:
    groups = [
        {
            "params": group.parameters,
            "peak": (params.head_learning_rate if group.head else params.learning_rate) * group.factor,
            "weight_decay": group.decay,
        }
        for group in trainable.groups
    ]
    own = list(objective.parameters()) if isinstance(objective, nn.Module) else []
    if own:
        groups.append({"params": own, "peak": params.head_learning_rate, "weight_decay": params.weight_decay})
    if params.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=_MOMENTUM)
    return torch.optim.AdamW(groups, lr=0.0)
