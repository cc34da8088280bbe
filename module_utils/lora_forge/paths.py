"""Paths that another host names: which of them are taken, and how large what lies there may be.

A trainer may be a stranger's machine. Nothing that it names is opened, fetched, written or sent on before it was looked
up here. Python 3.9 or newer.
"""

from __future__ import annotations

import os
import pathlib
import re
import stat
from collections.abc import Iterable
from typing import Any, Optional

LONGEST = 255  # characters of a path below a run directory
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_SETTINGS, _TEXTS = 16 * MIB, 256 * MIB  # what is read as a whole; what grows with a vocabulary or with each step
# What an adapter consists of: its place in the run directory -> the most bytes that it may have.
ADAPTER = {
    "output/adapter_config.json": _SETTINGS,
    "output/adapter_model.safetensors": 32 * GIB,
    "output/tokenizer.json": _TEXTS,
    "output/tokenizer_config.json": _SETTINGS,
    "output/chat_template.jinja": _SETTINGS,
    "output/special_tokens_map.json": _SETTINGS,
    "output/trainer_state.json": _TEXTS,
    "output/gradients.json": _SETTINGS,
    "expected.json": 64 * MIB,  # a line for each tensor
    "answers.jsonl": 64 * MIB,
    "axolotl.yml": _SETTINGS,
    "metrics.jsonl": 64 * MIB,  # as much as is read of it
    "train.log": GIB,
}
# One folder for each start. The mark that a record was uploaded is left here, and is none that a trainer could leave.
_WANDB = re.compile(r"wandb/(?:offline-)?run-[A-Za-z0-9_][A-Za-z0-9_.-]*/run-[A-Za-z0-9_][A-Za-z0-9_.-]*\.wandb")
_MOST_WANDB = 256 * MIB
MOST_RECORDS = 1000  # starts of a run

# What a training resumes from (transformers/trainer.py 5.20, Axolotl 0.21): each is safetensors, JSON, or a pickle that
# both read with weights_only. Not training_args.bin, which nothing reads again, and which could not be read so.
_CHECKPOINT = {
    "adapter_model.safetensors": 32 * GIB,
    "adapter_config.json": _SETTINGS,
    "optimizer.pt": 64 * GIB,
    "scheduler.pt": _SETTINGS,
    "scaler.pt": _SETTINGS,
    "rng_state.pth": _SETTINGS,
    "trainer_state.json": _TEXTS,
    "tokens_state.json": _SETTINGS,  # Axolotl's count of tokens
    "gradients.json": _SETTINGS,
}
_RNG_STATE = re.compile(r"rng_state_\d{1,4}\.pth")  # of each process, where there are several
CHECKPOINT_NEEDS = ("adapter_model.safetensors", "trainer_state.json")
# What FSDP and DeepSpeed write instead. Some of it is unpickled without a limit to what that may run.
_SHARDED = re.compile(
    r"pytorch_model_fsdp|optimizer_\d|optimizer\.bin$|global_step\d|latest$|zero_|mp_rank_|.*\.distcp$|\.metadata$"
)


def flaw(path: Any) -> Optional[str]:
    """Say why a path that another host names is none to follow; None where it leads to a place below a folder.

    Args:
        path: What the host said.
    """
    if not isinstance(path, str) or not path:
        return "is no path"
    if len(path) > LONGEST:
        return f"is longer than {LONGEST} characters"
    if not path.isprintable() or "\\" in path:
        return "has characters that no such path has"
    if path.startswith(("/", "~")):
        return "is no path below a folder"
    parts = path.split("/")
    if ".." in parts:
        return "leads out of its folder"
    if "" in parts or "." in parts:
        return "has an empty part"
    return None


def quoted(path: Any) -> str:
    """Quote what another host said for a message: in one line, and not too long."""
    text = ascii(path)
    return text if len(text) <= 80 else f"{text[:79]}…"


def adapter_limit(path: Any) -> Optional[int]:
    """Return the most bytes that a file of an adapter may have; None where an adapter has no such file.

    Args:
        path: Below the run directory.
    """
    if flaw(path):
        return None
    return ADAPTER.get(path, _MOST_WANDB if _WANDB.fullmatch(path) else None)


def checkpoint_limit(name: Any) -> Optional[int]:
    """Return the most bytes that a file of a checkpoint may have; None where none is needed to go on from it.

    Args:
        name: Below the checkpoint's folder.
    """
    if flaw(name):
        return None
    return _CHECKPOINT.get(name, _SETTINGS if _RNG_STATE.fullmatch(name) else None)


def is_sharded(name: str) -> bool:
    """Tell whether a file is of a checkpoint in parts, as FSDP and DeepSpeed write it: such a one stays on its host.

    Args:
        name: Below the checkpoint's folder.
    """
    return "/" in name or bool(_SHARDED.match(name))


def strangers(folder: pathlib.Path, wanted: Iterable[str]) -> list[str]:
    """List what lies in a folder beside what is wanted there: other names, links, devices, and anything in their place.

    Args:
        folder: A folder that was filled by another host.
        wanted: Paths below it, of plain files.

    Returns:
        Paths below it; of a folder that is none of the wanted ones' the folder alone.
    """
    files = set(wanted)
    folders = {str(parent) for name in files for parent in pathlib.PurePosixPath(name).parents} - {"."}
    found = []
    for place, below, names in os.walk(folder):
        for name in (*below, *names):
            path = pathlib.Path(place, name)
            known = str(path.relative_to(folder))
            mode = path.lstat().st_mode
            if not ((stat.S_ISREG(mode) and known in files) or (stat.S_ISDIR(mode) and known in folders)):
                found.append(known)
        below[:] = [name for name in below if str(pathlib.Path(place, name).relative_to(folder)) in folders]
    return sorted(found)


def through_link(folder: pathlib.Path, path: str) -> bool:
    """Tell whether the way to a file, or the file itself, is a symbolic link.

    Args:
        folder: Where the way begins; it may be a link itself.
        path: Below it.
    """
    place = folder
    for part in pathlib.PurePosixPath(path).parts:
        place = place / part
        if place.is_symlink():
            return True
    return False
