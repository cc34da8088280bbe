"""A run on its trainer, as modules see it: observe, read its logs, start, stop, remove, prune. Python 3.9 or newer."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import signal
import time
import uuid
from typing import Any, Optional

from ansible.module_utils.lora_forge import backend, rundir, verdict
from ansible.module_utils.lora_forge.errors import ForgeError

LOG_TAIL = 4000  # characters of train.log that come along with a failure
LOG_CHUNK = 256 * 1024  # bytes of a log that are read at once
STALE_AFTER = 60.0  # seconds without a heartbeat before a supervisor counts as silent; it beats every 5
OVER = (*rundir.FINAL_STATES, "absent")  # no log grows after these
_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours, and the cursor's moves between progress bars


def observe(
    run_dir: pathlib.Path, since: str = "", stall_timeout: float = 1800, heartbeat_timeout: float = STALE_AFTER
) -> dict[str, Any]:
    """Everything that can be seen of a run at this moment.

    Args:
        run_dir: The run directory.
        since: The ``token`` of an earlier observation: only later events are returned.
        stall_timeout: Seconds without an event after which the training counts as stalled.
        heartbeat_timeout: Seconds of silence after which the supervisor counts as stalled.

    Returns:
        state, detail, status, progress, eta_seconds, events (since the token), token, log_tail (of a failure).
    """
    status = rundir.read_json(run_dir / "status.json")
    metrics = run_dir / "metrics.jsonl"
    events, size = rundir.read_events(metrics)
    offset = int(since.partition(":")[0] or 0) if since else 0
    fresh, _ = rundir.read_events(metrics, offset) if offset <= size else (events, size)
    done = verdict.progress(rundir.surviving(events))
    silent = rundir.uptime() - status["heartbeat"] if "heartbeat" in status else None
    if silent is not None and (status.get("supervisor") or {}).get("boot") != rundir.boot_id():
        silent = rundir.uptime()  # the host restarted; its last word was no later than that
    supervisor_alive = rundir.is_alive(status.get("supervisor"))
    trainer_alive = rundir.is_alive(status.get("trainer"))
    state, detail = verdict.conclude(
        status,
        done,
        supervisor_alive,
        trainer_alive,
        heartbeat_age=silent,
        step_age=None if silent is None else silent + status.get("idle", 0),
        comes_back=rundir.read_json(run_dir / "run.json").get("backend") == "systemd"
        and not (run_dir / "stop").exists(),
        heartbeat_timeout=heartbeat_timeout,
        stall_timeout=stall_timeout,
    )
    token = hashlib.sha256(f"{state}|{detail.split(' for ')[0]}|{status.get('starts')}".encode()).hexdigest()[:12]
    found = {
        "state": state,
        "detail": detail,
        "status": status,
        "alive": supervisor_alive or trainer_alive,
        "progress": done,
        "eta_seconds": verdict.eta_seconds(done) if state == "running" else None,
        "events": fresh,
        "token": f"{size}:{token}",
    }
    if state == "failed" and (run_dir / "train.log").exists():
        with (run_dir / "train.log").open("rb") as log:
            log.seek(max(0, (run_dir / "train.log").stat().st_size - LOG_TAIL))
            found["log_tail"] = log.read().decode("utf-8", "replace")
    return found


def wait_for_news(run_dir: pathlib.Path, since: str, seconds: float, **limits: float) -> dict[str, Any]:
    """Observe until something differs from the token, or the time is up.

    Args:
        run_dir: The run directory.
        since: The token of the last observation.
        seconds: The longest wait.
        limits: ``stall_timeout`` and ``heartbeat_timeout`` of :func:`observe`.
    """
    deadline = time.monotonic() + seconds
    while True:
        found = observe(run_dir, since, **limits)
        if found["token"] != since or time.monotonic() >= deadline:
            return found
        time.sleep(0.5)


def read_log(
    run_dir: pathlib.Path, log: str = "train", offset: int = -1, lines: int = 50, seconds: float = 0
) -> dict[str, Any]:
    """Read on in a log of a run, and wait for text where there is none.

    A line that is not ended yet (a progress bar in motion, mostly) comes along when the time is up or the run is
    over: followed with a long wait, a bar makes one line in that time.

    Args:
        run_dir: The run directory.
        log: ``train`` or ``supervisor``.
        offset: From where to read, as an earlier answer said; below 0 the end of the log is read, without waiting.
        lines: How many lines of the end.
        seconds: The longest wait for text, or for the end of the run.

    Returns:
        text (whole lines, see :func:`_readable`), offset (where to read on), state (of :func:`observe`), more (text
        was left, as it is too much for one answer).

    Raises:
        ForgeError: Nothing was ever started in the run directory, or lines is negative.
    """
    if lines < 0:
        raise ForgeError(f"lines is {lines}; it must be 0 or more")
    path = run_dir / f"{log}.log"
    deadline = time.monotonic() + seconds
    gathered = seconds == 0
    while True:
        found = observe(run_dir)  # before the log is read: what a run that is over wrote is all there
        if offset < 0 and found["state"] == "absent" and not path.exists():
            raise ForgeError(
                f"there is no log of {run_dir.name}: nothing was ever started in {run_dir} on this trainer. "
                "train.yml starts it; if it was trained elsewhere, its log is there"
            )
        ended = found["state"] in OVER and not found["alive"]
        late = time.monotonic() >= deadline
        rows, end, more = _read_rows(path, offset, lines, unfinished=ended or late)
        if rows and not (gathered or ended or late or more):
            gathered = True  # what follows within a second comes in the same round trip
            time.sleep(1)
            continue
        # A supervisor that has written its final state is about to write its last line.
        if ended or late or more or ((rows or offset < 0) and found["state"] not in OVER):
            text = "".join(f"{row}\n" for row in rows)
            return {"text": text, "offset": end, "state": found["state"], "more": more}
        time.sleep(0.5)


def _read_rows(path: pathlib.Path, offset: int, lines: int, unfinished: bool) -> tuple[list[str], int, bool]:
    """Lines of a log from an offset on, the offset behind them, and whether more whole lines may follow at once.

    Args:
        path: The log.
        offset: Where to begin; below 0, the last lines are wanted. An offset beyond the end is that of an older log.
        lines: How many last lines.
        unfinished: Take a last line without its end, too.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = max(0, size - LOG_CHUNK) if offset < 0 else offset if offset <= size else 0
            file.seek(begin)
            data = file.read(LOG_CHUNK)
    except FileNotFoundError:
        return [], 0, False
    more = begin + len(data) < size
    whole = data.rfind(b"\n") + 1
    if (more and whole) or not (more or unfinished):
        data = data[:whole]
    end = begin + len(data)
    if offset >= 0:
        return _readable(data), end, more
    if begin:
        data = data[data.find(b"\n") + 1 :]  # the middle of a line
    rows = _readable(data)
    return rows[max(0, len(rows) - lines) :], end, more


