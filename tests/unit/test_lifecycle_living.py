"""A pod from its order to its end: what boots, what is given up, what it may cost, and what is left rented."""

from __future__ import annotations

import re

import pytest
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.pods import costs, desired_state, lifecycle, offers
from wire import CAPACITY, problem

# --- booting and living --------------------------------------------------------------------------------------------


def test_pods_that_do_not_boot_in_time_are_replaced_and_after_enough_of_them_nothing_is_rented(rig):
    rig.cloud.boot = 1e6
    released = (
        "pod {} (NVIDIA {}) is released: it did not answer SSH within 900 s (it is PROVISIONING, and has no SSH port "
        "yet)"
    )
    assert rig.go(910 + lifecycle.PAUSE).notes == [released.format("pod1", "L40S")]
    assert rig.ids == ["pod2"]
    assert rig.fails(2100) == (
        f"pod-1: {released.format('pod3', 'L40S')}. It was number 3 of 3; nothing is rented any longer. An image "
        "without sshd does not answer SSH; if it is RunPod's machines, try other pod_gpus"
    )
    assert rig.orders == ["L40S", "A100", "L40S"]  # what gave a bad pod is asked for last
    assert rig.claims.find_open("pod-1") is None


@pytest.mark.parametrize("status", ["EXITED", "ERROR"])
@pytest.mark.parametrize("age", [60, 7200])  # within order_timeout, and after it
def test_a_pod_that_was_ready_and_ended_is_replaced_and_its_machine_is_good_still(rig, status, age):
    rig.cloud.machines = ["10.0.0.1", "10.0.0.2", "10.0.0.2"]
    rig.cloud.fate = [{"status": status}]  # the first one was never ready
    assert rig.ready().claim.attempt == 2
    rig.clock.sleep(age)
    rig.cloud.live[0]["status"] = status
    progress = rig.ready()
    assert progress.notes == [f"pod pod2 (NVIDIA A100) is released: it is {status}"]
    assert (rig.ids, progress.claim.attempt, progress.claim.machine) == (["pod3"], 1, "10.0.0.2")
    assert {other.pod_id: other.bad for other in rig.claims.list_all()} == {"pod1": True, "pod2": False, "pod3": False}


def test_a_pod_that_was_ready_and_does_not_answer_any_more_is_told_and_never_released(rig):
    rig.ready()
    rig.shut = lambda pod: "SSH at 195.26.233.1:30001: Connection refused"
    assert rig.go(890).phase == "booting"
    message = rig.fails(60, left=1)
    assert message.startswith(
        "pod-1 has not answered SSH for 900 s, though RunPod says RUNNING (SSH at 195.26.233.1:30001: Connection "
        "refused). It costs 0.86 USD/h until its leash ends it at 20"
    )
    assert message.endswith(
        "Either go on with the same command, or give it up: ansible-playbook -i <inventory> playbooks/release.yml "
        "-e pod=pod-1"
    )
    rig.shut = lambda pod: None
    assert rig.go().phase == "ready"
    rig.clock.sleep(3600)
    rig.shut = lambda pod: "no"
    assert rig.go(890).phase == "booting"  # the time begins anew
    assert rig.orders == ["L40S"]


def test_orders_end_whatever_is_wrong_with_the_pods_and_the_pauses_between_them_grow(rig):
    ordered = []
    look = rig.cloud.on_order
    rig.cloud.on_order = lambda body: (ordered.append(rig.clock.now()), look(body))
    rig.cloud.machines = ["10.0.0.1"] * 5  # one address, as pods of a machine have, and of its neighbours
    rig.shut = lambda pod: "Connection refused"
    assert "It was number 3 of 3; nothing is rented any longer" in rig.fails(9999, boot_timeout=60.0)
    gaps = [later - earlier for earlier, later in zip(ordered, ordered[1:])]
    assert len(ordered) == 3
    assert gaps[0] >= 60 + lifecycle.PAUSE
    assert gaps[1] >= 60 + 2 * lifecycle.PAUSE
    assert "1 pod was no good; the next order in 15 s" in rig.told


def test_what_runs_without_answering_is_not_called_a_bad_machine_and_its_neighbours_are_left_alone(rig):
    rig.cloud.machines = ["10.0.0.1"] * 2
    rig.shut = lambda pod: "Connection refused" if pod["id"] == "pod1" else None
    assert rig.go(2000).phase == "ready"
    assert (rig.ids, rig.orders) == (["pod2"], ["L40S"] * 2)  # an image without sshd is no fault of the GPU's
    assert [claim.bad for claim in rig.claims.list_all()] == [False, False]


def test_a_gate_that_failed_makes_the_next_order_wait(rig):
    rig.release(rig.ready().claim, "its machine did not pass the gate", bad=True)
    assert (rig.go(lifecycle.PAUSE - 2).phase, rig.orders) == ("waiting", ["L40S"])
    rig.ready()
    assert rig.orders == ["L40S", "A100"]


