"""What ssh and rsync say when they fail, read: what it is, and what to do about it."""

from __future__ import annotations

import dataclasses
import re
from typing import Callable, Optional

# What Ansible writes before ssh's own words; the second one where a module went along.
_ANSIBLE = re.compile(
    r"^\s*(Failed to connect to the host via ssh|Data could not be sent to remote host \"[^\"]*\"\. "
    r"Make sure this host can be reached over ssh):\s*",
)
_LINES = 24  # lines of what was said that are shown, at most: a changed key takes as many


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What a sentence of ssh's or rsync's means.

    Attributes:
        words: What to look for.
        what: Says what it is, of a host.
        advice: What to do.
        whole: Whether all lines are shown; else the one with the words alone.
    """

    words: re.Pattern[str]
    what: Callable[[str], str]
    advice: str
    whole: bool = False


def _meaning(words: str, what: Callable[[str], str], advice: str, whole: bool = False) -> Meaning:
    return Meaning(re.compile(words, re.IGNORECASE), what, advice, whole)


# The first one that fits counts. What is in none of them is a host that does not answer, or a transfer that was cut.
LOGIN = (
    _meaning(
        r"Host key verification failed",
        lambda host: f"{host} is not known by its key, and nothing was sent to it",
        "If it is a new host, or was made anew, connect once by hand and compare its fingerprint; if not, somebody may "
        "be in between",
        whole=True,
    ),
    _meaning(
        r"too long for Unix domain socket|ControlPath too long",
        lambda host: f"{host} was not asked: the path of the shared connection is too long for a socket",
        "Name a short folder: export ANSIBLE_SSH_CONTROL_PATH_DIR=~/.s",
    ),
    _meaning(
        r"Bad configuration option|Bad owner or permissions on|terminating, \d+ bad configuration"
        r"|unsupported option|keyword \S+ extra arguments",
        lambda host: f"{host} was not asked: ssh does not take its configuration",
        "Correct the file that it names, or ansible_ssh_common_args and ansible_ssh_args in the inventory",
        whole=True,
    ),
    _meaning(
        r"Could not resolve hostname",
        lambda host: f"{host} has no address that this machine knows",
        "Correct its name in the inventory, or set ansible_host",
    ),
    _meaning(
        r"Too many authentication failures",
        lambda host: f"{host} refuses the login, as ssh offered it more keys than it looks at",
        "Name the one key: ansible_ssh_private_key_file, and ansible_ssh_common_args: -o IdentitiesOnly=yes",
    ),
    _meaning(
        r"UNPROTECTED PRIVATE KEY FILE|Load key \".*\": ",
        lambda host: f"{host} refuses the login, as the key could not be used",
        "Correct the key's file or its mode (chmod 600), or name another one: ansible_ssh_private_key_file",
        whole=True,
    ),
    _meaning(
        r"Permission denied \([a-z,-]+\)|No supported authentication methods|Invalid/incorrect (username/)?password",
        lambda host: f"{host} refuses the login",
        "Correct ansible_user or ansible_ssh_private_key_file. The same by hand, with ssh -v, shows which keys are "
        "offered",
    ),
    _meaning(
        r"System is (booting up|going down)|not permitted to log in yet|/run/nologin",
        lambda host: f"{host} lets nobody in while it starts or shuts down",
        "The same command in a minute",
    ),
)
ACCOUNT = (
    _meaning(
        r"account is (currently )?not available|account has expired|nologin:",
        lambda host: f"{host} runs nothing for this user, who has no login shell",
        "Give the user a shell (usermod --shell /bin/bash NAME), or set ansible_user to one that has one",
    ),
    _meaning(
        r"allows sftp connections only|This rssh|restricted to (sftp|scp|rsync)",
        lambda host: f"{host} runs nothing for this user, who may move files by sftp only",
        "Set ansible_user to one that may run commands, or take ForceCommand internal-sftp from sshd's configuration",
    ),
)
PYTHON = (
    _meaning(
        r"python[\d.]*['\"]?: (not found|No such file|cannot execute|Permission denied|command not found)",
        lambda host: f"{host} cannot run anything of lora-forge's, as its Python is not there",
        "Install Python 3.9 or newer on it, or name another one: ansible_python_interpreter",
    ),
)
TRANSFER = (
    _meaning(
        r"is your shell clean",
        lambda host: f"{host} has a shell that prints something when it starts, and that gets in between the two rsync",
        "Let ~/.bashrc, ~/.profile and their like print to terminals only: «ssh HOST true» must print nothing",
    ),
    _meaning(
        r"rsync: (command )?not found|command not found: rsync|Unknown command: rsync|rsync is not found"
        r"|remote command not found|exec.* rsync.*No such file",
        lambda host: f"{host} or this machine has no rsync",
        "rsync is needed on both ends. Debian, Ubuntu: apt-get install rsync",
    ),
    _meaning(
        r"No space left|Disk quota exceeded",
        lambda host: f"{host} has a full disk, or this machine has",
        "The disk is full. Free some space; the same command goes on where it was cut.",
    ),
    _meaning(
        r"sudo: ",
        lambda host: f"{host} does not let rsync run as the user whom become names",
        "Let that login use sudo without a password, or log in as that user and drop ansible_become",
    ),
    _meaning(
        r"Operation not permitted \(1\)|cannot change|chmod:.*Operation not permitted",
        lambda host: f"{host} has a trainer_root that belongs to another user",
        "Each user of a host needs a trainer_root of its own, on a large disk: -e trainer_root=/data/NAME/lora-forge",
    ),
)


def find_meaning(text: str, *tables: tuple[Meaning, ...]) -> Optional[Meaning]:
    """Return what a text means; None where no table has it.

    Args:
        text: What ssh, rsync or a login shell said.
        tables: Where to look.
    """
    return next((each for table in tables for each in table if each.words.search(text)), None)


def explain(host: str, text: str, *tables: tuple[Meaning, ...]) -> str:
    """Say what a failure is, with what was said of it, and what to do; empty where no table has it.

    Args:
        host: The host.
        text: What ssh, rsync or a login shell said.
        tables: Where to look.
    """
    meaning = find_meaning(text, *tables)
    if meaning is None or text.startswith(f"{host} "):  # it was explained already
        return ""
    lines = [line.rstrip() for line in own_words(text).splitlines() if line.strip()]
    if meaning.whole:
        said = "\n" + "\n".join(lines[-_LINES:])
    else:
        said = " " + next(line.strip() for line in lines if meaning.words.search(line))
    return f"{meaning.what(host)}:{said}\n{meaning.advice}"


def own_words(text: str) -> str:
    """Return what ssh said, without what Ansible writes before it.

    Args:
        text: An error of the connection.
    """
    return _ANSIBLE.sub("", text, count=1)


def reason(text: str) -> str:
    """Return the one line of an error of the connection that says the most.

    Args:
        text: The error. What was explained has its reason in the first line, and what ssh said in the last one.
    """
    lines = [line.strip() for line in own_words(text).splitlines() if line.strip()]
    if not lines:
        return "no answer"
    return lines[-1] if _ANSIBLE.match(text) else lines[0]
