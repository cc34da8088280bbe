"""The GPUs of a trainer: what nvidia-smi says of them, and what keeps a training from running there.

Runs on trainers: Python 3.9 or newer, standard library only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import subprocess
from collections.abc import Iterable
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError

# What each CUDA needs. Drivers: NVIDIA, «CUDA Toolkit Release Notes», table «CUDA Toolkit and Minimum Required
# Driver Version for CUDA Minor Version Compatibility» (Linux x86_64); one minimum serves every minor version.
# Compute capabilities: bitsandbytes 0.50 «Installation Guide» (NF4 from 6.0 on); CUDA 13 itself begins at 7.5
# («CUDA Toolkit 13.0 Release Notes», dropped architectures: Maxwell, Pascal, Volta).
CUDA = {"12": ("525.60.13", "6.0"), "13": ("580.65.06", "7.5")}

# The compute capabilities an Axolotl attn_implementation runs on, from and to (""; no bound). A higher one does
# not always do: FlashAttention 3 is made of instructions that Hopper alone has. FlashAttention's README;
# Axolotl 0.21's own checks of sage, fp8 and FlashAttention 4 (utils/schemas/config.py, flash_attn_4.py); varlen and
# flash_attention_torch are FlashAttention 2 as torch has it, which is refused below 8.0 («only supports gpu
# architectures in the range [sm80, …]», libtorch_cuda.so of torch 2.14).
ATTENTION = {
    "eager": ("", ""),
    "sdpa": ("", ""),
    "xformers": ("", ""),
    "flex_attention": ("", ""),
    "flash_attention_2": ("8.0", ""),
    "kernels-community/flash-attn2": ("8.0", ""),
    "flash_attention_torch": ("8.0", ""),
    "varlen": ("8.0", ""),
    "flash_attention_3": ("9.0", "9.9"),
    "kernels-community/flash-attn3": ("9.0", "9.9"),
    "flash_attention_4": ("9.0", "11.9"),
    "sage": ("8.0", "12.0"),
    "kernels-community/sage-attention": ("8.0", "12.0"),
    "fp8": ("9.0", ""),
}
# The first compute capability with units for bf16 and tf32 (Ampere). Below it torch says that it has bf16, and emulates
# it (torch.cuda.is_bf16_supported), and transformers refuses to begin with tf32 (TrainingArguments).
_AMPERE = "8.0"
# MiB without which nothing is tried, as CUDA's context alone takes hundreds of them: the floor where the size of the
# weights is not known.
_LEAST = 1024
_CROWDED = 1024  # MiB that others may hold without a word when it is not known how much a training needs

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
)


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


@dataclasses.dataclass(frozen=True)
class GpuRequirements:
    """What a training wants of the GPUs of a host.

    Attributes:
        cuda: The CUDA version of the environment's torch, such as ``13.0``; empty: the driver is not checked.
        count: How many GPUs.
        memory_gib: GiB of memory that the training is thought to need on each GPU; None: not known. Less is warned of.
        bf16: It computes in bf16.
        tf32: It computes in tf32.
        varlen: It packs samples with sdpa, which Axolotl then computes by torch's own FlashAttention.
        attention: Axolotl's ``attn_implementation``, each that a recipe names.
        lane: The UUID of the one GPU that is meant; empty: any may get the training, so all are checked.
        floor_gib: GiB that it certainly needs; None: not known. Less is refused.
    """

    cuda: str = ""
    count: int = 1
    memory_gib: Optional[float] = None
    bf16: bool = False
    tf32: bool = False
    varlen: bool = False
    attention: tuple[str, ...] = ()
    lane: str = ""
    floor_gib: Optional[float] = None


def recipe_requirements(recipes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What recipes ask of the generation of a GPU, as Axolotl 0.21 reads their keys.

    Args:
        recipes: Of the runs that a host is for.

    Returns:
        Arguments of :class:`GpuRequirements`: bf16, tf32, varlen, attention.
    """
    recipes = list(recipes)
    return {
        "bf16": any(_bf16(recipe) for recipe in recipes),
        "tf32": any(recipe.get("tf32") is True for recipe in recipes),  # «auto» is what the GPU can do
        "varlen": any(_varlen(recipe) for recipe in recipes),
        "attention": tuple(dict.fromkeys(filter(None, (recipe.get("attn_implementation") for recipe in recipes)))),
    }


