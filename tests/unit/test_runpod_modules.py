"""What the modules and the inventory plugin make of RunPod, as a playbook sees it."""

from __future__ import annotations

import os
from typing import Any
from unittest import mock

import pytest
import rundir
import wire
import yaml
from ansible.errors import AnsibleError
from ansible.inventory.data import InventoryData
from ansible.module_utils.lora_forge.pods import ssh
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import inventory_loader
from wire import IMAGE, KEY, ROOT, RUN, Desk, problem

inventory_loader.add_directory(str(ROOT / "inventory_plugins"))
POD_ENV = {"PUBLIC_KEY", "LORA_FORGE_LEASH", "LORA_FORGE_ROOT", "LORA_FORGE_API", "LORA_FORGE_DEADLINE",
           "LORA_FORGE_ALLOWANCE", "LORA_FORGE_LOG_KEY"}  # fmt: skip


# --- runpod_pod ----------------------------------------------------------------------------------------------------


def test_check_mode_orders_nothing_and_says_price_hours_and_leash(desk):
    answer = desk.pod(check=True)
    assert answer["changed"] is True
    assert answer["message"] == (
        "pod-1 would be NVIDIA L40S (SECURE, stock HIGH) at 0.86 USD/h: about 0:06 h, 0.09 USD (an estimate, not "
        "measured); its leash ends it after 1:12 h, 1.03 USD, at the latest"
    )
    after = {"state": "RUNNING", "gpu": "NVIDIA L40S", "usd_per_hour": 0.86}
    assert answer["diff"] == {"before": {"state": "absent"}, "after": after}
    assert (desk.cloud.asked, desk.state_dir.exists()) == (["GET /v2/catalog/gpus"], False)
    assert (
        ": how long it takes is not known; its leash ends it after 24:00 h" in desk.pod(check=True, runs=[])["message"]
    )


def test_a_gpu_that_may_be_too_small_is_told_with_the_class_that_fits(desk):
    runs = [
        RUN
        | {"run_id": name, "estimate": {"memory_gib": gib, "memory_classes": {"gpu-48gb": gib / 2, "gpu-80gb": gib}}}
        for name, gib in (("a", 50.0), ("b", 60.0))
    ]
    assert desk.pod(check=True, runs=runs)["message"].endswith(
        "48 GB may be too little: 60.0 GiB is the estimate; with trainer_machine: gpu-48gb it is 30.0 GiB"
    )


def test_a_pod_is_had_found_stopped_and_left(desk):
    made = desk.pod()
    assert (made["changed"], made["phase"], made["notes"]) == (True, "ready", [])
    assert made["message"].startswith(
        "pod-1: NVIDIA L40S answers; 0.00 USD so far, 0.86 USD/h until its leash ends it, at"
    )
    assert made["retention_notice"].startswith("It costs 0.86 USD/h until its leash ends it at ")
    assert made["connection"]["ansible_port"] == desk.cloud.live[0]["port"]
    assert made["connection"]["ansible_ssh_private_key_file"] == str(desk.state_dir / "id_ed25519")
    assert made["diff"]["before"] == {"state": "absent"}
    assert "env" not in made["pod"]
    assert made["budget"].items() >= {"root": "/workspace/lora-forge", "pod": "pod1", "spent": 0, "max_usd": 0}.items()
    again = desk.pod()
    assert (again["changed"], again["connection"]) == (False, made["connection"])
    desk.clock.sleep(1800)
    there = desk.pod(check=True)
    assert (there["changed"], there["pod"]["id"]) == (False, "pod1")
    assert there["message"].startswith(
        "pod-1 is there: NVIDIA L40S at 0.86 USD/h, 0.43 USD so far; its leash ends it in "
    )
    for check, changed in ((True, True), (False, True), (False, False)):
        stopped = desk.leave(check, state="stopped")
        assert (stopped["changed"], stopped["diff"]["after"]["state"]) == (changed, "EXITED")
    for check, changed in ((True, True), (False, True), (False, False), (True, False)):
        left = desk.leave(check, reason="by hand")
        assert (left["changed"], left["phase"], left["pod"]) == (changed, "absent", None)
        outcome = "nothing is rented" if not changed else "would be released" if check else "released; it cost 0.43 USD"
        assert left["message"] == f"pod-1: {outcome} (by hand)"
        assert left["diff"]["after"] == {"state": "absent"}
    assert desk.cloud.live == []
    (claim,) = desk.claims.list_all()
    assert (claim.word, claim.usd) == ("by hand", pytest.approx(0.43, abs=0.01))
    assert (desk.cloud.count("POST /v2/pods"), desk.cloud.count("DELETE /v2/pods/pod1")) == (1, 1)


