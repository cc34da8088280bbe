"""RunPod's answers: any that its description allows is taken, and odd ones neither crash nor look like nothing."""

from __future__ import annotations

import contextlib
import os
import pathlib
from typing import Any

import pytest
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.pods import answers, costs, messages, runpod
from ansible.module_utils.lora_forge.pods.claims import list_account_pods
from ansible.module_utils.lora_forge.pods.runpod import ApiError, RunPod, ssh_address, ssh_problem
from contract import OWN
from described import Described
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire import KEY, ROOT, Wire, answer, bills_shown, gpu, pod_shown, volume_shown, wrong

OFFICIAL = pathlib.Path(os.environ.get("RUNPOD_OPENAPI") or ROOT.parent / "shared/runpod/openapi-v2.json")
DESCRIPTIONS = [
    OWN,
    pytest.param(OFFICIAL, marks=pytest.mark.skipif(not OFFICIAL.exists(), reason="no official description is here")),
]
ODD = "RunPod's description does not allow it, and it has been seen of other APIs"
MANY = settings(
    max_examples=60, deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)  # fmt: skip


def client(server: Described) -> RunPod:
    return RunPod(KEY, transport=server, sleep=lambda seconds: None)


def sound(pod: dict[str, Any]) -> bool:
    """Whether what decides about money makes sense; the description says no more than their types."""
    return bool(pod["id"] and pod["name"] and pod["cost"] >= 0)


# --- all that is described -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("description", DESCRIPTIONS)
@given(data=st.data())
@MANY
def test_every_pod_that_is_described_is_known_by_what_it_costs(description, data):
    server = Described(description, data.draw)
    try:
        pods = client(server).list_pods()
    except ApiError:
        pods = None
    assert (pods is not None) == all(map(sound, server.given[0]["pods"]))
    if pods is None:
        return
    there = {pod["id"]: pod for pod in server.given[0]["pods"]}
    told = {pod["id"]: (pod["name"], pod["status"], pod["cost"]) for pod in pods}
    assert told == {
        name: (pod["name"], pod["status"], pytest.approx(pod["cost"]))
        for name, pod in there.items()
        if pod["status"] != "TERMINATED"
    }
    assert all("env" not in pod for pod in pods)
    for pod in pods:
        address = ssh_address(pod)
        assert not address or (answers.is_host(address["host"]) and 1 <= address["port"] <= 65535)
        assert isinstance(ssh_problem(pod), str)
    assert len(messages.account_table(list_account_pods(pods, [], "3f9a2c1b", 1.8e9))["rows"]) == len(pods)


@pytest.mark.parametrize("description", DESCRIPTIONS)
@given(data=st.data())
@MANY
def test_every_catalogue_that_is_described_gives_offers_or_a_reason(description, data):
    server = Described(description, data.draw)
    api = client(server)
    try:
        catalogues = {"SECURE": api.list_gpus("SECURE", 1), "COMMUNITY": api.list_gpus("COMMUNITY", 1)}
    except ApiError:
        assert not all(entry["id"] for given in server.given for entry in given["gpus"])
        return
    names = [entry["id"] for entry in catalogues["SECURE"]] or ["L40S"]
    for centers in ([], ["EU-RO-1"], [place["id"] for entry in catalogues["SECURE"] for place in entry["dataCenters"]]):
        try:
            offers = costs.find_offers(catalogues, names, 1, 1e40, 0, centers)
        except UserError:
            continue
        assert all(offer.usd_per_hour > 0 for offer in offers)


@pytest.mark.parametrize("description", DESCRIPTIONS)
@given(data=st.data())
@MANY
def test_other_answers_that_are_described_are_taken(description, data):
    server = Described(description, data.draw)
    api = client(server)
    calls = [
        lambda: api.create_pod({}), lambda: api.get_pod("a1"), lambda: api.get_volume("v1"),
        lambda: api.billed_usd("a1"),
    ]  # fmt: skip
    for call in calls:
        with contextlib.suppress(ApiError):  # the one error that there may be: an id that is empty, a cost below 0
            call()
    assert api.stop_pod("a1") is None
    assert api.delete_pod("a1") is True


