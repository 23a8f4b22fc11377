"""The ladder as a record: what each rung came to, and which one was taken."""

import json
from collections.abc import Sequence
from pathlib import Path

from tasks.evaluation import ladder_plots
from tasks.params import GateParams
from tasks.records import Climb, Ladder, Rung, digest_of


def run(out: Path, climb: Climb, rungs: Sequence[Rung], reason: str, params: GateParams) -> Ladder:
    """Writes ladder.json and ladder.png.

    Args:
        rungs: the cheapest first; one is chosen.
        reason: of the choice (see `rungs.choose`).
        params: of the gate, whose metric the rungs were judged by.

    Raises:
        ValueError: not exactly one rung is chosen.
    """
    if sum(rung.chosen for rung in rungs) != 1:
        raise ValueError(f"of {len(rungs)} rungs {sum(rung.chosen for rung in rungs)} are chosen, not one")
    made = Ladder(
        digest="", folder=str(out), metric=params.metric, climb=climb, rungs=tuple(rungs), reason=reason
    )
    told = made.model_dump(mode="json", exclude={"digest", "folder"})
    (out / "ladder.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    ladder_plots.ladder(out / "ladder.png", made, floor_of(params))
    return made.model_copy(update={"digest": digest_of("ladder", told)})


def floor_of(params: GateParams) -> float | None:
    """The gate's floor of the metric by which the rungs are judged; None: it has none."""
    return next((floor.limit for floor in params.floors if floor.metric == params.metric), None)
