"""Who wants to know how far a long stage is."""

from collections.abc import Callable

Listener = Callable[[str, int, int], None]  # (what, done, to do)

_listeners: list[Listener] = []


def listen(listener: Listener) -> None:
    """From now on `listener` hears of progress in this process."""
    _listeners.append(listener)


def report(what: str, done: int, total: int) -> None:
    for listener in _listeners:
        listener(what, done, total)
