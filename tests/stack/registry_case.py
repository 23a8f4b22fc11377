"""An adapt run to record."""

from pathlib import Path

import numpy as np
import pandas as pd

from tasks.embedding.backbone import resolve
from tasks.head.linear import LinearHead
from tasks.params import EmbeddingParams, Params
from tasks.records import (
    Audit,
    DatasetVersion,
    Decision,
    Difference,
    Evaluation,
    Head,
    Interval,
    Manifest,
    Reason,
    digest_of,
)
from tasks.registry.adapt_run import AdaptRun

CLASSES = ("blue", "red")
DATA_DIGEST = "0123456789abcdef0123456789abcdef.dir"


def adapt_run(root: Path) -> AdaptRun:
    """A run that passed, with the built-in backbone and a seeded head; the folders of its stages lie
    in `root` and hold what registration reads."""
    for name in ("data", "audit", "manifest", "head", "evaluation"):
        (root / name).mkdir()
    (root / "data" / "data.dvc").write_text(f"outs:\n- md5: {DATA_DIGEST}\n  path: data\n")
    (root / "audit" / "audit.json").write_text("{}")
    pd.DataFrame({"path": ["a.png"]}).to_parquet(root / "manifest" / "manifest.parquet")
    (root / "evaluation" / "confusion.png").write_bytes(b"plot")
    embedder = resolve(EmbeddingParams(image_size=64), root / "backbones")
    weight = np.random.default_rng(0).normal(size=(2, embedder.dim))
    LinearHead(CLASSES, np.zeros(embedder.dim), np.ones(embedder.dim), weight, np.zeros(2), 20.0).save(
        root / "head"
    )
    return AdaptRun(
        name="wear",
        run_key="a" * 32,
        params=Params(),
        data=DatasetVersion(
            digest=DATA_DIGEST,
            folder=str(root / "data"),
            source="/photos",
            layout="folders",
            table=None,
            files=1,
            size_bytes=1,
            rejected=(),
        ),
        audit=Audit(
            digest="au",
            folder=str(root / "audit"),
            samples=1,
            quarantined=(),
            quarantined_fraction=0,
        ),
        manifest=Manifest(
            digest="ma",
            folder=str(root / "manifest"),
            samples=1,
            classes=CLASSES,
            slices=(),
            counts={},
            conflicts=(),
            left_out=(),
            quarantined=0,
        ),
        embedder=embedder,
        head=Head(
            digest="he",
            folder=str(root / "head"),
            classes=CLASSES,
            strength=0.1,
            strengths={"0.1": 0.3},
            temperature=20.0,
        ),
        evaluation=Evaluation(
            digest="ev",
            folder=str(root / "evaluation"),
            samples=60,
            metrics={"accuracy": Interval(value=0.9, low=0.8, high=0.95)},
            per_class={},
            per_slice={},
            slice_samples={},
            champion_version="7",
            champion_metrics={"accuracy": Interval(value=0.85, low=0.75, high=0.92)},
            differences={"accuracy": Difference(metric="accuracy", value=0.05, low=-0.01, high=0.1)},
        ),
        decision=decision(passed=True),
        flow_run_id="flow-1",
        git_commit="abc123",
    )


def decision(*, passed: bool, champion_version: str | None = None) -> Decision:
    reason = Reason(check="balanced_accuracy", passed=passed, detail="0.900, limit 0.700")
    return Decision(
        digest=digest_of("decision", passed, champion_version),
        passed=passed,
        champion_version=champion_version,
        reasons=(reason,),
    )
