"""What keeps a supervisor running."""

from __future__ import annotations

import dataclasses
import getpass
import os
import shutil
import subprocess
import sys

import pytest
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.trainer import backend
from ansible.module_utils.lora_forge.trainer.backend import Choice, Host

BY_ITSELF = "resumes by itself after a reboot"
BY_COMMAND = "does not resume by itself after a reboot; the same command resumes it"
BY_SLURM = "Slurm starts it when its turn comes, and again after a preemption or a reboot"
LINGER = f"an administrator can change that with: loginctl enable-linger {getpass.getuser()}"
ROOT_BOX = Host(systemd=True, root=True, sudo=False, lingering=False, tmux=True)
LINGERING = Host(systemd=True, root=False, sudo=False, lingering=True, tmux=True)
SUDOER = Host(systemd=True, root=False, sudo=True, lingering=False, tmux=True)
USER_BOX = Host(systemd=True, root=False, sudo=False, lingering=False, tmux=True)
CONTAINER = Host(systemd=False, root=True, sudo=False, lingering=False, tmux=True)
BARE = Host(systemd=False, root=True, sudo=False, lingering=False, tmux=False)
LOGIN = dataclasses.replace(USER_BOX, slurm=True, login_node=True)
GPU_AND_SLURM = dataclasses.replace(USER_BOX, slurm=True)  # a workstation that can submit, too


@pytest.mark.parametrize(
    ("wanted", "host", "choice"),
    [
        ("auto", ROOT_BOX, Choice("systemd", "system", BY_ITSELF)),
        ("auto", LINGERING, Choice("systemd", "user", BY_ITSELF)),
        ("auto", SUDOER, Choice("systemd", "system", BY_ITSELF)),
        ("auto", USER_BOX, Choice("tmux", "", f"{BY_COMMAND}; {LINGER}")),
        ("auto", CONTAINER, Choice("tmux", "", BY_COMMAND)),
        ("auto", BARE, Choice("process", "", BY_COMMAND)),
        ("systemd", ROOT_BOX, Choice("systemd", "system", BY_ITSELF)),
        ("systemd", LINGERING, Choice("systemd", "user", BY_ITSELF)),
        ("tmux", ROOT_BOX, Choice("tmux", "", BY_COMMAND)),
        ("process", ROOT_BOX, Choice("process", "", BY_COMMAND)),
        ("process", BARE, Choice("process", "", BY_COMMAND)),
        ("process", LOGIN, Choice("process", "", f"{BY_COMMAND}; {LINGER}")),
        ("auto", GPU_AND_SLURM, Choice("tmux", "", f"{BY_COMMAND}; {LINGER}")),
        ("slurm", GPU_AND_SLURM, Choice("slurm", "", BY_SLURM)),
        ("slurm", LOGIN, Choice("slurm", "", BY_SLURM)),
    ],
)
def test_choose(wanted, host, choice):
    assert backend.choose(wanted, host) == choice


@pytest.mark.parametrize(
    ("wanted", "host", "words"),
    [
        ("systemd", CONTAINER, "run_backend is systemd, but systemd does not run here. Use tmux, process or auto."),
        ("systemd", USER_BOX,
         f"run_backend is systemd, but this user has neither root, sudo nor lingering; {LINGER}"),
        ("tmux", BARE, "run_backend is tmux, but tmux is not installed here. Install it, or use process or auto."),
        ("screen", BARE, "run_backend is «screen»; it is one of auto, systemd, tmux, process, slurm"),
        ("slurm", BARE,
         "run_backend is slurm, but there is no sbatch here, for a login shell neither\nName a login node of the "
         "cluster; where Slurm is a module, let ~/.bash_profile load it (module load slurm)"),
        ("auto", LOGIN,
         "this host has Slurm's sbatch and no GPU, as a login node has. Set run_backend: slurm, and run_slurm to what "
         "a job asks for; or run_backend: process, to train on this very host"),
    ],
)  # fmt: skip
def test_choose_says_what_is_wrong(wanted, host, words):
    with pytest.raises(UserError) as error:
        backend.choose(wanted, host)
    assert str(error.value) == words


def test_look_finds_out():
    found = backend.probe_host("auto")
    assert found.root is (os.geteuid() == 0)
    assert found.tmux is (shutil.which("tmux") is not None)


def test_the_unit_of_a_system():
    text = backend.unit_text("w-1", ["/py thon", '/a"b%i/$x\\y'], "/runs 100%/w-1", 300, "ann")
    lines = text.splitlines()
    for line in (
        'ExecStart="/py thon" "/a\\"b%%i/$$x\\\\y"',
        "WorkingDirectory=/runs 100%%/w-1",
        "User=ann",
        "KillMode=mixed",
        "Restart=on-failure",
        "TimeoutStopSec=330",
        "WantedBy=multi-user.target",
        "Type=exec",
    ):
        assert line in lines


def test_the_unit_of_a_user_names_no_user():
    text = backend.unit_text("w-1", ["/python"], "/runs/w-1", 300, None)
    assert "User=" not in text
    assert "WantedBy=default.target" in text


