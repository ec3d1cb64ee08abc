"""A wire between a server and its clients that can be cut: nothing passes and nobody is told, as in a partition, until it is mended."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Wire:
    """`port` leads to the server. While cut, connections stand and are silent; when mended they break, and new ones work."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._open, self._over = threading.Event(), threading.Event()
        self._open.set()
        self._ends: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Let nothing pass."""
        self._open.clear()

    def mend(self) -> None:
        """Break what was cut, and let what comes from now on pass."""
        ends, self._ends = self._ends, []
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.set()

    def close(self) -> None:
        """End all of it."""
        self._over.set()
        self.mend()
        self._listening.close()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                client, _ = self._listening.accept()
                server = socket.create_connection(self._server, 5)
                server.settimeout(None)
            except OSError:
                continue
            self._ends += [client, server]
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._open.wait()
                target.sendall(data)
        for end in (source, target):
            # To close it is not enough while the other thread waits for it: the other side would never hear of it.
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                end.close()


@contextmanager
def wired(host: str, port: int) -> Iterator[Wire]:
    """A wire to a server, gone in the end."""
    wire = Wire(host, port)
    try:
        yield wire
    finally:
        wire.close()
