"""The sections around the model: what it had to beat, what disturbs it, what it costs, and what the
data is like."""

from collections.abc import Sequence
from itertools import zip_longest

from tasks.evaluation.evidence_report import hardly_helps
from tasks.records import SPLITS, Baselines, Findings, Manifest, Rejected, Robustness, Rung, Trial
from tasks.report import pictures
from tasks.report.blocks import Cell, Part, Picture, Section, Table, Text
from tasks.report.judged import measured
from tasks.report.words import (
    bounds,
    compared,
    in_a_sentence,
    metric_title,
    number,
    percent,
    plural,
    signed,
)

LISTED = 20  # set-aside samples, pairs of classes
ROWS = 100  # classes
NOT_MADE = "This was not looked at in this run."
BASELINES = {
    "backbone": ("This backbone, frozen", "the pretrained network with a head on its embeddings"),
    "random_weights": ("The same network, untrained", "the same architecture with random weights"),
    "raw_pixels": ("Pixels alone", "the image made small, no network"),
    "majority": ("Always the same answer", "the most frequent class, or the mean"),
}
DISTURBANCES = {"jpeg": "JPEG compression"}
SHEETS = (
    ("near-duplicates.png", "Near-duplicates", "Pairs of images that show almost the same."),
    ("label-errors.png", "Labels that may be wrong", "The model, asked without having seen them, disagrees."),
    ("outliers.png", "Outliers", "Images that are far from all others of their class."),
)


def baselines(found: Baselines | None, trained: Rung | None) -> Section:
    """The model beside what it has to beat, and what more labels would bring.

    Args:
        trained: the chosen rung, where it is above the frozen one, of which these numbers are.
    """
    title, anchor = "What it gains over simpler answers", "baselines"
    if found is None:
        return Section(anchor, title, f"{NOT_MADE} It is switched on by evaluation.baseline_samples.", ())
    parts: list[Part] = []
    for name, alt in (
        ("baselines.png", "Baselines beside the model."),
        ("learning_curve.png", "Learning curve: the metric by the number of training images."),
    ):
        drawn = pictures.png(found.path / name)
        if drawn is not None:
            parts.append(Picture(drawn, alt))
    rows = []
    for name, interval in found.rows.items():
        told, note = BASELINES.get(name, (name.replace("_", " ").capitalize(), ""))
        rows.append((Cell(told, note=note), measured(interval)))
    parts.append(Table(("", metric_title(found.metric)), rows, title="On the same test images"))
    if found.curve:
        points = [
            (
                Cell(percent(point.fraction, 0)),
                Cell(f"{point.samples:,}"),
                _curve(point.value, point.low, point.high),
            )
            for point in found.curve
        ]
        if found.doubled is not None:
            points.append((Cell("200\u00a0%", note="extrapolated"), Cell(""), measured(found.doubled)))
        header = ("Of the training images", "Images", metric_title(found.metric))
        parts.append(Table(header, points, title="With fewer or more labels"))
    lead = _gains(found)
    if trained is not None:
        lead.append(
            f"All of this is with the frozen backbone; what {trained.name} adds stands further below."
        )
    return Section(anchor, title, " ".join(lead), parts)


def _curve(value: float, low: float, high: float) -> Cell:
    spread = f"{number(low)} to {number(high)}" if low < high else ""
    return Cell(number(value), note=spread)


def _gains(found: Baselines) -> list[str]:
    told = [
        f"Compared on {plural(found.test_samples, 'test image')}, after training on"
        f" {plural(found.train_samples, 'image')}."
    ]
    if found.transfer is not None:
        word = compared(found.metric, found.transfer)
        does = {"better": "helps", "worse": "hurts"}.get(word, "makes no clear difference")
        told.append(
            f"Pretraining {does}: {in_a_sentence(found.metric)} {signed(found.transfer.value)}"
            f" ({bounds(found.transfer, plus=True)}) against the same network untrained."
        )
    if little := hardly_helps(found):
        told.append(little)
    if found.doubled is not None and found.curve:
        now = found.curve[-1].value
        told.append(
            f"With twice the labels the {in_a_sentence(found.metric)} would be about"
            f" {number(found.doubled.value)} ({bounds(found.doubled)}) instead of {number(now)}."
        )
    return told


