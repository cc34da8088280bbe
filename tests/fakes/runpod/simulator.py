#!/usr/bin/env python3
"""A simulator of RunPod's REST API v2 whose pods are containers on this machine.

    simulator.py serve --port 42210 --state DIR [--pods podman|none]    until SIGTERM or SIGINT
    simulator.py run --state DIR [--pods podman|none] -- COMMAND…       for as long as COMMAND runs

Environment:
    RUNPOD_OPENAPI: An OpenAPI description of RunPod's; every request and answer is held to it, beside contract.json.
    SIMULATED_KEY: The account's key, simulated-key when it is not set.

What goes wrong is ordered below /sim/ (faults.py lists the faults, api.py the paths). When it ends, what happened
lies in DIR/state.json; pods' logs lie in DIR/logs, their volumes in DIR/disk.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import fcntl
import http.server
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO, Any

from api import Answer, Api, Request
from cloud import Cloud
from containers import BackendError, Nothing, Podman
from contract import Contract
from faults import Faults

KEY = "simulated-key"
BODY_LIMIT = 1 << 20  # bytes of a request


class Simulator:
    """The whole: cloud, API and HTTP server, in threads of this process; a context manager.

    Args:
        state: A folder that only this simulator uses at a time.
        pods: podman or none.
        port: 0 for one that is free.
        key: The account's.

    Raises:
        BackendError: The containers' image could not be made.
        OSError: The port or the state folder is in use, or what RUNPOD_OPENAPI names cannot be read.
        ValueError: What RUNPOD_OPENAPI names is not JSON.
    """

    def __init__(
        self,
        state: pathlib.Path,
        pods: str = "podman",
        port: int = 0,
        key: str = KEY,
    ) -> None:
        self.state = state.absolute()
        self.state.mkdir(parents=True, exist_ok=True)
        self.claim = _claim(self.state / "lock")
        backend = Podman(self.state) if pods == "podman" else Nothing()
        backend.prepare()
        faults = Faults()
        self.cloud = Cloud(self.state, backend, faults)
        self.api = Api(self.cloud, faults, key, Contract.given())
        # Containers come through a bridge of this machine, so the loopback address alone would not do for them.
        self.server = _Server(("0.0.0.0" if pods == "podman" else "127.0.0.1", port), _handler(self.api))
        self.cloud.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def __enter__(self) -> Simulator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> dict[str, Any]:
        """Stop, remove all containers, and write state.json; returns what it says."""
        self.server.shutdown()
        self.server.server_close()
        state = self.api.state()
        self.cloud.close()
        (self.state / "state.json").write_text(json.dumps(state, indent=1) + "\n")
        self.claim.close()
        return state


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


def _claim(path: pathlib.Path) -> IO[str]:
    """Hold the state folder, as a second simulator would remove the containers of the first."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise OSError(f"{path.parent} is in use by another simulator") from None
    return file


def _handler(api: Api) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        """Carries requests to the API and answers back."""

        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # header and body in one piece

        def log_message(self, *words: Any) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(OSError):  # the client has hung up
                super().handle()

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(min(length, BODY_LIMIT))
            headers = _Headers(self.headers.items())
            answer = api.answer(Request(self.command, self.path, headers, body, lambda: _hung_up(self.connection)))
            time.sleep(answer.late)
            if answer.drop:
                self.close_connection = True
            else:
                self.send(answer)

        do_POST = do_PATCH = do_DELETE = do_PUT = do_GET

        def send(self, answer: Answer) -> None:
            """Send an answer; a stream goes out in chunks, until it ends or nobody listens."""
            content = answer.content()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.status != 204:
                self.send_header("Content-Type", answer.media)
            if answer.stream is None:
                if answer.status != 204:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                return
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.flush()
            for piece in answer.stream:
                if piece:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

    return Handler


class _Headers(dict[str, str]):
    """Headers by name in any case."""

    def __init__(self, items: Any) -> None:
        super().__init__({name.lower(): value for name, value in items})

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())


def _hung_up(connection: socket.socket) -> bool:
    """Tell whether the other side has closed."""
    try:
        return bool(select.select([connection], [], [], 0)[0]) and not connection.recv(1, socket.MSG_PEEK)
    except (OSError, ValueError):
        return True


def _open(options: argparse.Namespace, port: int) -> Simulator:
    key = os.environ.get("SIMULATED_KEY") or KEY
    return Simulator(options.state, options.pods, port, key)


def serve(options: argparse.Namespace) -> int:
    """Serve until a signal says that it is enough."""
    over = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, lambda *_: over.set())
    faulthandler.register(signal.SIGUSR1)  # where all its threads are, should it not come to an end
    simulator = _open(options, options.port)
    try:
        print(f"listening on {simulator.url}", flush=True)
        over.wait()
    finally:
        simulator.close()
    return 0


def run(options: argparse.Namespace) -> int:
    """Run a command against a simulator of its own; returns the command's exit status."""
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        print("simulator.py run: no COMMAND after --", file=sys.stderr)
        return 2
    process: subprocess.Popen[bytes] | None = None

    def signalled(number: int, _: object) -> None:
        if process is None:
            raise SystemExit(128 + number)
        if number != signal.SIGINT:  # the terminal sends Ctrl-C to the command too; the rest it would not hear of
            process.send_signal(number)

    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signalled)
    simulator = _open(options, 0)
    try:
        # A key of a real account that the shell exports stays here: the command gets the simulator's.
        env = {**os.environ, "RUNPOD_API_URL": simulator.url, "RUNPOD_API_KEY": simulator.api.key}
        try:
            process = subprocess.Popen(command, env=env)
            status = process.wait()
        except OSError as error:
            print(f"simulator.py run: {error}", file=sys.stderr)
            status = 127
    finally:
        state = simulator.close()
        left = sum(pod["ended"] is None for pod in state["pods"])
        print(f"simulator: {len(state['pods'])} pods ordered, {left} still there, ${state['usd']:.4f} by its clock")
    return status if status >= 0 else 128 - status


def main() -> int:
    """Read the command line, and do it."""
    parser = argparse.ArgumentParser(description="Simulate RunPod's REST API v2, with containers for pods.")
    commands = parser.add_subparsers(required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--state", type=pathlib.Path, required=True, help="a folder for disks and logs")
    shared.add_argument("--pods", choices=("podman", "none"), default="podman", help="what pods are made of")
    one = commands.add_parser("serve", parents=[shared], help="serve until SIGTERM or SIGINT")
    one.add_argument("--port", type=int, default=42210, help="0 for one that is free")
    one.set_defaults(work=serve)
    other = commands.add_parser("run", parents=[shared], help="serve while a command runs")
    other.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND…")
    other.set_defaults(work=run)
    options = parser.parse_args()
    try:
        return int(options.work(options))
    except (BackendError, OSError, ValueError) as error:
        print(f"simulator.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
