"""A worker of Ansible's that is killed fails its own task, and a command that is killed leaves no worker behind."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import pytest
from lab import alive, eventually

ROOT = pathlib.Path(__file__).resolve().parents[2]
BOUND = 300  # seconds, which only a hang reaches
KILLED = """
import os, pathlib, signal, time
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        here = pathlib.Path({here!r})
        if self._task.args["host"] == "killed":
            while not (here / "began").exists():  # the other one is under way
                time.sleep(0.05)
            time.sleep({after})
            os.kill(os.getpid(), signal.SIGKILL)
        if self._task.args["host"] == "late":
            import multiprocessing.util
            multiprocessing.util.Finalize(None, os._exit, args=(3,), exitpriority=0)  # after its result is sent
        (here / "began").touch()
        return {{"changed": False}}
"""
PLAY = """
- hosts: all
  gather_facts: false
  strategy: free
  tasks:
    - block:
        - name: Work
          work: {host: "{{ inventory_hostname }}"}
      rescue:
        - debug: {msg: "rescued: {{ ansible_failed_result.msg }}"}
        - fail: {msg: "it is not well"}
    - debug: {msg: "{{ inventory_hostname }} went on"}
"""


def play(tmp_path, hosts, after):
    """Run the play on this machine under the names of some hosts."""
    (tmp_path / "actions").mkdir()
    (tmp_path / "actions/work.py").write_text(KILLED.format(here=str(tmp_path), after=after))
    (tmp_path / "play.yml").write_text(PLAY)
    return subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-v", "-i", hosts, "-c", "local", str(tmp_path / "play.yml")],
        cwd=ROOT, env=os.environ | {"ANSIBLE_ACTION_PLUGINS": str(tmp_path / "actions")},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=BOUND,
    )  # fmt: skip


@pytest.mark.parametrize("after", [0, 3])
def test_its_task_fails_and_the_other_hosts_go_on(tmp_path, after, seen):
    done = play(tmp_path, "killed,good,", after)
    assert done.returncode == 2, done.stdout
    printed = " ".join(done.stdout.replace("''", "'").split())
    assert "rescued: the process of Ansible's that did «Work» for killed on this machine was ended (Killed)" in printed
    assert "good went on" in done.stdout
    assert "killed went on" not in done.stdout
    seen("kill -9 of one of Ansible's own workers", "controller", "its task fails and says so; the other hosts go on")


def test_one_that_ends_badly_after_it_has_answered_harms_nothing(tmp_path):
    done = play(tmp_path, "late,good,", after=0)
    assert done.returncode == 0, done.stdout
    assert "late went on" in done.stdout
    assert "good went on" in done.stdout
    assert "was ended" not in done.stdout


LEFT = """
import os, pathlib, subprocess, time
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        here = pathlib.Path({here!r})
        child = subprocess.Popen(["sleep", "{bound}"])
        (here / "part").write_text(f"{{os.getpid()}} {{child.pid}}")
        (here / "part").rename(here / "pids")
        child.wait()
        (here / "noted").touch()
        return {{"changed": False}}
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_ended_leaves_no_worker_that_notes_or_tells_anything(tmp_path, how, seen):
    (tmp_path / "actions").mkdir()
    (tmp_path / "actions/work.py").write_text(LEFT.format(here=str(tmp_path), bound=BOUND))
    (tmp_path / "play.yml").write_text("- hosts: all\n  gather_facts: false\n  tasks: [{work: {}}]\n")
    with subprocess.Popen(
        [sys.executable, "-m", "ansible", "playbook", "-i", "one,", "-c", "local", str(tmp_path / "play.yml")],
        cwd=ROOT, env=os.environ | {"ANSIBLE_ACTION_PLUGINS": str(tmp_path / "actions")},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as command:  # fmt: skip
        try:
            assert eventually(lambda: (tmp_path / "pids").exists())
            pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        finally:
            command.send_signal(how)
    assert eventually(lambda: not any(map(alive, pids)))
    assert not (tmp_path / "noted").exists()
    seen(
        f"a command is ended by {how.name} while it works",
        "controller",
        "no worker of it is left, and none notes anything",
    )