def robustness(found: Robustness | None) -> Section:
    """What disturbed images cost."""
    title, anchor = "What disturbed images cost", "robustness"
    if found is None:
        return Section(anchor, title, f"{NOT_MADE} It is switched on by evaluation.robustness_samples.", ())
    parts: list[Part] = []
    drawn = pictures.png(found.path / "robustness.png")
    if drawn is not None:
        parts.append(Picture(drawn, "The metric by kind and strength of the disturbance.", wide=True))
    strengths = max((len(values) for values in found.disturbed.values()), default=0)
    header = [
        "Disturbance",
        *(["weak", "medium", "strong"] if strengths == 3 else [str(at + 1) for at in range(strengths)]),
    ]
    theirs = found.champion_disturbed or {}
    rows = [
        (
            Cell(DISTURBANCES.get(name, name.capitalize())),
            *(
                Cell(number(own), note=f"champion {number(champion)}" if champion is not None else "")
                for own, champion in zip_longest(values, theirs.get(name, ())[: len(values)])
            ),
        )
        for name, values in found.disturbed.items()
    ]
    parts.append(Table(header, rows))
    champion = ""
    if found.champion_loss is not None:
        champion = f" Of the champion: {_lost(found.champion_loss)}."
    lead = (
        f"{plural(found.samples, 'test image')} were disturbed on purpose. Undisturbed, the"
        f" {in_a_sentence(found.metric)} is {number(found.clean)}; disturbed, it is {_lost(found.loss)}"
        f" in the mean.{champion}"
    )
    return Section(anchor, title, lead, parts)


def _lost(loss: float) -> str:
    return f"{number(abs(loss))} {'better' if loss < 0 else 'worse'}"


def speed(found: Trial | None) -> Section:
    """The packaged model as it will be served."""
    title, anchor = "Speed and size", "speed"
    if found is None:
        return Section(anchor, title, "The packaged model was not tried in this run.", ())
    rows = [
        ("Half of the requests answered within", found.p50_ms, found.champion_p50_ms, "ms"),
        ("95 of 100 requests answered within", found.p95_ms, found.champion_p95_ms, "ms"),
        ("Size of the package", found.size_mb, found.champion_size_mb, "MB"),
    ]
    compare = any(theirs is not None for _, _, theirs, _ in rows)
    cells = [
        (Cell(name), Cell(_unit(own, unit)), *([Cell(_unit(theirs, unit))] if compare else []))
        for name, own, theirs, unit in rows
    ]
    header = ("", "This model", *(["Champion"] if compare else []))
    lead = (
        f"{plural(found.samples, 'request')} of one image each to the package that is registered, on the"
        " machine that trained it. Its answers differ from the judged ones by at most"
        f" {found.largest_difference:.1g}."
    )
    return Section(anchor, title, lead, [Table(header, cells)])


def _unit(value: float | None, unit: str) -> str:
    return number(value) if value is None else f"{number(value, 1)}\u00a0{unit}"


