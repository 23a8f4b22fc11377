import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from flows.servers import answers, ask
from tasks.errors import StackError


@contextmanager
def server(*statuses: int) -> Iterator[tuple[str, list[str]]]:
    """Answers with one status after the other, the last for good; its address, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            asked.append(f"{self.command} {self.path} {body}".strip())
            answer = json.dumps({"asked": len(asked)}).encode()
            self.send_response(statuses[min(len(asked), len(statuses)) - 1])
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_PATCH = do_GET  # noqa: N815 - as the library calls them

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}", asked
    finally:
        http.shutdown()
        http.server_close()


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
def test_ask__busy_server_is_asked_again(method: str) -> None:
    with server(503, 503, 200) as (url, asked):
        assert ask(method, f"{url}/limits", {"limit": 1}) == {"asked": 3}
    assert asked == [f'{method} /limits {{"limit":1}}'] * 3


def test_ask__refusal_says_what_was_asked_and_why() -> None:
    with server(422) as (url, asked), pytest.raises(StackError, match=r"POST .*/limits: 422 .*asked"):
        ask("POST", f"{url}/limits", {})
    assert len(asked) == 1


def test_ask__missing_is_none_where_that_is_allowed() -> None:
    with server(404) as (url, _):
        assert ask("GET", url, missing=True) is None
        with pytest.raises(StackError, match="404"):
            ask("GET", url)


def test_ask__nobody_there() -> None:
    with server(200) as (url, _):
        pass
    with pytest.raises(StackError, match=f"prefect: GET {url}: "):
        ask("GET", url)


@pytest.mark.parametrize(("status", "well"), [(200, True), (404, False), (503, False)])
def test_answers__with_success_alone(status: int, well: bool) -> None:
    with server(status) as (url, asked):
        assert answers(url) is well
    assert len(asked) == 1


def test_answers__nobody_there() -> None:
    with server(200) as (url, _):
        pass
    assert not answers(url)


def test_servers__no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with server(200) as (url, _):
        assert answers(url)
