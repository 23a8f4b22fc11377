import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from tasks.embedding.cache import EmbeddingCache
from tasks.errors import CacheError, DataError
from tasks.head import fit
from tasks.head.linear import LinearHead
from tasks.head.solver import Basis
from tasks.params import HeadParams
from tasks.records import SPLITS, Block, Embeddings, Manifest, Split, digest_of

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
        pq.write_table(pa.table(columns), root / "manifest.parquet")
        manifest = Manifest(
            digest=digest_of(rows),
            folder=str(root),
            samples=len(rows),
            classes=tuple(sorted({label for _, label, _ in rows})),
            slices=(),
            counts={split: {} for split in SPLITS},
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


def test_run__is_deterministic_bit_for_bit(make: Make, tmp_path: Path) -> None:
    manifest, embeddings = make(data())
    a, b = folder(tmp_path, "a"), folder(tmp_path, "b")
    first = fit.run(a, manifest, embeddings, PARAMS)
    second = fit.run(b, manifest, embeddings, PARAMS)
    assert first.digest == second.digest
    for name in ("head.safetensors", "head.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes()


def test_run__digest_changes_with_the_data(make: Make, tmp_path: Path) -> None:
    one = fit.run(folder(tmp_path, "a"), *make(data(90)), PARAMS)
    other = fit.run(folder(tmp_path, "b"), *make(data(93)), PARAMS)
    assert one.digest != other.digest


def test_run__record_says_what_the_files_hold(make: Make, tmp_path: Path) -> None:
    out = folder(tmp_path, "a")
    record = fit.run(out, *make(data()), PARAMS)
    head = LinearHead.load(out)
    assert record.classes == head.classes == ("a", "b", "c")
    assert record.temperature == head.temperature
    assert record.strength in PARAMS.strengths
    assert {float(strength) for strength in record.strengths} <= set(PARAMS.strengths)
    assert str(record.strength) in record.strengths


def test_run__learns_what_can_be_learned(make: Make, tmp_path: Path) -> None:
    splits = data(300)
    out = folder(tmp_path, "a")
    fit.run(out, *make(splits), PARAMS)
    vectors, labels = splits["test"]
    head = LinearHead.load(out)
    predicted = [head.classes[i] for i in head.predict_proba(vectors).argmax(axis=1)]
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
    head = LinearHead.load(out)
    train = splits["train"][0].astype(np.float64)
    np.testing.assert_allclose(head.mean, train.mean(axis=0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(head.scale, np.sqrt(train.var(axis=0).mean()), rtol=1e-12)


def test_run__each_part_has_one_scale(make: Make, tmp_path: Path) -> None:
    splits = data()
    out = folder(tmp_path, "a")
    fit.run(out, *make(splits, [(1, 2), (3,)]), PARAMS)
    variance = splits["train"][0].astype(np.float64).var(axis=0)
    means = [variance[:1].mean(), variance[1:3].mean(), variance[3:].mean()]
    # By the number of parts too, so that several do not count for more than one does.
    expected = np.sqrt(3 * np.repeat(means, [1, 2, 3]))
    np.testing.assert_allclose(LinearHead.load(out).scale, expected, rtol=1e-12)


def test_run__units_of_a_part_change_nothing(make: Make, tmp_path: Path) -> None:
    splits = data()
    units = np.array([1, 1, 1, 1024, 1024, 1024], dtype=np.float32)
    scaled = {split: (vectors * units, labels) for split, (vectors, labels) in splits.items()}
    a, b = folder(tmp_path, "a"), folder(tmp_path, "b")
    one = fit.run(a, *make(splits, [(3, 3)]), PARAMS)
    other = fit.run(b, *make(scaled, [(3,), (3,)]), PARAMS)
    assert one.strength == other.strength
    p, q = (LinearHead.load(out).predict_proba(some["test"][0]) for out, some in ((a, splits), (b, scaled)))
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
    p = LinearHead.load(a).predict_proba(splits["test"][0])
    q = LinearHead.load(b).predict_proba(flat["test"][0])
    np.testing.assert_allclose(p, q, atol=1e-4)


def test_run__one_part_gives_the_head_of_before_there_were_parts(make: Make, tmp_path: Path) -> None:
    # In closed terms: standardised by one scale, fitted by scikit-learn.
    splits = data(150)
    out = folder(tmp_path, "a")
    record = fit.run(out, *make(splits), HeadParams(strengths=(0.1,), folds=3))
    train, labels = splits["train"][0].astype(np.float64), splits["train"][1]
    scale = np.sqrt(train.var(axis=0).mean())
    reference = LogisticRegression(C=0.1, max_iter=1000, tol=1e-8)
    reference.fit((train - train.mean(axis=0)) / scale, labels)
    logits = reference.decision_function((splits["test"][0] - train.mean(axis=0)) / scale)
    expected = softmax(logits / record.temperature, axis=1)
    found = LinearHead.load(out).predict_proba(splits["test"][0])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_run__test_split_changes_nothing(make: Make, tmp_path: Path) -> None:
    splits = data()
    other = {**splits, "test": (splits["test"][0][::-1] * np.float32(7), splits["test"][1])}
    one = fit.run(folder(tmp_path, "a"), *make(splits), PARAMS)
    two = fit.run(folder(tmp_path, "b"), *make(other), PARAMS)
    assert one.digest == two.digest


def test_run__validation_split_changes_the_temperature_alone(make: Make, tmp_path: Path) -> None:
    splits = data()
    vectors, labels = splits["validation"]
    wrong = {**splits, "validation": (vectors, [*labels[1:], labels[0]])}
    a, b = folder(tmp_path, "a"), folder(tmp_path, "b")
    one, two = fit.run(a, *make(splits), PARAMS), fit.run(b, *make(wrong), PARAMS)
    assert one.temperature < two.temperature
    assert (a / "head.safetensors").read_bytes() == (b / "head.safetensors").read_bytes()
    assert one.strengths == two.strengths


def test_run__constant_embeddings_give_the_class_frequencies(make: Make, tmp_path: Path) -> None:
    splits: dict[Split, tuple[Vectors, Sequence[str]]] = {
        split: (np.ones((12, DIM), dtype=np.float32), list("aaabaaabaaab")) for split in SPLITS
    }
    out = folder(tmp_path, "a")
    fit.run(out, *make(splits), PARAMS)
    p = LinearHead.load(out).predict_proba(np.ones((1, DIM), dtype=np.float32))
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


def test_one_standard_error__takes_the_most_regularised_within_it() -> None:
    # The least mean is 1.0, of C = 1, with the standard error sqrt(0.02 / 2) = 0.1.
    best = np.array([0.9, 1.1])
    assert fit.one_standard_error({0.01: best + 0.11, 0.1: best + 0.09, 1.0: best}) == 0.1
    assert fit.one_standard_error({0.01: best + 0.09, 0.1: best + 0.2, 1.0: best}) == 0.01
    assert fit.one_standard_error({0.01: best, 0.1: best + 0.01}) == 0.01


def test_cross_validate__has_a_loss_for_each_fold_and_stops_when_it_has_risen_twice(make: Make) -> None:
    x, y = fit.split_data(*make(data(30)), "train")
    basis = Basis.of(x.astype(np.float64) - x.mean(axis=0))
    strengths = tuple(float(c) for c in np.logspace(-3, 5, 9))
    groups = [str(row) for row in range(len(x))]
    losses = fit.cross_validate(x, y, groups, HeadParams(strengths=strengths[::-1], folds=3), basis, [DIM])
    means = [loss.mean() for loss in losses.values()]
    assert {loss.shape for loss in losses.values()} == {(3,)}
    assert tuple(losses) == strengths[: len(losses)]
    assert len(losses) < len(strengths)
    assert means[-3] < means[-2] < means[-1]
    assert not any(a < b < c for a, b, c in zip(means, means[1:-1], means[2:-1], strict=False))


def test_split_data__is_in_the_manifests_order(make: Make) -> None:
    splits = data()
    manifest, embeddings = make(splits)
    x, y = fit.split_data(manifest, embeddings, "validation")
    table = pq.read_table(manifest.file, filters=[("split", "=", "validation")])
    assert [manifest.classes[i] for i in y] == table["label"].to_pylist()
    cache = EmbeddingCache(Path(embeddings.root), "block-0", DIM)
    np.testing.assert_array_equal(x, cache.gather(table["digest"].to_pylist()))


def test_cross_validate__a_group_is_never_in_two_folds() -> None:
    # Each sample three times: judged on copies of what it was fitted on, the weakest regularisation
    # would look best, and the loss at it would be near 0. The labels are noise.
    generator = np.random.default_rng(0)
    x = np.repeat(generator.normal(size=(40, 60)), 3, axis=0).astype(np.float32)
    y = np.repeat(generator.integers(0, 2, size=40), 3)
    groups = [str(row // 3) for row in range(len(x))]
    basis = Basis.of(x.astype(np.float64) - x.mean(axis=0))
    params = HeadParams(strengths=(100.0,), folds=4)
    apart = fit.cross_validate(x, y, groups, params, basis, [60])[100.0].mean()
    mixed = fit.cross_validate(x, y, [str(row) for row in range(len(x))], params, basis, [60])[100.0].mean()
    assert mixed < 0.2  # what it was fitted on
    assert apart > np.log(2)  # worse than guessing, as befits noise
