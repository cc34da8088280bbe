"""The files of a run directory."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
import time
import types

import pytest
import rundir
from ansible.module_utils.lora_forge.errors import error_message


def test_json_is_replaced_whole_with_its_mode(tmp_path):
    path = tmp_path / "a.json"
    rundir.write_json(path, {"a": 1})
    rundir.write_json(path, {"b": 2}, mode=0o600)
    assert rundir.read_json(path) == {"b": 2}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    rundir.write_json(path, {"a": 1})

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        rundir.write_json(path, {"a": 2})
    assert rundir.read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.fixture(params=["file", "folder", "file without locks", "folder without locks"])
def lock(request, tmp_path):
    """Name what is locked: a file that is not there yet, or a folder; with locks, and without."""
    if "without" in request.param:
        request.getfixturevalue("without_locks")
    return tmp_path / "lock" if "file" in request.param else tmp_path


@pytest.fixture
def without_locks(monkeypatch):
    """Have files answer as on Lustre that was mounted without locks, for this process and those that PYTHON starts."""

    def flock(handle, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setenv("ANSWER", str(errno.ENOSYS))


# A process of its own that locks what it is given; the answer of the file system comes by the environment.
PROCESS = """
import fcntl, os, pathlib, sys
sys.path.insert(0, sys.argv[1])
import rundir
def flock(handle, operation):
    raise OSError(int(os.environ["ANSWER"]), "")
if "ANSWER" in os.environ:
    fcntl.flock = flock
with rundir.locked(pathlib.Path(sys.argv[2]), 0):
    print("holds it", flush=True)
    sys.stdin.read()
