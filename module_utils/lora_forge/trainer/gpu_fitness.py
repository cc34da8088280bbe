"""Whether a trainer's GPUs are fit for a training: what keeps it from running there, and what may end it.

Runs on trainers: Python 3.9 or newer, standard library only.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any, Optional

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
    """Read what recipes ask of the generation of a GPU, as Axolotl 0.21 reads their keys.

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


def cuda_of_lock(text: str) -> Optional[str]:
    """Read the CUDA version that the text of a lock pins, such as ``13.0``; None in a lock without CUDA."""
    match = re.search(r"^nvidia-cuda-runtime(?:-cu\d+)?==(\d+\.\d+)", text, re.MULTILINE)
    return match.group(1) if match else None


def problems(snapshot: dict[str, Any], wanted: GpuRequirements) -> list[str]:
    """List everything that keeps a training from running on this host.

    Args:
        snapshot: From ``gpu.query``.
        wanted: What the training wants.

    Returns:
        Sentences: what was found, and what to do. Empty when the host is fit.
    """
    sentences = [snapshot["error"]] if snapshot["error"] else []
    gpus = snapshot["gpus"]
    if not gpus:
        return sentences
    sentences += _driver_problems(snapshot["driver"], wanted.cuda)
    if len(gpus) < wanted.count:
        sentences.append(
            f"this host has {len(gpus)} GPU(s), and {wanted.count} are wanted. Take a host with more of them"
        )
    candidates = [gpu for gpu in gpus if wanted.lane in ("", gpu["uuid"])]
    if not candidates:
        there = ", ".join(f"{gpu['uuid']} ({_name(gpu)})" for gpu in gpus)
        sentences.append(f"there is no GPU {wanted.lane} on this host; it has {there}. Name one of these")
    for gpu in candidates:
        if gpu["fault"]:
            sentences.append(
                f"{_name(gpu)}: nvidia-smi has «{gpu['fault']}» in place of what it asks it, so that the GPU or its "
                f"driver has failed. {_repair(gpu)}"
            )
            continue
        sentences += _capability_problems(gpu, wanted)
        sentences += _health_problems(gpu)
        sentences += _memory_problems(gpu, snapshot, wanted)
    return sentences


def warnings(snapshot: dict[str, Any], wanted: GpuRequirements) -> list[str]:
    """List what may end a training on this host, and keeps nobody from trying.

    It is less memory than was estimated, on the GPU or beside what others hold there: a desktop's windows, too.

    Args:
        snapshot: From ``gpu.query``.
        wanted: What the training wants.

    Returns:
        Sentences.
    """
    candidates = [gpu for gpu in snapshot["gpus"] if wanted.lane in ("", gpu["uuid"])]
    return [sentence for gpu in candidates for sentence in _memory_warnings(gpu, snapshot, wanted)]


def _usable(gpu: dict[str, Any]) -> Optional[int]:
    """Return the MiB that trainings can have, the driver's own left out; None where nvidia-smi does not tell."""
    total, used, free = gpu["memory_mib"], gpu["used_mib"], gpu["free_mib"]
    if total is None or used is None:
        return None
    return int(total if free is None else used + free)


def _name(gpu: dict[str, Any]) -> str:
    return f"GPU {gpu['index']}, {gpu['name']}"


def _repair(gpu: dict[str, Any]) -> str:
    return f"Reset it (nvidia-smi --gpu-reset -i {gpu['index']}) or reboot; replace a rented host"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def _driver_problems(driver: Optional[str], cuda: str) -> list[str]:
    if not cuda:
        return []
    if cuda.partition(".")[0] not in CUDA:
        return [
            f"no minimum driver is noted for CUDA {cuda}. "
            "Add it to CUDA in module_utils/lora_forge/trainer/gpu_fitness.py"
        ]
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
    sentences = []
    for what, low, high, remedy in limits:
        needs = f"{low} to {high}" if high else f"{low} or newer"
        if low and have is None:
            sentences.append(f"{_name(gpu)}: the driver does not tell its compute capability; {what} needs {needs}. "
                        "Update the driver")  # fmt: skip
        elif (low and _version(have) < _version(low)) or (high and _version(have) > _version(high)):
            sentences.append(f"{_name(gpu)}: compute capability {have}, and {what} needs {needs}. {remedy}")
    return sentences


