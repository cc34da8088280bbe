"""Runs that Slurm has, on a real cluster of containers (tests/hosts/slurm.py), and what befalls them there.

The login node runs the project's own ``runs``, over SSH; the training is the stand-in of tests/fakes. Their folder is
looked at from here, past all machines. In the end of each: never two trainings of a run, and no step counted twice.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
import rundir
import slurm
from ansible.module_utils.lora_forge.trainer import run_state
from ansible.module_utils.lora_forge.trainer.slurm_queue import job_name
from lab import FAKE, ROOT, Lab, counted_steps, events, eventually, go_on, reached, starts, status, until
from seen import Seen

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("podman") is None, reason="the cluster wants root and podman"),
]
NUMBERS = itertools.count(1)
KILL_WAIT = 10  # seconds
HOME = pathlib.PurePosixPath("/home/ann")
# Runs on the login node; prints what was returned, or the sentence that a user reads.
DRIVER = """
import json, pathlib, sys, time
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.trainer import launching, pruning, runs, slurm, slurm_queue, stopping
given = json.load(sys.stdin)
run_dir = pathlib.Path(given["run_dir"])
try:
    if given["do"] == "start":
        answer = launching.start(run_dir, launching.Launch.from_dict(given["launch"]), given["secrets"], "slurm")
    elif given["do"] == "observe":
        answer = runs.observe(run_dir).as_dict()
    elif given["do"] == "watch":
        answer, last = [], False
        while not last:
            last = (run_dir / "watched").exists()
            seen = runs.observe(run_dir, queue=slurm_queue.Queue() if given["lately"] else None)
            if [seen.state, seen.detail] not in answer[-1:]:
                answer.append([seen.state, seen.detail])
                with open(given["seen"], "a") as seen_so_far:
                    print(seen.state, file=seen_so_far)
            time.sleep(0.1)
    elif given["do"] == "try_out":
        answer = slurm.try_out(given["asked"], run_dir, 20)
    elif given["do"] == "list":
        answer = [[run.run_id, run.state] for run in runs.observe_all(run_dir.parents[1], [])]
    else:
        act = {"stop": stopping.stop, "prune_plan": pruning.prune_plan}[given["do"]]
        answer = act(run_dir, given["timeout"])
except (UserError, OSError) as error:
    answer = {"error": str(error)}
print(json.dumps({"answer": answer}))
"""
# A command of Slurm's that waits in the middle, until the test lets it go on.
WAITS = "touch ~/waits; until [ -e ~/goes-on ]; do sleep 0.1; done"


class Site(Lab):
    """A trainer's root on the cluster.

    Args:
        cluster: The cluster.
        here: The folder in which it lies, as this machine sees it; ann's home by default.
        there: The same as the cluster's machines see it.

    Attributes:
        login: Words of a shell before each command that is run on the login node.
    """

    login = ""

    def __init__(self, cluster: slurm.Cluster, here: pathlib.Path | None = None, there: pathlib.PurePosixPath = HOME):
        self.here, self.there = here or cluster.home / "ann", there
        super().__init__(self.here / "lora-forge/runs")
        self.root.mkdir(parents=True, exist_ok=True)
        self.cluster = cluster
        self.python = "/usr/bin/python3"
        self.seen: list[pathlib.Path] = []  # the states that those who watch now have seen so far
        self.owner = (cluster.home / "ann").stat().st_uid
        shutil.copy(FAKE, cluster.home / "ann/trainer.py")

    def seen_there(self, run: pathlib.Path) -> str:
        """Return a run's folder as the machines name it."""
        return str(self.there / run.relative_to(self.here))

    def spec(self, run_id: str, **settings: Any) -> dict[str, Any]:
        return {**super().spec(run_id, **settings), "command": [self.python, str(HOME / "trainer.py")]}

    def stage(self, run_id: str = "", where: pathlib.Path | None = None) -> pathlib.Path:
        run = super().stage(run_id or f"witness-{next(NUMBERS)}", where)  # jobs are known by the run
        self.own()
        return run

    def own(self) -> None:
        """Let ann have what was made here."""
        for path in [self.root.parent, *self.root.parent.rglob("*")]:
            os.chown(path, self.owner, self.owner, follow_symlinks=False)

    def wrap(self, program: str, script: str) -> str:
        """Put a program of ann's in the place of one of Slurm's; returns the words before a command that has it so."""
        folder = self.cluster.home / "ann/bin"
        folder.mkdir(exist_ok=True)
        (folder / program).write_text(f"#!/bin/sh\n{script}\n")
        (folder / program).chmod(0o755)
        return "export PATH=/home/ann/bin:$PATH;"

    def asking(self, do: str, run: pathlib.Path, before: str = "", **given: Any) -> tuple[list[str], str]:
        """Return a command that asks, and its standard input; see :meth:`ask`."""
        question = json.dumps({"do": do, "run_dir": self.seen_there(run), **given})
        command = f"{self.login} {before} PYTHONPATH=/product/tests/imports exec python3 -c '{DRIVER}'"
        return ["ssh", "-F", str(self.cluster.state / "ssh_config"), "login", command], question

    def ask(self, do: str, run: pathlib.Path, before: str = "", **given: Any) -> Any:
        """Have the login node do something with a run; returns what came of it.

        Args:
            do: A function of ``runs``.
            run: The run.
            before: Words before the command, in a shell.
            given: Further things for DRIVER.
        """
        command, question = self.asking(do, run, before, **given)
        return json.loads(slurm.run(command, question, seconds=5 * slurm.PATIENCE).stdout)["answer"]

    def starting(
        self, run: pathlib.Path, secrets: dict[str, str] | None = None, slurm: dict[str, Any] | None = None,
        gate: list[str] | None = None, stop_timeout: int = 20, fields: dict[str, Any] | None = None, **fake: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Return what a launch is asked for with, see :meth:`start`; ``fields`` are further ones of Launch."""
        launch = self.launch(run.name, stop_timeout=stop_timeout, **fake)
        given = {"gres": "gpu:1", "cpus": 1, "memory": "100M", **(slurm or {})}
        told = {**vars(launch), "slurm": given, "gate": gate or [], "lane_dir": None, **(fields or {})}
        return {"launch": told, "secrets": secrets or {}}

    def start(self, run: pathlib.Path, secrets: dict[str, str] | None = None, before: str = "", **settings: Any) -> Any:
        """Launch a run, as ``train`` does; the settings are those of :meth:`starting`, and of the stand-in."""
        return self.ask("start", run, before, **self.starting(run, secrets, **settings))

    @contextlib.contextmanager
    def starts_and_waits(self, run: pathlib.Path, sbatch: str, **settings: Any) -> Iterator[Any]:
        """Begin to launch a run; yields its process when the sbatch that is given has come to WAITS."""
        command, question = self.asking("start", run, self.wrap("sbatch", sbatch), **self.starting(run, **settings))
        with slurm.start(command) as process:
            assert process.stdin is not None
            try:
                process.stdin.write(question)
                process.stdin.close()
                eventually((self.cluster.home / "ann/waits").exists)
                yield process
            finally:
                process.kill()

    def let_sbatch_go_on(self) -> None:
        """Let an sbatch that waits go on."""
        (self.cluster.home / "ann/goes-on").touch()

    def observe(self, run: pathlib.Path) -> tuple[str, str]:
        """Return a run's state and why, as the login node concludes them."""
        seen = self.ask("observe", run)
        return seen["state"], seen["detail"]

    @contextlib.contextmanager
    def watched(self, run: pathlib.Path, lately: bool = False) -> Iterator[list[tuple[str, str]]]:
        """Observe a run without a pause, from before what follows; in the end the list holds each change, once.

        Args:
            run: The run.
            lately: Whether by what the queue answered to whoever asked last, as those do that only watch.
        """
        found: list[tuple[str, str]] = []
        states = self.cluster.home / "ann" / f"seen-{next(NUMBERS)}"
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            seen = pool.submit(self.ask, "watch", run, lately=lately, seen=str(HOME / states.name))
            try:
                eventually(lambda: seen.done() or states.exists())
                self.seen.append(states)
                yield found
            finally:
                self.seen.clear()
                (run / "watched").touch()
                found += [(state, words) for state, words in seen.result()]
                (run / "watched").unlink(missing_ok=True)

    def stop(self, run: pathlib.Path, timeout: int = 20) -> Any:
        """Stop a run, as a person does."""
        return self.ask("stop", run, timeout=timeout)

    def jobs(self, run: pathlib.Path) -> list[dict[str, Any]]:
        """Return all jobs that a run has or had, the oldest first."""
        name = job_name(pathlib.Path(self.seen_there(run)))
        return [job for _, job in sorted(self.cluster.jobs().items()) if job["name"] == name]

    def states(self, run: pathlib.Path) -> list[list[str]]:
        """Return the states of these jobs."""
        return [job["job_state"] for job in self.jobs(run)]

    def number(self, run: pathlib.Path) -> int:
        """Return the newest job's id."""
        return self.jobs(run)[-1]["job_id"]

    def let_come_back(self, run: pathlib.Path, begins: int = 2) -> None:
        """Spare a run the two minutes that Slurm has a job wait that was put back; returns when it trains again."""

        def back() -> bool:
            for job in self.jobs(run):
                late = job["start_time"]["number"] > time.time() + 10
                known = all("queued" in states.read_text() for states in self.seen)  # else it may be over before
                if job["job_state"] == ["PENDING"] and job["state_reason"] == "BeginTime" and late and known:
                    with contextlib.suppress(slurm.Problem):  # it may have begun by itself
                        self.cluster.start_now(job["job_id"])
            return len(starts(run)) >= begins

        eventually(back)

    def whole(self, run: pathlib.Path) -> None:
        """See that a run has come to its end, each step once, and never two trainings at a time."""
        eventually(lambda: status(run).get("launch") == rundir.read_json(run / "run.json")["launch"])
        until(run, "finished", "failed")
        assert status(run)["state"] == "finished", status(run)
        assert counted_steps(run) == list(range(1, events(run, "end")[-1]["planned"] + 1))
        assert not (run / "overlap").exists()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Cluster]:
    small = tmp_path_factory.mktemp("small")
    made = slurm.Cluster({"KillWait": str(KILL_WAIT)}, volumes=[f"{ROOT}:/product:ro", f"{small}:/small"])
    slurm.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=777", "small", str(small)])
    try:
        made.up()
    finally:  # the machines have it now, until they boot again
        slurm.run(["umount", "--lazy", str(small)])
    try:
        yield made
    finally:
        made.down()


