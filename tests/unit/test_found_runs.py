"""Runs to stop, look at or collect are found, whatever has become of their recipe and data since they were launched."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import shutil
from typing import Any, Callable

import pytest
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import Launched, PlannedRun
from ansible.module_utils.lora_forge.planning import launch, plan
from ansible.module_utils.lora_forge.planning.agents import Agents
from ansible.module_utils.lora_forge.planning.fleet import Trainer, check_trainers
from ansible.module_utils.lora_forge.planning.found_runs import Finder
from ansible.module_utils.lora_forge.planning.run_record import RunRecord, keep_launched, read_record, update_record
from wire import load

ROOT = pathlib.Path(__file__).resolve().parents[2]
THEN = Launched("/then", "/then/env/python", "a" * 64)  # with what runs are launched
MISSING = object()


class Site:
    """A checkout with two agents, their data, and a fleet of two hosts.

    ``find`` is what stop, logs and prune ask, ``collected`` what watch and collect ask.
    """

    def __init__(self, home: pathlib.Path):
        self.root, self.output, self.data, self.eval = home / "checkout", home / "output", home / "data", home / "eval"
        shutil.copytree(ROOT / "configs", self.root / "configs")
        (self.root / "requirements").mkdir()
        for path in (ROOT / "requirements").glob("trainer-*.txt"):
            shutil.copy(path, self.root / "requirements")
        self.model = home / "model"
        self.model.mkdir()
        (self.model / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
        self.recipe = self.root / "configs/agents/witness.yml"
        self.recipe.write_text(f"base_model: {self.model}\n")
        self.data.mkdir()
        self.eval.mkdir()
        for agent in ("witness", "crew"):
            turns = [[("human", f"{agent} {n}"), ("gpt", "a" * 14_000)] for n in range(40)]
            rows = [{"conversations": [{"from": who, "value": text} for who, text in pair]} for pair in turns]
            (self.data / f"{agent}_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.own = self.data / "witness_train.jsonl"
        self.module = load("library/training_plan")
        self.variables: dict[str, dict[str, Any]] = {"a": {}, "b": {}}
        self.said: list[str] = []

    def ask(self, agents: str = "witness", **given: Any) -> list[PlannedRun]:
        """Plan; the warnings are ``said``."""
        places = {"datasets_dir": str(self.data), "eval_dir": str(self.eval)}
        known = {name: spec.get("default") for name, spec in self.module.ARGUMENTS.items()} | places
        known |= {"root": str(self.root), "output": str(self.output), "agents": agents, "hosts": [*self.variables],
                  "recipe": {}, "host_variables": self.variables, "host_options": {}, "groups": {}}  # fmt: skip
        answer = self.module.answer(known | given, True)
        self.said = answer["show"]["warnings"]
        return [PlannedRun.from_dict(run) for run in answer["runs"]]

    def find(self, agents: str = "witness", **given: Any) -> list[PlannedRun]:
        return self.ask(agents, by_record=True, **given)

    def found(self, agents: str = "witness", **given: Any) -> list[tuple[str, str, tuple[str, ...]]]:
        return [(run.run_id, run.state, run.hosts) for run in self.find(agents, **given)]

    def collected(self, agents: Any = "witness", **given: Any) -> dict[str, PlannedRun]:
        return {run.run_id: run for run in self.ask(agents, collect=True, **given)}

    def launched(self, agent: str = "witness", host: str = "b", **given: Any) -> str:
        """Launch what is planned of an agent; returns its name."""
        (run,) = self.ask(agent, **given)
        self.note(run.run_id, lambda record, now: record.launched(host, 0, now))
        keep_launched(self.output, dataclasses.replace(run, trainer=host, hosts=(host,), launched=THEN))
        return run.run_id

    def note(self, run_id: str, change: Callable[[RunRecord, float], RunRecord]) -> None:
        update_record(self.output, run_id, change)


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Site(tmp_path)


def pin_other_axolotl(site: Site) -> None:
    lock = site.root / "requirements/trainer-cuda.txt"
    lock.write_text(lock.read_text().replace("\naxolotl==0.", "\naxolotl==9."))


DAMAGES: dict[str, Callable[[Site], Any]] = {
    "the recipe is no YAML": lambda site: site.recipe.write_text("lora_r: [1\n"),
    "the recipe has an unknown key": lambda site: site.recipe.write_text("lorar: 1\n"),
    "the recipe is gone": lambda site: site.recipe.unlink(),
    "the recipe is another one": lambda site: site.recipe.write_text("lora_r: 8\n"),
    "base.yml is no YAML": lambda site: (site.root / "configs/base.yml").write_text("{"),
    "base.yml is gone": lambda site: (site.root / "configs/base.yml").unlink(),
    "groups.yml is no YAML": lambda site: (site.root / "configs/groups.yml").write_text("{"),
    "the data is gone": lambda site: site.own.unlink(),
    "the folder of the data is gone": lambda site: shutil.rmtree(site.data),
    "the data is no JSON": lambda site: site.own.write_text("{\n"),
    "the data is other data": lambda site: shutil.copy(site.data / "crew_train.jsonl", site.own),
    "the base model is gone": lambda site: shutil.rmtree(site.model),
    "the cases are no JSON": lambda site: (site.eval / "witness.jsonl").write_text("{\n"),
    "the folder of the cases is gone": lambda site: site.eval.rmdir(),
    "the schema is gone": lambda site: (site.root / "configs/schema.json").unlink(),
    "the locks differ": pin_other_axolotl,
    "the machine is unknown": lambda site: site.variables["a"].update(trainer_machine="gpu-1tb"),
    "the profile is unknown": lambda site: site.variables["a"].update(run_profile="rehersal"),
    "the inventory names an agent that is gone": lambda site: site.variables["a"].update(agents=["boot"]),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_launched_is_found_whatever_has_become_of_it(site, damage):
    run_id = site.launched()
    DAMAGES[damage](site)
    assert site.found() == [(run_id, "to attach", ("b",))]


@pytest.mark.parametrize("given", [{"recipe": {"lorar": 1}}, {"keep_axolotl": "old"}, {"recipe": {"lora_r": 4}}])
def test_other_options_than_those_of_the_training_hide_no_run(site, given):
    run_id = site.launched()
    assert site.found(**given) == [(run_id, "to attach", ("b",))]


def test_a_broken_recipe_of_one_agent_hides_no_run_of_another(site):
    crew, witness = site.launched("crew", "a"), site.launched()
    site.recipe.write_text("lora_r: 1\nlorar: 1\n")
    assert site.found("crew,witness") == [(crew, "to attach", ("a",)), (witness, "to attach", ("b",))]
    assert [said for said in site.said if "planned" in said] == [
        "witness: it cannot be planned, and its runs are those that were noted: "
        "configs/agents/witness.yml, line 2: Axolotl knows no key «lorar»; did you mean «lora_r»?"
    ]


def test_of_an_agent_that_cannot_be_planned_all_that_was_noted_is_found(site):
    old, new = site.launched(recipe={"lora_r": 8}), site.launched()
    site.note(old, lambda record, now: record.ended("finished", "b", now))
    site.recipe.write_text("{")
    assert dict(run[:2] for run in site.found()) == {old: "ready", new: "to attach"}


def test_of_one_that_can_be_planned_what_has_ended_is_no_more_asked_for(site):
    """A sweep goes on beside the run of the recipe, and another recipe's run has failed."""
    now, *others = (site.launched(recipe={"lora_r": rank} if rank else {}) for rank in (0, 8, 16, 32))
    site.note(others[0], lambda record, at: record.ended("failed", "b", at))
    assert site.found()[0][0] == now
    assert {run[0] for run in site.found()} == {now, *others[1:]}


