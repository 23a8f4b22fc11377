"""Rules of the code base that no type checker knows."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.settings import ROOT

SOURCES = sorted([*(ROOT / "tasks").rglob("*.py"), *(ROOT / "flows").rglob("*.py")])
# Data flows one way: a stage may import the stages before it.
STAGES = ("data", "embedding", "head", "finetune", "audit", "evaluation", "report", "registry")
MAX_LINES = 400


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def imports(file: Path) -> Iterator[str]:
    """The dotted names that a module imports anywhere, also in functions, and by `import_module`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(file)}: a relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value)


def packages(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(file)}


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """`module.function` of each call that is written so."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
        ):
            yield f"{node.func.value.id}.{node.func.attr}", node


def is_pure(file: Path) -> bool:
    """Whether a module of `tasks/` must know neither the orchestrator nor the registry."""
    stage = file.relative_to(ROOT / "tasks").parts[0]
    return file.name not in ("task.py", "__main__.py") and stage != "registry"


PURE = [file for file in SOURCES if file.is_relative_to(ROOT / "tasks") and is_pure(file)]


def test_rules__look_at_the_whole_code_base() -> None:
    assert {name_of(file) for file in SOURCES} >= {
        "tasks/embedding/cache.py",
        "tasks/head/fit.py",
        "tasks/stage.py",
        "flows/adapt.py",
    }
    assert {file.parent.name for file in SOURCES if file.name == "task.py"} == {"tasks", *STAGES}


def test_imports__are_found_in_functions_and_by_name(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        "import a.b\n"
        "def f():\n    from c.d import e\n"
        "if TYPE_CHECKING:\n    import g as h\n"
        "x = import_module('i.j')\n"
        "y = importlib.import_module('k')\n"
    )
    assert set(imports(file)) == {"a.b", "c.d", "c.d.e", "g", "i.j", "k"}


@pytest.mark.parametrize("file", PURE, ids=name_of)
def test_tasks__science_imports_neither_prefect_nor_mlflow(file: Path) -> None:
    assert packages(file) & {"prefect", "mlflow", "flows"} == set()


@pytest.mark.parametrize("file", [f for f in SOURCES if f.is_relative_to(ROOT / "tasks")], ids=name_of)
def test_tasks__do_not_import_flows(file: Path) -> None:
    assert "flows" not in packages(file)


def test_tasks__registry_is_the_only_stage_with_mlflow() -> None:
    found = {file.parent.name for file in SOURCES if "mlflow" in packages(file)}
    assert found <= {"registry"}


@pytest.mark.parametrize("stage", STAGES)
def test_tasks__data_flows_one_way(stage: str) -> None:
    later = {f"tasks.{name}" for name in STAGES[STAGES.index(stage) + 1 :]}
    backwards = [
        f"{name_of(file)} imports {name}"
        for file in (ROOT / "tasks" / stage).rglob("*.py")
        for name in imports(file)
        if ".".join(name.split(".")[:2]) in later
    ]
    assert backwards == []


def test_tasks__top_modules_import_no_stage_but_the_wrapper_of_tasks() -> None:
    # tasks/task.py decides which errors are worth a retry, and so knows BadImage.
    allowed = {"tasks/task.py": {"tasks.data.image"}}
    stages = {f"tasks.{name}" for name in STAGES}
    for file in (ROOT / "tasks").glob("*.py"):
        found = {".".join(n.split(".")[:3]) for n in imports(file) if ".".join(n.split(".")[:2]) in stages}
        assert found <= allowed.get(name_of(file), set()), name_of(file)


def test_dvc__is_imported_by_its_adapter_alone() -> None:
    users = [name_of(file) for file in SOURCES if packages(file) & {"dvc", "dvc_data", "dvc_objects"}]
    assert users == ["tasks/data/store.py"]


def test_pickle__is_neither_written_nor_read() -> None:
    for file in SOURCES:
        found = packages(file) & {"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
        # UnpicklingError is what torch raises when it refuses a file.
        expected = {"pickle"} if name_of(file) == "tasks/embedding/weights.py" else set()
        assert found == expected, name_of(file)
        forbidden = {f"pickle.{name}" for name in ("load", "loads", "dump", "dumps", "Pickler", "Unpickler")}
        forbidden |= {"torch.save", "np.save", "numpy.save", "pd.read_pickle", "pandas.read_pickle"}
        assert {name for name, _ in calls(file)} & forbidden == set(), name_of(file)
        attributes = {
            node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)
        }
        assert attributes & {"to_pickle", "read_pickle", "allow_pickle"} == set(), name_of(file)


def test_torch_load__occurs_once_and_loads_weights_only() -> None:
    found = [(name_of(file), node) for file in SOURCES for name, node in calls(file) if name == "torch.load"]
    assert [name for name, _ in found] == ["tasks/embedding/weights.py"]
    given = {keyword.arg: keyword.value for keyword in found[0][1].keywords}
    weights_only = given["weights_only"]
    assert isinstance(weights_only, ast.Constant)
    assert weights_only.value is True


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_module__says_what_it_is_and_is_not_too_long(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    if text.strip():  # an empty __init__.py says nothing
        assert ast.get_docstring(ast.parse(text))


def test_modules__are_named_after_the_act_or_the_thing() -> None:
    nothing = {"util", "utils", "helper", "helpers", "common", "base", "misc"}
    assert [name_of(file) for file in SOURCES if {file.stem, file.parent.name} & nothing] == []


def test_text__names_no_package_index() -> None:
    # Installing is up to pip's configuration; an address in a file would bypass it.
    hosts = ["pypi" + ".org", "python" + "hosted"]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    files = [ROOT / name.decode() for name in listed.split(b"\0") if name]
    assert ROOT / "pyproject.toml" in files
    found = [
        name_of(file)
        for file in files
        if file.is_file() and any(host.encode() in file.read_bytes().lower() for host in hosts)
    ]
    assert found == []
