import hashlib
import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.params import HeadParams
from tasks.records import (
    Backbone,
    Block,
    DatasetVersion,
    Difference,
    Embedder,
    Embeddings,
    Evaluation,
    Interval,
    ModelPackage,
    Preprocess,
    Rejected,
    digest_of,
)


def evaluation(folder: Path, value: float) -> Evaluation:
    interval = Interval(value=value, low=-math.inf, high=math.inf)
    difference = Difference(
        metric="ece", value=value, low=value, high=value, standard_error=0, p_better=1, p_worse=1
    )
    return Evaluation(
        digest="d",
        folder=str(folder),
        samples=3,
        alpha=0.05,
        metrics={"ece": interval},
        standard_errors={},
        chance_ece=None,
        per_class={},
        per_slice={},
        slice_samples={},
        selective=None,
        champion_version=None,
        champion_metrics=None,
        differences={"ece": difference},
        mcnemar=None,
        slice_differences={},
    )


def test_digest__is_the_sha256_of_the_canonical_json() -> None:
    # Written out, because a digest that changed would make every stored result unfindable.
    expected = hashlib.sha256(b'["a",{"b":1,"c":[2.5,null]}]').hexdigest()
    assert digest_of("a", {"c": [2.5, None], "b": 1}) == expected


def test_digest__does_not_depend_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})


def test_digest__keeps_parts_apart() -> None:
    assert len({digest_of("a", "b"), digest_of("ab"), digest_of(["a", "b"]), digest_of("b", "a")}) == 4


def test_digest__of_a_model_is_that_of_its_json() -> None:
    params = HeadParams()
    assert digest_of(params) == digest_of(params.model_dump(mode="json"))
    assert digest_of(params) != digest_of(HeadParams(folds=3))


def test_digest__of_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest_of(math.nan)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-300, -0.0])
def test_record__numbers_come_back_bit_for_bit(tmp_path: Path, value: float) -> None:
    evaluation(tmp_path, value).save()
    read = Evaluation.load(tmp_path).metrics["ece"].value
    assert read.hex() == value.hex()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_record__nan_and_infinity_come_back(tmp_path: Path, value: float) -> None:
    evaluation(tmp_path, value).save()
    read = Evaluation.load(tmp_path)
    assert str(read.metrics["ece"].value) == str(value)
    assert str(read.differences["ece"].low) == str(value)
    assert read.metrics["ece"].low == -math.inf


def test_record__file_is_strict_json(tmp_path: Path) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    evaluation(tmp_path, math.nan).save()
    values = json.loads((tmp_path / "record.json").read_text(), parse_constant=refuse)
    assert values["metrics"]["ece"]["value"] == "nan"


def test_record__folder_is_where_it_was_found(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    evaluation(before, 1.0).save()
    before.rename(after)
    assert Evaluation.load(after).path == after


def test_record__is_frozen_and_knows_its_fields() -> None:
    values = {"digest": "d", "folder": "/f", "size_bytes": 1}
    made = ModelPackage.model_validate(values)
    with pytest.raises(ValidationError, match="frozen"):
        made.size_bytes = 2  # type: ignore[misc]
    with pytest.raises(ValidationError, match="surplus"):
        ModelPackage.model_validate({**values, "surplus": 1})


def test_dataset__identity_is_content_layout_and_what_was_rejected() -> None:
    version = DatasetVersion(
        digest="d.dir",
        folder="/f",
        source="/s",
        layout="folders",
        table=None,
        files=2,
        size_bytes=10,
        rejected=(),
    )
    moved = version.model_copy(update={"folder": "/g", "source": "/t"})
    assert moved.identity == version.identity
    others = [
        version.model_copy(update={"digest": "e.dir"}),
        version.model_copy(update={"layout": "table", "table": "a.csv"}),
        version.model_copy(update={"rejected": (Rejected(path="a", reason="broken link"),)}),
    ]
    assert len({version.identity, *(other.identity for other in others)}) == 4


def embedder() -> Embedder:
    """Two backbones, the first with two blocks."""
    how = Preprocess(resize=40, size=32, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))
    of_two = (
        Block(digest="a", layer="network", pooling=(), view="identity", parts=(5,)),
        Block(digest="b", layer="blocks.1", pooling=("mean", "std"), view="hflip", parts=(3, 3)),
    )
    of_one = (Block(digest="c", layer="network", pooling=(), view="identity", parts=(7,)),)
    backbones = [
        Backbone(
            digest=name,
            name=f"timm:{name}",
            weights=f"/{name}",
            weights_digest=name,
            library="timm 1",
            preprocess=how,
            precision="float32",
            blocks=blocks,
        )
        for name, blocks in (("x", of_two), ("y", of_one))
    ]
    return Embedder(digest="e", backbones=tuple(backbones))


