import pytest

from tasks import progress
from tasks.progress import Pace, duration


def pace_after(monkeypatch: pytest.MonkeyPatch, seconds: float) -> Pace:
    """A pace whose stage has run for so long."""
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    pace = Pace()
    clock[0] += seconds
    return pace


def test_pace__tells_how_quick_and_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1,200 in 20 s are 60 a second, and 800 more take 13.3 s.
    told = pace_after(monkeypatch, 20).told(1200, 2000)
    assert told == "1,200 of 2,000 samples, 60.0 samples/s, 13 s left"


def test_pace__of_all_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pace_after(monkeypatch, 4).told(2, 2) == "2 of 2 samples, 0.5 samples/s, 0 s left"


@pytest.mark.parametrize(("seconds", "done"), [(10, 0), (0, 5), (0, 0)])
def test_pace__without_any_yet_tells_counts_alone(
    monkeypatch: pytest.MonkeyPatch, seconds: float, done: int
) -> None:
    assert pace_after(monkeypatch, seconds).told(done, 7) == f"{done} of 7 samples"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (42.4, "42 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (18_420, "5 h 7 min"),
        (200_000, "55 h 33 min"),
    ],
)
def test_duration__is_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_report__every_listener_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_listeners", [])
    heard: list[tuple[str, int, int]] = []
    progress.report("embed", 0, 3)  # nobody
    for _ in range(2):
        progress.listen(lambda *told: heard.append(told))
    progress.report("embed", 1, 3)
    assert heard == [("embed", 1, 3)] * 2