@pytest.fixture
def site(cluster: slurm.Cluster) -> Iterator[Site]:
    made = Site(cluster)
    yield made
    for machine in slurm.MACHINES:
        services = f"munge {slurm.DAEMONS[machine]}"
        cluster.sh(machine, f"for one in {services}; do systemctl -q is-active $one || systemctl restart $one; done")
    cluster.sh("login", "scontrol update PartitionName=gpu GraceTime=20 State=UP")
    cluster.clear()
    overlaps = list(made.root.glob("*/overlap"))
    shutil.rmtree(made.root)
    shutil.rmtree(cluster.home / "ann/bin", ignore_errors=True)
    for name in ("waits", "goes-on", "script"):
        (cluster.home / "ann" / name).unlink(missing_ok=True)
    assert not overlaps  # whatever befell them: never two trainings of a run at a time


def small_site(cluster: slurm.Cluster) -> Site:
    """Return a trainer's root in the small folder, which is there until a machine reboots."""
    pid = slurm.podman("inspect", "--format", "{{.State.Pid}}", cluster.container("login")).stdout.strip()
    return Site(cluster, pathlib.Path(f"/proc/{pid}/root/small"), pathlib.PurePosixPath("/small"))


def at_once(*calls: Any) -> list[Any]:
    """Call functions in the same moment; returns their answers."""
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


# --- a launch, and what is seen of it from another machine ------------------------------------------------------------


def test_a_run_is_a_job_and_is_seen_rightly_from_another_machine(site: Site) -> None:
    run = site.stage()
    began = site.start(run, stay_at=3)
    assert began["changed"], began
    reached(run, 3)
    noted = status(run)["supervisor"]
    assert noted["boot"] in map(site.cluster.boot_id, slurm.NODES)
    assert site.observe(run) == ("running", "")
    assert site.cluster.boot_id(site.ask("observe", run)["nodes"]) == noted["boot"]
    assert site.start(run, stay_at=3)["changed"] is False
    assert len(site.jobs(run)) == 1
    assert site.ask("prune_plan", run, timeout=1) == [[], "it is alive"]
    go_on(run)
    site.whole(run)
    assert site.observe(run) == ("finished", "")
    assert site.start(run)["changed"] is False
    assert len(site.jobs(run)) == 1


def test_two_controllers_launch_in_the_same_second(site: Site, seen: Seen) -> None:
    run = site.stage()
    answers = at_once(*[lambda: site.start(run, stay_at=3)] * 3)
    assert sorted(answer["changed"] for answer in answers) == [False, False, True]
    reached(run, 3)
    assert len(site.jobs(run)) == 1
    go_on(run)
    site.whole(run)
    seen("two commands launch a run in the same second", "Slurm", "one job, one training; the others attached to it")


