"""Start runs on their trainer, or attach to them. Python 3.9 or newer."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shlex
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError, told_of
from ansible.module_utils.lora_forge.json_record import JsonRecord
from ansible.module_utils.lora_forge.trainer import backend, runs, slurm, slurm_queue

# One folder for everybody on the host, or two users would train on one lane. /run/lock is root's alone on many systems.
LANE_DIR = "/tmp"
LAUNCH_WITHIN = 60.0  # seconds beyond a run's stop timeout that a launch may take, which a stop lets come to its end


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
    queue, until = slurm_queue.Queue(anew=True), time.monotonic() + within
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
    queue: Optional[slurm_queue.Queue] = None,
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
        return _start(run_dir, launch, secrets, wanted, check, queue or slurm_queue.Queue(anew=True))
    # Two controllers in the same second: the other one attaches.
    with _turn(run_dir / "launch.lock", launch.stop_timeout + LAUNCH_WITHIN, f"another launch of {run_dir.name}"):
        if queue is None or rundir.read_run(run_dir)[0].get("launch") != noted:
            queue = slurm_queue.Queue(anew=True)
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
    run_dir: pathlib.Path, launch: Launch, secrets: dict[str, str], wanted: str, check: bool, queue: slurm_queue.Queue
) -> dict[str, Any]:
    before = runs.observe(run_dir, queue=queue)
    deadline = time.monotonic() + 5 + launch.stop_timeout
    while before.alive and (before.state == "failed" or before.status.get("state") in ("stopped", "stopping")):
        if check or time.monotonic() > deadline or before.state == "queued":
            break
        # Its supervisor is about to go, or about to be told to stop.
        time.sleep(2 if before.facts.get("backend") == "slurm" else 0.05)
        before = runs.observe(run_dir)
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
    with _turn(run_dir.parent, LAUNCH_WITHIN, "a launch of another run"):
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
    queue: slurm_queue.Queue,
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
