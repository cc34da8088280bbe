"""What the action plugins show and do while a pod is awaited, and while it trains at a price."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
import types
from typing import Any
from unittest import mock

import numpy as np
import pytest
import rundir
from ansible import constants
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.lora_forge.controller import notify as notices
from ansible.module_utils.lora_forge.controller import retry
from ansible.module_utils.lora_forge.controller.actions import ForgeAction
from ansible.module_utils.lora_forge.planning import run_record
from ansible.module_utils.lora_forge.trainer import run_state, runs, saved, slurm_queue
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import action_loader
from safetensors.numpy import save_file
from wire import Clock, load


@dataclasses.dataclass(frozen=True)
class After:
    """An answer that takes its time."""

    seconds: float
    answer: Any


class Task:
    """An action plugin with prepared answers of modules, a clock, and what it displayed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, *answers: Any, **args: Any):
        self.plugin, self.args, self.answers = load(f"action_plugins/{name}"), args, list(answers)
        self.told: list[str] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.clock = Clock()
        self.leash: dict[str, Any] | None = None  # what pod_leash always answers
        monkeypatch.setattr(self.plugin, "tell", self.hear)
        still = types.SimpleNamespace(
            time=self.clock.now, monotonic=self.clock.now, sleep=self.clock.sleep, strftime=time.strftime,
            localtime=time.localtime,
        )  # fmt: skip
        monkeypatch.setattr(retry, "time", still)
        monkeypatch.setattr(  # of the actions that it calls, too
            ActionBase, "_execute_module", lambda action, name, asked, task_vars: self.module(name, asked, task_vars)
        )
        for uptimes in (rundir, runs.rundir):
            monkeypatch.setattr(uptimes, "uptime", self.clock.now)
        if hasattr(self.plugin, "time"):
            monkeypatch.setattr(self.plugin, "time", still)

    def hear(self, text: str, **about: Any) -> None:
        if not about.get("passing"):
            self.told.append(text)

    def module(self, name: str, asked: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        self.asked.append((name, asked))
        if name == "pod_leash" and self.leash is not None:
            return dict(self.leash)
        assert self.answers, f"nobody expects {name}"
        found = self.answers.pop(0) if len(self.answers) > 1 or not callable(self.answers[0]) else self.answers[0]()
        if isinstance(found, After):
            self.clock.sleep(found.seconds)
            found = found.answer
        if isinstance(found, Exception):
            raise found
        return dict(found)

    def run(self, check: bool = False) -> dict[str, Any]:
        task = mock.Mock(args=self.args, check_mode=check, async_val=0)
        task.copy.return_value = mock.Mock(check_mode=check, async_val=0)  # for the actions that it calls
        loaders = types.SimpleNamespace(action_loader=action_loader)
        action = self.plugin.ActionModule(task, *[mock.Mock()] * 4, shared_loader_obj=loaders)
        found = action.run(task_vars={})
        assert self.answers == [] or callable(self.answers[0])
        return found


def step(phase: str, message: str = "", **more: Any) -> dict[str, Any]:
    return {"changed": False, "phase": phase, "message": message, "notes": [], **more}


def test_a_pod_is_awaited_for_one_claim_and_by_a_command_that_lives(monkeypatch):
    command = types.SimpleNamespace(pid=os.getpid())
    monkeypatch.setattr("multiprocessing.parent_process", lambda: command)
    first = step("booting", "ordered", claim={"name": "n"})
    task = Task(monkeypatch, "runpod_pod", first, step("booting", "no SSH answer yet"), step("ready"), host="pod-1")
    task.run()
    assert [asked.get("claim") for _, asked in task.asked] == [None, "n", "n"]
    assert [asked["controller"] for _, asked in task.asked] == [rundir.identity(os.getpid())] * 3


def test_a_pod_is_awaited_with_a_line_for_each_change(monkeypatch):
    task = Task(
        monkeypatch, "runpod_pod", step("waiting", "no capacity for L40S", changed=True),
        step("waiting", "no capacity for L40S"), step("ordering", "another one", notes=["pod1 is released"]),
        step("booting", "no SSH answer yet"), step("ready", "it answers", connection={}), host="pod-1", wait=20,
    )  # fmt: skip
    found = task.run()
    assert (found["phase"], found["changed"]) == ("ready", True)
    since = ["", "no capacity for L40S", "no capacity for L40S", "another one", "no SSH answer yet"]
    assert task.asked == [("runpod_pod", {"host": "pod-1", "wait": 20, "since": word}) for word in since]
    assert task.told == [
        "  pod-1: waiting: no capacity for L40S", "  pod-1: pod1 is released", "  pod-1: ordering: another one",
        "  pod-1: booting: no SSH answer yet", "  it answers",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "told"),
    [({"failed": True, "msg": "no key"}, []), (step("absent"), []), ({"changed": True, "message": "x"}, ["  x"])],
)
def test_an_error_an_absence_and_a_prediction_end_it(monkeypatch, answer, told):
    task = Task(monkeypatch, "runpod_pod", answer, host="pod-1")
    assert task.run() == {"changed": False, **answer}
    assert task.told == told


def test_a_pod_that_is_given_back_is_told_by_whoever_gave_it_back(monkeypatch):
    task = Task(monkeypatch, "runpod_pod", step("absent", "pod-1 is released"), host="pod-1", state="absent")
    assert task.run()["phase"] == "absent"
    assert task.told == []


def test_an_order_that_cannot_be_quoted_says_that_nothing_was_started(monkeypatch):
    task = Task(monkeypatch, "runpod_pod", {"failed": True, "msg": "no offer"}, host="pod-1")
    assert task.run(check=True)["msg"] == "no offer\nNothing was ordered, and nothing was started on any other host"


def seen(step: int = 0, seconds: float = 10.0, begin: int = 0, checkpoint: int = 0, **changes: Any) -> dict[str, Any]:
    """training_run_info's answer on a run of 100 steps: begun at a step, now at another, with seconds for each."""
    events = [{"event": "begin", "time": 0.0, "step": begin, "planned": 100}]
    if step > begin:
        at = seconds * (step - begin)
        events.append({"event": "log", "time": at, "step": step, "planned": 100, "loss": 1.0, "epoch": 0.1})
    done = run_state.progress(events)
    return {"changed": False, "state": "running", "detail": "", "status": {}, "progress": done.as_dict(),
            "token": f"t{step}", "eta_seconds": run_state.eta_seconds(done), "events": events,
            "checkpoint": {"step": checkpoint, "files": []}, "alive": True, "facts": {}, "silent_for": None,
            "others": {}, "over": [], **changes}  # fmt: skip


WELL = {"alive": True, "state": "waiting", "status": 200, "answer": "200 OK", "lacks": "", "beat_age": 4.0}
FINISHED = seen(100, state="finished")
RENEWED = {"changed": True, "leash": {"alive": True}}
CLAIM = "pods/claims/n.json"


PLAN = {
    "run_id": "witness-1", "agent": "witness", "name": "witness", "fingerprint": "f", "trainer": "pod-1",
    "state": "to train", "rehearsal": False, "recipe": {}, "recipe_sha256": "r", "axolotl": "0.21.0",
    "datasets": [], "hosts": ["pod-1"],
}  # fmt: skip