def recorder(answers=()):
    calls = []

    def run(command):
        command = command[2:] if command[:2] == ["sudo", "-n"] else command
        if command[0] in ("install", "rm"):  # for real; systemd is only told
            subprocess.run(command, check=True)
            return 0, ""
        calls.append(" ".join(command))
        return dict(answers).get(command[1 if command[1] != "--user" else 2], (0, ""))

    return calls, run


def test_systemd_gets_a_unit_and_starts_it(tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "SYSTEM_UNITS", tmp_path / "units")
    (tmp_path / "units").mkdir()
    (tmp_path / "w-1").mkdir()
    calls, run = recorder({"is-failed": (1, "inactive")})
    look = backend.start(Choice("systemd", "system", ""), "w-1", tmp_path / "w-1", 60, run)
    assert look == "journalctl -u lora-forge-w-1.service -f"
    name = "lora-forge-w-1.service"
    assert calls == ["systemctl daemon-reload", f"systemctl is-failed {name}", f"systemctl enable --now {name}"]
    text = (tmp_path / "units" / name).read_text()
    assert f"User={getpass.getuser()}\n" in text
    assert f'ExecStart="{sys.executable}" "{tmp_path}/w-1/programs/supervisor.py" "{tmp_path}/w-1"' in text


def test_a_failed_user_unit_is_reset_first(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    calls, run = recorder()
    look = backend.start(Choice("systemd", "user", ""), "w-1", tmp_path / "w-1", 60, run)
    assert look == "journalctl --user -u lora-forge-w-1.service -f"
    assert calls[2] == "systemctl --user reset-failed lora-forge-w-1.service"
    assert "User=" not in (tmp_path / ".config/systemd/user/lora-forge-w-1.service").read_text()


def test_a_refusal_of_systemd_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "SYSTEM_UNITS", tmp_path)
    (tmp_path / "w-1").mkdir()
    _, run = recorder({"enable": (1, "Unit is masked")})
    with pytest.raises(UserError, match=r"enable --now lora-forge-w-1.service» failed with 1: Unit is masked"):
        backend.start(Choice("systemd", "system", ""), "w-1", tmp_path / "w-1", 60, run)


def test_what_keeps_a_run_is_asked_for_its_word(tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "SYSTEM_UNITS", tmp_path)
    asked = []

    def run(command):
        asked.append(command)
        return 0, "ActiveState=failed"

    said = backend.words("witness-0", tmp_path, {"backend": "systemd"}, run)
    assert (said, asked) == ("its unit is gone", [])
    (tmp_path / "lora-forge-witness-0.service").touch()
    said = backend.words("witness-0", tmp_path, {"backend": "systemd"}, run)
    assert said.endswith("lora-forge-witness-0.service» ended with 0\nActiveState=failed")
    assert backend.words("witness-0", tmp_path, {"backend": "tmux"}, run).startswith("«tmux has-session -t =witness-0-")
    assert backend.words("witness-0", tmp_path, {"backend": "process"}, run) == ""
    assert [command[0] for command in asked] == ["systemctl", "tmux"]

    def missing(command):
        raise FileNotFoundError

    assert "could not be run" in backend.words("witness-0", tmp_path, {"backend": "tmux"}, missing)


def test_forget_removes_the_unit_once(tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "SYSTEM_UNITS", tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "lora-forge-w-1.service").touch()
    calls, run = recorder()
    assert backend.remove_unit("w-1", run) is True
    assert calls == ["systemctl disable lora-forge-w-1.service", "systemctl daemon-reload"]
    assert backend.remove_unit("w-1", run) is False
    assert not (tmp_path / "lora-forge-w-1.service").exists()


@pytest.mark.parametrize("scope", ["system", "user"])
def test_why_systemd_starts_nothing_more_is_told(tmp_path, monkeypatch, scope):
    monkeypatch.setattr(backend, "SYSTEM_UNITS", tmp_path / "units")
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "units" if scope == "system" else tmp_path / ".config/systemd/user"
    folder.mkdir(parents=True)
    python = tmp_path / "my 100% $python"
    _, run = recorder({"is-failed": (1, "activating")})
    assert backend.restart_fault("w-1", run) == ""
    unit = backend.unit_text("w-1", [str(python), "s.py"], "/r", 60, None)
    (folder / "lora-forge-w-1.service").write_text(unit)
    assert backend.restart_fault("w-1", run) == f"systemd cannot start it: {python} is not there any more"
    python.touch(mode=0o755)
    assert backend.restart_fault("w-1", run) == ""
    calls, failed = recorder({"is-failed": (0, "failed")})
    assert "systemd has given up lora-forge-w-1.service" in backend.restart_fault("w-1", failed)
    user = "--user " if scope == "user" else ""
    assert calls == [f"systemctl {user}is-failed lora-forge-w-1.service"]

    def hangs(command):
        raise subprocess.TimeoutExpired(command, 60)

    assert backend.restart_fault("w-1", hangs) == ""
