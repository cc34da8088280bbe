"""What runs on GitHub: workflows that call the Makefile, pinned actions, and locks that the update bot can read."""

from __future__ import annotations

import json
import pathlib
import re
import shlex
from typing import Any

import pytest
import yaml
from lab import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()
RENOVATE = json.loads((ROOT / ".github/renovate.json").read_text())
LOCKED = sorted(path.stem for path in (ROOT / "requirements").glob("*.in"))
# What Renovate takes in the command in a lock's head, those with a value only as --option=value.
PLAIN = {"--universal", "--generate-hashes"}
WITH_VALUE = {"--python-version", "--output-file", "--constraint"}


def jobs(path: pathlib.Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())["jobs"]


def steps(path: pathlib.Path) -> list[dict[str, Any]]:
    return [step for job in jobs(path).values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_targets_of_the_makefile_and_nothing_else(path: pathlib.Path) -> None:
    commands = [step["run"] for step in steps(path) if "run" in step]
    called = [
        re.fullmatch(r"(?:sudo .* )?make PYTHON=(?:\S|\$\{\{ \S+ \}\})+ ([a-z]+)", command) for command in commands
    ]
    assert called
    assert all(called), commands
    for match in called:
        assert re.search(rf"^{match.group(1)}:", MAKEFILE, re.MULTILINE)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_only_read_and_its_actions_are_pinned(path: pathlib.Path) -> None:
    known = yaml.safe_load(path.read_text())
    assert known["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in known["jobs"].values())
    used = re.findall(r"uses: (.*)", path.read_text())
    assert used
    for action in used:
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
    for step in steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_each_python_that_the_makefile_takes_is_tried() -> None:
    lowest, highest = map(int, re.search(r"\(3, (\d+)\) <= v <= \(3, (\d+)\)", MAKEFILE).groups())
    tried = jobs(ROOT / ".github/workflows/check.yml")["check"]["strategy"]["matrix"]["python"]
    assert tried == [f"3.{minor}" for minor in range(lowest, highest + 1)]


@pytest.mark.parametrize("name", RENOVATE["pip-compile"]["managerFilePatterns"])
def test_the_update_bot_can_read_how_a_lock_was_made(name: str) -> None:
    command = shlex.split((ROOT / name).read_text().splitlines()[1].removeprefix("#"))
    assert command[:3] == ["uv", "pip", "compile"]
    options = [word for word in command if word.startswith("-")]
    assert {option for option in options if "=" not in option} <= PLAIN
    assert {option.partition("=")[0] for option in options if "=" in option} <= WITH_VALUE
    assert f"--output-file={name}" in options


@pytest.mark.parametrize("name", LOCKED)
def test_what_an_in_file_pins_stands_in_its_lock(name: str) -> None:
    """A bot, or a person, changes an .in file; the lock has to be made anew with it."""
    wanted, lock = ((ROOT / "requirements" / f"{name}.{kind}").read_text() for kind in ("in", "txt"))
    locked = set(re.findall(r"^[a-zA-Z0-9][\w.-]*==[^\s;]+", lock, re.MULTILINE))
    names = {entry.partition("==")[0] for entry in locked}
    for line in wanted.splitlines():
        entry = re.match(r"([a-zA-Z0-9][\w.-]*)(==[^\s;\\#]+)?", line)
        if entry and entry.group(2):
            assert entry.group() in locked
        elif entry:
            assert entry.group(1).lower() in names