@pytest.fixture
def watch(monkeypatch, tmp_path):
    """Provide a watch on a pod at 1 USD/h, with its claim on disk; keywords change budget and arguments."""

    def maker(*answers: Any, budget: dict[str, Any] | None = None, **args: Any) -> Task:
        notify = {"output": str(tmp_path), "url": "http://hook", "form": "json", "timeout": 10, "pods": "",
                  "events": ["finished", "decision", "failed", "stalled", "over_budget"]}  # fmt: skip
        given = {"run": PLAN, "root": "/r", "output": str(tmp_path), "stall_timeout": 900,
                 "unreachable_timeout": 60, "stop_timeout": 30, "pull": False, "transfer": {}, "quiet": False,
                 "notify": notify, **args}  # fmt: skip
        task = Task(monkeypatch, "watch", *answers, **given)
        task.posts = []
        monkeypatch.setattr(notices, "post", lambda url, body, timeout: task.posts.append(body) or "")
        (tmp_path / "pods/claims").mkdir(parents=True, exist_ok=True)
        rundir.write_json(tmp_path / CLAIM, {"name": "n", "host": "pod-1", "deadline": 0})
        now = task.clock.now()
        task.args["budget"] = budget and {
            "usd_per_hour": 1.0, "spent": 0.0, "since": now, "max_usd": 0.0, "max_hours": 24.0, "pod": "pod1",
            "deadline": now + 3600 * budget.pop("leash", 24), "claim": str(tmp_path / CLAIM),
            "root": "/workspace/lora-forge", **budget,
        }  # fmt: skip
        return task

    return maker


@pytest.mark.parametrize(
    ("budget", "answer", "breach"),
    [
        ({"max_usd": 0.5}, seen(10, 60), "at the measured pace it would come to 1.50 USD, and pod_max_usd is 0.50"),
        ({"max_hours": 1.0}, seen(10, 60), "at the measured pace it would come to 1.50 h, and pod_max_hours is 1.00"),
        ({"spent": 0.6, "max_usd": 0.5}, seen(0), "it has come to 0.60 USD, and pod_max_usd is 0.50"),
        ({"spent": 0.6, "max_usd": 0.5}, seen(0, state="queued"), "it has come to 0.60 USD, and pod_max_usd is 0.50"),
    ],
)
def test_a_pod_that_would_come_to_cost_too_much_is_stopped_with_the_reason(watch, tmp_path, budget, answer, breach):
    task = watch(answer, {"changed": True}, seen(checkpoint=4), budget=budget)
    found = task.run()
    assert (found["failed"], found["state"], found["breach"], found["kept"]) == (True, "stopped", breach, True)
    assert found["msg"] == (
        f"witness-1 is stopped at step 4: {breach}. What there is was kept; with a higher cap the same command goes on "
        "from there"
    )
    assert [name for name, _ in task.asked] == ["training_run_info", "training_run", "training_run_info"]
    assert task.asked[1][1] == {"run_dir": "/r/runs/witness-1", "state": "stopped", "stop_timeout": 30}
    assert [(post["event"], post["detail"]) for post in task.posts] == [("over_budget", found["msg"])]
    record = run_record.read_record(tmp_path, "witness-1")
    assert (record.state, record.final, record.is_settled("failed")) == ("stopped", True, True)


TROUBLES = [lambda: AnsibleConnectionFailure("no route"), AnsibleError("no route"), {"failed": True, "msg": "no route"}]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_cannot_be_stopped_goes_on_costing_and_that_is_told(watch, trouble):
    task = watch(seen(10, 60), trouble, budget={"max_usd": 0.5})
    found = task.run()
    assert (found["failed"], found["kept"], found["spent"], found["state"]) == (True, False, False, "running")
    assert found["msg"].startswith("witness-1 could not be stopped (no route), and at the measured pace it would come")
    assert "playbooks/release.yml -e pod=pod-1 gives the pod up" in found["msg"]
    assert [post["event"] for post in task.posts] == ["over_budget"]


@pytest.mark.parametrize(
    ("state", "detail", "advice"),
    [
        ("stopped", "stopped: on request; checkpoint at step 3", ["The same command resumes it."]),
        ("stopped", "the queue does not know it any more; the same command resumes", []),
        ("failed", "crashed: ValueError: odd",
         ["Look at /r/runs/witness-1/train.log on the trainer. When the cause is gone, the same command resumes it."]),
        ("failed", "environment: c1 does not see /r as this host does: trainer_root must be in a shared folder",
         ["When the cause is gone, the same command resumes it."]),  # there is no such log
        ("absent", "there is no such run on this trainer", ["train.yml starts it."]),
    ],
)  # fmt: skip
def test_what_is_wrong_comes_with_what_to_do_said_once(watch, state, detail, advice):
    said = watch(seen(state=state, detail=detail)).run()["msg"].splitlines()
    assert said[: len(advice) + 1] == [f"witness-1 is {state}: {detail}", *advice]
    assert ["bundle=true" in words for words in said[len(advice) + 1 :]] == [True] * (state == "failed")


@pytest.mark.parametrize(
    ("state", "advice"),
    [
        ("stopped", "With the recipe and data that it was launched with, train.yml goes on with it."),
        ("failed", "Look at /r/runs/witness-1/train.log on the trainer. With the recipe and data that it was launched "
                   "with, train.yml goes on with it."),
        ("absent", "It is not looked for any more."),
    ],
)  # fmt: skip
def test_of_a_run_that_nothing_plans_any_more_it_is_said_once_that_it_is_lost(watch, tmp_path, state, advice):
    task = watch(seen(state=state, detail="odd"), run=PLAN | {"by_notes": True})
    assert task.run()["msg"].splitlines()[:2] == [f"witness-1 is {state}: odd", advice]
    record = run_record.read_record(tmp_path, "witness-1")
    assert (record.final, record.detail) == (True, "nothing of it was on pod-1 any more" if state == "absent" else "")


def test_a_run_whose_disk_is_not_there_is_looked_for_again(watch, tmp_path):
    run_dir = tmp_path / "not-mounted/runs/witness-1"
    there = runs.observe(run_dir)
    assert (there.state, there.detail) == ("absent", f"there is no folder {run_dir.parent} on this trainer")
    said = watch(seen(state="absent", detail=there.detail), run=PLAN | {"by_notes": True}).run()["msg"]
    assert said.splitlines()[1] == "Is its disk mounted? The same command looks for it again."
    assert not run_record.read_record(tmp_path, "witness-1").final
    run_dir.parent.mkdir(parents=True)
    assert runs.observe(run_dir).detail == "there is no such run on this trainer"


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_cannot_be_stopped_though_a_cap_is_reached_gives_its_pod_up(watch, trouble):
    task = watch(seen(0), trouble, budget={"spent": 0.6, "max_usd": 0.5})
    found = task.run()
    assert (found["failed"], found["kept"], found["spent"], found["state"]) == (True, False, True, "running")
    assert found["msg"] == (
        "witness-1 could not be stopped (no route), and it has come to 0.60 USD, and pod_max_usd is 0.50. Its pod is "
        "released, as its leash would do; the checkpoints that were fetched are kept"
    )
    assert [post["event"] for post in task.posts] == ["over_budget"]
    assert task.clock.now() - Clock().now() < 300


