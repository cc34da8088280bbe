"""The state of a run on its trainer, from its files and processes: what is observed, and what follows. Pure functions.

Runs on trainers: Python 3.9 or newer.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
import sys
from typing import Any, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.json_record import JsonRecord

NODES_SHOWN = 60  # letters of the names of nodes
NO_FOLDER = "there is no folder"  # so begins what is said of a run whose root is away, as of a disk that is not mounted
LIVING = ("queued", "running", "stalled")  # some process of it is there, or will be
EARLY = "early stopping"  # how the plugin words it
LONGEST = 1e12  # seconds to go, whatever clocks and steps were noted
NETWORK = 120.0  # seconds that a shared folder may show what is old: NFS keeps what it knows of a file for up to 60
MOVED = 3600.0  # seconds by which Slurm's guess at a start must have moved to be told again, and between two of them
_EXPECTED = re.compile(r", expected ([-0-9]+[ T][0-9:]+)")
# Slurm's reasons that last until somebody, or a set time, ends them. All others go to and fro with other users' jobs,
# «Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions» too: its code has that
# as a way of saying Resources.
_LASTS = re.compile(
    "BadConstraints|BeginTime|Dependency|Invalid|NodeDown|Partition|ReqNodeNotAvail|Reservation|.*[Hh]eld"
)
RESTART_WITHIN = 90.0  # seconds after which systemd is not waited for any longer; it waits 5 s itself


@dataclasses.dataclass(frozen=True)
class Progress(JsonRecord):
    """How far a training has come, or an evaluation, whose steps are answers.

    None where nothing is known; a figure that is not finite was logged as text.

    Attributes:
        step: The newest optimizer step.
        planned: How many steps there are to be.
        epoch: Of the newest step, as Axolotl counts them.
        loss_first: The first training loss.
        loss: The newest one.
        eval_first: The first eval loss.
        eval_loss: The newest one.
        tokens_per_second: Of the newest step.
        adapter_step: The step of what is delivered in the end.
        eval_adapter: The eval loss of that.
        seconds_per_step: Since the newest start.
        began_at: When the newest start was, in epoch seconds.
        last_event_at: When the newest event was, in epoch seconds.
        end_reason: Why it ended, as the plugin words it.
        wandb: The run at W&B, of the newest start: mode, run (entity/project/id) and url.
        data: examples, tokens, longer, dropped and untrainable, summed over the training and evaluation sets.
        ended: Whether the training said that it is over.
        measured: Steps since the newest start.
        answered: How many questions the newest start has answered since it ended.
        asked: How many it was asked; None where it has not come to that.
    """

    step: Optional[int] = None
    planned: Optional[int] = None
    epoch: Optional[float] = None
    loss_first: Any = None
    loss: Any = None
    eval_first: Any = None
    eval_loss: Any = None
    tokens_per_second: Optional[float] = None
    adapter_step: Optional[int] = None
    eval_adapter: Any = None
    seconds_per_step: Optional[float] = None
    began_at: Optional[float] = None
    last_event_at: Optional[float] = None
    end_reason: Optional[str] = None
    wandb: Optional[dict[str, Any]] = None
    data: Optional[dict[str, int]] = None
    ended: bool = False
    measured: int = 0
    answered: Optional[int] = None
    asked: Optional[int] = None


@dataclasses.dataclass(frozen=True)
class Observation(JsonRecord):
    """What is seen of a run on its trainer at one moment.

    Attributes:
        state: absent, queued, running, stalled, stopped, failed or finished; unknown where Slurm does not answer.
        detail: Why, in a sentence; empty where there is nothing to say.
        status: The supervisor's status.json; empty without one.
        alive: Whether a process of the run is there.
        progress: How far the training has come.
        eta_seconds: Seconds until the last step at the pace so far; None unless it runs.
        events: Of the training, since the token that was asked with.
        token: What to ask with next.
        checkpoint: The newest whole one: its step (0 without one), and its files below the run directory.
        facts: Of run.json: whose run it is, and how it was started.
        silent_for: Seconds since the supervisor's last word; once it is gone, since about the run's end.
        log_tail: The end of train.log, of a run that failed; None otherwise.
        nodes: Where its job runs, as Slurm writes a list of nodes; empty where Slurm has none of it.
    """

    state: str
    detail: str = ""
    status: dict[str, Any] = dataclasses.field(default_factory=dict)
    alive: bool = False
    progress: Progress = dataclasses.field(default_factory=Progress)
    eta_seconds: Optional[float] = None
    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    token: str = ""
    checkpoint: dict[str, Any] = dataclasses.field(default_factory=lambda: {"step": 0, "files": []})
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    silent_for: Optional[float] = None
    log_tail: Optional[str] = None
    nodes: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Write it as training_run_info answers it; without ``log_tail`` and ``nodes`` where there are none."""
        none = {"log_tail": None, "nodes": ""}
        return {key: value for key, value in super().as_dict().items() if key not in none or value != none[key]}


