from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tasks.records import Difference, Interval, Ladder, Target, Tuned
from tasks.report import climbed, page
from tasks.report.blocks import Picture, Section, Table, Text
from tests.unit.tasks.evaluation.climbed import RUNGS, ladder, rung, tuned
from tests.unit.tasks.report.example import Run, difference, run_of
from tests.unit.tasks.report.test_card import text_of
from tests.unit.tasks.report.test_page import Tags, headings, read

HOSTILE = "<script>alert(1)</script>"


def section(out: Path, found: Ladder, training: Tuned | None = None, target: Target = "class") -> Section:
    made = climbed.ladder(found, training, target, out)
    assert made is not None
    return made


def of(made: Section, kind: type[Any]) -> list[Any]:
    return [part for part in made.parts if isinstance(part, kind)]


def written(run: Run, out: Path, found: Ladder | None, training: Tuned | None = None) -> Tags:
    out.mkdir()
    page.run(out, **run.arguments(), ladder=found, tuned=training)
    return read(out)


def test_ladder__without_one_nothing_is_said(tmp_path: Path) -> None:
    assert climbed.ladder(None, tuned(), "class", tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_ladder__has_a_row_for_each_rung(tmp_path: Path) -> None:
    made = section(tmp_path, ladder())
    assert made.title == "What fine-tuning brought"
    reached, taken = ([list(row) for row in table.rows] for table in of(made, Table))
    assert [row[0].text for row in reached] == ["frozen", "lp_ft (chosen)", "student"]
    assert [row[0].text for row in taken] == ["frozen", "lp_ft (chosen)", "student"]
    assert [cell.text for cell in reached[0]] == ["frozen", "0.794", "0.784", "failed"]
    gate = reached[0][-1]
    assert (gate.tone, gate.note) == ("bad", "floor.balanced_accuracy")
    assert [(cell.text, cell.note) for cell in taken[0][1:]] == [
        ("42 s", "price 0.01"),
        ("24.5\u00a0ms", "package 14.2\u00a0MB"),
    ]
    assert taken[2][0].note == "timm:mobilenetv3_small_100"


def test_ladder__tells_both_reasons(tmp_path: Path) -> None:
    assert [text.text for text in of(section(tmp_path, ladder()), Text)] == [
        "A floor failed.", "lp_ft is taken.",
    ]  # fmt: skip


def test_ladder__shows_its_picture_and_the_curves(tmp_path: Path) -> None:
    folder, out = tmp_path / "ladder", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    Image.new("RGB", (60, 40)).save(folder / "ladder.png")
    found = ladder().model_copy(update={"folder": str(folder)})
    assert len(of(section(out, found), Picture)) == 1
    assert not (out / "curves.png").exists()
    assert len(of(section(out, found, tuned()), Picture)) == 2
    assert (out / "curves.png").exists()
    assert len(of(section(out, found, tuned(0)), Picture)) == 1


def test_ladder__shows_the_trial_on_demand(tmp_path: Path) -> None:
    [*_, trial] = of(section(tmp_path, ladder(tried=True)), Table)
    assert trial.folded == (
        "The trial on part of the training images: expected gain +0.100 (+0.080 to +0.120)"
    )
    assert [cell.text for cell in trial.rows[0]] == ["full", "0.001", "2", "0.910", "0.300"]


def test_trained__is_the_chosen_rung_unless_it_is_frozen() -> None:
    assert climbed.trained(None) is None
    assert climbed.trained(ladder(rung("frozen", 0.8, 1, chosen=True), rung("full", 0.8, 9))) is None
    assert climbed.trained(ladder()) == RUNGS[1]


def test_brought__says_what_for_what() -> None:
    assert climbed.brought(ladder()) == (
        "Its backbone was trained (lp_ft) in 8 min 40 s, at a price of 0.14: balanced accuracy 0.784 frozen,"
        " 0.951 trained (+0.167; higher is better)."
    )
    assert climbed.brought(ladder(rung("frozen", 0.8, 1, chosen=True))) == "A floor failed."
    assert climbed.brought(ladder(rung("full", 0.8, 60, chosen=True))) == (
        "Its backbone was trained (full) in 1 min 0 s, at a price of 0.02: balanced accuracy 0.800."
    )


@pytest.mark.parametrize("target", ["class", "labels", "number"])
def test_page__has_the_ladder_and_the_curves(tmp_path: Path, target: Target) -> None:
    html = written(run_of(tmp_path, target), tmp_path / "out", ladder(), tuned())
    assert "ladder" in headings(html)
    assert "lp_ft is taken." in html.text
    assert "All of this is with the frozen backbone; what lp_ft adds stands further below." in html.text
    assert "With twice the labels" not in (tmp_path / "out" / "card.md").read_text()
    assert "here its weights were trained on this data too" in html.text
    assert "is not changed here" not in html.text
    assert "Learning curves: loss, validation and learning rate by epoch." in {
        attributes["alt"] for attributes in html.of("img")
    }


def test_page__without_a_ladder_says_nothing_of_rungs(tmp_path: Path) -> None:
    html = written(run_of(tmp_path), tmp_path / "out", None)
    assert "ladder" not in headings(html)
    assert "Rung" not in html.text
    assert "is not changed here" in html.text


def test_page__a_ladder_that_was_not_climbed_leaves_the_backbone_frozen(tmp_path: Path) -> None:
    found = ladder(rung("frozen", 0.8, 42, chosen=True), reason="frozen is taken, the only rung.")
    html = written(run_of(tmp_path), tmp_path / "out", found)
    assert "frozen is taken, the only rung." in html.text
    assert "is not changed here" in html.text
    assert "All of this is with the frozen backbone" not in html.text
    card = (tmp_path / "out" / "card.md").read_text()
    assert "a frozen backbone" in card
    assert "With twice the labels" in card


def test_page__text_of_the_ladder_does_nothing(tmp_path: Path) -> None:
    worst = rung(HOSTILE, 0.9, 1, backbone=HOSTILE, chosen=True)
    html = written(run_of(tmp_path), tmp_path / "out", ladder(worst, reason=HOSTILE))
    assert not list(html.of("script"))
    assert HOSTILE in html.text


def test_page__another_ladder_is_another_digest(tmp_path: Path) -> None:
    run = run_of(tmp_path).bare()
    digests = []
    for name, found in (("a", ladder()), ("b", ladder(reason="another")), ("c", None)):
        (tmp_path / name).mkdir()
        digests.append(page.run(tmp_path / name, **run.arguments(), ladder=found).digest)
    assert len(set(digests)) == 3


def test_card__tells_what_fine_tuning_brought(tmp_path: Path) -> None:
    text = text_of(run_of(tmp_path), ladder())
    assert "a backbone that was trained on its data and on it logistic regression" in text
    assert "## Fine-tuning\n\nIts backbone was trained (lp_ft) in 8 min 40 s" in text
    assert "| **lp_ft** | 0.951 (0.931 to 0.971) | passed | 8 min 40 s | 14.2 MB | 24 ms |" in text
    assert "| frozen | 0.784 (0.764 to 0.804) | failed | 42 s | 14.2 MB | 24 ms |" in text


def hardly(run: Run) -> Run:
    assert run.baselines is not None
    moved: Difference = difference(run.baselines.metric, 0.01, 0.03)
    rows = {**run.baselines.rows, "raw_pixels": Interval(value=0.9, low=0.88, high=0.92)}
    return replace(run, baselines=run.baselines.model_copy(update={"transfer": moved, "rows": rows}))


def test_page__says_that_transfer_hardly_helps_where_it_does(tmp_path: Path) -> None:
    told = (
        "Transfer hardly helps: the backbone can't be told from the same network untrained, and raw pixels do"
        " better than the backbone (accuracy 0.900 against 0.830)."
    )
    run = run_of(tmp_path)
    helps = written(run, tmp_path / "helps", None)
    assert "hardly helps" not in helps.text
    assert "hardly helps" not in text_of(run)
    assert told in written(hardly(run), tmp_path / "hardly", None).text
    assert told in text_of(hardly(run))