@pytest.mark.parametrize("eta", [-1e9, None, 0.0])
@pytest.mark.parametrize("caps", [{"max_hours": 24.0}, {"max_usd": 10.0, "max_hours": 1e9}])
def test_no_claim_of_a_host_takes_back_what_was_lived(watch, eta, caps):
    """A host that says that it needs less than nothing has trained for 100 hours all the same."""
    stopped = [{"changed": True}, seen(checkpoint=4)]
    claim = seen(10, 60) | {"eta_seconds": eta}
    found = watch(seen(10, 1), After(100 * 3600, claim), *stopped, budget={"usd_per_hour": 2.0, **caps}).run()
    assert found["breach"].startswith("it has come to ")
    assert found["state"] == "stopped"


@pytest.mark.parametrize("eta", [float("nan"), float("-inf"), "soon", 1e300])
def test_what_is_no_number_is_no_answer(watch, eta):
    found = watch(seen(10, 60) | {"eta_seconds": eta}, budget={"max_hours": 24.0}).run()
    assert found["failed"]
    assert "its answer to training_run_info does not fit: eta_seconds" in found["msg"]


def test_a_wall_clock_that_is_set_back_takes_back_nothing(watch, monkeypatch):
    task = watch(seen(10, 1), After(25 * 3600, seen(11, 1)), {"changed": True}, seen(11, 1), budget={"leash": 48})
    began = task.clock.now()
    monkeypatch.setattr(task.plugin.time, "time", lambda: min(task.clock.now(), began))  # set back at every look
    assert task.run()["breach"] == "it has come to 25.00 h, and pod_max_hours is 24.00"


def test_a_wall_clock_that_is_set_forward_stops_nothing(watch, monkeypatch):
    task = watch(seen(10, 1), After(60, seen(11, 1)), FINISHED, budget={"leash": 48})
    began = task.clock.now()
    ahead = {False: 0, True: 48 * 3600}  # two days, after the first look
    monkeypatch.setattr(task.plugin.time, "time", lambda: task.clock.now() + ahead[task.clock.now() > began])
    assert task.run()["state"] == "finished"


@pytest.mark.parametrize(
    ("budget", "answer"),
    [
        ({"max_usd": 0.5}, seen(2, 600)),  # the first steps warm up
        ({"max_usd": 2.0}, seen(10, 60)), ({"max_hours": 1.6}, seen(10, 60)), (None, seen(10, 6e6)),
        ({"max_usd": 0.5}, seen(91, 600, begin=90)),  # and those after a resume
    ],
)  # fmt: skip
def test_a_pod_within_its_caps_or_not_yet_measured_goes_on(watch, budget, answer):
    task = watch(answer, FINISHED, budget=budget)
    assert task.run()["state"] == "finished"
    assert [name for name, _ in task.asked] == ["training_run_info"] * 2


def test_what_is_over_is_not_called_too_dear(watch):
    assert "breach" not in watch(FINISHED, budget={"spent": 9.0, "max_usd": 0.5}).run()


def test_a_leash_that_is_too_short_is_renewed_within_the_caps(watch, tmp_path):
    looks = [seen(10, 60), After(60, seen(11, 60)), RENEWED, After(60, seen(12, 60)), FINISHED]
    task = watch(*looks, budget={"leash": 1, "max_hours": 3.0})
    later = task.clock.now() + 3 * 3600
    assert task.run()["state"] == "finished"
    assert task.asked[2] == ("pod_leash", {"root": "/workspace/lora-forge", "pod": "pod1", "deadline": later})
    assert [name for name, _ in task.asked].count("pod_leash") == 1
    assert rundir.read_json(tmp_path / CLAIM) == {"name": "n", "host": "pod-1", "deadline": later}
    assert f"  witness  the pod's leash is renewed to {time.strftime('%H:%M', time.localtime(later))}" in task.told


def test_a_claim_that_was_closed_meanwhile_is_left_alone_and_that_is_told(watch, tmp_path):
    task = watch(seen(10, 60), After(60, seen(11, 60)), FINISHED, budget={"leash": 1})
    closed = {"name": "n", "host": "pod-1", "deadline": 0, "released_at": 1.0}
    rundir.write_json(tmp_path / CLAIM, closed)
    assert task.run()["state"] == "finished"
    assert rundir.read_json(tmp_path / CLAIM) == closed
    assert "  witness  the pod's leash is not renewed: its claim is closed, or gone" in task.told


@pytest.mark.parametrize("trouble", [AnsibleConnectionFailure("no route"), {"failed": True, "msg": "disk full"}])
def test_a_renewal_that_fails_is_tried_again_with_the_next_look(watch, tmp_path, trouble):
    looks = [After(60, seen(11, 60)), trouble, After(60, seen(12, 60)), RENEWED, FINISHED]
    task = watch(seen(10, 60), *looks, budget={"leash": 1})
    task.run()
    info = "training_run_info"
    assert [name for name, _ in task.asked] == [info, info, "pod_leash", info, "pod_leash", info]
    assert rundir.read_json(tmp_path / CLAIM)["deadline"] > task.clock.now()


CHECKPOINT = ("adapter_model.safetensors", "optimizer.pt", "trainer_state.json")


def renewals(task: Task) -> list[float]:
    """Run to the end; list the hours after the beginning to which the leash was renewed."""
    began = task.clock.now()
    task.run()
    return [(asked["deadline"] - began) / 3600 for name, asked in task.asked if "deadline" in asked]


class Liar:
    """A host that answers each look, half an hour apart, for three days; a claim for each look.

    Args:
        claim: From the number of the look to (step, planned, seconds a step).
    """

    def __init__(self, claim: Any):
        self.claim, self.looks = claim, 0

    def __call__(self) -> Any:
        self.looks += 1
        step, planned, seconds = self.claim(self.looks)
        done = seen(10, 60)
        done["progress"] |= {"step": step, "planned": planned, "measured": step, "seconds_per_step": seconds}
        done["eta_seconds"] = (planned - step) * seconds
        return After(1800, FINISHED if self.looks > 144 else done)


