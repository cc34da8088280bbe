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
