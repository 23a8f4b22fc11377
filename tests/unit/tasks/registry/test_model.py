import base64
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from tasks.registry import package
from tasks.registry.model import ServedModel


@pytest.fixture
def model(written: Path) -> ServedModel:
    served = ServedModel()
    served.load_context(SimpleNamespace(artifacts={"package": str(written)}))  # type: ignore[arg-type]
    return served


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")


def _ask(model: ServedModel, *cells: object) -> pd.DataFrame:
    return model.predict(None, pd.DataFrame({"image": pd.Series(cells, dtype=object)}))


def test_predict__bytes_base64_and_paths_get_the_packages_answer(
    model: ServedModel, written: Path, images: list[bytes], tmp_path: Path
) -> None:
    (tmp_path / "c.png").write_bytes(images[2])
    expected = package.read(written).outputs(images)

    answer = _ask(model, images[0], base64.b64encode(images[1]).decode(), str(tmp_path / "c.png"))

    np.testing.assert_array_equal(np.array([list(p.values()) for p in answer["probabilities"]]), expected)
    assert list(answer["probabilities"][0]) == ["cat", "dog", "fox"]
    assert list(answer["confidence"]) == list(expected.max(axis=1))
    assert list(answer["label"]) == [("cat", "dog", "fox")[i] for i in expected.argmax(axis=1)]


def test_predict__keeps_the_index_and_takes_no_rows(model: ServedModel, images: list[bytes]) -> None:
    answer = model.predict(None, pd.DataFrame({"image": [images[0]]}, index=["a"]))
    assert list(answer.index) == ["a"]
    assert list(_ask(model).columns) == [
        "label", "confidence", "accepted", "prediction_set", "probabilities"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (b"no image", "row 1: not an image"),
        ("", "row 1: empty file"),
        ("bm8gaW1hZ2U=", "row 1: not an image"),  # base64 of `no image`
        ("no/such.jpg", "row 1: is not base64, and no such file"),
        ("nul\0.jpg", "row 1: is not base64, and "),
        (None, "row 1: must be bytes, base64 text or a path, not NoneType"),
        (1.5, "row 1: must be bytes, base64 text or a path, not float"),
    ],
)
def test_predict__bad_cell_is_named(
    model: ServedModel, images: list[bytes], cell: object, reason: str
) -> None:
    with pytest.raises(MlflowException) as error:
        _ask(model, images[0], cell)
    assert error.value.message.startswith(reason)
    assert error.value.error_code == "INVALID_PARAMETER_VALUE"


def test_predict__missing_column_is_named(model: ServedModel) -> None:
    with pytest.raises(MlflowException, match="needs the column `image`"):
        model.predict(None, pd.DataFrame({"picture": ["a.jpg"]}))


@pytest.mark.usefixtures("serving")
def test_predict__server_without_a_root_reads_no_path(
    model: ServedModel, images: list[bytes], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(images[0])
    with pytest.raises(MlflowException, match="this server reads no paths"):
        _ask(model, str(tmp_path / "a.png"))
    assert len(_ask(model, images[0])) == 1


@pytest.mark.usefixtures("serving")
def test_predict__server_reads_only_below_its_root(
    model: ServedModel, images: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.png").write_bytes(images[0])
    (tmp_path / "secret.png").write_bytes(images[0])
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    monkeypatch.setenv("REGRAFT_IMAGE_ROOT", str(root))

    assert len(_ask(model, str(root / "a.png"), "a.png")) == 2
    for outside in (str(tmp_path / "secret.png"), "../secret.png", "link.png"):
        with pytest.raises(MlflowException, match="leads out of the folder"):
            _ask(model, outside)
