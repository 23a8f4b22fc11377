"""What the commands of the command line share."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from tasks.errors import ParamsError, StackError
from tasks.params import Params, explain, load_params
from tasks.settings import ROOT, Settings

State = Annotated[Path | None, typer.Option("--state", help="Folder of all state.", show_default=".regraft")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of the output.")]


def settings_of(state: Path | None) -> Settings:
    if state is not None:
        os.environ["REGRAFT_STATE"] = str(state)
    try:
        settings = Settings()
        settings.root.mkdir(parents=True, exist_ok=True)
    except ValidationError as error:
        raise ParamsError(f"environment, REGRAFT_*: {explain(error, values=False)}") from None
    except OSError as error:
        raise StackError(
            f"{settings.root}: can't be the state folder ({error.strerror}); name another with --state"
        ) from None
    if not os.access(settings.root, os.W_OK):
        raise StackError(f"{settings.root}: this state folder is read-only; name another with --state")
    return settings


def params_of(file: Path | None) -> Params:
    """The parameters of a file; without one those of the checkout's params.yaml."""
    default = ROOT / "params.yaml"
    if file is None and not default.exists():  # installed without the checkout
        return Params()
    return load_params(file or default)


def tell(as_json: bool, values: dict[str, Any], text: str) -> None:
    """Prints a result: for programs, or for people."""
    typer.echo(json.dumps(values) if as_json else text)