def _bf16(recipe: dict[str, Any]) -> bool:
    # utils/config, resolve_dtype: left out it is «auto», and that is bf16 wherever torch has or emulates it
    value = recipe.get("bf16", "auto")
    return bool(recipe.get("bfloat16") or value in (True, "full") or (value == "auto" and not recipe.get("fp16")))


def _varlen(recipe: dict[str, Any]) -> bool:
    # loaders/patch_manager.py, _apply_sdpa_varlen_patch: in 16 bits only, or packing is left to a mask
    packed_sdpa = recipe.get("attn_implementation") == "sdpa" and recipe.get("sample_packing")
    half = _bf16(recipe) or any(recipe.get(key) for key in ("fp16", "float16", "load_in_8bit"))
    return bool(packed_sdpa and half and recipe.get("sdpa_varlen") is not False)


def query(program: str = "nvidia-smi", timeout: float = 20.0) -> dict[str, Any]:
    """Ask nvidia-smi for the GPUs and who uses them; nothing is changed.

    Args:
        program: nvidia-smi, as a path or a name on PATH.
        timeout: Seconds each call of it may take; a stuck driver makes it hang for ever.

    Returns:
        driver: Its version, or None.
        gpus: For each {index, uuid, name, memory_mib, used_mib, free_mib, compute_capability, ecc_errors
            (uncorrected, since the driver was loaded), remap_pending, remap_failure, retired_pending,
            recovery_action, mig, use (percent)}; None where the driver or the GPU does not tell.
        processes: For each {gpu_uuid, pid, name, used_mib, run}; run is its lora-forge run directory, or None.
        runs: The run directories of all lora-forge runs with a live trainer on this host, on a GPU or not.
        error: A sentence on what went wrong, with the remedy, or None.
    """
    found: dict[str, Any] = {"driver": None, "gpus": [], "processes": [], "runs": [], "error": None}
    try:
        rows = _gpus(program, timeout)
        found["driver"] = rows[0]["driver"]
        found["gpus"] = [{key: value for key, value in row.items() if key != "driver"} for row in rows]
        runs = _runs()
        found["runs"] = sorted(set(runs.values()))
        found["processes"] = [{**row, "run": runs.get(row["pid"])} for row in _processes(program, timeout)]
    except UserError as error:
        found["error"] = str(error)
    return found


def gpu_usage(program: str = "nvidia-smi", timeout: float = 5.0) -> list[dict[str, Any]]:
    """How busy the GPUs are: {index, uuid, name, memory_mib, used_mib, use} for each; empty where there is none."""
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
            rows.append(row)
    if not rows:
        raise UserError(f"{program} named no GPU. It said: {_short(text)}")
    return rows


def _read(name: str, value: str) -> Any:
    # «[N/A]», «[Not Supported]», «[Insufficient Permissions]», «[Requested functionality has been deprecated]», …
    if not value or value.startswith("[") or value in ("N/A", "Not Supported"):
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
    """The run directory of every process that belongs to a lora-forge run, by pid."""
    found = {}
    marker = f"{rundir.MARKER}=".encode()
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                for variable in (entry / "environ").read_bytes().split(b"\0"):
                    if variable.startswith(marker):
                        found[int(entry.name)] = os.fsdecode(variable[len(marker) :])
    return found


def _ask(program: str, what: str, timeout: float) -> tuple[int, str]:
    """Run one query; returns its exit code and all it printed (failures are told on standard output)."""
    command = [program, what, "--format=csv,noheader,nounits"]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
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
        for words, sentence in _FAILURES:
            if words in text:
                raise UserError(sentence)
        raise UserError(f"{program} failed with exit code {code}. It said: {_short(text)}")


def _short(text: str) -> str:
    return " ".join(text.split())[:300] or "nothing"


def cuda_of_lock(text: str) -> Optional[str]:
    """The CUDA version that the text of a lock pins, such as ``13.0``; None in a lock without CUDA."""
    match = re.search(r"^nvidia-cuda-runtime(?:-cu\d+)?==(\d+\.\d+)", text, re.MULTILINE)
    return match.group(1) if match else None


