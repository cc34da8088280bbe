"""The run directory on a trainer: its files, and how they are read and written.

This file is shipped to the trainer beside the supervisor and the Axolotl plugin, and imported by the
modules, so that the contract stands in one place. Standard library only, Python 3.9 or newer.

    axolotl.yml    what Axolotl trains by
    run.json       what the supervisor needs: command, lane, limits
    env            secrets for the trainer process, 0600, deleted when the run is final
    status.json    the supervisor's word, with a heartbeat
    metrics.jsonl  the plugin's word, one JSON object per event
    questions.json what it is asked in the end, or, where a delivered adapter is evaluated, all that it does;
                   answers.jsonl its answers; adapter/ and promoted/ the delivered adapters that answer
    expected.json  the tensors that the adapter will have, made of the base model's config.json before it trains
    train.log      Axolotl's output; supervisor.log the supervisor's own
    stop           present while a stop is wanted
    stopping       the same, from the supervisor to a training of several processes
    output/        Axolotl's output_dir with checkpoint-<step>/
    programs/      what runs: the only folder here that Python imports from, and only the controller fills it
    incoming/      what a command has brought for a start, laid out as this folder: whoever starts the run puts it in
                   its place, and nobody does while the run lives
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import re
import socket
import stat
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, Callable, Optional

SCHEMA_VERSION = 1
MARKER = "LORA_FORGE_RUN_DIR"  # in the environment of every process of a run
COMPLETE = "complete.json"  # written into a checkpoint last: step, and the size of every file
STOPPING = "stopping"
ROOT_MARK = ".lora-forge-root"  # in the root of a trainer that Slurm has: a word that only this folder has
ONE_FOLDER = "LORA_FORGE_ONE_FOLDER"  # in the environment of a training on several nodes: all see one run directory
EXPECTED = "expected.json"
GRADIENTS = "gradients.json"  # beside adapters and checkpoints: which trained tensors no gradient has reached yet
PROGRAMS = "programs"
INCOMING = "incoming"
ANSWERS = "answers.jsonl"
UNWRITABLE = 67  # exit status of a job that cannot write into its run directory, and so cannot say why it ended
FETCH_PULSE = 90.0  # seconds; a fetch says every second that it lives, and NFS may show for a minute what is old
FINAL_STATES = ("finished", "failed", "stopped")
NO_LOCKS = "its file system has no locks (flock); whoever runs it can mount it with them (Lustre: -o flock)"
_HELD = 3600.0  # seconds that a name is waited for at most: anybody can have it, and keep it
_ELSEWHERE = 60.0  # seconds that another machine is waited for where nobody can tell whether the holder lives
LARGEST_JSON = 64 << 20  # bytes; more is not read into memory
LARGEST_LOG = 64 << 20
MOST_RECORDS = 1_000_000  # of a file with one on each line; a small one takes twenty times its size in memory
# What events hold, as the controller takes it (the form ``Event``): the longest texts; figures may be texts, too.
_TEXTS = {"event": 200, "mode": 200, "wanted": 200, "run": 200, "url": 1000, "reason": 4000, "checkpoint": 200}
_FIGURES = {"loss": 40, "eval_loss": 40, "epoch": 40}
_COUNTS = (
    "step", "planned", "adapter", "examples", "tokens", "longer", "dropped", "untrainable", "answered", "asked",
)  # fmt: skip
_NUMBERS = ("time", "uptime", "tokens_per_second")
_GREATEST = 10**12  # of counts and numbers
_STEPS = ("begin", "log", "eval", "end")  # kinds that say where they are
# What whoever reads an event of a kind takes to be there.
_NEEDED = {
    **dict.fromkeys(_STEPS, ("step", "planned")),
    "answers": ("answered", "asked"),
    "log": ("step", "planned", "loss"),
    "eval": ("step", "planned", "eval_loss"),
    "data": ("examples", "tokens"),
}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # of a run, and of an agent
# What status.json and run.json hold that is read of them. An int is the length of the longest text; times and durations
# are floats, and not below 0.
_COUNT = range(_GREATEST + 1)
_PROCESS = {"pid": _COUNT, "start": _COUNT, "boot": 200}
_STATUS: dict[str, Any] = {
    "schema_version": _COUNT, "run_id": NAME, "state": 200, "reason": {"kind": 200, "detail": 4000},
    "supervisor": _PROCESS, "trainer": _PROCESS, "lane": 1000, "launch": 200, "starts": _COUNT,
    "first_started_at": float, "started_at": float, "finished_at": float, "exit_code": range(-255, 256),
    "resumed_from": _COUNT, "heartbeat": float, "idle": float, "seconds": float, "vain": _COUNT, "highest": _COUNT,
}  # fmt: skip
_RUN: dict[str, Any] = {
    "run_id": NAME, "agent": NAME, "evaluates": NAME, "fingerprint": 200, "rehearsal": bool, "backend": 200,
    "hosts": [200], "attach_command": 2000, "look": 2000, "lane": 1000, "turn": _COUNT, "launch": 200,
}  # fmt: skip
# What Slurm's commands say where nobody has answered, or has no time for it now; all else is a refusal. In the order of
# Slurm's slurm_errno.c, then the system's words, sbatch's own, and those of a command that has no configuration.
SLURM_SILENT = re.compile(
    "Unable to contact slurm controller|Communication (connection|shutdown) failure|Message (send|receive) failure|"
    "Unexpected (message received|missing socket error)|Insane message length|Zero Bytes were transmitted|"
    "Header lengths are longer|Rate limit exceeded|standby mode|Unable to create job record|MaxJobCount limit|"
    "Job can not be altered now|Socket timed out|Protocol authentication|[Aa]uthentication credential|[Mm]unge|"
    "Connection (refused|reset|rejected|forced closed|timed out)|Transport endpoint|No route to host|"
    "Network is unreachable|Broken pipe|Resource temporarily unavailable|Temporary failure in name resolution|"
    "temporarily unable to accept|Job creation temporarily disabled|job queue full|gave no answer|could not be run|"
    "Could not establish a configuration source|DNS SRV lookup failed"
)
_CHECKPOINT = re.compile(r"^checkpoint-(\d{1,12})$")


def write_json(path: pathlib.Path, data: Any, mode: int = 0o644) -> None:
    """Write JSON so that a reader, or a power cut, sees the old file or the new one and nothing between.

    Args:
        path: The file to replace.
        data: Anything JSON can hold.
        mode: Permission bits of the new file.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    write_bytes(path, (json.dumps(data, indent=1, sort_keys=True) + "\n").encode(), mode)