@pytest.mark.parametrize(
    "claim",
    [
        lambda look: (100, 1000, 4.0),  # an hour to go, and always an hour
        lambda look: (1000 - look, 2000, 3.6),  # backwards
        lambda look: (100 + look % 3, 1000, 4.0),  # the same steps again and again
        lambda look: (100 + look // 40, 1000, 4.0),  # a pace that never comes true
        lambda look: (900 * look, 900 * look + 900, 4.0),  # always the same amount to go
    ],
)
def test_progress_that_is_only_claimed_renews_no_leash(watch, claim):
    liar = Liar(claim)
    task = watch(liar, budget={"leash": 4, "max_hours": 1000.0})
    task.leash = {"changed": True, "leash": WELL}
    assert [hours for hours in renewals(task) if hours > 5] == []
    assert liar.looks > 144


def test_a_training_that_is_slower_than_planned_is_renewed_as_often_as_it_needs_it(watch):
    slow = Liar(lambda look: (100 + look, 244, 1800.0))  # three days, at half an hour a step
    task = watch(slow, budget={"leash": 4, "max_hours": 100.0})
    task.leash = {"changed": True, "leash": WELL}
    assert renewals(task)[-1] > 72


@pytest.mark.parametrize(("cap", "hours"), [(0.0, 4.0), (3.0, 2.9), (1.0, None)])
def test_a_renewal_keeps_within_what_is_left_to_all_pods(watch, tmp_path, cap, hours):
    looks = [seen(10, 60), After(60, seen(11, 60)), *[After(60, seen(step, 60)) for step in (12, 13)], FINISHED]
    task = watch(*looks, budget={"leash": 1, "max_usd_per_month": cap})
    task.leash = {"leash": WELL}
    began = task.clock.now()
    claim = {"name": "n", "host": "pod-1", "owner": "cafe01", "pod_id": "pod1", "usd_per_hour": 1.0, "asked_at": began}
    rundir.write_json(tmp_path / CLAIM, claim | {"deadline": began + 3600})
    assert renewals(task) == ([] if hours is None else [pytest.approx(hours, abs=0.1)])
    noted = rundir.read_json(tmp_path / CLAIM)["deadline"]
    assert noted == pytest.approx(began + 3600 * (hours or 1), abs=360)
    assert hours is None or not cap or (noted + 300 - began) / 3600 <= cap
    said = [line for line in task.told if "2025-11 (UTC): " in line]
    assert len(said) == bool(cap)
    assert all("the pod's leash is " in line and f"pod_max_usd_per_month is {cap:.2f}" in line for line in said)


def answering(count: int, *more: int, **changes: Any) -> dict[str, Any]:
    events = [{"event": "answers", "time": 1.0, "answered": done, "asked": 40} for done in (count, *more)]
    done = {**seen(100)["progress"], "ended": True, "measured": 90}
    return seen(100) | {"events": events, "progress": done, "eta_seconds": 0.0, **changes}


def test_how_far_it_has_answered_its_cases_is_told_once_for_each_number(watch):
    task = watch(seen(100), answering(0), answering(4, 12), answering(12), answering(40, state="finished"))
    task.run()
    assert [line for line in task.told if "answers" in line] == [
        "  witness  answers 0 of 40", "  witness  answers 12 of 40", "  witness  answers 40 of 40",
    ]  # fmt: skip


@pytest.mark.parametrize(("answering_s", "ends"), [(0.0, "finished"), (3600.0, "stopped")])
def test_the_time_for_answers_counts_against_the_caps_before_it_comes(watch, answering_s, ends):
    stop = [{"changed": True}, seen(checkpoint=4)] if answering_s else [FINISHED]
    task = watch(seen(10, 30), *stop, budget={"max_hours": 1.5, "answering": answering_s})
    found = task.run()
    assert found["state"] == ends
    assert not answering_s or "at the measured pace it would come to 1.75 h, and pod_max_hours is 1.50" in found["msg"]


def test_while_it_answers_only_what_was_lived_counts(watch):
    looks = [seen(99, 30), After(3000, answering(0)), After(600, answering(20)), After(60, FINISHED)]
    task = watch(*looks, budget={"max_hours": 1.2, "answering": 600.0})
    task.leash = {"leash": WELL}
    assert task.run()["state"] == "finished"


def test_a_leash_is_renewed_for_the_answers_too(watch):
    def leashes(seconds: float) -> list[float]:
        task = watch(seen(10, 60), After(60, seen(11, 60)), FINISHED, budget={"leash": 3, "answering": seconds})
        task.leash = {"changed": True, "leash": WELL}
        return renewals(task)

    assert leashes(0.0) == []
    assert leashes(3 * 3600.0) == [pytest.approx(2 * (89 / 60 + 3) + 1, abs=0.1)]


def test_a_leash_that_an_earlier_watch_renewed_is_not_shortened(watch, tmp_path):
    task = watch(seen(10, 60), After(60, seen(11, 60)), FINISHED, budget={"leash": 1})
    rundir.write_json(tmp_path / CLAIM, {"name": "n", "host": "pod-1", "deadline": task.clock.now() + 9 * 3600})
    assert renewals(task) == []


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """Let checkpoints come over, or not; list the steps of those that were asked for."""
    asked: list[int] = []

    def make(*refused: int, broken: bool = False) -> list[int]:
        def call(action, name, args):
            assert (name, args["from"], args["to"]) == (
                "transfer",
                "/r/runs/witness-1",
                str(tmp_path / "runs/witness-1/incoming"),
            )
            step = int(args["files"][0]["path"].partition("-")[2].partition("/")[0])
            asked.append(step)
            if step in refused:
                if broken:
                    raise AnsibleError("cut off")
                return {"failed": True, "msg": "cut off"}
            write_checkpoint(tmp_path / "runs/witness-1/incoming", step)
            return {"changed": True}

        monkeypatch.setattr(ForgeAction, "run_action", call)
        return asked

    return make


def write_checkpoint(run_dir: pathlib.Path, step: int) -> pathlib.Path:
    """Write a checkpoint as a training does, and as much of it as is fetched."""
    folder = run_dir / f"output/checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in CHECKPOINT:
        (folder / name).write_text(str(step))
    save_file({"lora_B": np.ones((2, 2), np.float32)}, folder / "adapter_model.safetensors")
    rundir.mark_complete(folder, step)
    return folder


def with_checkpoint(step: int, **changes: Any) -> dict[str, Any]:
    files = [f"output/checkpoint-{step}/{name}" for name in CHECKPOINT]
    return seen(step, **changes) | {"checkpoint": {"step": step, "files": files}}


def kept(folder) -> int:
    return saved.newest_checkpoint(folder / "runs/witness-1")["step"]


def test_each_new_checkpoint_is_fetched_while_it_is_watched(watch, fetched, tmp_path):
    asked = fetched()
    task = watch(with_checkpoint(8), with_checkpoint(8), with_checkpoint(16), FINISHED, pull=True)
    assert task.run()["state"] == "finished"
    assert (asked, kept(tmp_path)) == ([8, 16], 16)
    assert [path.name for path in (tmp_path / "runs/witness-1/output").iterdir()] == ["checkpoint-16"]
    # A later command has it, and what has finished is collected whole.
    watch(with_checkpoint(16), with_checkpoint(24, state="finished"), pull=True).run()
    assert asked == [8, 16]


@pytest.mark.parametrize("broken", [False, True])
def test_a_checkpoint_that_does_not_come_is_left_for_the_next_one_and_tried_again_at_the_end(
    watch, fetched, tmp_path, capsys, broken
):
    asked = fetched(16, broken=broken)
    task = watch(with_checkpoint(16), with_checkpoint(16), with_checkpoint(24), FINISHED, pull=True)
    task.run()
    assert (asked, kept(tmp_path)) == ([16, 24], 24)
    told = capsys.readouterr()
    assert "! checkpoint 16 was not fetched; the next one is tried again (cut off)" in told.out + told.err
    watch(with_checkpoint(32, state="failed"), pull=True).run()
    assert (asked, kept(tmp_path)) == ([16, 24, 32], 32)


def test_where_checkpoints_are_not_fetched_none_is(watch, fetched):
    asked = fetched()
    watch(with_checkpoint(8), FINISHED).run()
    assert asked == []


@pytest.mark.parametrize(
    ("state", "events"),
    [("failed", ["failed"]), ("stalled", ["stalled"]), ("stopped", []), ("finished", []), ("absent", ["failed"])],
)
def test_how_it_ended_is_noted_and_told_once(watch, tmp_path, state, events):
    for expected in (events, []):  # the second one looks again
        task = watch(seen(10, state=state, detail="why"))
        found = task.run()
        assert (found["state"], found.get("failed", False)) == (state, state != "finished")
        assert "events" not in found
        assert ("progress" in found) is (state == "finished")  # Ansible prints all that a failure returns
        assert [post["event"] for post in task.posts] == expected
    record = run_record.read_record(tmp_path, "witness-1")
    assert record.state == (state if state in rundir.FINAL_STATES else "")
    assert record.is_settled("failed") is (state != "finished")  # so that a later command does not tell of it again


def test_an_evaluation_that_another_command_has_collected_is_no_failure(watch, tmp_path):
    task = watch(seen(10, state="absent", detail="there is no such run on this trainer"))
    task.args["run"] = {**task.args["run"], "evaluates": "witness-0"}
    run_record.update_record(tmp_path, "witness-1", lambda record, now: dataclasses.replace(record, delivered_at=now))
    found = task.run()
    assert (found["state"], found.get("failed", False), task.posts) == ("absent", False, [])


def test_where_the_watching_went_on_it_asks_for_news_alone(watch):
    task = watch(seen(10), FINISHED)
    task.run()
    assert [(asked["since"], asked["wait"]) for _, asked in task.asked] == [("", 0), ("t10", task.plugin.WAIT)]


OTHERS = [PLAN | {"run_id": f"{agent}-1", "agent": agent, "name": agent} for agent in ("mayor", "crew")]


def test_when_an_awaited_run_ends_the_watch_ends_and_goes_on_later_without_a_word_twice(watch, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DEFAULT_LOCAL_TMP", str(tmp_path))

    def bad(step, **changes):
        found = seen(step, state="running", detail="slow for 9 s", **changes)
        found["progress"]["loss"] = "nan"
        return found

    first = watch(
        seen(0, state="queued", detail="Priority (job 7)"), bad(3), bad(3, events=[], over=["mayor-1"]),
        others=OTHERS, awaited=["mayor-1"],
    )  # fmt: skip
    assert first.run() == {"changed": False, "first": "mayor-1"}
    assert [asked["awaited"] for _, asked in first.asked] == [["/r/runs/mayor-1"]] * 3
    begins = ["queued: Pri", "running: sl", "its loss is", "step   3/10"]
    assert [line.removeprefix("  witness  ")[:11] for line in first.told] == begins
    second = watch(bad(3, events=[]), bad(3, events=[]), FINISHED, others=OTHERS, awaited=["crew-1"])
    assert second.run()["state"] == "finished"
    assert [(asked["since"], asked["wait"]) for _, asked in second.asked][:1] == [("t3", second.plugin.WAIT)]
    assert [line.removeprefix("  witness  ")[:11] for line in second.told] == ["step 100/10"]
    third = watch(bad(3), FINISHED)  # another command has told nothing of it
    third.run()
    assert [asked["since"] for _, asked in third.asked] == ["", "t3"]


def test_a_run_that_ends_together_with_an_awaited_one_is_the_one_that_is_dealt_with(watch):
    task = watch(seen(10), FINISHED | {"over": ["mayor-1"]}, others=OTHERS, awaited=["mayor-1"])
    assert task.run()["state"] == "finished"


def test_a_run_that_is_not_awaited_ends_no_watch(watch):
    task = watch(seen(10, over=["crew-1", "nobody-1"]), FINISHED, others=OTHERS, awaited=["mayor-1"])
    assert task.run()["state"] == "finished"


def test_a_run_that_was_left_before_is_called_over_in_vain(watch, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "DEFAULT_LOCAL_TMP", str(tmp_path))
    again = {"others": OTHERS, "awaited": ["mayor-1", "crew-1"]}
    assert watch(seen(10, over=["mayor-1"]), **again).run()["first"] == "mayor-1"
    other = {"run": OTHERS[0], "others": [PLAN, OTHERS[1]], "awaited": ["witness-1", "crew-1"]}
    task = watch(seen(3, over=["witness-1"]), FINISHED, **other)
    assert task.run()["state"] == "finished"
    assert [asked["awaited"] for _, asked in task.asked] == [["/r/runs/crew-1"]] * 2


def test_a_trainer_that_answers_at_once_is_asked_at_intervals(watch):
    task = watch(*[seen(10, token=f"t{number}") for number in range(100)], FINISHED)
    task.run()
    assert task.clock.now() - Clock().now() == 99 * runs.SETTLE
    slow = watch(*[After(5, seen(10, token=f"t{number}")) for number in range(100)], FINISHED)
    slow.run()
    assert slow.clock.now() - Clock().now() == 500, "one that gathers its news waits nowhere else"


@pytest.fixture
def deliver(monkeypatch, tmp_path):
    """Provide deliver_run over three runs, with prepared ends of what it watches; it lists what that was."""

    def make(*ends: dict[str, Any], **args: Any) -> tuple[dict[str, Any], list[tuple[str, list[str]]]]:
        watched: list[tuple[str, list[str]]] = []
        left = list(ends)

        def call(action, name, asked):
            if name == "watch":
                watched.append((asked["run"]["run_id"], asked["awaited"]))
                return left.pop(0)
            return {"changed": True}

        states = [{"run_id": plan["run_id"], "state": "running"} for plan in (PLAN, *OTHERS)]
        monkeypatch.setattr(ForgeAction, "run_module", lambda action, name, asked: {"runs": states})
        monkeypatch.setattr(ForgeAction, "run_action", call)
        given = {"runs": [PLAN, *OTHERS], "root": "/r", "output": str(tmp_path), "stall_timeout": 900, **args}
        task = mock.Mock(args=given, check_mode=False, async_val=0)
        loaders = types.SimpleNamespace(action_loader=action_loader)
        action = load("action_plugins/deliver_run").ActionModule(task, *[mock.Mock()] * 4, shared_loader_obj=loaders)
        found = action.run(task_vars={"inventory_hostname": "pod-1"})
        assert not left
        return found, watched

    return make


def test_what_ends_first_is_delivered_first(deliver):
    found, watched = deliver({"first": "crew-1"}, {"state": "finished"})
    assert (found["run_id"], found["changed"]) == ("crew-1", True)
    assert watched == [("witness-1", ["mayor-1", "crew-1"]), ("crew-1", ["witness-1", "mayor-1"])]
    found, watched = deliver({"first": "mayor-1"}, {"failed": True, "msg": "mayor-1 is failed: crashed"})
    assert (found["run_id"], found["failed"]) == ("mayor-1", True)


class Host:
    """A trainer whose answers come at once: it calls every run over but the one that is asked for, as long as it can.

    A run ends when it may call no other one over, and has been asked for a few times more.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, output: pathlib.Path, runs: int):
        self.output, self.clock = output, Clock()
        self.plans = [dict(PLAN, run_id=f"witness-{number}") for number in range(runs)]
        self.asked: list[str] = []
        self.alone = dict.fromkeys((plan["run_id"] for plan in self.plans), 0)
        still = types.SimpleNamespace(time=self.clock.now, monotonic=self.clock.now, sleep=self.clock.sleep)
        self.deliver, watching = load("action_plugins/deliver_run"), load("action_plugins/watch")
        monkeypatch.setattr(watching, "time", still)
        monkeypatch.setattr(watching, "tell", lambda text, **about: None)
        monkeypatch.setattr(rundir, "uptime", self.clock.now)
        monkeypatch.setattr(watching.rundir, "uptime", self.clock.now)
        monkeypatch.setattr(constants, "DEFAULT_LOCAL_TMP", str(output))
        monkeypatch.setattr(ForgeAction, "run_module", lambda action, name, asked: self.module(name, asked))
        monkeypatch.setattr(ForgeAction, "run_action", lambda action, name, asked: self.action(watching, name, asked))

    def module(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        if name == "trainer_info":
            return {"runs": [{"run_id": plan["run_id"], "state": "running"} for plan in self.plans], "gpus": []}
        run_id = asked["run_dir"].rpartition("/")[2]
        self.asked.append(run_id)
        self.alone[run_id] += not asked["awaited"]
        state = "finished" if self.alone[run_id] > 3 else "running"
        over = [path.rpartition("/")[2] for path in asked["awaited"]]
        return seen(1, state=state, over=over, token=f"t{len(self.asked)}")

    def action(self, watching: Any, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        if name != "watch":
            done = asked["run"]["run_id"]
            run_record.update_record(
                self.output, done, lambda record, now: run_record.RunRecord(done, delivered_at=now)
            )
            return {"changed": True}
        return self.play(watching, asked)

    def play(self, plugin: Any, args: dict[str, Any]) -> dict[str, Any]:
        loaders = types.SimpleNamespace(action_loader=action_loader)
        task = mock.Mock(args=args, check_mode=False, async_val=0)
        action = plugin.ActionModule(task, *[mock.Mock()] * 4, shared_loader_obj=loaders)
        found: dict[str, Any] = action.run(task_vars={"inventory_hostname": "pod-1"})
        return found

    def deliver_all(self) -> None:
        """Deliver one run after the other, as the role's loop does."""
        told = {"output": str(self.output), "url": "", "form": "json", "timeout": 10, "pods": "", "events": []}
        given = {"runs": self.plans, "root": "/r", "output": str(self.output), "stall_timeout": 900, "pull": False,
                 "unreachable_timeout": 60, "stop_timeout": 30, "transfer": {}, "quiet": False,
                 "notify": told}  # fmt: skip
        while not self.play(self.deliver, dict(given)).get("skipped"):
            pass


@pytest.mark.parametrize("count", [5, 20])
def test_a_host_that_calls_everything_over_at_once_is_asked_no_more_often_than_another_one(
    monkeypatch, tmp_path, count
):
    host = Host(monkeypatch, tmp_path, count)
    began = host.clock.now()
    host.deliver_all()
    looked, waited = 2 * count, (host.clock.now() - began) / runs.SETTLE
    assert len(set(host.asked)) == count
    assert len(host.asked) <= looked + count + waited, "once of each, once more when it is its turn, then at intervals"
    assert len(host.asked) <= 6 * count, "and not as often as there are pairs of runs"


def test_on_a_pod_the_run_that_costs_is_followed_to_its_end(deliver):
    _, watched = deliver({"state": "finished"}, budget={"usd_per_hour": 1.0})
    assert watched == [("witness-1", [])]


def test_losses_that_will_not_do_are_told_once_and_so_is_a_start_without_w_and_b(watch):
    def bad(step, wandb=None):
        found = seen(step)
        found["progress"]["loss"] = "nan"
        found["events"] = [{"event": "wandb", "time": 1.0, "wanted": "online", "mode": wandb}] if wandb else []
        return found

    task = watch(seen(3), bad(4, "offline"), bad(5), seen(6), bad(7, "disabled"), FINISHED)
    task.run()
    assert [line for line in task.told if "its loss is nan" in line] == [
        f"  witness  its loss is nan at step {step}; it goes on, and would end as failed" for step in (4, 7)
    ]
    assert [line for line in task.told if "W&B" in line] == [
        f"  witness  W&B could not be had at the start: {what}; train.log says why"
        for what in ("the run is recorded offline", "nothing is recorded")
    ]


@pytest.mark.parametrize("quiet", [False, True])
def test_a_connection_that_stays_lost_is_a_state_of_its_own(watch, quiet):
    task = watch(seen(10), lambda: AnsibleConnectionFailure("no route"), quiet=quiet)
    found = task.run()
    assert (found["failed"], found["state"]) == (True, "unreachable")
    assert [(post["event"], post["detail"]) for post in task.posts] == ([] if quiet else [("failed", found["msg"])])
    assert found["msg"] == (
        "no connection for 1:00: no route\nWhat runs there goes on; the same command attaches to it."
    )
    assert 60 < task.clock.now() - Clock().now() < 120


NO_WORD = "Slurm does not answer: Unable to contact slurm controller"


def test_where_slurm_stays_silent_the_watching_ends_and_not_before_its_time(watch):
    again = [
        After(30, seen(10, state="unknown", detail=f"{NO_WORD}; its last word was {age} s ago")) for age in (9, 40)
    ]
    task = watch(*again, After(30, seen(12)), lambda: After(30, seen(12, state="unknown", detail=NO_WORD)))
    found = task.run()
    assert (found["failed"], found["state"]) == (True, "unreachable")
    assert found["msg"].startswith(f"nothing of it is known for 1:30: {NO_WORD}\nWhat runs there goes on")
    assert sum("unknown: " in line for line in task.told) == 2  # once for each silence, whatever the age is


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ("", "running"),
        ("c1", "running on c1"),
        ("gpu-st-p4d-24xlarge-1", "running on gpu-st-p4d-24xlarge-1"),
        ("c[1-2]", "running on c1 and c2"),
        ("node[009-010]", "running on node009 and node010"),
        ("c[1,7]", "running on c1 and c7"),
        ("c1,gpu2", "running on c1 and gpu2"),
        ("c[1-4]", "running on c[1-4]"),
        ("c[1,3,7]", "running on c[1,3,7]"),
        ("c[1-2],gpu2", "running on c[1-2],gpu2"),
        ("c[a-b]", "running on c[a-b]"),
        ("rack[1-2]n[1-2]", "running on rack[1-2]n[1-2]"),
        (",".join(["node[1,3]"] * 100), f"running on {','.join(['node[1,3]'] * 100)[:60]} …"),
    ],
)
def test_where_a_run_is_is_said_in_few_words(nodes, words):
    assert run_state.where("running", nodes) == words
    assert run_state.where("stalled", nodes) == words.replace("running", "stalled")
    assert run_state.where("queued", nodes) == "queued"


