"""What a run has saved, as it is at first sight: checkpoints, and the weights of its adapter. Python 3.9 or newer."""

from __future__ import annotations

import json
import pathlib
from typing import Any, Optional

from ansible.module_utils.lora_forge import paths, rundir

WEIGHTS = "adapter_model.safetensors"
MAX_HEADER = 32 * paths.MIB  # of a safetensors file; a hundred thousand matrices take less than half of it


def weights_defect(path: pathlib.Path) -> Optional[str]:
    """Say what is wrong with a safetensors file at first sight: missing, cut off or empty; None when nothing is.

    Reads the header alone (https://github.com/huggingface/safetensors#format), so that it costs nothing to ask often.
    What its tensors hold is for ``adapters.store.verify`` to prove.
    """
    try:
        with rundir.open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(MAX_HEADER, path.stat().st_size):
                raise ValueError
            tensors = json.loads(file.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
    except FileNotFoundError:
        return f"{path.name} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        return f"{path.name} cannot be read"
    if not ends:
        return f"{path.name} holds no tensors"
    if path.stat().st_size != 8 + length + max(ends):
        return f"{path.name} is cut off"
    return None


def newest_checkpoint(run_dir: pathlib.Path) -> dict[str, Any]:
    """Return the newest whole checkpoint: its step (0 without one), and its files as paths below the run directory."""
    step = rundir.last_complete(run_dir / "output")
    folder = f"output/checkpoint-{step}"
    files = rundir.read_json(run_dir / folder / rundir.COMPLETE).get("files", {}) if step else {}
    names = [name for name in (*sorted(files), rundir.COMPLETE) if not paths.flaw(name)]
    return {"step": step, "files": [f"{folder}/{name}" for name in names] if step else []}
