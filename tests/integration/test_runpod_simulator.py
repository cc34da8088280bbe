"""The simulator of RunPod's API, without containers: what it promises and what it does wrong when told to."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
import urllib.parse
from typing import Any

import pytest
import simulator
from ansible.module_utils.lora_forge.pods import answers, runpod
from api import PROBLEM, Answer
from lab import PATIENCE, ROOT, eventually
from wire import load

PROGRAM = ROOT / "tests" / "fakes" / "runpod" / "simulator.py"
PAGE = {"pods": [], "pagination": {"nextCursor": None, "hasNextPage": False}}
GPU = "NVIDIA GeForce RTX 4090"
ORDER = {"name": "one", "image": "runpod/pytorch:1", "gpu": {"id": GPU, "count": 1}, "ports": ["22/tcp"]}


class Client:
    """Talks to a simulator.

    Attributes:
        answers: Headers of the last answer.
    """

    def __init__(self, url: str) -> None:
        self.host = urllib.parse.urlsplit(url).netloc
        self.headers: dict[str, str] = {}

    def call(self, method: str, path: str, body: Any = None, key: str = "simulated-key", **headers: str):
        """Return status and body (parsed when it is JSON) of one request."""
        sent = {"User-Agent": "test", "Content-Type": "application/json", **headers}
        sent |= {"Authorization": f"Bearer {key}"} if key else {}
        connection = http.client.HTTPConnection(self.host, timeout=PATIENCE)
        with contextlib.closing(connection):
            text = body if isinstance(body, (str, type(None))) else json.dumps(body)
            connection.request(method, path, text, {name: value for name, value in sent.items() if value})
            answer = connection.getresponse()
            content, self.headers = answer.read(), dict(answer.headers)
        media = self.headers.get("Content-Type", "")
        return answer.status, json.loads(content) if media.endswith("json") else content.decode()

    def order(self, status: int = 201, **changes: Any) -> Any:
        """Order a pod; keys that are None are left out."""
        body = {name: value for name, value in {**ORDER, **changes}.items() if value is not None}
        got, answer = self.call("POST", "/v2/pods", body)
        assert got == status, answer
        return answer if status == 201 else answer["detail"]

    def pod(self, pod_id: str) -> dict[str, Any]:
        """Return a pod that is there."""
        status, pod = self.call("GET", f"/v2/pods/{pod_id}")
        assert status == 200, pod
        return pod

    def act(self, pod_id: str, action: str, status: int = 200) -> Any:
        """Do one action."""
        got, answer = self.call("POST", f"/v2/pods/{pod_id}/action", {"action": action})
        assert got == status, answer
        return answer

    def until(self, pod_id: str, status: str) -> dict[str, Any]:
        """Wait for a status."""
        return eventually(lambda: next((pod for pod in [self.pod(pod_id)] if pod["status"] == status), None))

    def running(self, **changes: Any) -> dict[str, Any]:
        """Order a pod, and wait until it runs."""
        return self.until(self.order(**changes)["id"], "RUNNING")

    def fault(self, **faults: Any) -> None:
        """Order faults."""
        status, answer = self.call("POST", "/sim/faults", faults, key="")
        assert status == 200, answer

    def state(self) -> dict[str, Any]:
        """Ask what the simulator knows."""
        return self.call("GET", "/sim/state", key="")[1]


class Pace(threading.Event):
    """In place of the cloud's ``closing``: what takes an hour goes on when a test says so.

    Attributes:
        on: Set for going on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        if timeout != 3600:
            return super().wait(timeout)
        while not self.on.wait(0.01) and not self.is_set():
            pass
        return self.is_set()


@pytest.fixture
def sim(tmp_path, monkeypatch):
    """Run a simulator whose time stands still."""
    now = time.time()
    for name in ("api", "cloud"):
        monkeypatch.setattr(sys.modules[name], "time", types.SimpleNamespace(time=lambda: now))
    with simulator.Simulator(tmp_path / "state", "none") as made:
        made.cloud.closing = Pace()
        yield made


@pytest.fixture
def api(sim):
    client = Client(sim.url)
    client.fault(status_delay=0.01)
    yield client
    assert client.state()["violations"] == []


@pytest.fixture
def pace(api, sim):
    """Let pods change their status when a test says so."""
    api.fault(status_delay=3600)
    return sim.cloud.closing.on


# --- who may ask, and how -------------------------------------------------------------------------------------


def test_the_key_must_be_the_accounts(api):
    assert api.call("GET", "/v2/pods", key="")[0] == 401
    status, problem = api.call("GET", "/v2/pods", key="wrong")
    assert (status, problem["title"], problem["detail"]) == (401, "Unauthorized", "invalid API key")
    assert api.headers["Content-Type"] == "application/problem+json"
    assert api.call("GET", "/v2/pods") == (200, {"pods": []})
    assert [(request["key"], request["status"]) for request in api.state()["requests"]] == [
        ("none", 401), ("bad", 401), ("account", 200),
    ]  # fmt: skip


@pytest.mark.parametrize("agent", ["", "Python-urllib/3.11"])
def test_the_edge_refuses_urllib(api, agent):
    status, page = api.call("GET", "/v2/pods", **{"User-Agent": agent})
    assert status == 403
    assert page.startswith("<html>")


