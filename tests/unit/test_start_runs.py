"""Runs that are launched on one host together: what is asked, sent and started, and whose failure is whose."""

from __future__ import annotations

import hashlib
import pathlib
from typing import Any
from unittest import mock

import pytest
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.lora_forge.controller import answers
from ansible.module_utils.lora_forge.planning.run_record import (
    RunRecord,
    keep_launched,
    read_launched,
    read_record,
    update_record,
)
from ansible.module_utils.lora_forge.text import canonical
from ansible.module_utils.lora_forge.trainer.run_state import ListedRun
from planned import planned_run
from wire import load

NOW = 1000.0  # when the command planned
ANSWER = {"failed": True, "msg": "no room"}


class Desk:
    """The action on a host whose answers are prepared; of what it asks the test hears."""

    def __init__(self, output: pathlib.Path):
        self.output = output
        self.states: dict[str, str] = {}  # of runs that are there
        self.missing: set[str] = set()
        self.transfers: list[list[str]] = []
        self.unsent: set[str] = set()  # runs whose files cannot be sent
        self.commands: list[str] = []
        self.made = {"rc": 0, "stdout": "", "stderr": ""}
        self.starts: list[list[str]] = []
        self.asked: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self.refuse: dict[str, str] = {}
        self.others: set[str] = set()  # runs that another command starts meanwhile
        self.meanwhile = lambda: None  # what it does
        self.once = 1000  # how many runs a call starts
        self.lost = ""  # the call at which the connection is lost
        self.sizes: dict[str, int] = {}

    def module(self, name: str, args: dict[str, Any]) -> dict[str, Any]:
        if name == self.lost:
            raise AnsibleConnectionFailure("Connection timed out")
        if name == "training_run":
            self.stopped.append(args["run_dir"])
            return {"changed": True}
        if name == "trainer_info":
            assert answers.limit(name, args) == 60
            runs = [
                ListedRun(self.states.get(run_id, "absent"), run_id=run_id, agent="witness") for run_id in args["only"]
            ]
            missing = [path for path in args["paths"] if path in self.missing]
            answer = {"changed": False, "runs": [run.as_dict() for run in runs], "gpus": [], "missing": missing}
        else:
            self.asked.append(args)
            names = [pathlib.PurePath(run["run_dir"]).name for run in args["runs"]][: self.once]
            self.starts.append(names)
            self.meanwhile()
            answer = {"changed": True, "runs": [
                {"run_id": run_id, "changed": False, "refused": self.refuse[run_id]} if run_id in self.refuse else
                {"run_id": run_id, "changed": run_id not in self.others, "backend": "tmux",
                 "attach_command": "tmux attach -t w", "message": "no reboot"}
                for run_id in names
            ]}  # fmt: skip
        return answers.hold(name, answer, "gpu-1")

    def action(self, name: str, args: dict[str, Any]) -> dict[str, Any]:
        if self.lost == "transfer":
            return {**ANSWER, "lost": True, "msg": "gpu-1 does not answer: gone\nwhat now"}
        names = sorted({file["path"].split("/")[1] for file in args["files"] if file["path"].startswith("runs/")})
        self.transfers.append(names)
        return ANSWER if self.unsent & set(names) else {"changed": True}

    def command(self, command: str) -> dict[str, Any]:
        self.commands.append(command)
        return self.made

    def launch(self, *runs: Any, check: bool = False, **more: Any) -> dict[str, Any]:
        plugin = load("action_plugins/start_runs")
        args = {
            "runs": [run.as_dict() for run in runs], "root": "/r", "output": str(self.output), "lock": "trainer-cpu",
            "transfer": {}, "secrets": {"WANDB_API_KEY": "k"}, "backend": "auto", "gpus": [], **more,
        }  # fmt: skip
        action = plugin.ActionModule(mock.Mock(args=args, check_mode=check, async_val=0), *[mock.Mock()] * 5)
        action.run_module, action.run_action, action.run_command = self.module, self.action, self.command
        action.axolotl_yml = lambda turn: f"# {turn.run.run_id}"
        action._patience = lambda: 60.0
        hosts = {"a": {"ansible_host": "10.0.0.1"}, "b": {"run_address": "10.0.0.2"}}
        return action.run(task_vars={"inventory_hostname": "gpu-1", "hostvars": hosts})

    def note(self, run_id: str, change: str, *args: Any, **more: Any) -> None:
        update_record(
            self.output, run_id, lambda record, now: getattr(record, change)(*args, now=now, **more), now=NOW + 1
        )

    def record(self, run_id: str) -> RunRecord:
        return read_record(self.output, run_id)


