"""Slurm's commands on this host: where they are, and what they say. Python 3.9 or newer."""

from __future__ import annotations

import functools
import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Callable

NO_SBATCH = (
    "run_backend is slurm, but there is no sbatch here, for a login shell neither\nName a login node of the cluster; "
    "where Slurm is a module, let ~/.bash_profile load it (module load slurm)"
)
LOGIN_NODE = (
    "this host has Slurm's sbatch and no GPU, as a login node has. Set run_backend: slurm, and run_slurm to what a job "
    "asks for; or run_backend: process, to train on this very host"
)
# Seconds for a command; with Slurm's controller away it fails after 9 to 18 s by itself. A question to a host has 60 s.
ANSWER_WITHIN = 40.0
_LOGIN_WITHIN = 20.0  # seconds for a login shell to come up
# What it is asked for: where Slurm's commands are, what they need, and of which cluster they are to speak.
_OF_A_LOGIN = ("PATH", "LD_LIBRARY_PATH")
_OF_SLURM = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS")

Runner = Callable[[Sequence[str], str], "tuple[int, str]"]


class Silent(Exception):
    """Slurm has not answered: nobody knows what is in the queue."""


def run_command(command: Sequence[str], given: str = "") -> tuple[int, str]:
    """Run a command of Slurm's; return its exit status and what it printed.

    Args:
        command: Its words.
        given: Its standard input.

    Raises:
        Silent: It is not here, or has not ended in time.
    """
    # What the login's environment sets would go before ours: SBATCH_EXPORT, SQUEUE_FORMAT, SLURM_TIME_FORMAT.
    env = {name: value for name, value in os.environ.items() if not re.match(r"(SBATCH|SQUEUE|SCANCEL|SLURM)_", name)}
    kept = {name: os.environ[name] for name in _OF_SLURM if name in os.environ}
    of_a_login = {} if shutil.which(command[0]) else _login_environment()
    try:
        done = subprocess.run(
            [*command], input=given, env={**env, **kept, **of_a_login, "LC_ALL": "C"}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", timeout=ANSWER_WITHIN, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        said = os.fsdecode(error.output or b"").strip()  # such as «queue full, sleeping and retrying»
        meanwhile = f": {one_line(said)}" if said else ""
        raise Silent(f"{command[0]} gave no answer within {ANSWER_WITHIN:g} s{meanwhile}") from None
    except OSError as error:
        raise Silent(f"{command[0]} could not be run: {error.strerror}") from None
    return done.returncode, done.stdout.strip()


@functools.lru_cache(maxsize=1)
def _login_environment() -> dict[str, str]:
    """Ask a login shell what it has for Slurm's commands: on many clusters only who logs in has them on the PATH.

    Returns:
        Variables; none where there is no such shell, or it does not come up in time.
    """
    try:
        # bash, as whoever has another shell has /etc/profile all the same. Profiles print things: ours begins with \0.
        said = subprocess.run(
            ["bash", "-lc", "printf '\\0'; env -0"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, timeout=_LOGIN_WITHIN, check=False,
        ).stdout  # fmt: skip
    except subprocess.TimeoutExpired as error:
        said = error.output or b""  # a profile may leave something running that holds the pipe
    except OSError:
        said = b""
    found = dict(entry.partition("=")[::2] for entry in os.fsdecode(said).split("\0")[1:])
    return {name: found[name] for name in (*_OF_A_LOGIN, *_OF_SLURM) if name in found}


def _folder(command: str = "sbatch") -> str:
    """Return the folder of a command of Slurm's; empty where it is not to be found."""
    path = shutil.which(command) or shutil.which(command, path=_login_environment().get("PATH", ""))
    return os.path.dirname(path or "")


def folders() -> str:
    """Return where a job finds what it calls itself, as PATH has it: a site may have a program in sbatch's place."""
    return ":".join(dict.fromkeys(filter(None, map(_folder, ("scontrol", "srun", "sbatch"))))) or "/usr/bin"


def has_slurm() -> bool:
    """Tell whether jobs can be submitted here, by somebody who logs in at least."""
    return bool(_folder())


def is_login_node() -> bool:
    """Tell whether this host can submit jobs and has no GPU itself."""
    return not pathlib.Path("/dev/nvidiactl").exists() and has_slurm()


def user_option() -> str:
    """Return the option that means this user's jobs: by the id, as a login may have another's name in LOGNAME."""
    return f"--user={os.getuid()}"


def one_line(text: str) -> str:
    """Return what a command of Slurm's said, in one line without its own name before it."""
    lines = [re.sub(r"^(sbatch|squeue|scancel|scontrol): (error: )?", "", line) for line in text.splitlines()]
    return "; ".join(dict.fromkeys(filter(None, lines)))[:500] or "it said nothing"
