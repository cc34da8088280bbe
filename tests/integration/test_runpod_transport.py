"""What carries the client of RunPod's API: real HTTP, over a real socket."""

from __future__ import annotations

import contextlib
import datetime
import gzip
import http.server
import ipaddress
import json
import pathlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from ansible.module_utils.lora_forge import web
from ansible.module_utils.lora_forge.pods import runpod
from ansible.module_utils.lora_forge.web import NoAnswer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from lab import PATIENCE

SECRET = "Bearer simulated-key"
STREAM = 5  # seconds after which a log that has no end is cut


class Server(http.server.ThreadingHTTPServer):
    """Answers as the path says.

    Attributes:
        asked: The first line of every request, and its headers.
        over: Until it is set, a stream stays open.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.over = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.requestline, {name.lower(): value for name, value in self.headers.items()}))
        kind = self.path.strip("/")
        if kind == "drop":
            return
        body = json.dumps({"agent": self.headers["User-Agent"], "detail": kind}).encode()
        self.send_response(int(kind) if kind.isdigit() else 200)
        self.send_header("Location", "/200")
        if kind in ("gzip", "broken"):
            body = gzip.compress(body)[: -6 if kind == "broken" else None] + (b"!" * 6 if kind == "broken" else b"")
            self.send_header("Content-Encoding", "gzip")
        if kind == "bomb":
            body = gzip.compress(gzip.compress(bytes(1 << 20)))
            self.send_header("Content-Encoding", "gzip, gzip")
        if kind not in ("stream", "late", "slow", "large"):
            self.send_header("Content-Length", str(len(body) + (kind == "short")))
        self.end_headers()
        if kind == "late":
            time.sleep(2)
        self.wfile.write(b"data: one\ndata: tw" if kind in ("stream", "late") else body)
        self.wfile.flush()
        if kind in ("stream", "late"):
            self.server.over.wait(PATIENCE)
        with contextlib.suppress(OSError):
            while kind in ("slow", "large") and not self.server.over.wait(0.05 if kind == "slow" else 0):
                self.wfile.write(b"x" if kind == "slow" else b"x" * 65536)

    do_POST = do_CONNECT = do_GET

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


def ask(server: Server, kind: str, seconds: float = PATIENCE, stream: bool = False, method: str = "GET") -> web.Answer:
    url = f"http://127.0.0.1:{server.server_port}/{kind}"
    body = b"{}" if method == "POST" else None
    return web.open_url(method, url, {"User-Agent": runpod.AGENT, "Authorization": SECRET}, body, seconds, stream)


@pytest.mark.parametrize("status", [200, 302, 404, 500])  # a redirect would take the key elsewhere
def test_an_answer_is_given_as_it_is(server: Server, status: int) -> None:
    given = ask(server, str(status))
    assert given.status == status
    assert json.loads(given.body) == {"agent": runpod.AGENT, "detail": str(status)}
    assert given.headers["location"] == "/200"


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("kind", ["drop", "short", "broken"])
def test_what_was_cut_off_or_is_broken_is_no_answer(server: Server, kind: str, method: str) -> None:
    with pytest.raises(NoAnswer, match=r"."):
        ask(server, kind, method=method)


def test_an_order_whose_answer_is_broken_may_have_been_carried_out(server: Server) -> None:
    def transport(method: str, url: str, *rest: Any) -> web.Answer:
        return web.open_url(method, f"http://127.0.0.1:{server.server_port}/broken", *rest)

    with pytest.raises(runpod.ApiError) as caught:
        runpod.RunPod("simulated-key", transport=transport).create_pod({"name": "x"})
    assert (caught.value.unclear, len(server.asked)) == (True, 1)


def test_an_answer_may_be_packed(server: Server) -> None:
    assert json.loads(ask(server, "gzip").body)["detail"] == "gzip"


@pytest.mark.parametrize("kind", ["slow", "large"])
def test_an_answer_without_an_end_is_none(server: Server, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(web, "WHOLE", 0.5 if kind == "slow" else PATIENCE)
    monkeypatch.setattr(web, "LARGEST", 1 << 20)
    with pytest.raises(NoAnswer, match=r"^an answer (that does not end|of more than 1 MiB)$"):
        ask(server, kind)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("drops", [b"X", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_headers_without_an_end_are_none_either(monkeypatch: pytest.MonkeyPatch, drops: bytes, stream: bool) -> None:
    monkeypatch.setattr(web, "WHOLE", 1.0)
    monkeypatch.setattr(web, "FIRST", 2.0)  # of silence, which no drop is late by
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            asker, _ = listener.accept()
            with asker, contextlib.suppress(OSError):
                asker.recv(65536)
                asker.sendall(drops if drops.startswith(b"HTTP") else b"HTTP/1.1 200 OK\r\nX: ")
                while not over.wait(0.05):
                    asker.sendall(drops)

        threading.Thread(target=drip, daemon=True).start()
        bound = threading.Timer(PATIENCE, over.set)
        bound.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        try:
            with pytest.raises(NoAnswer, match=r"^an answer that does not end$"):
                web.open_url("GET", url, {}, None, 0.2 if stream else PATIENCE, stream)
            assert not over.is_set(), "it came back only when the drops ended"
        finally:
            bound.cancel()
            over.set()


def test_what_is_packed_in_a_pack_is_no_answer(server: Server) -> None:
    """A kilobyte that is packed twice may be a gigabyte in memory before anybody can count it."""
    with pytest.raises(NoAnswer, match="packed"):
        ask(server, "bomb")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_redirect_is_not_followed(server: Server, method: str) -> None:
    assert ask(server, "307", method=method).status == 307
    assert [line.split()[1] for line, _ in server.asked] == ["/307"]


def test_a_stream_without_an_end_is_cut(server: Server) -> None:
    assert ask(server, "stream", STREAM, stream=True).body.startswith(b"data: one\n")


def test_the_first_byte_of_a_stream_may_take_longer_than_the_next_one(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(server, "late", 1, stream=True).body.startswith(b"data: one\n")
    monkeypatch.setattr(web, "FIRST", 0.5)
    assert ask(server, "late", 0.2, stream=True).body == b""


def test_a_refused_stream_is_told_whole(server: Server) -> None:
    answer = ask(server, "404", STREAM, stream=True)
    assert (answer.status, json.loads(answer.body)["detail"]) == (404, "404")


# --- the environment -------------------------------------------------------------------------------------------------


def test_no_netrc_and_no_proxy_for_this_machine(
    server: Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login ann password hush\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.delenv("no_proxy", raising=False)
    with Server() as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_port}")
        assert ask(server, "200").status == 200
        assert proxy.asked == []
        proxy.shutdown()
    ((_, headers),) = server.asked
    assert headers["authorization"] == SECRET


@pytest.mark.parametrize("named", ["http://127.0.0.1:{port}", "127.0.0.1:{port}"])
def test_a_proxy_carries_https_and_sees_no_key(server: Server, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("https_proxy", named.format(port=server.server_port))
    headers = {"Authorization": SECRET}
    with pytest.raises(NoAnswer):  # it opens no tunnel
        web.open_url("GET", "https://api.example.invalid/v2/pods", headers, None, PATIENCE, False)
    ((line, seen),) = server.asked
    assert line.startswith("CONNECT api.example.invalid:443 ")
    assert "simulated-key" not in str(seen)
    monkeypatch.setenv("no_proxy", "example.invalid")
    with pytest.raises(NoAnswer):
        web.open_url("GET", "https://api.example.invalid/v2/pods", headers, None, PATIENCE, False)
    assert len(server.asked) == 1


@pytest.mark.parametrize("named", ["socks5://127.0.0.1:1", "nonsense://x", "http://[::1"])
def test_a_proxy_that_will_not_do_is_told(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("https_proxy", named)
    with pytest.raises(NoAnswer, match=r"."):
        web.open_url("GET", "https://api.example.invalid/", {}, None, PATIENCE, False)


@pytest.fixture
def authority(tmp_path: pathlib.Path) -> pathlib.Path:
    """Make a certificate for this machine that nobody else vouches for, with its key; returns its path."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a company's own")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    path = tmp_path / "authority.pem"
    path.write_bytes(made.public_bytes(pem))
    return path


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", None])
def test_a_companys_own_certificates_are_trusted_where_they_are_named(
    authority: pathlib.Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(authority))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, authority.with_name("key.pem"))
    web._certificates.cache_clear()
    with Server() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"https://127.0.0.1:{server.server_port}/200"
        if variable:
            assert web.open_url("GET", url, {}, None, PATIENCE, False).status == 200
        else:
            with pytest.raises(NoAnswer, match="CERTIFICATE_VERIFY_FAILED"):
                web.open_url("GET", url, {}, None, PATIENCE, False)
        server.shutdown()
    web._certificates.cache_clear()


def test_nobody_is_there(server: Server) -> None:
    server.server_close()
    with pytest.raises(NoAnswer, match=r"refused|reset"):
        ask(server, "200")
