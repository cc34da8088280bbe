"""What a run takes on a trainer, estimated: tokens, steps, GPU memory, and the answers to its agent's cases."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Optional

from ansible.module_utils.lora_forge.data import dataset
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.evaluation.case import Cases
from ansible.module_utils.lora_forge.planned_run import Estimate, PlannedAnswers, PlannedRun
from ansible.module_utils.lora_forge.planning import answering, launch, memory, questions, recipe, rehearsal, steps
from ansible.module_utils.lora_forge.planning.agent_recipes import AgentRecipes
from ansible.module_utils.lora_forge.planning.fleet import Trainer


def estimate_run(
    recipes: AgentRecipes,
    agent: str,
    keys: dict[str, Any],
    files: list[dataset.DatasetFile],
    trainer: Trainer,
    variant: Optional[dict[str, Any]],
) -> Estimate:
    """Estimate what a run takes on a trainer.

    Args:
        recipes: Those of the checkout.
        agent: Who is trained.
        keys: The recipe, for one process.
        files: Its data.
        trainer: Where it would train.
        variant: Recipe overrides of a sweep.
    """
    estimate = Estimate(
        tokens=sum(file.tokens for file in files if file.use == "train"),
        steps=steps.estimate_steps(keys, files),
        work=steps.estimate_work(keys, files),
    )
    if trainer.profile == rehearsal.PROFILE:
        return estimate
    share = recipe.split_batch(keys, trainer.processes)
    needed = memory.estimate(share)
    return dataclasses.replace(
        estimate,
        memory_gib=needed,
        memory_floor_gib=memory.floor(share),
        memory_classes=_estimate_memory_by_class(recipes, agent, needed, trainer, variant),
    )


def _estimate_memory_by_class(
    recipes: AgentRecipes,
    agent: str,
    needed: Optional[float],
    trainer: Trainer,
    variant: Optional[dict[str, Any]],
) -> dict[str, float]:
    """Estimate the GiB of GPU memory that an agent needs with each machine class.

    Only where another class may be wanted: on a pod, whose GPU is not chosen yet, and where the trainer's own class
    is too small. Where nothing is known there is none.
    """
    usable = memory.usable_gib(trainer.machine)
    if needed is None or not (trainer.rented or (usable is not None and usable < needed)):
        return {}
    sizes: dict[str, float] = {}
    for path in sorted((recipes.root / "configs/machines").glob("*.yml")):
        with contextlib.suppress(UserError):  # in a class that nobody takes
            keys = recipes.merged_recipe(agent, "", path.stem, variant)
            size = memory.estimate(recipe.split_batch(keys, trainer.processes))
            sizes |= {} if size is None else {path.stem: size}
    return sizes


def memory_warnings(agent: str, keys: dict[str, Any], trainer: Trainer, estimate: Estimate) -> list[str]:
    """Warn where the memory that is needed is not known, or more than the trainer's class of machine stands for.

    Args:
        agent: Who is trained.
        keys: The recipe, for each of the trainer's processes.
        trainer: Where it would train.
        estimate: Of :func:`estimate_run`.
    """
    needed, sizes, usable = estimate.memory_gib, estimate.memory_classes, memory.usable_gib(trainer.machine)
    if needed is None:
        why = memory.unknown_reason(keys)
        return [f"{keys['base_model']}: how much GPU memory a training needs is not known: {why}"]
    if usable is None or usable >= needed:
        return []
    fits = memory.fitting_machine(usable, sizes)
    return [
        f"{agent} on {trainer.name}: thought to need {needed:.1f} GiB of GPU memory (simulated, not measured), "
        f"and a card of {trainer.machine} has {usable:.1f} GiB or little more. "
        + (
            f"With trainer_machine: {fits} it is {sizes[fits]:.1f} GiB"
            if fits
            else "No file of configs/machines/ makes it fit: take a larger GPU, or a shorter sequence_len"
        )
    ]


def open_answers(
    run: PlannedRun, trainer: Trainer, output: pathlib.Path, known: Mapping[pathlib.Path, Cases]
) -> PlannedAnswers:
    """Say what of a run's cases is to be answered at its end; nothing of one that is ready.

    Args:
        run: The run.
        trainer: Where it would train.
        output: Where adapters and answers are kept.
        known: Cases, by their files.
    """
    if run.state == "ready" or not run.cases.path:
        return PlannedAnswers()
    made = known[pathlib.Path(run.cases.path)]
    made = questions.few_of(made) if run.rehearsal else made
    ask, asked, _ = questions.whom_to_ask(run, made, output, launch.base_model_path(run, trainer.root))
    return answering.planned_answers(ask, asked)