def test_a_pod_that_is_ready_is_kept_when_its_machine_was_bad_for_another(rig):
    machine = rig.ready().claim.machine
    rig.claims.open_claim("pod-2", [], rig.clock.now(), bad=True, machine=machine, released_at=rig.clock.now())
    rig.go()
    assert rig.ids == ["pod1"]


def test_a_gpu_whose_pod_was_no_good_is_asked_for_last_by_its_host_alone_and_for_an_hour(rig):
    rig.cloud.fate = [{"status": "ERROR"}]
    rig.ready()
    rig.ready(host="pod-2")
    assert rig.orders == ["L40S", "A100", "L40S"]
    rig.release(rig.claims.find_open("pod-1"), "no longer wanted")
    rig.clock.sleep(offers.BAD_FOR / 2)
    assert rig.go(offers.BAD_FOR / 4, host="pod-1").claim.gpu == "NVIDIA A100"
    rig.release(rig.claims.find_open("pod-1"), "no longer wanted")
    rig.clock.sleep(offers.BAD_FOR / 2)
    assert rig.go().claim.gpu == "NVIDIA L40S"


def test_a_pod_that_costs_more_than_the_cap_is_released_at_once(rig):
    rig.cloud.fate = [{"price": 2.01}]
    assert rig.fails() == (
        "pod-1: NVIDIA L40S was offered at 0.86 USD/h, but the pod cost 2.01; it was released at once"
    )
    assert [asked.partition(" ")[0] for asked in rig.cloud.asked] == [
        "GET", "GET", "POST", "DELETE", "GET", "GET",
    ]  # fmt: skip
    assert rig.claims.list_all()[0].word == "it costs 2.01 USD/h, more than RunPod's catalogue said"


def test_a_price_that_changes_is_noted(rig):
    rig.ready()
    rig.cloud.live[0]["price"] = 0.9
    assert rig.go().claim.usd_per_hour == 0.9


def test_a_pod_that_vanished_is_replaced_and_what_it_cost_counts(rig):
    rig.ready(max_usd=3.0)
    rig.clock.sleep(3600 - 12)
    rig.cloud.live[0]["status"] = "TERMINATED"
    progress = rig.ready()
    assert progress.notes == ["pod pod1 of pod-1 is gone, by somebody else's hand or RunPod's"]
    budget = desired_state.pod_budget(rig.wanted, progress.claim, rig.claims, rig.clock.now(), "/r")
    assert budget.spent == pytest.approx(0.86, abs=0.01)
    assert (budget.pod, budget.max_usd, budget.since) == ("pod2", 3.0, progress.claim.asked_at)
    assert budget.claim == str(rig.claims.path_of(progress.claim.name))
    left = (3.0 - budget.spent) / (0.86 * costs.TOLERANCE)
    assert budget.deadline - budget.since == pytest.approx(left * 3600, abs=30)


def test_a_pod_whose_leash_ended_it_is_an_error_and_the_same_command_orders_another(rig):
    deadline = rig.ready().claim.deadline
    rig.cloud.live[0]["status"] = "TERMINATED"
    rig.clock.time = deadline + 1
    assert rig.fails(40) == (
        "pod-1: its leash ended the pod after 3:00 h, 2.58 USD. Checkpoints that were fetched are kept; for more time: "
        "-e pod_max_hours=…, and -e pod_max_usd=… where that is set. The same command orders another pod"
    )
    assert rig.ready().claim.pod_id == "pod2"


def test_a_pod_whose_renewed_leash_ended_it_is_told_with_its_real_length(rig):
    claim = rig.ready().claim
    assert rig.claims.renew(claim.name, claim.deadline + 7200)
    rig.cloud.live[0]["status"] = "TERMINATED"
    rig.clock.time = claim.deadline + 7201
    assert "ended the pod after 5:00 h, 4.30 USD" in rig.fails(40)


def test_a_pod_whose_leash_ended_it_costs_nothing_after_its_deadline(rig):
    rig.ready()
    rig.cloud.live[0]["status"] = "TERMINATED"
    rig.clock.sleep(86400)
    assert " 2.58 USD" in rig.fails(40)


# --- caps and time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"estimate": lambda gpu: 30.0}, "pod-1: NVIDIA L40S at 0.86 USD/h would take about 30:00 h and 25.80 USD; "
                                         "pod_max_hours is 24, pod_max_usd 0. Nothing was ordered"),
        ({"max_usd": 0.5}, "pod-1: NVIDIA L40S at 0.86 USD/h would take about 1:00 h and 0.86 USD; pod_max_hours is 24,"
                           " pod_max_usd 0.5. Nothing was ordered"),
        ({"max_usd_per_hour": 0.5}, "no GPU of pod_gpus will do within pod_max_usd_per_hour 0.50: NVIDIA L40S (SECURE):"
                                    " 0.86 USD/h; NVIDIA A100 (SECURE): 1.64 USD/h. The cheapest of them is NVIDIA L40S"
                                    " at 0.86 USD/h."),
        ({"gpus": ["L40X"]}, "pod_gpus: RunPod has no GPU «L40X»; did you mean «NVIDIA L40S»? There are: NVIDIA A100, "
                             "NVIDIA L40S"),
    ],
)  # fmt: skip
def test_what_does_not_fit_into_the_caps_is_told_before_anything_is_ordered(rig, changes, words):
    assert rig.fails(**changes) == words
    with pytest.raises(UserError, match=re.escape(words)):
        rig.manager.predict(rig.wanted)
    assert rig.orders == []


