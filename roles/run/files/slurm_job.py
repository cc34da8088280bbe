"""Slurm's part of a supervisor, which is a job of Slurm's: to whom the run belongs, whether its nodes will do, and
whether the job comes back.

Standard library only, Python 3.9 or newer; ``rundir.py`` lies beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from typing import Any, Optional

import rundir

ANSWER_WITHIN = 60.0  # seconds that Slurm may take to answer
BEATS = 4  # heartbeats in which another copy of this supervisor shows that it lives, or sees that it has to go
IN_VAIN = 2  # jobs in a row that Slurm ended before they came to a checkpoint; the next one would end so, too
REQUEUED = "requeued"  # the kind of end of a job that comes back
TICK = 0.2  # seconds between two looks at another copy
PORTS = 1000  # how many a job's id decides among: jobs on one node at a time must not meet on the same one
UNFIT = "its GPU does not do: "
# Seconds after the first one has ended in which those on the other nodes may end by themselves: where all are told to,
# torchrun gives a checkpoint half a minute.
ALL_END_WITHIN = 45
# Run on each node. Only what is wrong is said, with the node's name; what Slurm says beside it begins otherwise.
CHECK = f"""\
node=${{SLURMD_NODENAME:-$(hostname)}}
if [ "$(cat "$1" 2>/dev/null)" != "$2" ]; then
  echo "@$node: does not see ${{1%/*}} as the login node does: trainer_root must be in a shared folder"; exit 1
