"""The user's own tasks at named points: real Ansible, on this machine as a trainer."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import yaml
from ansible.parsing.vault import VaultLib, VaultSecret
from lab import ROOT, Lab, until

ANSIBLE = pathlib.Path(sys.executable).with_name("ansible-playbook")
RUNS = [{"run_id": "witness-0", "agent": "witness", "recipe": {"lora_r": 8}}]


class Site:
    """An inventory with hooks beside it, and a playbook that runs one and then looks at its own variables."""

    def __init__(self, home: pathlib.Path, name: str = "gpu-1"):
        self.home, self.name = home, name
        home.mkdir(exist_ok=True)
        host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "mark": "inventory"}
        (home / "hosts.yml").write_text(
            yaml.safe_dump({"trainers": {"hosts": {name: host, "gpu-2": host, "gpu_1": host}}})
        )

    def hook(self, name: str, *tasks: dict[str, Any]) -> None:
        (self.home / "hooks").mkdir(exist_ok=True)
        (self.home / f"hooks/{name}.yml").write_text(yaml.safe_dump([{"name": "Mine", **task} for task in tasks]))

    def play(
        self, name: str, *options: str, timeout: float = 60, inventory: str = "hosts.yml"
    ) -> tuple[int, str, dict[str, Any]]:
        """Run a hook on a host; returns the exit code, what was printed, and what our variables are afterwards."""
        seen = self.home / "seen.json"
        ask = {"name": name, "root": str(self.home / "trainer"), "runs": "{{ run_plans }}", "timeout": timeout}
        look = "{{ {'plans': run_plans, 'root': trainer_root, 'mine': mine | default('nothing')} | to_json }}"
        tasks = [
            {"run_hook": ask},
            {"ansible.builtin.copy": {"content": look, "dest": str(seen)}, "check_mode": False},
        ]
        play = {"hosts": "trainers:!gpu-2:!gpu_1", "gather_facts": False, "tasks": tasks,
                "vars": {"run_plans": RUNS, "trainer_root": "/ours"}}  # fmt: skip
        (self.home / "play.yml").write_text(yaml.safe_dump([play]))
        done = subprocess.run(
            [str(ANSIBLE), "-i", str(self.home / inventory), str(self.home / "play.yml"), *options],
            cwd=ROOT, env={**os.environ, "ANSIBLE_NOCOLOR": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=300,
        )  # fmt: skip
        return done.returncode, done.stdout, json.loads(seen.read_text()) if seen.exists() else {}


@pytest.fixture
def site(tmp_path: pathlib.Path) -> Site:
    return Site(tmp_path)


def note(path: pathlib.Path, text: str) -> dict[str, Any]:
    return {"ansible.builtin.copy": {"content": text, "dest": str(path)}}


def test_what_a_hook_sets_reaches_nothing_of_ours(site: Site) -> None:
    site.hook(
        "before_provision",
        {"ansible.builtin.set_fact": {"run_plans": [], "trainer_root": "/theirs", "mine": "leaked"}},
        {"ansible.builtin.command": "echo leaked", "register": "mine", "changed_when": False},
        note(site.home / "noted", "{{ inventory_hostname }} {{ mark }} {{ forge_runs | to_json }} {{ given }}"),
    )
    code, text, seen = site.play("before_provision", "-e", "given=word")
    assert code == 0, text
    assert seen == {"plans": RUNS, "root": "/ours", "mine": "nothing"}
    runs = json.dumps([{"run_id": "witness-0", "agent": "witness"}])
    assert (site.home / "noted").read_text() == f"gpu-1 inventory {runs} word"
    assert "gpu-1: hooks/before_provision.yml is done (" in text


@pytest.mark.parametrize("name", ["my gpu", "~gpu"])
def test_a_hook_runs_on_its_host_alone_whatever_its_name_and_its_folder(tmp_path: pathlib.Path, name: str) -> None:
    site = Site(tmp_path / "an inventory, a=b", name)
    site.hook("before_provision", note(tmp_path / "{{ inventory_hostname }}", "written"))
    code, text, _ = site.play("before_provision")
    assert code == 0, text
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]


def test_a_hook_reads_what_the_command_can_decrypt_and_asks_nobody_again(site: Site) -> None:
    ask = site.home / "ask"
    ask.write_text(f"#!/bin/sh\n[ -e {site.home}/asked ] && exit 1\ntouch {site.home}/asked\necho word\n")
    ask.chmod(0o755)
    locked = VaultLib([("dev", VaultSecret(b"word"))]).encrypt("token", vault_id="dev").decode()
    (site.home / "host_vars").mkdir()
    (site.home / "host_vars/gpu-1.yml").write_text("locked: !vault |\n" + textwrap.indent(locked, "  "))
    site.hook("before_provision", note(site.home / "noted", "{{ locked }}"))
    code, text, _ = site.play("before_provision", "--vault-id", f"dev@{ask}")
    assert code == 0, text
    assert (site.home / "noted").read_text() == "token"


def test_an_inventory_may_be_a_folder_with_hooks_in_it(site: Site) -> None:
    site.hook("before_provision", note(site.home / "noted", "{{ mark }}"))
    folder = site.home / "inventory"
    folder.mkdir()
    for name in ("hosts.yml", "hooks"):
        (site.home / name).rename(folder / name)
    code, text, _ = site.play("before_provision", inventory="inventory")
    assert code == 0, text
    assert (site.home / "noted").read_text() == "inventory"


def test_without_a_file_nothing_happens(site: Site) -> None:
    code, text, _ = site.play("before_provision")
    assert code == 0, text
    assert "hooks/" not in text


def test_one_that_fails_before_provisioning_is_a_failure_and_after_the_release_a_warning(site: Site) -> None:
    for name in ("before_provision", "after_release"):
        site.hook(name, {"ansible.builtin.fail": {"msg": "no such service"}})
    code, text, seen = site.play("before_provision")
    assert (code, seen) == (2, {})
    assert "hooks/before_provision.yml failed on gpu-1: " in text
    assert "no such service" in text
    code, text, seen = site.play("after_release")
    assert (code, seen["root"]) == (0, "/ours"), text
    assert "! gpu-1: hooks/after_release.yml failed: " in text


def test_in_check_mode_it_changes_nothing(site: Site) -> None:
    site.hook("before_provision", note(site.home / "noted", "written"))
    code, text, _ = site.play("before_provision", "--check")
    assert code == 0, text
    assert "hooks/before_provision.yml is done" in text
    assert not (site.home / "noted").exists()


def test_it_has_a_bound_and_leaves_nothing_behind(site: Site) -> None:
    mark = f"31{os.getpid()}"
    site.hook("before_provision", {"ansible.builtin.command": f"sleep {mark}"})
    code, text, _ = site.play("before_provision", timeout=8)
    assert code == 2, text
    assert "it took longer than 8 s (converge_hook_timeout)" in text
    assert not [path for path in pathlib.Path("/proc").glob("[0-9]*/cmdline") if mark in _read(path)]


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def test_the_host_is_not_free_while_a_run_trains_there(site: Site, lab: Lab) -> None:
    site.hook("after_release", note(site.home / "noted", "written"))
    run_dir = lab.make("crew-0", site.home / "trainer/runs", steps=5000)
    lab.supervise(run_dir)
    until(run_dir, "running")
    code, text, _ = site.play("after_release")
    assert code == 0, text
    assert "gpu-1: hooks/after_release.yml is left out: crew-0 still trains there" in text
    assert not (site.home / "noted").exists()
