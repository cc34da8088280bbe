"""What holds the client and the simulator to RunPod's description: it sees what is wrong, and it is RunPod's own."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pathlib
import re
from typing import Any

import pytest
from ansible.module_utils.lora_forge.pods.runpod import ApiError
from api import Api
from contract import OWN, Contract
from reduce import OPERATIONS, laid_out, reduced
from wire import NoAnswer, Wire, answer, bills_shown, gpu, pod_shown, problem, volume_shown, wrong

CREATE = {"name": "pod", "image": "i", "gpu": {"id": "NVIDIA L40S", "count": 1}}
CATALOG = "GET /v2/catalog/gpus?include=AVAILABILITY&product=POD&cloud="
UNSEEN = "RunPod does not describe this "


# --- the client's requests and the answers that tests script --------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "body", "violation"),
    [
        ("POST /v2/pods", {**CREATE, "disk": "60"}, "$.disk: '60' is not of type 'integer'"),
        ("POST /v2/pods", {**CREATE, "env": {"STEPS": 1}}, "$.env.STEPS: 1 is not of type 'string'"),
        ("POST /v2/pods", {"name": "pod", "gpu": CREATE["gpu"]}, "'image' is a required property"),
        ("POST /v2/pods", {**CREATE, "gpu": {"count": 1}}, "$.gpu: 'id' is a required property"),
        ("POST /v2/pods", {**CREATE, "cloud": "ALL"}, "$.cloud: 'ALL' is not one of"),
        ("POST /v2/pods", {**CREATE, "gpuCount": 1}, "'gpuCount' was unexpected"),
        (
            "POST /v2/pods",
            {**CREATE, "mounts": {"persistent": {"size": 9, "path": "/w"}}},
            "9 is less than the minimum",
        ),
        ("POST /v2/pods", None, "header.Content-Type: must be application/json; $: None is not of type 'object'"),
        ("POST /v2/pods/a1/action", {"action": "explode"}, "$.action: 'explode' is not one of"),
        ("GET /v2/pods?status=RUNNING", None, "query.status: is not described"),
        ("GET /v2/pods/a1?includeClusterPods=true", None, "query.includeClusterPods: is not described"),
        (f"{CATALOG}secure", None, "query.cloud: 'secure' is not one of"),
        (f"{CATALOG}SECURE&count=two", None, "query.count: 'two' is not of type 'integer'"),
        (f"{CATALOG}SECURE&minCudaVersion=thirteen", None, "query.minCudaVersion: 'thirteen' does not match"),
        ("GET /v2/pod/a1", None, "GET /v2/pod/a1 is not described"),
        ("DELETE /v2/pods", None, "DELETE /v2/pods is not described"),
    ],
)
def test_a_request_of_the_clients_that_is_wrong_is_seen(asked, body, violation):
    with pytest.raises(AssertionError, match=re.escape(UNSEEN + "request, ")) as caught:
        with Wire((asked, NoAnswer("never reached"))) as wire:
            wire.api.request(*asked.split(" "), body)
    assert violation in str(caught.value)


def without(shown: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in shown.items() if key != name}


@pytest.mark.parametrize(
    ("asked", "reply", "violation"),
    [
        ("GET /v2/pods", answer(200, {"pods": [pod_shown("a1", cost="0.5")]}), "$.pods[0].cost: '0.5' is not of type"),
        ("GET /v2/pods", answer(201, {"pods": []}), "application/json is not described for status 201"),
        ("GET /v2/pods/a1", answer(200, without(pod_shown("a1"), "ssh")), "'ssh' is a required property"),
        ("GET /v2/pods/a1", answer(200, pod_shown("a1", status="ASLEEP")), "$.status: 'ASLEEP' is not one of"),
        (
            "GET /v2/pods/a1",
            answer(200, pod_shown("a1", createdAt="today")),
            "$.createdAt: 'today' is not a 'date-time'",
        ),
        ("GET /v2/pods/a1", problem(404, 404), "$.detail: 404 is not of type 'string'"),
        ("GET /v2/pods/a1", answer(200, pod_shown("a1", publicIp="::1")), "('publicIp' was unexpected)"),
        (
            "GET /v2/pods",
            answer(200, {"pods": [pod_shown("a1", gpu={"id": "x", "vram": 8})]}),
            "('vram' was unexpected)",
        ),
        ("DELETE /v2/pods/a1", answer(204, {}), "status 204 has no body"),
        (f"{CATALOG}SECURE", answer(200, {"gpus": [gpu("A40", memory="48")]}), "$.gpus[0].memory: '48' is not of type"),
        ("GET /v2/network-volumes/v1", answer(200, {**volume_shown("v1"), "size": 5}), "5 is less than the minimum"),
        ("GET /v2/billing/pods", answer(200, {"records": []}), "'metadata' is a required property"),
        ("GET /v2/pods/a1/logs", answer(200, {"line": "x"}), "application/json is not described for status 200"),
    ],
)
def test_an_answer_that_is_wrong_is_seen_unless_it_is_marked(asked, reply, violation):
    with pytest.raises(AssertionError, match=re.escape(UNSEEN + "answer, ")) as caught:
        with Wire((asked, reply)) as wire:
            wire.api.request(*asked.split(" "))
    assert violation in str(caught.value)
    with Wire((asked, wrong(reply, "on purpose"))) as wire:
        with contextlib.suppress(ApiError):  # the one that is an error; another one is none
            wire.api.request(*asked.split(" "))


def test_a_mark_on_an_answer_that_is_right_is_seen():
    with pytest.raises(AssertionError, match=r"marked as wrong \(once it was\)"):
        with Wire(("GET /v2/billing/pods", wrong(answer(200, bills_shown()), "once it was"))) as wire:
            wire.api.request("GET", "/v2/billing/pods")


def test_the_account_in_memory_is_held_too(rig):
    with pytest.raises(AssertionError, match=r"query\.status: is not described"):
        rig.cloud.client().request("GET", "/v2/pods?status=RUNNING")
    with pytest.raises(AssertionError, match=r"\$\.action: 'explode' is not one of"):
        rig.cloud.client().request("POST", "/v2/pods/a1/action", {"action": "explode"})
    rig.cloud.add("one", status="ASLEEP")
    with pytest.raises(AssertionError, match=r"\$\.pods\[0\]\.status: 'ASLEEP' is not one of"):
        rig.cloud.client().list_pods()


def test_a_parameter_that_must_be_there_is_missed(tmp_path):
    description = json.loads(OWN.read_text())
    description["paths"]["/v2/billing/pods"]["get"]["parameters"][-1]["required"] = True
    contract = Contract(written(tmp_path, description))
    asked = ("GET", "/v2/billing/pods")
    assert contract.request_errors(*asked, {}, {}, None) == ["query.podId: is required"]
    assert contract.request_errors(*asked, {"podId": ["a1"]}, {}, None) == []


# --- the description -------------------------------------------------------------------------------------------------


def written(folder: pathlib.Path, description: dict[str, Any]) -> pathlib.Path:
    path = folder / "openapi.json"
    path.write_text(json.dumps(description))
    return path


def test_it_has_every_path_that_the_simulator_serves():
    served = {(method, path) for method, path, _ in Api(None, None, "", Contract()).routes}
    described = {
        (method.upper(), path.replace("{id}", "{}")) for path, methods in OPERATIONS.items() for method in methods
    }
    assert described == served


def test_it_is_the_official_one_reduced():
    """Whether or not the official description is here: what is reduced already stays as it is."""
    own = OWN.read_text()
    named = os.environ.get("RUNPOD_OPENAPI")
    for description in [OWN, *([pathlib.Path(named)] if named else [])]:
        made = laid_out(reduced(json.loads(description.read_text()), json.loads(own)["info"]["x-read"]))
        assert made == own, f"reduce {description} again, with tests/fakes/runpod/reduce.py, and look at what changed"


def test_reducing_leaves_what_decides_and_nothing_else(tmp_path):
    """A description with prose and other operations in every place comes out as our own."""

    def told(part: Any, named: bool = False) -> Any:
        if isinstance(part, list):
            return [told(entry) for entry in part]
        if not isinstance(part, dict):
            return part
        more = {} if named else {"description": "Prose.", "examples": [{"$ref": "#/components/schemas/Gone"}], "x-y": 1}
        return {key: told(value, key in ("properties", "content", "responses") and not named)
                for key, value in part.items()} | more  # fmt: skip

    own = json.loads(OWN.read_text())
    official = copy.deepcopy(own)
    for path, item in official["paths"].items():
        official["paths"][path] = told(item)
    for kind, parts in official["components"].items():
        official["components"][kind] = {name: told(part) for name, part in parts.items()}
    official["components"]["schemas"]["Unused"] = {"type": "object"}
    official["paths"]["/v2/pods"]["put"] = official["paths"]["/v2/clusters"] = {"responses": {}}
    official["info"] |= {"title": "RunPod", "description": "Prose."}
    official["servers"] = [{"url": "https://example.org"}]
    assert reduced(official, own["info"]["x-read"]) == own
    del official["paths"]["/v2/pods"]["post"]
    with pytest.raises(KeyError, match="post"):
        reduced(official, "")


def test_it_holds_no_prose():
    """RunPod's sentences are RunPod's."""
    own = json.loads(OWN.read_text())
    texts = re.findall(r'"([^"]*)"', json.dumps([own["paths"], own["components"]]))
    assert "RUNNING" in texts
    assert [text for text in texts if text.strip(", ") and " " in text.strip(", ")] == []


def test_a_newer_description_is_held_to_as_well(tmp_path, monkeypatch):
    newer = json.loads(OWN.read_text())
    request = newer["components"]["schemas"]["PodActionRequest"]
    request["required"].append("reason")
    request["properties"]["reason"] = {"type": "string"}
    asked = ("POST", "/v2/pods/a1/action", {}, {"Content-Type": "application/json"}, {"action": "stop"})
    monkeypatch.delenv("RUNPOD_OPENAPI", raising=False)
    assert Contract.given().request_errors(*asked) == []
    monkeypatch.setenv("RUNPOD_OPENAPI", str(written(tmp_path, newer)))
    assert Contract.given().request_errors(*asked) == ["$: 'reason' is a required property"]
    (error,) = Contract.given().request_errors(*asked[:-1], {"action": "explode"})
    assert error.startswith("$.action: 'explode' is not one of")  # our own first, and nothing twice
    monkeypatch.setenv("RUNPOD_OPENAPI", str(tmp_path / "none.json"))
    with pytest.raises(FileNotFoundError):
        Contract.given()