def write_bytes(path: pathlib.Path, data: bytes, mode: int = 0o644) -> None:
    """Write any file as :func:`write_json` writes JSON: whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def to_disk(*paths: pathlib.Path) -> None:
    """Have the kernel write files and folders to the disk now: after a power cut a file may be NULs of the right size.

    Args:
        paths: Files, and folders, of which the names of what is in them are written.

    Raises:
        OSError: The disk is full or broken. That a file system cannot be asked, as some network volumes, is no error.
    """
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        finally:
            os.close(handle)


def read_json(path: pathlib.Path, most: int = LARGEST_JSON) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one when the file is missing, cut short or of another form.

    Args:
        path: The file. Another host may have written it.
        most: The most bytes that are read; a larger file is of another form.
    """
    return _read_object(path, most)[0]


def _read_object(path: pathlib.Path, most: int = LARGEST_JSON) -> tuple[dict[str, Any], str]:
    """Read a JSON file as :func:`read_json` does, and say why it cannot be read; empty where it can, or is missing."""
    try:
        with open_regular(path) as file:
            text = file.read(most + 1)
        if len(text) > most:
            return {}, f"has more than {most} bytes"
        data = json.loads(text.decode("utf-8"))
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        return {}, f"cannot be read: {error.strerror}"
    except (ValueError, RecursionError):  # the latter where it is nested without end
        return {}, "is no JSON"
    return (data, "") if isinstance(data, dict) else ({}, "holds no JSON object")


