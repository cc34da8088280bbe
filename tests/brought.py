"""The recipes of recipes.yml, each laid over the base as an agent's file is, and planned."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import yaml
from ansible.module_utils.lora_forge.planning import plan
from ansible.module_utils.lora_forge.planning.fleet import Trainer
from ansible.module_utils.lora_forge.planning.layers import read_layer

ROOT = pathlib.Path(__file__).resolve().parents[1]
AGENT = "crew"


@dataclasses.dataclass(frozen=True)
class Brought:
    """A recipe as somebody brings it.

    Attributes:
        name: What it is.
        recipe: Its text.
        says: Pieces of what the plan tells of it.
        becomes: Keys of the recipe that is run; None where there is none.
        refused: A piece of what the plan refuses it with; empty where it is taken.
        plainly: A piece of what Axolotl says when it is laid over the base without a rule between keys.
    """

    name: str
    recipe: str
    says: tuple[str, ...] = ()
    becomes: dict[str, Any] = dataclasses.field(default_factory=dict)
    refused: str = ""
    plainly: str = ""

    def planned(self, folder: pathlib.Path) -> plan.Plan:
        """Plan the recipe, in a checkout of its own.

        Args:
            folder: An empty one.

        Raises:
            UserError: The plan refuses it.
        """
        for name in ("configs", "requirements"):
            shutil.copytree(ROOT / name, folder / name)
        (folder / f"configs/agents/{AGENT}.yml").write_text(self.recipe, encoding="utf-8")
        trainer = Trainer("here", datasets_dir=str(ROOT / "examples/datasets"))
        return plan.make(folder, folder / "output", AGENT, [trainer], {})

    def plain(self) -> dict[str, Any]:
        """Return the recipe merged over the base, key by key, as Axolotl would read it."""
        base = read_layer(ROOT / "configs/base.yml", "configs/base.yml").keys
        keys = {**base, **yaml.safe_load(self.recipe)}
        return {key: value for key, value in keys.items() if value is not None}


def brought() -> list[Brought]:
    """Read all of them."""
    rows = yaml.safe_load((ROOT / "tests/recipes.yml").read_text(encoding="utf-8"))
    return [Brought(**json.loads(json.dumps(row)) | {"says": tuple(row.get("says", ()))}) for row in rows]