def waits(reason, start="", state="PENDING"):
    """Answer a look at a job that waits, half a minute after the one before."""
    words = slurm_queue.Job("7", "lora-forge-witness-1", state, reason, start).words
    return After(30, seen(0, state="queued", detail=words))


def test_each_reason_of_the_queue_is_told_once_and_again_after_something_else(watch):
    """A night in a busy cluster: Slurm's reason changes every minute, and its guess at the start with it."""
    hour = [waits("Priority"), waits("Resources"), waits("Priority", "2026-12-01T14:20:00")] + [
        waits("Priority" if minute % 2 else "Resources", f"2026-12-01T14:{minute % 60:02}:00") for minute in range(120)
    ]
    reserved = "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions"
    limit = "QOSMaxJobsPerUserLimit"
    limits = [waits(why) for why in (limit, "Priority", reserved, limit, reserved)]
    held = [*[waits("JobHeldUser")] * 5, waits("Priority"), waits("Resources"), waits("Priority"), waits("JobHeldUser")]
    away = "ReqNodeNotAvail, UnavailableNodes"
    drained = [waits(f"{away}:{nodes}") for nodes in ("c1", "c[1-2]", "c[1,7]")] + [waits("Resources")]
    silent = After(30, seen(0, state="unknown", detail=NO_WORD))
    begins = After(30, seen(0, state="queued", detail="its job begins"))
    trains = [After(30, seen(step, nodes=nodes)) for step, nodes in ((1, "c1"), (2, "c1"))]
    back = [waits("BeginTime"), waits("Priority"), waits("Resources"), After(30, seen(3, nodes="c[1-2]"))]
    task = watch(*hour, *limits, *held, *drained, silent, waits("Resources"), begins, *trains, *back, FINISHED)
    task.run()
    lets_go = "JobHeldUser (job 7); scontrol release 7 lets it go on"
    told = [line.removeprefix("  witness  ") for line in task.told if " step " not in line and "resumed" not in line]
    assert told == [f"queued: {words}" for words in (
        "Priority (job 7)", "Resources (job 7)", "Priority (job 7), expected 2026-12-01 14:20",
        f"{limit} (job 7)", f"{reserved} (job 7)",
        lets_go, "Priority (job 7)", "Resources (job 7)", lets_go,
        f"{away}:c1 (job 7)", "Resources (job 7)",
    )] + [f"unknown: {NO_WORD}", "queued: Resources (job 7)", "queued: its job begins", "running on c1",
          "queued: BeginTime (job 7)", "queued: Priority (job 7)", "queued: Resources (job 7)",
          "running on c1 and c2"]  # fmt: skip