def test_those_who_watch_ask_slurm_once_together_and_see_each_launch(site: Site) -> None:
    run, began = site.stage(), time.monotonic()
    site.start(run, stay_at=3)
    reached(run, 3)
    before = site.cluster.requests("ann")
    for _ in range(2):
        found = at_once(*[lambda: site.ask("list", run)] * 4)
        assert found == [[[run.name, "running"]]] * 4
    asked = site.cluster.requests("ann") - before
    # Of eight looks. A question is two requests for Slurm, sometimes three.
    assert 1 <= asked <= 3 * (1 + (time.monotonic() - began) // 30)
    assert site.stop(run) is True
    assert site.start(run, stay_at=4)["changed"] is True
    with site.watched(run, lately=True) as shown:  # of what was asked before, the job is not in it
        reached(run, 4)
        go_on(run)
        site.whole(run)
    states = [state for state, _ in itertools.groupby(state for state, _ in shown)]
    assert states in (["queued", "running", "finished"], ["running", "finished"]), shown


# What a login's own environment may say, and what a site's own programs may print before and after Slurm's answers.
LOGIN = """
export LOGNAME=lin USER=lin LANG=de_DE.UTF-8 LC_ALL=de_DE.UTF-8 SBATCH_CLUSTERS=elsewhere
export SBATCH_PARTITION=none SBATCH_JOB_NAME=mine SBATCH_EXPORT=ALL SBATCH_TEST_ONLY=1 SQUEUE_FORMAT=%i SQUEUE_USERS=lin
export SQUEUE_STATES=PENDING SQUEUE_PARTITION=none SCANCEL_PARTITION=none SLURM_TIME_FORMAT=relative
"""
BANNER = """
echo 'Welcome! 7 of 1000 h are used'; echo 'site: 42 jobs|all|well' >&2
/usr/bin/{program} "$@"; code=$?
echo 'site: mind the quota' >&2; echo; echo 'Good bye.'; exit $code
"""


def test_a_login_has_settings_and_a_site_has_words_of_its_own(site: Site, seen: Seen) -> None:
    run = site.stage(f"witness-{next(NUMBERS)}-".ljust(128, "x"))  # as long as a name of a run may be
    site.login = LOGIN.replace("\n", ";")[1:]
    for program in ("sbatch", "squeue", "scancel", "scontrol"):
        site.login += site.wrap(program, BANNER.format(program=program))
    answer = site.start(run, stay_at=3)
    assert answer.get("changed") is True, answer
    reached(run, 3)
    assert site.observe(run) == ("running", "")
    assert site.start(run, stay_at=3)["changed"] is False
    assert len(site.jobs(run)) == 1
    assert site.stop(run) is True
    assert site.observe(run) == ("stopped", "stopped: on request; checkpoint at step 3")
    site.login = ""
    assert site.start(run)["changed"] is True
    site.whole(run)
    words = "one job of the user's own, seen, stopped and resumed"
    seen("LOGNAME is another's, SBATCH_* and SQUEUE_* are set, Slurm's commands have banners", "Slurm", words)


@pytest.mark.soak
def test_a_site_has_a_say_in_what_is_submitted(site: Site, seen: Seen) -> None:
    run = site.stage()
    plugin = """
        function slurm_job_submit(job, partitions, user)
          slurm.log_user("Welcome! 42|7 h are left")
          if job.time_limit > 1000 then slurm.log_user("name a time, please") return slurm.ERROR end
          return slurm.SUCCESS
        end
        function slurm_job_modify() return slurm.SUCCESS end
    """
    (site.cluster.conf / "job_submit.lua").write_text(plugin)
    with site.cluster.configured(JobSubmitPlugins="lua"):
        refused = site.start(run, stay_at=3)["error"]
        assert f"Slurm refuses the job of {run.name}: " in refused
        assert "name a time, please" in refused
        assert site.start(run, slurm={"time": "10"}, stay_at=3)["changed"] is True
        reached(run, 3)
        assert site.observe(run) == ("running", "")
        go_on(run)
        site.whole(run)
    words = f"«{refused.partition(': ')[2].partition('. See')[0]}»; with a time it trained"
    seen("a site's plugin (job_submit/lua) refuses a job, and talks beside sbatch's answer", "Slurm", words)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("moment", "sbatch"),
    [
        ("before sbatch submits", f'{WAITS}; exec /usr/bin/sbatch "$@"'),
        ("when sbatch has submitted", f'said=$(/usr/bin/sbatch "$@"); {WAITS}; echo "$said"'),
        ("and sbatch lives on alone", f'cat >~/script; kill -9 $PPID; {WAITS}; exec /usr/bin/sbatch "$@" <~/script'),
    ],
)
def test_the_connection_is_cut_in_the_middle_of_a_launch(site: Site, moment: str, sbatch: str, seen: Seen) -> None:
    run, secrets, alone = site.stage(), {"HF_TOKEN": "planted"}, "alone" in moment
    with site.starts_and_waits(run, sbatch, secrets=secrets, stay_at=3) as ssh:
        ssh.kill()
    if alone:  # nobody knows that it is there
        assert site.start(run, secrets, stay_at=3)["changed"] is True
        site.let_sbatch_go_on()
        eventually(lambda: len(site.jobs(run)) == 2)
    else:
        attached, _ = at_once(lambda: site.start(run, secrets, stay_at=3), site.let_sbatch_go_on)
        assert attached["changed"] is False
    reached(run, 3)
    assert [job["job_state"] for job in site.jobs(run)] == [["RUNNING"], ["PENDING"]][: 1 + alone]
    assert site.observe(run) == ("running", "")
    go_on(run)
    site.whole(run)
    eventually(lambda: site.states(run) == [["COMPLETED"]] * (1 + alone))
    assert starts(run) == [0]
    assert "token: planted" in (run / "train.log").read_text()
    assert not (run / "env").exists()
    words = "the same command attached to its job"
    words = "a second job, which waited for the first one and had nothing left to do" if alone else words
    seen(f"ssh is cut during a launch, {moment}", "Slurm", words)


# --- it is to end -----------------------------------------------------------------------------------------------------


def test_a_person_stops_a_run_and_it_stays_stopped(site: Site) -> None:
    run = site.stage()
    site.start(run, stay_at=3)
    reached(run, 3)
    assert site.stop(run) is True
    site.cluster.wait(site.number(run), "COMPLETED", "CANCELLED")
    assert site.observe(run) == ("stopped", "stopped: on request; checkpoint at step 3")
    assert site.stop(run) is False
    assert [job["restart_cnt"] for job in site.jobs(run)] == [0]
    assert site.start(run)["changed"] is True
    site.whole(run)
    assert starts(run) == [0, 3]


@pytest.mark.soak
def test_a_run_that_waits_is_stopped(site: Site) -> None:
    for node in slurm.NODES:
        site.cluster.drain(node)
    run = site.stage()
    site.start(run)
    state, words = site.observe(run)
    assert (state, f"(job {site.number(run)})" in words) == ("queued", True)
    assert site.stop(run) is True
    assert site.states(run) == [["CANCELLED"]]
    state, words = site.observe(run)
    assert (state, words.partition(";")[2]) == ("stopped", " the same command resumes")
    assert starts(run) == []


@pytest.mark.soak
def test_a_launch_and_a_stop_in_the_same_second(site: Site, seen: Seen) -> None:
    run = site.stage()
    answer, stopped = at_once(lambda: site.start(run, stay_at=3), lambda: site.stop(run))
    assert answer["changed"] is True
    if not stopped:  # it came first
        assert site.stop(run) is True
    assert site.observe(run)[0] == "stopped"
    eventually(lambda: site.states(run)[0] in (["COMPLETED"], ["CANCELLED"]))
    assert site.start(run)["changed"] is True
    site.whole(run)
    seen("a launch and a stop in the same second", "Slurm", "the stop waited for the launch, and ended it")


@pytest.mark.soak
def test_a_training_that_does_not_listen_is_killed_and_not_put_back(site: Site, seen: Seen) -> None:
    run = site.stage()
    site.start(run, hang_at=3, ignore_term=1, stop_timeout=2)
    reached(run, 2)
    assert site.stop(run, 2) is True
    site.cluster.wait(site.number(run), "COMPLETED", "CANCELLED")
    assert site.observe(run) == ("stopped", "stopped: on request; checkpoint at step 2")
    assert [job["restart_cnt"] for job in site.jobs(run)] == [0]
    seen("a stop of a training that does not listen", "Slurm", "killed after its time, not put back into the queue")


@pytest.mark.soak
def test_a_job_that_completes_is_stopped_for_good(site: Site) -> None:
    run = site.stage()
    site.start(run, stay_at=3, save_takes=3)
    reached(run, 3)
    site.cluster.ssh(f"scancel {site.number(run)}")
    eventually(lambda: "COMPLETING" in site.states(run)[0])
    assert site.stop(run) is True
    eventually(lambda: "COMPLETING" not in site.states(run)[0])
    assert [(job["restart_cnt"], job["job_state"]) for job in site.jobs(run)] == [(0, ["CANCELLED"])]
    assert rundir.last_complete(run / "output") == 3


