"""Environments of a trainer that no lock names any more: what they take, who uses them, their end.

Runs on trainers: Python 3.9 or newer.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.trainer.environment import COMPLETE

_NAME = re.compile(
    r"([\w-]+-)?[0-9a-f]{16}"
)  # of an environment: what environment_name makes, and what it made earlier


def unnamed_environments(root: pathlib.Path, named: Sequence[str]) -> list[dict[str, Any]]:
    """The environments of a trainer that some locks do not name, with what keeps each from being removed.

    Args:
        root: The trainer's root.
        named: The keys of the locks.

    Returns:
        ``name``, ``path``, ``used_by`` (words, or empty), ``bytes`` on disk and ``shared``, those of them that uv's
        cache has as well; of one that is used they are 0.
    """
    linked = {os.path.realpath(root / "env" / name) for name in named}
    users = _users(root)
    found = []
    for home in sorted((root / "env").glob("*")):
        if not _NAME.fullmatch(home.name) or home.name in named or os.path.realpath(home) in linked:
            continue
        used = _used(home, users)
        with contextlib.suppress(BlockingIOError), _locked(home):
            own, shared = (0, 0) if used else _sizes(home)
            found.append(
                {"name": home.name, "path": str(home), "bytes": own + shared, "shared": shared, "used_by": used}
            )
            continue
        found.append({"name": home.name, "path": str(home), "bytes": 0, "shared": 0, "used_by": "a build that goes on"})
    return found


def remove(root: pathlib.Path, home: pathlib.Path) -> bool:
    """Remove an environment, unless it is used or built by now: its mark first, so that nobody takes a rest for whole.

    Args:
        root: The trainer's root.
        home: From :func:`unnamed_environments`.

    Returns:
        Whether it was removed.

    Raises:
        OSError: It could not be.
    """
    with contextlib.suppress(BlockingIOError), _locked(home):
        if _used(home, _users(root)):
            return False
        if home.is_symlink():
            home.unlink()
        elif home.exists():
            (home / COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(home)
        return True
    return False


@contextlib.contextmanager
def _locked(home: pathlib.Path) -> Iterator[None]:
    """Hold the lock of an environment's builders, or raise BlockingIOError at once."""
    path = home.with_name(f"{home.name}.lock")
    if not path.exists():  # of a time when they had none
        yield
        return
    with path.open("r+") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _sizes(home: pathlib.Path) -> tuple[int, int]:
    """Bytes on disk of an environment's files: of those that are nowhere else, and of those that uv's cache has."""
    own = shared = 0
    for folder, _, names in os.walk(home) if not home.is_symlink() else ():
        for name in names:
            file = os.lstat(os.path.join(folder, name))
            own += 512 * file.st_blocks if file.st_nlink == 1 else 0
            shared += 512 * file.st_blocks if file.st_nlink > 1 else 0
    return own, shared


def _used(home: pathlib.Path, users: Sequence[tuple[str, str]]) -> str:
    inside = f"{os.path.realpath(home)}/"
    return next((who for who, folder in users if f"{folder}/".startswith(inside)), "")


def _users(root: pathlib.Path) -> list[tuple[str, str]]:
    """Who runs a program, and the folder that it lies in, links resolved: this machine's processes, and runs.

    A run that waits for its lane, or that another machine with this volume trains, has no process here.
    """
    found = [(f"process {pid}", folder) for pid, folder in _programs()]
    for path in (root / "runs").glob("*/run.json"):
        command = rundir.read_json(path).get("command")
        state = rundir.read_json(path.with_name("status.json")).get("state")
        if isinstance(command, list) and command and state not in rundir.FINAL_STATES:
            found.append((f"run {path.parent.name}", os.path.realpath(os.path.dirname(str(command[0])))))
    return found


def _programs() -> list[tuple[int, str]]:
    """The processes of this machine, each with the folder of the program that it was started by, links resolved."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            program = os.fsdecode((entry / "cmdline").read_bytes().split(b"\0")[0])
            found.append((int(entry.name), os.path.realpath(os.path.dirname(program)) if "/" in program else ""))
    return found
