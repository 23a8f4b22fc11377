"""The served model: MLflow runs this file when it loads a version.

Input: a frame with the column `image`, whose cells are the bytes of an image file, the same as
base64 text, or a path. Output: a row per image (see tasks/registry/answer.py).
"""

import base64
import binascii
import os
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from tasks.registry.answer import answers
from tasks.registry.package import BadInputError, read

COLUMN = "image"
IMAGE_ROOT = "REGRAFT_IMAGE_ROOT"
# Set by MLflow's scoring server: the first when it starts to listen, the second by its parent.
_SERVING = ("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "__pyfunc_model_path__")


class ServedModel(PythonModel):
    """Image bytes, base64 text or paths to labels with probabilities, or to numbers."""

    def load_context(self, context: PythonModelContext) -> None:
        """Reads and checks the package, and loads its networks before the first request."""
        self._package = read(Path(context.artifacts["package"]))
        self._package.warm_up()

    def predict(
        self,
        context: PythonModelContext | None,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Predicts a row for each row of `model_input`.

        Raises:
            MlflowException: a cell is no image (INVALID_PARAMETER_VALUE, so a server answers 400);
                the message names the row.
        """
        if COLUMN not in model_input:
            raise _refused(f"the input needs the column `{COLUMN}`; it has {list(model_input.columns)}")
        contents = [_content(row, cell) for row, cell in enumerate(model_input[COLUMN])]
        try:
            outputs = self._package.outputs(contents)  # [N, K]
        except BadInputError as error:
            raise _refused(f"row {error.index}: {error.reason}") from None
        return pd.DataFrame(answers(self._package.head, outputs), index=model_input.index)


def _content(row: int, cell: object) -> bytes:
    """The bytes of the image that a cell holds or names."""
    if isinstance(cell, bytes | bytearray | memoryview):
        return bytes(cell)
    if isinstance(cell, os.PathLike):
        return _read(row, Path(cell))
    if not isinstance(cell, str):
        raise _refused(f"row {row}: must be bytes, base64 text or a path, not {type(cell).__name__}")
    # The dot of a file ending is no base64 character, so `a/b.jpg` can only be a path.
    try:
        return base64.b64decode("".join(cell.split()), validate=True)
    except (binascii.Error, ValueError):
        return _read(row, Path(cell))


def _read(row: int, path: Path) -> bytes:
    root = os.environ.get(IMAGE_ROOT)
    if root:
        folder = Path(root).resolve()
        path = (folder / path).resolve()
        if not path.is_relative_to(folder):
            raise _refused(f"row {row}: the path leads out of the folder that {IMAGE_ROOT} names")
    elif any(os.environ.get(name) for name in _SERVING):
        # Otherwise every caller could read every file of the server.
        raise _refused(
            f"row {row}: is not base64, and this server reads no paths;"
            f" send the image as base64 text, or set {IMAGE_ROOT} on the server"
        )
    try:
        if not path.is_file():
            raise _refused(f"row {row}: is not base64, and no such file: {str(path)[:200]}")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or "not a path"
        raise _refused(f"row {row}: is not base64, and can't be read as a path ({reason})") from None


def _refused(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


set_model(ServedModel())
