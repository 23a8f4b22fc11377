"""Where the rows go: `bench.json` in the state folder, and docs/benchmarks.md made from it."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.records import digest_of
from tasks.settings import ROOT, Settings
from tests.bench import machine
from tests.bench.harness import Row

PAGE = ROOT / "docs" / "benchmarks.md"
_HEAD = """# Benchmarks

Written by `make bench` from `.regraft/bench.json`; `python -m tests.bench NAME ...` runs single
cases. The sides of a figure run in turn in one process after a warm-up; the numbers are medians
over the rounds. Ratio: how many times better ours is, the median over the rounds with its
quartiles. What the other side is stands below each table.
"""


def merge(
    case: str, rows: Sequence[Row], order: Sequence[str], *, complete: bool = True
) -> list[dict[str, Any]]:
    """Puts the rows of a case in the place of those it left on this machine before, and writes the
    page anew.

    Args:
        order: names of all cases, in the order of the page.
        complete: whether these are all rows of the case; else those with other names stay.

    Returns:
        All rows of this machine.
    """
    file = Settings().root / "bench.json"
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"machines": {}, "rows": []}
    here = machine.describe()
    name = digest_of(here)[:8]
    measured = datetime.now(UTC).strftime("%Y-%m-%d")
    measured_now = {row.name for row in rows}
    kept = [
        row
        for row in known["rows"]
        if (row["machine"], row["case"]) != (name, case) or not (complete or row["name"] in measured_now)
    ]
    fresh = [{**asdict(row), "case": case, "machine": name, "measured": measured} for row in rows]
    place = {case: number for number, case in enumerate(order)}
    rows_now = sorted([*kept, *fresh], key=lambda row: place.get(row["case"], len(place)))  # stable
    used = {row["machine"] for row in rows_now}
    machines = {key: value for key, value in {**known["machines"], name: here}.items() if key in used}
    write_text(
        file, json.dumps({"machines": machines, "rows": rows_now}, indent=2, ensure_ascii=False) + "\n"
    )
    write_text(PAGE, page(machines, rows_now))
    return [row for row in rows_now if row["machine"] == name]


def page(machines: dict[str, dict[str, str]], rows: Sequence[dict[str, Any]]) -> str:
    """The Markdown of docs/benchmarks.md."""
    parts = [_HEAD]
    for name, facts in machines.items():
        of_machine = [row for row in rows if row["machine"] == name]
        parts.append(_section(facts, of_machine))
    return "\n".join(parts)


def _section(facts: dict[str, str], rows: Sequence[dict[str, Any]]) -> str:
    compared = [row for row in rows if row["ratio"] is not None]
    alone = [row for row in rows if row["ratio"] is None]
    versions = ", ".join(f"{key} {facts[key]}" for key in ("python", *machine.LIBRARIES))
    days = sorted({row["measured"] for row in rows})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    lines = [
        f"## {facts['processor']}, {facts['cores']} cores, {facts['memory']}",
        "",
        f"{facts['system']}; {versions}; {when}.",
        "",
        "| figure | ours | other | | ratio | quartiles | goal | met |",
        "|---|---:|---:|---|---:|---:|---:|---|",
        *(_line(row) for row in compared),
        "",
    ]
    missed = [row for row in compared if row["goal"] is not None and row["ratio"] < row["goal"]]
    if missed:
        lines += ["What limits those that fall short:", ""]
        lines += [f"- {row['name']}: {row['limits'] or 'not known yet'}" for row in missed]
        lines.append("")
    noted = [row for row in rows if row["note"]]
    if noted:
        lines += ["The sides:", "", *(f"- {row['name']}: {row['note']}" for row in noted), ""]
    if alone:
        lines += ["Rates that docs/scale.md is computed from:", "", "| rate | | |", "|---|---:|---|"]
        lines += [f"| {row['name']} | {_number(row['ours'])} | {row['unit']} |" for row in alone]
        lines.append("")
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    quartiles = "–".join(_number(value) for value in row["spread"]) if row["spread"] else ""
    goal = f"≥ {_number(row['goal'])}" if row["goal"] is not None else ""
    met = "" if row["goal"] is None else "yes" if row["ratio"] >= row["goal"] else "no"
    cells = [
        row["name"], _number(row["ours"]), _number(row["other"]), row["unit"], _number(row["ratio"]),
        quartiles, goal, met,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    """Three digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def write_text(file: Path, text: str) -> None:
    """Replaces a file in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(file)