@dataclasses.dataclass(frozen=True)
class ListedRun(Observation):
    """One of all runs of a trainer.

    Attributes:
        run_id: Its name.
        agent: Who is trained.
        gpu: The first GPU of its lane, as ``gpu.gpu_usage`` lists it; None without one.
        gpu_busy: The use of that GPU in percent while the run holds it; None where it is not known.
    """

    run_id: str = ""
    agent: str = ""
    gpu: Optional[dict[str, Any]] = None
    gpu_busy: Optional[float] = None

    def as_dict(self) -> dict[str, Any]:
        """Write it as trainer_info answers it: without events, token and log."""
        return {key: value for key, value in super().as_dict().items() if key not in ("events", "token", "log_tail")}


def progress(events: list[dict[str, Any]]) -> Progress:
    """Sum up the events of a run.

    Args:
        events: From ``rundir.surviving_events``, oldest first.
    """
    sums: dict[str, Any] = {"measured": 0}
    began: Optional[dict[str, Any]] = None
    # Once for each set: a start that tokenises again counts the same again.
    data = list({(event["examples"], event["tokens"]): event for event in events if event["event"] == "data"}.values())
    evaluated: dict[Any, Any] = {}
    if data:
        keys = ("examples", "tokens", "longer", "dropped", "untrainable")
        sums["data"] = {key: sum(int(event.get(key, 0)) for event in data) for key in keys}
    for event in events:
        kind = event["event"]
        sums["last_event_at"] = event["time"]
        if kind == "wandb":
            sums["wandb"] = {key: event.get(key) for key in ("mode", "run", "url")}
        elif kind == "answers":
            sums |= {key: event.get(key) for key in ("answered", "asked")}
        if "step" not in event or "planned" not in event:
            continue
        sums["step"], sums["planned"] = event["step"], event["planned"]
        if kind == "begin":
            began = event
            sums |= {"ended": False, "end_reason": None, "measured": 0, "began_at": event["time"]}
            sums |= {"answered": None, "asked": None}
        elif kind == "log":
            if sums.get("loss_first") is None:
                sums["loss_first"] = event["loss"]
            sums |= {key: event.get(key) for key in ("loss", "tokens_per_second", "epoch")}
        elif kind == "eval":
            if sums.get("eval_first") is None:
                sums["eval_first"] = event["eval_loss"]
            sums["eval_loss"] = evaluated[event["step"]] = event["eval_loss"]
        elif kind == "end":
            adapter = event.get("adapter")
            step = adapter if isinstance(adapter, int) else event["step"]
            sums |= {"ended": True, "end_reason": event.get("reason"), "adapter_step": step}
            sums["eval_adapter"] = evaluated.get(step)
        if began is not None and kind in ("log", "answers", "end") and event["step"] > began["step"]:
            sums["measured"] = event["step"] - began["step"]
            sums["seconds_per_step"] = rundir.seconds_between(began, event) / sums["measured"]
    return Progress(**sums)


