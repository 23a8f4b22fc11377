import html
import math

import pytest
from markdown_it import MarkdownIt

from tasks.evaluation.markdown import difference, escape, interval, number
from tasks.records import Interval
from tests.unit.tasks.evaluation.judged import HOSTILE
from tests.unit.tasks.evaluation.judged import difference as compared


def test_escape__nothing_of_the_markup_is_left() -> None:
    got = escape(HOSTILE)
    assert "|" not in got
    assert "<" not in got
    assert "\n" not in got
    assert "://" not in got
    for i, character in enumerate(got):
        if character in "`*_[]":
            assert got[i - 1] == "\\"
    assert got.endswith("\\\\")  # a lone backslash would escape the cell's border


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("global_defect", "global_defect"),
        ("_a__b_", "\\_a\\_\\_b\\_"),
        ("a  b\r\n\tc", "a b c"),
        ("x\u202egpj.exe\x1b[31m", "x�gpj.exe�\\[31m"),
        ("R&D", "R&amp;D"),
        ("&lt;", "&amp;lt;"),
        ("www.evil.com", "www&#46;evil.com"),
        ("me@evil.com", "me&#64;evil.com"),
        ("Straße 猫", "Straße 猫"),
        ("data/reviews/a-1.jpg", "data/reviews/a-1.jpg"),
    ],
)
def test_escape__shows_the_text(text: str, shown: str) -> None:
    assert escape(text) == shown


def test_escape__renders_as_the_text_itself() -> None:
    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    rendered = markdown.render(f"| {escape(HOSTILE)} | b |\n| --- | --- |\n")
    first, second = rendered.split("<tr>")[1].split("</tr>")[0].strip().splitlines()
    assert html.unescape(first) == f"<th>{HOSTILE.replace(chr(10), ' ')}</th>"
    assert first.count("<") == 2
    assert second == "<th>b</th>"


def test_escape__long_text_is_cut() -> None:
    assert escape("x" * 5000) == "x" * 199 + "…"


def test_number__says_what_is_missing() -> None:
    assert [number(value) for value in (0.12345, None, math.nan)] == ["0.123", "missing", "not a number"]


def test_interval__shows_its_ends() -> None:
    assert interval(Interval(value=0.8, low=0.7, high=0.9)) == "0.800 [0.700, 0.900]"
    assert interval(None) == "missing"
    assert interval(Interval(value=math.nan, low=0, high=0)) == "not a number"


def test_difference__has_a_sign() -> None:
    assert difference(compared(0.01, -0.005, 0.025)) == "+0.010 [−0.005, +0.025]"
    assert difference(None) == "missing"