@pytest.fixture
def desk(tmp_path: pathlib.Path) -> Desk:
    return Desk(tmp_path)


RECIPE = {"base_model": "Acme/Tiny"}


def run(run_id: str, **values: Any) -> Any:
    return planned_run(run_id=run_id, trainer=values.pop("trainer", "gpu-1"), planned_at=NOW, recipe=RECIPE,
                       recipe_sha256=hashlib.sha256(canonical(RECIPE).encode()).hexdigest(), **values)  # fmt: skip


RUNS = [run(f"witness-{number}") for number in range(4)]
NAMES = [one.run_id for one in RUNS]


def test_all_are_asked_for_sent_and_started_once(desk: Desk) -> None:
    answer = desk.launch(*RUNS)
    assert (answer["changed"], answer["failures"]) == (True, [])
    assert [one["run_id"] for one in answer["runs"]] == NAMES
    assert (desk.transfers, desk.starts, desk.commands) == ([NAMES], [NAMES], [])
    assert desk.asked[0]["secrets"] == {name: {"WANDB_API_KEY": "k"} for name in NAMES}
    assert all(desk.record(name).hosts["gpu-1"]["started"] and desk.record(name).state == "launched" for name in NAMES)


def test_in_check_mode_nothing_is_noted(desk: Desk) -> None:
    assert desk.launch(*RUNS, check=True)["changed"] is True
    assert list(desk.output.iterdir()) == []


def test_each_is_kept_as_it_is_launched_where_it_leads(desk: Desk) -> None:
    alone = run("witness-0")
    second = run("crew-0", agent="crew", trainer="gpu-0", hosts=("gpu-0", "gpu-1"))
    asks = run("mayor-0-eval-0", agent="mayor", evaluates="mayor-0")
    desk.launch(alone, second, asks)
    kept = read_launched(desk.output, "witness-0")
    assert kept is not None
    assert (kept.recipe, kept.launched.root) == (RECIPE, "/r")
    assert kept.launched.python.startswith("/r/env/trainer-cpu-")
    lock = pathlib.Path(__file__).parents[2] / "requirements/trainer-cpu.txt"
    assert kept.launched.lock_sha256 == hashlib.sha256(lock.read_bytes()).hexdigest()
    assert [path.name for path in (desk.output / "launched").iterdir()] == ["witness-0.json"]


@pytest.mark.parametrize("first", ["this one", "the other one"])
def test_of_two_commands_what_the_one_that_started_it_launched_is_kept(desk: Desk, first: str) -> None:
    """The other one has machine keys of its own, which are in no fingerprint, and comes between."""
    recipes = [{"base_model": "Acme/Tiny", "micro_batch_size": size} for size in (1, 2)]
    theirs, ours = (
        planned_run(run_id="witness-0", trainer="gpu-1", planned_at=NOW, recipe=recipe,
                    recipe_sha256=hashlib.sha256(canonical(recipe).encode()).hexdigest())
        for recipe in recipes
    )  # fmt: skip
    if first == "this one":
        desk.meanwhile = lambda: keep_launched(desk.output, theirs)
    else:
        keep_launched(desk.output, theirs)
        desk.others = {"witness-0"}
    desk.launch(ours)
    kept = read_launched(desk.output, "witness-0")
    assert kept is not None
    assert kept.recipe == (ours if first == "this one" else theirs).recipe


def test_what_lives_or_is_done_is_attached_to_and_nothing_is_sent(desk: Desk) -> None:
    desk.states = dict.fromkeys(NAMES[:2], "running") | {NAMES[2]: "finished", NAMES[3]: "queued"}
    answer = desk.launch(*RUNS)
    assert (answer["changed"], [one["state"] for one in answer["runs"]]) == (
        False, ["running", "running", "finished", "queued"]
    )  # fmt: skip
    assert (desk.transfers, desk.starts) == ([], [])
    assert desk.record(NAMES[0]).hosts["gpu-1"]["started"] is False


