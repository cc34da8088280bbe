"""RunPod's REST API v2: one client over an injected transport, with errors that say what to do.

The transport is a function, so that modules and the inventory plugin use the same client and tests script the wire.
"""

from __future__ import annotations

import dataclasses
import email.utils
import http.client
import ipaddress
import json
import time
import urllib.error
import urllib.parse
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge.errors import UserError

_URL = "https://api.runpod.io"
# The default agent of Python's urllib is refused at RunPod's edge.
AGENT = "lora-forge (+https://docs.ansible.com)"
TIMEOUT = 60.0  # seconds for one request
ATTEMPTS = 4  # of a request that may be repeated
PATIENCE = 60.0  # seconds: the longest Retry-After that is waited for
QUIET = 3.0  # seconds of silence after which a log stream counts as read


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back: HTTP status, headers with names in lower case, and the body."""

    status: int
    headers: dict[str, str]
    body: bytes


class NoAnswer(Exception):
    """The connection failed, or was dropped: whether the request was carried out is not known."""


# method, URL, headers, body, seconds, whether it is a stream that is read until it is quiet
_Transport = Callable[[str, str, dict[str, str], Optional[bytes], float, bool], Answer]

_REMEDIES = {
    400: "RunPod cannot carry this out; its message says why",
    401: "RUNPOD_API_KEY is not accepted; make a new key in RunPod's console (Settings, API keys)",
    402: "the balance is too low; add credit in RunPod's console (an hour's price is needed to start)",
    403: "the key may not do this; give it read and write access, or leave this pool of GPUs out",
    404: "it is not there, or it belongs to another account",
    409: "its state does not allow this now; look at it again",
    422: "this version does not fit RunPod's API; nothing was ordered",
    429: "too many requests; wait a minute and run the same command again",
}


class ApiError(UserError):
    """RunPod did not do what it was asked.

    Attributes:
        status: The HTTP status; 0 when there was no answer.
        title: RunPod's own title of the error.
        detail: RunPod's own message.
        unclear: The request may have been carried out all the same.
    """

    def __init__(self, method: str, url: str, status: int, title: str, detail: str):
        self.method, self.url, self.status, self.title, self.detail = method, url, status, title, detail
        self.unclear = method == "POST" and (status == 0 or status >= 500)
        default = "RunPod is out of order, or cannot be reached; run the same command again in a while"
        what = f"{status} {title}" if status else title
        details = f": {detail}" if detail and detail != title else ""
        remedy = _REMEDIES.get(status, default)
        super().__init__(f"RunPod, {method} {url}: {(what + details).rstrip('.')}. {remedy[0].upper()}{remedy[1:]}")


def open_url(
    method: str, url: str, headers: dict[str, str], body: Optional[bytes], seconds: float, stream: bool
) -> Answer:
    """Carry one request, for modules and plugins alike: by Ansible's own HTTP, with its proxies and certificates.

    Raises:
        NoAnswer: There was no whole answer.
    """
    # The one thing of Ansible's that is used here: its HTTP works on both sides, and honours the user's settings.
    from ansible.module_utils import urls

    try:
        # A redirect would take the key elsewhere.
        answer = urls.open_url(
            url, data=body, headers=headers, method=method, timeout=seconds, follow_redirects="none", use_netrc=False
        )
        text = _read_stream(answer, seconds) if stream else answer.read()
        return Answer(answer.status, {name.lower(): value for name, value in answer.headers.items()}, text)
    except urllib.error.HTTPError as error:
        try:
            text = error.read()
        except (OSError, http.client.HTTPException):
            text = b""
        return Answer(error.code, {name.lower(): value for name, value in (error.headers or {}).items()}, text)
    except (OSError, http.client.HTTPException, urls.ConnectionError) as error:
        raise NoAnswer(str(getattr(error, "reason", "") or error)) from None


def _read_stream(answer: Any, seconds: float) -> bytes:
    """Read what a stream of server-sent events holds by now, until it is silent for ``seconds``."""
    text, deadline = b"", time.monotonic() + 5 * seconds
    while time.monotonic() < deadline:
        try:
            line = answer.readline()
        except OSError:  # the timeout: nothing more for the moment
            break
        if not line:
            break
        text += line
    return text


def without_environment(pod: dict[str, Any]) -> dict[str, Any]:
    """Strip a pod of its environment, which RunPod shows in clear, keys included; only our deadline is kept of it."""
    shown = {name: value for name, value in pod.items() if name != "env"}
    deadline = str((pod.get("env") or {}).get("LORA_FORGE_DEADLINE", ""))
    return shown | ({"deadline": float(deadline)} if deadline.isdigit() else {})


def ssh_address(pod: dict[str, Any]) -> dict[str, Any]:
    """Return where a pod's sshd is: host, port and username; empty while its port is not mapped."""
    return (pod.get("ssh") or {}).get("direct") or {}


