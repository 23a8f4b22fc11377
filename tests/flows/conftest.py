"""Runs of the command line. Each takes seconds, so its result is shared by all tests that only look
at it."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from urllib.request import urlopen

import pytest

from tasks.settings import ROOT
from tests.flows.workplace import (
    CLASSES,
    PER_CLASS,
    STRICT,
    Done,
    Workplace,
    add_images,
    content,
    make_dataset,
    seen,
)


@pytest.fixture(scope="session")
def api_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect API for the runs that need none of their own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    apart = Workplace(tmp_path_factory.mktemp("api"))
    environment = {**apart.environment(url), "PREFECT_HOME": str(apart.state), "DO_NOT_TRACK": "1"}
    server = subprocess.Popen(
        [sys.executable, "-m", "flows.api_server", str(port)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not _answers(f"{url}/health"):
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)  # between two looks
        yield url
    finally:
        server.kill()
        server.wait()


def _answers(address: str) -> bool:
    try:
        urlopen(address, timeout=5).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    workplace = Workplace(tmp_path_factory.mktemp("flows"))
    make_dataset(workplace.data)
    return workplace


@pytest.fixture(scope="session")
def given(place: Workplace) -> dict[str, str]:
    """The files of the dataset before any command."""
    return content(place.data)


@pytest.fixture(scope="session")
def first_run(place: Workplace, given: dict[str, str]) -> Done:
    assert given
    return seen(place, place.adapt())


@pytest.fixture(scope="session")
def second_run(place: Workplace, api_url: str, first_run: Done) -> Done:
    assert first_run
    return seen(place, place.adapt(api_url=api_url))


@pytest.fixture(scope="session")
def grown_run(place: Workplace, api_url: str, second_run: Done) -> Done:
    """Twenty new images."""
    assert second_run
    for label, count in zip(CLASSES, (7, 7, 6), strict=True):
        add_images(place.data, label, PER_CLASS, PER_CLASS + count)
    return seen(place, place.adapt(api_url=api_url))


@pytest.fixture(scope="session")
def rejected_run(place: Workplace, api_url: str, grown_run: Done) -> Done:
    """Other parameters of head and gate; no model passes."""
    assert grown_run
    return seen(place, place.adapt(STRICT, api_url))


@pytest.fixture(scope="session")
def rejected_again(place: Workplace, api_url: str, rejected_run: Done) -> Done:
    assert rejected_run
    return seen(place, place.adapt(STRICT, api_url))


@pytest.fixture(scope="session")
def new_place(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Workplace]:
    def make(name: str) -> Workplace:
        return Workplace(tmp_path_factory.mktemp(name))

    return make
