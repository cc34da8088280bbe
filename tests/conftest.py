"""A sandbox for all tests, and the project's own module_utils importable as ansible.module_utils.lora_forge."""

from __future__ import annotations

import os
import pathlib
import signal
import sys
from collections.abc import Generator, Iterator

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
import seen as faults  # noqa: E402

SANDBOX = pytest.StashKey[sandbox.Sandbox]()
PASSED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Enter a sandbox before anything else, unless this process was born in one, as xdist's are.

    SIGTERM ends tests as Ctrl-C does.
    """
    if not hasattr(config, "workerinput"):
        faults.SEEN.unlink(missing_ok=True)  # of a command that was killed
    if "LORA_FORGE_SANDBOX" not in os.environ:
        config.stash[SANDBOX] = sandbox.Sandbox()
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run only what writes docs/faults.md, where that is wanted."""
    if os.environ.get(faults.VARIABLE):
        quiet = [item for item in items if "seen" not in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=quiet)
        items[:] = [item for item in items if item not in quiet]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write docs/faults.md where that is wanted. Leave nothing behind; what is left all the same is a failure."""
    if not hasattr(session.config, "workerinput"):
        faults.publish()
    if SANDBOX in session.config.stash and (left := session.config.stash[SANDBOX].close()):
        sys.stderr.write(f"\n{left}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let :func:`seen` know whether a test has passed."""
    report = yield
    if report.when == "call":
        item.stash[PASSED] = report.passed
    return report


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Iterator[faults.Seen]:
    """Provide a way to note what a test saw of a fault: fault, where, words. It is a row of docs/faults.md."""
    rows: list[faults.Row] = []
    test = request.node
    name = f"{test.path.relative_to(ROOT / 'tests')}::{test.originalname}"

    def note(fault: str, where: str, words: str) -> None:
        rows.append(faults.Row(fault, where, words, name, whole=test.name == test.originalname))

    yield note
    if test.stash.get(PASSED, False):
        faults.note(rows)


@pytest.fixture
def lab(tmp_path):
    """Provide a pretended trainer with real supervisors; what it started is killed at the end."""
    from lab import Lab

    made = Lab(tmp_path)
    yield made
    made.close()
