"""Sites whose Slurm is set otherwise than most, on a real cluster of containers: what a run meets there.

The training is the stand-in of tests/fakes; the cluster is that of test_slurm.py.
"""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import shutil
import sys
from typing import Any

import pytest
import slurm
from lab import eventually, go_on, reached, starts, status, until
from seen import Seen

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import test_slurm

Site, cluster, site = test_slurm.Site, test_slurm.cluster, test_slurm.site  # its cluster, for the tests of this file

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("podman") is None, reason="the cluster wants root and podman"),
]


class OtherLoginNode(Site):
    """The same trainer by another login node of its cluster, which is c2."""

    def asking(self, do: str, run: pathlib.Path, before: str = "", **given: Any) -> tuple[list[str], str]:
        """Return a command that asks there."""
        command, question = super().asking(do, run, before, **given)
        there = ["podman", "exec", "--interactive", self.cluster.container("c2"), "runuser", "--user", "ann", "--"]
        return [*there, "env", "HOME=/home/ann", "sh", "-c", command[-1]], question


def environment(site: Site, run: pathlib.Path, process: str = "trainer") -> dict[str, str]:
    """Return what the training of a run, or its supervisor, has in its environment."""
    node, pid = site.jobs(run)[-1]["nodes"], status(run)[process]["pid"]
    said = site.cluster.sh(node, f"tr '\\0' '\\n' </proc/{pid}/environ").stdout
    return dict(line.partition("=")[::2] for line in said.splitlines())


def test_a_partition_that_gives_whole_nodes(site: Site, seen: Seen) -> None:
    site.cluster.sh("login", "scontrol create PartitionName=whole Nodes=c1,c2 OverSubscribe=EXCLUSIVE State=UP")
    run = site.stage()
    try:
        site.start(run, slurm={"partition": "whole"}, stay_at=3)
        reached(run, 3)
        assert environment(site, run, "supervisor")["CUDA_VISIBLE_DEVICES"] == "0,1"  # as Slurm set it
        assert environment(site, run)["CUDA_VISIBLE_DEVICES"] == "0"
        go_on(run)
        site.whole(run)
    finally:
        site.cluster.clear()
        site.cluster.sh("login", "scontrol delete PartitionName=whole")
    seen("a partition gives a job of one GPU a whole node of two", "Slurm", "it trained on the one that it takes")


@pytest.mark.soak
def test_the_limits_of_a_login_node_are_none_of_a_jobs(site: Site, seen: Seen) -> None:
    run = site.stage()
    site.login = "ulimit -S -n 77; ulimit -S -t 99;"
    site.start(run, slurm={"cpus": 2}, stay_at=3)
    reached(run, 3)
    said = site.cluster.sh(site.jobs(run)[0]["nodes"], f"cat /proc/{status(run)['trainer']['pid']}/limits").stdout
    limits = {line[:26].strip(): line[26:].split()[0] for line in said.splitlines()[1:]}
    assert limits["Max cpu time"] == "unlimited"
    assert int(limits["Max open files"]) > 77
    assert environment(site, run)["AXOLOTL_DATASET_NUM_PROC"] == "2"  # and not as many as the node has
    go_on(run)
    site.whole(run)
    seen("a login node limits processes (ulimit)", "Slurm", "a job has its node's limits")


@pytest.mark.soak
def test_a_site_with_strict_settings(site: Site, seen: Seen) -> None:
    run = site.stage()
    settings = {"JobRequeue": "0", "PrivateData": "jobs,nodes,partitions,reservations,usage", "MaxArraySize": "1",
                "EnforcePartLimits": "ALL", "JobFileAppend": "1",
                "DependencyParameters": "kill_invalid_depend"}  # fmt: skip
    with site.cluster.configured(**settings):
        assert site.start(run, slurm={"partition": "gpu,urgent"}, stay_at=3)["changed"] is True
        reached(run, 3)
        assert site.observe(run) == ("running", "")
        site.cluster.sh("login", f"scancel --signal=TERM --batch {site.number(run)}")  # as before the end of its time
        site.let_come_back(run)
        go_on(run)
        site.whole(run)
        site.cluster.until_idle()
    assert starts(run) == [0, 3]
    words = "told to end, it came back and resumed"
    seen("JobRequeue=0, PrivateData, EnforcePartLimits=ALL and other strict settings", "Slurm", words)