def _readable(data: bytes) -> list[str]:
    """The lines of a log as they are worth reading: without terminal codes, and of a progress bar its last picture."""
    rows = []
    for row in _TERMINAL_CODE.sub("", data.decode("utf-8", "replace")).split("\n"):
        pictures = row.rstrip("\r").split("\r")
        if len(pictures) == 1:
            rows.append(pictures[0])
        else:  # blanks wipe a bar out; what is written over them is no part of it
            rows += [picture.strip() for picture in pictures if picture.strip()][-1:]
    return rows if rows[-1:] != [""] else rows[:-1]


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
        ForgeError: The supervisor did not come up.
    """
    if check:
        return _launch(run_dir, spec, secrets, wanted, check)
    with (run_dir / "launch.lock").open("a") as guard:  # two controllers in the same second: the other one attaches
        fcntl.flock(guard, fcntl.LOCK_EX)
        return _launch(run_dir, spec, secrets, wanted, check)


def _launch(
    run_dir: pathlib.Path, spec: dict[str, Any], secrets: dict[str, str], wanted: str, check: bool
) -> dict[str, Any]:
    before = observe(run_dir)
    deadline = time.monotonic() + 5 + spec["stop_timeout"]
    while before["status"].get("state") in ("failed", "stopped", "stopping") and before["alive"]:
        if check or time.monotonic() > deadline:
            break
        time.sleep(0.05)  # its supervisor is about to go, or about to be told to stop
        before = observe(run_dir)
    if before["state"] == "finished" or (before["alive"] and before["state"] != "stopped"):
        noted = rundir.read_json(run_dir / "run.json")
        return {"changed": False, "backend": noted.get("backend"), "look": noted.get("look"), "word": ""}
    choice = backend.choose(wanted, backend.look())
    if check:
        return {"changed": True, "backend": choice.backend, "look": "", "word": choice.word}
    (run_dir / "stop").unlink(missing_ok=True)
    spec = {
        **spec,
        "schema_version": rundir.SCHEMA_VERSION,
        "launch": uuid.uuid4().hex,  # times would not do: the clock may have been set back since the last launch
        "lane_dir": spec.get("lane_dir") or default_lane_dir(),
        "backend": choice.backend,
    }
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
    raise ForgeError(f"the supervisor of {spec['run_id']} did not come up within 20 s ({choice.backend}). {text}")


def default_lane_dir() -> str:
    """A folder that every user of this host can lock in."""
    folder = pathlib.Path("/run/lock")
    return str(folder) if folder.is_dir() and os.access(folder, os.W_OK) else "/tmp"


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
        ForgeError: It still lives after the time, and a margin for the supervisor.
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
    raise ForgeError(f"{run_dir.name} still runs {timeout + 30:.0f} s after it was told to stop")


def remove(run_dir: pathlib.Path, timeout: float, check: bool = False) -> bool:
    """Stop a run and delete its directory; True when there was one."""
    if not run_dir.exists():
        return False
    if not check:
        stop(run_dir, timeout)
        backend.forget(run_dir.name)
        shutil.rmtree(run_dir)
    return True


def prune_plan(run_dir: pathlib.Path, keep: int) -> tuple[list[dict[str, Any]], Optional[str]]:
    """Which checkpoints of a run would go.

    The best by eval loss stay (a checkpoint's is that of the last evaluation at or before its step), and
    always the newest whole one. What was set aside as not whole goes.

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
        for event in rundir.surviving(events)
        if event["event"] == "eval" and verdict.finite(event["eval_loss"])
    ]
    output = run_dir / "output"
    rows: list[dict[str, Any]] = []
    for step, path in rundir.checkpoints(output):
        why = rundir.flaw(path)
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
        whole[-1]["keep"] = True
        whole[-1]["why"] = "the newest whole one"
    if output.is_dir():
        for path in sorted(output.glob("incomplete-checkpoint-*")):
            rows.append({"path": path, "step": None, "eval_loss": None, "keep": False, "why": "set aside: not whole"})
    for row in rows:
        row["bytes"] = sum(file.stat().st_size for file in row["path"].rglob("*") if file.is_file())
        row["path"] = str(row["path"])
    return rows, None
