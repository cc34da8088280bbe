"""The data of an agent: which files are found and read, what is said of them, and the agent's cases."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re

import pytest
from ansible.module_utils.lora_forge.data import dataset
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planning.agents import Agents
from ansible.module_utils.lora_forge.planning.fleet import Move, Trainer
from ansible.module_utils.lora_forge.planning.planner import Planner
from planned import one, said

ROOT = pathlib.Path(__file__).resolve().parents[2]
AGENTS = Agents(ROOT).names
OTHERS = [agent for agent in AGENTS if agent != "gastown"]


# --- which files


def test_missing_dataset_names_the_path(make, data):
    with pytest.raises(UserError) as error:
        make()
    path = data.folder / "witness_train.jsonl"
    assert str(error.value) == f"no dataset for witness: {path} does not exist. -e datasets_dir=… says where to look"


def test_gastown_uses_all_six_files(make, data):
    for agent in OTHERS:
        data(agent)
    data("mayor", "val")
    result = make("gastown")
    names = [(pathlib.Path(item.path).name, item.use) for item in one(result).datasets]
    assert names == [*((f"{agent}_train.jsonl", "train") for agent in OTHERS), ("mayor_val.jsonl", "val")]
    assert not any("trained without" in warning for warning in result.warnings)


def test_the_shared_adapter_may_have_data_of_its_own(make, data):
    data("crew"), data("gastown"), data("gastown", "val")
    names = [pathlib.Path(item.path).name for item in one(make("gastown")).datasets]
    assert names == ["gastown_train.jsonl", "gastown_val.jsonl"]
    (data.folder / "gastown_train.jsonl").unlink()
    names = [pathlib.Path(item.path).name for item in one(make("gastown")).datasets]
    assert names == ["crew_train.jsonl"]
    (data.folder / "crew_train.jsonl").unlink()
    assert said(make, "gastown").startswith(f"no dataset for gastown: {data.folder / 'gastown_train.jsonl'} does not")


def test_a_val_file_is_the_evaluation_set(make, data):
    train = data(count=3)
    assert one(make()).recipe["val_set_size"] == 0.05
    val = data(use="val", count=2)
    run = one(make())
    files = [(item.path, item.use, item.examples) for item in run.datasets]
    assert files == [(str(train), "train", 3), (str(val), "val", 2)]
    assert run.recipe["val_set_size"] == 0


def test_a_recipe_may_name_its_files(make, data):
    mine, other = data("mine", count=3), data("other", count=2)
    val = data(use="val", count=2, size=50)
    items = [{"path": str(mine), "roles_to_train": ["user"], "train_on_eos": "all"},
             {"path": str(other), "train_on_eos": "all"}]  # fmt: skip
    run = one(make(recipe={"datasets": items}))
    assert [(item.path, item.use) for item in run.datasets] == [
        (str(mine), "train"), (str(other), "train"), (str(val), "val"),
    ]  # fmt: skip
    assert [item.entry.get("roles_to_train") for item in run.datasets] == [["user"], None, None]
    assert {item.entry["train_on_eos"] for item in run.datasets} == {"all"}, (
        "the evaluation has what all have in common"
    )
    assert "datasets" not in run.recipe
    gone = [str(data.folder / name) for name in ("x.jsonl", "y.jsonl")]
    words = said(lambda: make(recipe={"datasets": [{"path": gone[0]}, {"path": str(mine)}, {"path": gone[1]}]}))
    assert words == (
        f"no dataset for witness: {gone[0]} does not exist, {gone[1]} does not exist. -e datasets_dir=… says where to "
        "look"
    )


def test_a_datasets_entry_without_a_path_is_an_option_for_the_agents_file(make, data):
    data()
    [item] = one(make(recipe={"datasets": [{"roles_to_train": ["user"]}]})).datasets
    assert item.path == str(data.folder / "witness_train.jsonl")
    assert item.entry == {
        "ds_type": "json",
        "type": "chat_template",
        "field_messages": "messages",
        "roles_to_train": ["user"],
    }


def test_a_dataset_of_the_hub_is_not_fetched(make, data):
    data()
    words = said(lambda: make(recipe={"datasets": [{"path": "acme/talks"}]}))
    assert words.startswith("witness: «path: acme/talks» is no file here, and a dataset of the hub is not fetched")
    assert str(data.folder / "witness_train.jsonl") in words


def test_a_file_is_read_once_and_warned_of_once(make, data, monkeypatch):
    data(count=2), data("mayor", count=2)
    read = []
    check = dataset.read_contents

    def counted(path, options, say):
        read.append(path.name)
        contents = check(path, options, say)
        contents.warnings.append(f"{path.name} is odd")
        return contents

    monkeypatch.setattr(dataset, "read_contents", counted)
    boxes = [Trainer("a", datasets_dir=str(data.folder)), Trainer("b", datasets_dir=str(data.folder))]
    result = make("witness,mayor,gastown", boxes)
    assert sorted(read) == ["mayor_train.jsonl", "witness_train.jsonl"]
    assert result.warnings.count("witness_train.jsonl is odd") == 1
    others = ", ".join(agent for agent in OTHERS if agent not in ("mayor", "witness"))
    assert f"gastown is trained without {others}: no such file in {data.folder}" in result.warnings


# --- what is in them


def test_what_is_longer_than_a_sequence_is_told_by_the_recipes_strategy(make, data):
    path = data(count=3)
    with path.open("a") as file:
        turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "b" * 20_000}]
        file.write(json.dumps({"conversations": turns}) + "\n")
    [cut] = [said for said in make().warnings if "longer" in said]
    assert cut.endswith("about 1 of 4 examples are longer than sequence_len 4096 and will be cut at its end")
    for strategy in ("drop", None):
        result = make(recipe={"excess_length_strategy": strategy})
        assert any(said.endswith("and will be dropped") for said in result.warnings)
    with pytest.raises(UserError, match="1 of 4 examples are longer than"):
        make(recipe={"excess_length_strategy": "raise"})


def test_an_evaluation_set_that_holds_what_is_trained_on(make, data):
    train = data()
    (data.folder / "witness_val.jsonl").write_bytes(train.read_bytes())
    with pytest.raises(UserError, match=r"witness_val\.jsonl"):
        make()


def test_data_that_the_template_would_drop_is_refused(make, data, monkeypatch):
    data()
    planned = dataset.planned_dataset
    with_tools = lambda file: dataclasses.replace(planned(file), needs={"tools": 7})  # noqa: E731
    monkeypatch.setattr(dataset, "planned_dataset", with_tools)
    words = said(lambda: make(recipe={"chat_template": "chatml"}))
    assert '«chat_template: "chatml"» leaves out lists of tools (tools), which the data has (' in words
    assert "witness_train.jsonl, line 7), so that" in words
    assert one(make(recipe={"chat_template": "qwen_25"})).recipe["chat_template"] == "qwen_25"


# --- cases


def test_cases_are_read_by_the_plan_and_change_no_run(make, data, tmp_path):
    data()
    where = [Trainer("here", datasets_dir=str(data.folder), eval_dir=str(tmp_path / "eval"))]
    without = make(trainers=where)
    assert one(without).cases.count == one(without).estimate.answers.count == 0
    assert f"eval_dir is «{tmp_path / 'eval'}», and there is no such folder: no cases are asked" in without.warnings[-1]
    (tmp_path / "eval").mkdir()
    path = tmp_path / "eval/witness.jsonl"
    made = []
    for asked in ("something else that is asked", "witness train 3 and all that"):
        path.write_text(json.dumps({"messages": [{"role": "user", "content": asked}], "expect": [{"contains": "x"}]}))
        made.append(make(trainers=where))
        assert one(made[-1]).cases.count == 1
        assert one(made[-1]).estimate.answers.count == 2, "of the adapter and its base model"
        assert not [warning for warning in made[-1].warnings if "eval_dir" in warning]
    assert {one(result).run_id for result in made} == {one(without).run_id}
    assert one(made[0]).cases.sha256 != one(made[1]).cases.sha256
    trained = data()
    trained.write_text(trained.read_text().replace("witness train 3", "witness train 3 and all that"))
    known = make(trainers=where).warnings
    assert f"witness: {path} asks what stands in the training data, too: case 1. That proves memory" in known
    path.write_text(path.read_text().replace("expect", "expects"))
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}, line 1: .*did you mean «expect»"):
        make(trainers=where)
    planner = Planner(ROOT, tmp_path / "output", {}, asks=False)
    assert planner.plan_run("witness", where[0], Move()).cases.count == 0, "a stop goes on"
