"""What people read of a plan: its table, who trains where, and hosts that have to wait."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from ansible.module_utils.lora_forge.planned_run import Estimate, PlannedDataset, PlannedRun
from ansible.module_utils.lora_forge.planning import plan_table
from ansible.module_utils.lora_forge.planning.fleet import Trainer
from planned import planned_run

# --- the table


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
        ({"state": "to attach", "why": "launched with another recipe", "by_notes": True},
         ("crew", "crew-1", "gpu-1", "–", "–", "–", "–", "to attach (launched with another recipe)")),
        ({"state": "to attach", "why": "launched with another recipe", "by_notes": True, "recipe": {"lora_r": 8}},
         ("crew", "crew-1", "gpu-1", "0", "0", "0", "?", "to attach (launched with another recipe)")),
    ],
)  # fmt: skip
def test_a_run_as_people_read_it(values, cells):
    row = plan_table.table_row(planned_run(**{"name": "crew", "run_id": "crew-1", "trainer": "gpu-1", **values}))
    assert row == cells
    assert len(row) == len(plan_table.COLUMNS)


# --- who trains where


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
    assert plan_table.describe_queues(runs) == [
        "a: deacon, witness, one after the other; about 3.5 M tokens to train on",
        "b lane 1: mayor; about 1.0 M tokens to train on",
        "b lane 2: crew; about 1.0 M tokens to train on",
    ]


def test_a_cluster_has_one_line_however_many_jobs_it_has():
    cluster = Trainer("cluster", lanes=3, slurm=True, gpu_hours=12.0)
    runs = [planned(f"v{number}", "cluster", number % 3) for number in range(10)]
    assert plan_table.describe_queues(runs[:1], [cluster]) == [
        "cluster: v0 (a job for Slurm); about 1.0 M tokens to train on; 12 GPU hours at most, unless it is requeued"
    ]
    assert plan_table.describe_queues([*runs, planned("crew", "a")], [Trainer("a"), cluster]) == [
        "a: crew; about 1.0 M tokens to train on",
        "cluster: v0, v1, v2, v3, v4, v5, v6, v7 and 2 more (10 jobs for Slurm to start as it has room, 3 at once at "
        "most); about 10 M tokens to train on; 12 GPU hours at most each, 120 in all, unless it is requeued",
    ]
    free = dataclasses.replace(cluster, gpu_hours=None)
    assert plan_table.describe_queues(runs[:2], [free])[0].endswith(
        "no time in run_slurm: a job may take as long as its partition lets it"
    )
    pair = dataclasses.replace(cluster, nodes=2, gpu_hours=24.0)
    over_two = [dataclasses.replace(run, nodes=2) for run in runs]
    assert plan_table.describe_queues(over_two[:1], [pair]) == [
        "cluster: v0 (a job of 2 nodes for Slurm); about 1.0 M tokens to train on; 24 GPU hours at most, unless it is "
        "requeued"
    ]
    [said] = plan_table.describe_queues(over_two, [pair])
    assert "(10 jobs of 2 nodes for Slurm to start as it has room, 3 at once at most)" in said
    assert said.endswith("; 24 GPU hours at most each, 240 in all, unless it is requeued")
    asks = dataclasses.replace(runs[0], evaluates="v9")
    assert plan_table.describe_queues([asks], [pair])[0].endswith("; 12 GPU hours at most, unless it is requeued")
    there = [dataclasses.replace(run, state="to attach") for run in runs]
    assert plan_table.describe_queues(there[:1], [cluster]) == [
        "cluster: v0 (launched before); about 1.0 M tokens to train on"
    ]
    [said] = plan_table.describe_queues([*there[:8], *runs[8:9]], [cluster])
    assert said.endswith(
        "(a job for Slurm; 8 launched before); about 9.0 M tokens to train on; 12 GPU hours at most, unless it is "
        "requeued"
    )
    [said] = plan_table.describe_queues([*there[:7], *runs[7:]], [cluster])
    assert "(3 jobs for Slurm to start as it has room, 3 at once at most; 7 launched before)" in said
    assert said.endswith("; 12 GPU hours at most each, 36 in all, unless it is requeued")
    rehearsals = [dataclasses.replace(run, rehearsal=True) for run in runs[:2]]
    assert plan_table.describe_queues(rehearsals, [free]) == [
        "cluster: v0, v1 (2 jobs for Slurm to start as it has room); about 2.0 M tokens to train on"
    ]


def test_one_run_makes_no_queue():
    assert plan_table.describe_queues([]) == []
    assert plan_table.describe_queues([planned("crew", "a"), planned("mayor", "b", state="ready")]) == []
    assert len(plan_table.describe_queues([planned("crew", "a"), planned("mayor", "a")])) == 1


def test_who_trains_where_in_words(make, data):
    data("crew", count=80, size=14000), data("mayor"), data("witness")
    assert plan_table.describe_queues(make("crew").runs) == []
    boxes = [Trainer("a", datasets_dir=str(data.folder)), Trainer("b", datasets_dir=str(data.folder), lanes=2)]
    said = plan_table.describe_queues(make("crew,mayor,witness", boxes).runs)
    assert [line.partition(";")[0] for line in said] == ["a: crew", "b lane 1: mayor", "b lane 2: witness"]


# --- hosts that have to wait


def test_hosts_that_ansible_does_not_get_to_are_named():
    runs = [planned("x", name) for name in "abcdef"] + [planned("y", "a"), planned("z", "g", state="ready")]
    assert plan_table.fork_limit_warning(runs, 6) == []
    assert plan_table.fork_limit_warning(runs, 5) == [
        "6 hosts have work, and Ansible works on 5 at once: nothing is launched on f before others are done. -f 6 "
        "works on all of them; -e detach=true launches and does not wait"
    ]
    assert "is launched on d, e, f before" in plan_table.fork_limit_warning(runs, 3)[0]
    assert "is launched on b, c, d and 2 more before" in plan_table.fork_limit_warning(runs, 1)[0]
    runs[0] = planned("x", "a", hosts=("a", "h"))
    assert plan_table.fork_limit_warning(runs, 6)[0].startswith("7 hosts have work")


def test_one_more_than_three_is_counted():
    runs = [planned("x", name) for name in "abcde"]
    assert "is launched on b, c, d and 1 more before" in plan_table.fork_limit_warning(runs, 1)[0]


def test_more_hosts_than_ansible_looks_after(make, data):
    data("crew"), data("mayor"), data("witness")
    runs = make("crew,mayor,witness", [Trainer(name, datasets_dir=str(data.folder)) for name in "abc"]).runs
    assert plan_table.fork_limit_warning(runs, 3) == []
    [said] = plan_table.fork_limit_warning(runs, 1)
    assert said.startswith("3 hosts have work, and Ansible works on 1 at once: nothing is launched on ")
    assert said.count("-f 3") == 1
