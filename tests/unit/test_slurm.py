"""Slurm's words: what is asked of it, and what is made of its answers. The words are those of Slurm 24.11.5."""

from __future__ import annotations

import errno
import itertools
import json
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import threading
import types

import pytest
import slurm_job
from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.trainer import (
    backend,
    launching,
    run_state,
    runs,
    slurm,
    slurm_commands,
    slurm_queue,
)
from ansible.module_utils.lora_forge.trainer.run_state import Progress
from ansible.module_utils.lora_forge.trainer.slurm_commands import Silent
from ansible.module_utils.lora_forge.trainer.slurm_queue import Job, Queue, job_name

RUN_DIR = pathlib.Path("/shared/ann/lora-forge/runs/witness-4038a6e2fc08")
NAME = job_name(RUN_DIR)
GIVEN = {"partition": "gpu", "gres": "gpu:1", "time": "12:00:00"}
SILENT = "squeue: error: Unable to contact slurm controller (connect failure)"
HEAD = "JOBID|NAME|STATE|START_TIME|NODELIST|REASON"


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
    return f"{number}|{name}|{state}|{start}|{nodes}|{reason}"


def table(*lines: str) -> tuple[int, str]:
    """Return what squeue answers with these jobs."""
    return 0, "\n".join([HEAD, *lines])


@pytest.fixture(autouse=True)
def root(monkeypatch):
    monkeypatch.setattr(slurm, "mark_root", lambda root: "0123456789abcdef0123456789abcdef")


# The job


def test_a_job_carries_nothing_of_who_submits_it_and_signals_its_first_process_alone():
    options = slurm.job_options(GIVEN, RUN_DIR, stop_timeout=120)
    assert {"--export=NIL", "--requeue", "--dependency=singleton", "--signal=B:TERM@180"} <= set(options)
    assert {"--partition=gpu", "--gres=gpu:1", "--time=12:00:00", "--output=/dev/null"} <= set(options)
    assert f"--comment={RUN_DIR.name}" in options
    assert slurm.job_options(GIVEN, RUN_DIR, 120, ["7", "9"])[3] == "--dependency=singleton,afterany:7:9"
    assert "--signal=B:TERM@65535" in slurm.job_options({}, RUN_DIR, stop_timeout=10**6)


def test_a_job_has_as_many_nodes_as_a_run_takes():
    assert "--nodes=1" in slurm.job_options(GIVEN, RUN_DIR, 120)
    assert "--nodes=3" in slurm.job_options(GIVEN, RUN_DIR, 120, nodes=3)
    cluster = Cluster(sbatch=(0, "12"), sinfo=(0, ""))
    slurm.submit(GIVEN, RUN_DIR, ["python"], 120, run=cluster, nodes=2)
    slurm.try_out(GIVEN, RUN_DIR, 120, cluster, nodes=2)
    assert ["--nodes=2" in command for command, _ in cluster.asked[:2]] == [True, True]


def test_gpus_are_those_of_each_node():
    given = {"gpus": "a100:2"}
    assert "--gpus=a100:2" in slurm.job_options(given, RUN_DIR, 120)
    options = slurm.job_options(given, RUN_DIR, 120, nodes=3)  # --gpus would be divided among them
    assert "--gpus-per-node=a100:2" in options
    assert not [word for word in options if word.startswith("--gpus=")]


def test_two_roots_have_two_names():
    assert job_name(RUN_DIR) != job_name(pathlib.Path("/shared/ann/other/runs") / RUN_DIR.name)


@pytest.mark.parametrize("shared", [True, False])
def test_the_script_becomes_the_supervisor_where_the_node_sees_the_same_folder(tmp_path, shared):
    run_dir = tmp_path / "it's a root" / "runs" / "witness-1"
    run_dir.mkdir(parents=True)
    (run_dir.parents[1] / rundir.ROOT_MARK).write_text("right\n" if shared else "another\n")
    script = slurm.job_script(run_dir, ["sh", "-c", "echo $PPID $$; exit 7"], "right", "/opt/slurm/bin")
    done = subprocess.run(["sh"], input=script, capture_output=True, text=True, env={}, timeout=60, check=False)
    assert done.returncode == (7 if shared else slurm.NOT_SHARED)
    assert (run_dir / "slurm.log").exists() == shared


def test_the_script_tells_by_its_exit_status_that_it_can_write_nothing(tmp_path):
    run_dir = tmp_path / "runs" / "witness-1"
    run_dir.mkdir(parents=True)
    (tmp_path / rundir.ROOT_MARK).write_text("right\n")
    (run_dir / "slurm.log").mkdir()  # nobody can write there
    script = slurm.job_script(run_dir, ["true"], "right", "/opt/slurm/bin")
    done = subprocess.run(["sh"], input=script, capture_output=True, text=True, env={}, timeout=60, check=False)
    assert done.returncode == rundir.UNWRITABLE


@pytest.mark.parametrize(
    "answer",
    ["12", "12;test", "Welcome!\nsbatch: lua: 3 nodes\n12", "12;test\n\nThis month: 7 h left", "1.5 h left\n12"],
)
def test_an_answer_of_sbatch_is_the_id_whatever_a_site_says_beside_it(answer):
    cluster = Cluster(sbatch=(0, answer))
    assert slurm.submit(GIVEN, RUN_DIR, ["python", "supervisor.py"], 120, run=cluster) == "12"
    command, script = cluster.asked[0]
    assert "supervisor.py" in script
    assert not any("supervisor.py" in word for word in command)


@pytest.mark.parametrize("limit", ["QOSMaxSubmitJobPerUserLimit", "AssocMaxSubmitJobLimit", "AssocGrpSubmitJobsLimit"])
def test_what_slurm_has_no_room_for_now_is_submitted_later_by_the_same_command(limit):
    policy = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    said = f"sbatch: error: {limit}\nsbatch: error: Batch job submission failed: {policy}"
    with pytest.raises(UserError, match="It takes no more of your jobs now; the same command submits this one when"):
        slurm.submit(GIVEN, RUN_DIR, ["python"], 120, run=Cluster(sbatch=(1, said), squeue=table()))


def test_what_slurm_refuses_is_told_in_its_own_words():
    said = "sbatch: error: invalid partition specified: gpuu\nsbatch: error: Batch job submission failed: Invalid"
    with pytest.raises(
        UserError, match=r"refuses the job of witness-4038a6e2fc08: invalid partition specified: gpuu; "
    ):
        slurm.submit(GIVEN, RUN_DIR, ["python"], 120, run=Cluster(sbatch=(1, said), squeue=table()))


