import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks.embedding.cache import EmbeddingCache
from tasks.params import BackboneParams, EmbeddingParams, HeadParams
from tasks.records import (
    Backbone,
    Block,
    Embedder,
    Embeddings,
    Manifest,
    Preprocess,
    Rejected,
    Score,
    Target,
)
from tasks.report import ranking
from tasks.report.ranking import Candidate, Candidates, Ranked

TELLING = Block(digest="a" * 64, layer="blocks.4", pooling=("mean",), view="identity", parts=(3,))
NOISE = Block(digest="b" * 64, layer="network", pooling=(), view="identity", parts=(2,))
SIZE = Preprocess(resize=8, size=8, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
N = 60


def ranked(name: str, loss: float, error: float = 0.02) -> Ranked:
    score = Score(value=loss, standard_error=error)
    return Ranked(name=name, dim=8, loss=score, metric=0.8, logme=0.1, tied=False)


def embedder(*blocks: Block) -> Embedder:
    backbone = Backbone(
        digest="", name="timm:x", weights="", weights_digest="", library="", preprocess=SIZE,
        precision="float32", blocks=blocks,
    )  # fmt: skip
    return Embedder(digest="", backbones=(backbone,))


def embeddings(root: Path, *blocks: Block) -> Embeddings:
    return Embeddings(digest="x", root=str(root), blocks=blocks, computed=0, cached=N)


@pytest.fixture(params=["class", "labels", "number"])
def manifest(request: pytest.FixtureRequest, tmp_path: Path) -> Manifest:
    """Samples whose truth the vectors of TELLING hold, and those of NOISE do not."""
    target: Target = request.param
    chance = np.random.default_rng(0)
    truth = np.arange(N) % 2
    labels = {"class": ["a", "b"], "labels": ["a", "b"], "number": ["0", "1.5"]}[target]
    digests = [hashlib.sha256(bytes([number])).hexdigest() for number in range(N)]
    frame = pd.DataFrame(
        {
            "digest": digests,
            "path": digests,
            "label": [labels[at] for at in truth],
            "split": "train",
            "group": "",
        }
    )
    frame.to_parquet(tmp_path / "manifest.parquet")
    for block, signal in ((TELLING, 2.0), (NOISE, 0.0)):
        x = chance.normal(size=(N, block.dim)) + signal * truth[:, None]
        EmbeddingCache(tmp_path, block.digest, block.dim).append(digests, x.astype(np.float32))
    return Manifest(
        digest="m", folder=str(tmp_path), target=target, samples=N,
        classes=() if target == "number" else ("a", "b"), slices=(), counts={}, conflicts=(),
        left_out=(), quarantined=0,
    )  # fmt: skip


def test_ranking__puts_what_holds_the_truth_first(manifest: Manifest, tmp_path: Path) -> None:
    kind, metric = {
        "class": ("logistic", "accuracy"),
        "labels": ("multilabel", "subset_accuracy"),
        "number": ("ridge", "r2"),
    }[manifest.target]
    params = HeadParams.model_validate(
        {"kind": kind, "folds": 3, "strengths": (0.01, 0.1), "tolerance": 1e-3}
    )
    both = embeddings(tmp_path, NOISE, TELLING)
    found = Candidates.of(ranking.candidates(embedder(NOISE, TELLING), both), ())
    out = tmp_path / "out"
    out.mkdir()
    result = ranking.run(out, manifest, found, params, metric)
    names = [one.name for one in result.ranked]
    assert names[-1] == "timm:x, network"
    assert set(names[:2]) == {"timm:x, blocks.4", "timm:x, all together"}
    assert result.ranked[0].tied
    assert not result.ranked[-1].tied
    by_name = {one.name: one for one in result.ranked}
    telling, noise = by_name["timm:x, blocks.4"], by_name["timm:x, network"]
    assert telling.logme > noise.logme
    assert telling.metric > noise.metric
    assert (telling.dim, noise.dim) == (3, 2)
    assert result.samples == N
    assert (out / "ranking.png").exists()
    assert json.loads((out / "ranking.json").read_text())["ranked"][0]["name"] == names[0]


def test_ranking__of_no_candidate_lists_why(tmp_path: Path) -> None:
    pd.DataFrame({"digest": ["d"], "group": [""], "split": ["train"]}).to_parquet(
        tmp_path / "manifest.parquet"
    )
    manifest = Manifest(
        digest="m", folder=str(tmp_path), samples=1, classes=("a",), slices=(), counts={}, conflicts=(),
        left_out=(), quarantined=0,
    )  # fmt: skip
    lacking = (Rejected(path="timm:x|y", reason="no <hub>"),)
    result = ranking.run(tmp_path, manifest, Candidates.of((), lacking), HeadParams(), "accuracy")
    assert result.ranked == ()
    assert "| timm:x&#124;y | no &lt;hub&gt; |" in ranking.ranking_report(result)
    assert not (tmp_path / "ranking.png").exists()


def test_in_order__ties_are_within_one_standard_error_of_the_best() -> None:
    given = [ranked("c", math.nan), ranked("b", 0.43, 0.5), ranked("a", 0.4, 0.02), ranked("d", 0.42)]
    ordered = ranking.in_order(given)
    assert [(one.name, one.tied) for one in ordered] == [("a", True), ("d", True), ("b", False), ("c", False)]


def test_candidates__are_the_layers_and_all_of_them(tmp_path: Path) -> None:
    flipped = NOISE.model_copy(update={"digest": "c" * 64, "view": "hflip"})
    blocks = (TELLING, NOISE, flipped)
    found = ranking.candidates(embedder(*blocks), embeddings(tmp_path, *blocks))
    assert {one.name: [block.digest[0] for block in one.embeddings.blocks] for one in found} == {
        "timm:x, blocks.4": ["a"],
        "timm:x, network": ["b", "c"],
        "timm:x, all together": ["a", "b", "c"],
    }
    (alone,) = ranking.candidates(embedder(NOISE), embeddings(tmp_path, NOISE))
    assert alone.name == "timm:x"


def test_candidates__of_one_name_are_told_apart(tmp_path: Path) -> None:
    one = Candidate(name="timm:x", embeddings=embeddings(tmp_path, NOISE))
    found = Candidates.of([one, one, one], ())
    assert [candidate.name for candidate in found.ready] == ["timm:x", "timm:x (2)", "timm:x (3)"]


def test_wanted__are_those_named_else_those_of_the_parameters() -> None:
    other = BackboneParams(backbone="timm:other")
    params = EmbeddingParams(backbone="timm:own", layers=("blocks.4", "network"), others=(other,))
    own, second = ranking.wanted(params, ())
    assert (own.backbone, own.layers, second) == ("timm:own", ("blocks.4", "network"), other)
    assert ranking.wanted(params, ("timm:a", "timm:b", "timm:a")) == [
        BackboneParams(backbone="timm:a"),
        BackboneParams(backbone="timm:b"),
    ]