def open_regular(path: pathlib.Path) -> BinaryIO:
    """Open a file for reading that somebody else may have put there; what is no file would never end, or never begin.

    Raises:
        OSError: It is missing or cannot be read, or it is a folder, a pipe or a device.
    """
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "it is no regular file", str(path))


def read_status(run_dir: pathlib.Path) -> tuple[dict[str, Any], str]:
    """Read a run's status.json, and say what is wrong with it in a few words; empty where nothing is.

    Only what a supervisor writes, and of its form, is returned; what is not, or is null, counts as not given.
    """
    return _read_form(run_dir / "status.json", _STATUS, {})


def read_run(run_dir: pathlib.Path) -> tuple[dict[str, Any], str]:
    """Read a run's run.json as :func:`read_status` does its status; keys that only its supervisor reads come along."""
    return _read_form(run_dir / "run.json", _RUN)


def _read_form(path: pathlib.Path, form: Any, others: Optional[dict[str, Any]] = None) -> tuple[dict[str, Any], str]:
    data, flaw = _read_object(path)
    flaws = [flaw] if flaw else []
    held = _hold(form, data, "", flaws)
    rest = {key: value for key, value in data.items() if key not in form} if others is None else others
    return {**rest, **held}, f"{path.name} {flaws[0]}" if flaws else ""


def _hold(form: Any, value: Any, place: str, flaws: list[str]) -> Any:
    """Return what of a value has a form, None for nothing; what is wrong is added to the flaws."""
    if isinstance(form, dict) and isinstance(value, dict):
        found = {key: _hold(form[key], value[key], f"{place}.{key}".lstrip("."), flaws) for key in form if key in value}
        return {key: item for key, item in found.items() if item is not None}
    if isinstance(form, list) and isinstance(value, list) and len(value) <= 1000:
        items = [_hold(form[0], item, place, flaws) for item in value]
        return [item for item in items if item is not None]
    if value is not None and not _has_form(form, value):
        flaws.append(f"has a wrong «{place}»")
        return None
    return value


def _has_form(form: Any, value: Any) -> bool:
    if isinstance(form, range):
        return type(value) is int and value in form
    if form is float:
        return type(value) in (int, float) and 0 <= value <= _GREATEST
    if isinstance(value, str):
        return bool(NAME.fullmatch(value)) if form is NAME else type(form) is int and _is_text(value, form)
    return form is bool and isinstance(value, bool)


def _is_text(value: str, longest: int) -> bool:
    """Tell whether a text is not too long, and one that can be sent: JSON may spell half a letter."""
    return len(value) <= longest and not re.search("[\ud800-\udfff]", value)


@contextlib.contextmanager
def locked(path: pathlib.Path, timeout: Optional[float] = None) -> Iterator[None]:
    """Hold the exclusive lock (flock) of a file or folder: one holder at a time, in this process and in all others.

    It binds those who take it, and keeps nobody from reading or writing. The kernel drops it when the block is left,
    and when the process ends, however it does. A lock file stays where it is: who comes while it is deleted and made
    anew would hold another one. Where a file system has no locks, two names take their place: see :func:`_named`.

    Args:
        path: A folder that is there, or a file, which is made where it is missing.
        timeout: Seconds to wait for another holder; 0 tries once, None waits for as long as it takes, an hour where
            there are no locks.

    Raises:
        BlockingIOError: Somebody else has held it for all that time.
        OSError: The file cannot be opened for writing, its file system does not lock it, or has no locks and another
            machine holds it; with its path.
    """
    with contextlib.ExitStack() as held:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
        held.callback(os.close, handle)
        try:
            if not (flock(handle, wait=True) if timeout is None else _within(timeout, lambda: flock(handle))):
                held.enter_context(_named(path, timeout))
        except OSError as error:  # the kernel's own names no file
            raise OSError(error.errno, error.strerror, str(path)) from None
        yield


