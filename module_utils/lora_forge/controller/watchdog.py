"""A limit on one call to a host: how long it takes, and how much memory what it prints takes here.

Nobody knows where such a call hangs: in Ansible's own code, which waits for ssh or for a local program, or in a loop
that reads what never ends. So a thread watches. When it is enough it ends the programs that the call has started,
and then the call itself, by a signal to the main thread.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.controller.pulse import Pulse

GROWTH = 768 * 1024 * 1024  # bytes; an answer of the greatest size takes half of that on its way
_TICK = 0.5  # seconds between two looks, of each host that is asked
_SLACK = 0.1  # seconds by which the beginning of a process may be told too early
_ROUNDS = 100  # looks for programs, at most; what starts others all the time would be looked for without an end
_GRACE = 2.0  # seconds for a call to end by itself once its programs are gone
_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, of getrusage's memory


class _Enough(BaseException):
    """Ends the call; no error, so that whoever would try again after one does not."""


class Watchdog:
    """A context that ends what it surrounds when it takes too long, or too much.

    Args:
        seconds: How long it may take.
        pulse: Asks the host meanwhile whether it is there; None where there is no such way.

    Attributes:
        bark: Why it was ended, with a place for C(what); empty where it was not.
    """

    def __init__(self, seconds: float, pulse: Optional[Pulse] = None):
        self.bark = ""
        self._seconds, self._pulse = seconds, pulse
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._before: Any = None

    def __enter__(self) -> Watchdog:
        self._from = _now()
        # The task's own time limit, which Ansible has, uses the same signal; what is not ours is passed on.
        self._before = signal.signal(signal.SIGALRM, self._ring)
        self._thread = threading.Thread(target=self._watch, args=(time.monotonic(), _memory()), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> bool:
        try:
            with self._lock:
                self._over.set()
        except _Enough:  # it came in this very moment
            self._over.set()
        if self._pulse is not None:
            self._pulse.end()
        signal.signal(signal.SIGALRM, self._before)
        if self.bark:
            self._thread.join()
        return isinstance(error, _Enough) or bool(self.bark and isinstance(error, Exception))

    def _ring(self, number: int, frame: Optional[FrameType]) -> None:
        if self.bark and not self._over.is_set():
            raise _Enough
        if callable(self._before):
            self._before(number, frame)

    def _watch(self, began: float, memory: int) -> None:
        while not self._over.wait(_TICK):
            now = time.monotonic()
            gone = False
            if self._pulse is not None:
                with contextlib.suppress(Exception):  # whatever becomes of asking and telling, the limits hold
                    gone = self._pulse.look(now)
            if now - began > self._seconds:
                self.bark = f"did not answer {{what}} within {self._seconds:g} s"
            elif gone and self._pulse is not None:
                self.bark = f"did not answer at all for {self._pulse.longest:g} s, in the midst of {{what}}"
            elif _memory() - memory > GROWTH:
                self.bark = "did not stop printing, in answer to {what}"
            else:
                continue
            break
        else:
            return
        self._end_programs()
        while not self._over.wait(_GRACE):  # again and again, as the call may go on where it was interrupted
            with self._lock:
                if not self._over.is_set():
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
            self._end_programs()

    def _end_programs(self) -> None:
        """End the programs that the call has started. What made a session of its own is meant to outlive it."""
        import psutil  # here, as this is rare

        session = os.getsid(0)
        held: dict[int, psutil.Process] = {}
        for _ in range(_ROUNDS):  # what is stopped starts nothing more; whoever dies first hides what it has started
            found = False
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(OSError, psutil.Error):
                    ours = _started(child) >= self._from - _SLACK and os.getsid(child.pid) == session
                    if ours and child.pid not in held:
                        child.suspend()
                        held[child.pid] = child
                        found = True
            if not found:
                break
        for child in held.values():
            with contextlib.suppress(psutil.Error):
                child.kill()


def _now() -> float:
    """Return the time on the clock of :func:`_started`, in seconds."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.time()


def _started(process: Any) -> float:
    """Return when a process started, in seconds: since boot on Linux, where psutil's time may be early by a second.

    Args:
        process: A ``psutil.Process``.
    """
    if sys.platform == "linux":
        return (rundir.process_start(process.pid) or 0) / os.sysconf("SC_CLK_TCK")  # nothing to end where there is none
    return float(process.create_time())


def _memory() -> int:
    """Return the bytes of memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT
