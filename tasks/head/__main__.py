"""`python -m tasks.head`: trains the head on the cached embeddings."""

from tasks.head import fit
from tasks.params import Params
from tasks.records import Embeddings, Manifest
from tasks.repro import fresh, place, stage
from tasks.settings import Settings


def embeddings() -> Embeddings:
    """What `python -m tasks.embedding` left, with the cache of this state folder."""
    told = Embeddings.model_validate_json((place("embedding") / "embeddings.json").read_bytes())
    return told.model_copy(update={"root": str(Settings().root / "embeddings")})


def main(params: Params) -> None:
    manifest, memory_bytes = Manifest.load(place("manifest")), Settings().memory_bytes
    fit.run(fresh("head"), manifest, embeddings(), params.head, memory_bytes=memory_bytes).save()


if __name__ == "__main__":
    stage(main)
