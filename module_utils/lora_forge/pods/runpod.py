"""RunPod's REST API v2: one client over an injected transport, with errors that say what to do.

The transport is a function, so that modules and the inventory plugin use the same client and tests script the wire.
"""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.parse
from typing import Any, Callable, Optional, TypeVar

import pydantic
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.pods import answers
from ansible.module_utils.lora_forge.web import Answer, NoAnswer, is_loopback, open_url, retry_after

_URL = "https://api.runpod.io"
# The default agents of HTTP libraries are refused at RunPod's edge.
AGENT = "lora-forge (+https://docs.ansible.com)"
TIMEOUT = 60.0  # seconds for one request
ATTEMPTS = 4  # of a request that may be repeated
PATIENCE = 60.0  # seconds: the longest Retry-After that is waited for
QUIET = 3.0  # seconds of silence after which a log stream counts as read
PAGES = 1000  # of a list
_OWN_KEY = re.compile(r"rpa_[A-Za-z0-9]{20,}")  # a real account's key, as far as its form tells
_Fitting = TypeVar("_Fitting", bound=pydantic.BaseModel)


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


def without_environment(pod: dict[str, Any]) -> dict[str, Any]:
    """Strip a pod of its environment, which RunPod shows in clear, keys included."""
    return {name: value for name, value in pod.items() if name != "env"}


def ssh_address(pod: dict[str, Any]) -> dict[str, Any]:
    """Return where a pod's sshd is: host, port and username; empty while that is not known.

    Args:
        pod: As this client returns it, so that host and port are checked.
    """
    return (pod.get("ssh") or {}).get("direct") or {}


def ssh_problem(pod: dict[str, Any]) -> str:
    """Return why a pod will never have an address for SSH, in words; empty while it may have one.

    Args:
        pod: As this client returns it.
    """
    return str(pod.get("ssh_problem") or "")


