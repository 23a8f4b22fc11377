"""Who wants to know how far a long stage is."""

import time
from collections.abc import Callable

Listener = Callable[[str, int, int], None]  # (what, done, to do)

_listeners: list[Listener] = []


def listen(listener: Listener) -> None:
    """From now on `listener` hears of progress in this process."""
    _listeners.append(listener)


def report(what: str, done: int, total: int) -> None:
    for listener in _listeners:
        listener(what, done, total)


class Pace:
    """How quick a stage is, and how long it has still to go."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def told(self, done: int, total: int) -> str:
        """`1,200 of 2,000 samples, 61.3 samples/s, 13 s left`."""
        passed = time.monotonic() - self._started
        text = f"{done:,} of {total:,} samples"
        if not done or passed <= 0:
            return text
        rate = done / passed
        return f"{text}, {rate:,.1f} samples/s, {duration((total - done) / rate)} left"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `5 h 7 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
