"""docs/scale.md: what each power of ten costs, computed from the rates that `make bench` measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.settings import ROOT
from tests.bench.report import write_text

PAGE = ROOT / "docs" / "scale.md"
_BEGIN, _END = "<!-- computed by `python -m tests.bench` -->", "<!-- end -->"

DIM = 1_280
ROW_BYTES = 16 + 4 * DIM
SEGMENT_ROWS = 4_096  # as a run writes them
COMPACTED_BYTES = 256 << 20
IMAGE_BYTES = 50_000
INDEX_BYTES = 400e6  # what a process may spend on the index
NIGHT_H = 8.0
# List prices of S3 Standard, us-east-1, in dollars; set your own.
PUT, GET, STORAGE_GB_MONTH = 0.005 / 1000, 0.0004 / 1000, 0.023
CORE_H = 0.0425  # of a vCPU, on demand

# Name of a rate here -> (name of its row, unit that the row must have).
RATES = {
    "embed": ("extraction, tf_efficientnet_lite0, against its parts", "images/s"),
    "hash": ("SHA-256 on 2 threads", "GB/s"),
    "version": ("versioning new files", "files/s"),
    "put": ("S3 put of a segment of 20 MB", "GB/s"),
    "list": ("S3 listing of 1,000 objects", "objects/s"),
    "open": ("opening a cache of 10,000,000 keys", "s"),
    "index": ("memory of the index of 10,000,000 keys", "MB"),
}
MEASURED_KEYS = 10_000_000  # of the last two rows


def update(rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the computed part of the page anew, if all the rates were measured."""
    found = {row["name"]: row for row in rows}
    if any(name not in found or found[name]["unit"] != unit for name, unit in RATES.values()):
        return
    rate = {key: float(found[name]["ours"]) for key, (name, _) in RATES.items()}
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2]
    write_text(PAGE, f"{before}{_BEGIN}\n\n{computed(rate)}\n{_END}{after}")


def computed(rate: Mapping[str, float]) -> str:
    """The tables, in Markdown."""
    sizes = [10**power for power in range(4, 10)]
    measured = (
        f"Measured on one machine of two cores: {rate['embed']:,.0f} images embedded a second,"
        f" {rate['version']:,.0f} new files versioned a second, SHA-256 {rate['hash']:.2g} GB/s,\n"
        f"segments to S3 {rate['put']:.2g} GB/s, listing {rate['list']:,.0f} objects/s, the index of ten"
        f" million keys {rate['index']:,.0f} MB and {rate['open']:.2g} s to open."
    )
    return f"{measured}\n\n{_space(sizes, rate)}\n\n{_time(sizes, rate)}\n"


def _space(sizes: Sequence[int], rate: Mapping[str, float]) -> str:
    lines = [
        "| images | vectors | segments as written | compacted | listing them | all keys | index"
        " | key ranges of ≤ 400 MB | storage a month | writing, listing |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for n in sizes:
        written, compacted = _up(n / SEGMENT_ROWS), _up(n * ROW_BYTES / COMPACTED_BYTES)
        index = rate["index"] * 1e6 * n / MEASURED_KEYS
        requests = 2 * (written + compacted) * PUT + _up(2 * written / 1000) * PUT + compacted * GET
        cells = [
            f"{n:,}", _bytes(n * ROW_BYTES), f"{written:,}", f"{compacted:,}",
            _span(2 * compacted / rate["list"]), _bytes(16 * n), _bytes(index),
            f"{_up(index / INDEX_BYTES):,}",
            _dollars(n * ROW_BYTES / 1e9 * STORAGE_GB_MONTH), _dollars(requests),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _time(sizes: Sequence[int], rate: Mapping[str, float]) -> str:
    lines = [
        "| images | versioning | hashing | embedding | to S3 | opening | longest"
        " | cores to embed in a night | embedding costs | 1 % new a night |",
        "|---:|---:|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    for n in sizes:
        seconds = {
            "versioning": n / rate["version"],
            "hashing": n * IMAGE_BYTES / 1e9 / rate["hash"],
            "embedding": n / rate["embed"],
            "to S3": n * ROW_BYTES / 1e9 / rate["put"],
            "opening": rate["open"] * n / MEASURED_KEYS,
        }
        core_h = 2 * seconds["embedding"] / 3600
        cells = [
            f"{n:,}", *map(_span, seconds.values()), max(seconds, key=lambda name: seconds[name]),
            f"{max(1, _up(core_h / NIGHT_H)):,}", _dollars(core_h * CORE_H),
            _span(0.01 * (seconds["embedding"] + seconds["hashing"] + seconds["versioning"])),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _up(value: float) -> int:
    return int(-(-value // 1))


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def _span(seconds: float) -> str:
    for limit, size, unit in ((100, 1, "s"), (6000, 60, "min"), (100 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds / 86_400:,.0f} days"


def _dollars(value: float) -> str:
    return f"${value:,.0f}" if value >= 10 else f"${value:.2f}"
