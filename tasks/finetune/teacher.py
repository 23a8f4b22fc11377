"""Teachers: packaged models that answer what a student sees, the same augmented view of the same image.

A teacher that is asked about another crop than the student's teaches less ("Knowledge distillation: a good
teacher is patient and consistent", https://arxiv.org/abs/2106.05237). So each teacher cuts its own input
from the image by the random numbers of the student's view: flips, colours and the relative crop agree.

N samples (each content once), V views, K outputs, D features (the embeddings of all teachers, joined).
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_expit, log_softmax, logsumexp
from torch import Tensor

from tasks.embedding.extract import Extractor, threads_restored
from tasks.embedding.forward import Forward, TorchForward
from tasks.embedding.sample import Sample
from tasks.embedding.source import decoding
from tasks.errors import FinetuneError
from tasks.finetune.answers import Answers, Floats, Layout, filled
from tasks.finetune.images import Images
from tasks.finetune.views import Views
from tasks.head.fitted import FittedHead
from tasks.params import MIXES
from tasks.params.finetune import Augmentation
from tasks.records import Backbone, Embedder, Preprocess, Target, digest_of

VERSION = 1  # raise it when the code gives other answers than before
_CROPS = 64  # that are in memory for a thread
_LEAST = -50.0  # of a log-probability: a class that a teacher rules out

Route = Callable[[Backbone], Forward]


class Packaged(Protocol):
    """What is needed of a `tasks.registry.package.Package`."""

    @property
    def digest(self) -> str: ...

    @property
    def embedder(self) -> Embedder: ...

    @property
    def head(self) -> FittedHead: ...


class Teacher:
    """One package, or several whose answers are averaged."""

    def __init__(self, packages: Sequence[Packaged], classes: Sequence[str], target: Target) -> None:
        """
        Args:
            packages: distinct.
            classes: of the student, in its order; of a number none. A teacher may know more.

        Raises:
            FinetuneError: a teacher answers another kind of question, or lacks a class.
        """
        if not packages:
            raise FinetuneError("distill.teachers: names no package; name best, champion or a version")
        self.packages, self.classes, self.target = tuple(packages), tuple(classes), target
        self._columns = [columns(one.head, self.classes, target, one.digest) for one in self.packages]
        self.digest = digest_of("teacher", VERSION, decoding(), [one.digest for one in packages], classes)

    @property
    def outputs(self) -> int:
        """K."""
        return max(1, len(self.classes))

    @property
    def features(self) -> int:
        """D."""
        return sum(one.embedder.dim for one in self.packages)

    def answers(
        self,
        samples: Sequence[Sample],
        augment: Sequence[Augmentation],
        seed: int,
        views: int,
        *,
        features: bool,
        max_pixels: int,
        state: Path,
        route: Route = TorchForward,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Answers:
        """What the teacher says of the views 0 to V - 1 of `samples`, by row and view; computed where it
        is not in `state` yet.

        Args:
            augment: of the student's views; mixup and cutmix are refused, see `single`.
            seed: of the student's views.
            features: whether the embeddings are kept too.
            max_pixels: as in the manifest's making.
            route: what runs the backbones.

        Raises:
            FinetuneError: an answer is no number, or the disk is full.
            DataError: a file vanished or changed since it was listed.
        """
        if mixed := sorted(set(augment) & set(MIXES)):
            raise FinetuneError(f"finetune.augment: {mixed[0]} makes images that no teacher was asked about")
        if not samples:
            raise FinetuneError("there are no samples that a teacher could be asked about")
        content = {sample.digest: sample for sample in samples}
        unique = [content[digest] for digest in sorted(content)]  # in another order they are the same
        place = {sample.digest: number for number, sample in enumerate(unique)}
        layout = Layout(
            len(unique), views, self.outputs, self.features if features else 0, max(1, _CROPS // views)
        )
        listed = hashlib.sha256("".join(place).encode()).hexdigest()
        key = digest_of("answers", self.digest, list(augment), seed, views, layout.features, listed)
        asked = _Asked(self, unique, Views, augment, seed, views, max_pixels, route)
        with threads_restored():
            return filled(
                state / "teachers" / key[:32],
                layout,
                [place[sample.digest] for sample in samples],
                asked,
                progress,
            )

    def say(self, embeddings: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        """From each teacher's embeddings [N, D_t] to the answer of all, [N, K]: of classes log-probabilities,
        of labels the logits, each of the mean of the teachers' calibrated probabilities; or the mean
        number."""
        said = []
        for one, columns, x in zip(self.packages, self._columns, embeddings, strict=True):
            logits = one.head.calibration(one.head.logits(x))
            said.append(logits if self.target == "number" else logits[:, columns])
        return averaged(np.stack(said), self.target)


def averaged(logits: NDArray[np.float64], target: Target) -> NDArray[np.float64]:
    """Calibrated logits of T teachers [T, N, K] to what their mean says, [N, K] (see `Teacher.say`), by
    sums of logarithms: the odds of a certain teacher are larger than float64."""
    if target == "number":
        return np.asarray(logits.mean(axis=0))
    share = np.log(len(logits))
    if target == "class":
        return np.asarray(np.maximum(logsumexp(log_softmax(logits, axis=2), axis=0) - share, _LEAST))
    yes, no = (logsumexp(log_expit(sign * logits), axis=0) - share for sign in (1.0, -1.0))
    return np.asarray(yes - no)


def single(augment: Sequence[Augmentation]) -> tuple[Augmentation, ...]:
    """The changes of one image: those of a student's views, whatever else other rungs train with."""
    return tuple(name for name in augment if name not in MIXES)


