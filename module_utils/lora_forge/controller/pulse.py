"""Whether a host answers at all, while a call to it takes its time.

Packets may vanish, and a host may be frozen with its connections open: nothing ends then, and nothing is said. What a
call itself may take says little, as some take hours. So ssh is asked, beside the call and over the same connection, to
run a command that does nothing. Whatever comes back of that is an answer, a refusal too; but where ssh itself gave up,
nobody says of a silent host that it answers again.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
from typing import Callable, Optional

from ansible.module_utils.lora_forge.text import duration

OF_SSH = 255  # the exit status with which ssh tells its own failure: a refusal, or a connection that it gave up
SHORTEST = 20.0  # seconds of patience, at least: a busy host, or a busy controller, takes some for the smallest thing


class Pulse:
    """Asks a host from time to time whether it is there. Its methods are for the thread of a watchdog, but one.

    Args:
        knock: Starts a program that ends as soon as the host answers anything.
        tell: Called with a few words when the host is silent, and when it answers again.
        patience: Seconds without an answer after which nothing is waited for any more. The host is asked after a
            quarter of that, and called silent after another one; after an answer it is asked again after a third.
        holds: How many times as long it is waited for: an answer comes late behind a transfer.
    """

    def __init__(
        self,
        knock: Callable[[], subprocess.Popen[bytes]],
        tell: Callable[[str], None],
        patience: float,
        holds: float = 1.0,
    ):
        patience = max(patience, SHORTEST)
        self.pause, self.longest = patience / 4, patience * holds
        self._next = self.pause  # after which it is asked; later the second time: a look at a run takes half a patience
        self._asked = 0.0
        self._knock, self._tell = knock, tell
        self._program: Optional[subprocess.Popen[bytes]] = None
        self._heard: Optional[float] = None  # when the host answered last, or the call began
        self._told = self._over = False
        self._lock = threading.Lock()

    @property
    def silent(self) -> bool:
        """Whether the host has been called silent, and has not answered since."""
        return self._told

    def look(self, now: float) -> bool:
        """Ask the host where it is time, and see what came of it; return whether it has been silent for too long.

        Args:
            now: The time, in seconds.
        """
        with self._lock:
            if self._over:
                return False
            if self._heard is None:
                self._heard = now
            since = now - self._heard
            if self._program is None:
                if since >= self._next:
                    try:
                        self._program, self._asked = self._knock(), now
                    except OSError:  # no process can be started: the call's own limit is left
                        self._heard = now
                return False
            code = self._program.poll()
            if code is not None:
                self._program, self._heard, self._next = None, now, self.pause * 4 / 3
                if self._told and code != OF_SSH:
                    self._told = False
                    self._tell("it answers again")
                return False
            # A controller that was busy may have asked late.
            late = now - self._asked - self.pause
            if since >= 2 * self.pause and late >= -self.pause / 2 and not self._told:
                self._told = True
                until = duration(self.pause + self.longest)
                self._tell(f"no answer for {duration(since)}; it is waited for until {until}")
            return since >= self.pause + self.longest and late >= self.longest - 2 * self.pause

    def end(self) -> None:
        """End it, from any thread: the host is not asked any more."""
        with self._lock:
            self._over = True
            if self._program is not None:
                with contextlib.suppress(OSError):
                    self._program.kill()
                self._program.wait()
                self._program = None
