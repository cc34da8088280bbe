"""A run on its trainer, as modules see it: observe, start, stop, remove, prune. Python 3.9 or newer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import signal
import time
import uuid
from typing import Any, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.trainer import backend, run_state

LOG_TAIL = 4000  # characters of train.log that come along with a failure
# One folder for everybody on the host, or two users would train on one lane. /run/lock is root's alone on many systems.
LANE_DIR = "/tmp"
_FACTS = ("run_id", "agent", "fingerprint", "rehearsal", "backend", "look", "hosts")  # of run.json
WEIGHTS = "adapter_model.safetensors"
MAX_HEADER = 100_000_000  # bytes; the format's own limit
SETTLE = 2.0  # seconds in which news of a run that goes on are gathered: each answer costs a round trip
_STALE_AFTER = 60.0  # seconds without a heartbeat before a supervisor counts as silent; it beats every 5


def observe(
    run_dir: pathlib.Path, since: str = "", stall_timeout: float = 1800, heartbeat_timeout: float = _STALE_AFTER
) -> dict[str, Any]:
    """Everything that can be seen of a run at this moment.

    Args:
        run_dir: The run directory.
        since: The ``token`` of an earlier observation: only later events are returned.
        stall_timeout: Seconds without an event after which the training counts as stalled.
        heartbeat_timeout: Seconds of silence after which the supervisor counts as stalled.

    Returns:
        state, detail, status, progress, eta_seconds, events (since the token), token, checkpoint (the newest whole
        one: step, and its files below the run directory), facts (run.json's, of whose run it is), silent_for (seconds
        since the supervisor's last word; once it is gone, since about the run's end), log_tail (of a failure).
    """
    status, noted = rundir.read_json(run_dir / "status.json"), rundir.read_json(run_dir / "run.json")
    metrics = run_dir / "metrics.jsonl"
    events, size = rundir.read_events(metrics)
    offset = int(since.partition(":")[0] or 0) if since else 0
    fresh = rundir.read_events(metrics, offset)[0] if 0 < offset <= size else events
    done = run_state.progress(rundir.surviving_events(events))
    silent = rundir.uptime() - status["heartbeat"] if "heartbeat" in status else None
    if silent is not None and (status.get("supervisor") or {}).get("boot") != rundir.boot_id():
        silent = rundir.uptime()  # the host restarted; its last word was no later than that
    supervisor_alive = rundir.is_alive(status.get("supervisor"))
    trainer_alive = rundir.is_alive(status.get("trainer"))
    state, detail = run_state.conclude(
        status,
        done,
        supervisor_alive,
        trainer_alive,
        heartbeat_age=silent,
        step_age=None if silent is None else silent + status.get("idle", 0),
        comes_back=noted.get("backend") == "systemd" and not (run_dir / "stop").exists(),
        heartbeat_timeout=heartbeat_timeout,
        stall_timeout=stall_timeout,
        flaw=weights_defect(run_dir / "output" / WEIGHTS) if status.get("state") == "finished" else None,
    )
    token = hashlib.sha256(f"{state}|{detail.split(' for ')[0]}|{status.get('starts')}".encode()).hexdigest()[:12]
    found = {
        "state": state,
        "detail": detail,
        "status": status,
        "alive": supervisor_alive or trainer_alive,
        "progress": done,
        "eta_seconds": run_state.eta_seconds(done) if state == "running" else None,
        "events": fresh,
        "token": f"{size}:{token}",
        "checkpoint": newest_checkpoint(run_dir),
        "facts": {key: noted.get(key) for key in _FACTS},
        "silent_for": silent,
    }
    if state == "failed" and (run_dir / "train.log").exists():
        with (run_dir / "train.log").open("rb") as log:
            log.seek(max(0, (run_dir / "train.log").stat().st_size - LOG_TAIL))
            found["log_tail"] = log.read().decode("utf-8", "replace")
    return found


def observe_all(root: pathlib.Path, gpus: list[dict[str, Any]], stall_timeout: float = 1800) -> list[dict[str, Any]]:
    """Every run of a trainer.

    Args:
        root: The trainer's root.
        gpus: From ``gpu.gpu_usage``.
        stall_timeout: As in :func:`observe`.

    Returns:
        :func:`observe`'s answers without events and log, with run_id, agent, gpu (the first of its lane's; None
        without) and gpu_busy (its use in percent while the run holds it; None where it is not known).
    """
    found = []
    for path in sorted((root / "runs").glob("*/")):
        seen = observe(path, stall_timeout=stall_timeout)
        if seen["state"] == "absent":
            continue  # staged, or cleaned up; never started
        seen = {key: value for key, value in seen.items() if key not in ("events", "log_tail", "token")}
        card = next((gpu for gpu in gpus if gpu["uuid"] in str(seen["status"].get("lane")).split(",")), None)
        busy = card["use"] if card and seen["state"] in run_state.LIVING else None
        agent = seen["facts"]["agent"] or path.name.partition("-")[0]
        found.append({**seen, "run_id": path.name, "agent": agent, "gpu": card, "gpu_busy": busy})
    return found


def weights_defect(path: pathlib.Path) -> Optional[str]:
    """What is wrong with a safetensors file at first sight: missing, cut off or empty; None when nothing is.

    Reads the header alone (https://github.com/huggingface/safetensors#format), so that it costs nothing to ask often.
    What its tensors hold is the proof's, see ``adapter.verify``.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER:
                raise ValueError
            tensors = json.loads(file.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
    except FileNotFoundError:
        return f"{path.name} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"{path.name} cannot be read"
    if not ends:
        return f"{path.name} holds no tensors"
    if path.stat().st_size != 8 + length + max(ends):
        return f"{path.name} is cut off"
    return None


def newest_checkpoint(run_dir: pathlib.Path) -> dict[str, Any]:
    """The newest whole checkpoint: its step (0 without one), and its files as paths below the run directory."""
    step = rundir.last_complete(run_dir / "output")
    folder = f"output/checkpoint-{step}"
    files = rundir.read_json(run_dir / folder / rundir.COMPLETE).get("files", {}) if step else {}
    return {"step": step, "files": [f"{folder}/{name}" for name in (*sorted(files), rundir.COMPLETE)] if step else []}


def wait_for_news(run_dir: pathlib.Path, since: str, seconds: float, **limits: float) -> dict[str, Any]:
    """Observe until something differs from the token, or the time is up; of a run that goes on, with what follows soon.

    Args:
        run_dir: The run directory.
        since: The token of the last observation.
        seconds: The longest wait.
        limits: ``stall_timeout`` and ``heartbeat_timeout`` of :func:`observe`.
    """
    until = time.monotonic() + seconds
    while True:
        found = observe(run_dir, since, **limits)
        now = time.monotonic()
        if found["token"] != since:
            until = min(until, now + SETTLE if found["state"] in ("queued", "running") else now)
        if now >= until:
            return found
        time.sleep(0.5)


def start(
    run_dir: pathlib.Path, spec: dict[str, Any], secrets: dict[str, str], wanted: str, check: bool = False
) -> dict[str, Any]:
    """Start a run, or attach to it when it is alive or finished.

    Args:
        run_dir: The run directory with axolotl.yml, supervisor.py, rundir.py and the plugin staged in it.
        spec: What becomes run.json: run_id, lane, lane_dir, command, env, stop_timeout, and what is known of the run.
        secrets: Environment variables for the trainer process alone.
        wanted: The backend, or ``auto``.
        check: Predict only.

    Returns:
        changed, backend, word (what the backend means for reboots), look (how to look at it).

    Raises:
        UserError: The supervisor did not come up.
    """
    if check:
        return _launch(run_dir, spec, secrets, wanted, check)
    with rundir.locked(run_dir / "launch.lock"):  # two controllers in the same second: the other one attaches
        return _launch(run_dir, spec, secrets, wanted, check)


def _launch(
    run_dir: pathlib.Path, spec: dict[str, Any], secrets: dict[str, str], wanted: str, check: bool
) -> dict[str, Any]:
    before = observe(run_dir)
    deadline = time.monotonic() + 5 + spec["stop_timeout"]
    while before["alive"] and (before["state"] == "failed" or before["status"].get("state") in ("stopped", "stopping")):
        if check or time.monotonic() > deadline:
            break
        time.sleep(0.05)  # its supervisor is about to go, or about to be told to stop
        before = observe(run_dir)
    if before["state"] == "finished" or (before["alive"] and before["state"] != "stopped"):
        noted = rundir.read_json(run_dir / "run.json")
        return {"changed": False, "backend": noted.get("backend"), "look": noted.get("look"), "word": ""}
    choice = backend.choose(wanted, backend.probe_host())
    if check:
        return {"changed": True, "backend": choice.backend, "look": "", "word": choice.word}
    (run_dir / "stop").unlink(missing_ok=True)
    spec = {
        **spec,
        "schema_version": rundir.SCHEMA_VERSION,
        "launch": uuid.uuid4().hex,  # times would not do: the clock may have been set back since the last launch
        "lane_dir": spec.get("lane_dir") or LANE_DIR,
        "backend": choice.backend,
    }
    with rundir.locked(run_dir.parent):  # one launch at a time on a trainer, so that each gets a turn of its own
        cut_off = before["status"].get("state") in ("queued", "running")
        kept = rundir.read_json(run_dir / "run.json").get("turn") if cut_off else None
        spec["turn"] = kept or _next_turn(run_dir.parent)
        rundir.write_json(run_dir / "run.json", spec)
    _write_secrets(run_dir / "env", secrets)
    look = backend.start(choice, spec["run_id"], run_dir, int(spec["stop_timeout"]))
    rundir.write_json(run_dir / "run.json", {**spec, "look": look})
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        status = rundir.read_json(run_dir / "status.json")
        if status.get("launch") == spec["launch"]:
            return {"changed": True, "backend": choice.backend, "look": look, "word": choice.word}
        time.sleep(0.1)
    log = run_dir / "supervisor.log"
    text = log.read_text(encoding="utf-8", errors="replace")[-1000:] if log.exists() else ""
    raise UserError(f"the supervisor of {spec['run_id']} did not come up within 20 s ({choice.backend}). {text}")


def _next_turn(folder: pathlib.Path) -> int:
    """The number of a launch among all of a trainer: who has the lower one comes first on a lane.

    No time: the wall clock may be set back, and the one since boot begins again.
    """
    return max((rundir.read_json(path).get("turn") or 0 for path in folder.glob("*/run.json")), default=0) + 1


def _write_secrets(path: pathlib.Path, secrets: dict[str, str]) -> None:
    path.unlink(missing_ok=True)
    if secrets:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.writelines(f"{name}={value}\n" for name, value in sorted(secrets.items()))


def stop(run_dir: pathlib.Path, timeout: float, check: bool = False) -> bool:
    """Stop a run with a checkpoint; True when there was something to stop.

    Args:
        run_dir: The run directory.
        timeout: Seconds the trainer has before its supervisor, or this function where there is none, kills it.
        check: Predict only.

    Raises:
        UserError: It still lives after the time, and a margin for the supervisor.
    """
    status = rundir.read_json(run_dir / "status.json")
    alive = rundir.is_alive(status.get("supervisor")) or bool(rundir.run_processes(run_dir))
    if not alive:
        if status and not (run_dir / "stop").exists() and status.get("state") not in ("finished", "failed"):
            if not check:
                (run_dir / "stop").touch()  # systemd must not start it again at the next boot
                (run_dir / "env").unlink(missing_ok=True)
            return True
        return False
    if check:
        return True
    (run_dir / "stop").touch()
    if rundir.is_alive(status.get("supervisor")):
        os.kill(status["supervisor"]["pid"], signal.SIGTERM)
    elif rundir.is_alive(status.get("trainer")):
        os.kill(status["trainer"]["pid"], signal.SIGTERM)
    deadline = time.monotonic() + timeout + 30
    while time.monotonic() < deadline:
        now = rundir.read_json(run_dir / "status.json")
        if not rundir.is_alive(now.get("supervisor")):
            left = rundir.run_processes(run_dir)
            if not left:
                (run_dir / "env").unlink(missing_ok=True)  # a killed supervisor left the secrets behind
                return True
            if not rundir.is_alive(now.get("trainer")) or time.monotonic() > deadline - 30:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    raise UserError(f"{run_dir.name} still runs {timeout + 30:.0f} s after it was told to stop")


def remove(run_dir: pathlib.Path, timeout: float, check: bool = False) -> bool:
    """Stop a run and delete its directory; True when there was one."""
    if not run_dir.exists():
        return False
    if not check:
        stop(run_dir, timeout)
        backend.remove_unit(run_dir.name)
        shutil.rmtree(run_dir)
    return True


def prune_plan(run_dir: pathlib.Path, keep: int) -> tuple[list[dict[str, Any]], Optional[str]]:
    """Which checkpoints of a run would go.

    The best by eval loss stay (a checkpoint's is that of the last evaluation at or before its step), always the one
    whose adapter would be delivered as the best, and the newest whole one. What was set aside as not whole goes.

    Args:
        run_dir: The run directory.
        keep: How many of the best stay.

    Returns:
        A list of {path, step, eval_loss, bytes, keep, why}, and a reason not to touch the run at all.
    """
    status = rundir.read_json(run_dir / "status.json")
    if rundir.is_alive(status.get("supervisor")) or rundir.run_processes(run_dir):
        return [], "it is alive"
    events, _ = rundir.read_events(run_dir / "metrics.jsonl")
    losses = [
        (event["step"], event["eval_loss"])
        for event in rundir.surviving_events(events)
        if event["event"] == "eval" and run_state.finite(event["eval_loss"])
    ]
    output = run_dir / "output"
    rows: list[dict[str, Any]] = []
    for step, path in rundir.checkpoints(output):
        why = rundir.defect(path)
        loss = next((loss for at, loss in reversed(losses) if at <= step), None)
        rows.append({"path": path, "step": step, "eval_loss": loss, "keep": False, "why": why or ""})
    whole = [row for row in rows if not row["why"]]
    ranked = sorted(
        (row for row in whole if row["eval_loss"] is not None), key=lambda row: (row["eval_loss"], -row["step"])
    )
    for place, row in enumerate(ranked):
        row["keep"] = place < keep
        row["why"] = f"number {place + 1} by eval loss"
    if whole:
        best = rundir.read_json(whole[-1]["path"] / "trainer_state.json").get("best_global_step")
        for row in whole:
            if row["step"] == best:
                row["keep"], row["why"] = True, "the best evaluated one"
        whole[-1]["keep"] = True
        whole[-1]["why"] = "the newest whole one"
    if output.is_dir():
        for path in sorted(output.glob("incomplete-checkpoint-*")):
            rows.append({"path": path, "step": None, "eval_loss": None, "keep": False, "why": "set aside: not whole"})
    for row in rows:
        row["bytes"] = sum(file.stat().st_size for file in row["path"].rglob("*") if file.is_file())
        row["path"] = str(row["path"])
    return rows, None
