"""Promotion: the alias `champion` moves to a version that carries a passed decision."""

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from tasks.evaluation.report import escape
from tasks.records import Promotion
from tasks.registry.task import promote_version


@flow(name="promote", persist_result=True, result_serializer="json")
def promote(name: str, version: str, by: str, reason: str = "") -> Promotion:
    """Makes a version the champion.

    Args:
        name: Name of the model in the registry.
        version: Number of the version.
        by: Who promotes it.
        reason: Why.
    """
    # Refuses whatever the gate has not passed; says who, why and when in the version's tags.
    promotion = promote_version(name, version, by, reason)
    done = "is the champion now" if promotion.changed else "was the champion already"
    before = f", before it version {promotion.before}" if promotion.before else ""
    text = f"{name} version {promotion.version} {done}{before}"
    create_markdown_artifact(
        f"{escape(text)}\n\nBy {escape(promotion.by)} at {promotion.at}: {escape(promotion.reason)}",
        key="promotion",
        description="Promotion",
    )
    get_run_logger().info(text)
    return promotion
