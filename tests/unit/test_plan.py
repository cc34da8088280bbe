"""The plan: which agents, which data, which attempt, on which trainer, with which warnings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re
from typing import Any

import pytest
from ansible.module_utils.lora_forge import fleet, plan
from ansible.module_utils.lora_forge.errors import ForgeError
from ansible.module_utils.lora_forge.fleet import Lane, Trainer
from ansible.module_utils.lora_forge.recipe import AGENTS

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = str(ROOT / "examples/datasets")
OTHERS = [agent for agent in AGENTS if agent != "gastown"]


@pytest.fixture
def data(tmp_path):
    """Writes <agent>_<use>.jsonl with as many conversations of so many characters; the folder is its attribute."""

    def writer(agent: str = "witness", use: str = "train", count: int = 4, size: int = 100) -> pathlib.Path:
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
    """Writes a placement."""

    def writer(run_id: str, trainer: str = "here", **values: Any) -> None:
        path = tmp_path / "output/runs" / f"{run_id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"trainer": trainer, **values}))

    return writer


@pytest.fixture
def deliver(tmp_path):
    """Puts a verified adapter there."""

    def writer(run_id: str) -> pathlib.Path:
        folder = tmp_path / "output/adapters/witness" / run_id
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"12345")
        row = {"path": "weights", "bytes": 5, "sha256": hashlib.sha256(b"12345").hexdigest()}
        (folder / "manifest.json").write_text(json.dumps({"verdict": "verified", "files": [row]}))
        return folder

    return writer


def one(result: dict[str, Any]) -> dict[str, Any]:
    [run] = result["runs"]
    return run


def told(run: dict[str, Any]) -> tuple[str, str, str, str]:
    return run["run_id"], run["state"], run["why"], run["trainer"]


# --- which agents


@pytest.mark.parametrize(
    ("wanted", "agents"),
    [("witness, mayor,witness", ["witness", "mayor"]), (["crew", "mayor"], ["crew", "mayor"]), ("all", list(AGENTS))],
)
def test_select_agents(wanted, agents):
    assert fleet.select_agents(wanted) == agents


@pytest.mark.parametrize("wanted", ["", None, [], " , ", [""]])
def test_nothing_named(wanted):
    assert fleet.select_agents(wanted) == []


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("witnes", "there is no agent «witnes»; did you mean «witness»? Agents: crew, deacon,"),
        ("crew,Polecat", "there is no agent «Polecat»; did you mean «polecat»? Agents:"),
        ("../../etc", "there is no agent «../../etc». Agents: crew, deacon,"),
    ],
)
def test_no_such_agent(wanted, said):
    with pytest.raises(ForgeError) as error:
        fleet.select_agents(wanted)
    assert str(error.value).startswith(said)


# --- which data


def test_missing_dataset_names_the_path(make, data):
    with pytest.raises(ForgeError) as error:
        make()
    path = data.folder / "witness_train.jsonl"
    assert str(error.value) == f"no dataset for witness: {path} does not exist. -e datasets_dir=… says where to look"


def test_no_trainers(make):
    with pytest.raises(ForgeError, match=r"holds no host to train on\. See inventory/local\.yml"):
        make(trainers=[])


def test_gastown_uses_all_six_files(make, data):
    for agent in OTHERS:
        data(agent)
    data("mayor", "val")
    result = make("gastown")
    names = [(pathlib.Path(item["path"]).name, item["use"]) for item in one(result)["datasets"]]
    assert names == [*((f"{agent}_train.jsonl", "train") for agent in OTHERS), ("mayor_val.jsonl", "val")]
    assert not any("trained without" in warning for warning in result["warnings"])


def test_a_val_file_is_the_evaluation_set(make, data):
    train = data(count=3)
    assert one(make())["recipe"]["val_set_size"] == 0.05
    val = data(use="val", count=2)
    run = one(make())
    files = [(item["path"], item["use"], item["examples"]) for item in run["datasets"]]
    assert files == [(str(train), "train", 3), (str(val), "val", 2)]
    assert run["recipe"]["val_set_size"] == 0


def test_a_single_conversation_has_no_evaluation(make, data):
    data(count=1)
    result = make()
    assert one(result)["recipe"]["val_set_size"] == 0
    assert "witness: a single conversation cannot be split, so there is no evaluation" in result["warnings"]


def test_the_same_data_gives_the_same_run_and_other_data_another(make, data):
    data()
    first = one(make())["run_id"]
    assert re.fullmatch(r"witness-[0-9a-f]{12}", first)
    assert one(make())["run_id"] == first
    assert one(make(trainers=[Trainer("x", machine="gpu-24gb", datasets_dir=str(data.folder))]))["run_id"] == first
    assert one(make(trainers=[Trainer("x", "rehearsal", datasets_dir=str(data.folder))]))["run_id"] != first
    data(count=5)
    assert one(make())["run_id"] != first


def test_unknown_profile_and_override_are_errors(make, data):
    data()
    with pytest.raises(ForgeError, match=r"run_profile is «rehersal», but configs/profiles holds: rehearsal"):
        make(trainers=[Trainer("here", "rehersal", datasets_dir=str(data.folder))])
    with pytest.raises(ForgeError, match=r"-e '.*': Axolotl knows no key «epochs»"):
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
        ("lora_target_modules", "all-linear", "«lora_target_modules» must be a list of names"),
    ],
)
def test_values_that_make_no_run(make, data, key, value, said):
    data()
    with pytest.raises(ForgeError, match=re.escape(said)):
        make(recipe={key: value})


@pytest.mark.parametrize(
    "key", ["gradient_accumulation_steps", "val_set_size", "max_steps", "warmup_steps", "datasets"]
)
def test_keys_that_may_be_removed(make, data, key):
    data()
    assert one(make(recipe={key: None}))["estimate"]["steps"] == 3


# --- which attempt


@pytest.fixture
def run_id(make, data):
    data()
    return one(make())["run_id"]


def test_never_trained(make, run_id):
    assert told(one(make())) == (run_id, "to train", "", "here")


def test_ready(make, deliver, run_id):
    deliver(run_id)
    assert told(one(make())) == told(one(make(verify=True))) == (run_id, "ready", "", "here")


def test_a_damaged_adapter_is_trained_again(make, deliver, run_id):
    folder = deliver(run_id)
    (folder / "weights").write_bytes(b"123")
    assert told(one(make())) == (run_id, "to train", f"{folder / 'weights'} has 3 bytes instead of 5", "here")


def test_verify_finds_changed_content(make, deliver, run_id):
    folder = deliver(run_id)
    (folder / "weights").write_bytes(b"54321")
    (folder / "manifest.json").touch()
    assert one(make())["state"] == "ready"
    assert one(make(verify=True))["why"] == f"{folder / 'weights'} has changed since it was verified"


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
    assert one(make(fresh=True))["run_id"] == f"{run_id}-11"


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
    with pytest.raises(ForgeError, match=rf"{run_id} was launched on pod-7, which this inventory does not hold.*move"):
        make()
    assert one(make(move=True))["trainer"] == "here"


def test_a_damaged_adapter_of_a_trainer_that_is_gone_is_trained_here(make, note, deliver, run_id):
    (deliver(run_id) / "weights").write_bytes(b"1")
    note(run_id, "pod-7", final=True, state="verified")
    assert told(one(make()))[1::2] == ("to train", "here")


def test_a_launched_run_stays_where_it_is(make, note, data, run_id):
    note(run_id, "b", final=False)
    assert told(one(make(trainers=trainers(data, "a", "b")))) == (run_id, "to attach", "placed on b", "b")
    assert one(make(trainers=trainers(data, "a", "b"), move=True))["trainer"] == "a"


@pytest.mark.parametrize("state", ["launched", "finished", "failed"])
def test_whoever_is_placed_elsewhere_is_asked_there_and_nowhere_else(make, note, data, run_id, state):
    note(run_id, "b", final=state != "launched", state=state, lane=1)
    here = [Trainer("a", datasets_dir=str(data.folder)), Trainer("b", datasets_dir=str(data.folder), gpus=2, lanes=2)]
    run = one(make(trainers=here))
    assert (run["trainer"], run["hosts"], run["gpus"], run["lane"]) == ("b", ["b"], 2, 1)


def test_a_declared_trainer_is_taken(make, data, run_id):
    assert one(make(trainers=trainers(data, "a", "b", b=("witness",))))["trainer"] == "b"
    with pytest.raises(ForgeError, match=r"no trainer takes witness: every one declares other agents"):
        make(trainers=trainers(data, "a", a=("crew",)))


def hosts(**lanes: int) -> list[Trainer]:
    return [Trainer(name, lanes=count) for name, count in lanes.items()]


def spread(weight: dict[str, int], boxes: list[Trainer], **placed: tuple[str, int]) -> dict[str, tuple[str, int]]:
    jobs = {(agent, 0): work for agent, work in weight.items()}
    chosen = fleet.place(boxes, jobs, {(agent, 0): Lane(*at) for agent, at in placed.items()})
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
    result = make("", both)
    assert [(run["agent"], run["trainer"]) for run in result["runs"]] == [
        ("crew", "a"),
        ("gastown", "a"),
        ("mayor", "b"),
    ]
    assert any(
        said.startswith("left out: deacon, polecat, refinery, witness; there is no") for said in result["warnings"]
    )
    declared = trainers(data, "a", "b", a=("crew",), b=("mayor",))
    assert [run["agent"] for run in make("", declared)["runs"]] == ["crew", "mayor"]
    with pytest.raises(ForgeError, match="no dataset for deacon"):
        make("", trainers(data, "a", "b", b=("deacon",)))


def test_a_whole_inventory_without_any_data(make, data):
    with pytest.raises(ForgeError, match=r"no dataset for crew: .* -e datasets_dir=… says where to look"):
        make("")


def test_the_runs_of_a_lost_trainer_move_and_no_others(make, note, data):
    data("crew"), data("mayor")
    three = trainers(data, "a", "b", "c")
    ids = {run["agent"]: run["run_id"] for run in make("crew,mayor", three)["runs"]}
    note(ids["crew"], "b", final=False, lane=0)
    note(ids["mayor"], "c", final=False, lane=0)
    moved = {run["agent"]: (run["trainer"], run["state"], run["why"]) for run in
             make("crew,mayor", three, move="b")["runs"]}  # fmt: skip
    assert moved == {"crew": ("a", "to train", "moved from b"), "mayor": ("c", "to attach", "placed on c")}
    with pytest.raises(ForgeError, match="-e move=a,b,c leaves no host to train on"):
        make("crew", three, move=["a", "b", "c"])


def test_a_trainer_with_fewer_gpus_than_a_run_takes(make, data, run_id):
    with pytest.raises(ForgeError, match="here has no lane: it has fewer GPUs than run_gpus asks for"):
        make(trainers=[Trainer("here", datasets_dir=str(data.folder), lanes=0)])


def test_a_sweep_is_a_run_for_each_variant(make, data):
    data()
    boxes = trainers(data, "a", "b")
    runs = make(trainers=boxes, variants=[{"lora_r": 8}, {"lora_r": 16}, {"lora_r": 32}])["runs"]
    assert [(run["recipe"]["lora_r"], run["variant"], run["trainer"]) for run in runs] == [
        (8, {"lora_r": 8}, "a"), (16, {"lora_r": 16}, "b"), (32, {"lora_r": 32}, "a"),
    ]  # fmt: skip
    assert len({run["run_id"] for run in runs}) == 3
    with pytest.raises(ForgeError, match=r"-e '.*sweep.*': Axolotl knows no key «lora_rank»"):
        make(variants=[{"lora_rank": 8}])
    with pytest.raises(ForgeError, match="variants 1 and 2 of the sweep are the same training"):
        make(variants=[{"logging_steps": 1}, {"logging_steps": 2}])


def test_gpus_share_a_run_and_it_stays_the_same_run(make, data):
    data(count=40, size=14000)
    [alone] = make()["runs"]
    [shared] = make(trainers=[Trainer("here", datasets_dir=str(data.folder), gpus=4)])["runs"]
    assert (shared["run_id"], shared["gpus"], shared["estimate"]) == (alone["run_id"], 4, alone["estimate"])
    assert (shared["recipe"]["micro_batch_size"], shared["recipe"]["gradient_accumulation_steps"]) == (2, 1)


def test_deepspeed_needs_its_package_and_its_file_is_read_here(make, data, tmp_path, monkeypatch):
    data()
    config = {"zero_optimization": {"stage": 3}}
    with pytest.raises(
        ForgeError, match=r"«deepspeed» needs a package that requirements/trainer-cuda.txt does not pin"
    ):
        make(recipe={"deepspeed": config})
    monkeypatch.setattr(plan.recipe, "pinned", lambda lock, package: "0.19.0")
    plain = one(make())["run_id"]
    assert one(make(recipe={"deepspeed": config}))["recipe"]["deepspeed"] == config
    path = tmp_path / "zero3.json"
    path.write_text(json.dumps(config))
    run = one(make(recipe={"deepspeed": str(path)}))
    assert (run["recipe"]["deepspeed"], run["run_id"]) == (config, plain)
    with pytest.raises(
        ForgeError, match=r"«deepspeed: no.json» must name a JSON file, from the checkout on: .*/no.json"
    ):
        make(recipe={"deepspeed": "no.json"})


def pair(data, *names: str, **changes: Any) -> list[Trainer]:
    common = {"datasets_dir": str(data.folder), "gpus": 2, "hosts": 2, "members": ("a", "b"), **changes}
    return [Trainer(name, **common) for name in names]


def test_of_a_gang_the_first_host_speaks_for_the_others(make, data, run_id):
    [run] = make(trainers=[*pair(data, "a", "b")])["runs"]
    assert (run["run_id"], run["trainer"], run["hosts"], run["gpus"]) == (run_id, "a", ["a", "b"], 2)
    assert (run["recipe"]["micro_batch_size"], run["recipe"]["gradient_accumulation_steps"]) == (2, 1)


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
    with pytest.raises(ForgeError, match=said):
        make(trainers=pair(data, *names, **changes))


@pytest.mark.parametrize(
    ("changes", "variable"),
    [({"lanes": 2}, "number of lanes"), ({"agents": ("crew",)}, "agents"), ({"profile": "rehearsal"}, "run_profile")],
)
def test_the_hosts_of_a_gang_are_alike(make, data, run_id, changes, variable):
    first, second = pair(data, "a", "b")
    with pytest.raises(ForgeError, match=rf"a's gang \(a, b\) are not alike: b has another {variable}"):
        make(trainers=[first, dataclasses.replace(second, **changes)])


def test_who_gives_up_a_host_of_a_gang_gives_up_the_gang(make, note, data, run_id):
    boxes = [*pair(data, "a", "b"), Trainer("c", datasets_dir=str(data.folder))]
    note(run_id, "a", final=False)
    assert told(one(make(trainers=boxes)))[1::2] == ("to attach", "a")
    assert told(one(make(trainers=boxes, move="b")))[1:] == ("to train", "moved from a", "c")


def test_a_run_that_is_alone_on_a_host_that_a_gang_has_now(make, note, data, run_id):
    note(run_id, "b", final=False)
    with pytest.raises(ForgeError, match=rf"{run_id} was launched on b alone, which now trains in a gang that a leads"):
        make(trainers=pair(data, "a", "b"))
    assert one(make(trainers=pair(data, "a", "b"), move=True))["hosts"] == ["a", "b"]


def test_a_trainer_that_is_given_up_must_be_one(make, note, data, run_id):
    with pytest.raises(ForgeError, match=r"there is no trainer «gpu1»; did you mean «gpu-1»\? Trainers: gpu-1"):
        make(trainers=trainers(data, "gpu-1", "gpu-2"), move="gpu1")
    note(run_id, "pod-7", final=False)
    assert told(one(make(move="pod-7"))) == (run_id, "to train", "moved from pod-7", "here")


def test_what_a_given_up_trainer_alone_declares_is_not_left_out(make, data):
    data("crew"), data("mayor")
    boxes = trainers(data, "a", "b", a=("crew",), b=("mayor",))
    with pytest.raises(ForgeError, match=r"no trainer takes mayor: every one that is left without b declares other"):
        make("", boxes, move="b")
    assert [run["agent"] for run in make("crew", boxes, move="b")["runs"]] == ["crew"]
    with_rest = [*boxes, *trainers(data, "c")]
    runs = make("crew,mayor", with_rest, move="b")["runs"]
    assert [(run["agent"], run["trainer"]) for run in runs] == [("crew", "a"), ("mayor", "c")]


def test_agents_of_a_trainer_are_checked(make, data):
    data()
    with pytest.raises(ForgeError, match=r"agents of a: there is no agent «witnes»; did you mean «witness»\?"):
        make(trainers=trainers(data, "a", a=("witnes",)))


def mixed(data) -> list[Trainer]:
    return [Trainer(name, profile, "", str(data.folder)) for name, profile in (("laptop", "rehearsal"), ("real", ""))]


def test_where_hosts_differ_what_was_begun_holds(make, note, deliver, data, run_id):
    laptop, real = mixed(data)
    rehearsal = one(make(trainers=[laptop]))["run_id"]
    assert told(one(make(trainers=[laptop, real]))) == (rehearsal, "to train", "", "laptop")
    note(run_id, "real", final=False)
    assert told(one(make(trainers=[laptop, real]))) == (run_id, "to attach", "launched before", "real")
    deliver(run_id)
    note(run_id, "real", final=True, state="finished")
    assert told(one(make(trainers=[laptop, real]))) == (run_id, "ready", "", "real")


def test_where_hosts_differ_a_real_run_comes_before_a_rehearsal(make, note, deliver, data, run_id):
    laptop, real = mixed(data)
    spare = dataclasses.replace(real, name="spare")
    deliver(one(make(trainers=[laptop]))["run_id"])
    assert one(make(trainers=[laptop, real]))["state"] == "ready"
    note(run_id, "real", final=False)
    assert told(one(make(trainers=[laptop, real])))[:2] == (run_id, "to attach")
    assert told(one(make(trainers=[laptop, real, spare], move="real")))[1:] == ("to train", "moved from real", "spare")


def test_a_host_without_the_data_is_of_no_account_as_long_as_nobody_trains_there(make, note, data, run_id):
    empty, real = Trainer("empty", datasets_dir=str(data.folder / "none")), mixed(data)[1]
    note(run_id, "real", final=False)
    assert told(one(make(trainers=[empty, real])))[1::2] == ("to attach", "real")


def test_more_hosts_than_ansible_looks_after(make, data):
    data("crew"), data("mayor"), data("witness")
    runs = make("crew,mayor,witness", trainers(data, "a", "b", "c"))["runs"]
    assert fleet.crowded(runs, 3) == []
    [said] = fleet.crowded(runs, 1)
    assert said.startswith("3 hosts have work, and Ansible looks after 1 at a time: nothing is launched on ")
    assert said.count("-f 3") == 1


def test_who_trains_where_in_words(make, data):
    data("crew", count=80, size=14000), data("mayor"), data("witness")
    assert fleet.queues(make("crew")["runs"]) == []
    boxes = [Trainer("a", datasets_dir=str(data.folder)), Trainer("b", datasets_dir=str(data.folder), lanes=2)]
    said = fleet.queues(make("crew,mayor,witness", boxes)["runs"])
    assert [line.partition(";")[0] for line in said] == ["a: crew", "b lane 1: mayor", "b lane 2: witness"]


def test_work_is_what_goes_through_the_model(make, data):
    data(count=40, size=14000)  # ten packed steps an epoch, three epochs
    run = one(make())
    assert run["estimate"]["work"] == run["estimate"]["steps"] * 8 * 4096


# --- what suits the data


def test_warnings_for_a_small_set_suggest_values_that_suit(make, data):
    data(count=160, size=14000)  # 160 × about 4,000 tokens of 4,096, 5 % held out: 19 packed steps an epoch
    [warning] = make()["warnings"]
    steps = one(make())["estimate"]["steps"]
    assert steps == 57
    assert warning.startswith(f"witness: warmup takes 50 of about {steps} steps. Values that suit this data: -e '")
    better = json.loads(re.search(r"-e '(.*)'$", warning).group(1))
    assert better == {"recipe": {"warmup_steps": 5}}
    assert make(**better)["warnings"] == []


def test_warning_for_eval_steps_beyond_the_end(make, data):
    data(count=40)
    [warning] = make(recipe={"warmup_steps": 0})["warnings"]
    assert "no evaluation before the end falls within about 3 steps (eval_steps 50)" in warning
    assert '{"recipe": {"eval_steps": 1}}' in warning


def test_eval_sample_packing_is_switched_off_for_a_small_evaluation_set(make, data):
    data(count=40)
    assert one(make())["recipe"]["eval_sample_packing"] is False
    data(use="val", count=40, size=14000)
    assert one(make())["recipe"]["eval_sample_packing"] is True


@pytest.mark.parametrize("agent", AGENTS)
def test_the_example_datasets_all_plan_as_a_rehearsal(make, agent):
    run = one(make(agent, [Trainer("localhost", "rehearsal", datasets_dir=EXAMPLES)]))
    assert (run["agent"], run["state"], run["rehearsal"]) == (agent, "to train", True)
    assert run["estimate"]["steps"] == 12
    assert run["recipe"]["base_model"] == "tiny-random-qwen3"
    assert sum(item["examples"] for item in run["datasets"]) >= 39


def test_a_root_that_is_not_absolute_is_refused(make, data):
    data()
    with pytest.raises(ForgeError, match=r"trainer_root of box is «~/lora-forge»; it must be an absolute path"):
        make(trainers=[Trainer("box", datasets_dir=str(data.folder), root="~/lora-forge")])


def test_a_delivered_run_is_told_where_it_was_trained(make, data, note, monkeypatch):
    data()
    boxes = [Trainer(name, datasets_dir=str(data.folder)) for name in ("one", "two")]
    run_id = make(trainers=boxes)["runs"][0]["run_id"]
    note(run_id, "two", state="finished", final=True)
    monkeypatch.setattr(plan.adapter, "missing", lambda folder, verify=False: None)
    (made,) = make(trainers=boxes)["runs"]
    assert (made["state"], made["trainer"]) == ("ready", "two")
    (made,) = make(trainers=boxes[:1])["runs"]
    assert (made["state"], made["trainer"]) == ("ready", "one")


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
    with pytest.raises(ForgeError, match=words):
        make(recipe=recipe)


def test_a_folder_and_another_commit_are_fine(make, data):
    data()
    assert "model_revision" not in make(recipe={"base_model": "/models/mine"})["runs"][0]["recipe"]
    assert make(recipe={"model_revision": "abc"})["runs"][0]["recipe"]["model_revision"] == "abc"
    own = {"base_model": "Acme/Tiny", "model_revision": "abc"}
    assert make(recipe=own)["runs"][0]["recipe"]["base_model"] == "Acme/Tiny"
