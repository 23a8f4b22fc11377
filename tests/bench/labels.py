"""Fine-tuning from few labels: from the head on the embeddings, plainly, and from scratch."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.data.split import position
from tasks.embedding import embed
from tasks.embedding.backbone import resolve
from tasks.embedding.source import embedder_of
from tasks.evaluation.predict import test_outputs
from tasks.finetune import run as finetune
from tasks.head import fit
from tasks.params import EmbeddingParams, FinetuneParams, HeadParams
from tasks.params.finetune import Method
from tasks.records import Embedder, Embeddings, Head, Manifest, digest_of
from tasks.settings import Settings
from tests.bench import samples
from tests.bench.engine import MAX_PIXELS, digested
from tests.bench.harness import Row

LABELS = (50, 100, 300)  # of each class
SEEDS = (0, 1, 2)
SIZE = 128  # px, for time
EPOCHS = {50: 8, 100: 5, 300: 3}  # fewer samples, more passes: as many steps or so
TESTED = 200  # of each class; as many for validation: 50
VALIDATED = 50
METHODS: tuple[Method, ...] = ("lp_ft", "full", "scratch")

Doubles = NDArray[np.float64]


def run() -> Iterator[Row]:
    """Never significantly worse than plain fine-tuning, and significantly better than from scratch."""
    with samples.scratch() as root:
        settings = Settings(state=root / "state")
        files = samples.packaged()
        embedder = resolve(EmbeddingParams(image_size=SIZE), settings.root / "weights")
        for labels in LABELS:
            manifest, y = labelled(files, labels, root / f"manifest-{labels}")
            right = {
                method: np.mean(
                    [_right(manifest, y, embedder, method, labels, seed, settings) for seed in SEEDS], axis=0
                )
                for method in METHODS
            }
            yield _beside(right, "full", labels, y)
            yield _beside(right, "scratch", labels, y)


def _beside(right: dict[Method, Doubles], other: Method, labels: int, y: NDArray[np.int64]) -> Row:
    value, low, high = bootstrap_difference(right["lp_ft"], right[other], y)
    ours, theirs = (_balanced(right[method], y) for method in ("lp_ft", other))
    held = low > 0 if other == "scratch" else high >= 0
    note = (
        f"{SIZE} px, {EPOCHS[labels]} epochs each, {TESTED} test images a class, three seeds; difference"
        f" {value:+.3f} [{low:+.3f}, {high:+.3f}]; goal:"
        f" {'above' if other == 'scratch' else 'not below'} zero"
    )
    name = f"{labels} labels a class: lp_ft, balanced accuracy, against {other}"
    return Row(name, ours, theirs, ours / theirs, "", None if held else 1.0, None, note)


def bootstrap_difference(one: Doubles, other: Doubles, y: NDArray[np.int64]) -> tuple[float, float, float]:
    """Difference of balanced accuracies and its 95 % interval, by resampling the test samples.

    Args:
        one, other: [N], how often each sample was right over the seeds.
    """
    random = np.random.default_rng(0)
    classes = [np.flatnonzero(y == label) for label in np.unique(y)]
    apart = one - other
    draws = [np.mean([apart[random.choice(rows, len(rows))].mean() for rows in classes]) for _ in range(2000)]
    value = float(np.mean([apart[rows].mean() for rows in classes]))
    low, high = np.quantile(draws, [0.025, 0.975])
    return value, float(low), float(high)


def _balanced(right: Doubles, y: NDArray[np.int64]) -> float:
    return float(np.mean([right[y == label].mean() for label in np.unique(y)]))


def _right(
    manifest: Manifest,
    y: NDArray[np.int64],
    embedder: Embedder,
    method: Method,
    labels: int,
    seed: int,
    settings: Settings,
) -> Doubles:
    """Whether each test sample [N] is classified right."""
    params = FinetuneParams(
        method=method,
        epochs=EPOCHS[labels],
        **({"learning_rate": 2e-3} if method == "scratch" else {}),
        augment=("hflip", "vflip"),
        seed=seed,
    )
    head = _headed(manifest, embedder, settings)[1] if method == "lp_ft" else None
    key = digest_of(manifest, params)[:32]
    out = settings.root / "trained" / key
    out.mkdir(parents=True)
    tuned = finetune.run(
        out,
        manifest,
        Path("/"),
        embedder.backbones[0],
        head,
        params,
        settings,
        key=key,
        max_pixels=MAX_PIXELS,
    )
    embeddings, fitted = _headed(manifest, embedder_of([tuned.backbone]), settings)
    outputs, _ = test_outputs(manifest, embeddings, fitted.path)
    right: Doubles = (outputs.argmax(axis=1) == y).astype(np.float64)
    return right


def _headed(manifest: Manifest, embedder: Embedder, settings: Settings) -> tuple[Embeddings, Head]:
    embeddings = embed.run(manifest, Path("/"), embedder, settings, MAX_PIXELS)
    folder = settings.root / "heads" / digest_of(manifest, embedder)[:32]
    folder.mkdir(parents=True, exist_ok=True)
    return embeddings, fit.run(folder, manifest, embeddings, HeadParams())


def labelled(files: list[Path], labels: int, folder: Path) -> tuple[Manifest, NDArray[np.int64]]:
    """So many training images of each class, and always the same others; and the truth of the test rows."""
    splits = ("test",) * TESTED + ("validation",) * VALIDATED + ("train",) * labels
    rows = []
    for name in sorted({file.parent.name for file in files}):
        some = digested([file for file in files if file.parent.name == name])
        some.sort(key=lambda sample: position(sample.digest, 0))
        rows += [
            (one.digest, str(one.file)[1:], name, split) for one, split in zip(some, splits, strict=False)
        ]
    rows.sort()
    digests, paths, names, split = (list(column) for column in zip(*rows, strict=True))
    folder.mkdir()
    columns = {"digest": digests, "path": paths, "label": names, "split": split, "group": [""] * len(rows)}
    pq.write_table(pa.table(columns), folder / "manifest.parquet")
    classes = tuple(sorted(set(names)))
    manifest = Manifest(
        digest=digest_of(digests, split),
        folder=str(folder),
        samples=len(rows),
        classes=classes,
        slices=(),
        counts={one: {name: splits.count(one) for name in classes} for one in set(splits)},
        conflicts=(),
        left_out=(),
        quarantined=0,
    )
    tested = [classes.index(name) for name, one in zip(names, split, strict=True) if one == "test"]
    return manifest, np.array(tested, dtype=np.int64)
