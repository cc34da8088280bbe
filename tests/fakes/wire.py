"""RunPod without a network, as the client's transport: a scripted wire, an account in memory, and who orders there.

Both hold every request to RunPod's description of its API, and every answer that is not marked as wrong.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import fcntl
import hashlib
import hmac
import importlib.util
import json
import pathlib
import subprocess
import threading
import types
import urllib.parse
from typing import Any, Callable

import pytest
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.pods import runpod, ssh, watching
from ansible.module_utils.lora_forge.pods.claims import Claim, Claims
from ansible.module_utils.lora_forge.pods.lifecycle import PodManager, Progress
from ansible.module_utils.lora_forge.pods.runpod import Answer, NoAnswer, RunPod
from ansible.module_utils.lora_forge.pods.spec import PodSpec
from ansible.module_utils.testing import patch_module_args
from contract import Contract

CONTRACT = Contract.given()
KEY = "rpa_HUSH0123456789"
ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGE = f"owner/image:1@sha256:{'0' * 64}"
RUN = {"run_id": "witness-1", "rehearsal": True, "recipe": {}, "estimate": {"steps": 12, "memory_gib": 23.8}}
WANTED = PodSpec(
    host="pod-1", runs=["witness-1"], output="", gpus=["L40S", "A100"], count=1, clouds=["SECURE"],
    max_usd_per_hour=2.0, max_usd=0.0, max_hours=24.0, memory_gib=0.0, min_cuda="13.0", data_centers=[],
    request={"image": "i", "disk": 60, "ports": ["22/tcp"], "env": {"PUBLIC_KEY": "ssh-ed25519 x"}},
    estimate=lambda gpu: 1.0, order_timeout=3600.0, boot_timeout=900.0, attempts=3,
)  # fmt: skip


def answer(status: int = 200, body: Any = None, **headers: str) -> Answer:
    """Make an answer: bytes are a page of HTML, all else goes as JSON. «_» in a header's name is «-»."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    media = {"content_type": "text/html" if isinstance(body, bytes) else "application/json"} if data else {}
    return Answer(status, {name.replace("_", "-"): value for name, value in {**media, **headers}.items()}, data)


def problem(status: int, detail: str, errors: tuple[str, ...] = (), title: str = "", **headers: str) -> Answer:
    """Make an error as RunPod has it."""
    body = {"title": title or f"Title {status}", "status": status, "detail": detail}
    whole = body | ({"errors": list(errors)} if errors else {})
    return answer(status, whole, content_type="application/problem+json", **headers)


@dataclasses.dataclass(frozen=True)
class Wrong(Answer):
    """An answer that breaks RunPod's description on purpose, and why a test gives it."""

    why: str = ""


def wrong(reply: Answer, why: str) -> Wrong:
    """Mark an answer; one that is right after all is an error of the test."""
    return Wrong(reply.status, reply.headers, reply.body, why)


def hold_request(method: str, url: str, headers: dict[str, str], body: bytes | None) -> None:
    """Assert that RunPod describes a request, with all that is in it."""
    split = urllib.parse.urlsplit(url)
    query = urllib.parse.parse_qs(split.query, keep_blank_values=True)
    errors = CONTRACT.request_errors(method, split.path, query, headers, json.loads(body) if body else None)
    errors += CONTRACT.undeclared(method, split.path, query)
    assert not errors, f"RunPod does not describe this request, {method} {url}: {'; '.join(errors)}"


def hold_answer(method: str, url: str, reply: Answer) -> None:
    """Assert that RunPod describes an answer, or that it does not where a test says so."""
    media = reply.headers.get("content-type", "")
    if reply.status >= 400 and media != "application/problem+json":
        return  # not the API's own, but of what stands before it
    body = json.loads(reply.body) if media.endswith("json") else None
    errors = CONTRACT.answer_errors(method, urllib.parse.urlsplit(url).path, reply.status, media, body)
    asked = f"{method} {url}, {reply.status}"
    if isinstance(reply, Wrong):
        assert errors, f"RunPod describes this answer, and it is marked as wrong ({reply.why}): {asked}"
    else:
        assert not errors, f"RunPod does not describe this answer, {asked}: {'; '.join(errors)}"


