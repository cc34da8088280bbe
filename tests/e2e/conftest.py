"""Checkouts and hosts for the end-to-end tests: real Ansible, real uv, real Axolotl, a fresh trainer root each."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any, Callable

import pytest
import rundir

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLAYBOOK = ROOT / ".venv/bin/ansible-playbook"
CONVERGE = 420  # seconds a whole rehearsal may take on a slow machine


def eventually(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait, bounded, until a condition holds; returns what it returned."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


class Checkout:
    """A copy of the project with an output folder and a trainer root of its own; environments are shared."""

    def __init__(self, home: pathlib.Path):
        self.home = home
        self.trainer = home / ".trainer"
        listed = subprocess.check_output(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, text=True
        )
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (home / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, home / name)
        (ROOT / ".trainer/env").mkdir(parents=True, exist_ok=True)
        self.trainer.mkdir()
        (self.trainer / "env").symlink_to(ROOT / ".trainer/env")

    def play(self, *arguments: str, playbook: str = "train.yml", timeout: float = CONVERGE) -> tuple[int, str]:
        """Run a playbook as a user would; returns its exit code and what it printed."""
        done = subprocess.run(
            [str(PLAYBOOK), playbook, *arguments],
            cwd=self.home,
            env={**os.environ, "PATH": f"{PLAYBOOK.parent}:{os.environ['PATH']}", "ANSIBLE_NOCOLOR": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        return done.returncode, done.stdout

    def plan(self) -> dict[str, Any]:
        return json.loads((self.home / "output/plan.json").read_text())["runs"][0]

    def run_dir(self, run_id: str) -> pathlib.Path:
        return self.trainer / "runs" / run_id

    def latest(self, agent: str = "witness") -> pathlib.Path:
        return self.home / "output/adapters" / agent / "latest"

    def manifest(self, agent: str = "witness") -> dict[str, Any]:
        return json.loads((self.latest(agent) / "manifest.json").read_text())

    def kill_everything(self) -> None:
        for status in self.trainer.glob("runs/*/status.json"):
            supervisor = rundir.read_json(status).get("supervisor")
            if rundir.is_alive(supervisor):
                os.kill(supervisor["pid"], signal.SIGKILL)
            for pid in rundir.run_processes(status.parent):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def environment() -> pathlib.Path:
    """The Python of the CPU lock's environment, made by the project's own playbook."""
    done = subprocess.run(
        [str(PLAYBOOK), "playbooks/provision.yml", "-e", "role=witness", "-e", "fresh=true"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    import ansible.module_utils.lora_forge.environment as made

    return ROOT / ".trainer/env" / made.key(ROOT / "requirements/trainer-cpu.txt") / "bin/python"


@pytest.fixture
def checkout(tmp_path: pathlib.Path, environment: pathlib.Path) -> Iterator[Checkout]:
    made = Checkout(tmp_path / "lora-forge")
    yield made
    made.kill_everything()
