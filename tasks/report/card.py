"""The model card: what a registered version is, in Markdown that fits its description (Mitchell et al.
2019, https://doi.org/10.1145/3287560.3287596)."""

import math
from collections.abc import Mapping, Sequence

from tasks.evaluation.evidence_report import hardly_helps
from tasks.evaluation.markdown import escape
from tasks.progress import duration
from tasks.records import (
    SPLITS,
    Baselines,
    Decision,
    Evaluation,
    Findings,
    Head,
    Interval,
    Ladder,
    Manifest,
    Robustness,
    Rung,
    Trial,
)
from tasks.report.climbed import brought, trained
from tasks.report.made import KINDS
from tasks.report.verdict import checks, summary, verdict
from tasks.report.words import (
    bounds,
    check_title,
    coverage,
    in_a_sentence,
    metric_title,
    number,
    percent,
    plural,
    signed,
)

LIMIT = 4500  # characters; MLflow takes 5,000 of a version's description in all stores
ROWS = 8  # classes and slices that are named
NAME_LENGTH = 60  # characters of a name
REASON_LENGTH = 600
CUT = "\n\n…\n"


def card(
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
    lineage: Mapping[str, str],
    ladder: Ladder | None = None,
) -> str:
    """The card, of fewer than LIMIT characters: what comes last gives way first."""
    blocks = [
        f"# {_name(name)}",
        f"**{escape(verdict(decision))}.** "
        + " ".join(map(escape, (checks(decision), *summary(decision, evaluation)))),
        _failed(decision),
        _use(manifest, head, ladder),
        _metrics(evaluation),
        _ladder(ladder),
        _limits(evaluation, decision, findings, baselines, robustness, trial, trained(ladder)),
        _data(manifest),
        _weakest(evaluation),
        _lineage(lineage),
    ]
    text = "\n\n".join(block for block in blocks if block) + "\n"
    if len(text) < LIMIT:
        return text
    kept: list[str] = []
    left = LIMIT - len(CUT) - 1
    for block in blocks:  # whole lines, so that no table or escape is cut in two
        for line in ["", *block.split("\n")] if block else []:
            left -= len(line) + 1
            if left < 0:
                return "\n".join(kept).strip() + CUT
            kept.append(line)
    return "\n".join(kept).strip() + CUT


def _failed(decision: Decision) -> str:
    lines = [
        f"- {escape(check_title(check))}: {escape(check.detail)}"
        for check in decision.reasons
        if not check.passed
    ]
    return "\n".join(lines[:ROWS])


def _use(manifest: Manifest, head: Head, ladder: Ladder | None) -> str:
    shown = ", ".join(_name(label) for label in head.classes[:ROWS])
    more = f" and {len(head.classes) - ROWS:,} more" if len(head.classes) > ROWS else ""
    says = {
        "class": f"says which of {len(head.classes):,} classes an image shows ({shown}{more})",
        "labels": f"says which of {plural(len(head.classes), 'label')} an image has ({shown}{more})",
        "number": "gives a number for an image",
    }[manifest.target]
    kind = KINDS.get(head.kind, head.kind)
    sure = ""
    if head.confidence is not None:
        sure = (
            f" From a confidence of {number(head.confidence.threshold)} on it was right in"
            f" {percent(head.confidence.precision)} of the validation images; the others are for a person."
        )
    backbone = "a frozen backbone" if trained(ladder) is None else "a backbone that was trained on its data"
    return (
        f"## Use\n\nThe model {says}: {backbone} and on it {kind}. It is meant for images like those"
        f" of its data; of other images its answers mean nothing.{sure}"
    )


def _metrics(evaluation: Evaluation) -> str:
    theirs = evaluation.champion_metrics
    header = ["Metric", "This model", *(["Champion", "Difference"] if theirs is not None else [])]
    rows = []
    for name, own in evaluation.metrics.items():
        row = [escape(metric_title(name)), _measured(own)]
        if theirs is not None:
            difference = evaluation.differences.get(name)
            row.append(_measured(theirs[name]) if name in theirs else "–")
            row.append(signed(difference.value) if difference is not None else "–")
        rows.append(row)
    of = f"{plural(evaluation.samples, 'test image')}, {coverage(evaluation.alpha)} intervals"
    return f"## Quality\n\nOn {of}.\n\n" + _table(header, rows)