def columns(head: FittedHead, classes: Sequence[str], target: Target, digest: str) -> list[int]:
    """Where a teacher has the student's classes.

    Args:
        digest: of its package.

    Raises:
        FinetuneError: it answers another kind of question, or lacks a class.
    """
    if head.target != target:
        raise FinetuneError(
            f"distill.teachers: package {digest[:12]} answers with a {head.target}, the data has a"
            f" {target}; name another teacher"
        )
    lacking = [name for name in classes if name not in head.classes]
    if lacking:
        more = f" and {len(lacking) - 3:,} more" if len(lacking) > 3 else ""
        raise FinetuneError(
            f"distill.teachers: package {digest[:12]} does not know {', '.join(lacking[:3])}{more};"
            " a student would learn that it never occurs: name a teacher that does"
        )
    return [head.classes.index(name) for name in classes]


class _Asked:
    """Answers about numbered samples; many threads may call it."""

    def __init__(
        self,
        teacher: Teacher,
        samples: Sequence[Sample],
        make: type[Views],
        augment: Sequence[Augmentation],
        seed: int,
        views: int,
        max_pixels: int,
        route: Route,
    ) -> None:
        self._teacher, self._samples, self._views = teacher, samples, views
        self._images: dict[str, Images] = {}  # none is held: each is looked at once
        self._cut: dict[str, Views] = {}
        self._extractors: list[list[tuple[str, Extractor]]] = []
        for one in teacher.packages:
            mine = []
            for backbone in one.embedder.backbones:
                how = backbone.preprocess
                key = how.model_dump_json()
                if key not in self._images:
                    self._images[key] = Images(samples, how, max_pixels, 0)
                    self._cut[key] = make(augment, how, seed)
                seen = backbone.model_copy(update={"preprocess": _whole(how)})
                mine.append((key, Extractor(seen, backbone.blocks, route(backbone))))
            self._extractors.append(mine)

    def __call__(self, rows: Sequence[int]) -> tuple[Floats, Floats | None]:
        """[n, V, K] and [n, V, D]."""
        torch.set_num_threads(1)  # of this thread: OpenMP keeps the number per thread
        crops = {key: self._crops(key, rows) for key in self._images}  # each [n V, 3, S, S]
        digests = [self._samples[row].digest for row in rows for _ in range(self._views)]
        embeddings = []
        for one, extractors in zip(self._teacher.packages, self._extractors, strict=True):
            vectors: dict[str, NDArray[np.float32]] = {}
            for key, extractor in extractors:
                vectors |= extractor.vectors(extractor.crops(crops[key], digests))
            embeddings.append(
                np.concatenate([vectors[block.digest] for block in one.embedder.blocks], axis=1)
            )
        shape = (len(rows), self._views, -1)
        said = self._teacher.say(embeddings).astype(np.float32)
        return said.reshape(shape), np.concatenate(embeddings, axis=1).reshape(shape)

    def _crops(self, key: str, rows: Sequence[int]) -> Tensor:
        images, cut = self._images[key], self._cut[key]
        found = []
        for row in rows:
            image = images[row]
            found += [cut(image, self._samples[row].digest, number) for number in range(self._views)]
        return torch.stack(found)


def _whole(how: Preprocess) -> Preprocess:
    """What leaves a crop of the right size as it is; the backbone's own views are cut from that."""
    return how.model_copy(update={"resize": how.size})