@pytest.mark.parametrize(
    "said",
    [
        "12",
        "12;gpucluster",
        "sbatch: no partition specified, using default partition gpu\n12",
        "--> Verifying access to desired queue (gpu)...OK\n12\nYour project has 340 hours left",
        "Submitted batch job 12",
        "Submitted batch job 12 on cluster slaking",
    ],
)
def test_an_id_is_found_among_what_a_site_has_to_say(said):
    assert slurm.submit(GIVEN, RUN_DIR, ["python"], 120, run=Cluster(sbatch=(0, said))) == "12"


def test_whatever_sbatch_said_a_job_in_the_queue_is_the_runs():
    cluster = Cluster(sbatch=(1, "sbatch: error: job_submit/lua: thank you"), squeue=table(line(7)))
    assert slurm.submit(GIVEN, RUN_DIR, ["python"], 120, run=cluster) == "7"


@pytest.mark.parametrize(
    "said",
    [
        "Unable to contact slurm controller (send failure)",
        "Socket timed out on send/recv operation",
        "Zero Bytes were transmitted or received",
        "Unexpected missing socket error",
        "Message receive failure",
        "Insane message length",
        "Rate limit exceeded, please retry momentarily",
        "Slurm backup controller in standby mode",
        "Invalid authentication credential",
        'Munge encode failed: Failed to access "/run/munge/munge.socket.2": No such file or directory',
        "Unable to create job record, try again",
        "MaxJobCount limit reached",
        "Slurm temporarily unable to accept job, sleeping and retrying",
        "Job creation temporarily disabled, retrying",
        "Slurm job queue full, sleeping and retrying",
        "Resource temporarily unavailable",
        "Transport endpoint is not connected",
        "No route to host",
        "Connection timed out",
        "Connection timed out establishing",
        "sbatch gave no answer within 40 s",
        "Could not establish a configuration source",
    ],
)
def test_nobody_has_answered(said):
    with pytest.raises(Silent):
        slurm.try_out(GIVEN, RUN_DIR, 120, Cluster(sbatch=(1, f"allocation failure: {said}")))


@pytest.mark.parametrize(
    "said",
    [
        "Access/permission denied",
        "Invalid account or account/partition combination specified",
        "Invalid qos specification",
        "Invalid generic resource (gres) specification",
        "Invalid feature specification",
        "Invalid partition name specified",
        "Incompatible versions of client and server code",
        "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
        "Memory specification can not be satisfied",
        "Parameter --gres=gpu:1 no longer acceptable, please switch to --gpus=1",
        "Requested GRES option unsupported by configured SelectType plugin",
        "Requested operation is presently disabled",
        "Requested time limit is invalid (missing or exceeds some limit)",
        "Please set --account, and try again",
        "System submissions disabled",
        "Unspecified error",
        "User's group not permitted to use this partition",
    ],
)
def test_slurm_has_refused(said):
    assert slurm.try_out(GIVEN, RUN_DIR, 120, Cluster(sbatch=(1, f"sbatch: error: {said}"))) == said


