"""Slurm as what keeps a supervisor running: a job is the supervisor, and the queue says who may still write.

A login node submits, asks and cancels; the job runs on a node, with the trainer's root in a folder that both see. What
became of a run is said by its own files alone: Slurm calls a job COMPLETED in which nobody trained, and one FAILED
whose adapter is whole.

``squeue`` is read in its own table format, which is as old as Slurm, and not as JSON, which many installations were
built without. Runs on trainers: Python 3.9 or newer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import hashlib
import math
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.text import nearest

# The first whose sbatch knows --export=NIL: a job without the submitter's environment, and the tokens in it.
OLDEST = (23, 2)
LOGIN_NODE = (
    "this host has Slurm's sbatch and no GPU, as a login node has. Set run_backend: slurm, and run_slurm to what a job "
    "asks for; or run_backend: process, to train on this very host"
)
EVERY = 30.0  # seconds between two questions to the queue, by one process
# Seconds for a command; with Slurm's controller away it fails after 9 to 18 s by itself. A question to a host has 60 s.
ANSWER_WITHIN = 40.0
# What run_slurm may say, and which option of sbatch that is.
KEYS = {
    "account": "account",
    "constraint": "constraint",
    "cpus": "cpus-per-task",
    "exclude": "exclude",
    "gres": "gres",
    "licenses": "licenses",
    "memory": "mem",
    "nice": "nice",
    "nodelist": "nodelist",
    "partition": "partition",
    "qos": "qos",
    "reservation": "reservation",
    "time": "time",
    "wckey": "wckey",
}
_VALUE = re.compile(r"[A-Za-z0-9_.,:=*+|&()\[\]@%/-]{1,500}")
_TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}|UNLIMITED|INFINITE", re.IGNORECASE)
_GPUS = re.compile(r"(?:^|,)gpu(?:[:=][^\d,:=()][^,:=()]*)?(?:[:=](\d+))?(?=$|,|\()")  # gpu, gpu:2, gpu:a100:2(S:0)
_FIELDS = ("%i", "%j", "%T", "%r", "%S", "%N")  # id, name, state, reason, expected or actual start, nodes
_LONGEST_SIGNAL = 65_535  # seconds before the end of its time at which a job can be told
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"})
# States after which nobody of the job writes any more. COMPLETING and STOPPED are none of them.
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
     "TIMEOUT"}
)  # fmt: skip

# The job first holds a word of the root against that of the login node: a node may not have the folder, or another one
# at its place, and Slurm would say nothing of it but «0:53». Its exit status tells so.
NOT_SHARED = 66
_SCRIPT = """\
#!/bin/sh
PATH={path}; export PATH
if [ "$(cat {mark} 2>/dev/null)" != {word} ]; then exit {not_shared}; fi
exec >>{log} 2>&1
exec {command}
"""

_Runner = Callable[[Sequence[str], str], "tuple[int, str]"]


@dataclasses.dataclass(frozen=True)
class Job:
    """A job as the queue shows it.

    Attributes:
        number: Its id.
        name: Its name, see :func:`job_name`.
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
        held = f"; scontrol release {self.number} lets it go on" if self.reason.startswith("JobHeldUser") else ""
        return f"{self.reason or self.state} (job {self.number}){held}{expected}"


class Silent(Exception):
    """Slurm has not answered: nobody knows what is in the queue."""


class Unanswered(UserError):
    """Slurm may have a job, or may not: its answer was lost, and the queue is not told either."""