def test_what_another_checkout_has_launched_is_found_by_the_one_that_attached_to_it(desk: Desk) -> None:
    desk.states = {NAMES[0]: "running", NAMES[1]: "finished", NAMES[2]: "running"}
    desk.note(NAMES[2], "launched", "gpu-1", 0)
    desk.launch(*RUNS[:3])
    for name in NAMES[:2]:
        kept = read_launched(desk.output, name)
        assert kept is not None
        assert (desk.record(name).trainer, kept.launched.root) == ("gpu-1", "/r")
    assert read_launched(desk.output, NAMES[2]) is None  # which was launched from here, before such things were kept


def test_each_has_its_own_failure(desk: Desk) -> None:
    desk.states = {NAMES[0]: "unknown"}
    desk.note(NAMES[1], "launched", "other", 0)
    desk.refuse = {NAMES[2]: "the supervisor did not come up"}
    answer = desk.launch(*RUNS, run("crew-0"), refusals={"crew-0": "PEFT refuses the LoRA keys"})
    assert [(one["run_id"], one.get("refused", False), one["msg"].partition(":")[0]) for one in answer["failures"]] == [
        (NAMES[0], False, f"{NAMES[0]} is not started; nobody knows whether it runs"),
        (NAMES[1], True, f"{NAMES[1]} is not started"),
        (NAMES[2], False, "the supervisor did not come up"),
        ("crew-0", False, "PEFT refuses the LoRA keys"),
    ]
    assert (answer["changed"], [one["run_id"] for one in answer["runs"]]) == (True, [NAMES[3]])
    assert desk.transfers == [[NAMES[2], NAMES[3]]]
    assert not desk.record(NAMES[2]).hosts


def test_what_cannot_be_sent_keeps_no_other_from_its_start(desk: Desk) -> None:
    desk.unsent = {NAMES[1]}
    answer = desk.launch(*RUNS)
    assert [(one["run_id"], one["msg"]) for one in answer["failures"]] == [(NAMES[1], "no room")]
    assert desk.transfers == [NAMES, *([name] for name in NAMES)]
    assert desk.starts == [[NAMES[0], *NAMES[2:]]]


@pytest.mark.parametrize("call", ["trainer_info", "transfer", "training_runs"])
def test_a_connection_that_is_lost_is_told_of_all_and_nothing_else_is_tried(desk: Desk, call: str) -> None:
    desk.lost = call
    answer = desk.launch(*RUNS)
    assert [one["run_id"] for one in answer["failures"]] == NAMES
    [message] = {one["msg"] for one in answer["failures"]}
    assert message.startswith("gpu-1 does not answer: ")
    assert (desk.starts, len(desk.transfers)) == ([], int(call == "training_runs"))
    assert (answer["changed"], answer["runs"]) == (False, [])


def test_what_was_started_before_the_connection_was_lost_is_noted(desk: Desk, monkeypatch) -> None:
    desk.once = 2

    def module(name: str, args: dict[str, Any]) -> dict[str, Any]:
        desk.lost = name if desk.starts else ""
        return Desk.module(desk, name, args)

    monkeypatch.setattr(desk, "module", module)
    answer = desk.launch(*RUNS)
    assert [one["run_id"] for one in answer["runs"]] == NAMES[:2]
    assert [one["run_id"] for one in answer["failures"]] == NAMES[2:]
    assert [bool(desk.record(name).hosts) for name in NAMES] == [True, True, False, False]


def test_what_a_call_has_no_time_for_is_left_to_the_next_one(desk: Desk) -> None:
    desk.once = 3
    assert desk.launch(*RUNS)["failures"] == []
    assert desk.starts == [NAMES[:3], NAMES[3:]]


def test_an_answer_that_says_nothing_of_any_ends_it(desk: Desk) -> None:
    desk.once = 0
    assert {one["msg"] for one in desk.launch(*RUNS)["failures"]} == {
        f"gpu-1: its answer to training_runs says nothing of {NAMES[0]}"
    }