def test_where_the_answer_of_sbatch_is_lost_the_queue_is_asked():
    lost = (1, "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)")
    assert slurm.submit(GIVEN, RUN_DIR, ["python"], 120, run=Cluster(sbatch=lost, squeue=table(line(7)))) == "7"
    for queue in (table(), table(line(7, "CANCELLED")), table(line(7, name="lora-forge-other-1"))):
        with pytest.raises(UserError, match="has not answered, and witness-4038a6e2fc08 is not in its queue"):
            slurm.submit(GIVEN, RUN_DIR, ["python"], 120, run=Cluster(sbatch=lost, squeue=queue))
    late = (1, "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    with pytest.raises(slurm.Unanswered, match="is not in its queue"):  # yet: what is on its way needs its secrets
        slurm.submit(GIVEN, RUN_DIR, ["python"], 120, run=Cluster(sbatch=late, squeue=table()))
    with pytest.raises(slurm.Unanswered, match="nobody knows whether it has the job of witness-4038a6e2fc08"):
        slurm.submit(GIVEN, RUN_DIR, ["python"], 120, run=Cluster(sbatch=lost, squeue=(1, SILENT)))


@pytest.mark.parametrize(
    ("version", "old"),
    [
        ("slurm 24.11.5", False),
        ("slurm 23.02.3", False),
        ("slurm 23.11.0-0rc1", False),
        ("slurm 23.02.2", True),
        ("slurm 22.05.7-Atos.1.1", True),
        ("slurm-wlm 21.08.5", True),
        ("Welcome to Tin 3.1!\nslurm 24.11.5", False),
    ],
)
def test_a_slurm_without_what_is_needed_is_refused(version, old):
    cluster = Cluster(sbatch=(0, version))
    if old:
        with pytest.raises(UserError, match=r"needs Slurm 23\.02\.3"):
            slurm.check_version(cluster)
    else:
        assert slurm.check_version(cluster) == version


@pytest.mark.parametrize(
    ("nodes", "away"),
    [
        ("idle\nmix\nalloc\nresv\nplnd\nidle~\nmaint\ncomp", False),  # idle~: powered down, and started for a job
        ("drain", True),
        ("idle\ndown*", True),
        ("mix\ndrng", True),
        ("idle*", True),
        ("", False),
    ],
)
def test_a_job_that_no_node_can_run_now_may_wait_for_one_that_is_away(nodes, away):
    refused = "allocation failure: Requested node configuration is not available"
    told = "".join(f"gpu|{state}\n" for state in nodes.split()) + "other*|down\n"
    cluster = Cluster(sbatch=(1, refused), sinfo=(0, told))
    assert slurm.try_out(GIVEN, RUN_DIR, 120, cluster) == ("" if away else refused)


def test_what_would_be_refused_is_told_and_silence_is_no_refusal():
    refused = "allocation failure: Required partition not available (inactive or drain)"
    assert slurm.try_out(GIVEN, RUN_DIR, 120, Cluster(sbatch=(1, refused))) == refused
    gone = Cluster(sbatch=(1, "Invalid partition name specified"), sinfo=(0, "gpu|down*"))
    assert slurm.try_out(GIVEN, RUN_DIR, 120, gone) == "Invalid partition name specified"
    cluster = Cluster(sbatch=(0, "sbatch: Job 3 to start at …"), sinfo=(0, "gpu*|infinite"))
    assert slurm.try_out(GIVEN, RUN_DIR, 120, cluster) == ""
    assert "--test-only" in cluster.asked[0][0]
    with pytest.raises(Silent):
        slurm.try_out(GIVEN, RUN_DIR, 120, Cluster(sbatch=(1, SILENT)))


def test_a_reservation_may_be_one_of_the_future():
    said = "allocation failure: Invalid time specified"
    assert slurm.try_out({**GIVEN, "reservation": "later"}, RUN_DIR, 120, Cluster(sbatch=(1, said))) == ""
    assert slurm.try_out(GIVEN, RUN_DIR, 120, Cluster(sbatch=(1, said))) == said


@pytest.mark.parametrize(
    ("given", "partitions", "words"),
    [
        ({}, "gpu|12:00:00", ""),
        ({}, "gpu|11:59:00", "time is 12:00:00, and partition gpu has 11:59:00 at most; such a job never starts"),
        ({}, "gpu*|30:00", "and partition gpu has 30:00 at most"),
        ({}, "gpu|infinite", ""),
        ({"time": "UNLIMITED"}, "gpu|2-00:00:00", "time is UNLIMITED, and partition gpu has 2-00:00:00 at most"),
        ({"partition": "gpu,long"}, "gpu|30:00\nlong|7-00:00:00", ""),  # one of them will do
        ({"partition": None}, "gpu|7-00:00:00\nshort*|30:00", "and the default partition has 30:00 at most"),
        ({"partition": None}, "gpu|7-00:00:00", ""),
        ({"qos": "long"}, "gpu|30:00", ""),  # which may have more
        ({"time": None}, "gpu|30:00", ""),
        ({}, "sinfo: error: Unable to contact slurm controller", ""),
    ],
)
def test_more_time_than_a_partition_has_is_refused_as_slurm_may_let_it_wait_for_ever(given, partitions, words):
    asked = {key: value for key, value in {**GIVEN, **given}.items() if value is not None}
    cluster = Cluster(sbatch=(0, "sbatch: Job 3 to start at …"), sinfo=(0, partitions))
    found = slurm.try_out(asked, RUN_DIR, 120, cluster)
    assert (words in found) if words else found == ""


# The queue


def test_the_queue_is_asked_once_for_all_runs_and_not_again_at_once():
    other = RUN_DIR.with_name("mayor-1")
    cluster = Cluster(squeue=table(line(4), line(5, "PENDING", "Resources", name=job_name(other))))
    queue = Queue(cluster)
    job, silence = queue.job(RUN_DIR)
    assert (job and job.number, silence) == ("4", "")
    assert queue.job(other)[0].words == "Resources (job 5), expected 2026-11-30 10:02"
    assert queue.job(RUN_DIR.with_name("crew-1")) == (None, "")
    for reason in ("JobHeldUser", "launch failed requeued held"):
        assert Job("6", NAME, "PENDING", reason).words == f"{reason} (job 6); scontrol release 6 lets it go on"
    held = Job("6", NAME, "PENDING", "JobHeldAdmin")
    assert held.words == "JobHeldAdmin (job 6); who runs the cluster has held it, and lets it go on"
    after = Job("6", NAME, "PENDING", "Dependency")
    assert after.words == "Dependency (job 6); another run comes first"
    never = Job("6", NAME, "PENDING", "DependencyNeverSatisfied")
    assert never.words == "DependencyNeverSatisfied (job 6)"
    for reason in ("PartitionTimeLimit", "PartitionNodeLimit", "QOSMaxWallDurationPerJobLimit", "AssocMaxGRESPerJob"):
        assert "asks for more than a job may have, and never starts" in Job("6", NAME, "PENDING", reason).words
    for reason in ("QOSMaxJobsPerUserLimit", "AssocGrpGRES", "MaxGRESPerAccount"):
        assert "never" not in Job("6", NAME, "PENDING", reason).words
    assert len(cluster.asked) == 1
    queue.job(RUN_DIR, anew=True)
    assert len(cluster.asked) == 2


def test_of_several_jobs_the_one_that_lives_counts_and_of_those_the_one_that_runs():
    def chosen(*lines: str) -> str | None:
        job, _ = Queue(Cluster(squeue=table(*lines))).job(RUN_DIR)
        return job and job.number

    assert chosen(line(1, "COMPLETED"), line(2, "PENDING")) == "2"
    assert chosen(line(3, "PENDING", "Dependency"), line(2, "RUNNING")) == "2"
    assert chosen(line(2, "CANCELLED"), line(1, "FAILED")) == "2"
    assert chosen(line(2, "COMPLETING"), line(3, "PENDING")) == "2"
    assert chosen() is None


def test_lines_that_are_none_of_ours_are_passed_over():
    odd = ["", "slurm_load_jobs warning", "x|y", line("4_[1-3]"), line("4+0"), line(9, name="stranger")]
    odd += [f"a|{NAME}|RUNNING|b|c|d", "CLUSTER: gpu"]
    welcome = "Welcome to the cluster!\n"
    assert slurm_queue.ask(Cluster(squeue=(0, welcome + table(*odd, line(4))[1]))) == {
        NAME: [Job("4", NAME, "RUNNING", "", "2026-11-30T10:02:30", "c1")]
    }


@pytest.mark.parametrize("name", [f"lab_{NAME}", f"{NAME}.ann", f"[ann] {NAME} (gpu)"])
def test_a_site_may_add_something_to_the_names_of_jobs(name):
    found = slurm_queue.ask(Cluster(squeue=table(line(4, name=name))))
    assert [job.name for job in found[NAME]] == [name]
    cluster = Cluster(scancel=(0, ""))
    slurm.cancel(found[NAME][0], cluster)
    assert f"--name={name}" in cluster.asked[0][0]


def test_a_reason_may_have_any_character_in_it():
    reason = "burst_buffer/lua: slurm_bb_data_in: a|b, c=d"
    assert slurm_queue.ask(Cluster(squeue=table(line(4, "PENDING", reason))))[NAME][0].reason == reason


def test_jobs_are_asked_for_by_the_user_s_id_whatever_the_login_calls_him(monkeypatch):
    monkeypatch.setenv("LOGNAME", "somebody-else")
    cluster = Cluster(squeue=table(), scancel=(0, ""))
    slurm_queue.ask(cluster)
    slurm.cancel(Job("4", NAME, "RUNNING"), cluster)
    assert [f"--user={os.getuid()}" in command for command, _ in cluster.asked] == [True, True]


def test_jobs_in_hidden_partitions_are_asked_for_too():
    cluster = Cluster(squeue=table())
    slurm_queue.ask(cluster)
    assert "--all" in cluster.asked[0][0]


@pytest.mark.parametrize(
    ("state", "waits", "lives"),
    [
        *((state, True, True) for state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "EXPEDITING")),
        *((state, False, True) for state in ("RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "REVOKED",
                                             "SIGNALING", "RESIZING", "STAGE_OUT", "A_STATE_OF_2030")),
        *((state, False, False) for state in ("COMPLETED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY",
                                              "PREEMPTED", "BOOT_FAIL", "DEADLINE", "FAILED")),
    ],
)  # fmt: skip
def test_the_states_of_a_job(state, waits, lives):
    job = Job("4", NAME, state)
    assert (job.waits, job.lives) == (waits, lives)


