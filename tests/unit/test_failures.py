"""One path for what goes wrong with a run: noted, told once, stopped where others would wait; and who is next."""

from __future__ import annotations

import dataclasses
import types
from functools import partial
from typing import Any
from unittest import mock

import pytest
from ansible.errors import AnsibleError
from ansible.module_utils.lora_forge.controller import notify as notices
from ansible.module_utils.lora_forge.planning.run_record import RunRecord, read_record, update_record
from ansible.module_utils.lora_forge.trainer.run_state import ListedRun, Observation
from wire import load

NOW = 1000.0  # when the command planned


def plan(run_id: str = "witness-1", *hosts: str) -> dict[str, Any]:
    hosts = hosts or ("a",)
    return {
        "run_id": run_id, "agent": run_id.partition("-")[0], "name": run_id, "fingerprint": "f", "trainer": hosts[0],
        "state": "to train", "rehearsal": False, "recipe": {}, "recipe_sha256": "r", "axolotl": "0.21.0",
        "datasets": [], "hosts": list(hosts), "planned_at": NOW,
    }  # fmt: skip


@pytest.fixture
def desk(monkeypatch, tmp_path):
    """Provide a runner of actions on a host; it notes what was posted, and what was asked of the trainer."""
    made = types.SimpleNamespace(posts=[], asked=[], answer={})
    monkeypatch.setattr(
        notices, "post", lambda url, body, timeout: made.posts.append((body["run_id"], body["detail"])) or ""
    )
    notify = {"output": str(tmp_path), "url": "http://hook", "form": "json", "timeout": 10, "pods": "",
              "events": ["failed"]}  # fmt: skip

    def module(name: str, asked: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        made.asked.append(name)
        if isinstance(made.answer, Exception):
            raise made.answer
        return made.answer

    def action(name: str, host: str, check: bool, **args: Any) -> tuple[Any, dict[str, Any]]:
        task = mock.Mock(args={"notify": notify, "output": str(tmp_path), **args}, check_mode=check, async_val=0)
        plugin = load(f"action_plugins/{name}").ActionModule(task, *[mock.Mock()] * 5)
        plugin._execute_module = module
        return plugin, {"inventory_hostname": host}

    def run(name: str, host: str = "a", check: bool = False, **args: Any) -> dict[str, Any]:
        plugin, variables = action(name, host, check, **args)
        return plugin.run(task_vars=variables)

    def note(run_id: str, change: str, *args: Any, at: float = NOW + 1, **more: Any) -> None:
        update_record(tmp_path, run_id, lambda record, now: getattr(record, change)(*args, now=now, **more), now=at)

    def fail(*plans: dict[str, Any], host: str = "a", quiet: bool = False, check: bool = False, **args: Any) -> Any:
        failure = {"msg": "no GPU", **args.pop("failure", {})}
        return run("note_failure", host, check, runs=list(plans), failure=failure, quiet=quiet, **args)

    made.run, made.note, made.fail, made.action = run, note, fail, action
    made.record = lambda run_id: read_record(tmp_path, run_id)
    return made


def test_a_failure_is_noted_and_told_once(desk):
    for _ in range(2):
        answer = desk.fail(plan())
        assert (answer["ends"], answer["stop"], answer.get("failed")) == (False, [], None)
    assert desk.posts == [("witness-1", "no GPU")]
    assert desk.record("witness-1").failure(["a"], NOW) == "no GPU"


def test_a_stop_that_died_before_it_was_noted_is_noted_by_the_next_one(desk):
    desk.note("witness-1", "launched", "a", 0)
    desk.answer = {"changed": False, **Observation(state="stopped").as_dict(), "others": {}, "over": []}
    for check, noted in ((True, "launched"), (False, "stopped")):
        found = desk.run("stop_run", check=check, run=plan(), root="/r", stop_timeout=1, pull=False, transfer={})
        assert not found.get("failed"), found
        assert (found.get("changed"), desk.record("witness-1").state) == (False, noted)
    desk.note("witness-1", "ended", "finished", "a")
    desk.answer |= {"state": "finished"}
    desk.run("stop_run", run=plan(), root="/r", stop_timeout=1, pull=False, transfer={})
    assert desk.record("witness-1").state == "finished"


def test_a_stop_that_came_too_late_is_told_as_what_it_is(desk, capsys):
    desk.note("witness-1", "launched", "a", 0)
    for state, by_notes, words in (
        ("finished", True, "finished; playbooks/collect.yml collects it\n"),
        ("stopped", False, "stopped; train.yml resumes it\n"),
        ("stopped", True, "stopped; train.yml resumes it, with the recipe and data that it was launched with\n"),
    ):
        desk.answer = {"changed": True, **Observation(state=state).as_dict(), "others": {}, "over": []}
        run = plan() | {"by_notes": by_notes}
        found = desk.run("stop_run", run=run, root="/r", stop_timeout=1, pull=False, transfer={})
        assert (found.get("failed"), found["changed"]) == (None, True)
        assert words in capsys.readouterr().err


def test_a_trainer_that_is_given_up_gives_its_own_reason_where_there_is_none_yet(desk):
    desk.fail(plan("crew-1"), quiet=True)
    plans = [plan("crew-1"), plan("witness-1")]
    desk.fail(*plans, failure={"msg": "the host is lost"}, whole_trainer=True)
    assert desk.posts == [("crew-1", "no GPU"), ("witness-1", "the host is lost")]


def test_what_was_delivered_by_this_command_has_not_failed(desk, tmp_path):
    update_record(tmp_path, "witness-1", lambda record, now: RunRecord("witness-1", delivered_at=NOW + 1))
    desk.fail(plan(), whole_trainer=True)
    assert (desk.posts, desk.record("witness-1").failures) == ([], {})
    update_record(tmp_path, "witness-1", lambda record, now: RunRecord("witness-1", delivered_at=NOW - 1))
    desk.fail(plan(), whole_trainer=True)
    assert desk.posts == [("witness-1", "no GPU")]


@pytest.mark.parametrize("case", ["quiet", "refused", "settled", "check"])
def test_who_does_not_tell(desk, case):
    if case == "settled":  # the watching told, or knew that it is no news
        desk.note("witness-1", "settled", "failed")
    desk.fail(plan(), quiet=case == "quiet", check=case == "check", failure={"refused": case == "refused"})
    assert desk.posts == []
    assert bool(desk.record("witness-1").failures) is (case != "check")


def test_what_was_noted_quietly_is_told_by_whoever_gives_up(desk):
    desk.fail(plan(), quiet=True)
    desk.fail(plan(), failure={"msg": "another pod failed, too"}, whole_trainer=True)
    assert desk.posts == [("witness-1", "no GPU")]


@pytest.mark.parametrize(
    ("failure", "ends"),
    [({"state": "unreachable"}, True), ({"breach": "too dear", "state": "stopped"}, True), ({"state": "failed"}, False),
     ({}, False)],
)  # fmt: skip
def test_a_trainer_ends_with_a_run_that_lost_it_or_costs_too_much(desk, failure, ends):
    assert desk.fail(plan(), failure=failure)["ends"] is ends


def test_a_gang_is_stopped_where_this_command_started_it(desk):
    run = plan("crew-1", "a", "b", "c", "d")
    desk.note("crew-1", "on_host", "b", True)
    desk.note("crew-1", "on_host", "c", False)  # attached to
    desk.note("crew-1", "on_host", "d", True, at=NOW - 1)  # by an earlier command
    assert desk.fail(run)["stop"] == [{"host": "b", "run_id": "crew-1"}]
    # Where the training itself failed, the others cannot go on.
    assert [one["host"] for one in desk.fail(run, failure={"state": "failed"})["stop"]] == ["b", "c", "d"]


def test_what_a_lost_trainer_has_started_goes_on(desk):
    run = plan("crew-1", "a", "b")
    desk.note("crew-1", "on_host", "b", True)
    assert desk.fail(run, whole_trainer=True)["stop"] == [{"host": "b", "run_id": "crew-1"}]
    desk.note("crew-1", "on_host", "a", True)
    assert desk.fail(run, whole_trainer=True)["stop"] == []


def test_a_gang_that_trains_goes_on_where_a_host_is_not_fit(desk):
    run = plan("crew-1", "a", "b")
    desk.note("crew-1", "on_host", "b", False)  # attached to; here the base model did not come
    assert desk.fail(run, failure={"state": "failed"}, whole_trainer=True)["stop"] == []


def test_another_attempt_fails_for_reasons_of_its_own(desk):
    desk.note("crew-1", "failed_on", "b", "on another host")
    desk.fail(plan("crew-1"), failure={"msg": "the pod is gone"}, quiet=True)
    desk.run("forget_failures", runs=[plan("crew-1")])
    assert desk.record("crew-1").failures_of(["a", "b"], NOW) == {"b": "on another host"}
    desk.fail(plan("crew-1"), failure={"msg": "no other pod can be had"}, whole_trainer=True)
    assert desk.posts == [("crew-1", "no other pod can be had")]


def test_it_fails_again_with_what_failed(desk):
    answer = desk.run("fail_again", failure={"msg": "lost", "state": "unreachable", "changed": True})
    assert (answer["failed"], answer["msg"], answer["state"], answer["changed"]) == (True, "lost", "unreachable", True)


def test_it_fails_again_with_what_is_noted_of_runs_on_this_host(desk):
    runs = [plan("crew-1"), plan("mayor-1"), plan("witness-1")]
    assert not desk.run("fail_again", runs=runs).get("failed")
    desk.note("crew-1", "failed_on", "a", "no GPU")
    desk.note("mayor-1", "failed_on", "b", "elsewhere")
    desk.note("witness-1", "failed_on", "a", "in an earlier command", at=NOW - 1)
    answer = desk.run("fail_again", runs=runs)
    assert (answer["failed"], answer["msg"]) == (True, "no GPU")


def test_that_recipes_alone_were_refused_is_said_once_nothing_else_is_left_to_do(desk, tmp_path):
    runs, refusals = [plan("crew-1"), plan("mayor-1")], {"crew-1": "PEFT refuses the LoRA keys"}
    desk.note("crew-1", "failed_on", "a", "PEFT refuses the LoRA keys")
    assert "configuration" not in desk.run("fail_again", runs=runs, refusals=refusals), "mayor trains, detached"
    desk.note("mayor-1", "failed_on", "a", "out of memory")
    assert "configuration" not in desk.run("fail_again", runs=runs, refusals=refusals)
    delivered = partial(dataclasses.replace, delivered_at=NOW + 1)
    update_record(tmp_path, "mayor-1", lambda record, now: delivered(record))
    answer = desk.run("fail_again", runs=runs, refusals=refusals)
    assert (answer["failed"], answer["configuration"]) == (True, True)
    assert "configuration" not in desk.run("fail_again", runs=runs)


def test_of_runs_that_were_launched_together_each_has_its_own_failure(desk):
    failures = [{"run_id": "crew-1", "msg": "no GPU"}, {"run_id": "mayor-1", "msg": "it is on b", "refused": True}]
    answer = desk.run("fail_again", failures=failures)
    assert (answer["failed"], answer["msg"]) == (True, "no GPU\nit is on b")
    assert not desk.run("fail_again", failures=[]).get("failed")
    desk.note("crew-1", "on_host", "b", True)
    noted = desk.fail(plan("crew-1", "a", "b"), plan("mayor-1"), plan("witness-1"), failure=answer)
    assert (noted["ends"], noted["stop"]) == (False, [{"host": "b", "run_id": "crew-1"}])
    assert desk.posts == [("crew-1", "no GPU")]
    told = {name: desk.record(name).failures.get("a") for name in ("crew-1", "mayor-1", "witness-1")}
    assert [told["crew-1"]["message"], told["mayor-1"]["refused"], told["witness-1"]] == ["no GPU", True, None]


def test_options_that_tasks_share_come_together_and_a_tasks_own_go_before_them(desk):
    desk.note("crew-1", "failed_on", "a", "no GPU")
    shared = {"runs": [plan("crew-1")]}
    assert desk.run("fail_again", common=shared)["msg"] == "no GPU"
    assert not desk.run("fail_again", common=shared, runs=[plan("mayor-1")]).get("failed")


def chosen(desk, *plans: dict[str, Any], host: str = "a") -> Any:
    plugin, _ = desk.action("deliver_run", host, False)
    plugin.host = host
    args = plugin._task.args | {"root": "/r", "stall_timeout": 9}
    found = plugin.choose(plugin.left(list(plans), args), args)
    return found and found["run_id"]


def test_what_has_ended_is_delivered_first_then_what_trains(desk):
    states = {"q-1": "queued", "r-1": "running", "f-1": "failed"}
    runs = [ListedRun(state, run_id=run_id, agent="x").as_dict() for run_id, state in states.items()]
    desk.answer = {"runs": runs, "gpus": []}
    plans = [plan("x-1"), plan("q-1"), plan("r-1"), plan("f-1")]
    assert chosen(desk, *plans) == "f-1"
    assert chosen(desk, *plans[:3]) == "r-1"
    assert chosen(desk, *plans[:2]) == "x-1"  # in the order of the plan


def test_in_check_mode_nothing_is_delivered(desk):
    found = desk.run("deliver_run", check=True, runs=[plan()], root="/r", stall_timeout=9)
    assert (found["skipped"], desk.asked) == (True, [])


def test_whatever_goes_wrong_with_a_run_is_not_of_all_that_its_trainer_has(desk, monkeypatch):
    plugin, variables = desk.action("deliver_run", "a", False, runs=[plan("crew-1")], root="/r", stall_timeout=9)
    monkeypatch.setattr(plugin, "deliver", mock.Mock(side_effect=AnsibleError("sudo asks for a password")))
    result = plugin.run(task_vars=variables)
    assert (result["failed"], result["run_id"], result["msg"]) == (True, "crew-1", "sudo asks for a password")


def test_one_run_is_delivered_without_a_question(desk):
    assert chosen(desk, plan("w-1"), plan("of-another-host", "b"), plan("gang-1", "b", "a")) == "w-1"
    assert desk.asked == []
    assert chosen(desk, plan("of-another-host", "b")) is None


def test_what_is_delivered_or_failed_in_this_command_has_had_its_turn(desk, tmp_path):
    update_record(tmp_path, "d-1", lambda record, now: RunRecord("d-1", delivered_at=NOW + 1))
    desk.note("f-1", "failed_on", "a", "no GPU")
    desk.note("g-1", "failed_on", "b", "on another host")
    assert chosen(desk, plan("d-1"), plan("f-1"), plan("g-1", "a", "b")) == "g-1"


def test_a_trainer_that_does_not_answer_gives_no_order(desk):
    desk.answer = AnsibleError("no route")
    assert chosen(desk, plan("x-1"), plan("y-1")) == "x-1"
