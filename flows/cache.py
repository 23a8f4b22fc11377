"""`regraft cache`: what the embedding cache holds, whether it is intact, and making it smaller."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows import show
from flows.options import AsJson, State, settings_of, tell
from tasks.errors import CacheError
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.embedding.tier import Tier

cache_app = typer.Typer(help="The embedding cache.", no_args_is_help=True)

Fingerprint = Annotated[str, typer.Argument(help="A fingerprint of `regraft cache list`, or its beginning.")]
Fingerprints = Annotated[
    list[str] | None, typer.Argument(help="Fingerprints, or their beginnings.", show_default="all")
]


@cache_app.command("list")
def cache_list(state: State = None, as_json: AsJson = False) -> None:
    """List the kinds of embeddings, here and in the shared tier."""
    settings = settings_of(state)
    from tasks.embedding.embed import tier_of
    from tasks.embedding.maintain import list_spaces

    spaces = list_spaces(_root(settings), tier_of(settings))
    if as_json:
        tell(True, {"spaces": [space.model_dump(mode="json") for space in spaces]}, "")
    else:
        show.spaces(spaces)


@cache_app.command("verify")
def cache_verify(fingerprints: Fingerprints = None, state: State = None, as_json: AsJson = False) -> None:
    """Read every byte on this disk; damaged segments are set aside, and their samples embedded again by
    the next run. Those of the shared tier are verified whenever they are fetched."""
    root = _root(settings_of(state))
    from tasks.embedding.maintain import verify

    results = {name: verify(root, name) for name in _known(root, None, fingerprints)}
    damaged = [file for result in results.values() for file in result.damaged]
    lines = [f"{name[:16]}  {_counts(result)} intact" for name, result in results.items()]
    lines += [f"{file}: damaged, set aside" for file in damaged] or ["nothing is damaged"]
    tell(
        as_json, {name: result.model_dump(mode="json") for name, result in results.items()}, "\n".join(lines)
    )
    if damaged:
        raise typer.Exit(1)


@cache_app.command("compact")
def cache_compact(fingerprints: Fingerprints = None, state: State = None, as_json: AsJson = False) -> None:
    """Merge small segments into larger ones, beside whoever reads and writes."""
    settings = settings_of(state)
    from tasks.embedding.embed import tier_of
    from tasks.embedding.maintain import compact

    root, tier = _root(settings), tier_of(settings)
    results = {name: compact(root, name, tier) for name in _known(root, tier, fingerprints)}
    lines = [
        f"{name[:16]}  {_many(result.before.segments, 'segment')} before, now {_counts(result.after)}"
        for name, result in results.items()
    ]
    values = {name: result.model_dump(mode="json") for name, result in results.items()}
    tell(as_json, values, "\n".join(lines) or "the cache is empty")


@cache_app.command("prune")
def cache_prune(
    fingerprints: Fingerprints = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, help="Days: what no run has used for longer than that.")
    ] = None,
    unreferenced: Annotated[
        bool, typer.Option("--unreferenced", help="What no registered version of a model stands on.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove it; without this, only say what would go.")
    ] = False,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Say what would be removed, by all conditions together; with --yes, remove it here and in the tier."""
    settings = settings_of(state)
    from tasks.embedding.embed import tier_of
    from tasks.embedding.maintain import prune

    root, tier = _root(settings), tier_of(settings)
    referenced = None
    if unreferenced:
        from tasks.registry.versions import referenced_blocks

        referenced = referenced_blocks(settings)
    pruned = prune(
        root,
        fingerprints=_known(root, tier, fingerprints) if fingerprints else None,
        unused_days=older_than,
        referenced=referenced,
        tier=tier,
        dry_run=not yes,
    )
    if as_json:
        tell(True, pruned.model_dump(mode="json"), "")
        return
    if pruned.spaces:
        show.spaces(pruned.spaces)
    end = "would be removed; add --yes to remove" if pruned.dry_run else "removed"
    if not pruned.spaces:
        end = "nothing to remove"
    typer.echo(f"{_many(len(pruned.spaces), 'kind')} of embeddings, {_counts(pruned)}: {end}")


@cache_app.command("export")
def cache_export(
    fingerprint: Fingerprint,
    to: Annotated[Path, typer.Option(help="Parquet file; replaced where it exists.")],
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Write the embeddings of one kind to a Parquet file, those that only the shared tier has included."""
    settings = settings_of(state)
    from tasks.embedding.embed import tier_of
    from tasks.embedding.maintain import export

    root, tier = _root(settings), tier_of(settings)
    (name,) = _known(root, tier, [fingerprint])
    result = export(root, name, to, tier)
    tell(as_json, result.model_dump(mode="json"), f"{_counts(result)} are in {result.file}")


def _root(settings: Settings) -> Path:
    return settings.root / "embeddings"


def _known(root: Path, tier: "Tier | None", given: list[str] | None) -> list[str]:
    """The fingerprints that `given` are the beginnings of; None: all that are here or in the tier."""
    from tasks.embedding.folder import folders

    known = sorted({folder.name for folder in folders(root)} | set(tier.fingerprints() if tier else ()))
    if given is None:
        return known
    where = "on this disk or in the tier" if tier else "on this disk"
    return [_one(known, beginning, where) for beginning in given]


def _one(known: list[str], beginning: str, where: str) -> str:
    found = [name for name in known if name.startswith(beginning)]
    if len(found) != 1:
        what = f"is the beginning of {len(found)} fingerprints" if found else "no such fingerprint"
        raise CacheError(f"{beginning}: {what} {where}; see `regraft cache list`")
    return found[0]


def _counts(counts: Any) -> str:
    return (
        f"{_many(counts.rows, 'embedding')} in {_many(counts.segments, 'segment')}, {show.size(counts.bytes)}"
    )


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