def test_a_start_that_is_expected_much_later_or_sooner_is_told_once_in_an_hour(watch):
    guesses = ["T14:00", "T14:50", "T18:00", "T14:00", "T18:00"] * 12  # half an hour of them
    starts = [waits("Priority", f"2026-12-01{guess}:00") for guess in guesses]
    sooner = waits("Priority", "2026-12-01T10:00:00")
    task = watch(waits("Priority"), *starts * 4, *[waits("Priority")] * 3, sooner, FINISHED)
    task.run()
    told = [line.partition("expected 2026-12-01 ")[2] for line in task.told if "queued" in line]
    assert told == ["", "14:00", "18:00", "10:00"]


def test_what_was_told_of_the_queue_is_known_to_who_comes_back(watch):
    others = {"others": [PLAN | {"run_id": "crew-1", "agent": "crew", "name": "crew"}], "awaited": ["crew-1"]}
    left = watch(waits("Priority"), waits("Resources"), After(30, seen(0, state="queued", detail="x", over=["crew-1"])),
                 **others)  # fmt: skip
    assert left.run()["first"] == "crew-1"
    again = watch(waits("Priority"), waits("Licenses"), FINISHED)
    again.run()
    assert [line for line in again.told if "queued" in line] == ["  witness  queued: Licenses (job 7)"]


