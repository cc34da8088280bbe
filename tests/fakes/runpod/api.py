"""RunPod's REST API v2 and, below /sim/, what tests do to it: requests in, answers out, no sockets."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime
import http
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cloud import BILL_FACTOR, Cloud, bucket, iso, records
from containers import LogLine
from contract import Contract, Problem
from faults import NO_CAPACITY, Faults

JSON, PROBLEM, HTML, EVENTS = "application/json", "application/problem+json", "text/html", "text/event-stream"
QUOTA = {"minute": (60, 60), "hour": (3000, 3600), "day": (50000, 86400)}  # requests, seconds
TAIL = 100  # lines of a log
PAGE = 100  # entries of a list, when it is paged without limit
DAYS = 30  # of billing, without startTime
EVENT_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@dataclasses.dataclass
class Request:
    """What came in; ``target`` is path and query as sent, ``gone`` tells whether the client has hung up."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""
    gone: Callable[[], bool] = lambda: False

    @property
    def path(self) -> str:
        """Without the query, still quoted."""
        return urllib.parse.urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        """The values of each parameter."""
        return urllib.parse.parse_qs(urllib.parse.urlsplit(self.target).query, keep_blank_values=True)

    def last(self, name: str) -> str | None:
        """Return the last value of a query parameter."""
        values = self.query.get(name)
        return values[-1] if values else None

    def json(self) -> Any:
        """Return the body, None when there is none.

        Raises:
            Problem: 400, it is not JSON.
        """
        try:
            return json.loads(self.body) if self.body else None
        except ValueError as error:
            raise Problem(400, f"the body is not JSON: {error}") from None


@dataclasses.dataclass
class Answer:
    """What goes out; ``drop`` closes the connection without an answer, ``late`` is how many seconds it waits."""

    status: int
    body: Any = None
    media: str = JSON
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    stream: Iterator[bytes] | None = None
    drop: bool = False
    late: float = 0.0

    def content(self) -> bytes:
        """Return the body's bytes; nothing of a stream."""
        if self.body is None:
            return b""
        return self.body.encode() if self.media == HTML else json.dumps(self.body).encode()


@dataclasses.dataclass(frozen=True)
class Caller:
    """Whose key a request had: account, pod, none or bad."""

    kind: str
    pod: str | None = None


class Edge(Exception):
    """An answer from in front of the API, which knows nothing of its contract.

    Args:
        status: The HTTP status.
        headers: More headers.
    """

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        title = f"{status} {http.HTTPStatus(status).phrase}"
        self.answer = Answer(
            status, f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\n", HTML
        )
        self.answer.headers = headers or {}