def eta_seconds(done: Progress) -> Optional[float]:
    """Return the seconds until the last step at the pace so far; None before the first step."""
    if not done.seconds_per_step or done.planned is None or done.step is None:
        return None
    return min(max(0.0, (done.planned - done.step) * done.seconds_per_step), LONGEST)


def answering(done: Progress) -> str:
    """Say how far a run that is over has come with its agent's cases; empty where it does not answer any."""
    return f"answering: {done.answered} of {done.asked} questions" if done.ended and done.asked else ""


def where(state: str, nodes: str) -> str:
    """Name a state with the nodes on which it is: one or two by their names, more as Slurm writes them.

    Args:
        state: Of an observation.
        nodes: Of it.
    """
    if not nodes or state not in ("running", "stalled"):
        return state
    two = re.fullmatch(r"([\w.-]*)\[(\w+)([-,])(\w+)\]|([\w.-]+),([\w.-]+)", nodes)
    if two and two[5]:
        nodes = f"{two[5]} and {two[6]}"
    elif two and (two[3] == "," or ((two[2] + two[4]).isdecimal() and int(two[4]) - int(two[2]) == 1)):
        nodes = f"{two[1]}{two[2]} and {two[1]}{two[4]}"
    return f"{state} on {nodes if len(nodes) <= NODES_SHOWN else nodes[:NODES_SHOWN] + ' …'}"


def gist(detail: str) -> str:
    """Return what of a sentence on a run is news when it changes: no ages, no guesses at a time, no list of all nodes.

    Args:
        detail: Of an observation.
    """
    told = re.split(r" for |; its last word was ", detail, maxsplit=1)[0]
    return re.sub(r", expected [-0-9: ]+|(?<=UnavailableNodes:)\S+", " ", told).strip()


@dataclasses.dataclass(frozen=True)
class Told(JsonRecord):
    """What people who watch a run were told of its state.

    Attributes:
        kind: Of which kind that was, by :func:`_kind`.
        gists: What was told since it is of that kind, by :func:`gist`.
        start: When Slurm expected it to start, as it was told; empty for nothing.
        at: When that was, in seconds.
    """

    kind: str = ""
    gists: tuple[str, ...] = ()
    start: str = ""
    at: float = -math.inf

    def after(self, state: str, detail: str, nodes: str, now: float) -> tuple[str, Told]:
        """Say what is news of a look.

        Slurm's reason goes to and fro while other jobs come and go: each is told once, and again when something else
        was true meanwhile, such as that the job was held. Slurm's guess at a start is told once it is there, and again
        where it has moved by an hour, once in an hour at most.

        Args:
            state: Of the observation.
            detail: Of it.
            nodes: Of it.
            now: The time, in seconds, by a clock that nobody sets.

        Returns:
            The words to tell, empty for none; and what was told by then.
        """
        words, said = where(state, nodes), gist(detail)
        kind = _kind(state, said, nodes)
        known = self if kind == self.kind else Told(kind)
        guess = _EXPECTED.search(detail) if state == "queued" else None
        start = guess[1] if guess else ""
        moved = bool(start) and _is_far(known.start, start) and now - known.at >= MOVED
        if not (said or words != state) or (said in known.gists and not moved):
            return "", known
        if start:
            known = dataclasses.replace(known, start=start, at=now)
        gists = known.gists if said in known.gists else (*known.gists, said)
        return ": ".join(filter(None, (words, detail))), dataclasses.replace(known, gists=gists)


def _kind(state: str, said: str, nodes: str) -> str:
    """Return what stays the same of a state as long as no more than its turn in Slurm's queue changes."""
    reason = said.partition(" (job ")[0]
    if state == "queued" and not _LASTS.match(reason):
        return state
    return "|".join((state, reason.partition(":")[0], nodes))


def _is_far(before: str, start: str) -> bool:
    """Tell whether a start that is expected is another one than before, by more than :data:`MOVED`."""
    try:
        times = [datetime.datetime.fromisoformat(text) for text in (before, start)]
    except ValueError:
        return not before
    return abs((times[1] - times[0]).total_seconds()) >= MOVED


