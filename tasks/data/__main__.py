"""`python -m tasks.data`: audit and manifest of the dataset in `data`."""

from pathlib import Path

from tasks.data import audit, manifest, version
from tasks.params import Params
from tasks.repro import fresh, stage
from tasks.settings import Settings


def main(params: Params) -> None:
    dataset = version.opened(Path())
    audited = audit.run(fresh("audit"), dataset, params.data, Settings().root).save()
    manifest.run(fresh("manifest"), dataset, audited, params.data).save()


if __name__ == "__main__":
    stage(main)
