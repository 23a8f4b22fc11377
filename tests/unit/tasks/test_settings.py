from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.settings import ROOT, Settings


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"REGRAFT_{name.upper()}", raising=False)


def test_settings__defaults_are_local() -> None:
    settings = Settings()
    assert settings.root == Path.cwd() / ".regraft"
    assert settings.prefect_url == "http://127.0.0.1:4200"
    assert settings.mlflow_url == "http://127.0.0.1:5000"
    assert settings.cache_url is None
    assert (settings.forward, settings.runner, settings.shards) == ("auto", "threads", 1)


def test_settings__come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REGRAFT_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("REGRAFT_MLFLOW_PORT", "6000")
    monkeypatch.setenv("REGRAFT_HOST", "10.0.0.1")
    settings = Settings()
    assert settings.root == tmp_path / "state"
    assert settings.mlflow_url == "http://10.0.0.1:6000"


def test_settings__root_is_absolute_and_without_tilde(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings(state=Path("~/state")).root == tmp_path / "state"
    monkeypatch.chdir(tmp_path)
    assert Settings(state=Path("a/../b")).root == tmp_path / "b"


def test_settings__root_stays_when_the_working_directory_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings(state=Path("state"))
    before = settings.root
    monkeypatch.chdir(tmp_path)
    assert settings.root == before


def test_settings__port_that_is_no_number_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_PREFECT_PORT", "many")
    with pytest.raises(ValidationError, match="prefect_port"):
        Settings()


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/", "s3://bucket/a/b"])
def test_settings__cache_url_names_a_bucket(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("REGRAFT_CACHE_URL", url)
    assert Settings().cache_url == url


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/a/b", "/shared/folder", "~/folder", "a/b@c"])
def test_settings__checkpoints_url_names_a_bucket_or_a_folder(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("REGRAFT_CHECKPOINTS_URL", url)
    assert Settings().checkpoints_url == url


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cache_url", "s3:///prefix"),
        ("cache_url", "https://bucket"),
        ("cache_url", ""),
        ("cache_url", "s3://key:secret@bucket/prefix"),
        ("checkpoints_url", "s3:///prefix"),
        ("checkpoints_url", "https://bucket"),
        ("checkpoints_url", ""),
        ("checkpoints_url", "s3://key:secret@bucket/prefix"),
        ("forward", "onnx"),
        ("runner", "spark"),
        ("shards", "0"),
    ],
)
def test_settings__value_that_is_none_is_an_error(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"REGRAFT_{name.upper()}", value)
    with pytest.raises(ValidationError, match=name) as error:
        Settings()
    assert "secret" not in str(error.value)


def test_root__is_the_checkout() -> None:
    assert (ROOT / "params.yaml").is_file()
    assert (ROOT / "tasks" / "settings.py").is_file()