@pytest.mark.parametrize(
    "answer",
    [
        (1, SILENT),
        (1, "slurm_load_jobs error: Protocol authentication error"),
        (1, ""),
        (0, ""),
        (0, "Welcome!"),
        (0, f"squeue: error: Invalid user: ann\n{HEAD}"),  # the directory of users is away; squeue calls that a success
    ],
)
def test_an_error_is_silence_and_never_an_empty_queue(answer):
    job, silence = Queue(Cluster(squeue=answer)).job(RUN_DIR)
    assert job is None
    assert silence.startswith("Slurm does not answer: ")


# What the queue answered last, kept for whoever asks next


@pytest.fixture
def run_dir(tmp_path):
    """Make the run directory of a run that was launched."""
    path = tmp_path / "runs/witness-1"
    path.mkdir(parents=True)
    rundir.write_json(path / "run.json", {"run_id": path.name, "backend": "slurm", "launch": "1"})
    return path


def answering(run_dir: pathlib.Path, state: str = "RUNNING", **answers) -> Cluster:
    """Return a cluster that has a job of a run."""
    return Cluster(squeue=table(line(4, state, name=job_name(run_dir))), **answers)


def test_all_who_watch_ask_the_queue_once_in_half_a_minute(run_dir, clock):
    cluster, began = answering(run_dir), clock.now()
    other = run_dir.with_name("mayor-1")
    while clock.now() < began + 3600:  # ten commands, each in a process of its own, as a long poll is
        for watched in [run_dir, other] * 5:
            job, silence = Queue(cluster).job(watched)
            assert (job is not None, silence) == (watched == run_dir, "")
        clock.sleep(2)
    assert len(cluster.asked) == 3600 / slurm_queue.EVERY
    kept = run_dir.parents[1] / slurm_queue.KEPT
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_who_launches_stops_or_deletes_asks_anew_and_leaves_the_answer_to_others(run_dir, clock):
    cluster = Cluster(squeue=[table(line(4, name=job_name(run_dir))), table()])
    assert Queue(cluster).job(run_dir)[0] is not None
    clock.sleep(1)
    assert Queue(cluster).job(run_dir, anew=True)[0] is None
    assert Queue(cluster).job(run_dir)[0] is None
    assert len(cluster.asked) == 2


@pytest.mark.parametrize("name", ["run.json", "claim.json"])
def test_a_run_that_was_launched_or_began_since_the_question_is_asked_for_anew(run_dir, clock, name):
    """A job that the table cannot have yet is not one that «the queue does not know any more»."""
    other = run_dir.with_name("mayor-1")
    cluster = Cluster(squeue=[table(), table(line(4, name=job_name(run_dir)))])
    watching = Queue(cluster)
    assert watching.job(run_dir)[0] is None
    rundir.write_json(run_dir / name, {"run_id": run_dir.name, "backend": "slurm", "launch": "2"})
    for queue in (Queue(cluster), watching):
        job, _ = queue.job(run_dir)
        assert job is not None
    assert watching.job(other) == (None, "")
    assert len(cluster.asked) == 2


@pytest.mark.parametrize("whose", ["another", "its own"])
def test_a_job_is_never_missing_between_its_submission_and_the_next_question(run_dir, clock, whose):
    """The queue is asked in the very moment in which sbatch takes the job, by another run's watcher or by its own."""
    told = Cluster(squeue=[table(), table(line(4, name=job_name(run_dir)))])

    def meanwhile(command, given):
        if not told.asked:
            rundir.write_json(run_dir / "run.json", {"run_id": run_dir.name, "launch": "1", "job": "4"})
        return told(command, given)

    watched = run_dir.with_name("mayor-1") if whose == "another" else run_dir
    job, _ = Queue(meanwhile).job(watched)
    assert (job is None) == (whose == "another")
    job, _ = Queue(meanwhile).job(run_dir)
    assert job is not None
    assert len(told.asked) == 2


def test_silence_is_kept_too_and_not_for_as_long(run_dir, clock):
    cluster = Cluster(squeue=[(1, SILENT), table(line(4, name=job_name(run_dir)))])
    for _ in range(9):
        job, silence = Queue(cluster).job(run_dir)
        assert (job, silence) == (None, "Slurm does not answer: Unable to contact slurm controller (connect failure)")
        clock.sleep(1)
    assert len(cluster.asked) == 1
    clock.sleep(1)
    assert Queue(cluster).job(run_dir)[1] == ""


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: "", lambda kept: "{", lambda kept: "[]", lambda kept: "\0" * 40,
        lambda kept: json.dumps(kept | {"user": kept["user"] + 1}), lambda kept: json.dumps(kept | {"boot": "another"}),
        lambda kept: json.dumps(kept | {"at": kept["at"] + 60}), lambda kept: json.dumps(kept | {"at": "now"}),
        lambda kept: json.dumps(kept | {"at": float("nan")}), lambda kept: json.dumps(kept | {"stamps": [1]}),
        lambda kept: json.dumps(kept | {"stamps": {"witness-1": 5}}),
    ],
)  # fmt: skip
def test_an_answer_that_is_damaged_or_anothers_is_none(run_dir, clock, damage):
    cluster, path = answering(run_dir), run_dir.parents[1] / slurm_queue.KEPT
    Queue(cluster).job(run_dir)
    path.write_text(damage(json.loads(path.read_text())))
    assert Queue(cluster).job(run_dir)[0] is not None
    assert len(cluster.asked) == 2
    Queue(cluster).job(run_dir)
    assert len(cluster.asked) == 2  # it is whole again


def test_two_who_ask_at_once_ask_once(run_dir):
    asks, answers, cluster = threading.Event(), threading.Event(), answering(run_dir)

    def slow(command, given):
        asks.set()
        assert answers.wait(60)
        return cluster(command, given)

    both = [threading.Thread(target=lambda: Queue(slow).job(run_dir)) for _ in range(2)]
    both[0].start()
    assert asks.wait(60)
    both[1].start()
    answers.set()
    for one in both:
        one.join(60)
    assert len(cluster.asked) == 1


@pytest.mark.parametrize("fault", ["held", "no locks", "no room"])
def test_what_keeps_from_taking_turns_keeps_nobody_from_asking(run_dir, monkeypatch, fault):
    cluster, lock = answering(run_dir), run_dir.parents[1] / f"{slurm_queue.KEPT}.lock"
    monkeypatch.setattr(slurm_queue, "TURN_WITHIN", 0.0)

    def refuse(*given, **more):
        raise OSError(28, "No space left on device")

    if fault != "held":
        monkeypatch.setattr(rundir, "write_json" if fault == "no room" else "locked", refuse)
    with rundir.locked(lock) if fault == "held" else open(os.devnull):
        queue = Queue(cluster)
        assert [queue.job(run_dir)[0] is not None for _ in range(3)] == [True] * 3
    assert len(cluster.asked) == 1


