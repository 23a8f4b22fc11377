"""The embedder of disturbed images: what a model sees when cameras and files are worse than those that
it was trained on. What the disturbances are is in `disturbance`."""

from tasks.embedding.source import embedder_of
from tasks.embedding.views import all_disturbances, disturbed_view, divided
from tasks.records import Embedder, Embeddings


def disturbed(embedder: Embedder) -> Embedder:
    """For each block of an embedder, that block and its 15 disturbed ones, with the fingerprints that
    they have here. The blocks of one disturbance keep the embedder's order."""
    backbones = []
    for backbone in embedder.backbones:
        blocks = list(backbone.blocks)
        for disturbance in all_disturbances():
            blocks += [
                block.model_copy(update={"view": disturbed_view(block.view, disturbance)})
                for block in backbone.blocks
            ]
        backbones.append(backbone.model_copy(update={"blocks": tuple(blocks)}))
    return embedder_of(backbones)


def blocks_of(embeddings: Embeddings, disturbance: str | None) -> Embeddings:
    """Of the embeddings of `disturbed`, those of one disturbance (`noise-2`), or of none: an embedding
    is then laid out as the embedder's own."""
    return embeddings.select(
        {block.digest for block in embeddings.blocks if divided(block.view)[1] == disturbance}
    )
