"""The names that Regraft uses in MLflow."""

import re

from tasks.errors import RegistryError

CHAMPION = "champion"
CHALLENGER = "challenger"
# Tags of runs and versions.
RUN_KEY = "regraft.run_key"
DATA = "regraft.data"
DECISION = "regraft.decision"
DECISION_FILE = "regraft.decision_sha256"
BLOCKS = "regraft.blocks"  # fingerprints of the embedding blocks that the head stands on
PASSED = "regraft.passed"
CHAMPION_VERSION = "regraft.champion_version"  # of the decision; empty: there was none
PACKAGE = "regraft.package"

PACKAGE_FOLDER = "artifacts/package"  # of an MLflow model

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str) -> str:
    """Returns a name that is safe in paths and filters.

    Raises:
        RegistryError: it is not.
    """
    if not _NAME.fullmatch(name):
        raise RegistryError(
            f"{name!r}: a model's name has 1 to 100 letters, digits, `.`, `_` or `-`, and starts with"
            " a letter or digit"
        )
    return name