def test_all_are_all_agents_of_which_something_has_not_ended(site):
    for agent in ("witness", "crew"):
        shutil.copy(site.data / f"{agent}_train.jsonl", site.data / f"boot-{agent}_train.jsonl")
        (site.root / f"configs/agents/boot-{agent}.yml").write_text("{}\n")
    over, runs = site.launched("boot-crew"), site.launched("boot-witness")
    site.note(over, lambda record, now: record.ended("failed", "b", now))
    for agent in ("witness", "crew"):
        (site.root / f"configs/agents/boot-{agent}.yml").unlink()
    assert [run for run in site.found("all") if run[0].startswith("boot")] == [(runs, "to attach", ("b",))]
    assert not [said for said in site.said if "boot" in said]
    assert {run[0] for run in site.found("boot-crew,boot-witness")} == {over, runs}


def test_where_nothing_was_noted_the_recipe_says_what_is_wrong(site):
    assert [run[1:] for run in site.found()] == [("to train", ("a",))]  # somebody may have launched it from elsewhere
    site.recipe.write_text("lorar: 1\n")
    with pytest.raises(UserError, match=r"^configs/agents/witness.yml, line 1: Axolotl knows no key «lorar»"):
        site.find()


def test_what_was_launched_where_nobody_can_ask_is_told(site):
    crew, witness = site.launched("crew", "elsewhere"), site.launched()
    with pytest.raises(UserError, match=f"^{crew} was launched on elsewhere, which this inventory does not hold"):
        site.find("crew")
    assert site.found("crew,witness") == [(witness, "to attach", ("b",))]
    assert any(said.startswith(f"{crew} was launched on elsewhere") for said in site.said)
    other = site.launched(host="elsewhere", recipe={"lora_r": 8})
    assert [run[0] for run in site.found()] == [witness]
    assert f"{other} is left alone: it is on elsewhere, which this inventory does not hold" in site.said
    with pytest.raises(UserError, match=f"^nothing is to be done within --limit\n.*: {witness} on b$"):
        site.find(outside=["b"])


