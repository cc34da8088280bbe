"""Slurm's queue, which says who may still write.

What became of a run is said by its own files alone: Slurm calls a job COMPLETED in which nobody trained, and one FAILED
whose adapter is whole.

``squeue`` is read in its own table format, which is as old as Slurm, and not as JSON, which many installations were
built without. Runs on trainers: Python 3.9 or newer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.json_record import JsonRecord
from ansible.module_utils.lora_forge.trainer.slurm_commands import Runner, Silent, one_line, run_command, user_option

EVERY = 30.0  # seconds between two questions to the queue by all who only watch: commands, and each of their looks
SILENT_FOR = 10.0  # seconds for which Slurm counts as silent after a question that it did not answer
TURN_WITHIN = 10.0  # seconds that another one's question is waited for; with one's own, less than a host has to answer
# In the name of a job, to which a site may add something, what job_name has made.
_NAME = re.compile(r"lora-forge-[A-Za-z0-9._-]+-[0-9a-f]{8}")
# What squeue is asked for of a job, by the fields of Job. The reason comes last: it may have any character in it.
_FIELDS = {"number": "%i", "name": "%j", "state": "%T", "start": "%S", "nodes": "%N", "reason": "%r"}
_HEAD = "JOBID|NAME|STATE|"  # how each of its answers begins, that of an empty queue as well
# Reasons for which a job waits for ever: it asks for more than any one of its kind gets.
_TOO_MUCH = re.compile("Partition(Time|Node)Limit|Max[A-Za-z]*PerJob")
# What squeue calls a job: a flag of its state before the state itself. The list grows from version to version, and what
# stands in neither of these is a job that lives. EXPEDITING: since 25.11.
WAITING = frozenset(
    {"EXPEDITING", "PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
)
SUSPENDED = frozenset({"STOPPED", "SUSPENDED"})
# States after which nobody of the job writes any more. COMPLETING and STOPPED are none of them; nor is REVOKED, which
# says that another cluster of a federation has the job.
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
)
KEPT = ".lora-forge-queue"  # in the root: what the queue answered last


@dataclasses.dataclass(frozen=True)
class Job:
    """A job as the queue shows it.

    Attributes:
        number: Its id.
        name: Its name: that of :func:`job_name`, to which a site may have added something.
        state: In Slurm's words, in capitals.
        reason: Why it waits, or ended, in Slurm's words.
        start: When it started, or is expected to, as Slurm writes it; empty where nobody knows.
        nodes: Where it runs.
    """

    number: str
    name: str
    state: str
    reason: str = ""
    start: str = ""
    nodes: str = ""

    @property
    def waits(self) -> bool:
        """Whether it has yet to start, for the first time or again."""
        return self.state in WAITING

    @property
    def lives(self) -> bool:
        """Whether a process of it may be there, or may come: all but what has ended."""
        return self.state not in ENDED

    @property
    def words(self) -> str:
        """What Slurm says of a job that waits, for people."""
        expected = f", expected {self.start.replace('T', ' ')[:16]}" if self.start else ""
        means = f"; scontrol release {self.number} lets it go on" if "held" in self.reason.lower() else ""
        if self.reason.startswith("JobHeldAdmin"):
            means = "; who runs the cluster has held it, and lets it go on"
        elif _TOO_MUCH.search(self.reason):
            means = (
                "; it asks for more than a job may have, and never starts: stop it, correct run_slurm, and launch it"
            )
        elif self.reason == "Dependency":
            means = "; another run comes first"
        return f"{self.reason or self.state} (job {self.number}){means}{expected}"


def job_name(run_dir: pathlib.Path) -> str:
    """Name the job of a run: by the run, and by its folder, as two checkouts of one user may train the same recipe.

    Args:
        run_dir: The run directory. Where a part of its path is a link, it is named as the folder behind that.
    """
    folder = os.path.realpath(run_dir)
    return f"lora-forge-{run_dir.name}-{hashlib.sha256(folder.encode()).hexdigest()[:8]}"


def ask(run: Runner = run_command) -> dict[str, list[Job]]:
    """Ask for this user's jobs, those that ended lately among them; one question for all runs of a host.

    Returns:
        Jobs by the names that they were given, see :func:`job_name`, the oldest first.

    Raises:
        Silent: Slurm has not answered. That is never the same as an empty queue.
    """
    return _jobs_in(_table(run))


def _table(run: Runner) -> str:
    """Ask for the table of this user's jobs; see :func:`ask`."""
    # Without --all nothing is told of a job in a hidden partition, its own user's neither.
    form = f"--format={'|'.join(_FIELDS.values())}"
    code, text = run(["squeue", "--all", "--states=all", user_option(), form], "")
    # An invalid user is a success for squeue, and an empty table.
    if code or "error: Invalid user" in text or f"\n{_HEAD}" not in f"\n{text}":
        raise Silent(one_line(text))
    return text