def _health_problems(gpu: dict[str, Any]) -> list[str]:
    repair = _repair(gpu)
    sentences = []
    if gpu["ecc_errors"]:
        sentences.append(
            f"{_name(gpu)}: {gpu['ecc_errors']} uncorrected memory error(s) since the driver was loaded. {repair}"
        )
    if gpu["remap_failure"]:
        sentences.append(f"{_name(gpu)}: a faulty row of its memory could not be remapped. Replace the GPU or the host")
    if gpu["remap_pending"] or gpu["retired_pending"]:
        sentences.append(f"{_name(gpu)}: faulty memory waits to be taken out of use. {repair}")
    if gpu["recovery_action"] not in (None, "None"):
        sentences.append(f"{_name(gpu)}: the driver asks for its recovery by «{gpu['recovery_action']}». {repair}")
    if gpu["mig"]:
        sentences.append(
            f"{_name(gpu)}: it is split by MIG, and a training would see a part of it. Switch MIG off "
            f"(nvidia-smi -i {gpu['index']} -mig 0), or take a host with a whole GPU"
        )
    return sentences


def _memory_problems(gpu: dict[str, Any], snapshot: dict[str, Any], wanted: GpuRequirements) -> list[str]:
    if gpu["mig"]:
        return []  # what is told of it is not what a training would see; told among the health problems
    usable = _usable(gpu)
    if gpu["memory_mib"] is None:
        return []  # it has none of its own; warned of
    if usable is None:
        return [f"{_name(gpu)}: nvidia-smi does not tell its memory. {_repair(gpu)}"]
    floor = _LEAST if wanted.floor_gib is None else wanted.floor_gib * 1024
    why = "no training fits into less than 1 GiB"
    if wanted.floor_gib is not None:
        why = f"the weights alone take {wanted.floor_gib:.1f} GiB"
    if usable < floor:
        return [f"{_name(gpu)}: {usable / 1024:.1f} GiB of memory, and {why}. Take a larger GPU"]
    held, who = _others(gpu, snapshot)
    if usable - held < floor:
        return [f"{_name(gpu)}: {who}; {_left(usable, held)}, and {why}. End what holds it, or take another GPU"]
    return []


def _memory_warnings(gpu: dict[str, Any], snapshot: dict[str, Any], wanted: GpuRequirements) -> list[str]:
    usable = _usable(gpu)
    if gpu["mig"] or gpu["fault"] or _memory_problems(gpu, snapshot, wanted):
        return []  # it is refused
    needed = None if wanted.memory_gib is None else wanted.memory_gib * 1024
    estimate = (
        f"the training is thought to need {wanted.memory_gib:.1f} GiB (an estimate, not measured)" if needed else ""
    )
    if usable is None:
        return [
            f"{_name(gpu)}: nvidia-smi does not tell its memory, as of a GPU that shares the host's (GB10, Jetson)"
            + (f"; {estimate}" if estimate else "")
            + ". It is tried; should it run out of memory, end what else takes the host's (free -h), or take another "
            "host"
        ]
    if needed is not None and usable < needed:
        return [
            f"{_name(gpu)}: {usable / 1024:.1f} GiB of memory, and {estimate}. It is tried; should it run out of "
            "memory, take a larger GPU, or a machine class with a smaller micro_batch_size (configs/machines/)"
        ]
    held, who = _others(gpu, snapshot)
    if held <= _CROWDED if needed is None else usable - held >= needed:
        return []  # what others hold is little, or leaves enough
    return [
        f"{_name(gpu)}: {who}; {_left(usable, held)}"
        + (f", and {estimate}" if estimate else "")
        + ". It is tried; should it run out of memory, end what holds it, or take another GPU"
    ]


def _others(gpu: dict[str, Any], snapshot: dict[str, Any]) -> tuple[int, str]:
    """Return the MiB that others than lora-forge's own runs hold on a GPU, and who they are, in words."""
    there = [process for process in snapshot["processes"] if process["gpu_uuid"] == gpu["uuid"]]
    ours = [process for process in there if process["run"] is not None]
    others = [process for process in there if process["run"] is None]
    seen = _sum(others)
    hidden = max(0, gpu["used_mib"] - _sum(ours) - seen)
    runs_are_seen = any(process["run"] is not None for process in snapshot["processes"])
    if (snapshot["runs"] and not runs_are_seen) or any(process["used_mib"] is None for process in ours):
        # A container hides processes, or gives them other pids: it is a lora-forge run's, for all that can be told.
        # That run holds the lane, ours will queue, and then its memory is free.
        hidden = 0
    who = [f"process {process['pid']} ({process['name']}) holds {_mib(process['used_mib'])}" for process in others]
    if not others or (hidden > _CROWDED and all(process["used_mib"] is not None for process in others)):
        who.append(f"{hidden} MiB are held by no process that can be seen from here (containers hide those of others)")
    return seen + hidden, "; ".join(who)


def _left(usable: int, held: int) -> str:
    return f"{(usable - held) / 1024:.1f} of {usable / 1024:.1f} GiB are left"


def _sum(processes: list[dict[str, Any]]) -> int:
    return sum(process["used_mib"] or 0 for process in processes)


def _mib(used: Optional[int]) -> str:
    return "an unknown amount of memory" if used is None else f"{used} MiB"
