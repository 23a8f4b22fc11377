import ast
import sys
from pathlib import Path

from tasks.registry import bundle

ROOT = Path(bundle.__file__).parents[2]
DISTRIBUTION = {"PIL": "pillow", "yaml": "pyyaml", "pydantic_settings": "pydantic-settings"}


def _imports(module: str) -> set[str]:
    stem = ROOT.joinpath(*module.split("."))
    file = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
    names = set()
    # What follows `if TYPE_CHECKING` is not imported.
    tree = ast.parse(file.read_text().replace("if TYPE_CHECKING:", "while False:"))
    never = [node for loop in ast.walk(tree) if isinstance(loop, ast.While) for node in ast.walk(loop)]
    for node in set(ast.walk(tree)) - set(never):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {"tasks"}


def test_served_modules__hold_the_embedding_code_and_no_orchestration() -> None:
    modules = bundle.served_modules()
    assert {"tasks", "tasks.registry.package", "tasks.embedding.backbone", "tasks.head.linear"} <= modules
    assert not modules & {"tasks.task", "tasks.registry.register", "tasks.registry.tracking"}
    # Neither what only a type checker imports, nor what a served model never runs.
    assert not modules & {"tasks.embedding.tier", "tasks.s3", "tasks.embedding.openvino"}


def test_requirements__name_all_that_the_served_modules_import() -> None:
    imported = set().union(*map(_imports, bundle.served_modules()))
    named = {requirement.split("==")[0] for requirement in bundle.requirements()}
    assert {DISTRIBUTION.get(name, name) for name in imported} <= named
    assert not imported & {"prefect", "dvc"}