def run_command(command: Sequence[str], given: str = "") -> tuple[int, str]:
    """Run a command of Slurm's; return its exit status and what it printed.

    Args:
        command: Its words.
        given: Its standard input.

    Raises:
        Silent: It is not here, or has not ended in time.
    """
    # What the login's environment sets would go before ours: SBATCH_EXPORT, SQUEUE_FORMAT, SLURM_TIME_FORMAT.
    env = {name: value for name, value in os.environ.items() if not re.match(r"(SBATCH|SQUEUE|SCANCEL|SLURM)_", name)}
    kept = {name: os.environ[name] for name in ("SLURM_CONF", "SLURM_CONF_SERVER") if name in os.environ}
    try:
        done = subprocess.run(
            [*command], input=given, env={**env, **kept, "LC_ALL": "C"}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", timeout=ANSWER_WITHIN, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Silent(f"{command[0]} gave no answer within {ANSWER_WITHIN:g} s") from None
    except OSError as error:
        raise Silent(f"{command[0]} could not be run: {error.strerror}") from None
    return done.returncode, done.stdout.strip()


def gpus_of(given: Mapping[str, Any]) -> int:
    """Return how many GPUs of a node ``gres`` asks for.

    Args:
        given: run_slurm.
    """
    return sum(int(count or 1) for count in _GPUS.findall(str(given.get("gres") or "")))


def told_before(stop_timeout: int) -> int:
    """Return how many seconds before the end of its time a job is told to end: Slurm may be late by a minute.

    Args:
        stop_timeout: Seconds that the training has for its checkpoint.
    """
    return min(_LONGEST_SIGNAL, stop_timeout + 60)


def seconds_of(limit: str) -> Optional[int]:
    """Return a time limit as Slurm reads it in seconds; None where there is none.

    Args:
        limit: Such as ``90`` (minutes), ``90:00``, ``12:00:00``, ``2-12``, ``2-12:00:00``, ``UNLIMITED`` or ``0``.
    """
    days, _, rest = limit.rpartition("-")
    if not rest.replace(":", "").isdecimal():
        return None
    parts = [int(part) for part in rest.split(":")]
    if not days and len(parts) < 3:
        parts = [0, *parts]  # it begins with minutes
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return (((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds) or None


def hours_of(given: Mapping[str, Any]) -> Optional[float]:
    """Return the most hours that ``time`` lets a job take; None where nothing is said, or no end.

    Args:
        given: run_slurm, without :func:`problems`.
    """
    seconds = seconds_of(str(given.get("time") or ""))
    return None if seconds is None else seconds / 3600


def problems(given: Any, gpus: int, stop_timeout: int = 120) -> list[str]:
    """Say what is wrong with run_slurm, before anything is asked of a cluster.

    Args:
        given: What the inventory says.
        gpus: How many GPUs a run takes; 0 where it is a rehearsal.
        stop_timeout: Seconds that the training has for its checkpoint.

    Returns:
        Sentences; empty where nothing is.
    """
    if not isinstance(given, Mapping):
        return ["run_slurm must be a mapping, such as {partition: gpu, gres: 'gpu:1', time: '12:00:00'}"]
    found = []
    for key, value in given.items():
        if key not in KEYS:
            found.append(f"run_slurm has no «{key}»{nearest(str(key), list(KEYS)) or '.'} It takes {', '.join(KEYS)}")
        elif isinstance(value, bool) or not isinstance(value, (str, int)):
            found.append(f"run_slurm: {key} must be text or a whole number")
        elif str(value).startswith("-") or not _VALUE.fullmatch(str(value)):
            found.append(f"run_slurm: {key} is «{str(value)[:60]}», which no option of sbatch can be")
        elif key == "time" and not isinstance(value, str):
            # YAML reads 12:00:00 as 43200, which Slurm would take for minutes.
            found.append(f"run_slurm: time must stand in quotes, such as '12:00:00'; YAML has read it as {value}")
        elif key == "time" and not _TIME.fullmatch(str(value)):
            found.append(f"run_slurm: time is «{value}»; write 'hours:minutes:seconds' or 'days-hours'")
        elif key == "time" and (seconds_of(str(value)) or math.inf) <= told_before(stop_timeout):
            found.append(
                f"run_slurm: time is «{value}», and a job is told to end {told_before(stop_timeout)} s before (a "
                "minute and run_stop_timeout): it would come to nothing"
            )
    asked = gpus_of(given)
    if not found and gpus and asked != gpus:
        wrong = f"asks for {asked} GPUs" if asked else "asks for no GPU"
        found.append(f"run_slurm {wrong}, and a run takes {gpus} (run_gpus): set gres to 'gpu:{gpus}'")
    return found


def job_name(run_dir: pathlib.Path) -> str:
    """Name the job of a run: by the run, and by its folder, as two checkouts of one user may train the same recipe.

    Args:
        run_dir: The run directory.
    """
    return f"lora-forge-{run_dir.name}-{hashlib.sha256(str(run_dir).encode()).hexdigest()[:8]}"


def has_slurm() -> bool:
    """Tell whether jobs can be submitted here."""
    return shutil.which("sbatch") is not None


def is_login_node() -> bool:
    """Tell whether this host can submit jobs and has no GPU itself."""
    return has_slurm() and not pathlib.Path("/dev/nvidiactl").exists()


def mark_root(root: pathlib.Path) -> str:
    """Return the word by which a node tells that it sees this very folder; it is made once.

    Args:
        root: The trainer's root.
    """
    path = root / rundir.ROOT_MARK
    with rundir.locked(root):
        word = path.read_text(encoding="ascii").strip() if path.exists() else ""
        if not re.fullmatch("[0-9a-f]{32}", word):
            word = os.urandom(16).hex()
            rundir.write_bytes(path, f"{word}\n".encode())
    return word


def job_script(run_dir: pathlib.Path, command: Sequence[str], word: str, programs: str) -> str:
    """Write the script of a job: it becomes the supervisor, as a child of the shell's would lose its checkpoint.

    Args:
        run_dir: The run directory.
        command: The supervisor's command line.
        word: From :func:`mark_root`.
        programs: The folder of Slurm's own commands.
    """
    return _SCRIPT.format(
        path=shlex.quote(f"{programs}:/usr/local/bin:/usr/bin:/bin"),
        mark=shlex.quote(str(run_dir.parents[1] / rundir.ROOT_MARK)),
        word=word,
        not_shared=NOT_SHARED,
        log=shlex.quote(str(run_dir / "slurm.log")),
        command=shlex.join(command),
    )


def job_options(
    given: Mapping[str, Any], run_dir: pathlib.Path, stop_timeout: int, after: Sequence[str] = (), nodes: int = 1
) -> list[str]:
    """List the words that sbatch is called with.

    Args:
        given: run_slurm, without :func:`problems`.
        run_dir: The run directory.
        stop_timeout: Seconds that the training has for its checkpoint: so long before the end of its time it is told.
        after: Ids of jobs that come first.
        nodes: How many nodes it takes.
    """
    first = "".join(f",afterany:{number}" for number in after)
    return [
        "--parsable",
        f"--job-name={job_name(run_dir)}",
        f"--comment={run_dir.name}",
        f"--dependency=singleton{first}",
        "--requeue",
        "--export=NIL",
        "--output=/dev/null",
        "--chdir=/",
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        # B: to the job's first process, which is the supervisor, and to no other.
        f"--signal=B:TERM@{told_before(stop_timeout)}",
        *(f"--{KEYS[key]}={value}" for key, value in given.items()),
    ]


def check_version(run: _Runner = run_command) -> str:
    """Return the version of Slurm, and refuse one that is too old.

    Raises:
        UserError: It is.
        Silent: It has not said.
    """
    _, text = run(["sbatch", "--version"], "")
    found = re.search(r"(\d+)\.(\d+)", text)
    if not found:
        raise Silent(f"sbatch --version said: {text[:200]}")
    if tuple(map(int, found.groups())) < OLDEST:
        oldest = f"{OLDEST[0]}.{OLDEST[1]:02}"
        raise UserError(f"this is {text}, and lora-forge needs Slurm {oldest} or newer, whose sbatch has --export=NIL")
    return text[:200]


def try_out(
    given: Mapping[str, Any], run_dir: pathlib.Path, stop_timeout: int, run: _Runner = run_command, nodes: int = 1
) -> str:
    """Ask Slurm whether such a job could ever run; nothing is submitted.

    Args:
        given: run_slurm.
        run_dir: The run directory, of whatever run; it need not be there.
        stop_timeout: Seconds that the training has for its checkpoint.
        run: Runs a command; a parameter for tests.
        nodes: How many nodes it takes.

    Returns:
        What Slurm has against it; empty for nothing.

    Raises:
        Silent: Slurm has not answered.
    """
    code, text = run(["sbatch", "--test-only", *job_options(given, run_dir, stop_timeout, nodes=nodes)], "#!/bin/sh\n")
    if code == 0:
        return ""
    if rundir.SLURM_SILENT.search(text):
        raise Silent(text)
    return _said(text)


def submit(
    given: Mapping[str, Any],
    run_dir: pathlib.Path,
    command: Sequence[str],
    stop_timeout: int,
    after: Sequence[str] = (),
    run: _Runner = run_command,
    nodes: int = 1,
) -> str:
    """Submit the job of a run; return its id.

    Args:
        given: run_slurm.
        run_dir: The run directory.
        command: The supervisor's command line.
        stop_timeout: Seconds that the training has for its checkpoint.
        after: Ids of jobs that come first.
        run: Runs a command; a parameter for tests.
        nodes: How many nodes it takes.

    Raises:
        UserError: Slurm refuses it, or has not answered and has no such job.
        Unanswered: Nobody knows whether it has one.
    """
    programs = os.path.dirname(shutil.which("sbatch") or "/usr/bin/sbatch")
    script = job_script(run_dir, command, mark_root(run_dir.parents[1]), programs)
    try:
        code, text = run(["sbatch", *job_options(given, run_dir, stop_timeout, after, nodes)], script)
    except Silent as error:
        code, text = 1, str(error)
    number = re.fullmatch(r"(\d+)(?:;.*)?", text.splitlines()[-1] if text else "")
    if code == 0 and number:
        return number.group(1)
    if code == 0 or rundir.SLURM_SILENT.search(text):  # it may have been taken all the same
        try:
            known = [job for job in ask(run).get(job_name(run_dir), []) if job.lives]
        except Silent:
            raise Unanswered(
                f"Slurm has not answered, and nobody knows whether it has the job of {run_dir.name}: {_said(text)}. "
                "Run it again when Slurm answers: that attaches to the job, or submits one"
            ) from None
        if known:
            return known[-1].number
        raise UserError(f"Slurm has not answered, and {run_dir.name} is not in its queue: {_said(text)}. Run it again")
    raise UserError(f"Slurm refuses the job of {run_dir.name}: {_said(text)}. See run_slurm in the inventory")


def ask(run: _Runner = run_command) -> dict[str, list[Job]]:
    """Ask for this user's jobs, those that ended lately among them; one question for all runs of a host.

    Returns:
        Jobs by their names, the oldest first.

    Raises:
        Silent: Slurm has not answered. That is never the same as an empty queue.
    """
    user = getpass.getuser()
    code, text = run(["squeue", "--noheader", "--states=all", f"--user={user}", f"--format={'|'.join(_FIELDS)}"], "")
    if code:
        raise Silent(_said(text))
    found: dict[str, list[Job]] = {}
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) != len(_FIELDS) or not parts[0].isdigit() or not parts[1].startswith("lora-forge-"):
            continue
        parts = ["" if part in ("None", "N/A", "(null)", "Unknown") else part for part in parts]
        found.setdefault(parts[1], []).append(Job(*parts))
    return {name: sorted(jobs, key=lambda job: int(job.number)) for name, jobs in found.items()}


class Queue:
    """The queue as a process sees it, asked no more often than every :data:`EVERY` seconds.

    Args:
        run: Runs a command; a parameter for tests.
    """

    def __init__(self, run: _Runner = run_command):
        self._run = run
        self._asked = -EVERY
        self._jobs: dict[str, list[Job]] = {}
        self._silence = ""

    def job(self, run_dir: pathlib.Path, anew: bool = False) -> tuple[Optional[Job], str]:
        """Return the job of a run that counts: one that lives, or else the last one; and why nobody knows it.

        Args:
            run_dir: The run directory.
            anew: Ask, however lately that was done.
        """
        if anew or time.monotonic() - self._asked >= EVERY:
            try:
                self._jobs, self._silence = ask(self._run), ""
            except Silent as error:
                self._jobs, self._silence = {}, f"Slurm does not answer: {error}"
            self._asked = time.monotonic()
        jobs = self._jobs.get(job_name(run_dir), [])
        living = [job for job in jobs if job.lives]
        started = [job for job in living if not job.waits]
        return next(iter([*started, *living, *jobs[::-1]]), None), self._silence


def cancel(run_dir: pathlib.Path, run: _Runner = run_command) -> None:
    """Cancel whatever jobs a run has. They are named, and so is their user: an id may be another job's by now.

    Raises:
        Silent: Slurm has not answered.
    """
    code, text = run(["scancel", f"--user={getpass.getuser()}", f"--name={job_name(run_dir)}"], "")
    if code:
        raise Silent(_said(text))


def exit_status(job: Job, run: _Runner = run_command) -> Optional[int]:
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


def _said(text: str) -> str:
    """Return what a command of Slurm's said, in one line without its own name before it."""
    lines = [re.sub(r"^(sbatch|squeue|scancel|scontrol): (error: )?", "", line) for line in text.splitlines()]
    return "; ".join(dict.fromkeys(filter(None, lines)))[:500] or "it said nothing"