def flock(handle: Any, wait: bool = False) -> bool:
    """Lock an open file, until it is closed, for all machines that its file system's locks reach.

    Args:
        handle: The file, or its descriptor.
        wait: Wait for another holder, for as long as it takes.

    Returns:
        Whether the file system has locks. Where it has none, as Lustre mounted without them, nothing is held.

    Raises:
        BlockingIOError: Somebody else holds it.
        OSError: It cannot be locked.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise OSError(error.errno, f"{error.strerror}: {NO_LOCKS}") from None
        if error.errno != errno.ENOSYS:
            raise
        return False
    return True


def _within(seconds: float, attempt: Callable[[], Any]) -> Any:
    """Try again and again until nobody else is in the way; returns what the attempt does."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(min(0.5, seconds))


@contextlib.contextmanager
def _named(path: pathlib.Path, timeout: Optional[float]) -> Iterator[None]:
    """Hold what a file system without locks cannot lock.

    Among the processes of a machine one has the name of a socket, which the kernel frees when it ends. Among machines
    one has a link beside the file, which says which. Who is killed leaves it: its own machine, where the name is free
    then, goes past that, and another one does not, as nobody there can tell.
    """
    mark = path / ".holder" if path.is_dir() else path.with_name(f"{path.name}.holder")
    name = f"\0lora-forge-{hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()}"
    with socket.socket(socket.AF_UNIX) as own:
        _within(_HELD if timeout is None else timeout, lambda: _take_name(own, name))
        try:
            _within(min(_ELSEWHERE, _HELD if timeout is None else timeout), lambda: _take_mark(mark))
        except BlockingIOError as error:
            raise OSError(errno.EBUSY, error.strerror) from None
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)


def _take_name(own: socket.socket, name: str) -> None:
    try:
        own.bind(name)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise BlockingIOError(errno.EAGAIN, "another process of this machine has it") from None


def _take_mark(mark: pathlib.Path) -> None:
    """Make the link that says that this machine has a file; a network of its own makes a container a machine."""
    mine = [os.uname().nodename, boot_id(), str(os.stat("/proc/self/ns/net").st_ino)]
    with contextlib.suppress(FileNotFoundError):
        node, boot, network = [*os.readlink(mark).split(), "", "", ""][:3]
        if node != mine[0] or (boot == mine[1] and network != mine[2]):
            who = node if NAME.fullmatch(node) else "another machine"
            raise BlockingIOError(
                errno.EAGAIN,
                f"{who} has it, and {NO_LOCKS}. Run this there, or when what runs there has ended; where nothing of "
                f"lora-forge runs there any more, delete {mark}",
            )
        mark.unlink()
    try:
        os.symlink(" ".join(mine), mark)
    except FileExistsError:
        raise BlockingIOError(errno.EAGAIN, f"another machine has it, and {NO_LOCKS}") from None


def uptime() -> float:
    """Return the seconds since boot, sleep included: for ages, as the wall clock may be wrong or be set right."""
    # A controller may run where there is no such clock (macOS); trainers are Linux.
    return round(time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)), 3)


def age(path: pathlib.Path) -> Optional[float]:
    """Return the seconds since a file was written, by the clock of the file system that it is on; None without it.

    Another machine may have written it, with a clock of its own: a file beside it is touched, for the time of now.
    """
    mark = path.with_name(".now")
    try:
        mark.touch()
        now = mark.stat().st_mtime
    except OSError:  # a full disk, or another user's: this machine's clock is what is left
        now = time.time()
    try:
        return max(0.0, round(now - path.stat().st_mtime, 3))
    except OSError:
        return None


def process_start(pid: int) -> Optional[int]:
    """Return when a process started, in clock ticks since boot; None when it is not there or only a zombie.

    A pid with its start names a process for good: pids are used again, pairs are not until a reboot.
    """
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def identity(pid: int) -> dict[str, Any]:
    """Return what is noted of a process: pid, start (ticks since boot) and the boot it belongs to."""
    return {"pid": pid, "start": process_start(pid), "boot": boot_id()}


