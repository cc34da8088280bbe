"""How a run ends: stops, secrets, a full disk."""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys

import pytest
import rundir
import supervisor
from ansible.module_utils.lora_forge.trainer import runs, stopping
from lab import FAKE, PATIENCE, alive, events, eventually, reached, status, until

# --- stopping and secrets ------------------------------------------------------------------------------------


def test_a_stop_reaches_the_one_process_and_not_its_workers(lab):
    run = lab.make(save_every=8, stay_at=2, worker="child")
    process = lab.supervise(run)
    reached(run, 2)
    (run / "stop").touch()
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    end = status(run)
    assert end["state"] == "stopped"
    assert rundir.last_complete(run / "output") == 2
    assert end["reason"]["detail"] == "on request; checkpoint at step 2"
    assert not alive(int((run / "workers.txt").read_text()))


def test_the_stop_file_alone_is_enough(lab):
    run = lab.make(stay_at=2)
    lab.supervise(run)
    reached(run, 2)
    (run / "stop").touch()
    until(run, "stopped")


@pytest.mark.parametrize("by", ["request", "shutdown"])
@pytest.mark.parametrize("settings", [{"steps": 3}, {"early_stop_at": 3}, {"steps": 3, "processes": 2}])
def test_a_stop_that_comes_as_the_last_checkpoint_is_saved_leaves_a_finished_run(lab, by, settings):
    run = lab.make(save_every=3, save_takes=0.5, **settings)
    process = lab.supervise(run)
    eventually((run / "output/checkpoint-3").exists)
    if by == "request":
        (run / "stop").touch()
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    end = status(run)
    assert (end["state"], end["reason"], end["exit_code"], end["starts"]) == ("finished", None, 0, 1)
    seen = runs.observe(run)
    assert (seen.state, seen.detail) == ("finished", "")
    assert stopping.stop(run, PATIENCE) is False
    assert lab.supervise(run).wait(PATIENCE) == 0
    assert status(run) == end


def test_a_stop_in_the_last_step_lets_it_come_to_its_end(lab):
    run = lab.make(steps=3, stay_at=3)
    lab.supervise(run)
    reached(run, 3)
    assert stopping.stop(run, PATIENCE) is True
    assert status(run)["state"] == "finished"
    assert not events(run, "stop")


def test_the_group_is_killed_after_the_stop_timeout(lab):
    run = lab.make(hang_at=1, ignore_term=1, worker="child", stop_timeout=0.5)
    process = lab.supervise(run)
    eventually(lambda: events(run, "begin"))
    process.send_signal(signal.SIGTERM)
    until(run, "stopping", "stopped")
    assert until(run, "stopped")["exit_code"] == -9
    assert not alive(int((run / "workers.txt").read_text()))


@pytest.mark.parametrize("how", ["crash", "kill"])
def test_to_die_over_cases_costs_no_adapter(lab, how):
    run = lab.make(steps=3, answer=how)
    lab.supervise(run)
    end = until(run, "finished", "failed")
    assert (end["state"], end["exit_code"], end["starts"]) == ("finished", 0, 1)
    assert "it ended while it answered cases" in (run / "supervisor.log").read_text()


def test_a_stop_while_cases_are_answered_leaves_a_finished_run(lab):
    run = lab.make(steps=3, answer="hang", stop_timeout=0.5)
    process = lab.supervise(run)
    eventually(lambda: events(run, "answers"))
    process.send_signal(signal.SIGTERM)
    assert until(run, "finished", "failed", "stopped")["state"] == "finished"


ANSWERS = """
import os, pathlib, signal, sys, time
import rundir
assert pathlib.Path("output/adapter_model.safetensors").exists()
print("GPU", os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
rundir.append_event(pathlib.Path("metrics.jsonl"), "answers", answered=1, asked=3)
how = sys.argv[1]
if how == "crash":
    raise MemoryError("CUDA out of memory")
if how == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
while how == "stay" and not pathlib.Path(rundir.STOPPING).exists() or how == "hang":
    time.sleep(0.02)
"""