def _ladder(ladder: Ladder | None) -> str:
    if ladder is None:
        return ""
    header = ["Rung", f"{escape(metric_title(ladder.metric))}, test", "Gate", "Takes", "Size", "Half within"]
    rows = [
        [
            f"**{_name(rung.name)}**" if rung.chosen else _name(rung.name),
            _measured(rung.test),
            "passed" if rung.passed else "failed",
            duration(rung.seconds),
            f"{number(rung.size_mb, 1)} MB",
            f"{number(rung.latency_ms, 0)} ms",
        ]
        for rung in ladder.rungs[:ROWS]
    ]
    return f"## Fine-tuning\n\n{escape(brought(ladder), REASON_LENGTH)}\n\n" + _table(header, rows)


def _limits(
    evaluation: Evaluation,
    decision: Decision,
    findings: Findings | None,
    baselines: Baselines | None,
    robustness: Robustness | None,
    trial: Trial | None,
    trained: Rung | None,
) -> str:
    lines = []
    if robustness is not None:
        metric = in_a_sentence(robustness.metric)
        lines.append(f"Disturbed images (noise, blur, …) cost {number(robustness.loss)} of the {metric}.")
    if findings is not None:
        rate = (
            ""
            if findings.label_error_rate is None
            else f", about {percent(findings.label_error_rate)} of all"
        )
        lines.append(f"{plural(findings.label_errors, 'label')} of its data may be wrong{rate}.")
        if findings.leaked:
            lines.append(f"{plural(findings.leaked, 'test image')} had a near-duplicate in training.")
        if findings.confusable:
            one, other, share = findings.confusable[0]
            lines.append(
                f"It takes {_name(one)} and {_name(other)} for each other most often ({percent(share)})."
            )
    if baselines is not None and (told := hardly_helps(baselines)):
        lines.append(told)
    if (
        baselines is not None and baselines.doubled is not None and trained is None
    ):  # they are of the frozen one
        more = f"{number(baselines.doubled.value)} ({bounds(baselines.doubled)})"
        lines.append(f"With twice the labels, {in_a_sentence(baselines.metric)} would be about {more}.")
    if trial is not None:
        lines.append(
            f"A request of one image takes {number(trial.p50_ms, 0)} ms (95 of 100 within"
            f" {number(trial.p95_ms, 0)} ms); the package has {number(trial.size_mb, 1)} MB."
        )
    return "## Limits and cost\n\n" + "\n".join(f"- {line}" for line in lines) if lines else ""


def _data(manifest: Manifest) -> str:
    counts = ", ".join(f"{sum(manifest.counts.get(split, {}).values()):,} {split}" for split in SPLITS)
    if manifest.target == "labels":  # an image with two labels would count twice
        return f"## Data\n\n{plural(manifest.samples, 'image')}."
    return f"## Data\n\n{plural(manifest.samples, 'image')}: {counts}."


def _weakest(evaluation: Evaluation) -> str:
    blocks = []
    for title, table, metric in (
        ("Weakest classes", evaluation.per_class, "f1"),
        ("Weakest slices", evaluation.per_slice, "balanced_accuracy"),
    ):
        known = {
            name: values[metric]
            for name, values in table.items()
            if metric in values and math.isfinite(values[metric].value)
        }
        worst = sorted(known, key=lambda name: (known[name].value, name))[:ROWS]
        if worst:
            title_of = "F1" if metric == "f1" else metric_title(metric)
            rows = [[_name(name), _measured(known[name])] for name in worst]
            blocks.append(
                f"## {title}\n\n" + _table((title.removeprefix("Weakest ").capitalize(), title_of), rows)
            )
    return "\n\n".join(blocks)


def _lineage(lineage: Mapping[str, str]) -> str:
    return "## Lineage\n\n" + "\n".join(
        f"- {escape(name)}: {escape(value)}" for name, value in lineage.items()
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def _measured(interval: Interval) -> str:
    span = bounds(interval)
    return f"{number(interval.value)} ({span})" if span else number(interval.value)


def _name(text: str) -> str:
    return escape(text if len(text) <= NAME_LENGTH else text[: NAME_LENGTH - 1] + "…")
