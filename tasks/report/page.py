"""The report: one HTML file for people, which needs no network, and the model card."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tasks.errors import CacheError
from tasks.evaluation.style import BLUE, GRID, INK, MUTED, OVER, OVER_LIGHT, UNDER_LIGHT
from tasks.records import (
    Baselines,
    Decision,
    Embeddings,
    Evaluation,
    Findings,
    Head,
    Ladder,
    Manifest,
    Report,
    Robustness,
    Trial,
    Tuned,
    digest_of,
)
from tasks.report import card, climbed, context, embedding_map, judged, made, pictures, verdict, worst
from tasks.report.blocks import Page, Section
from tasks.report.words import check_failure, check_section, visible

LONGEST = 800  # characters of a text on the page
INKS = {
    "ink": INK,
    "muted": "#5b6773",  # of small type: MUTED of the figures is too light to be read at that size
    "line": GRID,
    "rule": MUTED,
    "good": BLUE,
    "good-light": UNDER_LIGHT,
    "bad": OVER,
    "bad-light": OVER_LIGHT,
}


def run(
    out: Path,
    *,
    name: str,
    decision: Decision,
    evaluation: Evaluation,
    findings: Findings | None,
    baselines: Baselines | None,
    robustness: Robustness | None,
    trial: Trial | None,
    head: Head,
    manifest: Manifest,
    data: Path,
    lineage: Mapping[str, str],
    embeddings: Embeddings | None,
    ladder: Ladder | None = None,
    tuned: Tuned | None = None,
) -> Report:
    """Writes report.html, card.md and the figures that are the report's own (map.png,
    slices.png and curves.png) into the folder `out`.

    What a run did not make is said to be missing; a picture or an image that can't be read leaves
    its place empty. Whatever comes from the data is escaped.

    Args:
        name: of the model.
        data: the folder of the dataset's files, from which the worst errors are shown.
        lineage: name -> digest, version or address of what the model came from.
        embeddings: of the manifest's samples, for the map.
        ladder: None: nothing is said of fine-tuning.
        tuned: the training of the ladder whose curves are shown; None: there was none.
    """
    errors = worst.errors(evaluation, data)
    metric = verdict.gate_metric(decision)
    found: list[Section | None] = [
        verdict.decided(decision),
        judged.metrics(evaluation),
        judged.mistakes(evaluation, errors),
        judged.calibration(evaluation, head),
        judged.classes(evaluation),
        judged.slices(evaluation, metric, out),
        context.baselines(baselines, climbed.trained(ladder)),
        climbed.ladder(ladder, tuned, manifest.target, out),
        context.robustness(robustness),
        context.speed(trial),
        context.audit(findings),
        _map(out, manifest, head, embeddings, errors),
        context.data(manifest),
        made.head(head),
        made.lineage(lineage),
        made.terms(ladder=ladder is not None, trained=climbed.trained(ladder) is not None),
    ]
    failed = verdict.failed(decision)
    marked = {check_section(check) for check in failed}
    page = Page(
        name=name,
        passed=decision.passed,
        verdict=verdict.verdict(decision),
        checks=verdict.checks(decision),
        summary=verdict.summary(decision, evaluation),
        failed=[(check_failure(check), check.detail) for check in failed],
        facts=verdict.facts(decision, evaluation),
        sections=[
            replace(section, mark="bad") if section.anchor in marked else section
            for section in found
            if section is not None
        ],
    )
    html = render(page)
    text = card.card(
        name=name,
        decision=decision,
        evaluation=evaluation,
        findings=findings,
        baselines=baselines,
        robustness=robustness,
        trial=trial,
        head=head,
        manifest=manifest,
        lineage=lineage,
        ladder=ladder,
    )
    (out / "report.html").write_text(html, encoding="utf-8")
    (out / "card.md").write_text(text, encoding="utf-8")
    content = [hashlib.sha256(part.encode()).hexdigest() for part in (html, text)]
    return Report(digest=digest_of("report", *content), folder=str(out))


def render(page: Page) -> str:
    """The page as HTML that loads nothing from anywhere."""
    return _environment().get_template("report.html.jinja").render(page=page, inks=INKS)


def _map(
    out: Path, manifest: Manifest, head: Head, embeddings: Embeddings | None, errors: worst.Errors | None
) -> Section:
    if embeddings is None:
        return made.embedding_map(context.NOT_MADE, None)
    wrong = errors.digests if errors is not None else frozenset()
    try:
        drawn = embedding_map.draw(out / "map.png", manifest, embeddings.select(head.blocks), wrong)
    except CacheError as error:  # the page is worth having without it
        return made.embedding_map(f"There is no map: {error}", None)
    return made.embedding_map(drawn, pictures.png(out / "map.png"))


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )


def _shown(value: object) -> object:
    """Every text that is put into the page, made visible; of our own only pictures are Markup."""
    return visible(value, LONGEST) if isinstance(value, str) and not isinstance(value, Markup) else value
