"""Recipes before their base models, on a trainer: what is asked, what an answer is, and what follows from one."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import sys
from typing import Any
from unittest import mock

import pytest
import rundir
from ansible.module_utils.lora_forge.controller import answers, preflight
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import PlannedDataset
from ansible.module_utils.lora_forge.trainer import preflight as asking
from planned import planned_run

ROOT = pathlib.Path(__file__).resolve().parents[2]
WITNESS, MAYOR = (
    planned_run(run_id=f"{name}-0", agent=name, name=name, recipe={"base_model": "Acme/Tiny", "model_revision": "v1"})
    for name in ("witness", "mayor")
)
FITS = {"problems": [], "refused": [], "warnings": [], "unknown": "", "tensors": 28, "parameters": 131072}


def load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"action_{pathlib.Path(path).stem}", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plugin = load("action_plugins/preflight.py")


# --- what is asked --------------------------------------------------------------------------------------------------


def asked(tmp_path: pathlib.Path, *runs: Any) -> list[dict[str, Any]]:
    questions = preflight.questions(runs, str(tmp_path), ["NVIDIA H200"])
    return asking.questions(questions, tmp_path / "models/hub")


def model(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


def test_a_run_is_asked_about_as_it_will_train(tmp_path):
    data = [
        PlannedDataset("/home/me/a.jsonl", "train", "0", 1, needs={"tools": 3}),
        PlannedDataset("b", "val", "1", 1, needs={"tool_calls": 2, "tools": 1}),
    ]
    folder = str(model(tmp_path))
    run = planned_run(run_id="witness-0", recipe={"base_model": folder, "lora_r": 8}, datasets=tuple(data))
    [question] = asked(tmp_path, run)
    assert question["recipe"]["lora_r"] == 8
    assert question["capabilities"]["compute_capability"] == "sm_90"
    assert question["needs"] == {"tool_calls": "b, line 2", "tools": "a.jsonl, line 3"}
    assert question["model"] == folder
    assert question["write"] == f"{tmp_path}/runs/witness-0/expected.json"


def test_a_model_on_its_way_is_asked_about_as_soon_as_it_is_described(tmp_path):
    state = tmp_path / "models/hub/lora-forge/Acme--Tiny--v1"
    state.mkdir(parents=True)
    snapshot = str(model(tmp_path))
    status = {"state": "fetching", "process": rundir.identity(os.getpid()), "described": snapshot}
    rundir.write_json(state / "status.json", status)
    assert [question["model"] for question in asked(tmp_path, WITNESS)] == [snapshot]


@pytest.mark.parametrize("state", ["running", "finished"])
def test_a_run_that_lives_or_is_finished_is_not_asked_about(tmp_path, state, monkeypatch):
    run_dir = tmp_path / "runs/witness-0"
    monkeypatch.setattr(asking.runs, "observe", lambda path: mock.Mock(state=state if path == run_dir else "stopped"))
    assert [question["run_id"] for question in asked(tmp_path, WITNESS, MAYOR)] == ["mayor-0"]


def test_a_run_that_was_held_against_its_base_is_not_asked_about_again(tmp_path):
    run_dir = tmp_path / "runs/witness-0"
    run_dir.mkdir(parents=True)
    (run_dir / "expected.json").write_text('{"cut')
    assert len(asked(tmp_path, WITNESS)) == 1
    (run_dir / "expected.json").write_text('{"schema": 1}')
    assert asked(tmp_path, WITNESS) == []


# --- what an answer is ----------------------------------------------------------------------------------------------


def answered(tmp_path: pathlib.Path, printed: str, code: int = 0, **options: Any) -> dict[str, Any]:
    program = tmp_path / "program.py"
    program.write_text(f"import sys\nsys.stdin.read()\nprint('Axolotl talks')\n{printed}\nsys.exit({code})\n")
    return asking.ask(sys.executable, str(program), [{"recipe": {}}], options.get("timeout", 60))


def said(**answer: Any) -> str:
    return f"print({json.dumps({'axolotl': '0.21.0', 'answers': [FITS | answer], 'left_out': []})!r})"


def test_an_answer_is_the_last_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    told = "import os, json\nprint(json.dumps({**json.loads(%r), 'left_out': sorted(os.environ)}))"
    answer = answered(tmp_path, told % said()[len("print('") : -2])
    assert answer["answers"] == [FITS]
    assert "HF_TOKEN" not in answer["left_out"]
    assert {"HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES", "AXOLOTL_DO_NOT_TRACK"} <= set(answer["left_out"])


@pytest.mark.parametrize(
    ("printed", "code", "words"),
    [
        ("print('ImportError: \\x1b[2Jno', file=sys.stderr)", 1, "ended with 1 and without an answer: ImportError"),
        ("", 0, "ended with 0 and without an answer: it said nothing"),
        ("print('[' * 100000)", 0, "without an answer"),
        ("print('x' * (5 << 20))", 0, "without an answer"),
        (said(refused="a text"), 0, "without an answer"),
        (said(refused=[1]), 0, "without an answer"),
        (said(tensors="28"), 0, "without an answer"),
        (said(unknown=None), 0, "without an answer"),
        ("print('{\"axolotl\": \"0\", \"answers\": [], \"left_out\": []}')", 0, "without an answer"),
        ("import time; time.sleep(600)", 0, "gave no answer within 0.5 s"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_said(tmp_path, printed, code, words):
    with pytest.raises(UserError) as error:
        answered(tmp_path, printed, code, timeout=0.5 if "sleep" in printed else 60)
    assert words in str(error.value)
    assert str(error.value).isprintable()


def test_a_python_that_is_not_there_is_said():
    with pytest.raises(UserError, match=r"/no/python could not be started \(No such file or directory\)"):
        asking.ask("/no/python", "program", [], 1)


# --- what follows ---------------------------------------------------------------------------------------------------


class Task:
    """The action with the trainer's answer prepared."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *found: dict[str, Any], left_out: str = ""):
        self.told: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.answer = {"changed": True, "answers": list(found), "left_out": left_out}
        monkeypatch.setattr(plugin, "tell", lambda text, **about: self.told.append(text))
        monkeypatch.setattr(
            plugin, "show", lambda lines, warnings, host: self.told.extend([*lines, *(f"! {one}" for one in warnings)])
        )

    def module(self, name: str, asked: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        assert name == "recipe_check"
        self.asked.append(asked)
        return self.answer

    def run(self, *runs: Any, check: bool = False) -> dict[str, Any]:
        args = {"runs": [run.as_dict() for run in runs], "root": "/w", "lock": "trainer-cpu", "gpus": [None, "L4"]}
        task = mock.Mock(args={**args, "unreachable_timeout": 60}, check_mode=check, async_val=0)
        action = plugin.ActionModule(task, mock.Mock(), mock.Mock(), mock.Mock(), mock.Mock(), mock.Mock())
        action._execute_module = self.module
        return action.run(task_vars={"inventory_hostname": "gpu-1"})


def one(run_id: str, **more: Any) -> dict[str, Any]:
    return {"run_id": run_id, **FITS, **more}


WHY = "PEFT refuses the LoRA keys of the recipe for Acme/Tiny: Target modules {'query'} not found in the base model."
REASON = "the recipe of witness does not go with its base model Acme/Tiny"


def test_what_fits_is_said_and_goes_on(monkeypatch):
    task = Task(monkeypatch, one("witness-0"), one("mayor-0", warnings=["a tower is trained, too"]))
    assert task.run(WITNESS, MAYOR) == {"changed": True, "refusals": {}}
    assert task.told == [
        "  gpu-1: holding the recipes of witness, mayor against Acme/Tiny, which takes half a minute",
        "  gpu-1: the recipe of witness fits its base model: 131 k trained parameters in 28 tensors",
        "  gpu-1: the recipe of mayor fits its base model: 131 k trained parameters in 28 tensors",
        "! gpu-1: mayor: a tower is trained, too",
    ]
    [given] = task.asked
    assert given["program"] == "/w/preflight/preflight.py"
    assert given["home"] == "/w/models/hub"
    assert [run["run_id"] for run in given["runs"]] == ["witness-0", "mayor-0"]
    assert {run["capabilities"]["compute_capability"] for run in given["runs"]} == {"sm_89"}


def test_where_no_run_can_begin_the_host_fails_with_the_sentences(monkeypatch):
    task = Task(monkeypatch, one("witness-0", refused=[WHY]), one("mayor-0", problems=["Can't load qlora in 8bit"]))
    made = task.run(WITNESS, MAYOR)
    assert (made["failed"], made["configuration"]) == (True, True)
    assert made["msg"].splitlines() == [
        f"{REASON}: {WHY}",
        preflight.END,
        "Axolotl refuses the recipe of mayor: Can't load qlora in 8bit",
        preflight.END,
    ]


def test_one_refused_run_stops_no_other_one(monkeypatch):
    task = Task(monkeypatch, one("witness-0", refused=[WHY]), one("mayor-0"))
    made = task.run(WITNESS, MAYOR)
    assert not made.get("failed")
    assert made["refusals"] == {"witness-0": f"{REASON}: {WHY}\n{preflight.END}"}
    assert "! gpu-1: witness-0 cannot begin; its turn says why, and the other runs go on" in task.told
    assert not [line for line in task.told if WHY in line], "it is told once, where the run would begin"


def test_a_run_that_was_not_asked_about_goes_on_beside_a_refused_one(monkeypatch):
    made = Task(monkeypatch, one("witness-0", refused=[WHY])).run(WITNESS, MAYOR)
    assert not made.get("failed")
    assert list(made["refusals"]) == ["witness-0"]


def test_what_a_trainer_cannot_tell_is_left_to_the_training(monkeypatch):
    task = Task(monkeypatch, one("witness-0", unknown="OSError: no config.json"), one("mayor-0"))
    assert task.run(WITNESS, MAYOR)["refusals"] == {}
    assert "! gpu-1: the recipe of witness was not held against Acme/Tiny: OSError: no config.json" in task.told
    task = Task(monkeypatch, left_out="/env/bin/python gave no answer within 300 s")
    assert task.run(WITNESS)["refusals"] == {}
    assert (
        "! gpu-1: the recipes were not held against their base models: /env/bin/python gave no answer" in task.told[1]
    )


def test_rehearsals_and_check_mode_ask_nothing(monkeypatch):
    task = Task(monkeypatch)
    rehearsal = planned_run(run_id="witness-0", rehearsal=True)
    assert task.run(rehearsal) == task.run(WITNESS, check=True) == {"changed": False, "refusals": {}}
    assert (task.told, task.asked) == ([], [])


@pytest.mark.parametrize(
    "answer",
    [
        {"answers": "all is well"},
        {"answers": [one("../../etc")]},
        {"answers": [one("witness-0", refused=[{"a": 1}])]},
        {"answers": [one("witness-0", parameters=-1)]},
        {"answers": [one("witness-0", warnings="no list")]},
        {"answers": [one("witness-0", refused=["no"] * 101)]},
        {"answers": [], "left_out": None},
    ],
)
def test_a_hostile_answer_is_refused_in_a_sentence(monkeypatch, answer):
    task = Task(monkeypatch)
    task.answer |= answer
    made = task.run(WITNESS)
    assert made["failed"] is True
    assert made["msg"].startswith("gpu-1: its answer to recipe_check does not fit: ")
    assert "configuration" not in made


def test_what_a_hostile_trainer_says_is_cut_and_cleaned(monkeypatch):
    task = Task(monkeypatch, one("witness-0", refused=["\x1b[2J" + "y" * 90_000]), one("mayor-0", refused=["no"]))
    made = task.run(WITNESS)
    assert "\x1b" not in made["msg"]
    assert len(made["msg"]) < answers.LONGEST + 500
    assert list(made["refusals"]) == ["witness-0"], "of runs that are not this host's nothing is heard"
