"""A webhook on this machine."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

SECRET = "T0KEN9XQ"  # the part of a webhook's URL that nobody may see


class Hook(http.server.ThreadingHTTPServer):
    """A webhook.

    Attributes:
        answers: The status of each answer, in this order; the last one holds on. An address that ends with a number
            is answered with that one. 0 is no answer at all.
        told: What was posted.
        paths: Where to.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.told, self.paths = [200], [], []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook/{SECRET}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        assert self.headers["Content-Type"] == "application/json"
        self.server.paths.append(self.path)
        self.server.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        own = self.path.rpartition("/")[2]
        answers = [int(own)] if own.isdigit() else self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if not answer:
            self.server.over.wait(60)
            return
        self.send_response(answer)
        if answer == 302:
            self.send_header("Location", self.server.url)  # where a client would ask again, with nothing to tell
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[Hook]:
    """Serve a webhook until the end of the block."""
    server = Hook()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
