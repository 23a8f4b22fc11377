"""Our side of the comparison with lightly-train, in a process of its own: from a folder of images to
their embeddings. `python -m tests.bench.embed_side DATA STATE` prints the seconds after the imports.
"""

import shutil
import sys
import time
from pathlib import Path

from tasks.embedding import embed
from tasks.embedding.gather import gather
from tasks.settings import Settings
from tests.bench import dataset, engine
from tests.bench.lightly_side import ARCHITECTURE


def main(data: Path, state: Path) -> float:
    """Nothing is in the cache; how quick the routes are is known, as after the first run anywhere."""
    start = time.perf_counter()
    settings = Settings(state=state)
    shutil.rmtree(settings.root / "embeddings", ignore_errors=True)
    some = engine.digested(sorted(data.iterdir()))
    manifest = dataset.manifest(some, data, state / "manifest")
    done = embed.run(
        manifest, data, engine.embedder(f"torchvision:{ARCHITECTURE}"), settings, engine.MAX_PIXELS
    )
    vectors = gather(done, [sample.digest for sample in some])
    assert done.computed == len(vectors) == len(some)
    return time.perf_counter() - start


if __name__ == "__main__":
    print(f"\nseconds {main(Path(sys.argv[1]), Path(sys.argv[2]))}")
