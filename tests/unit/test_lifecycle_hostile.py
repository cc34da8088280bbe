"""A pod with a RunPod whose answers are late, lost or untrue: one order at a time, and a release that is seen."""

from __future__ import annotations

import multiprocessing
import shutil
import types

import pytest
import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.pods import watching
from ansible.module_utils.lora_forge.pods.claims import Claims
from wire import answer, problem

# --- no second order -----------------------------------------------------------------------------------------------


def slow_order(rig, seconds, reply):
    """Let the next order make a pod, which is listed 5 s after its answer came, or was lost."""
    rig.cloud.fate, rig.cloud.lag = [reply], seconds + 5.0
    look = rig.cloud.on_order
    rig.cloud.on_order = lambda body: (look(body), rig.cloud.add(body["name"], body), rig.clock.sleep(seconds))


@pytest.mark.parametrize(("seconds", "status"), [(33.0, 502), (40.0, 504)])
def test_the_time_to_settle_counts_from_the_loss_of_the_answer(rig, seconds, status):
    slow_order(rig, seconds, problem(status, "gateway"))
    assert rig.ready().claim.pod_id == "pod1"
    assert len(rig.cloud.orders) == 1
    assert rig.claims.list_all()[0].lost_at == rig.claims.list_all()[0].asked_at + seconds


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
@pytest.mark.parametrize("clear", [False, True])
def test_no_clock_that_is_set_makes_a_second_order(rig, jump, clear):
    slow_order(rig, 20.0, problem(504, "gateway"))
    if clear:
        rig.cloud.fate, rig.cloud.lag = [], 25.0
        rig.cloud.faults = [("GET /v2/pods/pod1", problem(404, "pod not found"))] * 5
        rig.cloud.on_order = lambda body: None
    rig.go()
    skew = jump
    rig.restart = lambda: None
    rig.manager.clock.now = lambda: rig.clock.now() + skew
    rig.ready()
    assert len(rig.cloud.orders) == 1


def test_time_in_which_nobody_looked_proves_nothing(rig):
    rig.cloud.fate = [KeyboardInterrupt()]  # the controller dies while it waits for the answer
    with pytest.raises(KeyboardInterrupt):
        rig.manager.advance(rig.wanted, 0)
    rig.clock.sleep(1800)
    for _ in range(9):  # looks without time between them prove nothing either
        assert rig.go().message == "the order got no clear answer; looking for its pod"
    assert len(rig.cloud.orders) == 1
    rig.ready()
    assert len(rig.cloud.orders) == 2


def test_a_pod_that_may_have_lived_unseen_until_its_leash_ended_it_is_counted(rig):
    rig.cloud.fate = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        rig.manager.advance(rig.wanted, 0)
    rig.clock.sleep(86400)
    progress = rig.ready(max_usd=5.0)
    assert "so 2.58 USD are counted for it" in progress.notes[0]
    assert rig.claims.spent_on(["witness-1"], rig.clock.now(), progress.claim.name) == pytest.approx(2.58)


@pytest.mark.parametrize(("lost", "seconds"), [(0, 30), (1, 30), (2, 60), (3, 120), (4, 240), (5, 240), (99, 240)])
def test_each_order_that_was_lost_doubles_the_time_until_the_next_one(rig, lost, seconds):
    claim, began = rig.go().claim, rig.clock.now()
    rig.claims.update(claim, lost_orders=lost)
    watch = rig.manager.releaser.watch
    while not watch.settled(claim):
        rig.clock.sleep(10)
    assert rig.clock.now() - began == seconds


def test_that_there_is_no_pod_is_said_three_times_before_it_is_believed(rig):
    claim, watch = rig.go().claim, rig.manager.releaser.watch
    rig.claims.update(claim, watched_for="gone", watched_s=1e6, looks=1)  # by a process that has ended
    assert [watch.settled(claim) for _ in range(3)] == [False, True, True]


def test_the_sleep_of_the_controller_is_time_too_where_its_system_says_so(monkeypatch):
    monkeypatch.setattr(watching.rundir, "uptime", lambda: 7.0)
    assert watching.Clock().uptime() == 7.0
    monkeypatch.setattr(watching, "time", types.SimpleNamespace(monotonic=lambda: 8.0))  # macOS
    assert watching.Clock().uptime() == 8.0


def test_orders_without_any_clear_answer_end(rig):
    rig.cloud.fate = [problem(502, "oops")] * 99
    said = rig.fails(9999)
    assert said.startswith("pod-1: 3 orders got no clear answer from RunPod, and none of their pods has appeared.")
    assert len(rig.cloud.orders) == 3


