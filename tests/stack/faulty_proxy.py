"""An HTTP proxy in front of an S3 server that fails as it is told to."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote, urlsplit

Fault = int | Literal["cut", "slow"] | None
_SLOW_S = 0.2
_HOPS = ("transfer-encoding", "connection", "keep-alive", "expect")


class FaultyProxy:
    """`fault` is asked for each request (method, name of the object) what happens to it: it is
    answered a status, cut off in the middle, slow, or passed on.

    `requests` lists what was asked for, whatever came of it.
    """

    def __init__(self, url: str) -> None:
        self.fault: Callable[[str, str], Fault] = lambda method, name: None
        self.requests: list[tuple[str, str]] = []
        self._to = urlsplit(url).netloc
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                proxy.handle(self)

            do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def asked(self, method: str, suffix: str) -> int:
        """How many requests there were for objects whose names end so."""
        return sum(one == method and name.endswith(suffix) for one, name in self.requests)

    @contextmanager
    def running(self) -> Iterator["FaultyProxy"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        name = unquote(urlsplit(request.path).path.rpartition("/")[2])
        self.requests.append((request.command, name))
        fault = self.fault(request.command, name)
        length = int(request.headers.get("Content-Length", 0))
        if fault == "cut" and request.command in ("PUT", "POST"):
            request.rfile.read(length // 2)
            self._hang_up(request)
            return
        body = request.rfile.read(length)
        if fault == "slow":
            threading.Event().wait(_SLOW_S)
        if isinstance(fault, int):
            request.send_response(fault)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        status, headers, content = self._ask(request, body)
        request.send_response_only(status)
        for key, value in headers:
            request.send_header(key, value)
        if request.command != "HEAD" and "content-length" not in {key.lower() for key, _ in headers}:
            request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if fault == "cut":
            request.wfile.write(content[: len(content) // 2])
            self._hang_up(request)
        else:
            with suppress(ConnectionError):
                request.wfile.write(content)

    def _ask(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """The server's answer. The Host header is signed, and so passed on as it came."""
        connection = http.client.HTTPConnection(self._to, timeout=60)
        try:
            connection.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
            for key, value in request.headers.items():
                if key.lower() not in _HOPS:
                    connection.putheader(key, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
            headers = [(key, value) for key, value in answer.getheaders() if key.lower() not in _HOPS]
            return answer.status, headers, content
        finally:
            connection.close()

    def _hang_up(self, request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        with suppress(OSError):
            request.wfile.flush()
            request.connection.shutdown(2)
