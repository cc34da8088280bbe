"""Axolotl's own validation of a plan: who is asked, about what, and what becomes of the answer."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import sys
from typing import Any

import pytest
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planning import memory, plan, recipe, validation
from ansible.module_utils.lora_forge.planning.agent_recipes import LOCKS
from ansible.module_utils.lora_forge.planning.fleet import Trainer
from ansible.module_utils.lora_forge.trainer import environment
from planned import planned_run

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = str(ROOT / "examples/datasets")
GPU = Trainer("gpu-1", datasets_dir=EXAMPLES)
REHEARSAL = Trainer("cpu", profile="rehearsal", datasets_dir=EXAMPLES)
AXOLOTL = recipe.pinned_version(ROOT / LOCKS[0], "axolotl")
ANSWER = {"problems": [], "refused": [], "warnings": [], "unknown": "", "tensors": 0, "parameters": 0}
LEFT_OUT = "Axolotl's own check of the recipes was left out: "


@pytest.fixture
def stand_in(tmp_path):
    """Make an environment whose Python answers as it is told: a problem for every recipe with this key and value.

    What it says of a base model it says of each whose folder is named.
    """

    def maker(
        problem: str = "", key: str = "", value: Any = None, version: str = AXOLOTL, left_out: Any = (), **base: Any
    ) -> str:
        home = tmp_path / "environment"
        (home / "bin").mkdir(parents=True, exist_ok=True)
        (home / "bin/python").write_text(
            f"#!{sys.executable}\nimport json, os, sys\n"
            "given = json.load(sys.stdin)\n"
            f"open({str(tmp_path / 'asked')!r}, 'a').write(json.dumps([given, dict(os.environ)]) + '\\n')\n"
            f"found = [{problem!r}] if {problem!r} else []\n"
            f"said = [found if one['recipe'].get({key!r}) == {value!r} else [] for one in given]\n"
            f"print('Axolotl talks')\nanswer = {{'axolotl': {version!r}, 'left_out': {left_out!r}}}\n"
            f"bases = [{base!r} if one['model'] else {{}} for one in given]\n"
            f"answer['answers'] = [{ANSWER!r} | {{'problems': p}} | b for p, b in zip(said, bases)]\n"
            "print(json.dumps(answer))\n"
        )
        (home / "bin/python").chmod(0o755)
        return str(home)

    return maker


@pytest.fixture
def asked(tmp_path):
    """List what the stand-in was asked, one entry for each time: agents' recipes and its environment."""

    def reader() -> list[Any]:
        path = tmp_path / "asked"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return reader


@pytest.fixture
def check(tmp_path):
    """Plan and check; what it says to people is its attribute."""

    def checker(agents: str, trainers: list[Trainer], recipe: dict[str, Any] | None = None, **options: Any):
        output = tmp_path / "output"
        made = plan.make(ROOT, output, agents, trainers, recipe or {})
        checker.made = made
        return validation.check(made, trainers, ROOT, output, LOCKS, say=checker.said.append, **options)

    checker.said = []
    return checker


# --- which environment


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    (folder / "requirements").mkdir(parents=True)
    for lock in LOCKS:
        (folder / lock).write_text(lock)
    return folder


def build(base: pathlib.Path, lock: pathlib.Path, whole: bool = True) -> pathlib.Path:
    home = base / "env" / environment.environment_name(lock)
    (home / "bin").mkdir(parents=True)
    (home / "bin/python").touch(0o755)
    if whole:
        (home / environment.COMPLETE).touch()
    return home / "bin/python"


def test_the_checkouts_own_environment_goes_before_a_trainers(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "IMAGE", tmp_path / "image")

    def found() -> pathlib.Path | None:
        return validation.find_environment(checkout, ["/nowhere", str(tmp_path / "data")], LOCKS, "")

    build(checkout / ".trainer", checkout / LOCKS[0], whole=False)
    assert found() is None
    in_image = build(tmp_path / "image", checkout / LOCKS[1])
    assert found() == in_image
    theirs = build(tmp_path / "data", checkout / LOCKS[1])
    assert found() == theirs
    ours = build(checkout / ".trainer", checkout / LOCKS[1])
    assert found() == ours
    (checkout / LOCKS[1]).write_text("made anew")
    assert found() is None