@pytest.mark.parametrize(
    ("given", "request_"),
    [
        ({}, {}),
        ({"volume": 20}, {"mounts": {"persistent": {"size": 20, "path": "/workspace"}}}),
        ({"network_volume": "vol1", "mount": "/v", "root": "/v/forge"},
         {"mounts": {"network": [{"volumeId": "vol1", "path": "/v"}]}, "dataCenterIds": ["EU-RO-1"]}),
        ({"network_volume": "vol1", "data_centers": ["US-TX-3", "EU-RO-1"]},
         {"mounts": {"network": [{"volumeId": "vol1", "path": "/workspace"}]}, "dataCenterIds": ["EU-RO-1"]}),
        ({"gpu_count": 2, "min_cuda": "", "disk": 50}, {"gpu": {"id": "NVIDIA L40S", "count": 2}, "disk": 50}),
    ],
)  # fmt: skip
def test_what_is_ordered(desk, given, request_):
    desk.pod(env={"WANDB_MODE": "offline", "PUBLIC_KEY": "not this one"}, **given)
    (body,) = desk.cloud.orders
    assert set(body.pop("env")) == POD_ENV | {"WANDB_MODE"}
    assert (body.pop("name"), body.pop("args").startswith("bash -c '")) == (desk.claims.list_all()[0].name, True)
    basic = {"image": IMAGE, "disk": 40, "ports": ["22/tcp"], "cloud": "SECURE",
             "gpu": {"id": "NVIDIA L40S", "count": 1, "minCudaVersion": "13.0"}}  # fmt: skip
    assert body == {**basic, **request_}