def test_scancel_is_no_preemption(site: Site, seen: Seen) -> None:
    run = site.stage()
    site.start(run, stay_at=3)
    reached(run, 3)
    with site.watched(run) as shown:
        site.cluster.ssh(f"scancel {site.number(run)}")
        until(run, "stopped")
        eventually(lambda: site.states(run) == [["CANCELLED"]])
    assert [job["restart_cnt"] for job in site.jobs(run)] == [0]
    assert site.observe(run) == ("stopped", "stopped: its job was cancelled; checkpoint at step 3")
    assert {state for state, _ in shown} == {"running", "stopped"}, shown
    seen("scancel of a run's job", "Slurm", "checkpoint; stopped, not put back into the queue; Slurm said CANCELLED")


@pytest.mark.soak
@pytest.mark.parametrize("how", ["pending", "running", "completing"])
def test_a_launch_in_the_second_of_a_scancel(site: Site, how: str, seen: Seen) -> None:
    if how == "pending":
        for node in slurm.NODES:
            site.cluster.drain(node)
    run = site.stage()
    site.start(run, stay_at=3, save_takes=3)
    number = site.number(run)
    if how != "pending":
        reached(run, 3)
    if how == "completing":
        site.cluster.ssh(f"scancel {number}")
    if how == "pending":
        for node in slurm.NODES:
            site.cluster.resume(node)
    answer, _ = at_once(lambda: site.start(run, stay_at=3), lambda: site.cluster.ssh(f"scancel {number}", check=False))
    go_on(run)
    if "error" in answer or not answer["changed"]:
        eventually(lambda: site.observe(run)[0] in ("stopped", "finished"))
        site.start(run)
    site.whole(run)
    assert len(starts(run)) >= 1
    words = "one training at a time; started at once, or the same command started it"
    seen(f"a launch in the second of a scancel, the job {how}", "Slurm", words)


@pytest.mark.soak
def test_a_launch_waits_for_the_checkpoint_of_the_job_that_was_cancelled(site: Site, seen: Seen) -> None:
    run = site.stage()
    site.start(run, stay_at=3, save_takes=8)
    reached(run, 3)
    site.cluster.ssh(f"scancel {site.number(run)}")
    eventually(lambda: "COMPLETING" in site.states(run)[0])
    go_on(run)
    assert site.start(run)["changed"] is True
    site.whole(run)
    assert starts(run) == [0, 3]
    assert len(site.jobs(run)) == 2
    seen("a launch while a cancelled job saves its checkpoint", "Slurm", "waited for it, and resumed from it")


@pytest.mark.soak
def test_scancel_kills_a_checkpoint_that_takes_too_long(site: Site, seen: Seen) -> None:
    run = site.stage()
    site.start(run, stay_at=3, save_takes=2 * KILL_WAIT)
    reached(run, 3)
    site.cluster.ssh(f"scancel {site.number(run)}")
    site.cluster.wait(site.number(run), "CANCELLED")
    eventually(lambda: "COMPLETING" not in site.states(run)[0])
    state, words = site.observe(run)
    assert (state, "as Slurm says: CANCELLED" in words) == ("stopped", True), words
    go_on(run)
    assert site.start(run)["changed"] is True
    site.whole(run)
    assert starts(run) == [0, 2]
    words = "stopped, in Slurm's words; the same command resumed from the checkpoint before"
    seen("scancel, and a checkpoint takes longer than KillWait", "Slurm", words)


@pytest.mark.soak
def test_the_shared_folder_is_full(site: Site, seen: Seen) -> None:
    small = small_site(site.cluster)
    run = small.stage()
    small.start(run, fill=1)
    until(run, "failed")
    state, words = small.observe(run)
    assert (state, words.partition(":")[0]) == ("failed", "disk full"), words
    shutil.rmtree(run / "output")
    assert small.start(run)["changed"] is True
    small.whole(run)
    seen("the shared folder is full", "Slurm", "failed: disk full; with room again the same command finished it")


@pytest.mark.soak
def test_the_shared_folder_is_full_when_a_job_begins(site: Site, seen: Seen) -> None:
    small = small_site(site.cluster)
    run, late = small.stage(), small.stage()
    for node in slurm.NODES:
        site.cluster.drain(node)
    small.start(run)
    site.cluster.sh("login", "dd if=/dev/zero of=/small/full bs=4096", check=False)
    try:
        assert "No space left on device" in small.start(late)["error"]
        for node in slurm.NODES:
            site.cluster.resume(node)
        eventually(lambda: small.states(run) == [["FAILED"]])
        state, words = small.observe(run)
        assert (state, "cannot write into /small/lora-forge: it is full" in words) == ("failed", True), words
    finally:
        site.cluster.sh("login", "rm /small/full")
    assert not small.jobs(late)
    for one in (run, late):
        assert small.start(one)["changed"] is True
        small.whole(one)
    words = "failed: the node and trainer_root were named; with room again the same command finished it"
    seen("the shared folder is full when a job begins, and when one is launched", "Slurm", words)


# --- Slurm ends it, and takes it back ---------------------------------------------------------------------------------


def test_what_slurm_tells_to_end_goes_back_into_the_queue_and_resumes(site: Site, seen: Seen) -> None:
    run = site.stage()
    site.start(run, stay_at=3)
    reached(run, 3)
    with site.watched(run) as shown, site.watched(run, lately=True) as late:
        site.cluster.sh("login", f"scancel --signal=TERM --batch {site.number(run)}")  # as before the end of its time
        site.let_come_back(run)
        go_on(run)
        site.whole(run)
    assert starts(run) == [0, 3]
    assert [job["restart_cnt"] for job in site.jobs(run)] == [1]
    for states in ({state for state, _ in shown}, {state for state, _ in late}):
        assert {"queued", "finished"} <= states <= {"running", "queued", "finished"}, (shown, late)
    words = "checkpoint, back in the queue by itself, resumed from it; queued meanwhile, never stopped"
    seen("Slurm warns a job of its end", "Slurm", words)


@pytest.mark.soak
def test_slurm_warns_a_job_of_its_end_as_it_comes_to_its_own(site: Site, seen: Seen) -> None:
    run = site.stage()
    site.start(run, steps=4, save_every=4, save_takes=4)
    eventually((run / "output/checkpoint-4").exists)
    site.cluster.sh("login", f"scancel --signal=TERM --batch {site.number(run)}")
    site.whole(run)
    eventually(lambda: site.states(run) == [["COMPLETED"]])
    assert (starts(run), site.observe(run)) == ([0], ("finished", ""))
    assert [job["restart_cnt"] for job in site.jobs(run)] == [0]
    words = "finished, and not put back into the queue"
    seen("Slurm warns a job of its end while its last checkpoint is saved", "Slurm", words)


@pytest.mark.soak
def test_a_run_that_slurm_ends_twice_before_its_checkpoint_has_too_little_time(site: Site, seen: Seen) -> None:
    run = site.stage()
    site.start(run, hang_at=2, ignore_term=1, stop_timeout=1)
    for begins in (1, 2):
        site.let_come_back(run, begins)
        reached(run, 1)
        eventually(lambda: status(run)["state"] == "running")
        site.cluster.sh("login", f"scancel --signal=TERM --batch {site.number(run)}")
    until(run, "failed")
    state, words = site.observe(run)
    assert state == "failed"
    assert "Give it more time (run_slurm: time)" in words
    eventually(lambda: site.states(run) == [["COMPLETED"]])
    words = "failed: more time (run_slurm: time), or more saves"
    seen("Slurm ends a job twice before its first checkpoint", "Slurm", words)


