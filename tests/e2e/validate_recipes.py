"""Hold recipes against Axolotl's own validation, with an A100's capabilities. Runs in the trainer's environment.

Reads a JSON list of recipes from standard input; prints the first error and ends with 1, or ``valid: N``.
"""

from __future__ import annotations

import json
import sys

from axolotl.utils.config import validate_config
from axolotl.utils.dict import DictDefault

A100 = {"bf16": True, "fp8": False, "tf32": True, "n_gpu": 1, "n_node": 1, "compute_capability": "sm_80"}

recipes = json.load(sys.stdin)
for recipe in recipes:
    checked = validate_config(DictDefault(recipe), capabilities=A100, env_capabilities={"torch_version": "2.13.0"})
    assert checked.lora_r == recipe["lora_r"]
print(f"valid: {len(recipes)}")