def gpu_hours(facts: dict[str, Any], status: dict[str, Any]) -> Optional[float]:
    """Return the GPU hours that a run has had of a cluster; None where none are counted: elsewhere, or of a rehearsal.

    Args:
        facts: Of run.json.
        status: status.json, whose seconds are those of all starts.
    """
    seconds = status.get("seconds")
    if facts.get("backend") != "slurm" or facts.get("rehearsal") or not seconds:
        return None
    return float(round(seconds * (facts.get("processes") or 1) / 3600, 3))


def finite(value: Any) -> bool:
    """Tell whether a logged figure is a finite number (NaN and infinity are logged as text)."""
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max  # a whole number may be larger


def loss_warning(done: Progress) -> str:
    """Say which of the losses so far is no finite number, in words; empty where nothing is wrong."""
    if done.loss is not None and not finite(done.loss):
        return f"its loss is {done.loss} at step {done.step}; it goes on, and would end as failed"
    if done.eval_loss is not None and not finite(done.eval_loss):
        return f"its eval loss is {done.eval_loss}; it goes on, and latest moves to no adapter of such a loss"
    return ""


def unproven_reasons(
    status: dict[str, Any], done: Progress, defect: Optional[str] = None, trains: bool = True
) -> list[str]:
    """List what speaks against a run that says it finished: an exit code of 0 alone proves nothing.

    Args:
        status: status.json.
        done: How far the training came.
        defect: What is wrong with the adapter's files, as far as they were read; None when nothing is.
        trains: Whether it is a training; an evaluation has no loss.
    """
    reasons = []
    if status.get("exit_code") != 0:
        reasons.append(f"the trainer's exit code is {status.get('exit_code')}")
    if done.step is None or (done.step < (done.planned or 1) and done.end_reason != EARLY):
        what = "steps were reached" if trains else "answers are there"
        reasons.append(f"{done.step} of {done.planned} {what}")
    if trains and not finite(done.loss):
        reasons.append(f"the last loss is {done.loss}")
    return reasons + ([defect] if defect else [])


def conclude(
    status: dict[str, Any],
    done: Progress,
    supervisor_alive: bool,
    trainer_alive: bool,
    heartbeat_age: Optional[float],
    step_age: Optional[float],
    heartbeat_timeout: float,
    stall_timeout: float,
    comes_back: bool = False,
    defect: Optional[str] = None,
    fault: str = "",
    flaw: str = "",
    trains: bool = True,
) -> tuple[str, str]:
    """Conclude the state of a run on its trainer, with a sentence on it.

    Args:
        status: status.json, or an empty object; from ``rundir.read_status``.
        done: How far the training came.
        supervisor_alive: The very process noted in status.json is there.
        trainer_alive: Some process of the run is there.
        heartbeat_age: Seconds since the supervisor's last word, by the trainer's own clock.
        step_age: Seconds since the last event of the training, or since its start.
        heartbeat_timeout: Seconds of silence after which the supervisor counts as stalled.
        stall_timeout: Seconds without an event after which the training counts as stalled.
        comes_back: Something on the host (systemd) starts a supervisor that died again.
        defect: What is wrong with the adapter's files of a run that says it finished.
        fault: Why it cannot; empty where it can.
        flaw: What is wrong with status.json; empty where nothing is.
        trains: Whether it is a training, and no evaluation.

    Returns:
        The state (absent, queued, running, stalled, stopped, failed or finished) and why.
    """
    noted = status.get("state")
    reason = status.get("reason") or {}
    if noted is None and flaw:
        lost = f"nobody knows what became of it: {flaw}, as a power cut leaves files"
        return "stopped", f"{lost}; the same command resumes"
    if noted is None:
        return "absent", "there is no such run on this trainer"
    if noted == "finished":
        reasons = unproven_reasons(status, done, defect, trains)
        return ("failed", f"not proven: it says finished, but {' and '.join(reasons)}") if reasons else (noted, "")
    if noted in ("failed", "stopped"):
        return noted, ": ".join(filter(None, [reason.get("kind"), reason.get("detail")]))
    if not supervisor_alive:
        if comes_back and fault:
            return "stopped", f"the supervisor is gone, and {fault}; the same command resumes"
        if comes_back and heartbeat_age is not None and heartbeat_age < RESTART_WITHIN:
            return "running", "its supervisor is gone (killed, or the host restarted); systemd starts it again"
        left = "; its trainer still runs, and the next start takes it over" if trainer_alive else ""
        return "stopped", f"the supervisor is gone (killed, or the host restarted){left}; the same command resumes"
    if heartbeat_age is not None and heartbeat_age > heartbeat_timeout:
        return "stalled", f"the supervisor has been silent for {heartbeat_age:.0f} s"
    if noted == "running" and step_age is not None and step_age > stall_timeout:
        return "stalled", f"no {'step' if trains else 'answer'} for {step_age:.0f} s"
    return ("queued", f"waits for lane {status.get('lane')}") if noted == "queued" else ("running", "")


