"""Threads beside Ansible's own take no signal: the main thread alone acts on one, so that it has to wake."""

from __future__ import annotations

import pathlib
import re
import signal

from ansible.module_utils.lora_forge.controller.threads import start_beside

ROOT = pathlib.Path(__file__).resolve().parents[2]


def blocked() -> set[int]:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, []))


def test_it_gets_no_signal_and_this_thread_gets_all_that_it_got() -> None:
    before, found = blocked(), []
    start_beside(lambda *given: found.append((given, blocked())), "a", "b").join(60)
    ((given, there),) = found
    assert given == ("a", "b")
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM} <= there
    assert blocked() == before


def test_the_threads_of_the_command_itself_are_started_so() -> None:
    for path in (ROOT / "callback_plugins").glob("*.py"):
        assert not re.search(r"\bThread\(", path.read_text()), path
