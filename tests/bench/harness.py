"""Timing two or more sides of a comparison: round by round in turn, in one process, so that a slow
moment of the machine falls on all of them."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

ROUNDS = 5

Side = Callable[[], float | None]
Seconds = dict[str, list[float]]  # side -> of each round


@dataclass(frozen=True)
class Row:
    """A figure. `ratio` says how many times better ours is: higher is better in every row."""

    name: str
    ours: float
    other: float | None
    ratio: float | None
    unit: str  # of ours and other
    goal: float | None = None  # least ratio
    spread: tuple[float, float] | None = None  # quartiles of the ratio over the rounds
    note: str = ""  # what the two sides are
    limits: str = ""  # shown where the goal is missed: what limits it


def interleaved(sides: Mapping[str, Side], rounds: int = ROUNDS) -> Seconds:
    """Seconds of each side in each round, after one round that isn't counted.

    A side that returns a number has timed itself. Every other round goes through the sides
    backwards, so that none always follows the same one.
    """
    seconds: Seconds = {name: [] for name in sides}
    for side in sides.values():
        side()
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            gc.collect()
            start = time.perf_counter()
            told = sides[name]()
            seconds[name].append(time.perf_counter() - start if told is None else told)
    return seconds


def quickest(sides: Mapping[str, Side], rounds: int = 2) -> str:
    """The side with the least time: how a competitor's settings are chosen."""
    seconds = interleaved(sides, rounds)
    return min(seconds, key=lambda name: min(seconds[name]))


def row(
    name: str,
    ours: Sequence[float],
    other: Sequence[float],
    *,
    unit: str,
    work: float | None = None,
    goal: float | None = None,
    note: str = "",
    limits: str = "",
) -> Row:
    """A row from the seconds that two sides took for the same work, round by round.

    Args:
        unit: of the shown numbers; `ms` are times, anything but `s` and `ms` needs `work`.
        work: how many units of it were done in a round: the numbers are rates then.
    """
    ratios = [theirs / mine for mine, theirs in zip(ours, other, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Row(
        name=name,
        ours=_shown(statistics.median(ours), unit, work),
        other=_shown(statistics.median(other), unit, work),
        ratio=statistics.median(ratios),
        unit=unit,
        goal=goal,
        spread=(low, high),
        note=note,
        limits=limits,
    )


def below(
    name: str, ours: Sequence[float], limit: float, unit: str, *, note: str = "", limits: str = ""
) -> Row:
    """A row whose other side is a limit that ours has to stay under: the ratio is the headroom."""
    value = statistics.median(ours)
    return Row(name, value, limit, limit / value, unit, goal=1.0, note=note, limits=limits)


def rate(name: str, seconds: Sequence[float], work: float | None, unit: str, *, note: str = "") -> Row:
    """A row of ours alone: what docs/scale.md is computed from."""
    return Row(name, _shown(statistics.median(seconds), unit, work), None, None, unit, note=note)


def _shown(seconds: float, unit: str, work: float | None) -> float:
    if work is not None:
        return work / seconds
    return seconds * {"s": 1.0, "ms": 1000.0}[unit]
