"""What a flow run shows in the Prefect UI."""

import base64

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.logging import get_run_logger

from flows.headline import head_in_words, headline
from tasks.evaluation.report import (
    audit_report,
    baselines_report,
    climb_report,
    data_report,
    gate_report,
    ladder_report,
    robustness_report,
)
from tasks.records import AdaptResult, Audit, Climb, DatasetVersion, Decision, Evidence, Ladder, Manifest


def publish_data(dataset: DatasetVersion, audit: Audit, manifest: Manifest) -> None:
    """The data report."""
    create_markdown_artifact(data_report(dataset, audit, manifest), key="data", description="Data report")


def publish_gate(decision: Decision, evidence: Evidence) -> None:
    """The gate's verdict with its reasons, the metrics as a table, and what else was judged."""
    evaluation = evidence.evaluation
    create_markdown_artifact(gate_report(decision, evaluation), key="gate", description="Gate")
    create_markdown_artifact(
        audit_report(evidence.findings), key="audit", description="What the embeddings say about the data"
    )
    create_markdown_artifact(
        baselines_report(evidence.baselines), key="baselines", description="Baselines and learning curve"
    )
    if evidence.robustness is not None:
        create_markdown_artifact(
            robustness_report(evidence.robustness), key="robustness", description="Robustness"
        )
    champion = evaluation.champion_metrics or {}
    create_table_artifact(
        [
            {
                "metric": name,
                "value": round(interval.value, 4),
                "low": round(interval.low, 4),
                "high": round(interval.high, 4),
                "champion": round(champion[name].value, 4) if name in champion else "",
            }
            for name, interval in evaluation.metrics.items()
        ],
        key="metrics",
        description=f"Metrics on the test split, with {1 - evaluation.alpha:.0%} intervals",
    )


def publish_climb(climb: Climb) -> None:
    """Whether the ladder is climbed, and the numbers that say so."""
    create_markdown_artifact(climb_report(climb), key="climb", description="Whether fine-tuning pays")


def publish_ladder(ladder: Ladder) -> None:
    """What each rung brought and what it cost, as a table and a picture."""
    create_markdown_artifact(ladder_report(ladder), key="ladder", description="The ladder")
    picture = base64.b64encode((ladder.path / "ladder.png").read_bytes()).decode()
    create_image_artifact(f"data:image/png;base64,{picture}", key="ladder-plot", description="The ladder")


def publish_result(result: AdaptResult) -> AdaptResult:
    """The summary and the way to MLflow."""
    create_markdown_artifact(summary(result), key="summary", description="Result")
    create_link_artifact(
        result.links["mlflow"], link_text="MLflow run", key="mlflow", description="Run in MLflow"
    )
    create_link_artifact(
        result.links["report"], link_text="Report", key="report", description="Report (HTML, in MLflow)"
    )
    get_run_logger().info("%s: %s", result.state, headline(result))
    return result


def summary(result: AdaptResult) -> str:
    """The result as Markdown."""
    seconds = "\n".join(f"| {name} | {value:.1f} |" for name, value in result.seconds.items())
    return f"""# {result.state.capitalize()}

{headline(result)}

Data version `{result.dataset.digest}`, {result.dataset.quarantined:,} samples quarantined;
{head_in_words(result.head)}.

| task | seconds |
|---|---:|
{seconds}

[Report]({result.links["report"]}), [MLflow run]({result.links["mlflow"]})
"""
