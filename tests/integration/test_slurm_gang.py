"""A run over two nodes of a real cluster of containers, as one job, and what befalls it there.

The training is the stand-in of tests/fakes on the first node, with another process on each further one, which it meets
as torchrun's agents meet (tests/fakes/pair.py). In the end of each: one training, and no step counted twice.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import sys
from typing import Any

import pytest
import rundir
import slurm
from lab import ROOT, eventually, go_on, reached, starts, status, until
from seen import Seen

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import test_slurm

Site, cluster, site = test_slurm.Site, test_slurm.cluster, test_slurm.site  # its cluster, for the tests of this file

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("podman") is None, reason="the cluster wants root and podman"),
]
ID = "planted-meeting-1"
LOST = 360.0  # seconds in which the loss of a node is seen: srun's own, the supervisor's, and Slurm's, one by one


def launch(site: Site, run: pathlib.Path, **settings: Any) -> Any:
    """Launch a run over two nodes; ``settings`` are those of Site.start."""
    shutil.copy(ROOT / "tests/fakes/pair.py", site.here)
    os.chmod(site.here / "pair.py", 0o644)
    command = [site.python, str(test_slurm.HOME / "pair.py"), site.python, str(test_slurm.HOME / "trainer.py")]
    fields = {"nodes": 2, "port": 29400, "command": command}
    return site.start(run, {"PET_RDZV_ID": ID}, fields=fields, processes=2, **settings)


def nodes(run: pathlib.Path) -> list[dict[str, Any]]:
    """Return what the processes of all starts noted of themselves, in order of their start and rank."""
    path = run / "nodes.txt"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_run_over_two_nodes_is_one_job_that_is_warned_and_comes_back(site: Site, seen: Seen) -> None:
    run = site.stage()
    assert launch(site, run, stay_at=3)["changed"] is True
    reached(run, 3)
    assert site.observe(run) == ("running", "")
    assert {one["node"] for one in nodes(run)} == {"c1", "c2"}
    assert {(one["PET_RDZV_ID"], one["LORA_FORGE_ONE_FOLDER"]) for one in nodes(run)} == {(ID, "1")}
    told = [site.cluster.sh("login", "squeue --json; scontrol -d show job; scontrol show step").stdout]
    told += [site.cluster.sh(node, "grep -ha planted /proc/[0-9]*/cmdline || true").stdout for node in slurm.NODES]
    assert "NumNodes=2" in told[0]
    assert not [line for said in told for line in said.splitlines() if ID in line]
    with site.watched(run) as shown:
        site.cluster.sh("login", f"scancel --signal=TERM --batch {site.number(run)}")  # as before the end of its time
        site.let_come_back(run)
        go_on(run)
        site.whole(run)
    assert starts(run) == [0, 3]
    assert [job["restart_cnt"] for job in site.jobs(run)] == [1]
    said, job = (run / "supervisor.log").read_text().splitlines(), site.number(run)
    assert re.fullmatch(rf"\S+ \S+ job {job} on c\[1-2\], pid \d+", said[0]), said
    assert any(f" job {job}, restart 1, on c[1-2], pid " in line for line in said[1:]), said
    assert {state for state, _ in shown} == {"running", "queued", "finished"}, shown
    words = "one checkpoint, back in the queue by itself, resumed on both nodes from it"
    seen("Slurm warns a job of two nodes of its end", "Slurm", words)


@pytest.mark.soak
def test_a_person_stops_it_and_starts_it_again(site: Site) -> None:
    run = site.stage()
    launch(site, run, stay_at=3)
    reached(run, 3)
    assert site.stop(run) is True
    assert site.observe(run) == ("stopped", "stopped: on request; checkpoint at step 3")
    assert launch(site, run)["changed"] is True
    site.whole(run)
    assert starts(run) == [0, 3]


@pytest.mark.soak
@pytest.mark.parametrize("told", ["supervisor", "step"])
def test_a_preemption(site: Site, told: str, seen: Seen) -> None:
    run, conf = site.stage(), site.cluster.conf / "slurm.conf"
    before = conf.read_text()
    if told == "step":  # as by default: in the grace the steps are told, and not the job's first process
        conf.write_text(before.replace("PreemptParameters=send_user_signal\n", ""))
        site.cluster.reconfigure()
    try:
        launch(site, run, steps=4, save_every=4, stay_at=3, save_takes=2)
        reached(run, 3)
        theirs = site.cluster.sbatch("exit", "--partition=urgent", "--gres=gpu:2", "--nodelist=c2", user="lin")
        site.cluster.wait(theirs, "COMPLETED")
        site.let_come_back(run)
        go_on(run)
        site.whole(run)
    finally:
        conf.write_text(before)
        site.cluster.reconfigure()
    assert starts(run) == [0, 3]
    words = "checkpoint, back in the queue, resumed from it on both"
    seen(f"a job of two nodes is preempted for one of them, and its {told} is told", "Slurm", words)


@pytest.mark.soak
def test_a_crash_on_the_second_node_ends_both_and_is_no_preemption(site: Site, seen: Seen) -> None:
    run = site.stage()
    launch(site, run, stay_at=3)
    reached(run, 3)
    (run / "crash-1").touch()  # which it takes away
    eventually(lambda: len(starts(run)) == 2)
    go_on(run)
    site.whole(run)
    assert starts(run) == [0, 2]
    assert [job["restart_cnt"] for job in site.jobs(run)] == [0]
    seen("a training of two nodes crashes on the second", "Slurm", "both ended, and resumed in the same job")


@pytest.mark.soak
def test_srun_is_killed(site: Site, seen: Seen) -> None:
    run = site.stage()
    launch(site, run, stay_at=3)
    reached(run, 3)
    before = nodes(run)
    site.cluster.sh(next(one["node"] for one in before if one["rank"] == 0), f"kill -9 {status(run)['trainer']['pid']}")
    eventually(lambda: len(starts(run)) == 2)
    for one in before:
        left = site.cluster.sh(one["node"], f"grep -c pair.py /proc/{one['pid']}/cmdline", check=False).stdout.strip()
        assert left in ("", "0"), one
    go_on(run)
    site.whole(run)
    assert starts(run) == [0, 2]
    seen("kill -9 of srun", "Slurm", "the processes of both nodes were gone; resumed in the same job")


@pytest.mark.soak
def test_the_second_node_is_back_before_slurm_has_missed_it(site: Site, seen: Seen) -> None:
    run = site.stage()
    launch(site, run, stay_at=3)
    reached(run, 3)
    with site.watched(run) as shown:
        site.cluster.reboot(second_node(run), 0)
        eventually(lambda: len(starts(run)) == 2, LOST)
        go_on(run)
        site.whole(run)
    assert starts(run) == [0, 2]
    assert [job["restart_cnt"] for job in site.jobs(run)] == [0]
    assert {state for state, _ in shown} == {"running", "finished"}, shown
    words = "resumed on both from the last checkpoint, in the same job"
    seen("the second of two nodes reboots before Slurm misses it", "Slurm", words)


@pytest.mark.soak
@pytest.mark.parametrize("first", ["Slurm", "the supervisor"])
def test_the_second_node_is_lost(site: Site, first: str, seen: Seen) -> None:
    """Whoever sees it first, by how long Slurm waits for a node to answer."""
    with site.cluster.configured(**{} if first == "Slurm" else {"SlurmdTimeout": "300"}):
        run = site.stage()
        launch(site, run, stay_at=3)
        reached(run, 3)
        second = second_node(run)
        with site.watched(run) as shown:
            site.cluster.switch_off(second)
            try:
                eventually(lambda: "PENDING" in site.states(run)[-1], LOST)
            finally:
                site.cluster.switch_on(second)
            site.let_come_back(run)
            go_on(run)
            site.whole(run)
        assert starts(run) == [0, 2]
        assert {state for state, _ in shown} == {"running", "queued", "finished"}, shown
        assert ("does not answer" in (run / "supervisor.log").read_text()) is (first == "the supervisor")
        site.cluster.clear()
    words = "back in the queue, resumed on both from the last checkpoint"
    seen(f"the second of two nodes is lost, and {first} sees it first", "Slurm", words)


def second_node(run: pathlib.Path) -> str:
    """Return the node on which the second process is."""
    return next(one["node"] for one in nodes(run) if one["rank"] == 1)


@pytest.mark.soak
def test_the_node_that_has_not_the_folder_is_named(site: Site, seen: Seen) -> None:
    run, root = site.stage(), "/home/ann/lora-forge"
    site.cluster.sh("c2", f"mount -t tmpfs none {root}")
    try:
        launch(site, run)
        until(run, "failed")
        words = site.observe(run)[1]
        assert words == (
            f"environment: c2: does not see {root} as the login node does: trainer_root must be in a shared folder"
        )
    finally:
        site.cluster.sh("c2", f"umount {root}")
    assert launch(site, run)["changed"] is True
    site.whole(run)
    seen("the second of two nodes has not the shared folder", "Slurm", "failed: the node was named; nothing trained")


@pytest.mark.soak
def test_the_node_whose_gpu_is_no_good_is_named(site: Site, seen: Seen) -> None:
    run = site.stage()
    said = json.dumps({"ok": False, "error": "CUDA is out of order"})
    gate = ["/bin/sh", "-c", f"test $SLURMD_NODENAME = c1 || {{ echo '{said}'; exit 1; }}"]
    launch(site, run, gate=gate)
    until(run, "failed")
    assert site.observe(run)[1] == "environment: c2: its GPU does not do: CUDA is out of order"
    assert nodes(run) == []
    seen("the GPU of the second of two nodes is no good", "Slurm", "failed: the node was named; nothing trained")


@pytest.mark.soak
def test_each_node_has_the_gpu_that_slurm_gave_it_there(site: Site) -> None:
    other = site.cluster.sbatch("sleep 600", "--gres=gpu:1", "--nodelist=c1", "--mem=100M", user="lin")
    site.cluster.wait(other, "RUNNING")
    run = site.stage()
    launch(site, run, stay_at=3, slurm={"cpus": 2})
    reached(run, 3)
    assert {one["node"]: one["CUDA_VISIBLE_DEVICES"] for one in nodes(run)} == {"c1": "1", "c2": "0"}
    assert {one["cores"] for one in nodes(run)} == {"2"}
    go_on(run)
    site.whole(run)
    assert rundir.last_complete(run / "output") == 8
