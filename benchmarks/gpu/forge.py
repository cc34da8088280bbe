"""What the GPU benchmarks share: the project's own modules on a machine without Ansible, an idle GPU, facts, files."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import re
import signal
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
COMMIT = "LORA_FORGE_COMMIT"  # variable that names the commit where there is no checkout of git
IDLE_MIB = 1024  # of the GPU's memory that the driver and the like may hold while nothing computes
IDLE_TIMEOUT = 60  # seconds to wait for the memory of a process that has just ended


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
    """Return the variables of a training process that does without a trainer, and the folders of its plugins.

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


def left_behind(out: pathlib.Path) -> list[pathlib.Path]:
    """Find half-made ``<out>.partial.<pid>`` of processes that are gone."""
    parts = out.parent.glob(f"{out.name}.partial.*")
    return [part for part in parts if not pathlib.Path("/proc", part.suffix[1:]).exists()]


def smi(*query: str) -> list[str]:
    """Return the lines of nvidia-smi's answer to a query; none where it does not answer."""
    try:
        text = subprocess.check_output(["nvidia-smi", *query, "--format=csv,noheader,nounits"], text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def gpu_facts() -> dict[str, Any]:
    """Return name, memory, driver, power limit and UUID of the first GPU; an empty one where there is none."""
    keys = ("name", "memory.total", "driver_version", "power.limit", "uuid")
    found = smi(f"--query-gpu={','.join(keys)}")
    return dict(zip(keys, (value.strip() for value in found[0].split(",")))) if found else {}


def used_mib() -> Optional[int]:
    """Return the MiB that are in use on the first GPU now, by anybody; None where nothing tells."""
    found = smi("--query-gpu=memory.used")
    return int(found[0]) if found and found[0].isdigit() else None


def end(run_dir: pathlib.Path) -> None:
    """Kill a run as a dying host would: SIGKILL to the supervisor and to every process of the run."""
    from ansible.module_utils.lora_forge import rundir

    status = rundir.read_json(run_dir / "status.json")
    # The supervisor first, or it would start the training again.
    pids = [status["supervisor"]["pid"]] if rundir.is_alive(status.get("supervisor")) else []
    for pid in [*pids, *rundir.run_processes(run_dir)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while rundir.run_processes(run_dir) and time.monotonic() < deadline:
        time.sleep(0.1)


def die_with_parent() -> None:
    """Have the kernel end this process with the one that started it, or it would keep the GPU from what follows."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def make_idle(work: pathlib.Path, seconds: float = IDLE_TIMEOUT) -> None:
    """Make sure that a measurement has the GPU to itself: end runs of this work folder, and wait for the memory.

    Raises:
        SystemExit: Somebody else computes there.
    """
    for run_dir in (work / "runs").glob("*"):
        end(run_dir)
    deadline = time.monotonic() + seconds
    while (used_mib() or 0) > IDLE_MIB:
        if time.monotonic() > deadline:
            who = "; ".join(smi("--query-compute-apps=pid,process_name,used_memory")) or "no process that can be seen"
            raise SystemExit(
                f"the GPU is in use: {used_mib()} MiB, by {who}. Nothing is measured beside others: end them, and run "
                "the same command again"
            )
        time.sleep(0.5)


def commit() -> Optional[str]:
    """Return the commit of the checkout, ``-dirty`` where files differ from it, or the one that a variable names."""

    def git(*words: str) -> str:
        return subprocess.check_output(["git", *words], cwd=ROOT, text=True, stderr=subprocess.DEVNULL).strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get(COMMIT)


def facts() -> dict[str, Any]:
    """Say where a figure was taken: GPU, versions, commit, date, cores."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    about = {"gpu": gpu_facts(), "versions": versions, "commit": commit()}
    return about | {"date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count()}


def host_memory() -> float:
    """Return the bytes of memory that this host, or the container's limit, still has; infinity if unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = pathlib.Path("/proc/meminfo").read_text(encoding="utf-8")
        found.append(1024.0 * int(text.partition("MemAvailable:")[2].split()[0]))
    with contextlib.suppress(OSError, ValueError):
        found.append(float(pathlib.Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return min(found, default=float("inf"))


def results(given: argparse.Namespace, work: pathlib.Path) -> pathlib.Path:
    """Return where the JSON files go: a folder for each kind of GPU; with ``--tiny`` not into the checkout.

    Raises:
        SystemExit: There is no GPU.
    """
    if given.tiny:
        return (work / "results" if given.results == RESULTS else given.results) / "tiny"
    name = gpu_facts().get("name")
    if not name:
        raise SystemExit("nvidia-smi names no GPU here; --tiny tries the programs on a CPU")
    return pathlib.Path(given.results) / slug(name)


def slug(name: str) -> str:
    """Turn a name into a folder's: ``NVIDIA H100 80GB HBM3`` becomes ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def save(path: pathlib.Path, data: Any) -> None:
    """Write JSON in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(path)


def load(path: pathlib.Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one where there is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines; a line that was cut off is skipped."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
