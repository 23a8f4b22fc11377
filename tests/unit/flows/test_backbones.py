from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.backbones import backbones_app
from tasks.errors import ParamsError


def test_backbones_rank__a_name_that_is_none_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    words = ["rank", str(tmp_path), "--backbone", "resnet18", "--state", str(tmp_path / "state")]
    result = CliRunner().invoke(backbones_app, words)
    assert isinstance(result.exception, ParamsError)
    assert str(result.exception).startswith("--backbone resnet18: backbone: ")


@pytest.mark.parametrize("option", ["--backbone", "--params", "--state", "--json"])
def test_backbones_rank__says_its_options(option: str) -> None:
    result = CliRunner().invoke(backbones_app, ["rank", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert option in result.output
