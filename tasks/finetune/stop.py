"""Being asked to stop: a signal sets a flag, which the loop reads between two steps."""

import signal
from types import FrameType, TracebackType
from typing import Self

PREEMPTED = (
    75  # exit status of a process that was told to stop and saved its state; EX_TEMPFAIL of sysexits.h
)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Within it, SIGTERM and SIGINT end nothing by themselves; of the main thread alone."""

    wanted = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            # None: one that was not set from Python, and can't be set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.wanted = True
