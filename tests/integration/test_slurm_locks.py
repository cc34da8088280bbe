"""Runs of a real cluster of containers whose shared folder has no locks, as Lustre that was mounted without them.

All calls of flock are answered with ENOSYS there, on all machines. Otherwise as in test_slurm.py: in the end of each,
never two trainings of a run, and no step counted twice.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator

import pytest
import slurm
from ansible.module_utils.lora_forge.trainer import slurm_queue
from lab import ROOT, eventually, go_on, reached, starts
from seen import Seen

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import test_slurm

Site, site = test_slurm.Site, test_slurm.site

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("podman") is None, reason="the cluster wants root and podman"),
    pytest.mark.soak,
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm.Cluster]:
    settings = {"KillWait": str(test_slurm.KILL_WAIT)}
    with slurm.Cluster(settings, volumes=[f"{ROOT}:/product:ro"], flock=False) as made:
        for machine in slurm.MACHINES:
            said = made.sh(machine, "flock /home true", check=False).stderr
            assert "Function not implemented" in said, (machine, said)
        yield made


def test_a_run_is_launched_once_stopped_put_back_and_comes_to_its_end(site: Site, seen: Seen) -> None:
    run = site.stage()
    answers = test_slurm.at_once(*[lambda: site.start(run, stay_at=3)] * 3)
    assert sorted(str(answer.get("changed")) for answer in answers) == ["False", "False", "True"], answers
    reached(run, 3)
    assert len(site.jobs(run)) == 1
    before, began = site.cluster.requests("ann"), time.monotonic()
    found = test_slurm.at_once(*[lambda: site.ask("list", run)] * 4)
    assert found == [[[run.name, "running"]]] * 4
    asked = site.cluster.requests("ann") - before  # a question is two or three
    assert asked <= 3 * (2 + (time.monotonic() - began) // slurm_queue.EVERY), "one of them asks for all"
    assert site.stop(run) is True
    assert site.observe(run) == ("stopped", "stopped: on request; checkpoint at step 3")
    assert site.start(run, stay_at=5)["changed"] is True
    reached(run, 5)
    with site.watched(run) as shown:
        site.cluster.sh("login", f"scancel --signal=TERM --batch {site.number(run)}")  # as before the end of its time
        site.let_come_back(run, begins=3)
        go_on(run)
        site.whole(run)
    assert starts(run) == [0, 3, 5]
    assert {state for state, _ in shown} == {"running", "queued", "finished"}, shown
    assert site.start(run)["changed"] is False
    assert not list(site.root.parent.rglob("*.holder"))
    words = "three commands launched one job; stopped, put back, resumed twice, and finished"
    seen("the shared folder has no locks (flock)", "Slurm", words)


def test_a_node_is_cut_off_and_trains_on(site: Site, seen: Seen) -> None:
    run = site.stage()
    site.start(run, stay_at=3)
    reached(run, 3)
    node = site.jobs(run)[0]["nodes"]
    site.cluster.cut(node)
    try:
        eventually(lambda: test_slurm.down(site, node))
        site.let_come_back(run)
        go_on(run)
        site.whole(run)
    finally:
        site.cluster.mend(node)
    site.cluster.resume(node)
    site.cluster.until_idle()
    assert starts(run) == [0, 3]
    assert len(site.jobs(run)) == 1
    words = "the new job asked the old training for its checkpoint, and resumed from it"
    seen("a node is cut off and trains on, its folder there and without locks (flock)", "Slurm", words)


def test_the_login_node_reboots_in_the_middle_of_a_launch(site: Site, seen: Seen) -> None:
    """What was locked when it went down keeps nobody from launching when it is up again."""
    run = site.stage()
    with site.starts_and_waits(run, test_slurm.WAITS, stay_at=3):
        assert [path.name for path in run.glob("*.holder")] == ["launch.lock.holder"]
        site.cluster.reboot("login")
    eventually(lambda: site.cluster.ssh("true", check=False).returncode == 0)
    eventually(lambda: site.cluster.sh("login", "scontrol ping", check=False).returncode == 0)
    assert site.start(run, stay_at=3).get("changed") is True
    reached(run, 3)
    go_on(run)
    site.whole(run)
    assert not list(run.glob("*.holder"))
    seen("the login node reboots during a launch, and the folder has no locks (flock)", "Slurm",
         "the same command submitted it")  # fmt: skip