def audit(found: Findings | None) -> Section:
    """What the embeddings say about the data."""
    title, anchor = "What is odd about the data", "audit"
    if found is None:
        return Section(anchor, title, NOT_MADE, ())
    rows: list[Sequence[Cell]] = [
        (
            Cell("Near-duplicates", note="pairs of images that show almost the same"),
            Cell(f"{found.near_duplicates:,}"),
        ),
        (
            Cell("Test images with a near-duplicate in training", note="they make the numbers look too good"),
            Cell(f"{found.leaked:,}", note=percent(found.leakage)),
        ),
        (
            Cell("Groups in several splits", note="such as one patient or part on both sides"),
            Cell(f"{len(found.group_leaks):,}", note=", ".join(found.group_leaks[:5])),
        ),
        (
            Cell("Labels that may be wrong", note="flagged for a look, in review.csv"),
            Cell(f"{found.label_errors:,}", note=_estimated(found.label_error_rate)),
        ),
        (Cell("Outliers", note="far from their class"), Cell(f"{found.outliers:,}")),
    ]
    if found.imbalance is not None:
        rows.append(
            (Cell("Largest class by smallest", note="in training"), Cell(f"{number(found.imbalance, 1)} : 1"))
        )
    parts: list[Part] = [Table((), rows)]
    if found.shifts:
        parts.append(_shifts(found))
    if found.confusable:
        pairs = [
            (Cell(f"{one} and {other}"), Cell(percent(share)))
            for one, other, share in found.confusable[:LISTED]
        ]
        parts.append(Table(("Classes that are hard to tell apart", "Mistaken"), pairs))
    parts += [Text(f"Not looked at: {note}") for note in found.notes]
    for file, name, meaning in SHEETS:
        drawn = pictures.png(found.path / file)
        if drawn is not None:
            parts.append(Picture(drawn, f"{name}, the worst cases.", meaning, name, wide=True))
    lead = (
        "What the images themselves tell about the data, found by comparing their embeddings. Samples that"
        " are to be left out go into data.exclude."
    )
    return Section(anchor, title, lead, parts)


def _estimated(rate: float | None) -> str:
    return "" if rate is None else f"{percent(rate)} of all samples"


def _shifts(found: Findings) -> Table:
    rows = [
        (
            Cell(shift.between, note=f"{shift.samples[0]:,} and {shift.samples[1]:,} images"),
            Cell(percent(shift.accuracy), note="50\u00a0%: not at all"),
            Cell(number(shift.p_value), note="by chance alone"),
        )
        for shift in found.shifts
    ]
    return Table(("Can these be told apart?", "Told apart", "p"), rows)


def data(manifest: Manifest) -> Section:
    """How much data there is, and what was set aside."""
    parts: list[Part] = []
    total = {split: sum(manifest.counts.get(split, {}).values()) for split in SPLITS}
    rows = [
        _counts(Cell(name), [manifest.counts.get(split, {}).get(name, 0) for split in SPLITS])
        for name in manifest.classes[:ROWS]
    ]
    if len(manifest.classes) > ROWS:
        rest = manifest.classes[ROWS:]
        counts = [sum(manifest.counts.get(split, {}).get(name, 0) for name in rest) for split in SPLITS]
        rows.append(_counts(Cell(f"{len(rest):,} more"), counts))
    if manifest.target != "labels":  # an image with two labels would count twice
        rows.append(_counts(Cell("All"), list(total.values())))
    what = {"class": "Class", "labels": "Label", "number": ""}[manifest.target]
    parts.append(Table((what, "Training", "Validation", "Test", "All"), rows))
    for title, listed in (
        ("The same image with different labels (kept)", manifest.conflicts),
        ("Copies left out of training, because validation or test holds them", manifest.left_out),
        ("Left out by data.exclude", manifest.excluded),
    ):
        if listed:
            parts.append(_rejected(f"{title}: {len(listed):,}", listed))
    if manifest.unmatched:
        names = ", ".join(manifest.unmatched[:LISTED])
        parts.append(Text(f"Entries of data.exclude that name no sample: {names}", "bad"))
    quarantined = plural(manifest.quarantined, "file")
    lead = (
        f"{plural(manifest.samples, 'image')}; {quarantined} could not be used. The head is fitted on"
        " training and calibrated on what its folds held out; validation sets its thresholds, test judges it."
    )
    return Section("data", "The data", lead, parts)


def _counts(name: Cell, counts: Sequence[int]) -> tuple[Cell, ...]:
    return (name, *(Cell(f"{count:,}") for count in (*counts, sum(counts))))


def _rejected(title: str, listed: Sequence[Rejected]) -> Table:
    rows = [(Cell(bad.path), Cell(bad.reason)) for bad in listed[:LISTED]]
    if len(listed) > LISTED:
        rows.append((Cell(f"and {len(listed) - LISTED:,} more"), Cell("")))
    return Table(("Path", "Reason"), rows, numeric=9, folded=title)