def test_the_key_the_pod_gets_is_ours(desk):
    desk.pod(env={"PUBLIC_KEY": "not this one"})
    assert desk.cloud.orders[0]["env"]["PUBLIC_KEY"] == (desk.state_dir / "id_ed25519.pub").read_text().strip()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gpus": []}, "pod-1: pod_gpus is not set; name it in the inventory: pod_gpus: [NVIDIA L40S]"),
        ({"max_usd_per_hour": 0}, "pod-1: pod_max_usd_per_hour is not set; name it in the inventory: "
                                  "pod_max_usd_per_hour: 1.20"),
        ({"image": ""}, "pod-1: pod_image is not set; name it in the inventory: pod_image: runpod/pytorch:…"),
        ({"volume": 10, "network_volume": "vol1"}, "pod-1: pod_volume and pod_network_volume exclude each other"),
        ({"network_volume": "vol1", "data_centers": ["US-TX-3"]},
         "pod-1: network volume vol1 is in EU-RO-1, but pod_data_centers holds US-TX-3; a pod can use a volume of its "
         "own data center only"),
        ({"network_volume": "vol2"}, "RunPod, GET /v2/network-volumes/vol2: 404 Title 404: volume not found. It is not "
                                     "there, or it belongs to another account"),
        ({"start_command": "sh -c 'x'"}, "it must have neither single quotes nor line breaks"),
        ({"ssh_key": "/none"}, "pod_ssh_key: /none does not exist"),
        ({"leash": "/none.py"}, "No such file or directory (/none.py)."),
        ({"api_key": ""}, "RUNPOD_API_KEY is not set."),
        ({"api_url": "http://example.org"}, "the key would go over the network in clear. Use https"),
        ({"root": None}, "pod-1: root is not set; name the folder of the trainer on the pod"),
        ({"leash": None}, "leash is not set; name roles/pod/files/leash.py. No pod is ordered without one"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("check", [True, False])
def test_what_is_missing_or_contradicts_is_told_and_nothing_is_ordered(desk, given, words, check):
    answer = desk.pod(check=check, **given)
    assert answer["failed"]
    assert words in answer["msg"]
    assert desk.cloud.orders == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"disk": 0}, "pod-1: pod_disk is 0; give at least 1"), ({"disk": -5}, "pod_disk is -5"),
        ({"volume": 5}, "pod-1: pod_volume is 5; RunPod's smallest has 10 GB, and 0 is none"),
        ({"volume": -1}, "pod_volume is -1"), ({"gpu_count": 0}, "pod-1: pod_gpu_count is 0; give at least 1"),
        ({"gpu_count": -1}, "pod_gpu_count is -1"), ({"attempts": 0}, "pod_attempts is 0"),
        ({"boot_timeout": 0}, "pod_boot_timeout is 0"), ({"order_timeout": -1}, "pod_order_timeout is -1"),
        ({"max_hours": 0}, "pod_max_hours is 0"), ({"max_hours": float("nan")}, "pod_max_hours is nan"),
        ({"max_usd_per_day": float("nan")}, "pod_max_usd_per_day is nan"),
        ({"max_usd_per_month": -1}, "pod_max_usd_per_month is -1.0"),
        ({"max_usd_per_month": float("inf")}, "pod_max_usd_per_month is inf"),
        ({"max_usd": -1}, "pod_max_usd is -1.0"), ({"max_usd_per_hour": float("inf")}, "pod_max_usd_per_hour is inf"),
        ({"min_cuda": "thirteen"}, 'pod-1: pod_min_cuda is «thirteen»; write major.minor, as in "13.0"'),
        ({"min_cuda": "13.0.1"}, "pod_min_cuda is «13.0.1»"), ({"min_cuda": ">=13"}, "pod_min_cuda is «>=13»"),
        ({"min_cuda": "13.0\n"}, "pod_min_cuda is"), ({"min_cuda": "١٣.٠"}, "pod_min_cuda is"),
        ({"image": "an image"}, "pod-1: pod_image is «an image», which names no image"),
        ({"image": "i@sha256:short"}, "pod_image is «i@sha256:short»"), ({"image": "-v"}, "pod_image is «-v»"),
        ({"env": {"A B": "x"}}, "pod-1: pod_env: «A B» is no name of a variable"), ({"env": {"": "x"}}, "pod_env: «»"),
        ({"env": {"A=B": "x"}}, "pod_env: «A=B»"), ({"env": {"1A": "x"}}, "pod_env: «1A»"),
        ({"env": {"A": None}}, "pod-1: pod_env: A must be a text or a number"),
        ({"env": {"A": {"b": 1}}}, "pod_env: A must be"), ({"env": {"A": ["b"]}}, "pod_env: A must be"),
        ({"env": {"A": "a\0b"}}, "pod_env: A must be"),
        ({"env": {"RUNPOD_API_KEY": "x"}}, "pod_env: RUNPOD_API_KEY is set by RunPod or by lora-forge"),
        ({"env": {"LORA_FORGE_DEADLINE": "9e9"}}, "pod_env: LORA_FORGE_DEADLINE is set by"),
        ({"env": {f"N{number}": "" for number in range(44)}}, "pod_env holds 44 variables; RunPod takes 43 beside"),
        ({"gpus": ["L40S", ""]}, "pod-1: pod_gpus holds an empty name"), ({"data_centers": [" "]}, "pod_data_centers"),
        ({"clouds": []}, "pod-1: pod_clouds is empty"), ({"mount": "workspace"}, "pod_mount is «workspace»"),
    ],
)  # fmt: skip
def test_what_runpod_would_refuse_at_the_order_is_refused_in_the_plan(desk, given, words):
    answer = desk.pod(check=True, **given)
    assert answer["failed"]
    assert words in answer["msg"]
    assert desk.cloud.asked == []


