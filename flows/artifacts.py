"""What a flow run shows in the Prefect UI."""

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger

from flows.headline import headline
from tasks.evaluation.report import data_report, gate_report
from tasks.records import AdaptResult, Audit, DatasetVersion, Decision, Evaluation, Manifest


def publish_data(dataset: DatasetVersion, audit: Audit, manifest: Manifest) -> None:
    """The data report."""
    create_markdown_artifact(data_report(dataset, audit, manifest), key="data", description="Data report")


def publish_gate(decision: Decision, evaluation: Evaluation) -> None:
    """The gate's verdict with its reasons, and the metrics as a table."""
    create_markdown_artifact(gate_report(decision, evaluation), key="gate", description="Gate")
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
        description="Metrics on the test split, with 95 % intervals",
    )


def publish_result(result: AdaptResult) -> AdaptResult:
    """The summary and the way to MLflow."""
    create_markdown_artifact(summary(result), key="summary", description="Result")
    create_link_artifact(
        result.links["mlflow"], link_text="MLflow run", key="mlflow", description="Run in MLflow"
    )
    get_run_logger().info("%s: %s", result.state, headline(result))
    return result


def summary(result: AdaptResult) -> str:
    """The result as Markdown."""
    seconds = "\n".join(f"| {name} | {value:.1f} |" for name, value in result.seconds.items())
    return f"""# {result.state.capitalize()}

{headline(result)}

Data version `{result.dataset.digest}`, {result.dataset.quarantined:,} samples quarantined;
C = {result.head.strength:g}, temperature {result.head.temperature:.3f}.

| task | seconds |
|---|---:|
{seconds}

[MLflow run]({result.links["mlflow"]})
"""
