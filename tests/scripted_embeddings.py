"""An OpenAI-compatible embeddings endpoint on a real socket, which does as it is told."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Script = Callable[[list[str]], tuple[int, Any]]


def by_length(text: str) -> list[float]:
    """A vector that tells texts of different lengths apart."""
    return [float(len(text)), 1.0, -2.0]


def embeddings_of(texts: list[str], vector: Callable[[str], list[float]] = by_length) -> dict[str, Any]:
    """The answer of an endpoint, in OpenAI's form."""
    return {"data": [{"index": i, "embedding": vector(text)} for i, text in enumerate(texts)]}


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that has given up is part of the tests."""


class ScriptedEmbeddings:
    """An embeddings endpoint on a real socket: answers by `scripts`, one a request, then correctly."""

    def __init__(self, *scripts: Script, vector: Callable[[str], list[float]] = by_length) -> None:
        self.scripts = list(scripts)
        self.vector = vector
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.connections: set[tuple[str, int]] = set()
        self.close_each = self.hang_up_after_answer = False
        self._server = _QuietServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(body)
                outer.paths.append(self.path)
                outer.keys.append(self.headers.get("Authorization"))
                outer.connections.add(self.client_address)
                if outer.scripts:
                    status, answer = outer.scripts.pop(0)(body["input"])
                else:
                    status, answer = 200, embeddings_of(body["input"], outer.vector)
                if status == 0:  # hang up
                    self.close_connection = True
                    return
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data) + (9 if status == 206 else 0)))
                if outer.close_each:
                    self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(data)
                self.wfile.flush()
                # Hung up without a word, as servers do with idle connections.
                self.close_connection |= outer.close_each or status == 206 or outer.hang_up_after_answer

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Quiet."""

        return Handler
