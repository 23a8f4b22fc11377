"""An adapt run to record."""

from pathlib import Path

import numpy as np
import pandas as pd

from tasks.embedding.backbone import resolve
from tasks.evaluation.gate import decide
from tasks.head.fitted import Calibration, FittedHead
from tasks.head.linear import Linear
from tasks.params import EmbeddingParams, Floor, GateParams, Params
from tasks.records import (
    Audit,
    Baselines,
    DatasetVersion,
    Decision,
    Difference,
    Evaluation,
    Evidence,
    Findings,
    Head,
    Interval,
    Manifest,
    Report,
    Robustness,
    Trial,
)
from tasks.registry import package
from tasks.registry.adapt_run import AdaptRun

CLASSES = ("blue", "red")
DATA_DIGEST = "0123456789abcdef0123456789abcdef.dir"
STAGES = ("data", "audit", "manifest", "head", "findings", "evaluation", "robustness", "baselines", "trial")


def adapt_run(root: Path) -> AdaptRun:
    """A run that passed, with the built-in backbone and a seeded head; the folders of its stages lie
    in `root` and hold what registration reads."""
    for name in (*STAGES, "package", "report"):
        (root / name).mkdir()
    (root / "data" / "data.dvc").write_text(f"outs:\n- md5: {DATA_DIGEST}\n  path: data\n")
    (root / "audit" / "audit.json").write_text("{}")
    pd.DataFrame({"path": ["a.png"]}).to_parquet(root / "manifest" / "manifest.parquet")
    (root / "evaluation" / "confusion.png").write_bytes(b"plot")
    (root / "findings" / "review.csv").write_text("digest\n")
    (root / "report" / "report.html").write_text("<p>passed</p>")
    (root / "report" / "card.md").write_text("# wear\n\nTells red from blue.\n")
    embedder = resolve(EmbeddingParams(image_size=64), root / "backbones")
    weight = np.random.default_rng(0).normal(size=(2, embedder.dim))
    model = Linear(np.zeros(embedder.dim), np.ones(embedder.dim), weight, np.zeros(2))
    FittedHead("class", "logistic", CLASSES, model, Calibration(np.full(2, 0.05), np.zeros(2))).save(
        root / "head"
    )
    made = package.run(root / "package", embedder, root / "head", 1_000_000)
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
            target="class",
            kind="logistic",
            classes=CLASSES,
            blocks=tuple(block.digest for block in embedder.blocks),
            strength=0.1,
            strengths={"0.1": 0.3},
            kinds={},
            inputs={},
            calibration="temperature",
            temperature=20.0,
            confidence=None,
            conformal=None,
        ),
        package=made,
        evidence=evidence(root, made.digest),
        decision=decision(made.digest, passed=True),
        report=Report(digest="re", folder=str(root / "report")),
        flow_run_id="flow-1",
        git_commit="abc123",
    )


def evidence(root: Path, package_digest: str, champion_version: str | None = None) -> Evidence:
    """Of an accuracy of .9, five points above the champion's where there is one."""
    evaluation = Evaluation(
        digest="ev",
        folder=str(root / "evaluation"),
        samples=60,
        units=60,
        alpha=0.05,
        metrics={"accuracy": Interval(value=0.9, low=0.8, high=0.95)},
        standard_errors={"accuracy": 0.04},
        chance_ece=None,
        per_class={},
        per_slice={},
        slice_samples={},
        selective=None,
        champion_version=champion_version,
        champion_metrics={"accuracy": Interval(value=0.85, low=0.75, high=0.92)},
        differences={
            "accuracy": Difference(
                metric="accuracy",
                value=0.05,
                low=-0.01,
                high=0.1,
                standard_error=0.03,
                p_better=0.05,
                p_worse=0.95,
                at_worst=0.01,
                unseen=0.01,
            )
        },
        mcnemar=None,
        slice_differences={},
    )
    return Evidence(
        quarantined_fraction=0.0,
        evaluation=evaluation,
        findings=Findings(
            unchecked=0,
            truncated=False,
            digest="fi",
            folder=str(root / "findings"),
            near_duplicates=0,
            leaked=0,
            leakage=0.0,
            group_leaks=(),
            label_errors=1,
            label_error_rate=0.01,
            outliers=0,
            confusable=(),
            imbalance=1.0,
            shifts=(),
            notes=(),
        ),
        robustness=Robustness(
            digest="ro",
            folder=str(root / "robustness"),
            samples=20,
            metric="accuracy",
            clean=0.9,
            disturbed={"noise": (0.8, 0.7, 0.6)},
            loss=0.2,
            champion_clean=None,
            champion_disturbed=None,
            champion_loss=0.2,
        ),
        baselines=Baselines(
            digest="ba",
            folder=str(root / "baselines"),
            metric="accuracy",
            train_samples=0,
            test_samples=0,
            rows={},
            transfer=None,
            curve=(),
            doubled=None,
        ),
        trial=Trial(
            package=package_digest,
            digest="tr",
            folder=str(root / "trial"),
            samples=2,
            p50_ms=20.0,
            p95_ms=25.0,
            size_mb=14.0,
            largest_difference=0.0,
            champion_p50_ms=None,
            champion_p95_ms=None,
            champion_size_mb=None,
        ),
    )


def decision(package_digest: str, *, passed: bool, champion_version: str | None = None) -> Decision:
    """The gate's own, of the evidence above: by a floor that is met or not."""
    params = GateParams(
        floors=(Floor(metric="accuracy", limit=0.7 if passed else 0.95),),
        metric="accuracy",
        max_miscalibration=None,
    )
    judged = evidence(Path("/stages"), package_digest, champion_version)
    return decide(
        judged.evaluation,
        params,
        champion_version=champion_version,
        findings=judged.findings,
        robustness=judged.robustness,
        trial=judged.trial,
        quarantined_fraction=judged.quarantined_fraction,
        target="class",
    )
