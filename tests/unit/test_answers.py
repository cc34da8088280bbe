"""The gate: what a trainer answers is its module's answer, in form, or the failure of this trainer alone."""

from __future__ import annotations

import copy
import json
import math
import os
import pathlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import rundir
import yaml
from ansible.module_utils.lora_forge.controller import answers
from ansible.module_utils.lora_forge.controller.actions import ForgeAction
from ansible.module_utils.lora_forge.trainer import launching, runs
from ansible.module_utils.lora_forge.trainer.run_state import ListedRun, Observation
from ansible.plugins.action import ActionBase
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import load

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODULES = {path.stem: load(f"library/{path.stem}") for path in sorted((ROOT / "library").glob("*.py"))}
# These run on the controller as any module does: RunPod and W&B are asked from there alone.
ON_THE_CONTROLLER = {"runpod_gpu_info", "runpod_pod", "runpod_pod_info", "wandb_run_info", "wandb_sync"}
PLUGINS = {path.stem: path for path in (ROOT / "action_plugins").glob("*.py")}


def target(name: str) -> str:
    """Name the file that an action plugin is a link to; empty for one of its own."""
    return PLUGINS[name].readlink().name if name in PLUGINS and PLUGINS[name].is_symlink() else ""


ON_TRAINERS = sorted(name for name in MODULES.keys() - ON_THE_CONTROLLER if target(name) != "on_controller.py")

EVENT = {"event": "log", "step": 4, "planned": 12, "time": 1.0, "loss": 2.5, "epoch": 0.1, "tokens_per_second": 950.0}
PROGRESS = {"step": 4, "planned": 12, "loss": 2.5, "eval_loss": "nan", "last_event_at": 1.0, "measured": 3,
            "data": {"examples": 9, "tokens": 99, "longer": 0, "dropped": 0, "untrainable": 0},
            "wandb": {"mode": "online", "run": "a/b/c", "url": None}}  # fmt: skip
SEEN = Observation.from_dict({
    "state": "failed", "detail": "crash: it fell", "alive": False, "progress": PROGRESS, "eta_seconds": None,
    "events": [EVENT, {"event": "begin", "step": 0, "planned": 12, "time": 0.5}], "token": "22:8c", "silent_for": 9.5,
    "checkpoint": {"step": 4, "files": ["output/checkpoint-4/complete.json"]}, "log_tail": "Traceback\n  ValueError: …",
    "status": {"state": "failed", "starts": 1, "exit_code": 1, "reason": {"kind": "crash", "detail": "it fell"},
               "first_started_at": 1.5, "supervisor": {"pid": 7, "start": 8, "boot": "b"}, "lane": "GPU-1"},
    "nodes": "c[1-2]",
    "facts": {"run_id": "witness-0", "agent": "witness", "fingerprint": "f" * 64, "rehearsal": False,
              "backend": "tmux", "hosts": ["gpu-1"], "attach_command": "tmux attach -t witness-0"},
})  # fmt: skip
GPU = {"index": 0, "uuid": "GPU-5a1f", "name": "NVIDIA A100", "memory_mib": 81920, "used_mib": 4, "use": 97}
LISTED = ListedRun(**vars(SEEN), run_id="witness-0", agent="witness", gpu=GPU, gpu_busy=97).as_dict()

