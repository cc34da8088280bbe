"""Stop a run with a checkpoint, or remove it from its trainer. Python 3.9 or newer."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import time
from typing import Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.trainer import backend, runs, slurm, slurm_queue
from ansible.module_utils.lora_forge.trainer.launching import LAUNCH_WITHIN
from ansible.module_utils.lora_forge.trainer.slurm_commands import Silent

_TIDY = 10.0  # seconds that a job's node is given to tidy up after it; some take long, and nobody trains there then


def stop(run_dir: pathlib.Path, timeout: float, check: bool = False) -> bool:
    """Stop a run with a checkpoint; return whether there was something to stop.

    Args:
        run_dir: The run directory.
        timeout: Seconds the trainer has before its supervisor, or this function where there is none, kills it.
        check: Predict only.

    Raises:
        UserError: It still lives after the time, and a margin for the supervisor; or a launch of it takes too long.
    """
    lock = run_dir / "launch.lock"
    try:
        # Who launches it has the lock until its supervisor, or its job, is there: a look before that would say that
        # nothing runs.
        with contextlib.nullcontext() if check or not lock.exists() else rundir.locked(lock, timeout + LAUNCH_WITHIN):
            in_slurm = rundir.read_run(run_dir)[0].get("backend") == "slurm"
            decided = _tell_job(run_dir, check) if in_slurm else _tell_processes(run_dir, check)
    except BlockingIOError:
        raise UserError(
            f"a launch of {run_dir.name} has been under way for {timeout + LAUNCH_WITHIN:.0f} s; stop it once more "
            "when it has come to its end"
        ) from None
    if decided is None:
        (_await_job if in_slurm else _await_processes)(run_dir, timeout)
    return decided is not False


def _tell_processes(run_dir: pathlib.Path, check: bool) -> Optional[bool]:
    """Tell a run to stop; return whether that changes anything, None where its end is still to come."""
    status = rundir.read_status(run_dir)[0]
    if rundir.is_alive(status.get("supervisor")) or rundir.run_processes(run_dir):
        if check:
            return True
        (run_dir / "stop").touch()
        return None
    if status and not (run_dir / "stop").exists() and status.get("state") not in ("finished", "failed"):
        if not check:
            (run_dir / "stop").touch()  # systemd must not start it again at the next boot
            (run_dir / "env").unlink(missing_ok=True)
        return True
    return False


def _await_processes(run_dir: pathlib.Path, timeout: float) -> None:
    """Wait for the end of a run that was told to stop, and kill what does not come to it."""
    status = rundir.read_status(run_dir)[0]
    if rundir.is_alive(status.get("supervisor")):
        os.kill(status["supervisor"]["pid"], signal.SIGTERM)
    elif rundir.is_alive(status.get("trainer")):
        os.kill(status["trainer"]["pid"], signal.SIGTERM)
    deadline = time.monotonic() + timeout + 30
    while time.monotonic() < deadline:
        now = rundir.read_status(run_dir)[0]
        if not rundir.is_alive(now.get("supervisor")):
            left = rundir.run_processes(run_dir)
            if not left:
                (run_dir / "env").unlink(missing_ok=True)  # a killed supervisor left the secrets behind
                return
            if not rundir.is_alive(now.get("trainer")) or time.monotonic() > deadline - 30:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    raise UserError(f"{run_dir.name} still runs {timeout + 30:.0f} s after it was told to stop")


def _tell_job(run_dir: pathlib.Path, check: bool) -> Optional[bool]:
    """Tell a run that Slurm has, as :func:`_tell_processes` does: its supervisor sees the file, and needs no signal."""
    seen = runs.observe(run_dir)
    if seen.state == "unknown":
        if not check:
            (run_dir / "stop").touch()
        raise UserError(f"{run_dir.name}: {seen.detail}. It is told to stop all the same; stop it once more to be sure")
    if not seen.alive:
        comes_back = bool(seen.status) and seen.state not in ("finished", "failed") and not (run_dir / "stop").exists()
        if comes_back and not check:
            (run_dir / "stop").touch()
            (run_dir / "env").unlink(missing_ok=True)
        return comes_back
    if check:
        return True
    (run_dir / "stop").touch()
    return None


def _await_job(run_dir: pathlib.Path, timeout: float) -> None:
    """Wait for the end of a run that was told to stop; cancel its job where it waits, or does not listen."""
    seen = runs.observe(run_dir)
    began = seen.status.get("launch") == rundir.read_run(run_dir)[0].get("launch")
    deadline = time.monotonic() + (timeout + 30 if began and seen.state != "queued" else 0)
    while rundir.read_status(run_dir)[0].get("state") not in rundir.FINAL_STATES and time.monotonic() < deadline:
        time.sleep(0.5)
    deadline, tidied, queue = time.monotonic() + 60, time.monotonic() + _TIDY, slurm_queue.Queue()
    while True:
        job, silence = queue.job(run_dir, anew=True)
        if job is None or not job.lives:
            break
        ends = job.state == "COMPLETING"  # it may go back into the queue, where Slurm was about to end it as well
        if ends and time.monotonic() > tidied:
            break
        try:
            if not silence and not ends:
                slurm.cancel(job)
        except Silent as error:
            silence = str(error)
        if time.monotonic() > deadline:
            raise UserError(f"{run_dir.name}: its job {job.number} is still {job.state}. {silence}".rstrip())
        time.sleep(1)
    if silence:
        raise UserError(f"{run_dir.name}: {silence}. It is told to stop all the same; stop it once more to be sure")
    (run_dir / "env").unlink(missing_ok=True)


def remove(run_dir: pathlib.Path, timeout: float, check: bool = False) -> bool:
    """Stop a run and delete its directory; return whether there was one."""
    if not run_dir.exists():
        return False
    if not check:
        stop(run_dir, timeout)
        backend.remove_unit(run_dir.name)
        shutil.rmtree(run_dir)
    return True
