#!/usr/bin/env python3
"""Own one training run on its trainer, under every backend: ``supervisor.py <run directory>``.

It waits for the run's lane, starts the trainer, writes status.json with a heartbeat, resumes a crash from
the last whole checkpoint as long as there is progress, tries the one before where a start dies on reading it,
and ends with a final state. Its own exit status is 0
for every decided end (finished, failed, stopped), so that systemd restarts only a supervisor that died.

Standard library only, Python 3.9 or newer; ``rundir.py`` and all that a training imports of ours lie beside it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any, Callable, Optional

import rundir
import slurm_job

PROGRAMS = pathlib.Path(__file__).resolve().parent
HEARTBEAT = 5.0  # seconds between two writes of status.json
TICK = 0.2  # seconds between two looks at the trainer process
GATE_WITHIN = 900.0  # seconds that the check of a node's GPU may take
NODES_WITHIN = 120.0  # seconds in which each node of a job is to answer
RESERVE = 64 * 1024  # bytes kept back so that the final state can be written to a full disk
# Seconds before each further start that may help although the last one brought nothing: a gang is met again that was
# just breaking up, or went back to an earlier checkpoint, or an older checkpoint is tried. Then the run has failed.
PAUSES = (2.0, 4.0, 8.0, 16.0)
TAIL = 64 * 1024  # bytes of train.log that are searched for the reason of a failure

# What an ending looks like in Axolotl's log -> the kind of failure. The first match decides.
REASONS = (
    ("closed meeting", re.compile(r"RendezvousClosedError")),  # of torchrun, where the other hosts' is just ending
    ("out of memory", re.compile(r"CUDA out of memory|OutOfMemoryError|MemoryError")),
    ("disk full", re.compile(r"No space left on device|Disk quota exceeded")),
    (
        "configuration",
        re.compile(
            r"pydantic_core\._pydantic_core\.ValidationError|validation errors? for AxolotlInputConfig|"
            # Raised ones alone, whose line begins so: libraries warn with «file:line: DeprecationWarning: …».
            r"^(?:\[rank\d+\]: ?)?(?:DeprecationWarning: |expected_adapter\.Refused: |"
            r"ValueError: .*(config|dataset|sample_packing|num_samples))",
            re.MULTILINE,
        ),
    ),
)


# What another launcher left in this account's environment (RunPod's clusters set some of it, so do Kubeflow's jobs and
# MPI): one process would wait for others that never come, or a gang meet at a wrong place. torchrun sets its own anew.
# And a cache of models that goes before HF_HOME: what was fetched for this run would not be found. Last, what says how
# checkpoints are read: that is the controller's to say.
FOREIGN = re.compile(
    r"RANK|WORLD_SIZE|(LOCAL|GROUP|ROLE|NODE|CROSS)_(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|"
    r"(TORCHELASTIC|PET|ACCELERATE|FSDP|PARALLELISM_CONFIG|OMPI|PMI|PMIX|MV2|MPI)_.*|"
    r"HF_HUB_CACHE|HUGGINGFACE_HUB_CACHE|TORCH_FORCE_(NO_)?WEIGHTS_ONLY_LOAD"
)
# What `axolotl train` sets before it starts what we start ourselves (set_pytorch_cuda_alloc_conf and set_misc_env in
# axolotl/utils/__init__.py, Axolotl 0.21); whoever has set it already is heard.
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")

TRAINING = ("step", "log", "eval", "save", "end")  # events of a training that has read its checkpoint

# What Python and torchrun print between two exceptions of which one led to the other.
LINKS = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
TRACEBACK = "Traceback (most recent call last):"
# Said before a traceback that did not end the training: it is told at the exit, or was of a thread, a task, a child.
BESIDE = ("Exception ignored in", "Exception in thread", "Error in atexit", "--- Logging error ---",
          "Task exception was never retrieved", "future: ", "Process ")  # fmt: skip
AFTER = ("wandb: ", "nanobind: ", '  File "')  # what is no part of the message of an exception before it
# What a process of a gang dies of when another one has: torchrun's meeting is gone with whoever was its host, launchers
# end who is left, and who talked to the dead one over gloo or NCCL is cut off.
AFTERMATH = re.compile(
    r"RendezvousConnectionError|elastic\S*\.SignalException|/gloo/transport/\S* Connection (closed|reset) by peer|"
    r"a remote process exiting prematurely"
)
MESSAGE = 12  # lines of an exception that are told
EXCEPTION = re.compile(r"\S*(Error|Warning|Exception)\b")
NOISE = re.compile(r"wandb:|nanobind: |\s*- leaked |\s*$")


def failures(text: str) -> list[str]:
    """Find the exception that ended a training, and before it, in this order, what led to it.

    What other processes died of in its wake is passed over, unless it is all that there is.

    Args:
        text: The end of its log.

    Returns:
        The text of each exception, the one that ended it first; empty where the log holds no traceback.
    """
    chains: list[list[str]] = []
    linked, at = False, 0
    lines = [re.sub(r"^\[rank\d+\]: ?", "", line) for line in re.split(r"[\r\n]+", text)]
    while at < len(lines):
        linked, begins = linked or lines[at] in LINKS, lines[at].endswith(TRACEBACK)
        beside = at > 0 and lines[at - 1].startswith(BESIDE)
        at += 1
        if not begins:
            continue
        while at < len(lines) and lines[at].startswith((" ", "\t")):
            at += 1
        if at == len(lines) or ends(lines[at]):  # another process's text among this, or a group of exceptions
            continue
        message = lines[at : at + 1]
        at += 1
        while at < len(lines) and len(message) < MESSAGE and not ends(lines[at]):
            message.append(lines[at])
            at += 1
        if not beside and "ChildFailedError" not in message[0]:  # torchrun's: one of its processes failed
            chains = chains if linked and chains else [*chains, []]
            chains[-1].append("\n".join(message).rstrip())
        linked = False
    causes = [chain for chain in chains if not AFTERMATH.search(chain[-1])]
    return (causes or chains)[-1][::-1] if chains else []


def ends(line: str) -> bool:
    """Tell whether a line after an exception is none of its message."""
    logged = re.match(r"\[\d{4}-|[EWI]\d{4} \d\d:|\s*\d+%\|", line)
    return bool(logged) or line in (*LINKS, '"""') or line.endswith(TRACEBACK) or line.startswith((*BESIDE, *AFTER))