@pytest.mark.soak
def test_the_time_of_a_job_ends(site: Site, seen: Seen) -> None:
    run = site.stage()
    site.start(run, slurm={"time": "1"}, stay_at=3, stop_timeout=5)
    reached(run, 3)
    with site.watched(run) as shown:
        site.let_come_back(run)
        go_on(run)
        site.whole(run)
    assert starts(run) == [0, 3]
    assert {state for state, _ in shown} == {"running", "queued", "finished"}, shown
    seen(
        "the time of its job is over", "Slurm", "checkpoint, back in the queue by itself, resumed from step 3, finished"
    )


@pytest.mark.soak
@pytest.mark.parametrize(
    ("grace", "save_every", "save_takes", "resumed"), [(20, 4, 2, 3), (0, 4, 2, 3), (0, 2, 2 * KILL_WAIT, 2)]
)
def test_a_preemption(site: Site, grace: int, save_every: int, save_takes: int, resumed: int, seen: Seen) -> None:
    site.cluster.sh("login", f"scontrol update PartitionName=gpu GraceTime={grace}")
    run = site.stage()
    site.start(run, steps=4, save_every=save_every, stay_at=3, save_takes=save_takes, stop_timeout=60)
    reached(run, 3)
    node = site.jobs(run)[-1]["nodes"]
    with site.watched(run) as shown:
        site.cluster.sbatch("sleep 600", "--partition=urgent", "--gres=gpu:2", f"--nodelist={node}", user="lin")
        site.let_come_back(run)
        go_on(run)
        site.whole(run)
    assert starts(run) == [0, resumed]
    assert {state for state, _ in shown} == {"running", "queued", "finished"}, shown
    late = save_takes > KILL_WAIT
    which = "resumed from the checkpoint before" if late else "checkpoint, resumed from it"
    words = f"{which}, on the other node; queued meanwhile, never stopped"
    seen(f"a preemption, {grace} s of grace" + ", a checkpoint longer than KillWait" * late, "Slurm", words)


@pytest.mark.soak
def test_the_node_reboots(site: Site, seen: Seen) -> None:
    run = site.stage()
    site.start(run, stay_at=3)
    reached(run, 3)
    with site.watched(run) as shown:
        site.cluster.reboot(site.jobs(run)[-1]["nodes"], 20)
        site.let_come_back(run)
        go_on(run)
        site.whole(run)
    assert starts(run) == [0, 3]
    assert {state for state, _ in shown} == {"running", "queued", "finished"}, shown
    seen("the node reboots", "Slurm", "checkpoint, requeued, resumed from it; queued meanwhile, never stopped")


@pytest.mark.soak
def test_a_node_loses_its_power_and_is_back_at_once(site: Site, seen: Seen) -> None:
    run = site.stage()
    site.start(run, stay_at=3)
    reached(run, 3)
    number, node = site.number(run), site.jobs(run)[-1]["nodes"]
    # A job must be older than BatchStartTimeout and MessageTimeout, 10 s each, for Slurm to miss it as its node reports
    # for work; a younger one it misses when it asks the node again, two minutes later here.
    eventually(lambda: site.cluster.jobs()[number]["start_time"]["number"] < time.time() - 25)
    with site.watched(run) as shown:
        site.cluster.lose_power(node)
        site.let_come_back(run)
        go_on(run)
        site.whole(run)
    assert starts(run) == [0, 2]
    assert [(job["job_id"], job["restart_cnt"]) for job in site.jobs(run)] == [(number, 1)]
    assert {state for state, _ in shown} <= {"running", "stalled", "queued", "finished"}, shown
    words = "requeued as the node was there again; resumed from the last checkpoint"
    seen("a node loses its power, and is back at once", "Slurm", words)


@pytest.mark.soak
def test_a_job_takes_more_memory_than_it_asked_for(site: Site, seen: Seen) -> None:
    if site.cluster.without_cgroup:
        pytest.skip(site.cluster.without_cgroup)
    run = site.stage()
    with site.cluster.configured(TaskPlugin="task/cgroup", SelectTypeParameters="CR_Core_Memory"):
        site.start(run, slurm={"memory": "100M"}, eat=500)
        site.cluster.wait(site.number(run), "OUT_OF_MEMORY")
        words = "killed: ended by SIGKILL; out of memory of its job (run_slurm: memory), or by hand?"
        assert site.observe(run) == ("failed", words)
        assert site.start(run, slurm={"memory": "1G"}, eat=500)["changed"] is True
        site.whole(run)
        site.cluster.until_idle()
    assert starts(run) == [0, 2, 2]
    seen(
        "a job takes more memory than it asked for", "Slurm", f"failed: {words}; with more the same command resumed it"
    )


# --- Slurm does not answer --------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_with_the_controller_away_nobody_knows_and_nothing_is_started(site: Site, seen: Seen) -> None:
    cluster, run, new = site.cluster, site.stage(), site.stage()
    site.start(run, stay_at=3)
    reached(run, 3)
    cluster.until_saved(site.number(run))  # else it takes the job for one that waits, and its node for a faulty one
    cluster.kill("login", "slurmctld")
    answer = site.start(new)
    assert "Slurm has not answered" in answer["error"], answer
    assert "Unable to contact slurm controller" in answer["error"]
    assert site.observe(new)[0] == "unknown"
    state, words = site.observe(run)
    assert state == "unknown"
    assert "Unable to contact slurm controller" in words
    assert "its last word was" in words
    assert "is not started, as nobody knows whether it runs" in site.start(run)["error"]
    stopped = site.stop(run)
    assert "It is told to stop all the same" in stopped["error"]
    until(run, "stopped")  # it needs no Slurm for that
    cluster.start("login", "slurmctld")
    site.stop(run)  # as it was told to: who knows what Slurm kept of the job when it was killed
    assert site.observe(run) == ("stopped", "stopped: on request; checkpoint at step 3")
    assert site.observe(new) == ("stopped", "the queue does not know it any more; the same command resumes")
    assert not site.jobs(new)
    for one in (run, new):
        assert site.start(one)["changed"] is True
        site.whole(one)
    assert starts(run) == [0, 3]
    words = "unknown, with Slurm's words; nothing was started; told to stop, the training did"
    seen("slurmctld is killed during launch, watch and stop", "Slurm", words)


@pytest.mark.soak
def test_the_controller_hangs_during_a_submission(site: Site, seen: Seen) -> None:
    run, secrets, signal = site.stage(), {"HF_TOKEN": "planted"}, "systemctl kill --kill-whom=main --signal"
    site.cluster.sh("login", f"{signal}=STOP slurmctld")  # the kernel takes what is sent to it all the same
    try:
        answer = site.start(run, secrets, stay_at=3)
    finally:
        site.cluster.sh("login", f"{signal}=CONT slurmctld")
    assert "Slurm has not answered, and nobody knows whether it has the job" in answer["error"], answer
    eventually(lambda: site.start(run, secrets, stay_at=3).get("changed") is not None)
    reached(run, 3)
    assert site.observe(run) == ("running", "")
    go_on(run)
    site.whole(run)
    assert starts(run) == [0]
    assert "token: planted" in (run / "train.log").read_text()
    words = f"«{answer['error'].partition(': ')[2].partition('.')[0]}»; the same command attached, or submitted"
    seen("slurmctld hangs while a job is submitted", "Slurm", words)