def test_a_twin_that_comes_when_its_claim_is_closed_is_released_and_its_cost_counted(rig):
    claim = rig.ready().claim
    rig.release(claim, "no longer wanted")
    rig.cloud.add(claim.name, born=rig.clock.now() - 3600, status="RUNNING")
    rig.manager.claims.update(claim, extra_usd=0.0)
    rig.restart()
    rig.manager.advance(rig.wanted, 0)  # orders the next one
    progress = rig.manager.advance(rig.wanted, 0)
    assert rig.ids == ["pod3"]
    assert "pod2 came after its claim was closed; it is released" in progress.notes
    assert rig.claims.read(claim.name).extra_usd == pytest.approx(0.86, abs=0.01)


def test_of_twins_of_which_none_is_known_the_first_one_stays(rig):
    rig.cloud.fate = ["lost"]
    rig.go()
    order = rig.cloud.orders[0]
    rig.cloud.add(order["name"], order, born=rig.clock.now() - 60)
    progress = rig.ready()
    assert (rig.ids, progress.claim.pod_id) == (["pod2"], "pod2")
    assert "pod1 was ordered twice; the second one is released" in progress.notes


@pytest.mark.parametrize(("price", "usd"), [(1.64, 1.64), (0.0, 0.86)])  # not told: as much as the first one
def test_a_twin_that_cannot_be_released_is_told_and_counts_once_it_is(rig, price, usd):
    name = rig.ready().claim.name
    rig.cloud.add(name, price=price)
    rig.cloud.faults = [("DELETE /v2/pods/pod2", problem(403, "no"))] * 99
    [note] = rig.go().notes
    assert note.startswith("pod2 was ordered twice; the second one could not be released, and goes on costing: ")
    assert note.endswith("To release it: playbooks/reap.yml -e confirm=true")
    assert (rig.ids, rig.claims.read(name).extra_usd) == (["pod1", "pod2"], 0.0)
    rig.cloud.faults = []
    rig.clock.sleep(3600)
    progress = rig.go()
    assert progress.notes == ["pod2 was ordered twice; the second one is released"]
    assert (rig.ids, progress.claim.extra_usd) == (["pod1"], pytest.approx(usd))


def test_a_twin_that_is_gone_by_itself_costs_nothing_and_is_no_news(rig):
    name = rig.ready().claim.name
    rig.cloud.add(name, born=rig.clock.now() - 3600)
    rig.cloud.faults = [("DELETE /v2/pods/pod2", problem(404, "pod not found"))]
    progress = rig.go()
    assert (progress.notes, progress.claim.extra_usd) == ([], 0.0)


def test_who_only_looks_leaves_twins_alone(rig):
    name = rig.ready().claim.name
    rig.cloud.add(name)
    rig.go(find_only=True)
    assert rig.ids == ["pod1", "pod2"]


# --- a command that is gone, and a claim that another one closed ------------------------------------------------------


def test_what_reap_has_released_is_not_ordered_again_by_a_worker_that_goes_on(rig):
    progress = rig.go()
    rig.release(rig.claims.find_open("pod-1"), "no live run claimed it")
    for _ in range(2):
        rig.restart()
        with pytest.raises(UserError, match=r"given up meanwhile by another command \(no live run claimed it\)"):
            rig.manager.advance(rig.wanted, 60, progress.message, progress.claim.name)
    assert (rig.ids, len(rig.cloud.orders)) == ([], 1)
    rig.ready()  # another command
    assert len(rig.cloud.orders) == 2


def test_within_one_call_too(rig):
    look, calls = rig.manager.unreachable_reason, []

    def closed(pod, claim):
        calls.append(pod)
        rig.release(Claims(rig.claims.folder).find_open("pod-1"), "by hand")
        return "no answer"

    rig.cloud.boot = 0.0
    rig.go()
    rig.manager.unreachable_reason = closed
    with pytest.raises(UserError, match="given up meanwhile"):
        rig.manager.advance(rig.wanted, 60, "no answer")
    assert (len(calls), rig.ids, look) == (1, [], look)


def ended_process():
    """Return what was noted of a process that is gone."""
    process = multiprocessing.get_context("spawn").Process(target=print)
    process.start()
    noted = rundir.identity(process.pid)
    process.join()
    return noted


def test_nothing_is_ordered_for_a_command_that_is_gone(desk):
    said = desk.pod(controller=ended_process())["msg"]
    assert said == "pod-1: the command that wanted a pod is gone; no pod is ordered"
    assert desk.cloud.orders == []
    assert desk.pod(controller=rundir.identity(multiprocessing.current_process().pid))["phase"] == "ready"


# --- the price -------------------------------------------------------------------------------------------------------


def test_a_dear_pod_that_an_unclear_order_made_is_released(rig):
    look = rig.cloud.on_order
    rig.cloud.on_order = lambda body: (look(body), rig.cloud.add(body["name"], body, price=9.0))
    rig.cloud.fate = [problem(500, "oops")]
    assert rig.fails(60) == (
        "pod-1: NVIDIA L40S was offered at 0.86 USD/h, but the pod cost 9.00; it was released at once"
    )


