"""`blockspike …` with N-MNIST on a server of this machine; with --serve, that server."""

import hashlib
import os
import ssl
import sys
import time
from http.server import ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from range_requests import RangeHandler

_BLOCK_BYTES, _PAUSE_S = 4096, 0.01


class _Handler(RangeHandler):
    folder: Path

    def answer(self, name: str, asked: str | None) -> None:
        rest = self.send_head((self.folder / name).read_bytes(), asked)
        for i in range(0, len(rest), _BLOCK_BYTES):
            self.wfile.write(rest[i : i + _BLOCK_BYTES])
            time.sleep(_PAUSE_S)


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
