"""A run as it is planned: one agent, its recipe and data, on one trainer."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.data import dataset
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import PlannedCases, PlannedRun
from ansible.module_utils.lora_forge.planning import estimates, recipe, rehearsal, rules, steps, templates
from ansible.module_utils.lora_forge.planning.agent_data import AgentData
from ansible.module_utils.lora_forge.planning.agent_recipes import AgentRecipes
from ansible.module_utils.lora_forge.planning.agents import Agents
from ansible.module_utils.lora_forge.planning.attempts import Attempts
from ansible.module_utils.lora_forge.planning.fleet import Move, Trainer
from ansible.module_utils.lora_forge.planning.layers import Layer, merge
from ansible.module_utils.lora_forge.planning.variants import variant_label
from ansible.module_utils.lora_forge.text import canonical


class Planner:
    """Plans runs from the files of a checkout.

    Args:
        root: The checkout, with configs/ and requirements/.
        output: Where adapters and placements are kept.
        overrides: Axolotl keys from ``-e '{"recipe": {...}}'``.
        keep: A version of Axolotl (``0.19``) whose adapters count as ready where nothing else has changed.
        fresh: Make a new attempt where the newest one is final.
        verify: Hash the files of adapters that are there.
        say: Tells people what they wait for.
        agents: Those of the checkout, where they were read already.
        asks: Read cases. What stops runs, or shows their logs, must not be kept from it by them.

    Attributes:
        warnings: What may not be meant, in sentences.
        origins: Of each run_id, where each key of its recipe stands.
    """

    def __init__(
        self,
        root: pathlib.Path,
        output: pathlib.Path,
        overrides: dict[str, Any],
        keep: str = "",
        fresh: bool = False,
        verify: bool = False,
        say: Callable[[str], None] = lambda _: None,
        agents: Optional[Agents] = None,
        asks: bool = True,
    ):
        self.output, self.asks = output, asks
        self.warnings: list[str] = []
        self.origins: dict[str, dict[str, str]] = {}
        agents = agents or Agents(root)
        self.recipes = AgentRecipes(root, agents, overrides)
        self.attempts = Attempts(output, self.recipes.axolotl, keep, fresh, verify)
        self.agent_data = AgentData(agents, self.warnings, say)

    @property
    def data(self) -> tuple[str, ...]:
        """What dataset files hold besides plain turns, in a line for each."""
        return tuple(self.agent_data.described)

    def plan_run(
        self, agent: str, trainer: Trainer, move: Move, variant: Optional[dict[str, Any]] = None
    ) -> PlannedRun:
        """Plan one agent on one trainer.

        Args:
            agent: The agent.
            trainer: Where it would train.
            move: Which placements of unfinished runs are let go.
            variant: Recipe overrides of a sweep.

        Raises:
            UserError: What is wrong with recipe or data.
        """
        keys, origin, files, rehearsed = self._recipe_and_data(agent, trainer, variant)
        is_rehearsal = trainer.profile == rehearsal.PROFILE
        hashes = [{"use": file.use, "sha256": file.sha256} for file in files]
        known = keys | ({"rehearsed": rehearsal.identity(rehearsed)} if rehearsed else {})
        attempt, warnings = self.attempts.choose(agent, known, is_rehearsal, hashes)
        self.warnings += warnings
        attempt = attempt.settle(trainer.name, move)
        estimate = estimates.estimate_run(self.recipes, agent, keys, files, trainer, variant)
        if not is_rehearsal:
            keys = recipe.split_batch(keys, trainer.processes)
            if attempt.state != "ready":
                self.warnings += estimates.memory_warnings(agent, keys, trainer, estimate)
        keys = recipe.with_plugins(keys)
        self.origins[attempt.run_id] = {key: layer.where(key) for key, layer in origin.items()}
        keys.pop("datasets", None)
        datasets = tuple(map(dataset.planned_dataset, files))
        errors = templates.data_problems(keys, origin, dataset.needs(datasets))
        if errors:
            raise UserError("\n".join(errors))
        folder = pathlib.Path(trainer.eval_dir)
        asked = self.agent_data.find_cases(agent, folder, files) if self.asks else PlannedCases()
        run = PlannedRun(
            run_id=attempt.run_id,
            agent=agent,
            name=f"{agent} {variant_label(variant)}" if variant else agent,
            variant=variant or {},
            fingerprint=attempt.fingerprint,
            trainer=attempt.placed_on or trainer.name,
            placed=bool(attempt.placed_on) and attempt.state != "ready",
            lane=int(attempt.placement.get("lane") or 0),
            state=attempt.state,
            why=attempt.why,
            rehearsal=is_rehearsal,
            rehearsed=rehearsed | {"quantised": bool(keys.get("load_in_4bit"))} if rehearsed else {},
            recipe=keys,
            recipe_sha256=store.sha256_text(canonical(keys)),
            axolotl=attempt.axolotl,
            datasets=datasets,
            cases=asked,
            gpus=1 if is_rehearsal else trainer.gpus,
            nodes=trainer.nodes,
            hosts=trainer.members or (trainer.name,),
            estimate=estimate,
        )
        answers = estimates.open_answers(run, trainer, self.output, self.agent_data.cases)
        return dataclasses.replace(run, estimate=dataclasses.replace(estimate, answers=answers))

    def _recipe_and_data(
        self, agent: str, trainer: Trainer, variant: Optional[dict[str, Any]]
    ) -> tuple[dict[str, Any], dict[str, Layer], list[dataset.DatasetFile], dict[str, Any]]:
        """Merge the recipe of an agent on a trainer, check its data, and adapt the one to the other.

        Returns:
            The recipe, for each key the layer it comes from, the data, and what is rehearsed.

        Raises:
            UserError: Either has a defect, or they do not go together.
        """
        keys, origin, notes = self.recipes.merge_layers(agent, trainer.profile, trainer.machine, variant)
        rehearsed: dict[str, Any] = {}
        if trainer.profile == rehearsal.PROFILE:
            real, _ = merge([*self.recipes.base_layers(agent), *self.recipes.command_layers(variant)])
            rehearsed, why = rehearsal.rehearse(real)
            rehearsal.adapt(keys, rehearsed)
            notes += [why] if why else []
        self.warnings += [f"{agent}: {note}" for note in notes]
        files = self.agent_data.find_datasets(agent, keys, pathlib.Path(trainer.datasets_dir))
        steps.adapt_to_dataset(agent, keys, files, self.warnings)
        notes, errors = rules.evaluation_problems(keys, origin, any(file.use == "val" for file in files))
        if errors:
            raise UserError("\n".join(errors))
        self.warnings += [f"{agent}: {note}" for note in notes]
        return keys, origin, files, rehearsed