def test_embedder__is_the_blocks_of_all_backbones_in_order() -> None:
    made = embedder()
    assert [block.digest for block in made.blocks] == ["a", "b", "c"]
    assert [block.dim for block in made.blocks] == [5, 6, 7]
    assert made.dim == 18
    assert Embeddings(digest="", root="/r", blocks=made.blocks, computed=0, cached=0).dim == 18


def test_embedder__comes_back_from_json() -> None:
    assert Embedder.model_validate_json(embedder().model_dump_json()) == embedder()


@pytest.mark.parametrize("pooling", ["median", "network"])
def test_block__unknown_pooling_is_refused(pooling: str) -> None:
    with pytest.raises(ValidationError, match="pooling"):
        Block.model_validate(
            {"digest": "", "layer": "a", "pooling": [pooling], "view": "identity", "parts": [1]}
        )


def _embedder(*layers: str) -> Embedder:
    def block(name: str) -> Block:
        return Block(digest=name, layer=name, pooling=("mean",), view="identity", parts=(2,))

    how = Preprocess(resize=8, size=8, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    backbones = tuple(
        Backbone(
            digest=name,
            name=f"timm:{name}",
            weights="w",
            weights_digest="w",
            library="timm 1",
            preprocess=how,
            precision="float32",
            blocks=(block(f"{name}-0"), block(f"{name}-1")),
        )
        for name in layers
    )
    return Embedder(digest="all", backbones=backbones)


def test_embedder__selected_blocks_keep_their_order_and_idle_backbones_go() -> None:
    embedder = _embedder("a", "b")
    some = embedder.select(["a-1", "a-0"])
    assert [block.digest for block in some.blocks] == ["a-0", "a-1"]
    assert [backbone.name for backbone in some.backbones] == ["timm:a"]
    assert some.digest != embedder.digest
    assert embedder.select(["b-0", "b-1", "a-0", "a-1"]) == embedder


def test_embeddings__selected_blocks_are_another_identity() -> None:
    blocks = _embedder("a").blocks
    embeddings = Embeddings(digest="e", root="/r", blocks=blocks, computed=1, cached=2)
    assert embeddings.select(["a-0", "a-1"]) == embeddings
    some = embeddings.select(["a-1"])
    assert (some.blocks, some.dim) == (blocks[1:], 2)
    assert some.digest not in {"e", embeddings.select(["a-0"]).digest}


def test_backbone__not_tuned_is_written_as_it_always_was() -> None:
    (backbone,) = _embedder("a").backbones
    told = json.loads(backbone.model_dump_json())
    assert "tuned" not in told
    assert Backbone.model_validate(told) == backbone
    tuned = backbone.model_copy(update={"tuned": "m"})
    assert json.loads(tuned.model_dump_json()) == {**told, "tuned": "m"}
    assert Backbone.model_validate_json(tuned.model_dump_json()) == tuned


def test_embeddings__selected_blocks_keep_what_they_were_tuned_on() -> None:
    blocks = _embedder("a").blocks
    embeddings = Embeddings(digest="e", root="/r", blocks=blocks, computed=1, cached=2)
    assert "tuned" not in embeddings.model_dump()
    tuned = embeddings.model_copy(update={"tuned": {"a-1": "m"}})
    assert (tuned.select(["a-0"]).tuned, tuned.select(["a-1"]).tuned) == ({}, {"a-1": "m"})
    assert Embeddings.model_validate_json(tuned.model_dump_json()) == tuned