def test_what_was_spent_before_is_told_when_nothing_is_left(rig):
    rig.ready(max_usd=2.0)
    rig.clock.sleep(2 * 3600)
    rig.cloud.live[0]["status"] = "TERMINATED"
    assert rig.fails(40).startswith(
        "pod-1: 1.73 USD are spent on it; NVIDIA L40S at 0.86 USD/h would take about 1:00 h"
    )


def test_a_gpu_that_is_too_slow_for_the_caps_is_passed_over(rig):
    rig.go(estimate=lambda gpu: 30.0 if "L40S" in gpu else 10.0)
    assert rig.orders == ["A100"]


def test_a_pod_whose_price_would_break_the_cap_in_all_is_released_at_once(rig):
    rig.cloud.fate = [{"price": 1.72}]
    assert rig.fails(max_usd=2.0).endswith("was offered at 0.86 USD/h, but the pod cost 1.72; it was released at once")
    rig.cloud.fate = [{"price": 0.9}]  # with its disk
    claim = rig.go().claim
    assert (claim.deadline - claim.asked_at) / 3600 * claim.usd_per_hour <= 2.0
    rig.cloud.live[0]["status"] = "TERMINATED"
    rig.cloud.fate = [{"price": 1.72}]  # without a cap in all, that on the hour decides
    rig.clock.sleep(60)
    assert rig.go(60, max_usd=0.0).claim.usd_per_hour == 1.72


@pytest.mark.parametrize("how", ["interrupted", "over the cap", "unclear", "both"])
def test_the_same_command_hours_later_waits_anew(rig, how):
    full, unclear = [CAPACITY] * 2, [problem(500, "oops")]
    rig.cloud.fate = {"interrupted": full, "unclear": unclear, "both": full + unclear}.get(how, [])
    if how == "over the cap":
        rig.fails(max_usd_per_hour=0.5)
    else:
        rig.go(20 if how == "both" else 0)
    rig.clock.sleep(7200)
    rig.restart()
    rig.ready(max_usd_per_hour=2.0)


def test_a_slow_boot_does_not_use_up_the_time_for_capacity(rig):
    rig.cloud.fate = [{"status": "PROVISIONING"}]
    assert rig.go(960, order_timeout=300.0).phase == "ready"


def test_what_is_given_up_right_after_an_unclear_order_is_released_when_it_comes(rig):
    rig.cloud.fate, rig.cloud.lag = ["lost"], 5.0
    rig.release(rig.go().claim, "no longer wanted")
    rig.clock.sleep(10)
    rig.check()


def test_what_would_happen_is_told_and_nothing_is_done(rig):
    prediction = rig.manager.predict(rig.wanted)
    assert (prediction.pod, prediction.offer.gpu, prediction.hours, prediction.allowed_hours) == (
        None,
        "NVIDIA L40S",
        1.0,
        3.0,
    )
    assert not rig.claims.folder.exists()
    ready = rig.ready()
    prediction = rig.manager.predict(rig.wanted)
    assert (prediction.pod["id"], prediction.claim) == ("pod1", ready.claim)
    assert rig.orders == ["L40S"]


def test_a_pod_that_would_be_taken_over_is_told(rig):
    rig.cloud.add(f"lora-forge-{rig.claims.owner}-pod-1-0c1d2e")
    assert rig.manager.predict(rig.wanted).pod["id"] == "pod1"


@pytest.mark.parametrize("status", ["EXITED", "ERROR", "TERMINATED"])
def test_who_only_looks_orders_and_releases_nothing(rig, status):
    assert "is not rented" in rig.fails(find_only=True)
    assert not rig.orders
    rig.ready(find_only=False)
    assert rig.go(find_only=True).phase == "ready"
    rig.clock.sleep(60)
    rig.cloud.live[0]["status"] = status
    assert ("is gone" if status == "TERMINATED" else f"is {status}") in rig.fails(left=int(status != "TERMINATED"))
    assert len(rig.orders) == 1
    assert not any(asked.startswith("DELETE") for asked in rig.cloud.asked)


def test_a_stopped_pod_with_a_volume_is_kept_and_told(rig):
    rig.ready()
    rig.cloud.live[0] |= {"status": "EXITED", "mounts": {"persistent": {"size": 20, "path": "/workspace"}}}
    assert "What it holds may be wanted, so it is not replaced. It costs" in rig.fails(left=1)
    assert len(rig.orders) == 1
