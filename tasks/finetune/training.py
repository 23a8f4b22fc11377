"""One training from its spec to its result: the samples, the model, what it learns, the loop, the file."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks import records
from tasks.data.stack import split_path
from tasks.embedding.forward import TorchForward
from tasks.embedding.sample import Sample
from tasks.errors import DataError
from tasks.finetune import losses, unlabelled
from tasks.finetune.batches import Batch, Batches
from tasks.finetune.checkpoint import Checkpoints
from tasks.finetune.distill import distillation
from tasks.finetune.distributed import Processes, joined
from tasks.finetune.images import Images
from tasks.finetune.lora import merge
from tasks.finetune.memory import Fitting, hardware, quick_allocator
from tasks.finetune.network import Tunable, export, scratch, tunable
from tasks.finetune.prefix import CachedPrefix, split
from tasks.finetune.prefixed import Prefixed
from tasks.finetune.progress import Progress, append
from tasks.finetune.spec import Distillation, Spec
from tasks.finetune.spent import Spent
from tasks.finetune.stop import Stop
from tasks.finetune.teacher import Teacher
from tasks.finetune.train import Objective, Preempted, Setting, Source, Trained, train
from tasks.finetune.trainable import Trainable, plan
from tasks.finetune.views import Views, plain
from tasks.head import fitted
from tasks.head.fit import truth
from tasks.records import Split, Tuned, digest_of
from tasks.settings import Settings

__all__ = ["Preempted", "run"]

_JUDGED = 32  # crops in a forward pass of validation
_WORKERS = 8  # processes that make batches beside a GPU, at most
_ANSWERS, _VIEWS = "answers", "views"  # what time is spent on before the first step


class _Asked:
    """A packaged model, as a teacher."""

    def __init__(self, record: records.TeacherPackage) -> None:
        self.digest, self.embedder = record.digest, record.embedder
        self.head = fitted.load(Path(record.folder))


@contextmanager
def _tensor_float_restored() -> Iterator[None]:
    """Embedding in float32 switches TensorFloat-32 off for the whole process."""
    before = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@dataclass(frozen=True)
class Learned:
    """A split: N samples with their truth."""

    samples: tuple[Sample, ...]
    y: NDArray[Any]  # see `head.fit.truth`

    @classmethod
    def of(cls, spec: Spec, split: Split) -> "Learned":
        table = pq.read_table(
            spec.manifest.file, columns=["digest", "path", "label"], filters=[("split", "=", split)]
        )
        places = [split_path(path) for path in table["path"].to_pylist()]
        samples = tuple(
            Sample(digest, spec.data / file, row)
            for digest, (file, row) in zip(table["digest"].to_pylist(), places, strict=True)
        )
        return cls(samples, truth(spec.manifest, table["label"].to_pylist()))


def run(spec: Spec, stop: Stop) -> None:
    """Trains and, in one process, writes weights.safetensors, history.json and the record.

    Raises:
        Preempted: `stop` was asked for; a checkpoint has all that was done.
        RegraftError: it can't start or go on.
    """
    quick_allocator()
    with joined() as processes:
        _Training(spec, processes, stop).run()


class _Training:
    def __init__(self, spec: Spec, processes: Processes, stop: Stop) -> None:
        self._spec, self._params, self._processes, self._stop = spec, spec.params, processes, stop
        self._device = processes.device
        self._target = spec.manifest.target
        self._train, self._validation = Learned.of(spec, "train"), Learned.of(spec, "validation")
        if not self._validation.samples:
            raise DataError("fine-tuning is judged on validation samples; raise data.validation_fraction")
        self._samples = self._train.samples + self._unlabelled()
        numbers = self._target == "number"
        self._standard = losses.standard(self._train.y) if numbers else (0.0, 1.0)
        self._precision = self._chosen_precision()
        self._spent = Spent(spec.state / "finetune" / f"{spec.key}-{processes.rank}.json")

    def run(self) -> None:
        model = self._model().to(self._device).to(memory_format=torch.channels_last)
        if self._processes.world > 1 and self._device.type == "cuda" and self._params.batch_norm == "trained":
            # Statistics of the whole batch. timm's, since its batch normalisation holds an activation.
            synchronised: Any = import_module("timm.layers").convert_sync_batchnorm(model.network)
            model.network = synchronised
        trainable = plan(model, self._params)
        source, forward = self._source(model, trainable)
        objective = self._objective(model)
        how = Setting(
            key=self._spec.key,
            params=self._params,
            processes=self._processes,
            precision=self._precision,
            checkpoints=Checkpoints(self._spec.checkpoints, self._params.keep, Settings()),
            fitting=self._fitting(),
            report=self._report(),
            stop=self._stop,
            prepared=self._spent.prepared,
        )
        trained = train(model, trainable, source, objective, self._judge(model), how, forward)
        if self._processes.rank == 0:
            self._write(model, trained, trainable, how)
        self._spent.clear()

    @contextmanager
    def _preparing(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Counts the seconds within, where what it gives is told of progress and asks whether to go on."""
        with self._spent.on(what) as note:

            def told(done: int, total: int) -> None:
                note()
                if self._stop.wanted:
                    raise Preempted

            yield told

    def _unlabelled(self) -> tuple[Sample, ...]:
        """Further images, which a teacher answers."""
        how = self._spec.distillation
        if how is None or not how.params.unlabelled:
            return ()
        found = unlabelled.find(Path(how.params.unlabelled), self._spec.manifest, how.data, self._spec.state)
        if found.digest != how.unlabelled:
            raise DataError(
                f"distill.unlabelled: {how.params.unlabelled}: was changed since it was listed; run again"
            )
        return found.samples

    def _model(self) -> Tunable:
        spec, params = self._spec, self._params
        outputs = 1 if self._target == "number" else len(spec.manifest.classes)
        if params.method == "scratch":
            return scratch(spec.backbone, outputs, params.seed)
        fresh = params.method == "full" or spec.head is None
        start = None if fresh or spec.head is None else fitted.load(spec.head)
        model = tunable(spec.backbone, outputs, start, params.seed)
        if start is not None:
            mean, deviation = self._standard  # it answers in the number's own unit
            with torch.no_grad():
                model.head.weight.div_(deviation)
                model.head.bias.sub_(mean).div_(deviation)
        return model

    def _source(self, model: Tunable, trainable: Trainable) -> tuple[Source, nn.Module | None]:
        """The batches; with cached views also what takes them from where the frozen units end."""
        spec, params, processes = self._spec, self._params, self._processes
        weight, sampling = losses.weights(self._train.y, params.balance)
        targets = self._targets(self._train.y, params.label_smoothing)
        further = len(self._samples) - len(weight)  # without a label
        images = self._images(self._samples, spec.memory_bytes)
        views = Views(params.augment, spec.backbone.preprocess, params.seed)
        digests = [sample.digest for sample in self._samples]
        distilled = spec.distillation.params.views if spec.distillation else 0
        batches = Batches(
            images,
            digests,
            torch.cat([targets, targets.new_zeros(further, targets.shape[1])]),
            torch.cat([weight, weight.new_zeros(further)]),
            views,
            batch=params.batch,
            seed=params.seed,
            sampling=sampling,
            cached_views=distilled or params.cached_views,
            rank=processes.rank,
            world=processes.world,
            workers=self._workers(),
        )
        if not params.cached_views or not trainable.first:
            return batches, None
        cut = split(model, trainable.first)
        if cut is None:
            return batches, None
        prefix, suffix = cut
        cached = CachedPrefix(
            spec.state / "prefixes",
            prefix,
            weights=spec.backbone.weights_digest,
            augment=params.augment,
            seed=params.seed,
            views=params.cached_views,
            digests=digests,
            precision=self._precision,
        )
        with self._preparing(_VIEWS) as told:  # the first process fills it, the others find it filled
            cached.fill(images, views, told)
        return Prefixed(batches, cached), suffix

    def _objective(self, model: Tunable) -> Objective:
        target = self._target
        if self._spec.distillation is not None:
            return self._distillation(self._spec.distillation, model).to(self._device)

        def objective(logits: Tensor, features: Tensor, batch: Batch) -> Tensor:
            return losses.loss(logits, batch.y, target) * batch.weight

        return objective

    def _distillation(self, how: Distillation, model: Tunable) -> nn.Module:
        """What the teachers say of the same views. The first process asks them, the others find it."""
        spec, params = self._spec, self._params
        teacher = Teacher([_Asked(one) for one in how.teachers], spec.manifest.classes, self._target)
        gpus = [self._device] if self._device.type == "cuda" else []
        with self._preparing(_ANSWERS) as told, _tensor_float_restored():
            answers = teacher.answers(
                self._samples,
                params.augment,
                params.seed,
                how.params.views,
                features=how.params.features > 0,
                max_pixels=spec.max_pixels,
                state=spec.state,
                route=lambda backbone: TorchForward(backbone, gpus),
                progress=told,
            )
        return distillation(
            how.params,
            self._target,
            answers,
            features=model.features,
            seed=params.seed,
            standard=self._standard,
        )

    def _judge(self, model: Tunable) -> Callable[[], tuple[float, float]]:
        """Validation loss and score of the model as it is, on the views that it will serve on."""
        spec, how = self._spec, self._spec.backbone.preprocess
        images = self._images(self._validation.samples, spec.memory_bytes // 8)
        targets = self._targets(self._validation.y, 0.0)
        mean, deviation = self._standard

        def judge() -> tuple[float, float]:
            found = []
            for start in range(0, len(images), _JUDGED):
                rows = range(start, min(start + _JUDGED, len(images)))
                crops = torch.stack([plain(images[row], how) for row in rows]).to(self._device)
                with torch.autocast(self._device.type, torch.bfloat16, enabled=self._precision == "bfloat16"):
                    found.append(model(crops.contiguous(memory_format=torch.channels_last))[0].float().cpu())
            logits = torch.cat(found)
            outputs = logits.double().numpy() * deviation + mean
            loss = float(losses.loss(logits, targets, self._target).mean())
            return loss, losses.score(outputs, self._validation.y, self._target)

        return judge

    def _targets(self, y: NDArray[Any], smoothing: float) -> Tensor:
        outputs = 1 if self._target == "number" else len(self._spec.manifest.classes)
        return losses.targets(y, outputs, self._target, smoothing, self._standard)

    def _images(self, of: Sequence[Sample], memory_bytes: int) -> Images:
        return Images(of, self._spec.backbone.preprocess, self._spec.max_pixels, memory_bytes)

    def _workers(self) -> int:
        cores = len(os.sched_getaffinity(0)) // self._processes.world
        return min(_WORKERS, cores) if self._device.type == "cuda" else 0

    def _fitting(self) -> Fitting:
        spec, params = self._spec, self._params
        of = (
            hardware(self._device),
            spec.backbone.name,
            f"{spec.backbone.preprocess.size} px",
            params.method,
            self._precision,
        )
        share = -(-params.batch // self._processes.world)
        memo = spec.state / "finetune" / "memory.json"
        return Fitting(memo, of, share, params.accumulate, alone=self._processes.world == 1)

    def _report(self) -> Callable[[Progress], None]:
        if self._processes.rank:
            return lambda line: None

        def report(line: Progress) -> None:
            with suppress(OSError):  # a full disk costs numbers, not the training
                append(self._spec.progress, line)

        return report

    def _chosen_precision(self) -> Literal["float32", "bfloat16"]:
        if self._params.precision != "auto":
            return self._params.precision
        quick = self._device.type == "cuda" and torch.cuda.is_bf16_supported()
        return "bfloat16" if quick else "float32"

    def _write(self, model: Tunable, trained: Trained, trainable: Trainable, how: Setting) -> None:
        """The record last."""
        spec, course = self._spec, trained.course
        if self._params.method == "lora":
            merge(model.network)
        backbone = export(spec.backbone, model.network, spec.out, spec.manifest.digest)
        (spec.out / f"{backbone.weights_digest}.safetensors").replace(spec.out / "weights.safetensors")
        history = [epoch.model_dump(mode="json") for epoch in course.history]
        (spec.out / "history.json").write_text(json.dumps(history, indent=2) + "\n")
        Tuned(
            digest=digest_of(backbone.weights_digest, spec.key),
            folder=str(spec.out),
            backbone=backbone.model_copy(update={"weights": str(spec.out / "weights.safetensors")}),
            method=self._params.method,
            history=tuple(course.history),
            chosen=trained.chosen,
            validation=trained.score,
            trained=trainable.count,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            steps=course.step,
            batch=-(-self._params.batch // (how.fitting.parts * self._processes.world)),
            accumulate=how.fitting.parts,
            precision=self._precision,
            hardware=hardware(self._device),
            seconds=course.seconds + course.prepared_s(),
            cached_s=course.prepared_s(_VIEWS),
        ).save()
