"""Trainers, gangs and lanes by themselves: no recipe, no data but empty files."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

import pytest
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planning import agents, fleet
from ansible.module_utils.lora_forge.planning.fleet import Trainer
from planned import said

KNOWN = agents.Agents(pathlib.Path(__file__).resolve().parents[2])
AGENTS = KNOWN.names


def default_agents(trainers: list[Trainer], warnings: list[str]) -> list[str]:
    return fleet.default_agents(trainers, KNOWN, warnings)


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
        ({"HTTPS_PROXY": "http://proxy:3128", "LD_LIBRARY_PATH": "/cuda/lib"}, ""),
        (["CC=gcc"], "a: run_environment must be a mapping, such as {NCCL_SOCKET_IFNAME: ib0}"),
        ({"A B": "1"}, "a: run_environment: «A B» is no name of a variable"),
        ({"HF_HOME": "/mine"}, "a: run_environment: HF_HOME is set by lora-forge itself"),
        ({"PYTHONPATH": "/mine"}, "a: run_environment: PYTHONPATH is set by lora-forge itself"),
        (
            {"HF_TOKEN": "x"},
            "a: run_environment: HF_TOKEN looks like a secret, which others could read there",
        ),
        (
            {"HTTPS_PROXY": "http://ann:geheim@proxy:3128"},
            "a: run_environment: HTTPS_PROXY looks like a secret, which others could read there",
        ),
        ({"HF_HUB_CACHE": "/mine"}, "a: run_environment: HF_HUB_CACHE is set by lora-forge itself"),
        ({"MASTER_ADDR": "10.0.0.1"}, "a: run_environment: MASTER_ADDR is set by lora-forge itself"),
        (
            {"ACCELERATE_MIXED_PRECISION": "fp16"},
            "a: run_environment: ACCELERATE_MIXED_PRECISION decides what is learnt; the recipe says that",
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


def test_who_is_given_up_gets_nothing_but_still_says_whom_the_inventory_trains(tmp_path):
    first, second, alone = (Trainer(name, hosts=hosts, members=members) for name, hosts, members in
                            (("a", 2, ("a", "b")), ("b", 2, ("a", "b")), ("c", 1, ())))  # fmt: skip
    checked = fleet.check_trainers([first, second, alone], KNOWN, "b", tmp_path)
    assert (checked.leaders, checked.remaining) == ([first, alone], [alone])
    assert [checked.move.lets_go(name) for name in "abc"] == [True, True, False]


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


def test_a_tilde_is_the_home_of_whoever_plans(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    own, other = fleet.trainers_of(["a", "b"], {"a": {"datasets_dir": "~/data"}, "b": {"datasets_dir": "/d/~x"}}, {})
    assert (own.datasets_dir, other.datasets_dir) == ("/home/me/data", "/d/~x")
    assert fleet.trainers_of(["a"], {}, {}, "~/data")[0].datasets_dir == "/home/me/data"
    with pytest.raises(UserError, match=r"^datasets_dir of a is «\['x'\]»; it must be the path of a folder$"):
        fleet.trainers_of(["a"], {"a": {"datasets_dir": ["x"]}}, {})
