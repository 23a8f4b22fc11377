"""`python -m tests.bench [NAME ...]`: runs all cases or the named ones, each in a process of its
own, so that no case finds the threads, the memory or the settings that another left."""

import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module

from tests.bench import report, scale
from tests.bench.harness import Row

CASES = (
    "extraction",
    "forward",
    "decode",
    "arrays",
    "gather",
    "lookup",
    "rescan",
    "incremental",
    "peer_lightly",
    "memory",
    "audits",
    "gates",
    "rates",
    "heads",
    "training",
    "ladder",
    "labels",
)


def main(names: Sequence[str]) -> int:
    unknown = sorted(set(names) - set(CASES))
    if unknown:
        print(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}", file=sys.stderr)
        return 2
    if len(names) == 1:
        _case(names[0])
        return 0
    failed = [name for name in names or CASES if _child(name)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _child(name: str) -> int:
    return subprocess.run([sys.executable, "-m", "tests.bench", name], check=False).returncode


def _case(name: str) -> None:
    found: Iterable[Row] = import_module(f"tests.bench.{name}").run()
    rows: list[Row] = []
    complete = False
    try:
        for row in found:
            rows.append(row)
            versus = "" if row.ratio is None else f" against {row.other:.4g}: {row.ratio:.3g}"
            goal = "" if row.goal is None else f" (goal {row.goal:g})"
            print(f"{row.name}: {row.ours:.4g} {row.unit}{versus}{goal}", flush=True)
        complete = True
    finally:  # an hour's rows are not lost to what fails after them
        scale.update(report.merge(name, rows, CASES, complete=complete))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