def test_older_apis_are_gone_and_others_are_not_there(api):
    assert api.call("GET", "/v1/pods")[0] == 410
    assert api.call("POST", "/graphql", {})[0] == 410
    assert api.call("GET", "/v2/serverless")[0] == 404
    assert api.call("PUT", "/v2/pods", {})[0] == 405
    assert api.headers["Allow"] == "GET, POST"


def test_answers_tell_what_is_left_of_the_quota(api):
    api.call("GET", "/v2/pods")
    api.call("GET", "/v2/pods")
    assert re.match(r'"minute";r=58;t=\d+, "hour";r=2998;t=\d+, "day";r=49998;t=\d+$', api.headers["RateLimit"])
    assert api.headers["RateLimit-Policy"].startswith('"minute";q=60;w=60, ')


def test_a_pods_own_key_is_for_itself(api, sim):
    one, other = api.running(), api.running()
    key = sim.cloud.pods[one["id"]].key
    assert api.call("GET", f"/v2/pods/{one['id']}", key=key)[0] == 200
    for method, path in [("GET", "/v2/pods"), ("GET", f"/v2/pods/{other['id']}"), ("DELETE", f"/v2/pods/{other['id']}"),
                         ("GET", f"/v2/pods/{one['id']}/logs"), ("GET", "/v2/catalog/gpus")]:  # fmt: skip
        assert api.call(method, path, key=key)[0] == 403, path
    api.fault(self_termination_refused={"status": 401, "times": 1})
    path = f"/v2/pods/{one['id']}/action"
    assert api.call("POST", path, {"action": "terminate"}, key=key)[0] == 401
    assert api.call("POST", path, {"action": "terminate"}, key=key) == (204, "")
    assert api.call("GET", f"/v2/pods/{one['id']}")[0] == 404
    assert [pod["ended_by"] for pod in api.state()["pods"]] == ["pod", None]


# --- ordering -------------------------------------------------------------------------------------------------


def test_a_pod_comes_up(api, pace):
    pod = api.order(env={"TOKEN": "clear"}, args="bash -c 'x'", mounts={"persistent": {"size": 10, "path": "/data"}})
    assert (pod["status"], pod["actions"]) == ("PROVISIONING", ["stop", "terminate"])
    assert (pod["ssh"], pod["runtime"], pod["startedAt"]) == ({"proxy": None, "direct": None}, None, None)
    assert (pod["env"], pod["args"], pod["cost"]) == ({"TOKEN": "clear"}, "bash -c 'x'", 0.69)
    pace.set()
    pod = api.until(pod["id"], "RUNNING")
    direct = pod["ssh"]["direct"]
    assert (direct["host"], direct["username"]) == ("127.0.0.10", "root")
    assert direct["command"] == f"ssh root@127.0.0.10 -p {direct['port']}"
    assert pod["ssh"]["proxy"]["host"] == "ssh.runpod.io"
    assert pod["runtime"]["ports"] == [{"private": 22, "public": direct["port"], "type": "tcp", "ip": "127.0.0.10"}]
    assert pod["cudaVersion"] == "13.0"


def test_without_the_port_there_is_no_ssh(api):
    assert api.running(ports=["8888/http"])["ssh"]["direct"] is None


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"cpu": {"id": "cpu5c", "vcpuCount": 4}}, 422, "validation"),
        ({"gpu": None}, 422, "validation"),
        ({"gpu": {"id": GPU}}, 400, "no longer any instances available"),
        ({"gpu": {"id": "Voodoo", "count": 1}}, 400, "unknown GPU type Voodoo"),
        ({"gpu": {"id": GPU, "count": 9}}, 400, "no longer any instances available"),
        ({"gpu": {"id": "NVIDIA H200", "count": 1}, "cloud": "COMMUNITY"}, 400, "no longer any instances"),
        ({"gpu": {"id": GPU, "count": 1, "minCudaVersion": "13.1"}}, 400, "no longer any instances available"),
        (
            {"gpu": {"id": GPU, "count": 1, "minCudaVersion": "12.8", "allowedCudaVersions": ["13.0"]}},
            400,
            "mutually exclusive",
        ),
        ({"env": {f"N{number}": "" for number in range(51)}}, 400, "at most 50"),
        ({"mounts": {"network": [{"volumeId": "no", "path": "/x"}]}}, 400, "network volume no not found"),
        (
            {"mounts": {"network": [{"volumeId": "vol-eu", "path": "/x"}], "persistent": {"size": 10, "path": "/y"}}},
            400,
            "mutually exclusive",
        ),
        (
            {"mounts": {"network": [{"volumeId": "vol-eu", "path": "/x"}]}, "dataCenterIds": ["US-TX-3"]},
            400,
            "vol-eu is not in US-TX-3",
        ),
        ({"gpu": {"id": "NVIDIA H100 NVL", "count": 1}, "dataCenterIds": ["US-TX-3"]}, 400, "no longer any instances"),
        ({"dataCenterIds": ["MARS-1"]}, 400, "unknown data center MARS-1"),
        ({"templateId": "30zmvf89kd"}, 404, "template not found"),
    ],
)
def test_rules_of_an_order(api, changes, status, words):
    assert words in api.order(status, **changes)
    assert api.state()["pods"] == []


