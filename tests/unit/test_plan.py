"""The plan: who is trained, and everything that is said of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re

import pytest
from ansible.module_utils.lora_forge.data import dataset
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning import memory, plan, recipe
from ansible.module_utils.lora_forge.planning.agent_recipes import AgentRecipes
from ansible.module_utils.lora_forge.planning.agents import Agents
from ansible.module_utils.lora_forge.planning.fleet import Trainer
from ansible.module_utils.lora_forge.text import canonical
from planned import one, said, trainers

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = str(ROOT / "examples/datasets")
AGENTS = Agents(ROOT).names


# --- who is trained


def test_whom_a_whole_inventory_trains(make, data):
    data("crew"), data("mayor")
    both = trainers(data, "a", "b", b=("mayor",))
    result = make(None, both)
    assert [(run.agent, run.trainer) for run in result.runs] == [
        ("crew", "a"),
        ("gastown", "a"),
        ("mayor", "b"),
    ]
    assert any(said.startswith("left out: deacon, polecat, refinery, witness; there is no") for said in result.warnings)
    declared = trainers(data, "a", "b", a=("crew",), b=("mayor",))
    assert [run.agent for run in make(None, declared).runs] == ["crew", "mayor"]
    with pytest.raises(UserError, match="no dataset for deacon"):
        make(None, trainers(data, "a", "b", b=("deacon",)))


def test_a_whole_inventory_without_any_data(make, data):
    with pytest.raises(UserError, match=r"no dataset for crew: .* -e datasets_dir=… says where to look"):
        make(None)


def test_all_is_told_once_and_in_order(make, data):
    data("crew"), data("mayor")
    result = make(["mayor", "crew"], trainers(data, "a", "b"))
    assert [run.agent for run in result.runs] == ["mayor", "crew"]
    assert len(result.warnings) == len(set(result.warnings))


@pytest.mark.parametrize("agent", AGENTS)
def test_the_example_datasets_all_plan_as_a_rehearsal(make, agent):
    run = one(make(agent, [Trainer("localhost", "rehearsal", datasets_dir=EXAMPLES)]))
    assert (run.agent, run.state, run.rehearsal) == (agent, "to train", True)
    assert run.estimate.steps == 12
    assert (run.recipe["base_model"], run.rehearsed["of"]) == ("tiny-random-qwen2", "Qwen/Qwen2.5-7B-Instruct")
    assert sum(item.examples for item in run.datasets) >= 39


# --- trainers that cannot train


def test_no_trainers(make):
    with pytest.raises(UserError, match=r"holds no host to train on\. See inventory/local\.yml"):
        make(trainers=[])


def test_agents_of_a_trainer_are_checked(make, data):
    data()
    with pytest.raises(UserError, match=r"agents of a: there is no agent «witnes»; did you mean «witness»\?"):
        make(trainers=trainers(data, "a", a=("witnes",)))


def test_a_root_that_is_not_absolute_is_refused(make, data):
    data()
    with pytest.raises(UserError, match=r"trainer_root of box is «~/lora-forge»; it must be an absolute path"):
        make(trainers=[Trainer("box", datasets_dir=str(data.folder), root="~/lora-forge")])


def test_a_trainer_with_fewer_gpus_than_a_run_takes(make, data, run_id):
    with pytest.raises(UserError, match="here has no lane: it has fewer GPUs than run_gpus asks for"):
        make(trainers=[Trainer("here", datasets_dir=str(data.folder), lanes=0)])


def test_a_trainer_needs_a_lane_and_a_root(make, data):
    data()
    boxes = trainers(data, "a", "b")
    for changes, words in (
        ({"lanes": 0}, "b has no lane: it has fewer GPUs than run_gpus asks for"),
        ({"root": "here"}, "trainer_root of b is «here»; it must be an absolute path on that host"),
    ):
        bad = [boxes[0], dataclasses.replace(boxes[1], **changes)]
        assert said(make, "witness", bad) == words


# --- a planned run


def test_the_same_data_gives_the_same_run_and_other_data_another(make, data):
    data()
    first = one(make()).run_id
    assert re.fullmatch(r"witness-[0-9a-f]{12}", first)
    assert one(make()).run_id == first
    assert one(make(trainers=[Trainer("x", machine="gpu-24gb", datasets_dir=str(data.folder))])).run_id == first
    assert one(make(trainers=[Trainer("x", "rehearsal", datasets_dir=str(data.folder))])).run_id != first
    data(count=5)
    assert one(make()).run_id != first


def test_everything_that_a_plan_says_of_a_run(make, data, note):
    path = data(count=40, size=14000)
    box = Trainer("here", machine="gpu-24gb", datasets_dir=str(data.folder), gpus=2)
    run = one(make(trainers=[box], recipe={"liger_rms_norm": True})).as_dict()
    keys = run.pop("recipe")
    mark = run.pop("fingerprint")
    sha256 = dataset.check_file(path, "train", 4096).sha256
    basis = AgentRecipes(ROOT, Agents(ROOT), {"liger_rms_norm": True})
    merged = basis.merged_recipe("witness", "", "gpu-24gb") | {"eval_sample_packing": False}
    files = [{"use": "train", "sha256": sha256}]
    assert mark == recipe.fingerprint(merged, False, files, basis.axolotl)
    entry = dataset.axolotl_entry(dataset.check_file(path, "train", 4096))
    tokens = dataset.check_file(path, "train", 4096).tokens
    assert run == {
        "run_id": f"witness-{mark[:12]}",
        "agent": "witness",
        "name": "witness",
        "cases": {"path": "", "sha256": "", "count": 0},
        "variant": {},
        "trainer": "here",
        "placed": False,
        "lane": 0,
        "state": "to train",
        "why": "",
        "rehearsal": False,
        "rehearsed": {},
        "recipe_sha256": hashlib.sha256(canonical(keys).encode()).hexdigest(),
        "axolotl": basis.axolotl,
        "datasets": [
            {
                "path": str(path),
                "use": "train",
                "sha256": sha256,
                "examples": 40,
                "entry": entry,
                "reading": {},
                "needs": {},
            },
        ],
        "gpus": 2,
        "nodes": 1,
        "hosts": ["here"],
        "estimate": {
            "tokens": tokens,
            "steps": 12,
            "work": 12 * 8 * 4096,
            "memory_gib": memory.estimate(merged),
            "memory_floor_gib": memory.floor(merged),
            "memory_classes": {},
            "answers": {"count": 0, "steps": 0, "prompts": 0},
        },
        "planned_at": 0.0,  # the module sets it
        "evaluates": "",
        "against": "",
        "launched": {"root": "", "python": "", "lock_sha256": ""},
        "by_notes": False,
    }
    assert recipe.effective_batch(keys) == 4
    assert any("Liger" in plugin for plugin in keys["plugins"])


def test_a_rehearsal_is_one_process_and_needs_no_gpu(make, data):
    data(count=9), data(use="val", count=2)
    box = Trainer("here", "rehearsal", datasets_dir=str(data.folder), gpus=4)
    run = one(make(trainers=[box]))
    assert (run.rehearsal, run.gpus, recipe.effective_batch(run.recipe)) == (True, 1, 8)
    assert (run.estimate.memory_gib, run.estimate.memory_floor_gib) == (None, None)
    train, val = (dataset.check_file(data.folder / f"witness_{use}.jsonl", use, 1024) for use in ("train", "val"))
    assert run.estimate.tokens == train.tokens
    mark = recipe.fingerprint(
        AgentRecipes(ROOT, Agents(ROOT), {}).merged_recipe("witness", "rehearsal", "")
        | {"val_set_size": 0, "eval_sample_packing": False, "base_model": "tiny-random-qwen2"}
        | {"rehearsed": {key: run.rehearsed[key] for key in ("of", "config", "tokens", "names", "files")}},
        True,
        [{"use": one.use, "sha256": one.sha256} for one in (train, val)],
        run.axolotl,
    )
    assert run.fingerprint == mark


def test_gpus_share_a_run_and_it_stays_the_same_run(make, data):
    data(count=40, size=14000)
    [alone] = make().runs
    [shared] = make(trainers=[Trainer("here", datasets_dir=str(data.folder), gpus=4)]).runs
    assert (shared.run_id, shared.gpus, shared.estimate) == (alone.run_id, 4, alone.estimate)
    assert (shared.recipe["micro_batch_size"], shared.recipe["gradient_accumulation_steps"]) == (2, 1)
    [over_nodes] = make(trainers=[Trainer("here", datasets_dir=str(data.folder), gpus=2, nodes=2, slurm=True)]).runs
    assert (over_nodes.run_id, over_nodes.recipe, over_nodes.estimate) == (alone.run_id, shared.recipe, alone.estimate)
    assert (over_nodes.hosts, over_nodes.nodes, over_nodes.processes) == (("here",), 2, 4)


def test_a_plan_is_written_as_it_is_read(make, data):
    data()
    run = one(make())
    assert PlannedRun.from_dict(json.loads(json.dumps(run.as_dict()))) == run


# --- sweeps


def test_a_sweep_is_a_run_for_each_variant(make, data):
    data()
    boxes = trainers(data, "a", "b")
    runs = make(trainers=boxes, variants=[{"lora_r": 8}, {"lora_r": 16}, {"lora_r": 32}]).runs
    assert [(run.recipe["lora_r"], run.variant, run.trainer) for run in runs] == [
        (8, {"lora_r": 8}, "a"), (16, {"lora_r": 16}, "b"), (32, {"lora_r": 32}, "a"),
    ]  # fmt: skip
    assert len({run.run_id for run in runs}) == 3
    with pytest.raises(UserError, match=r"-e '.*sweep.*': Axolotl knows no key «lora_rank»"):
        make(variants=[{"lora_rank": 8}])
    with pytest.raises(UserError, match="variants 1 and 2 of the sweep are the same training"):
        make(variants=[{"logging_steps": 1}, {"logging_steps": 2}])


def test_sweeps_of_several_agents_are_named_by_their_own_variants(make, data):
    data("crew"), data("mayor")
    with pytest.raises(UserError) as error:
        make("crew,mayor", variants=[{"seed": 1}, {"seed": 2}, {"seed": 1}])
    assert re.fullmatch(
        r"variants 1 and 3 of the sweep are the same training \(crew-[0-9a-f]{12}\): they differ in nothing that "
        r"decides what is learnt",
        str(error.value),
    )
    assert len(make("crew,mayor", variants=[{"seed": 1}, {"seed": 2}]).runs) == 4


def test_a_variant_is_in_the_name_of_its_run(make, data):
    data()
    names = [run.name for run in make(variants=[{"lora_r": 8, "seed": 1}, {"lora_r": 16}]).runs]
    assert names == ["witness lora_r 8, seed 1", "witness lora_r 16"]


# --- warnings


def test_what_is_said_of_several_agents_in_the_same_words_is_said_once():
    said = ["crew: warmup", "mayor: warmup", "crew: warmup", "note: warmup", "mayor: other", "plain", "plain"]
    assert plan.merge_warnings(said, ("crew", "mayor")) == [
        "crew, mayor: warmup", "note: warmup", "mayor: other", "plain",
    ]  # fmt: skip


def test_of_hundreds_of_agents_the_first_ones_are_named():
    names = [f"a{number:03}" for number in range(600)]
    [said] = plan.merge_warnings([f"{name}: warmup" for name in names], names)
    assert said == f"{', '.join(names[:10])} and 590 more: warmup"
