"""What a run is launched with, worked out on the controller: lane, command line, environment, paths, files."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

_RUN_FILES = ("supervisor.py", "lora_forge_axolotl.py", "gang.py")  # of roles/run/files; rundir.py comes with them
_PLUGIN = "lora_forge_axolotl.LoraForgePlugin"
TINY_MODEL = "tiny_model.py"


def dataset_path(root: str, one: dict[str, Any]) -> str:
    """Where a dataset of a plan lies on its trainer: by its content, so that no cache outlives a change of it."""
    return f"{root}/datasets/{one['sha256']}/{pathlib.PurePath(one['path']).name}"


def base_model_path(run: dict[str, Any], root: str) -> str:
    """The base model as the trainer finds it: the recipe's, or a rehearsal's, which goes by the data it learnt from.

    Args:
        run: The run's plan.
        root: The trainer's root.
    """
    if not run["rehearsal"]:
        return run["recipe"]["base_model"]
    learnt = hashlib.sha256("".join(one["sha256"] for one in run["datasets"]).encode()).hexdigest()
    return f"{root}/models/{run['recipe']['base_model']}-{learnt[:12]}"


def template_variables(run: dict[str, Any], root: str, wandb: str) -> dict[str, Any]:
    """The variables of templates/axolotl.yml.j2: the recipe, the datasets, and what every run needs.

    Args:
        run: The run's plan.
        root: The trainer's root.
        wandb: ``online``, ``offline`` or ``disabled``.

    Returns:
        run_id, recipe, datasets, test_datasets.
    """
    computed = {
        "base_model": base_model_path(run, root),
        "output_dir": f"{root}/runs/{run['run_id']}/output",
        "dataset_prepared_path": prepared_path(run, root),
        "auto_resume_from_checkpoints": True,
        "include_tkps": True,
        "plugins": [*run["recipe"].get("plugins", []), _PLUGIN],
        "wandb_mode": wandb,
    }
    sets: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for one in run["datasets"]:
        sets[one["use"]].append({**one["entry"], "path": dataset_path(root, one), "split": "train"})
    return {
        "run_id": run["run_id"],
        "recipe": {**run["recipe"], **computed},
        "datasets": sets["train"],
        "test_datasets": sets["val"],
    }


def prepared_path(run: dict[str, Any], root: str) -> str:
    """Where Axolotl keeps a run's tokenised data."""
    return f"{root}/prepared/{run['run_id']}"


def lane_name(run: dict[str, Any], named: Sequence[str], gpus: Sequence[str]) -> str:
    """What a run has to itself: the UUIDs of its GPUs, with commas between them, or a word that begins with cpu.

    Args:
        run: The run's plan.
        named: What the inventory says to train on; it goes before what the trainer has.
        gpus: The UUIDs of the trainer's GPUs.
    """
    count = run.get("gpus", 1)
    cards = list(named) or ([] if run["rehearsal"] else list(gpus))
    lanes = [",".join(cards[at : at + count]) for at in range(0, len(cards), count)] or ["cpu"]
    return lanes[run.get("lane", 0) % len(lanes)]


def training_command(
    run: dict[str, Any], host: str, python: str, module: str, *, address: str, leader: str, port: int, timeout: int
) -> list[str]:
    """The command line of a run on one of its hosts, in its run directory.

    A single process is started directly. For several there is torchrun, which waits for all of them; the launcher that
    Axolotl has would end before them.

    Args:
        run: The run's plan; its first host leads.
        host: This one.
        python: The environment's.
        module: What trains.
        address: Under which the others reach this host.
        leader: Under which this host reaches the first one.
        port: Where they meet there; each lane has one of its own, as lanes train at once.
        timeout: Seconds that they wait for each other.
    """
    hosts, gpus = run.get("hosts") or [host], run.get("gpus", 1)
    if len(hosts) * gpus == 1:
        return [python, "-m", module, "axolotl.yml"]
    meet: list[Any] = ["--standalone"]
    if len(hosts) > 1:
        rank = hosts.index(host)
        options = {"is_host": rank == 0, "join_timeout": timeout, "read_timeout": timeout}
        meet = ["--nnodes", len(hosts), "--node-rank", rank, "--rdzv-backend", "c10d", "--rdzv-id", run["run_id"],
                "--rdzv-endpoint", f"{leader}:{port + run.get('lane', 0)}",
                "--rdzv-conf", ",".join(f"{name}={value}" for name, value in options.items()),
                "--local-addr", address]  # fmt: skip
    return [
        str(word)
        for word in (
            *(python, "-m", "torch.distributed.run", "--nproc-per-node", gpus),
            *meet,
            *("gang.py", module, "axolotl.yml"),
        )
    ]


def training_environment(lane: str, root: str, wandb: str, wandb_server: str) -> dict[str, str]:
    """Environment variables of a training that are no secrets.

    Args:
        lane: Of :func:`lane_name`.
        root: The trainer's root.
        wandb: ``online``, ``offline`` or ``disabled``.
        wandb_server: A W&B server of one's own; empty for W&B's.
    """
    return {
        "AXOLOTL_DO_NOT_TRACK": "1",
        "CUDA_VISIBLE_DEVICES": "" if lane.startswith("cpu") else lane,
        # The environment is made for this: what is compiled once saves each later start 8 s.
        "PYTHONDONTWRITEBYTECODE": "",
        "HF_HOME": f"{root}/models/hub",
        "HF_HUB_OFFLINE": "1",  # what a run needs was fetched before
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": wandb,
        **({"WANDB_BASE_URL": wandb_server} if wandb_server else {}),
    }


def run_facts(run: dict[str, Any], host: str) -> dict[str, Any]:
    """What run.json keeps of a run's plan, for people and later questions.

    Args:
        run: The run's plan.
        host: Where it trains.
    """
    known = {key: run[key] for key in ("agent", "fingerprint", "rehearsal", "recipe_sha256")}
    return known | {"datasets": [one["sha256"] for one in run["datasets"]], "host": host}


def input_files(
    run: dict[str, Any], checkout: pathlib.Path, axolotl: str, kept: pathlib.Path, checkpoint: Sequence[str]
) -> list[dict[str, Any]]:
    """What a run needs on its trainer, as ``transfer`` takes it: paths below the trainer's root.

    Args:
        run: The run's plan. A relative dataset path is meant from the checkout.
        checkout: The project's folder.
        axolotl: The text of axolotl.yml.
        kept: What was fetched of the run from an earlier trainer.
        checkpoint: The files of it that the run goes on from.
    """
    there, programs = f"runs/{run['run_id']}", checkout / "roles/run/files"
    found = [
        {"path": dataset_path(".", one)[2:], "src": str(checkout / one["path"]), "sha256": one["sha256"]}
        for one in run["datasets"]
    ]
    found += [{"path": f"{there}/{name}", "src": str(programs / name)} for name in _RUN_FILES]
    found += [{"path": f"{there}/{name}", "src": str(kept / name)} for name in checkpoint]
    if run["rehearsal"]:
        found.append({"path": TINY_MODEL, "src": str(programs / TINY_MODEL)})
    found.append({"path": f"{there}/rundir.py", "src": str(checkout / "module_utils/lora_forge/rundir.py")})
    found.append({"path": f"{there}/axolotl.yml", "content": axolotl})
    return found