CAPACITY = problem(400, "There are no longer any instances available with the requested specifications.")


class Wire:
    """Requests in the order in which they must come, with their answers; nothing may be left over.

    Args:
        script: ("GET /v2/pods", an answer or an error), and the body where that is looked at.
    """

    def __init__(self, *script: tuple[Any, ...]):
        self.script = list(script)
        self.slept: list[float] = []
        self.sent: list[dict[str, Any]] = []

    def __call__(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None, seconds: float, stream: bool
    ) -> Answer:
        assert url.startswith("https://api.runpod.io/")
        asked = f"{method} {url.removeprefix('https://api.runpod.io')}"
        assert self.script, f"nobody expects {asked}"
        expected, reply, *rest = self.script.pop(0)
        assert asked == expected
        assert not rest or json.loads(body or b"null") == rest[0]
        self.sent.append({"headers": headers, "body": body, "seconds": seconds, "stream": stream})
        hold_request(method, url, headers, body)
        if isinstance(reply, Exception):
            raise reply
        hold_answer(method, url, reply)
        return reply

    def __enter__(self) -> Wire:
        self.api = RunPod(KEY, transport=self, sleep=self.slept.append)
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        assert kind or not self.script, f"never asked: {self.script}"


class Clock:
    """A time that goes on only by sleeping, and what happens meanwhile."""

    def __init__(self) -> None:
        self.time = 1_764_000_000.0
        self.plans: list[tuple[float, Callable[[], Any]]] = []

    def now(self) -> float:
        return self.time

    def later(self, seconds: float, happens: Callable[[], Any]) -> None:
        """Let something happen so many seconds from now, while somebody sleeps."""
        self.plans.append((self.time + seconds, happens))

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        until = self.time + seconds
        due = sorted((plan for plan in self.plans if plan[0] <= until), key=lambda plan: plan[0])
        self.plans = [plan for plan in self.plans if plan[0] > until]
        for self.time, happens in due:
            happens()
        self.time = until


class Rivals:
    """Two threads that want one file lock: who has it goes on only once the other one wants it too.

    Args:
        monkeypatch: To see who asks for a lock.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.came: set[int] = set()
        self.both = threading.Event()
        lock = fcntl.flock

        def flock(file: Any, operation: int) -> None:
            self.here()
            lock(file, operation)

        monkeypatch.setattr("fcntl.flock", flock)

    def here(self) -> None:
        """Say that this thread has come as far as the lock, or further where there is none."""
        self.came.add(threading.get_ident())
        if len(self.came) == 2:
            self.both.set()

    def meet(self) -> None:
        """Wait until both are there."""
        self.here()
        assert self.both.wait(600), "the other one never came"


def gpu(name: str, secure: float = 0.0, community: float = 0.0, memory: int = 48, **changes: Any) -> dict[str, Any]:
    """Make an entry of RunPod's catalogue."""
    return {
        "id": f"NVIDIA {name}", "name": name, "pool": None, "manufacturer": "NVIDIA", "memory": memory,
        "secure": secure > 0, "community": community > 0, "price": {"secure": secure, "community": community},
        "maxCount": {"secure": 8, "community": 4}, "availability": "HIGH",
        "dataCenters": [{"id": "EU-RO-1", "name": "Romania", "availability": "LOW"}], **changes,
    }  # fmt: skip


