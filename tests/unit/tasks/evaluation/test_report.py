import html
import math

import pytest
from markdown_it import MarkdownIt

from tasks.evaluation.gate import decide
from tasks.evaluation.report import data_report, escape, gate_report
from tasks.params import METRICS, GateParams
from tasks.records import (
    Audit,
    DatasetVersion,
    Difference,
    Evaluation,
    Interval,
    Manifest,
    Rejected,
)

HOSTILE = "a|b\n# <script>alert(1)</script> [x](http://evil) ![i](u) `c` **d** _e_ \\"
ONE = Interval(value=0.8, low=0.7, high=0.9)
NAN = Interval(value=math.nan, low=math.nan, high=math.nan)


def version(**changes: object) -> DatasetVersion:
    values = {
        "digest": "abc.dir", "folder": "f", "source": "s", "layout": "folders", "table": None,
        "files": 1200, "size_bytes": 41_000_000, "rejected": (),
    }  # fmt: skip
    return DatasetVersion.model_validate({**values, **changes})


def audit(*quarantined: Rejected) -> Audit:
    return Audit(digest="a", folder="f", samples=9, quarantined=quarantined, quarantined_fraction=0.0025)


def manifest(**changes: object) -> Manifest:
    counts = {"train": {"cat": 1000, "dog": 3}, "validation": {"cat": 4}, "test": {"cat": 5, "dog": 6}}
    values = {
        "digest": "m", "folder": "f", "samples": 1018, "classes": ("cat", "dog"), "slices": ("site",),
        "counts": counts, "conflicts": (), "left_out": (), "quarantined": 0,
    }  # fmt: skip
    return Manifest.model_validate({**values, **changes})


def evaluation(**changes: object) -> Evaluation:
    values = {
        "digest": "e", "folder": "f", "samples": 1378, "metrics": dict.fromkeys(METRICS, ONE),
        "per_class": {"cat": {"precision": ONE, "recall": ONE, "f1": ONE}}, "per_slice": {},
        "slice_samples": {}, "champion_version": None, "champion_metrics": None, "differences": {},
    }  # fmt: skip
    return Evaluation.model_validate({**values, **changes})


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


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


def test_data_report__counts_add_up() -> None:
    lines = data_report(version(), audit(), manifest()).splitlines()
    assert "| Class | Train | Validation | Test | All |" in lines
    assert "| cat | 1,000 | 4 | 5 | 1,009 |" in lines
    assert "| dog | 3 | 0 | 6 | 9 |" in lines
    assert "| **All** | 1,003 | 4 | 11 | 1,018 |" in lines
    assert "| Size | 1,200 files, 41.0 MB |" in lines
    assert "| Version (DVC) | abc.dir |" in lines


def test_data_report__many_classes_are_summed_up() -> None:
    classes = tuple(f"c{i:03d}" for i in range(130))
    counts = {"train": dict.fromkeys(classes, 2)}
    got = data_report(version(), audit(), manifest(classes=classes, counts=counts))
    assert "| c099 | 2 | 0 | 0 | 2 |" in got
    assert "c100" not in got
    assert "| 30 more classes | 60 | 0 | 0 | 60 |" in got


def test_data_report__lists_the_first_twenty_and_counts_the_rest() -> None:
    bad = [Rejected(path=f"p{i:02d}", reason="not an image") for i in range(23)]
    got = data_report(version(), audit(*bad), manifest(conflicts=bad[:1], left_out=bad[:2]))
    assert "## Quarantined: 23" in got
    assert got.count("| p19 | not an image |") == 1
    assert "p20" not in got
    assert "and 3 more" in got
    assert "## Conflicting labels: 1" in got
    assert "## Left out of training: 2" in got
    assert "## Not versioned" not in got


def test_reports__hostile_names_break_no_table() -> None:
    bad = Rejected(path=HOSTILE, reason=HOSTILE)
    counts = {"train": {HOSTILE: 2}}
    hostile = manifest(classes=(HOSTILE,), counts=counts, slices=(HOSTILE,), conflicts=(bad,))
    scores = evaluation(
        per_class={HOSTILE: {"f1": ONE}},
        per_slice={f"site={HOSTILE}": dict.fromkeys(METRICS, ONE)},
        slice_samples={f"site={HOSTILE}": 5},
    )
    decision = decide(scores, GateParams(), champion_version=HOSTILE, champion_problem=HOSTILE)
    reports = (
        data_report(version(source=HOSTILE, layout="table", table=HOSTILE), audit(bad), hostile),
        gate_report(decision, scores),
    )
    for report in reports:
        assert "<" not in report
        assert "://" not in report
        width = 0
        for line in report.splitlines():
            if line.startswith("|"):
                width = width or len(cells(line))
                assert len(cells(line)) == width, line
            else:
                width = 0
                assert line.startswith("#") == line.startswith(("# Data", "# Gate", "## ")), line


def test_gate_report__verdict_comes_first() -> None:
    passed = decide(evaluation(), GateParams(floors=GateParams().floors[:1]), champion_version=None)
    assert gate_report(passed, evaluation()).startswith(
        "# Gate passed\n\nThe model may be registered: all 3 checks passed; there is no champion yet."
    )
    failed = decide(evaluation(), GateParams(), champion_version="3")
    assert gate_report(failed, evaluation()).startswith(
        "# Gate failed\n\nThe model may not be registered: 2 of 4 checks failed "
        "(floor.ece, champion); the champion is version 3."
    )


def test_gate_report__puts_the_champion_beside_the_challenger() -> None:
    compared = evaluation(
        champion_version="3",
        champion_metrics=dict.fromkeys(METRICS, Interval(value=0.79, low=0.69, high=0.89)),
        differences={"accuracy": Difference(metric="accuracy", value=0.01, low=-0.005, high=0.025)},
    )
    got = gate_report(decide(compared, GateParams(), champion_version="3"), compared)
    assert "| Metric | Challenger | Champion (version 3) | Difference |" in got
    assert "| accuracy ↑ | 0.800 [0.700, 0.900] | 0.790 [0.690, 0.890] | +0.010 [−0.005, +0.025] |" in got
    assert "| ece ↓ | 0.800 [0.700, 0.900] | 0.790 [0.690, 0.890] | missing |" in got


def test_gate_report__nan_is_said_in_words() -> None:
    broken = evaluation(metrics=dict.fromkeys(METRICS, NAN))
    got = gate_report(decide(broken, GateParams(), champion_version=None), broken)
    assert "| brier ↓ | not a number |" in got


def test_gate_report__many_slices_show_the_worst() -> None:
    values = {
        f"id={i:03d}": {"balanced_accuracy": Interval(value=i / 200, low=0, high=1)} for i in range(150)
    }
    values["id=nan"] = {"balanced_accuracy": NAN}
    scores = evaluation(per_slice=values, slice_samples=dict.fromkeys(values, 2))
    got = gate_report(decide(scores, GateParams(), champion_version=None), scores)
    assert "| id=nan | 2 |" in got
    assert "| id=098 | 2 |" in got
    assert "id=099" not in got
    assert "The 100 slices with the lowest balanced_accuracy, and 51 more." in got
