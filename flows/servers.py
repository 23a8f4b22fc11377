"""What the local servers are asked over HTTP."""

import json
from http import HTTPStatus
from typing import Any

from urllib3 import PoolManager, Retry
from urllib3.exceptions import HTTPError

from tasks.errors import StackError

# The servers are on this machine, whatever proxy is set. Prefect on SQLite answers 503 while its database
# is locked by another request, which changes nothing: asked again, for some 25 s.
_http = PoolManager(
    timeout=10,
    retries=Retry(
        None,
        connect=0,
        read=0,
        status=8,
        status_forcelist=[HTTPStatus.SERVICE_UNAVAILABLE],
        allowed_methods=None,
        backoff_factor=0.1,
        raise_on_status=False,
    ),
)


def answers(url: str) -> bool:
    """Whether a server is there, and well."""
    try:
        return _http.request("GET", url, timeout=5, retries=False).status < HTTPStatus.BAD_REQUEST
    except HTTPError:
        return False


def ask(method: str, url: str, body: object = None, *, missing: bool = False) -> Any:
    """What the Prefect server says; None where it knows nothing of that name, if that is allowed.

    Raises:
        StackError: it can't be reached, or refuses.
    """
    try:
        answer = _http.request(method, url, json=body)
    except HTTPError as error:
        raise StackError(f"prefect: {method} {url}: {error}") from None
    if missing and answer.status == HTTPStatus.NOT_FOUND:
        return None
    if answer.status >= HTTPStatus.BAD_REQUEST:
        said = answer.data[:200].decode(errors="replace")
        raise StackError(f"prefect: {method} {url}: {answer.status} {answer.reason}: {said}")
    return json.loads(answer.data or b"null")
