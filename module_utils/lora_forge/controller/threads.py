"""Threads beside Ansible's own."""

from __future__ import annotations

import signal
import threading
from typing import Callable


def start_beside(work: Callable[..., object], *given: object) -> threading.Thread:
    """Start a thread that gets no signal: Python acts on one in the main thread alone, so that is the one to wake.

    It does not keep the process from ending.

    Args:
        work: What it does.
        given: What that is called with.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread = threading.Thread(target=work, args=given, daemon=True)
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return thread
