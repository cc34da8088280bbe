"""What a job asks of Slurm, as run_slurm has it, and what can be wrong with that. Python 3.9 or newer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Optional

from ansible.module_utils.lora_forge.text import nearest

# What run_slurm may say, and which option of sbatch that is.
KEYS = {
    "account": "account",
    "comment": "comment",
    "constraint": "constraint",
    "cpus": "cpus-per-task",
    "exclude": "exclude",
    "gpus": "gpus",
    "gres": "gres",
    "licenses": "licenses",
    "memory": "mem",
    "nice": "nice",
    "nodelist": "nodelist",
    "partition": "partition",
    "qos": "qos",
    "reservation": "reservation",
    "time": "time",
    "wckey": "wckey",
}
_VALUE = re.compile(r"[A-Za-z0-9_.,:=*+|&()\[\]@%/-]{1,500}")
_TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}|UNLIMITED|INFINITE", re.IGNORECASE)
_LONGEST_SIGNAL = 65_535  # seconds before the end of its time at which a job can be told
_EARLY = 60  # seconds by which it may be told before that


def gpus_of(given: Mapping[str, Any]) -> int:
    """Return how many GPUs ``gres`` asks for, or else ``gpus``.

    Args:
        given: run_slurm.
    """
    count = 0
    # gpu, gpu:2, gpu:2080ti:1, gpu:a100:2(S:0-1,3): a last part that is a number is how many.
    for asked in re.sub(r"\([^)]*\)", "", str(given.get("gres") or "")).split(","):
        name, *rest = re.split("[:=]", asked)
        if name == "gpu":
            count += int(rest[-1]) if rest and rest[-1].isdecimal() else 1
    if "gpus" in given:
        parts = [asked.rpartition(":")[2] for asked in str(given["gpus"]).split(",")]
        count += sum(int(part) if part.isdecimal() else 1 for part in parts)
    return count


def told_before(stop_timeout: int) -> int:
    """Return how many seconds before the end of its time a job is told to end: Slurm may be late by a minute.

    Args:
        stop_timeout: Seconds that the training has for its checkpoint.
    """
    return min(_LONGEST_SIGNAL, stop_timeout + 60)


def seconds_of(limit: str) -> Optional[int]:
    """Return a time limit as Slurm reads it in seconds; None where there is none.

    Args:
        limit: Such as ``90`` (minutes), ``90:00``, ``12:00:00``, ``2-12``, ``2-12:00:00``, ``UNLIMITED`` or ``0``.
    """
    days, _, rest = limit.rpartition("-")
    if not rest.replace(":", "").isdecimal():
        return None
    parts = [int(part) for part in rest.split(":")]
    if not days and len(parts) < 3:
        parts = [0, *parts]  # it begins with minutes
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return (((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds) or None


def hours_of(given: Mapping[str, Any]) -> Optional[float]:
    """Return the most hours that ``time`` lets a job take; None where nothing is said, or no end.

    Args:
        given: run_slurm, without :func:`problems`.
    """
    seconds = seconds_of(str(given.get("time") or ""))
    return None if seconds is None else seconds / 3600


def problems(given: Any, gpus: int, stop_timeout: int = 120) -> list[str]:
    """Say what is wrong with run_slurm, before anything is asked of a cluster.

    Args:
        given: What the inventory says.
        gpus: How many GPUs a run takes; 0 where it is a rehearsal.
        stop_timeout: Seconds that the training has for its checkpoint.

    Returns:
        Sentences; empty where nothing is.
    """
    if not isinstance(given, Mapping):
        return ["run_slurm must be a mapping, such as {partition: gpu, gres: 'gpu:1', time: '12:00:00'}"]
    found = []
    for key, value in given.items():
        if key not in KEYS:
            found.append(f"run_slurm has no «{key}»{_meant(str(key))} It takes {', '.join(KEYS)}")
        elif isinstance(value, bool) or not isinstance(value, (str, int)):
            found.append(f"run_slurm: {key} must be text or a whole number")
        elif str(value).startswith("-") or not _VALUE.fullmatch(str(value)):
            found.append(f"run_slurm: {key} is «{str(value)[:60]}», which no option of sbatch can be")
        elif key == "time" and not isinstance(value, str):
            # YAML reads 12:00:00 as 43200, which Slurm would take for minutes.
            found.append(f"run_slurm: time must stand in quotes, such as '12:00:00'; YAML has read it as {value}")
        elif key == "time" and not _TIME.fullmatch(str(value)):
            found.append(f"run_slurm: time is «{value}»; write 'hours:minutes:seconds' or 'days-hours'")
        elif key == "time" and (seconds_of(str(value)) or math.inf) <= told_before(stop_timeout) + _EARLY:
            found.append(
                f"run_slurm: time is «{value}», and a job is told to end {told_before(stop_timeout)} s before (a "
                f"minute and run_stop_timeout), or up to {_EARLY} s earlier: it would come to nothing"
            )
    if "gpus" in given and gpus_of({"gres": given.get("gres")}):
        found.append("run_slurm: gres and gpus both ask for GPUs; keep one of them")
    asked = gpus_of(given)
    if not found and gpus and asked != gpus:
        wrong = f"asks for {asked} GPUs" if asked else "asks for no GPU"
        found.append(f"run_slurm {wrong}, and a run takes {gpus} (run_gpus): set gres to 'gpu:{gpus}'")
    return found


def _meant(key: str) -> str:
    """Return which key was meant, as ``nearest`` does; sbatch's own words are known, too."""
    word = key.lower().replace("_", "-")
    known = next((name for name, option in KEYS.items() if option == word), "gres" if word.startswith("gpu") else "")
    return f"; did you mean «{known}»?" if known else nearest(key, list(KEYS)) or "."


def over_cap(given: Mapping[str, Any], gpus: int, most: float) -> str:
    """Say that a job may take more GPU hours than it is to; empty where it may not.

    Args:
        given: run_slurm, without :func:`problems`.
        gpus: How many GPUs a run takes; 0 where it is a rehearsal.
        most: The cap (run_slurm_max_gpu_hours); 0 for none.
    """
    if not most or not gpus:
        return ""
    cap, hours = f"run_slurm_max_gpu_hours is {most:g}", hours_of(given)
    if hours is None:
        return f"{cap}, and run_slurm says no time: set one, such as time: '{max(1, int(most / gpus))}:00:00'"
    if hours * gpus <= most:
        return ""
    on = f"{gpus} GPUs" if gpus > 1 else "a GPU"
    return f"a job may take {hours * gpus:.4g} GPU hours ({hours:.4g} h on {on}), and {cap}"