@pytest.mark.soak
def test_the_controller_dies_as_a_job_is_submitted(site: Site, seen: Seen) -> None:
    run = site.stage()
    sbatch = f'said=$(/usr/bin/sbatch "$@"); {WAITS}; echo "$said"'
    with site.starts_and_waits(run, sbatch, stay_at=3) as ssh:
        site.cluster.kill("login", "slurmctld")
        site.let_sbatch_go_on()
        assert json.loads(ssh.stdout.read())["answer"]["changed"] is True
    assert site.observe(run)[0] == "unknown"
    site.cluster.start("login", "slurmctld")
    # It may have forgotten the job by now, have killed it, or hold it. One that had begun, and that it has forgotten,
    # may train on for all that a login node knows, until its last word is old.
    known = run_state.NETWORK + 2 * slurm.PATIENCE
    eventually(lambda: site.start(run, stay_at=3).get("changed") is not None, known)

    def trains() -> bool:
        state, words = site.observe(run)
        if "held" in words:
            site.cluster.release(site.number(run))
        elif state == "stopped":
            site.start(run, stay_at=3)
        elif state == "queued" and starts(run):
            site.let_come_back(run, len(starts(run)) + 1)
        return state == "running" and status(run)["launch"] == rundir.read_json(run / "run.json")["launch"]

    eventually(trains)
    go_on(run)
    site.whole(run)
    words = "unknown; then what Slurm had kept of it, or the same command submitted it anew"
    seen("slurmctld is killed in the second of a submission", "Slurm", words)


@pytest.mark.soak
def test_the_controller_is_away_as_a_job_puts_itself_back(site: Site, seen: Seen) -> None:
    run = site.stage()
    site.start(run, stay_at=3, save_takes=2)
    reached(run, 3)
    site.cluster.until_saved(site.number(run))
    site.cluster.sh("login", f"scancel --signal=TERM --batch {site.number(run)}")
    site.cluster.kill("login", "slurmctld")
    until(run, "stopped")
    assert site.observe(run)[0] == "unknown"
    site.cluster.start("login", "slurmctld")
    site.let_come_back(run)
    go_on(run)
    site.whole(run)
    assert starts(run) == [0, 3]
    assert [job["restart_cnt"] for job in site.jobs(run)] == [1]
    words = "unknown; the job asked until Slurm answered, was back in the queue, and resumed from its checkpoint"
    seen("slurmctld is killed as a job puts itself back into the queue", "Slurm", words)


@pytest.mark.soak
def test_an_empty_answer_is_no_empty_queue(site: Site, seen: Seen) -> None:
    run = site.stage()
    site.start(run, stay_at=3)
    reached(run, 3)
    site.login = site.wrap("squeue", "exit 0")
    state, words = site.observe(run)
    assert (state, words.partition(";")[0]) == ("unknown", "Slurm does not answer: it said nothing")
    assert "nobody knows whether it runs" in site.start(run)["error"]
    site.login = ""
    assert len(site.jobs(run)) == 1
    go_on(run)
    site.whole(run)
    seen("squeue answers with nothing, and no error", "Slurm", "unknown; nothing was started")


@pytest.mark.soak
def test_without_munge_nobody_knows_and_nothing_is_started(site: Site, seen: Seen) -> None:
    cluster, run, new = site.cluster, site.stage(), site.stage()
    site.start(run, stay_at=3)
    reached(run, 3)
    cluster.stop("login", "munge")
    answer = site.start(new)
    assert "Slurm has not answered" in answer["error"], answer
    state, words = site.observe(run)
    assert state == "unknown"
    assert "auth" in words.lower()
    assert "nobody knows whether it runs" in site.start(run)["error"]
    cluster.start("login", "munge")
    eventually(lambda: site.observe(run) == ("running", ""))
    assert not site.jobs(new)
    go_on(run)
    site.whole(run)
    seen("munge is stopped", "Slurm", "unknown, with Slurm's words; nothing was started; afterwards all went on")


@pytest.mark.soak
def test_a_node_is_without_munge(site: Site, seen: Seen) -> None:
    run = site.stage()
    site.start(run, stay_at=3)
    reached(run, 3)
    node = site.jobs(run)[0]["nodes"]
    with site.watched(run) as shown:
        site.cluster.stop(node, "munge")
        eventually(lambda: down(site, node))
        site.let_come_back(run)
        go_on(run)
        site.whole(run)
    assert starts(run) == [0, 3]
    assert {state for state, _ in shown} == {"running", "queued", "finished"}, shown
    words = "down for Slurm; the new job asked the old training for its checkpoint, and resumed from it"
    seen("munge is stopped on a node", "Slurm", words)


@pytest.mark.soak
def test_a_nodes_daemon_dies_and_is_back_at_once(site: Site, seen: Seen) -> None:
    run = site.stage()
    site.start(run, stay_at=3)
    reached(run, 3)
    node = site.jobs(run)[0]["nodes"]
    site.cluster.kill(node, "slurmd")
    site.cluster.start(node, "slurmd")
    assert site.observe(run) == ("running", "")
    go_on(run)
    site.whole(run)
    eventually(lambda: site.states(run) == [["COMPLETED"]])
    assert starts(run) == [0]
    seen("slurmd is killed, and is back at once", "Slurm", "the training went on")


def down(site: Site, node: str) -> bool:
    """Tell whether Slurm has given a node up."""
    return site.cluster.nodes()[node][0].startswith("down")


@pytest.mark.soak
def test_a_nodes_daemon_dies_and_is_back_when_the_node_is_down(site: Site, seen: Seen) -> None:
    run = site.stage()
    site.start(run, stay_at=3)
    reached(run, 3)
    node = site.jobs(run)[0]["nodes"]
    with site.watched(run) as shown:
        site.cluster.kill(node, "slurmd")
        eventually(lambda: down(site, node))
        site.cluster.start(node, "slurmd")
        site.let_come_back(run)
        go_on(run)
        site.whole(run)
    assert starts(run) == [0, 2]
    assert {state for state, _ in shown} == {"running", "queued", "finished"}, shown
    words = "requeued; the old training was gone; resumed from its last checkpoint"
    seen("slurmd is killed, and is back when the node is down", "Slurm", words)


@pytest.mark.soak
@pytest.mark.parametrize("locks", ["locks", "no locks"])
def test_a_node_is_cut_off_and_trains_on(site: Site, locks: str, seen: Seen) -> None:
    run = site.stage()
    site.start(run, stay_at=3)
    reached(run, 3)
    node = site.jobs(run)[0]["nodes"]
    site.cluster.cut(node)
    try:
        with site.watched(run) as shown:
            eventually(lambda: down(site, node))
            if locks == "no locks":  # as on a shared folder whose locks are each node's own
                (run / "supervisor.lock").unlink()
            site.let_come_back(run)
            go_on(run)
            site.whole(run)
    finally:
        site.cluster.mend(node)
    site.cluster.resume(node)
    site.cluster.until_idle()
    assert starts(run) == [0, 3]
    assert {state for state, _ in shown} == {"running", "queued", "finished"}, shown
    assert rundir.read_json(run / "claim.json")["node"] != node
    assert site.observe(run) == ("finished", "")
    assert len(site.jobs(run)) == 1
    words = "the new job asked the old training for its checkpoint, and resumed from it"
    seen(f"a node is cut off and trains on, its folder there, {locks}", "Slurm", words)


