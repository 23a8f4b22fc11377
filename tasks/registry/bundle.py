"""A package as an MLflow model: the package, the code that reads it, and what that code requires."""

import ast
import importlib.metadata
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import mlflow.pyfunc
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Map, Schema

from tasks.records import Target
from tasks.registry.answer import COLUMNS

_CODE = "tasks.registry.model"
_ROOT = Path(__file__).resolve().parents[2]
# What the code imports at most; MLflow installs the rest.
_REQUIREMENTS = (
    *("mlflow", "numpy", "pandas", "pillow", "pyarrow", "pydantic", "pydantic-settings", "pyyaml"),
    *("safetensors", "scipy", "timm", "torch", "torchvision"),
)
_NOT_SERVED = {"tasks.embedding.openvino"}  # a served model computes with torch

# AnyType: one column has to take bytes, base64 text and paths, and MLflow's `binary` would decode
# every string in a request as base64, paths and typing errors included.
_INPUTS = Schema([ColSpec(AnyType(), "image")])  # type: ignore[no-untyped-call]
_TYPES: dict[str, DataType | Array | Map] = {
    "label": DataType.string,
    "labels": Array(DataType.string),
    "confidence": DataType.double,
    "accepted": DataType.boolean,
    "prediction_set": Array(DataType.string),
    "probabilities": Map(DataType.double),
    "value": DataType.double,
}


def signature(target: Target) -> ModelSignature:
    """What a served model takes and answers."""
    outputs = Schema([ColSpec(_TYPES[name], name) for name in COLUMNS[target]])
    return ModelSignature(inputs=_INPUTS, outputs=outputs)


def save(out: Path, package: Path, target: Target, model: Model) -> Path:
    """Writes the MLflow model of `package` into the folder `out`, which must not exist; returns `out`.

    Args:
        target: what the package's head answers.
    """
    with tempfile.TemporaryDirectory(prefix="regraft-code-") as folder, warnings.catch_warnings():
        # An example would be kept as JSON, image and all; the signature is given.
        warnings.filterwarnings("ignore", message="(?s).*input example was not provided")
        mlflow.pyfunc.save_model(
            path=str(out),
            mlflow_model=model,
            python_model=str(_source(_CODE)),
            artifacts={"package": str(package)},
            code_paths=[str(_copy_code(Path(folder)))],
            signature=signature(target),
            pip_requirements=requirements(),
        )
    for compiled in list(out.rglob("__pycache__")):
        shutil.rmtree(compiled)
    return out


def requirements() -> list[str]:
    """The installed versions of what a loaded model imports."""
    # Without the local part (`+cpu`), which package indexes do not have.
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in _REQUIREMENTS]


def served_modules() -> set[str]:
    """The modules of `tasks` that the served model imports, directly or through others."""
    found: set[str] = set()
    waiting = [_CODE]
    while waiting:
        module = waiting.pop()
        if module in found or module in _NOT_SERVED or _source(module) is None:
            continue
        found.add(module)
        waiting += [module.rpartition(".")[0], *_imports(module)]
    return found


def _copy_code(folder: Path) -> Path:
    for module in served_modules():
        source = _source(module)
        assert source is not None
        target = folder / source.relative_to(_ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return folder / "tasks"


def _imports(module: str) -> list[str]:
    source = _source(module)
    assert source is not None
    names: list[str] = []
    for node in _executed(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == "tasks"]


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker reads."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            yield node
            waiting += ast.iter_child_nodes(node)


def _source(module: str) -> Path | None:
    """The file of a module of `tasks`; None where the name is not a module."""
    stem = _ROOT.joinpath(*module.split("."))
    for file in (stem / "__init__.py", stem.with_suffix(".py")):
        if module and file.is_file():
            return file
    return None
