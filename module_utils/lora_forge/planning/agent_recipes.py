"""The recipe of an agent: the layers that lie over each other in it, read from a checkout, merged and checked."""

from __future__ import annotations

import json
import pathlib
from typing import Any, Optional

from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planning import recipe, recipe_problems, rehearsal, rules, spelling, templates
from ansible.module_utils.lora_forge.planning.agents import Agents
from ansible.module_utils.lora_forge.planning.layers import (
    Layer,
    merge,
    quote_value,
    read_layer,
    replacement_notes,
    value_problems,
)

LOCKS = ("requirements/trainer-cpu.txt", "requirements/trainer-cuda.txt")


class AgentRecipes:
    """The recipes of a checkout, each file of which is read once.

    Args:
        root: The checkout, with configs/ and requirements/.
        agents: Those of the checkout.
        overrides: Axolotl keys from ``-e '{"recipe": {...}}'``.

    Attributes:
        axolotl: The version of Axolotl that the locks pin.

    Raises:
        UserError: The locks do not pin one version of Axolotl, or its schema cannot be read.
    """

    def __init__(self, root: pathlib.Path, agents: Agents, overrides: dict[str, Any]):
        self.root, self.agents, self.overrides = root, agents, overrides
        self.axolotl = recipe.pinned_version(root / LOCKS[0], "axolotl")
        for lock in LOCKS[1:]:
            if recipe.pinned_version(root / lock, "axolotl") != self.axolotl:
                raise UserError(f"{LOCKS[0]} and {lock} pin different versions of axolotl; make both anew: make lock")
        self.schema = recipe.read_schema(root)
        self.layers: dict[str, Layer] = {}
        self.fine: set[str] = set()  # see recipe_problems.problems
        self.packages = {package for package in rules.PACKAGES if self.has_package(package)}

    def has_package(self, package: str) -> bool:
        """Tell whether the trainers' locks have a package; the CPU lock is made of the CUDA one."""
        try:
            return bool(recipe.pinned_version(self.root / LOCKS[1], package))
        except UserError:
            return False

    def read_layer(self, name: str) -> Layer:
        """Read a file of the checkout as a layer of a recipe, once for each invocation."""
        if name not in self.layers:
            self.layers[name] = read_layer(self.root / name, name)
        return self.layers[name]

    def read_named_layer(self, folder: str, name: str, variable: str) -> Layer:
        """Read a profile or machine file by its name.

        Raises:
            UserError: There is no such file; with the names that there are.
        """
        known = sorted(path.stem for path in (self.root / folder).glob("*.yml"))
        if name not in known:
            raise UserError(f"{variable} is «{name}», but {folder} holds: {', '.join(known)}")
        return self.read_layer(f"{folder}/{name}.yml")

    def merged_recipe(
        self, agent: str, profile: str, machine: str, variant: Optional[dict[str, Any]] = None
    ) -> dict[str, Any]:
        """Return the recipe of :meth:`merge_layers` alone."""
        return self.merge_layers(agent, profile, machine, variant)[0]

    def base_layers(self, agent: str) -> list[Layer]:
        """Read the layers of an agent's recipe that stand in files of its own and of all agents."""
        return [self.read_layer("configs/base.yml"), *self.agents.layers(agent)]

    def command_layers(self, variant: Optional[dict[str, Any]]) -> list[Layer]:
        """Give the layers that come from the command line, the overrides of a sweep's variant last."""
        layers = [Layer("-e '{\"recipe\": …}'", self.overrides)]
        return layers + ([Layer("-e '{\"sweep\": …}'", variant)] if variant else [])

    def merge_layers(
        self, agent: str, profile: str, machine: str, variant: Optional[dict[str, Any]] = None
    ) -> tuple[dict[str, Any], dict[str, Layer], list[str]]:
        """Merge and check the recipe of an agent; the overrides of a sweep's variant are its last layer.

        Returns:
            The recipe, for each key the layer it comes from, and what is to be said of it.

        Raises:
            UserError: With everything that is wrong with it.
        """
        layers = self.base_layers(agent)
        errors, rehearsed = [], None
        if profile:
            rehearsed = self.read_named_layer("configs/profiles", profile, "run_profile")
            layers.append(rehearsed)
        elif machine:
            layer = self.read_named_layer("configs/machines", machine, "trainer_machine")
            errors = recipe_problems.machine_problems(spelling.respell(layer, self.schema)[0], merge(layers)[0])
            layers.append(layer)
        layers += self.command_layers(variant)
        if strange := [sentence for layer in self.command_layers(variant) for sentence in value_problems(layer)]:
            raise UserError("\n".join(strange))  # files were held to it as they were read
        spelt = [spelling.respell(layer, self.schema) for layer in layers]
        rehearsed = spelt[layers.index(rehearsed)][0] if rehearsed else None
        layers, notes = [layer for layer, _, _ in spelt], [note for _, said, _ in spelt for note in said]
        errors += [problem for _, _, said in spelt for problem in said]
        keys, origin = merge(layers)
        errors += recipe_problems.problems(keys, origin, self.schema, self.fine)
        # What a profile replaces is wrong all the same where nothing replaces it: in the training that costs something.
        real, places = merge(layer for layer in layers if layer is not rehearsed)
        replaced = {key: value for key, value in real.items() if key not in keys or keys[key] != value}
        if rehearsed:
            errors += recipe_problems.problems(replaced, places, self.schema, self.fine)
        both = [(real, places), (keys, origin)] if rehearsed else [(keys, origin)]
        for check in (recipe_problems.range_problems, recipe_problems.contradictions):
            errors = errors or [problem for merged in both for problem in check(*merged)]
        if not errors:
            errors = [problem for merged in both for problem in templates.problems(*merged)]
            if profile != rehearsal.PROFILE:
                errors += recipe_problems.model_problems(keys, origin, layers)
                if str(keys.get("base_model")).startswith("/"):
                    keys.pop("model_revision", None)  # a folder has none
            notes += replacement_notes(layers, rehearsed)
            notes += rules.apply_rules(keys, origin, self.packages)
            errors += rules.problems(keys, origin, self.packages)
        if errors:
            raise UserError("\n".join(dict.fromkeys(errors)))
        if keys.get("deepspeed"):
            keys["deepspeed"] = self.load_deepspeed(keys["deepspeed"])
        if keys.get("chat_template_jinja"):
            keys["chat_template_jinja"] = self.load_template(keys["chat_template_jinja"], origin["chat_template_jinja"])
        return keys, origin, notes + rules.notes(keys, origin)

    def load_deepspeed(self, given: Any) -> Any:
        """Return DeepSpeed's configuration, from its file where one is named: no trainer has the files of a checkout.

        Raises:
            UserError: The file cannot be read, or the trainer's environment has no DeepSpeed.
        """
        if not self.has_package("deepspeed"):
            raise UserError(
                f"«deepspeed» needs a package that {LOCKS[1]} does not pin: add a line «deepspeed» to "
                f"{LOCKS[1].removesuffix('.txt')}.in, then make lock; or use fsdp_config, which needs nothing more"
            )
        if not isinstance(given, str):
            return given
        path = self.root / given
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"«deepspeed: {given}» must name a JSON file, from the checkout on: {path}: {error}"
            ) from None

    def load_template(self, given: str, layer: Layer) -> str:
        """Return a chat template, from its file where one is named: on a trainer its name would be the template.

        Args:
            given: The template, or the path of its file, from the checkout on.
            layer: Where it stands.

        Raises:
            UserError: The file cannot be read.
        """
        if "{" in given or "\n" in given.strip():
            return given
        path = self.root / given.strip()
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8 text"
            raise UserError(
                f"{layer.where('chat_template_jinja')}: «chat_template_jinja: {quote_value(given)}» is no "
                f"template, and no file that can be read, from the checkout on: {path}: {why}"
            ) from None
