import sys

import pytest

from flows import cache, cli


def test_main__interrupted_says_how_to_carry_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "settings_of", interrupt)
    monkeypatch.setattr(sys, "argv", ["regraft", "cache", "list"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130
    assert "error: interrupted; run the same command again to carry on" in capsys.readouterr().err