def test_the_exit_status_of_a_job_is_asked_for_once_by_all(run_dir, clock):
    known = f"JobId=4 JobName={job_name(run_dir)} JobState=FAILED ExitCode=66:0"
    cluster, codes = answering(run_dir, "FAILED", scontrol=(0, known)), []
    for _ in range(40):
        queue = Queue(cluster)
        codes.append(queue.exit_status(run_dir, queue.job(run_dir)[0]))
        clock.sleep(3)
    asked = [command[0] for command, _ in cluster.asked]
    assert (set(codes), asked.count("scontrol"), asked.count("squeue")) == ({66}, 1, 4)


class Commands:
    """Slurm's commands on PATH, as a module on a login node finds them; they note that they were called."""

    def __init__(self, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
        self.folder = folder / "commands"
        self.folder.mkdir()
        monkeypatch.setenv("PATH", f"{self.folder}:{os.environ['PATH']}")

    def say(self, name: str, text: str) -> None:
        (self.folder / f"{name}.txt").write_text(f"{HEAD}\n{text}\n" if name == "squeue" else f"{text}\n")
        path = self.folder / name
        path.write_text(f"#!/bin/sh\necho {name} >>{self.folder}/asked\ncat {self.folder}/{name}.txt\n")
        path.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        path = self.folder / "asked"
        return path.read_text().split() if path.exists() else []


def test_a_long_poll_asks_the_queue_once_in_half_a_minute_and_a_first_look_anew(run_dir, clock, tmp_path, monkeypatch):
    commands = Commands(tmp_path, monkeypatch)
    commands.say("squeue", line(4, name=job_name(run_dir)))
    rundir.write_json(run_dir / "status.json", {"state": "running", "launch": "1"})
    monkeypatch.setattr(rundir, "age", lambda path: 1.0)
    limits = {"heartbeat_timeout": 60.0, "stall_timeout": 1800.0}
    token = runs.wait_for_news(run_dir, "", 0, **limits).token
    assert commands.asked == ["squeue"]
    for _ in range(4):
        assert runs.wait_for_news(run_dir, token, 30, **limits).token == token
    assert commands.asked == ["squeue"] * 5
    clock.sleep(1)
    runs.wait_for_news(run_dir, "", 0, **limits)
    assert commands.asked == ["squeue"] * 6


def test_a_job_that_failed_unheard_is_looked_at_once_however_long_it_is_watched(run_dir, clock, tmp_path, monkeypatch):
    commands = Commands(tmp_path, monkeypatch)
    commands.say("squeue", line(4, "FAILED", name=job_name(run_dir)))
    commands.say("scontrol", f"JobId=4 JobName={job_name(run_dir)} ExitCode=66:0")
    for _ in range(20):
        [seen] = runs.observe_all(tmp_path, [])
        assert (seen.state, "trainer_root must be in a shared folder" in seen.detail) == ("failed", True)
        clock.sleep(5)
    assert [commands.asked.count(name) for name in ("squeue", "scontrol")] == [4, 1]


def test_jobs_are_cancelled_by_name_and_user():
    cluster = Cluster(scancel=(0, ""))
    slurm.cancel(Job("4", NAME, "RUNNING"), cluster)
    assert f"--name={NAME}" in cluster.asked[0][0]
    assert any(word.startswith("--user=") for word in cluster.asked[0][0])


def test_the_exit_status_of_a_strangers_job_is_nobodys_business():
    job = Job("4", NAME, "FAILED")
    known = f"JobId=4 JobName={NAME} UserId=ann(1001) JobState=FAILED ExitCode=66:0 DerivedExitCode=0:0"
    assert slurm_queue.exit_status(job, Cluster(scontrol=(0, known))) == 66
    assert slurm_queue.exit_status(job, Cluster(scontrol=(0, known.replace(NAME, "theirs")))) is None
    assert (
        slurm_queue.exit_status(job, Cluster(scontrol=(1, "slurm_load_jobs error: Invalid job id specified"))) is None
    )


# Where Slurm's commands are


@pytest.fixture
def login(tmp_path, monkeypatch):
    """Provide a cluster whose profile alone knows where Slurm is, as a module or /etc/profile.d has it."""
    (tmp_path / "slurm/bin").mkdir(parents=True)
    for name in ("sbatch", "squeue"):
        (tmp_path / "slurm/bin" / name).write_text('#!/bin/sh\necho "$SLURM_CONF $SQUEUE_FORMAT $LC_ALL"\n')
        (tmp_path / "slurm/bin" / name).chmod(0o755)
    (tmp_path / ".bash_profile").write_text(
        f"echo Welcome to PATH=/nowhere\nexport PATH={tmp_path}/slurm/bin:$PATH SLURM_CONF=/of/the/module\n"
        "export SQUEUE_FORMAT=%i\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SLURM_CONF", raising=False)
    slurm_commands._login_environment.cache_clear()
    yield tmp_path
    slurm_commands._login_environment.cache_clear()


@pytest.mark.skipif(shutil.which("sbatch") is not None, reason="this machine has Slurm")
def test_slurm_is_found_where_only_a_login_shell_has_it(login):
    assert slurm_commands.has_slurm()
    assert slurm_commands.folders() == f"{login}/slurm/bin"  # where the job looks for it, too
    (login / "site").mkdir()
    (login / "slurm/bin/sbatch").rename(login / "site/sbatch")  # a site's own, in its place
    (login / "slurm/bin/scontrol").symlink_to("squeue")
    with (login / ".bash_profile").open("a") as profile:
        profile.write(f"PATH={login}/site:$PATH\n")
    slurm_commands._login_environment.cache_clear()
    assert slurm_commands.folders() == f"{login}/slurm/bin:{login}/site"
    assert slurm_commands.run_command(["squeue"]) == (0, "/of/the/module  C")
    without_gpu = not pathlib.Path("/dev/nvidiactl").exists()
    assert slurm_commands.is_login_node() is without_gpu
    assert backend.probe_host("auto").login_node is without_gpu  # a rehearsal's launch, which no GPU gate goes before
    slurm_commands._login_environment.cache_clear()
    assert not backend.probe_host("process").login_node
    assert slurm_commands._login_environment.cache_info().misses == 0  # a login shell takes its time


@pytest.mark.skipif(shutil.which("sbatch") is not None, reason="this machine has Slurm")
def test_a_host_without_slurm_has_none(login):
    (login / ".bash_profile").write_text("exit 3\n")
    assert not slurm_commands.has_slurm()
    with pytest.raises(Silent, match="squeue could not be run: No such file"):
        slurm_commands.run_command(["squeue"])


def test_what_a_command_said_before_its_time_was_over_is_told(monkeypatch):
    def hang(command, **_):
        raise subprocess.TimeoutExpired(command, 40, output=b"sbatch: error: Slurm job queue full, sleeping\n")

    monkeypatch.setattr(slurm_commands.subprocess, "run", hang)
    monkeypatch.setattr(slurm_commands.shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(Silent, match=r"^sbatch gave no answer within 40 s: Slurm job queue full, sleeping$"):
        slurm_commands.run_command(["sbatch"])


# What follows


def observed(run_dir: pathlib.Path, queue: str, state: str = "running") -> tuple[str, str]:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "run.json").write_text(json.dumps({"run_id": run_dir.name, "backend": "slurm", "launch": "1"}))
    (run_dir / "status.json").write_text(json.dumps({"state": state, "launch": "1", "heartbeat": 1.0}))
    seen = runs.observe(run_dir, queue=Queue(Cluster(squeue=table(*queue.splitlines()))))
    return seen.state, seen.detail


def test_a_job_that_is_missing_from_one_answer_is_not_over_while_it_speaks(tmp_path):
    run_dir = tmp_path / "runs/witness-1"
    state, words = observed(run_dir, "")
    assert state == "unknown"
    assert words.startswith("the queue does not know it any more; its last word was ")
    assert observed(run_dir, line(4, "CANCELLED", name=job_name(run_dir)))[0] == "stopped"
    assert observed(run_dir, "", "stopped")[0] == "stopped"
    observed(run_dir, "")
    os.utime(run_dir / "status.json", (1, 1))
    seen = runs.observe(run_dir, queue=Queue(Cluster(squeue=table())))
    assert (seen.state, seen.detail) == ("stopped", "the queue does not know it any more; the same command resumes")


@pytest.mark.parametrize(
    ("queue", "nodes"),
    [({"state": "RUNNING"}, "c[1-2]"), ({"state": "COMPLETING"}, "c[1-2]"), ({"state": "COMPLETED"}, ""),
     ({"state": "PENDING", "reason": "BeginTime"}, "")],
)  # fmt: skip
def test_where_a_job_runs_is_seen_while_it_does(run_dir, queue, nodes):
    cluster = Cluster(squeue=table(line(4, nodes="c[1-2]", name=job_name(run_dir), **queue)))
    assert runs.observe(run_dir, queue=Queue(cluster)).nodes == nodes


def test_a_run_that_ends_while_the_queue_is_asked_is_what_its_files_say_by_then(tmp_path):
    run_dir = tmp_path / "runs/witness-1"
    run_dir.mkdir(parents=True)
    rundir.write_json(run_dir / "run.json", {"backend": "slurm", "launch": "a"})
    rundir.write_json(run_dir / "status.json", {"state": "running", "launch": "a"})

    def squeue(command, given):
        end = {"state": "failed", "reason": {"kind": "diverged", "detail": "the last loss is nan"}}
        rundir.write_json(run_dir / "status.json", {**end, "launch": "a"})
        return table(line(4, "COMPLETED", name=job_name(run_dir)))

    seen = runs.observe(run_dir, queue=Queue(squeue))
    assert (seen.state, seen.detail) == ("failed", "diverged: the last loss is nan")


@pytest.mark.parametrize("state", ["SUSPENDED", "STOPPED"])
def test_a_job_that_slurm_has_suspended(tmp_path, state):
    run_dir = tmp_path / "runs/witness-1"
    told = line(4, state, name=job_name(run_dir))
    assert observed(run_dir, told) == ("stalled", "Slurm has suspended its job 4, and will let it go on")
    assert observed(run_dir, told, "stopped")[0] == "stopped"


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        ("", "without a word"),
        ("env: python: not found\n", "env: python: not found"),
        ("Loading cuda\nenv: python: not found\n", "env: python: not found; {}/slurm.log has all of it"),
    ],
)
def test_a_job_that_ended_before_its_supervisor_said_a_word(tmp_path, printed, told):
    run_dir = tmp_path / "runs/witness-1"
    run_dir.mkdir(parents=True)
    (run_dir / "run.json").write_text(json.dumps({"run_id": run_dir.name, "backend": "slurm", "launch": "1"}))
    (run_dir / "slurm.log").write_text(printed)
    name = job_name(run_dir)
    known = f"JobId=4 JobName={name} UserId=ann(1001) ExitCode=127:0 Reason=NonZeroExitCode"
    cluster = Cluster(squeue=table(line(4, "FAILED", "NonZeroExitCode", name=name)), scontrol=(0, known))
    seen = runs.observe(run_dir, queue=Queue(cluster))
    words = f"environment: its job ended at once on c1 with exit code 127: {told.format(run_dir)}"
    assert (seen.state, seen.detail) == ("failed", words)


