"""A worker of Ansible's that is killed on the controller fails its own task, and no command waits for it."""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest

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
        (here / "began").touch()
        return {{"changed": False}}
"""
PLAY = """
- hosts: all
  gather_facts: false
  strategy: {strategy}
  tasks:
    - block:
        - name: Work
          work: {{host: "{{{{ inventory_hostname }}}}"}}
      rescue:
        - debug: {{msg: "rescued: {{{{ ansible_failed_result.msg }}}}"}}
        - fail: {{msg: "it is not well"}}
    - debug: {{msg: "{{{{ inventory_hostname }}}} went on"}}
"""


LATE = """
import multiprocessing.util, os, time
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        if self._task.args["late"]:
            multiprocessing.util.Finalize(None, os._exit, args=(1,), exitpriority=10)
        else:
            time.sleep(2)  # so that what is sent for the first one comes while results are read
        return {"changed": False}
"""
LATE_PLAY = """
- hosts: all
  gather_facts: false
  strategy: {strategy}
  tasks:
    - work: {{late: true}}
    - work: {{late: false}}
    - debug: {{msg: "{{{{ inventory_hostname }}}} went on"}}
"""


@pytest.mark.parametrize("strategy", ["free", "linear"])
def test_a_worker_that_ends_badly_after_its_result_fails_nothing(tmp_path, strategy):
    (tmp_path / "actions").mkdir()
    (tmp_path / "actions/work.py").write_text(LATE)
    (tmp_path / "play.yml").write_text(LATE_PLAY.format(strategy=strategy))
    done = subprocess.run(
        ["ansible-playbook", "-v", "-i", "late,", "-c", "local", str(tmp_path / "play.yml")],
        cwd=ROOT, env=os.environ | {"ANSIBLE_ACTION_PLUGINS": str(tmp_path / "actions")},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=BOUND,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "late went on" in done.stdout


@pytest.mark.parametrize("after", [0, 3])
def test_its_task_fails_and_the_other_hosts_go_on(tmp_path, after):
    (tmp_path / "actions").mkdir()
    (tmp_path / "actions/work.py").write_text(KILLED.format(here=str(tmp_path), after=after))
    (tmp_path / "play.yml").write_text(PLAY.format(strategy="free"))
    done = subprocess.run(
        ["ansible-playbook", "-v", "-i", "killed,good,", "-c", "local", str(tmp_path / "play.yml")],
        cwd=ROOT, env=os.environ | {"ANSIBLE_ACTION_PLUGINS": str(tmp_path / "actions")},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=BOUND,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout
    printed = " ".join(done.stdout.replace("''", "'").split())
    assert "rescued: the process of Ansible's that did «Work» for killed on this machine was ended (Killed)" in printed
    assert "good went on" in done.stdout
    assert "killed went on" not in done.stdout