def test_an_order_goes_where_it_must(api):
    volume = {"mounts": {"network": [{"volumeId": "vol-eu", "path": "/workspace"}]}}
    assert api.order(**volume)["dataCenterId"] == "EU-RO-1"
    assert api.order(dataCenterIds=["US-KS-2", "EU-RO-1"])["dataCenterId"] == "US-KS-2"
    gpu = {"id": GPU, "count": 2, "allowedCudaVersions": [], "minCudaVersion": "12.8"}
    two = api.running(gpu=gpu, cloud="COMMUNITY")
    assert (two["cost"], two["gpu"]) == (0.68, {"id": GPU, "count": 2})
    cpu = api.running(gpu=None, cpu={"id": "cpu5c", "vcpuCount": 4})
    assert (cpu["cpu"]["memory"], cpu["cudaVersion"]) == (8, None)
    assert "gpu" not in cpu


def test_machines_take_turns(api):
    addresses = [api.running()["ssh"]["direct"]["host"] for _ in range(4)]
    assert addresses == ["127.0.0.10", "127.0.0.11", "127.0.0.12", "127.0.0.10"]
    api.fault(machines={"count": 1})
    assert {api.running()["ssh"]["direct"]["host"] for _ in range(2)} == {"127.0.0.10"}


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        ({**ORDER, "bogus": 1}, "bogus"),
        ({**ORDER, "name": None}, "name"),
        ({"image": "x", "gpu": ORDER["gpu"]}, "'name' is a required property"),
        ({"name": "x", "gpu": ORDER["gpu"]}, "'image' is a required property"),
        ({**ORDER, "gpu": {"count": 1}}, "'id' is a required property"),
        ({**ORDER, "env": {"A": 1}}, "$.env.A: "),
        ({**ORDER, "ports": [22]}, "$.ports[0]: "),
        ({**ORDER, "mounts": {"persistent": {"size": 9, "path": "/x"}}}, "$.mounts.persistent"),
    ],
)
def test_a_body_that_breaks_the_contract(sim, body, errors):
    client = Client(sim.url)
    status, problem = client.call("POST", "/v2/pods", body)
    assert (status, problem["title"]) == (422, http.HTTPStatus(422).phrase)  # its words changed with Python 3.13
    assert errors in "\n".join(problem["errors"])
    assert client.state()["violations"] == [f"POST /v2/pods: {'; '.join(problem['errors'])}"]


def test_the_contract_holds_requests(sim):
    api = Client(sim.url)

    def errors(*words: Any, **headers: str) -> str:
        status, problem = api.call(*words, **headers)
        assert status == 422, problem
        return "\n".join(problem["errors"])

    pod = api.order()["id"]
    assert "unevaluated" in errors("POST", "/v2/pods", {**ORDER, "gpu": {**ORDER["gpu"], "speed": 9}}).lower()
    assert "header.Content-Type" in errors("POST", "/v2/pods", ORDER, **{"Content-Type": "text/plain"})
    assert "query.tail" in errors("GET", f"/v2/pods/{pod}/logs?tail=5001")
    assert "query.source: 'kernel'" in errors("GET", f"/v2/pods/{pod}/logs?source=kernel")
    assert "query.since" in errors("GET", f"/v2/pods/{pod}/logs?since=yesterday")
    assert "query.count" in errors("GET", "/v2/catalog/gpus?include=AVAILABILITY&product=POD&count=one")
    assert "query.product[0]: 'PODS'" in errors("GET", "/v2/catalog/gpus?include=AVAILABILITY&product=PODS")
    assert "query.bucketSize" in errors("GET", "/v2/billing/pods?bucketSize=minute")
    assert "query.includeClusterPods" in errors("GET", "/v2/pods?includeClusterPods=maybe")
    assert "$.action: 'explode'" in errors("POST", f"/v2/pods/{pod}/action", {"action": "explode"})
    assert api.call("POST", "/v2/pods", "{")[0] == 400
    assert len(api.state()["violations"]) == 10


def test_a_query_parameter_that_is_not_described_is_ignored_and_noted(sim):
    client = Client(sim.url)
    assert client.call("GET", "/v2/pods?colour=blue&limit=5&cursor=") == (200, PAGE)
    assert client.state()["violations"] == ["GET /v2/pods: query.colour: is not described"]


@pytest.mark.parametrize(
    ("broken", "violation"),
    [
        ({"cost": "0.69"}, "$.cost: '0.69' is not of type 'number'"),
        ({"cost": "left out"}, "'cost' is a required property"),
        ({"status": "ASLEEP"}, "$.status: 'ASLEEP' is not one of"),
        ({"ssh": {"proxy": None, "direct": {"host": "127.0.0.10"}}}, "$.ssh.direct: "),
        ({"createdAt": "yesterday"}, "$.createdAt: 'yesterday' is not a 'date-time'"),
    ],
)
def test_a_bad_answer_of_its_own_is_noted(sim, monkeypatch, broken, violation):
    client, show = Client(sim.url), sim.cloud.show

    def shown(pod: Any) -> dict[str, Any]:
        return {name: value for name, value in {**show(pod), **broken}.items() if value != "left out"}

    monkeypatch.setattr(sim.cloud, "show", shown)
    status, problem = client.call("POST", "/v2/pods", ORDER)
    assert (status, violation in problem["detail"]) == (500, True), problem
    (noted,) = client.state()["violations"]
    assert noted.startswith("POST /v2/pods: ")
    assert violation in noted


