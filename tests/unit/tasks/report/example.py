"""A run as the report gets it, with images, predictions and embeddings: made by hand, small."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from tasks.embedding.cache import EmbeddingCache
from tasks.params import METRICS, Params
from tasks.records import (
    Baselines,
    Block,
    Check,
    Confidence,
    Conformal,
    CurvePoint,
    Decision,
    Difference,
    Embeddings,
    Evaluation,
    Findings,
    Head,
    Interval,
    Manifest,
    McNemar,
    Robustness,
    Selective,
    Shift,
    Target,
    Trial,
)

BLOCK = Block(digest="b" * 64, layer="network", pooling=(), view="identity", parts=(4,))
SPLIT = ("train", "train", "validation", "test", "test")  # of the samples in turn


@dataclass(frozen=True)
class Run:
    """The arguments of `page.run`."""

    name: str
    decision: Decision
    evaluation: Evaluation
    findings: Findings | None
    baselines: Baselines | None
    robustness: Robustness | None
    trial: Trial | None
    head: Head
    manifest: Manifest
    data: Path
    lineage: dict[str, str]
    embeddings: Embeddings | None

    def arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in asdict(self)}

    def bare(self) -> "Run":
        """The same without every record that may be missing."""
        return replace(
            self, findings=None, baselines=None, robustness=None, trial=None, embeddings=None, lineage={}
        )


def span(value: float, half: float = 0.02) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


def difference(metric: str, value: float, half: float = 0.02) -> Difference:
    return Difference(
        metric=metric, value=value, low=value - half, high=value + half, standard_error=half / 2,
        p_better=0.3, p_worse=0.7,
    )  # fmt: skip


def run_of(
    folder: Path,
    target: Target = "class",
    *,
    classes: Sequence[str] = ("cat", "dog"),
    paths: Sequence[str] | None = None,
    champion: bool = True,
    passed: bool = True,
) -> Run:
    """A run on images with 5 samples a class (see SPLIT), of which one test sample is wrong."""
    labels = _labels(target, classes, 5 * len(classes))
    named = list(paths or (f"{number % len(classes)}/{number}.png" for number in range(len(labels))))
    frame = _samples(folder / "data", named, labels)
    manifest = _manifest(folder / "manifest", frame, target, classes)
    evaluation = _evaluation(
        folder / "evaluation", frame[frame["split"] == "test"], target, classes, champion
    )
    return Run(
        name="textile",
        decision=_decision(target, champion, passed),
        evaluation=evaluation,
        findings=findings(folder / "audit", classes),
        baselines=baselines(folder / "baselines", evaluation),
        robustness=robustness(folder / "robustness", evaluation, champion),
        trial=trial(champion),
        head=_head(target, classes),
        manifest=manifest,
        data=folder / "data",
        lineage={"Data version (DVC)": "abc.dir", "Backbone": "timm:tf_efficientnet_lite0"},
        embeddings=_embeddings(folder / "cache", frame),
    )


def _labels(target: Target, classes: Sequence[str], count: int) -> list[str]:
    if target == "number":
        return [str(0.5 * number) for number in range(count)]
    if target == "labels":
        some = ["", classes[0], "|".join(classes)]
        return [some[number % 3] for number in range(count)]
    return [classes[number % len(classes)] for number in range(count)]


def _samples(data: Path, paths: Sequence[str], labels: Sequence[str]) -> pd.DataFrame:
    rows = []
    for number, (path, label) in enumerate(zip(paths, labels, strict=True)):
        file = data / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (number % 256, 80, 120)).save(file, "PNG")
        split = SPLIT[number // max(1, len(labels) // 5) % 5]
        rows.append((_digest(file.read_bytes(), number), path, label, split, ""))
    frame = pd.DataFrame(rows, columns=["digest", "path", "label", "split", "group"])
    return frame.sort_values(["digest", "path"], ignore_index=True)


def _digest(content: bytes, number: int) -> str:
    return hashlib.sha256(content + str(number).encode()).hexdigest()


def _manifest(folder: Path, frame: pd.DataFrame, target: Target, classes: Sequence[str]) -> Manifest:
    folder.mkdir(parents=True)
    frame.to_parquet(folder / "manifest.parquet", index=False)
    counts: dict[str, dict[str, int]] = {}
    for split, rows in frame.groupby("split"):
        told = rows["label"].str.split("|").explode().value_counts().to_dict()
        counts[str(split)] = (
            {"": len(rows)} if target == "number" else {c: int(told.get(c, 0)) for c in classes}
        )
    return Manifest(
        digest="m" * 64, folder=str(folder), target=target, samples=len(frame),
        classes=() if target == "number" else tuple(classes), slices=("site",), counts=counts, conflicts=(),
        left_out=(), quarantined=3,
    )  # fmt: skip


def _evaluation(
    folder: Path, test: pd.DataFrame, target: Target, classes: Sequence[str], champion: bool
) -> Evaluation:
    folder.mkdir(parents=True)
    _predictions(test, target, classes).to_parquet(folder / "predictions.parquet", index=False)
    values = dict(zip(METRICS[target], (0.83, 0.81, 0.8, 0.42, 0.24, 0.05), strict=False))
    main = METRICS[target][0]
    sites = [f"site={site}" for site in ("lyon", "porto", "graz")]
    per_class = {} if target == "number" else {
        name: {"precision": span(0.8), "recall": span(0.7), "f1": span(0.75)} for name in classes
    }  # fmt: skip
    moved = dict(zip(METRICS[target], (0.03, 0.004, -0.03, -0.05, 0.01, 0.0), strict=False))
    return Evaluation(
        digest="e" * 64, folder=str(folder), target=target, samples=len(test), alpha=0.05,
        metrics={name: span(value) for name, value in values.items()}, standard_errors={},
        chance_ece=0.02 if target == "class" else None, per_class=per_class,
        per_slice={site: {n: span(v - 0.1 * at) for n, v in values.items()} for at, site in enumerate(sites)},
        slice_samples=dict.fromkeys(sites, 120),
        selective=Selective(answered=0.62, precision=0.99, coverage=0.91, set_size=1.4)
        if target == "class" else None,
        champion_version="3" if champion else None,
        champion_metrics={name: span(value - moved[name]) for name, value in values.items()}
        if champion else None,
        differences={name: difference(name, value) for name, value in moved.items()} if champion else {},
        mcnemar=McNemar(only_challenger=12, only_champion=9, p_better=0.33, p_worse=0.81)
        if champion and target == "class" else None,
        slice_differences={s: {main: difference(main, 0.03 * (1 - at))} for at, s in enumerate(sites)}
        if champion else {},
    )  # fmt: skip


def _predictions(test: pd.DataFrame, target: Target, classes: Sequence[str]) -> pd.DataFrame:
    frame = test[["digest", "path", "label"]].reset_index(drop=True)
    if target == "number":
        frame["predicted"] = [float(label) + 0.25 * (at % 3) for at, label in enumerate(frame["label"])]
        return frame
    truth = np.array([[c in label.split("|") for c in classes] for label in frame["label"]], dtype=float)
    p = np.abs(truth - 0.1)  # [N, C]
    p[0] = 1 - p[0]  # the one that is wrong
    if target == "labels":
        said = ["|".join(c for c, given in zip(classes, row >= 0.5, strict=True) if given) for row in p]
        frame["predicted"], frame["confidence"] = said, np.maximum(p, 1 - p).min(axis=1)
    if target == "class":
        p /= p.sum(axis=1, keepdims=True)
        frame["predicted"] = [classes[at] for at in p.argmax(axis=1)]
        frame["confidence"] = p.max(axis=1)
    return frame.assign(**{f"p:{name}": p[:, at] for at, name in enumerate(classes)})


def _decision(target: Target, champion: bool, passed: bool) -> Decision:
    main = METRICS[target][0]
    checks = [
        Check(check="min_test_samples", passed=True, detail="1,378 test samples ≥ 50", threshold=50),
        Check(check=f"floor.{main}", passed=passed, detail=f"{main} 0.830 against 0.65", threshold=0.65),
        Check(check="champion", passed=True, detail=f"{main} +0.030 [+0.010, +0.050] against version 3"),
    ]
    thresholds = {**Params().gate.model_dump(mode="json"), "metric": main}
    return Decision(
        digest="d" * 64, passed=passed, mode="non_inferior", champion_version="3" if champion else None,
        inputs={}, thresholds=thresholds, reasons=tuple(checks),
    )  # fmt: skip


def findings(folder: Path, classes: Sequence[str]) -> Findings:
    folder.mkdir(parents=True)
    Image.new("RGB", (60, 40), "#c6dcec").save(folder / "label-errors.png")
    pair = ((classes[0], classes[-1], 0.08),) if len(classes) > 1 else ()
    return Findings(
        unchecked=0,
        truncated=False,
        digest="f" * 64, folder=str(folder), near_duplicates=31, leaked=4, leakage=0.012, group_leaks=("g7",),
        label_errors=17, label_error_rate=0.021, outliers=6, confusable=pair, imbalance=2.0,
        shifts=(Shift(between="train and test", samples=(900, 400), accuracy=0.52, p_value=0.31),),
        notes=("the champion's training samples are not in the cache",),
    )  # fmt: skip


def baselines(folder: Path, evaluation: Evaluation) -> Baselines:
    folder.mkdir(parents=True)
    metric = next(iter(evaluation.metrics))
    rows = {"backbone": 0.83, "random_weights": 0.61, "raw_pixels": 0.55, "majority": 0.5}
    shares = ((0.1, 0.7), (0.25, 0.76), (0.5, 0.8), (1.0, 0.83))
    return Baselines(
        digest="c" * 64, folder=str(folder), metric=metric, train_samples=800, test_samples=200,
        rows={name: span(value) for name, value in rows.items()}, transfer=difference(metric, 0.22, 0.04),
        curve=tuple(
            CurvePoint(fraction=share, samples=int(900 * share), value=v, low=v - 0.01, high=v + 0.01)
            for share, v in shares
        ),
        doubled=span(0.85, 0.01),
    )  # fmt: skip


def robustness(folder: Path, evaluation: Evaluation, champion: bool) -> Robustness:
    folder.mkdir(parents=True)
    kinds = ("noise", "blur", "jpeg", "brightness", "contrast")
    found = {kind: (0.82, 0.8 - 0.02 * at, 0.74 - 0.04 * at) for at, kind in enumerate(kinds)}
    return Robustness(
        digest="r" * 64, folder=str(folder), samples=48, metric=next(iter(evaluation.metrics)), clean=0.83,
        disturbed=found, loss=0.07,
        champion_clean=0.82 if champion else None,
        champion_disturbed=found if champion else None,
        champion_loss=0.06 if champion else None,
    )  # fmt: skip


def trial(champion: bool) -> Trial:
    return Trial(
        package="p",
        digest="t" * 64, folder="", samples=30, p50_ms=24.1, p95_ms=31.7, size_mb=14.2,
        largest_difference=3e-8, champion_p50_ms=23.0 if champion else None,
        champion_p95_ms=30.1 if champion else None, champion_size_mb=13.9 if champion else None,
    )  # fmt: skip


def _head(target: Target, classes: Sequence[str]) -> Head:
    kind = {"class": "logistic", "labels": "multilabel", "number": "ridge"}[target]
    return Head.model_validate(
        {
            "digest": "h" * 64, "folder": "", "target": target, "kind": kind,
            "classes": () if target == "number" else tuple(classes), "blocks": (BLOCK.digest,),
            "strength": 0.03, "strengths": {"0.01": 0.47, "0.03": 0.45, "0.1": 0.46}, "kinds": {},
            "inputs": {}, "calibration": "none" if target == "number" else "temperature",
            "temperature": 1.1,
            "confidence": Confidence(precision=0.99, threshold=0.87, answered=0.6)
            if target == "class" else None,
            "conformal": Conformal(coverage=0.9, threshold=0.2) if target == "class" else None,
        }
    )  # fmt: skip


def _embeddings(root: Path, frame: pd.DataFrame) -> Embeddings:
    vectors = np.random.default_rng(0).normal(size=(len(frame), BLOCK.dim)).astype(np.float32)
    EmbeddingCache(root, BLOCK.digest, BLOCK.dim).append(frame["digest"].tolist(), vectors)
    return Embeddings(digest="x" * 64, root=str(root), blocks=(BLOCK,), computed=0, cached=len(frame))
