"""The training loop against a bare one on ready tensors, and the cached prefix against going through the
frozen blocks in every epoch."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn

from tasks.embedding.backbone import resolve
from tasks.finetune import losses
from tasks.finetune import run as finetune
from tasks.finetune.images import Images
from tasks.finetune.memory import quick_allocator
from tasks.finetune.network import tunable
from tasks.finetune.views import Views
from tasks.params import EmbeddingParams, FinetuneParams
from tasks.records import Backbone, Manifest, Tuned, digest_of
from tasks.settings import Settings
from tests.bench import harness, labels, samples
from tests.bench.engine import MAX_PIXELS, digested
from tests.bench.harness import Row

LABELS = 100  # of each class
BATCH = 32
ROUNDS = 3
CACHED = FinetuneParams(
    method="last_blocks", blocks=2, epochs=20, cached_views=2, augment=("hflip", "vflip"), learning_rate=5e-4
)


def run() -> Iterator[Row]:
    with samples.scratch() as root:
        settings = Settings(state=root / "state")
        (backbone,) = resolve(EmbeddingParams(), settings.root / "weights").backbones
        manifest, _ = labels.labelled(samples.packaged(), LABELS, root / "manifest")
        yield _throughput(manifest, backbone, settings)
        yield from _prefix(manifest, backbone, settings)


def _throughput(manifest: Manifest, backbone: Backbone, settings: Settings) -> Row:
    """Seconds of the steps of an epoch after the first, in the process that a run starts; and of a loop
    that has the same views ready as tensors before each step, in this one."""
    params = FinetuneParams(
        method="full", epochs=2, batch=BATCH, augment=("hflip", "vflip"), checkpoint_s=1e6
    )
    ours, bare = [], []
    for number in range(ROUNDS):
        tuned = _trained(manifest, backbone, params, settings, f"throughput-{number}")
        ours.append(BATCH / tuned.history[-1].samples_per_s)
        bare.append(_bare(manifest, backbone, params))
    return harness.row(
        "Training step", ours, bare, unit="images/s", work=BATCH, goal=0.95,
        note=f"lite0 at 224 px, batch {BATCH}, AdamW, flips, float32, channels last, two cores; the last 20"
        " steps of an epoch against a bare loop of the same views and steps on decoded images",
    )  # fmt: skip


def _bare(manifest: Manifest, backbone: Backbone, params: FinetuneParams) -> float:
    """Seconds of a step: the median."""
    quick_allocator()
    table = pq.read_table(manifest.file, filters=[("split", "=", "train")]).slice(0, 12 * BATCH)
    some = digested([Path("/") / path for path in table["path"].to_pylist()])
    images = Images(some, backbone.preprocess, MAX_PIXELS, 2 << 30)
    views = Views(params.augment, backbone.preprocess, 0)
    model = tunable(backbone, len(manifest.classes), None, 0).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=params.weight_decay)
    truth = np.array([manifest.classes.index(name) for name in table["label"].to_pylist()])
    y = losses.targets(truth, len(manifest.classes), "class")
    seconds = []
    for step in range(24):
        rows = torch.arange(step * BATCH, (step + 1) * BATCH) % len(some)
        began = time.perf_counter()
        crops = [views(images[row], some[row].digest, step) for row in rows.tolist()]
        x = torch.stack(crops).contiguous(memory_format=torch.channels_last)
        loss = losses.loss(model(x)[0], y[rows], "class").mean()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), params.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[4:]))


def _prefix(manifest: Manifest, backbone: Backbone, settings: Settings) -> Iterator[Row]:
    plain = CACHED.model_copy(update={"cached_views": 0})
    ours, theirs, reached = [], [], []
    for seed in range(ROUNDS):
        cached = _trained(
            manifest, backbone, CACHED.model_copy(update={"seed": seed}), settings, f"cached-{seed}"
        )
        whole = _trained(
            manifest, backbone, plain.model_copy(update={"seed": seed}), settings, f"whole-{seed}"
        )
        ours.append(cached.seconds)
        theirs.append(whole.seconds)
        reached.append((cached.validation, whole.validation))
    scores = ", ".join(f"{one:.3f} and {other:.3f}" for one, other in reached)
    yield harness.row(
        "Cached prefix, the last two blocks trained", ours, theirs, unit="s", goal=3.0,
        note=f"lite0 at 224 px, {3 * LABELS} images, {CACHED.epochs} epochs, {CACHED.cached_views} views of"
        f" each, their computation counted; against all blocks in each epoch; balanced accuracy on validation"
        f" by seed: {scores}",
    )  # fmt: skip


def _trained(
    manifest: Manifest, backbone: Backbone, params: FinetuneParams, settings: Settings, name: str
) -> Tuned:
    out = settings.root / name
    out.mkdir(parents=True)
    key = digest_of(name, params)[:32]
    return finetune.run(
        out, manifest, Path("/"), backbone, None, params, settings, key=key, max_pixels=MAX_PIXELS
    )
