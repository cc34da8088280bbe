"""From a claim to a pod: what is asked of RunPod, and what becomes of orders without a clear answer."""

from __future__ import annotations

import re
import shutil
import threading
import urllib.parse
from typing import Any

import pytest
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.pods import lifecycle, watching
from ansible.module_utils.lora_forge.pods.claims import Claims, parse_name
from ansible.module_utils.lora_forge.pods.runpod import Answer, NoAnswer
from wire import CAPACITY, Rivals, answer, gpu, problem, wrong

RULE = problem(400, "disk must be at least 10")
POOL = problem(403, "no access to this pool")
NO_POD = wrong(answer(200, {}), "an order's answer that names no pod says nothing of what was made")
LIST, ORDER = "GET /v2/pods", "POST /v2/pods"


# --- claims and names ----------------------------------------------------------------------------------------------


def test_the_owner_id_is_made_once_and_anothers_is_not_kept(tmp_path):
    owner = Claims(tmp_path / "a").owner
    assert re.fullmatch("[0-9a-f]{8}", owner)
    assert Claims(tmp_path / "a").owner == owner != Claims(tmp_path / "b").owner
    assert Claims(tmp_path / "c", "3f9a2c1b").owner == "3f9a2c1b"
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("owner", ["3f9a-2c1b", "-", "3f9a 2c1b", "3f9a/2c1b", "ann_1"])
def test_an_owner_id_that_no_name_would_give_back_is_refused(tmp_path, owner):
    with pytest.raises(UserError) as caught:
        Claims(tmp_path / "a", owner)
    assert str(caught.value) == f"owner is «{owner}»; an owner's id holds letters and digits only"
    assert not (tmp_path / "a").exists()


def test_an_empty_owner_file_is_no_owner(tmp_path):
    (tmp_path / "owner").touch()
    assert re.fullmatch("[0-9a-f]{8}", Claims(tmp_path).owner)


def test_the_open_claim_of_a_host_is_the_newest_that_is_not_released(tmp_path):
    claims = Claims(tmp_path)
    first, second, _ = (claims.open_claim(host, ["r"], now) for host, now in (("a", 1), ("a", 2), ("b", 3)))
    assert [claim.made_at for claim in claims.list_all()] == [1, 2, 3]
    assert claims.find_open("a") == second
    claims.update(second, released_at=9)
    assert claims.find_open("a") == first
    claims.update(first, released_at=9)
    assert claims.find_open("a") is None
    claims.path_of("torn").write_text("{")
    assert len(claims.list_all()) == 3


@pytest.mark.parametrize("host", ["pod-1", "a", "gpu.example.org", "lora-forge-1-2"])
def test_a_name_tells_owner_and_host(tmp_path, host):
    claims = Claims(tmp_path)
    names = {claims.open_claim(host, [], 0).name for _ in range(3)}
    assert len(names) == 3
    assert {parse_name(name) for name in names} == {(claims.owner, host)}


@pytest.mark.parametrize("name", ["", "my-pod", "lora-forge", "lora-forge-1-pod", "lora-forge-1-pod-XYZ123",
                                  "xlora-forge-1-pod-0c1d2e", "lora-forge-1-pod-0c1d2e3"])  # fmt: skip
def test_other_names_are_nobodys(name):
    assert parse_name(name) is None


# --- ordering ------------------------------------------------------------------------------------------------------


def test_a_pod_is_claimed_ordered_once_and_found_again(rig):
    progress = rig.go(data_centers=["EU-RO-1"])
    assert (progress.phase, progress.message) == ("booting", "NVIDIA L40S, SECURE, 0.86 USD/h: ordered")
    assert rig.cloud.asked == [LIST, "GET /v2/catalog/gpus", ORDER]
    body = {k: v for k, v in rig.cloud.orders[0].items() if k not in ("env", "name")}
    assert body == {
        "image": "i", "disk": 60, "ports": ["22/tcp"], "cloud": "SECURE", "dataCenterIds": ["EU-RO-1"],
        "gpu": {"id": "NVIDIA L40S", "count": 1, "minCudaVersion": "13.0"},
    }  # fmt: skip
    assert rig.go(2).message == "it is PROVISIONING, and has no SSH port yet"
    rig.restart()
    ready = rig.ready()
    assert (ready.claim.state, ready.claim.pod_id) == ("ready", "pod1")
    written = rig.claims.list_all()
    del rig.cloud.asked[:]
    assert rig.ready().claim == ready.claim
    assert (rig.cloud.asked, rig.claims.list_all()) == ([LIST], written)
    assert rig.ready(runs=["crew-1"]).claim.runs == ["crew-1", "witness-1"]