def told(exceptions: list[str]) -> str:
    """Tell the exceptions of :func:`failures` in few words: what ended it, and what was at the bottom of it."""
    if not exceptions:
        return ""
    last, *others = exceptions[0].split("\n")
    causes = [text.split("\n")[0] for text in reversed(exceptions[1:])]
    cause = next((line for line in causes if line not in last), "")
    return "\n".join([f"{last} (because of {cause})" if cause else last, *others])


def last_words(text: str) -> str:
    """Return the end of a log that has no traceback: from the last exception on, or else a few lines."""
    lines = [line for line in re.split(r"[\r\n]+", text) if not NOISE.match(line)]
    begin = next((at for at in reversed(range(len(lines))) if EXCEPTION.match(lines[at])), -6)
    return "\n".join(lines[begin:][:MESSAGE])


def inherited(account: Mapping[str, str]) -> dict[str, str]:
    """Return what a training has of its account's environment: all but other launchers' variables, and what is missing.

    Args:
        account: The environment of the supervisor.
    """
    env = {name: value for name, value in account.items() if not FOREIGN.fullmatch(name)}
    if not any(name in env for name in ALLOCATOR):
        env[ALLOCATOR[0]] = "expandable_segments:True"
    env.setdefault("XFORMERS_IGNORE_FLASH_VERSION_CHECK", "1")
    return env


def in_queue(run_dir: pathlib.Path) -> bool:
    """Tell whether a run waits for its lane."""
    status = rundir.read_status(run_dir)[0]
    return status.get("state") == "queued" and rundir.is_alive(status.get("supervisor"))