def test_the_newest_whole_checkpoint_is_named_with_its_files(tmp_path):
    assert saved.newest_checkpoint(tmp_path) == {"step": 0, "files": []}
    for number in (6, 12, 18):
        folder = tmp_path / f"output/checkpoint-{number}"
        (folder / "nested").mkdir(parents=True)
        (folder / "nested/b.bin").write_text("b")
        (folder / "a.bin").write_text("a")
        if number < 18:  # its writing was cut off
            rundir.mark_complete(folder, number)
    names = [f"output/checkpoint-12/{name}" for name in ("a.bin", "nested/b.bin", "complete.json")]
    assert saved.newest_checkpoint(tmp_path) == {"step": 12, "files": names}
    assert runs.observe(tmp_path).checkpoint["step"] == 12
    (tmp_path / names[0]).write_text("longer")
    assert saved.newest_checkpoint(tmp_path)["step"] == 6


# --- the leash ------------------------------------------------------------------------------------------------------


SILENT = {"alive": False, "beat_age": 400.0, "state": "waiting", "status": 200, "answer": "200 OK"}
STOPS = [{"changed": True}, seen(checkpoint=4)]


def minutes(*steps: int) -> list[Any]:
    """Answer looks at a training that is at these steps, each after five minutes."""
    return [After(300, seen(step, 30)) for step in steps]


def test_the_leash_is_asked_every_five_minutes_and_no_more(watch):
    task = watch(seen(3, 30), *[After(30, seen(step, 30)) for step in range(4, 44)], FINISHED, budget={"leash": 24})
    task.leash = {"leash": WELL}
    assert task.run()["state"] == "finished"
    assert [asked for name, asked in task.asked if name == "pod_leash"] == [
        {"root": "/workspace/lora-forge", "pod": "pod1"}
    ] * 4


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"leash": SILENT}, "its leash has said nothing for 400 s"),
        ({"leash": {**WELL, "lacks": "RUNPOD_API_KEY is not set"}}, "its leash cannot end it: RUNPOD_API_KEY is not"),
        ({"failed": True, "msg": "python3: not found"}, "its leash cannot be asked"),
        ({"leash": "well"}, "its leash cannot be asked"),
        ({}, "its leash cannot be asked"),
    ],
)
def test_without_a_leash_the_training_is_stopped_with_a_checkpoint_after_a_warning(watch, capsys, answer, why):
    task = watch(seen(3, 30), *minutes(13, 23, 33, 43), *STOPS, budget={"leash": 24})
    task.leash = answer
    found = task.run()
    told = capsys.readouterr()
    assert (told.out + told.err).count(f"witness on : {why}") == 1
    assert "the training is stopped with a checkpoint unless that changes within 15:00" in told.out + told.err
    assert (found["failed"], found["state"], found["kept"]) == (True, "stopped", True)
    assert found["breach"].startswith(why)
    assert found["msg"].endswith("What there is was kept; the same command goes on from there")
    assert [post["event"] for post in task.posts] == ["failed"]


def test_a_leash_that_comes_back_in_time_lets_the_training_go_on(watch, capsys):
    words = [SILENT, SILENT, WELL, SILENT, SILENT, SILENT]
    looks = [look for step, word in enumerate(words, 4) for look in (After(300, seen(step, 30)), {"leash": word})]
    task = watch(seen(3, 30), *looks, FINISHED, budget={"leash": 24})
    assert task.run()["state"] == "finished"
    assert capsys.readouterr().err.count("its leash has said nothing") == 2