def test_advancing_ends_with_something_new_to_tell_or_after_the_time_it_is_given(rig):
    rig.shut = lambda pod: "no SSH answer yet"
    rig.go(20)
    for since, least, most in (("what was told", 0, 0), ("no SSH answer yet", 20, 20)):
        began = rig.clock.now()
        assert rig.manager.advance(rig.wanted, 20, since).message == "no SSH answer yet"
        assert least <= rig.clock.now() - began <= most


def test_each_candidate_is_asked_for_once_until_one_is_there(rig):
    rig.cloud.fate = [CAPACITY, POOL]
    rig.cloud.gpus.append(gpu("A40", 0.44))
    progress = rig.go(gpus=["L40S", "A100", "A40"], clouds=["SECURE"])
    assert (rig.orders, progress.claim.gpu) == (["L40S", "A100", "A40"], "NVIDIA A40")
    assert len({order["name"] for order in rig.cloud.orders}) == 1


def test_the_catalogue_is_asked_for_what_would_be_ordered(rig):
    reply, asked = rig.cloud.reply, []

    def noting(method: str, url: str, body: bytes | None) -> Answer:
        asked.append(dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query)))
        return reply(method, url, body)

    rig.cloud.reply = noting
    rig.go(count=2, min_cuda="13.0", clouds=["COMMUNITY"])
    [query] = [one for one in asked if one.get("include") == "AVAILABILITY"]
    assert (query["cloud"], query["count"], query["minCudaVersion"]) == ("COMMUNITY", "2", "13.0")
    order = rig.cloud.orders[0]
    assert (order["cloud"], order["gpu"]["count"], order["gpu"]["minCudaVersion"]) == ("COMMUNITY", 2, "13.0")


@pytest.mark.parametrize("words", [
    "There are no longer any instances available with enough disk space.", "No capacity in EU-RO-1", "out of stock",
    "no instances are currently available", "could not be placed", "this GPU is unavailable",
    "This machine does not have the resources to deploy your pod. Please try a different machine.",
    "No available machine matches the requested GPU type, count and data center.",
])  # fmt: skip
def test_where_there_is_no_capacity_it_waits_between_rounds_and_then_takes_what_comes(rig, words):
    rig.cloud.fate = [problem(400, words)] * 4
    progress = rig.go()
    assert (progress.phase, progress.message) == ("waiting", f"no capacity for L40S, A100 ({words.rstrip('.')})")
    assert rig.go(lifecycle.RETRY - 3).phase == "waiting"
    assert len(rig.orders) == 2
    rig.go(3)
    assert len(rig.orders) == 4
    assert rig.go(30).phase == "ready"
    assert rig.orders == ["L40S", "A100"] * 2 + ["L40S"]


def test_without_capacity_it_ends_in_time_with_nothing_rented(rig):
    rig.cloud.fate = [CAPACITY] * 99
    assert rig.fails(200, order_timeout=100.0) == (
        "pod-1: no capacity for L40S, A100 (There are no longer any instances available with the requested "
        "specifications), within 100 s. Nothing is rented. Name more GPUs in pod_gpus, another cloud, or wait longer: "
        "-e pod_order_timeout=…"
    )
    assert rig.claims.find_open("pod-1") is None
    assert len(rig.orders) == 2 * 7


def test_a_wait_for_capacity_is_told_once(rig):
    rig.cloud.fate = [CAPACITY] * 99
    rig.go(100)
    assert len(rig.told) == len(set(rig.told))


@pytest.mark.parametrize(
    ("fate", "asked", "words"),
    [
        ([RULE, RULE], 2, "400 Title 400: disk must be at least 10. RunPod cannot carry this out"),
        ([POOL, POOL], 2, "403 Title 403: no access to this pool. The key may not do this"),
        ([problem(401, "bad key")], 1, "RUNPOD_API_KEY is not accepted"),
        ([problem(402, "low balance")], 1, "402 Title 402: low balance. The balance is too low"),
        ([CAPACITY, problem(402, "low balance")], 2, "The balance is too low"),
        ([problem(404, "no such image")], 1, "no such image"),
        ([problem(409, "busy")], 1, "busy"),
        ([problem(422, "invalid", ("$.disk",))], 1, "invalid; $.disk. This version does not fit RunPod's API"),
        ([problem(429, "slow", retry_after="99")], 1, "Too many requests"),
        ([RULE, POOL], 2, "disk must be at least 10"),
    ],
)  # fmt: skip
def test_what_no_other_try_mends_ends_it_at_once_with_nothing_claimed(rig, fate, asked, words):
    rig.cloud.fate = list(fate)
    assert words in rig.fails(60)
    assert len(rig.orders) == asked
    assert rig.claims.find_open("pod-1") is None


