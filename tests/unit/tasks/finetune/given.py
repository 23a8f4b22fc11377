"""What a training process is given, on the smallest scale: images in a folder, their manifest, a backbone."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors.torch import load_file

from tasks.embedding.backbone import resolve_backbone
from tasks.finetune.course import Weights
from tasks.finetune.spec import Distillation, Spec
from tasks.params import BackboneParams, FinetuneParams
from tasks.records import Backbone, Manifest, Target
from tests.unit.tasks.finetune.toy import SIZE, picture

CLASSES = ("blue", "green", "red")  # as in a manifest, sorted
LABELS: dict[Target, Callable[[int], str]] = {
    "class": lambda kind: CLASSES[kind],
    "labels": lambda kind: ("blue", "blue|green", "green")[kind],
    "number": lambda kind: repr(100.0 + 20 * kind),
}


def manifest(folder: Path, target: Target = "class", train: int = 24, validation: int = 9) -> Manifest:
    """Of images of three colours, which are written below folder / data."""
    rows = []
    for number in range(train + validation):
        kind = number % 3
        file = folder / "data" / f"{number:02d}.png"
        rows.append(
            (
                write(file, kind, number),
                file.name,
                LABELS[target](kind),
                "train" if number < train else "validation",
            )
        )
    columns = zip(*sorted(rows), strict=True)
    names = ("digest", "path", "label", "split")
    table = pa.table({name: list(column) for name, column in zip(names, columns, strict=True)})
    (folder / target).mkdir()
    pq.write_table(table, folder / target / "manifest.parquet")
    classes = {"class": CLASSES, "labels": ("blue", "green"), "number": ()}[target]
    return Manifest(
        digest=f"manifest of {target}", folder=str(folder / target), target=target, samples=len(rows),
        classes=classes, slices=(), counts={}, conflicts=(), left_out=(), quarantined=0,
    )  # fmt: skip


def write(file: Path, kind: int, number: int) -> str:
    """An image of one of the colours; returns the digest of its content."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(kind, number).permute(1, 2, 0).numpy()).save(file)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def backbone(store: Path, name: str = "timm:test_efficientnet") -> Backbone:
    """With the layer `network` alone."""
    return resolve_backbone(BackboneParams(backbone=name, weights="random", image_size=SIZE), store)


def params(**values: Any) -> FinetuneParams:
    given = {"epochs": 4, "batch": 8, "learning_rate": 3e-3, "head_learning_rate": 1e-2, **values}
    return FinetuneParams.model_validate(given)


def spec(
    folder: Path,
    manifest: Manifest,
    backbone: Backbone,
    distillation: Distillation | None = None,
    head: Path | None = None,
    **values: Any,
) -> Spec:
    """A training in `folder`, whose images lie beside the manifest."""
    (folder / "out").mkdir(parents=True, exist_ok=True)
    return Spec(
        key="key",
        manifest=manifest,
        data=manifest.path.parent / "data",
        backbone=backbone,
        head=head,
        params=params(**values),
        distillation=distillation,
        max_pixels=10_000,
        memory_bytes=10**8,
        state=folder / "state",
        checkpoints=str(folder / "checkpoints"),
        out=folder / "out",
    )


def weights(out: Path) -> Weights:
    found: Weights = load_file(out / "weights.safetensors")
    return found