def problems(found: dict[str, Any], wanted: GpuRequirements) -> list[str]:
    """Everything that keeps a training from running on this host.

    Args:
        found: From :func:`query`.
        wanted: What the training wants.

    Returns:
        Sentences: what was found, and what to do. Empty when the host is fit.
    """
    said = [found["error"]] if found["error"] else []
    gpus = found["gpus"]
    if not gpus:
        return said
    said += _driver_problems(found["driver"], wanted.cuda)
    if len(gpus) < wanted.count:
        said.append(f"this host has {len(gpus)} GPU(s), and {wanted.count} are wanted. Take a host with more of them")
    meant = [gpu for gpu in gpus if wanted.lane in ("", gpu["uuid"])]
    if not meant:
        there = ", ".join(f"{gpu['uuid']} ({_name(gpu)})" for gpu in gpus)
        said.append(f"there is no GPU {wanted.lane} on this host; it has {there}. Name one of these")
    for gpu in meant:
        said += _capability_problems(gpu, wanted)
        said += _health_problems(gpu)
        said += _memory_problems(gpu, found, wanted)
    return said


def warnings(found: dict[str, Any], wanted: GpuRequirements) -> list[str]:
    """What may end a training on this host, and keeps nobody from trying.

    It is less memory than was estimated, on the GPU or beside what others hold there: a desktop's windows, too.

    Args:
        found: From :func:`query`.
        wanted: What the training wants.

    Returns:
        Sentences.
    """
    meant = [gpu for gpu in found["gpus"] if wanted.lane in ("", gpu["uuid"])]
    return [sentence for gpu in meant for sentence in _memory_doubts(gpu, found, wanted)]


def _usable(gpu: dict[str, Any]) -> Optional[int]:
    """MiB that trainings can have, the driver's own left out; None where nvidia-smi does not tell."""
    total, used, free = gpu["memory_mib"], gpu["used_mib"], gpu["free_mib"]
    if total is None or used is None:
        return None
    return int(total if free is None else used + free)


def _name(gpu: dict[str, Any]) -> str:
    return f"GPU {gpu['index']}, {gpu['name']}"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def _driver_problems(driver: Optional[str], cuda: str) -> list[str]:
    if not cuda:
        return []
    if cuda.partition(".")[0] not in CUDA:
        return [f"no minimum driver is noted for CUDA {cuda}. Add it to CUDA in module_utils/lora_forge/trainer/gpu.py"]
    minimum = CUDA[cuda.partition(".")[0]][0]
    if driver is None:
        return [f"nvidia-smi does not tell the driver's version; CUDA {cuda} needs {minimum} or newer. Update it"]
    if _version(driver) >= _version(minimum):
        return []
    return [
        f"the NVIDIA driver is {driver}, and CUDA {cuda}, which the environment's torch is built with, needs {minimum} "
        f"or newer. Update the driver, or take a host with a newer one (RunPod: minCudaVersion {cuda})"
    ]


def _capability_problems(gpu: dict[str, Any], wanted: GpuRequirements) -> list[str]:
    floor = CUDA.get(wanted.cuda.partition(".")[0], ("", ""))[1]
    ampere = "or take an Ampere GPU or newer"
    limits = [
        (f"CUDA {wanted.cuda}", floor, "", "Take a newer GPU"),
        ("bf16", _AMPERE if wanted.bf16 else "", "",
         f"Set bf16: false and fp16: true for this machine (configs/machines/), {ampere}"),
        ("tf32", _AMPERE if wanted.tf32 else "", "", f"Set tf32: false for this machine (configs/machines/), {ampere}"),
        ("attn_implementation: sdpa with sample_packing", _AMPERE if wanted.varlen else "", "",
         f"Set sdpa_varlen: false for this machine (configs/machines/), {ampere}"),
    ]  # fmt: skip
    for named in wanted.attention:
        least, most = ATTENTION.get(re.split("[@:]", named)[0], ("", ""))  # a hub's kernel: with revision, function
        remedy = "Set attn_implementation: sdpa for this machine (configs/machines/), or take another GPU"
        limits.append((f"attn_implementation: {named}", least, most, remedy))
    have = gpu["compute_capability"]
    said = []
    for what, low, high, remedy in limits:
        needs = f"{low} to {high}" if high else f"{low} or newer"
        if low and have is None:
            said.append(f"{_name(gpu)}: the driver does not tell its compute capability; {what} needs {needs}. "
                        "Update the driver")  # fmt: skip
        elif (low and _version(have) < _version(low)) or (high and _version(have) > _version(high)):
            said.append(f"{_name(gpu)}: compute capability {have}, and {what} needs {needs}. {remedy}")
    return said