@pytest.mark.soak
def test_a_node_is_cut_off_and_there_is_no_other(site: Site, seen: Seen) -> None:
    run = site.stage()
    site.cluster.drain("c2")
    site.start(run, stay_at=3)
    reached(run, 3)
    site.cluster.cut("c1")
    try:
        eventually(lambda: down(site, "c1"))
        eventually(lambda: site.observe(run)[0] == "queued")
        assert site.start(run)["changed"] is False
        go_on(run)
        site.whole(run)
        assert site.observe(run) == ("finished", "")
    finally:
        site.cluster.mend("c1")
    for node in slurm.NODES:
        site.cluster.resume(node)
    site.cluster.until_idle()
    site.cluster.start_now(site.number(run))
    site.cluster.wait(site.number(run), "COMPLETED")
    assert starts(run) == [0]
    words = "it trained on, and finished; its job, back in the queue, had nothing left to do"
    seen("a node is cut off and trains on, and there is no other node", "Slurm", words)


# --- the node is not as the login node --------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize("lies", ["empty", "another root", "read-only"])
def test_a_node_without_the_folder(site: Site, lies: str, seen: Seen) -> None:
    run, root = site.stage(), "/home/ann/lora-forge"
    empty, told = f"mount -t tmpfs none {root}", f"c1 does not see {root} as this host does: trainer_root must be"
    mounts = {
        "empty": empty,
        "another root": f"{empty}; mkdir {root}/runs; echo {'0' * 32} >{root}/.lora-forge-root; chown -R ann: {root}",
        "read-only": f"mount --bind {root} {root}; mount -o remount,bind,ro {root}",
    }
    site.cluster.sh("c1", mounts[lies])
    try:
        site.start(run, slurm={"nodelist": "c1"})
        eventually(lambda: site.states(run) == [["FAILED"]])
        state, words = site.observe(run)
        told = f"c1 cannot write into {root}: it is full, or read-only there" if lies == "read-only" else told
        assert (state, words.startswith(f"environment: {told}")) == ("failed", True), words
    finally:
        site.cluster.sh("c1", f"umount {root}")
    assert site.start(run, slurm={"nodelist": "c1"})["changed"] is True
    site.whole(run)
    words = "failed: the node and trainer_root were named; nothing was trained"
    seen(f"the node has not the shared folder: {lies}", "Slurm", words)


@pytest.mark.soak
def test_a_node_without_the_python(site: Site, seen: Seen) -> None:
    run = site.stage()
    site.cluster.sh("c1", "cp /usr/bin/python3 /tmp/python")
    site.python = "/tmp/none/python"
    site.start(run, slurm={"nodelist": "c1"})
    eventually(lambda: site.states(run) == [["FAILED"]])
    state, words = site.observe(run)
    assert (state, "on c1" in words, "/tmp/none/python" in words) == ("failed", True, True), words
    site.python = "/usr/bin/python3"
    assert site.start(run)["changed"] is True
    site.whole(run)
    seen("the node has not the training's Python", "Slurm", "failed, in the shell's own words")


# --- what others may see ----------------------------------------------------------------------------------------------


def test_no_secret_leaves_its_file(site: Site, seen: Seen) -> None:
    run = site.stage()
    secrets = {"HF_TOKEN": "planted-in-secrets-1"}
    before = "export HF_TOKEN=planted-in-shell-1 WANDB_API_KEY=planted-in-shell-2 SBATCH_EXPORT=ALL;"
    site.start(run, secrets, before, stay_at=3)
    reached(run, 3)
    number, node, noted = site.number(run), site.jobs(run)[0]["nodes"], status(run)

    def environment(name: str) -> str:
        return site.cluster.sh(node, f"tr '\\0' '\\n' </proc/{noted[name]['pid']}/environ").stdout

    told = [
        site.cluster.sh("login", "squeue --json; scontrol --details show job; squeue --Format=ALL", check=False).stdout,
        site.cluster.sh("login", f"scontrol write batch_script {number} -").stdout,
        site.cluster.sh("login", "grep -r planted /var/lib/slurm /var/log/slurm /home/ann", check=False).stdout,
        site.cluster.sh(node, "grep -r planted /var/lib/slurm /var/log/slurm /tmp", check=False).stdout,
        site.cluster.sh(node, "grep -ha planted /proc/[0-9]*/cmdline", check=False).stdout,
        environment("supervisor"),
    ]
    assert "lora-forge" in told[0]
    assert "supervisor.py" in told[1]
    found = [line for line in "\n".join(told).splitlines() if "planted" in line and "planted /proc" not in line]
    # The stand-in prints its token.
    there = site.seen_there(run)
    token = secrets["HF_TOKEN"]
    assert sorted(found) == [f"{there}/env:HF_TOKEN={token}", f"{there}/train.log: token: {token}"]
    assert (run / "env").stat().st_mode & 0o777 == 0o600
    assert "HF_TOKEN=planted-in-secrets-1" in environment("trainer")
    go_on(run)
    site.whole(run)
    assert not (run / "env").exists()
    seen("secrets looked for in Slurm's files, words and jobs", "Slurm", "in the run's file of mode 0600 alone")


@pytest.mark.soak
def test_two_jobs_of_a_node_have_the_gpus_that_slurm_gave_them_and_train_at_once(site: Site, seen: Seen) -> None:
    runs = [site.stage(), site.stage()]
    for number, run in enumerate(runs):
        site.start(run, slurm={"nodelist": "c1"}, stay_at=3, lane=f"slurm {number}")
    for run in runs:
        reached(run, 3)
    assert [site.observe(run) for run in runs] == [("running", "")] * 2
    given = {site.cluster.sh("c1", f"tr '\\0' '\\n' </proc/{status(run)['trainer']['pid']}/environ | "
                                   "grep ^CUDA_VISIBLE_DEVICES=").stdout.strip() for run in runs}  # fmt: skip
    assert given == {"CUDA_VISIBLE_DEVICES=0", "CUDA_VISIBLE_DEVICES=1"}
    for run in runs:
        go_on(run)
        site.whole(run)
    seen("two jobs on one node", "Slurm", "trained at once, each on the GPU that Slurm gave it")


# --- the queue --------------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_what_keeps_a_job_in_the_queue_is_told_in_slurms_words(site: Site, seen: Seen) -> None:
    cluster, run = site.cluster, site.stage()
    for node in slurm.NODES:
        cluster.drain(node, "a fan")
    site.start(run)
    number = site.number(run)
    with site.watched(run) as shown:

        def told(words: str) -> None:
            eventually(lambda: words in site.observe(run)[1])

        told("DRAINED or reserved")
        cluster.hold(number)
        told("JobHeldAdmin")
        cluster.release(number)
        cluster.sh("login", "scontrol update PartitionName=gpu State=DOWN")
        told("PartitionDown")
        cluster.sh("login", "scontrol update PartitionName=gpu State=INACTIVE")
        told("PartitionInactive")
        cluster.sh("login", "scontrol update PartitionName=gpu State=UP")
        theirs = cluster.sbatch("exit 1", "--partition=urgent")
        cluster.sh("login", f"scontrol update JobId={number} Dependency=afterany:{theirs}")
        told("Dependency")
        theirs = cluster.sbatch("exit 1", "--partition=urgent", "--hold")
        cluster.sh("login", f"scontrol update JobId={number} Dependency=afterok:{theirs}")
        cluster.ssh(f"scancel {theirs}")
        told("DependencyNeverSatisfied")
        assert site.start(run)["changed"] is False
        cluster.sh("login", f"scontrol update JobId={number} Dependency=")
        for node in slurm.NODES:
            cluster.resume(node)
        site.whole(run)
    assert {state for state, _ in shown} <= {"queued", "running", "finished"}
    assert site.states(run) == [["COMPLETED"]]
    words = "queued, with Slurm's reason, for as long as it took"
    fault = "a job is held, its node drained, its partition down or inactive, its dependency open or impossible"
    seen(fault, "Slurm", words)


