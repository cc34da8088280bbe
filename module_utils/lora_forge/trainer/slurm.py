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
import functools
import hashlib
import math
import os
import pathlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.json_record import JsonRecord
from ansible.module_utils.lora_forge.text import nearest

# The first whose sbatch knows --export=NIL: a job without the submitter's environment, and the tokens in it.
OLDEST = (23, 2, 3)
NO_SBATCH = (
    "run_backend is slurm, but there is no sbatch here, for a login shell neither\nName a login node of the cluster; "
    "where Slurm is a module, let ~/.bash_profile load it (module load slurm)"
)
LOGIN_NODE = (
    "this host has Slurm's sbatch and no GPU, as a login node has. Set run_backend: slurm, and run_slurm to what a job "
    "asks for; or run_backend: process, to train on this very host"
)
EVERY = 30.0  # seconds between two questions to the queue by all who only watch: commands, and each of their looks
SILENT_FOR = 10.0  # seconds for which Slurm counts as silent after a question that it did not answer
TURN_WITHIN = 10.0  # seconds that another one's question is waited for; with one's own, less than a host has to answer
# Seconds for a command; with Slurm's controller away it fails after 9 to 18 s by itself. A question to a host has 60 s.
ANSWER_WITHIN = 40.0
_LOGIN_WITHIN = 20.0  # seconds for a login shell to come up
# What it is asked for: where Slurm's commands are, what they need, and of which cluster they are to speak.
_OF_A_LOGIN = ("PATH", "LD_LIBRARY_PATH")
_OF_SLURM = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS")
# What run_slurm may say, and which option of sbatch that is.
KEYS = {
    "account": "account",
    "comment": "comment",
    "constraint": "constraint",
    "cpus": "cpus-per-task",
    "exclude": "exclude",
    "gpus": "gpus",
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
# In the name of a job, to which a site may add something, what job_name has made.
_NAME = re.compile(r"lora-forge-[A-Za-z0-9._-]+-[0-9a-f]{8}")
# What squeue is asked for of a job, by the fields of Job. The reason comes last: it may have any character in it.
_FIELDS = {"number": "%i", "name": "%j", "state": "%T", "start": "%S", "nodes": "%N", "reason": "%r"}
_HEAD = "JOBID|NAME|STATE|"  # how each of its answers begins, that of an empty queue as well
_LONGEST_SIGNAL = 65_535  # seconds before the end of its time at which a job can be told
_EARLY = 60  # seconds by which it may be told before that
_NOT_YET = re.compile("Invalid time specified|reservation not usable now")  # said of a reservation
# Reasons for which a job waits for ever: it asks for more than any one of its kind gets.
_TOO_MUCH = re.compile("Partition(Time|Node)Limit|Max[A-Za-z]*PerJob")
_NO_NODE = "Requested node configuration is not available"
# As sinfo writes states of nodes; with a * one does not answer.
_AWAY = re.compile(r"(down|drain|drng|fail|inval|unk)|\w+\*")
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

# The job first holds a word of the root against that of the login node: a node may not have the folder, or another one
# at its place, and Slurm would say nothing of it but «0:53». Its exit status tells so.
NOT_SHARED = 66
_SCRIPT = """\
#!/bin/sh
PATH={path}; export PATH
if [ "$(cat {mark} 2>/dev/null)" != {word} ]; then exit {not_shared}; fi
true >>{log} || exit {unwritable}
exec >>{log} 2>&1
exec {command}
"""
KEPT = ".lora-forge-queue"  # in the root: what the queue answered last

_Runner = Callable[[Sequence[str], str], "tuple[int, str]"]


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
    kept = {name: os.environ[name] for name in _OF_SLURM if name in os.environ}
    of_a_login = {} if shutil.which(command[0]) else _login_environment()
    try:
        done = subprocess.run(
            [*command], input=given, env={**env, **kept, **of_a_login, "LC_ALL": "C"}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", timeout=ANSWER_WITHIN, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        said = os.fsdecode(error.output or b"").strip()  # such as «queue full, sleeping and retrying»
        meanwhile = f": {_said(said)}" if said else ""
        raise Silent(f"{command[0]} gave no answer within {ANSWER_WITHIN:g} s{meanwhile}") from None
    except OSError as error:
        raise Silent(f"{command[0]} could not be run: {error.strerror}") from None
    return done.returncode, done.stdout.strip()


@functools.lru_cache(maxsize=1)
def _login_environment() -> dict[str, str]:
    """Ask a login shell what it has for Slurm's commands: on many clusters only who logs in has them on the PATH.

    Returns:
        Variables; none where there is no such shell, or it does not come up in time.
    """
    try:
        # bash, as whoever has another shell has /etc/profile all the same. Profiles print things: ours begins with \0.
        said = subprocess.run(
            ["bash", "-lc", "printf '\\0'; env -0"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, timeout=_LOGIN_WITHIN, check=False,
        ).stdout  # fmt: skip
    except subprocess.TimeoutExpired as error:
        said = error.output or b""  # a profile may leave something running that holds the pipe
    except OSError:
        said = b""
    found = dict(entry.partition("=")[::2] for entry in os.fsdecode(said).split("\0")[1:])
    return {name: found[name] for name in (*_OF_A_LOGIN, *_OF_SLURM) if name in found}


def _folder(command: str = "sbatch") -> str:
    """Return the folder of a command of Slurm's; empty where it is not to be found."""
    path = shutil.which(command) or shutil.which(command, path=_login_environment().get("PATH", ""))
    return os.path.dirname(path or "")


def _folders() -> str:
    """Return where a job finds what it calls itself, as PATH has it: a site may have a program in sbatch's place."""
    return ":".join(dict.fromkeys(filter(None, map(_folder, ("scontrol", "srun", "sbatch"))))) or "/usr/bin"


def gpus_of(given: Mapping[str, Any]) -> int:
    """Return how many GPUs ``gres`` asks for, or else ``gpus``.

    Args:
        given: run_slurm.
    """
    count = 0
    # gpu, gpu:2, gpu:2080ti:1, gpu:a100:2(S:0-1,3): a last part that is a number is how many.
    for asked in re.sub(r"\([^)]*\)", "", str(given.get("gres") or "")).split(","):
        name, *rest = re.split("[:=]", asked)
        if name == "gpu":
            count += int(rest[-1]) if rest and rest[-1].isdecimal() else 1
    if "gpus" in given:
        parts = [asked.rpartition(":")[2] for asked in str(given["gpus"]).split(",")]
        count += sum(int(part) if part.isdecimal() else 1 for part in parts)
    return count


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
            found.append(f"run_slurm has no «{key}»{_meant(str(key))} It takes {', '.join(KEYS)}")
        elif isinstance(value, bool) or not isinstance(value, (str, int)):
            found.append(f"run_slurm: {key} must be text or a whole number")
        elif str(value).startswith("-") or not _VALUE.fullmatch(str(value)):
            found.append(f"run_slurm: {key} is «{str(value)[:60]}», which no option of sbatch can be")
        elif key == "time" and not isinstance(value, str):
            # YAML reads 12:00:00 as 43200, which Slurm would take for minutes.
            found.append(f"run_slurm: time must stand in quotes, such as '12:00:00'; YAML has read it as {value}")
        elif key == "time" and not _TIME.fullmatch(str(value)):
            found.append(f"run_slurm: time is «{value}»; write 'hours:minutes:seconds' or 'days-hours'")
        elif key == "time" and (seconds_of(str(value)) or math.inf) <= told_before(stop_timeout) + _EARLY:
            found.append(
                f"run_slurm: time is «{value}», and a job is told to end {told_before(stop_timeout)} s before (a "
                f"minute and run_stop_timeout), or up to {_EARLY} s earlier: it would come to nothing"
            )
    if "gpus" in given and gpus_of({"gres": given.get("gres")}):
        found.append("run_slurm: gres and gpus both ask for GPUs; keep one of them")
    asked = gpus_of(given)
    if not found and gpus and asked != gpus:
        wrong = f"asks for {asked} GPUs" if asked else "asks for no GPU"
        found.append(f"run_slurm {wrong}, and a run takes {gpus} (run_gpus): set gres to 'gpu:{gpus}'")
    return found


def _meant(key: str) -> str:
    """Return which key was meant, as ``nearest`` does; sbatch's own words are known, too."""
    word = key.lower().replace("_", "-")
    known = next((name for name, option in KEYS.items() if option == word), "gres" if word.startswith("gpu") else "")
    return f"; did you mean «{known}»?" if known else nearest(key, list(KEYS)) or "."


def over_cap(given: Mapping[str, Any], gpus: int, most: float) -> str:
    """Say that a job may take more GPU hours than it is to; empty where it may not.

    Args:
        given: run_slurm, without :func:`problems`.
        gpus: How many GPUs a run takes; 0 where it is a rehearsal.
        most: The cap (run_slurm_max_gpu_hours); 0 for none.
    """
    if not most or not gpus:
        return ""
    cap, hours = f"run_slurm_max_gpu_hours is {most:g}", hours_of(given)
    if hours is None:
        return f"{cap}, and run_slurm says no time: set one, such as time: '{max(1, int(most / gpus))}:00:00'"
    if hours * gpus <= most:
        return ""
    on = f"{gpus} GPUs" if gpus > 1 else "a GPU"
    return f"a job may take {hours * gpus:.4g} GPU hours ({hours:.4g} h on {on}), and {cap}"


def job_name(run_dir: pathlib.Path) -> str:
    """Name the job of a run: by the run, and by its folder, as two checkouts of one user may train the same recipe.

    Args:
        run_dir: The run directory. Where a part of its path is a link, it is named as the folder behind that.
    """
    folder = os.path.realpath(run_dir)
    return f"lora-forge-{run_dir.name}-{hashlib.sha256(folder.encode()).hexdigest()[:8]}"


def has_slurm() -> bool:
    """Tell whether jobs can be submitted here, by somebody who logs in at least."""
    return bool(_folder())


def is_login_node() -> bool:
    """Tell whether this host can submit jobs and has no GPU itself."""
    return not pathlib.Path("/dev/nvidiactl").exists() and has_slurm()


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
        programs: The folders of Slurm's own commands, as PATH has them.
    """
    return _SCRIPT.format(
        path=shlex.quote(f"{programs}:/usr/local/bin:/usr/bin:/bin"),
        mark=shlex.quote(str(run_dir.parents[1] / rundir.ROOT_MARK)),
        word=word,
        not_shared=NOT_SHARED,
        unwritable=rundir.UNWRITABLE,
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
    first = f",afterany:{':'.join(after)}" if after else ""
    return [
        "--parsable",
        f"--job-name={job_name(run_dir)}",
        f"--comment={run_dir.name}",
        f"--dependency=singleton{first}",
        "--requeue",
        "--export=NIL",
        "--propagate=NONE",  # nor has it the limits of a login node, of open files or of a processor's time
        "--output=/dev/null",
        "--chdir=/",
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        # B: to the job's first process, which is the supervisor, and to no other.
        f"--signal=B:TERM@{told_before(stop_timeout)}",
        *(f"--{_option(key, nodes)}={value}" for key, value in given.items()),
    ]


def _option(key: str, nodes: int) -> str:
    """Return the option of sbatch that a key of run_slurm is: what it asks for is for each node."""
    return "gpus-per-node" if key == "gpus" and nodes > 1 else KEYS[key]  # --gpus counts those of all nodes


def check_version(run: _Runner = run_command) -> str:
    """Return the version of Slurm, and refuse one that is too old.

    Raises:
        UserError: It is.
        Silent: It has not said.
    """
    _, text = run(["sbatch", "--version"], "")
    # A site's wrapper may have words of its own before it.
    found = re.search(r"\bslurm\S* (\d+)\.(\d+)(?:\.(\d+))?", text)
    if not found:
        raise Silent(f"sbatch --version said: {text[:200]}")
    if tuple(int(part or 0) for part in found.groups()) < OLDEST:
        oldest = f"{OLDEST[0]}.{OLDEST[1]:02}.{OLDEST[2]}"
        raise UserError(f"this is {text}, and lora-forge needs Slurm {oldest} or newer, whose sbatch has --export=NIL")
    return text[:200]


def try_out(
    given: Mapping[str, Any], run_dir: pathlib.Path, stop_timeout: int, run: _Runner = run_command, nodes: int = 1
) -> str:
    """Ask Slurm whether it would take such a job; nothing is submitted.

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
        return _over_time(given, run)
    if rundir.SLURM_SILENT.search(text):
        raise Silent(_said(text))
    if "reservation" in given and _NOT_YET.search(text):
        return ""  # a job that is submitted waits for its beginning
    # For this test a node that is down or drained is none, and the sentence the same as for a job that no node could
    # run. A job that is submitted waits for such a node; where it could not run there either, sbatch says so.
    return "" if _NO_NODE in text and _has_nodes_away(given, run) else _said(text)


def _over_time(given: Mapping[str, Any], run: _Runner) -> str:
    """Say that no partition has so much time for a job, which most Slurms take all the same, and never start.

    A QOS may have more than its partition; where one is named, only Slurm knows.
    """
    if "qos" in given or "time" not in given:
        return ""
    limits = {limit: seconds_of(limit) or math.inf for limit in _of_partitions(given, "%l", run)}
    most = max(limits, key=lambda limit: limits[limit], default="")
    if not limits or (seconds_of(str(given["time"])) or math.inf) <= limits[most]:
        return ""
    where = f"partition {given['partition']}" if "partition" in given else "the default partition"
    return f"time is {given['time']}, and {where} has {most} at most; such a job never starts (PartitionTimeLimit)"


def _has_nodes_away(given: Mapping[str, Any], run: _Runner) -> bool:
    """Tell whether a node for such jobs is down or drained at the moment."""
    return any(_AWAY.match(state) for state in _of_partitions(given, "%t", run))


def _of_partitions(given: Mapping[str, Any], field: str, run: _Runner) -> list[str]:
    """Ask for something of the partitions that a job may run in; empty where nobody answers.

    Args:
        given: run_slurm.
        field: What, as ``sinfo`` has it in its format.
        run: Runs a command.
    """
    try:  # not with its --partition: it does not take that with --all, and without it hides what is hidden
        code, text = run(["sinfo", "--noheader", "--all", f"--format=%P|{field}"], "")
    except Silent:
        return []
    wanted = [*filter(None, str(given.get("partition", "")).split(","))]
    rows = [line.strip().partition("|") for line in text.splitlines() if "|" in line] if code == 0 else []
    # The one with a * is that of jobs that name none.
    return [value for name, _, value in rows if (name.rstrip("*") in wanted if wanted else name.endswith("*"))]


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
    script = job_script(run_dir, command, mark_root(run_dir.parents[1]), _folders())
    try:
        code, text = run(["sbatch", *job_options(given, run_dir, stop_timeout, after, nodes)], script)
    except Silent as error:
        code, text = 1, str(error)
    # Sites put scripts of their own in sbatch's place, which say more than an id, or say it in the long form.
    number = re.findall(r"^(?:Submitted batch job )?(\d+)(?:;\S*| on cluster \S+)?$", text, re.MULTILINE)
    if code == 0 and number:
        return number[-1]
    try:  # it may have been taken all the same, whatever was said
        known = [job for job in ask(run).get(job_name(run_dir), []) if job.lives]
    except Silent:
        raise Unanswered(
            f"Slurm has not answered, and nobody knows whether it has the job of {run_dir.name}: {_said(text)}. "
            "Run it again when Slurm answers: that attaches to the job, or submits one"
        ) from None
    if known:
        return known[-1].number
    if code == 0 or rundir.SLURM_SILENT.search(text):
        # A controller that was too slow may still have it before it.
        kind = UserError if "Unable to contact" in text else Unanswered
        raise kind(f"Slurm has not answered, and {run_dir.name} is not in its queue: {_said(text)}. Run it again")
    advice = "See run_slurm in the inventory"
    if re.search("(Max|Grp)Submit", text):
        advice = "It takes no more of your jobs now; the same command submits this one when there is room"
    raise UserError(f"Slurm refuses the job of {run_dir.name}: {_said(text)}. {advice}")


def ask(run: _Runner = run_command) -> dict[str, list[Job]]:
    """Ask for this user's jobs, those that ended lately among them; one question for all runs of a host.

    Returns:
        Jobs by the names that they were given, see :func:`job_name`, the oldest first.

    Raises:
        Silent: Slurm has not answered. That is never the same as an empty queue.
    """
    return _jobs_in(_table(run))


def _table(run: _Runner) -> str:
    """Ask for the table of this user's jobs; see :func:`ask`."""
    # Without --all nothing is told of a job in a hidden partition, its own user's neither.
    form = f"--format={'|'.join(_FIELDS.values())}"
    code, text = run(["squeue", "--all", "--states=all", _whose(), form], "")
    # An invalid user is a success for squeue, and an empty table.
    if code or "error: Invalid user" in text or f"\n{_HEAD}" not in f"\n{text}":
        raise Silent(_said(text))
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

    def __init__(self, run: _Runner = run_command, anew: bool = False):
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


def cancel(job: Job, run: _Runner = run_command) -> None:
    """Cancel whatever jobs a run has. They are named, and so is their user: an id may be another job's by now.

    Args:
        job: One of them, whose name they all have.
        run: Runs a command; a parameter for tests.

    Raises:
        Silent: Slurm has not answered.
    """
    code, text = run(["scancel", _whose(), f"--name={job.name}"], "")
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


def _whose() -> str:
    """Return the option that means this user's jobs: by the id, as a login may have another's name in LOGNAME."""
    return f"--user={os.getuid()}"


def _said(text: str) -> str:
    """Return what a command of Slurm's said, in one line without its own name before it."""
    lines = [re.sub(r"^(sbatch|squeue|scancel|scontrol): (error: )?", "", line) for line in text.splitlines()]
    return "; ".join(dict.fromkeys(filter(None, lines)))[:500] or "it said nothing"
