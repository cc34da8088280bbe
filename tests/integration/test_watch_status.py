"""playbooks/status.yml with -e watch=true: real Ansible, two trainers on this machine, pretended trainings."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import yaml
from ansible.module_utils.lora_forge.trainer import stopping
from lab import PATIENCE, ROOT, Lab, eventually, reached

PYTHON = """#!/bin/sh
[ -e "{away}" ] && echo "no route to the host" >&2 && exit 1
exec {python} "$@"
"""


class Desk:
    """A folder with an inventory of two trainers, near and far; the second one may be away."""

    def __init__(self, home: pathlib.Path):
        self.home, self.away, self.log = home, home / "away", home / "log.txt"
        (home / "python").write_text(PYTHON.format(away=self.away, python=sys.executable))
        (home / "python").chmod(0o755)
        hosts: dict[str, Any] = {
            name: {"ansible_python_interpreter": python, "trainer_root": str(home / name)}
            for name, python in (("near", sys.executable), ("far", str(home / "python")))
        }
        shared = {"ansible_connection": "local", "output_dir": str(home / "output"), "run_status_every": 0.05}
        inventory = {"trainers": {"hosts": hosts, "vars": shared}}
        (home / "hosts.yml").write_text(yaml.safe_dump(inventory))

    def watch(self) -> subprocess.Popen[bytes]:
        command = [str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(self.home / "hosts.yml")]
        at_once = {"ANSIBLE_NOCOLOR": "1", "PYTHONUNBUFFERED": "1"}  # a file is no screen: it would come in blocks
        return subprocess.Popen(
            [*command, "playbooks/status.yml", "-e", "watch=true"], cwd=ROOT, stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT, env=os.environ | at_once,
        )  # fmt: skip

    def rows(self) -> list[str]:
        """List the verdicts of the last round, as they were shown."""
        last = self.log.read_text().rpartition("  agent ")[2]
        return [line.split()[3] for line in last.splitlines()[1:] if line.startswith("  witness ")]


@pytest.fixture
def desk(tmp_path: pathlib.Path) -> Desk:
    return Desk(tmp_path)


def test_the_screen_outlives_a_blink_and_ends_when_nothing_runs(desk: Desk, lab: Lab) -> None:
    run_dir = lab.make("witness-0", desk.home / "far/runs", stay_at=3)
    lab.supervise(run_dir)
    reached(run_dir, 3)
    (desk.home / "output/runs").mkdir(parents=True)
    placed = {"run_id": "witness-0", "trainer": "far", "state": "launched", "final": False}
    (desk.home / "output/runs/witness-0.json").write_text(json.dumps(placed))
    watching = desk.watch()
    try:
        eventually(lambda: desk.rows() == ["running"])
        desk.away.touch()
        eventually(lambda: desk.rows() == ["unknown"])
        before = desk.log.read_text().count("unknown")
        eventually(lambda: desk.log.read_text().count("unknown") > before + 2)
        assert watching.poll() is None
        desk.away.unlink()
        eventually(lambda: desk.rows() == ["running"])
        assert stopping.stop(run_dir, PATIENCE)
        assert watching.wait(PATIENCE) == 0, desk.log.read_text()
    finally:
        watching.kill()
        watching.wait()
    assert desk.rows() == ["stopped"]
    assert "included: " not in desk.log.read_text()


def test_where_nothing_runs_it_is_shown_once(desk: Desk) -> None:
    watching = desk.watch()
    assert watching.wait(PATIENCE) == 0, desk.log.read_text()
    assert desk.log.read_text().count("no run is known") == 1
