"""The head stage: a head on cached embeddings, chosen and calibrated by cross-validation on the
training split; from where on it is to be trusted is read off the validation split. Where a backbone was
trained on the training split, it has seen the labels of all folds, and the validation split does both
(docs/adr/0008)."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.data import units
from tasks.data.labels import names
from tasks.embedding.gather import open_caches, parts
from tasks.embedding.source import file_digest
from tasks.errors import DataError
from tasks.head.choose import choose_blocks
from tasks.head.conformal import confidence, conformal
from tasks.head.fitted import FILES, FittedHead
from tasks.head.folds import check_folds, check_validation
from tasks.head.linear import Matrix, Vectors
from tasks.head.training import Samples, Trained, cross_validate, train
from tasks.params import HeadParams
from tasks.records import Embeddings, Head, Manifest, Score, Split, digest_of

# Larger matrices of embeddings are kept in a file and read in chunks.
MEMORY_BYTES = 4 << 30
HELD_OUT = "held_out.parquet"

log = logging.getLogger(__name__)


def run(
    out: Path,
    manifest: Manifest,
    embeddings: Embeddings,
    params: HeadParams,
    *,
    memory_bytes: int = MEMORY_BYTES,
) -> Head:
    """Fits the head and writes head.safetensors, head.json and held_out.parquet.

    Raises:
        DataError: a class has fewer training samples than there are folds, a label is no number, or a
            backbone was trained on the training split and there are too few validation samples.
        CacheError: an embedding is missing.
    """
    check_folds(manifest, params.folds)
    tuned = bool(embeddings.tuned)
    if tuned:
        check_validation(manifest)
        _warn_of_others(manifest, embeddings)
    inputs: dict[str, Score] = {}
    if params.inputs == "chosen":
        embeddings, inputs = _chosen(manifest, embeddings, params, memory_bytes)
    samples = _samples(manifest, embeddings, memory_bytes, tuned)
    trained = train(samples, target=manifest.target, classes=manifest.classes, params=params)
    head = trained.fitted
    if head.target == "class":
        head = _with_thresholds(trained, samples, manifest, embeddings, params, memory_bytes)
    head.save(out)
    _write_held_out(out / HELD_OUT, manifest, trained.held_out, "validation" if tuned else "train")
    return _record(out, embeddings, trained, head, inputs, tuned)


def split_data(
    manifest: Manifest, embeddings: Embeddings, split: Split, *, memory_bytes: int = MEMORY_BYTES
) -> tuple[Vectors, NDArray[Any]]:
    """The embeddings [N, D] and the truth of a split, in the manifest's order: class indices int64
    [N], labels float32 [N, C] (0 or 1), or numbers float64 [N].

    Raises:
        DataError: a label is no number, and the target is.
        CacheError: an embedding is missing.
    """
    return _of_splits(manifest, embeddings, [split], memory_bytes)


def truth(manifest: Manifest, labels: Sequence[Any]) -> NDArray[Any]:
    """Labels as the manifest has them, as numbers: see `split_data`.

    Raises:
        DataError: a label is no number, and the target is.
    """
    index = {name: i for i, name in enumerate(manifest.classes)}
    if manifest.target == "class":
        return np.array([index[name] for name in labels], dtype=np.int64)
    if manifest.target == "labels":
        y = np.zeros((len(labels), len(index)), dtype=np.float32)
        for row, label in enumerate(labels):
            y[row, [index[name] for name in names(label)]] = 1.0
        return y
    try:
        numbers = np.array([float(label) for label in labels], dtype=np.float64)
    except ValueError as error:
        raise DataError(f"{manifest.file}: {error}; a label of data.target number has to be one") from None
    if not np.isfinite(numbers).all():
        raise DataError(f"{manifest.file}: a label of data.target number is not finite")
    return numbers


def _of_splits(
    manifest: Manifest, embeddings: Embeddings, splits: Sequence[Split], memory_bytes: int
) -> tuple[Vectors, NDArray[Any]]:
    """As `split_data`, of several splits one after the other."""
    tables = [
        pq.read_table(manifest.file, columns=["digest", "label"], filters=[("split", "=", split)])
        for split in splits
    ]
    table = pa.concat_tables(tables)
    y = truth(manifest, table["label"].to_pylist())
    return _gathered(embeddings, table["digest"].to_pylist(), memory_bytes), y


def _gathered(embeddings: Embeddings, digests: Sequence[str], memory_bytes: int) -> Vectors:
    shape = (len(digests), embeddings.dim)
    if shape[0] * shape[1] * 4 <= memory_bytes:
        vectors = np.empty(shape, dtype=np.float32)
    else:
        # Without a name, and gone with the array; beside the caches, where there is room for them.
        file = tempfile.TemporaryFile(dir=embeddings.root)  # noqa: SIM115
        vectors = np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
    start = 0
    for cache in open_caches(embeddings.blocks, Path(embeddings.root)).values():
        cache.gather(digests, out=vectors[:, start : start + cache.dim])
        start += cache.dim
    return vectors


def _samples(manifest: Manifest, embeddings: Embeddings, memory_bytes: int, tuned: bool) -> Samples:
    """The training split; where a backbone has seen its labels, with the validation split behind it."""
    groups = units.of_split(manifest, "train")
    if tuned:
        x, y = _of_splits(manifest, embeddings, ["train", "validation"], memory_bytes)
        validation = np.arange(len(y)) >= len(groups)
        groups += units.of_split(manifest, "validation")
        return Samples(x, y, parts(embeddings), groups, memory_bytes, validation)
    x, y = split_data(manifest, embeddings, "train", memory_bytes=memory_bytes)
    # A group, or copies of one image, in two folds would let the head see what it is judged on.
    apart = len(set(groups)) == len(groups)
    return Samples(x, y, parts(embeddings), None if apart else groups, memory_bytes)


def _chosen(
    manifest: Manifest, embeddings: Embeddings, params: HeadParams, memory_bytes: int
) -> tuple[Embeddings, dict[str, Score]]:
    """The embeddings of the blocks that are chosen by what was held out, and what was tried."""
    target, classes, tuned = manifest.target, manifest.classes, bool(embeddings.tuned)

    def losses_of(places: tuple[int, ...]) -> Matrix:
        some = embeddings.select([embeddings.blocks[place].digest for place in places])
        samples = _samples(manifest, some, memory_bytes, tuned)
        return cross_validate(samples, target=target, classes=classes, params=params)

    chosen, tried = choose_blocks(embeddings.blocks, losses_of)
    return embeddings.select([embeddings.blocks[place].digest for place in chosen]), tried


def _with_thresholds(
    trained: Trained,
    samples: Samples,
    manifest: Manifest,
    embeddings: Embeddings,
    params: HeadParams,
    memory_bytes: int,
) -> FittedHead:
    """Of classes alone, by validation samples that were in no fit, no choice and no calibration of what
    is said of them."""
    if samples.validation is None:
        x, y = split_data(manifest, embeddings, "validation", memory_bytes=memory_bytes)
        outputs = trained.fitted.outputs(x)
    else:
        outputs, y = trained.held_out, np.asarray(samples.y[samples.validation], dtype=np.int64)
    return trained.fitted.with_thresholds(
        confidence(outputs, y, params.precision), conformal(outputs, y, params.coverage)
    )


def _warn_of_others(manifest: Manifest, embeddings: Embeddings) -> None:
    for other in sorted(set(embeddings.tuned.values()) - {manifest.digest}):
        log.warning(
            "a backbone was trained on the training split of another manifest (%s): if that has samples of"
            " this one's validation or test split, what they say of the head is too good",
            other[:16],
        )


def _write_held_out(file: Path, manifest: Manifest, outputs: Matrix, split: Split) -> None:
    columns = ["digest", "path", "label"]
    table = pq.read_table(manifest.file, columns=columns, filters=[("split", "=", split)])
    lists = pa.FixedSizeListArray.from_arrays(
        pa.array(outputs.astype(np.float32).ravel()), outputs.shape[1]
    ).cast(pa.list_(pa.float32()))
    pq.write_table(table.append_column("outputs", lists), file)


def _record(
    out: Path,
    embeddings: Embeddings,
    trained: Trained,
    head: FittedHead,
    inputs: dict[str, Score],
    tuned: bool,
) -> Head:
    return Head(
        digest=digest_of(*(file_digest(out / name) for name in (*FILES, HELD_OUT))),
        folder=str(out),
        target=head.target,
        kind=trained.kind,
        classes=head.classes,
        blocks=tuple(block.digest for block in embeddings.blocks),
        strength=trained.strength,
        strengths=trained.strengths,
        kinds=dict(trained.kinds),
        inputs=inputs,
        calibration=trained.calibration.method,
        temperature=trained.calibration.temperature,
        confidence=head.confidence,
        conformal=head.conformal,
        judged_on="validation" if tuned else "folds",
    )
