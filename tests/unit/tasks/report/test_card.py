from dataclasses import replace
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tasks.records import Ladder, Target
from tasks.report.card import LIMIT, card
from tests.unit.tasks.report.example import Run, run_of

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def text_of(run: Run, ladder: Ladder | None = None) -> str:
    arguments = run.arguments()
    del arguments["data"], arguments["embeddings"]
    return card(**arguments, ladder=ladder)


@pytest.mark.parametrize("target", ["class", "labels", "number"])
def test_card__says_what_the_model_is(tmp_path: Path, target: Target) -> None:
    text = text_of(run_of(tmp_path, target))
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings[:5] == ["# textile", "## Use", "## Quality", "## Limits and cost", "## Data"]
    assert headings[-1] == "## Lineage"
    assert "**Passed: this model may be registered.** It passed all 3 checks." in text
    assert len(text) < LIMIT


def test_card__without_the_records_that_may_be_missing(tmp_path: Path) -> None:
    text = text_of(run_of(tmp_path, champion=False).bare())
    assert "## Limits and cost" not in text
    assert "| Accuracy | 0.830 (0.810 to 0.850) |" in text


def test_card__names_the_failed_checks(tmp_path: Path) -> None:
    text = text_of(run_of(tmp_path, passed=False))
    assert "- Accuracy at least 0.65: accuracy 0.830 against 0.65" in text


def test_card__stays_below_the_registry_s_limit(tmp_path: Path) -> None:
    classes = [f"{number:03d} " + "long name " * 30 for number in range(60)]
    run = run_of(tmp_path, classes=classes)
    lineage = {f"Digest {number}": "0" * 200 for number in range(40)}
    text = text_of(replace(run, lineage=lineage))
    assert 2000 < len(text) < LIMIT
    assert text.endswith("\n\n…\n")
    for line in text.splitlines():  # no row is cut in two
        assert not line.startswith("|") or line.endswith("|")


def test_card__text_from_the_data_does_nothing(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> | [x](http://evil) ![i](u)"
    run = run_of(tmp_path, classes=(hostile, "dog"), champion=False)
    rendered = MARKDOWN.render(text_of(replace(run, name=hostile, lineage={hostile: hostile})))
    for tag in ("<script", "<a ", "<img"):
        assert tag not in rendered
