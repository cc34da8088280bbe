"""The GPUs of a trainer: what nvidia-smi says of them, and of who uses them.

Runs on trainers: Python 3.9 or newer, standard library only.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import subprocess
from typing import Any, Callable

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.trainer import slurm_commands

# What nvidia-smi says when it fails, and what that means. The first match decides.
_FAILURES = (
    (
        "No devices were found",
        "nvidia-smi found no GPU: the driver is there, but this host or container has been given no device. Start "
        "the container with its GPUs (docker run --gpus all), or take another host; a rented one that was stopped "
        "may come back without its GPU",
    ),
    (
        "Driver/library version mismatch",
        "the NVIDIA driver was updated while it was loaded: its kernel module and its library are of different "
        "versions (Driver/library version mismatch). Reboot the host, or reload the nvidia kernel modules",
    ),
    (
        "couldn't communicate with the NVIDIA driver",
        "the NVIDIA driver's kernel module is not loaded. Load it (modprobe nvidia) or reboot; after a kernel "
        "update, install the driver again",
    ),
    (
        "Failed to initialize NVML: Unknown Error",
        "this container has lost its GPUs (Failed to initialize NVML: Unknown Error). Restart the container",
    ),
    ("is lost", "a GPU has fallen off the bus. Reboot the host; replace a rented one"),
    (
        "Unknown Error",
        "a GPU does not answer its driver (Unknown Error), as one does that has failed or has fallen off the bus. "
        "Reboot the host; replace a rented one",
    ),
)
# What nvidia-smi says of a GPU in place of a value where the GPU has failed.
_FAULTS = ("ERR!", "Unknown Error", "GPU is lost", "GPU requires reset")


def _flag(value: str) -> bool:
    return value.lower() in ("yes", "1", "enabled")


# nvidia-smi's name -> ours, and how its text is read. What a driver does not know, or a GPU does not have, is None.
_FIELDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "index": ("index", int),
    "uuid": ("uuid", str),
    "name": ("name", str),
    "driver_version": ("driver", str),
    "memory.total": ("memory_mib", int),
    "memory.used": ("used_mib", int),
    "memory.free": ("free_mib", int),  # not total minus used: the driver keeps some hundred MiB for itself
    "compute_cap": ("compute_capability", str),
    "ecc.errors.uncorrected.volatile.total": ("ecc_errors", int),
    "remapped_rows.pending": ("remap_pending", _flag),  # Ampere and newer
    "remapped_rows.failure": ("remap_failure", _flag),
    "retired_pages.pending": ("retired_pending", _flag),  # before Ampere
    "gpu_recovery_action": ("recovery_action", str),  # None (the word), Reset, Reboot, …
    "mig.mode.current": ("mig", _flag),
    "utilization.gpu": ("use", int),  # percent of the last second or less in which something ran
}


def query(program: str = "nvidia-smi", timeout: float = 20.0) -> dict[str, Any]:
    """Ask nvidia-smi for the GPUs and who uses them; nothing is changed.

    Args:
        program: nvidia-smi, as a path or a name on PATH.
        timeout: Seconds each call of it may take; a stuck driver makes it hang for ever.

    Returns:
        driver: Its version, or None.
        gpus: For each {index, uuid, name, memory_mib, used_mib, free_mib, compute_capability, ecc_errors
            (uncorrected, since the driver was loaded), remap_pending, remap_failure, retired_pending,
            recovery_action, mig, use (percent), fault (what nvidia-smi says in place of values where the GPU has
            failed)}; None where the driver or the GPU does not tell.
        processes: For each {gpu_uuid, pid, name, used_mib, run}; run is its lora-forge run directory, or None.
        runs: The run directories of all lora-forge runs with a live trainer on this host, on a GPU or not.
        error: A sentence on what went wrong, with the remedy, or None.
    """
    snapshot: dict[str, Any] = {"driver": None, "gpus": [], "processes": [], "runs": [], "error": None}
    try:
        rows = _gpus(program, timeout)
        snapshot["driver"] = rows[0]["driver"]
        snapshot["gpus"] = [{key: value for key, value in row.items() if key != "driver"} for row in rows]
        runs = _runs()
        snapshot["runs"] = sorted(set(runs.values()))
        snapshot["processes"] = [{**row, "run": runs.get(row["pid"])} for row in _processes(program, timeout)]
    except UserError as error:
        snapshot["error"] = str(error)
    return snapshot


def gpu_usage(program: str = "nvidia-smi", timeout: float = 5.0) -> list[dict[str, Any]]:
    """Tell how busy each GPU is: {index, uuid, name, memory_mib, used_mib, use}; an empty list where there is none."""
    names = ("index", "uuid", "name", "memory_mib", "used_mib", "use")
    try:
        return [{name: row[name] for name in names} for row in _gpus(program, timeout)]
    except UserError:
        return []


def _gpus(program: str, timeout: float) -> list[dict[str, Any]]:
    names = list(_FIELDS)
    while True:
        code, text = _ask(program, f"--query-gpu={','.join(names)}", timeout)
        unknown = re.search(r'Field "([^"]+)" is not a valid field', text)
        if not unknown or unknown.group(1) not in names:
            break
        names.remove(unknown.group(1))  # this driver is older than the field
    _check(program, code, text)
    rows = []
    for line in text.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) == len(names) and values[0].isdigit():  # warnings are printed among the rows
            row: dict[str, Any] = {key: None for key, _ in _FIELDS.values()}
            row.update((_FIELDS[name][0], _read(name, value)) for name, value in zip(names, values))
            said = [value.strip("[]") for name, value in zip(names, values) if name != "utilization.gpu"]
            row["fault"] = next((value for value in said if value in _FAULTS), None)
            rows.append(row)
    if not rows:
        raise UserError(_meaning(text) or f"{program} named no GPU. It said: {_short(text)}")
    return rows


def _read(name: str, value: str) -> Any:
    # «[N/A]», «[Not Supported]», «[Insufficient Permissions]», «[Requested functionality has been deprecated]», …
    if not value or value.startswith("[") or value in ("N/A", "Not Supported", *_FAULTS):
        return None
    try:
        return _FIELDS[name][1](value)
    except ValueError:
        return None


def _processes(program: str, timeout: float) -> list[dict[str, Any]]:
    code, text = _ask(program, "--query-compute-apps=gpu_uuid,pid,process_name,used_memory", timeout)
    _check(program, code, text)
    rows = []
    for line in text.splitlines():
        # Read from both ends: a process name may have commas in it.
        values = [value.strip() for value in line.split(",")]
        if len(values) >= 4 and values[1].isdigit():
            used = values[-1]
            rows.append(
                {
                    "gpu_uuid": values[0],
                    "pid": int(values[1]),
                    "name": ", ".join(values[2:-1]),
                    "used_mib": int(used) if used.isdigit() else None,
                }
            )
    return rows


def _runs() -> dict[int, str]:
    """Find the run directory of every process that belongs to a lora-forge run, by pid."""
    runs = {}
    marker = f"{rundir.MARKER}=".encode()
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                for variable in (entry / "environ").read_bytes().split(b"\0"):
                    if variable.startswith(marker):
                        runs[int(entry.name)] = os.fsdecode(variable[len(marker) :])
    return runs


def _ask(program: str, what: str, timeout: float) -> tuple[int, str]:
    """Run one query, and return its exit code and all it printed (failures are told on standard output)."""
    command = [program, what, "--format=csv,noheader,nounits"]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
        if slurm_commands.is_login_node():
            raise UserError(slurm_commands.LOGIN_NODE) from None
        raise UserError(
            f"{program} is not here: no NVIDIA driver is installed. Install one, start the container with its GPUs "
            "(docker run --gpus all), or take a host that has a GPU"
        ) from None
    except OSError as error:
        raise UserError(f"{program} cannot be started: {error.strerror}. Install the NVIDIA driver again") from None
    try:
        text, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{program} hangs: no answer within {timeout:g} s, so the driver is stuck. Reboot the host; replace a "
            "rented one"
        ) from None
    finally:
        if process.returncode is None:
            _kill(process)
    return process.returncode, text


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its whole group: it is the leader of its own
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)  # one that is stuck inside the kernel ends only with the reboot
    if process.stdout:
        process.stdout.close()


def _check(program: str, code: int, text: str) -> None:
    if code:
        raise UserError(_meaning(text) or f"{program} failed with exit code {code}. It said: {_short(text)}")


def _meaning(text: str) -> str:
    """Say what a failure of nvidia-smi means, and what to do; empty where it is not known."""
    return next((sentence for words, sentence in _FAILURES if words in text), "")


def _short(text: str) -> str:
    return " ".join(text.split())[:300] or "nothing"
