"""Slurm's words: what is asked of it, and what is made of its answers. The words are those of Slurm 24.11.5."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess

import pytest
import rundir
import slurm_job
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.trainer import run_state, runs, slurm
from ansible.module_utils.lora_forge.trainer.run_state import Progress

RUN_DIR = pathlib.Path("/shared/ann/lora-forge/runs/witness-4038a6e2fc08")
NAME = slurm.job_name(RUN_DIR)
GIVEN = {"partition": "gpu", "gres": "gpu:1", "time": "12:00:00"}
SILENT = "squeue: error: Unable to contact slurm controller (connect failure)"


class Cluster:
    """Answers commands: by the first word, its exit status and what it prints, one answer after another."""

    def __init__(self, **answers: tuple[int, str] | list[tuple[int, str]]):
        self.answers = {name: given if isinstance(given, list) else [given] for name, given in answers.items()}
        self.asked: list[tuple[list[str], str]] = []

    def __call__(self, command, given):
        self.asked.append((list(command), given))
        left = self.answers[command[0]]
        return left.pop(0) if len(left) > 1 else left[0]


def line(number=2, state="RUNNING", reason="None", start="2026-11-30T10:02:30", nodes="c1", name=NAME) -> str:
    return f"{number}|{name}|{state}|{reason}|{start}|{nodes}"


@pytest.fixture(autouse=True)
def root(monkeypatch):
    monkeypatch.setattr(slurm, "mark_root", lambda root: "0123456789abcdef0123456789abcdef")


# What the inventory says


@pytest.mark.parametrize(
    "given",
    [
        GIVEN,
        {"gres": "gpu:a100:1"},
        {"gres": "gpu:a100:1,shard:0"},
        {"gres": "gpu"},
        {"gres": "gpu:1(S:0-1)"},
        {**GIVEN, "time": "2-12"},
        {**GIVEN, "time": "90"},
        {**GIVEN, "time": "3:01"},
        {**GIVEN, "time": "0"},
        {**GIVEN, "time": "UNLIMITED"},
        {**GIVEN, "cpus": 8, "memory": "64G", "constraint": "a100|h100&nvlink", "nodelist": "c[1-2,7]"},
    ],
)
def test_what_a_job_may_ask_for(given):
    assert slurm.problems(given, 1) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("gpu", "must be a mapping"),
        ({**GIVEN, "partiton": "gpu"}, "no «partiton»; did you mean «partition»"),
        ({**GIVEN, "wrap": "rm -rf /"}, "no «wrap»"),
        ({**GIVEN, "account": "lab --wrap=x"}, "account is «lab --wrap=x»"),
        ({**GIVEN, "account": "--help"}, "account is «--help»"),
        ({**GIVEN, "account": ""}, "account is «»"),
        ({**GIVEN, "account": "lab\n#SBATCH"}, "account is"),
        ({**GIVEN, "time": 43200}, "must stand in quotes"),  # YAML 1.1 reads 12:00:00 so
        ({**GIVEN, "time": "noon"}, "time is «noon»"),
        ({**GIVEN, "time": "3"}, "time is «3», and a job is told to end 180 s before"),
        ({**GIVEN, "time": "00:02:59"}, "it would come to nothing"),
        ({**GIVEN, "cpus": True}, "cpus must be text or a whole number"),
        ({**GIVEN, "cpus": ["8"]}, "cpus must be text or a whole number"),
        ({"partition": "gpu"}, "asks for no GPU, and a run takes 1 (run_gpus): set gres to 'gpu:1'"),
        ({**GIVEN, "gres": "gpu:2"}, "asks for 2 GPUs, and a run takes 1"),
    ],
)
def test_what_a_job_may_not_ask_for(given, words):
    assert words in "; ".join(slurm.problems(given, 1))


@pytest.mark.parametrize(
    ("time", "hours"),
    [("90", 1.5), ("90:36", 1.51), ("12:30:00", 12.5), ("2-00", 48), ("1-12:30", 36.5), ("1-00:00:36", 24.01),
     ("UNLIMITED", None), (None, None)],
)  # fmt: skip
def test_what_a_time_comes_to(time, hours):
    found = slurm.hours_of({"time": time} if time else {})
    assert found == (None if hours is None else pytest.approx(hours))


def test_a_rehearsal_needs_no_gpu():
    assert slurm.problems({}, 0) == []
    assert slurm.problems(GIVEN, 0) == []


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("90", 5400), ("1:30", 90), ("12:00:00", 43200), ("2-12", 216000), ("1-0:30", 88200), ("1-0:0:5", 86405),
     ("0", None), ("INFINITE", None)],
)  # fmt: skip
def test_time_limits_are_read_as_slurm_reads_them(limit, seconds):
    assert slurm.seconds_of(limit) == seconds


# The job


def test_a_job_carries_nothing_of_who_submits_it_and_signals_its_first_process_alone():
    options = slurm.job_options(GIVEN, RUN_DIR, stop_timeout=120)
    assert {"--export=NIL", "--requeue", "--dependency=singleton", "--signal=B:TERM@180"} <= set(options)
    assert {"--partition=gpu", "--gres=gpu:1", "--time=12:00:00", "--output=/dev/null"} <= set(options)
    assert f"--comment={RUN_DIR.name}" in options
    assert slurm.job_options(GIVEN, RUN_DIR, 120, ["7", "9"])[3] == "--dependency=singleton,afterany:7,afterany:9"
    assert "--signal=B:TERM@65535" in slurm.job_options({}, RUN_DIR, stop_timeout=10**6)


def test_a_job_has_as_many_nodes_as_a_run_takes():
    assert "--nodes=1" in slurm.job_options(GIVEN, RUN_DIR, 120)
    assert "--nodes=3" in slurm.job_options(GIVEN, RUN_DIR, 120, nodes=3)
    cluster = Cluster(sbatch=(0, "12"))
    slurm.submit(GIVEN, RUN_DIR, ["python"], 120, run=cluster, nodes=2)
    slurm.try_out(GIVEN, RUN_DIR, 120, cluster, nodes=2)
    assert ["--nodes=2" in command for command, _ in cluster.asked] == [True, True]


def test_two_roots_have_two_names():
    assert slurm.job_name(RUN_DIR) != slurm.job_name(pathlib.Path("/shared/ann/other/runs") / RUN_DIR.name)


@pytest.mark.parametrize("shared", [True, False])
def test_the_script_becomes_the_supervisor_where_the_node_sees_the_same_folder(tmp_path, shared):
    run_dir = tmp_path / "it's a root" / "runs" / "witness-1"
    run_dir.mkdir(parents=True)
    (run_dir.parents[1] / rundir.ROOT_MARK).write_text("right\n" if shared else "another\n")
    script = slurm.job_script(run_dir, ["sh", "-c", "echo $PPID $$; exit 7"], "right", "/opt/slurm/bin")
    done = subprocess.run(["sh"], input=script, capture_output=True, text=True, env={}, timeout=60, check=False)
    assert done.returncode == (7 if shared else slurm.NOT_SHARED)
    assert (run_dir / "slurm.log").exists() == shared


def test_an_answer_of_sbatch_is_the_id_with_or_without_its_cluster():
    cluster = Cluster(sbatch=(0, "12;test"))
    assert slurm.submit(GIVEN, RUN_DIR, ["python", "supervisor.py"], 120, run=cluster) == "12"
    command, script = cluster.asked[0]
    assert "supervisor.py" in script
    assert not any("supervisor.py" in word for word in command)


def test_what_slurm_refuses_is_told_in_its_own_words():
    said = "sbatch: error: invalid partition specified: gpuu\nsbatch: error: Batch job submission failed: Invalid"
    with pytest.raises(
        UserError, match=r"refuses the job of witness-4038a6e2fc08: invalid partition specified: gpuu; "
    ):
        slurm.submit(GIVEN, RUN_DIR, ["python"], 120, run=Cluster(sbatch=(1, said)))


def test_where_the_answer_of_sbatch_is_lost_the_queue_is_asked():
    lost = (1, "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)")
    assert slurm.submit(GIVEN, RUN_DIR, ["python"], 120, run=Cluster(sbatch=lost, squeue=(0, line(7)))) == "7"
    for queue in ((0, ""), (0, line(7, "CANCELLED")), (0, line(7, name="lora-forge-other-1"))):
        with pytest.raises(UserError, match="has not answered, and witness-4038a6e2fc08 is not in its queue"):
            slurm.submit(GIVEN, RUN_DIR, ["python"], 120, run=Cluster(sbatch=lost, squeue=queue))
    with pytest.raises(slurm.Unanswered, match="nobody knows whether it has the job of witness-4038a6e2fc08"):
        slurm.submit(GIVEN, RUN_DIR, ["python"], 120, run=Cluster(sbatch=lost, squeue=(1, SILENT)))


@pytest.mark.parametrize(
    ("version", "old"),
    [("slurm 24.11.5", False), ("slurm 23.02.0", False), ("slurm 22.05.11", True), ("slurm-wlm 21.08.5", True)],
)
def test_a_slurm_without_what_is_needed_is_refused(version, old):
    cluster = Cluster(sbatch=(0, version))
    if old:
        with pytest.raises(UserError, match=r"needs Slurm 23\.02"):
            slurm.check_version(cluster)
    else:
        assert slurm.check_version(cluster) == version


def test_what_could_never_run_is_told_and_silence_is_no_refusal():
    refused = "allocation failure: Requested node configuration is not available"
    assert slurm.try_out(GIVEN, RUN_DIR, 120, Cluster(sbatch=(1, refused))) == refused
    cluster = Cluster(sbatch=(0, "sbatch: Job 3 to start at …"))
    assert slurm.try_out(GIVEN, RUN_DIR, 120, cluster) == ""
    assert "--test-only" in cluster.asked[0][0]
    with pytest.raises(slurm.Silent):
        slurm.try_out(GIVEN, RUN_DIR, 120, Cluster(sbatch=(1, SILENT)))


# The queue


def test_the_queue_is_asked_once_for_all_runs_and_not_again_at_once():
    other = RUN_DIR.with_name("mayor-1")
    cluster = Cluster(squeue=(0, "\n".join([line(4), line(5, "PENDING", "Resources", name=slurm.job_name(other))])))
    queue = slurm.Queue(cluster)
    job, silence = queue.job(RUN_DIR)
    assert (job and job.number, silence) == ("4", "")
    assert queue.job(other)[0].words == "Resources (job 5), expected 2026-11-30 10:02"
    assert queue.job(RUN_DIR.with_name("crew-1")) == (None, "")
    held = slurm.Job("6", NAME, "PENDING", "JobHeldUser")
    assert held.words == "JobHeldUser (job 6); scontrol release 6 lets it go on"
    assert len(cluster.asked) == 1
    queue.job(RUN_DIR, anew=True)
    assert len(cluster.asked) == 2


def test_of_several_jobs_the_one_that_lives_counts_and_of_those_the_one_that_runs():
    def chosen(*lines: str) -> str | None:
        job, _ = slurm.Queue(Cluster(squeue=(0, "\n".join(lines)))).job(RUN_DIR)
        return job and job.number

    assert chosen(line(1, "COMPLETED"), line(2, "PENDING")) == "2"
    assert chosen(line(3, "PENDING", "Dependency"), line(2, "RUNNING")) == "2"
    assert chosen(line(2, "CANCELLED"), line(1, "FAILED")) == "2"
    assert chosen(line(2, "COMPLETING"), line(3, "PENDING")) == "2"
    assert chosen() is None


def test_lines_that_are_none_of_ours_are_passed_over():
    odd = ["", "slurm_load_jobs warning", "x|y", line("4_[1-3]"), line(9, name="stranger"), f"a|{NAME}|RUNNING|b|c|d"]
    assert slurm.ask(Cluster(squeue=(0, "\n".join([*odd, line(4)])))) == {
        NAME: [slurm.Job("4", NAME, "RUNNING", "", "2026-11-30T10:02:30", "c1")]
    }


@pytest.mark.parametrize("answer", [(1, SILENT), (1, "slurm_load_jobs error: Protocol authentication error"), (1, "")])
def test_an_error_is_silence_and_never_an_empty_queue(answer):
    job, silence = slurm.Queue(Cluster(squeue=answer)).job(RUN_DIR)
    assert job is None
    assert silence.startswith("Slurm does not answer: ")


def test_jobs_are_cancelled_by_name_and_user():
    cluster = Cluster(scancel=(0, ""))
    slurm.cancel(RUN_DIR, cluster)
    assert f"--name={NAME}" in cluster.asked[0][0]
    assert any(word.startswith("--user=") for word in cluster.asked[0][0])


def test_the_exit_status_of_a_strangers_job_is_nobodys_business():
    job = slurm.Job("4", NAME, "FAILED")
    known = f"JobId=4 JobName={NAME} UserId=ann(1001) JobState=FAILED ExitCode=66:0 DerivedExitCode=0:0"
    assert slurm.exit_status(job, Cluster(scontrol=(0, known))) == 66
    assert slurm.exit_status(job, Cluster(scontrol=(0, known.replace(NAME, "theirs")))) is None
    assert slurm.exit_status(job, Cluster(scontrol=(1, "slurm_load_jobs error: Invalid job id specified"))) is None


# What follows


def conclude(noted=None, waits="", lives=False, heard=True, silence="", age=3.0, fault="", **status):
    given = {"state": noted, "exit_code": 0, **status} if noted else {}
    done = Progress(step=12, planned=12, loss=7.5)
    return run_state.conclude_job(
        given, done, waits, lives, heard, silence, "its job 4 has ended as Slurm says: NODE_FAIL", fault=fault,
        heartbeat_age=age, heartbeat_timeout=60, stall_timeout=1800,
    )  # fmt: skip


REQUEUED = {"noted": "stopped", "reason": {"kind": "requeued", "detail": "by Slurm, which starts it again"}}


@pytest.mark.parametrize(
    ("seen", "state", "words"),
    [
        ({"noted": None, "waits": "Resources (job 4)", "heard": False}, "queued", "Resources (job 4)"),
        ({"noted": None, "lives": True, "heard": False}, "queued", "its job begins"),
        ({"noted": "running", "lives": True}, "running", ""),
        ({"noted": "running", "lives": True, "age": 500.0}, "stalled", "silent for 500 s"),
        ({"noted": "running", "lives": True, "age": 100.0}, "running", ""),  # a shared folder shows what is old
        ({"noted": "running", "lives": True, "idle": 2000.0}, "stalled", "no step for 2003 s"),
        ({"noted": "running"}, "stopped", "NODE_FAIL; the same command resumes"),
        ({"noted": "finished", "lives": True}, "finished", ""),  # COMPLETING
        ({"noted": "finished", "silence": "Slurm does not answer: no"}, "finished", ""),
        ({"noted": "failed", "reason": {"kind": "crashed", "detail": "x"}}, "failed", "crashed: x"),
        ({"noted": "stopped", "lives": True, "waits": "BeginTime (job 4)"}, "queued", "BeginTime"),
        ({"noted": "stopped"}, "stopped", ""),
        ({"noted": "stopped", "silence": "Slurm does not answer: no"}, "unknown", "does not answer"),
        ({"noted": "running", "silence": "Slurm does not answer: no"}, "unknown", "last word was 3 s ago"),
        ({"noted": "stopped", "heard": False, "lives": True}, "queued", "its job begins"),  # of an earlier launch
        ({"noted": "stopped", "heard": False}, "stopped", "NODE_FAIL"),
        ({"noted": None, "heard": False}, "stopped", "NODE_FAIL"),
        ({"noted": None, "heard": False, "fault": "c1 is odd"}, "failed", "environment: c1 is odd"),
        (REQUEUED, "stopped", "NODE_FAIL; the same command resumes"),  # it has not come back
        ({**REQUEUED, "lives": True}, "queued", "by Slurm, which starts it again"),  # COMPLETING, or begun anew
        ({**REQUEUED, "lives": True, "waits": "BeginTime (job 4)"}, "queued", "BeginTime (job 4)"),
        ({**REQUEUED, "silence": "Slurm does not answer: no"}, "unknown", "does not answer"),
    ],
)
def test_the_state_of_a_run_that_slurm_has(seen, state, words):
    found, detail = conclude(**seen)
    assert found == state
    assert words in detail


def test_a_trainer_with_two_hundred_runs_in_the_queue_asks_it_once(tmp_path, monkeypatch):
    """By a pretended squeue on PATH, as a module on the login node finds it."""
    folders = [tmp_path / f"runs/witness-{number:012x}" for number in range(200)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"run_id": folder.name, "backend": "slurm", "launch": "1"}))
    told = [line(at, "PENDING", "Priority", "2026-12-01T14:20:00", "", slurm.job_name(folder))
            for at, folder in enumerate(folders, 1)]  # fmt: skip
    (tmp_path / "queue").write_text("\n".join(told))
    (tmp_path / "squeue").write_text(f"#!/bin/sh\necho >>{tmp_path}/asked\ncat {tmp_path}/queue\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(runs.rundir, "lane_holder", None)  # which reads all runs for each of them
    seen = runs.observe_all(tmp_path, [])
    assert (tmp_path / "asked").read_text() == "\n"
    assert [run.state for run in seen] == ["queued"] * 200
    assert seen[6].detail == "Priority (job 7), expected 2026-12-01 14:20"


# What a job that is told to end knows of itself


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("JobState=RUNNING Reason=None Restarts=1 PreemptTime=None", ""),  # a warning
        ("JobState=COMPLETING Reason=None Restarts=1 PreemptTime=None", "cancelled"),
        ("JobState=CANCELLED Reason=None Restarts=1 PreemptTime=None", "cancelled"),
        ("JobState=COMPLETING Reason=None Restarts=2", "requeued"),
        ("JobState=COMPLETING Reason=TimeLimit Restarts=1 PreemptTime=None", ""),
        ("JobState=COMPLETING Reason=None Restarts=1 PreemptTime=2026-11-30T10:27:06", ""),
        ("Invalid job id specified", ""),
    ],
)
def test_what_slurm_has_in_mind_with_a_job_that_it_tells_to_end(said, meant):
    assert slurm_job.fate(f"JobId=9 JobName=x {said} ExitCode=0:0", restarts="1") == meant


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("JobState=RUNNING StartTime=2026-11-30T10:00:00 PreemptTime=None", False),
        ("JobState=RUNNING StartTime=2026-11-30T10:00:00 PreemptTime=2026-11-30T09:00:00", False),  # the time before
        ("JobState=RUNNING StartTime=2026-11-30T10:00:00 PreemptTime=2026-11-30T10:27:06", True),  # its grace
        ("JobState=COMPLETING StartTime=2026-11-30T10:00:00", True),
    ],
)
def test_a_job_that_slurm_is_about_to_end(said, told):
    assert slurm_job.is_told(f"JobId=9 {said} EndTime=x") is told


# A job of several nodes


SPEC = {"nodes": 2, "port": 29400}


def test_what_each_node_runs_is_a_step_of_the_job():
    assert slurm_job.on_nodes({}, "--overlap") == []
    words = slurm_job.on_nodes(SPEC, "--overlap")
    assert (words[0], words[-1]) == ("srun", "--overlap")
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--export=ALL"} <= set(words)


def test_the_nodes_meet_on_the_first_one_at_a_port_of_their_job():
    assert slurm_job.meeting({}, {"SLURM_JOB_ID": "4711"}) == {}
    found = slurm_job.meeting(SPEC, {"SLURM_JOB_ID": "4711"})
    assert found == {"PET_RDZV_ENDPOINT": f"{os.uname().nodename}:30111", rundir.ONE_FOLDER: "1"}


@pytest.fixture
def check(tmp_path):
    """Return a function that runs the check of a node, as srun does; it returns its exit status and what it printed."""
    run_dir = tmp_path / "runs/witness-1"
    run_dir.mkdir(parents=True)
    (tmp_path / rundir.ROOT_MARK).write_text("right\n")

    def run(gate: list[str], node: str = "c2", sees: str = "right") -> tuple[int, str]:
        command = slurm_job.check_command(run_dir, {**SPEC, "gate": gate})
        (tmp_path / rundir.ROOT_MARK).write_text(f"{sees}\n")
        env = {"PATH": os.environ["PATH"], "SLURMD_NODENAME": node}
        done = subprocess.run(command[command.index("/bin/sh") :], env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    return run


def test_a_node_that_will_do_says_nothing(check):
    assert check([]) == (0, "")
    assert check(["sh", "-c", "echo fine"]) == (0, "")


def test_a_node_without_the_folder_is_named(check, tmp_path):
    code, said = check(["true"], sees="another")
    words = f"c2: does not see {tmp_path} as the login node does: trainer_root must be in a shared folder"
    assert (code, slurm_job.faults(said)) == (1, words)


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ('echo noise; echo \'{"ok": false, "error": "CUDA is old"}\'; exit 1', "CUDA is old"),
        ("echo noise; echo ImportError: torch >&2; exit 7", "ImportError: torch"),
        ("exit 1", "it said nothing"),
    ],
)
def test_what_is_wrong_with_a_nodes_gpu_is_told_with_its_name(check, gate, words):
    code, said = check(["sh", "-c", gate])
    assert (code, slurm_job.faults(said)) == (1, f"c2: its GPU does not do: {words}")


def test_all_nodes_that_will_not_do_are_told_and_where_none_speaks_slurm_does():
    beside = "srun: error: c2: task 1: Exited with exit code 1\n"
    assert slurm_job.faults(f"@c3: its GPU does not do: b\n{beside}@c2: its GPU does not do: a\n") == (
        "c2: its GPU does not do: a; c3: its GPU does not do: b"
    )
    assert slurm_job.faults("srun: error: Unable to create step") == "srun: error: Unable to create step"


def test_one_node_without_a_gate_is_not_looked_at(tmp_path):
    assert slurm_job.check_command(tmp_path / "runs/witness-1", {}) == []


@pytest.mark.parametrize(
    ("env", "writes"),
    [
        ({}, True),
        ({"RANK": "4", "LOCAL_RANK": "0"}, True),  # the first one of another host, with a folder of its own
        ({"RANK": "1", "LOCAL_RANK": "1"}, False),
        ({"RANK": "4", "LOCAL_RANK": "0", rundir.ONE_FOLDER: "1"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0", rundir.ONE_FOLDER: "1"}, True),
    ],
)
def test_who_writes_into_a_run_directory(env, writes, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", rundir.ONE_FOLDER):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert rundir.writes() is writes