def _jobs_in(table: str) -> dict[str, list[Job]]:
    """Read the lines of a table that are jobs of runs; whatever else stands there is passed over."""
    found: dict[str, list[Job]] = {}
    for line in table.splitlines():
        parts = [part.strip() for part in line.split("|", len(_FIELDS) - 1)]
        if len(parts) != len(_FIELDS) or not parts[0].isdecimal() or not (ours := _NAME.search(parts[1])):
            continue
        parts = ["" if part in ("None", "N/A", "(null)", "Unknown") else part for part in parts]
        found.setdefault(ours.group(), []).append(Job(**dict(zip(_FIELDS, parts))))
    return {name: sorted(jobs, key=lambda job: int(job.number)) for name, jobs in found.items()}


@dataclasses.dataclass(frozen=True)
class _Answer(JsonRecord):
    """What the queue answered, or did not, as the trainer's root keeps it for whoever asks next.

    Attributes:
        user: Whose jobs they are, by the id; -1 for nobody's.
        boot: Of which machine ``at`` is.
        at: When it was asked, in seconds since boot, which nobody can set; of silence, when that was certain.
        table: As ``squeue`` printed it.
        silence: Why nobody knows; empty where it answered.
        stamps: Of each run its :func:`_stamp` from before the question.
        exits: The exit status of jobs that were asked for, by id and name; None where Slurm does not know.
    """

    user: int = -1
    boot: str = ""
    at: float = -math.inf
    table: str = ""
    silence: str = ""
    stamps: dict[str, Any] = dataclasses.field(default_factory=dict)
    exits: dict[str, Any] = dataclasses.field(default_factory=dict)

    def serves(self, run_dir: pathlib.Path, since: float) -> bool:
        """Tell whether it still says how the job of a run is.

        Args:
            run_dir: The run directory.
            since: Seconds since boot, after which it must have been asked.
        """
        age = rundir.uptime() - self.at
        is_new = self.at > since and 0 <= age < (SILENT_FOR if self.silence else EVERY)
        return is_new and self.stamps.get(run_dir.name, "") == _stamp(run_dir)


def _stamp(run_dir: pathlib.Path) -> str:
    """Return what is another one when a run was launched, or its job began, since: these files are replaced then."""
    found = []
    for name in ("run.json", "claim.json"):
        with contextlib.suppress(OSError):
            stat = (run_dir / name).stat()
            found.append(f"{name} {stat.st_ino} {stat.st_mtime_ns}")
    return " ".join(found)