"""


def process(lock):
    """Start a process that locks something, and holds it until its standard input ends."""
    command = [sys.executable, "-c", PROCESS, os.path.dirname(rundir.__file__), lock]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_lock_has_one_holder_and_is_free_again_however_its_block_ends(lock):
    with contextlib.suppress(ZeroDivisionError), rundir.locked(lock):
        began = time.monotonic()
        for timeout in (0, 0.1):
            with pytest.raises(BlockingIOError), rundir.locked(lock, timeout):
                raise AssertionError("two holders")
        assert time.monotonic() - began >= 0.1
        raise ZeroDivisionError
    with rundir.locked(lock, timeout=0):
        assert lock.exists()


def test_a_lock_binds_other_processes_and_goes_with_its_holder(lock):
    with rundir.locked(lock), process(lock) as other:
        said = other.communicate()
    assert said[0] == ""
    assert said[1].splitlines()[-1].startswith("BlockingIOError")
    assert str(lock) in said[1].splitlines()[-1]
    with process(lock) as other:
        assert other.stdout.readline() == "holds it\n"
        with pytest.raises(BlockingIOError), rundir.locked(lock, 0):
            raise AssertionError("two holders")
        other.kill()
    with rundir.locked(lock, 0):
        pass
    assert os.listdir(lock.parent if lock.name == "lock" else lock) == ["lock"] * (lock.name == "lock")


def test_who_waits_for_a_lock_gets_it(lock, monkeypatch):
    first = rundir.locked(lock)
    first.__enter__()
    monkeypatch.setattr(rundir.time, "sleep", lambda seconds: first.__exit__(None, None, None))
    with rundir.locked(lock, timeout=60):
        pass


@pytest.mark.parametrize(
    ("holder", "goes"),
    [
        ("here boot-1 1", True),  # killed
        ("here boot-0 1", True),  # its machine has rebooted since
        ("here boot-1 2", False),  # another container of that name
        ("login2 boot-1 1", False),
        ("login2 boot-0 1", False),
        ("\x1b[31mlogin2", False),
        ("x", False),
    ],
)
def test_where_there_are_no_locks_no_other_machine_takes_what_one_holds(
    tmp_path, monkeypatch, without_locks, holder, goes
):
    monkeypatch.setattr(rundir, "boot_id", lambda: "boot-1")
    monkeypatch.setattr(rundir.os, "uname", lambda: types.SimpleNamespace(nodename="here"))
    network = str(os.stat("/proc/self/ns/net").st_ino)
    mark = tmp_path / "lock.holder"
    mark.symlink_to(" ".join([*holder.split()[:2], *(network for one in holder.split()[2:] if one == "1")]))
    if goes:
        with rundir.locked(tmp_path / "lock", 0):
            assert os.readlink(mark) == f"here boot-1 {network}"
        assert os.listdir(tmp_path) == ["lock"]
        return
    with (
        pytest.raises(OSError, match="has it, and its file system has no locks") as told,
        rundir.locked(tmp_path / "lock", 0),
    ):
        raise AssertionError("two holders")
    assert told.value.errno == errno.EBUSY  # no other process of this machine's, which would come to an end
    assert f"delete {mark} (" in error_message(told.value)
    assert "\x1b" not in str(told.value)
    mark.unlink()
    with rundir.locked(tmp_path / "lock", 0):
        pass


def test_where_there_are_no_locks_nobody_is_waited_for_without_end(tmp_path, monkeypatch, without_locks):
    monkeypatch.setattr(rundir, "_HELD", 0.0)
    with (
        rundir.locked(tmp_path / "lock"),
        pytest.raises(OSError, match=r"another process of this machine has it: '.*/lock'"),
        rundir.locked(tmp_path / "lock"),
    ):
        raise AssertionError("two holders")


def test_a_lock_file_keeps_what_it_holds(tmp_path):
    (tmp_path / "history").write_text("one\n")
    with rundir.locked(tmp_path / "history"):
        assert (tmp_path / "history").read_text() == "one\n"


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "\udcff"])
def test_unreadable_json_is_an_empty_object(tmp_path, text):
    if text is not None:
        (tmp_path / "a.json").write_text(text, errors="surrogateescape")
    assert rundir.read_json(tmp_path / "a.json") == {}


@pytest.mark.parametrize("noted", [None, {}, "1", {"pid": 1, "start": None}])
def test_nothing_noted_is_not_alive(noted):
    assert not rundir.is_alive(noted)


def test_events_are_read_from_an_offset_and_whole_lines_only(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert rundir.read_events(path) == ([], 0)
    rundir.append_event(path, "log", step=1, planned=2, loss=1.0)
    first, offset = rundir.read_events(path)
    assert (first[0]["event"], first[0]["step"], offset) == ("log", 1, path.stat().st_size)
    with path.open("a") as file:
        file.write('{"event": "lo')
    assert rundir.read_events(path, offset) == ([], offset)


def test_a_line_cut_by_a_crash_takes_no_other_event_with_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rundir.append_event(path, "log", step=1, planned=2, loss=1.0)
    with path.open("a") as file:
        file.write('{"event": "lo')
    rundir.append_event(path, "begin", step=0, planned=2)
    assert [event["event"] for event in rundir.read_events(path)[0]] == ["log", "begin"]


LOG = '{"event": "log", "time": 1, "planned": 2, "loss": 1, "step": %s}'


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000, '{"a":' * 100_000, "7", "[]", "{}", "\0", "9" * 10_000, '{"event": 1, "time": 1}',
        '{"event": "log"}', '{"event": "stop", "step": 1}', '{"event": "save", "time": "now"}', LOG % '"1"', LOG % "-1",
        LOG % "true", LOG % "1.5", LOG % "null", LOG % '1, "planned": null', LOG % '1, "planned": "many"',
        LOG % '1, "loss": {}', LOG % ('1, "loss": 1' + "0" * 400), '{"event": "begin", "time": 1}',
        '{"event": "log", "time": 1, "step": 1}', '{"event": "log", "time": 1, "step": 1, "planned": 2}',
        '{"event": "eval", "time": 1, "step": 1, "planned": 2}', '{"event": "data", "time": 1}',
        '{"event": "data", "time": 1, "examples": [], "tokens": 1}',
        '{"event": "data", "time": 1, "examples": "x", "tokens": 1}',
        '{"event": "data", "time": 1, "examples": 1, "tokens": null}',
        '{"event": "data", "time": 1, "examples": 1, "tokens": 1, "longer": null}',
        '{"event": "wandb", "time": 1, "url": {}}', '{"event": "wandb", "time": 1, "url": "\\ud800"}',
    ],
)  # fmt: skip
def test_a_line_that_is_no_event_is_passed_over(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    rundir.append_event(path, "begin", step=0, planned=4)
    with path.open("a") as file:
        file.write(f"{line}\n")
    rundir.append_event(path, "log", step=1, planned=4, loss="nan")
    found, offset = rundir.read_events(path)
    assert [event["event"] for event in found] == ["begin", "log"]
    assert offset == path.stat().st_size
    assert rundir.surviving_events(found) == found


def test_what_is_too_large_is_not_read_into_memory(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}' + " " * 100)
    assert rundir.read_json(path, 108) == {"a": 1}
    assert rundir.read_json(path, 107) == {}
    path.write_text('{"a": ' + "[" * 100_000)
    assert rundir.read_json(path) == {}
    rundir.append_event(tmp_path / "m", "log", step=1, planned=2, loss=1.0)
    size = (tmp_path / "m").stat().st_size
    rundir.append_event(tmp_path / "m", "log", step=2, planned=2, loss=1.0)
    monkeypatch.setattr(rundir, "LARGEST_LOG", size + 1)
    assert rundir.read_events(tmp_path / "m")[1] == size
    assert len(rundir.read_events(tmp_path / "m", size)[0]) == 1


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/../../x"])
def test_a_checkpoint_has_no_files_elsewhere(tmp_path, name):
    path = checkpoint(tmp_path, 4)
    rundir.write_json(path / rundir.COMPLETE, {"step": 4, "files": {name: 1}})
    assert rundir.defect(path) == f"its complete.json names {name!r}, which is not in it"
    assert rundir.last_complete(tmp_path) == 0


def test_what_came_after_the_resumed_checkpoint_is_taken_back():
    history = [("data", None), ("begin", 0), ("log", 1), ("log", 2), ("log", 3), ("begin", 2), ("log", 3)]
    events = [{"event": kind} if step is None else {"event": kind, "step": step} for kind, step in history]
    kept = [(event["event"], event.get("step")) for event in rundir.surviving_events(events)]
    assert kept == [("data", None), ("begin", 0), ("log", 1), ("log", 2), ("begin", 2), ("log", 3)]


def checkpoint(output, step):
    path = output / f"checkpoint-{step}"
    (path / "sub").mkdir(parents=True)
    (path / "a.bin").write_bytes(b"12345")
    (path / "sub" / "b.bin").write_bytes(b"1")
    rundir.mark_complete(path, step)
    return path


def test_checkpoints_are_sorted_by_number_and_other_names_ignored(tmp_path):
    for step in (10, 9, 100):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-7").write_text("a file")
    (tmp_path / "incomplete-checkpoint-200-1-1").mkdir()
    assert [step for step, _ in rundir.checkpoints(tmp_path)] == [9, 10, 100]
    assert list(rundir.checkpoints(tmp_path / "none")) == []


def test_the_defect_of_a_checkpoint_is_told_in_words(tmp_path):
    path = checkpoint(tmp_path, 4)
    assert rundir.defect(path) is None
    (path / "a.bin").write_bytes(b"123")
    assert rundir.defect(path) == "a.bin has 3 bytes instead of 5"
    (path / "a.bin").write_bytes(b"12345")
    (path / "sub" / "b.bin").unlink()
    assert rundir.defect(path) == "sub/b.bin is missing"
    (path / rundir.COMPLETE).unlink()
    assert rundir.defect(path) == "no complete.json: its writing was cut off"


def test_a_checkpoint_is_called_whole_when_all_of_it_is_on_the_disk(tmp_path, monkeypatch):
    """What is not may be NULs of the right size after a power cut."""
    path = tmp_path / "checkpoint-4"
    (path / "sub").mkdir(parents=True)
    for name in ("a.bin", "sub/b.bin"):
        (path / name).write_bytes(b"12345")
    synced: list[tuple[str, bool]] = []

    def fsync(handle):
        name = os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), tmp_path)
        synced.append((name, (path / rundir.COMPLETE).exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    rundir.mark_complete(path, 4)
    before = {name for name, complete in synced if not complete}
    assert before >= {"checkpoint-4/a.bin", "checkpoint-4/sub/b.bin", "checkpoint-4/sub", "checkpoint-4"}
    assert [name for name, complete in synced if complete] == ["checkpoint-4", "."]


@pytest.mark.parametrize(("number", "raises"), [(errno.EINVAL, False), (errno.ENOSPC, True), (errno.EIO, True)])
def test_a_file_system_that_cannot_be_asked_is_no_error(tmp_path, monkeypatch, number, raises):
    def fsync(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=os.strerror(number)) if raises else contextlib.nullcontext():
        rundir.to_disk(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_lock_that_cannot_be_taken_is_told_with_its_path(tmp_path, monkeypatch, number):
    def flock(handle, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    for timeout in (0, None):
        with pytest.raises(OSError, match=os.strerror(number)) as told, rundir.locked(tmp_path / "lock", timeout):
            pass
        assert error_message(told.value) == (
            f"{os.strerror(number)}: its file system has no locks (flock); whoever runs it can mount it with them "
            f"(Lustre: -o flock) ({tmp_path}/lock)."
        )


def test_the_newest_whole_checkpoint_counts(tmp_path):
    assert rundir.last_complete(tmp_path) == 0
    checkpoint(tmp_path, 2)
    (checkpoint(tmp_path, 4) / "a.bin").unlink()
    assert rundir.last_complete(tmp_path) == 2


def test_many_starts_are_sorted_out_in_no_time():
    """Another host may have noted what was brought from it."""
    events = [{"event": "begin", "step": 5}, {"event": "log", "step": 5}] * 50_000
    began = time.monotonic()
    assert rundir.surviving_events(events) == events
    assert rundir.surviving_events([*events, {"event": "begin", "step": 4}]) == [{"event": "begin", "step": 4}]
    assert time.monotonic() - began < 5


def test_of_very_many_records_a_part_is_read_and_then_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir, "MOST_RECORDS", 2)
    for step in range(3):
        rundir.append_event(tmp_path / "m", "log", step=step, planned=2, loss=1.0)
    first, offset = rundir.read_events(tmp_path / "m")
    rest, end = rundir.read_events(tmp_path / "m", offset)
    assert [event["step"] for event in (*first, *rest)] == [0, 1, 2]
    assert len(first) == 2
    assert end == (tmp_path / "m").stat().st_size
