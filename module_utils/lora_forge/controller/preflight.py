"""What a trainer is asked of its runs' recipes before the weights are there, and what follows from its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.lora_forge.data import dataset
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning import launch, validation
from ansible.module_utils.lora_forge.text import short

END = "Nothing of it was trained. Correct the recipe, and run the same command again."


def questions(asked: Sequence[PlannedRun], root: str, gpus: Sequence[str]) -> list[dict[str, Any]]:
    """Write what is asked about runs, as the module ``recipe_check`` takes it.

    Args:
        asked: The runs, none of them a rehearsal.
        root: The trainer's root.
        gpus: The names of its GPUs.
    """
    return [
        {
            "run_id": run.run_id,
            "run_dir": launch.run_dir(run, root),
            "model": str(run.recipe["base_model"]),
            "revision": str(run.recipe.get("model_revision") or ""),
            "recipe": validation.rendered(run, root),
            "capabilities": validation.capabilities(run, gpus),
            "needs": {
                word: place.rpartition("/")[2]  # what the folders here are called is no trainer's matter
                for word, place in dataset.needs(run.datasets).items()
            },
        }
        for run in asked
    ]


def waiting(host: str, asked: Sequence[PlannedRun]) -> str:
    """Say what is waited for.

    Args:
        host: The trainer.
        asked: The runs.
    """
    names = ", ".join(dict.fromkeys(run.name for run in asked))
    bases = ", ".join(dict.fromkeys(str(run.recipe["base_model"]) for run in asked))
    return f"  {host}: holding the recipes of {names} against {bases}, which takes half a minute"


def conclude(host: str, asked: Sequence[PlannedRun], answer: Mapping[str, Any]) -> dict[str, Any]:
    """Conclude from a trainer's answer which of its runs cannot begin.

    Args:
        host: The trainer.
        asked: The runs.
        answer: Of ``recipe_check``. A run that it does not name has begun already, or was held against its base before.

    Returns:
        ``lines`` and ``warnings`` for people, ``refusals`` (run_id -> why, in sentences), and ``all``, whether no run
        is left that can begin.
    """
    found = {one["run_id"]: one for one in answer["answers"]}
    lines, warnings, refusals = [], [], {}
    if answer["left_out"]:
        warnings.append(f"{host}: the recipes were not held against their base models: {answer['left_out']}")
    for run in asked:
        one = found.get(run.run_id)
        if one is None:
            continue
        said = [f"{reason}: {sentence}" for reason, sentence in validation.objections(run, one)]
        if said:
            warnings.append(f"{host}: {run.run_id} cannot begin; its turn says why, and the other runs go on")
            refusals[run.run_id] = "\n".join([*said, END])
        elif one["unknown"]:
            base = run.recipe["base_model"]
            warnings.append(f"{host}: the recipe of {run.name} was not held against {base}: {one['unknown']}")
        else:
            count = f"{short(one['parameters'])} trained parameters in {one['tensors']} tensors"
            lines.append(f"  {host}: the recipe of {run.name} fits its base model: {count}")
            warnings += [f"{host}: {run.name}: {sentence}" for sentence in one["warnings"]]
    everything = bool(refusals) and len(refusals) == len(asked)
    return {"lines": lines, "warnings": warnings, "refusals": refusals, "all": everything}
