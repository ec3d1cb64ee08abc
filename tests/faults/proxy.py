"""A small HTTP proxy in front of a server, which does to chosen requests what networks and object stores do."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Fault = Callable[[str, str], str]
"""From a request's method and path to what is done to it: "" nothing, "lose" its answer, "refuse" it with 503, "stall", "cut" its answer."""

_SLOW_DOWN = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'


class Proxy:
    """The proxy's address, what it does, and all it has seen: (method, path, fault)."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target).netloc
        self.fault: Fault = lambda method, path: ""
        self.seen: list[tuple[str, str, str]] = []
        self.over = threading.Event()
        self.endpoint = ""

    def hurt(self, kind: str, method: str, part: str = "", times: int = 1_000_000) -> None:
        """Do `kind` to the next `times` requests of that method whose path holds `part`."""
        left, alone = [times], threading.Lock()

        def fault(found: str, path: str) -> str:
            with alone:
                if found not in method.split("|") or part not in path or left[0] <= 0:
                    return ""
                left[0] -= 1
                return kind

        self.fault = fault

    def heal(self) -> None:
        """Do nothing any more."""
        self.fault = lambda method, path: ""

    def hurts(self, kind: str) -> int:
        """How often `kind` was done."""
        return sum(found == kind for _, _, found in self.seen)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def _answer(self) -> None:
        body = self._body()
        kind = self.proxy.fault(self.command, self.path)
        self.proxy.seen.append((self.command, self.path, kind))
        if kind == "stall":
            self.proxy.over.wait(30)
            self.close_connection = True
            return
        if kind == "refuse":
            self._send(503, [("Content-Type", "application/xml"), ("Retry-After", "0")], _SLOW_DOWN)
            return
        status, headers, answer = self._ask(body)
        if kind == "lose":  # done there, unheard here
            self.close_connection = True
            return
        if kind == "cut":
            self._send(status, headers, answer, sent=len(answer) // 2)
            self.close_connection = True
            return
        self._send(status, headers, answer)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            continue
        return b"".join(pieces)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        there = http.client.HTTPConnection(self.proxy.target, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("transfer-encoding", "expect")}
        headers["Content-Length"] = str(len(body))
        there.request(self.command, self.path, body, headers)
        found = there.getresponse()
        answer = found.read()
        told = [(name, value) for name, value in found.getheaders() if name.lower() not in ("transfer-encoding", "connection")]
        there.close()
        return found.status, told, answer

    def _send(self, status: int, headers: list[tuple[str, str]], answer: bytes, sent: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer[:sent])

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer

    def log_message(self, *_: object) -> None: ...


@contextmanager
def proxied(target: str) -> Iterator[Proxy]:
    """A proxy in front of `target`, gone in the end."""
    proxy = Proxy(target)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy}))
    server.daemon_threads = True
    proxy.endpoint = f"http://127.0.0.1:{server.server_port}"
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    serving.start()
    try:
        yield proxy
    finally:
        proxy.over.set()
        server.shutdown()
        server.server_close()
        serving.join()
