"""A run on its trainer, as modules see it: observe, start, stop, remove, prune. Python 3.9 or newer."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import shlex
import shutil
import signal
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional

from ansible.module_utils.lora_forge import paths, rundir
from ansible.module_utils.lora_forge.agents import agent_of
from ansible.module_utils.lora_forge.errors import UserError, error_message, told_of
from ansible.module_utils.lora_forge.json_record import JsonRecord
from ansible.module_utils.lora_forge.trainer import backend, run_state, slurm
from ansible.module_utils.lora_forge.trainer.run_state import ListedRun, Observation

LOG_TAIL = 4000  # characters of train.log that come along with a failure
# One folder for everybody on the host, or two users would train on one lane. /run/lock is root's alone on many systems.
LANE_DIR = "/tmp"
_FACTS = ("run_id", "agent", "fingerprint", "rehearsal", "backend", "hosts", "processes")  # of run.json
WEIGHTS = "adapter_model.safetensors"
MAX_HEADER = 32 * paths.MIB  # of a safetensors file; a hundred thousand matrices take less than half of it
SETTLE = 2.0  # seconds in which news of a run that goes on are gathered: each answer costs a round trip
_LAUNCH = 60.0  # seconds beyond a run's stop timeout that a launch may take, which a stop lets come to its end
_TIDY = 10.0  # seconds that a job's node is given to tidy up after it; some take long, and nobody trains there then
_STALE_AFTER = 60.0  # seconds without a heartbeat before a supervisor counts as silent; it beats every 5


def observe(
    run_dir: pathlib.Path,
    since: str = "",
    stall_timeout: float = 1800,
    heartbeat_timeout: float = _STALE_AFTER,
    queue: Optional[slurm.Queue] = None,
) -> Observation:
    """Look at everything that can be seen of a run at this moment.

    Args:
        run_dir: The run directory.
        since: The ``token`` of an earlier observation: only later events are returned.
        stall_timeout: Seconds without an event after which the training counts as stalled.
        heartbeat_timeout: Seconds of silence after which the supervisor counts as stalled.
        queue: Slurm's, which who only watches hands on; without one it is asked anew of a run that Slurm has.
    """
    asked: Optional[tuple[slurm.Queue, Optional[slurm.Job], str]] = None
    if rundir.read_run(run_dir)[0].get("backend") == "slurm":
        # Before the files are read: of a job that has ended by then, they have the last word.
        known = queue or slurm.Queue()
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
    defect = weights_defect(run_dir / "output" / WEIGHTS) if status.get("state") == "finished" and trains else None
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
        checkpoint=newest_checkpoint(run_dir),
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
    queue: slurm.Queue,
    job: Optional[slurm.Job],
    silence: str,
) -> tuple[Optional[float], bool, tuple[str, str]]:
    """Conclude how a run is that Slurm has: pids, boot ids and uptimes in its files are another machine's.

    Returns:
        Seconds since its supervisor's last word, whether it lives, and its state and why.
    """
    node = (job.nodes if job is not None else "") or "its node"
    heard = bool(status) and status.get("launch") == noted.get("launch")
    silent = rundir.age(run_dir / "status.json") if status else None
    end, fault = slurm.end_of(job) if job is not None else "the queue does not know it any more", ""
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
    if job is not None and job.state in slurm.SUSPENDED and concluded[0] in run_state.LIVING:
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
    listed, queue = [], slurm.Queue(anew=only is not None)
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
    queue = slurm.Queue()
    return any(observe(root / "runs" / name, queue=queue).state in (*run_state.LIVING, "unknown", "finished")
               for name in names)  # fmt: skip


def weights_defect(path: pathlib.Path) -> Optional[str]:
    """Say what is wrong with a safetensors file at first sight: missing, cut off or empty; None when nothing is.

    Reads the header alone (https://github.com/huggingface/safetensors#format), so that it costs nothing to ask often.
    What its tensors hold is for ``adapters.store.verify`` to prove.
    """
    try:
        with rundir.open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(MAX_HEADER, path.stat().st_size):
                raise ValueError
            tensors = json.loads(file.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
    except FileNotFoundError:
        return f"{path.name} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        return f"{path.name} cannot be read"
    if not ends:
        return f"{path.name} holds no tensors"
    if path.stat().st_size != 8 + length + max(ends):
        return f"{path.name} is cut off"
    return None


def newest_checkpoint(run_dir: pathlib.Path) -> dict[str, Any]:
    """Return the newest whole checkpoint: its step (0 without one), and its files as paths below the run directory."""
    step = rundir.last_complete(run_dir / "output")
    folder = f"output/checkpoint-{step}"
    files = rundir.read_json(run_dir / folder / rundir.COMPLETE).get("files", {}) if step else {}
    names = [name for name in (*sorted(files), rundir.COMPLETE) if not paths.flaw(name)]
    return {"step": step, "files": [f"{folder}/{name}" for name in names] if step else []}


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
    queue = slurm.Queue() if since else None
    while True:
        seen = observe(run_dir, since, queue=queue, **limits)
        queue = queue or slurm.Queue()
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


@dataclasses.dataclass(frozen=True)
class Launch(JsonRecord):
    """What a run is launched with, as the controller works it out; run.json keeps it.

    Attributes:
        command: The trainer's command line, in the run directory.
        lane: What it has to itself on its host: the UUIDs of its GPUs, or a word that begins with cpu.
        lane_dir: Where lanes are locked; None for :data:`LANE_DIR`.
        environment: Environment variables of the trainer process that are no secrets.
        stop_timeout: Seconds that the trainer has for its checkpoint when it is stopped.
        prepared: Its cache of tokenised data; None without one.
        processes: How many processes train, on all hosts.
        answer_command: What answers the agent's cases after that, in the run directory; empty where the training's own
            process does it, or another host.
        facts: What is known of the run, for people and later questions.
        slurm: What Slurm is asked for: run_slurm; empty where Slurm does not keep the run.
        gate: A command line that must end well on each node before the training starts there; empty for none.
        nodes: How many nodes Slurm is asked for.
        port: With several of them the first one of those on which they meet.
        at_once: How many jobs of the trainer Slurm may run at once; 0 for any number.
    """

    command: list[str]
    lane: str = "cpu"
    lane_dir: Optional[str] = None
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    stop_timeout: int = 120
    prepared: Optional[str] = None
    processes: int = 1
    answer_command: list[str] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    slurm: dict[str, Any] = dataclasses.field(default_factory=dict)
    gate: list[str] = dataclasses.field(default_factory=list)
    nodes: int = 1
    port: int = 0
    at_once: int = 0

    def run_json(self, run_id: str) -> dict[str, Any]:
        """Write it as run.json keeps it.

        Args:
            run_id: The run.
        """
        return {
            **self.facts,
            "run_id": run_id,
            "command": self.command,
            "lane": self.lane,
            "lane_dir": self.lane_dir or LANE_DIR,
            "prepared": self.prepared,
            "processes": self.processes,
            "answer_command": self.answer_command,
            "env": {name: str(value) for name, value in self.environment.items()},
            "stop_timeout": self.stop_timeout,
            **({"gate": self.gate} if self.gate else {}),
            **({"nodes": self.nodes, "port": self.port} if self.nodes > 1 else {}),
        }


def start_all(
    asked: Sequence[Mapping[str, Any]],
    secrets: Mapping[str, Mapping[str, Any]],
    wanted: str,
    within: float,
    check: bool = False,
) -> list[dict[str, Any]]:
    """Start runs of this trainer one after the other, or attach to them; what goes wrong with one stops no other.

    Slurm's queue is looked at once for all of them. Since then somebody else may have launched one of them, and then
    its run.json is another one: it is looked at anew.

    Args:
        asked: Of each its ``run_dir``, and what :class:`Launch` has.
        secrets: Of each run, by its name, environment variables for the trainer process alone.
        wanted: The backend, or ``auto``.
        within: Seconds after which no further one is begun.
        check: Predict only.

    Returns:
        Of those that were begun, in their order, the ``run_id`` and what :func:`start` returns, or C(refused): why not.
    """
    dirs = [pathlib.Path(one["run_dir"]).resolve() for one in asked]
    before = [rundir.read_run(run_dir)[0].get("launch") for run_dir in dirs]
    queue, until = slurm.Queue(anew=True), time.monotonic() + within
    answers: list[dict[str, Any]] = []
    for run_dir, noted, one in zip(dirs, before, asked):
        if answers and time.monotonic() >= until:
            break
        answer: dict[str, Any] = {"run_id": run_dir.name, "changed": False}
        given = {name: str(value) for name, value in secrets.get(run_dir.name, {}).items() if value}
        try:
            answer |= start(run_dir, Launch.from_dict(dict(one)), given, wanted, check, queue, noted)
        except Exception as error:
            answer["refused"] = told_of(error)
        answers.append(answer)
    return answers


def start(
    run_dir: pathlib.Path,
    launch: Launch,
    secrets: dict[str, str],
    wanted: str,
    check: bool = False,
    queue: Optional[slurm.Queue] = None,
    noted: Optional[str] = None,
) -> dict[str, Any]:
    """Start a run, or attach to it when it is alive or finished.

    Args:
        run_dir: The run directory with axolotl.yml and the programs staged in it.
        launch: What it is launched with.
        secrets: Environment variables for the trainer process alone.
        wanted: The backend, or ``auto``.
        check: Predict only.
        queue: Slurm's, as it was seen before by who starts several runs.
        noted: The launch that run.json held when that was.

    Returns:
        changed, backend, message (what the backend means for reboots), attach_command (which shows the run to a
        person).

    Raises:
        UserError: The supervisor did not come up, or another launch has been under way for too long.
    """
    if check:
        return _start(run_dir, launch, secrets, wanted, check, queue or slurm.Queue(anew=True))
    # Two controllers in the same second: the other one attaches.
    with _turn(run_dir / "launch.lock", launch.stop_timeout + _LAUNCH, f"another launch of {run_dir.name}"):
        if queue is None or rundir.read_run(run_dir)[0].get("launch") != noted:
            queue = slurm.Queue(anew=True)
        return _start(run_dir, launch, secrets, wanted, check, queue)


@contextlib.contextmanager
def _turn(path: pathlib.Path, seconds: float, what: str) -> Iterator[None]:
    """Hold a lock of launches.

    Args:
        path: As :func:`rundir.locked` takes it.
        seconds: The longest wait.
        what: What is under way while another process has it.

    Raises:
        UserError: Another process has had it for all that time.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(rundir.locked(path, seconds))
        except BlockingIOError:
            raise UserError(
                f"{what} has been under way for {seconds:.0f} s, and holds {path}. «fuser {path}» tells its process; "
                "once that has ended, the same command goes on"
            ) from None
        yield


def _start(
    run_dir: pathlib.Path, launch: Launch, secrets: dict[str, str], wanted: str, check: bool, queue: slurm.Queue
) -> dict[str, Any]:
    before = observe(run_dir, queue=queue)
    deadline = time.monotonic() + 5 + launch.stop_timeout
    while before.alive and (before.state == "failed" or before.status.get("state") in ("stopped", "stopping")):
        if check or time.monotonic() > deadline or before.state == "queued":
            break
        # Its supervisor is about to go, or about to be told to stop.
        time.sleep(2 if before.facts.get("backend") == "slurm" else 0.05)
        before = observe(run_dir)
    if before.state == "unknown":
        raise UserError(f"{run_dir.name} is not started, as nobody knows whether it runs: {before.detail}")
    if before.state == "finished" or (before.alive and before.state != "stopped"):
        if not check:
            _receive(run_dir, starts=False)
        return {"changed": False, "message": "", **{key: before.facts[key] for key in ("backend", "attach_command")}}
    choice = backend.choose(wanted, backend.probe_host(wanted))
    if check:
        return {"changed": True, "backend": choice.backend, "attach_command": "", "message": choice.message}
    _receive(run_dir, starts=True)
    (run_dir / "stop").unlink(missing_ok=True)
    noted = {
        **launch.run_json(run_dir.name),
        "schema_version": rundir.SCHEMA_VERSION,
        "launch": uuid.uuid4().hex,  # times would not do: the clock may have been set back since the last launch
        "backend": choice.backend,
    }
    # One launch at a time on a trainer, so that each gets a turn of its own.
    with _turn(run_dir.parent, _LAUNCH, "a launch of another run"):
        known = _noted_runs(run_dir.parent)
        cut_off = before.status.get("state") in ("queued", "running")
        kept = known.get(run_dir, {}).get("turn") if cut_off else None
        noted["turn"] = kept or _next_turn(known.values())
        rundir.write_json(run_dir / "run.json", noted)
    _write_secrets(run_dir / "env", secrets)
    if choice.backend == "slurm":
        others = [path for path, its in known.items() if its.get("backend") == "slurm" and path != run_dir]
        return _submit(run_dir, launch, noted, choice, queue, others)
    attach_command = backend.start(choice, run_dir.name, run_dir, int(launch.stop_timeout))
    rundir.write_json(run_dir / "run.json", {**noted, "attach_command": attach_command})
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if rundir.read_status(run_dir)[0].get("launch") == noted["launch"]:
            return {
                "changed": True,
                "backend": choice.backend,
                "attach_command": attach_command,
                "message": choice.message,
            }
        time.sleep(0.1)
    log = run_dir / "supervisor.log"
    text = log.read_text(encoding="utf-8", errors="replace")[-1000:] if log.exists() else ""
    raise UserError(f"the supervisor of {run_dir.name} did not come up within 20 s ({choice.backend}). {text}")


def _receive(run_dir: pathlib.Path, starts: bool) -> None:
    """Put what was brought for a start in its place, or drop it where the run is started already.

    A checkpoint from elsewhere comes with the events before it. Where the run has gone on here since that was decided,
    neither counts any more.

    Args:
        run_dir: The run directory, whose lock the caller has.
        starts: Whether the caller starts the run. Nobody else writes into the folder then.
    """
    incoming = run_dir / rundir.INCOMING
    is_newer = rundir.last_complete(incoming / "output") > rundir.last_complete(run_dir / "output")
    for path in sorted(incoming.rglob("*")):
        place = path.relative_to(incoming)
        # Another command may be bringing the same: what rsync is at has such a name, and folders stay for it.
        if path.is_dir() or any(part.startswith(".") for part in place.parts):
            continue
        carried = place.parts[0] in ("output", "metrics.jsonl")
        if starts and (is_newer or not carried):
            (run_dir / place).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.replace(path, run_dir / place)
        path.unlink(missing_ok=True)  # a second link to what is there already is left by the kernel


def _submit(
    run_dir: pathlib.Path,
    launch: Launch,
    noted: dict[str, Any],
    choice: backend.Choice,
    queue: slurm.Queue,
    others: Sequence[pathlib.Path],
) -> dict[str, Any]:
    """Submit a run's job, after as many others as leave room for it. Nobody waits for its start: that may take days."""
    # Not this module's Python, which is the login node's; a node needs the training's in any case.
    command = [launch.command[0], str(run_dir / rundir.PROGRAMS / "supervisor.py"), str(run_dir)]
    try:
        jobs = [queue.job(other)[0] for other in others] if launch.at_once else []
        living = sorted((job.number for job in jobs if job is not None and job.lives), key=int)
        # All but the newest: of two that would do, somebody may cancel the one that is named.
        after = living[: max(0, len(living) - launch.at_once + 1)]
        number = slurm.submit(launch.slurm, run_dir, command, int(launch.stop_timeout), after, nodes=launch.nodes)
    except (UserError, OSError) as error:
        if not isinstance(error, slurm.Unanswered):  # else the job may be there, and need them
            (run_dir / "env").unlink(missing_ok=True)
        raise
    attach_command = shlex.join(["tail", "-F", f"{run_dir}/supervisor.log"])  # which is there once the job begins
    rundir.write_json(run_dir / "run.json", {**noted, "attach_command": attach_command, "job": number})
    queue.add(run_dir, number)
    message = f"job {number}; {choice.message}"
    return {"changed": True, "backend": choice.backend, "attach_command": attach_command, "message": message}


def _noted_runs(folder: pathlib.Path) -> dict[pathlib.Path, dict[str, Any]]:
    """Return what run.json has of each run of a trainer, by the run directory."""
    return {path.parent: rundir.read_run(path.parent)[0] for path in folder.glob("*/run.json")}


def _next_turn(noted: Iterable[Mapping[str, Any]]) -> int:
    """Return the number of a launch among all of a trainer: who has the lower one comes first on a lane.

    No time: the wall clock may be set back, and the one since boot begins again.

    Args:
        noted: The run.json of each run of the trainer.
    """
    return max((run.get("turn") or 0 for run in noted), default=0) + 1


def _write_secrets(path: pathlib.Path, secrets: dict[str, str]) -> None:
    path.unlink(missing_ok=True)
    if secrets:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.writelines(f"{name}={value}\n" for name, value in sorted(secrets.items()))


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
        with contextlib.nullcontext() if check or not lock.exists() else rundir.locked(lock, timeout + _LAUNCH):
            in_slurm = rundir.read_run(run_dir)[0].get("backend") == "slurm"
            decided = _tell_job(run_dir, check) if in_slurm else _tell_processes(run_dir, check)
    except BlockingIOError:
        raise UserError(
            f"a launch of {run_dir.name} has been under way for {timeout + _LAUNCH:.0f} s; stop it once more when it "
            "has come to its end"
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
    seen = observe(run_dir)
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
    seen = observe(run_dir)
    began = seen.status.get("launch") == rundir.read_run(run_dir)[0].get("launch")
    deadline = time.monotonic() + (timeout + 30 if began and seen.state != "queued" else 0)
    while rundir.read_status(run_dir)[0].get("state") not in rundir.FINAL_STATES and time.monotonic() < deadline:
        time.sleep(0.5)
    deadline, tidied, queue = time.monotonic() + 60, time.monotonic() + _TIDY, slurm.Queue()
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
        except slurm.Silent as error:
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


def prune_plan(run_dir: pathlib.Path, keep: int) -> tuple[list[dict[str, Any]], Optional[str]]:
    """Decide which checkpoints of a run stay and which go.

    The best by eval loss stay (a checkpoint's is that of the last evaluation at or before its step), always the one
    whose adapter would be delivered as the best, and the newest whole one. What was set aside as not whole goes.

    Args:
        run_dir: The run directory.
        keep: How many of the best stay.

    Returns:
        A list of {path, step, eval_loss, bytes, keep, why}, and a reason not to touch the run at all.
    """
    status = rundir.read_status(run_dir)[0]
    if rundir.read_run(run_dir)[0].get("backend") == "slurm":  # its processes are another machine's
        seen = observe(run_dir)
        if seen.state == "unknown":
            return [], f"nobody knows whether it is alive: {seen.detail}"
        living = seen.alive
    else:
        living = rundir.is_alive(status.get("supervisor")) or bool(rundir.run_processes(run_dir))
    if living:
        return [], "it is alive"
    events, _ = rundir.read_events(run_dir / "metrics.jsonl")
    losses = [
        (event["step"], event["eval_loss"])
        for event in rundir.surviving_events(events)
        if event["event"] == "eval" and "step" in event and run_state.finite(event.get("eval_loss"))
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


def prune_table(run_id: str, rows: list[dict[str, Any]], left_alone: Optional[str], check: bool) -> dict[str, Any]:
    """Lay out for people which checkpoints of a run stay and which go, as ``show`` takes it.

    Args:
        run_id: The run.
        rows: From :func:`prune_plan`.
        left_alone: From there, too.
        check: Whether it was only predicted.
    """
    freed = sum(row["bytes"] for row in rows if not row["keep"])
    outcome = f"{round(freed / 1e6, 1)} MB {'would be freed' if check else 'freed'}"
    return {
        "columns": ["checkpoint", "step", "eval loss", "MB", "", "why"],
        "rows": [
            [
                os.path.basename(row["path"]),
                "–" if row["step"] is None else row["step"],
                "–" if row["eval_loss"] is None else f"{row['eval_loss']:.4f}",
                round(row["bytes"] / 1e6, 1),
                "stays" if row["keep"] else "goes",
                row["why"],
            ]
            for row in rows
        ],
        "lines": [f"  {run_id}: {f'left alone: {left_alone}' if left_alone else outcome}"],
    }