def test_what_runpod_just_takes_is_ordered(desk):
    own = {f"N{number}": number for number in range(43)}
    desk.pod(env=own, min_cuda="13", disk=1, volume=10)
    (body,) = desk.cloud.orders
    assert (body["gpu"]["minCudaVersion"], body["disk"], len(body["env"])) == ("13.0", 1, 50)
    assert body["mounts"]["persistent"]["size"] == 10


def test_an_image_that_is_named_by_its_tag_alone_is_told_in_the_plan(desk):
    said = (
        "pod_image a/b:1 is named by its tag alone, behind which another image may be tomorrow; a digest names one for"
    )
    assert said in desk.pod(check=True, image="a/b:1")["message"]
    assert "by its tag alone" not in desk.pod(check=True)["message"]
    default = yaml.safe_load((ROOT / "roles/pod/defaults/main.yml").read_text())["pod_image"]
    assert "by its tag alone" not in desk.pod(check=True, image=default)["message"]


def test_a_gpu_that_the_catalogue_does_not_have_fails_no_plan(desk):
    message = desk.pod(check=True, gpus=["H900", "L40S"])["message"]
    assert "pod-1 would be NVIDIA L40S" in message
    assert "RunPod has no GPU «H900»" in message


def test_a_pod_that_shows_another_host_key_is_an_error_and_is_kept(desk, monkeypatch):
    made = desk.pod()
    pin = desk.state_dir / "known_hosts" / made["claim"]["name"]
    pinned = pin.read_text()
    monkeypatch.setattr(wire, "host_key", lambda pod: "ssh-ed25519 bmV3")
    answer = desk.pod()
    assert answer["failed"]
    assert "another host key than the one that was pinned when it was new" in answer["msg"]
    assert f"remove {pin}, and the same command pins the new one" in answer["msg"]
    assert "It costs 0.86 USD/h until its leash ends it" in answer["msg"]
    assert (pin.read_text(), desk.ids) == (pinned, ["pod1"])
    pin.unlink()
    assert desk.pod()["phase"] == "ready"
    assert pin.read_text() != pinned


def test_a_log_that_its_leash_did_not_seal_lets_nobody_in(desk, monkeypatch):
    monkeypatch.setattr(
        wire, "shown_key", lambda key, log_key: f"lora-forge host key {ssh.fingerprint(key)} (ssh-ed25519)"
    )
    answer = desk.pod(boot_timeout=60, attempts=1)
    assert answer["failed"]
    assert "its log shows no host key yet" in answer["msg"]
    assert desk.cloud.live == []


def test_a_refusal_is_told_without_the_key(desk):
    desk.cloud.fate = [problem(402, f"balance of {KEY} too low")]
    assert desk.pod()["msg"].startswith("RunPod, POST /v2/pods: 402 Title 402: balance of … too low. The balance is")


def test_a_short_value_in_env_does_not_blot_the_answer_out(desk):
    answer = desk.pod(env={"OMP_NUM_THREADS": "1"})
    assert answer["connection"]["ansible_host"] == desk.cloud.live[0]["host"]


def test_a_log_that_cannot_be_read_yet_is_no_end(desk):
    desk.cloud.faults = [("GET /v2/pods/pod1/logs", problem(404, "no logs yet"))]
    assert desk.pod().get("phase") == "ready"


def test_to_act_for_another_owner_leaves_our_pod_alone(desk):
    desk.pod()
    theirs = desk.cloud.add("lora-forge-deadbeef-pod-1-0c1d2e")
    assert desk.leave(owner="deadbeef")["changed"]
    assert (theirs["status"], desk.ids) == ("TERMINATED", ["pod1"])


