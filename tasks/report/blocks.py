"""What a section of the report is made of; the template knows how each of these looks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Tone = Literal["good", "bad", "plain"]


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    note: str = ""  # below, smaller
    tone: Tone = "plain"
    code: bool = False  # a digest or a name from the code


@dataclass(frozen=True)
class Strip:
    """A difference with its interval, drawn on a line whose middle is `no difference`; per cent of
    the line's width."""

    low: float
    value: float
    high: float
    tone: Tone


@dataclass(frozen=True)
class Table:
    """Rows of cells; columns from `numeric` on are aligned right."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell | Strip | str]]
    numeric: int = 1
    title: str = ""
    folded: str = ""  # not empty: shown after a click on this text
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    tone: Tone = "plain"
    kind: Literal["text"] = "text"


@dataclass(frozen=True)
class Picture:
    """An image within the page."""

    uri: str  # data:
    alt: str  # what it shows, for who can't see it
    caption: str = ""
    title: str = ""
    wide: bool = False  # over the whole width; else two stand side by side where there is room
    kind: Literal["picture"] = "picture"


@dataclass(frozen=True)
class Tile:
    """A sample with what was said of it."""

    uri: str  # data:; empty: it can't be shown
    path: str
    lines: Sequence[tuple[str, str]]  # (`labelled`, `cat`)


@dataclass(frozen=True)
class Gallery:
    """Samples side by side."""

    tiles: Sequence[Tile]
    title: str = ""
    kind: Literal["gallery"] = "gallery"


Part = Table | Text | Picture | Gallery


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading of its own."""

    anchor: str
    title: str
    lead: str  # what is to be seen here and how it is read, for who doesn't know the field
    parts: Sequence[Part]
    mark: Tone = "plain"  # `bad` where the gate failed on what stands here


@dataclass(frozen=True)
class Fact:
    """A number of the headline."""

    value: str
    name: str
    note: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Page:
    """All that the template shows."""

    name: str
    passed: bool
    verdict: str
    checks: str  # how many passed, in a sentence
    failed: Sequence[tuple[str, str]]  # of the checks that failed: what it means, numbers and reason
    summary: Sequence[str]  # the model's quality, in sentences
    facts: Sequence[Fact]
    sections: Sequence[Section] = field(default_factory=tuple)
