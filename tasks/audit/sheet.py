"""Contact sheets: the worst cases of one kind as one picture, each with what is said of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

INK, MUTED, PAPER, LINE = (28, 32, 38), (100, 108, 118), (255, 255, 255), (214, 219, 226)
WARNING = (176, 42, 32)
_TITLE, _TEXT = 26, 15  # px
_IMAGE = 200  # px, side of the box that an image is fitted into
_GAP, _MARGIN, _PADDING = 16, 28, 12  # px
_COLUMNS = {1: 5, 2: 3}  # images of a case -> cases side by side
_SMALLEST = 96  # px: smaller images are enlarged without smoothing, so that their pixels are seen

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Line:
    """A line of text below an image."""

    text: str
    strong: bool = False  # what the case is about
    path: bool = False  # too long: its beginning is left out rather than its end


@dataclass(frozen=True)
class Case:
    """A tile: one image or two, each with its lines, and lines for both."""

    images: tuple[tuple[str, tuple[Line, ...]], ...]  # (path of the sample, lines)
    lines: tuple[Line, ...]


def draw(
    file: Path, title: str, about: str, cases: Sequence[Case], image_of: Callable[[str], Image.Image]
) -> None:
    """Writes the sheet as a PNG.

    Args:
        about: a sentence or two below the title.
        cases: at least one, all with as many images and lines.
        image_of: the image of a path.
    """
    wide = len(cases[0].images)
    tile = wide * _IMAGE + (wide - 1) * _GAP + 2 * _PADDING
    columns = _COLUMNS[wide]
    line = _TEXT + 6
    height = (
        2 * _PADDING + _IMAGE + 8 + line * (max(len(own) for _, own in cases[0].images) + len(cases[0].lines))
    )
    width = 2 * _MARGIN + columns * (tile + _GAP) - _GAP
    said = _wrapped(about, width - 2 * _MARGIN)
    top = _MARGIN + _TITLE + 12 + line * len(said) + 14
    rows = -(-len(cases) // columns)
    sheet = Image.new("RGB", (width, top + rows * (height + _GAP) - _GAP + _MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN), title, font=_font(_TITLE, True), fill=INK)
    for number, text in enumerate(said):
        pen.text((_MARGIN, _MARGIN + _TITLE + 12 + number * line), text, font=_font(_TEXT, False), fill=MUTED)
    for number, case in enumerate(cases):
        x = _MARGIN + number % columns * (tile + _GAP)
        y = top + number // columns * (height + _GAP)
        pen.rounded_rectangle((x, y, x + tile - 1, y + height - 1), radius=8, outline=LINE, width=1)
        _draw_case(sheet, pen, case, x + _PADDING, y + _PADDING, tile - 2 * _PADDING, image_of)
    sheet.save(file, optimize=True)


def _draw_case(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    case: Case,
    x: int,
    y: int,
    width: int,
    image_of: Callable[[str], Image.Image],
) -> None:
    line = _TEXT + 6
    below = y + _IMAGE + 8
    for number, (path, lines) in enumerate(case.images):
        left = x + number * (_IMAGE + _GAP)
        image = _fitted(image_of(path))
        sheet.paste(image, (left + (_IMAGE - image.width) // 2, y + (_IMAGE - image.height) // 2))
        for at, one in enumerate(lines):
            _write(pen, (left, below + at * line), one, _IMAGE)
    below += line * max(len(lines) for _, lines in case.images)
    for at, one in enumerate(case.lines):
        _write(pen, (x, below + at * line), one, width)


def _write(pen: ImageDraw.ImageDraw, at: tuple[int, int], line: Line, width: int) -> None:
    font = _font(_TEXT, line.strong)
    fill = WARNING if line.strong else MUTED if line.path else INK
    pen.text(at, _shortened(line.text, font, width, line.path), font=font, fill=fill)


def _fitted(image: Image.Image) -> Image.Image:
    """As large as the box allows."""
    factor = _IMAGE / max(image.size)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    smooth = max(image.size) >= _SMALLEST
    return image.resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)


def _shortened(text: str, font: Font, width: int, keep_end: bool) -> str:
    """The text with an ellipsis where it is wider than `width` px."""
    text = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)  # signs that fit: low do, high don't
    while high - low > 1:
        kept = (low + high) // 2
        short = "…" + text[-kept:] if keep_end else text[:kept] + "…"
        low, high = (kept, high) if font.getlength(short) <= width else (low, kept)
    return "…" + text[len(text) - low :] if keep_end else text[:low] + "…"


def _wrapped(text: str, width: int) -> list[str]:
    font, lines = _font(_TEXT, False), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


@lru_cache
def _font(size: int, bold: bool) -> Font:
    """DejaVu, which comes with matplotlib and knows many scripts."""
    return ImageFont.truetype(findfont("DejaVu Sans:bold" if bold else "DejaVu Sans"), size)