# --- odd answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pod", "where"),
    [
        (None, "pods[0]: it: "), ([], "pods[0]: it: "), ({}, "pods[0]: id: "),
        (pod_shown("a", id=7), "pods[0]: id: "), (pod_shown("a", id=""), "pods[0]: id: "),
        (pod_shown("a", name=None), "pods[0]: name: "), (pod_shown("a", status=None), "pods[0]: status: "),
        (pod_shown("a", cost=None), "pods[0]: cost: "), (pod_shown("a", cost="0.5"), "pods[0]: cost: "),
        (pod_shown("a", cost=-1), "pods[0]: cost: "), (pod_shown("a", cost=float("nan")), "pods[0]: cost: "),
        (pod_shown("a", cost=float("inf")), "pods[0]: cost: "), (pod_shown("a", cost=True), "pods[0]: cost: "),
    ],
)  # fmt: skip
@pytest.mark.parametrize("others", [0, 1])
def test_a_pod_that_cannot_be_counted_is_an_error_and_not_left_out(pod, where, others):
    listed = [pod, *[pod_shown("b")] * others]
    body = answer(200, {"pods": listed})
    reply = body if isinstance(pod, dict) and pod.get("cost") in (-1, float("inf")) else wrong(body, ODD)
    reply = body if isinstance(pod, dict) and (pod.get("id") == "" or pod.get("cost") != pod.get("cost")) else reply
    with Wire(("GET /v2/pods", reply)) as wire, pytest.raises(ApiError, match="an answer of another form") as caught:
        wire.api.list_pods()
    assert where in caught.value.detail


@pytest.mark.parametrize("name", ["gpu", "mounts", "ssh", "runtime", "env", "ports", "cluster", "createdAt", "image"])
@pytest.mark.parametrize("value", [None, [], {}, 0, "x", {"direct": 5}, {"ports": None}, {"ports": [None, 1]}])
def test_a_pod_whose_other_fields_are_odd_is_there_all_the_same(name, value):
    pod = answers.Pod.model_validate(pod_shown("a1", **{name: value})).shown()
    assert (pod["id"], pod["cost"], ssh_address(pod)) == ("a1", 0.5, {})
    (row,) = messages.account_table(list_account_pods([pod], [], "3f9a2c1b", 1.8e9))["rows"]
    assert row[1] == "a1"


def test_a_status_that_is_not_described_stays_as_it_is():
    with Wire(("GET /v2/pods", wrong(answer(200, {"pods": [pod_shown("a", status="PAUSED")]}), ODD))) as wire:
        assert [pod["status"] for pod in wire.api.list_pods()] == ["PAUSED"]


@pytest.mark.parametrize(
    "change",
    [
        {"price": None}, {"price": {"secure": None, "community": None}}, {"price": {"secure": -1, "community": "0"}},
        {"secure": None}, {"price": {"secure": float("inf"), "community": 0}},
    ],
)  # fmt: skip
def test_a_gpu_whose_price_is_not_known_is_not_offered(change):
    entry = answers.GpuType.model_validate({**gpu("L40S", 0.86), **change}).shown()
    with pytest.raises(UserError, match="none is offered in SECURE"):
        costs.find_offers({"SECURE": [entry]}, ["L40S"], 1, 9)


@pytest.mark.parametrize(
    "change",
    [{"dataCenters": None}, {"memory": None}, {"maxCount": None}, {"name": None}, {"availability": None}],
)
def test_a_gpu_of_which_little_else_is_known_is_offered(change):
    entry = answers.GpuType.model_validate({**gpu("L40S", 0.86), **change}).shown()
    (offer,) = costs.find_offers({"SECURE": [entry]}, ["NVIDIA L40S"], 1, 9)
    assert (offer.gpu, offer.usd_per_hour) == ("NVIDIA L40S", 0.86)


@pytest.mark.parametrize("volume", [None, [], {}, {**volume_shown("v1"), "dataCenter": None}])
def test_a_volume_that_names_no_place_is_an_error(volume):
    with Wire(("GET /v2/network-volumes/v1", wrong(answer(200, volume), ODD))) as wire, pytest.raises(ApiError):
        wire.api.get_volume("v1")


def test_another_pod_than_the_one_that_was_asked_for_is_an_error():
    with Wire(("GET /v2/pods/a1", answer(200, pod_shown("a2")))) as wire, pytest.raises(ApiError, match="another pod"):
        wire.api.get_pod("a1")


def test_a_bill_that_is_no_number_is_an_error_and_one_that_gives_back_costs_nothing():
    asked, nan = "GET /v2/billing/pods?podId=a1&bucketSize=hour", bills_shown(("a1", float("nan")))
    with Wire((asked, answer(200, nan)), (asked, answer(200, bills_shown(("a1", -2))))) as wire:
        with pytest.raises(ApiError):
            wire.api.billed_usd("a1")
        assert wire.api.billed_usd("a1") == 0


@pytest.mark.parametrize(
    "body",
    [
        {"title": 5, "detail": None, "errors": 7}, {"errors": "no"}, {"errors": [None, 1]}, {"errors": {"a": 1}}, [], 1,
        "x", None,
    ],
)  # fmt: skip
def test_a_refusal_of_any_form_is_a_sentence(body):
    with Wire(("POST /v2/pods", answer(402, body))) as wire, pytest.raises(ApiError) as caught:
        wire.api.create_pod({"name": "pod", "image": "i", "gpu": {"id": "g", "count": 1}})
    assert str(caught.value).endswith("add credit in RunPod's console (an hour's price is needed to start)")


