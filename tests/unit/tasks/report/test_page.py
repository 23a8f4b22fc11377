import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tasks.records import Target
from tasks.report import page
from tests.unit.tasks.report.example import Run, run_of

HOSTILE = "<script>alert(1)</script>\"'&{{ 7*7 }}$x^2$\u202egpj"
TARGETS: list[Target] = ["class", "labels", "number"]
LOADING = {"src", "href", "srcset", "action", "data", "poster", "background"}


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, name: str) -> Iterator[dict[str, str | None]]:
        return (attributes for tag, attributes in self.tags if tag == name)


def written(run: Run, out: Path) -> Tags:
    out.mkdir()
    report = page.run(out, **run.arguments())
    assert report.path == out
    return read(out)


def read(out: Path) -> Tags:
    return Tags((out / "report.html").read_text(encoding="utf-8"))


def headings(html: Tags) -> set[str | None]:
    return {attributes.get("id") for attributes in html.of("section")}


@pytest.fixture(scope="module", params=TARGETS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a whole run of each target."""
    target: Target = request.param
    made = tmp_path_factory.mktemp(target)
    written(run_of(made, target), made / target)
    return made / target


def test_page__has_every_section_of_its_target(folder: Path) -> None:
    html = read(folder)
    every = {
        "decision", "metrics", "mistakes", "slices", "baselines", "robustness", "speed", "audit", "map",
        "data", "head", "lineage", "terms",
    }  # fmt: skip
    of_labels = {"calibration", "classes"} if folder.name != "number" else set()
    assert headings(html) == every | of_labels
    assert sorted(file.name for file in folder.iterdir()) == [
        "card.md", "map.png", "report.html", "slices.png",
    ]  # fmt: skip


def test_page__loads_nothing_from_anywhere(folder: Path) -> None:
    html = read(folder)
    for tag, attributes in html.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        for name in LOADING & set(attributes):
            assert (attributes[name] or "").startswith(("data:image/", "#")), (tag, name)
        assert not [name for name in attributes if name.startswith("on")]
    source = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import", source)
    (policy,) = [a for a in html.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_page__every_link_leads_to_a_section(folder: Path) -> None:
    html = read(folder)
    assert {f"#{anchor}" for anchor in headings(html)} == {a["href"] for a in html.of("a")}


@pytest.mark.parametrize("target", TARGETS)
def test_page__text_from_the_data_is_shown_and_does_nothing(tmp_path: Path, target: Target) -> None:
    run = run_of(tmp_path, target, classes=(HOSTILE, "dog"), paths=[f"{i}<b>&$\\.png" for i in range(10)])
    findings = run.findings
    assert findings is not None
    lineage = {HOSTILE: "</code><img src=x onerror=alert(1)>"}
    notes = {"notes": (HOSTILE,), "group_leaks": (HOSTILE,), "confusable": ((HOSTILE, "dog", 0.1),)}
    hostile = replace(run, name=HOSTILE, lineage=lineage, findings=findings.model_copy(update=notes))
    html = written(hostile, tmp_path / "out")
    assert not list(html.of("script"))
    assert not list(html.of("b"))
    assert {attributes["alt"] for attributes in html.of("img") if attributes.get("src") == "x"} == set()
    assert "<script>alert(1)</script>\"'&{{ 7*7 }}$x^2$�gpj" in html.text
    assert "\u202e" not in html.text
    assert "</code><img src=x onerror=alert(1)>" in html.text


@pytest.mark.parametrize("target", TARGETS)
def test_page__what_was_not_made_is_said_to_be_missing(tmp_path: Path, target: Target) -> None:
    run = run_of(tmp_path, target).bare()
    (run.evaluation.path / "predictions.parquet").unlink()
    html = written(replace(run, data=tmp_path / "gone"), tmp_path / "out")
    assert headings(html) >= {"baselines", "robustness", "speed", "audit", "map", "lineage"}
    assert html.text.count("This was not looked at in this run.") == 4
    assert "The packaged model was not tried in this run." in html.text
    assert "The answers for single images were not kept." in html.text


def test_page__one_missing_record_leaves_the_others_alone(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    html = written(replace(run, findings=None, embeddings=None), tmp_path / "out")
    assert len(headings(html)) == 15
    assert html.text.count("This was not looked at in this run.") == 2


def test_page__embeddings_that_the_cache_lacks_cost_only_the_map(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    assert run.embeddings is not None
    lacking = run.embeddings.model_copy(update={"root": str(tmp_path / "elsewhere")})
    html = written(replace(run, embeddings=lacking), tmp_path / "out")
    assert "There is no map:" in html.text
    assert "10 of 10 samples are not in the cache" in html.text


def test_page__verdict_and_failed_checks_come_first(tmp_path: Path) -> None:
    html = written(run_of(tmp_path, passed=False), tmp_path / "out")
    order = [
        "Failed: this model is not registered",
        "1 of 3 checks failed.",
        "Its accuracy is too low, whatever serves today.",
        "Of 4 test images that it was not trained on, it gets 83.0\u00a0% right",
        "It is better than the champion (version 3)",
        "What was decided, and why",
    ]
    places = [html.text.index(text) for text in order]
    assert places == sorted(places)
    marked = [a["href"] for a in html.of("a") if a.get("class") == "bad"]
    assert marked == ["#metrics"]


def test_page__passed_without_a_champion(tmp_path: Path) -> None:
    html = written(run_of(tmp_path, champion=False), tmp_path / "out")
    assert "Passed: this model may be registered" in html.text
    assert "It passed all 3 checks." in html.text
    assert "There is no champion yet" in html.text
    assert not list(html.of("svg"))


def test_page__shows_the_wrong_samples(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    html = written(run, tmp_path / "out")
    assert "It has 1 of 4 test images wrong." in html.text
    shown = [a for a in html.of("img") if re.fullmatch(r"[01]/\d\.png", a.get("alt") or "")]
    assert len(shown) == 1


def test_page__pictures_of_other_stages_are_taken_in(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    for name in ("confusion.png", "reliability.png"):
        Image.new("RGB", (9, 9)).save(run.evaluation.path / name)
    (run.evaluation.path / "predicted.png").write_bytes(b"damaged")
    html = written(run, tmp_path / "out")
    alts = {(a.get("alt") or "").split(":")[0] for a in html.of("img")}
    assert alts >= {"Confusion matrix", "Reliability diagram", "Labels that may be wrong, the worst cases."}
    assert not any(alt.startswith("Predicted") for alt in alts)


def test_page__is_the_same_again(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    first, second = tmp_path / "first", tmp_path / "second"
    for out in (first, second):
        out.mkdir()
    one, other = page.run(first, **run.arguments()), page.run(second, **run.arguments())
    assert one.digest == other.digest
    for name in ("report.html", "card.md", "map.png", "slices.png"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_page__another_verdict_is_another_digest(tmp_path: Path) -> None:
    run = run_of(tmp_path).bare()
    first, second = tmp_path / "first", tmp_path / "second"
    for out in (first, second):
        out.mkdir()
    other = run.decision.model_copy(update={"passed": False})
    assert (
        page.run(first, **run.arguments()).digest
        != page.run(second, **replace(run, decision=other).arguments()).digest
    )