# A whole answer of each module, as its own tests have it.
REAL: dict[str, dict[str, Any]] = {
    "base_model": {"state": "fetching", "described": "/m/x", "folder": "", "bytes": 3, "total_bytes": 9,
                   "bytes_per_second": 1.5, "error": "", "mark": "fetching:4:described"},
    "checkpoint_prune": {
        "checkpoints": [{"path": "/r/checkpoint-4", "step": 4, "eval_loss": 7.5, "bytes": 5, "keep": True, "why": ""},
                        {"path": "/r/x", "step": None, "eval_loss": None, "bytes": 5, "keep": False, "why": "old"}],
        "freed": 10, "left_alone": "",
        "show": {"columns": ["checkpoint", "MB"], "rows": [["checkpoint-4", 5.2], ["x", "–"]], "lines": ["  freed"]}},
    "environment_prune": {
        "environments": [{"name": "hub-0", "path": "/e/x", "bytes": 7, "shared": 3, "used_by": "", "removed": True}],
        "freed": 4, "show": {}},
    "gpu_check": {"device": "NVIDIA A100", "bf16_tflops": 243.1, "seconds": 14},
    "gpu_info": {"driver": "580.95.05", "gpus": [{**GPU, "free_mib": 9, "compute_capability": "8.0", "mig": False,
                                                  "ecc_errors": None, "recovery_action": "None"}],
                 "processes": [{"gpu_uuid": "GPU-5a1f", "pid": 4, "name": "python, x", "used_mib": None, "run": None}],
                 "runs": ["/r/runs/witness-0"], "problems": [], "warnings_found": ["it is hot"]},
    "lora_adapter_info": {"problems": [], "modules": 14, "rank": 64, "parameters": 213504, "untrained": 0,
                          "files": [{"bytes": 8, "name": "train.log", "path": "train.log", "sha256": "0c" * 32}],
                          "versions": {"axolotl": "0.19.0", "torch": "2.13.0+cpu"}},
    "pod_leash": {"leash": {"alive": True, "beat": 1795450800.125, "deadline": 1795458720.0, "pod": "7h9k",
                            "renewals": 1, "state": "waiting", "word": "it waits"}},
    "recipe_check": {"answers": [{"run_id": "witness-0", "problems": ["Can't load qlora in 8bit"], "refused": ["no"],
                                  "warnings": ["may not be meant"], "unknown": "", "tensors": 392,
                                  "parameters": 161480704}], "left_out": ""},
    "slurm_check": {"version": "slurm 24.11.5"},
    "trainer_environment": {"python": "/e/bin/python", "adopted": False, "built_from": "trainer-cpu", "packages": 238,
                            "interpreter": "/usr/bin/python3.13", "seconds": 13.2},
    "trainer_info": {"runs": [LISTED], "gpus": [GPU], "missing": ["/r/models/tiny-0/config.json"]},
    "training_log": {"text": "one\n\ttwo\n", "offset": 9, "state": "running", "more": False},
    "training_run": {"changed": True},
    "training_run_evidence": {
        "seen": {key: value for key, value in SEEN.as_dict().items() if key not in ("token", "log_tail")},
        "train_log": "one\n", "supervisor_log": "", "axolotl_yml": "adapter: lora\n", "unit": "",
        "gpu": {"driver": None, "gpus": [], "processes": [], "error": "nvidia-smi is not here"},
        "host": {"kernel": "Linux 6.12 x86_64", "distribution": "Debian", "python": "3.13.5", "cpus": 2,
                 "memory_bytes": 9, "memory_free_bytes": None, "disk_bytes": 9, "disk_free_bytes": 3},
        "environment": {"name": "trainer-cpu-0", "packages": {"axolotl": "0.21.0"}}},
    "training_run_info": {**SEEN.as_dict(), "others": {"mayor-0": SEEN.progress.as_dict()}, "over": ["mayor-0"]},
    "training_runs": {"runs": [{"run_id": "witness-0", "changed": True, "backend": "tmux", "message": "no reboot …",
                                "attach_command": "tmux attach -t w"},
                               {"run_id": "crew-0", "changed": False, "refused": "no sudo"}]},
}  # fmt: skip


# --- that nothing goes past it --------------------------------------------------------------------------------------


def test_every_module_that_runs_on_trainers_has_a_form() -> None:
    assert sorted(answers.FORMS) == ON_TRAINERS
    assert all("controller" in str(MODULES[name].DOCUMENTATION) or name.startswith(("runpod", "wandb"))
               for name in ON_THE_CONTROLLER)  # fmt: skip


@pytest.mark.parametrize("name", ON_TRAINERS)
def test_every_module_that_runs_on_trainers_is_run_through_the_gate(name: str) -> None:
    source = PLUGINS[name].read_text(encoding="utf-8")
    assert f'.run_module("{name}"' in source or target(name) == "on_trainer.py"


def test_no_action_goes_round_the_gate() -> None:
    direct = ("_execute_module(", "_low_level_execute_command(", "exec_command(", "_connection.run(")
    round_it = {name for name, path in PLUGINS.items() if any(word in path.read_text("utf-8") for word in direct)}
    assert round_it == {"runpod_pod"}  # a module that runs on the controller