class Api:
    """The API.

    Args:
        cloud: Where its pods are.
        faults: What goes wrong.
        key: The account's.
        contract: What every request and answer is held to.
    """

    def __init__(self, cloud: Cloud, faults: Faults, key: str, contract: Contract) -> None:
        self.cloud, self.faults, self.key, self.contract = cloud, faults, key, contract
        self.lock = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.violations: list[str] = []  # requests and answers that break the contract
        self.routes: list[tuple[str, str, Callable[..., Answer]]] = [
            ("GET", "/v2/pods", self.list_pods),
            ("POST", "/v2/pods", self.create_pod),
            ("GET", "/v2/pods/{}", self.get_pod),
            ("PATCH", "/v2/pods/{}", self.patch_pod),
            ("DELETE", "/v2/pods/{}", self.delete_pod),
            ("POST", "/v2/pods/{}/action", self.act),
            ("GET", "/v2/pods/{}/logs", self.logs),
            ("GET", "/v2/catalog/gpus", self.list_gpus),
            ("GET", "/v2/catalog/gpus/{}", self.get_gpu),
            ("GET", "/v2/catalog/datacenters", self.list_data_centers),
            ("GET", "/v2/network-volumes", self.list_volumes),
            ("GET", "/v2/network-volumes/{}", self.get_volume),
            ("GET", "/v2/billing/pods", self.billing),
        ]
        self.controls: list[tuple[str, str, Callable[..., Answer]]] = [
            ("GET", "/sim/state", self.sim_state),
            ("GET", "/sim/faults", self.sim_faults),
            ("POST", "/sim/faults", self.sim_order_faults),
            ("DELETE", "/sim/faults", self.sim_reset_faults),
            ("POST", "/sim/pods/{}/do", self.sim_do),
            ("POST", "/sim/billing", self.sim_billing),
            ("POST", "/sim/stock", self.sim_stock),
            ("POST", "/sim/volumes", self.sim_volumes),
        ]

    # From request to answer

    def answer(self, request: Request) -> Answer:
        """Answer a request, whatever it is, and note it unless it is a test's."""
        if request.path.startswith("/sim/"):
            return self._control(request)
        came, caller = time.time(), self._caller(request)
        facts = {"method": request.method, "path_contains": request.target}
        try:
            self._edge(request, facts)
            answer = self._served(request, caller, facts)
        except Edge as edge:
            answer = edge.answer
        except Problem as problem:
            answer = Answer(problem.status, problem.body, PROBLEM, problem.headers)
        except Exception as error:  # of the simulator's own; a test that sees it must fail
            answer = self._violated(request, [repr(error)])
        if answer.media != HTML:  # of the edge
            answer = self._held_to_contract(request, answer)
            if caller.kind in ("account", "pod"):
                answer.headers |= self._quota(came)
        answer.late = self.faults.number("slow", 0, **facts)
        answer.drop = self.faults.take("drop_answer", **facts) is not None
        note = {"method": request.method, "path": request.target, "status": 0 if answer.drop else answer.status}
        note |= {"agent": request.headers.get("User-Agent", ""), "key": caller.kind, "time": came}
        with self.lock:
            self.requests.append(note)
        return answer

    def _edge(self, request: Request, facts: dict[str, str]) -> None:
        """Refuse urllib's own name, as what stands before the API does."""
        agent = request.headers.get("User-Agent", "")
        if not agent or agent.startswith("Python-urllib"):
            raise Edge(403)
        if (fault := self.faults.take("html_error", **facts)) is not None:
            raise Edge(int(fault["status"]))
        if (fault := self.faults.take("refuse", **facts)) is not None:
            headers = {"Retry-After": str(fault["retry_after"])} if "retry_after" in fault else {}
            if fault.get("html"):
                raise Edge(int(fault["status"]), headers)
            raise Problem(int(fault["status"]), fault.get("text", "refused by order"), headers=headers)

    def _served(self, request: Request, caller: Caller, facts: dict[str, str]) -> Answer:
        """Find who serves a request, hold it to the contract, and have it served."""
        if not request.path.startswith("/v2/"):
            raise Problem(410, "this API has been retired; use /v2")
        if caller.kind in ("none", "bad"):
            detail = "missing bearer token" if caller.kind == "none" else "invalid API key"
            raise Problem(401, detail)
        self._check_rate()
        handler, words = _route(self.routes, request)
        if caller.kind == "pod":
            self._check_scope(request, caller, handler)
        body = request.json()
        method, path, query = request.method, request.path, request.query
        if errors := self.contract.request_errors(method, path, query, request.headers, body):
            self._note(request, errors)
            raise Problem(422, "Request validation failed.", errors)
        if ignored := self.contract.undeclared(method, path, query):
            self._note(request, ignored)
        return handler(request, caller, *words)

    def _caller(self, request: Request) -> Caller:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            return Caller("none")
        if key.strip() == self.key:
            return Caller("account")
        owner = self.cloud.owner(key.strip())
        return Caller("pod", owner) if owner else Caller("bad")

    def _check_scope(self, request: Request, caller: Caller, handler: Callable[..., Answer]) -> None:
        """Let a pod's own key look at that pod and end it, and do nothing else."""
        own = request.path.split("/")[3:4] == [caller.pod]
        if not own or handler not in (self.get_pod, self.delete_pod, self.act):
            raise Problem(403, "access denied")
        if handler != self.get_pod and (fault := self.faults.take("self_termination_refused")):
            raise Problem(int(fault.get("status", 403)), "access denied")

    def _check_rate(self) -> None:
        fault = self.faults.take("rate_limit")
        if not fault:
            return
        now = time.time()
        with self.lock:
            recent = [note["time"] for note in self.requests if note["time"] > now - 60 and note["status"] != 429]
        if len(recent) >= fault["per_minute"]:
            wait = str(int(recent[-fault["per_minute"]] + 60 - now) + 1)
            raise Problem(429, "rate limit exceeded for the minute window", headers={"Retry-After": wait})

    def _quota(self, now: float) -> dict[str, str]:
        """Return the headers that tell how many requests are left."""
        with self.lock:
            times = [note["time"] for note in self.requests if note["key"] in ("account", "pod")]
        left = []
        for window, (quota, length) in QUOTA.items():
            recent = [one for one in times if one > now - length]
            wait = int(recent[0] + length - now) if recent else length
            left.append(f'"{window}";r={max(0, quota - len(recent) - 1)};t={wait}')
        policy = [f'"{window}";q={quota};w={length}' for window, (quota, length) in QUOTA.items()]
        return {"RateLimit": ", ".join(left), "RateLimit-Policy": ", ".join(policy)}

    def _held_to_contract(self, request: Request, answer: Answer) -> Answer:
        errors = self.contract.answer_errors(request.method, request.path, answer.status, answer.media, answer.body)
        return self._violated(request, errors) if errors else answer

    def _note(self, request: Request, errors: list[str]) -> str:
        words = f"{request.method} {request.path}: {'; '.join(errors)}"
        with self.lock:
            self.violations.append(words)
        return words

    def _violated(self, request: Request, errors: list[str]) -> Answer:
        words = self._note(request, errors)
        problem = Problem(500, f"the simulator breaks its contract: {words}")
        return Answer(500, problem.body, PROBLEM)

    # Pods

    def list_pods(self, request: Request, caller: Caller) -> Answer:
        """List the pods, those aside that a fault still hides."""
        return _page(request, "pods", self.cloud.listed())

    def create_pod(self, request: Request, caller: Caller) -> Answer:
        """Order a pod, unless a fault is in the way."""
        body = request.json()
        gpu = body.get("gpu", {}).get("id")
        if (fault := self.faults.take("create_status", gpu=gpu)) is not None:
            headers = {"Retry-After": str(fault["retry_after"])} if "retry_after" in fault else {}
            raise Problem(int(fault["status"]), fault.get("text", "refused by order"), headers=headers)
        if (fault := self.faults.take("no_capacity", gpu=gpu)) is not None:
            text = fault.get("text", 0)
            raise Problem(400, NO_CAPACITY[text] if isinstance(text, int) else text)
        pod = self.cloud.create(body)
        if (fault := self.faults.take("create_although", gpu=gpu)) is not None:
            raise Problem(int(fault["status"]), "upstream failure")
        return Answer(201, self.cloud.show(pod))

    def get_pod(self, request: Request, caller: Caller, pod_id: str) -> Answer:
        """Show one pod."""
        return Answer(200, self.cloud.show(self.cloud.find(pod_id)))

    def patch_pod(self, request: Request, caller: Caller, pod_id: str) -> Answer:
        """Rename a pod."""
        body = request.json() or {}
        if set(body) - {"name"}:
            raise Problem(400, "the simulator can change a pod's name only")
        pod = self.cloud.rename(pod_id, body["name"]) if body else self.cloud.find(pod_id)
        return Answer(200, self.cloud.show(pod))

    def delete_pod(self, request: Request, caller: Caller, pod_id: str) -> Answer:
        """End a pod."""
        self.cloud.end(pod_id, caller.kind)
        return Answer(204)

    def act(self, request: Request, caller: Caller, pod_id: str) -> Answer:
        """Start, stop, restart or terminate a pod."""
        action = request.json()["action"]
        pod = self.cloud.act(pod_id, action, caller.kind)
        return Answer(204) if action == "terminate" else Answer(200, self.cloud.show(pod))

    def logs(self, request: Request, caller: Caller, pod_id: str) -> Answer:
        """Stream a pod's log, from the last ``tail`` lines, ``since`` or the Last-Event-ID on."""
        self.cloud.find(pod_id)
        source, cursor = request.last("source"), request.headers.get("Last-Event-ID") or request.last("since")
        when, _, number = (cursor or "").partition("/")
        tail = int(request.last("tail") or TAIL) if cursor is None else 1_000_000

        def wanted(line: LogLine) -> bool:
            new = line.number > int(number) if number else line.time > when
            return new and source in (None, line.source)

        stream = self.cloud.follow(pod_id, tail, wanted, request.gone)
        return Answer(200, None, EVENTS, dict(EVENT_HEADERS), stream)

    # What can be ordered, and what it cost

    def list_gpus(self, request: Request, caller: Caller) -> Answer:
        """List all GPU types."""
        return _page(request, "gpus", self.cloud.catalog.list_gpus(request.query))

    def get_gpu(self, request: Request, caller: Caller, name: str) -> Answer:
        """Show one GPU type."""
        return Answer(200, self.cloud.catalog.show_gpu(name, request.query))

    def list_data_centers(self, request: Request, caller: Caller) -> Answer:
        """List the data centers."""
        return _page(request, "dataCenters", self.cloud.catalog.list_data_centers(request.query))

    def list_volumes(self, request: Request, caller: Caller) -> Answer:
        """List all network volumes."""
        return _page(request, "networkVolumes", self.cloud.catalog.list_volumes())

    def get_volume(self, request: Request, caller: Caller, name: str) -> Answer:
        """Show one network volume."""
        for volume in self.cloud.catalog.list_volumes():
            if volume["id"] == name:
                return Answer(200, volume)
        raise Problem(404, "network volume not found")

    def billing(self, request: Request, caller: Caller) -> Answer:
        """Return what :meth:`sim_billing` has let appear, in buckets."""
        size, pod = request.last("bucketSize") or "day", request.last("podId")
        first, last = _window(request, size)
        with self.cloud.lock:
            bills = {name: bill for name, bill in self.cloud.bills.items() if pod in (None, name)}
        found = records(bills, size, first, last)
        kinds = ("totalAmount", "gpuAmount", "cpuAmount", "diskAmount")
        metadata = {
            "query": {"startTime": iso(first), "endTime": iso(last), "bucketSize": size, "podId": pod},
            "recordCount": len(found),
            "uniquePodCount": len({record["podId"] for record in found}),
            "totals": {kind: sum(record[kind] for record in found) for kind in kinds},
        }
        return Answer(200, {"records": found, "metadata": metadata})

    # What tests do

    def _control(self, request: Request) -> Answer:
        try:
            handler, words = _route(self.controls, request)
            return handler(request, *words)
        except Problem as problem:
            return Answer(problem.status, problem.body, PROBLEM, problem.headers)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return Answer(400, Problem(400, f"{type(error).__name__}: {error}").body, PROBLEM)

    def state(self) -> dict[str, Any]:
        """Tell what was asked, all pods there ever were, their cost in USD, and what broke the contract.

        A request's status is 0 when its answer was dropped; times are seconds since the epoch.
        """
        pods = self.cloud.report()
        with self.lock:
            requests, violations = list(self.requests), [*self.violations, *self.cloud.troubles]
        usd = sum(pod["usd"] for pod in pods)
        return {"requests": requests, "pods": pods, "usd": usd, "violations": violations}

    def sim_state(self, request: Request) -> Answer:
        """GET /sim/state: see :meth:`state`."""
        return Answer(200, self.state())

    def sim_faults(self, request: Request) -> Answer:
        """GET /sim/faults: what is ordered, with the times that are left."""
        return Answer(200, self.faults.show())

    def sim_order_faults(self, request: Request) -> Answer:
        """POST /sim/faults {fault: parameters, a list of these, or null}: see faults.py."""
        self.faults.order(request.json())
        return Answer(200, self.faults.show())

    def sim_reset_faults(self, request: Request) -> Answer:
        """DELETE /sim/faults: nothing is wrong from now on."""
        self.faults.reset()
        return Answer(204)

    def sim_do(self, request: Request, pod_id: str) -> Answer:
        """POST /sim/pods/{id}/do {what, stale_seconds}: see :meth:`Cloud.do`."""
        body = request.json()
        self.cloud.do(pod_id, body["what"], float(body.get("stale_seconds", 3)))
        return Answer(200, {"done": body["what"]})

    def sim_billing(self, request: Request) -> Answer:
        """POST /sim/billing {pod: an id or all, factor}: see :meth:`Cloud.bill`."""
        body = request.json() or {}
        factor = float(body.get("factor", BILL_FACTOR))
        return Answer(200, {"pods": self.cloud.bill(body.get("pod", "all"), factor)})

    def sim_stock(self, request: Request) -> Answer:
        """POST /sim/stock {GPU id: changes}: see :meth:`Catalog.change_stock`."""
        self.cloud.catalog.change_stock(request.json())
        return Answer(204)

    def sim_volumes(self, request: Request) -> Answer:
        """POST /sim/volumes {volume id: changes or null}: see :meth:`Catalog.change_volumes`."""
        self.cloud.catalog.change_volumes(request.json())
        return Answer(204)