@pytest.mark.parametrize(
    "call", [pytest.param("a start", id="answer without words"), pytest.param("training_run", id="stop that cannot be")]
)
def test_what_a_host_does_is_no_fault_of_ours(desk: Desk, monkeypatch, call: str) -> None:
    def module(name: str, args: dict[str, Any]) -> dict[str, Any]:
        if name == call:
            raise AnsibleError("Missing sudo password")
        if name != "training_runs":
            return Desk.module(desk, name, args)
        if call == "training_run":  # so that it is stopped again
            desk.note("crew-0", "failed_on", "a", "no GPU")
            return Desk.module(desk, name, args)
        return answers.hold(name, {"changed": True, "runs": [{"run_id": "crew-0", "changed": True}]}, "gpu-1")

    monkeypatch.setattr(desk, "module", module)
    answer = desk.launch(run("crew-0", trainer="a", hosts=("a", "gpu-1")))
    assert "fault of lora-forge" not in str(answer)
    assert [one["msg"] for one in answer["failures"]] == (["Missing sudo password"] if call == "training_run" else [])
    assert desk.record("crew-0").hosts["gpu-1"]["started"] is True


def test_the_model_of_several_rehearsals_is_made_once(desk: Desk) -> None:
    rehearsals = [run(f"crew-{number}", rehearsal=True) for number in range(3)]
    plugin = load("action_plugins/start_runs")
    model = plugin.launch.base_model_path(rehearsals[0], "/r")
    desk.missing = {f"{model}/config.json"}
    assert desk.launch(*rehearsals)["failures"] == []
    assert (len(desk.commands), f"test -e {model}/config.json ||" in desk.commands[0]) == (1, True)
    desk.made = {"rc": 1, "stdout": "no tokenizer", "stderr": ""}
    assert len(desk.launch(*rehearsals, *RUNS)["failures"]) == 3
    assert desk.starts[-1] == NAMES


def test_much_is_brought_in_several_lots_so_that_the_first_one_trains_meanwhile(desk: Desk, monkeypatch) -> None:
    plugin = load("action_plugins/start_runs")
    monkeypatch.setattr(plugin.os.path, "getsize", lambda path: plugin.ENOUGH)
    assert desk.launch(*RUNS)["failures"] == []
    assert [name for lot in desk.starts for name in lot] == NAMES
    assert len(desk.starts) == len(desk.transfers) == 2, "what they share is brought once"


def test_a_gang_trains_on_all_its_hosts_or_on_none(desk: Desk, monkeypatch) -> None:
    gang, lame = (run(name, trainer="a", hosts=("a", "gpu-1")) for name in ("crew-0", "crew-1"))
    desk.note("crew-1", "failed_on", "a", "no GPU")
    answer = desk.launch(gang, lame, RUNS[0])
    assert [(one["run_id"], one["refused"], one["msg"]) for one in answer["failures"]] == [
        ("crew-1", True, "crew-1 is not started: no GPU")
    ]
    asked = dict(zip(desk.starts[0], desk.asked[0]["runs"]))
    assert "10.0.0.1:29400" in asked["crew-0"]["command"]
    secrets = desk.asked[0]["secrets"]
    assert secrets["crew-0"]["PET_RDZV_ID"] == desk.record("crew-0").rendezvous
    assert "PET_RDZV_ID" not in secrets[NAMES[0]]

    def module(name: str, args: dict[str, Any]) -> dict[str, Any]:
        if name == "training_runs":  # the other host fails meanwhile
            desk.note("crew-0", "failed_on", "a", "out of memory")
        return Desk.module(desk, name, args)

    monkeypatch.setattr(desk, "module", module)
    answer = desk.launch(gang, RUNS[1])
    assert desk.stopped == ["/r/runs/crew-0"]
    assert [(one["refused"], one["msg"]) for one in answer["failures"]] == [
        (True, "crew-0 is stopped again, as a cannot take part: out of memory")
    ]
    assert [one["run_id"] for one in answer["runs"]] == [NAMES[1]]