def tasks_of(node: Any) -> Iterator[dict[str, Any]]:
    """List the plays and tasks of a file, those in blocks too."""
    for item in node if isinstance(node, list) else []:
        if isinstance(item, dict):
            yield item
            for value in item.values():
                yield from tasks_of(value)


# Of Ansible's own modules those that run on the controller, in Ansible's process.
HARMLESS = {"add_host", "assert", "debug", "fail", "include_role", "include_tasks", "import_playbook", "import_role",
            "import_tasks", "meta", "set_fact"}  # fmt: skip


def test_no_task_runs_a_module_of_ansibles_on_a_host() -> None:
    found = set()
    for path in [*ROOT.glob("playbooks/*.yml"), *ROOT.glob("roles/*/tasks/*.yml"), ROOT / "train.yml"]:
        for task in tasks_of(yaml.safe_load(path.read_text(encoding="utf-8"))):
            names = {name for name in task if name.startswith("ansible.") or name in ("action", "local_action")}
            found |= {f"{path.name}: {name}" for name in names if name.rpartition(".")[2] not in HARMLESS}
    assert found == set()


# --- that it is the module's own answer -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ON_TRAINERS)
def test_a_form_has_what_the_module_returns(name: str) -> None:
    returned, form = yaml.safe_load(MODULES[name].RETURN), answers.FORMS[name]
    returned.pop("silent", None)  # the action's, of a trainer that does not answer
    assert form.model_fields.keys() == returned.keys() | {"changed"}
    assert set(form.kept) == {key for key, entry in returned.items() if entry["returned"] in ("always", "failure")}
    always = {
        key
        for key, entry in returned.items()
        if entry["returned"] in ("always", "success", "when the trainer answered")
    }
    assert {key for key, field in form.model_fields.items() if field.is_required()} == always


@pytest.mark.parametrize("name", ON_TRAINERS)
def test_a_real_answer_passes_as_it_is_but_for_what_nobody_reads(name: str) -> None:
    answer = json.loads(json.dumps({"changed": True, **REAL[name]}))
    assert without_nothing(answers.hold(name, answer, "gpu-1")) == without_nothing(answer)


def without_nothing(value: Any) -> Any:
    """Leave out what is null, as a form fills it in, and what the trainer alone reads."""
    if isinstance(value, dict):
        own = ("supervisor", "epoch")
        return {key: without_nothing(item) for key, item in value.items() if item is not None and key not in own}
    return [without_nothing(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        ({"failed": True, "msg": "no GPU", "problems": ["hot"], "gpus": []},
         {"failed": True, "msg": "no GPU", "problems": ["hot"], "gpus": []}),
        ({"failed": True, "msg": "no GPU", "problems": "hot", "changed": 1}, {"failed": True, "msg": "no GPU"}),
        ({"failed": True, "exception": {"event": {"msg": "it broke"}}}, {"failed": True, "msg": "it broke"}),
        ({"failed": "yes", "msg": ["x"], "exception": [7]}, {"failed": True, "msg": "it failed"}),
        ({"failed": True, "msg": "a\x1b[2Jb\u202ec\nd"}, {"failed": True, "msg": "a [2Jb c\nd"}),
        # What decides on the controller whether a pod is released, or a failure counts, is never a host's to say.
        ({"failed": True, "msg": "x", "state": "unreachable", "breach": "dear", "kept": True, "refused": True,
          "told": True, "bad_gpu": False, "unreachable": True}, {"failed": True, "msg": "x"}),
    ],
)  # fmt: skip
def test_of_a_failure_stays_its_message_and_what_is_in_form(answer: dict[str, Any], failure: dict[str, Any]) -> None:
    assert answers.hold("gpu_info", answer, "gpu-1") == failure


def test_a_message_of_any_length_is_cut_in_its_middle() -> None:
    message = answers.hold("pod_leash", {"failed": True, "msg": "begin" + "x" * 10**6 + "end"}, "gpu-1")["msg"]
    assert (len(message) < answers.LONGEST + 10, message[:5], message[-3:]) == (True, "begin", "end")


# --- attacks --------------------------------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def changed(name: str, *path: Any, to: Any) -> dict[str, Any]:
    """Make a real answer with one value of it changed."""
    answer = copy.deepcopy(REAL[name])
    place = answer
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return answer