def test_an_environment_of_somebody_elses_is_not_started(checkout, tmp_path, monkeypatch):
    """A trainer's root, /workspace/lora-forge, may be a folder that anybody of this machine could make."""
    home = build(tmp_path / "data", checkout / LOCKS[1]).parents[1]
    monkeypatch.setattr(environment, "IMAGE", tmp_path / "image")
    assert validation.find_environment(checkout, [str(tmp_path / "data")], LOCKS, "") is not None
    if os.getuid():
        monkeypatch.setattr(os, "getuid", lambda: 4321)
    else:
        os.chown(home, 4321, -1)
    assert validation.find_environment(checkout, [str(tmp_path / "data")], LOCKS, "") is None


def test_one_that_is_named_goes_before_all(checkout, tmp_path):
    python = build(tmp_path / "mine", checkout / LOCKS[0])
    for named in (python, python.parents[1]):
        assert validation.find_environment(checkout, [], LOCKS, str(named)) == python
    for wrong in (tmp_path / "nothing", tmp_path):
        with pytest.raises(UserError, match=r"axolotl_environment is .*; name an environment, or its Python"):
            validation.find_environment(checkout, [], LOCKS, str(wrong))


# --- which GPU


@pytest.mark.parametrize(
    ("names", "capability"),
    [
        ([], "8.0"),
        (["NVIDIA H100 80GB HBM3"], "9.0"),
        (["NVIDIA H200"], "9.0"),
        (["NVIDIA B200"], "10.0"),
        (["NVIDIA B300 SXM6 AC"], "10.3"),
        (["NVIDIA RTX PRO 6000 Blackwell Server Edition"], "12.0"),
        (["NVIDIA GeForce RTX 5090"], "12.0"),
        (["NVIDIA L40S"], "8.9"),
        (["NVIDIA L4"], "8.9"),
        (["NVIDIA GeForce RTX 4090"], "8.9"),
        (["NVIDIA RTX 6000 Ada Generation"], "8.9"),
        (["NVIDIA RTX A6000"], "8.6"),
        (["NVIDIA A40"], "8.6"),
        (["NVIDIA GeForce RTX 3090"], "8.6"),
        (["NVIDIA A100-SXM4-80GB"], "8.0"),
        (["Tesla V100-SXM2-32GB"], "7.0"),
        (["Tesla T4"], "7.5"),
        (["NVIDIA H100 NVL", "NVIDIA B200", "NVIDIA L40S"], "8.9"),
        (["NVIDIA H100 NVL", "a card of tomorrow"], "8.0"),
    ],
)
def test_the_least_capability_among_a_pods_gpus(names, capability):
    assert validation.compute_capability(names) == capability


def test_what_axolotl_would_find_of_the_gpu():
    run = planned_run(gpus=2, hosts=("a", "b"))
    hopper = {"bf16": True, "fp8": True, "tf32": True, "n_gpu": 4, "compute_capability": "sm_90"}
    assert validation.capabilities(run, ["NVIDIA H200"]) == hopper
    old = validation.capabilities(run, ["Tesla V100"])
    assert (old["bf16"], old["fp8"], old["tf32"], old["compute_capability"]) == (False, False, False, "sm_70")
    cpu = {"bf16": False, "fp8": False, "tf32": False, "n_gpu": 1, "compute_capability": None}
    assert validation.capabilities(planned_run(rehearsal=True), ["NVIDIA H200"]) == cpu


# --- what is asked


