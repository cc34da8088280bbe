"""What the action plugins show and do while a pod is awaited, and while it trains at a price."""

from __future__ import annotations

import time
import types
from typing import Any
from unittest import mock

import pytest
import rundir
from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.lora_forge.controller import retry
from ansible.module_utils.lora_forge.trainer import run_state, runs
from ansible.plugins.loader import action_loader
from wire import Clock, load


class Task:
    """An action plugin with prepared answers of modules, a clock, and what it displayed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, *answers: Any, **args: Any):
        self.plugin, self.args, self.answers = load(f"action_plugins/{name}"), args, list(answers)
        self.told: list[str] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.clock = Clock()
        monkeypatch.setattr(self.plugin, "display", mock.Mock(display=self.told.append))
        still = types.SimpleNamespace(
            time=self.clock.now, monotonic=self.clock.now, sleep=self.clock.sleep, strftime=time.strftime,
            localtime=time.localtime,
        )  # fmt: skip
        monkeypatch.setattr(retry, "time", still)
        if hasattr(self.plugin, "time"):
            monkeypatch.setattr(self.plugin, "time", still)

    def module(self, name: str, asked: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        self.asked.append((name, asked))
        assert self.answers, f"nobody expects {name}"
        found = self.answers.pop(0) if len(self.answers) > 1 or not callable(self.answers[0]) else self.answers[0]()
        if isinstance(found, Exception):
            raise found
        return dict(found)

    def run(self, check: bool = False) -> dict[str, Any]:
        task = mock.Mock(args=self.args, check_mode=check, async_val=0)
        task.copy.return_value = mock.Mock(check_mode=check, async_val=0)  # for the actions that it calls
        loaders = types.SimpleNamespace(action_loader=action_loader)
        action = self.plugin.ActionModule(task, *[mock.Mock()] * 4, shared_loader_obj=loaders)
        action._execute_module = self.module
        found = action.run(task_vars={})
        assert self.answers == [] or callable(self.answers[0])
        return found


def step(phase: str, word: str = "", **more: Any) -> dict[str, Any]:
    return {"changed": False, "phase": phase, "word": word, "done": [], **more}


def test_a_pod_is_awaited_with_a_line_for_each_change(monkeypatch):
    task = Task(
        monkeypatch, "runpod_pod", step("waiting", "no capacity for L40S", changed=True),
        step("waiting", "no capacity for L40S"), step("ordering", "another one", done=["pod1 is released"]),
        step("booting", "no SSH answer yet"), step("ready", connection={}), host="pod-1", wait=20,
    )  # fmt: skip
    found = task.run()
    assert (found["phase"], found["changed"]) == ("ready", True)
    since = ["", "no capacity for L40S", "no capacity for L40S", "another one", "no SSH answer yet"]
    assert task.asked == [("runpod_pod", {"host": "pod-1", "wait": 20, "since": word}) for word in since]
    assert task.told == [
        "  pod-1: waiting: no capacity for L40S", "  pod-1: pod1 is released", "  pod-1: ordering: another one",
        "  pod-1: booting: no SSH answer yet",
    ]  # fmt: skip


@pytest.mark.parametrize("answer", [{"failed": True, "msg": "no key"}, step("absent"), {"changed": True, "word": "x"}])
def test_an_error_an_absence_and_a_prediction_end_it(monkeypatch, answer):
    task = Task(monkeypatch, "runpod_pod", answer, host="pod-1")
    assert task.run() == {"changed": False, **answer}
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
            "checkpoint": {"step": checkpoint, "files": []}, **changes}  # fmt: skip


FINISHED = seen(100, state="finished")


@pytest.fixture
def watch(monkeypatch, tmp_path):
    """Makes a watch on a pod at 1 USD/h, with its claim on disk; keywords change budget and arguments."""

    def maker(*answers: Any, budget: dict[str, Any] | None = None, **args: Any) -> Task:
        placement = {"output": str(tmp_path), "run_id": "witness-1", "trainer": "pod-1"}
        given = {"agent": "witness", "run_dir": "/r/witness-1", "stall_timeout": 900, "unreachable_timeout": 60,
                 "placement": placement, **args}  # fmt: skip
        task = Task(monkeypatch, "watch", *answers, **given)
        rundir.write_json(tmp_path / "claim.json", {"name": "n", "deadline": 0})
        now = task.clock.now()
        task.args["budget"] = budget and {
            "usd_per_hour": 1.0, "spent": 0.0, "since": now, "max_usd": 0.0, "max_hours": 24.0, "pod": "pod1",
            "deadline": now + 3600 * budget.pop("leash", 24), "claim": str(tmp_path / "claim.json"),
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
def test_a_pod_that_would_come_to_cost_too_much_ends_the_watching_with_the_reason(watch, budget, answer, breach):
    found = watch(answer, budget=budget).run()
    assert (found["failed"], found["breach"], found["msg"]) == (True, breach, breach)
    assert found["checkpoint"]["step"] == 0
    assert "events" not in found


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
    task = watch(seen(10, 60), {"changed": True}, seen(11, 60), FINISHED, budget={"leash": 1, "max_hours": 3.0})
    later = task.clock.now() + 3 * 3600
    assert task.run()["state"] == "finished"
    assert task.asked[1] == ("pod_leash", {"root": "/workspace/lora-forge", "pod": "pod1", "deadline": later})
    assert [name for name, _ in task.asked].count("pod_leash") == 1
    assert rundir.read_json(tmp_path / "claim.json") == {"name": "n", "deadline": later}
    assert f"  witness  the pod's leash is renewed to {time.strftime('%H:%M', time.localtime(later))}" in task.told


@pytest.mark.parametrize("trouble", [AnsibleConnectionFailure("no route"), {"failed": True, "msg": "disk full"}])
def test_a_renewal_that_fails_is_tried_again_with_the_next_look(watch, tmp_path, trouble):
    task = watch(seen(10, 60), trouble, seen(11, 60), {"changed": True}, FINISHED, budget={"leash": 1})
    task.run()
    assert [name for name, _ in task.asked] == ["training_run_info", "pod_leash"] * 2 + ["training_run_info"]
    assert rundir.read_json(tmp_path / "claim.json")["deadline"] > task.clock.now()


def test_a_new_checkpoint_interrupts_and_the_watching_goes_on_from_there(watch, tmp_path):
    kept = tmp_path / "kept"
    checkpoint = kept / "output/checkpoint-8"
    checkpoint.mkdir(parents=True)
    (checkpoint / "optimizer.pt").write_text("8")
    rundir.mark_complete(checkpoint, 8)
    task = watch(seen(10, checkpoint=8), seen(20, checkpoint=16), kept=str(kept))
    found = task.run()
    assert (found["again"], found["pull"]["step"], found["token"], found["changed"]) == (True, 16, "t20", False)
    assert "failed" not in found
    # One that would not come interrupts no more, until there is a later one, or the end.
    later = watch(seen(20, checkpoint=16), seen(30, checkpoint=24), kept=str(kept), passed=16).run()
    assert later["pull"]["step"] == 24
    ended = watch(seen(20, checkpoint=16, state="failed"), kept=str(kept), passed=16).run()
    assert (ended.get("again"), ended["pull"]["step"]) == (None, 16)
    assert "pull" not in watch(seen(100, checkpoint=16, state="finished"), kept=str(kept)).run()


def test_how_it_ended_is_noted_once(watch, tmp_path):
    assert watch(FINISHED).run()["noted"] is True
    assert rundir.read_json(tmp_path / "runs/witness-1.json")["state"] == "finished"
    assert watch(FINISHED).run()["noted"] is False


def test_where_the_watching_began_is_asked_for_news_alone(watch):
    task = watch(FINISHED, since="t20")
    task.run()
    assert (task.asked[0][1]["since"], task.asked[0][1]["wait"]) == ("t20", task.plugin.WAIT)


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


def test_without_a_checkpoint_to_compare_none_interrupts(watch):
    assert watch(seen(10, checkpoint=8), FINISHED).run()["state"] == "finished"


def test_a_connection_that_stays_lost_is_a_state_of_its_own(watch):
    task = watch(seen(10), lambda: AnsibleConnectionFailure("no route"))
    found = task.run()
    assert (found["failed"], found["state"]) == (True, "unreachable")
    assert found["msg"] == (
        "no connection for 1:00: no route\nWhat runs there goes on; the same command attaches to it."
    )
    assert 60 < task.clock.now() - Clock().now() < 120


def test_the_newest_whole_checkpoint_is_named_with_its_files(tmp_path):
    assert runs.newest_checkpoint(tmp_path) == {"step": 0, "files": []}
    for number in (6, 12, 18):
        folder = tmp_path / f"output/checkpoint-{number}"
        (folder / "nested").mkdir(parents=True)
        (folder / "nested/b.bin").write_text("b")
        (folder / "a.bin").write_text("a")
        if number < 18:  # its writing was cut off
            rundir.mark_complete(folder, number)
    names = [f"output/checkpoint-12/{name}" for name in ("a.bin", "nested/b.bin", "complete.json")]
    assert runs.newest_checkpoint(tmp_path) == {"step": 12, "files": names}
    assert runs.observe(tmp_path).checkpoint["step"] == 12
    (tmp_path / names[0]).write_text("longer")
    assert runs.newest_checkpoint(tmp_path)["step"] == 6
