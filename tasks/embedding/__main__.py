"""`python -m tasks.embedding`: embeds the samples of the manifest that the cache lacks."""

from pathlib import Path

from tasks.embedding import embed
from tasks.embedding.backbone import resolve
from tasks.params import Params
from tasks.records import Manifest
from tasks.repro import fresh, place, stage
from tasks.settings import Settings


def main(params: Params) -> None:
    settings = Settings()
    embedder = resolve(params.embedding, settings.root / "weights")
    manifest = Manifest.load(place("manifest"))
    made = embed.run(manifest, Path("data"), embedder, settings, params.data.max_pixels)
    # How many were computed now, and where the cache lies, is not part of the result.
    told = made.model_copy(update={"root": "", "computed": 0, "cached": made.computed + made.cached})
    (fresh("embedding") / "embeddings.json").write_text(told.model_dump_json(indent=2) + "\n")


if __name__ == "__main__":
    stage(main)