def test_a_pod_without_a_leash_that_cannot_be_stopped_is_given_up(watch):
    task = watch(seen(3, 30), *minutes(13, 23, 33, 43), {"failed": True, "msg": "no"}, budget={"leash": 24})
    task.leash = {"leash": SILENT}
    found = task.run()
    assert (found["kept"], found["spent"]) == (False, True)
    assert "Its pod is released, as its leash would do" in found["msg"]


def test_a_pod_without_a_leash_that_is_kept_is_told_to_be_endless(watch):
    task = watch(seen(3, 30), *minutes(13, 23, 33, 43), *STOPS, budget={"leash": 24}, pull=True)
    task.leash = {"leash": SILENT}
    found = task.run()
    assert (found["kept"], found["state"]) == (False, "stopped")
    assert found["msg"].endswith(
        "so the pod is kept, and nothing ends it by itself: playbooks/release.yml -e pod=pod-1 gives it up"
    )


def test_a_lost_connection_says_nothing_of_the_leash(watch):
    lost = AnsibleConnectionFailure("no route")
    looks = [look for step in range(4, 9) for look in (After(300, seen(step, 30)), lost)]
    assert watch(seen(3, 30), *looks, FINISHED, budget={"leash": 24}).run()["state"] == "finished"


@pytest.fixture
def leashed(monkeypatch, tmp_path):
    """Provide a wait for the leash of a pod that was ordered just now, with prepared answers of pod_leash."""

    def maker(*answers: Any) -> Task:
        claim = tmp_path / "n.json"
        rundir.write_json(claim, {"name": "n", "host": "pod-1", "runs": ["witness-1"], "output": str(tmp_path)})
        budget = {"usd_per_hour": 1.0, "spent": 0.0, "since": 1000.0, "max_usd": 0.0, "max_hours": 24.0, "pod": "pod1",
                  "claim": str(claim), "root": "/r"}  # fmt: skip
        given = {"budget": budget, "timeout": 150, "unreachable_timeout": 60}
        return Task(monkeypatch, "await_leash", *[After(30, answer) for answer in answers], **given)

    return maker


X509 = (
    "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer certificate (_ssl.c:1000)"
)
NO_NET = {**WELL, "status": 0, "answer": "[Errno -3] Temporary failure in name resolution"}


@pytest.mark.parametrize(
    ("word", "kind", "words"),
    [
        ({"alive": False, "missing": ["python3"]}, "image", "its leash did not start: the image lacks python3. Take"),
        ({**WELL, "lacks": "RUNPOD_API_KEY is not set"}, "image", "its leash cannot end it: RUNPOD_API_KEY is not set. "
         "RunPod sets it in every pod"),
        ({**WELL, "status": 0, "answer": X509}, "image", "its leash cannot check RunPod's certificate "
         f"({X509}). Install ca-certificates in the image"),
        ({**WELL, "status": 401, "answer": "401 Unauthorized"}, "image", "RunPod does not take the pod's own key (401 "
         "Unauthorized), so"),
        (NO_NET, "machine", "its leash does not reach RunPod ([Errno -3] Temporary failure in name resolution)"),
        ({"alive": False, "missing": []}, "machine", "its leash did not start. It needs bash, base64, gzip and"),
        (SILENT, "machine", "its leash has said nothing for 400 s"),
        ({**WELL, "state": "refused", "word": "COULD NOT"}, "machine", "its leash cannot end it: COULD NOT"),
    ],
)  # fmt: skip
def test_no_leash_no_training(leashed, word, kind, words):
    task = leashed(*[{"leash": word}] * (1 if kind == "image" else 5))
    found = task.run()
    assert (found["failed"], found["unleashed"]) == (True, kind)
    assert words in found["msg"]
    assert found["msg"].endswith("Nothing was launched, as nothing but this controller would end this pod")
    assert len(task.told) == (0 if kind == "image" else 1)  # what may mend is waited for, and that is said


def test_a_pod_without_python_is_told_as_one_without_a_leash(leashed):
    failed = {"failed": True, "msg": "The module interpreter '/usr/bin/python3' was not found.\nmore"}
    assert leashed(failed, {"leash": WELL}).run() == {"changed": False}  # it may have passed
    found = leashed(failed, failed).run()
    assert (found["failed"], found["unleashed"]) == (True, "image")
    assert "its leash cannot be asked (The module interpreter '/usr/bin/python3' was not found.)" in found["msg"]


def test_a_leash_that_comes_up_late_is_waited_for(leashed):
    assert leashed({"leash": {"alive": False, "missing": []}}, {"leash": NO_NET}, {"leash": WELL}).run() == {
        "changed": False
    }


@pytest.mark.parametrize(
    ("word", "doubt"),
    [
        (WELL, ""),
        ({**WELL, "status": 403, "answer": "403 No"}, "RunPod did not show the pod to its leash (403 No)"),
        ({"alive": True, "state": "waiting"}, "its leash has not asked RunPod yet, or is an older one"),
    ],
)  # fmt: skip
def test_what_is_not_proven_is_a_warning(leashed, capsys, word, doubt):
    assert leashed({"leash": word}).run() == {"changed": False}
    told = capsys.readouterr()
    assert (doubt in told.out + told.err) if doubt else ("leash" not in told.out + told.err)


def test_a_pod_of_another_controller_may_hold_what_is_not_noted_here(leashed, tmp_path, capsys):
    task = leashed(*[{"leash": SILENT}] * 5)
    noted = rundir.read_json(tmp_path / "n.json")
    rundir.write_json(tmp_path / "n.json", {**noted, "taken_over": True})
    assert task.run() == {"changed": False}
    assert "its leash has said nothing for 400 s. It is stopped with a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("record", "holds"),
    [
        ({}, False),
        ({"state": "launched", "noted_at": 1001.0}, True),
        ({"state": "launched", "noted_at": 999.0}, False),  # on an earlier pod
        ({"state": "launched", "noted_at": 999.0, "hosts": {"": {"at": 1001.0, "started": True}}}, True),
    ],
)
def test_a_pod_that_holds_a_run_is_not_given_up_for_its_leash(leashed, tmp_path, capsys, record, holds):
    (tmp_path / "runs").mkdir()
    rundir.write_json(tmp_path / "runs/witness-1.json", {"run_id": "witness-1", **record})
    found = leashed({"leash": {**WELL, "lacks": "RUNPOD_API_KEY is not set"}}).run()
    assert found.get("failed", False) is not holds
    told = capsys.readouterr()
    assert ("It is stopped with a checkpoint unless that changes" in told.out + told.err) is holds


def test_a_connection_that_is_lost_before_the_launch_is_no_matter_of_the_leash(leashed):
    task = leashed()
    task.answers = [lambda: AnsibleConnectionFailure("no route")]
    assert task.run()["state"] == "unreachable"


def test_in_check_mode_no_leash_is_asked(leashed):
    task = leashed()
    assert task.run(check=True)["skipped"]
    assert task.asked == []
