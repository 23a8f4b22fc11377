"""Fine-tunes as a command does: `python tuning_run.py DATA NAME PARAMS.json`; prints the record."""

import sys
from pathlib import Path

from flows import stack
from tasks.params import Params
from tasks.settings import Settings


def main(data: str, name: str, file: str) -> None:
    stack.api(Settings()).wait()  # sets the environment, before Prefect is imported
    from prefect import flow

    from flows.tuning import start_finetune
    from tasks.data.task import audit_images, build_manifest, version_data
    from tasks.embedding.task import resolve_embedder
    from tasks.finetune.request import FinetuneRequest

    @flow(name="tune", persist_result=False)
    def tune(data: str, name: str, params: Params) -> str:
        dataset = version_data(data, params.data)
        audit = audit_images(dataset, params.data)
        manifest = build_manifest(dataset, audit, params.data)
        (backbone,) = resolve_embedder(params.embedding).backbones
        request = FinetuneRequest.of(name, dataset, manifest, backbone, params)
        return start_finetune(request).model_dump_json()

    params = Params.model_validate_json(Path(file).read_bytes())
    print(tune(data, name, params))


if __name__ == "__main__":
    main(*sys.argv[1:])