def conclude(noted=None, waits="", lives=False, heard=True, silence="", age=3.0, fault="", gone=True, **status):
    given = {"state": noted, "exit_code": 0, **status} if noted else {}
    done = Progress(step=12, planned=12, loss=7.5)
    return run_state.conclude_job(
        given, done, waits, lives, heard, silence, "its job 4 has ended as Slurm says: NODE_FAIL", fault=fault,
        gone=gone, heartbeat_age=age, heartbeat_timeout=60, stall_timeout=1800,
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
        ({"noted": "running", "gone": False}, "unknown", "NODE_FAIL; its last word was 3 s ago"),  # it may train on
        ({"noted": "running", "gone": False, "age": 500.0}, "stopped", "NODE_FAIL; the same command resumes"),
        ({"noted": "stopped", "gone": False}, "stopped", ""),  # by its own word
        ({"noted": "running", "gone": False, "heard": False}, "stopped", ""),  # of an earlier launch
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
    told = [line(at, "PENDING", "Priority", "2026-12-01T14:20:00", "", job_name(folder))
            for at, folder in enumerate(folders, 1)]  # fmt: skip
    commands = Commands(tmp_path, monkeypatch)
    commands.say("squeue", "\n".join(told))
    monkeypatch.setattr(runs.rundir, "lane_holder", None)  # which reads all runs for each of them
    seen = runs.observe_all(tmp_path, [])
    assert commands.asked == ["squeue"]
    assert [run.state for run in seen] == ["queued"] * 200
    assert seen[6].detail == "Priority (job 7), expected 2026-12-01 14:20"


def submitting(folder: pathlib.Path, monkeypatch) -> None:
    """Put an sbatch and a squeue on PATH; a job is in the queue once it is submitted. Each call is noted."""
    (folder / "sbatch").write_text(
        f'#!/bin/sh\ncat >/dev/null\necho "sbatch $*" >>{folder}/asked\nn=$(grep -c sbatch {folder}/asked)\n'
        f'for word in "$@"; do case "$word" in --job-name=*) name=${{word#*=}};; esac; done\n'
        f'echo "$n|$name|PENDING|N/A||Priority" >>{folder}/queue\necho $n\n'
    )
    (folder / "squeue").write_text(f"#!/bin/sh\necho squeue >>{folder}/asked\ncat {folder}/queue\n")
    for name in ("sbatch", "squeue"):
        (folder / name).chmod(0o755)
    (folder / "queue").write_text(f"{HEAD}\n")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def asked(folder: pathlib.Path) -> list[str]:
    """List what was called since the last look: squeue, or the jobs that come before a job."""
    lines = (folder / "asked").read_text().splitlines()
    (folder / "asked").write_text("".join(line + "\n" for line in lines if line.startswith("sbatch")))
    return [line.partition("--dependency=singleton")[2].split(" ")[0] if "sbatch" in line else line for line in lines]


def test_runs_that_are_submitted_together_look_at_the_queue_once(tmp_path, monkeypatch):
    submitting(tmp_path, monkeypatch)
    folders = [tmp_path / f"runs/witness-{number}" for number in range(4)]
    for folder in folders:
        folder.mkdir(parents=True)
    launches = [
        {"run_dir": str(folder), "command": ["python"], "lane": f"slurm {1 + at}", "slurm": GIVEN, "at_once": 2}
        for at, folder in enumerate(folders)
    ]
    told = launching.start_all(launches, {}, "slurm", 30)
    assert [answer.get("refused") for answer in told] == [None] * 4
    assert [answer["message"].partition(";")[0] for answer in told] == ["job 1", "job 2", "job 3", "job 4"]
    # Two at once: the third comes after the first, the fourth after all but the third.
    assert asked(tmp_path) == ["", "squeue", "", ",afterany:1", ",afterany:1:2"]
    assert [answer["changed"] for answer in launching.start_all(launches, {}, "slurm", 30)] == [False] * 4
    assert asked(tmp_path)[4:] == ["squeue"]


def test_a_job_that_was_just_submitted_is_known_after_a_look_at_how_an_earlier_one_ended(tmp_path, monkeypatch):
    """By the runs that are launched after it, which wait for it, and by whoever watches meanwhile."""
    submitting(tmp_path, monkeypatch)
    folders = [tmp_path / f"runs/witness-{number}" for number in range(2)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"run_id": folder.name, "backend": "slurm", "launch": "1"}))
    failed = job_name(folders[1])
    (tmp_path / "queue").write_text(f"{HEAD}\n90|{failed}|FAILED|N/A|c1|NonZeroExitCode\n")
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho JobId=90 JobName={failed} JobState=FAILED ExitCode=1:0\n")
    (tmp_path / "scontrol").chmod(0o755)
    launches = [{"run_dir": str(folder), "command": ["python"], "slurm": GIVEN, "at_once": 1} for folder in folders]
    assert [answer["changed"] for answer in launching.start_all(launches, {}, "slurm", 30)] == [True, True]
    assert asked(tmp_path) == ["squeue", "", ",afterany:1"]
    assert [run.state for run in runs.observe_all(tmp_path, [])] == ["queued"] * 2


