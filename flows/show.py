"""The terminal: progress while a flow runs, and its result as a table."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from flows.headline import head_in_words, headline
from tasks import progress as reported
from tasks.progress import duration
from tasks.records import AdaptResult, Interval

if TYPE_CHECKING:
    from tasks.embedding.maintain import Space
    from tasks.registry.versions import VersionInfo


class _RateColumn(ProgressColumn):
    """Samples a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.1f}/s" if task.speed else "")


@contextmanager
def progress(*, quiet: bool) -> Iterator[None]:
    """A spinner with the stage that runs now, and a bar where a stage counts; on standard error."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bars:
        bar = bars.add_task("starting Prefect", total=None)

        def update(what: str, done: int, total: int) -> None:
            if bars.tasks[0].description != what:
                bars.reset(bar)  # else its pace would be that of the stage before
            bars.update(bar, description=what, completed=done, total=total or None)

        reported.listen(update)
        yield


def result(result: AdaptResult, *, up: bool) -> None:
    """Prints a result for people."""
    console = Console()
    colour = {"registered": "green", "rejected": "red", "unchanged": "cyan"}[result.state]
    console.print(f"[bold {colour}]{result.state}[/]  {escape(headline(result))}\n")
    facts = Table.grid(padding=(0, 2))
    facts.add_row("data version", result.dataset.digest)
    facts.add_row("samples", f"{result.dataset.samples:,}, {result.dataset.quarantined:,} files quarantined")
    facts.add_row(
        "embeddings", f"{result.embedding.computed:,} computed, {result.embedding.cached:,} from the cache"
    )
    facts.add_row("head", head_in_words(result.head))
    facts.add_row(
        "data audit",
        f"{result.audit.near_duplicates:,} near-duplicates ({result.audit.leakage:.1%} of test in train too),"
        f" {result.audit.label_errors:,} likely label errors, {result.audit.outliers:,} outliers",
    )
    if result.model:
        alias = f", alias {result.model.alias}" if result.model.alias else ""
        facts.add_row("model", escape(f"{result.model.name} version {result.model.version}{alias}"))
    console.print(facts)
    console.print(f"\n{escape(result.climb)}" if result.climb else "")
    if len(result.ladder) > 1:
        console.print(_ladder(result))
    console.print(_metrics(result))
    gate = Table(title="Gate", title_justify="left")
    for column in ("check", "", "numbers"):
        gate.add_column(column)
    for reason in result.gate.reasons:
        mark = "[green]passed[/]" if reason.passed else "[red]failed[/]"
        gate.add_row(escape(reason.check), mark, escape(reason.detail))
    console.print(gate)
    times = ", ".join(f"{name} {seconds:.1f}" for name, seconds in result.seconds.items())
    console.print(f"[dim]seconds: {escape(times)}[/]")
    console.print(f"report   {result.report}", soft_wrap=True)
    console.print("" if up else "[dim]the addresses answer after `regraft ui`:[/]")
    for name in ("prefect", "mlflow"):
        console.print(f"{name:8} {result.links[name]}", soft_wrap=True)


def versions(found: "Sequence[VersionInfo]") -> None:
    """Prints the registered versions."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for column in ("model", "version", "bal. acc.", "log loss", "created (UTC)", "aliases"):
        table.add_column(column, no_wrap=column != "aliases")
    for version in found:
        table.add_row(
            escape(version.name),
            version.version,
            _number(version.metrics.get("balanced_accuracy")),
            _number(version.metrics.get("log_loss")),
            f"{version.created:%Y-%m-%d %H:%M}",
            escape(" ".join(version.aliases)),
        )
    Console().print(table)


def spaces(found: "Sequence[Space]") -> None:
    """Prints what the embedding cache holds."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for column in ("fingerprint", "place", "embeddings", "segments", "size", "used"):
        table.add_column(column, justify="right" if column in ("embeddings", "segments", "size") else "left")
    table.add_column("what", overflow="fold")
    for space in found:
        used = f"{space.unused_days:.0f} days ago" if space.unused_days >= 1 else "today"
        damaged = f" ({space.damaged} segments damaged)" if space.damaged else ""
        table.add_row(
            space.fingerprint[:16],
            space.place,
            f"{space.rows:,}",
            f"{space.segments:,}",
            size(space.bytes),
            used,
            escape(space.what + damaged),
        )
    Console().print(table)


def size(count: int) -> str:
    """`12.3 MB`, in powers of 1,000."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:,.0f} B" if unit == "B" else f"{value:,.1f} {unit}"


def _metrics(result: AdaptResult) -> Table:
    table = Table(title="Test split, 95 % intervals", title_justify="left")
    table.add_column("metric")
    table.add_column("this run", justify="right")
    champion = result.champion_metrics
    if champion:
        table.add_column("champion", justify="right")
    for name, interval in result.metrics.items():
        cells = [name, _interval(interval)]
        if champion:
            cells.append(_interval(champion[name]) if name in champion else "-")
        table.add_row(*cells)
    return table


def _ladder(result: AdaptResult) -> Table:
    title = f"Ladder, {result.ladder[0].metric}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("rung", no_wrap=True)
    for column in ("validation", "test"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("gate", no_wrap=True)
    for column in ("takes", "MB", "ms"):
        table.add_column(column, justify="right", no_wrap=True)
    for rung in result.ladder:
        name = escape(rung.name)
        table.add_row(
            f"[bold]{name}[/] ←" if rung.chosen else name,
            f"{rung.validation.value:.3f}",
            _interval(rung.test),
            "[green]passed[/]" if rung.passed else "[red]failed[/]",
            duration(rung.seconds),
            f"{rung.size_mb:.1f}",
            f"{rung.latency_ms:.1f}",
        )
    return table


def _interval(interval: Interval) -> str:
    return f"{interval.value:.3f} \\[{interval.low:.3f}, {interval.high:.3f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
