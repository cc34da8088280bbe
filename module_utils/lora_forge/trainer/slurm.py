"""Slurm as what keeps a supervisor running: a job is the supervisor. It is written, tried out, submitted and cancelled.

A login node submits, asks and cancels; the job runs on a node, with the trainer's root in a folder that both see. What
run_slurm may ask for is in ``slurm_options``, what became of a job in ``slurm_queue``, and how Slurm's commands are run
in ``slurm_commands``. Runs on trainers: Python 3.9 or newer.
"""

from __future__ import annotations

import math
import os
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.trainer.slurm_commands import (
    Runner,
    Silent,
    folders,
    one_line,
    run_command,
    user_option,
)
from ansible.module_utils.lora_forge.trainer.slurm_options import KEYS, seconds_of, told_before
from ansible.module_utils.lora_forge.trainer.slurm_queue import Job, ask, job_name

# The first whose sbatch knows --export=NIL: a job without the submitter's environment, and the tokens in it.
OLDEST = (23, 2, 3)
_NOT_YET = re.compile("Invalid time specified|reservation not usable now")  # said of a reservation
_NO_NODE = "Requested node configuration is not available"
# As sinfo writes states of nodes; with a * one does not answer.
_AWAY = re.compile(r"(down|drain|drng|fail|inval|unk)|\w+\*")

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


class Unanswered(UserError):
    """Slurm may have a job, or may not: its answer was lost, and the queue is not told either."""


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
        given: run_slurm, without ``slurm_options.problems``.
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


def check_version(run: Runner = run_command) -> str:
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
    given: Mapping[str, Any], run_dir: pathlib.Path, stop_timeout: int, run: Runner = run_command, nodes: int = 1
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
        raise Silent(one_line(text))
    if "reservation" in given and _NOT_YET.search(text):
        return ""  # a job that is submitted waits for its beginning
    # For this test a node that is down or drained is none, and the sentence the same as for a job that no node could
    # run. A job that is submitted waits for such a node; where it could not run there either, sbatch says so.
    return "" if _NO_NODE in text and _has_nodes_away(given, run) else one_line(text)


def _over_time(given: Mapping[str, Any], run: Runner) -> str:
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


def _has_nodes_away(given: Mapping[str, Any], run: Runner) -> bool:
    """Tell whether a node for such jobs is down or drained at the moment."""
    return any(_AWAY.match(state) for state in _of_partitions(given, "%t", run))


def _of_partitions(given: Mapping[str, Any], field: str, run: Runner) -> list[str]:
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
    run: Runner = run_command,
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
    script = job_script(run_dir, command, mark_root(run_dir.parents[1]), folders())
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
            f"Slurm has not answered, and nobody knows whether it has the job of {run_dir.name}: {one_line(text)}. "
            "Run it again when Slurm answers: that attaches to the job, or submits one"
        ) from None
    if known:
        return known[-1].number
    if code == 0 or rundir.SLURM_SILENT.search(text):
        # A controller that was too slow may still have it before it.
        kind = UserError if "Unable to contact" in text else Unanswered
        raise kind(f"Slurm has not answered, and {run_dir.name} is not in its queue: {one_line(text)}. Run it again")
    advice = "See run_slurm in the inventory"
    if re.search("(Max|Grp)Submit", text):
        advice = "It takes no more of your jobs now; the same command submits this one when there is room"
    raise UserError(f"Slurm refuses the job of {run_dir.name}: {one_line(text)}. {advice}")


def cancel(job: Job, run: Runner = run_command) -> None:
    """Cancel whatever jobs a run has. They are named, and so is their user: an id may be another job's by now.

    Args:
        job: One of them, whose name they all have.
        run: Runs a command; a parameter for tests.

    Raises:
        Silent: Slurm has not answered.
    """
    code, text = run(["scancel", user_option(), f"--name={job.name}"], "")
    if code:
        raise Silent(one_line(text))
