"""The version: one place, the commit of a checkout, and what shows both."""

from __future__ import annotations

import platform
import re
import subprocess

import pytest
from ansible.module_utils.lora_forge import version
from ansible.module_utils.lora_forge.version import describe_versions, full_version, git_facts
from ansible.release import __version__ as ANSIBLE
from lab import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_the_changelog_begins_with_the_version():
    [newest, *_] = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest == version.VERSION


def test_where_a_checkout_stands(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        command = ["git", "-C", str(checkout), "-c", "user.name=n", "-c", "user.email=e@x", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    checkout = tmp_path / "checkout"
    inside = checkout / "configs"
    inside.mkdir(parents=True)
    assert git_facts(inside) == {}
    git("init", "-q")
    assert git_facts(inside) == {}  # nothing was ever committed
    (inside / "base.yml").write_text("seed: 1\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    (checkout / "note.txt").write_text("of nobody's account")
    assert git_facts(inside) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (inside / "base.yml").write_text("seed: 2\n")
    assert git_facts(inside) == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_facts(inside) == {}


@pytest.mark.parametrize(
    ("git", "full", "told"),
    [
        ({"commit": COMMIT, "dirty": False}, "0.1.0+g0123456", "lora-forge 0.1.0 (commit 0123456)"),
        ({"commit": COMMIT, "dirty": True}, "0.1.0+g0123456.dirty", "lora-forge 0.1.0 (commit 0123456, changed)"),
        ({}, "0.1.0", "lora-forge 0.1.0"),
    ],
    ids=["a commit", "with changes", "no git"],
)
def test_the_commit_stands_behind_the_version(monkeypatch, git, full, told):
    monkeypatch.setattr(version, "VERSION", "0.1.0")
    assert full_version(git) == full
    assert describe_versions(git) == f"{told}, ansible-core {ANSIBLE}, Python {platform.python_version()}"


def test_one_command_tells_the_versions():
    program = [str(ROOT / ".venv/bin/python"), str(ROOT / "module_utils/lora_forge/version.py")]
    said = subprocess.run(program, capture_output=True, text=True, check=True, cwd="/").stdout
    assert said == describe_versions(git_facts(ROOT)) + "\n"