@pytest.mark.parametrize(
    ("name", "answer", "where"),
    [
        ("trainer_info", {"runs": [{"run_id": "x"}]}, "runs.0.state"),
        ("trainer_info", changed("trainer_info", "runs", 0, "progress", "step", to=10**400), "runs.0.progress.step"),
        ("trainer_info", changed("trainer_info", "runs", 0, "progress", "step", to=True), "runs.0.progress.step"),
        ("trainer_info", changed("trainer_info", "runs", 0, "eta_seconds", to=math.nan), "runs.0.eta_seconds"),
        ("trainer_info", changed("trainer_info", "runs", 0, "eta_seconds", to=-math.inf), "runs.0.eta_seconds"),
        ("trainer_info", changed("trainer_info", "runs", 0, "detail", to=nested(10_000)), "runs.0.detail"),
        ("trainer_info", changed("trainer_info", "runs", 0, "run_id", to="../../etc"), "runs.0.run_id"),
        ("trainer_info", changed("trainer_info", "runs", 0, "agent", to="$(reboot)"), "runs.0.agent"),
        ("trainer_info", changed("trainer_info", "runs", 0, "status", "first_started_at", to="x"), "first_started_at"),
        ("trainer_info", changed("trainer_info", "runs", 0, "facts", to=None), "runs.0.facts"),
        ("trainer_info", changed("trainer_info", "runs", to={"0": LISTED}), "runs"),
        ("trainer_info", changed("trainer_info", "gpus", to=[GPU] * 1001), "gpus"),
        ("trainer_info", [], "no object"),
        ("training_run_info", changed("training_run_info", "events", 0, "step", to=None), "events.0"),
        ("training_run_info", changed("training_run_info", "state", to="unreachable"), "state"),
        ("training_run_info", changed("training_run_info", "others", to={"../x": {}}), "others.../x"),
        ("training_run_info", changed("training_run_info", "over", to=["../x"]), "over.0"),
        ("training_run_info", changed("training_run_info", "checkpoint", "files", to=["../x"]), "checkpoint.files.0"),
        ("training_run_info", changed("training_run_info", "checkpoint", "files", to=["/etc/x"]), "checkpoint.files.0"),
        ("training_run_info", changed("training_run_info", "checkpoint", "files", to=["a\nb"]), "checkpoint.files.0"),
        ("lora_adapter_info", changed("lora_adapter_info", "files", 0, "path", to="a/../../b"), "files.0.path"),
        ("lora_adapter_info", changed("lora_adapter_info", "files", 0, "sha256", to="0c"), "files.0.sha256"),
        ("lora_adapter_info", changed("lora_adapter_info", "problems", to=None), "problems"),
        ("training_log", changed("training_log", "text", to="x" * 2**20), "text"),
        ("gpu_info", changed("gpu_info", "gpus", 0, "uuid", to="GPU-1; reboot"), "gpus.0.uuid"),
        ("base_model", changed("base_model", "bytes", to=-1), "bytes"),
        ("pod_leash", {"leash": {"alive": "yes"}}, "leash.alive"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_the_hosts_failure_in_a_sentence(name: str, answer: Any, where: str) -> None:
    held = answers.hold(name, answer, "gpu-1")
    assert held["failed"] is True
    assert held["msg"].startswith(f"gpu-1: its answer to {name} does not fit: ")
    assert where in held["msg"]
    assert len(held["msg"]) < 500
    assert "\n" not in held["msg"]


@pytest.mark.parametrize("nodes", ["c1", "node[001-004,7],gpu.a-1", "c_1"])
def test_names_of_nodes_are_taken(nodes: str) -> None:
    assert answers.hold("training_run_info", changed("training_run_info", "nodes", to=nodes), "a")["nodes"] == nodes


@pytest.mark.parametrize("nodes", ["c1; reboot", "-oProxyCommand=x", "c1\nc2", "c\u202e1", "n" * 1001])
def test_what_no_names_of_nodes_are_is_left_out(nodes: str) -> None:
    assert answers.hold("training_run_info", changed("training_run_info", "nodes", to=nodes), "a")["nodes"] == ""


ANSIBLES = {
    "ansible_facts": {"trainer_rsync_options": ["--rsh=payload"]}, "add_host": {"host_name": "localhost"},
    "add_group": "x", "ansible_stats": {"data": {"x": 1}}, "warnings": ["\x1b[2J"], "deprecations": [{}],
    "exception": "x", "diff": [{"before": "x"}], "invocation": {}, "skipped": True, "attempts": 3, "retries": 3,
    "unreachable": True, "failed_when_result": True, "_ansible_no_log": True, "_ansible_notify": ["x"], "rc": 1,
    "results": [{"ansible_facts": {}}], "ansible_job_id": "j1", "censored": "x", "stdout": 7, "told": True,
    "include": "/etc/x", "include_args": {}, "_ansible_facts_cacheable": True, "include_variables": {},
}  # fmt: skip


@pytest.mark.parametrize("name", ON_TRAINERS)
def test_what_ansible_would_act_on_is_dropped(name: str) -> None:
    held = answers.hold(name, {**REAL[name], **ANSIBLES}, "gpu-1")
    assert held.keys() == REAL[name].keys() | {"changed"}
    held = answers.hold(name, {"failed": True, "msg": "x", **ANSIBLES}, "gpu-1")
    assert held == {"failed": True, "msg": "x"}


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from texts(item)


def dirty(text: str) -> list[str]:
    return [letter for letter in text if not letter.isprintable() and letter not in "\n\t"]


NASTY = "\x00\x1b[31m\x9b\r\u202e\u2066\u200f\u061c\u2028\u2029é"
NUMBERS = st.one_of(st.integers(), st.floats(), st.integers(2**62, 10**400), st.booleans(), st.none())
JSON = st.recursive(
    st.one_of(NUMBERS, st.text(), st.sampled_from([NASTY, "x" * 5000, "..", "log", "failed", "\ud800"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += places(item, (*path, key))
    return found


@st.composite
def mutants(draw: Any) -> tuple[str, Any]:
    """Draw a module, and a real answer of it with some values replaced, some left out, and some of Ansible's own."""
    name = draw(st.sampled_from(ON_TRAINERS))
    answer = json.loads(json.dumps({**REAL[name], **draw(st.sampled_from([{}, {"failed": True}, ANSIBLES]))}))
    for _ in range(draw(st.integers(1, 3))):
        where = draw(st.sampled_from(places(answer)))
        place = answer
        for step in where[:-1]:
            place = place[step]
        if draw(st.booleans()):
            place[where[-1]] = draw(JSON)
        elif isinstance(place, dict):
            del place[where[-1]]
        if not answer:
            break
    return name, answer


def check(name: str, answer: Any) -> None:
    held = answers.hold(name, answer, "gpu-1")
    assert not any(map(dirty, texts(held)))
    json.dumps(held, allow_nan=False).encode()  # plain, finite, and text that can be written
    if held.get("failed"):
        assert held.keys() <= {"failed", "msg", "changed", *answers.FORMS[name].kept}
        assert isinstance(held["msg"], str)
        assert 0 < len(held["msg"]) < answers.LONGEST + 10
    else:
        assert held.keys() <= answers.FORMS[name].model_fields.keys()
        assert answers.hold(name, held, "gpu-1") == held  # whatever reads it next may rely on its form


@settings(max_examples=300, deadline=None)
@given(mutants())
def test_whatever_is_changed_in_an_answer_it_is_in_form_or_a_sentence(mutant: tuple[str, Any]) -> None:
    check(*mutant)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(ON_TRAINERS), JSON)
def test_whatever_json_a_host_answers_it_is_in_form_or_a_sentence(name: str, answer: Any) -> None:
    check(name, answer)


# --- how long it may take -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args", "patience", "seconds"),
    [
        ("trainer_info", {}, 60.0, 60.0),
        ("trainer_info", {}, 120.0, 120.0),
        ("training_run_info", {"wait": 30}, 60.0, 90.0),
        ("training_run_info", {"wait": 30}, 6.0, 36.0),
        ("training_run", {"state": "stopped", "stop_timeout": 200}, 60.0, 700.0),
        ("training_run", {"state": "stopped"}, 60.0, 540.0),
        ("training_runs", {"runs": [{"stop_timeout": 10}, {"stop_timeout": 200}], "within": 30}, 60.0, 730.0),
        ("training_runs", {"runs": [{}] * 25, "within": 3.0}, 6.0, 273.0),
        ("trainer_environment", {}, 60.0, 10_800.0),
    ],
)
def test_each_module_has_its_time(name: str, args: dict[str, Any], patience: float, seconds: float) -> None:
    assert answers.limit(name, args, patience) == seconds


@pytest.mark.parametrize("timeout", [120, 3600])
def test_a_stop_that_waits_for_a_launch_first_has_the_time_to_say_so(timeout: int) -> None:
    longest = (timeout + launching.LAUNCH_WITHIN) + (timeout + 30)
    assert longest < answers.limit("training_run", {"state": "stopped", "stop_timeout": timeout})


@pytest.mark.parametrize("timeout", [0, 120, 3600])
def test_a_launch_that_waits_for_another_one_has_the_time_to_say_so(timeout: int) -> None:
    longest = (timeout + launching.LAUNCH_WITHIN) + (5 + timeout) + launching.LAUNCH_WITHIN + 20
    asked = {"runs": [{"stop_timeout": timeout}] * 25, "within": 30}
    assert 30 + longest < answers.limit("training_runs", asked)


ODD = [
    {"event": "log"},
    {"event": "log", "step": 1, "planned": None},
    {"event": "log", "step": 1, "planned": 2, "loss": 1e300},
    {"event": "log", "step": 1, "planned": 2, "loss": float("inf")},
    {"event": "log", "step": 1, "planned": 2, "loss": "9" * 41},
    {"event": "log", "step": 1, "planned": 2, "loss": 10**17},
    {"event": "log", "step": 1, "planned": 2, "loss": 1.0, "epoch": [1]},
    {"event": "log", "step": 1, "planned": 2, "loss": 1.0, "tokens_per_second": float("nan")},
    {"event": "log", "step": 1, "planned": 2**62, "loss": 1.0, "time": 1e300},
    {"event": "log", "step": 1, "planned": 10**12, "loss": 1.0, "time": 1e12},
    {"event": "end", "step": 1, "planned": 2, "reason": {}},
    {"event": "end", "step": 1, "planned": 2, "adapter": -1},
    {"event": "x" * 201},
    {"event": "wandb", "mode": [], "run": 1, "url": "x" * 1001},
    {"event": "data", "examples": [], "tokens": {}},
    {"event": "data", "examples": 2**62, "tokens": 2**62},
    {"event": "data", "examples": 1, "tokens": 1, "longer": "many"},
]


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("state", ["running", "stopped"])
def test_what_another_host_noted_of_a_run_spoils_no_answer(
    tmp_path: pathlib.Path, odd: dict[str, Any], state: str
) -> None:
    """A run that was moved brings its events along, and the next trainer, which is honest, answers with them."""
    rundir.append_event(tmp_path / "metrics.jsonl", "begin", step=0, planned=2, epoch=0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(2 * (json.dumps({"time": 1.0, **odd}) + "\n"))
    rundir.write_json(tmp_path / "status.json", {
        "state": state, "supervisor": rundir.identity(os.getpid()), "heartbeat": rundir.uptime(), "idle": 0,
    })  # fmt: skip
    seen = json.loads(json.dumps(runs.observe(tmp_path).as_dict() | {"changed": False, "others": {}, "over": []}))
    held = answers.hold("training_run_info", seen, "good")
    assert held.get("msg") is None
    assert held["state"] == state
    rundir.append_event(tmp_path / "metrics.jsonl", "log", step=2, planned=2, loss=1e20)
    seen = json.loads(json.dumps(runs.observe(tmp_path).as_dict() | {"changed": False, "others": {}, "over": []}))
    assert answers.hold("training_run_info", seen, "good")["progress"]["loss"] == "1e+20"


@pytest.mark.parametrize("said", ['{"changed": true, "ansible_facts": {"who": "stranger"}}', "no JSON"])
def test_ansible_gets_an_empty_answer_of_the_kind_that_it_goes_on_with(said):
    action = ForgeAction.__new__(ForgeAction)
    action._running, action._task = "training_run", SimpleNamespace(delegate_to=None)
    plain = {"rc": 0, "stdout": "{}", "stderr": ""}
    empty = ActionBase._parse_returned_data(action, plain, "legacy")
    handed = action._parse_returned_data({**plain, "stdout": said}, "legacy")
    assert type(handed) is type(empty)  # another kind in each version of ansible-core
    assert handed == empty
