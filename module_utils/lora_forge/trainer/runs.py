"""A run on its trainer, as modules see it: how it is, and what is new of it. Python 3.9 or newer."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.agents import agent_of
from ansible.module_utils.lora_forge.errors import error_message
from ansible.module_utils.lora_forge.trainer import backend, run_state, saved, slurm, slurm_queue
from ansible.module_utils.lora_forge.trainer.run_state import ListedRun, Observation

LOG_TAIL = 4000  # characters of train.log that come along with a failure
_FACTS = ("run_id", "agent", "fingerprint", "rehearsal", "backend", "hosts", "processes")  # of run.json
SETTLE = 2.0  # seconds in which news of a run that goes on are gathered: each answer costs a round trip
_STALE_AFTER = 60.0  # seconds without a heartbeat before a supervisor counts as silent; it beats every 5


def observe(
    run_dir: pathlib.Path,
    since: str = "",
    stall_timeout: float = 1800,
    heartbeat_timeout: float = _STALE_AFTER,
    queue: Optional[slurm_queue.Queue] = None,
) -> Observation:
    """Look at everything that can be seen of a run at this moment.

    Args:
        run_dir: The run directory.
        since: The ``token`` of an earlier observation: only later events are returned.
        stall_timeout: Seconds without an event after which the training counts as stalled.
        heartbeat_timeout: Seconds of silence after which the supervisor counts as stalled.
        queue: Slurm's, which who only watches hands on; without one it is asked anew of a run that Slurm has.
    """
    asked: Optional[tuple[slurm_queue.Queue, Optional[slurm_queue.Job], str]] = None
    if rundir.read_run(run_dir)[0].get("backend") == "slurm":
        # Before the files are read: of a job that has ended by then, they have the last word.
        known = queue or slurm_queue.Queue()
        asked = (known, *known.job(run_dir, anew=queue is None))
    job = asked[1] if asked is not None else None
    noted, other_flaw = rundir.read_run(run_dir)
    status, flaw = rundir.read_status(run_dir)
    metrics = run_dir / "metrics.jsonl"
    events, size = rundir.read_events(metrics)
    offset = int(since.partition(":")[0] or 0) if since else 0
    fresh = rundir.read_events(metrics, offset)[0] if 0 < offset <= size else events
    done = run_state.progress(rundir.surviving_events(events))
    trains = not noted.get("evaluates")
    trained = status.get("state") == "finished" and trains
    defect = saved.weights_defect(run_dir / "output" / saved.WEIGHTS) if trained else None
    limits: dict[str, Any] = {"heartbeat_timeout": heartbeat_timeout, "stall_timeout": stall_timeout}
    limits |= {"defect": defect, "trains": trains, "flaw": flaw}
    if asked is not None:
        silent, alive, (state, detail) = _observe_job(run_dir, status, noted, done, limits, *asked)
    else:
        silent = rundir.uptime() - status["heartbeat"] if "heartbeat" in status else None
        if silent is not None and (status.get("supervisor") or {}).get("boot") != rundir.boot_id():
            silent = rundir.uptime()  # the host restarted; its last word was no later than that
        supervisor_alive = rundir.is_alive(status.get("supervisor"))
        trainer_alive = rundir.is_alive(status.get("trainer"))
        alive = supervisor_alive or trainer_alive
        comes_back = noted.get("backend") == "systemd" and not (run_dir / "stop").exists()
        gone = not supervisor_alive and status.get("state") not in rundir.FINAL_STATES
        state, detail = run_state.conclude(
            status,
            done,
            supervisor_alive,
            trainer_alive,
            heartbeat_age=silent,
            step_age=None if silent is None else silent + status.get("idle", 0),
            comes_back=comes_back,
            fault=backend.restart_fault(run_dir.name) if comes_back and gone else "",
            **limits,
        )
    if state == "absent" and not os.path.exists(run_dir.parent):
        detail = f"{run_state.NO_FOLDER} {run_dir.parent} on this trainer"
    third_flaw = f"{metrics.name} is no regular file" if metrics.exists() and not metrics.is_file() else ""
    # Every other run is read for it, which Slurm, whose reason stands there already, may have hundreds of.
    in_lane = state == "queued" and noted.get("backend") != "slurm"
    holder = rundir.lane_holder(run_dir, status.get("lane")) if in_lane else ""
    detail = ": ".join(filter(None, (detail, holder)))
    detail = "; ".join(filter(None, [detail, flaw * (flaw not in detail), other_flaw, third_flaw]))
    token = hashlib.sha256(f"{state}|{run_state.gist(detail)}|{status.get('starts')}".encode()).hexdigest()[:12]
    return Observation(
        state=state,
        detail=detail,
        status=status,
        alive=alive,
        progress=done,
        eta_seconds=run_state.eta_seconds(done) if state == "running" else None,
        events=fresh,
        token=f"{size}:{token}",
        checkpoint=saved.newest_checkpoint(run_dir),
        facts={key: noted.get(key) for key in _FACTS} | {"attach_command": _attach_command(noted)},
        silent_for=silent,
        nodes=job.nodes if job is not None and job.lives and not job.waits else "",
        log_tail=_log_tail(run_dir / "train.log") if state == "failed" else None,
    )


def _observe_job(
    run_dir: pathlib.Path,
    status: dict[str, Any],
    noted: dict[str, Any],
    done: run_state.Progress,
    limits: dict[str, Any],
    queue: slurm_queue.Queue,
    job: Optional[slurm_queue.Job],
    silence: str,
) -> tuple[Optional[float], bool, tuple[str, str]]:
    """Conclude how a run is that Slurm has: pids, boot ids and uptimes in its files are another machine's.

    Returns:
        Seconds since its supervisor's last word, whether it lives, and its state and why.
    """
    node = (job.nodes if job is not None else "") or "its node"
    heard = bool(status) and status.get("launch") == noted.get("launch")
    silent = rundir.age(run_dir / "status.json") if status else None
    end, fault = slurm_queue.end_of(job) if job is not None else "the queue does not know it any more", ""
    code = queue.exit_status(run_dir, job) if job is not None and job.state == "FAILED" and not heard else None
    root = run_dir.parents[1]
    if code == rundir.UNWRITABLE:
        fault = f"{node} cannot write into {root}: it is full, or read-only there"
    elif code == slurm.NOT_SHARED:
        fault = f"{node} does not see {root} as this host does: trainer_root must be in a shared folder"
    elif code:
        before, _, said = (_log_tail(run_dir / "slurm.log") or "").strip().rpartition("\n")
        fault = f"its job ended at once on {node} with exit code {code}: {said[-1000:] or 'without a word'}"
        fault += f"; {run_dir}/slurm.log has all of it" if before else ""
    concluded = run_state.conclude_job(
        status,
        done,
        waits=job.words if job is not None and job.waits else "",
        lives=job is not None and job.lives,
        heard=heard,
        silence=silence,
        end=end,
        fault=fault,
        heartbeat_age=silent,
        gone=job is not None and job.state != "NODE_FAIL",
        **limits,
    )
    if job is not None and job.state in slurm_queue.SUSPENDED and concluded[0] in run_state.LIVING:
        concluded = "stalled", f"Slurm has suspended its job {job.number}, and will let it go on"
    return silent, job is not None and job.lives, concluded


def progress_of(run_dir: pathlib.Path) -> run_state.Progress:
    """Tell how far a run has come by what its training logged, and nothing more.

    Args:
        run_dir: The run directory; there may be none.
    """
    return run_state.progress(rundir.surviving_events(rundir.read_events(run_dir / "metrics.jsonl")[0]))


def _attach_command(noted: dict[str, Any]) -> Optional[str]:
    """Return the command of run.json that shows a run; older runs have it as ``look``."""
    return noted.get("attach_command", noted.get("look"))


def _log_tail(path: pathlib.Path) -> Optional[str]:
    """Return the end of a log; None where there is none, or none that can be read."""
    with contextlib.suppress(OSError), rundir.open_regular(path) as log:
        log.seek(max(0, path.stat().st_size - LOG_TAIL))
        return log.read(LOG_TAIL).decode("utf-8", "replace")
    return None


def observe_all(
    root: pathlib.Path,
    gpus: list[dict[str, Any]],
    stall_timeout: float = 1800,
    only: Optional[Sequence[str]] = None,
) -> list[ListedRun]:
    """List every run of a trainer, by its name.

    Args:
        root: The trainer's root.
        gpus: From ``gpu.gpu_usage``.
        stall_timeout: As in :func:`observe`.
        only: The names of those that are asked for, as they are to be launched: of these the absent ones are listed,
            too, and Slurm's queue is asked anew.
    """
    listed, queue = [], slurm_queue.Queue(anew=only is not None)
    found = sorted((root / "runs").glob("*/")) if only is None else [root / "runs" / name for name in only]
    for path in found:
        if not rundir.NAME.fullmatch(path.name):
            continue  # somebody else's
        try:
            seen = observe(path, stall_timeout=stall_timeout, queue=queue)
        except OSError as error:  # another user's: it costs no other run its row
            seen = Observation("failed", f"it cannot be looked at: {error_message(error)}", facts={"agent": None})
        if seen.state == "absent" and only is None:
            continue  # staged, or cleaned up; never started
        card = next((gpu for gpu in gpus if gpu["uuid"] in str(seen.status.get("lane")).split(",")), None)
        listed.append(
            ListedRun(
                **vars(seen),
                run_id=path.name,
                agent=seen.facts["agent"] or agent_of(path.name) or path.name,
                gpu=card,
                gpu_busy=card["use"] if card and seen.state in run_state.LIVING else None,
            )
        )
    return listed


def any_launched(root: pathlib.Path, names: Sequence[str]) -> bool:
    """Tell whether one of some runs has no need to be started: it is alive, may be, or has finished.

    Args:
        root: The trainer's root.
        names: Of the runs.
    """
    queue = slurm_queue.Queue()
    return any(observe(root / "runs" / name, queue=queue).state in (*run_state.LIVING, "unknown", "finished")
               for name in names)  # fmt: skip


def wait_for_news(
    run_dir: pathlib.Path, since: str, seconds: float, awaited: Sequence[pathlib.Path] = (), **limits: float
) -> Observation:
    """Observe until something differs from the token, or the time is up; of a run that goes on, with what follows soon.

    Args:
        run_dir: The run directory.
        since: The token of the last observation; without one Slurm's queue is asked anew.
        seconds: The longest wait.
        awaited: Run directories of other runs of the trainer, whose end is news as well; see :func:`is_over`.
        limits: ``stall_timeout`` and ``heartbeat_timeout`` of :func:`observe`.
    """
    until, look = time.monotonic() + seconds, -math.inf
    queue = slurm_queue.Queue() if since else None
    while True:
        seen = observe(run_dir, since, queue=queue, **limits)
        queue = queue or slurm_queue.Queue()
        now = time.monotonic()
        if seen.token != since:
            until = min(until, now + SETTLE if seen.state in ("queued", "running") else now)
        if now >= look:  # there may be hundreds
            until, look = now if any(map(is_over, awaited)) else until, now + SETTLE
        if now >= until:
            return seen
        time.sleep(0.5)


def is_over(run_dir: pathlib.Path) -> bool:
    """Tell by its own files alone whether a run has come to its end, and does not come back.

    Args:
        run_dir: The run directory; there may be none.
    """
    status = rundir.read_status(run_dir)[0]
    ended = status.get("state") in rundir.FINAL_STATES and (status.get("reason") or {}).get("kind") != "requeued"
    return ended and status.get("launch") == rundir.read_run(run_dir)[0].get("launch")