class RunPod:
    """A client of one account.

    Args:
        key: The account's API key.
        url: Where the API is; another one in tests.
        transport: Carries one request.
        sleep: Waits between attempts, in seconds.

    Raises:
        UserError: There is no key; the URL is none, or would send it in clear, or to a simulator.
    """

    def __init__(
        self,
        key: str,
        url: str = "",
        transport: _Transport = open_url,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.url = _checked_url(url or _URL)
        key = key.strip()
        if not key:
            raise UserError(
                "RUNPOD_API_KEY is not set. Make a key with read and write access in RunPod's console (Settings, API "
                "keys), and: export RUNPOD_API_KEY=…"
            )
        if not key.isascii() or not key.isprintable() or " " in key:
            raise UserError("RUNPOD_API_KEY holds characters that no key has; copy it anew from RunPod's console")
        if self.url.startswith("http://") and _OWN_KEY.fullmatch(key):
            raise UserError(
                f"RUNPOD_API_URL is «{self.url}», a simulator, and RUNPOD_API_KEY looks like a real account's key. "
                "Nothing was sent. Unset RUNPOD_API_URL for RunPod itself, or give the simulator another key: "
                "export RUNPOD_API_KEY=simulated-key"
            )
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
                    pause = retry_after(answer.headers, pause)
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
        except (ValueError, RecursionError):
            raise ApiError(method, path, 0, "no JSON", self._excerpt(answer.body)) from None

    def _error_of(self, method: str, path: str, answer: Answer) -> ApiError:
        try:
            problem = answers.Problem.model_validate(json.loads(answer.body))
        except (ValueError, RecursionError):  # a page of HTML from a proxy, or from RunPod's edge
            problem = answers.Problem(detail=self._excerpt(answer.body))
        title = self._mask_key(problem.title or http.client.responses.get(answer.status, "error"))
        detail = "; ".join(filter(None, [problem.detail, *problem.errors]))
        return ApiError(method, path, answer.status, title, self._mask_key(detail))

    def _held(self, model: type[_Fitting], answer: Any, method: str, path: str, what: str) -> _Fitting:
        """Hold an answer, or a part of it, to its schema.

        Raises:
            ApiError: It does not fit.
        """
        try:
            return model.model_validate(answer)
        except pydantic.ValidationError as error:
            detail = f"{what}: {answers.first_error(error)}"
            raise ApiError(method, path, 0, "an answer of another form", detail) from None

    def list_items(self, path: str, key: str, model: type[_Fitting]) -> list[_Fitting]:
        """List all items of a path: from one answer, as older servers give it, or page by page.

        Raises:
            ApiError: It was refused, or is not the whole list: an item or a page that is passed over would look as if
                it were not there, and what is not there costs nothing.
        """
        by_id: dict[str, _Fitting] = {}  # pages may overlap
        cursor, seen = "", set()
        for _ in range(PAGES):
            query = ("&" if "?" in path else "?") + urllib.parse.urlencode({"cursor": cursor}) if cursor else ""
            answer = self.request("GET", path + query)
            items = answer.get(key) if isinstance(answer, dict) else None
            if not isinstance(items, list):
                raise ApiError("GET", path, 0, "an answer of another form", f"it holds no list «{key}»")
            for number, item in enumerate(items):
                held = self._held(model, item, "GET", path, f"{key}[{number}]")
                by_id[held.id] = held  # type: ignore[attr-defined]
            page = self._held(answers.Pagination, answer.get("pagination") or {}, "GET", path, "pagination")
            if not page.nextCursor:
                if page.hasNextPage:
                    raise ApiError(
                        "GET", path, 0, "an answer of another form", "there is more, and it does not say where"
                    )
                return list(by_id.values())
            if not page.hasNextPage:
                detail = "it names a next page, and does not say that there is one"
                raise ApiError("GET", path, 0, "an answer of another form", detail)
            cursor = page.nextCursor
            if cursor in seen:
                raise ApiError("GET", path, 0, "an answer of another form", "its pages go in a circle")
            seen.add(cursor)
        raise ApiError("GET", path, 0, "an answer of another form", f"it has more than {PAGES} pages")

    def list_pods(self) -> list[dict[str, Any]]:
        """List all pods of the account that are not gone, without their environment."""
        pods = self.list_items("/v2/pods", "pods", answers.Pod)
        return [pod.shown() for pod in pods if pod.status != "TERMINATED"]

    def get_pod(self, pod_id: str) -> Optional[dict[str, Any]]:
        """Return a pod without its environment; None when it is gone."""
        path = f"/v2/pods/{urllib.parse.quote(pod_id, safe='')}"
        try:
            answer = self.request("GET", path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        pod = self._held(answers.Pod, answer, "GET", path, "the pod")
        if pod.id != pod_id:
            raise ApiError("GET", path, 0, "an answer of another form", "it is another pod")
        return None if pod.status == "TERMINATED" else pod.shown()

    def create_pod(self, order: dict[str, Any]) -> dict[str, Any]:
        """Order a pod; what it costs begins here.

        Args:
            order: What RunPod's API takes.

        Returns:
            The pod without its environment.

        Raises:
            ApiError: With ``unclear``, when a pod may have been made all the same: look it up by its name.
        """
        return self._held(answers.Pod, self.request("POST", "/v2/pods", order), "POST", "/v2/pods", "the pod").shown()

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
        for line in re.split(r"\r\n|\n|\r", text):  # as server-sent events end; U+2028 is part of a line
            if line.startswith("data:"):
                try:
                    lines.append(answers.LogEvent.model_validate(json.loads(line[5:])).line)
                except (ValueError, RecursionError):
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
        path = f"/v2/catalog/gpus?{urllib.parse.urlencode(query)}"
        return [gpu.shown() for gpu in self.list_items(path, "gpus", answers.GpuType)]

    def get_volume(self, volume_id: str) -> dict[str, Any]:
        """Return a network volume."""
        path = f"/v2/network-volumes/{urllib.parse.quote(volume_id, safe='')}"
        return self._held(answers.Volume, self.request("GET", path), "GET", path, "the volume").shown()

    def billed_usd(self, pod_id: str) -> Optional[float]:
        """Return what RunPod has billed for a pod so far, in USD; None while no bill has arrived."""
        query = urllib.parse.urlencode({"podId": pod_id, "bucketSize": "hour"})
        answer = self.request("GET", f"/v2/billing/pods?{query}")
        bills = self._held(answers.Bills, answer, "GET", "/v2/billing/pods", "the bill")
        # The filter is checked: a query parameter that a server does not know is silently ignored.
        amounts = [record.totalAmount for record in bills.records if record.podId == pod_id]
        return max(0.0, round(sum(amounts), 4)) if amounts else None


def _checked_url(url: str) -> str:
    """Return the API's address without a slash at its end.

    Raises:
        UserError: It is no such address, or the key would go over the network in clear.
    """
    wrong = f"RUNPOD_API_URL is «{ascii(url)[1:-1]}»"
    try:
        split = urllib.parse.urlsplit(url)
        host, _ = split.hostname or "", split.port
    except ValueError:
        raise UserError(f"{wrong}, which is no address. Write https:// and a host") from None
    if "@" in split.netloc:
        raise UserError("RUNPOD_API_URL holds a user or a password. Write https:// and a host alone")
    if split.scheme != "https" and not (split.scheme == "http" and is_loopback(host)):
        raise UserError(f"{wrong}: the key would go over the network in clear. Use https")
    if not answers.is_host(host) or split.query or split.fragment or not re.fullmatch(r"[!-~]+", url):
        raise UserError(f"{wrong}, which is no address. Write https:// and a host")
    return url.rstrip("/")