def deliver(site: Site, run_id: str, host: str) -> None:
    site.note(run_id, lambda record, now: record.ended("finished", host, now))
    folder = site.output / "adapters/witness" / run_id
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"run_id": run_id, "verdict": "verified", "files": []}))


def test_a_delivered_run_is_looked_for_where_it_was_trained(site):
    """The plan of now would put it on the first trainer of the inventory."""
    run_id = site.launched()
    deliver(site, run_id, "b")
    assert site.found() == [(run_id, "ready", ("b",))]
    assert site.ask()[0].trainer == "b"
    assert site.found(outside=["b"]) == [(run_id, "ready", ())]
    away = f"reach: {run_id} on b"
    assert site.said[-1] == f"left alone, as they were trained where this inventory, or its limit, does not {away}"
    del site.variables["b"]
    assert site.found() == [(run_id, "ready", ())]
    assert site.said[-1] == f"left alone, as they were trained where this inventory does not {away}"
    assert site.ask()[0].state == "ready"  # nobody has to be there for that


def test_a_delivered_run_of_a_gang_is_looked_for_on_all_of_its_hosts(site):
    run_id = site.launched()
    deliver(site, run_id, "b")
    gang = {"run_hosts": 2}
    site.variables = {"z": {}, "a": gang, "b": gang}
    assert site.found(groups={"rack": ["b", "a"]}) == [(run_id, "ready", ("b", "a"))]
    assert site.found(groups={"rack": ["a", "b"]}) == [(run_id, "ready", ("b",))]  # trained before there was a gang


def test_a_plan_of_what_starts_something_is_kept_from_it(site):
    site.launched()
    site.recipe.write_text("lorar: 1\n")
    with pytest.raises(UserError, match="Axolotl knows no key «lorar»"):
        plan.make(site.root, site.output, "witness", [Trainer("a", datasets_dir=str(site.data))], {})


# --- to watch and to collect