def several(lab, how, questions=True, **settings):
    """Make a run of two processes, and a program that answers cases when they have ended."""
    (lab.root / "answers.py").write_text(ANSWERS)
    answer_command = (lab.python, str(lab.root / "answers.py"), how)
    run = lab.make(steps=3, processes=2, answer_command=answer_command, **settings)
    if questions:
        (run / "questions.json").write_text("{}")
    spec = rundir.read_json(run / "run.json")
    rundir.write_json(run / "run.json", spec | {"env": {**spec["env"], "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}})
    return run


@pytest.mark.parametrize("how", ["well", "crash", "kill"])
def test_where_several_have_trained_one_process_answers_after_them(lab, how):
    run = several(lab, how)
    lab.supervise(run)
    end = until(run, "finished", "failed")
    assert (end["state"], end["exit_code"], end["starts"]) == ("finished", 0, 1)
    assert [event["event"] for event in events(run)][-2:] == ["end", "answers"]
    assert "GPU GPU-a\n" in (run / "train.log").read_text()
    said = {"well": "", "crash": "out of memory: exit code 1: MemoryError", "kill": "killed: ended by SIGKILL"}[how]
    log = (run / "supervisor.log").read_text()
    assert (f"it ended while it answered cases: {said}" in log) is bool(said)
    assert log.count("step 3/3 {'loss'") <= 1


def test_a_stop_reaches_whoever_answers_for_several(lab):
    for how, timeout in (("stay", 120), ("hang", 0.5)):
        run = several(lab, how, run_id=f"witness-{how}", stop_timeout=timeout)
        process = lab.supervise(run)
        eventually(lambda run=run: events(run, "answers"))
        process.send_signal(signal.SIGTERM)
        assert until(run, "finished", "failed", "stopped")["state"] == "finished"


def test_nobody_answers_where_nothing_is_asked_or_the_training_failed(lab):
    for number, (settings, state) in enumerate((({"questions": False}, "finished"), ({"nan_at": 3}, "failed"))):
        run = several(lab, "well", run_id=f"witness-{number}", **settings)
        lab.supervise(run)
        assert until(run, "finished", "failed")["state"] == state
        assert not events(run, "answers")


def test_a_program_that_is_not_there_costs_answers_alone(lab):
    run = several(lab, "well")
    rundir.write_json(run / "run.json", rundir.read_json(run / "run.json") | {"answer_command": ["/not/here"]})
    lab.supervise(run)
    assert until(run, "finished", "failed")["state"] == "finished"
    assert "cases are left unanswered: /not/here" in (run / "supervisor.log").read_text()


@pytest.mark.parametrize(("by", "kept"), [("end", False), ("request", False), ("shutdown", True), ("crash", False)])
def test_the_secrets_reach_the_trainer_and_go_with_the_end(lab, by, kept):
    run = lab.make(steps=2, stay_at=0 if by == "end" else 1, crash_at=1 if by == "crash" else 0)
    with os.fdopen(os.open(run / "env", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write("HF_TOKEN=a=hush-hush\n")
    process = lab.supervise(run)
    if by in ("request", "shutdown"):
        reached(run, 1)
        assert stat.S_IMODE((run / "env").stat().st_mode) == 0o600
        if by == "request":
            (run / "stop").touch()
        process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    assert (run / "env").exists() is kept
    assert "token: a=hush-hush" in (run / "train.log").read_text()
    private = ("train.log", "metrics.jsonl", "status.json", "supervisor.log")
    assert {stat.S_IMODE((run / name).stat().st_mode) & 0o077 for name in private} == {0}
    for name in ("run.json", "status.json", "supervisor.log"):
        assert "hush-hush" not in (run / name).read_text()


@pytest.mark.parametrize("way", ["module", "file"])
def test_what_lies_in_a_run_directory_is_never_imported(lab, way):
    """It holds what another host wrote: a module of such a name would run in the training, and in the supervisor."""
    run = lab.make(steps=2)
    shutil.copy(FAKE, run / "programs/job.py")
    spec = rundir.read_json(run / "run.json")
    how = ["-m", "job"] if way == "module" else ["programs/job.py"]
    rundir.write_json(run / "run.json", {**spec, "command": [sys.executable, *how]})
    for name in ("sitecustomize", "usercustomize", "rundir", "fcntl", "json", "signal", "job", "contextlib"):
        for folder in (run, run / "output", run / "output/checkpoint-2"):
            folder.mkdir(exist_ok=True)
            (folder / f"{name}.py").write_text(f"open({str(run / 'harmed')!r}, 'a').write({name!r})\n")
    (run / "output/checkpoint-2").rename(run / "output/set-aside")
    lab.supervise(run)
    until(run, "finished")
    assert not (run / "harmed").exists(), (run / "harmed").read_text()


# --- a full disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reserve", [True, False])
def test_the_final_state_is_written_although_the_disk_was_full(lab, monkeypatch, reserve):
    run = lab.make()
    if reserve:
        (run / ".reserve").write_bytes(b"\0" * 10)
    failures = [OSError(errno.ENOSPC, "No space left on device")]
    write = rundir.write_json

    def once(path, data, mode=0o644):
        if failures:
            raise failures.pop()
        write(path, data, mode)

    monkeypatch.setattr(supervisor.rundir, "write_json", once)
    supervisor.Supervisor(run).end("failed", {"kind": "crashed", "detail": "x"}, 1)
    assert status(run)["state"] == "failed"


def test_a_host_without_locks_is_told_with_the_path(lab, monkeypatch):
    def flock(handle, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    run = lab.make()
    monkeypatch.setattr(supervisor.fcntl, "flock", flock)
    monkeypatch.setattr(supervisor.signal, "signal", lambda number, handler: None)
    assert supervisor.Supervisor(run).run() == 0
    path = lab.root / "lora-forge-cpu.lock"
    assert status(run)["reason"]["kind"] == "environment"
    assert f"the lane's lock cannot be taken: No locks available: '{path}'" in status(run)["reason"]["detail"]


def test_without_slurm_nothing_trains_where_the_folder_has_no_locks(lab, monkeypatch):
    """Another host may have the same folder: there is no queue that would keep it from the same run."""

    def flock(handle, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    run = lab.make()
    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setattr("os.umask", lambda mask: mask)
    monkeypatch.setattr(sys, "argv", ["supervisor.py", str(run)])
    assert supervisor.main() == 0
    assert (status(run)["state"], status(run)["reason"]["kind"]) == ("failed", "environment")
    words = "the run's lock cannot be taken: its file system has no locks (flock); whoever runs it can mount it"
    assert status(run)["reason"]["detail"].startswith(words)
    assert not events(run)


@pytest.fixture
def small_disk(tmp_path):
    where = pathlib.Path(tmp_path / "disk")
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(where)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here (root only)")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def test_a_really_full_disk_ends_in_a_final_state(small_disk, lab):
    run = lab.make(where=small_disk, fill=1)
    process = lab.supervise(run)
    assert process.wait(PATIENCE) == 0
    end = status(run)
    assert end["state"] == "failed"
    assert end["reason"]["kind"] == "disk full"
