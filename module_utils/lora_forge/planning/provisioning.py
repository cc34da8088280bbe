"""What makes a trainer fit to train, worked out on the controller: files, environments, base models."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning import validation
from ansible.module_utils.lora_forge.trainer.environment import environment_name

PREFLIGHT = "preflight"  # the folder of what holds recipes against base models: Python imports nothing else from it
_LOCKS = ("trainer-cpu", "trainer-cuda", "hub")  # whose environments a trainer may have
_FALLBACKS = {"trainer-cpu": "trainer-cuda"}  # where the builds of torch that a lock names cannot be had


@dataclasses.dataclass(frozen=True)
class Provision:
    """What a trainer is to get.

    Attributes:
        checkout: The project's folder, on the controller.
        root: The trainer's root.
        lock: The lock of its environment: trainer-cpu or trainer-cuda.
        runs: Those that it has to be fit for.
        uv: The uv program on the trainer; empty for the pinned one.
        python: The CPython of the environment, a version or a path; empty for any that the locks are for.
        python_download: Whether uv may fetch one.
        torch_backend: uv's torch backend; empty where torch comes from the registry or a folder of wheels.
    """

    checkout: pathlib.Path
    root: str
    lock: str
    runs: tuple[PlannedRun, ...] = ()
    uv: str = ""
    python: str = ""
    python_download: bool = False
    torch_backend: str = ""

    @property
    def models(self) -> list[dict[str, str]]:
        """The base models of the runs, each once: ``model`` and ``revision``. A rehearsal's is made, not fetched."""
        models = [
            {"model": str(run.recipe["base_model"]), "revision": str(run.recipe.get("model_revision") or "")}
            for run in self.runs
            if not run.rehearsal
        ]
        return [model for place, model in enumerate(models) if model not in models[:place]]

    @property
    def files(self) -> list[dict[str, str]]:
        """What ``transfer`` brings below the root: locks, and the programs that run before a run is there."""
        locks = [self.lock, *([_FALLBACKS[self.lock]] if self.lock in _FALLBACKS else [])]
        locks += [*([] if self.uv else ["uv"]), *(["hub"] if self.models else [])]
        programs, checks = ["roles/trainer/files/gpu_check.py"], []
        if self.models:
            programs += ["roles/trainer/files/fetch_model.py", "module_utils/lora_forge/rundir.py"]
            checks = [validation.PROGRAM, *validation.BESIDE]
        brought = [*(("", path) for path in programs), *((f"{PREFLIGHT}/", path) for path in checks)]
        return [
            *({"path": f"requirements/{lock}.txt", "src": str(lock_path(self.checkout, lock))} for lock in locks),
            *(
                {"path": f"{folder}{pathlib.PurePath(path).name}", "src": str(self.checkout / path)}
                for folder, path in brought
            ),
        ]

    @property
    def environment(self) -> dict[str, Any]:
        """The options of trainer_environment."""
        folder, fallback = f"{self.root}/requirements", _FALLBACKS.get(self.lock)
        return {
            "root": self.root,
            "lock": f"{folder}/{self.lock}.txt",
            "uv": self.uv,
            "python": self.python,
            "python_download": self.python_download,
            "torch_backend": self.torch_backend,
            **({} if self.uv else {"uv_lock": f"{folder}/uv.txt"}),
            **({"instead": f"{folder}/{fallback}.txt"} if fallback else {}),
        }

    @property
    def gpu(self) -> dict[str, Any]:
        """The options of gpu_info that follow from the runs and the lock."""
        estimates = [run.estimate for run in self.runs]
        return {
            "lock": f"{self.root}/requirements/{self.lock}.txt",
            "memory_gib": max((estimate.memory_gib or 0 for estimate in estimates), default=0) or None,
            "memory_floor_gib": max((estimate.memory_floor_gib or 0 for estimate in estimates), default=0) or None,
            "recipes": [run.recipe for run in self.runs],
        }


def lock_path(checkout: pathlib.Path, lock: str) -> pathlib.Path:
    """Return where a lock lies in a checkout.

    Args:
        checkout: The project's folder.
        lock: Its name, such as ``trainer-cpu``.
    """
    return checkout / "requirements" / f"{lock}.txt"


def environment_python(root: str, lock: pathlib.Path) -> str:
    """Return the Python of a lock's environment, whether it is there already or not.

    Args:
        root: The trainer's root.
        lock: The lock, in a checkout.
    """
    return f"{root}/env/{environment_name(lock)}/bin/python"


def environment_names(checkout: pathlib.Path, locks: Iterable[str] = _LOCKS) -> list[str]:
    """List the names of the environments that a checkout's locks name.

    Args:
        checkout: The project's folder.
        locks: The locks.
    """
    return [environment_name(lock_path(checkout, lock)) for lock in locks]


def environment_news(host: str, lock: str, answer: dict[str, Any]) -> dict[str, Any]:
    """Say that an environment was made, as ``show`` takes it.

    Args:
        host: The trainer.
        lock: The lock that was asked for.
        answer: Of trainer_environment, which has made it.
    """
    way = "found in the image" if answer["adopted"] else f"made in {answer['seconds']} s"
    interpreter = f", {answer['interpreter']}" if answer.get("interpreter") else ""
    news: dict[str, Any] = {"lines": [f"  {host}: environment {way} ({answer['packages']} packages{interpreter})"]}
    if answer["built_from"] != lock:
        home = pathlib.PurePath(answer["python"]).parents[1]
        news["warnings"] = [
            f"{host}: no build of torch for CPUs can be had from here; the one for CUDA took its place. To try again, "
            f"delete {home}"
        ]
    return news
