from pathlib import Path

from PIL import Image

from tasks.audit.sheet import Case, Line, draw


def image_of(path: str) -> Image.Image:
    return Image.new("RGB", (40, 20) if path == "wide" else (8, 300), (0, 0, 255))


def test_draw__has_every_image_in_its_proportions(tmp_path: Path) -> None:
    cases = [
        Case(
            (
                (
                    path,
                    (Line(path * 40, path=True), Line("a\nb")),
                ),
            ),
            (Line("said", strong=True),),
        )
        for path in ("wide", "tall")
    ]
    draw(tmp_path / "sheet.png", "Title", "About " * 60, cases, image_of)
    with Image.open(tmp_path / "sheet.png") as sheet:
        blue = sheet.convert("RGB").getcolors(1 << 20) or []
    # Boxes of 200 px: 40 × 20 becomes 200 × 100, and 8 × 300 becomes 5 × 200.
    assert {colour: count for count, colour in blue}[0, 0, 255] == 200 * 100 + 5 * 200


def test_draw__is_the_same_each_time(tmp_path: Path) -> None:
    pair = (("wide", (Line("a"),)), ("tall", (Line("b"),)))
    for name in ("one.png", "two.png"):
        draw(tmp_path / name, "Title", "About", [Case(pair, ())] * 4, image_of)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
