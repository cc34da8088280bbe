"""What the GPU benchmarks share: the project's own modules on a machine without Ansible, facts, result files."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import time
import types
from typing import Any, Optional

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/gpu/results"
PLUGINS = (ROOT / "roles/run/files", ROOT / "module_utils/lora_forge", ROOT / "benchmarks/gpu")
PACKAGES = ("axolotl", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "liger-kernel", "triton")
AGAIN = 3  # exit status: the time was up; the same command goes on


def import_forge() -> None:
    """Make ``ansible.module_utils.lora_forge`` importable, also where Ansible is not: it needs only the name."""
    if importlib.util.find_spec("ansible"):
        importlib.import_module("ansible.module_utils")
    else:
        for name in ("ansible", "ansible.module_utils"):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = []  # type: ignore[attr-defined]
    sys.modules["ansible.module_utils"].__path__.append(str(ROOT / "module_utils"))
    if importlib.util.find_spec("jsonschema") is None:
        # Recipes are checked against Axolotl's schema on a controller; here Axolotl itself checks them.
        class Lenient:
            def __init__(self, schema: Any):
                pass

            def iter_errors(self, value: Any) -> list[Any]:
                return []

        stand_in: Any = types.ModuleType("jsonschema")
        stand_in.Draft202012Validator = Lenient
        stand_in.exceptions = types.SimpleNamespace(best_match=lambda errors: None)
        sys.modules["jsonschema"] = stand_in


def environment(tiny: bool) -> dict[str, str]:
    """Variables of a training process, as the role ``run`` sets them, and the folders of its plugins.

    Args:
        tiny: It trains on the CPU.
    """
    found = os.environ.get("PYTHONPATH", "")
    return {
        "AXOLOTL_DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "disabled",
        "PYTHONPATH": os.pathsep.join([*map(str, PLUGINS), *filter(None, [found])]),
        **({"CUDA_VISIBLE_DEVICES": ""} if tiny else {}),
    }


def gpu_facts() -> dict[str, Any]:
    """Name, memory, driver and limit of power of the first GPU, from nvidia-smi; an empty one where there is none."""
    keys = ("name", "memory.total", "driver_version", "power.limit")
    try:
        text = subprocess.check_output(
            ["nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader,nounits"], text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(keys, (value.strip() for value in text.splitlines()[0].split(","))))


def used_mib() -> Optional[int]:
    """MiB that are in use on the first GPU now, by anybody; None where nothing tells."""
    try:
        text = subprocess.check_output(
            ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], text=True, timeout=20
        )
        return int(text.splitlines()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def facts() -> dict[str, Any]:
    """Where a figure was taken: GPU, versions, commit, date."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"gpu": gpu_facts(), "versions": versions, "date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count()}


def slug(name: str) -> str:
    """A name as a folder: ``NVIDIA H100 80GB HBM3`` becomes ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def save(path: pathlib.Path, data: Any) -> None:
    """Write JSON in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(path)


def load(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a line that was cut off is passed over."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
