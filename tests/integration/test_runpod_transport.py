"""What carries the client of RunPod's API: real HTTP, over a real socket."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from ansible.module_utils.lora_forge.pods import runpod
from ansible.module_utils.lora_forge.pods.runpod import NoAnswer
from lab import PATIENCE

STREAM = 5  # seconds after which a log that has no end is cut


class Server(http.server.ThreadingHTTPServer):
    """Answers as the path says.

    Attributes:
        over: Until it is set, a stream stays open.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.over = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        kind = self.path.strip("/")
        if kind == "drop":
            return
        body = json.dumps({"agent": self.headers["User-Agent"], "detail": kind}).encode()
        self.send_response(int(kind) if kind.isdigit() else 200)
        self.send_header("Location", "/200")
        if kind != "stream":
            self.send_header("Content-Length", str(len(body) + (kind == "short")))
        self.end_headers()
        self.wfile.write(b"data: one\ndata: tw" if kind == "stream" else body)
        self.wfile.flush()
        if kind == "stream":
            self.server.over.wait(PATIENCE)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as made:
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        yield made
        made.over.set()
        made.shutdown()


def ask(server: Server, kind: str, seconds: float = PATIENCE, stream: bool = False) -> runpod.Answer:
    url = f"http://127.0.0.1:{server.server_port}/{kind}"
    return runpod.open_url("GET", url, {"User-Agent": runpod.AGENT}, None, seconds, stream)


@pytest.mark.parametrize("status", [200, 302, 404, 500])  # a redirect would take the key elsewhere
def test_an_answer_is_given_as_it_is(server: Server, status: int) -> None:
    given = ask(server, str(status))
    assert given.status == status
    assert json.loads(given.body) == {"agent": runpod.AGENT, "detail": str(status)}
    assert given.headers["location"] == "/200"


@pytest.mark.parametrize("kind", ["drop", "short"])
def test_what_was_cut_off_is_no_answer(server: Server, kind: str) -> None:
    with pytest.raises(NoAnswer, match=r"."):
        ask(server, kind)


def test_a_stream_without_an_end_is_cut(server: Server) -> None:
    assert ask(server, "stream", STREAM, stream=True).body.startswith(b"data: one\n")


def test_nobody_is_there(server: Server) -> None:
    server.server_close()
    with pytest.raises(NoAnswer, match=r"refused|reset"):
        ask(server, "200")
