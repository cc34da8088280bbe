"""A call that hangs, or prints without an end, is ended with the programs that it has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import types

import pytest
from ansible.module_utils.lora_forge.controller import watchdog
from ansible.module_utils.lora_forge.controller.watchdog import Watchdog
from lab import alive, eventually


def test_what_ends_in_time_is_left_alone():
    with Watchdog(60) as dog:
        done = subprocess.run(["echo", "x"], capture_output=True, check=True)
    assert (dog.bark, done.stdout) == ("", b"x\n")


def test_an_error_within_the_time_is_the_calls_own():
    with pytest.raises(ValueError, match="mine"), Watchdog(60):
        raise ValueError("mine")


@pytest.fixture
def late(monkeypatch):
    """Let a watchdog's time be over as soon as a file has a line, however slow the machine is."""

    def when(file):
        def monotonic():
            return 1e9 if file.exists() and file.read_text().endswith("\n") else 0.0

        monkeypatch.setattr(watchdog, "time", types.SimpleNamespace(**{**vars(time), "monotonic": monotonic}))

    return when


def test_a_program_that_hangs_is_ended_with_what_it_started(tmp_path, late):
    pid = tmp_path / "pid"
    late(pid)
    with Watchdog(0.3) as dog:
        subprocess.run(["sh", "-c", f"sleep 600 & echo $! >{pid}; wait"], capture_output=True, timeout=300)
    assert dog.bark.format(what="x") == "did not answer x within 0.3 s"
    eventually(lambda: not alive(int(pid.read_text())))


def test_what_starts_others_all_the_time_is_ended_with_all_of_them(tmp_path, late):
    pids = tmp_path / "pids"
    late(pids)
    loop = f"while :; do sleep 600 & echo $! >>{pids}; sleep 0.02; done"
    with Watchdog(0.3) as dog:
        subprocess.run(["sh", "-c", loop], capture_output=True, timeout=300)
    assert dog.bark
    assert eventually(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))


def test_a_program_that_is_stopped_is_ended(tmp_path):
    with Watchdog(0.3) as dog:
        subprocess.run(["sh", "-c", "kill -STOP $$"], capture_output=True)
    assert dog.bark


def test_what_has_a_session_of_its_own_outlives_it_and_so_does_what_was_there_before(tmp_path, late):
    pid = tmp_path / "pid"
    before = subprocess.Popen(["sleep", "600"])
    time.sleep(0.3)  # longer ago than the clock of processes is coarse
    try:
        late(pid)
        with Watchdog(0.3) as dog:
            subprocess.Popen(["setsid", "sh", "-c", f"echo $$ >{pid}; exec sleep 600"])
            time.sleep(600)
        assert dog.bark
        assert before.poll() is None
        assert alive(int(pid.read_text()))
    finally:
        before.kill()
        before.wait()
        os.kill(int(pid.read_text()), signal.SIGKILL)


def test_a_wait_for_nothing_is_ended_by_a_signal(monkeypatch):
    monkeypatch.setattr(watchdog, "_GRACE", 0.1)
    before = signal.getsignal(signal.SIGALRM)
    with Watchdog(0.2) as dog:
        time.sleep(600)
    assert dog.bark
    assert signal.getsignal(signal.SIGALRM) is before


def test_the_time_limit_of_the_task_holds_inside(monkeypatch):
    """Ansible's own, for the option timeout of a task, is an alarm, too."""

    def ring(number, frame):
        raise TimeoutError("the task's own")

    def call():
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        time.sleep(300)

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with pytest.raises(TimeoutError, match="the task's own"), Watchdog(600):
            call()
        assert signal.getsignal(signal.SIGALRM) is ring
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_what_prints_without_an_end_is_ended_before_memory_is(monkeypatch):
    monkeypatch.setattr(watchdog, "GROWTH", 64 * 1024 * 1024)
    with Watchdog(600) as dog:
        subprocess.run([sys.executable, "-c", "while True: print('x' * 10**5)"], capture_output=True)
    assert dog.bark.format(what="x") == "did not stop printing, in answer to x"


def test_a_call_that_goes_on_after_the_signal_is_ended_all_the_same(monkeypatch):
    monkeypatch.setattr(watchdog, "_GRACE", 0.1)
    caught = 0
    with Watchdog(0.2) as dog:
        while caught < 3:
            try:
                time.sleep(600)
            except BaseException:
                caught += 1
    assert dog.bark
    assert caught == 3