def boot_id() -> str:
    """Return an id that changes with every boot of the machine; empty where the kernel has none."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def is_alive(noted: Any) -> bool:
    """Tell whether the very process that was noted by :func:`identity` is still there."""
    if not isinstance(noted, dict) or not noted.get("start") or type(noted.get("pid")) is not int:
        return False
    return noted.get("boot") == boot_id() and process_start(noted["pid"]) == noted["start"]


def is_fetching(folder: pathlib.Path, status: dict[str, Any]) -> bool:
    """Tell whether a fetch of a base model goes on: here, or on another machine that sees the folder, by its pulse.

    Args:
        folder: Where it keeps its status.
        status: Its status.json.
    """
    process = status.get("process")
    if status.get("state") != "fetching" or not isinstance(process, dict):
        return False
    since = age(folder / "status.json") if process.get("boot") != boot_id() else None
    return is_alive(process) if since is None else since < FETCH_PULSE


def lane_holder(run_dir: pathlib.Path, lane: Any) -> str:
    """Say which other run of a trainer has a lane, or a GPU of it, and since when; empty where none is known to.

    Args:
        run_dir: Of the run that waits for it.
        lane: Its GPUs, separated by commas.
    """
    for folder in sorted(path for path in run_dir.parent.glob("*/") if path.name != run_dir.name):
        status = read_json(folder / "status.json")
        shared = set(str(lane).split(",")) & set(str(status.get("lane")).split(","))
        holds = bool(shared) and status.get("state") in ("running", "stopping")
        if holds and any(is_alive(status.get(name)) for name in ("supervisor", "trainer")):
            since = status.get("started_at")
            known = isinstance(since, (int, float)) and 0 < since < 4e9
            return f"{folder.name} has it" + (
                time.strftime(" since %Y-%m-%d %H:%M UTC", time.gmtime(since)) if known else ""
            )
    return ""


def run_processes(run_dir: pathlib.Path, marker: str = MARKER) -> list[int]:
    """List the pids of all trainer processes of a run, by the marker in their environment; never this one."""
    wanted = f"{marker}={run_dir}".encode()
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if wanted in variables and process_start(int(entry.name)) is not None:
                found.append(int(entry.name))
    return sorted(found)


def writes() -> bool:
    """Tell whether this process of a training writes into the run directory: of each host the first one does.

    Nodes of a cluster see one run directory, and of all their processes the first one writes.
    """
    return os.environ.get("RANK" if ONE_FOLDER in os.environ else "LOCAL_RANK", "0") == "0"


def append_event(path: pathlib.Path, event: str, **values: Any) -> None:
    """Add one event to metrics.jsonl, with the time in seconds since the epoch, and since boot: for durations."""
    append_line(path, {"event": event, "time": round(time.time(), 3), "uptime": uptime(), **values})


def append_line(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Add an object to a file with one on each line.

    A line that a crash cut off is ended first: it must not take this one with it.
    """
    line = json.dumps(record).encode() + b"\n"
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)


def read_lines(
    path: pathlib.Path, offset: int = 0, is_wanted: Optional[Callable[[dict[str, Any]], bool]] = None
) -> tuple[list[dict[str, Any]], int]:
    """Read the objects of a file with one on each line from a byte offset on, and the offset after the last whole line.

    A line that was cut by a crash is passed over. Of a very large file a part is read, and the next call goes on there.

    Args:
        path: The file. Another host may have written it.
        offset: Where to begin.
        is_wanted: Tells which objects are returned; all without it.
    """
    found: list[dict[str, Any]] = []
    after = offset
    try:
        with open_regular(path) as file:
            file.seek(offset)
            while len(found) < MOST_RECORDS:
                line = file.readline(offset + LARGEST_LOG - after)
                if not line.endswith(b"\n"):
                    break
                after += len(line)
                with contextlib.suppress(ValueError, RecursionError):
                    record = json.loads(line)
                    if isinstance(record, dict) and (is_wanted is None or is_wanted(record)):
                        found.append(record)
    except OSError:
        return [], offset
    return found, after


