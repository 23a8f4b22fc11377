"""The sections on how the model was made: its head, where it came from, and the words that are used."""

from collections.abc import Mapping

from tasks.records import Head, Score
from tasks.report.blocks import Cell, Part, Picture, Section, Table
from tasks.report.embedding_map import EmbeddingMap
from tasks.report.words import number, percent

KINDS = {
    "logistic": "logistic regression",
    "prototype": "nearest class mean",
    "knn": "nearest neighbours",
    "mlp": "one hidden layer",
    "multilabel": "a logistic regression for each label",
    "ridge": "ridge regression",
}
TERMS = (
    ("Backbone", "A network that was trained on millions of other images and is not changed here."),
    ("Embedding", "What the backbone makes of an image: a list of numbers in which alike images are alike."),
    ("Head", "The small model on the embeddings; the only part that is fitted to this data."),
    ("Training, validation, test", "What the head learns from, what sets its thresholds, what judges it."),
    ("Champion, challenger", "The model that serves today, and the one that is judged here."),
    ("Interval", "The range in which the true value lies, as far as this many images can tell."),
    ("Gate", "The checks that a model has to pass before it is registered."),
    ("Slice", "A part of the data with something in common, such as one camera."),
)
RUNG = ("Rung", "A way to a model: a backbone as it came, or trained in some way.")
TRAINED = {  # where the backbone was
    "Backbone": "The network that makes the embeddings; here its weights were trained on this data too.",
    "Head": "The small model on the embeddings, which is fitted to this data last.",
}


def embedding_map(drawn: EmbeddingMap | str | None, uri: str | None) -> Section:
    """The map, or why there is none."""
    title, anchor = "How the images lie", "map"
    if isinstance(drawn, str) or drawn is None or uri is None:
        return Section(anchor, title, drawn if isinstance(drawn, str) else "There is no map.", ())
    caption = (
        ""
        if drawn.explained is None
        else f"The two directions show {percent(drawn.explained, 0)} of what differs."
    )
    lead = (
        "Each dot is an image; near ones are alike to the backbone. Classes that lie apart are easy to tell"
        " apart, and ringed dots in foreign places are worth a look."
    )
    return Section(anchor, title, lead, [Picture(uri, "Map of the embeddings.", caption, wide=True)])


def head(found: Head) -> Section:
    """What was fitted and how it was chosen."""
    rows: list[tuple[Cell, Cell]] = [
        (Cell("Kind"), Cell(KINDS.get(found.kind, found.kind), note=found.kind)),
        (Cell("Blocks of the embedding"), Cell(f"{len(found.blocks):,}")),
    ]
    if found.strength is not None:
        name = {"knn": "Neighbours", "mlp": "Epochs"}.get(found.kind, "Strength (C)")
        note = "" if found.kind == "knn" else "smaller: simpler"
        rows.append((Cell(name, note=note), Cell(f"{found.strength:g}")))
    parts: list[Part] = [Table((), rows, numeric=9)]
    for title, scores in (("Kinds that were tried", found.kinds), ("Inputs that were tried", found.inputs)):
        if scores:
            parts.append(_scores(title, scores))
    if found.strengths:
        best = "" if found.strength is None else f"{found.strength:g}"
        tried = [
            (Cell(name, note="chosen" if _same(name, best) else ""), Cell(number(loss)))
            for name, loss in found.strengths.items()
        ]
        parts.append(Table(("Candidate", "Loss"), tried, folded="Candidates that were tried"))
    lead = "Chosen by cross-validation on the training images alone; the test images had no part in it."
    return Section("head", "How the model was made", lead, parts)


def _same(name: str, best: str) -> bool:
    try:
        return f"{float(name):g}" == best
    except ValueError:
        return False


def _scores(title: str, scores: Mapping[str, Score]) -> Table:
    rows = [
        (Cell(name), Cell(number(score.value), note=f"± {number(score.standard_error)}"))
        for name, score in scores.items()
    ]
    return Table(("", "Loss"), rows, title=title)


def lineage(found: Mapping[str, str]) -> Section:
    """What this model came from, by digests and addresses."""
    rows = [(Cell(name), Cell(value, code=True)) for name, value in found.items()]
    lead = "With these the same model can be made again; equal digests mean equal content."
    return Section("lineage", "Where it comes from", lead, [Table((), rows, numeric=9)])


def terms(*, ladder: bool = False, trained: bool = False) -> Section:
    """The words of this page.

    Args:
        ladder: whether it has rungs.
        trained: whether the backbone was trained too.
    """
    meanings = dict([*TERMS, *([RUNG] if ladder else [])]) | (TRAINED if trained else {})
    rows = [(Cell(name), Cell(meaning)) for name, meaning in meanings.items()]
    return Section("terms", "Words on this page", "", [Table((), rows, numeric=9)])
