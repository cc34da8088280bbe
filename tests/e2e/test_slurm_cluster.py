"""The Slurm cluster that tests have (tests/hosts/slurm.py): what it claims to be, and what can befall it."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import sandbox
import slurm

from .conftest import ROOT, eventually

pytestmark = pytest.mark.soak  # what is made of it is proven by the tests that train on it


@pytest.fixture
def cluster(slurm_cluster: slurm.Cluster) -> Iterator[slurm.Cluster]:
    yield slurm_cluster
    slurm_cluster.clear()


def test_jobs_run_on_other_machines_than_the_login_node(cluster: slurm.Cluster) -> None:
    told = "cat /proc/sys/kernel/random/boot_id; hostname; echo $CUDA_VISIBLE_DEVICES; echo $HOME; id -u"
    jobs = {
        node: cluster.sbatch(told, "--gres=gpu:2", f"--nodelist={node}", "-o", f"{node}.out") for node in slurm.NODES
    }
    for node, job in jobs.items():
        assert cluster.wait(job, "COMPLETED")["nodes"] == node
        boot_id, *others = (cluster.home / f"ann/{node}.out").read_text().splitlines()
        assert others == [node, "0,1", "/home/ann", cluster.ssh("id -u").stdout.strip()]
        assert boot_id == cluster.boot_id(node)
    assert len({cluster.boot_id(machine) for machine in slurm.MACHINES}) == 3


def test_what_slurm_refuses_is_told(cluster: slurm.Cluster) -> None:
    with pytest.raises(slurm.Problem, match="Requested node configuration is not available"):
        cluster.sbatch("true", "--gres=gpu:9")


def test_a_job_outlives_its_daemon_and_the_controller(cluster: slurm.Cluster) -> None:
    job = cluster.sbatch("until [ -e go ]; do sleep 0.1; done; echo done >said", "--nodelist=c1")
    cluster.wait(job, "RUNNING")
    cluster.until_saved(job)
    cluster.kill("c1", "slurmd")
    cluster.kill("login", "slurmctld")
    with pytest.raises(slurm.Problem, match="Unable to contact slurm controller"):
        cluster.jobs()
    cluster.start("login", "slurmctld")
    cluster.start("c1", "slurmd")
    assert cluster.wait(job, "RUNNING")["restart_cnt"] == 0
    (cluster.home / "ann/go").touch()
    cluster.wait(job, "COMPLETED")
    assert (cluster.home / "ann/said").read_text() == "done\n"


def test_without_munge_nobody_is_let_in(cluster: slurm.Cluster) -> None:
    cluster.stop("login", "munge")
    assert "auth" in cluster.ssh("squeue", check=False).stderr.lower()
    cluster.start("login", "munge")
    eventually(lambda: cluster.ssh("squeue", check=False).returncode == 0, "the queue is told again")
    cluster.until_idle()


def test_a_reboot_makes_another_boot_id(cluster: slurm.Cluster) -> None:
    before = cluster.boot_id("c2")
    cluster.reboot("c2")
    cluster.until_idle("c2")
    assert cluster.boot_id("c2") != before
    assert cluster.nodes()["c2"] == ("idle", "gpu:2")


def test_a_node_is_cut_off_and_reached_again(cluster: slurm.Cluster) -> None:
    def reached() -> bool:
        return cluster.sh("login", "timeout 1 bash -c ': </dev/tcp/c1/6818'", check=False).returncode == 0

    assert reached()
    cluster.cut("c1")
    assert not reached()
    cluster.mend("c1")
    eventually(reached, "c1 is reached")
    eventually(lambda: cluster.nodes()["c1"][0] == "idle", "c1 is idle")


def test_the_queue(cluster: slurm.Cluster) -> None:
    cluster.drain("c1", "a fan")
    theirs = cluster.sbatch("sleep 600", "--gres=gpu:2", user="lin")
    cluster.wait(theirs, "RUNNING")
    ours = cluster.sbatch("sleep 600", "--gres=gpu:1", "--job-name=ours", "--comment=a word")
    found = cluster.wait(ours, "PENDING")
    assert (found["name"], found["comment"], found["user_name"]) == ("ours", "a word", "ann")
    assert cluster.jobs()[theirs]["user_name"] == "lin"
    cluster.hold(ours)
    cluster.resume("c1")
    assert eventually(lambda: cluster.jobs()[ours]["state_reason"] == "JobHeldAdmin", "it is held")
    cluster.release(ours)
    assert cluster.wait(ours, "RUNNING")["nodes"] == "c1"
    cluster.requeue(ours)
    eventually(lambda: cluster.jobs()[ours]["state_reason"] == "BeginTime", "it stands in the queue")
    cluster.start_now(ours)
    assert cluster.wait(ours, "RUNNING")["restart_cnt"] == 1


def test_cgroups_keep_a_job_together(cluster: slurm.Cluster, slurm_cgroups: None) -> None:
    # A child in a session of its own, whose parent is gone, as those of a training may be.
    job = cluster.sbatch("(setsid sh -c 'echo $$ >child; exec sleep 600' &); exec sleep 600", "--nodelist=c1")
    eventually((cluster.home / "ann/child").exists, "the child")
    cluster.sh("login", f"scancel {job}")
    cluster.wait(job, "CANCELLED")
    eventually(lambda: cluster.sh("c1", "pgrep -x sleep", check=False).returncode, "the child is killed")


UP = """
import os, pathlib, sys, time
import slurm
with slurm.Cluster() as cluster:
    cluster.sbatch("sleep 600")
    print(os.environ["LORA_FORGE_SANDBOX"], cluster.state, flush=True)
    time.sleep(3600)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_it(how: signal.Signals) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LORA_FORGE_SANDBOX"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/sandbox.py"), sys.executable, "-c", UP],
        env=environment | {"PYTHONPATH": f"{ROOT}/tests/hosts"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    assert said.startswith("/tmp/"), said + process.stdout.read()
    folder, state = map(pathlib.Path, said.split())
    assert len(sandbox.containers(folder)) == 3
    assert state.exists()
    os.killpg(process.pid, how) if how == signal.SIGINT else process.kill()
    eventually(lambda: not folder.exists(), "the sandbox is gone")
    assert sandbox.containers(folder) == []
    assert not state.exists()
    process.communicate()