def test_a_recipe_is_asked_about_as_it_will_be_run(check, stand_in, asked, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_secret")
    pod = Trainer("pod-1", datasets_dir=EXAMPLES, gpu_names=("NVIDIA H200",))
    assert check("witness", [pod], {"liger_rms_norm": True, "warmup_ratio": 0.1}, named=stand_in()) == []
    [[[one], variables]] = asked()
    assert one["capabilities"]["compute_capability"] == "sm_90"
    keys = one["recipe"]
    assert keys["plugins"] == ["axolotl.integrations.liger.LigerPlugin", "lora_forge_axolotl.LoraForgePlugin"]
    assert (keys["warmup_ratio"], "warmup_steps" in keys, keys["auto_resume_from_checkpoints"]) == (0.1, False, True)
    assert [item["type"] for item in keys["datasets"]] == ["chat_template"]
    assert not {"HF_TOKEN", "RUNPOD_API_KEY"} & variables.keys()
    wanted = {"HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1", "CUDA_VISIBLE_DEVICES": ""}
    assert {name: variables[name] for name in wanted} == wanted


def test_rehearsals_alone_ask_nothing(check, stand_in, asked):
    assert check("witness", [REHEARSAL], named=stand_in()) == []
    assert (asked(), check.said) == ([], [])


def test_what_is_ready_or_runs_already_is_not_asked_about(check, stand_in, asked):
    check("witness,mayor", [GPU], named=stand_in())
    witness, mayor = check.made.runs
    witness, mayor = dataclasses.replace(witness, state="ready"), dataclasses.replace(mayor, state="to attach")
    assert validation.questions([witness, mayor], [GPU], AXOLOTL) == []
    mayor = dataclasses.replace(mayor, state="to resume")
    assert [one.run.agent for one in validation.questions([witness, mayor], [GPU], AXOLOTL)] == ["mayor"]


def test_what_was_taken_is_not_asked_again(check, stand_in, asked, tmp_path):
    named = stand_in()
    check("witness", [GPU], named=named)
    check("witness", [GPU], named=named)
    check("witness,polecat,mayor", [GPU], named=named)  # the mayor's recipe is the witness's
    assert [len(given) for given, _ in asked()] == [1, 1], "the second time the polecat's alone"
    assert check.said == [
        "  Axolotl checks what is new in the recipes of witness, which takes a while",
        "  Axolotl checks what is new in the recipes of polecat, which takes a while",
    ]
    for other in ({"recipe": {"lora_r": 8}}, {"trainers": [Trainer("p", datasets_dir=EXAMPLES, gpu_names=("L4",))]}):
        before = len(asked())
        check("witness", **({"trainers": [GPU]} | other), named=named)
        assert len(asked()) == before + 1, f"{other} is another question"


def test_other_data_is_the_same_question(check, stand_in, asked, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    trainer = Trainer("gpu-1", datasets_dir=str(folder))
    for count in (40, 41):
        rows = [
            {"conversations": [{"from": "human", "value": f"{n}"}, {"from": "gpt", "value": "b"}]} for n in range(count)
        ]
        (folder / "witness_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        check("witness", [trainer], named=stand_in())
    assert len(asked()) == 1


@pytest.fixture
def base(tmp_path):
    """Make a folder on this machine that is a base model."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(memory.base_models.CONFIGS["qwen2.5-7b"]))
    return folder


def test_a_base_model_that_is_here_is_asked_about_and_one_that_is_not_is_left_out(check, stand_in, asked, base):
    check("witness", [GPU], {"base_model": str(base)}, named=stand_in())
    check("mayor", [GPU], {"base_model": "Acme/Nowhere", "model_revision": 40 * "f"}, named=stand_in())
    assert [given[0]["model"] for given, _ in asked()] == [str(base), ""]
    assert [given[0]["write"] for given, _ in asked()] == ["", ""]
    places = [given[0]["needs"] for given, _ in asked()]
    assert [list(found) for found in places] == [["system"], ["system"]]
    assert [re.sub(".*/", "", found["system"]) for found in places] == [
        "witness_train.jsonl, line 1",
        "mayor_train.jsonl, line 1",
    ]


def test_a_base_model_is_asked_about_again_when_its_files_change(check, stand_in, asked, base):
    for _ in range(2):
        check("witness", [GPU], {"base_model": str(base)}, named=stand_in())
    assert len(asked()) == 1
    (base / "tokenizer.json").write_text("{}")
    check("witness", [GPU], {"base_model": str(base)}, named=stand_in())
    assert len(asked()) == 2


def test_what_a_base_model_does_not_take_is_an_error_with_its_place(check, stand_in, asked, base):
    why = "PEFT refuses lora_target_modules: Target modules {'query'} not found in the base model."
    named = stand_in(refused=[why], warnings=["left aside"])
    for _ in range(2):
        with pytest.raises(UserError) as error:
            check("witness", [GPU], {"base_model": str(base), "lora_target_modules": ["query"]}, named=named)
        assert str(error.value) == (
            f"the recipe of witness does not go with its base model {base}: {why} "
            "(lora_target_modules: -e '{\"recipe\": …}')"
        )
    assert len(asked()) == 2, "what was refused is asked again"


def test_what_may_not_be_meant_is_said_once(check, stand_in, asked, base):
    named = stand_in(warnings=["a tower is trained,\n too"], unknown="nobody can tell")
    assert check("witness", [GPU], {"base_model": str(base)}, named=named) == ["witness: a tower is trained, too"]
    assert check("witness", [GPU], {"base_model": str(base)}, named=named) == []


def test_check_mode_notes_nothing(check, stand_in, asked, tmp_path):
    for _ in range(2):
        check("witness", [GPU], named=stand_in(), remember=False)
    assert len(asked()) == 2
    assert not (tmp_path / "output").exists()


def test_what_is_noted_is_bounded_and_a_broken_note_is_none(check, stand_in, asked, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "KEPT", 2)
    note = tmp_path / "output" / validation.TAKEN
    note.parent.mkdir()
    note.write_text("{not JSON")
    check("witness,mayor,crew", [GPU], named=stand_in())
    kept = json.loads(note.read_text())
    assert len(kept) == 2
    check("crew", [GPU], named=stand_in())
    assert len(asked()) == 1, "the newest is kept"


def test_another_environment_or_program_or_lock_is_another_question(check, stand_in, asked, tmp_path):
    check("witness", [GPU], named=stand_in())
    other = tmp_path / "other"
    other.symlink_to(stand_in())
    check("witness", [GPU], named=str(other))
    assert len(asked()) == 2


# --- what becomes of the answer


def test_plugins_that_are_not_here_are_said(check, stand_in):
    [said] = check("witness", [GPU], named=stand_in(left_out=["mine.Plugin", "\x1b[2Jevil"]))
    assert said == "Axolotl's own check left out plugins that are not on this machine: mine.Plugin, [2Jevil"


def test_a_refusal_names_agent_file_and_line(check, stand_in, asked):
    said = "`early_stopping_patience` and\n  gradient_checkpointing do not  go with lora_r"
    named = stand_in(said, "eval_steps", 25)  # the polecat's
    for _ in range(2):
        with pytest.raises(UserError) as error:
            check("polecat,mayor", [GPU], named=named)
        lines = (ROOT / "configs/base.yml").read_text().splitlines()
        places = [
            f"{key}: configs/base.yml, line {next(n for n, line in enumerate(lines, 1) if line.startswith(f'{key}:'))}"
            for key in ("gradient_checkpointing", "lora_r")
        ]
        assert str(error.value) == (
            "Axolotl refuses the recipe of polecat: `early_stopping_patience` and gradient_checkpointing do not go "
            f"with lora_r ({'; '.join(places)})"
        )
    assert [len(given) for given, _ in asked()] == [2, 1], "what was refused is asked again, what was taken is not"


def test_an_override_is_named_as_what_it_is():
    origins = {"bf16": "-e '{\"recipe\": …}'", "lora_r": "x, line 1"}
    assert (
        validation.add_locations("set `bf16` or `fp16`", origins) == "set `bf16` or `fp16` (bf16: -e '{\"recipe\": …}')"
    )
    assert validation.add_locations("fp8 is not there", origins) == "fp8 is not there"


def test_no_environment_is_said_and_stops_nothing(check, monkeypatch):
    monkeypatch.setattr(validation, "find_environment", lambda *_: None)
    [said] = check("witness", [GPU])
    assert said.startswith(
        LEFT_OUT + "no environment of requirements/trainer-*.txt is on this machine. A rehearsal makes"
    )
    assert check.said == []


def test_another_version_is_no_judge(check, stand_in, tmp_path):
    [said] = check("witness", [GPU], named=stand_in("no", "adapter", "qlora", version="0.1"))
    assert said.startswith(LEFT_OUT)
    assert said.endswith(f" has Axolotl 0.1, and the locks pin {AXOLOTL}")
    assert not (tmp_path / "output" / validation.TAKEN).exists()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("echo 'ImportError: no torch' >&2; exit 1", "ended with 1 and without an answer: ImportError: no torch"),
        ("echo '{}'", "ended with 0 and without an answer: it said nothing"),
        ("exit 0", "ended with 0 and without an answer: it said nothing"),
        ('echo \'{"axolotl": "0.21.0", "answers": []}\'', "ended with 0 and without an answer"),
        (
            'echo \'{"axolotl": "0.21.0", "answers": [5], "left_out": []}\'; printf "\\033[2Jevil\\377" >&2',
            "ended with 0 and without an answer: [2Jevil\ufffd",
        ),
        ("sleep 600", "gave no answer within 0.2 s"),
    ],
)
def test_no_answer_is_said_and_stops_nothing(check, tmp_path, program, said):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\n{program}\n")
    python.chmod(0o755)
    [line] = check("witness", [GPU], named=str(python), timeout=0.2 if "sleep" in program else 60)
    assert line.startswith(f"{LEFT_OUT}{python} {said}")
    noted = tmp_path / "pid"  # not there where it was ended before its first word
    assert not any(os.path.exists(f"/proc/{pid}") for pid in (noted.read_text().split() if noted.exists() else []))