def test_orphans_are_released_by_their_id_and_others_pods_by_nothing(desk):
    desk.pod()
    name = f"lora-forge-{desk.claims.owner}-pod-1-0c1d2e"
    desk.cloud.add(name), desk.cloud.add("lora-forge-deadbeef-pod-1-0c1d2e"), desk.cloud.add(name)
    assert desk.leave(id="pod2")["changed"]
    assert desk.ids == ["pod1", "pod3", "pod4"]
    assert not desk.leave(id="pod3")["changed"]
    desk.leave()
    assert desk.ids == ["pod3"]


def test_what_is_released_leaves_no_pinned_host_key(desk):
    pinned = desk.state_dir / "known_hosts" / desk.pod()["claim"]["name"]
    other = pinned.with_name("lora-forge-deadbeef-pod-1-0c1d2e")
    other.write_text("another pod's")
    assert pinned.exists()
    for act in (lambda: desk.leave(check=True), lambda: desk.leave(state="stopped"), lambda: desk.leave(id="pod9")):
        act()
        assert pinned.exists()
    desk.leave()
    assert list(pinned.parent.iterdir()) == [other]


def test_a_machine_that_is_no_good_is_remembered(desk):
    desk.pod()
    desk.leave(bad=True)
    assert desk.claims.list_all()[0].as_dict().items() >= {"bad": True, "machine": "195.26.233.1"}.items()


# --- runpod_pod_info, runpod_gpu_info ------------------------------------------------------------------------------


def test_what_costs_money_is_told_and_what_does_so_for_nothing(desk, tmp_path):
    desk.pod(output=str(tmp_path))
    desk.cloud.add(f"lora-forge-{desk.claims.owner}-pod-9-0c1d2e"), desk.cloud.add("my-pod")
    answer = desk.call("runpod_pod_info")
    assert [(pod["id"], pod["mine"], pod["claimed"]) for pod in answer["pods"]] == [
        ("pod1", True, ["witness-1"]), ("pod2", True, []), ("pod3", False, []),
    ]  # fmt: skip
    assert (answer["changed"], answer["usd_per_hour"]) == (False, 2.58)
    assert answer["unclaimed"] == [{"host": "pod-9", "id": "pod2"}]
    assert [row[-1] for row in answer["show"]["rows"]] == ["witness-1", "nothing", "–"]
    assert answer["show"]["lines"] == [
        "  3 pods, 2.58 USD/h together",
        "  2025-11 (UTC): 0.00 USD spent on pods, 1.10 committed until their deadlines",
    ]
    (tmp_path / "runs").mkdir()
    for state, unclaimed in (("launched", ["pod2"]), ("failed", ["pod1", "pod2"])):
        rundir.write_json(
            tmp_path / "runs" / "witness-1.json", {"run_id": "witness-1", "state": state, "noted_at": 9e9}
        )
        answer = desk.call("runpod_pod_info")
        assert [pod["id"] for pod in answer["unclaimed"]] == unclaimed
    assert [pod["id"] for pod in desk.call("runpod_pod_info", host="pod-1")["pods"]] == ["pod1"]


def test_a_bill_corrects_the_claim_of_a_pod_that_is_gone(desk):
    desk.pod()
    desk.leave()
    assert desk.call("runpod_pod_info", billing=True)["changed"] is False  # no bill yet
    desk.cloud.bills = [("pod1", 0.25)]
    for check, changed in ((True, True), (False, True), (False, False)):
        assert desk.call("runpod_pod_info", check=check, billing=True)["changed"] is changed
    assert desk.claims.spent_on(["witness-1"], desk.clock.now()) == 0.25


