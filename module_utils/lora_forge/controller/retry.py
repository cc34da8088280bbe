"""Ride out a lost connection."""

from __future__ import annotations

import time
from typing import Callable, Optional, TypeVar

from ansible.module_utils.lora_forge.controller.ssh_words import reason
from ansible.module_utils.lora_forge.text import duration

Answer = TypeVar("Answer")


def retry_until_connected(
    ask: Callable[[], Answer], lost: type[Exception], timeout: float, tell: Callable[[str], None]
) -> Answer:
    """Ask until there is an answer, or the connection has been away for too long.

    Args:
        ask: One question to a host.
        lost: The error that means that the host cannot be reached.
        timeout: Seconds without an answer after which that error is raised; the host is asked twice at least, unless
            they are negative.
        tell: Called with a few words about every attempt that failed.
    """
    since: Optional[float] = None
    while True:
        asked = time.monotonic()
        try:
            return ask()
        except lost as error:
            again, since = since is not None, asked if since is None else since  # what was waited for in vain counts
            away = time.monotonic() - since
            if away > timeout and (again or timeout < 0):
                raise
            tell(f"no connection for {duration(away)}; what runs there goes on; trying again ({reason(str(error))})")
            time.sleep(min(30, 2 + away / 4))