# --- what got no clear answer --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["lost", "died"])
def test_an_order_whose_answer_was_lost_is_found_by_its_name_and_not_repeated(rig, how):
    rig.cloud.fate = ["lost"]
    if how == "died":  # the controller, while it waited for the answer
        rig.cloud.fate = [KeyboardInterrupt()]
        with pytest.raises(KeyboardInterrupt):
            rig.manager.advance(rig.wanted, 0)
        rig.cloud.add(rig.cloud.orders[0]["name"], rig.cloud.orders[0])
        rig.restart()
    else:
        assert rig.go().message == "no answer; looking for its pod"
    assert rig.go().claim.state == "ordered"
    assert rig.ready().claim.pod_id == "pod1"
    assert rig.orders == ["L40S"]


@pytest.mark.parametrize("fate", [problem(500, "oops"), answer(502, b"<html>"), NoAnswer("reset"), NO_POD])
def test_an_order_that_made_nothing_is_repeated_under_its_name_when_it_cannot_come_any_more(rig, fate):
    rig.cloud.fate = [fate]
    assert rig.go(watching.SETTLE - 6).phase == "ordering"
    assert rig.orders == ["L40S"]
    rig.ready()
    assert [order["name"] for order in rig.cloud.orders] == [rig.claims.find_open("pod-1").name] * 2


def test_of_twins_the_known_one_stays(rig):
    rig.cloud.fate = [problem(502, "oops")]
    rig.go(watching.SETTLE)
    ready = rig.ready()
    rig.cloud.add(ready.claim.name, born=rig.clock.now() - 60)  # the first order, after all
    progress = rig.go()
    assert (progress.notes, rig.ids) == (["pod2 was ordered twice; the second one is released"], ["pod1"])


def test_an_order_that_is_listed_late_is_not_repeated(rig):
    rig.cloud.fate, rig.cloud.lag = ["lost"], 20.0
    rig.ready()
    assert len(rig.orders) == 1


@pytest.mark.parametrize(("lag", "unknown"), [(60.0, 0), (10.0, 9)])  # in the list only, or by its id too
def test_a_clear_order_that_is_listed_late_is_not_repeated(rig, lag, unknown):
    rig.cloud.lag, rig.cloud.faults = lag, [("GET /v2/pods/pod1", problem(404, "pod not found"))] * unknown
    rig.ready()
    assert len(rig.orders) == 1


def test_a_pod_that_is_listed_late_is_released_all_the_same(rig):
    rig.cloud.lag, rig.cloud.fate = 10.0, [{"price": 9.0}]
    rig.fails()


def test_a_pod_that_is_listed_twice_is_no_twin(rig):
    rig.ready()
    view = rig.cloud.view(rig.cloud.live[0])
    rig.cloud.faults = [(LIST, answer(200, {"pods": [view, view]}))]
    rig.go()
    assert rig.ids == ["pod1"]


def test_a_live_pod_without_a_claim_is_taken_over(rig):
    old = rig.ready().claim
    rig.clock.sleep(3600)
    shutil.rmtree(rig.claims.folder / "claims")
    progress = rig.go()
    assert (progress.phase, progress.notes) == ("ready", ["pod1 is there already; taken over"])
    for name in ("name", "pod_id", "gpu", "cloud", "usd_per_hour", "deadline", "allowance_s", "asked_at"):
        assert getattr(progress.claim, name) == getattr(old, name), name
    assert len(rig.orders) == 1


def test_a_pod_that_was_released_and_is_listed_still_is_not_taken_over(rig):
    claim = rig.ready().claim
    listed = [(LIST, answer(200, {"pods": [rig.cloud.view(rig.cloud.live[0])]}))]
    rig.release(claim, "no longer wanted")
    rig.cloud.faults = list(listed)
    assert rig.manager.predict(rig.wanted).pod is None
    rig.cloud.faults = list(listed)
    progress = rig.go()
    assert (rig.ids, progress.notes, progress.message) == (["pod2"], [], "NVIDIA L40S, SECURE, 0.86 USD/h: ordered")
    assert rig.cloud.faults == []
    assert progress.claim.name != claim.name


def test_another_owners_or_hosts_pod_is_not_taken(rig):
    rig.cloud.add("lora-forge-deadbeef-pod-1-0c1d2e")
    rig.cloud.add(f"lora-forge-{rig.claims.owner}-pod-2-0c1d2e")
    rig.manager.advance(rig.wanted, 0)
    assert len(rig.orders) == 1


def test_two_controllers_at_once_order_one_pod(rig, monkeypatch):
    rivals, adopt = Rivals(monkeypatch), rig.manager._adopt_orphan

    def late(wanted: Any) -> Any:
        claim = adopt(wanted)
        rivals.meet()
        return claim

    rig.manager._adopt_orphan = late
    assert rig.claims.owner  # made by now: its files are named by process, and these are two threads of one
    both = [threading.Thread(target=rig.manager.advance, args=(rig.wanted, 0)) for _ in range(2)]
    for step in (threading.Thread.start, threading.Thread.join):
        for thread in both:
            step(thread)
    assert len(rig.cloud.live) == 1
