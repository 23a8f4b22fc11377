"""What a training spends before its first step, also where that takes several attempts."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

Prepared = dict[str, dict[str, float]]  # machine -> what for -> seconds


class Spent:
    """Seconds by what they were spent on, in a file that outlives a killed attempt. The file is advice: a
    damaged or unwritable one is passed over."""

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = file, clock
        self._machine, self._seconds = _read(file)

    @property
    def prepared(self) -> Prepared:
        """By the file's own name, so that those of other machines can be added."""
        return {self._machine: dict(self._seconds)} if self._seconds else {}

    @contextmanager
    def on(self, what: str) -> Iterator[Callable[[], None]]:
        """Counts the seconds of what is done within, which is to call what it is given now and then."""
        before, began = self._seconds.get(what, 0.0), self._clock()

        def note() -> None:
            self._seconds[what] = before + self._clock() - began
            with suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                part = self._file.with_suffix(".part")
                part.write_text(json.dumps({"machine": self._machine, "seconds": self._seconds}))
                part.replace(self._file)

        try:
            yield note
        finally:
            note()

    def clear(self) -> None:
        """They are recorded elsewhere."""
        with suppress(OSError):
            self._file.unlink(missing_ok=True)


def _read(file: Path) -> tuple[str, dict[str, float]]:
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        content = json.loads(file.read_text())
        seconds = {str(what): float(number) for what, number in content["seconds"].items()}
        return str(content["machine"]), seconds
    return uuid4().hex, {}