def hide_price(rig, seconds):
    """Let no pod say what it costs until so long after its order."""
    view = rig.cloud.view
    rig.cloud.view = lambda pod: view(pod) | ({"cost": 0.0} if rig.clock.now() - pod["born"] < seconds else {})


@pytest.mark.parametrize("price", [0.86, 9.0])
def test_a_price_that_is_told_late_is_waited_for(rig, price):
    hide_price(rig, 60.0)
    rig.cloud.fate = [{"price": price}]
    if price > 2:
        assert "the pod cost 9.00" in rig.fails(100)
    else:
        assert rig.go(58).message == "RunPod does not say yet what it costs"
        assert rig.go(10).phase == "ready"
    assert len(rig.cloud.orders) == 1


def test_a_pod_whose_price_is_never_told_is_given_back(rig):
    hide_price(rig, 1e9)
    said = rig.fails(9999)
    assert "is released: RunPod does not say what it costs, 90 s after it began to run. It was number 3 of 3" in said


def test_a_ready_pod_that_is_dearer_than_the_cap_is_told_and_kept(rig):
    rig.ready()
    said = rig.fails(max_usd_per_hour=0.5, left=1)
    assert said.startswith("pod-1 costs 0.86 USD/h, and pod_max_usd_per_hour is 0.50. What it holds may be wanted")
    assert rig.go(find_only=True).phase == "ready"


def test_a_dear_pod_that_cannot_be_deleted_stays_claimed_until_it_is_gone(rig):
    rig.cloud.fate = [{"price": 9.0}]
    rig.cloud.faults = [("DELETE /v2/pods/pod1", problem(403, "no"))] * 99
    said = rig.fails(left=1)
    assert "pod pod1 could not be released (it costs 9.00 USD/h, more than RunPod's catalogue said)" in said
    assert said.endswith("terminate it in RunPod's console")
    assert rig.claims.find_open("pod-1").state == "releasing"
    assert "could not be released" in rig.fails(left=1)  # the next command tries again, and orders nothing
    rig.cloud.faults = []
    assert "is released at last" in rig.go(60).notes[0]
    assert rig.ids == ["pod2"]


# --- deadlines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["EXITED", "ERROR"])
def test_a_pod_past_its_deadline_that_no_list_has_is_no_reason_for_another(rig, status):
    deadline = rig.ready().claim.deadline
    rig.clock.time = deadline + 60
    rig.cloud.live[0]["status"], rig.cloud.lag = status, 1e9
    assert "its leash ended the pod after" in rig.fails()
    assert len(rig.cloud.orders) == 1


# --- releases --------------------------------------------------------------------------------------------------------


def late_delete(rig, seconds):
    """Let pods live on for so long after a DELETE that was answered with 204."""
    reply = rig.cloud.reply

    def deleting(method, url, body):
        pod = next((pod for pod in rig.cloud.live if method == "DELETE" and url.endswith(pod["id"])), None)
        if not pod:
            return reply(method, url, body)
        rig.cloud.asked.append("DELETE")
        rig.clock.later(seconds, lambda: pod.update(status="TERMINATED"))
        return answer(204)

    rig.cloud.reply = deleting


def test_a_release_is_believed_when_the_pod_is_seen_gone(rig):
    claim = rig.ready().claim
    late_delete(rig, 40.0)
    before = rig.clock.now()
    assert rig.release(claim, "done")
    assert rig.cloud.live == []
    assert 40 <= claim.released_at - before < 60
    assert (claim.state, claim.word, claim.bad) == ("released", "done", False)


def test_the_release_of_a_pod_that_was_seen_and_is_gone_waits_for_nothing(rig):
    claim, began = rig.ready().claim, rig.clock.now()
    rig.cloud.live[0]["status"] = "TERMINATED"
    assert rig.release(claim, "done") is False
    assert rig.clock.now() == began


def test_a_pod_that_stays_there_after_its_release_is_told_and_stays_claimed(rig):
    claim = rig.ready().claim
    late_delete(rig, 1e9)
    began = rig.clock.now()
    with pytest.raises(
        UserError, match=r"pod1 could not be released \(done\): RunPod still shows it. It goes on costi"
    ):
        rig.release(claim, "done")
    assert 5 < rig.cloud.asked.count("DELETE") < 15
    assert 60 < rig.clock.now() - began <= 80
    rig.check()


def test_the_cost_of_a_pod_is_not_made_less_by_a_clock_that_is_put_back(rig):
    claim = rig.ready().claim
    rig.clock.sleep(7200)
    rig.manager.clock.now = lambda: rig.clock.now() - 3600
    rig.release(claim, "done")
    assert claim.usd == pytest.approx(2 * 0.86, abs=0.02)


