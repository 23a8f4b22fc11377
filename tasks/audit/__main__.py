"""`python -m tasks.audit`: what the embeddings say about the data."""

from pathlib import Path

from tasks.audit import audit
from tasks.head.__main__ import embeddings
from tasks.params import Params
from tasks.records import Head, Manifest
from tasks.repro import fresh, place, stage


def main(params: Params) -> None:
    manifest, head = Manifest.load(place("manifest")), Head.load(place("head"))
    seen = embeddings().select(head.blocks)
    audit.run(fresh("findings"), manifest, Path("data"), seen, head, None, params.audit).save()


if __name__ == "__main__":
    stage(main)