def pod_shown(pod_id: str, **changes: Any) -> dict[str, Any]:
    """Make a pod as the API shows it: it runs, and its port is not mapped yet."""
    return {
        "id": pod_id, "name": pod_id, "status": "RUNNING", "actions": [], "image": "i", "args": "", "disk": 60,
        "mounts": {}, "ports": ["22/tcp"], "env": {}, "registry": None, "cloud": "SECURE", "dataCenterId": "EU-RO-1",
        "cudaVersion": "13.0", "template": None, "locked": False, "runtime": None,
        "ssh": {"proxy": None, "direct": None}, "gpu": {"id": "NVIDIA L40S", "count": 1}, "cost": 0.5,
        "createdAt": "2025-11-24T16:00:00Z", "startedAt": None, "globalNetworking": {"enabled": False}, **changes,
    }  # fmt: skip


def volume_shown(volume_id: str) -> dict[str, Any]:
    """Make a network volume as the API shows it."""
    return {"id": volume_id, "name": "v", "size": 100, "dataCenter": "EU-RO-1", "type": "STANDARD"}


def bills_shown(*bills: tuple[str, float]) -> dict[str, Any]:
    """Make what the API says of bills: a pod and USD each, for an hour."""
    times = {"startTime": "2025-11-24T16:00:00Z", "endTime": "2025-11-24T17:00:00Z"}

    def amounts(usd: float) -> dict[str, float]:
        return {"totalAmount": usd, "gpuAmount": usd, "cpuAmount": 0, "diskAmount": 0}

    records = [{**times, "podId": pod_id, **amounts(usd)} for pod_id, usd in bills]
    metadata = {
        "query": {**times, "bucketSize": "hour", "podId": None}, "recordCount": len(bills),
        "uniquePodCount": len({pod_id for pod_id, _ in bills}), "totals": amounts(sum(usd for _, usd in bills)),
    }  # fmt: skip
    return {"records": records, "metadata": metadata}


