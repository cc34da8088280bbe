"""Trainers, gangs and lanes by themselves: no recipe, no data but empty files."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

import pytest
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import Estimate, PlannedRun
from ansible.module_utils.lora_forge.planning import agents, fleet
from ansible.module_utils.lora_forge.planning.fleet import Lane, Trainer
from planned import planned_run

KNOWN = agents.Agents(pathlib.Path(__file__).resolve().parents[2])
AGENTS = KNOWN.names


def default_agents(trainers: list[Trainer], warnings: list[str]) -> list[str]:
    return fleet.default_agents(trainers, KNOWN, warnings)


def said(call: Any, *given: Any) -> str:
    """Return the words of an error."""
    with pytest.raises(UserError) as error:
        call(*given)
    return str(error.value)


# --- names


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("a, b ,a", ["a", "b", "a"]),
        (["a,b", " c "], ["a,b", "c"]),
        ([1, None], ["1", "None"]),
        (None, []),
        ("", []),
        (0, []),
        (7, ["7"]),
    ],
)
def test_names_of_an_option(wanted, names):
    assert agents.split_names(wanted) == names


def test_the_agents_of_a_trainer_are_known_ones():
    box = Trainer("a", agents=("crew", "crew", "mayor"), lanes=3)
    assert fleet.check_agents(box, KNOWN) == dataclasses.replace(box, agents=("crew", "mayor"))
    assert said(fleet.check_agents, Trainer("a", agents=("nobody",)), KNOWN).startswith(
        "agents of a: there is no agent «nobody»"
    )


# --- what inventories say


def declared(groups: dict[str, list[str]] | None = None, **variables: Any) -> Trainer:
    [trainer] = fleet.trainers_of(["a"], {"a": variables}, groups or {})
    return trainer


def test_a_host_of_which_nothing_is_said():
    assert declared() == Trainer("a")
    assert fleet.trainers_of(["a", "b"], {"b": {}}, {"all": ["a", "b"]}) == [Trainer("a"), Trainer("b")]


def test_all_that_can_be_said_of_a_host():
    assert declared(
        run_profile="other", trainer_machine="gpu-24gb", datasets_dir="d", eval_dir="~/e", agents="crew, mayor",
        trainer_root="/data", run_gpus="2", trainer_gpu_count=5, pod_gpus=["NVIDIA L40S", "NVIDIA H200"],
    ) == Trainer(
        "a", "other", "gpu-24gb", "d", os.path.expanduser("~/e"), ("crew", "mayor"), "/data", lanes=2, gpus=2,
        rented=True, gpu_names=("NVIDIA L40S", "NVIDIA H200"),
    )  # fmt: skip


def test_one_folder_of_datasets_for_all_hosts_goes_before_theirs():
    boxes = fleet.trainers_of(["a", "b"], {"a": {"datasets_dir": "mine"}}, {}, "d")
    assert [box.datasets_dir for box in boxes] == ["d", "d"]
    boxes = fleet.trainers_of(["a", "b"], {"a": {"eval_dir": "mine"}}, {}, None, "e")
    assert [box.eval_dir for box in boxes] == ["e", "e"]


def test_variables_that_are_there_and_empty_are_as_good_as_none():
    empty = dict.fromkeys(("agents", "datasets_dir", "eval_dir", "run_lanes", "run_profile", "trainer_machine"))
    assert declared(**empty) == Trainer("a")


def test_a_pod_may_name_one_gpu_or_none_and_is_rented():
    assert (declared(pod_gpus="NVIDIA L40S").gpu_names, declared(pod_gpus="NVIDIA L40S").rented) == (
        ("NVIDIA L40S",),
        True,
    )
    assert (declared(pod_gpus=[]).gpu_names, declared(pod_gpus=[]).rented) == ((), True)


@pytest.mark.parametrize(
    ("variables", "lanes"),
    [
        ({"trainer_gpu_count": 4}, 4),
        ({"pod_gpu_count": 4}, 4),
        ({"trainer_gpu_count": 2, "pod_gpu_count": 4}, 2),
        ({"trainer_gpu_count": 5, "run_gpus": 2}, 2),
        ({"trainer_gpu_count": 1, "run_gpus": 2}, 0),
        ({"trainer_gpu_count": 0}, 0),
        ({"run_lanes": ["GPU-1", "GPU-2", "GPU-3"], "trainer_gpu_count": 8}, 3),
        ({"run_lanes": "GPU-1, GPU-2,", "trainer_gpu_count": 8}, 2),
        ({"run_lanes": ["GPU-1,GPU-2", "GPU-3,GPU-4"], "run_gpus": 2}, 2),
        ({"run_profile": "rehearsal", "trainer_gpu_count": 8}, 1),
        ({"run_profile": "rehearsal", "run_lanes": ["cpu-0", "cpu-1"], "run_gpus": 2}, 2),
        ({"run_profile": "rehearsal", "run_gpus": 0}, 1),
    ],
)
def test_a_lane_is_as_many_gpus_as_a_run_takes(variables, lanes):
    assert declared(**variables).lanes == lanes


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"run_gpus": "two"}, "run_gpus of a is «two»; it must be a whole number, 1 or more"),
        ({"run_gpus": 0}, "run_gpus of a is «0»; it must be a whole number, 1 or more"),
        ({"run_hosts": None}, "run_hosts of a is «None»; it must be a whole number, 1 or more"),
        ({"trainer_gpu_count": "many"}, "trainer_gpu_count of a is «many»; it must be a whole number, 0 or more"),
        ({"pod_gpu_count": -1}, "pod_gpu_count of a is «-1»; it must be a whole number, 0 or more"),
    ],
)
def test_what_counts_nothing_is_refused_with_its_name(variables, words):
    assert said(fleet.trainers_of, ["a"], {"a": variables}, {}) == words


ASKED = {"partition": "gpu", "gres": "gpu:1", "time": "12:00:00"}


def test_a_login_node_has_as_many_lanes_as_jobs_may_run_at_once():
    assert declared(run_backend="slurm", run_slurm=ASKED).lanes == fleet.JOBS
    assert declared(run_backend="slurm", run_slurm=ASKED, run_slurm_jobs=3, trainer_gpu_count=8).lanes == 3
    assert declared(run_slurm=ASKED).lanes == 1  # of a host that takes no jobs


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"run_slurm": {**ASKED, "partion": "gpu"}}, "run_slurm has no «partion»; did you mean «partition»? It takes"),
        ({"run_slurm": {**ASKED, "gres": "gpu:2"}}, "run_slurm asks for 2 GPUs, and a run takes 1 (run_gpus)"),
        ({"run_slurm": {}}, "run_slurm asks for no GPU, and a run takes 1 (run_gpus): set gres to 'gpu:1'"),
        ({"run_slurm": [1]}, "run_slurm must be a mapping"),
        ({"run_slurm": ASKED, "run_lanes": ["GPU-0"]}, "run_lanes is not for run_backend slurm"),
        ({"run_slurm": ASKED, "pod_gpus": ["A100"]}, "pod_gpus is not for run_backend slurm"),
        (
            {"run_slurm": ASKED, "run_slurm_max_gpu_hours": 10},
            "a job may take 12 GPU hours (12 h on a GPU), and run_slurm_max_gpu_hours is 10",
        ),
        ({"run_slurm": ASKED, "run_slurm_max_gpu_hours": "10"}, "and run_slurm_max_gpu_hours is 10"),  # by -e
        ({"run_slurm": ASKED, "run_slurm_max_gpu_hours": "ten"}, "is «ten»; it must be a number, 0 for no cap"),
        ({"run_slurm": {**ASKED, "gres": "gpu:4"}, "run_gpus": 4, "run_slurm_max_gpu_hours": 47.5}, "48 GPU hours"),
        ({"run_slurm": {"gres": "gpu:1"}, "run_slurm_max_gpu_hours": 8}, "set one, such as time: '8:00:00'"),
        ({"run_slurm": {"gres": "gpu:1", "time": "UNLIMITED"}, "run_slurm_max_gpu_hours": 8}, "run_slurm says no time"),
        ({"run_slurm": ASKED, "run_slurm_jobs": 0}, "run_slurm_jobs of a is «0»; it must be a whole number, 1 or more"),
    ],
)
def test_what_slurm_cannot_be_told_is_refused_with_its_host(variables, words):
    said_of_it = said(fleet.trainers_of, ["a"], {"a": {"run_backend": "slurm", **variables}}, {})
    assert words in said_of_it
    assert said_of_it.startswith("a: ") or " of a " in said_of_it


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"CC": "/opt/gcc/bin/gcc", "OMP_NUM_THREADS": 4, "KEY_FILE": "x"}, ""),
        ({"CC": "{{ gcc }}"}, ""),
        (["CC=gcc"], "a: run_environment must be a mapping, such as {NCCL_SOCKET_IFNAME: ib0}"),
        ({"A B": "1"}, "a: run_environment: «A B» is no name of a variable"),
        ({"HF_HOME": "/mine"}, "a: run_environment: HF_HOME is set by lora-forge itself"),
        ({"PYTHONPATH": "/mine"}, "a: run_environment: PYTHONPATH is set by lora-forge itself"),
        (
            {"HF_TOKEN": "x"},
            "a: run_environment: HF_TOKEN looks like a secret, which others could read there",
        ),
        ({"X": True}, "a: run_environment: X must be a text of one line, or a number"),
        ({"X": "1\n2"}, "a: run_environment: X must be a text of one line, or a number"),
    ],
)
def test_a_trainings_environment_is_not_all_the_users_to_give(given, words):
    if words:
        assert said(fleet.trainers_of, ["a"], {"a": {"run_environment": given}}, {}) == words
    else:
        assert declared(run_environment=given).name == "a"


def test_a_run_over_nodes_of_a_cluster_needs_no_group_of_hosts():
    box = declared({"pair": ["a", "b"]}, run_backend="slurm", run_slurm=ASKED, run_hosts=2)
    assert (box.nodes, box.hosts, box.members, box.processes, box.gpu_hours) == (2, 1, (), 2, 24)
    assert fleet.check_gangs([box]) == [box]
    wrong = {"run_backend": "slurm", "run_slurm": {**ASKED, "gres": "gpu:4"}, "run_gpus": 4, "run_hosts": 2}
    words = said(fleet.trainers_of, ["a"], {"a": {**wrong, "run_slurm_max_gpu_hours": 95}}, {})
    assert words == "a: a job may take 96 GPU hours (12 h on 8 GPUs), and run_slurm_max_gpu_hours is 95"
    timeless = {**wrong, "run_slurm": {"gres": "gpu:4"}, "run_slurm_max_gpu_hours": 95}
    assert "set one, such as time: '11:00:00'" in said(fleet.trainers_of, ["a"], {"a": timeless}, {})
    assert declared(run_backend="slurm", run_slurm=ASKED, run_profile="rehearsal", run_hosts=0).nodes == 1


def test_what_is_within_the_cap_passes_and_is_known():
    box = declared(run_backend="slurm", run_slurm={**ASKED, "gres": "gpu:2"}, run_gpus=2, run_slurm_max_gpu_hours=24)
    assert (box.slurm, box.gpu_hours) == (True, 24)
    assert declared(run_backend="slurm", run_slurm=ASKED, run_profile="rehearsal", run_slurm_max_gpu_hours=1).slurm


@pytest.mark.parametrize(
    "asked",
    ["{{ of_this_cluster }}", {"gres": "{{ gpus_of_it }}", "partion": "x"}, {"gres": "gpu:1", "account": "{% raw %}"}],
)
def test_what_has_no_value_yet_is_left_to_the_host(asked):
    assert declared(run_backend="slurm", run_slurm=asked, run_slurm_max_gpu_hours=1).gpu_hours is None


def test_a_gang_is_the_group_that_holds_a_host_and_as_many_as_a_run_takes():
    groups = {"all": ["b", "a"], "ungrouped": ["b", "a"], "trainers": ["a", "b", "c"], "pair": ["b", "a"], "c": ["c"]}
    trainer = declared(groups, run_hosts=2)
    assert (trainer.hosts, trainer.members, trainer.groups) == (2, ("b", "a"), ("pair",))
    assert declared(groups, run_hosts=3).members == ("a", "b", "c")
    assert declared(groups, run_hosts=4).members == ()
    assert declared({"alone": ["a"]}).members == ()


def test_groups_of_the_same_hosts_are_one_gang_and_of_others_several():
    groups = {"pair": ["a", "b"], "rack": ["b", "a"], "room": ["a", "c"]}
    assert fleet.find_gang("a", 2, groups) == (("a", "b"), ("pair", "room"))
    assert fleet.find_gang("c", 2, groups) == (("a", "c"), ("room",))


# --- gangs


def gang(*names: str, **changes: Any) -> list[Trainer]:
    return [Trainer(name, hosts=2, members=("a", "b"), **changes) for name in names]


def test_the_first_host_of_a_gang_stands_for_it():
    alone = Trainer("c")
    assert fleet.check_gangs([alone, *gang("b", "a")]) == [alone, *gang("a")]
    assert fleet.check_gangs([alone]) == [alone]
    assert fleet.check_gangs([Trainer("c", members=("c",))]) == [Trainer("c", members=("c",))]


def test_a_host_of_two_groups_of_the_size_of_a_gang():
    assert said(fleet.check_gangs, gang("a", "b", groups=("x", "y"))) == (
        "a: run_hosts is 2, and the groups x, y each hold it and so many hosts; which one is its gang? Let one group "
        "alone have that size"
    )
    assert len(fleet.check_gangs(gang("a", "b", groups=("x",)))) == 1


@pytest.mark.parametrize("members", [(), ("a",), ("a", "b", "c")])
def test_a_gang_has_as_many_hosts_as_a_run_takes(members):
    boxes = [Trainer(name, hosts=2, members=members) for name in "abc"]
    assert said(fleet.check_gangs, boxes) == (
        "a: run_hosts is 2, and no group of the inventory holds it and 1 more; make one with the hosts that train "
        "together"
    )
    assert "it and 2 more;" in said(fleet.check_gangs, [Trainer("a", hosts=3, members=members[:2])])


def test_pods_make_no_gang():
    assert said(fleet.check_gangs, gang("a", "b", rented=True)) == (
        "a is a pod, and pods do not reach each other; run_hosts is for other hosts"
    )
    assert len(fleet.check_gangs([Trainer("a", rented=True)])) == 1


def test_a_host_of_a_gang_that_does_not_train():
    assert said(fleet.check_gangs, gang("a")) == "b is of a's gang, but no trainer; add it to the group trainers"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hosts": 1}, "run_hosts"),
        ({"gpus": 2}, "run_gpus"),
        ({"lanes": 2}, "number of lanes (run_lanes, trainer_gpu_count)"),
        ({"agents": ("crew",)}, "agents"),
        ({"profile": "rehearsal"}, "run_profile"),
        ({"machine": "gpu-24gb"}, "trainer_machine"),
        ({"datasets_dir": "x"}, "datasets_dir"),
        ({"gpus": 2, "machine": "gpu-24gb"}, "run_gpus, trainer_machine"),
    ],
)
def test_hosts_of_a_gang_differ_in_nothing_that_a_run_goes_by(changes, words):
    first, second = gang("a", "b")
    assert said(fleet.check_gangs, [first, dataclasses.replace(second, **changes)]) == (
        f"the hosts of a's gang (a, b) are not alike: b has another {words}; what a gang has in common is set as "
        "variables of its group"
    )
    assert len(fleet.check_gangs([first, dataclasses.replace(second, root="/elsewhere")])) == 1


# --- who is given up


@pytest.mark.parametrize("move", [True, "true", "True", " yes ", "1"])
def test_all_placements_are_let_go(tmp_path, move):
    parsed = fleet.parse_move(move, [Trainer("a")], tmp_path)
    assert (parsed.lets_go("a"), parsed.lets_go("z"), parsed.trainers) == (True, True, ())


@pytest.mark.parametrize("move", [False, None, "", "false", "No", "0"])
def test_no_placement_is_let_go(tmp_path, move):
    parsed = fleet.parse_move(move, [Trainer("a")], tmp_path)
    assert (parsed.lets_go("a"), parsed.trainers) == (False, ())


def test_the_named_ones_and_their_gangs_are_given_up(tmp_path):
    boxes = [*gang("a", "b"), Trainer("c"), Trainer("d")]
    parsed = fleet.parse_move("d,b", boxes, tmp_path)
    assert parsed.trainers == ("d", "b", "a")
    assert [parsed.lets_go(name) for name in "abcd"] == [True, True, False, True]
    assert fleet.parse_move(["c"], boxes, tmp_path).trainers == ("c",)


def test_a_trainer_that_only_placements_remember_may_be_given_up(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/x.json").write_text(json.dumps({"trainer": "pod-7"}))
    (tmp_path / "runs/y.json").write_text("{}")
    boxes = [Trainer("gpu-1"), Trainer("gpu-2")]
    assert fleet.parse_move("pod-7", boxes, tmp_path).trainers == ("pod-7",)
    assert said(fleet.parse_move, "pod-7,gpu1", boxes, tmp_path) == (
        "-e move=gpu1: there is no trainer «gpu1»; did you mean «gpu-1»? Trainers: gpu-1, gpu-2"
    )
    assert said(fleet.parse_move, "zzzz", boxes, tmp_path) == (
        "-e move=zzzz: there is no trainer «zzzz». Trainers: gpu-1, gpu-2"
    )


# --- who takes whom


def test_who_declares_an_agent_comes_before_who_takes_any():
    any_, crew, mayor = Trainer("a"), Trainer("b", agents=("crew",)), Trainer("c", agents=("mayor", "crew"))
    assert fleet.trainers_for([any_, crew, mayor], "crew") == [crew, mayor]
    assert fleet.trainers_for([any_, crew, mayor], "deacon") == [any_]
    assert fleet.trainers_for([crew], "deacon") == []


def test_trainers_whose_runs_would_be_the_same_stand_together():
    boxes = [Trainer("a", "rehearsal"), Trainer("b"), Trainer("c", "rehearsal", "m"), Trainer("d", datasets_dir="x")]
    assert [[box.name for box in way] for way in fleet.group_alike(boxes)] == [["a", "c"], ["b"], ["d"]]


@pytest.fixture
def files(tmp_path):
    """Make <agent>_train.jsonl; return a trainer whose data they are."""

    def maker(*agents: str, **changes: Any) -> Trainer:
        for agent in agents:
            (tmp_path / f"{agent}_train.jsonl").touch()
        return Trainer("rest", datasets_dir=str(tmp_path), **changes)

    return maker


def test_a_whole_inventory_trains_whom_it_declares_and_whoever_has_data(files, tmp_path):
    warnings: list[str] = []
    assert default_agents([Trainer("a", agents=("mayor", "crew"))], warnings) == ["crew", "mayor"]
    assert warnings == []
    boxes = [Trainer("a", agents=("mayor",)), files("crew", "witness")]
    assert default_agents(boxes, warnings) == ["crew", "gastown", "mayor", "witness"]
    path = f"{tmp_path}/deacon_train.jsonl"
    assert warnings == [f"left out: deacon, polecat, refinery; there is no such file as {path}"]


def test_the_shared_adapter_needs_the_data_of_another_agent(files):
    warnings: list[str] = []
    assert default_agents([files("gastown")], warnings) == ["gastown"]
    assert default_agents([files("gastown", "crew")], warnings) == ["crew", "gastown"]


def test_an_inventory_without_any_data_trains_all_so_that_each_is_told(files):
    warnings: list[str] = []
    assert default_agents([files()], warnings) == list(AGENTS)
    assert warnings == []
    assert default_agents([files(*AGENTS)], warnings) == list(AGENTS)
    assert warnings == []


# --- lanes


def test_the_heaviest_comes_first_onto_the_lane_with_the_least():
    weight = {("crew", 0): 5, ("mayor", 0): 3, ("deacon", 0): 3, ("polecat", 0): 1}
    boxes = [Trainer("a"), Trainer("b")]
    assert fleet.assign_lanes(boxes, weight, {}) == {
        ("crew", 0): Lane("a"),
        ("deacon", 0): Lane("b"),
        ("mayor", 0): Lane("b"),
        ("polecat", 0): Lane("a"),
    }


def test_variants_of_an_agent_are_jobs_of_their_own():
    weight = {("crew", 0): 2, ("crew", 1): 2, ("crew", 2): 2}
    placed = {("crew", 2): Lane("a", 0)}
    chosen = fleet.assign_lanes([Trainer("a", lanes=2), Trainer("b")], weight, placed)
    assert chosen == {("crew", 2): Lane("a", 0), ("crew", 0): Lane("b", 0), ("crew", 1): Lane("a", 1)}


def test_a_placed_run_stays_even_where_its_trainer_declares_others():
    boxes = [Trainer("a", agents=("mayor",)), Trainer("b")]
    assert fleet.assign_lanes(boxes, {("crew", 0): 1}, {("crew", 0): Lane("a", 0)}) == {("crew", 0): Lane("a", 0)}
    assert fleet.assign_lanes(boxes, {("crew", 0): 1}, {("crew", 0): Lane("gone", 0)}) == {("crew", 0): Lane("b", 0)}


def test_only_some_trainers_come_into_question():
    boxes = [Trainer("a"), Trainer("b"), Trainer("c")]
    assert fleet.assign_lanes(boxes, {("crew", 0): 1}, {}, {("crew", 0): {"c"}}) == {("crew", 0): Lane("c")}
    assert fleet.assign_lanes(boxes, {("crew", 0): 1}, {}, {("mayor", 0): {"c"}}) == {("crew", 0): Lane("a")}


def test_when_no_trainer_takes_an_agent():
    boxes = [Trainer("a", agents=("mayor",))]
    assert said(fleet.assign_lanes, boxes, {("crew", 0): 1}, {}) == (
        "no trainer takes crew: every one declares other agents; add it to one of them"
    )
    assert said(fleet.assign_lanes, boxes, {("crew", 0): 1}, {}, {}, ["b", "c"]) == (
        "no trainer takes crew: every one that is left without b, c declares other agents; add it to one of them; or "
        "name others with -e role=…"
    )


# --- in words


def planned(name: str, trainer: str, lane: int = 0, work: int = 1_000_000, **values: Any) -> PlannedRun:
    return planned_run(name=name, trainer=trainer, lane=lane, estimate=Estimate(work=work), **values)


def test_queues_name_lanes_where_a_trainer_has_several():
    runs = [
        planned("crew", "b", 1),
        planned("mayor", "b"),
        planned("deacon", "a"),
        planned("witness", "a", work=2_500_000),
        planned("gone", "c", state="ready"),
    ]
    assert fleet.describe_queues(runs) == [
        "a: deacon, witness, one after the other; about 3.5 M tokens to train on",
        "b lane 1: mayor; about 1.0 M tokens to train on",
        "b lane 2: crew; about 1.0 M tokens to train on",
    ]


def test_a_cluster_has_one_line_however_many_jobs_it_has():
    cluster = Trainer("cluster", lanes=3, slurm=True, gpu_hours=12.0)
    runs = [planned(f"v{number}", "cluster", number % 3) for number in range(10)]
    assert fleet.describe_queues(runs[:1], [cluster]) == [
        "cluster: v0 (a job for Slurm); about 1.0 M tokens to train on; 12 GPU hours at most, unless it is requeued"
    ]
    assert fleet.describe_queues([*runs, planned("crew", "a")], [Trainer("a"), cluster]) == [
        "a: crew; about 1.0 M tokens to train on",
        "cluster: v0, v1, v2, v3, v4, v5, v6, v7 and 2 more (10 jobs for Slurm to start as it has room, 3 at once at "
        "most); about 10 M tokens to train on; 12 GPU hours at most each, 120 in all, unless it is requeued",
    ]
    free = dataclasses.replace(cluster, gpu_hours=None)
    assert fleet.describe_queues(runs[:2], [free])[0].endswith(
        "no time in run_slurm: a job may take as long as its partition lets it"
    )
    pair = dataclasses.replace(cluster, nodes=2, gpu_hours=24.0)
    over_two = [dataclasses.replace(run, nodes=2) for run in runs]
    assert fleet.describe_queues(over_two[:1], [pair]) == [
        "cluster: v0 (a job of 2 nodes for Slurm); about 1.0 M tokens to train on; 24 GPU hours at most, unless it is "
        "requeued"
    ]
    [said] = fleet.describe_queues(over_two, [pair])
    assert "(10 jobs of 2 nodes for Slurm to start as it has room, 3 at once at most)" in said
    assert said.endswith("; 24 GPU hours at most each, 240 in all, unless it is requeued")
    asks = dataclasses.replace(runs[0], evaluates="v9")
    assert fleet.describe_queues([asks], [pair])[0].endswith("; 12 GPU hours at most, unless it is requeued")
    there = [dataclasses.replace(run, state="to attach") for run in runs]
    assert fleet.describe_queues(there[:1], [cluster]) == [
        "cluster: v0 (launched before); about 1.0 M tokens to train on"
    ]
    [said] = fleet.describe_queues([*there[:8], *runs[8:9]], [cluster])
    assert said.endswith(
        "(a job for Slurm; 8 launched before); about 9.0 M tokens to train on; 12 GPU hours at most, unless it is "
        "requeued"
    )
    [said] = fleet.describe_queues([*there[:7], *runs[7:]], [cluster])
    assert "(3 jobs for Slurm to start as it has room, 3 at once at most; 7 launched before)" in said
    assert said.endswith("; 12 GPU hours at most each, 36 in all, unless it is requeued")
    rehearsals = [dataclasses.replace(run, rehearsal=True) for run in runs[:2]]
    assert fleet.describe_queues(rehearsals, [free]) == [
        "cluster: v0, v1 (2 jobs for Slurm to start as it has room); about 2.0 M tokens to train on"
    ]


def test_one_run_makes_no_queue():
    assert fleet.describe_queues([]) == []
    assert fleet.describe_queues([planned("crew", "a"), planned("mayor", "b", state="ready")]) == []
    assert len(fleet.describe_queues([planned("crew", "a"), planned("mayor", "a")])) == 1


def test_hosts_that_ansible_does_not_get_to_are_named():
    runs = [planned("x", name) for name in "abcdef"] + [planned("y", "a"), planned("z", "g", state="ready")]
    assert fleet.fork_limit_warning(runs, 6) == []
    assert fleet.fork_limit_warning(runs, 5) == [
        "6 hosts have work, and Ansible works on 5 at once: nothing is launched on f before others are done. -f 6 "
        "works on all of them; -e detach=true launches and does not wait"
    ]
    assert "is launched on d, e, f before" in fleet.fork_limit_warning(runs, 3)[0]
    assert "is launched on b, c, d and 2 more before" in fleet.fork_limit_warning(runs, 1)[0]
    runs[0] = planned("x", "a", hosts=("a", "h"))
    assert fleet.fork_limit_warning(runs, 6)[0].startswith("7 hosts have work")


def test_a_job_goes_to_the_trainer_that_declares_its_agent():
    boxes = [Trainer("a"), Trainer("b", agents=("crew",))]
    assert fleet.assign_lanes(boxes, {("crew", 0): 1}, {}) == {("crew", 0): Lane("b")}


def test_a_run_keeps_its_very_lane_and_gets_another_one_there_where_that_is_gone():
    boxes = [Trainer("a"), Trainer("b", lanes=3)]
    weight = {("crew", 0): 5, ("mayor", 0): 1}
    held = {("crew", 0): Lane("b", 2), ("mayor", 0): Lane("b", 2)}
    assert fleet.assign_lanes(boxes, weight, held) == held
    lost = {("crew", 0): Lane("b", 2), ("mayor", 0): Lane("b", 7)}
    assert fleet.assign_lanes(boxes, weight, lost) == {("crew", 0): Lane("b", 2), ("mayor", 0): Lane("b", 0)}


def test_one_more_than_three_is_counted():
    runs = [planned("x", name) for name in "abcde"]
    assert "is launched on b, c, d and 1 more before" in fleet.fork_limit_warning(runs, 1)[0]


def test_a_tilde_is_the_home_of_whoever_plans(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    own, other = fleet.trainers_of(["a", "b"], {"a": {"datasets_dir": "~/data"}, "b": {"datasets_dir": "/d/~x"}}, {})
    assert (own.datasets_dir, other.datasets_dir) == ("/home/me/data", "/d/~x")
    assert fleet.trainers_of(["a"], {}, {}, "~/data")[0].datasets_dir == "/home/me/data"
    with pytest.raises(UserError, match=r"^datasets_dir of a is «\['x'\]»; it must be the path of a folder$"):
        fleet.trainers_of(["a"], {"a": {"datasets_dir": ["x"]}}, {})
