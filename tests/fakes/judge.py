"""An OpenAI-style endpoint on this machine, with a judge that has an opinion."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any, Callable, Union

KEY = "J0DGE-K3Y"  # that nobody may see
# What a judge says of a request: whether the sentence holds, a status, or the content of its answer as it is.
Opinion = Callable[[dict[str, Any]], Union[bool, int, str]]


class Endpoint(http.server.ThreadingHTTPServer):
    """An endpoint.

    Attributes:
        opinion: What it says of a request.
        key: What it wants as a key; empty for none.
        headers: What its answers have besides.
        asked: The requests, as they came.
        paths: Where to.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.opinion: Opinion = lambda asked: "ANSWER" in asked["messages"][1]["content"]
        self.key, self.headers = "", {}
        self.asked: list[dict[str, Any]] = []
        self.paths: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.paths.append(self.path)
        self.server.asked.append(asked)
        said = self.server.opinion(asked)
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            said = 401
        if isinstance(said, bool):
            said = json.dumps({"holds": said, "why": "as it is written"})
        answer: Any = {"error": {"message": f"no, not with {self.headers['Authorization']}"}}
        if isinstance(said, str):
            answer = {"model": asked["model"], "choices": [{"message": {"role": "assistant", "content": said}}]}
        body = json.dumps(answer).encode()
        self.send_response(said if isinstance(said, int) else 200)
        for name, value in {**self.server.headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def quoted(asked: dict[str, Any], name: str = "ANSWER") -> str:
    """Read what is quoted to a judge under a name, as a judge that keeps to the mark reads it."""
    mark = asked["messages"][0]["content"].partition("carry the mark ")[2].partition(",")[0]
    _, _, rest = asked["messages"][1]["content"].partition(f"BEGIN {name} {mark}\n")
    return rest.partition(f"\nEND {name} {mark}")[0]


@contextlib.contextmanager
def serving() -> Iterator[Endpoint]:
    """Serve an endpoint until the end of the block."""
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