def test_orphans_that_cannot_be_released_do_not_keep_the_others_rented(desk):
    desk.pod()
    name = f"lora-forge-{desk.claims.owner}-pod-1-0c1d2e"
    for _ in range(3):
        desk.cloud.add(name)
    desk.cloud.faults = [(f"DELETE /v2/pods/{pod}", problem(403, "no")) for pod in ("pod2", "pod3") for _ in range(99)]
    said = desk.leave()["msg"]
    assert desk.ids == ["pod2", "pod3"]
    assert "pod2 could not be released" in said
    assert "pod3 could not be released" in said
    assert said.count("It goes on costing until it is gone") == 2  # what an orphan costs is not known


@pytest.mark.parametrize(("price", "said"), [(0.86, "released; it cost 0.86 USD"),
                                             (0.0, "released; what it cost is not known")])  # fmt: skip
def test_what_an_orphan_has_cost_is_told_as_far_as_it_is_known(desk, price, said):
    owner = desk.claims.owner
    desk.cloud.add(f"lora-forge-{owner}-pod-1-0c1d2e", born=desk.clock.now() - 3600, price=price)
    assert desk.leave()["message"] == f"pod-1: {said} (no longer wanted)"


def test_a_second_pod_under_a_claims_name_is_for_nothing_and_reap_releases_it(desk, tmp_path):
    name = desk.pod(output=str(tmp_path))["claim"]["name"]
    desk.cloud.add(name)
    (unclaimed,) = desk.call("runpod_pod_info")["unclaimed"]
    assert unclaimed == {"host": "pod-1", "id": "pod2"}
    assert desk.leave(id="pod2")["changed"]
    assert desk.ids == ["pod1"]


def test_reap_releases_what_an_order_made_whose_controller_died(desk):
    desk.cloud.fate = ["lost"]
    desk.call(**{"host": "pod-1", "gpus": ["L40S"], "max_usd_per_hour": 2, "image": "i", "wait": 0.0, "root": "/r",
                 "leash": str(rundir.__file__)})  # fmt: skip
    desk.clock.sleep(7200)
    (unclaimed,) = desk.call("runpod_pod_info")["unclaimed"]
    assert desk.leave(id=unclaimed["id"])["changed"]
    assert (desk.ids, desk.claims.find_open("pod-1")) == ([], None)


def test_reap_finds_a_pod_that_no_list_has_by_its_id(desk):
    desk.pod()
    desk.clock.sleep(7200)
    desk.cloud.lag = 1e9
    (unclaimed,) = desk.call("runpod_pod_info")["unclaimed"]
    assert desk.leave(id=unclaimed["id"])["changed"]
    assert desk.ids == []


# --- a pod that is taken over -------------------------------------------------------------------------------------


def test_a_pod_that_is_taken_over_without_a_price_counts_as_what_it_may_cost(rig):
    rig.cloud.add(f"lora-forge-{rig.claims.owner}-pod-1-0a1b2c", price=0.0)
    rig.clock.sleep(3600)
    claim = rig.ready(max_usd_per_hour=1.5).claim
    assert (claim.usd_per_hour, claim.priced) == (1.5, False)
    rig.cloud.made[0]["price"] = 0.86
    assert rig.ready().claim.usd_per_hour == 0.86


def test_a_pod_that_is_taken_over_without_a_leash_may_live_as_long_as_any_from_its_start(rig):
    born = rig.cloud.add(f"lora-forge-{rig.claims.owner}-pod-1-0a1b2c")["born"]
    rig.clock.sleep(3600)
    claim = rig.ready(max_hours=5.0).claim
    assert (claim.asked_at, claim.deadline, claim.allowance_s) == (born, born + 5 * 3600, 5 * 3600)


def test_a_pod_that_is_taken_over_is_not_told_as_a_new_one(desk):
    desk.pod()
    shutil.rmtree(desk.claims.folder / "claims")
    made = desk.pod()
    assert (made["phase"], made["changed"], made["claim"]["taken_over"]) == ("ready", False, True)


def test_reap_keeps_what_was_taken_into_use_after_it_looked(desk):
    desk.pod(runs=[])
    (unused,) = desk.call("runpod_pod_info")["unclaimed"]
    desk.pod()  # somebody begins to train there
    kept = desk.leave(unused=True, **unused)
    assert (kept["changed"], kept["message"]) == (False, "pod-1: kept, as it is in use by now (witness-1)")
    assert desk.ids == ["pod1"]
    desk.clock.sleep(2 * 3600)  # nothing was launched there
    assert desk.leave(unused=True, **unused)["changed"]
    assert desk.ids == []