def _route(
    routes: list[tuple[str, str, Callable[..., Answer]]], request: Request
) -> tuple[Callable[..., Answer], list[str]]:
    """Find who serves a request, and the variable parts of its path, unquoted.

    Raises:
        Problem: 404, or 405 with the methods there are.
    """
    methods = []
    for method, template, handler in routes:
        match = re.fullmatch(template.replace("{}", "([^/]+)"), request.path)
        if match and method == request.method:
            return handler, [urllib.parse.unquote(word) for word in match.groups()]
        methods += [method] if match else []
    if methods:
        detail = "The requested method is not allowed for this path."
        raise Problem(405, detail, headers={"Allow": ", ".join(methods)})
    raise Problem(404, f"the simulator has no {request.path}")


def _page(request: Request, name: str, entries: list[dict[str, Any]]) -> Answer:
    """Return a list, or a page of it when limit or cursor ask for one.

    Raises:
        Problem: 400, limit or cursor are wrong.
    """
    limit, cursor = request.last("limit"), request.last("cursor")
    if limit is None and cursor is None:
        return Answer(200, {name: entries})
    try:
        start = int(base64.urlsafe_b64decode(cursor)) if cursor else 0
        count = int(limit or PAGE)
        if count < 1 or start < 0:
            raise ValueError
    except (ValueError, binascii.Error):
        raise Problem(400, "limit or cursor is invalid") from None
    end = start + count
    more = end < len(entries)
    following = base64.urlsafe_b64encode(str(end).encode()).decode() if more else None
    return Answer(200, {name: entries[start:end], "pagination": {"nextCursor": following, "hasNextPage": more}})


def _window(request: Request, size: str) -> tuple[float, float]:
    """Return the time that billing is asked for, snapped to buckets, in seconds since the epoch.

    Raises:
        Problem: 400, lastN does not go with startTime and endTime, or these are no times.
    """
    start, end, count = request.last("startTime"), request.last("endTime"), request.last("lastN")
    if count and (start or end):
        raise Problem(400, "lastN is mutually exclusive with startTime and endTime")
    try:
        last = _time(end) if end else time.time()
        first = _time(start) if start else last - DAYS * 86400
        steps = int(count or 0)
    except ValueError as error:
        raise Problem(400, str(error)) from None
    for step in range(steps):
        first = bucket((last if step == 0 else first - 1), size)
    return bucket(first, size), last


def _time(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()