class Queue:
    """The queue of a trainer, asked once every :data:`EVERY` seconds by all who watch runs of it, in whatever process.

    The last answer lies in the trainer's root. It says nothing of a run that was launched, or whose job began, since
    the question: of that one it is asked anew, so that a job that Slurm has is never missing.

    Args:
        run: Runs a command; a parameter for tests.
        anew: Go by no answer from before this moment: who launches must know how it is now.
    """

    def __init__(self, run: Runner = run_command, anew: bool = False):
        self._run = run
        # Its own first question may come in the same millisecond.
        self._since = rundir.uptime() - 0.001 if anew else 0.0
        self._answer = _Answer()
        self._jobs: dict[str, list[Job]] = {}

    def job(self, run_dir: pathlib.Path, anew: bool = False) -> tuple[Optional[Job], str]:
        """Return the job of a run that counts: one that lives, or else the last one; and why nobody knows it.

        Args:
            run_dir: The run directory.
            anew: Ask, however lately that was done: who launches, stops or deletes must know how it is now.
        """
        self._learn(run_dir, rundir.uptime() if anew else self._since)
        jobs = self._jobs.get(job_name(run_dir), [])
        living = [job for job in jobs if job.lives]
        started = [job for job in living if not job.waits]
        return next(iter([*started, *living, *jobs[::-1]]), None), self._answer.silence

    def exit_status(self, run_dir: pathlib.Path, job: Job) -> Optional[int]:
        """Return the exit status of a job of the last answer, for which Slurm is asked once; see :func:`exit_status`.

        Args:
            run_dir: The run directory.
            job: Its job, which has ended.
        """
        key = f"{job.number} {job.name}"
        if key not in self._answer.exits:
            exits = {**self._answer.exits, key: exit_status(job, self._run)}
            self._keep(run_dir.parents[1], dataclasses.replace(self._answer, exits=exits))
        code = self._answer.exits[key]
        return code if type(code) is int else None

    def _learn(self, run_dir: pathlib.Path, since: float) -> None:
        """Have an answer that serves, asking for one only where nobody else has."""
        if self._answer.serves(run_dir, since):
            return
        root = run_dir.parents[1]
        with contextlib.ExitStack() as held:
            if not (kept := self._kept(root)).serves(run_dir, since):
                # One question at a time. Where that takes too long, or cannot be locked, everybody asks.
                with contextlib.suppress(OSError):
                    held.enter_context(rundir.locked(root / f"{KEPT}.lock", TURN_WITHIN))
                    kept = self._kept(root)
            if kept.serves(run_dir, since):
                self._take(kept)
                return
            for _ in range(2):  # once more where the run was launched in that very moment
                self._keep(root, self._ask(run_dir, kept.exits))
                if self._answer.stamps[run_dir.name] == _stamp(run_dir):
                    break

    def _ask(self, run_dir: pathlib.Path, exits: Mapping[str, Any]) -> _Answer:
        """Ask the queue; what was known of exit codes stays known."""
        stamps = {path.name: _stamp(path) for path in (run_dir, *run_dir.parent.glob("*/"))}
        made = _Answer(os.getuid(), rundir.boot_id(), rundir.uptime(), stamps=stamps)
        try:
            table = _table(self._run)
        except Silent as error:
            silence = f"Slurm does not answer: {error}"
            return dataclasses.replace(made, at=rundir.uptime(), silence=silence, exits=dict(exits))
        there = {f"{job.number} {job.name}" for jobs in _jobs_in(table).values() for job in jobs}
        known = {key: code for key, code in exits.items() if key in there and code is not None}
        return dataclasses.replace(made, table=table, exits=known)

    def _kept(self, root: pathlib.Path) -> _Answer:
        """Read the answer that lies in the root; one that serves nobody where it is missing, damaged or another's."""
        answer = _Answer.from_dict(rundir.read_json(root / KEPT))
        here = (os.getuid(), rundir.boot_id())
        ours = (answer.user, answer.boot) == here and here[1] and answer.at <= rundir.uptime()
        return answer if ours else _Answer()

    def _keep(self, root: pathlib.Path, answer: _Answer) -> None:
        """Go by an answer, and leave it for others, unless there is a newer one."""
        self._take(answer)
        if self._kept(root).at <= answer.at:
            with contextlib.suppress(OSError):  # another one asks for itself then
                rundir.write_json(root / KEPT, answer.as_dict(), 0o600)

    def _take(self, answer: _Answer) -> None:
        self._answer, self._jobs = answer, _jobs_in(answer.table)

    def add(self, run_dir: pathlib.Path, number: str) -> None:
        """Know of a job that was submitted since the queue was asked, and whose run.json is written.

        Args:
            run_dir: The run directory.
            number: The job's id.
        """
        answer = self._answer  # table and stamps in one: whoever keeps this answer keeps the job
        known = "|".join(vars(Job(number, job_name(run_dir), "PENDING")).values())
        stamps = {**answer.stamps, run_dir.name: _stamp(run_dir)}
        self._take(dataclasses.replace(answer, table=f"{answer.table}\n{known}", stamps=stamps))


def exit_status(job: Job, run: Runner = run_command) -> Optional[int]:
    """Return the exit status of a job that has ended; None where nobody knows it any more, or the id is another's."""
    with contextlib.suppress(Silent):
        _, text = run(["scontrol", "--oneliner", "show", "job", job.number], "")
        found = re.search(r"\bExitCode=(\d+):", text)
        if found and f"JobName={job.name} " in text:
            return int(found.group(1))
    return None


def end_of(job: Job) -> str:
    """Say what Slurm's last word on a job is, where the run's own files have none."""
    return f"its job {job.number} has ended as Slurm says: {job.state}" + (f" ({job.reason})" if job.reason else "")
