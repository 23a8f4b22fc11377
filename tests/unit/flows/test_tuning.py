from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain, repeat
from typing import Any, cast
from uuid import uuid4

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State, StateType

from flows import tuning
from flows.tuning import Watch
from tasks.errors import DataError, StackError

RUNNING = State[Any](type=StateType.RUNNING)


class Clock:
    """Each wait is a minute."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, _: float) -> None:
        self.now += 60


class Api:
    """States of a run, one at each look; an exception is raised."""

    def __init__(self, states: Iterator[State[Any] | Exception]) -> None:
        self._states = states
        self.made: list[State[Any]] = []

    def read_flow_run(self, number: object) -> FlowRun:
        state = next(self._states)
        if isinstance(state, Exception):
            raise state
        return FlowRun(id=number, flow_id=uuid4(), state=state)

    def set_flow_run_state(self, number: object, state: State[Any], force: bool) -> None:
        assert force
        self.made.append(state)


def ended(
    monkeypatch: pytest.MonkeyPatch,
    states: Iterator[State[Any] | Exception],
    signs: Iterator[object],
    online: bool = True,
) -> tuple[State[Any], Api, float]:
    """The final state, the API, and the minutes that it took."""
    api, clock = Api(states), Clock()
    monkeypatch.setattr(tuning, "_signs", lambda client, run: next(signs))
    monkeypatch.setattr(tuning, "_is_online", lambda client: online)
    watch = Watch(cast(SyncPrefectClient, api), silent_s=600, clock=clock, sleep=clock.wait)
    state = watch.ended(FlowRun(flow_id=uuid4(), state=RUNNING))
    return state, api, clock.now / 60


def test_watch__silent_run_is_crashed_after_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    state, api, minutes = ended(monkeypatch, repeat(RUNNING), repeat("once"))
    assert (state.type, minutes) == (StateType.CRASHED, 11)
    assert api.made == [state]
    assert state.message == "No sign of life for 600 s: its worker is taken to be dead."


def test_watch__any_change_is_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    done = State[Any](type=StateType.COMPLETED)
    states = chain(repeat(RUNNING, 30), [done])
    # It changes every fifth minute.
    state, api, minutes = ended(monkeypatch, states, (number // 5 for number in range(100)))
    assert (state, api.made, minutes) == (done, [], 30)


def test_watch__run_in_the_queue_of_a_busy_worker_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduled, done = State[Any](type=StateType.SCHEDULED), State[Any](type=StateType.COMPLETED)
    state, api, _ = ended(monkeypatch, chain(repeat(scheduled, 50), [done]), repeat("once"))
    assert (state, api.made) == (done, [])


def test_watch__run_that_no_worker_takes_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduled = State[Any](type=StateType.SCHEDULED)
    state, api, minutes = ended(monkeypatch, repeat(scheduled), repeat("once"), online=False)
    assert (state.type, state.message, minutes) == (StateType.CANCELLED, "No worker took it.", 11)
    assert api.made == [state]


def test_watch__prefect_that_is_away_for_a_while_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    done = State[Any](type=StateType.COMPLETED)
    away: Iterator[State[Any] | Exception] = repeat(httpx.ConnectError("refused"), 5)
    assert ended(monkeypatch, chain(away, [done]), repeat("once"))[0] == done
    with pytest.raises(StackError, match=r"Prefect does not answer \(refused\); training goes on"):
        ended(monkeypatch, repeat(httpx.ConnectError("refused")), repeat("once"))


def failed(message: str) -> State[Any]:
    return State(
        type=StateType.FAILED,
        message=f"Flow run encountered an exception: {message}",
        timestamp=datetime.now(UTC),
    )


def test_raise_final__error_of_ours_is_that_error() -> None:
    with pytest.raises(DataError) as told:
        tuning._raise_final(failed("DataError: a.jpg: not an image (12 bytes)"))
    assert str(told.value) == "a.jpg: not an image (12 bytes)"


@pytest.mark.parametrize(
    "message",
    [
        "FinetuneError: the training process ended by signal 9 (killed); run again to carry on",
        "ValueError: 1",
        "SystemExit: 1",
    ],
)
def test_raise_final__what_may_pass_gets_another_attempt(message: str) -> None:
    tuning._raise_final(failed(message))


def test_raise_final__cancelled_is_no_reason_for_another_attempt() -> None:
    with pytest.raises(StackError, match=r"was cancelled \(by ada\)"):
        tuning._raise_final(State[Any](type=StateType.CANCELLED, message="by ada"))


def run_in(kind: StateType) -> FlowRun:
    return FlowRun(flow_id=uuid4(), state=State[Any](type=kind))


@pytest.mark.parametrize(
    ("before", "number"),
    [
        ([], 1),
        ([StateType.RUNNING], 1),  # a command that was killed asks again
        ([StateType.CRASHED], 2),
        ([StateType.CRASHED, StateType.PENDING], 2),
        ([StateType.CRASHED, StateType.FAILED, StateType.CRASHED], 4),
    ],
)
def test_next_number__one_under_way_is_waited_for(before: list[StateType], number: int) -> None:
    class Runs:
        def read_flow_runs(self, **_: object) -> list[FlowRun]:
            return [run_in(kind) for kind in before]

    assert tuning._next_number(cast(SyncPrefectClient, Runs()), "finetune-a") == number