def test_json_without_a_bottom_is_an_error_of_ours():
    with Wire(*[("GET /v2/pods", answer(502, b"[" * 100000))] * runpod.ATTEMPTS) as wire, pytest.raises(ApiError):
        wire.api.list_pods()


# --- where a pod is --------------------------------------------------------------------------------------------------


def pod_at(direct: Any, ports: Any = None, uptime: Any = 5) -> dict[str, Any]:
    runtime = {"uptime": uptime, "ports": ports}
    shown = pod_shown("a1", ssh={"proxy": None, "direct": direct}, runtime=runtime)
    return answers.Pod.model_validate(shown).shown()


def endpoint(host: Any = "195.26.233.3", port: Any = 34446) -> dict[str, Any]:
    return {"host": host, "port": port, "username": "root", "command": "ssh …"}


@pytest.mark.parametrize("host", ["195.26.233.3", "2001:db8::1", "pod-1.example.org", "localhost", "a_b.example.org."])
def test_an_address_is_an_ip_address_or_a_dns_name(host):
    assert ssh_address(pod_at(endpoint(host))) == {"host": host, "port": 34446, "username": "root"}


@pytest.mark.parametrize(
    "direct",
    [
        *(endpoint(host) for host in (
            "-oProxyCommand=touch /tmp/x", "", " ", "a b", "a;b", "a\nb", "::1%-oProxyCommand", "root@example.org",
            "example.org:22", "-4", "a" * 64, "[::1]", None, 7, "$(id)", "a..b", "../x", "exämple.org",
        )),
        *(endpoint(port=port) for port in (0, -1, 65536, "22", "-p", None, 22.5, True)),
        {"host": "a.example.org"}, [], 5,
    ],
)  # fmt: skip
def test_what_is_no_address_goes_nowhere_and_is_told(direct):
    pod = pod_at(direct)
    assert ssh_address(pod) == {}
    assert ssh_problem(pod).startswith("RunPod names no address for SSH, but ")
    assert ssh_problem(pod).isprintable()
    assert ssh_problem(pod).isascii()


def mapping(public: Any = 43210, ip: Any = "45.23.12.1", private: int = 22, **changes: Any) -> dict[str, Any]:
    return {"private": private, "public": public, "type": "tcp", "ip": ip, **changes}


@pytest.mark.parametrize(
    ("ports", "uptime", "address", "problem"),
    [
        ([mapping(8888, private=8888), mapping()], 5, ("45.23.12.1", 43210), ""),
        ([mapping(type=None)], 5, ("45.23.12.1", 43210), ""),
        ([mapping(ip="127.0.0.10")], 5, ("127.0.0.10", 43210), ""),  # the simulator's
        ([mapping(private=8888)], 500, None, ""), ([], 500, None, ""), (None, 500, None, ""),
        ([mapping(type="http")], 500, None, ""),
        ([mapping(public=None)], 5, None, ""), ([mapping(ip=None)], None, None, ""),
        ([mapping(ip="100.65.3.9")], 5, None, "it has no public IP address, only 100.65.3.9"),
        ([mapping(ip="10.0.0.7", public=None)], 5, None, "it has no public IP address, only 10.0.0.7"),
        ([mapping(public=None)], 60, None, "it has run for 60 s, and its port 22 has no public address"),
        ([mapping(ip="-oProxyCommand=x")], 60, None, "it has run for 60 s, and its port 22 has no public address"),
    ],
)  # fmt: skip
def test_without_a_direct_address_the_live_mapping_of_port_22_tells(ports, uptime, address, problem):
    pod = pod_at(None, ports, uptime)
    found = ssh_address(pod)
    assert ((found["host"], found["port"]) if found else None, ssh_problem(pod)) == (address, problem)


def test_a_pod_without_a_public_address_is_replaced_at_once(rig):
    rig.cloud.boot = 0.0
    view = rig.cloud.view
    inner = {"uptime": 3, "ports": [mapping(ip="100.65.3.9")]}

    def shown(pod: dict[str, Any]) -> dict[str, Any]:
        hidden = {"ssh": {"proxy": None, "direct": None}, "runtime": inner} if pod["id"] == "pod1" else {}
        return view(pod) | hidden

    rig.cloud.view = shown
    began = rig.clock.now()
    progress = rig.ready()
    assert rig.clock.now() - began < 60
    assert progress.notes == ["pod pod1 (NVIDIA L40S) is released: it has no public IP address, only 100.65.3.9"]
    assert rig.ids == ["pod2"]