def _health_problems(gpu: dict[str, Any]) -> list[str]:
    repair = f"Reset it (nvidia-smi --gpu-reset -i {gpu['index']}) or reboot; replace a rented host"
    said = []
    if gpu["ecc_errors"]:
        said.append(
            f"{_name(gpu)}: {gpu['ecc_errors']} uncorrected memory error(s) since the driver was loaded. {repair}"
        )
    if gpu["remap_failure"]:
        said.append(f"{_name(gpu)}: a faulty row of its memory could not be remapped. Replace the GPU or the host")
    if gpu["remap_pending"] or gpu["retired_pending"]:
        said.append(f"{_name(gpu)}: faulty memory waits to be taken out of use. {repair}")
    if gpu["recovery_action"] not in (None, "None"):
        said.append(f"{_name(gpu)}: the driver asks for its recovery by «{gpu['recovery_action']}». {repair}")
    if gpu["mig"]:
        said.append(
            f"{_name(gpu)}: it is split by MIG, and a training would see a part of it. Switch MIG off "
            f"(nvidia-smi -i {gpu['index']} -mig 0), or take a host with a whole GPU"
        )
    return said


def _memory_problems(gpu: dict[str, Any], found: dict[str, Any], wanted: GpuRequirements) -> list[str]:
    if gpu["mig"]:
        return []  # what is told of it is not what a training would see; said among the health problems
    usable = _usable(gpu)
    if usable is None:
        return [f"{_name(gpu)}: nvidia-smi does not tell its memory. Reset it or reboot; replace a rented host"]
    floor = _LEAST if wanted.floor_gib is None else wanted.floor_gib * 1024
    why = "no training fits into less than 1 GiB"
    if wanted.floor_gib is not None:
        why = f"the weights alone take {wanted.floor_gib:.1f} GiB"
    if usable < floor:
        return [f"{_name(gpu)}: {usable / 1024:.1f} GiB of memory, and {why}. Take a larger GPU"]
    held, who = _others(gpu, found)
    if usable - held < floor:
        return [f"{_name(gpu)}: {who}; {_left(usable, held)}, and {why}. End what holds it, or take another GPU"]
    return []


def _memory_doubts(gpu: dict[str, Any], found: dict[str, Any], wanted: GpuRequirements) -> list[str]:
    usable = _usable(gpu)
    if gpu["mig"] or usable is None or _memory_problems(gpu, found, wanted):
        return []  # it is refused
    needed = None if wanted.memory_gib is None else wanted.memory_gib * 1024
    estimate = (
        f"the training is thought to need {wanted.memory_gib:.1f} GiB (an estimate, not measured)" if needed else ""
    )
    if needed is not None and usable < needed:
        return [
            f"{_name(gpu)}: {usable / 1024:.1f} GiB of memory, and {estimate}. It is tried; should it run out of "
            "memory, take a larger GPU, or a machine class with a smaller micro_batch_size (configs/machines/)"
        ]
    held, who = _others(gpu, found)
    if held <= _CROWDED if needed is None else usable - held >= needed:
        return []  # what others hold is little, or leaves enough
    return [
        f"{_name(gpu)}: {who}; {_left(usable, held)}"
        + (f", and {estimate}" if estimate else "")
        + ". It is tried; should it run out of memory, end what holds it, or take another GPU"
    ]


def _others(gpu: dict[str, Any], found: dict[str, Any]) -> tuple[int, str]:
    """MiB that others than lora-forge's own runs hold on a GPU, and who they are, in words."""
    here = [process for process in found["processes"] if process["gpu_uuid"] == gpu["uuid"]]
    ours = [process for process in here if process["run"] is not None]
    others = [process for process in here if process["run"] is None]
    seen = _sum(others)
    hidden = max(0, gpu["used_mib"] - _sum(ours) - seen)
    runs_are_seen = any(process["run"] is not None for process in found["processes"])
    if (found["runs"] and not runs_are_seen) or any(process["used_mib"] is None for process in ours):
        # A container hides processes, or gives them other pids: it is a lora-forge run's, for all that can be told.
        # That run holds the lane, ours will queue, and then its memory is free.
        hidden = 0
    who = [f"process {one['pid']} ({one['name']}) holds {_mib(one['used_mib'])}" for one in others]
    if not others or (hidden > _CROWDED and all(one["used_mib"] is not None for one in others)):
        who.append(f"{hidden} MiB are held by no process that can be seen from here (containers hide those of others)")
    return seen + hidden, "; ".join(who)


def _left(usable: int, held: int) -> str:
    return f"{(usable - held) / 1024:.1f} of {usable / 1024:.1f} GiB are left"


def _sum(processes: list[dict[str, Any]]) -> int:
    return sum(process["used_mib"] or 0 for process in processes)


def _mib(used: Optional[int]) -> str:
    return "an unknown amount of memory" if used is None else f"{used} MiB"
