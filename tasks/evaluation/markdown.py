"""Markdown that shows what comes from the data (labels, paths, reasons) and does nothing else: it can't
break a table, format text, make links or inject HTML."""

import math
import re
from collections.abc import Iterable, Sequence

from tasks.evaluation.checks import signed
from tasks.records import Difference, Interval, Rejected

LISTED = 20  # rejected samples
TEXT_LENGTH = 200  # characters of a text from the data

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "|": "&#124;", "@": "&#64;"}
# An underscore within a word formats nothing, and `global_defect` reads better as it is.
_FORMATTING = re.compile(r"[\\`*\[\]~$]|(?<![^\W_])_|_(?![^\W_])")


def escape(text: str, length: int = TEXT_LENGTH) -> str:
    """Text from the data as Markdown that shows it and does nothing else.

    Control and direction characters become �, white space a single space; texts of more than
    `length` characters are cut.
    """
    visible = "".join(c if c.isprintable() else " " if c.isspace() else "�" for c in text)
    visible = " ".join(visible.split())
    if len(visible) > length:
        visible = visible[: length - 1] + "…"
    plain = "".join(_ENTITIES.get(c, c) for c in _FORMATTING.sub(r"\\\g<0>", visible))
    # GitHub's flavour makes links of bare addresses.
    return plain.replace("://", "&#58;//").replace("www.", "www&#46;").replace("WWW.", "WWW&#46;")


def joined(*blocks: str) -> str:
    """Blocks with a line between them; empty ones are left out."""
    return "\n\n".join(block for block in blocks if block) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: int | None = None) -> str:
    """A table; columns from `right` on are aligned right."""
    rule = ["---" if right is None or i < right else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def rejected(title: str, samples: Sequence[Rejected], meaning: str) -> str:
    """A section that lists samples with the reasons; nothing where there are none."""
    if not samples:
        return ""
    listed = table(("Path", "Reason"), ((escape(s.path), escape(s.reason)) for s in samples[:LISTED]))
    more = f"and {len(samples) - LISTED:,} more" if len(samples) > LISTED else ""
    return joined(f"## {title}: {len(samples):,}", meaning, listed, more).rstrip("\n")


def number(value: float | None, digits: int = 3) -> str:
    """A number, or in words that there is none."""
    if value is None:
        return "missing"
    return f"{value:.{digits}f}" if math.isfinite(value) else "not a number"


def interval(measured: Interval | None) -> str:
    """`0.800 [0.700, 0.900]`"""
    if measured is None or not math.isfinite(measured.value):
        return number(None if measured is None else measured.value)
    return f"{measured.value:.3f} [{measured.low:.3f}, {measured.high:.3f}]"


def difference(compared: Difference | None) -> str:
    """`+0.010 [−0.005, +0.025]`"""
    if compared is None or not math.isfinite(compared.value):
        return number(None if compared is None else compared.value)
    return f"{signed(compared.value)} [{signed(compared.low)}, {signed(compared.high)}]"