def test_a_run_that_somebody_else_has_launched_since_the_look_is_looked_for_anew(tmp_path, monkeypatch):
    submitting(tmp_path, monkeypatch)
    folders = [tmp_path / f"runs/witness-{number}" for number in range(2)]
    for folder in folders:
        folder.mkdir(parents=True)
    launches = [{"run_dir": str(folder), "command": ["python"], "slurm": GIVEN} for folder in folders]
    submit = slurm.submit

    def rival(*given, **more):
        monkeypatch.setattr(slurm, "submit", submit)
        launching.start(folders[1], launching.Launch.from_dict(launches[1]), {}, "slurm")
        return submit(*given, **more)

    monkeypatch.setattr(slurm, "submit", rival)
    assert [answer["changed"] for answer in launching.start_all(launches, {}, "slurm", 30)] == [True, False]
    assert len((tmp_path / "queue").read_text().splitlines()) == 1 + 2, "one job a run"


def test_what_was_not_submitted_leaves_no_secrets(tmp_path, monkeypatch):
    def refuse(root):
        raise OSError(28, "No space left on device", str(root))

    submitting(tmp_path, monkeypatch)
    monkeypatch.setattr(slurm, "mark_root", refuse)
    folder = tmp_path / "runs/witness-0"
    folder.mkdir(parents=True)
    launch = {"run_dir": str(folder), "command": ["python"], "slurm": GIVEN}
    [answer] = launching.start_all([launch], {folder.name: {"WANDB_API_KEY": "k"}}, "slurm", 30)
    assert answer["refused"].startswith("No space left on device")
    assert not (folder / "env").exists()


def test_a_root_behind_a_link_has_the_same_jobs(tmp_path, monkeypatch):
    """As /scratch/ann is, on many clusters; some modules see the path, others the folder behind it."""
    folder = tmp_path / "disk/runs/witness-0"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"run_id": folder.name, "backend": "slurm", "launch": "1"}))
    (tmp_path / "scratch").symlink_to("disk")
    told = line(state="PENDING", reason="Priority", start="", nodes="", name=job_name(folder))
    Commands(tmp_path, monkeypatch).say("squeue", told)
    assert [run.detail for run in runs.observe_all(tmp_path / "scratch", [])] == ["Priority (job 2)"]


# What a job that is told to end knows of itself


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("JobState=RUNNING Reason=None Restarts=1 PreemptTime=None", ""),  # a warning
        ("JobState=COMPLETING Reason=None Restarts=1 PreemptTime=None", "cancelled"),
        ("JobState=CANCELLED Reason=None Restarts=1 PreemptTime=None", "cancelled"),
        ("JobState=COMPLETING Reason=None Restarts=2", "requeued"),
        ("JobState=RUNNING Reason=None Restarts=2 PreemptTime=None", "requeued"),  # another copy, on another node
        ("JobState=PENDING Reason=BeginTime Restarts=2 PreemptTime=None", "requeued"),
        ("JobState=COMPLETING Reason=TimeLimit Restarts=1 PreemptTime=None", ""),
        ("JobState=COMPLETING Reason=None Restarts=1 PreemptTime=2026-11-30T10:27:06", ""),
        ("Invalid job id specified", ""),
    ],
)
def test_what_slurm_has_in_mind_with_a_job_that_it_tells_to_end(said, meant):
    assert slurm_job.fate(f"JobId=9 JobName=x {said} ExitCode=0:0", restarts="1") == meant


