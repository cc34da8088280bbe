"""A run on two hosts: a real torchrun job on gloo, through the launcher that Axolotl would have."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
from typing import Callable

import pytest
import rundir
import sandbox
from seen import Seen

from .conftest import Controller, Host, eventually

HERE = pathlib.Path(__file__).parent


def address(name: str) -> str:
    command = ["podman", "inspect", "--format", "{{.NetworkSettings.IPAddress}}", f"{sandbox.name()}-{name}"]
    return subprocess.check_output(command, text=True).strip()


@pytest.mark.soak
def test_two_hosts_train_together(hosts: dict[str, Host], controllers: Callable[..., Controller], seen: Seen) -> None:
    """They begin together, stop at one step, resume from one checkpoint, and a crash of one is a crash of both."""
    pair = {name: {"run_hosts": 2, "run_address": address(name), "run_module": "gang_job"} for name in ("bare", "pod")}
    controller = controllers(pair, max_steps=600, save_steps=5)
    members = [hosts["bare"], hosts["pod"]]  # the first one leads
    code, text = controller.play("-e", "role=crew", playbook="playbooks/provision.yml")
    assert code == 0, text
    run_id = controller.run_id("crew")
    for host in members:  # what trains in Axolotl's place
        (host.runs / run_id / rundir.PROGRAMS).mkdir(parents=True)
        shutil.copy(HERE / "gang_job.py", host.runs / run_id / rundir.PROGRAMS)
        (host.runs / run_id / "slow").touch()

    code, text = controller.play("-e", "role=crew", playbook="playbooks/launch.yml")
    assert code == 0, text
    assert "crew trains on bare" in text
    eventually(lambda: min(host.step(run_id) for host in members) >= 7, "a step on both hosts")
    assert {host.events(run_id, "log")[-1]["world"] for host in members} == {2}
    command = rundir.read_json(members[1].runs / run_id / "run.json")["command"]
    assert command[1:8] == ["-m", "torch.distributed.run", "--nproc-per-node", "1", "--nnodes", "2", "--node-rank"]
    assert command[8] == "1"
    code, text = controller.play(playbook="playbooks/status.yml")
    assert controller.verdicts()[run_id] == "running", text

    code, text = controller.play("-e", "role=crew", playbook="playbooks/stop.yml")
    assert code == 0, text
    stops = [host.events(run_id, "stop")[-1]["step"] for host in members]
    assert stops[0] == stops[1] > 0
    assert {host.whole(run_id) for host in members} == {stops[0]}
    seen("a run on two hosts is stopped", "bare, pod", f"both saved a checkpoint at step {stops[0]}")

    # One of them has a checkpoint that the other one lacks.
    shutil.rmtree(members[1].runs / run_id / f"output/checkpoint-{stops[0]}")
    common = members[1].whole(run_id)
    assert 0 < common < stops[0]
    code, text = controller.play("-e", "role=crew", playbook="playbooks/launch.yml")
    assert code == 0, text
    eventually(lambda: min(len(host.events(run_id, "begin")) for host in members) == 2, "the second start")
    assert {host.events(run_id, "begin")[-1]["step"] for host in members} == {common}
    seen("one host of two lacks the newest checkpoint", "bare, pod", f"both resumed from step {common}")

    eventually(lambda: min(host.whole(run_id) for host in members) > stops[0], "a later checkpoint")
    members[1].sh(f"kill -9 {members[1].status(run_id)['trainer']['pid']}")
    eventually(lambda: min(len(host.events(run_id, "begin")) for host in members) == 3, "the third start")
    again = {host.events(run_id, "begin")[-1]["step"] for host in members}
    assert len(again) == 1
    assert min(again) > stops[0]
    for host in members:
        (host.runs / run_id / "slow").unlink()
    eventually(lambda: {host.status(run_id)["state"] for host in members} == {"finished"}, "their end")
    assert {host.events(run_id, "end")[-1]["step"] for host in members} == {600}
    seen("kill -9 of torchrun on one host of two", "bare, pod",
         f"both started again together, from step {again.pop()}, and finished")  # fmt: skip
