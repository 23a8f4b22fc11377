"""The command line: `regraft adapt`, `backbones`, `cache`, `data`, `models`, `up`, `down`, `ui`."""

import getpass
import json
import os
import sys
import traceback
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from flows import show, stack
from flows.backbones import backbones_app
from flows.cache import cache_app
from flows.options import AsJson, State, params_of, settings_of, tell
from tasks.errors import RegraftError
from tasks.params import BUILTIN, Params
from tasks.settings import Settings

_INTERRUPTED = 130  # exit status after Ctrl-C

app = typer.Typer(
    help="Keeps production models adapted to data that keeps changing.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Versions of the data.", no_args_is_help=True)
models_app = typer.Typer(help="Versions of the models.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")
app.add_typer(backbones_app, name="backbones")
app.add_typer(cache_app, name="cache")


@app.command()
def adapt(
    data: Annotated[
        str,
        typer.Option(help="Folder of class folders, .csv or .parquet table, or the same under s3://."),
    ] = BUILTIN,
    params: Annotated[Path | None, typer.Option(help="Parameters file.", show_default="params.yaml")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model.", show_default="after the data")
    ] = None,
    rehash: Annotated[bool, typer.Option(help="Read and hash unchanged files too.")] = False,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Adapt a model to a dataset: version, embed, train, judge, register."""
    settings = settings_of(state)
    values = params_of(params)
    with show.progress(quiet=as_json):
        api = stack.api(settings)
        # The API takes seconds to come up, and so does what the flow needs first: both at once.
        _prepare(settings, values)
        from flows.adapt import adapt as flow

        api.wait()
        result = flow(data=data, name=name or "", params=values, rehash=rehash)
    if as_json:
        typer.echo(result.model_dump_json())
    else:
        show.result(result, up=stack.is_up(settings))


@data_app.command("checkout")
def data_checkout(
    model: Annotated[str, typer.Argument(help="models:/NAME/VERSION or models:/NAME@ALIAS")],
    to: Annotated[Path, typer.Option(help="Folder that receives data/ and data.dvc.")] = Path(),
    force: Annotated[bool, typer.Option(help="Replace a data/ that holds anything else.")] = False,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Bring back the exact files that made a model version."""
    settings = settings_of(state)
    from tasks.data.version import checkout
    from tasks.registry.versions import origin_of

    origin = origin_of(model, settings)
    version = checkout(origin.dvc_file, to, settings, force=force)
    params = version.path / "data.params.yaml"
    params.write_text(origin.params, encoding="utf-8")
    tell(
        as_json,
        {"data": str(version.data), "digest": version.digest, "files": version.files},
        f"{version.files:,} files of {version.digest} are in {version.data};"
        f" the parameters that go with them are in {params}",
    )


@models_app.command("list")
def models_list(
    name: Annotated[str | None, typer.Argument(help="Only this model.")] = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """List the registered versions with their aliases and metrics."""
    settings = settings_of(state)
    from tasks.registry.versions import list_versions

    versions = list_versions(settings, name)
    if as_json:
        typer.echo(json.dumps([version.model_dump(mode="json") for version in versions]))
    else:
        show.versions(versions)


@models_app.command("promote")
def models_promote(
    name: str,
    version: str,
    reason: Annotated[str, typer.Option(help="Why; kept with the version.")] = "",
    by: Annotated[str | None, typer.Option(help="Who.", show_default="the user of this shell")] = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion, if a passed decision stands behind it."""
    settings = settings_of(state)
    api = stack.api(settings)
    from flows.promote import promote

    api.wait()
    promotion = promote(name=name, version=version, by=by or _user(), reason=reason)
    done = "is the champion now" if promotion.changed else "was the champion already"
    tell(as_json, promotion.model_dump(mode="json"), f"{name} version {promotion.version} {done}")


@app.command()
def up(state: State = None, as_json: AsJson = False) -> None:
    """Start Prefect, MLflow and a worker in the background, with the deployments."""
    started = stack.up(settings_of(state), params_of(None))
    tell(as_json, started.model_dump(mode="json"), _addresses(started))


@app.command()
def down(state: State = None) -> None:
    """Stop what `regraft up` started."""
    stopped = stack.down(settings_of(state))
    typer.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


@app.command()
def ui(state: State = None, as_json: AsJson = False) -> None:
    """Start the servers if they are not up, and print their addresses."""
    started = stack.up(settings_of(state), params_of(None))
    tell(as_json, {"prefect": started.prefect, "mlflow": started.mlflow}, _addresses(started))


def main() -> None:
    """Runs a command; a failure is one line and a non-zero exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ≥ or – still gets its result
    try:
        app()
    except RegraftError as error:
        _fail(str(error))
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # what Typer makes of Ctrl-C
            _fail("interrupted; run the same command again to carry on", _INTERRUPTED)
        raise
    except Exception as error:
        _fail(f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}{_details()}")


def _details() -> str:
    """Keeps the stack trace where that is possible, and says where."""
    try:
        log = Settings().root / "error.log"
        log.write_text(traceback.format_exc())
    except (OSError, ValidationError):
        return ""
    return f"; details in {log}"


def _fail(message: str, status: int = 1) -> None:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for its user
        return f"uid {os.getuid()}"


def _prepare(settings: Settings, params: Params) -> None:
    """Imports and opens what `adapt` begins with; what is wrong the flow finds, and says, again."""
    from tasks.embedding.task import remembered
    from tasks.registry.tracking import connect

    with suppress(RegraftError):
        connect(settings)
        remembered(params.embedding, settings.root / "weights")


def _addresses(started: stack.Stack) -> str:
    return f"Prefect  {started.prefect}\nMLflow   {started.mlflow}"
