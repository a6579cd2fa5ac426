"""`blockspike …` with N-MNIST on a server of this machine; with --serve, that server."""

import hashlib
import os
import ssl
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_BLOCK_BYTES, _PAUSE_S = 4096, 0.01


class _Handler(BaseHTTPRequestHandler):
    folder: Path

    def do_GET(self) -> None:
        content = (self.folder / self.path.lstrip("/")).read_bytes()
        asked = self.headers["Range"]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        for i in range(start, len(content), _BLOCK_BYTES):
            self.wfile.write(content[i : i + _BLOCK_BYTES])
            time.sleep(_PAUSE_S)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        pass  # who is killed, hangs up


def serve(folder: Path, certificate: str) -> None:
    """Serve the folder's files; prints the port."""
    _Handler.folder = folder
    with _Server(("127.0.0.1", 0), _Handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        print(server.server_port, flush=True)
        server.serve_forever()


def use_server() -> None:
    """Let tonic's N-MNIST be the one that `FAULTS_SERVER` serves."""
    from tonic.datasets import NMNIST

    for part in ("train", "test"):
        content = Path(os.environ["FAULTS_RAW"], f"{part}.zip").read_bytes()
        setattr(NMNIST, f"{part}_url", os.environ["FAULTS_SERVER"] + f"{part}.zip")
        setattr(NMNIST, f"{part}_md5", hashlib.md5(content).hexdigest())


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(Path(sys.argv[2]), *sys.argv[3:])
    else:
        from blockspike.cli import main

        use_server()
        main()