@pytest.mark.soak
def test_a_partition_takes_no_more_jobs(site: Site, seen: Seen) -> None:
    run = site.stage()
    site.cluster.sh("login", "scontrol update PartitionName=gpu State=DRAIN")
    refused = site.start(run)["error"]
    assert f"Slurm refuses the job of {run.name}: " in refused
    assert "partition" in refused
    site.cluster.sh("login", "scontrol update PartitionName=gpu State=UP")
    assert site.start(run)["changed"] is True
    site.whole(run)
    words = f"«{refused.partition(': ')[2].partition('. See')[0]}»; afterwards the same command submitted it"
    seen("a partition is drained", "Slurm", words)


@pytest.mark.soak
def test_a_strangers_job_of_the_same_name_is_nobodys_business(site: Site, seen: Seen) -> None:
    run = site.stage()
    name = job_name(pathlib.Path(site.seen_there(run)))
    theirs = site.cluster.sbatch("sleep 600", f"--job-name={name}", user="lin")
    site.cluster.wait(theirs, "RUNNING")
    assert site.observe(run)[0] == "absent"
    site.start(run, stay_at=3)
    reached(run, 3)
    assert site.stop(run) is True
    assert site.stop(run) is False
    assert site.cluster.jobs()[theirs]["job_state"] == ["RUNNING"]
    assert site.observe(run) == ("stopped", "stopped: on request; checkpoint at step 3")
    seen("another user's job of the same name", "Slurm", "not shown, not cancelled")


@pytest.mark.soak
def test_a_job_that_slurm_has_forgotten_and_whose_id_is_anothers_now(site: Site, seen: Seen) -> None:
    cluster, run = site.cluster, site.stage()
    conf = cluster.conf / "slurm.conf"
    before = conf.read_text()
    for node in slurm.NODES:
        cluster.drain(node)
    site.start(run)
    number = site.number(run)
    try:
        lines = f"\nFirstJobId={number}\nMaxJobId={number + 2}\n"
        conf.write_text(before.replace("MinJobAge=300", "MinJobAge=2") + lines)
        cluster.sh("login", f"scancel {number}")
        cluster.reconfigure()
        eventually(lambda: number not in cluster.jobs())
        state, words = site.observe(run)
        assert state == "stopped"
        for _ in range(3):
            theirs = cluster.sbatch("sleep 600", user="lin")
            if theirs == number:
                break
        assert theirs == number
        assert site.observe(run) == (state, words)
        assert site.stop(run) in (True, False)
        assert cluster.jobs()[number]["job_state"] == ["PENDING"]
    finally:
        conf.write_text(before)
        cluster.reconfigure()
    for node in slurm.NODES:
        cluster.resume(node)
    assert site.start(run)["changed"] is True
    site.whole(run)
    words = "the stranger's was not shown, and not cancelled; launched anew"
    seen("Slurm forgets a job, and gives its id to another user's", "Slurm", words)


@pytest.mark.parametrize("lost", ["answer", pytest.param("command", marks=pytest.mark.soak)])
def test_the_answer_of_sbatch_is_lost(site: Site, lost: str, seen: Seen) -> None:
    run = site.stage()
    ends = "echo 'sbatch: error: Batch job submission failed: Unable to contact slurm controller' >&2; exit 1"
    ending = ends if lost == "answer" else "kill -9 $PPID"
    before = site.wrap("sbatch", f'/usr/bin/sbatch "$@" >/dev/null\n{ending}')
    secrets = {"HF_TOKEN": "planted"}
    if lost == "answer":
        assert site.start(run, secrets, before, stay_at=3)["changed"] is True
    else:
        with pytest.raises(slurm.Problem):
            site.start(run, secrets, before, stay_at=3)
    reached(run, 3)
    assert site.start(run, secrets, stay_at=3)["changed"] is False
    assert len(site.jobs(run)) == 1
    go_on(run)
    site.whole(run)
    assert "token: planted" in (run / "train.log").read_text()
    assert not (run / "env").exists()
    words = "one job, with its secrets; the next launch attached to it"
    seen(f"sbatch's {lost} is lost after the submission", "Slurm", words)


def test_a_hidden_partition_and_a_job_that_is_suspended(site: Site, seen: Seen) -> None:
    cluster, run = site.cluster, site.stage()
    cluster.sh("login", "scontrol create PartitionName=secret Nodes=c1,c2 Hidden=YES MaxTime=INFINITE State=UP")
    try:
        site.start(run, slurm={"partition": "secret"}, stay_at=3)
        reached(run, 3)
        assert site.cluster.ssh("squeue --noheader --me").stdout == ""  # what Slurm shows its owner
        assert site.observe(run)[0] == "running"
        assert site.start(run)["changed"] is False
        number = site.number(run)
        cluster.sh("login", f"scontrol suspend {number}")
        assert site.observe(run) == ("stalled", f"Slurm has suspended its job {number}, and will let it go on")
        cluster.sh("login", f"scontrol resume {number}")
        assert site.stop(run) is True
        assert site.observe(run) == ("stopped", "stopped: on request; checkpoint at step 3")
        assert len(site.jobs(run)) == 1
    finally:
        cluster.clear()
        cluster.sh("login", "scontrol delete PartitionName=secret")
    seen("a partition is hidden, and its job suspended", "Slurm", "one job, seen as what it is")


@pytest.mark.soak
@pytest.mark.parametrize("moment", ["before sbatch submits", "when sbatch has submitted"])
def test_the_login_node_reboots_in_the_middle_of_a_launch(site: Site, moment: str, seen: Seen) -> None:
    # The last one: the small folder goes with it.
    run, secrets, submitted = site.stage(), {"HF_TOKEN": "planted"}, "has" in moment
    sbatch = f'said=$(/usr/bin/sbatch "$@"); {WAITS}' if submitted else WAITS
    with site.starts_and_waits(run, sbatch, secrets=secrets, stay_at=3):
        if submitted:
            site.cluster.until_saved(site.number(run))
        site.cluster.reboot("login")
    eventually(lambda: site.cluster.ssh("true", check=False).returncode == 0)
    eventually(lambda: site.cluster.sh("login", "scontrol ping", check=False).returncode == 0)
    assert site.start(run, secrets, stay_at=3)["changed"] is not submitted
    reached(run, 3)
    go_on(run)
    site.whole(run)
    assert starts(run) == [0]
    assert len(site.jobs(run)) == 1
    assert "token: planted" in (run / "train.log").read_text()
    words = "the same command attached to its job" if submitted else "the same command submitted it"
    seen(f"the login node reboots during a launch, {moment}", "Slurm", words)