def test_prices_in_the_order_in_which_they_are_tried(desk):
    answer = desk.call("runpod_gpu_info", gpus=["A100", "L40S"], clouds=["SECURE", "COMMUNITY"], max_usd_per_hour=1)
    assert answer["offers"] == [
        {"gpu": "NVIDIA L40S", "cloud": cloud, "usd_per_hour": price, "stock": "HIGH", "memory_gb": 48, "warning": ""}
        for cloud, price in (("COMMUNITY", 0.79), ("SECURE", 0.86))
    ]
    assert [offer["gpu"] for offer in desk.call("runpod_gpu_info")["offers"]] == ["NVIDIA A100", "NVIDIA L40S"]


def test_without_a_cap_no_cap_is_told(desk):
    assert "inf" not in desk.call("runpod_gpu_info", gpus=["L40S"], gpu_count=99)["msg"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gpu_count": 0}, "gpu_count is 0; give at least 1"),
        ({"min_cuda": "new"}, 'min_cuda is «new»; write major.minor, as in "13.0"'),
    ],
)
def test_a_question_that_runpod_would_not_take_is_not_asked(desk, given, words):
    assert desk.call("runpod_gpu_info", **given)["msg"] == words
    assert desk.cloud.asked == []


# --- the inventory plugin ------------------------------------------------------------------------------------------


def inventory(desk: Desk, monkeypatch: pytest.MonkeyPatch, **given: Any) -> tuple[Any, list[str]]:
    """Return the inventory that a file makes, and what was warned of."""
    path = desk.state_dir.parent / "pods.yml"
    content = {"plugin": "runpod", "pods": {"pod-1": None, "pod-2": {"agents": ["mayor"]}}, "vars": {"pod_disk": 9},
               "state_dir": str(desk.state_dir), **given}  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    plugin, hosts, warned = inventory_loader.get("runpod"), InventoryData(), []
    monkeypatch.setitem(type(plugin).parse.__globals__, "display", mock.Mock(warning=warned.append))
    assert plugin.verify_file(str(path))
    plugin.parse(hosts, DataLoader(), str(path), cache=False)
    return hosts, warned


def test_without_a_key_the_inventory_is_what_is_declared_with_a_warning(desk, monkeypatch):
    desk.pod()
    del desk.cloud.asked[:]
    monkeypatch.delenv("RUNPOD_API_KEY")
    hosts, warned = inventory(desk, monkeypatch)
    assert warned == ["RUNPOD_API_KEY is not set: which pods are live is not known"]
    assert [host.name for host in hosts.groups["trainers"].get_hosts()] == ["pod-1", "pod-2"]
    assert hosts.groups["pods_live"].get_hosts() == []
    own = {"pod_disk": 9, "pod_state_dir": str(desk.state_dir), "pod_owner": ""}
    assert hosts.get_host("pod-1").vars.items() >= own.items()
    assert hosts.get_host("pod-2").vars.items() >= {**own, "agents": ["mayor"]}.items()
    assert desk.cloud.asked == []


def test_with_a_key_one_request_finds_our_pods_and_how_to_reach_them(desk, monkeypatch):
    made = desk.pod()
    for name in ("lora-forge-deadbeef-pod-2-0c1d2e", f"lora-forge-{desk.claims.owner}-pod-9-0c1d2e", "my-pod"):
        desk.cloud.add(name)
    del desk.cloud.asked[:]
    hosts, warned = inventory(desk, monkeypatch)
    assert (desk.cloud.asked, warned) == (["GET /v2/pods"], [])
    assert [host.name for host in hosts.groups["pods_live"].get_hosts()] == ["pod-1"]
    facts = {"pod_id": "pod1", "pod_status": "RUNNING", "pod_usd_per_hour": 0.86, **made["connection"]}
    assert hosts.get_host("pod-1").vars.items() >= facts.items()
    assert "ansible_host" not in hosts.get_host("pod-2").vars
    assert "pod-9" not in hosts.hosts
    hosts, _ = inventory(desk, monkeypatch, owner="deadbeef", vars={"pod_ssh_key": "~/mine"})
    assert [host.name for host in hosts.groups["pods_live"].get_hosts()] == ["pod-2"]
    assert "ansible_host" not in hosts.get_host("pod-2").vars  # it boots: its port is not mapped yet
    desk.clock.sleep(60)
    hosts, _ = inventory(desk, monkeypatch, owner="deadbeef", vars={"pod_ssh_key": "~/mine"})
    assert hosts.get_host("pod-2").vars["ansible_ssh_private_key_file"] == os.path.expanduser("~/mine")


