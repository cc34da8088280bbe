"""What a trainer knows of a run that somebody else has to understand. Python 3.9 or newer; nothing is changed."""

from __future__ import annotations

import os
import pathlib
import platform
import re
import shutil
from typing import Any, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.trainer import backend, gpu, logs, runs

LINES = 400  # of each log
EVENTS = 500  # the newest ones
_RECIPE = 64 * 1024  # bytes of axolotl.yml
_PACKAGES = 2000


def gather(
    run_dir: pathlib.Path, home: pathlib.Path, lines: int = LINES, stall_timeout: float = 1800
) -> dict[str, Any]:
    """Gather what can be seen of a run and its host, in one go. What is not there is left empty.

    Args:
        run_dir: The run directory; there may be none.
        home: The environment that the run trains in; there may be none.
        lines: How many last lines of each log.
        stall_timeout: As of ``runs.observe``.

    Returns:
        See RETURN of library/training_run_evidence.py.
    """
    seen = runs.observe(run_dir, stall_timeout=stall_timeout).as_dict()
    seen["events"] = seen["events"][-EVENTS:]
    return {
        "seen": seen,
        "train_log": _log(run_dir, "train", lines),
        "supervisor_log": _log(run_dir, "supervisor", lines),
        "axolotl_yml": _beginning(run_dir / "axolotl.yml", _RECIPE),
        "unit": backend.words(run_dir.name, run_dir, rundir.read_run(run_dir)[0]),
        "gpu": gpu.query(),
        "host": host_facts(run_dir),
        "environment": {"name": home.name, "packages": installed(home)},
    }


def _log(run_dir: pathlib.Path, name: str, lines: int) -> str:
    try:
        return str(logs.read_log(run_dir, name, lines=lines)["text"])
    except (UserError, OSError):
        return ""


def _beginning(path: pathlib.Path, most: int) -> str:
    try:
        with rundir.open_regular(path) as file:
            return file.read(most).decode("utf-8", "replace")
    except OSError:
        return ""


def installed(home: pathlib.Path) -> dict[str, str]:
    """Map the packages of an environment to their versions, as their folders are named.

    Args:
        home: The environment.
    """
    names = sorted(path.name[: -len(".dist-info")] for path in home.glob("lib/python3*/site-packages/*.dist-info"))
    # What pip could not delete it has renamed, such as ~orch-2.1.
    names = [name for name in names if rundir.NAME.fullmatch(name.partition("-")[0])]
    return {name: version for name, _, version in (name.partition("-") for name in names[:_PACKAGES])}


def host_facts(place: pathlib.Path) -> dict[str, Any]:
    """Tell what machine this is, and how much of it is free.

    Args:
        place: A folder on the disk that counts; the nearest one that is there is asked.
    """
    release = _beginning(pathlib.Path("/etc/os-release"), 4096)
    named = re.search(r'^PRETTY_NAME="?([^"\n]*)', release, re.MULTILINE)
    memory = dict(re.findall(r"^(\w+):\s+(\d+) kB", _beginning(pathlib.Path("/proc/meminfo"), 8192), re.MULTILINE))
    while not place.exists() and place != place.parent:
        place = place.parent
    disk = shutil.disk_usage(place)
    return {
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "distribution": named[1] if named else "",
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "memory_bytes": _kib(memory.get("MemTotal")),
        "memory_free_bytes": _kib(memory.get("MemAvailable")),
        "disk_bytes": disk.total,
        "disk_free_bytes": disk.free,
    }


def _kib(text: Optional[str]) -> Optional[int]:
    return None if text is None else int(text) * 1024
