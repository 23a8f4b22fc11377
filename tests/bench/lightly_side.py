"""What runs in lightly-train's own environment: `python lightly_side.py checkpoint WEIGHTS OUT` makes
a checkpoint that its `embed` takes; `... embed DATA CHECKPOINT OUT BATCH` embeds a folder and
prints the seconds after the imports.

It imports nothing of Regraft, which that environment does not have.
"""

import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

ARCHITECTURE = "resnet18"


def checkpoint(weights: str, out: str) -> None:
    """The checkpoint that training would leave, with our weights."""
    model: Any = import_module("torchvision.models").get_model(ARCHITECTURE, weights=None)
    model.load_state_dict(import_module("safetensors.torch").load_file(weights))
    parts: Any = import_module("lightly_train._checkpoint")
    package: Any = import_module("lightly_train._models.torchvision.torchvision_package")
    wrapped = package.TORCHVISION_PACKAGE.get_model_wrapper(model.eval())
    embedding: Any = import_module("lightly_train._models.embedding_model").EmbeddingModel(wrapped)
    normalize: Any = import_module("lightly_train._transforms.transform").NormalizeArgs()
    models = parts.CheckpointLightlyTrainModels(model=model, wrapped_model=wrapped, embedding_model=embedding)
    made = parts.CheckpointLightlyTrain.from_now(models=models, normalize_args=normalize)
    parts.Checkpoint(state_dict={}, lightly_train=made).save(Path(out))


def embed(data: str, source: str, out: str, batch: str) -> float:
    """Seconds of `embed`, with what else it takes left at its defaults."""
    lightly_train: Any = import_module("lightly_train")
    import_module("lightly_train._commands.embed")
    start = time.perf_counter()
    lightly_train.embed(
        out=out, data=data, checkpoint=source, batch_size=int(batch), accelerator="cpu", overwrite=True
    )
    return time.perf_counter() - start


if __name__ == "__main__":
    if sys.argv[1] == "checkpoint":
        checkpoint(*sys.argv[2:])
    else:
        print(f"\nseconds {embed(*sys.argv[2:])}")
