"""A sandbox for all tests, and the project's own module_utils importable as ansible.module_utils.lora_forge."""

from __future__ import annotations

import os
import pathlib
import signal
import sys
from collections.abc import Generator, Iterator
from typing import Any

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
# Their tests look at what one start of something slow has made: of hosts, a cluster, a browser, trainings, or Axolotl.
# In several processes each of these would start it anew. By file; those of one name share it.
TOGETHER = {
    "e2e/test_bad_input.py": "bad input",
    "e2e/test_base_models.py": "base models",
    "e2e/test_expected.py": "expected",
    "e2e/test_faults.py": "hosts",
    "e2e/test_fleet.py": "fleet",
    "e2e/test_gang.py": "hosts",
    "e2e/test_learning.py": "learning",
    "e2e/test_recipes.py": "recipes",
    "e2e/test_report.py": "report",
    "e2e/test_slurm_cluster.py": "cluster",
    "e2e/test_slurm_training.py": "slurm training",
    "e2e/test_templates.py": "templates",
    "integration/test_collect.py": "collect",
    "integration/test_slurm.py": "slurm",
    "integration/test_slurm_gang.py": "slurm",
    "integration/test_slurm_sites.py": "slurm",
    "integration/test_slurm_locks.py": "slurm",
}


def pytest_configure(config: pytest.Config) -> None:
    """Enter a sandbox before anything else, unless this process was born in one, as xdist's are.

    SIGTERM ends tests as Ctrl-C does.
    """
    if "LORA_FORGE_SANDBOX" not in os.environ:
        config.stash[SANDBOX] = sandbox.Sandbox()
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run only what writes docs/faults.md, where that is wanted."""
    if os.environ.get(faults.VARIABLE):
        quiet = [item for item in items if "seen" not in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=quiet)
        items[:] = [item for item in items if item not in quiet]
    items.sort(key=lambda item: "/integration/test_slurm" not in str(item.path))  # one process has all of these


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With --dist loadgroup keep tests that share something slow in one process; others go wherever there is room.

    (xdist's own groups do not work with this version of pytest: it writes a name that pytest no longer reads.)
    """
    if config.option.dist != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = "/".join(nodeid.partition("::")[0].split("/")[-2:])
            return TOGETHER.get(file, nodeid)

    config.option.loadscopereorder = False  # or what has the most tests, and not what takes longest, comes first
    return Scheduling(config, log)


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
