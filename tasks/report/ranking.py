"""Candidate backbones on the training split, without a model being judged: by LogME and by a
cross-validated head."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from tasks import progress
from tasks.data import units
from tasks.embedding.gather import parts
from tasks.evaluation.markdown import escape
from tasks.evaluation.metrics import measure
from tasks.head.fit import MEMORY_BYTES, split_data
from tasks.head.logme import logme
from tasks.head.training import Samples, train
from tasks.params import BackboneParams, EmbeddingParams, HeadParams
from tasks.records import (
    Embedder,
    Embeddings,
    Manifest,
    Number,
    Record,
    Rejected,
    Score,
    StageRecord,
    digest_of,
)
from tasks.report import figures
from tasks.report.words import metric_title, number

ALL = "all together"
TOLERANCE = 1e-3  # of the head's gradient: half the time, and losses that agree to 1e-4


class Candidate(BaseModel):
    """Blocks of an embedding that a head could stand on, embedded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    embeddings: Embeddings


class Candidates(Record):
    """What is ranked, and what could not be had."""

    ready: tuple[Candidate, ...]
    lacking: tuple[Rejected, ...]  # backbone, and why

    @classmethod
    def of(cls, ready: Sequence[Candidate], lacking: Sequence[Rejected]) -> Self:
        """Two of one name are told apart by a number."""
        named: list[Candidate] = []
        for one in ready:
            alike = sum(other.name == one.name for other in ready[: len(named)])
            name = f"{one.name} ({alike + 1})" if alike else one.name
            named.append(one.model_copy(update={"name": name}))
        contents = [[one.name, one.embeddings.digest] for one in named]
        digest = digest_of("candidates", contents, [bad.model_dump() for bad in lacking])
        return cls(digest=digest, ready=tuple(named), lacking=tuple(lacking))


class Ranked(BaseModel):
    """What a candidate promises; all on the training split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dim: int  # D, length of an embedding
    loss: Score  # of the cross-validated head
    metric: Number  # of the answers for the held-out folds
    logme: Number
    tied: bool  # within one standard error of the least loss: as good, as far as the folds can tell


class Ranking(StageRecord):
    """Candidates from the best; `folder` holds ranking.json and ranking.png."""

    samples: int
    metric: str
    ranked: tuple[Ranked, ...]  # by loss
    lacking: tuple[Rejected, ...]


def wanted(params: EmbeddingParams, backbones: Sequence[str]) -> list[BackboneParams]:
    """The backbones to rank: those named, as they were trained; else those of the parameters."""
    if backbones:
        return [BackboneParams(backbone=name) for name in dict.fromkeys(backbones)]
    own = params.model_dump(exclude={"others"})
    return [BackboneParams.model_validate(own), *params.others]


def candidates(embedder: Embedder, embeddings: Embeddings) -> list[Candidate]:
    """The candidates within one backbone: each layer (with all its views), and if there are several,
    all of them together."""
    found = []
    for backbone in embedder.backbones:
        layers = list(dict.fromkeys(block.layer for block in backbone.blocks))
        for layer in layers:
            blocks = [block.digest for block in backbone.blocks if block.layer == layer]
            name = backbone.name if layers == [layer] else f"{backbone.name}, {layer}"
            found.append(Candidate(name=name, embeddings=embeddings.select(blocks)))
        if len(layers) > 1:
            blocks = [block.digest for block in backbone.blocks]
            found.append(Candidate(name=f"{backbone.name}, {ALL}", embeddings=embeddings.select(blocks)))
    return found


def run(
    out: Path,
    manifest: Manifest,
    found: Candidates,
    params: HeadParams,
    metric: str,
    *,
    memory_bytes: int = MEMORY_BYTES,
) -> Ranking:
    """Ranks by the loss of a cross-validated head, LogME beside it. Only the training split is used: a
    choice by the test split would make its numbers too good.

    Args:
        params: of the head. Kinds auto and mlp take long and rank alike: a linear head stands for them.
        metric: that is shown beside the loss.
        memory_bytes: larger matrices of embeddings are kept in a file.

    Raises:
        DataError: there are fewer groups than folds.
        CacheError: an embedding is missing.
    """
    kind = "logistic" if params.kind in ("auto", "mlp") else params.kind
    params = params.model_copy(update={"kind": kind, "tolerance": max(params.tolerance, TOLERANCE)})
    groups = units.of_split(manifest, "train")
    apart = len(set(groups)) == len(groups)
    ranked = []
    for at, one in enumerate(found.ready):
        progress.report("rank", at, len(found.ready))
        x, y = split_data(manifest, one.embeddings, "train", memory_bytes=memory_bytes)  # [N, D]
        samples = Samples(x, y, parts(one.embeddings), None if apart else groups, memory_bytes)
        trained = train(samples, target=manifest.target, classes=manifest.classes, params=params)
        measured = measure(trained.held_out, y, target=manifest.target)
        ranked.append(
            Ranked(
                name=one.name,
                dim=one.embeddings.dim,
                loss=trained.score,
                metric=measured[metric],
                logme=logme(x, y[:, None] if manifest.target == "number" else y),
                tied=False,
            )
        )
    ordered = in_order(ranked)
    ranking = Ranking(
        digest=digest_of("ranking", metric, [one.model_dump(mode="json") for one in ordered], found.digest),
        folder=str(out),
        samples=len(groups),
        metric=metric,
        ranked=ordered,
        lacking=found.lacking,
    )
    (out / "ranking.json").write_text(ranking.model_dump_json(indent=2, exclude={"folder"}) + "\n")
    if ordered:
        figures.ranking(out / "ranking.png", [(one.name, one.loss, one.logme) for one in ordered])
    return ranking


def in_order(ranked: Sequence[Ranked]) -> tuple[Ranked, ...]:
    """From the least loss (what is not a number last), with `tied` set."""
    if not ranked:
        return ()

    def place(one: Ranked) -> tuple[bool, float, str]:
        known = math.isfinite(one.loss.value)
        return not known, one.loss.value if known else 0.0, one.name

    ordered = sorted(ranked, key=place)
    bound = ordered[0].loss.value + ordered[0].loss.standard_error
    return tuple(one.model_copy(update={"tied": one.loss.value <= bound}) for one in ordered)


def ranking_report(ranking: Ranking) -> str:
    """The ranking as Markdown."""
    lines = [
        "# Backbones",
        "",
        f"Ranked on {ranking.samples:,} training samples by the loss of a cross-validated head (± its"
        " standard error). With = are those that the folds can't tell from the best; of them the shortest"
        " is the cheapest. LogME needs no head; higher is better.",
        "",
        f"| Backbone | Length | Loss | {metric_title(ranking.metric)} | LogME |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for one in ranking.ranked:
        loss = f"{number(one.loss.value)} ± {number(one.loss.standard_error)}{' =' if one.tied else ''}"
        cells = (escape(one.name), f"{one.dim:,}", loss, number(one.metric), number(one.logme))
        lines.append(f"| {' | '.join(cells)} |")
    if ranking.lacking:
        lines += ["", "## Not to be had", "", "| Backbone | Reason |", "| --- | --- |"]
        lines += [f"| {escape(bad.path)} | {escape(bad.reason)} |" for bad in ranking.lacking]
    return "\n".join(lines) + "\n"