CASE = '{"name": "ready", "messages": [{"role": "user", "content": "Ready?"}], "expect": [{"contains": "yes"}]}\n'


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_launched_is_collected_as_it_was_launched(site, damage):
    (site.eval / "witness.jsonl").write_text(CASE)
    (planned,) = site.ask(recipe={"micro_batch_size": 2, "gradient_accumulation_steps": 8})
    run_id = site.launched(recipe={"micro_batch_size": 2, "gradient_accumulation_steps": 8})
    if damage == "the folder of the cases is gone":
        (site.eval / "witness.jsonl").unlink()
    DAMAGES[damage](site)
    (run,) = site.collected().values()
    assert (run.run_id, run.state, run.hosts, run.placed) == (run_id, "to attach", ("b",), True)
    assert (run.recipe, run.recipe_sha256, run.fingerprint) == (
        planned.recipe, planned.recipe_sha256, planned.fingerprint
    )  # fmt: skip
    assert (run.datasets, run.axolotl, run.launched) == (planned.datasets, planned.axolotl, THEN)
    assert launch.run_dir(run, "/now") == f"/then/runs/{run_id}"
    if run.by_notes or damage != "the folder of the cases is gone":
        assert run.cases.path == planned.cases.path


def test_with_the_recipe_unchanged_it_is_the_run_that_is_planned(site):
    run_id = site.launched()
    (planned,), run = site.ask(), site.collected()[run_id]
    said = site.said
    assert dataclasses.replace(run, launched=Launched(), planned_at=planned.planned_at) == planned
    site.ask()
    assert (run.by_notes, said) == (False, site.said)


def test_its_cases_are_those_of_now_where_it_is_still_planned(site):
    run_id = site.launched()
    (site.eval / "witness.jsonl").write_text(CASE)
    assert site.collected()[run_id].cases.count == 1


def test_a_run_of_now_and_older_ones_are_all_collected(site):
    older, variant = site.launched(recipe={"lora_r": 8}), site.launched(recipe={"lora_r": 4}, host="a")
    now = site.launched()
    assert {run_id: run.by_notes for run_id, run in site.collected().items()} == {
        now: False, older: True, variant: True,
    }  # fmt: skip


def test_what_nobody_launched_is_no_failure_where_there_is_something_to_collect(site):
    older = site.launched(recipe={"lora_r": 8})
    (planned,) = site.ask()
    assert list(site.collected()) == [older]
    assert site.said[-1] == (
        f"witness: nothing was launched with the recipe and data of now ({planned.run_id}); train.yml trains that. "
        "Collected is what was launched before"
    )