def conclude_job(
    status: dict[str, Any],
    done: Progress,
    waits: str,
    lives: bool,
    heard: bool,
    silence: str,
    end: str,
    heartbeat_age: Optional[float],
    heartbeat_timeout: float,
    stall_timeout: float,
    defect: Optional[str] = None,
    trains: bool = True,
    fault: str = "",
    flaw: str = "",
    gone: bool = True,
) -> tuple[str, str]:
    """Conclude the state of a run that Slurm has: what it came to its own files say, and the queue who may still write.

    Args:
        status: As in :func:`conclude`.
        done: As there.
        waits: What the queue says of a job that has yet to start; empty where it has.
        lives: Whether the queue has a job that has not ended.
        heard: Whether status.json is of the newest launch.
        silence: Why the queue could not be asked; empty where it was.
        end: What became of the job, in Slurm's words.
        heartbeat_age: Seconds since the supervisor's last word, by the clock of the shared folder.
        heartbeat_timeout: As in :func:`conclude`.
        stall_timeout: As there.
        defect: As there.
        trains: As there.
        fault: Why its job could not even begin; empty where it could, or nobody knows.
        flaw: As there.
        gone: Whether the processes of a job that does not live are gone for sure: not where Slurm has lost its node,
            or has no such job; then they may train on.
    """
    over = heard and status.get("state") in rundir.FINAL_STATES
    requeued = heard and (status.get("reason") or {}).get("kind") == "requeued"
    ours = (status, done)
    ages: dict[str, Any] = {"heartbeat_age": heartbeat_age, "heartbeat_timeout": heartbeat_timeout + NETWORK}
    ages |= {"step_age": None if heartbeat_age is None else heartbeat_age + status.get("idle", 0), "defect": defect}
    ages |= {"stall_timeout": stall_timeout, "trains": trains, "flaw": flaw}
    if over and not requeued and (status["state"] != "stopped" or not (waits or silence)):
        return conclude(*ours, supervisor_alive=lives, trainer_alive=lives, **ages)
    if silence:
        last = f"; its last word was {heartbeat_age:.0f} s ago" if heartbeat_age is not None and heard else ""
        return "unknown", f"{silence}{last}"
    if waits:
        return "queued", waits
    if lives and requeued:  # its job ends, or has begun again and not said so yet
        return "queued", str(status["reason"].get("detail", ""))
    if lives and not heard:
        return "queued", "its job begins"
    if lives:
        return conclude(*ours, supervisor_alive=True, trainer_alive=True, **ages)
    spoke = heard and heartbeat_age is not None and heartbeat_age < ages["heartbeat_timeout"]
    if spoke and not gone and not over:
        return "unknown", f"{end}; its last word was {heartbeat_age:.0f} s ago"
    return ("failed", f"environment: {fault}") if fault else ("stopped", f"{end}; the same command resumes")
