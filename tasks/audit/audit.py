"""The audit of the data from its embeddings: near-duplicates, leakage, label errors, outliers,
confusable classes, and shifts."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.audit import classes, duplicates, label_errors, outliers, review, shift, space
from tasks.audit.duplicates import Duplicates
from tasks.audit.label_errors import Doubles, LabelErrors
from tasks.audit.neighbours import MAX_PAIRS
from tasks.audit.rows import Bools, Rows, Vectors
from tasks.audit.thumbnails import thumbnails
from tasks.embedding.gather import parts
from tasks.errors import DataError
from tasks.head import fitted
from tasks.params import AuditParams
from tasks.records import Embeddings, Findings, Head, Manifest, digest_of


def run(
    out: Path,
    manifest: Manifest,
    data: Path,
    embeddings: Embeddings,
    head: Head,
    champion_manifest: Path | None,
    params: AuditParams,
) -> Findings:
    """Writes audit.json, review.csv and a contact sheet of each kind of which something was found.

    Args:
        data: folder that the manifest's paths are relative to.
        embeddings: of all samples, with the blocks that the head stands on.
        champion_manifest: what the champion was trained on (manifest.parquet, or its folder).

    Raises:
        CacheError: an embedding is missing.
        DataError: a file vanished or changed since the manifest was made, or the head is of another
            manifest.
    """
    rows, vectors = Rows.of(manifest), Vectors(embeddings)
    paths = rows.text("path")
    files = {digest: paths[row] for digest, row in zip(rows.contents, rows.first_row, strict=True)}

    def look(digests: Sequence[str], share: float, height: float) -> NDArray[np.uint8]:
        some = {digest: files[digest] for digest in digests}
        return thumbnails(data, some, Path(embeddings.root).parent / "thumbnails", share, height)

    alike = duplicates.find(rows, vectors, look, params)
    outputs = _outputs(rows, vectors, head)
    seen_labels = _seen_labels(rows, head)
    errors = _label_errors(rows, outputs, ~seen_labels, params)
    seen = space.fit(vectors, rows.contents, parts(embeddings), params.seed)
    coordinates = seen.project(vectors, rows.contents)
    kind = rows.truth.argmax(axis=1) if rows.target == "class" else np.zeros(len(rows), dtype=np.int64)
    far = outliers.find(coordinates[rows.content_of], kind, params.outliers)
    shifts, notes = shift.find(rows, vectors, seen, alike, champion_manifest, params.seed)

    listed = review.entries(rows, alike, errors, far)
    review.write_csv(out / "review.csv", listed)
    review.draw_sheets(out, data, rows, alike, errors, far, params.listed)
    told = rows.of_split("train" if head.judged_on == "folds" else "validation")
    mistaken = classes.confusable(_said(rows, outputs)[told], rows.truth[told], rows.classes)
    found = Findings(
        digest="",
        folder=str(out),
        near_duplicates=len(alike),
        leaked=alike.leaked,
        leakage=alike.leakage,
        unchecked=alike.unchecked,
        truncated=alike.pairs.truncated,
        group_leaks=_group_leaks(rows),
        label_errors=len(errors.rows),
        label_error_rate=errors.rate,
        outliers=len(far.rows),
        confusable=mistaken,
        imbalance=classes.imbalance(manifest.counts["train"]) if rows.classes else None,
        shifts=shifts,
        notes=(*_of_pairs(alike), *_of_labels(seen_labels), *notes),
    )
    facts = found.model_dump(mode="json", exclude={"digest", "folder"})
    worst = {
        kind: [vars(entry) for entry in listed if entry.kind == kind][: params.listed]
        for kind in ("near_duplicate", "label_error", "outlier")
    }
    text = json.dumps({**facts, "worst": worst}, indent=2, ensure_ascii=False) + "\n"
    (out / "audit.json").write_text(text, encoding="utf-8")
    digest = digest_of(facts, (out / "review.csv").read_text(encoding="utf-8"))
    return found.model_copy(update={"digest": digest})


def _outputs(rows: Rows, vectors: Vectors, head: Head) -> Doubles:
    """What the head says of each row, [N, K], where there is one by a head that did not see it: of train
    the folds' heads or, judged on validation, of validation what was chosen and calibrated without it."""
    told = pq.read_table(head.path / "held_out.parquet", columns=["digest", "outputs"])
    held_out = rows.of_split("train" if head.judged_on == "folds" else "validation")
    digests = np.array(rows.text("digest"), dtype=object)
    if told["digest"].to_pylist() != digests[held_out].tolist():
        which = "training" if head.judged_on == "folds" else "validation"
        raise DataError(
            f"{head.path / 'held_out.parquet'}: is not of this manifest's {which} samples; fit the head again"
        )
    flat = told["outputs"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    outputs = np.empty((len(rows), len(rows.classes) or 1))
    outputs[held_out] = flat.reshape(len(told), -1)
    model = fitted.load(head.path)
    rest = np.flatnonzero(~held_out)
    for start, some in vectors.chunks(digests[rest].tolist()):
        outputs[rest[start : start + len(some)]] = model.outputs(some)
    return outputs


def _seen_labels(rows: Rows, head: Head) -> Bools:
    """The rows [N] whose labels all that is said of them has seen: a backbone that was trained on the
    training split agrees with a wrong label of it."""
    return rows.of_split("train") if head.judged_on == "validation" else np.zeros(len(rows), dtype=np.bool_)


def _label_errors(rows: Rows, outputs: Doubles, checked: Bools, params: AuditParams) -> LabelErrors:
    """Among the `checked` rows [N]; the rate is theirs."""
    said, truth = outputs[checked], rows.truth[checked]
    if rows.target == "class":
        found = label_errors.of_classes(said, truth.argmax(axis=1), rows.classes)
    elif rows.target == "labels":
        found = label_errors.of_labels(said, truth, rows.classes)
    else:
        values = rows.frame["label"].to_numpy(dtype=np.float64)[checked]
        found = label_errors.of_numbers(said[:, 0], values, params.outliers)
    return replace(found, rows=np.flatnonzero(checked)[found.rows])


def _said(rows: Rows, outputs: Doubles) -> Bools:
    """The classes that the outputs mean, [N, C]."""
    said: Bools = outputs >= 0.5
    if rows.target == "class":
        said = outputs.argmax(axis=1)[:, None] == np.arange(len(rows.classes))
    return said if rows.target != "number" else rows.truth


def _group_leaks(rows: Rows) -> tuple[str, ...]:
    """Groups with samples in several splits."""
    grouped = rows.frame[rows.frame["group"] != ""].groupby("group")["split"].nunique()
    return tuple(sorted(str(group) for group in grouped.index[grouped > 1]))


def _of_labels(unchecked: Bools) -> list[str]:
    if not unchecked.any():
        return []
    return [
        f"the labels of the {int(unchecked.sum()):,} training images were not checked: the backbone was"
        " trained on them, and agrees with wrong ones too; audit them with a head on the frozen backbone"
    ]


def _of_pairs(alike: Duplicates) -> list[str]:
    notes = []
    if alike.pairs.plain:
        notes.append(
            f"{alike.pairs.plain:,} images are almost of one colour, {alike.unchecked:,} of them in test;"
            " near-duplicates of those were not looked for"
        )
    if alike.pairs.found > MAX_PAIRS:
        notes.append(
            f"{alike.pairs.found:,} pairs of images look alike; only {MAX_PAIRS:,} were compared by their"
            " embeddings (audit.pixels), "
            + ("not even all" if alike.pairs.truncated else "among them all")
            + " that are across train and test"
        )
    return notes
