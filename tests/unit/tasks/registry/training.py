"""A fine-tuning to record."""

import hashlib
from pathlib import Path

from tasks.embedding.backbone import resolve_backbone
from tasks.embedding.source import file_digest
from tasks.finetune.progress import Progress
from tasks.finetune.request import FinetuneRequest
from tasks.params import BackboneParams, DataParams, FinetuneParams, HeadParams
from tasks.records import Backbone, Epoch, Tuned
from tasks.stage import build_once

START = "2026-11-22T10:00:{:02}+00:00"


def backbone_in(store: Path) -> Backbone:
    return resolve_backbone(
        BackboneParams(backbone="timm:test_efficientnet", weights="random", image_size=32), store
    )


def key_of(name: str) -> str:
    """As long as one is."""
    return hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()


def request_of(backbone: Backbone, name: str = "") -> FinetuneRequest:
    return FinetuneRequest(
        name="wear",
        key=key_of(name),
        dvc_file="",
        data=DataParams(),
        manifest="ma",
        backbone=backbone,
        head=HeadParams(),
        finetune=FinetuneParams(epochs=2, learning_rate=0.002),
    )


def epoch(number: int) -> Epoch:
    """Of three steps."""
    return Epoch(
        epoch=number,
        step=3 * number,
        loss=1 / number,
        validation_loss=2 / number,
        validation=0.5 + number / 10,
        learning_rate=0.001,
        seconds=1.0,
        samples_per_s=96.0,
    )


def step(number: int, second: int | None = None, loss: float | None = None) -> Progress:
    """Its loss is 10 / number."""
    return Progress(
        kind="step",
        epoch=1 + (number - 1) // 3,
        epochs=2,
        step=number,
        steps=6,
        loss=10 / number if loss is None else loss,
        learning_rate=0.001,
        samples_per_s=96.0,
        at=START.format(number if second is None else second),
    )


def end_of(number: int) -> Progress:
    """The line at the end of an epoch."""
    values = step(3 * number).model_dump() | {"kind": "epoch", "record": epoch(number)}
    return Progress.model_validate(values)


def tuned_in(folder: Path, backbone: Backbone) -> Tuned:
    """A result whose weights are those before."""

    def build(out: Path) -> Tuned:
        weights = out / "weights.safetensors"
        weights.write_bytes(Path(backbone.weights).read_bytes())
        for name in ("history.json", "curves.png"):
            (out / name).write_text(name)
        update = {"weights": str(weights), "weights_digest": file_digest(weights), "tuned": "ma"}
        return Tuned(
            digest="tu",
            folder=str(out),
            backbone=backbone.model_copy(update=update),
            method="full",
            history=(epoch(1), epoch(2)),
            chosen="last",
            validation=0.7,
            trained=10,
            parameters=10,
            steps=6,
            batch=32,
            accumulate=1,
            precision="float32",
            hardware="a CPU",
            seconds=2.0,
            cached_s=0.0,
        )

    return build_once(folder, Tuned, build)