@pytest.mark.soak
def test_a_site_that_takes_no_job_back(site: Site, seen: Seen) -> None:
    run = site.stage()
    plugin = """
        function slurm_job_submit(job, partitions, user) job.requeue = 0 return slurm.SUCCESS end
        function slurm_job_modify() return slurm.SUCCESS end
    """
    (site.cluster.conf / "job_submit.lua").write_text(plugin)
    with site.cluster.configured(JobSubmitPlugins="lua"):
        site.start(run, {"HF_TOKEN": "planted"}, stay_at=3)
        reached(run, 3)
        site.cluster.sh("login", f"scancel --signal=TERM --batch {site.number(run)}")
        until(run, "stopped")
        eventually(lambda: "does not take it back" in site.observe(run)[1])
        state, words = site.observe(run)
        assert state == "stopped"
        assert not (run / "env").exists()
        assert site.start(run, {"HF_TOKEN": "planted"})["changed"] is True
        site.whole(run)
        site.cluster.until_idle()
    assert starts(run) == [0, 3]
    seen("a site forbids a requeue (job_submit/lua)", "Slurm", f"«{words}»; the same command resumed it")


@pytest.mark.soak
def test_a_site_that_adds_to_the_names_of_jobs(site: Site, seen: Seen) -> None:
    run = site.stage()
    plugin = """
        function slurm_job_submit(job, partitions, user) job.name = "lab: " .. job.name return slurm.SUCCESS end
        function slurm_job_modify() return slurm.SUCCESS end
    """
    (site.cluster.conf / "job_submit.lua").write_text(plugin)
    before = set(site.cluster.jobs())
    with site.cluster.configured(JobSubmitPlugins="lua"):
        site.start(run, stay_at=3)
        reached(run, 3)
        [job] = [job for number, job in site.cluster.jobs().items() if number not in before]
        assert job["name"].startswith("lab: lora-forge-witness-")
        assert site.observe(run) == ("running", "")
        assert site.start(run, stay_at=3)["changed"] is False
        assert site.stop(run) is True
        assert site.observe(run) == ("stopped", "stopped: on request; checkpoint at step 3")
        for node in slurm.NODES:
            site.cluster.drain(node)
        assert site.start(run)["changed"] is True
        assert site.observe(run)[0] == "queued"
        assert site.stop(run) is True  # which cancels it
        assert site.observe(run)[0] == "stopped"
        for node in slurm.NODES:
            site.cluster.resume(node)
        assert site.start(run)["changed"] is True
        site.whole(run)
        site.cluster.until_idle()
    seen(
        "a site adds to the names of jobs (job_submit/lua)",
        "Slurm",
        "one job, seen, attached to, stopped and cancelled",
    )


@pytest.mark.soak
@pytest.mark.parametrize("grace", [20, 0])
def test_a_preemption_that_cancels(site: Site, grace: int, seen: Seen) -> None:
    run = site.stage()
    site.cluster.sh("login", f"scontrol update PartitionName=gpu GraceTime={grace} PreemptMode=CANCEL")
    try:
        site.start(run, stay_at=3, stop_timeout=60)
        reached(run, 3)
        node = site.jobs(run)[-1]["nodes"]
        with site.watched(run) as shown:
            site.cluster.sbatch("sleep 600", "--partition=urgent", "--gres=gpu:2", f"--nodelist={node}", user="lin")
            site.let_come_back(run)
            go_on(run)
            site.whole(run)
    finally:
        site.cluster.sh("login", "scontrol update PartitionName=gpu PreemptMode=REQUEUE")
    assert starts(run) == [0, 3]
    assert {state for state, _ in shown} == {"running", "queued", "finished"}, shown
    words = "checkpoint, back in the queue by itself, resumed from it"
    seen(f"a preemption that cancels (PreemptMode=CANCEL), {grace} s of grace", "Slurm", words)


@pytest.mark.soak
def test_one_cluster_by_two_login_nodes(site: Site, seen: Seen) -> None:
    run, other = site.stage(), OtherLoginNode(site.cluster)
    answers = test_slurm.at_once(lambda: site.start(run, stay_at=3), lambda: other.start(run, stay_at=3))
    assert sorted(answer["changed"] for answer in answers) == [False, True]
    reached(run, 3)
    for one in (site, other, site):
        assert one.observe(run) == ("running", "")
        assert one.ask("prune_plan", run, timeout=1) == [[], "it is alive"]
        assert one.start(run, stay_at=3)["changed"] is False
    assert other.stop(run) is True
    for one in (other, site):
        assert one.observe(run) == ("stopped", "stopped: on request; checkpoint at step 3")
    assert site.start(run)["changed"] is True
    site.whole(run)
    assert other.observe(run) == ("finished", "")
    assert len(site.jobs(run)) == 2
    seen("two login nodes, and a command on each", "Slurm", "one job at a time, seen and stopped from both")