def test_an_address_that_is_an_option_reaches_no_variable(desk, monkeypatch):
    desk.pod()
    desk.cloud.live[0]["host"] = "-oProxyCommand=touch /tmp/owned"
    hosts, _ = inventory(desk, monkeypatch)
    assert hosts.get_host("pod-1").vars["pod_id"] == "pod1"
    assert "ansible_host" not in hosts.get_host("pod-1").vars


def test_of_two_pods_of_a_host_the_claimed_one_is_reached(desk, monkeypatch):
    made = desk.pod()
    desk.cloud.add(f"lora-forge-{desk.claims.owner}-pod-1-0c1d2e")
    desk.clock.sleep(60)
    for _ in range(2):  # whichever RunPod lists first
        facts = {"pod_id": "pod1", **made["connection"]}
        assert inventory(desk, monkeypatch)[0].get_host("pod-1").vars.items() >= facts.items()
        desk.cloud.made.reverse()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"vars": {"pod_gpu": 1}}, "pods.yml: pod-1: there is no option pod_gpu; did you mean «pod_gpus»?"),
        ({"pods": {"a": {"pod_max_usd_per_hours": 1}}}, "pods.yml: a: there is no option pod_max_usd_per_hours; did you"
                                                        " mean «pod_max_usd_per_hour»?"),
        ({"pods": {}}, "pods.yml: «pods» names no pod"),
        ({"pods": {"a": "mayor"}}, "pods.yml: a: variables are expected, as in «a: {agents: [mayor]}»"),
        ({"pods": ["a"]}, "Invalid value provided for 'dict': ['a']"),
        ({"var": {"pod_keep": True}}, "pods.yml: there is no key «var»; did you mean «vars»?"),
        ({"compose": {}}, "pods.yml: there is no key «compose»; it takes plugin, pods, vars, state_dir, owner"),
        ({"pods": {"a/b": None}}, "pods.yml: pods: «a/b» cannot be the name of a pod; it is of letters, digits and ."),
        ({"pods": {"../x": None}}, "pods.yml: pods: «../x» cannot be the name of a pod"),
        ({"pods": {"": None}}, "pods.yml: pods: «» cannot be the name of a pod"),
        ({"pods": {"x" * 101: None}}, "xxx» cannot be the name of a pod"),
        ({"pods": {1: None}}, "pods.yml: pods: «1» stands there as a key, and YAML takes it for no text; put"),
        ({"pods": {True: None}}, "pods.yml: pods: «True» stands there as a key, and YAML takes it for no text"),
        ({"pods": {"a": {1: 2}}}, "pods.yml: a: «1» stands there as a key, and YAML takes it for no text"),
        ({"vars": {None: 2}}, "pods.yml: vars: «None» stands there as a key, and YAML takes it for no text"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_told(desk, monkeypatch, given, words):
    with pytest.raises(AnsibleError) as caught:
        inventory(desk, monkeypatch, **given)
    assert words in str(caught.value)
    assert desk.cloud.asked == []


def test_a_list_that_fails_is_an_error_and_not_an_inventory_without_pods(desk, monkeypatch):
    desk.cloud.faults = [("GET /v2/pods", problem(503, f"oops {KEY}"))] * 4
    with pytest.raises(AnsibleError, match=r"RunPod, GET /v2/pods: 503 Title 503: oops …\. RunPod is out of"):
        inventory(desk, monkeypatch)


def test_variables_may_all_be_commented_out(desk, monkeypatch):
    assert "pod-1" in inventory(desk, monkeypatch, vars=None)[0].hosts