class RunPod:
    """A client of one account.

    Args:
        key: The account's API key.
        url: Where the API is; another one in tests.
        transport: Carries one request.
        sleep: Waits between attempts, in seconds.

    Raises:
        UserError: There is no key, or the URL would send it in clear.
    """

    def __init__(
        self,
        key: str,
        url: str = "",
        transport: _Transport = open_url,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.url = (url or _URL).rstrip("/")
        key = key.strip()
        if not key:
            raise UserError(
                "RUNPOD_API_KEY is not set. Make a key with read and write access in RunPod's console (Settings, API "
                "keys), and: export RUNPOD_API_KEY=…"
            )
        if not key.isascii() or not key.isprintable() or " " in key:
            raise UserError("RUNPOD_API_KEY holds characters that no key has; copy it anew from RunPod's console")
        if not self.url.startswith("https://") and not _loopback(urllib.parse.urlsplit(self.url).hostname or ""):
            raise UserError(f"RUNPOD_API_URL is «{self.url}»: the key would go over the network in clear. Use https")
        self.key, self.transport, self.sleep = key, transport, sleep

    def request(self, method: str, path: str, body: Any = None, stream: bool = False) -> Any:
        """Make a request, repeated where that is safe.

        GET and DELETE are repeated after a 5xx or a lost answer; every method after a 429, which carried nothing out.
        POST is never repeated after a 5xx: it may have made a pod that costs money.

        Args:
            method: GET, POST or DELETE.
            path: With its query.
            body: What is sent as JSON.
            stream: Server-sent events: their text comes back as it is.

        Returns:
            The answer's JSON; None for an empty answer.

        Raises:
            ApiError: It was refused, or there was no answer.
        """
        accept = "text/event-stream" if stream else "application/json"
        headers = {"Authorization": f"Bearer {self.key}", "User-Agent": AGENT, "Accept": accept}
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        for attempt in range(1, ATTEMPTS + 1):
            pause = 2.0 ** (attempt - 1)
            try:
                answer = self.transport(method, self.url + path, headers, data, QUIET if stream else TIMEOUT, stream)
            except NoAnswer as error:
                failure = ApiError(method, path, 0, "no answer", self._mask_key(str(error)))
            else:
                if answer.status < 300:
                    return (
                        answer.body.decode("utf-8", "replace") if stream else self._parse_answer(method, path, answer)
                    )
                failure = self._error_of(method, path, answer)
                if answer.status == 429:
                    pause = _retry_after(answer.headers, pause)
            again = failure.status == 429 or (method != "POST" and (failure.status == 0 or failure.status >= 500))
            if not again or attempt == ATTEMPTS or pause > PATIENCE:
                raise failure
            self.sleep(pause)
        raise AssertionError  # the loop returns or raises

    def _excerpt(self, body: bytes) -> str:
        """Return the beginning of an answer that was not meant for programs."""
        text = " ".join(self._mask_key(body[:2000].decode("utf-8", "replace")).split())
        return text[:160] + ("…" if len(text) > 160 else "")

    def _mask_key(self, text: str) -> str:
        return text.replace(self.key, "…")

    def _parse_answer(self, method: str, path: str, answer: Answer) -> Any:
        if not answer.body:
            return None
        try:
            return json.loads(answer.body)
        except ValueError:
            raise ApiError(method, path, 0, "no JSON", self._excerpt(answer.body)) from None

    def _error_of(self, method: str, path: str, answer: Answer) -> ApiError:
        try:
            problem = json.loads(answer.body)
            assert isinstance(problem, dict)
        except (ValueError, AssertionError):  # a page of HTML from a proxy, or from RunPod's edge
            problem = {"detail": self._excerpt(answer.body)}
        title = self._mask_key(str(problem.get("title") or http.client.responses.get(answer.status, "error")))
        detail = "; ".join(filter(None, [str(problem.get("detail") or ""), *map(str, problem.get("errors") or [])]))
        return ApiError(method, path, answer.status, title, self._mask_key(detail))

    def list_items(self, path: str, key: str) -> list[dict[str, Any]]:
        """List all items of a path: from one answer, as older servers give it, or page by page."""
        by_id: dict[str, dict[str, Any]] = {}  # pages may overlap
        cursor, seen = "", set()
        while True:
            query = ("&" if "?" in path else "?") + urllib.parse.urlencode({"cursor": cursor}) if cursor else ""
            answer = self.request("GET", path + query)
            items = answer.get(key) if isinstance(answer, dict) else None
            if not isinstance(items, list) or not all(isinstance(item, dict) and "id" in item for item in items):
                # An empty list here would look as if nothing were rented.
                raise ApiError("GET", path, 0, "an answer of another form", f"it holds no list «{key}»")
            by_id.update((item["id"], item) for item in items)
            page = answer.get("pagination") or {}
            following = page.get("nextCursor") if page.get("hasNextPage") else None
            if page.get("hasNextPage") and not following:
                raise ApiError("GET", path, 0, "an answer of another form", "there is more, and it does not say where")
            if not following or following in seen:
                return list(by_id.values())
            cursor = str(following)
            seen.add(following)

    def list_pods(self) -> list[dict[str, Any]]:
        """List all pods of the account that are not gone, without their environment."""
        return [
            without_environment(pod) for pod in self.list_items("/v2/pods", "pods") if pod.get("status") != "TERMINATED"
        ]

    def get_pod(self, pod_id: str) -> Optional[dict[str, Any]]:
        """Return a pod without its environment; None when it is gone."""
        try:
            pod = self.request("GET", f"/v2/pods/{urllib.parse.quote(pod_id, safe='')}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        if not isinstance(pod, dict) or "id" not in pod:
            raise ApiError("GET", f"/v2/pods/{pod_id}", 0, "an answer of another form", "it is no pod")
        return None if pod.get("status") == "TERMINATED" else without_environment(pod)

    def create_pod(self, order: dict[str, Any]) -> dict[str, Any]:
        """Order a pod; what it costs begins here.

        Args:
            order: What RunPod's API takes.

        Returns:
            The pod without its environment.

        Raises:
            ApiError: With ``unclear``, when a pod may have been made all the same: look it up by its name.
        """
        pod = self.request("POST", "/v2/pods", order)
        if not isinstance(pod, dict) or not pod.get("id"):
            raise ApiError("POST", "/v2/pods", 0, "an answer of another form", "it names no pod")
        return without_environment(pod)

    def delete_pod(self, pod_id: str) -> bool:
        """Delete a pod, and what lies on it; False when it was gone."""
        try:
            self.request("DELETE", f"/v2/pods/{urllib.parse.quote(pod_id, safe='')}")
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def stop_pod(self, pod_id: str) -> None:
        """Stop a pod; its volume stays, and goes on costing money."""
        self.request("POST", f"/v2/pods/{urllib.parse.quote(pod_id, safe='')}/action", {"action": "stop"})

    def read_log(self, pod_id: str) -> list[str]:
        """Return the lines of a pod's container log, as far as they are there."""
        text = self.request("GET", f"/v2/pods/{urllib.parse.quote(pod_id, safe='')}/logs?source=container&tail=1000",
                        stream=True)  # fmt: skip
        lines = []
        for line in text.splitlines():
            if line.startswith("data:"):
                try:
                    lines.append(str(json.loads(line[5:])["line"]))
                except (ValueError, KeyError, TypeError):
                    continue  # cut in the middle, or an event of another kind
        return lines

    def list_gpus(self, cloud: str, count: int, min_cuda: str = "") -> list[dict[str, Any]]:
        """List the GPUs that RunPod has, with prices and the stock of a cloud.

        Args:
            cloud: SECURE or COMMUNITY.
            count: GPUs of a pod.
            min_cuda: The lowest CUDA version of a host's driver, as major.minor; empty for any.
        """
        query = {"include": "AVAILABILITY", "product": "POD", "cloud": cloud, "count": count}
        if min_cuda:
            query["minCudaVersion"] = min_cuda
        return self.list_items(f"/v2/catalog/gpus?{urllib.parse.urlencode(query)}", "gpus")

    def get_volume(self, volume_id: str) -> dict[str, Any]:
        """Return a network volume."""
        return self.request("GET", f"/v2/network-volumes/{urllib.parse.quote(volume_id, safe='')}")

    def billed_usd(self, pod_id: str) -> Optional[float]:
        """Return what RunPod has billed for a pod so far, in USD; None while no bill has arrived."""
        query = urllib.parse.urlencode({"podId": pod_id, "bucketSize": "hour"})
        bills = self.request("GET", f"/v2/billing/pods?{query}")
        # The filter is checked: a query parameter that a server does not know is silently ignored.
        try:
            amounts = [float(record["totalAmount"]) for record in bills["records"] if record["podId"] == pod_id]
            return round(sum(amounts), 4) if amounts else None
        except (KeyError, TypeError, ValueError):
            raise ApiError("GET", "/v2/billing/pods", 0, "an answer of another form", "it holds no bill") from None


def _retry_after(headers: dict[str, str], default: float) -> float:
    """Read how many seconds a 429 asks to wait: a number, or a date (RFC 9110, 10.2.3)."""
    text = headers.get("retry-after", "").strip()
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return default


def _loopback(host: str) -> bool:
    """Tell whether a host is this very machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False
