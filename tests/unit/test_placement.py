"""Which run goes to which trainer and lane, and what stays where it is."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import pytest
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planning import fleet, placement, recipe
from ansible.module_utils.lora_forge.planning.agent_recipes import AgentRecipes
from ansible.module_utils.lora_forge.planning.agents import Agents
from ansible.module_utils.lora_forge.planning.fleet import Lane, Trainer
from ansible.module_utils.lora_forge.planning.planner import Planner
from planned import one, planned_run, said, told, trainers

ROOT = pathlib.Path(__file__).resolve().parents[2]
AGENTS = Agents(ROOT).names


# --- where a run was placed


@pytest.mark.parametrize("placement", [{"final": False}, {"final": True, "state": "failed"}])
def test_a_trainer_that_the_inventory_lacks(make, note, data, run_id, placement):
    note(run_id, "pod-7", **placement)
    with pytest.raises(UserError, match=rf"{run_id} was launched on pod-7, which this inventory does not hold.*move"):
        make()
    assert one(make(move=True)).trainer == "here"


def test_a_run_that_is_placed_on_a_trainer_that_is_gone_names_both_ways_on(make, note, data, run_id):
    note(run_id, "pod-7", final=False)
    assert said(make) == (
        f"{run_id} was launched on pod-7, which this inventory does not hold. Use the inventory that does, or give the "
        "run up there and start on another trainer with -e move=pod-7"
    )
    note(run_id, "b", final=False)
    assert said(make, "witness", pair(data, "a", "b")) == (
        f"{run_id} was launched on b alone, which now trains in a gang that a leads. Use the inventory of that time, "
        "or give the run up there and start it anew with -e move=true"
    )


def test_a_damaged_adapter_of_a_trainer_that_is_gone_is_trained_here(make, note, deliver, run_id):
    (deliver(run_id) / "weights").write_bytes(b"1")
    note(run_id, "pod-7", final=True, state="verified")
    assert told(one(make()))[1::2] == ("to train", "here")


def test_a_launched_run_stays_where_it_is(make, note, data, run_id):
    note(run_id, "b", final=False)
    assert told(one(make(trainers=trainers(data, "a", "b")))) == (run_id, "to attach", "placed on b", "b")
    assert one(make(trainers=trainers(data, "a", "b"), move=True)).trainer == "a"


@pytest.mark.parametrize("state", ["launched", "finished", "failed"])
def test_whoever_is_placed_elsewhere_is_asked_there_and_nowhere_else(make, note, data, run_id, state):
    note(run_id, "b", final=state != "launched", state=state, lane=1)
    here = [Trainer("a", datasets_dir=str(data.folder)), Trainer("b", datasets_dir=str(data.folder), gpus=2, lanes=2)]
    run = one(make(trainers=here))
    assert (run.trainer, run.hosts, run.gpus, run.lane) == ("b", ("b",), 2, 1)


def test_what_is_placed_says_so(make, note, data, run_id):
    assert (one(make()).placed, one(make()).lane) == (False, 0)
    note(run_id, final=False, lane=1)
    two = [Trainer("here", datasets_dir=str(data.folder), lanes=2)]
    run = one(make(trainers=two))
    assert (run.placed, run.lane, run.state) == (True, 1, "to attach")
    run = one(make(trainers=two, move=True))
    assert (run.placed, run.lane, run.why) == (False, 0, "moved from here")


def test_a_delivered_run_is_not_moved_and_not_placed(make, note, deliver, data, run_id):
    deliver(run_id)
    note(run_id, "pod-7", final=True, state="verified", lane=3)
    run = one(make(trainers=trainers(data, "a", "b"), move=True))
    assert (run.state, run.why, run.placed, run.trainer) == ("ready", "", False, "pod-7")


def test_a_delivered_run_is_told_where_it_was_trained(make, data, note, monkeypatch):
    data()
    boxes = [Trainer(name, datasets_dir=str(data.folder)) for name in ("one", "two")]
    run_id = make(trainers=boxes).runs[0].run_id
    note(run_id, "two", state="finished", final=True)
    monkeypatch.setattr(store, "integrity_error", lambda folder, verify=False: None)
    for inventory, hosts in ((boxes, ("two",)), (boxes[:1], ())):
        (made,) = make(trainers=inventory).runs
        assert (made.state, made.trainer, made.hosts) == ("ready", "two", hosts)


def test_the_runs_of_a_lost_trainer_move_and_no_others(make, note, data):
    data("crew"), data("mayor")
    three = trainers(data, "a", "b", "c")
    ids = {run.agent: run.run_id for run in make("crew,mayor", three).runs}
    note(ids["crew"], "b", final=False, lane=0)
    note(ids["mayor"], "c", final=False, lane=0)
    moved = {run.agent: (run.trainer, run.state, run.why) for run in
             make("crew,mayor", three, move="b").runs}  # fmt: skip
    assert moved == {"crew": ("a", "to train", "moved from b"), "mayor": ("c", "to attach", "placed on c")}
    with pytest.raises(UserError, match="-e move=a,b,c leaves no host to train on"):
        make("crew", three, move=["a", "b", "c"])


def test_a_trainer_that_is_given_up_must_be_one(make, note, data, run_id):
    with pytest.raises(UserError, match=r"there is no trainer «gpu1»; did you mean «gpu-1»\? Trainers: gpu-1"):
        make(trainers=trainers(data, "gpu-1", "gpu-2"), move="gpu1")
    note(run_id, "pod-7", final=False)
    assert told(one(make(move="pod-7"))) == (run_id, "to train", "moved from pod-7", "here")


# --- whom a trainer takes


def test_a_declared_trainer_is_taken(make, data, run_id):
    assert one(make(trainers=trainers(data, "a", "b", b=("witness",)))).trainer == "b"
    with pytest.raises(UserError, match=r"no trainer takes witness: every one declares other agents"):
        make(trainers=trainers(data, "a", a=("crew",)))


def test_what_a_given_up_trainer_alone_declares_is_not_left_out(make, data):
    data("crew"), data("mayor")
    boxes = trainers(data, "a", "b", a=("crew",), b=("mayor",))
    with pytest.raises(UserError, match=r"no trainer takes mayor: every one that is left without b declares other"):
        make(None, boxes, move="b")
    assert [run.agent for run in make("crew", boxes, move="b").runs] == ["crew"]
    with_rest = [*boxes, *trainers(data, "c")]
    runs = make("crew,mayor", with_rest, move="b").runs
    assert [(run.agent, run.trainer) for run in runs] == [("crew", "a"), ("mayor", "c")]


def test_giving_all_up_leaves_nobody(make, data, run_id):
    assert said(lambda: make(trainers=trainers(data, "a", "b"), move="b,a")) == (
        "-e move=b,a leaves no host to train on; add one to the inventory"
    )
    assert said(lambda: make(trainers=[])) == (
        "the inventory holds no host to train on. See inventory/local.yml for the smallest one"
    )


# --- what a limit leaves alone


def test_a_limit_leaves_alone_what_it_does_not_reach(make, note, deliver, data, run_id):
    data("crew"), data("mayor")
    three = trainers(data, "a", "b", "c", c=("mayor",))
    note(run_id, "b", final=True, state="failed")
    made = make("witness,crew,mayor", three, outside=["b", "c"])
    assert [(run.agent, run.trainer) for run in made.runs] == [("crew", "a"), ("mayor", "a")]
    assert made.warnings[-1] == f"left alone, as they were launched where --limit does not reach: {run_id} on b"
    made = make("witness,crew,mayor", three, outside=["a", "b"])
    assert [(run.agent, run.trainer) for run in made.runs] == [("mayor", "c")]
    assert made.warnings[-1] == "left alone, as every trainer within --limit declares other agents: crew"
    with pytest.raises(UserError, match=rf"nothing is to be done within --limit\n.*: {run_id} on b"):
        make("witness", three, outside=["b"])
    assert one(make("witness", three, outside=["b"], move="b")).trainer == "a"
    with pytest.raises(UserError, match="-e move=a leaves no host to train on within --limit; add one to"):
        make("witness", three, outside=["b", "c"], move="a")
    deliver(run_id)
    assert told(one(make("witness", three, outside=["b"])))[1] == "ready"


def test_whom_a_limit_has_trained(make, data):
    data("crew"), data("mayor")
    here = trainers(data, "a", "b", b=("mayor",))
    assert [run.agent for run in make(None, here, outside=["a"]).runs] == ["mayor"]
    assert [run.agent for run in make(None, here, outside=["b"]).runs] == ["crew", "gastown"]
    for agent in AGENTS:
        data(agent)
    here = trainers(data, "a", "b", b=tuple(AGENTS))
    with pytest.raises(UserError, match=r"--limit leaves out the trainers that declare crew, .*; name agents with"):
        make(None, here, outside=["b"])
    with pytest.raises(UserError, match=r"--limit leaves no host to train on\. Trainers: a, b"):
        make(None, here, outside=["a", "b"])


# --- gangs


def pair(data, *names: str, **changes: Any) -> list[Trainer]:
    common = {"datasets_dir": str(data.folder), "gpus": 2, "hosts": 2, "members": ("a", "b"), **changes}
    return [Trainer(name, **common) for name in names]


def test_of_a_gang_the_first_host_speaks_for_the_others(make, data, run_id):
    [run] = make(trainers=[*pair(data, "a", "b")]).runs
    assert (run.run_id, run.trainer, run.hosts, run.gpus) == (run_id, "a", ("a", "b"), 2)
    assert (run.recipe["micro_batch_size"], run.recipe["gradient_accumulation_steps"]) == (2, 1)


@pytest.mark.parametrize(
    ("names", "changes", "said"),
    [
        ("ab", {"members": ()}, "a: run_hosts is 2, and no group of the inventory holds it and 1 more"),
        ("ab", {"rented": True}, "a is a pod, and pods do not reach each other"),
        ("ab", {"groups": ("pair", "rack")}, "the groups pair, rack each hold it and so many hosts"),
        ("a", {}, "b is of a's gang, but no trainer"),
        ("ab", {"gpus": 16}, "cannot be divided among 32 GPUs"),
    ],
)
def test_what_is_no_gang(make, data, run_id, names, changes, said):
    with pytest.raises(UserError, match=said):
        make(trainers=pair(data, *names, **changes))


@pytest.mark.parametrize(
    ("changes", "variable"),
    [({"lanes": 2}, "number of lanes"), ({"agents": ("crew",)}, "agents"), ({"profile": "rehearsal"}, "run_profile")],
)
def test_the_hosts_of_a_gang_are_alike(make, data, run_id, changes, variable):
    first, second = pair(data, "a", "b")
    with pytest.raises(UserError, match=rf"a's gang \(a, b\) are not alike: b has another {variable}"):
        make(trainers=[first, dataclasses.replace(second, **changes)])


def test_who_gives_up_a_host_of_a_gang_gives_up_the_gang(make, note, data, run_id):
    boxes = [*pair(data, "a", "b"), Trainer("c", datasets_dir=str(data.folder))]
    note(run_id, "a", final=False)
    assert told(one(make(trainers=boxes)))[1::2] == ("to attach", "a")
    assert told(one(make(trainers=boxes, move="b")))[1:] == ("to train", "moved from a", "c")


def test_a_run_that_is_alone_on_a_host_that_a_gang_has_now(make, note, data, run_id):
    note(run_id, "b", final=False)
    with pytest.raises(UserError, match=rf"{run_id} was launched on b alone, which now trains in a gang that a leads"):
        make(trainers=pair(data, "a", "b"))
    assert one(make(trainers=pair(data, "a", "b"), move=True)).hosts == ("a", "b")


# --- hosts that differ


def mixed(data) -> list[Trainer]:
    return [Trainer(name, profile, "", str(data.folder)) for name, profile in (("laptop", "rehearsal"), ("real", ""))]


def test_where_hosts_differ_what_was_begun_holds(make, note, deliver, data, run_id):
    laptop, real = mixed(data)
    rehearsal = one(make(trainers=[laptop])).run_id
    assert told(one(make(trainers=[laptop, real]))) == (rehearsal, "to train", "", "laptop")
    note(run_id, "real", final=False)
    assert told(one(make(trainers=[laptop, real]))) == (run_id, "to attach", "launched before", "real")
    deliver(run_id)
    note(run_id, "real", final=True, state="finished")
    assert told(one(make(trainers=[laptop, real]))) == (run_id, "ready", "", "real")


def test_where_hosts_differ_a_real_run_comes_before_a_rehearsal(make, note, deliver, data, run_id):
    laptop, real = mixed(data)
    spare = dataclasses.replace(real, name="spare")
    deliver(one(make(trainers=[laptop])).run_id)
    assert one(make(trainers=[laptop, real])).state == "ready"
    note(run_id, "real", final=False)
    assert told(one(make(trainers=[laptop, real])))[:2] == (run_id, "to attach")
    assert told(one(make(trainers=[laptop, real, spare], move="real")))[1:] == ("to train", "moved from real", "spare")


def test_a_host_without_the_data_is_of_no_account_as_long_as_nobody_trains_there(make, note, data, run_id):
    empty, real = Trainer("empty", datasets_dir=str(data.folder / "none")), mixed(data)[1]
    note(run_id, "real", final=False)
    assert told(one(make(trainers=[empty, real])))[1::2] == ("to attach", "real")


def test_where_no_way_has_the_data_the_first_one_is_told(make, data):
    boxes = [Trainer(name, datasets_dir=str(data.folder / name)) for name in ("x", "y")]
    assert said(make, "witness", boxes).startswith(f"no dataset for witness: {data.folder / 'x'}/witness_train.jsonl")


def test_a_run_goes_to_the_machine_of_the_trainer_it_is_placed_on(make, data):
    data("crew"), data("mayor")
    small = Trainer("small", machine="gpu-24gb", datasets_dir=str(data.folder))
    big = Trainer("big", datasets_dir=str(data.folder))
    runs_ = {run.trainer: run.recipe for run in make("crew,mayor", [big, small]).runs}
    recipes = AgentRecipes(ROOT, Agents(ROOT), {})
    for name, machine in (("big", ""), ("small", "gpu-24gb")):
        merged = recipes.merged_recipe("crew", "", machine)
        changed = {key for key in merged if key in recipe.MACHINE_KEYS}
        assert {key: runs_[name].get(key) for key in changed - {"eval_sample_packing"}} == {
            key: merged[key] for key in changed - {"eval_sample_packing"}
        }
    assert runs_["big"] != runs_["small"]


# --- drafts, and what becomes of them


def test_whether_something_was_begun():
    assert placement.has_history(planned_run(state="to train", placed=False, why="")) is False
    for change in ({"state": "ready"}, {"placed": True}, {"why": "moved from b"}):
        assert placement.has_history(planned_run(**change)) is True


def test_only_a_run_with_a_history_is_bound_to_trainers_that_would_train_the_same(data, note, tmp_path, run_id):
    laptop, real = mixed(data)
    hosts_ = fleet.check_trainers(
        [laptop, real, dataclasses.replace(real, name="spare")], Agents(ROOT), False, tmp_path / "output"
    )
    planner = Planner(ROOT, tmp_path / "output", {})
    [draft] = placement.draft_runs(planner, ["witness"], [{}], hosts_).values()
    assert (draft.run.trainer, draft.only) == ("laptop", None)
    note(run_id, "spare", final=False, lane=2)
    planner = Planner(ROOT, tmp_path / "output", {})
    [draft] = placement.draft_runs(planner, ["witness"], [{}], hosts_).values()
    assert (draft.run.trainer, draft.run.lane, draft.only) == ("spare", 2, {"real", "spare"})


def test_what_goes_to_another_trainer_than_its_draft_is_planned_for_it(data, tmp_path):
    data("crew"), data("mayor")
    boxes = [Trainer("a", datasets_dir=str(data.folder)), Trainer("b", datasets_dir=str(data.folder), gpus=2)]
    hosts_ = fleet.check_trainers(boxes, Agents(ROOT), False, tmp_path / "output")
    planner = Planner(ROOT, tmp_path / "output", {})
    drafts = placement.draft_runs(planner, ["crew", "mayor"], [{}], hosts_)
    assert [(draft.run.trainer, draft.run.gpus) for draft in drafts.values()] == [("a", 1), ("a", 1)]
    crew, mayor = placement.place_runs(planner, drafts, hosts_)
    assert crew == drafts["crew", 0].run
    assert (mayor.trainer, mayor.hosts, mayor.gpus) == ("b", ("b",), 2)
    assert recipe.effective_batch(mayor.recipe) * 2 == recipe.effective_batch(crew.recipe)


# --- lanes


def hosts(**lanes: int) -> list[Trainer]:
    return [Trainer(name, lanes=count) for name, count in lanes.items()]


def spread(weight: dict[str, int], boxes: list[Trainer], **placed: tuple[str, int]) -> dict[str, tuple[str, int]]:
    jobs = {(agent, 0): work for agent, work in weight.items()}
    chosen = placement.assign_lanes(boxes, jobs, {(agent, 0): Lane(*at) for agent, at in placed.items()})
    return {agent: (lane.trainer, lane.number) for (agent, _), lane in chosen.items()}


def test_place_spreads_longest_first():
    weight = {"crew": 10, "deacon": 40, "mayor": 20, "polecat": 30}
    chosen = spread(weight, hosts(a=1, b=1))
    assert chosen == {"deacon": ("a", 0), "polecat": ("b", 0), "mayor": ("b", 0), "crew": ("a", 0)}
    assert list(chosen) == ["deacon", "polecat", "mayor", "crew"]


def test_place_fills_every_trainer_before_a_second_lane():
    weight = {"crew": 10, "deacon": 40, "mayor": 20, "polecat": 30}
    assert spread(weight, hosts(a=2, b=1)) == {
        "deacon": ("a", 0), "polecat": ("b", 0), "mayor": ("a", 1), "crew": ("a", 1),
    }  # fmt: skip


def test_place_counts_what_is_placed_already():
    weight = {"crew": 9, "mayor": 20, "witness": 5}
    chosen = spread(weight, hosts(a=1, b=2), crew=("b", 0))
    assert chosen == {"crew": ("b", 0), "mayor": ("a", 0), "witness": ("b", 1)}


def test_a_lane_that_is_gone_is_another_one_of_the_same_trainer():
    assert spread({"crew": 9}, hosts(a=1, b=2), crew=("b", 7)) == {"crew": ("b", 0)}


def test_the_heaviest_comes_first_onto_the_lane_with_the_least():
    weight = {("crew", 0): 5, ("mayor", 0): 3, ("deacon", 0): 3, ("polecat", 0): 1}
    boxes = [Trainer("a"), Trainer("b")]
    assert placement.assign_lanes(boxes, weight, {}) == {
        ("crew", 0): Lane("a"),
        ("deacon", 0): Lane("b"),
        ("mayor", 0): Lane("b"),
        ("polecat", 0): Lane("a"),
    }


def test_variants_of_an_agent_are_jobs_of_their_own():
    weight = {("crew", 0): 2, ("crew", 1): 2, ("crew", 2): 2}
    placed = {("crew", 2): Lane("a", 0)}
    chosen = placement.assign_lanes([Trainer("a", lanes=2), Trainer("b")], weight, placed)
    assert chosen == {("crew", 2): Lane("a", 0), ("crew", 0): Lane("b", 0), ("crew", 1): Lane("a", 1)}


def test_a_placed_run_stays_even_where_its_trainer_declares_others():
    boxes, weight = [Trainer("a", agents=("mayor",)), Trainer("b")], {("crew", 0): 1}
    assert placement.assign_lanes(boxes, weight, {("crew", 0): Lane("a", 0)}) == {("crew", 0): Lane("a", 0)}
    assert placement.assign_lanes(boxes, weight, {("crew", 0): Lane("gone", 0)}) == {("crew", 0): Lane("b", 0)}


def test_only_some_trainers_come_into_question():
    boxes = [Trainer("a"), Trainer("b"), Trainer("c")]
    assert placement.assign_lanes(boxes, {("crew", 0): 1}, {}, {("crew", 0): {"c"}}) == {("crew", 0): Lane("c")}
    assert placement.assign_lanes(boxes, {("crew", 0): 1}, {}, {("mayor", 0): {"c"}}) == {("crew", 0): Lane("a")}


def test_when_no_trainer_takes_an_agent():
    boxes = [Trainer("a", agents=("mayor",))]
    assert said(placement.assign_lanes, boxes, {("crew", 0): 1}, {}) == (
        "no trainer takes crew: every one declares other agents; add it to one of them"
    )
    assert said(placement.assign_lanes, boxes, {("crew", 0): 1}, {}, {}, ["b", "c"]) == (
        "no trainer takes crew: every one that is left without b, c declares other agents; add it to one of them; or "
        "name others with -e role=…"
    )


def test_a_job_goes_to_the_trainer_that_declares_its_agent():
    boxes = [Trainer("a"), Trainer("b", agents=("crew",))]
    assert placement.assign_lanes(boxes, {("crew", 0): 1}, {}) == {("crew", 0): Lane("b")}


def test_a_run_keeps_its_very_lane_and_gets_another_one_there_where_that_is_gone():
    boxes = [Trainer("a"), Trainer("b", lanes=3)]
    weight = {("crew", 0): 5, ("mayor", 0): 1}
    held = {("crew", 0): Lane("b", 2), ("mayor", 0): Lane("b", 2)}
    assert placement.assign_lanes(boxes, weight, held) == held
    lost = {("crew", 0): Lane("b", 2), ("mayor", 0): Lane("b", 7)}
    assert placement.assign_lanes(boxes, weight, lost) == {("crew", 0): Lane("b", 2), ("mayor", 0): Lane("b", 0)}
