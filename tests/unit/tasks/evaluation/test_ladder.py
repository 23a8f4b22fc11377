import json
from pathlib import Path

import pytest
from PIL import Image

from tasks.evaluation import ladder
from tasks.params import Floor, GateParams
from tasks.records import Ladder, Rung
from tests.unit.tasks.evaluation.climbed import RUNGS, climb, rung

PARAMS = GateParams()  # by balanced accuracy, at least 0.65


def test_ladder__leaves_its_numbers_and_a_picture(tmp_path: Path) -> None:
    made = ladder.run(tmp_path, climb(), RUNGS, "lp_ft is taken.", PARAMS)
    assert made.metric == "balanced_accuracy"
    told = json.loads((tmp_path / "ladder.json").read_text())
    assert [one["name"] for one in told["rungs"]] == ["frozen", "lp_ft", "student"]
    assert told["reason"] == "lp_ft is taken."
    with Image.open(tmp_path / "ladder.png") as image:
        image.load()
    made.save()
    assert Ladder.load(tmp_path) == made


def test_ladder__its_digest_is_of_its_numbers(tmp_path: Path) -> None:
    one = ladder.run(tmp_path, climb(), RUNGS, "", PARAMS)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    assert ladder.run(folder, climb(), RUNGS, "", PARAMS).digest == one.digest
    slower = (*RUNGS[:2], RUNGS[2].model_copy(update={"seconds": 901.0}))
    assert ladder.run(folder, climb(), slower, "", PARAMS).digest != one.digest


@pytest.mark.parametrize("rungs", [(), RUNGS[:1], (*RUNGS, rung("full", 0.9, 1000, chosen=True))])
def test_ladder__one_rung_is_chosen(tmp_path: Path, rungs: tuple[Rung, ...]) -> None:
    with pytest.raises(ValueError, match="are chosen, not one"):
        ladder.run(tmp_path, climb(), rungs, "", PARAMS)


def test_floor_of__is_that_of_the_metric_of_the_comparison() -> None:
    assert ladder.floor_of(PARAMS) == 0.65
    floors = (Floor(metric="ece", limit=0.15),)
    assert ladder.floor_of(PARAMS.model_copy(update={"floors": floors})) is None