class Cloud:
    """An account in memory.

    Attributes:
        gpus: The catalogue.
        fate: What becomes of the next orders, one after the other: an Answer refuses it, «lost» makes the pod and
            drops the answer, an Exception is raised; a dict is laid over the pod that is made.
        faults: ("GET /v2/pods", an Answer or an Exception), taken before anything else, in this order.
        boot: Seconds from an order until the pod runs and has its port.
        lag: Seconds from an order until lists hold the pod.
        machines: The addresses of the next pods, one after the other; then new ones.
        asked: Every request, without its query.
        orders: The body of every order.
        bills: A pod and USD each.
        on_order: Called with an order's body before anything becomes of it.
    """

    def __init__(self, clock: Clock, *gpus: dict[str, Any]):
        self.clock, self.gpus = clock, list(gpus) or [gpu("L40S", 0.86, 0.79), gpu("A100", 1.64, memory=80)]
        self.made: list[dict[str, Any]] = []
        self.fate: list[Any] = []
        self.faults: list[tuple[str, Any]] = []
        self.boot, self.lag = 10.0, 0.0
        self.machines: list[str] = []
        self.asked: list[str] = []
        self.orders: list[dict[str, Any]] = []
        self.on_order: Callable[[dict[str, Any]], None] = lambda body: None
        self.volumes = {"vol1": volume_shown("vol1")}
        self.bills: list[tuple[str, float]] = []

    def client(self) -> RunPod:
        return RunPod(KEY, transport=self, sleep=self.clock.sleep)

    @property
    def live(self) -> list[dict[str, Any]]:
        """What is rented, listed or not."""
        return [pod for pod in self.made if pod["status"] != "TERMINATED"]

    def count(self, asked: str) -> int:
        return self.asked.count(asked)

    def __call__(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None, seconds: float, stream: bool
    ) -> Answer:
        assert headers["Authorization"] == f"Bearer {KEY}"
        hold_request(method, url, headers, body)
        reply = self.reply(method, url, body)
        hold_answer(method, url, reply)
        return reply

    def reply(self, method: str, url: str, body: bytes | None) -> Answer:
        split = urllib.parse.urlsplit(url)
        asked, query = f"{method} {split.path}", dict(urllib.parse.parse_qsl(split.query))
        self.asked.append(asked)
        for fault in self.faults:
            if fault[0] == asked:
                self.faults.remove(fault)
                return told(fault[1])
        if asked == "POST /v2/pods":
            return self.create(json.loads(body or b""))
        if asked == "GET /v2/pods":
            listed = [pod for pod in self.live if self.clock.now() - pod["born"] >= self.lag]
            return answer(200, {"pods": [self.view(pod) for pod in listed]})
        if asked == "GET /v2/catalog/gpus":
            assert (query["include"], query["product"]) == ("AVAILABILITY", "POD")
            return answer(200, {"gpus": self.gpus})
        if asked == "GET /v2/billing/pods":
            return answer(200, bills_shown(*self.bills))
        if asked.startswith("GET /v2/network-volumes/"):
            volume = self.volumes.get(split.path.rpartition("/")[2])
            return answer(200, volume) if volume else problem(404, "volume not found")
        pod = next((one for one in self.live if one["id"] == split.path.split("/")[3]), None)
        if not pod:
            return problem(404, "pod not found")
        if asked == f"GET /v2/pods/{pod['id']}":
            return answer(200, self.view(pod))
        if method == "DELETE":
            pod["status"] = "TERMINATED"
            return answer(204)
        if split.path.endswith("/logs"):
            shown = shown_key(host_key(pod), pod["env"].get("LORA_FORGE_LOG_KEY", ""))
            line = {"source": "container", "line": shown, "ts": ""}
            return answer(200, f"id: 1\ndata: {json.dumps(line)}\n\n".encode(), content_type="text/event-stream")
        assert (method, json.loads(body or b"")) == ("POST", {"action": "stop"})
        pod["status"] = "EXITED"
        return answer(200, self.view(pod))

    def create(self, body: dict[str, Any]) -> Answer:
        self.orders.append(body)
        self.on_order(body)
        fate = self.fate.pop(0) if self.fate else {}
        if isinstance(fate, (Answer, BaseException)):
            return told(fate)
        pod = self.add(body["name"], body, **(fate if isinstance(fate, dict) else {}))
        return told(NoAnswer("connection reset by peer") if fate == "lost" else answer(201, self.view(pod)))

    def add(self, name: str, body: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        """Make a pod; by hand, or as an order asks for it."""
        body = body or {"gpu": {"id": self.gpus[0]["id"], "count": 1}, "cloud": "SECURE", "env": {}}
        entry = next(one for one in self.gpus if one["id"] == body["gpu"]["id"])
        price = round(entry["price"][body["cloud"].lower()] * body["gpu"]["count"], 4)
        number = len(self.made) + 1
        pod = {
            "id": f"pod{number}", "name": name, "born": self.clock.now(), "status": "", "price": price,
            "host": self.machines.pop(0) if self.machines else f"195.26.233.{number}", "port": 30000 + number,
            "env": {**body["env"], "RUNPOD_API_KEY": "rpa_OF_THE_POD"}, "cloud": body["cloud"],
            "gpu": {"id": body["gpu"]["id"], "count": body["gpu"]["count"]},
            **changes,
        }  # fmt: skip
        self.made.append(pod)
        return pod

    def view(self, pod: dict[str, Any]) -> dict[str, Any]:
        """Return a pod as the API shows it."""
        status = pod["status"] or ("RUNNING" if self.clock.now() - pod["born"] >= self.boot else "PROVISIONING")
        direct = {"host": pod["host"], "port": pod["port"], "username": "root", "command": "ssh …"}
        born = datetime.datetime.fromtimestamp(pod["born"], datetime.timezone.utc)
        return pod_shown(
            pod["id"], name=pod["name"], status=status, mounts=pod.get("mounts", {}), env=pod["env"],
            cloud=pod["cloud"], gpu=pod["gpu"], createdAt=born.isoformat().replace("+00:00", "Z"),
            ssh={"proxy": None, "direct": direct if status == "RUNNING" else None},
            cost=pod["price"] if status in ("RUNNING", "PROVISIONING", "STARTING") else 0.0,
        )  # fmt: skip


def told(reply: Answer | BaseException) -> Answer:
    if isinstance(reply, BaseException):
        raise reply
    return reply


def host_key(pod: dict[str, Any]) -> str:
    """Return a host key of a pod, as good as a real one for all that looks at fingerprints."""
    return "ssh-ed25519 " + base64.b64encode(f"host key of {pod['id']}".encode()).decode()


def shown_key(key: str, log_key: str) -> str:
    """Return the line with which a pod's leash shows a host key."""
    shown = f"{ssh.fingerprint(key)} ({key.split()[0]})"
    seal = hmac.new(log_key.encode(), shown.encode(), hashlib.sha256).hexdigest()
    return f"lora-forge host key {shown} {seal}"


class Rig:
    """A controller with an account in memory; after every step, nothing may be rented that no open claim knows."""

    def __init__(self, folder: pathlib.Path):
        self.clock = Clock()
        self.cloud = Cloud(self.clock)
        self.cloud.on_order = self.look_at_order
        self.claims = Claims(folder / "pods")
        self.wanted = WANTED
        self.shut: Callable[[dict[str, Any]], str | None] = lambda pod: None
        self.told: list[str] = []  # what a user reads of it, line by line
        self.restart()

    def restart(self) -> None:
        """Start as another process, which knows what lies on disk."""
        closed = lambda pod, claim: self.shut(pod)  # noqa: E731
        clock = watching.Clock(self.clock.now, self.clock.sleep, self.clock.now)
        self.manager = PodManager(self.cloud.client(), self.claims, closed, clock)

    def release(self, claim: Claim, why: str, bad: bool = False) -> bool:
        return self.manager.releaser.release(claim, why, bad)

    def look_at_order(self, body: dict[str, Any]) -> None:
        claim = json.loads(self.claims.path_of(body["name"]).read_text())
        assert (claim["state"], claim["asked_at"], claim["released_at"]) == ("asked", self.clock.now(), None)
        leash = {"LORA_FORGE_DEADLINE": str(claim["deadline"]), "LORA_FORGE_ALLOWANCE": str(claim["allowance_s"])}
        leash["LORA_FORGE_LOG_KEY"] = self.wanted.log_key(body["name"])
        assert body["env"] == {**self.wanted.request["env"], **leash}
        hours = (claim["deadline"] - claim["asked_at"]) / 3600
        assert hours <= self.wanted.max_hours + 0.001
        spent = self.claims.spent_on(self.wanted.runs, self.clock.now(), claim["name"])
        assert not self.wanted.max_usd or spent + hours * claim["usd_per_hour"] <= self.wanted.max_usd + 0.001

    def check(self) -> None:
        opened = {claim.name for claim in self.claims.list_all() if not claim.released_at}
        assert {pod["name"] for pod in self.cloud.live} <= opened, "rented, and not claimed"
        assert not any(KEY in path.read_text() for path in self.claims.folder.rglob("*") if path.is_file())

    def advance(self, seconds: float) -> Progress:
        """Act as the action plugin does: one process after the other, each until there is something new to tell."""
        until, notes, message = self.clock.now() + seconds, [], ""
        while True:
            self.restart()
            progress = self.manager.advance(self.wanted, until - self.clock.now(), message)
            self.check()
            if progress.message != message:
                self.told.append(progress.message)
            notes, message = notes + progress.notes, progress.message
            if progress.phase == "ready" or self.clock.now() >= until:
                return dataclasses.replace(progress, notes=notes)

    def go(self, seconds: float = 0.0, **changes: Any) -> Progress:
        """Go on for so long at most, or until it is ready."""
        self.wanted = dataclasses.replace(self.wanted, **changes)
        progress = self.advance(seconds)
        assert KEY not in repr(progress)
        assert "env" not in (progress.pod or {})
        return progress

    def fails(self, seconds: float = 0.0, left: int = 0, **changes: Any) -> str:
        """Go on and fail; return the sentence. ``left`` pods are still rented then."""
        self.wanted = dataclasses.replace(self.wanted, **changes)
        with pytest.raises(UserError) as caught:
            self.advance(seconds)
        self.check()
        assert len(self.cloud.live) == left
        assert KEY not in str(caught.value)
        return str(caught.value)

    def ready(self, **changes: Any) -> Progress:
        progress = self.go(60, **changes)
        assert progress.phase == "ready"
        return progress

    @property
    def orders(self) -> list[str]:
        return [order["gpu"]["id"].removeprefix("NVIDIA ") for order in self.cloud.orders]

    @property
    def ids(self) -> list[str]:
        return [pod["id"] for pod in self.cloud.live]


def load(name: str) -> Any:
    """Load a module or plugin of the checkout, as «library/runpod_pod»."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), ROOT / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Desk(Rig):
    """A controller whose modules find the account in memory behind their own transport."""

    def __init__(self, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
        super().__init__(folder)
        self.capsys, self.state_dir = capsys, folder / "pods"
        self.cloud.on_order = lambda body: None
        monkeypatch.setattr(runpod.RunPod.__init__, "__defaults__", ("", self.cloud, self.clock.sleep))
        times = (self.clock.now, self.clock.sleep, self.clock.now)
        monkeypatch.setattr(watching.Clock.__init__, "__defaults__", times)
        monkeypatch.setattr(ssh.SshAccess.__init__, "__defaults__", (self.program,))
        monkeypatch.setenv("RUNPOD_API_KEY", KEY)
        monkeypatch.setenv("HOME", str(folder))
        for name in ("RUNPOD_API_URL", "LORA_FORGE_PODS", "LORA_FORGE_OWNER"):
            monkeypatch.delenv(name, raising=False)

    def program(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        pod = next((pod for pod in self.cloud.live if str(pod["port"]) in command), None)
        out = f"h {host_key(pod)}\n" if pod and command[0] == "ssh-keyscan" else ""
        return subprocess.CompletedProcess(command, 0 if pod else 255, out, "")

    def call(self, name: str = "runpod_pod", check: bool = False, **given: Any) -> dict[str, Any]:
        module = load(f"library/{name}")
        if hasattr(module, "time"):
            module.time = types.SimpleNamespace(time=self.clock.now)
        given = {"state_dir": str(self.state_dir), **given} if "state_dir" in module.ARGUMENTS else given
        self.capsys.readouterr()
        with patch_module_args({"_ansible_check_mode": check, **given}), pytest.raises(SystemExit):
            module.main()
        printed = self.capsys.readouterr().out
        assert KEY not in printed
        answer = json.loads(printed)
        answer.pop("invocation", None)
        return answer

    def pod(self, check: bool = False, **given: Any) -> dict[str, Any]:
        """Have a pod, as the action plugin does."""
        wanted = {
            "host": "pod-1", "gpus": ["L40S"], "max_usd_per_hour": 2, "image": IMAGE, "runs": [RUN],
            "leash": str(ROOT / "roles/pod/files/leash.py"), "root": "/workspace/lora-forge",
        }  # fmt: skip
        changed, message = False, ""
        for _ in range(9):
            answer = self.call(check=check, **{**wanted, "since": message, **given})
            changed, message = changed or answer.get("changed", False), answer.get("message", "")
            if answer.get("phase") not in ("waiting", "ordering", "booting"):
                return answer | {"changed": changed}
        raise AssertionError(message)

    def leave(self, check: bool = False, **given: Any) -> dict[str, Any]:
        return self.call(check=check, **{"host": "pod-1", "state": "absent", **given})
