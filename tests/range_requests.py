"""What the file servers of tests share."""

from abc import abstractmethod
from http.server import BaseHTTPRequestHandler


class RangeHandler(BaseHTTPRequestHandler):
    """Answers quietly, also for the rest of a file (`Range: bytes=N-`)."""

    def do_GET(self) -> None:
        """Answer for the file of that name."""
        self.answer(self.path.lstrip("/"), self.headers["Range"])

    @abstractmethod
    def answer(self, name: str, asked: str | None) -> None:
        """Send head and content; `asked` is the range."""

    def send_head(self, content: bytes, asked: str | None) -> bytes:
        """Send status and length; returns what is to follow of `content`."""
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if start and start >= len(content):
            self.send_error(416)
            return b""
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        return content[start:]

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""
