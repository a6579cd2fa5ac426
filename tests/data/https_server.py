"""A file server of the tests, over https."""

from __future__ import annotations

import hashlib
import ssl
import threading
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

from range_requests import RangeHandler


def md5(content: bytes) -> str:
    """Checksum of a file, as published."""
    return hashlib.md5(content).hexdigest()


# A key and a certificate of its own for 127.0.0.1, trusted by these tests alone:
# openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500
#   -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1
CERTIFICATE = Path(__file__).with_name("localhost.pem")


class Server(ThreadingHTTPServer):
    """Serves ``files`` from memory; cuts the next answers after ``cut_after`` bytes."""

    def __init__(self, ranges: bool = True, scheme: str = "https") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scheme = scheme
        if scheme == "https":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.redirects: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self.cut_after: int | None = None
        self.ranges = ranges
        self.requests: list[tuple[str, str | None]] = []

    def url(self, name: str) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}/{name}"


class Handler(RangeHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def answer(self, name: str, asked: str | None) -> None:
        self.server.requests.append((name, asked))
        if name in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[name])
            self.end_headers()
            return
        if name not in self.server.files:
            self.send_error(404)
            return
        rest = self.send_head(self.server.files[name], asked if self.server.ranges else None)
        self.wfile.write(rest[: self.server.cut_after])


@contextmanager
def serving(**options):
    with Server(**options) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()
