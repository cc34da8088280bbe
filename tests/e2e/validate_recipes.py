"""Hold recipes against Axolotl's own validation, with an A100's capabilities. Runs in the trainer's environment.

Reads a JSON list of recipes from standard input; the last line it prints is a JSON list of what is wrong with each of
them, an empty text where nothing is.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys

from axolotl.cli.config import prepare_plugins
from axolotl.utils.config import validate_config
from axolotl.utils.dict import DictDefault

TORCH = importlib.metadata.version("torch").partition("+")[0]
A100 = {"bf16": True, "fp8": False, "tf32": True, "n_gpu": 1, "n_node": 1, "compute_capability": "sm_80"}


def problem(recipe: dict[str, object]) -> str:
    """What Axolotl says against a recipe."""
    cfg = DictDefault(recipe)
    prepare_plugins(cfg)
    try:
        checked = validate_config(cfg, capabilities=A100, env_capabilities={"torch_version": TORCH})
    except ValueError as error:  # pydantic's is one
        return str(error)
    changed = [
        key for key in recipe if key.startswith(("lora_r", "liger_", "gradient_c")) and checked[key] != recipe[key]
    ]
    return "; ".join(f"{key} became {checked[key]}" for key in changed)


print(json.dumps([problem(recipe) for recipe in json.load(sys.stdin)]))
