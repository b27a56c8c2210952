"""A server on this machine that sends files whole, cut off, or otherwise than it says."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Manner = Literal["whole", "short", "cut", "chunked cut", "unannounced", "huge", "endless", "missing", "to a file"]


class Server(ThreadingHTTPServer):
    """Answers every request with `content`, in the `manner` that is set."""

    daemon_threads = True
    content = b""
    manner: Manner = "whole"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        content, manner = self.server.content, self.server.manner
        half = content[: len(content) // 2]
        self.close_connection = True
        if manner in ("missing", "to a file"):
            self.send_response(404 if manner == "missing" else 302)
            self.send_header("Location", "file:///etc/hostname")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        if manner == "chunked cut":
            self.send_header("Transfer-Encoding", "chunked")
            half = f"{len(content):x}\r\n".encode() + half
        elif manner not in ("unannounced", "endless"):
            self.send_header("Content-Length", str(10**15 if manner == "huge" else len(content)))
        self.end_headers()
        self.wfile.write(content if manner in ("whole", "unannounced") else half)
        if manner == "cut":
            # A reset instead of an orderly end.
            self.connection.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")
        while manner == "endless":
            self.wfile.write(bytes(2**16))

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server that listens until the end of the block."""
    server = Server(("127.0.0.1", 0), _Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