@pytest.mark.parametrize(
    ("answer", "violation"),
    [
        (Answer(200, "pods", "text/plain"), "GET /v2/pods: text/plain is not described for status 200"),
        (Answer(204, {"pods": []}), "GET /v2/pods: application/json is not described for status 204"),
        (Answer(404, {"title": "x"}, PROBLEM), "GET /v2/pods: $: 'status' is a required property"),
    ],
)
def test_a_status_or_a_form_that_is_not_described_is_noted(sim, monkeypatch, answer, violation):
    monkeypatch.setattr("api._page", lambda *_: answer)
    client = Client(sim.url)
    assert client.call("GET", "/v2/pods")[0] == 500
    assert violation in client.state()["violations"][0]


# --- those who ask it ---------------------------------------------------------------------------------------------


def test_every_request_of_the_clients_is_described(api, sim, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(runpod, "QUIET", 0.1)
    client = runpod.RunPod("simulated-key", sim.url)
    for cuda in ("", "13.0"):
        assert GPU in [gpu["id"] for gpu in client.list_gpus("COMMUNITY", 2, cuda)]
    assert client.get_volume("vol-eu")["dataCenter"] == "EU-RO-1"
    pod_id = client.create_pod(ORDER)["id"]
    api.until(pod_id, "RUNNING")
    assert client.get_pod(pod_id)["id"] == client.list_pods()[0]["id"] == pod_id
    assert isinstance(client.read_log(pod_id), list)
    assert client.list_items("/v2/pods?limit=1", "pods", answers.Pod)[0].id == pod_id
    assert client.billed_usd(pod_id) is None
    api.call("POST", "/sim/billing", {"pod": pod_id}, key="")
    assert client.billed_usd(pod_id) >= 0
    client.stop_pod(pod_id)
    assert (client.delete_pod(pod_id), client.delete_pod(pod_id), client.get_pod(pod_id)) == (True, False, None)
    paths = [(noted["method"], noted["path"].partition("?")[0]) for noted in api.state()["requests"]]
    asked = {(method, path.replace(pod_id, "{}").replace("vol-eu", "{}")) for method, path in paths}
    assert {(method, path) for method, path, _ in sim.api.routes} - asked == {  # what the client never asks
        ("PATCH", "/v2/pods/{}"), ("GET", "/v2/catalog/gpus/{}"), ("GET", "/v2/catalog/datacenters"),
        ("GET", "/v2/network-volumes"),
    }  # fmt: skip


@pytest.mark.parametrize("refused", [False, True])
def test_every_request_of_the_leashs_is_described(api, sim, tmp_path, monkeypatch, refused):
    monkeypatch.setenv("no_proxy", "*")
    pod = api.running()
    api.fault(refuse={"status": 409, "method": "POST", "times": 1} if refused else None)
    env = {"RUNPOD_POD_ID": pod["id"], "RUNPOD_API_KEY": sim.cloud.pods[pod["id"]].key, "LORA_FORGE_API": sim.url}
    env |= {"LORA_FORGE_ROOT": str(tmp_path), "LORA_FORGE_DEADLINE": "1", "LORA_FORGE_ALLOWANCE": "1"}
    leash = load("roles/pod/files/leash").Leash(env, str(tmp_path), time.time, time.monotonic)
    leash.end()
    assert leash.state == "ending", leash.word
    assert [pod["ended_by"] for pod in api.state()["pods"]] == ["pod"]
    asked = [note["method"] for note in api.state()["requests"] if note["agent"] == "lora-forge-leash"]
    assert asked == (["POST", "DELETE"] if refused else ["POST"])


# --- a pod's life ---------------------------------------------------------------------------------------------


def test_actions_go_by_status(api, pace):
    pace.set()
    pod = api.running(ports=["22/tcp"])
    pace.clear()
    first = pod["ssh"]["direct"]["port"]
    api.act(pod["id"], "start", 409)
    assert api.act(pod["id"], "restart")["status"] == "STARTING"
    api.act(pod["id"], "restart", 409)
    pace.set()
    second = api.until(pod["id"], "RUNNING")["ssh"]["direct"]["port"]
    assert second != first
    stopped = api.act(pod["id"], "stop")
    assert (stopped["status"], stopped["cost"], stopped["runtime"]) == ("EXITED", 0.0, None)
    assert (stopped["ssh"]["direct"], stopped["actions"]) == (None, ["start", "terminate"])
    api.act(pod["id"], "stop", 409)
    pace.clear()
    assert api.act(pod["id"], "start")["status"] == "STARTING"
    pace.set()
    api.until(pod["id"], "RUNNING")
    assert api.act(pod["id"], "terminate", 204) == ""
    api.act(pod["id"], "terminate", 404)
    assert api.call("GET", "/v2/pods") == (200, {"pods": []})


def test_a_pod_can_be_stopped_or_deleted_at_any_time(api, sim):
    api.fault(status_delay=60)
    pod = api.order()
    api.act(pod["id"], "restart", 409)
    assert api.act(pod["id"], "stop")["status"] == "EXITED"
    assert not sim.cloud._reach(sim.cloud.pods[pod["id"]], 1, "STARTING")  # what its boot would do now
    assert api.pod(pod["id"])["status"] == "EXITED"
    assert api.act(pod["id"], "start")["status"] == "STARTING"
    api.act(pod["id"], "restart", 409)
    assert api.call("DELETE", f"/v2/pods/{pod['id']}") == (204, "")
    assert api.call("DELETE", f"/v2/pods/{pod['id']}")[0] == 404


def test_a_pod_can_be_renamed_only(api):
    pod = api.order()
    assert api.call("PATCH", f"/v2/pods/{pod['id']}", {"name": "two"})[1]["name"] == "two"
    assert api.call("PATCH", f"/v2/pods/{pod['id']}", {"disk": 40})[0] == 400


def test_what_a_volume_keeps(api, sim):
    network = {"network": [{"volumeId": "vol-eu", "path": "/workspace"}]}
    persistent = {"persistent": {"size": 10, "path": "/workspace"}}
    pods = {kind: api.running(mounts=mounts)["id"]
            for kind, mounts in (("none", None), ("persistent", persistent), ("network", network))}  # fmt: skip
    files = {kind: sim.state / "disk" / sim.cloud.pods[pod].folder / "file" for kind, pod in pods.items()}
    assert files["network"].parent == sim.state / "disk" / "volumes" / "vol-eu"
    for file in files.values():
        file.write_text("x")

    def left(*kinds: str) -> None:
        eventually(lambda: {kind for kind, file in files.items() if file.exists()} == set(kinds))

    for pod in pods.values():
        api.act(pod, "stop")
    left("persistent", "network")
    for pod in pods.values():
        api.act(pod, "start")
        api.until(pod, "RUNNING")
        api.act(pod, "restart")
        api.until(pod, "RUNNING")
    left("persistent", "network")
    for pod in pods.values():
        api.act(pod, "terminate", 204)
    left("network")


def age(sim: simulator.Simulator, pod_id: str) -> None:
    """Let the time pass that the API goes on with a pod's old port."""
    pod = sim.cloud.pods[pod_id]
    assert pod.stale[0] == sys.modules["cloud"].time.time() + 60
    pod.stale = (0.0, pod.stale[1])


def test_behind_our_back(api, sim):
    def do(pod: dict[str, Any], what: str, status: int = 200, **more: Any) -> None:
        assert api.call("POST", f"/sim/pods/{pod['id']}/do", {"what": what, **more}, key="")[0] == status

    pod = api.running()
    port = pod["ssh"]["direct"]["port"]
    do(pod, "crash")
    assert api.pod(pod["id"])["status"] == "RUNNING"
    assert api.state()["pods"][0]["restarts"] == 1
    do(pod, "move_port", stale_seconds=60)
    assert api.pod(pod["id"])["ssh"]["direct"]["port"] == port
    eventually(lambda: api.state()["pods"][0]["port"] is not None)
    assert api.pod(pod["id"])["ssh"]["direct"]["port"] == port
    age(sim, pod["id"])
    assert api.pod(pod["id"])["ssh"]["direct"]["port"] == api.state()["pods"][0]["port"] == port + 1
    do(pod, "error")
    failed = api.pod(pod["id"])
    assert (failed["status"], failed["cost"], failed["actions"]) == ("ERROR", 0.69, ["start", "terminate"])
    do(pod, "crash", 409)
    do(pod, "exit")
    assert api.pod(pod["id"])["cost"] == 0.0
    do(pod, "vanish")
    assert api.call("GET", f"/v2/pods/{pod['id']}")[0] == 404
    assert api.state()["pods"][0]["ended_by"] == "sim"
    do(pod, "vanish", 404)


def test_it_costs_from_creation_until_it_is_stopped(api, sim):
    pod = api.order(gpu={"id": GPU, "count": 2})["id"]
    sim.cloud.pods[pod].since -= 3600
    assert api.state()["usd"] == pytest.approx(1.38, abs=0.01)
    api.act(pod, "stop")
    before = api.state()["usd"]
    sim.cloud.pods[pod].since -= 3600
    assert api.state()["usd"] == before


# --- logs -----------------------------------------------------------------------------------------------------


def stream(api: Client, path: str, count: int, **headers: str) -> list[dict[str, Any]]:
    """Read so many events of a log; the connection is left open until they are there."""
    connection = http.client.HTTPConnection(api.host, timeout=PATIENCE)
    events: list[dict[str, Any]] = []
    with contextlib.closing(connection):
        connection.request("GET", path, None, {"User-Agent": "t", "Authorization": "Bearer simulated-key", **headers})
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")
        assert answer.headers["Cache-Control"] == "no-cache"
        cursor = ""
        while len(events) < count:
            name, _, value = answer.readline().decode().strip().partition(": ")
            if name == "id":
                cursor = value
            elif name == "data":
                events.append({**json.loads(value), "id": cursor})
    return events


def test_logs_are_a_stream(api):
    pod = api.running()["id"]
    path = f"/v2/pods/{pod}/logs"
    every = stream(api, path, 7)
    assert [event["source"] for event in every].count("container") == 3
    keys = stream(api, f"{path}?source=container", 3)
    assert all(re.fullmatch(r"256 SHA256:\S+ root@\w+ \(\w+\)", event["line"]) for event in keys)
    assert stream(api, f"{path}?source=container&tail=1", 1) == keys[-1:]
    assert stream(api, path, 1, **{"Last-Event-ID": keys[1]["id"]}) == keys[2:]
    since = urllib.parse.quote(keys[2]["ts"])
    assert stream(api, f"{path}?since={since}", 1)[0]["source"] == "system"


def test_a_stream_goes_on_until_the_pod_is_gone(api):
    pod = api.running()["id"]
    connection = http.client.HTTPConnection(api.host, timeout=PATIENCE)
    headers = {"User-Agent": "t", "Authorization": "Bearer simulated-key"}
    with contextlib.closing(connection):
        connection.request("GET", f"/v2/pods/{pod}/logs?tail=0", None, headers)
        answer = connection.getresponse()
        api.act(pod, "restart")
        assert b"status STARTING" in answer.readline() + answer.readline()
        api.until(pod, "RUNNING")
        api.act(pod, "terminate", 204)
        assert b"SHA256" in answer.read()
    assert api.call("GET", f"/v2/pods/{pod}/logs")[0] == 404


def test_host_keys_can_be_missing_in_the_log(api):
    api.fault(no_host_keys_in_log=True)
    pod = api.running()["id"]
    assert not [event for event in stream(api, f"/v2/pods/{pod}/logs", 4) if event["source"] == "container"]


# --- what can be ordered, and what it cost --------------------------------------------------------------------


def test_the_catalog(api):
    gpus = api.call("GET", "/v2/catalog/gpus")[1]["gpus"]
    assert len(gpus) == 8
    assert not [gpu for gpu in gpus if "availability" in gpu]
    query = "include=AVAILABILITY&product=POD"
    status, gpu = api.call("GET", f"/v2/catalog/gpus/{urllib.parse.quote(GPU)}?{query}&minCudaVersion=12.8&count=8")
    assert (status, gpu["availability"], gpu["price"]) == (200, "HIGH", {"secure": 0.69, "community": 0.34})
    assert [entry["version"] for entry in gpu["cudaVersions"]] == ["13.0", "12.8"]
    assert [place["id"] for place in gpu["dataCenters"]] == ["US-TX-3", "EU-RO-1", "US-KS-2"]
    path = "/v2/catalog/gpus/NVIDIA%20H200"
    assert api.call("GET", f"{path}?{query}&cloud=COMMUNITY")[1]["availability"] == "NONE"
    assert api.call("GET", f"{path}?{query}&count=9")[1]["availability"] == "NONE"
    rumanian = api.call("GET", f"/v2/catalog/gpus?{query}&countryCodes=RO")[1]["gpus"]
    assert "NVIDIA H100 NVL" not in [gpu["id"] for gpu in rumanian]
    assert api.call("GET", "/v2/catalog/gpus/Voodoo")[0] == 404
    for wrong in ("include=AVAILABILITY", "product=POD", f"{query}&cudaVersions=12.8&minCudaVersion=12"):
        assert api.call("GET", f"/v2/catalog/gpus?{wrong}")[0] == 400, wrong


def test_data_centers_and_volumes(api):
    places = api.call("GET", "/v2/catalog/datacenters?include=GPU_AVAILABILITY&regions=EUROPE")[1]["dataCenters"]
    assert [place["id"] for place in places] == ["EU-RO-1"]
    assert "NVIDIA H100 NVL" not in [gpu["id"] for gpu in places[0]["gpuAvailability"]]
    volume = {"id": "vol-eu", "name": "vol-eu", "size": 50, "dataCenter": "EU-RO-1", "type": "STANDARD"}
    assert api.call("GET", "/v2/network-volumes") == (200, {"networkVolumes": [volume]})
    assert api.call("GET", "/v2/network-volumes/vol-eu") == (200, volume)
    more = {"vol-us": {"size": 20, "dataCenter": "US-TX-3"}, "vol-eu": None}
    assert api.call("POST", "/sim/volumes", more, key="")[0] == 204
    assert api.call("GET", "/v2/network-volumes/vol-us")[1]["dataCenter"] == "US-TX-3"
    assert api.call("GET", "/v2/network-volumes/vol-eu")[0] == 404


def test_stock_changes(api):
    change = {GPU: {"secure": "NONE", "prices": {"community": 0.5}}}
    assert api.call("POST", "/sim/stock", change, key="")[0] == 204
    gpu = api.call("GET", f"/v2/catalog/gpus/{urllib.parse.quote(GPU)}?include=AVAILABILITY&product=POD")[1]
    assert (gpu["availability"], gpu["price"]["community"]) == ("NONE", 0.5)
    assert "dataCenters" not in gpu
    assert "no longer any instances" in api.order(400)
    assert api.order(cloud="COMMUNITY")["cost"] == 0.5
    assert api.call("POST", "/sim/stock", {"Voodoo": {}}, key="")[0] == 400


def test_lists_page_when_they_are_asked_to(api):
    names = [api.order(name=f"pod-{number}")["name"] for number in range(3)]
    found, cursor, pages = [], "", 0
    while pages == 0 or cursor:
        status, answer = api.call("GET", f"/v2/pods?limit=2&cursor={cursor}")
        assert status == 200
        found += [pod["name"] for pod in answer["pods"]]
        cursor, pages = answer["pagination"]["nextCursor"], pages + 1
        assert answer["pagination"]["hasNextPage"] == bool(cursor)
    assert (found, pages) == (names, 2)
    assert "pagination" not in api.call("GET", "/v2/pods")[1]
    assert api.call("GET", "/v2/pods?limit=2&cursor=%21")[0] == 400


def test_billing_lags_until_it_is_told_to_come(api, sim):
    first, second = (api.order()["id"] for _ in range(2))
    sim.cloud.pods[first].since -= 2 * 3600
    sim.cloud.pods[first].created -= 2 * 3600
    api.call("DELETE", f"/v2/pods/{first}")
    path = "/v2/billing/pods?bucketSize=hour"
    status, empty = api.call("GET", path)
    assert (status, empty["records"], empty["metadata"]["totals"]["totalAmount"]) == (200, [], 0)
    assert api.call("POST", "/sim/billing", {"pod": first}, key="") == (200, {"pods": [first]})
    usd = next(pod["usd"] for pod in api.state()["pods"] if pod["id"] == first)
    bill = api.call("GET", f"{path}&podId={first}")[1]
    assert len(bill["records"]) == 3
    assert bill["metadata"]["totals"]["totalAmount"] == pytest.approx(usd * 1.05)
    assert api.call("GET", f"{path}&podId={second}")[1]["records"] == []
    assert api.call("GET", f"{path}&lastN=1")[1]["metadata"]["recordCount"] == 1
    assert api.call("GET", f"{path}&lastN=1&startTime=2026-01-01T00:00:00Z")[0] == 400
    assert api.call("POST", "/sim/billing", {"pod": "all", "factor": 2}, key="")[1] == {"pods": [first, second]}
    assert api.call("GET", path)[1]["metadata"]["uniquePodCount"] == 2


# --- faults ---------------------------------------------------------------------------------------------------


def test_no_capacity_for_one_gpu_and_so_many_times(api):
    api.fault(no_capacity=[{"gpu": GPU, "times": 1, "text": 2}, {"gpu": "NVIDIA L40S", "text": "sold out"}])
    assert api.order(gpu={"id": "NVIDIA RTX A6000", "count": 1})
    assert "does not have the resources" in api.order(400)
    assert api.order()
    assert api.order(400, gpu={"id": "NVIDIA L40S", "count": 1}) == "sold out"
    api.call("DELETE", "/sim/faults", key="")
    assert api.order(gpu={"id": "NVIDIA L40S", "count": 1})


@pytest.mark.parametrize("status", [402, 403, 429, 500, 502, 503])
def test_an_order_can_be_refused(api, status):
    api.fault(create_status={"status": status, "retry_after": 2, "times": 1})
    api.order(status)
    assert api.headers["Retry-After"] == "2"
    assert api.state()["pods"] == []
    api.order()


def test_an_order_can_be_carried_out_all_the_same(api, sim):
    api.fault(create_although={"status": 502, "times": 1}, late_list={"seconds": 60, "times": 1})
    api.order(502)
    assert api.call("GET", "/v2/pods")[1]["pods"] == []
    for late in sim.cloud.pods.values():
        assert late.listed_from == pytest.approx(late.created + 60)
        late.listed_from = 0
    (pod,) = api.call("GET", "/v2/pods")[1]["pods"]
    assert pod["name"] == "one"
    api.fault(drop_answer={"method": "POST", "path_contains": "/v2/pods", "times": 1})
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        api.order(name="two")
    assert [pod["name"] for pod in api.call("GET", "/v2/pods")[1]["pods"]] == ["one", "two"]
    assert [request["status"] for request in api.state()["requests"]] == [502, 200, 200, 0, 200]


def test_any_request_can_be_refused(api, monkeypatch):
    api.fault(refuse={"method": "GET", "path_contains": "/v2/pods", "status": 503, "retry_after": 1, "times": 1})
    status, problem = api.call("GET", "/v2/pods")
    assert (status, problem["status"], api.headers["Retry-After"]) == (503, 503, "1")
    api.fault(refuse={"status": 502, "html": True, "times": 1})
    assert api.call("GET", "/v2/pods")[1].startswith("<html>")
    api.fault(html_error={"status": 520, "times": 1} | {"status": 504})
    assert api.call("GET", "/v2/pods")[0] == 504
    api.fault(slow={"seconds": 0.2, "times": 1}, rate_limit={"per_minute": 4})
    slept: list[float] = []
    monkeypatch.setattr(simulator, "time", types.SimpleNamespace(sleep=slept.append))
    assert api.call("GET", "/v2/pods")[0] == 200
    assert slept == [0.2]
    assert api.call("GET", "/v2/pods")[0] == 429
    assert int(api.headers["Retry-After"]) > 50


def test_boots_go_wrong(api):
    a, b = {"id": "NVIDIA L40S", "count": 1}, {"id": "NVIDIA RTX A6000", "count": 1}
    api.fault(stuck_provisioning={"gpu": GPU}, boots_to=[{"status": "ERROR", "gpu": a["id"]}, "EXITED"])
    stuck, failed, stopped = (api.order(gpu=gpu)["id"] for gpu in (ORDER["gpu"], a, b))
    api.until(failed, "ERROR")
    api.until(stopped, "EXITED")
    assert api.pod(stuck)["status"] == "PROVISIONING"


def test_the_port_can_be_stale(api, sim):
    api.fault(stale_port=60)
    pod = api.running()
    shown, real = pod["ssh"]["direct"]["port"], api.state()["pods"][0]["port"]
    assert shown != real
    age(sim, pod["id"])
    assert api.pod(pod["id"])["ssh"]["direct"]["port"] == real
    api.call("DELETE", "/sim/faults", key="")
    api.fault(restart_keeps_port=True, status_delay=0.01)
    api.act(pod["id"], "restart")
    assert api.until(pod["id"], "RUNNING")["ssh"]["direct"]["port"] == real


def test_what_a_machine_is_made_of(api, sim):
    made = []
    start = sim.cloud.backend.start
    sim.cloud.backend.start = lambda spec: made.append(spec) or start(spec)
    api.fault(gpu={"word": "ecc", "ip": "127.0.0.10"}, ssh_delay=7, wrong_cost=3)
    env = {"API": f"{sim.url}/v2", "OTHER": "http://127.0.0.1:1"}
    pods = [api.running(env=env, args="a b"), api.running(gpu={"id": GPU, "count": 2})]
    assert [spec.gpu_word for spec in made] == ["ecc", "two"]
    assert (made[0].ssh_delay, made[0].args, pods[0]["cost"]) == (7, "a b", 2.07)
    assert made[0].env == {**env, "RUNPOD_POD_ID": pods[0]["id"], "RUNPOD_API_KEY": sim.cloud.pods[pods[0]["id"]].key}
    sim.cloud.backend.gateway = "gateway"
    assert sim.cloud._reachable(env["API"]) == f"http://gateway:{sim.cloud.port}/v2"


@pytest.mark.parametrize("wrong", [{"bogus": 1}, {"slow": {"minutes": 1}}, []])
def test_faults_that_there_are_not(api, wrong):
    assert api.call("POST", "/sim/faults", wrong, key="")[0] == 400
    api.fault(slow={"seconds": 0, "times": 0}, no_capacity=None)
    assert api.call("GET", "/sim/faults", key="")[1].keys() == {"slow", "status_delay"}


# --- the command line -----------------------------------------------------------------------------------------


def command(*words: str, **env: str) -> dict[str, Any]:
    clean = {name: value for name, value in os.environ.items() if name not in ("RUNPOD_API_KEY", "SIMULATED_KEY")}
    return {"args": [sys.executable, str(PROGRAM), *words], "env": clean | env, "text": True}


def test_run_lends_a_simulator_to_a_command(tmp_path):
    script = (
        "import os, urllib.request as u, json; h = {'User-Agent': 'x', 'Content-Type': 'application/json',"
        "'Authorization': 'Bearer ' + os.environ['RUNPOD_API_KEY']};"
        f"b = json.dumps({ORDER!r}).encode();"
        "print(u.urlopen(u.Request(os.environ['RUNPOD_API_URL'] + '/v2/pods', b, h)).status); raise SystemExit(7)"
    )
    words = ["run", "--state", str(tmp_path / "s"), "--pods", "none", "--", sys.executable, "-c", script]
    done = subprocess.run(**command(*words, SIMULATED_KEY="other"), capture_output=True, timeout=PATIENCE)
    assert done.returncode == 7, done.stderr
    assert re.fullmatch(r"201\nsimulator: 1 pods ordered, 1 still there, \$\d+\.\d{4} by its clock\n", done.stdout)
    (pod,) = json.loads((tmp_path / "s" / "state.json").read_text())["pods"]
    assert pod["name"] == "one"


def test_run_keeps_a_real_accounts_key_to_itself(tmp_path):
    real = "rpa_" + "A1B2C3D4" * 5
    words = ["run", "--state", str(tmp_path / "s"), "--pods", "none", "--", "sh", "-c", "echo $RUNPOD_API_KEY"]
    given = command(*words)
    given["env"]["RUNPOD_API_KEY"] = real
    done = subprocess.run(**given, capture_output=True, timeout=PATIENCE)
    assert done.stdout.startswith("simulated-key\n")
    assert real not in done.stdout + done.stderr + (tmp_path / "s" / "state.json").read_text()


def test_serve_ends_with_a_signal_and_owns_its_folder(tmp_path):
    words = ["serve", "--port", "0", "--state", str(tmp_path / "s"), "--pods", "none"]
    with subprocess.Popen(**command(*words), stdout=subprocess.PIPE) as process:
        url = process.stdout.readline().strip().removeprefix("listening on ")
        assert Client(url).call("GET", "/v2/pods")[0] == 200
        second = subprocess.run(**command(*words), capture_output=True, timeout=PATIENCE)
        assert (second.returncode, "is in use by another simulator" in second.stderr) == (1, True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