@pytest.mark.soak
def test_a_root_of_odd_and_many_letters(site: Site) -> None:
    name = "/".join(['ann\'s "lab" $HOME ä %j', *["deep" * 30] * 8])
    odd = Site(site.cluster, site.here / name, test_slurm.HOME / name)
    try:
        run = odd.stage()
        assert odd.start(run, stay_at=3)["changed"] is True
        reached(run, 3)
        assert odd.observe(run) == ("running", "")
        shown = json.loads((run / "run.json").read_text())["attach_command"]
        assert shlex.split(shown)[-1] == f"{odd.seen_there(run)}/supervisor.log"
        assert odd.stop(run) is True
        assert odd.start(run)["changed"] is True
        odd.whole(run)
    finally:
        site.cluster.clear()
        shutil.rmtree(site.here / name.partition("/")[0])


@pytest.mark.soak
def test_nodes_without_the_homes_of_users(site: Site, seen: Seen) -> None:
    run = site.stage()
    for node in slurm.NODES:
        site.cluster.sh(node, "usermod --home /nowhere/ann ann")
    try:
        site.start(run, stay_at=3)
        reached(run, 3)
        assert environment(site, run)["HOME"] == str(test_slurm.HOME / "lora-forge/home")
        go_on(run)
        site.whole(run)
    finally:
        site.cluster.clear()
        for node in slurm.NODES:
            site.cluster.sh(node, f"usermod --home {test_slurm.HOME} ann")
        shutil.rmtree(site.root.parent / "home", ignore_errors=True)
    seen("nodes without the homes of their users", "Slurm", "what libraries keep there is kept in trainer_root")


def test_what_is_tried_out_while_nodes_are_drained(site: Site) -> None:
    run, asked = site.stage(), {"partition": "gpu", "gres": "gpu:1"}
    too_many = "allocation failure: Requested node configuration is not available"
    assert site.ask("try_out", run, asked=asked) == ""
    assert site.ask("try_out", run, asked={**asked, "gres": "gpu:9"}) == too_many
    for node in slurm.NODES:
        site.cluster.drain(node)
    assert site.ask("try_out", run, asked=asked) == ""  # such a job waits


@pytest.mark.soak
def test_a_reservation_that_begins_later(site: Site) -> None:
    run = site.stage()
    reservation = "ReservationName=later StartTime=now+3600 Duration=60 Users=ann Nodes=c1"
    site.cluster.sh("login", f"scontrol create reservation {reservation}")
    try:
        assert site.ask("try_out", run, asked={"reservation": "later"}) == ""  # such a job waits
        assert "reservation" in site.ask("try_out", run, asked={"reservation": "none"})
    finally:
        site.cluster.sh("login", "scontrol delete ReservationName=later")


def test_more_time_than_a_partition_has(site: Site, seen: Seen) -> None:
    run, asked = site.stage(), {"partition": "gpu", "time": "2-00"}
    site.cluster.sh("login", "scontrol update PartitionName=gpu MaxTime=60")
    try:
        assert site.start(run, slurm=asked)["changed"] is True  # Slurm takes it, where its settings are the usual ones
        eventually(lambda: "PartitionTimeLimit" in site.observe(run)[1])
        state, words = site.observe(run)
        assert (state, "never starts" in words) == ("queued", True)
        refused = site.ask("try_out", run, asked=asked)
        assert refused.startswith("time is 2-00, and partition gpu has 1:00:00 at most; such a job never starts")
        assert site.ask("try_out", run, asked={**asked, "time": "1:00:00"}) == ""
        assert site.stop(run) is True
    finally:
        site.cluster.sh("login", "scontrol update PartitionName=gpu MaxTime=INFINITE")
    seen("more time than a partition has", "Slurm", f"refused before it waits: «{refused}»")


def test_gpus_are_those_of_each_node(site: Site) -> None:
    run = site.stage()
    for node in slurm.NODES:
        site.cluster.drain(node)
    asked = site.starting(run, fields={"nodes": 2, "port": 29400}, processes=4)
    asked["launch"]["slurm"] = {"gpus": 2, "cpus": 1, "memory": "100M"}
    assert site.ask("start", run, **asked)["changed"] is True
    shown = site.cluster.sh("login", f"scontrol --oneliner show job {site.number(run)}").stdout.split()
    assert "NumNodes=2" in shown or "NumNodes=2-2" in shown
    assert "TresPerNode=gres/gpu:2" in shown
