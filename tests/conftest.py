"""A sandbox for all tests, and the project's own module_utils importable as ansible.module_utils.lora_forge."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import sys
from typing import Callable

import ansible.module_utils
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
sys.path.insert(0, str(ROOT / "module_utils" / "lora_forge"))  # rundir, as the supervisor imports it
sys.path.insert(0, str(ROOT / "roles" / "run" / "files"))
sys.path.insert(0, str(ROOT / "tests" / "hosts"))
sys.path.insert(0, str(ROOT / "tests" / "fakes"))
sys.path.insert(0, str(ROOT / "tests" / "fakes" / "runpod"))
sys.path.insert(0, str(ROOT / "tests"))

import sandbox  # noqa: E402

Seen = Callable[[str, str, str], None]
SEEN = ROOT / ".seen.jsonl"  # what tests saw since `make faults` began, from all their processes
SANDBOX = pytest.StashKey[sandbox.Sandbox]()


def pytest_configure(config: pytest.Config) -> None:
    """Enter a sandbox before anything else, unless this process was born in one, as xdist's are.

    SIGTERM ends tests as Ctrl-C does.
    """
    if "LORA_FORGE_SANDBOX" not in os.environ:
        config.stash[SANDBOX] = sandbox.Sandbox()
        signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave nothing behind; what is left all the same is a failure."""
    if SANDBOX in session.config.stash and (left := session.config.stash[SANDBOX].close()):
        sys.stderr.write(f"\n{left}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Seen:
    """Provide a way to note what a test saw of a fault: fault, host, words; tests/e2e/conftest.py makes the table."""

    def note(fault: str, where: str, words: str) -> None:
        if not os.environ.get("LORA_FORGE_FAULTS"):
            return
        with SEEN.open("a") as file:
            file.write(json.dumps([*request.node.location[:2], fault, where, words]) + "\n")

    return note


@pytest.fixture
def lab(tmp_path):
    """Provide a pretended trainer with real supervisors; what it started is killed at the end."""
    from lab import Lab

    made = Lab(tmp_path)
    yield made
    made.close()
