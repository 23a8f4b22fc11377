"""`regraft backbones`: which backbone suits a dataset."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows import show, stack
from flows.options import AsJson, State, params_of, settings_of, tell
from tasks.errors import BackboneError, ParamsError
from tasks.params import BackboneParams, explain

if TYPE_CHECKING:
    from tasks.report.ranking import Ranking

backbones_app = typer.Typer(help="Backbones for a dataset.", no_args_is_help=True)


@backbones_app.callback()
def _backbones() -> None:
    """Backbones for a dataset."""


@backbones_app.command("rank")
def backbones_rank(
    data: Annotated[
        str, typer.Argument(help="Folder of class folders, .csv or .parquet table, or the same under s3://.")
    ],
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            help="timm:NAME or torchvision:NAME[@WEIGHTS]; may be given several times.",
            show_default="those of the parameters, and each of their layers",
        ),
    ] = None,
    params: Annotated[Path | None, typer.Option(help="Parameters file.", show_default="params.yaml")] = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Rank backbones on the training split, by LogME and by a cross-validated head."""
    settings = settings_of(state)
    values = params_of(params)
    names = _checked(backbone or [])
    with show.progress(quiet=as_json):
        api = stack.api(settings)
        from flows.rank import rank as flow

        api.wait()
        ranking = flow(data=data, params=values, backbones=names)
    if as_json:
        tell(True, ranking.model_dump(mode="json"), "")
    else:
        _show(ranking)
    if not ranking.ranked:
        raise BackboneError(
            f"no candidate could be had: {'; '.join(f'{bad.path}: {bad.reason}' for bad in ranking.lacking)}"
        )


def _checked(names: list[str]) -> tuple[str, ...]:
    """The names, of which none is misspelled in a way that can be seen."""
    for name in names:
        try:
            BackboneParams(backbone=name)
        except ValidationError as error:
            raise ParamsError(f"--backbone {name}: {explain(error)}") from None
    return tuple(names)


def _show(ranking: "Ranking") -> None:
    from tasks.report.words import metric_title, number

    table = Table(title=f"Backbones on {ranking.samples:,} training samples", title_justify="left")
    table.add_column("backbone", overflow="fold")
    for column in ("length", "loss ± s.e.  ", metric_title(ranking.metric).lower(), "LogME"):
        table.add_column(column, justify="right")
    for one in ranking.ranked:
        loss = f"{number(one.loss.value)} ± {number(one.loss.standard_error)} {'=' if one.tied else ' '}"
        table.add_row(
            escape(one.name),
            f"{one.dim:,}",
            loss,
            number(one.metric),
            number(one.logme),
        )
    console = Console()
    console.print(table)
    console.print("[dim]=: the folds can't tell it from the best; the shortest is the cheapest[/]")
    for bad in ranking.lacking:
        console.print(f"[yellow]not to be had[/]  {escape(bad.path)}: {escape(bad.reason)}", soft_wrap=True)
    if ranking.ranked:
        console.print(f"plot: {ranking.path / 'ranking.png'}", soft_wrap=True, markup=False)
