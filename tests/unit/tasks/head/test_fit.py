import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from tasks.embedding.cache import EmbeddingCache
from tasks.errors import CacheError, DataError
from tasks.head import fit, training
from tasks.head.fitted import FittedHead, load
from tasks.head.linear import Linear
from tasks.head.training import Samples, Trained
from tasks.params import HeadParams
from tasks.records import SPLITS, Block, Embeddings, Head, Manifest, Split, digest_of

DIM = 6
Vectors = NDArray[np.float32]
Data = Mapping[Split, tuple[Vectors, Sequence[str]]]  # split -> embeddings [N, D], labels
Make = Callable[..., tuple[Manifest, Embeddings]]

PARAMS = HeadParams(strengths=(0.01, 0.1, 1.0), folds=3)


def clusters(n: int, seed: int, classes: str = "abc") -> tuple[Vectors, list[str]]:
    """`n` samples around a centre for each class; they overlap."""
    chance = np.random.default_rng(seed)
    labels = [classes[i % len(classes)] for i in range(n)]
    centres = np.eye(DIM)[[classes.index(label) for label in labels]]
    return (centres + chance.normal(size=(n, DIM))).astype(np.float32), labels


def data(train: int = 90) -> dict[Split, tuple[Vectors, Sequence[str]]]:
    return {"train": clusters(train, 0), "validation": clusters(30, 1), "test": clusters(30, 2)}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A manifest with its embeddings in caches: a block for each of `parts`, each with parts of its own."""

    def written(splits: Data, parts: Sequence[Sequence[int]] = ((DIM,),)) -> tuple[Manifest, Embeddings]:
        root = tmp_path / f"input-{len(list(tmp_path.iterdir()))}"
        root.mkdir()
        blocks = tuple(
            Block(digest=f"block-{number}", layer="network", pooling=(), view="identity", parts=tuple(some))
            for number, some in enumerate(parts)
        )
        ends = np.cumsum([block.dim for block in blocks])
        rows = []
        for split, (vectors, labels) in splits.items():
            digests = [hashlib.sha256(f"{split}{i}".encode()).hexdigest() for i in range(len(labels))]
            for block, end in zip(blocks, ends, strict=True):
                cache = EmbeddingCache(root, block.digest, block.dim)
                cache.append(digests, np.ascontiguousarray(vectors[:, end - block.dim : end]))
            rows += [(digest, label, split) for digest, label in zip(digests, labels, strict=True)]
        rows.sort()
        columns: dict[str, Sequence[str]] = dict(
            zip(("digest", "label", "split"), zip(*rows, strict=True), strict=True)
        )
        columns["group"] = [""] * len(rows)
        columns["path"] = [f"{digest}.png" for digest, _, _ in rows]
        pq.write_table(pa.table(columns), root / "manifest.parquet")
        manifest = Manifest(
            digest=digest_of(rows),
            folder=str(root),
            samples=len(rows),
            classes=tuple(sorted({label for _, label, _ in rows})),
            slices=(),
            counts={split: dict(Counter(splits[split][1])) for split in SPLITS},
            conflicts=(),
            left_out=(),
            quarantined=0,
        )
        embeddings = Embeddings(digest="0", root=str(root), blocks=blocks, computed=0, cached=len(rows))
        return manifest, embeddings

    return written


def folder(tmp_path: Path, name: str) -> Path:
    made = tmp_path / name
    made.mkdir()
    return made


def linear(head: FittedHead) -> Linear:
    assert isinstance(head.model, Linear)
    return head.model


def test_run__is_deterministic_bit_for_bit(make: Make, tmp_path: Path) -> None:
    manifest, embeddings = make(data())
    a, b = folder(tmp_path, "a"), folder(tmp_path, "b")
    first = fit.run(a, manifest, embeddings, PARAMS)
    second = fit.run(b, manifest, embeddings, PARAMS)
    assert first.digest == second.digest
    for name in ("head.safetensors", "head.json", "held_out.parquet"):
        assert (a / name).read_bytes() == (b / name).read_bytes()


def test_run__digest_changes_with_the_data(make: Make, tmp_path: Path) -> None:
    one = fit.run(folder(tmp_path, "a"), *make(data(90)), PARAMS)
    other = fit.run(folder(tmp_path, "b"), *make(data(93)), PARAMS)
    assert one.digest != other.digest


def test_run__record_says_what_the_files_hold(make: Make, tmp_path: Path) -> None:
    out = folder(tmp_path, "a")
    record = fit.run(out, *make(data()), PARAMS)
    head = load(out)
    assert record.classes == head.classes == ("a", "b", "c")
    scale = 1 / record.temperature if record.calibration != "vector" else head.calibration.scale
    np.testing.assert_allclose(head.calibration.scale, scale)
    assert (record.confidence, record.conformal) == (head.confidence, head.conformal)
    assert record.strength in PARAMS.strengths
    assert {float(strength) for strength in record.strengths} == set(PARAMS.strengths)
    assert f"{record.strength:g}" in record.strengths


def test_run__learns_what_can_be_learned(make: Make, tmp_path: Path) -> None:
    splits = data(300)
    out = folder(tmp_path, "a")
    fit.run(out, *make(splits), PARAMS)
    vectors, labels = splits["test"]
    head = load(out)
    predicted = [head.classes[i] for i in head.outputs(vectors).argmax(axis=1)]
    right = sum(p == label for p, label in zip(predicted, labels, strict=True))
    assert right / len(labels) > 0.5  # chance is 1/3


def test_run__standardises_by_the_training_split_alone(make: Make, tmp_path: Path) -> None:
    splits = data()
    far: dict[Split, tuple[Vectors, Sequence[str]]] = {
        "train": splits["train"],
        "validation": (splits["validation"][0] + np.float32(100), splits["validation"][1]),
        "test": (splits["test"][0] * np.float32(50), splits["test"][1]),
    }
    out = folder(tmp_path, "a")
    fit.run(out, *make(far), PARAMS)
    head = linear(load(out))
    train = splits["train"][0].astype(np.float64)
    np.testing.assert_allclose(head.mean, train.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(head.scale, np.sqrt(train.var(axis=0).mean()), rtol=1e-6)


def test_run__each_part_has_one_scale(make: Make, tmp_path: Path) -> None:
    splits = data()
    out = folder(tmp_path, "a")
    fit.run(out, *make(splits, [(1, 2), (3,)]), PARAMS)
    variance = splits["train"][0].astype(np.float64).var(axis=0)
    means = [variance[:1].mean(), variance[1:3].mean(), variance[3:].mean()]
    # By the number of parts too, so that several do not count for more than one does.
    expected = np.sqrt(3 * np.repeat(means, [1, 2, 3]))
    np.testing.assert_allclose(linear(load(out)).scale, expected, rtol=1e-6)


def test_run__units_of_a_part_change_nothing(make: Make, tmp_path: Path) -> None:
    splits = data()
    units = np.array([1, 1, 1, 1024, 1024, 1024], dtype=np.float32)
    scaled = {split: (vectors * units, labels) for split, (vectors, labels) in splits.items()}
    a, b = folder(tmp_path, "a"), folder(tmp_path, "b")
    one = fit.run(a, *make(splits, [(3, 3)]), PARAMS)
    other = fit.run(b, *make(scaled, [(3,), (3,)]), PARAMS)
    assert one.strength == other.strength
    p, q = (load(out).outputs(some["test"][0]) for out, some in ((a, splits), (b, scaled)))
    np.testing.assert_allclose(p, q, rtol=1e-6)


def test_run__part_that_is_constant_says_nothing(make: Make, tmp_path: Path) -> None:
    splits = data()
    flat = {
        split: (np.concatenate([vectors, np.full((len(labels), 2), 7, dtype=np.float32)], axis=1), labels)
        for split, (vectors, labels) in splits.items()
    }
    a, b = folder(tmp_path, "a"), folder(tmp_path, "b")
    # Twice the strength at half the variance is the same regularisation.
    fit.run(a, *make(splits), HeadParams(strengths=(0.1,), folds=3))
    fit.run(b, *make(flat, [(DIM,), (2,)]), HeadParams(strengths=(0.2,), folds=3))
    p = load(a).outputs(splits["test"][0])
    q = load(b).outputs(flat["test"][0])
    np.testing.assert_allclose(p, q, atol=1e-4)


def test_run__test_split_changes_nothing(make: Make, tmp_path: Path) -> None:
    splits = data()
    other = {**splits, "test": (splits["test"][0][::-1] * np.float32(7), splits["test"][1])}
    one = fit.run(folder(tmp_path, "a"), *make(splits), PARAMS)
    two = fit.run(folder(tmp_path, "b"), *make(other), PARAMS)
    assert one.digest == two.digest


def test_run__validation_split_changes_the_thresholds_alone(make: Make, tmp_path: Path) -> None:
    splits = data()
    vectors, labels = splits["validation"]
    wrong = {**splits, "validation": (vectors, [*labels[1:], labels[0]])}
    a, b = folder(tmp_path, "a"), folder(tmp_path, "b")
    one, two = fit.run(a, *make(splits), PARAMS), fit.run(b, *make(wrong), PARAMS)
    assert one.conformal is not None
    assert two.conformal is not None
    assert one.conformal.threshold > two.conformal.threshold
    for name in ("head.safetensors", "held_out.parquet"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    assert (one.strengths, one.temperature) == (two.strengths, two.temperature)


def test_run__held_out_has_a_row_for_each_training_sample(make: Make, tmp_path: Path) -> None:
    out = folder(tmp_path, "a")
    manifest, embeddings = make(data())
    fit.run(out, manifest, embeddings, PARAMS)
    found = pq.read_table(out / "held_out.parquet")
    columns = ["digest", "path", "label"]
    expected = pq.read_table(manifest.file, columns=columns, filters=[("split", "=", "train")])
    assert found.select(columns).to_pydict() == expected.to_pydict()
    outputs = np.array(found["outputs"].to_pylist())
    assert outputs.shape == (90, 3)
    np.testing.assert_allclose(outputs.sum(axis=1), 1, atol=1e-6)
    seen = load(out).outputs(fit.split_data(manifest, embeddings, "train")[0])
    assert np.abs(outputs - seen).max() > 0.01  # by fits that did not see the sample


def test_run__chosen_inputs_are_all_that_the_head_has(make: Make, tmp_path: Path) -> None:
    splits = data(150)
    chance = np.random.default_rng(9)
    noisy = {
        split: (np.concatenate([x, chance.normal(size=(len(x), 4)).astype(np.float32)], axis=1), labels)
        for split, (x, labels) in splits.items()
    }
    manifest, embeddings = make(noisy, [(DIM,), (4,)])
    out = folder(tmp_path, "a")
    record = fit.run(out, manifest, embeddings, PARAMS.model_copy(update={"inputs": "chosen"}))
    assert record.blocks == ("block-0",)
    assert len(record.inputs) == 3  # each alone, and both
    assert linear(load(out)).weight.shape == (3, DIM)
    every = fit.run(folder(tmp_path, "b"), manifest, embeddings, PARAMS)
    assert (every.blocks, every.inputs) == (("block-0", "block-1"), {})


def test_run__larger_than_the_memory_gives_the_same_head(make: Make, tmp_path: Path) -> None:
    manifest, embeddings = make(data())
    a, b = folder(tmp_path, "a"), folder(tmp_path, "b")
    one = fit.run(a, manifest, embeddings, PARAMS)
    two = fit.run(b, manifest, embeddings, PARAMS, memory_bytes=100)
    assert one.digest == two.digest


def test_run__labels_and_numbers_have_heads_of_their_own(make: Make, tmp_path: Path) -> None:
    splits = data(120)
    both = {"a": "a", "b": "a|b", "c": ""}
    labels = {split: (x, [both[name] for name in names]) for split, (x, names) in splits.items()}
    manifest, embeddings = make(labels)
    manifest = manifest.model_copy(
        update={
            "target": "labels",
            "classes": ("a", "b"),
            "counts": {**manifest.counts, "train": {"a": 80, "b": 40}},
        }
    )
    params = PARAMS.model_copy(update={"kind": "multilabel"})
    record = fit.run(folder(tmp_path, "a"), manifest, embeddings, params)
    assert (record.target, record.kind, record.conformal) == ("labels", "multilabel", None)
    assert fit.split_data(manifest, embeddings, "test")[1].shape == (30, 2)

    values = {split: (x, [f"{row.sum():.3f}" for row in x]) for split, (x, _) in splits.items()}
    manifest, embeddings = make(values)
    manifest = manifest.model_copy(
        update={"target": "number", "classes": (), "counts": {**manifest.counts, "train": {"": 120}}}
    )
    out = folder(tmp_path, "b")
    params = PARAMS.model_copy(update={"kind": "ridge", "strengths": (100.0,)})
    record = fit.run(out, manifest, embeddings, params)
    assert (record.target, record.kind, record.classes) == ("number", "ridge", ())
    x, y = fit.split_data(manifest, embeddings, "test")
    np.testing.assert_allclose(load(out).outputs(x)[:, 0], y, atol=0.05)


def test_truth__what_is_no_number_is_an_error(make: Make) -> None:
    manifest = make(data())[0].model_copy(update={"target": "number", "classes": ()})
    for bad in ("blue", "nan"):
        with pytest.raises(DataError, match=r"data\.target number"):
            fit.truth(manifest, ["1.5", bad])


def test_run__constant_embeddings_give_the_class_frequencies(make: Make, tmp_path: Path) -> None:
    splits: dict[Split, tuple[Vectors, Sequence[str]]] = {
        split: (np.ones((12, DIM), dtype=np.float32), list("aaabaaabaaab")) for split in SPLITS
    }
    out = folder(tmp_path, "a")
    fit.run(out, *make(splits), PARAMS)
    p = load(out).outputs(np.ones((1, DIM), dtype=np.float32))
    np.testing.assert_allclose(p, [[0.75, 0.25]], atol=2e-3)


def test_run__too_few_of_a_class_is_named(make: Make, tmp_path: Path) -> None:
    splits = data()
    vectors, labels = splits["train"]
    few = [i for i, label in enumerate(labels) if label == "b"][2:]
    keep = [i for i in range(len(labels)) if i not in few]
    splits["train"] = (vectors[keep], [labels[i] for i in keep])
    with pytest.raises(DataError, match=r"class 'b' has 2 training samples, fewer than head\.folds = 3"):
        fit.run(folder(tmp_path, "a"), *make(splits), PARAMS)


def test_run__class_without_training_samples_is_named(make: Make, tmp_path: Path) -> None:
    splits = data()
    splits["train"] = clusters(60, 0, "ab")
    with pytest.raises(DataError, match="class 'c' has 0 training samples"):
        fit.run(folder(tmp_path, "a"), *make(splits), PARAMS)


def test_run__embedding_that_is_missing_is_an_error(make: Make, tmp_path: Path) -> None:
    manifest, embeddings = make(data())
    empty = embeddings.model_copy(update={"root": str(folder(tmp_path, "empty"))})
    with pytest.raises(CacheError, match="are not in the cache"):
        fit.run(folder(tmp_path, "a"), manifest, empty, PARAMS)


def test_split_data__is_in_the_manifests_order(make: Make) -> None:
    splits = data()
    manifest, embeddings = make(splits)
    x, y = fit.split_data(manifest, embeddings, "validation")
    table = pq.read_table(manifest.file, filters=[("split", "=", "validation")])
    assert [manifest.classes[i] for i in y] == table["label"].to_pylist()
    cache = EmbeddingCache(Path(embeddings.root), "block-0", DIM)
    np.testing.assert_array_equal(x, cache.gather(table["digest"].to_pylist()))


def test_run__copies_are_in_one_fold_whatever_their_groups_say(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, embeddings = make(data())
    table = pq.read_table(manifest.file).to_pandas()
    copies = table[table["split"] == "train"].assign(group=[f"g{number // 2}" for number in range(90)])
    pq.write_table(pa.Table.from_pandas(pd.concat([table, copies]), preserve_index=False), manifest.file)
    seen = {}

    def train(samples: Samples, **others: Any) -> Trained:
        seen["groups"] = samples.groups
        return training.train(samples, **others)

    monkeypatch.setattr(fit, "train", train)
    fit.run(folder(tmp_path, "a"), manifest, embeddings, PARAMS)
    expected = [f"g{number // 2}" for number in range(90)]
    assert seen["groups"] == [*expected, *expected]


def tuned(made: tuple[Manifest, Embeddings], *blocks: str) -> tuple[Manifest, Embeddings]:
    """The same, with backbones (all, or those of some blocks) that were trained on the training split."""
    manifest, embeddings = made
    names = blocks or tuple(block.digest for block in embeddings.blocks)
    return manifest, embeddings.model_copy(update={"tuned": dict.fromkeys(names, manifest.digest)})


def judged(train: int = 90, seed: int = 1) -> dict[Split, tuple[Vectors, Sequence[str]]]:
    return {**data(train), "validation": clusters(60, seed)}


def test_run__tuned_backbone_is_judged_on_validation(make: Make, tmp_path: Path) -> None:
    manifest, embeddings = tuned(make(judged()))
    out = folder(tmp_path, "a")
    record = fit.run(out, manifest, embeddings, PARAMS)
    assert record.judged_on == "validation"
    found = pq.read_table(out / "held_out.parquet")
    columns = ["digest", "path", "label"]
    expected = pq.read_table(manifest.file, columns=columns, filters=[("split", "=", "validation")])
    assert found.select(columns).to_pydict() == expected.to_pydict()
    outputs = np.array(found["outputs"].to_pylist())
    x, y = fit.split_data(manifest, embeddings, "validation")
    # By the head itself, calibrated by other folds of validation.
    np.testing.assert_allclose(outputs, load(out).outputs(x), atol=0.1)
    # The thresholds are read off them: k = ⌊61 · .1⌋ = 6.
    assert record.conformal is not None
    true = np.sort(outputs[np.arange(60), y])
    assert record.conformal.threshold == pytest.approx(true[5], abs=1e-6)


def test_run__backbone_that_is_not_tuned_is_judged_on_folds(make: Make, tmp_path: Path) -> None:
    out = folder(tmp_path, "a")
    record = fit.run(out, *make(data()), PARAMS)
    assert record.judged_on == "folds"
    told = json.loads(record.save().model_dump_json())
    del told["judged_on"]  # as it was before there were tuned backbones
    (out / "record.json").write_text(json.dumps(told))
    assert Head.load(out) == record


def test_run__tuned_backbone_validation_is_in_no_fit(make: Make, tmp_path: Path) -> None:
    splits = judged()
    far = {**splits, "validation": (splits["validation"][0] + np.float32(9), splits["validation"][1])}
    one_strength = PARAMS.model_copy(update={"strengths": (0.1,)})
    a, b = folder(tmp_path, "a"), folder(tmp_path, "b")
    fit.run(a, *tuned(make(splits)), one_strength)
    fit.run(b, *tuned(make(far)), one_strength)
    for name in ("mean", "scale", "weight", "bias"):
        one, other = (getattr(linear(load(out)), name) for out in (a, b))
        np.testing.assert_array_equal(one, other)


def test_run__tuned_backbone_test_split_changes_nothing(make: Make, tmp_path: Path) -> None:
    splits = judged()
    other = {**splits, "test": (splits["test"][0][::-1] * np.float32(7), splits["test"][1])}
    one = fit.run(folder(tmp_path, "a"), *tuned(make(splits)), PARAMS)
    two = fit.run(folder(tmp_path, "b"), *tuned(make(other)), PARAMS, memory_bytes=100)
    assert one.digest == two.digest


def test_run__tuned_backbone_needs_validation_samples(make: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="30 independent validation samples are fewer than the 50"):
        fit.run(folder(tmp_path, "a"), *tuned(make(data())), PARAMS)


def test_run__one_tuned_block_is_enough_and_is_not_chosen_for_what_it_memorised(
    make: Make, tmp_path: Path
) -> None:
    chance = np.random.default_rng(9)
    splits = {}
    for split, (x, labels) in judged(150).items():
        # Of the training split the label itself, of others nothing.
        known = np.eye(3)[["abc".index(label) for label in labels]] if split == "train" else 0
        memory = 3 * known + 0.3 * chance.normal(size=(len(x), 3))
        splits[split] = (np.concatenate([x, memory.astype(np.float32)], axis=1), labels)
    made = make(splits, [(DIM,), (3,)])
    chosen = PARAMS.model_copy(update={"inputs": "chosen"})
    deceived = fit.run(folder(tmp_path, "a"), *made, chosen)
    assert "block-1" in deceived.blocks
    record = fit.run(folder(tmp_path, "b"), *tuned(made, "block-1"), chosen)
    assert (record.judged_on, record.blocks) == ("validation", ("block-0",))
    assert record.inputs["network (block-0)"].standard_error > 0


def test_run__backbone_tuned_on_another_manifest_is_warned_of(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest, embeddings = tuned(make(judged()))
    fit.run(folder(tmp_path, "a"), manifest, embeddings, PARAMS)
    assert caplog.text == ""
    other = embeddings.model_copy(update={"tuned": {"block-0": "other"}})
    record = fit.run(folder(tmp_path, "b"), manifest, other, PARAMS)
    assert record.judged_on == "validation"
    assert "training split of another manifest (other)" in caplog.text
