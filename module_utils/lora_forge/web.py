"""One request over HTTP, with bounds on all that an answer may take. Whoever is asked, one way of asking."""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import functools
import ipaddress
import os
import queue
import re
import ssl
import threading
import time
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    import httpx

WHOLE = 300.0  # seconds for all of an answer, which may come drop by drop
_LAG = 1.0  # seconds more, for what was read until then
_ENDLESS = "an answer that does not end"
LARGEST = 64 << 20  # bytes of an answer
FIRST = 10.0  # seconds until a log stream's first byte: who is asked may have to fetch it


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back: HTTP status, headers with names in lower case, and the body."""

    status: int
    headers: dict[str, str]
    body: bytes


class NoAnswer(Exception):
    """The connection failed, or was dropped: whether the request was carried out is not known."""


def open_url(
    method: str,
    url: str,
    headers: dict[str, str],
    body: Optional[bytes],
    seconds: float,
    stream: bool = False,
    whole: Optional[float] = None,
    connect: Optional[float] = None,
) -> Answer:
    """Carry one request, for modules and plugins alike. A redirect is not followed: it would take the key elsewhere.

    Proxies and certificates are the environment's, see :func:`_proxy_for` and :func:`_certificates`; nothing else of
    the environment is used, no .netrc either.

    In a thread of its own: httpx bounds each read, and headers that come drop by drop, or a handshake, have no end.

    Args:
        method: HTTP's.
        url: Whom to ask.
        headers: Beside those of HTTP itself.
        body: What to send; None for nothing.
        seconds: That may pass without a byte.
        stream: Whether the answer is read until it is quiet, and not to its end.
        whole: Seconds for all of an answer that has an end; ``WHOLE`` by default.
        connect: That may pass until somebody is reached; ``seconds`` by default.

    Raises:
        NoAnswer: There was no whole answer.
    """
    until = time.monotonic() + (FIRST + 5 * seconds if stream else whole or WHOLE)
    found: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            found.put(_exchange(method, url, headers, body, seconds, stream, until, connect))
        except Exception as error:  # raised again where it is waited for
            found.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        outcome = found.get(timeout=until - time.monotonic() + _LAG)
    except queue.Empty:
        raise NoAnswer(_ENDLESS) from None
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _exchange(
    method: str,
    url: str,
    headers: dict[str, str],
    body: Optional[bytes],
    seconds: float,
    stream: bool,
    until: float,
    connect: Optional[float],
) -> Answer:
    """Send a request, and read its answer until a time of the monotonic clock.

    Raises:
        NoAnswer: There was no whole answer.
    """
    import httpx  # here, as a plan without pods, or an inventory without a key, need not pay for it

    silence = max(seconds, FIRST) if stream else seconds
    try:
        client = httpx.Client(
            trust_env=False,
            verify=_certificates() if url.startswith("https://") else False,
            proxy=_proxy_for(url),
            timeout=httpx.Timeout(silence, connect=min(silence, connect or silence)),
            follow_redirects=False,
        )
        request = client.build_request(method, url, headers={**headers, "Accept-Encoding": "identity"}, content=body)
        with client:
            answer = client.send(request, stream=True)
            try:
                if "," in answer.headers.get("content-encoding", ""):  # a few bytes of it may fill the memory
                    raise NoAnswer("an answer that is packed more than once")
                whole = not stream or answer.status_code >= 300
                text = _read_whole(answer, until) if whole else _read_stream(answer, seconds, until)
            finally:
                answer.close()
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError, ImportError) as error:
        raise NoAnswer(str(error) or type(error).__name__) from None
    return Answer(answer.status_code, {name.lower(): value for name, value in answer.headers.items()}, text)


def _read_whole(answer: httpx.Response, until: float) -> bytes:
    """Read an answer to its end.

    Raises:
        NoAnswer: It is too large, or takes too long.
    """
    text = b""
    for piece in answer.iter_bytes():
        text += piece
        if len(text) > LARGEST:
            raise NoAnswer(f"an answer of more than {LARGEST >> 20} MiB")
        if time.monotonic() > until:
            raise NoAnswer(_ENDLESS)
    return text


def _read_stream(answer: httpx.Response, seconds: float, until: float) -> bytes:
    """Read what a stream of server-sent events holds by now, until it is silent for ``seconds``.

    In a thread of its own: a read that runs into its time limit would end the connection, and with it the wait for the
    first byte could not be another one than for the next.
    """
    pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        with contextlib.suppress(Exception):  # it is cut, by the other side or by us: what came is what there is
            for piece in answer.iter_bytes():
                pieces.put(piece)
        pieces.put(b"")

    threading.Thread(target=read, daemon=True).start()
    text, wait = b"", max(seconds, FIRST)
    while (left := until - time.monotonic()) > 0 and len(text) < LARGEST:
        try:
            piece = pieces.get(timeout=min(wait, left))
        except queue.Empty:
            break
        if not piece:
            break
        text, wait = text + piece, seconds
    return text


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Return whom TLS trusts: SSL_CERT_FILE, SSL_CERT_DIR and REQUESTS_CA_BUNDLE, and else what the system trusts."""
    context = ssl.create_default_context()  # OpenSSL reads the first two itself
    bundle = os.environ.get("REQUESTS_CA_BUNDLE")
    if bundle:
        context.load_verify_locations(**{"capath" if os.path.isdir(bundle) else "cafile": bundle})
    paths = ssl.get_default_verify_paths()
    folder = paths.capath if paths.capath and os.path.isdir(paths.capath) and os.listdir(paths.capath) else None
    if not bundle and not paths.cafile and not folder:  # a Python that was built for another system
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _proxy_for(url: str) -> Optional[str]:
    """Return the environment's proxy for a URL, HTTPS_PROXY or ALL_PROXY unless NO_PROXY has its host; or None.

    None for plain HTTP, which a proxy would read.
    """
    split = urllib.parse.urlsplit(url)
    host = split.hostname or ""
    if split.scheme != "https" or is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    named = urllib.request.getproxies()
    proxy = named.get("https") or named.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def retry_after(headers: dict[str, str], default: float) -> float:
    """Read how many seconds a 429 asks to wait: a number, or a date (RFC 9110, 10.2.3)."""
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError, OSError):
        return default


def is_loopback(host: str) -> bool:
    """Tell whether a host is this very machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False
