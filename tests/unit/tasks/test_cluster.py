import socket

import pytest

from tasks.cluster import require_reachable
from tasks.errors import StackError


@pytest.mark.parametrize("address", ["head", "head:port", "ray://head", "head:99999"])
def test_require_reachable__says_what_an_address_is(address: str) -> None:
    with pytest.raises(StackError, match=f"{address}: is not an address like head:6379"):
        require_reachable(address)


def test_require_reachable__does_not_repeat_a_password() -> None:
    with pytest.raises(StackError) as raised:
        require_reachable("tls://ada:secret@127.0.0.1")
    assert str(raised.value) == "REGRAFT_RUNNER_ADDRESS: tls://127.0.0.1: is not an address like head:6379"


@pytest.mark.parametrize("scheme", ["", "ray://", "tcp://"])
def test_require_reachable__takes_every_form(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        require_reachable(f"{scheme}127.0.0.1:{server.getsockname()[1]}")