fi
shift 2
[ $# = 0 ] || said=$("$@" 2>&1) || {{ echo "@$node: {UNFIT}$(echo "$said" | tail -n 1)"; exit 1; }}
"""
# Run on each node before a further start: ends what an earlier step of this job has left of the run there, as when its
# srun was killed. Steps are numbered in their order; what the batch script has started has none, or the highest.
END_EARLIER = f"""\
for one in $(grep -slzxF "{rundir.MARKER}=$1" /proc/[0-9]*/environ); do
  step=$(tr '\\0' '\\n' 2>/dev/null <"$one" | sed -n 's/^SLURM_STEP_ID=//p')
  [ "$step" -lt "$SLURM_STEP_ID" ] 2>/dev/null || continue
  pid=${{one#/proc/}} && pid=${{pid%/environ}}
  while kill -9 "$pid" 2>/dev/null && grep -q . "$one" 2>/dev/null; do sleep 0.1; done
done
"""


class Superseded(Exception):
    """Another supervisor has this run now: this one writes nothing more of it."""


class Copies:
    """Under Slurm a run may have two supervisors: a node that Slurm gives up may be alive, and go on.

    The run belongs to whoever wrote ``claim.json`` last. A lock alone would not do: not every shared folder has locks
    that reach from node to node. Whoever comes asks the other one for a checkpoint first, and gives it time for that.

    Args:
        run_dir: The run directory.
        env: The supervisor's environment, with Slurm's variables.
        heartbeat: Seconds between two words of a supervisor that lives.

    Attributes:
        asked: Whether another copy waits for this one to end.
    """

    def __init__(self, run_dir: pathlib.Path, env: Mapping[str, str], heartbeat: float):
        self.patience = BEATS * heartbeat
        self.path = run_dir / "claim.json"
        self.status = run_dir / "status.json"
        self.asked = False
        self.mine: dict[str, Any] = {
            "job": env.get("SLURM_JOB_ID", ""),
            "restart": env.get("SLURM_RESTART_COUNT", "0"),
            "node": env.get("SLURMD_NODENAME") or os.uname().nodename,
            "pid": os.getpid(),
            "uptime": rundir.uptime(),
        }

    def heartbeat(self) -> Any:
        """Return the last word of whoever writes status.json; None once it is over."""
        status = rundir.read_status(self.status.parent)[0]
        return None if status.get("state") in (None, *rundir.FINAL_STATES) else status.get("heartbeat")

    def await_lock(self, handle: Any, seconds: float) -> bool:
        """Wait for another copy to end: for its lock, and, where locks do not reach, for its heartbeat to stand still.

        Args:
            handle: The run's lock file.
            seconds: At most.

        Returns:
            Whether this process has the lock, and no other one moves.
        """
        until = time.monotonic() + seconds
        last, still, locked = self.heartbeat(), time.monotonic(), False
        while True:
            if not locked:
                with contextlib.suppress(BlockingIOError):
                    rundir.flock(handle)  # where there are no locks, the heartbeat alone tells
                    locked = True
            now, beat = time.monotonic(), self.heartbeat()
            if beat != last:
                last, still = beat, now
            if locked and (beat is None or now - still > self.patience):
                return True
            if now > until:
                return False
            time.sleep(TICK)

    def ask(self) -> None:
        """Ask another copy to end with a checkpoint."""
        rundir.write_json(self.path, {**self.mine, "asks": True})

    def claim(self) -> None:
        """Make the run this copy's."""
        rundir.write_json(self.path, self.mine)

    def check(self) -> None:
        """See that it still is, and whether another one asks for it.

        Raises:
            Superseded: It is another's.
        """
        found = rundir.read_json(self.path)
        self.asked = bool(found.get("asks"))
        if found and found != self.mine and not self.asked:
            raise Superseded(f"job {found.get('job')} on {found.get('node')} has this run now")


def take_over(run_dir: pathlib.Path, lock: Any, heartbeat: float) -> Optional[Copies]:
    """Get a run from whatever other copy there may be, with time for its checkpoint; None where it cannot be had.

    Args:
        run_dir: The run directory.
        lock: Its lock file.
        heartbeat: Seconds between two words of a supervisor that lives.
    """
    copies = Copies(run_dir, os.environ, heartbeat)
    patience = float(rundir.read_run(run_dir)[0].get("stop_timeout", 120)) + 30
    copies.ask()
    if not copies.await_lock(lock, patience):
        copies.claim()  # it had its time, and ends as soon as it sees this
        if not copies.await_lock(lock, patience):
            return None
    copies.claim()
    return copies


def in_slurm(run_dir: pathlib.Path) -> bool:
    """Tell whether this process is a run's job."""
    return rundir.read_run(run_dir)[0].get("backend") == "slurm" and "SLURM_JOB_ID" in os.environ


def place(env: Mapping[str, str]) -> str:
    """Say which job this is and which nodes it has, in Slurm's words.

    Args:
        env: The supervisor's environment, with Slurm's variables.
    """
    restarts = env.get("SLURM_RESTART_COUNT", "0")
    again = f", restart {restarts}," if restarts != "0" else ""
    return f"job {env['SLURM_JOB_ID']}{again} on {env.get('SLURM_JOB_NODELIST') or os.uname().nodename}"


def on_nodes(spec: Mapping[str, Any], *options: str) -> list[str]:
    """Return the words that go before a command which each node of a job has to run; none where it has one node.

    Args:
        spec: run.json.
        options: Further ones of srun.
    """
    nodes = spec.get("nodes", 1)
    if nodes == 1:
        return []
    # The job itself has no environment (--export=NIL), which would be handed on. A step that asks for no cores has all
    # of the job, and may use them; MPI's variables would be taken for another launcher's. And one whose node was away
    # for a moment may never end for Slurm: without --overlap the next one would wait for it as long as the job lasts.
    return ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--export=ALL", "--cpu-bind=none",
            "--mpi=none", "--kill-on-bad-exit=0", "--overlap", *options]  # fmt: skip


def end_earlier(run_dir: pathlib.Path, spec: Mapping[str, Any]) -> list[str]:
    """Return the command that has each node answer, with nothing of an earlier start left on it.

    Args:
        run_dir: The run directory.
        spec: run.json.
    """
    return [*on_nodes(spec), "/bin/sh", "-c", END_EARLIER, "sh", str(run_dir)]


def own_gpus(spec: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, str]:
    """Return the variable that leaves a run its GPUs where the job has more: some partitions give whole nodes.

    One process would divide each batch among all that it sees, which makes another training of it.

    Args:
        spec: run.json.
        env: The supervisor's environment, with Slurm's variables.
    """
    given = env.get("CUDA_VISIBLE_DEVICES", "").split(",")
    wanted = spec.get("processes", 1) // spec.get("nodes", 1)
    return {"CUDA_VISIBLE_DEVICES": ",".join(given[:wanted])} if len(given) > wanted else {}


def home(run_dir: pathlib.Path) -> str:
    """Return where a training's libraries may keep what they compile: not every node has its users' homes.

    Args:
        run_dir: The run directory.
    """
    own, instead = os.path.expanduser("~"), run_dir.parents[1] / "home"
    if os.access(own, os.W_OK | os.X_OK):
        return own
    instead.mkdir(exist_ok=True)
    return str(instead)


def variables(run_dir: pathlib.Path, spec: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, str]:
    """Return what a training has in its environment as it is in a job.

    The cache of datasets has locks, and where the file system has none they are files that a killed training leaves.
    Among its run's prepared data they keep no other run waiting, and are deleted before it starts again.

    Args:
        run_dir: The run directory.
        spec: run.json.
        env: The supervisor's environment, with Slurm's variables.
    """
    own = {"HOME": home(run_dir)}
    # Axolotl prepares data with as many processes as the node has cores, of which the job may have few.
    if cores := env.get("SLURM_CPUS_ON_NODE"):
        own["AXOLOTL_DATASET_NUM_PROC"] = cores
    if prepared := spec.get("prepared"):
        own["HF_DATASETS_CACHE"] = f"{prepared}/datasets"
    given = spec.get("env", {})  # what the inventory says goes before what is chosen here
    own = {name: value for name, value in own.items() if name not in given}
    return {**own, **own_gpus(spec, env), **meeting(spec, env)}


def meeting(spec: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which the processes of several nodes meet, and know that all see one run directory.

    Args:
        spec: run.json.
        env: The supervisor's environment, with Slurm's variables.
    """
    if spec.get("nodes", 1) == 1:
        return {}
    first = spec.get("port", 0)
    port = first + int(env["SLURM_JOB_ID"]) % min(PORTS, 65_536 - first)
    return {"PET_RDZV_ENDPOINT": f"{os.uname().nodename}:{port}", rundir.ONE_FOLDER: "1"}


def check_command(run_dir: pathlib.Path, spec: Mapping[str, Any]) -> list[str]:
    """Return the command that looks at each node of the job; empty where there is nothing to look at.

    Args:
        run_dir: The run directory. That the first node has the right one is known already.
        spec: run.json.
    """
    gate = spec.get("gate") or []
    if not gate and spec.get("nodes", 1) == 1:
        return []
    mark = run_dir.parents[1] / rundir.ROOT_MARK
    return [*on_nodes(spec), "/bin/sh", "-c", CHECK, "sh", str(mark), mark.read_text().strip(),
            *gate]  # fmt: skip


def faults(said: str) -> str:
    """Tell in a sentence which nodes are no good, and why.

    Args:
        said: What :func:`check_command` printed.
    """
    found = []
    for line in sorted({line for line in said.splitlines() if line.startswith("@")}):
        node, unfit, why = line[1:].partition(UNFIT)
        with contextlib.suppress(ValueError, AttributeError):
            why = json.loads(why).get("error") or why
        found.append((node + unfit + (why or "it said nothing" if unfit else ""))[:1500])
    return "; ".join(found) or said[-1500:]


def scontrol(*words: str) -> tuple[int, str]:
    """Run Slurm's command; returns its exit status, and what it printed in one line."""
    try:
        done = subprocess.run(
            ["scontrol", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            timeout=ANSWER_WITHIN, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 1, f"scontrol gave no answer within {ANSWER_WITHIN:g} s"
    except OSError as error:
        return 1, f"scontrol: {error.strerror}"
    return done.returncode, " ".join(done.stdout.split())


def fate(said: str, restarts: str) -> str:
    """Tell what Slurm has in mind with a job that it has told to end: ``cancelled``, ``requeued``, or empty: nothing.

    While a job ends Slurm calls it COMPLETING, whatever ended it. One that Slurm puts back itself has a restart more;
    what else it ends by itself, it gives a reason for. Somebody's scancel has none.

    Args:
        said: What it says of the job (scontrol show job).
        restarts: How often this copy of it was restarted.
    """
    found = dict(re.findall(r"\b(JobState|Reason|Restarts|PreemptTime)=(\S+)", said))
    if found.get("Restarts", restarts) != restarts:  # it may run by now, elsewhere: to put it back would end that one
        return REQUEUED
    if found.get("JobState") not in ("COMPLETING", "CANCELLED"):
        return ""
    return "cancelled" if found.get("Reason") == "None" == found.get("PreemptTime", "None") else ""


def own_fate() -> str:
    """Tell what Slurm has in mind with the job that this process is; see :func:`fate`. Empty where it does not say."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this process is about to end, and must not die before
    code, said = scontrol("--oneliner", "show", "job", os.environ["SLURM_JOB_ID"])
    return "" if code else fate(said, os.environ.get("SLURM_RESTART_COUNT", "0"))


def is_ending() -> bool:
    """Tell whether Slurm is about to end this job: of a preemption its steps may hear, and its first process not."""
    code, said = scontrol("--oneliner", "show", "job", os.environ["SLURM_JOB_ID"])
    return code == 0 and is_told(said)


def is_told(said: str) -> bool:
    """Tell whether a job is about to end by what Slurm says of it (scontrol show job)."""
    found = dict(re.findall(r"\b(JobState|StartTime|PreemptTime)=(\S+)", said))
    preempted = found.get("PreemptTime", "None")
    return found.get("JobState") != "RUNNING" or (preempted != "None" and preempted >= found.get("StartTime", ""))


def requeue() -> str:
    """Put this job back into the queue; returns why Slurm refuses to, empty where it does not, or says nothing.

    Slurm signals the job that it requeues, which is this process: it has done its work, and must only not die of that.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    until = time.monotonic() + ANSWER_WITHIN
    while True:
        code, said = scontrol("requeue", os.environ["SLURM_JOB_ID"])
        if code == 0:
            return ""
        if not rundir.SLURM_SILENT.search(said):
            return said[:300] or f"exit code {code}"
        if time.monotonic() > until:
            return ""  # it may come back all the same, as after its node's reboot; if not, the queue shows that
        time.sleep(1)


def leave() -> int:
    """Give up a job that has not begun to train; returns its exit status."""
    refused = "" if own_fate() else requeue()
    if refused:
        print(f"Slurm does not take this job back: {refused}", flush=True)
    return 1 if refused else 0