ENDS: dict[str, tuple[Callable[[RunRecord, float], RunRecord], bool]] = {
    "failed": (lambda record, now: record.ended("failed", "b", now), False),
    "stopped": (lambda record, now: record.ended("stopped", "b", now), False),
    "finished": (lambda record, now: record.ended("finished", "b", now), True),
    "no adapter": (lambda record, now: record.ended("failed", "b", now, "it is empty"), False),
    "delivered": (
        lambda record, now: dataclasses.replace(record.ended("finished", "b", now), delivered_at=now), False
    ),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_of_older_ones_those_are_collected_that_may_have_an_adapter_which_is_not_here(site, end):
    older, now = site.launched(recipe={"lora_r": 8}), site.launched()
    change, is_wanted = ENDS[end]
    site.note(older, change)
    assert (older in site.collected(), now in site.collected()) == (is_wanted, True)
    site.recipe.write_text("{")  # nor is it otherwise where nothing can be planned
    assert (older in site.collected(), now in site.collected()) == (is_wanted, True)


def test_where_nothing_is_left_to_collect_a_broken_recipe_is_told(site):
    site.note(site.launched(), ENDS["delivered"][0])
    site.recipe.write_text("lorar: 1\n")
    said = (
        "of what was launched nothing is left to collect, and what there is now cannot be planned:\nconfigs/agents/wit"
    )
    with pytest.raises(UserError, match=f"^{said}"):
        site.collected()


@pytest.mark.parametrize("text", [None, "", "{", '{"run_id": "x"}', "changed"])
def test_a_run_whose_recipe_was_not_kept_needs_the_one_of_then(site, text):
    older = site.launched(recipe={"lora_r": 8})
    kept = site.output / f"launched/{older}.json"
    whole = kept.read_text()
    kept.unlink()
    if text is not None:
        kept.write_text(whole.replace('"lora_r": 8', '"lora_r": 9') if text == "changed" else text)
    now = site.launched()
    assert list(site.collected()) == [now]
    assert site.said[-1] == (
        f"{older} is left alone: its recipe was not kept when it was launched. With that, and its data, the same "
        "command finds it"
    )
    assert older in site.collected(recipe={"lora_r": 8})


def test_whatever_stands_in_what_was_kept_of_a_launch_ends_no_command(site):
    older = site.launched(recipe={"lora_r": 8})
    record, kept = read_record(site.output, older), site.output / f"launched/{older}.json"
    trainers = [Trainer("a"), Trainer("b")]
    finder = Finder(site.output, check_trainers(trainers, Agents(site.root), False, site.output), True, None, [])
    right, deep = json.loads(kept.read_text()), '{"a":' * 5000 + "1" + "}" * 5000
    oddities = (MISSING, None, "\udcff\x1b[2J", -1, 10**400, float("nan"), [1, None], {"a": [1]}, "../crew", "deep")
    for key, odd in itertools.product(right, oddities):
        made = {name: value for name, value in right.items() if name != key} | ({} if odd is MISSING else {key: odd})
        kept.write_text(json.dumps(made).replace('"deep"', deep))
        for run in finder.by_record([record], "launched with another recipe"):
            assert json.dumps(run.as_dict())
            found = run.run_id, run.agent, run.trainer, run.recipe
            assert found == (older, "witness", "b", right["recipe"]), (key, odd)


def test_without_a_name_what_this_inventory_holds_is_collected_of_agents_that_are_gone_too(site):
    shutil.copy(site.data / "crew_train.jsonl", site.data / "boot_train.jsonl")
    (site.root / "configs/agents/boot.yml").write_text("{}\n")
    here, there = site.launched("boot"), site.launched("boot", "elsewhere", recipe={"lora_r": 8})
    for path in (site.root / "configs/agents").iterdir():
        path.unlink()
    assert list(site.collected(None)) == [here]
    assert not any(there in said for said in site.said)
    assert list(site.collected("all")) == [here]
    assert any(there in said for said in site.said)


def test_a_run_on_a_pod_that_is_given_back_keeps_nobody_from_the_others(site):
    site.variables["b"] = {"pod_gpus": ["L40S"]}
    older, now = site.launched(recipe={"lora_r": 8}), site.launched(host="a")
    assert list(site.collected(groups={"pods_live": []})) == [now]
    assert site.said[-1] == f"{older} is left alone: it was launched on b, which is not rented, as far as is known"
    assert set(site.collected(groups={"pods_live": ["b"]})) == set(site.collected()) == {older, now}


def test_the_hosts_of_a_gang_have_roots_of_their_own(site):
    older = site.launched(recipe={"lora_r": 8})
    gang = {"run_hosts": 2}
    site.variables = {"z": {}, "a": gang, "b": gang}
    run = site.collected(groups={"rack": ["b", "a"]})[older]
    assert (run.hosts, run.launched) == (("b", "a"), dataclasses.replace(THEN, root=""))


def test_a_run_that_another_host_has_by_now_is_looked_for_there(site):
    older = site.launched(recipe={"lora_r": 8})
    site.note(older, lambda record, now: record.launched("a", 1, now))
    run = site.collected()[older]
    assert (run.trainer, run.hosts, run.lane, run.launched, run.recipe["lora_r"]) == ("a", ("a",), 1, Launched(), 8)


def test_evaluations_are_collected_by_what_has_asked_them(site):
    now = site.launched()
    site.note(f"{now}-eval-0123456789ab", lambda record, at: record.launched("b", 0, at))
    assert list(site.collected()) == [now]
    assert len(site.found()) == 2
