"""A hub on this machine, as much of it as huggingface_hub needs to fetch a model; with faults to order."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import json
import random
import threading
import urllib.parse
from typing import Any

HOLD = 8.0  # seconds a held answer waits at most; huggingface_hub takes ten of silence for a cut


@dataclasses.dataclass
class Model:
    """A repository: its files, who may read it, and sizes that are announced wrongly."""

    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    announced: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files)).encode()).hexdigest()


def tiny_model(shards: int = 2, size: int = 3 * 1024 * 1024, seed: int = 0) -> dict[str, bytes]:
    """Return the files of a model whose weights are noise.

    Args:
        shards: How many files they are in; with one there is no index.
        size: Bytes of each.
        seed: Of the noise.
    """
    noise = random.Random(seed)
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    names = names if shards > 1 else ["model.safetensors"]
    files = {name: noise.randbytes(size) for name in names}
    if shards > 1:
        index = {"metadata": {}, "weight_map": {f"layer.{number}": name for number, name in enumerate(names)}}
        files["model.safetensors.index.json"] = json.dumps(index).encode()
    return files | {"config.json": b"{}", "tokenizer.json": b"{}", "tokenizer_config.json": b"{ }"}


class Hub:
    """The server, in threads of this process.

    Attributes:
        models: What it has, by name.
        tokens: Each token it knows, and whether its account has access to gated and private models.
        requests: (method, path, Range header) of every request.
        sent: Bytes of each file that went out.
        drop: File -> bytes after which the connection is cut, once.
        refuse: File -> how many times it is answered with HTTP 500.
        hold: File -> bytes after which its answer waits for :meth:`release`.
    """

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.tokens = {"hf_good": True, "hf_stranger": False}
        self.requests: list[tuple[str, str, str]] = []
        self.sent: dict[str, int] = {}
        self.drop: dict[str, int] = {}
        self.refuse: dict[str, int] = {}
        self.hold: dict[str, int] = {}
        self.cut = False
        self.released = threading.Event()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def release(self, cut: bool = False) -> None:
        """Let held answers go on, or cut them off; nothing is held from now on."""
        self.hold, self.cut = {}, cut
        self.released.set()

    def close(self) -> None:
        self.release(cut=True)
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)

    def ranges(self, name: str) -> list[str]:
        """List the Range headers of all requests for a file's bytes."""
        return [asked for method, path, asked in self.requests if method == "GET" and path == f"/cdn/{name}"]

    def handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *words: Any) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # the client was killed
                    super().handle()

            def do_HEAD(self) -> None:
                hub.answer(self)

            do_GET = do_HEAD

        return Handler

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(request.path).path)
        self.requests.append((request.command, path, request.headers.get("Range", "")))
        if path.startswith("/cdn/"):
            return self.send_bytes(request, path.removeprefix("/cdn/"))
        parts = path.removeprefix("/api/models").strip("/").split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        model = self.models.get(name)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.tokens:
            return self.refusal(request, 401, "", "Invalid credentials in Authorization header")
        access = self.tokens.get(token, False)
        if model is None or (model.private and not access):
            return self.refusal(request, 404 if token else 401, "RepoNotFound")
        if rest and rest[1] not in ("main", model.commit):
            return self.refusal(request, 404, "RevisionNotFound")
        if path.startswith("/api/"):
            return self.send(request, json.dumps(self.info(name, model)).encode())
        if model.gated and not access:
            return self.refusal(request, 403 if token else 401, "GatedRepo")
        return self.resolve(request, model, "/".join(rest[2:]))

    def info(self, name: str, model: Model) -> dict[str, Any]:
        siblings = []
        for file, content in model.files.items():
            size = model.announced.get(file, len(content))
            entry: dict[str, Any] = {"rfilename": file, "size": size, "blobId": hashlib.sha1(content).hexdigest()}
            if file.endswith((".safetensors", ".bin")):
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 130}
            siblings.append(entry)
        return {"_id": "0", "id": name, "modelId": name, "sha": model.commit, "private": model.private,
                "gated": "manual" if model.gated else False, "siblings": siblings}  # fmt: skip

    def resolve(self, request: http.server.BaseHTTPRequestHandler, model: Model, file: str) -> None:
        if file not in model.files:
            return self.refusal(request, 404, "EntryNotFound")
        content, commit = model.files[file], {"X-Repo-Commit": model.commit}
        if not file.endswith((".safetensors", ".bin")):
            return self.send(request, content, {**commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
        digest = hashlib.sha256(content).hexdigest()
        linked = {
            # The bytes lie on another host, as the real ones do: what is on the hub's own, its client asks for at once.
            "Location": f"http://localhost:{self.server.server_port}/cdn/{file}",
            "X-Linked-Size": str(len(content)),
            "X-Linked-ETag": f'"{digest}"',
            "X-Xet-Hash": digest,  # offered, as the real one does; there is no xet behind it
            "Link": f'<{self.url}/xet-auth>; rel="xet-auth"',
        }
        return self.send(request, b"", {**commit, **linked}, 302)

    def send_bytes(self, request: http.server.BaseHTTPRequestHandler, file: str) -> None:
        if self.refuse.get(file, 0) > 0:
            self.refuse[file] -= 1
            return self.refusal(request, 500, "")
        content = next(model.files[file] for model in self.models.values() if file in model.files)
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        request.send_response(206 if start else 200)
        for name, value in {**headers, "Content-Length": str(len(content) - start)}.items():
            request.send_header(name, value)
        request.end_headers()
        end = min(len(content), self.drop.get(file, len(content)))
        pause = self.hold.get(file, end)
        for first, last in ((start, pause), (max(start, pause), end)):
            if first == pause < end:
                self.released.wait(HOLD)
                if self.cut:
                    request.close_connection = True
                    return None
            if first < last:
                request.wfile.write(content[first:last])
                self.sent[file] = self.sent.get(file, 0) + last - first
        if self.drop.pop(file, None) is not None:
            request.close_connection = True
        return None

    def refusal(self, request: http.server.BaseHTTPRequestHandler, code: int, error: str, words: str = "no") -> None:
        headers = {"X-Error-Message": words} | ({"X-Error-Code": error} if error else {})
        self.send(request, b"", headers, code)

    def send(
        self,
        request: http.server.BaseHTTPRequestHandler,
        body: bytes,
        headers: dict[str, str] | None = None,
        code: int = 200,
    ) -> None:
        request.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)
