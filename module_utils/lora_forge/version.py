"""The version of lora-forge, and the commit of a checkout. As a program it prints both: ``make version``."""

from __future__ import annotations

import pathlib
import platform
import subprocess
from typing import Any

VERSION = "0.1.0"  # stands here alone; the newest heading of CHANGELOG.md is held to it by a test


def git_facts(folder: pathlib.Path) -> dict[str, Any]:
    """Tell the commit of the checkout a folder lies in, and whether tracked files differ; empty outside of one."""
    outputs = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            git = subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, check=False)
        except OSError:
            return {}
        if git.returncode:
            return {}
        outputs.append(git.stdout.strip())
    return {"commit": outputs[0], "dirty": bool(outputs[1])}


def full_version(git: dict[str, Any]) -> str:
    """Return the version with the commit, such as ``0.1.0+g0123abc.dirty``; the version alone where there is no git.

    Args:
        git: From :func:`git_facts`.
    """
    commit = str(git.get("commit") or "")[:7]
    return VERSION + (f"+g{commit}" if commit else "") + (".dirty" if commit and git.get("dirty") else "")


def describe_versions(git: dict[str, Any]) -> str:
    """Name lora-forge, ansible-core and Python with their versions, in one line for people.

    Args:
        git: From :func:`git_facts`.
    """
    # Here, as programs of a GPU's host import this file without Ansible.
    from ansible.module_utils.ansible_release import __version__ as ansible

    commit = str(git.get("commit") or "")[:7]
    checkout = f" (commit {commit}{', changed' if git.get('dirty') else ''})" if commit else ""
    return f"lora-forge {VERSION}{checkout}, ansible-core {ansible}, Python {platform.python_version()}"


if __name__ == "__main__":
    print(describe_versions(git_facts(pathlib.Path(__file__).resolve().parent)))
