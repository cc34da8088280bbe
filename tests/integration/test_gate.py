"""A hostile trainer against an unchanged controller: real Ansible, and hosts that answer what they like."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml
from ansible.module_utils.lora_forge.trainer import stopping
from lab import ROOT, Lab, eventually, reached

PATIENCE = 300  # seconds; only what hangs takes them
# In the place of ssh: the command runs here.
SSH = """#!/bin/sh
while [ "$1" != "hostile.example" ]; do shift; done
shift
exec sh -c "$*"
"""


class Stage:
    """Hosts on this machine, each with a script in the place of its Python; a file that an attack makes."""

    def __init__(self, home: pathlib.Path):
        self.home, self.taken = home, home / "taken"
        self.hosts: dict[str, Any] = {}
        self.payload = self.script("payload", f"#!/bin/sh\ntouch {self.taken}\n")

    def script(self, name: str, text: str) -> str:
        path = self.home / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def host(self, name: str, answer: Any = None, shell: str = "", **variables: Any) -> None:
        """Add a host that prints an answer, or runs something, or answers as it should."""
        python = sys.executable
        if answer is not None:
            text = answer if isinstance(answer, str) else json.dumps(answer)
            (self.home / f"{name}.json").write_text(text)
            shell = f"cat {self.home}/{name}.json"
        if shell:
            python = self.script(f"python-{name}", f"#!/bin/sh\n{shell}\n")
        self.hosts[name] = {
            "ansible_connection": "local", "ansible_python_interpreter": python,
            "trainer_root": str(self.home / name), "output_dir": str(self.home / "output"), **variables,
        }  # fmt: skip

    def play(self, playbook: str | list[dict[str, Any]], *options: str, **environment: str) -> tuple[int, str, str]:
        """Run a playbook; return its exit status, what it printed, and its errors."""
        if not isinstance(playbook, str):
            (self.home / "play.yml").write_text(yaml.safe_dump(playbook))
            playbook = str(self.home / "play.yml")
        (self.home / "hosts.yml").write_text(yaml.safe_dump({"trainers": {"hosts": self.hosts}}))
        command = [str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(self.home / "hosts.yml"), playbook, *options]
        env = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
               "COLUMNS": "1000", **environment}  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=PATIENCE, env=env)
        return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def stage(tmp_path: pathlib.Path) -> Stage:
    return Stage(tmp_path)


# --- what it says becomes nothing that Ansible acts on --------------------------------------------------------------

GPU_INFO = {"changed": False, "driver": None, "gpus": [], "processes": [], "runs": [], "problems": [],
            "warnings_found": []}  # fmt: skip
NAMES = {
    "ansible_facts": {"note": "theirs"}, "include": "x", "rc": 7, "results": [{"ansible_facts": {"note": "theirs"}}],
    "add_group": "theirs", "_ansible_no_log": True, "warnings": ["\x1b[2Jtheirs"], "deprecations": [{"msg": "theirs"}],
}  # fmt: skip


@pytest.mark.parametrize("inject", ["true", "false"])
def test_a_hosts_facts_are_no_options_of_rsync(stage: Stage, inject: str) -> None:
    evil = {"trainer_rsync_options": [f"--rsh={stage.payload}"], "ansible_ssh_executable": stage.payload}
    ssh = stage.script("ssh", SSH)
    stage.host(
        "hostile", GPU_INFO | {"ansible_facts": evil | {"trainer_root": str(stage.home / "else")}},
        ansible_connection="ssh", ansible_ssh_executable=ssh, ansible_host="hostile.example",
    )  # fmt: skip
    file = {"path": "there.txt", "content": "ours"}
    bring = {"files": [file], "to": "{{ trainer_root }}", "options": "{{ trainer_rsync_options | default([]) }}"}
    status, out, err = stage.play(
        [{"hosts": "hostile", "tasks": [{"gpu_info": {}}, {"transfer": bring}]}], ANSIBLE_INJECT_FACT_VARS=inject
    )
    assert status == 0, out + err
    assert not stage.taken.exists()
    assert (stage.home / "hostile/there.txt").read_text() == "ours"


def test_a_host_adds_no_host_and_changes_no_variable_of_another_one(stage: Stage) -> None:
    answer = GPU_INFO | NAMES | {
        "changed": True,
        "add_host": {"host_name": "localhost", "groups": ["theirs"],
                     "host_vars": {"ansible_python_interpreter": stage.payload, "note": "theirs"}},
    }  # fmt: skip
    stage.host("hostile", answer, note="ours")
    shown = {"msg": "note={{ note | default('none') }} groups={{ groups.keys() | list }} kept={{ seen | default('') }}"}
    status, out, err = stage.play(
        [
            {"hosts": "hostile", "tasks": [{"gpu_info": {}, "register": "seen"}, {"ansible.builtin.debug": shown}]},
            {"hosts": "localhost", "gather_facts": False,
             "tasks": [{"ansible.builtin.debug": shown}, {"ansible.builtin.ping": {}}]},
        ],
        ANSIBLE_INJECT_FACT_VARS="true",
    )  # fmt: skip
    assert status == 0, out + err
    assert not stage.taken.exists()
    assert "theirs" not in out + err
    assert out.count("note=ours") == out.count("note=none") == 1


@pytest.mark.parametrize("callback", ["lora_forge", "ansible.builtin.default"])
@pytest.mark.parametrize("more", [(), ("-vv",)])
def test_what_a_host_says_moves_no_cursor_whoever_prints_it(stage: Stage, callback: str, more: tuple[str, ...]) -> None:
    nasty = "\x1b[2J\x9b31m\u202egnp.exe\u2066\x07 it is hot"
    stage.host("answers", GPU_INFO | {"warnings_found": [nasty], "warnings": [nasty]})
    stage.host("fails", {"failed": True, "msg": nasty, "exception": nasty, "stderr": nasty})
    stage.host("babbles", shell=f"printf '%s\\n' '{nasty}' >&2; printf '%s' '{nasty}'; exit 3")
    stage.host("junk", json.dumps(GPU_INFO) + f"\n{nasty}\n")
    stage.host(
        "gone",
        ansible_connection="ssh",
        ansible_ssh_executable=stage.script("no-ssh", f"#!/bin/sh\nprintf '%s' '{nasty}' >&2; exit 255"),
    )
    tasks = [{"gpu_info": {}, "register": "seen"},
             {"show": {"warnings": "{{ seen.warnings_found }}", "lines": "{{ seen.warnings_found }}"}}]  # fmt: skip
    status, out, err = stage.play([{"hosts": "all", "tasks": tasks}], *more, ANSIBLE_STDOUT_CALLBACK=callback)
    assert status != 0
    assert "it is hot" in out + err
    assert [letter for letter in out + err if not letter.isprintable() and letter != "\n"] == []
    assert "traceback" not in (out + err).lower()


# --- one host's answer is that host's matter ------------------------------------------------------------------------

RUN = {"run_id": "mayor-1", "agent": "mayor", "state": "running", "detail": "", "status": {}, "alive": True,
       "progress": {}, "eta_seconds": None, "checkpoint": {"step": 0, "files": []}, "facts": {}, "silent_for": 1.5,
       "gpu": None, "gpu_busy": None}  # fmt: skip


def answer(**changes: Any) -> dict[str, Any]:
    return {"changed": False, "gpus": [], "runs": [{**RUN, **changes}]}


MALFORMED = {
    "lacks": {"runs": [{"run_id": "x"}]},
    "huge": answer(eta_seconds=10**400),
    "digits": '{"runs": [], "gpus": ' + "9" * 6000 + "}",
    "nan": json.dumps(answer(silent_for=float("nan"))),
    "deep": '{"gpus": [], "runs": ' + "[" * 10_000 + "]" * 10_000 + "}",
    "climbs": answer(run_id="../../../etc/passwd"),
    "typed": answer(progress="all of it"),
    "list": "[]",
    "nothing": "\n",
    "babble": "x" * 100_000,
}


def test_a_malformed_answer_costs_its_host_its_row_and_nothing_else(stage: Stage, lab: Lab) -> None:
    run_dir = lab.make("witness-0", stage.home / "honest/runs", stay_at=3)
    lab.supervise(run_dir)
    reached(run_dir, 3)
    stage.host("honest")
    stage.host("other", answer())  # another checkout's run is shown, too
    for name, malformed in MALFORMED.items():
        stage.host(name, malformed)
    status, out, err = stage.play("playbooks/status.yml")
    assert status == 0, out + err
    rows = {
        words[2]: words[3] for words in map(str.split, out.splitlines()) if words[3:4] in (["running"], ["unknown"])
    }
    assert rows == {"honest": "running", "other": "running", **dict.fromkeys(MALFORMED, "unknown")}
    reasons = [line for line in out.splitlines() if "its answer to trainer_info does not fit: " in line]
    assert len(reasons) == len(MALFORMED)
    assert all(len(line) < 400 for line in reasons), reasons
    assert "traceback" not in (out + err).lower()
    assert stopping.stop(run_dir, PATIENCE)


# --- no call is without an end --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "shell"), [("local", "sleep 600"), ("local", "kill -STOP $$"), ("ssh", "cat >/dev/null; sleep 600")]
)
def test_a_host_that_never_answers_costs_its_row_and_leaves_no_process(stage: Stage, kind: str, shell: str) -> None:
    pid = stage.home / "pid"
    more = {"ansible_connection": "ssh", "ansible_ssh_executable": stage.script("ssh", SSH),
            "ansible_host": "hostile.example"} if kind == "ssh" else {}  # fmt: skip
    stage.host("hangs", shell=f"echo $$ >{pid}; {shell}", trainer_answer_timeout=4, **more)
    stage.host("other", answer())
    status, out, err = stage.play("playbooks/status.yml")
    assert status == 0, out + err
    assert "did not answer trainer_info within 4 s" in out
    assert "mayor-1" in out
    noted = pid.read_text().split() if pid.exists() else []  # not there where it was ended before its first word
    eventually(lambda: not any(pathlib.Path(f"/proc/{one}").exists() for one in noted))


@pytest.mark.parametrize("strategy", ["linear", "free"])
def test_it_counts_as_a_lost_connection_and_is_told_by_name(stage: Stage, strategy: str) -> None:
    stage.host("hangs", shell="sleep 600", trainer_answer_timeout=0.5)
    stage.host("other", GPU_INFO)
    tasks = [{"name": "Look", "gpu_info": {}}, {"show": {"lines": ["  {{ inventory_hostname }} went on"]}}]
    play = [{"hosts": "all", "strategy": strategy, "tasks": tasks}]
    status, out, err = stage.play(play)
    assert status == 4  # Ansible's, for hosts that are unreachable
    assert "hangs did not answer gpu_info within 2 s" in out + err
    assert "trainer_answer_timeout" in out + err
    assert "other went on" in out
    assert "hangs went on" not in out


def test_who_rides_out_a_lost_connection_rides_this_out_too(stage: Stage) -> None:
    stage.host("hangs", shell="sleep 600", trainer_answer_timeout=0.5)
    fetch = {"model": "Acme/Tiny", "home": "/hf", "python": "/p", "program": "/f", "unreachable_timeout": 1}
    status, out, err = stage.play([{"hosts": "all", "tasks": [{"fetch_model": fetch}]}])
    assert status == 4, out + err
    words = "; what runs there goes on; trying again (hangs did not answer base_model"
    assert re.search(rf"no connection for 0:\d\d{re.escape(words)}", out), out


def test_a_host_that_prints_without_an_end_is_cut_off(stage: Stage) -> None:
    stage.host("babbles", shell="exec yes")
    stage.host("other", answer())
    status, out, err = stage.play("playbooks/status.yml")
    assert status == 0, out + err
    assert "babbles did not stop printing, in answer to trainer_info" in out
    assert "mayor-1" in out


def test_tidying_up_is_not_waited_for_either(stage: Stage) -> None:
    """Where modules are not piped, Ansible removes a folder in the end."""
    ssh = SSH.replace("exec", 'case "$*" in *"rm -f -r"*) sleep 600;; esac\nexec')
    stage.host(
        "hangs", GPU_INFO, ansible_connection="ssh", ansible_host="hostile.example", ansible_pipelining=False,
        ansible_ssh_executable=stage.script("ssh", ssh), ansible_ssh_transfer_method="piped",
        trainer_answer_timeout=12,  # for its answer, too, on a busy machine
    )  # fmt: skip
    status, out, err = stage.play([{"hosts": "all", "tasks": [{"gpu_info": {}}]}])
    assert status == 0, out + err


@pytest.mark.parametrize("wrong", ["soon", "0", "-1", "nan"])
def test_a_limit_that_is_none_is_said(stage: Stage, wrong: str) -> None:
    stage.host("other", GPU_INFO, trainer_answer_timeout=wrong)
    status, out, err = stage.play([{"hosts": "all", "tasks": [{"gpu_info": {}}]}])
    assert status == 2
    assert f"trainer_answer_timeout is '{wrong}'; it must be a number of seconds above 0" in out + err