def read_events(path: pathlib.Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Read the events of metrics.jsonl as :func:`read_lines` does.

    What is no event is passed over: a run that was moved brings with it what another host wrote.
    """
    return read_lines(path, offset, _is_event)


def _is_event(record: dict[str, Any]) -> bool:
    """Tell whether a record says what it is and when it was, has what is read of its kind, and nothing else amiss."""
    kind = record.get("event")
    if not isinstance(kind, str) or record.get("time") is None:
        return False
    if any(key in record and record[key] is None for key in _COUNTS if key != "adapter"):
        return False
    return record.keys() >= {*_NEEDED.get(kind, ())} and all(map(_fits, *zip(*record.items())))


def _fits(key: str, value: Any) -> bool:
    """Tell whether an event may hold a value."""
    if value is None:
        return True
    if isinstance(value, str):
        return key not in (*_COUNTS, *_NUMBERS) and _is_text(value, {**_TEXTS, **_FIGURES}.get(key, 4000))
    if isinstance(value, int) and not abs(value) < 1 << 63:
        return False
    if key in _COUNTS:
        return type(value) is int and 0 <= value <= _GREATEST
    if key in _NUMBERS:
        return type(value) in (int, float) and abs(value) <= _GREATEST
    return isinstance(value, (int, float)) and key not in _TEXTS and not (key in _FIGURES and isinstance(value, bool))


def surviving_events(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events that count: those after the checkpoint from which a resume started are dropped."""
    kept: list[dict[str, Any]] = []
    lowest: Optional[int] = None  # step from which a later start went on; another host may have noted many
    for record in reversed(events):
        step = record.get("step", 0)
        if lowest is None or step <= lowest:
            kept.append(record)
        if record.get("event") == "begin":
            lowest = step if lowest is None else min(lowest, step)
    return kept[::-1]


def seconds_between(before: dict[str, Any], event: dict[str, Any]) -> float:
    """Return the seconds from an event to a later one: by the clock since boot, which nobody can set.

    By the time of day, as long as it went forward, where there may be a reboot between them (a start that begins), and
    for events of an earlier lora-forge.
    """
    known = [clock for clock in ("uptime", "time") if None not in (before.get(clock), event.get(clock))]
    clock = "time" if event.get("event") == "begin" else (known or ["time"])[0]
    return max(0.0, event[clock] - before[clock]) if clock in known else 0.0


def checkpoints(output: pathlib.Path) -> Iterator[tuple[int, pathlib.Path]]:
    """Yield every ``checkpoint-<step>`` folder, lowest step first, whole or not."""
    found = []
    if output.is_dir():
        for entry in output.iterdir():
            match = _CHECKPOINT.match(entry.name)
            if match and entry.is_dir():
                found.append((int(match.group(1)), entry))
    yield from sorted(found)


def mark_complete(checkpoint: pathlib.Path, step: int) -> None:
    """Write the list of a checkpoint's files and sizes into it, as the last thing: after a power cut it holds, too."""
    there = sorted(checkpoint.rglob("*"))
    files = {
        str(path.relative_to(checkpoint)): path.stat().st_size
        for path in there
        if path.is_file() and path.name != COMPLETE
    }
    to_disk(*(path for path in there if path.is_file() or path.is_dir()), checkpoint)
    write_json(checkpoint / COMPLETE, {"step": step, "files": files})
    to_disk(checkpoint, checkpoint.parent)


def defect(checkpoint: pathlib.Path, anywhere: bool = False) -> Optional[str]:
    """Say why a checkpoint is not whole; None when it is.

    Args:
        checkpoint: Its folder, with the list of its files.
        anywhere: Whether the list may name files elsewhere, as that of a base model does, which nobody else writes.
    """
    noted = read_json(checkpoint / COMPLETE).get("files")
    if not isinstance(noted, dict) or not noted:
        return f"no {COMPLETE}: its writing was cut off"
    for name, size in noted.items():
        place = pathlib.PurePath(name)
        if not anywhere and (".." in place.parts or place.is_absolute()):
            return f"its {COMPLETE} names {name!r}, which is not in it"
        try:
            found = (checkpoint / name).stat().st_size
        except (OSError, ValueError):
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found} bytes instead of {size}"
    return None


def last_complete(output: pathlib.Path) -> int:
    """Return the step of the newest whole checkpoint; 0 when there is none."""
    return max((step for step, path in checkpoints(output) if defect(path) is None), default=0)
