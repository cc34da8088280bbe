"""The plan: which agents, which data, which attempt, on which trainer, with which warnings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re
from typing import Any

import pytest
from ansible.module_utils.lora_forge import version
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import Estimate, PlannedDataset, PlannedRun
from ansible.module_utils.lora_forge.planning import fleet, plan, recipe, steps
from ansible.module_utils.lora_forge.planning.agents import Agents
from ansible.module_utils.lora_forge.planning.attempts import Attempt, Attempts
from ansible.module_utils.lora_forge.planning.fleet import Lane, Trainer
from ansible.module_utils.lora_forge.planning.run_record import update_record
from ansible.module_utils.lora_forge.text import canonical
from planned import planned_run

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = str(ROOT / "examples/datasets")
AGENTS = Agents(ROOT).names
OTHERS = [agent for agent in AGENTS if agent != "gastown"]


@pytest.fixture
def data(tmp_path):
    """Write <agent>_<use>.jsonl with as many conversations of so many characters; the folder is its attribute."""

    def writer(agent: str = "witness", use: str = "train", count: int = 10, size: int = 14_000) -> pathlib.Path:
        path = tmp_path / "data" / f"{agent}_{use}.jsonl"
        path.parent.mkdir(exist_ok=True)
        turns = [[("human", f"{agent} {use} {n}"), ("gpt", "a" * size)] for n in range(count)]
        rows = [{"conversations": [{"from": who, "value": text} for who, text in pair]} for pair in turns]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    writer.folder = tmp_path / "data"
    return writer


@pytest.fixture
def make(tmp_path, data):
    """plan.make over the real configs, one trainer «here» unless said otherwise."""

    def maker(wanted: Any = "witness", trainers: list[Trainer] | None = None, recipe=None, **options: Any):
        if trainers is None:
            trainers = [Trainer("here", datasets_dir=str(data.folder))]
        return plan.make(ROOT, tmp_path / "output", wanted, trainers, recipe or {}, **options)

    return maker


@pytest.fixture
def note(tmp_path):
    """Write a placement."""

    def writer(run_id: str, trainer: str = "here", **values: Any) -> None:
        path = tmp_path / "output/runs" / f"{run_id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"trainer": trainer, **values}))

    return writer


@pytest.fixture
def deliver(tmp_path):
    """Put a verified adapter there."""

    def writer(run_id: str) -> pathlib.Path:
        folder = tmp_path / "output/adapters/witness" / run_id
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"12345")
        row = {"path": "weights", "bytes": 5, "sha256": hashlib.sha256(b"12345").hexdigest()}
        (folder / "manifest.json").write_text(json.dumps({"verdict": "verified", "files": [row]}))
        return folder

    return writer


def one(result: plan.Plan) -> PlannedRun:
    [run] = result.runs
    return run


def told(run: PlannedRun) -> tuple[str, str, str, str]:
    return run.run_id, run.state, run.why, run.trainer


# --- which data


def test_missing_dataset_names_the_path(make, data):
    with pytest.raises(UserError) as error:
        make()
    path = data.folder / "witness_train.jsonl"
    assert str(error.value) == f"no dataset for witness: {path} does not exist. -e datasets_dir=… says where to look"


def test_no_trainers(make):
    with pytest.raises(UserError, match=r"holds no host to train on\. See inventory/local\.yml"):
        make(trainers=[])


def test_gastown_uses_all_six_files(make, data):
    for agent in OTHERS:
        data(agent)
    data("mayor", "val")
    result = make("gastown")
    names = [(pathlib.Path(item.path).name, item.use) for item in one(result).datasets]
    assert names == [*((f"{agent}_train.jsonl", "train") for agent in OTHERS), ("mayor_val.jsonl", "val")]
    assert not any("trained without" in warning for warning in result.warnings)


def test_a_val_file_is_the_evaluation_set(make, data):
    train = data(count=3)
    assert one(make()).recipe["val_set_size"] == 0.05
    val = data(use="val", count=2)
    run = one(make())
    files = [(item.path, item.use, item.examples) for item in run.datasets]
    assert files == [(str(train), "train", 3), (str(val), "val", 2)]
    assert run.recipe["val_set_size"] == 0


def test_a_single_conversation_has_no_evaluation(make, data):
    data(count=1)
    result = make()
    assert one(result).recipe["val_set_size"] == 0
    assert "witness: a single conversation cannot be split, so there is no evaluation" in result.warnings


def test_the_same_data_gives_the_same_run_and_other_data_another(make, data):
    data()
    first = one(make()).run_id
    assert re.fullmatch(r"witness-[0-9a-f]{12}", first)
    assert one(make()).run_id == first
    assert one(make(trainers=[Trainer("x", machine="gpu-24gb", datasets_dir=str(data.folder))])).run_id == first
    assert one(make(trainers=[Trainer("x", "rehearsal", datasets_dir=str(data.folder))])).run_id != first
    data(count=5)
    assert one(make()).run_id != first


def test_cases_are_read_by_the_plan_and_change_no_run(make, data, tmp_path):
    data()
    where = [Trainer("here", datasets_dir=str(data.folder), eval_dir=str(tmp_path / "eval"))]
    without = make(trainers=where)
    assert one(without).cases.count == one(without).estimate.answers.count == 0
    assert f"eval_dir is «{tmp_path / 'eval'}», and there is no such folder: no cases are asked" in without.warnings[-1]
    (tmp_path / "eval").mkdir()
    path = tmp_path / "eval/witness.jsonl"
    made = []
    for said in ("something else that is asked", "witness train 3 and all that"):
        path.write_text(json.dumps({"messages": [{"role": "user", "content": said}], "expect": [{"contains": "x"}]}))
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
    planner = plan.Planner(ROOT, tmp_path / "output", {}, asks=False)
    assert planner.find_cases("witness", path.parent, []).count == 0, "a stop goes on"


def test_unknown_profile_and_override_are_errors(make, data):
    data()
    with pytest.raises(UserError, match=r"run_profile is «rehersal», but configs/profiles holds: rehearsal"):
        make(trainers=[Trainer("here", "rehersal", datasets_dir=str(data.folder))])
    with pytest.raises(UserError, match=r"-e '.*': Axolotl knows no key «epochs»"):
        make(recipe={"epochs": 3})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("sequence_len", None, "the recipe has no «sequence_len»; every run needs it"),
        ("lora_r", None, "the recipe has no «lora_r»; every run needs it"),
        ("sequence_len", 0, "«sequence_len: 0» must be above 0"),
        ("micro_batch_size", 0, "«micro_batch_size: 0» must be above 0"),
        ("gradient_accumulation_steps", -1, "«gradient_accumulation_steps: -1» must be above 0"),
        ("val_set_size", 1.0, "«val_set_size: 1.0» must be a share from 0 to below 1"),
        ("wandb_project", "team/project", "«wandb_project: team/project» must have no / "),
        ("lora_target_modules", [], "«lora_target_modules» names no module"),
    ],
)
def test_values_that_make_no_run(make, data, key, value, said):
    data()
    with pytest.raises(UserError, match=re.escape(said)):
        make(recipe={key: value})


@pytest.mark.parametrize(
    "key", ["gradient_accumulation_steps", "val_set_size", "max_steps", "warmup_steps", "datasets"]
)
def test_keys_that_may_be_removed(make, data, key):
    data()
    steps = 12 if key == "gradient_accumulation_steps" else 3
    assert one(make(recipe={key: None})).estimate.steps == steps


# --- which attempt


@pytest.fixture
def run_id(make, data):
    data()
    return one(make()).run_id


def test_never_trained(make, run_id):
    assert told(one(make())) == (run_id, "to train", "", "here")


def test_ready(make, deliver, run_id):
    deliver(run_id)
    assert told(one(make())) == told(one(make(verify=True))) == (run_id, "ready", "", "here")


def test_another_version_of_lora_forge_trains_nothing_again(make, deliver, run_id, monkeypatch):
    deliver(run_id)  # with a manifest that names no lora-forge
    monkeypatch.setattr(version, "VERSION", "9.9.9")
    assert told(one(make())) == (run_id, "ready", "", "here")


def test_a_damaged_adapter_is_trained_again(make, deliver, run_id):
    folder = deliver(run_id)
    (folder / "weights").write_bytes(b"123")
    assert told(one(make())) == (run_id, "to train", f"{folder / 'weights'} has 3 bytes instead of 5", "here")


def test_verify_finds_changed_content(make, deliver, run_id):
    folder = deliver(run_id)
    (folder / "weights").write_bytes(b"54321")
    (folder / "manifest.json").touch()
    assert one(make()).state == "ready"
    assert one(make(verify=True)).why == f"{folder / 'weights'} has changed since it was verified"


def test_a_launched_run_is_attached_to(make, note, run_id):
    note(run_id, final=False, state="running")
    assert told(one(make())) == (run_id, "to attach", "launched before", "here")
    assert told(one(make(fresh=True))) == (run_id, "to attach", "launched before", "here")


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_a_failed_run_is_resumed(make, note, run_id, state):
    note(run_id, final=True, state=state)
    assert told(one(make())) == (run_id, "to resume", f"{state} before", "here")


def test_fresh_makes_the_next_attempt_once(make, deliver, note, run_id):
    deliver(run_id)
    assert told(one(make(fresh=True)))[:3] == (f"{run_id}-2", "to train", "a fresh attempt was asked for")
    note(f"{run_id}-2", final=False)
    assert told(one(make(fresh=True)))[:2] == (f"{run_id}-2", "to attach")
    assert told(one(make()))[:2] == (f"{run_id}-2", "to attach")
    note(f"{run_id}-2", final=True, state="failed")
    assert told(one(make(fresh=True)))[:2] == (f"{run_id}-3", "to train")


def test_attempts_are_counted_as_numbers(make, note, run_id):
    for number in ("-2", "-9", "-10", "-x", "0"):
        note(f"{run_id}{number}", final=True, state="failed")
    assert one(make(fresh=True)).run_id == f"{run_id}-11"


def test_an_earlier_verified_one_stays_ready(make, deliver, note, run_id):
    deliver(run_id)
    note(f"{run_id}-2", final=True, state="failed")
    assert told(one(make())) == (run_id, "ready", f"{run_id}-2 failed later", "here")


# --- which trainer


def trainers(data, *names: str, **agents: tuple[str, ...]) -> list[Trainer]:
    return [Trainer(name, datasets_dir=str(data.folder), agents=agents.get(name, ())) for name in names]


@pytest.mark.parametrize("placement", [{"final": False}, {"final": True, "state": "failed"}])
def test_a_trainer_that_the_inventory_lacks(make, note, data, run_id, placement):
    note(run_id, "pod-7", **placement)
    with pytest.raises(UserError, match=rf"{run_id} was launched on pod-7, which this inventory does not hold.*move"):
        make()
    assert one(make(move=True)).trainer == "here"


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


def test_a_declared_trainer_is_taken(make, data, run_id):
    assert one(make(trainers=trainers(data, "a", "b", b=("witness",)))).trainer == "b"
    with pytest.raises(UserError, match=r"no trainer takes witness: every one declares other agents"):
        make(trainers=trainers(data, "a", a=("crew",)))


def hosts(**lanes: int) -> list[Trainer]:
    return [Trainer(name, lanes=count) for name, count in lanes.items()]


def spread(weight: dict[str, int], boxes: list[Trainer], **placed: tuple[str, int]) -> dict[str, tuple[str, int]]:
    jobs = {(agent, 0): work for agent, work in weight.items()}
    chosen = fleet.assign_lanes(boxes, jobs, {(agent, 0): Lane(*at) for agent, at in placed.items()})
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


def test_a_trainer_with_fewer_gpus_than_a_run_takes(make, data, run_id):
    with pytest.raises(UserError, match="here has no lane: it has fewer GPUs than run_gpus asks for"):
        make(trainers=[Trainer("here", datasets_dir=str(data.folder), lanes=0)])


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


def test_gpus_share_a_run_and_it_stays_the_same_run(make, data):
    data(count=40, size=14000)
    [alone] = make().runs
    [shared] = make(trainers=[Trainer("here", datasets_dir=str(data.folder), gpus=4)]).runs
    assert (shared.run_id, shared.gpus, shared.estimate) == (alone.run_id, 4, alone.estimate)
    assert (shared.recipe["micro_batch_size"], shared.recipe["gradient_accumulation_steps"]) == (2, 1)
    [over_nodes] = make(trainers=[Trainer("here", datasets_dir=str(data.folder), gpus=2, nodes=2, slurm=True)]).runs
    assert (over_nodes.run_id, over_nodes.recipe, over_nodes.estimate) == (alone.run_id, shared.recipe, alone.estimate)
    assert (over_nodes.hosts, over_nodes.nodes, over_nodes.processes) == (("here",), 2, 4)


def test_deepspeed_needs_its_package_and_its_file_is_read_here(make, data, tmp_path, monkeypatch):
    data()
    config = {"zero_optimization": {"stage": 3}}
    with pytest.raises(UserError, match=r"«deepspeed» needs a package that requirements/trainer-cuda.txt does not pin"):
        make(recipe={"deepspeed": config})
    monkeypatch.setattr(plan.recipe, "pinned_version", lambda lock, package: "0.19.0")
    plain = one(make()).run_id
    assert one(make(recipe={"deepspeed": config})).recipe["deepspeed"] == config
    path = tmp_path / "zero3.json"
    path.write_text(json.dumps(config))
    run = one(make(recipe={"deepspeed": str(path)}))
    assert (run.recipe["deepspeed"], run.run_id) == (config, plain)
    with pytest.raises(
        UserError, match=r"«deepspeed: no.json» must name a JSON file, from the checkout on: .*/no.json"
    ):
        make(recipe={"deepspeed": "no.json"})


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


def test_a_trainer_that_is_given_up_must_be_one(make, note, data, run_id):
    with pytest.raises(UserError, match=r"there is no trainer «gpu1»; did you mean «gpu-1»\? Trainers: gpu-1"):
        make(trainers=trainers(data, "gpu-1", "gpu-2"), move="gpu1")
    note(run_id, "pod-7", final=False)
    assert told(one(make(move="pod-7"))) == (run_id, "to train", "moved from pod-7", "here")


def test_what_a_given_up_trainer_alone_declares_is_not_left_out(make, data):
    data("crew"), data("mayor")
    boxes = trainers(data, "a", "b", a=("crew",), b=("mayor",))
    with pytest.raises(UserError, match=r"no trainer takes mayor: every one that is left without b declares other"):
        make(None, boxes, move="b")
    assert [run.agent for run in make("crew", boxes, move="b").runs] == ["crew"]
    with_rest = [*boxes, *trainers(data, "c")]
    runs = make("crew,mayor", with_rest, move="b").runs
    assert [(run.agent, run.trainer) for run in runs] == [("crew", "a"), ("mayor", "c")]


def test_agents_of_a_trainer_are_checked(make, data):
    data()
    with pytest.raises(UserError, match=r"agents of a: there is no agent «witnes»; did you mean «witness»\?"):
        make(trainers=trainers(data, "a", a=("witnes",)))


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


def test_more_hosts_than_ansible_looks_after(make, data):
    data("crew"), data("mayor"), data("witness")
    runs = make("crew,mayor,witness", trainers(data, "a", "b", "c")).runs
    assert fleet.fork_limit_warning(runs, 3) == []
    [said] = fleet.fork_limit_warning(runs, 1)
    assert said.startswith("3 hosts have work, and Ansible works on 1 at once: nothing is launched on ")
    assert said.count("-f 3") == 1


def test_who_trains_where_in_words(make, data):
    data("crew", count=80, size=14000), data("mayor"), data("witness")
    assert fleet.describe_queues(make("crew").runs) == []
    boxes = [Trainer("a", datasets_dir=str(data.folder)), Trainer("b", datasets_dir=str(data.folder), lanes=2)]
    said = fleet.describe_queues(make("crew,mayor,witness", boxes).runs)
    assert [line.partition(";")[0] for line in said] == ["a: crew", "b lane 1: mayor", "b lane 2: witness"]


def test_work_is_what_goes_through_the_model(make, data):
    data(count=40, size=14000)  # ten packed steps an epoch, three epochs
    run = one(make())
    assert run.estimate.work == run.estimate.steps * 8 * 4096


# --- what suits the data


def test_warnings_for_a_small_set_suggest_values_that_suit(make, data):
    data(count=160, size=14000)  # 160 × about 4,000 tokens of 4,096, 5 % held out: 19 packed steps an epoch
    [warning] = make().warnings
    steps = one(make()).estimate.steps
    assert steps == 57
    assert warning.startswith(f"witness: warmup takes 50 of about {steps} steps. Values that suit this data: -e '")
    better = json.loads(re.search(r"-e '(.*)'$", warning).group(1))
    assert better == {"recipe": {"warmup_steps": 5}}
    assert make(**better).warnings == []


def test_warning_for_eval_steps_beyond_the_end(make, data):
    data()
    [warning] = make(recipe={"warmup_steps": 0}).warnings
    assert "no evaluation before the end falls within about 3 steps (eval_steps 50)" in warning
    assert '{"recipe": {"eval_steps": 1}}' in warning


def test_eval_sample_packing_is_switched_off_for_a_small_evaluation_set(make, data):
    data(count=40)
    assert one(make()).recipe["eval_sample_packing"] is False
    data(use="val", count=40, size=14000)
    assert one(make()).recipe["eval_sample_packing"] is True


@pytest.mark.parametrize("agent", AGENTS)
def test_the_example_datasets_all_plan_as_a_rehearsal(make, agent):
    run = one(make(agent, [Trainer("localhost", "rehearsal", datasets_dir=EXAMPLES)]))
    assert (run.agent, run.state, run.rehearsal) == (agent, "to train", True)
    assert run.estimate.steps == 12
    assert (run.recipe["base_model"], run.rehearsed["of"]) == ("tiny-random-qwen2", "Qwen/Qwen2.5-7B-Instruct")
    assert sum(item.examples for item in run.datasets) >= 39


def test_a_root_that_is_not_absolute_is_refused(make, data):
    data()
    with pytest.raises(UserError, match=r"trainer_root of box is «~/lora-forge»; it must be an absolute path"):
        make(trainers=[Trainer("box", datasets_dir=str(data.folder), root="~/lora-forge")])


def test_a_delivered_run_is_told_where_it_was_trained(make, data, note, monkeypatch):
    data()
    boxes = [Trainer(name, datasets_dir=str(data.folder)) for name in ("one", "two")]
    run_id = make(trainers=boxes).runs[0].run_id
    note(run_id, "two", state="finished", final=True)
    monkeypatch.setattr(plan.store, "integrity_error", lambda folder, verify=False: None)
    for inventory, hosts in ((boxes, ("two",)), (boxes[:1], ())):
        (made,) = make(trainers=inventory).runs
        assert (made.state, made.trainer, made.hosts) == ("ready", "two", hosts)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (
            {"base_model": "Acme/Tiny"},
            r"is another model than the one whose «model_revision» stands in configs/base.yml",
        ),
        ({"base_model": "Acme/Tiny", "model_revision": None}, "needs a «model_revision»"),
        ({"model_revision": None}, "needs a «model_revision»"),
        ({"base_model": "~/model"}, "give its absolute path on the trainer"),
        ({"base_model": "./model"}, "give its absolute path on the trainer"),
    ],
)
def test_a_base_model_is_pinned_or_a_folder(make, data, recipe, words):
    data()
    with pytest.raises(UserError, match=words):
        make(recipe=recipe)


def test_a_folder_and_another_commit_are_fine(make, data):
    data()
    assert "model_revision" not in make(recipe={"base_model": "/models/mine"}).runs[0].recipe
    assert make(recipe={"model_revision": "abc0" * 10}).runs[0].recipe["model_revision"] == "abc0" * 10
    own = {"base_model": "Acme/Tiny", "model_revision": "abc0" * 10}
    assert make(recipe=own).runs[0].recipe["base_model"] == "Acme/Tiny"


# --- the checkout that is planned from


@pytest.fixture
def checkout(tmp_path):
    """Copy what a plan reads: configs and locks."""
    root = tmp_path / "checkout"
    for pattern in ("configs/**/*.*", "requirements/*.txt"):
        for path in ROOT.glob(pattern):
            copy = root / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return root


def said(call: Any, *given: Any) -> str:
    """Return the words of an error."""
    with pytest.raises(UserError) as error:
        call(*given)
    return str(error.value)


def test_locks_that_pin_different_versions(checkout, tmp_path):
    lock = checkout / "requirements/trainer-cuda.txt"
    lock.write_text(re.sub(r"^axolotl==\S+", "axolotl==0.1.0", lock.read_text(), flags=re.MULTILINE))
    assert said(plan.Planner, checkout, tmp_path, {}) == (
        "requirements/trainer-cpu.txt and requirements/trainer-cuda.txt pin different versions of axolotl; make both "
        "anew: make lock"
    )


@pytest.mark.parametrize("content", [None, "{"])
def test_a_schema_that_cannot_be_read(checkout, tmp_path, content):
    path = checkout / "configs/schema.json"
    path.unlink() if content is None else path.write_text(content)
    words = said(plan.Planner, checkout, tmp_path, {})
    assert words.startswith("configs/schema.json cannot be read (")
    assert words.endswith("); make it anew with: make schema")


def test_files_are_named_as_they_lie_in_the_checkout(checkout, tmp_path):
    (checkout / "configs/agents/witness.yml").write_text("seed: 1\nsed: 2\n")
    planner = plan.Planner(checkout, tmp_path, {"lora_r": 0.5})
    assert said(planner.merged_recipe, "witness", "", "") == (
        "-e '{\"recipe\": …}': «lora_r: 0.5» does not fit: expected a whole number\n"
        "configs/agents/witness.yml, line 2: Axolotl knows no key «sed»; did you mean «seed»?"
    )
    (checkout / "configs/agents/witness.yml").unlink()
    planner = plan.Planner(checkout, tmp_path, {"lora_r": 0.5})
    assert (
        said(planner.merged_recipe, "witness", "", "") == "configs/agents/witness.yml is missing; every recipe needs it"
    )


def test_profiles_and_machines_go_by_their_names(checkout, tmp_path):
    planner = plan.Planner(checkout, tmp_path, {})
    for name in ("b", "a"):
        (checkout / f"configs/machines/{name}.yml").write_text("tf32: false\n")
    known = ", ".join(sorted(path.stem for path in (checkout / "configs/machines").glob("*.yml")))
    assert (
        said(planner.merged_recipe, "witness", "", "c")
        == f"trainer_machine is «c», but configs/machines holds: {known}"
    )
    assert (
        said(planner.merged_recipe, "witness", "c", "a") == "run_profile is «c», but configs/profiles holds: rehearsal"
    )
    assert planner.merged_recipe("witness", "", "a")["tf32"] is False
    (checkout / "configs/machines/a.yml").write_text("lora_r: 8\n")
    planner = plan.Planner(checkout, tmp_path, {})
    assert "configs/machines/a.yml, line 1: «lora_r» decides what is learnt" in said(
        planner.merged_recipe, "witness", "", "a"
    )
    assert (
        planner.merged_recipe("witness", "rehearsal", "a")["lora_r"] == 64
    )  # a profile says everything about its machine


def test_the_layers_of_a_recipe_lie_over_each_other(checkout, tmp_path):
    (checkout / "configs/agents/witness.yml").write_text(
        "seed: 1\nlora_alpha: 1\nlora_dropout: 0.1\nweight_decay: 0.1\n"
    )
    (checkout / "configs/machines/m.yml").write_text("tf32: false\nlogging_steps: 7\n")
    planner = plan.Planner(checkout, tmp_path, {"lora_alpha": 2, "lora_dropout": 0.2, "logging_steps": 8})
    keys = planner.merged_recipe("witness", "", "m", {"lora_dropout": 0.3})
    names = ("seed", "lora_alpha", "lora_dropout", "weight_decay", "tf32", "logging_steps", "max_grad_norm")
    assert [keys[name] for name in names] == [1, 2, 0.3, 0.1, False, 8, 1.0]


def test_one_kind_of_mistake_is_told_before_the_next(checkout, tmp_path):
    wrong = {"sead": 1, "lora_r": 0, "base_model": "Acme/Tiny", "model_revision": None}
    for known, first in (("sead", "knows no key"), ("lora_r", "must be above 0"), ("base_model", "model_revision")):
        words = said(plan.Planner(checkout, tmp_path, wrong).merged_recipe, "witness", "", "")
        assert first in words
        assert "\n" not in words
        del wrong[known]


def test_a_rehearsals_model_is_made_and_needs_no_commit(checkout, tmp_path):
    planner = plan.Planner(checkout, tmp_path, {"model_revision": "abc0" * 10})
    assert planner.merged_recipe("witness", "rehearsal", "")["model_revision"] == "abc0" * 10
    folder = plan.Planner(checkout, tmp_path, {"base_model": "/models/mine", "model_revision": "abc0" * 10})
    assert "model_revision" not in folder.merged_recipe("witness", "", "")
    assert folder.merged_recipe("witness", "rehearsal", "")["model_revision"] == "abc0" * 10


def test_deepspeed_is_looked_for_in_the_lock_that_the_other_one_is_made_of(checkout, tmp_path):
    config = {"zero_optimization": {"stage": 2}}
    planner = plan.Planner(checkout, tmp_path, {"deepspeed": config})
    for profile in ("rehearsal", ""):
        assert said(planner.merged_recipe, "witness", profile, "") == (
            "«deepspeed» needs a package that requirements/trainer-cuda.txt does not pin: add a line «deepspeed» to "
            "requirements/trainer-cuda.in, then make lock; or use fsdp_config, which needs nothing more"
        )
    with (checkout / "requirements/trainer-cuda.txt").open("a") as file:
        file.write("deepspeed==0.19.0\n")
    for profile in ("rehearsal", ""):
        assert planner.merged_recipe("witness", profile, "")["deepspeed"] == config


def test_a_deepspeed_file_that_cannot_be_read(checkout, tmp_path):
    with (checkout / "requirements/trainer-cuda.txt").open("a") as file:
        file.write("deepspeed==0.19.0\n")
    planner = plan.Planner(checkout, tmp_path, {"deepspeed": "zero.json"})
    path = checkout / "zero.json"
    for content in (None, "{"):
        if content:
            path.write_text(content)
        words = said(planner.merged_recipe, "witness", "", "")
        assert words.startswith(f"«deepspeed: zero.json» must name a JSON file, from the checkout on: {path}: ")
    path.write_text('{"stage": "α"}')
    assert planner.merged_recipe("witness", "", "")["deepspeed"] == {"stage": "α"}


# --- data, closer


def test_a_file_is_read_once_and_warned_of_once(make, data, monkeypatch):
    data(count=2), data("mayor", count=2)
    read = []
    check = plan.dataset.read_contents

    def counted(path, options, say):
        read.append(path.name)
        contents = check(path, options, say)
        contents.warnings.append(f"{path.name} is odd")
        return contents

    monkeypatch.setattr(plan.dataset, "read_contents", counted)
    boxes = [Trainer("a", datasets_dir=str(data.folder)), Trainer("b", datasets_dir=str(data.folder))]
    result = make("witness,mayor,gastown", boxes)
    assert sorted(read) == ["mayor_train.jsonl", "witness_train.jsonl"]
    assert result.warnings.count("witness_train.jsonl is odd") == 1
    others = ", ".join(agent for agent in OTHERS if agent not in ("mayor", "witness"))
    assert f"gastown is trained without {others}: no such file in {data.folder}" in result.warnings


def test_the_shared_adapter_may_have_data_of_its_own(make, data):
    data("crew"), data("gastown"), data("gastown", "val")
    names = [pathlib.Path(item.path).name for item in one(make("gastown")).datasets]
    assert names == ["gastown_train.jsonl", "gastown_val.jsonl"]
    (data.folder / "gastown_train.jsonl").unlink()
    names = [pathlib.Path(item.path).name for item in one(make("gastown")).datasets]
    assert names == ["crew_train.jsonl"]
    (data.folder / "crew_train.jsonl").unlink()
    assert said(make, "gastown").startswith(f"no dataset for gastown: {data.folder / 'gastown_train.jsonl'} does not")


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


def test_a_dataset_of_the_hub_is_not_fetched(make, data):
    data()
    words = said(lambda: make(recipe={"datasets": [{"path": "acme/talks"}]}))
    assert words.startswith("witness: «path: acme/talks» is no file here, and a dataset of the hub is not fetched")
    assert str(data.folder / "witness_train.jsonl") in words


def test_a_template_in_a_file_is_read_here(make, data, tmp_path):
    data()
    path = tmp_path / "mine.jinja"
    path.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    [from_file] = make(recipe={"chat_template": "jinja", "chat_template_jinja": str(path)}).runs
    [written] = make(recipe={"chat_template": "jinja", "chat_template_jinja": path.read_text()}).runs
    assert from_file.recipe["chat_template_jinja"] == path.read_text()
    assert from_file.run_id == written.run_id


def test_data_that_the_template_would_drop_is_refused(make, data, monkeypatch):
    data()
    planned = plan.dataset.planned_dataset
    with_tools = lambda file: dataclasses.replace(planned(file), needs={"tools": 7})  # noqa: E731
    monkeypatch.setattr(plan.dataset, "planned_dataset", with_tools)
    words = said(lambda: make(recipe={"chat_template": "chatml"}))
    assert '«chat_template: "chatml"» leaves out lists of tools (tools), which the data has (' in words
    assert "witness_train.jsonl, line 7), so that" in words
    assert one(make(recipe={"chat_template": "qwen_25"})).recipe["chat_template"] == "qwen_25"


@pytest.mark.parametrize("slip", [{"optimizer": "adamww"}, {"num_epochs": "few"}, {"tf32": "yes, please"}])
def test_a_slip_in_what_a_rehearsal_replaces_is_found_in_the_rehearsal(checkout, tmp_path, slip):
    [key] = slip
    path = checkout / "configs/agents/witness.yml"
    path.write_text(json.dumps(slip))
    assert f"configs/agents/witness.yml, line 1: «{key}: " in said(
        plan.Planner(checkout, tmp_path, {}).merged_recipe, "witness", "rehearsal", ""
    )


def test_a_slip_in_a_rehearsal_is_told_once(checkout, tmp_path):
    (checkout / "configs/agents/witness.yml").write_text("lora_dropout: 5\n")
    words = said(plan.Planner(checkout, tmp_path, {}).merged_recipe, "witness", "rehearsal", "")
    assert len(words.splitlines()) == 1


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


# --- a planned run


def test_everything_that_a_plan_says_of_a_run(make, data, note):
    path = data(count=40, size=14000)
    box = Trainer("here", machine="gpu-24gb", datasets_dir=str(data.folder), gpus=2)
    run = one(make(trainers=[box], recipe={"liger_rms_norm": True})).as_dict()
    keys = run.pop("recipe")
    mark = run.pop("fingerprint")
    sha256 = plan.dataset.check_file(path, "train", 4096).sha256
    basis = plan.Planner(ROOT, path.parent, {"liger_rms_norm": True})
    merged = basis.merged_recipe("witness", "", "gpu-24gb") | {"eval_sample_packing": False}
    files = [{"use": "train", "sha256": sha256}]
    assert mark == plan.recipe.fingerprint(merged, False, files, basis.axolotl)
    entry = plan.dataset.axolotl_entry(plan.dataset.check_file(path, "train", 4096))
    tokens = plan.dataset.check_file(path, "train", 4096).tokens
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
            "memory_gib": plan.memory.estimate(merged),
            "memory_floor_gib": plan.memory.floor(merged),
            "memory_classes": {},
            "answers": {"count": 0, "steps": 0, "prompts": 0},
        },
        "planned_at": 0.0,  # the module sets it
        "evaluates": "",
        "against": "",
        "launched": {"root": "", "python": "", "lock_sha256": ""},
        "by_notes": False,
    }
    assert plan.recipe.effective_batch(keys) == 4
    assert any("Liger" in plugin for plugin in keys["plugins"])


def test_a_class_that_is_too_small_is_told_with_the_one_that_fits(make, data):
    data(count=40)

    def said(machine, **keys):
        box = Trainer("here", machine=machine, datasets_dir=str(data.folder))
        return [text for text in make(trainers=[box], recipe=keys).warnings if "GPU memory" in text]

    assert said("") == said("gpu-12gb") == said("gpu-24gb") == said("gpu-80gb") == []
    assert said("gpu-24gb", liger_fused_linear_cross_entropy=False) == [
        "witness on here: thought to need 24.4 GiB of GPU memory (simulated, not measured), and a card of gpu-24gb has "
        "21.8 GiB or little more. With trainer_machine: gpu-16gb it is 16.5 GiB"
    ]
    assert said("gpu-24gb", sequence_len=65536) == [
        "witness on here: thought to need 61.2 GiB of GPU memory (simulated, not measured), and a card of gpu-24gb has "
        "21.8 GiB or little more. No file of configs/machines/ makes it fit: take a larger GPU, or a shorter "
        "sequence_len"
    ]


def test_for_a_pod_each_class_is_estimated_because_its_gpu_is_not_chosen_yet(make, data):
    path = data(count=40)
    pod = Trainer("pod", datasets_dir=str(data.folder), rented=True)
    merged = plan.Planner(ROOT, path.parent, {}).merged_recipe
    assert one(make(trainers=[pod])).estimate.memory_classes == {
        path.stem: plan.memory.estimate(merged("witness", "", path.stem))
        for path in (ROOT / "configs/machines").glob("*.yml")
    }


def test_a_model_of_which_nothing_is_known_is_told_with_what_would_change_that(make, data, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    data(count=40)
    new = {"base_model": "owner/new", "model_revision": "abc0" * 10}
    result = make(recipe=new)
    folder = tmp_path / "models--owner--new/snapshots" / ("abc0" * 10)
    assert (
        "owner/new: how much GPU memory a training needs is not known: its dimensions are not known here. They are as "
        f"soon as this controller has {folder}/config.json"
    ) in result.warnings
    assert (one(result).estimate.memory_gib, one(result).estimate.memory_classes) == (None, {})
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(plan.memory.base_models.CONFIGS["qwen3-8b"]))
    result = make(recipe=new)
    assert not any("GPU memory" in text for text in result.warnings)
    assert one(result).estimate.memory_gib == plan.memory.estimate(one(result).recipe) > 20


def test_a_rehearsal_is_one_process_and_needs_no_gpu(make, data):
    data(count=9), data(use="val", count=2)
    box = Trainer("here", "rehearsal", datasets_dir=str(data.folder), gpus=4)
    run = one(make(trainers=[box]))
    assert (run.rehearsal, run.gpus, plan.recipe.effective_batch(run.recipe)) == (True, 1, 8)
    assert (run.estimate.memory_gib, run.estimate.memory_floor_gib) == (None, None)
    train, val = (plan.dataset.check_file(data.folder / f"witness_{use}.jsonl", use, 1024) for use in ("train", "val"))
    assert run.estimate.tokens == train.tokens
    mark = plan.recipe.fingerprint(
        plan.Planner(ROOT, data.folder, {}).merged_recipe("witness", "rehearsal", "")
        | {"val_set_size": 0, "eval_sample_packing": False, "base_model": "tiny-random-qwen2"}
        | {"rehearsed": {key: run.rehearsed[key] for key in ("of", "config", "tokens", "names", "files")}},
        True,
        [{"use": one.use, "sha256": one.sha256} for one in (train, val)],
        run.axolotl,
    )
    assert run.fingerprint == mark


def test_a_variant_is_in_the_name_of_its_run(make, data):
    data()
    names = [run.name for run in make(variants=[{"lora_r": 8, "seed": 1}, {"lora_r": 16}]).runs]
    assert names == ["witness lora_r 8, seed 1", "witness lora_r 16"]


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


# --- attempts, closer


def attempted(attempt: Attempt) -> tuple[str, str, str, dict[str, Any]]:
    assert (attempt.fingerprint, attempt.axolotl) == ("a" * 64, "0.21.0")
    return attempt.run_id, attempt.state, attempt.why, attempt.placement


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ({}, ("to train", "")),
        ({"trainer": ""}, ("to attach", "launched before")),
        ({"final": True}, ("to train", "")),
        ({"final": True, "state": "verified"}, ("to train", "")),
        ({"final": True, "state": "failed"}, ("to resume", "failed before")),
        ({"final": False, "state": "failed"}, ("to attach", "launched before")),
    ],
)
def test_what_a_placement_makes_of_an_attempt(tmp_path, placement, expected):
    runs_ = tmp_path / "runs"
    runs_.mkdir()
    if placement:
        (runs_ / f"witness-{'a' * 12}.json").write_text(json.dumps(placement))
    attempt = Attempts(tmp_path, "0.21.0").find("witness", "a" * 64)
    run_id, *found, kept = attempted(attempt)
    assert (run_id, *found) == (f"witness-{'a' * 12}", *expected)
    assert {key: kept.get(key) for key, value in placement.items() if value} == {
        k: v for k, v in placement.items() if v
    }


def test_what_failed_before_it_was_launched_is_no_attempt(tmp_path, deliver):
    first = f"witness-{'a' * 12}"
    output = tmp_path / "output"
    known, fresh = (Attempts(output, "0.21.0", fresh=fresh) for fresh in (False, True))
    update_record(output, first, lambda record, now: record.failed_on("gpu-1", "no GPU", now).settled("failed", now))
    assert attempted(known.find("witness", "a" * 64)) == (first, "to train", "", {})
    deliver(first)
    update_record(output, f"{first}-2", lambda record, now: record.failed_on("gpu-1", "no GPU", now))
    assert attempted(known.find("witness", "a" * 64))[:2] == (first, "ready")
    assert attempted(fresh.find("witness", "a" * 64))[:2] == (f"{first}-2", "to train")


def test_attempts_of_other_recipes_do_not_count(tmp_path):
    first = f"witness-{'a' * 12}"
    (tmp_path / "runs").mkdir()
    for name in (f"{first}b", f"{first}-x", f"{first}-2-3", f"mayor-{'a' * 12}", f"x{first}-9"):
        (tmp_path / f"runs/{name}.json").write_text('{"final": true, "state": "failed"}')
    for fresh in (False, True):
        attempt = Attempts(tmp_path, "0.21.0", fresh=fresh).find("witness", "a" * 64)
        assert attempted(attempt) == (first, "to train", "", {})


def test_attempts_are_known_from_their_folders_too(tmp_path, deliver):
    first = f"witness-{'a' * 12}"
    known, fresh = (Attempts(tmp_path / "output", "0.21.0", fresh=fresh) for fresh in (False, True))
    folder = deliver(f"{first}-3")
    (folder.parent / f"{first}-7").touch()  # no folder
    assert attempted(known.find("witness", "a" * 64)) == (f"{first}-3", "ready", "", {})
    (folder / "weights").unlink()
    missing = f"{folder / 'weights'} is missing"
    assert attempted(known.find("witness", "a" * 64)) == (f"{first}-3", "to train", missing, {})
    assert attempted(fresh.find("witness", "a" * 64)) == (f"{first}-3", "to train", missing, {})


def test_the_newest_of_the_earlier_ones_that_are_whole_stays_ready(tmp_path, deliver, note):
    first = f"witness-{'a' * 12}"
    known, fresh = (Attempts(tmp_path / "output", "0.21.0", fresh=fresh) for fresh in (False, True))
    for number in ("", "-2", "-3"):
        folder = deliver(f"{first}{number}")
    (folder / "weights").unlink()
    note(f"{first}-4", final=True, state="failed")
    assert attempted(known.find("witness", "a" * 64))[:3] == (
        f"{first}-2",
        "ready",
        f"{first}-4 failed later",
    )
    assert attempted(fresh.find("witness", "a" * 64))[:3] == (
        f"{first}-5", "to train", "a fresh attempt was asked for",
    )  # fmt: skip
    note(f"{first}-4", final=False)
    assert attempted(known.find("witness", "a" * 64))[:2] == (f"{first}-4", "to attach")


def test_whether_something_was_begun():
    assert plan.has_history(planned_run(state="to train", placed=False, why="")) is False
    for change in ({"state": "ready"}, {"placed": True}, {"why": "moved from b"}):
        assert plan.has_history(planned_run(**change)) is True


# --- how long it takes


def rows(*counts: tuple[str, int, int]) -> list[Any]:
    """Return dataset files, each with its use, examples and tokens."""
    return [
        plan.dataset.DatasetFile("p", use, "s", lengths(n, tokens), bytes(n), bytes(n)) for use, n, tokens in counts
    ]


def lengths(examples: int, tokens: int) -> list[int]:
    """Return the lengths of examples that have so many tokens together."""
    return [tokens // examples + (number < tokens % examples) for number in range(examples)]


PACKED = {"sample_packing": True, "sequence_len": 100, "micro_batch_size": 2, "num_epochs": 3}
LOOSE = {"sequence_len": 100, "gradient_accumulation_steps": 4}


@pytest.mark.parametrize(
    ("keys", "sets", "count", "work"),
    [
        (PACKED, [("train", 10, 1000)], 15, 15 * 2 * 100),
        (PACKED, [("train", 11, 1001)], 15, 15 * 2 * 100),  # a row without a second one is dropped
        (PACKED, [("train", 12, 1092)], 18, 18 * 2 * 100),
        (PACKED, [("train", 6, 600), ("train", 6, 400)], 18, 18 * 2 * 100),
        (PACKED, [("train", 20, 500)], 6, 6 * 2 * 100),  # four in each of five rows
        (PACKED | {"sample_packing_bin_size": 2}, [("train", 20, 500)], 15, 15 * 2 * 100),
        (PACKED | {"gradient_accumulation_steps": 2}, [("train", 10, 1000)], 6, 6 * 4 * 100),
        (PACKED | {"val_set_size": 0.1}, [("train", 10, 1000)], 12, 12 * 2 * 100),  # nine rows
        (PACKED | {"val_set_size": 0.11}, [("train", 10, 1000)], 12, 12 * 2 * 100),  # eight
        (PACKED | {"val_set_size": 0.2}, [("train", 10, 1000), ("val", 9, 5000)], 15, 15 * 2 * 100),
        (PACKED | {"max_steps": 7}, [("train", 10, 1000)], 7, 7 * 2 * 100),
        (PACKED | {"max_steps": 70}, [("train", 10, 1000)], 70, 70 * 2 * 100),  # more than its epochs
        (PACKED | {"num_epochs": 0.5}, [("train", 10, 1000)], 2, 2 * 2 * 100),
        (PACKED | {"num_epochs": 1}, [("train", 2000, 20_000)], 100, 100 * 2 * 100),
        (PACKED | {"num_epochs": 1, "sample_packing_bin_size": 40}, [("train", 2000, 2000)], 25, 25 * 2 * 100),
        (LOOSE, [("train", 8, 160)], 2, 2 * 4 * 20),
        (LOOSE, [("train", 9, 180)], 3, 3 * 4 * 20),
        (LOOSE, [("train", 4, 80), ("train", 4, 240)], 2, 2 * 4 * 40),
        (LOOSE, [("train", 8, 8000), ("val", 8, 1)], 2, 2 * 4 * 100),
        (LOOSE | {"val_set_size": 0.5}, [("train", 8, 160)], 1, 4 * 20),
    ],
)
def test_steps_and_tokens_of_a_run(keys, sets, count, work):
    assert steps.estimate_steps(keys, rows(*sets)) == count
    assert steps.estimate_work(keys, rows(*sets)) == work


def test_of_many_conversations_as_many_rows_are_counted_as_of_few():
    """2,500 tokens of 4,096: one in a row, whatever their sum is."""
    for count in (1000, 1001, 5000):
        keys = {"sequence_len": 4096, "sample_packing": True, "micro_batch_size": 1}
        assert steps.estimate_rows(keys, rows(("train", count, 2500 * count))) == count


@pytest.mark.parametrize(("strategy", "steps"), [("drop", 1), ("truncate", 24), (None, 1)])
def test_conversations_that_axolotl_drops_take_no_steps(make, data, strategy, steps):
    path = data(count=200, size=20_000)
    short = json.dumps({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}) + "\n"
    path.write_text("".join([*path.read_text().splitlines(True)[:192], short]))
    made = make(recipe={"excess_length_strategy": strategy, "val_set_size": 0, "num_epochs": 1, "max_steps": None})
    run = one(made)
    assert run.estimate.steps == steps
    assert run.recipe["sample_packing"] == (strategy == "truncate")
    assert (run.estimate.work < 100) == (strategy != "truncate")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"val_set_size": 0.95}, "crew: nothing is left to train on"),
        ({"num_epochs": 0.001}, "crew: num_epochs 0.001 of this data is no step at all; raise it"),
    ],
)
def test_what_takes_no_step_is_refused(keys, words):
    with pytest.raises(UserError, match=re.escape(words)):
        suited(keys, ("train", 10, 1000))


def test_what_is_said_of_several_agents_in_the_same_words_is_said_once():
    said = ["crew: warmup", "mayor: warmup", "crew: warmup", "note: warmup", "mayor: other", "plain", "plain"]
    assert plan.merge_warnings(said, ("crew", "mayor")) == [
        "crew, mayor: warmup", "note: warmup", "mayor: other", "plain",
    ]  # fmt: skip


def test_of_hundreds_of_agents_the_first_ones_are_named():
    names = [f"a{number:03}" for number in range(600)]
    [said] = plan.merge_warnings([f"{name}: warmup" for name in names], names)
    assert said == f"{', '.join(names[:10])} and 590 more: warmup"


def test_of_machine_classes_that_nobody_takes_nothing_is_said(make, data):
    data()
    box = Trainer("pod", datasets_dir=str(data.folder), rented=True)
    made = make(trainers=[box], recipe={"chunked_cross_entropy": True})
    assert one(made).estimate.memory_classes
    assert not [line for line in made.warnings if "takes the place" in line]


def test_memory_is_that_of_one_process_of_several(make, data):
    data()
    alone = one(make(trainers=[Trainer("box", datasets_dir=str(data.folder))]))
    gang = one(make(trainers=[Trainer("box", datasets_dir=str(data.folder), gpus=8)]))
    assert gang.recipe["micro_batch_size"] == 1
    single = one(make(recipe={"micro_batch_size": 1, "gradient_accumulation_steps": 8}))
    assert gang.estimate.memory_gib == single.estimate.memory_gib < alone.estimate.memory_gib


# --- what suits, closer


def suited(changes: dict[str, Any], *sets: tuple[str, int, int]) -> tuple[dict[str, Any], list[str]]:
    """Adapt a recipe of 100-token rows, eight to a step, to data; return it and what is told."""
    planner = plan.Planner(ROOT, ROOT, {})
    keys = {"sequence_len": 100, "micro_batch_size": 8, "sample_packing": True, "num_epochs": 1, **changes}
    planner.adapt_to_dataset("crew", keys, rows(*sets))
    return keys, planner.warnings


FORTY = ("train", 320, 32_000)  # steps


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"warmup_steps": 19}, None),
        ({"warmup_steps": 20}, {"warmup_steps": 4}),
        ({"warmup_steps": 1, "max_steps": 1}, None),
        ({"warmup_steps": 2, "max_steps": 3}, {"warmup_steps": 1}),
        ({"eval_steps": 40}, None),
        ({"eval_steps": 41}, {"eval_steps": 10}),
        ({"eval_steps": 4, "max_steps": 3}, {"eval_steps": 1}),
        ({"eval_steps": 0.5}, None),
        ({"eval_steps": 1, "max_steps": 1}, None),
        ({"warmup_steps": 30, "eval_steps": 90}, {"warmup_steps": 4, "eval_steps": 10}),
        ({}, None),
    ],
)
def test_a_schedule_that_does_not_suit_is_told_with_one_that_does(changes, told):
    _, warnings = suited(changes, FORTY, ("val", 9, 5000))
    if told is None:
        assert warnings == []
        return
    steps = changes.get("max_steps", 40)
    notes = []
    if "warmup_steps" in told:
        notes.append(f"warmup takes {changes['warmup_steps']} of about {steps} steps")
    if "eval_steps" in told:
        evaluation = changes["eval_steps"]
        notes.append(f"no evaluation before the end falls within about {steps} steps (eval_steps {evaluation})")
    better = json.dumps({"recipe": told})
    assert warnings == [f"crew: {'; '.join(notes)}. Values that suit this data: -e '{better}'"]


@pytest.mark.parametrize(
    ("changes", "sets", "size", "packing"),
    [
        ({"val_set_size": 0.05}, [FORTY], 0.05, True),  # 1,600 of 32,000 tokens are held out: two steps' rows
        ({"val_set_size": 0.0499}, [FORTY], 0.0499, False),
        ({"val_set_size": 0.05}, [FORTY, ("val", 9, 1600)], 0, True),
        ({"val_set_size": 0.05}, [FORTY, ("val", 9, 1599)], 0, False),
        ({"val_set_size": 0.05}, [FORTY, ("val", 9, 800), ("val", 9, 800)], 0, True),
        ({"val_set_size": 0}, [FORTY], 0, False),
        ({}, [FORTY], None, False),
        ({"val_set_size": 0.05, "eval_sample_packing": True, "sample_packing": False}, [("train", 9, 90)], 0.05, False),
        ({"val_set_size": 0.05, "eval_sample_packing": False}, [FORTY], 0.05, False),
        ({"val_set_size": 0.05, "sample_packing": False}, [("train", 9, 90)], 0.05, None),
    ],
)
def test_evaluations_are_packed_where_there_is_enough_to_pack(changes, sets, size, packing):
    keys, warnings = suited(changes, *sets)
    assert keys.get("val_set_size") == size
    assert keys.get("eval_sample_packing", True if keys["sample_packing"] else None) == packing
    assert warnings == []


@pytest.mark.parametrize(
    ("changes", "sets", "rows", "steps"),
    [
        ({"num_epochs": 3}, [("train", 91, 637)], 7, 35),  # ceil(3 × 91 / 8)
        ({"num_epochs": 3, "val_set_size": 0.05}, [("train", 30, 600)], 6, 11),  # 28 conversations
        ({}, [("train", 7, 700)], 7, 1),
        ({"val_set_size": 0.05}, [("train", 1, 10)], 1, 1),
        ({"sample_packing": True, "eval_sample_packing": True}, [("train", 8, 799), ("val", 8, 1600)], 8, None),
        ({"sample_packing_bin_size": 1}, [("train", 8, 10)], 8, None),
        ({"sample_packing": False}, [("train", 7, 700)], 7, None),
    ],
)
def test_data_that_fills_no_step_is_not_packed(changes, sets, rows, steps):
    keys, warnings = suited(changes, *sets)
    single = "crew: a single conversation cannot be split, so there is no evaluation"
    assert (single in warnings) == (sets[0][1] == 1)
    packing = [line for line in warnings if line != single]
    if steps is None:
        assert packing == []
        assert keys["sample_packing"] == changes.get("sample_packing", True)
        return
    assert (keys["sample_packing"], keys["eval_sample_packing"]) == (False, False)
    assert packing == [
        f"crew: packed into rows of 100 tokens this data makes about {rows}, and a step takes 8, so that little of it "
        f"would be learnt, or nothing. It is trained without packing, in about {steps} steps. More conversations are "
        "packed again"
    ]


# --- the whole, closer


def test_a_trainer_needs_a_lane_and_a_root(make, data):
    data()
    boxes = trainers(data, "a", "b")
    for changes, words in (
        ({"lanes": 0}, "b has no lane: it has fewer GPUs than run_gpus asks for"),
        ({"root": "here"}, "trainer_root of b is «here»; it must be an absolute path on that host"),
    ):
        bad = [boxes[0], dataclasses.replace(boxes[1], **changes)]
        assert said(make, "witness", bad) == words


def test_all_is_told_once_and_in_order(make, data):
    data("crew"), data("mayor")
    result = make(["mayor", "crew"], trainers(data, "a", "b"))
    assert [run.agent for run in result.runs] == ["mayor", "crew"]
    assert len(result.warnings) == len(set(result.warnings))


def test_a_run_goes_to_the_machine_of_the_trainer_it_is_placed_on(make, data):
    data("crew"), data("mayor")
    small = Trainer("small", machine="gpu-24gb", datasets_dir=str(data.folder))
    big = Trainer("big", datasets_dir=str(data.folder))
    runs_ = {run.trainer: run.recipe for run in make("crew,mayor", [big, small]).runs}
    planner = plan.Planner(ROOT, data.folder, {})
    for name, machine in (("big", ""), ("small", "gpu-24gb")):
        merged = planner.merged_recipe("crew", "", machine)
        changed = {key for key in merged if key in plan.recipe.MACHINE_KEYS}
        assert {key: runs_[name].get(key) for key in changed - {"eval_sample_packing"}} == {
            key: merged[key] for key in changed - {"eval_sample_packing"}
        }
    assert runs_["big"] != runs_["small"]


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


def test_where_no_way_has_the_data_the_first_one_is_told(make, data):
    boxes = [Trainer(name, datasets_dir=str(data.folder / name)) for name in ("x", "y")]
    assert said(make, "witness", boxes).startswith(f"no dataset for witness: {data.folder / 'x'}/witness_train.jsonl")


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


def test_giving_all_up_leaves_nobody(make, data, run_id):
    assert said(lambda: make(trainers=trainers(data, "a", "b"), move="b,a")) == (
        "-e move=b,a leaves no host to train on; add one to the inventory"
    )
    assert said(lambda: make(trainers=[])) == (
        "the inventory holds no host to train on. See inventory/local.yml for the smallest one"
    )


# --- as a table


@pytest.mark.parametrize(
    ("values", "cells"),
    [
        ({}, ("crew", "crew-1", "gpu-1", "0", "0", "0", "?", "to train")),
        ({"estimate": Estimate(tokens=999, steps=3, memory_gib=24.4)},
         ("crew", "crew-1", "gpu-1", "0", "999", "3", "24.4 GiB", "to train")),
        ({"estimate": Estimate(tokens=1000)}, ("crew", "crew-1", "gpu-1", "0", "1 k", "0", "?", "to train")),
        ({"estimate": Estimate(tokens=49_501)}, ("crew", "crew-1", "gpu-1", "0", "50 k", "0", "?", "to train")),
        ({"state": "to resume", "why": "failed before"},
         ("crew", "crew-1", "gpu-1", "0", "0", "0", "?", "to resume (failed before)")),
        ({"rehearsal": True, "why": "moved from b"},
         ("crew", "crew-1", "gpu-1", "0", "0", "0", "–", "to train (moved from b) (rehearsal: tiny qwen3, CPU)")),
        ({"name": "crew lora_r 8", "state": "ready",
          "datasets": [PlannedDataset("a", "train", "", 3), PlannedDataset("b", "train", "", 4),
                       PlannedDataset("c", "val", "", 50)]},
         ("crew lora_r 8", "crew-1", "gpu-1", "7", "0", "0", "?", "ready")),
    ],
)  # fmt: skip
def test_a_run_as_people_read_it(values, cells):
    row = plan.table_row(planned_run(**{"name": "crew", "run_id": "crew-1", "trainer": "gpu-1", **values}))
    assert row == cells
    assert len(row) == len(plan.COLUMNS)


# --- its three steps


def test_who_is_given_up_gets_nothing_but_still_says_whom_the_inventory_trains(tmp_path):
    first, second, alone = (Trainer(name, hosts=hosts, members=members) for name, hosts, members in
                            (("a", 2, ("a", "b")), ("b", 2, ("a", "b")), ("c", 1, ())))  # fmt: skip
    checked = plan.check_trainers([first, second, alone], Agents(ROOT), "b", tmp_path)
    assert (checked.leaders, checked.remaining) == ([first, alone], [alone])
    assert [checked.move.lets_go(name) for name in "abc"] == [True, True, False]


def test_only_a_run_with_a_history_is_bound_to_trainers_that_would_train_the_same(data, note, tmp_path, run_id):
    laptop, real = mixed(data)
    hosts_ = plan.check_trainers(
        [laptop, real, dataclasses.replace(real, name="spare")], Agents(ROOT), False, tmp_path / "output"
    )
    planner = plan.Planner(ROOT, tmp_path / "output", {})
    [draft] = plan.draft_runs(planner, ["witness"], [{}], hosts_).values()
    assert (draft.run.trainer, draft.only) == ("laptop", None)
    note(run_id, "spare", final=False, lane=2)
    planner = plan.Planner(ROOT, tmp_path / "output", {})
    [draft] = plan.draft_runs(planner, ["witness"], [{}], hosts_).values()
    assert (draft.run.trainer, draft.run.lane, draft.only) == ("spare", 2, {"real", "spare"})


def test_what_goes_to_another_trainer_than_its_draft_is_planned_for_it(data, tmp_path):
    data("crew"), data("mayor")
    boxes = [Trainer("a", datasets_dir=str(data.folder)), Trainer("b", datasets_dir=str(data.folder), gpus=2)]
    hosts_ = plan.check_trainers(boxes, Agents(ROOT), False, tmp_path / "output")
    planner = plan.Planner(ROOT, tmp_path / "output", {})
    drafts = plan.draft_runs(planner, ["crew", "mayor"], [{}], hosts_)
    assert [(draft.run.trainer, draft.run.gpus) for draft in drafts.values()] == [("a", 1), ("a", 1)]
    crew, mayor = plan.place_runs(planner, drafts, hosts_)
    assert crew == drafts["crew", 0].run
    assert (mayor.trainer, mayor.hosts, mayor.gpus) == ("b", ("b",), 2)
    assert plan.recipe.effective_batch(mayor.recipe) * 2 == plan.recipe.effective_batch(crew.recipe)


def test_a_plan_is_written_as_it_is_read(make, data):
    data()
    run = one(make())
    assert PlannedRun.from_dict(json.loads(json.dumps(run.as_dict()))) == run


# --- a new version of Axolotl


@pytest.fixture
def updated(make, data, deliver, monkeypatch, tmp_path):
    """Deliver an adapter of Axolotl 0.19 where the locks pin the version of today; return its run_id."""
    data()
    pinned = recipe.pinned_version
    with monkeypatch.context() as then:
        then.setattr(recipe, "pinned_version", lambda lock, name: "0.19.0" if name == "axolotl" else pinned(lock, name))
        run = one(make())
    folder = deliver(run.run_id)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"run_id": run.run_id, "fingerprint": run.fingerprint, "versions": {"axolotl": "0.19.0"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder.parent / "latest").symlink_to(run.run_id)
    return run.run_id


def test_the_plan_tells_what_is_trained_anew_because_of_axolotl(make, updated):
    made = make()
    assert one(made).state == "to train"
    assert one(made).run_id != updated
    assert one(made).axolotl == recipe.pinned_version(ROOT / "requirements/trainer-cuda.txt", "axolotl")
    [said] = [line for line in made.warnings if "Axolotl" in line]
    assert said.startswith(f"witness has {updated}, of Axolotl 0.19.0; the locks pin {one(made).axolotl} now.")
    assert said.endswith("-e keep_axolotl=0.19 keeps what there is")


def test_an_adapter_of_an_older_axolotl_is_kept_when_asked(make, updated):
    for keep in ("0.19", "0.19.0"):
        made = make(keep=keep)
        assert (one(made).run_id, one(made).state, one(made).axolotl) == (updated, "ready", "0.19.0")
        assert not [line for line in made.warnings if "Axolotl" in line]


def test_it_need_not_be_what_latest_points_to(make, updated, tmp_path):
    (tmp_path / "output/adapters/witness/latest").unlink()
    assert one(make(keep="0.19")).run_id == updated
    assert [line for line in make().warnings if line.startswith(f"witness has {updated}, of Axolotl 0.19.0")]


def test_a_variant_is_kept_too(make, data, deliver, monkeypatch, tmp_path):
    data()
    variants = [{}, {"lora_alpha": 48}]
    pinned = recipe.pinned_version
    with monkeypatch.context() as then:
        then.setattr(recipe, "pinned_version", lambda lock, name: "0.19.0" if name == "axolotl" else pinned(lock, name))
        runs = make(variants=variants).runs
    for run in runs:
        folder = deliver(run.run_id)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest |= {"run_id": run.run_id, "fingerprint": run.fingerprint, "versions": {"axolotl": "0.19.0"}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    kept = make(variants=variants, keep="0.19").runs
    assert [(run.run_id, run.state) for run in kept] == [(run.run_id, "ready") for run in runs]


@pytest.mark.parametrize("keep", ["0", "newest", "0.19beta", "v0.19"])
def test_what_is_no_version_is_refused(make, data, keep):
    data()
    assert said(lambda: make(keep=keep)) == f"keep_axolotl is «{keep}»; it is a version of Axolotl, such as 0.19"


def test_another_version_than_that_of_what_there_is_is_refused(make, updated):
    """Somebody who wants to keep what there is does not want to pay for another one because of a slip."""
    assert said(lambda: make(keep="0.18")) == (
        f"keep_axolotl is 0.18, but witness has {updated}, of Axolotl 0.19.0; -e keep_axolotl=0.19 keeps that"
    )


def test_what_is_at_work_already_is_not_dropped_for_what_is_kept(make, updated, tmp_path):
    run = one(make())
    (tmp_path / "output/runs").mkdir(exist_ok=True)
    (tmp_path / f"output/runs/{run.run_id}.json").write_text(json.dumps({"trainer": run.trainer}))
    assert (one(make(keep="0.19")).run_id, one(make(keep="0.19")).state) == (run.run_id, "to attach")


@pytest.mark.parametrize("change", ["recipe", "data", "files", "fresh"])
def test_nothing_else_is_kept(make, data, updated, tmp_path, change):
    if change == "data":
        data(count=11)
    if change == "files":
        (tmp_path / "output/adapters/witness" / updated / "weights").unlink()
    made = make(
        keep="0.19",
        recipe={"lora_alpha": 48} if change == "recipe" else {},
        fresh=change == "fresh",
    )
    assert one(made).state == "to train"
    assert one(made).run_id != updated
    assert not [line for line in made.warnings if "Axolotl" in line]


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"versions": 3}', '{"versions": {"axolotl": null}}'])
def test_a_manifest_that_says_nothing_of_axolotl_is_passed_over(make, updated, tmp_path, manifest):
    (tmp_path / "output/adapters/witness" / updated / "manifest.json").write_text(manifest)
    assert one(make(keep="0.19")).state == "to train"
