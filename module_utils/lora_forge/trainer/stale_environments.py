"""Environments of a trainer that no lock names any more: what they take, who uses them, their end.

Runs on trainers: Python 3.9 or newer.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.trainer import runs
from ansible.module_utils.lora_forge.trainer.environment import COMPLETE, lock_file

# Of an environment: what environment_name makes, and what it made earlier.
_NAME = re.compile(r"([\w-]+-)?[0-9a-f]{16}")


def unnamed_environments(root: pathlib.Path, named: Sequence[str]) -> list[dict[str, Any]]:
    """List the environments of a trainer that some locks do not name, with what keeps each from being removed.

    Args:
        root: The trainer's root.
        named: The names of the locks' environments.

    Returns:
        ``name``, ``path``, ``used_by`` (words, or empty), ``bytes`` on disk and ``shared``, those of them that uv's
        cache has as well; of one that is used they are 0.
    """
    linked = {os.path.realpath(root / "env" / name) for name in named}
    users = _users(root)
    stale = []
    for home in sorted((root / "env").glob("*")):
        if not _NAME.fullmatch(home.name) or home.name in named or os.path.realpath(home) in linked:
            continue
        used = _used(home, users)
        with contextlib.suppress(BlockingIOError), _locked(home):
            own, shared = (0, 0) if used else _sizes(home)
            stale.append(
                {"name": home.name, "path": str(home), "bytes": own + shared, "shared": shared, "used_by": used}
            )
            continue
        stale.append({"name": home.name, "path": str(home), "bytes": 0, "shared": 0, "used_by": "a build that goes on"})
    return stale


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


def prune_table(
    host: str, environments: Sequence[dict[str, Any]], freed: int, remove: bool, check: bool
) -> dict[str, Any]:
    """Lay out for people which environments no lock names, as ``show`` takes it; empty where there are none.

    Args:
        host: What people call the trainer.
        environments: From :func:`unnamed_environments`, each with ``removed``.
        freed: Bytes.
        remove: Whether removing them was asked for.
        check: Whether it was only predicted.
    """
    if not environments:
        return {}
    rows = []
    for row in environments:
        fate = f"used by {row['used_by']}" if row["used_by"] else "removed" if row["removed"] and not check else ""
        rows.append([row["name"], round(row["bytes"] / 1e6), round(row["shared"] / 1e6), fate])
    line = f"  {host}: no lock of this checkout names these; -e trainer_prune=true removes them"
    if remove:
        line = (
            f"  {host}: {round(freed / 1e6, 1)} MB {'would be freed' if check else 'freed'}; what uv has in its cache "
            "stays there, until uv cache clean"
        )
    return {"columns": ["environment", "MB", "in uv's cache too", ""], "rows": rows, "lines": [line]}


@contextlib.contextmanager
def _locked(home: pathlib.Path) -> Iterator[None]:
    """Hold the lock of an environment's builders, or raise BlockingIOError at once."""
    path = lock_file(home)
    # Environments of a time when they had no lock get none.
    with rundir.locked(path, timeout=0) if path.exists() else contextlib.nullcontext():
        yield


def _sizes(home: pathlib.Path) -> tuple[int, int]:
    """Measure an environment's files on disk, in bytes: those that are nowhere else, and those that uv's cache has."""
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
    """List who runs a program, and the folder that it lies in, links resolved: this machine's processes, and runs.

    A run that waits for its lane or its job, or that another machine with this volume trains, has no process here.
    """
    users = [(f"process {pid}", folder) for pid, folder in _programs()]
    for path in (root / "runs").glob("*/run.json"):
        command = rundir.read_json(path).get("command")
        if isinstance(command, list) and command and not runs.is_over(path.parent):
            users.append((f"run {path.parent.name}", os.path.realpath(os.path.dirname(str(command[0])))))
    return users


def _programs() -> list[tuple[int, str]]:
    """List the processes of this machine, each with the folder of the program that it runs, links resolved."""
    programs = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            program = os.fsdecode((entry / "cmdline").read_bytes().split(b"\0")[0])
            programs.append((int(entry.name), os.path.realpath(os.path.dirname(program)) if "/" in program else ""))
    return programs