def test_who_comes_asks_for_a_checkpoint_before_it_takes_the_run(tmp_path):
    old, new = (slurm_job.Copies(tmp_path, {"SLURM_JOB_ID": "9", "SLURM_RESTART_COUNT": count}, 5.0) for count in "01")
    old.claim()
    old.check()
    assert not old.asked
    new.ask()
    old.check()
    assert old.asked
    new.claim()
    with pytest.raises(slurm_job.Superseded, match="job 9 on "):
        old.check()
    new.check()
    assert not new.asked


@pytest.mark.parametrize("state", ["running", "stopped", ""])
def test_without_locks_the_heartbeat_tells_whether_another_copy_lives(tmp_path, monkeypatch, state):
    def flock(handle, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    clock = itertools.count()
    monkeypatch.setattr(slurm_job, "time", types.SimpleNamespace(monotonic=lambda: next(clock), sleep=None))
    copies = slurm_job.Copies(tmp_path, {"SLURM_JOB_ID": "9"}, heartbeat=5.0)

    def beat(number: int) -> None:
        if state:
            rundir.write_json(tmp_path / "status.json", {"state": state, "heartbeat": number})

    beat(0)
    beats = iter(range(1, 1000))
    monkeypatch.setattr(slurm_job.time, "sleep", lambda _: beat(next(beats)))
    assert copies.await_lock(0, seconds=200) is (state != "running")
    monkeypatch.setattr(slurm_job.time, "sleep", lambda _: None)  # it has been killed
    assert copies.await_lock(0, seconds=200)


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
    assert slurm_job.on_nodes({}, "--wait=1") == []
    words = slurm_job.on_nodes(SPEC, "--wait=1")
    assert (words[0], words[-1]) == ("srun", "--wait=1")
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--export=ALL", "--overlap"} <= set(words)


def test_a_job_names_itself_and_its_nodes():
    env = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "c[1-2]"}
    assert slurm_job.place(env) == "job 4711 on c[1-2]"
    assert slurm_job.place({**env, "SLURM_RESTART_COUNT": "2"}) == "job 4711, restart 2, on c[1-2]"
    assert slurm_job.place({"SLURM_JOB_ID": "4711"}) == f"job 4711 on {os.uname().nodename}"


def test_what_an_earlier_step_left_on_a_node_is_ended_and_nothing_else(tmp_path):
    def left(run_dir: pathlib.Path, **env: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sleep", "600"], env={"PATH": "/bin:/usr/bin", rundir.MARKER: str(run_dir), **env})

    mine, other = tmp_path / "runs/witness-1", tmp_path / "runs/witness-10"
    old = left(mine, SLURM_STEP_ID="1")
    kept = [left(other, SLURM_STEP_ID="1"), left(mine), left(mine, SLURM_STEP_ID="4294967291")]
    try:
        kept.append(left(mine, SLURM_STEP_ID="2"))
        shell = slurm_job.end_earlier(mine, SPEC)
        env = {"PATH": "/bin:/usr/bin", rundir.MARKER: str(mine), "SLURM_STEP_ID": "2"}
        subprocess.run(shell[shell.index("/bin/sh") :], env=env, check=True, timeout=60)
        assert old.wait(60) == -signal.SIGKILL
        assert [one.poll() for one in kept] == [None] * 4
    finally:
        for one in (old, *kept):
            one.kill()
            one.wait()


def test_the_nodes_meet_on_the_first_one_at_a_port_of_their_job():
    assert slurm_job.meeting({}, {"SLURM_JOB_ID": "4711"}) == {}
    found = slurm_job.meeting(SPEC, {"SLURM_JOB_ID": "4711"})
    assert found == {"PET_RDZV_ENDPOINT": f"{os.uname().nodename}:30111", rundir.ONE_FOLDER: "1"}
    for first in (64_537, 65_000, 65_535):
        ends = (slurm_job.meeting({**SPEC, "port": first}, {"SLURM_JOB_ID": str(job)}) for job in range(4000, 5000))
        ports = {int(end["PET_RDZV_ENDPOINT"].rpartition(":")[2]) for end in ends}
        assert (min(ports), max(ports)) == (first, 65_535), "a port that there is"


@pytest.mark.parametrize(
    ("spec", "given", "left"),
    [
        ({}, "0,1,2,3", "0"),  # the partition gives whole nodes
        ({"processes": 2}, "0,1,2,3", "0,1"),
        ({"processes": 4, "nodes": 2}, "0,1,2,3", "0,1"),
        ({}, "MIG-1,MIG-2", "MIG-1"),
        ({}, "1", None),
        ({"processes": 2}, "0,1", None),
        ({}, None, None),
    ],
)
def test_a_run_has_the_gpus_that_it_takes_where_slurm_gives_its_job_more(spec, given, left):
    env = {} if given is None else {"CUDA_VISIBLE_DEVICES": given}
    assert slurm_job.own_gpus(spec, env).get("CUDA_VISIBLE_DEVICES") == left


def test_data_is_prepared_on_the_cores_of_the_job(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run_dir, name = tmp_path / "runs/witness-1", "AXOLOTL_DATASET_NUM_PROC"
    assert slurm_job.variables(run_dir, {}, {"SLURM_CPUS_ON_NODE": "8"})[name] == "8"
    assert name not in slurm_job.variables(run_dir, {}, {})
    assert name not in slurm_job.variables(run_dir, {"env": {name: "2"}}, {"SLURM_CPUS_ON_NODE": "8"})  # as it was told


def test_a_node_without_the_users_home_has_another_one(tmp_path, monkeypatch):
    run_dir = tmp_path / "runs/witness-1"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert slurm_job.home(run_dir) == str(tmp_path)
    monkeypatch.setenv("HOME", "/nowhere/ann")
    for _ in range(2):
        assert slurm_job.home(run_dir) == str(tmp_path / "home")
    assert (tmp_path / "home").is_dir()


def test_a_job_has_the_cache_of_datasets_among_its_runs_own_prepared_data(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run_dir, env = tmp_path / "runs/witness-1", {"SLURM_JOB_ID": "4711"}
    assert "HF_DATASETS_CACHE" not in slurm_job.variables(run_dir, {"prepared": None}, env)  # it only answers
    given = slurm_job.variables(run_dir, {"prepared": "/root/prepared/witness-1"}, env)
    assert given["HF_DATASETS_CACHE"] == "/root/prepared/witness-1/datasets"
    told = {"HF_DATASETS_CACHE": "/scratch/datasets", "HOME": "/scratch/ann"}  # by run_environment
    assert not told.keys() & slurm_job.variables(run_dir, {"prepared": "/root/prepared/x", "env": told}, env).keys()


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