class Supervisor:
    """One run from its queueing to its final state.

    Args:
        run_dir: The run directory, with run.json and axolotl.yml in it.
        copies: What else may have this run; None where nothing may.
    """

    def __init__(self, run_dir: pathlib.Path, copies: Optional[slurm_job.Copies] = None):
        self.run_dir = run_dir
        self.spec = rundir.read_run(run_dir)[0]
        self.output = run_dir / "output"
        self.trainer: Optional[subprocess.Popen[bytes]] = None
        self.stopping_since: Optional[float] = None
        self.beat = 0.0
        self.moved = time.monotonic()  # when the training showed its last sign of progress
        self.waiting = ""  # for whom this run waits, as it was said
        self.holder = ""  # who has its lane
        self.looked = -1.0  # the heartbeat at which that was looked up
        self.asked, self.first = 0.0, list[pathlib.Path]()  # when it was seen which runs come first, and those
        self.copies = copies
        self.lane: list[int] = []  # descriptors of the lane's locks, one for each of its GPUs
        self.doubted: list[tuple[pathlib.Path, pathlib.Path]] = []  # checkpoints set aside on suspicion: whence, where
        before = rundir.read_status(run_dir)[0]
        # A new launch is somebody's wish to try again; without one, what was tried in vain before counts.
        again = before if before.get("launch") == self.spec.get("launch") else {}
        self.since: Optional[float] = None  # when the training of now was started, in seconds since boot
        self.before = before.get("seconds", 0.0)  # seconds that earlier ones took
        self.status: dict[str, Any] = {
            "schema_version": rundir.SCHEMA_VERSION,
            "run_id": self.spec.get("run_id"),
            "state": "queued",
            "reason": None,
            "supervisor": rundir.identity(os.getpid()),
            "trainer": before.get("trainer"),
            "lane": self.spec.get("lane"),
            "launch": self.spec.get("launch"),
            "starts": before.get("starts", 0),
            "seconds": self.before,  # that it trained, over all starts: the time of day may be set
            "vain": again.get("vain", 0),  # starts in a row that brought no newer checkpoint
            "highest": again.get("highest", 0),  # step of the newest checkpoint that there ever was
            "first_started_at": before.get("first_started_at"),
            "exit_code": None,
            "resumed_from": None,
            "finished_at": None,
        }

    def say(self, text: str) -> None:
        """Log one line, and show it where somebody may look (a terminal, the journal)."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n"
        with contextlib.suppress(OSError):  # a full disk must not end the supervisor
            with (self.run_dir / "supervisor.log").open("a", encoding="utf-8") as log:
                log.write(line)
        if sys.stdout.isatty() or "JOURNAL_STREAM" in os.environ:
            sys.stdout.write(line)
            sys.stdout.flush()

    def write(self, **changes: Any) -> None:
        """Update status.json, heartbeat included. On a full disk the reserve makes room for the last word."""
        self.beat = time.monotonic()
        if self.copies is not None:
            self.copies.check()
            if self.copies.asked:
                self.on_sigterm(signal.SIGTERM, None)
        for lock in self.lane:
            with contextlib.suppress(OSError):
                os.utime(lock)  # what tidies /tmp up takes old files only
        if self.since is not None:
            self.status["seconds"] = round(self.before + rundir.uptime() - self.since, 3)
        self.status.update(changes, heartbeat=rundir.uptime(), idle=round(self.beat - self.moved, 1))
        reserve = self.run_dir / ".reserve"
        try:
            rundir.write_json(self.run_dir / "status.json", self.status)
            if not reserve.exists():
                reserve.write_bytes(b"\0" * RESERVE)
        except OSError as error:
            self.say(f"status.json: {error}")  # never to stderr: it may be a file on the very same disk
            with contextlib.suppress(OSError):
                reserve.unlink(missing_ok=True)
                rundir.write_json(self.run_dir / "status.json", self.status)

    def on_sigterm(self, number: int, frame: Any) -> None:
        if self.stopping_since is None:
            self.stopping_since = time.monotonic()
            if self.trainer is not None:
                self.ask_to_stop(self.trainer)

    def ask_to_stop(self, trainer: subprocess.Popen[bytes]) -> None:
        """Ask a training for a checkpoint and its end."""
        if self.spec.get("processes", 1) > 1:  # torchrun would pass a signal on, and kill them after half a minute
            (self.run_dir / rundir.STOPPING).touch()
        else:  # to this one process: its group would lose the data loader's workers, and the checkpoint with them
            trainer.send_signal(signal.SIGTERM)

    def reached(self) -> int:
        """Return how far what is kept goes: the step of the newest whole checkpoint, or how many answers there are."""
        if not self.spec.get("evaluates"):
            return rundir.last_complete(self.output)
        return len(rundir.read_lines(self.run_dir / rundir.ANSWERS)[0])

    def place(self) -> str:
        """Say the same in words."""
        return f"{self.reached()} answers" if self.spec.get("evaluates") else f"step {self.reached()}"

    @property
    def stop_wanted(self) -> bool:
        return self.stopping_since is not None or (self.run_dir / "stop").exists()

    def kill_leftovers(self) -> None:
        """Kill what an earlier, killed supervisor left of this run: it would train on, and hold the lane."""
        deadline = time.monotonic() + 30
        leftovers = rundir.run_processes(self.run_dir)
        if leftovers:
            self.say(f"killing {len(leftovers)} process(es) left over: {leftovers}")
        while leftovers:
            for pid in leftovers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes {leftovers} of this run cannot be killed")
            time.sleep(0.05)
            leftovers = rundir.run_processes(self.run_dir)

    def open_lane(self, path: pathlib.Path) -> int:
        """Open the lane's file, which any user of the host may have made and any may queue at."""
        deadline = time.monotonic() + 5
        while True:
            try:
                # Never O_CREAT on what is there: in a sticky folder the kernel refuses it for another user's file.
                return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):
                    lane = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
                    os.fchmod(lane, 0o666)
                    return lane
            except PermissionError:  # its maker has not opened it to everybody yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(TICK)

    def take_lane(self) -> bool:
        """Wait for this run's turn, and for the locks of all GPUs of the lane. False when a stop came first."""
        folder = pathlib.Path(self.spec["lane_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        self.write(state="queued")
        # In one order for everybody, so that no two runs wait for each other.
        first, *others = [folder / f"lora-forge-{name}.lock" for name in sorted(self.spec["lane"].split(","))]
        return self.take(first, self.launched_before) and all(map(self.take, others))

    def launched_before(self) -> list[pathlib.Path]:
        """List the runs of this trainer that come first where they want this lane, or a GPU of it, as well.

        A lock alone takes whoever comes along: the hosts of a gang must all take their runs in one order, or one of
        them waits in one run for a host that waits in another.
        """
        wanted, turn = set(self.spec["lane"].split(",")), self.spec.get("turn") or 0
        noted = {path.parent: rundir.read_run(path.parent)[0] for path in self.run_dir.parent.glob("*/run.json")}
        return [
            folder
            for folder, spec in noted.items()
            if 0 < (spec.get("turn") or 0) < turn and wanted & set(str(spec.get("lane")).split(","))
        ]

    def wait(self, why: str) -> None:
        """Wait a moment in the queue, with a pulse; what is waited for is told when it changes."""
        if self.waiting != why:
            self.say(f"waiting for lane {self.spec['lane']}: {why}")
            self.waiting = why
        time.sleep(TICK)
        if time.monotonic() - self.beat > HEARTBEAT:
            self.write()

    def held_by(self) -> str:
        """Say who has the lane, as of the last heartbeat: a look reads a file of every run of the host."""
        if self.looked != self.beat:
            self.looked = self.beat
            self.holder = rundir.lane_holder(self.run_dir, self.spec["lane"]) or "another run has it"
        return self.holder

    def recent(self, before: Callable[[], list[pathlib.Path]]) -> list[pathlib.Path]:
        """Return what comes first, as of a second ago at most: a look reads a file of every run of the host."""
        if time.monotonic() - self.asked > 1.0:
            self.asked, self.first = time.monotonic(), before()
        return self.first

    def take(self, path: pathlib.Path, before: Callable[[], list[pathlib.Path]] = list) -> bool:
        """Wait for one lock, and for the runs that come first to leave the queue; False when a stop came first."""
        try:
            self.lane.append(self.open_lane(path))
            while not self.stop_wanted:
                # Asked again and again: one of them may be launched again, and comes last then.
                first = next(filter(in_queue, self.recent(before)), None)
                if first is not None:
                    self.wait(f"{first.name} was launched before")
                    continue
                try:
                    fcntl.flock(self.lane[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
                    with contextlib.suppress(FileNotFoundError):
                        if os.path.samestat(os.stat(path), os.fstat(self.lane[-1])):
                            return True
                    os.close(self.lane[-1])  # somebody tidied up: it is another file that the others lock now
                    self.lane[-1] = self.open_lane(path)
                except BlockingIOError:
                    self.wait(self.held_by())
        except OSError as error:  # the kernel's own word on a lock names no file
            raise OSError(error.errno, f"the lane's lock cannot be taken: {error.strerror}", str(path)) from None
        return False

    def set_aside(self) -> None:
        """Rename checkpoints that are not whole: Axolotl resumes from the highest number without looking."""
        for path in (path for _, path in rundir.checkpoints(self.output)):
            defect = rundir.defect(path)
            if defect is not None:
                self.put_aside(path, f"is not whole ({defect})")

    def put_aside(self, path: pathlib.Path, why: str) -> pathlib.Path:
        """Rename a checkpoint, so that nothing resumes from it; returns where it is now."""
        aside = path.with_name(f"incomplete-{path.name}-{int(time.time())}-{os.getpid()}")
        path.rename(aside)
        self.say(f"{path.name} {why}; set aside as {aside.name}")
        return aside

    def doubt(self, step: int, kind: str, events_from: int) -> bool:
        """Set the checkpoint aside on which a start died before its first step, as one of NULs; False where it is not.

        Only a crash can be the checkpoint's fault: memory, disk and configuration are as they are, with any other one.

        Args:
            step: That it resumed from.
            kind: Of :meth:`reason`.
            events_from: Where this start's part of metrics.jsonl begins, in bytes.
        """
        path = self.output / f"checkpoint-{step}"
        events, _ = rundir.read_events(self.run_dir / "metrics.jsonl", events_from)
        if any(event["event"] in TRAINING for event in events):
            self.doubted.clear()  # without those it trains
        elif kind == "crashed" and path.is_dir():
            why = "may be damaged: the training died on it before its first step"
            self.doubted.append((path, self.put_aside(path, why)))
            return True
        return False

    def take_back(self) -> None:
        """Put back what was set aside on suspicion: without it the training died as well."""
        for path, aside in self.doubted:
            if not path.exists():
                aside.rename(path)
                self.say(f"{path.name} is put back: without it the training died as well")
        self.doubted.clear()

    def drop_half_prepared(self) -> None:
        """Delete tokenised data that was cut off: Axolotl would take any file in its cache for the whole of it."""
        prepared = self.spec.get("prepared")
        if prepared and pathlib.Path(prepared).is_dir() and not (pathlib.Path(prepared) / rundir.COMPLETE).exists():
            shutil.rmtree(prepared)
            self.say(f"{prepared} was not whole; deleted, it is made again")
        elif prepared:
            # Where a file system has no locks, this very file is one for Axolotl and datasets. Whoever was killed has
            # left it, and on another node nobody could tell, and all would wait.
            for left in pathlib.Path(prepared).rglob("*.lock"):
                left.unlink(missing_ok=True)

    def environment(self) -> dict[str, str]:
        """Return the trainer's environment: the account's, what run.json adds, and the secrets of the env file."""
        env = {"HOME": os.path.expanduser("~"), **inherited(os.environ), **self.spec.get("env", {})}
        secrets = self.run_dir / "env"
        if secrets.exists():
            for line in secrets.read_text(encoding="utf-8").splitlines():
                name, separator, value = line.partition("=")
                if separator:
                    env[name] = value
        # Never the run directory: what a training resumes from was written by others. Without the second variable
        # Python would look there first, as it is the working directory; it heeds it from 3.11 on.
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROGRAMS), env.get("PYTHONPATH")]))
        env["PYTHONSAFEPATH"] = "1"
        env["PYTHONUNBUFFERED"] = "1"
        env[rundir.MARKER] = str(self.run_dir)
        env.update({} if self.copies is None else slurm_job.variables(self.run_dir, self.spec, os.environ))
        return env

    def start_trainer(self, command: list[str], env: dict[str, str]) -> None:
        parent = os.getpid()
        libc = ctypes.CDLL(None, use_errno=True)

        def in_child() -> None:
            libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: without a supervisor, checkpoint and stop
            if os.getppid() != parent:
                os._exit(1)

        (self.run_dir / rundir.STOPPING).unlink(missing_ok=True)
        with (self.run_dir / "train.log").open("ab") as log:
            self.trainer = subprocess.Popen(
                command,
                cwd=self.run_dir,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=tuple(self.lane),  # the lane stays taken as long as any process of the run lives
                preexec_fn=in_child,
            )
        if self.stopping_since is not None:  # the signal came between the last look and the start
            self.ask_to_stop(self.trainer)

    def began_at(self, events_from: int) -> Optional[int]:
        """Return the step that this start trains from, as the training itself says; None while it has not begun."""
        events, _ = rundir.read_events(self.run_dir / "metrics.jsonl", events_from)
        return next((event["step"] for event in events if event.get("event") == "begin"), None)

    def answer_cases(self) -> None:
        """Have the agent's cases answered by a process of its own, where several have trained.

        Whatever becomes of it costs answers, which can be given later, and never the adapter.
        """
        command = self.spec.get("answer_command")
        if not command or not (self.run_dir / "questions.json").exists() or self.stop_wanted:
            return
        self.kill_leftovers()
        log_from = (self.run_dir / "train.log").stat().st_size
        _, events_from = rundir.read_events(self.run_dir / "metrics.jsonl")
        env = self.environment()
        if "CUDA_VISIBLE_DEVICES" in env:
            env["CUDA_VISIBLE_DEVICES"] = env["CUDA_VISIBLE_DEVICES"].partition(",")[0]
        try:
            self.start_trainer(command, env)
        except OSError as error:
            self.say(f"cases are left unanswered: {command[0]}: {error}")
            return
        assert self.trainer is not None
        self.moved, self.since = time.monotonic(), rundir.uptime()
        self.write(trainer=rundir.identity(self.trainer.pid))
        self.say(f"cases are answered, pid {self.trainer.pid}")
        code = self.follow_trainer(events_from, begun=True)
        self.kill_leftovers()
        if code:
            reason = self.reason(code, log_from)
            self.say(f"it ended while it answered cases: {reason['kind']}: {reason['detail']}")

    def its_end(self, events_from: int) -> Optional[dict[str, Any]]:
        """Return what this start has told of its end; None where it has told none."""
        events, _ = rundir.read_events(self.run_dir / "metrics.jsonl", events_from)
        return next((event for event in reversed(events) if event.get("event") == "end"), None)

    def is_done(self, events_from: int) -> bool:
        """Tell whether this start has come to the end that was planned, or to one that it has a reason for."""
        end = self.its_end(events_from)
        return end is not None and bool(end["step"] >= end["planned"] or end.get("reason"))

    def was_answering(self, events_from: int) -> bool:
        """Tell whether this start has trained to its end and went on to the agent's cases."""
        events, _ = rundir.read_events(self.run_dir / "metrics.jsonl", events_from)
        kinds = [event["event"] for event in events]
        return "end" in kinds and "answers" in kinds[kinds.index("end") :]

    def follow_trainer(self, events_from: int, begun: bool = False) -> int:
        """Wait for the trainer's end with heartbeats; returns its exit code, negative for a signal.

        Args:
            events_from: Where this start's part of metrics.jsonl begins, in bytes.
            begun: Whether it looks for a stop from its beginning on.
        """
        assert self.trainer is not None
        shown = events_from
        while self.trainer.poll() is None:
            if self.stop_wanted and self.stopping_since is None:
                self.on_sigterm(signal.SIGTERM, None)
            since = self.stopping_since
            if since is not None and time.monotonic() - since > self.spec["stop_timeout"]:
                self.say(f"not stopped after {self.spec['stop_timeout']} s: killing it")
                self.kill_group()
            elif since and self.spec.get("processes", 1) > 1 and not begun and self.began_at(events_from) is None:
                self.say("killing it: several processes look for the stop between steps, and there is nothing to save")
                self.kill_group()
            if time.monotonic() - self.beat > HEARTBEAT:
                events, shown = rundir.read_events(self.run_dir / "metrics.jsonl", shown)
                self.moved = time.monotonic() if events else self.moved
                for event in events:
                    if event.get("event") in ("log", "eval"):
                        figures = {k: v for k, v in event.items() if k in ("loss", "eval_loss") and v is not None}
                        self.say(f"step {event['step']}/{event['planned']} {figures}")
                self.write(state="stopping" if since is not None else "running")
            time.sleep(TICK)
        code = self.trainer.returncode
        self.kill_group()  # workers that outlived their leader
        self.trainer = None
        self.write()
        self.before, self.since = self.status["seconds"], None
        return code

    def kill_group(self) -> None:
        if self.trainer is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.trainer.pid, signal.SIGKILL)

    def reason(self, code: int, log_from: int) -> dict[str, str]:
        """Why the trainer failed, as far as its exit code and the end of its log tell.

        Args:
            code: Its exit code, negative for a signal.
            log_from: Where this start's part of train.log begins, in bytes.

        Returns:
            ``kind`` (closed meeting, out of memory, disk full, configuration, killed, crashed) and ``detail``.
        """
        log = self.run_dir / "train.log"
        with log.open("rb") as file:
            file.seek(max(log_from, log.stat().st_size - TAIL))
            text = re.sub(r"\x1b\[[0-9;]*m", "", file.read().decode("utf-8", "replace"))
        exceptions = failures(text)
        # An exception that ended it tells the kind, and no other one that was survived before. A signal leaves none.
        searched = exceptions if exceptions and code > 0 else [text]
        kind = next((kind for part in searched for kind, pattern in REASONS if pattern.search(part)), None)
        kind = None if kind == "configuration" and code < 0 else kind
        if code < 0 and kind is None:
            name = signal.Signals(-code).name
            whose = "on the host" if self.copies is None else "of its job (run_slurm: memory)"
            hint = f"; out of memory {whose}, or by hand?" if code == -signal.SIGKILL else ""
            return {"kind": "killed", "detail": f"ended by {name}{hint}"}
        return {"kind": kind or "crashed", "detail": f"exit code {code}: {told(exceptions) or last_words(text)}"[:2000]}

    def end(self, state: str, reason: Optional[dict[str, str]] = None, code: Optional[int] = None) -> int:
        """Write a final state; the secrets go with it."""
        if self.copies is not None:
            self.copies.check()  # else they are another copy's by now
        secrets = self.run_dir / "env"
        comes_back = self.resumable(state) if self.copies is None else (reason or {}).get("kind") == slurm_job.REQUEUED
        if secrets.exists() and not comes_back:
            secrets.unlink()
        self.write(state=state, reason=reason, exit_code=code, finished_at=round(time.time(), 3))
        with contextlib.suppress(OSError):
            (self.run_dir / ".reserve").unlink()
        self.say(f"{state}" + (f": {reason['kind']}: {reason['detail']}" if reason else ""))
        # Slurm starts nothing again because of it, and is the only one who can still be told.
        untold = self.spec.get("backend") == "slurm" and rundir.read_status(self.run_dir)[0].get("state") != state
        return rundir.UNWRITABLE if untold else 0

    def resumable(self, state: str) -> bool:
        """Tell whether this host may start the run again by itself: a shutdown stopped it, not a person."""
        return state == "stopped" and not (self.run_dir / "stop").exists()

    def is_over(self) -> bool:
        """Tell whether there is nothing to do: a reboot is no reason to try again what failed, or what was stopped."""
        before = rundir.read_status(self.run_dir)[0]
        asked_again = self.spec.get("launch") not in (None, before.get("launch"))  # None where run.json is damaged
        ended = before.get("state") in ("finished", "failed") and not asked_again
        return ended or (self.run_dir / "stop").exists()

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self.on_sigterm)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in an attached tmux must not end a training
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for name in ("status.json", rundir.EXPECTED):  # what a supervisor, or its training, was killed over
            for part in self.run_dir.glob(f".{name}.*"):
                part.unlink()
        if self.is_over():
            return 0
        if self.copies is not None:
            self.say(f"{slurm_job.place(os.environ)}, pid {os.getpid()}")
        self.write()
        if "command" not in self.spec:
            detail = "its run.json is empty or damaged, as a power cut leaves files; the same command writes it anew"
            return self.end("failed", {"kind": "environment", "detail": detail})
        try:
            self.kill_leftovers()
            if self.copies is not None:  # the node's GPUs are Slurm's to give, and nobody has looked at them yet
                self.write(state="running")
                fault = self.gate_fault()
                if fault:
                    return self.end("failed", {"kind": "environment", "detail": fault})
            elif not self.take_lane():
                return self.end("stopped", {"kind": "stopped", "detail": "while it waited for its lane"})
            return self.train()
        except slurm_job.Superseded as error:
            self.kill_group()
            self.say(f"ends, as {error}")
            return 0
        except OSError as error:
            if self.trainer is not None:  # with this process it is told to end, and the backend may start another one
                raise
            return self.end("failed", {"kind": "environment", "detail": str(error)})

    def gate_fault(self) -> str:
        """Have each node's GPU compute; return what is wrong with them, empty where nothing is or was asked."""
        command = slurm_job.check_command(self.run_dir, self.spec)
        if not command:
            return ""
        try:
            code, said = self.ask(command, GATE_WITHIN)
        except OSError as error:
            return f"{os.uname().nodename}: {command[0]} cannot be started: {error.strerror}"
        if code == 0 or self.stop_wanted:
            return ""
        return slurm_job.faults(said) or f"no answer of its nodes within {GATE_WITHIN:g} s"

    def ask(self, command: list[str], seconds: float) -> tuple[int, str]:
        """Run a command with a pulse; return its exit status, negative for a signal, and the end of what it said.

        Args:
            command: Its words.
            seconds: After which it is killed.

        Raises:
            OSError: It cannot be started.
        """
        until = time.monotonic() + seconds
        with tempfile.TemporaryFile() as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=self.environment(),
                start_new_session=True,
            )  # fmt: skip
            while process.poll() is None and time.monotonic() < until and not self.stop_wanted:
                time.sleep(TICK)
                if time.monotonic() - self.beat > HEARTBEAT:
                    self.write()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            out.seek(max(0, out.seek(0, os.SEEK_END) - TAIL))
            return code, out.read().decode("utf-8", "replace").strip()

    def lost_nodes(self) -> Optional[str]:
        """Say which of several nodes answer no more, in Slurm's words; empty where all do, None for one node.

        Those that answer have ended what the last start left there.
        """
        if self.spec.get("nodes", 1) == 1 or self.copies is None:
            return None
        code, said = self.ask(slurm_job.end_earlier(self.run_dir, self.spec), NODES_WITHIN)
        return "" if code == 0 or self.stop_wanted else said[-500:] or "no answer"

    def train(self) -> int:
        """Start the training, again and again as long as that brings it further, until there is a final state."""
        reason = {"kind": "crashed", "detail": "nobody saw its end: its supervisor died with it, or the host"}
        code: Optional[int] = None
        while True:
            self.kill_leftovers()  # of the last start: what left the trainer's process group
            self.set_aside()
            self.drop_half_prepared()
            resumed_from = self.reached()
            if resumed_from > self.status["highest"]:
                self.status.update(vain=0, highest=resumed_from)
            vain, highest = self.status["vain"], self.status["highest"]
            if vain > len(PAUSES):
                self.take_back()
                detail = (
                    f"{vain} starts in a row came to no checkpoint after step {highest}; the last one: "
                    f"{reason['detail'][:1500]}. train.log has the ends of all; the same command tries again"
                )
                return self.end("failed", {**reason, "detail": detail}, code)
            if vain and not self.rest(PAUSES[vain - 1]):
                return self.stopped(code)
            log = self.run_dir / "train.log"
            log_from = log.stat().st_size if log.exists() else 0
            _, events_from = rundir.read_events(self.run_dir / "metrics.jsonl")
            try:
                launcher = slurm_job.on_nodes(self.spec, f"--wait={slurm_job.ALL_END_WITHIN}")
                self.start_trainer([*launcher, *self.spec["command"]], self.environment())
            except OSError as error:
                return self.end("failed", {"kind": "environment", "detail": f"{self.spec['command'][0]}: {error}"})
            assert self.trainer is not None
            now, self.moved, self.since = round(time.time(), 3), time.monotonic(), rundir.uptime()
            self.write(
                state="running",
                trainer=rundir.identity(self.trainer.pid),
                starts=self.status["starts"] + 1,
                started_at=now,
                first_started_at=self.status["first_started_at"] or now,
                resumed_from=resumed_from,
                vain=vain + 1,  # until it brings something: this process, or the host, may die of it
            )
            self.say(f"trainer started, pid {self.trainer.pid}, from {self.place()}")
            code = self.follow_trainer(events_from)
            reached = self.reached()
            began = self.began_at(events_from)
            resumed_from = resumed_from if began is None else began  # a gang may have gone back to an earlier one
            self.status["resumed_from"] = resumed_from
            if self.was_answering(events_from):  # the adapter is saved; answers that are missing can be given later
                if code:
                    self.say(f"it ended while it answered cases, with exit code {code}")
                self.kill_leftovers()
                return self.ended_well(0, events_from)
            if code == 0 and (self.is_done(events_from) or not self.stop_wanted):  # a stop that comes too late is none
                return self.ended_well(code, events_from)
            if self.stop_wanted:
                return self.stopped(code)
            reason = self.reason(code, log_from)
            lost = self.lost_nodes()
            if self.stop_wanted or (lost is not None and slurm_job.is_ending()):
                return self.stopped(code)
            if lost:
                return self.interrupted(code, f", as a node of it does not answer ({lost})")
            helps = reached > resumed_from or reason["kind"] == "closed meeting"
            if not (helps or self.doubt(resumed_from, reason["kind"], events_from)):
                self.take_back()
                return self.end("failed", reason, code)  # a configuration that Axolotl refuses never makes progress
            self.say(f"{reason['kind']}: {reason['detail']}; resuming from {self.place()}")

    def rest(self, seconds: float) -> bool:
        """Wait, with a pulse; False when a stop is wanted."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.stop_wanted:
            time.sleep(TICK)
            if time.monotonic() - self.beat > HEARTBEAT:
                self.write()
        return not self.stop_wanted

    def stopped(self, code: Optional[int]) -> int:
        """End a run that was told to stop: by a person, who wants no further start, or by a shutdown."""
        self.kill_leftovers()  # torchrun's processes are no group of its own
        if self.copies is not None and not (self.run_dir / "stop").exists():
            return self.interrupted(code)
        self.status["vain"] = max(0, self.status["vain"] - 1)  # nothing speaks against the last start
        by = "on request" if (self.run_dir / "stop").exists() else "by SIGTERM (a shutdown?)"
        detail = f"{by}; {self.place()}" if self.spec.get("evaluates") else f"{by}; checkpoint at {self.place()}"
        return self.end("stopped", {"kind": "stopped", "detail": detail}, code)

    def interrupted(self, code: Optional[int], cause: str = "") -> int:
        """End a job that Slurm has told to: at the end of its time, for a preemption or a reboot. It comes back.

        Not where somebody has cancelled it: that is a wish, like any other stop. Nor at a second end in a row that
        brought no checkpoint: the queue would be asked for the same again.

        Args:
            code: The exit code of its training.
            cause: Why it ends, where Slurm has not told it to.
        """
        reached = rundir.last_complete(self.output)
        where = f"checkpoint at step {reached}"
        if self.copies is not None and self.copies.asked:
            self.status["vain"] = max(0, self.status["vain"] - 1)
            detail = f"by Slurm, which has started it again elsewhere; {where}"
            return self.end("stopped", {"kind": slurm_job.REQUEUED, "detail": detail}, code)
        meant = slurm_job.own_fate()
        if meant == "cancelled":
            self.status["vain"] = max(0, self.status["vain"] - 1)
            return self.end("stopped", {"kind": "stopped", "detail": f"its job was cancelled; {where}"}, code)
        if reached > self.status["highest"]:
            self.status.update(vain=0, highest=reached)
        if self.status["vain"] >= slurm_job.IN_VAIN:
            detail = (
                f"Slurm has ended its job {self.status['vain']} times before it came to a checkpoint after step "
                f"{reached}{cause}. Give it more time (run_slurm: time), or have it save more often (saves_per_epoch); "
                "the same command tries again"
            )
            return self.end("failed", {"kind": "time", "detail": detail}, code)
        # First: from the moment of the requeue another job may begin.
        detail = f"by Slurm, which starts it again{cause}; {where}"
        self.end("stopped", {"kind": slurm_job.REQUEUED, "detail": detail}, code)
        refused = "" if meant else slurm_job.requeue()
        if refused:
            detail = f"by Slurm, which does not take it back ({refused}){cause}; {where}"
            return self.end("stopped", {"kind": "stopped", "detail": detail}, code)
        return 0

    def ended_well(self, code: int, events_from: int) -> int:
        """Exit code 0 is believed only with the planned steps, or a reason for fewer, told by this very start."""
        last = self.its_end(events_from)
        if last is None:
            return self.end("failed", {"kind": "crashed", "detail": "exit code 0, but the training never ended"}, code)
        if not self.is_done(events_from):
            detail = f"at step {last['step']} of {last['planned']}, by somebody else's signal"
            return self.end("stopped", {"kind": "interrupted", "detail": detail}, code)
        events, _ = rundir.read_events(self.run_dir / "metrics.jsonl", events_from)
        loss = next((event["loss"] for event in reversed(events) if event.get("event") == "log"), None)
        if isinstance(loss, str):  # the plugin writes NaN and infinity as text
            return self.end("failed", {"kind": "diverged", "detail": f"the last loss is {loss}"}, code)
        # First of all: what comes after it may take the host down.
        made = self.run_dir if self.spec.get("evaluates") else self.output
        rundir.to_disk(*(path for path in made.iterdir() if path.is_file()), made)
        self.answer_cases()
        return self.end("finished", None, code)


def main() -> int:
    run_dir = pathlib.Path(sys.argv[1]).resolve()
    os.umask(0o077)  # what a training writes is its user's alone
    path = run_dir / "supervisor.lock"
    try:
        lock = path.open("a")  # closed at exec: the trainer does not hold it
        if slurm_job.in_slurm(run_dir):
            with lock:
                if Supervisor(run_dir).is_over():
                    return 0
                signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(slurm_job.leave()))
                copies = slurm_job.take_over(run_dir, lock, HEARTBEAT)
                if copies is None:
                    print("another copy of this run does not end", flush=True)
                    return slurm_job.leave()
                with contextlib.suppress(slurm_job.Superseded):
                    return Supervisor(run_dir, copies).run()  # read anew: the other copy may have got further
                return 0
        if not rundir.flock(lock):
            raise OSError(errno.ENOSYS, rundir.NO_LOCKS)
    except BlockingIOError:
        return 0  # another supervisor has this run
    except OSError as error:  # nobody can have it
        detail = f"the run's lock cannot be taken: {error.strerror}: {path}"
        supervisor = Supervisor(run_dir)
        return 0 if supervisor.is_over() else supervisor.end("failed", {"kind": "environment", "detail": detail})
    with lock:
        return Supervisor(run_dir).run()


if __name__ == "__main__":
    raise SystemExit(main())
