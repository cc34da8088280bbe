"""Write configs/schema.json: every key Axolotl knows, as a JSON Schema (run it with `make schema`).

Runs in the trainer's environment. Axolotl's own `config-schema` command gives a simplified list, and
pydantic's generator stops at defaults such as `torch.float16`, so a lenient encoder stands in for them.
The arguments of the plugins that recipes may name are merged in.
"""

from __future__ import annotations

import importlib
import json
import sys
from importlib.metadata import version
from typing import Any, ClassVar

from axolotl.utils.schemas.config import AxolotlInputConfig
from axolotl.utils.schemas.enums import CustomSupportedOptimizers
from pydantic.json_schema import GenerateJsonSchema
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

# Axolotl's own plugins, and their arguments. Those are left out that rent machines (baseten, coreweave, hatchery,
# modal, nebius), train what is no LoRA adapter of conversations (diffusion, diffusion_decision, llm_compressor, mora,
# nemo_gym, spectrum), ask the hub while they train (lm_eval), or have a secret in the recipe (swanlab).
PLUGINS = {
    "axolotl.integrations.context_parallel.ContextParallelPlugin": "context_parallel.args.ContextParallelArgs",
    "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin": "cut_cross_entropy.args.CutCrossEntropyArgs",
    "axolotl.integrations.densemixer.DenseMixerPlugin": "densemixer.args.DenseMixerArgs",
    "axolotl.integrations.expert_parallel.ExpertParallelPlugin": "expert_parallel.args.ExpertParallelArgs",
    "axolotl.integrations.grokfast.GrokfastPlugin": "grokfast.args.GrokfastArgs",
    "axolotl.integrations.kd.KDPlugin": "kd.args.KDArgs",
    "axolotl.integrations.kernels.KernelsPlugin": "kernels.args.KernelsArgs",
    "axolotl.integrations.liger.LigerPlugin": "liger.args.LigerArgs",
}
# Keys that take any text in Axolotl's own check, and what a training then takes (core/builders/base.py).
NAMES = {
    "lr_scheduler": [*(member.value for member in SchedulerType), "one_cycle", "rex"],
    "optimizer": [member.value for kind in (OptimizerNames, CustomSupportedOptimizers) for member in kind],
}
BY_NAME = ("overrides_of_model_config", "overrides_of_model_kwargs", "type_of_model")


class Lenient(GenerateJsonSchema):
    """Generates a schema even where a default or a type has no JSON form."""

    ignored_warning_kinds: ClassVar[Any] = {"non-serializable-default", "skipped-choice"}

    def encode_default(self, dft: Any) -> Any:
        try:
            return super().encode_default(dft)
        except Exception:  # whatever pydantic cannot encode; the text is for readers only
            return str(dft)

    def enum_schema(self, schema: Any) -> dict[str, Any]:
        try:
            return super().enum_schema(schema)
        except Exception:  # an enum of torch dtypes: recipes name its members
            return {"enum": [member.name for member in schema["members"]]}

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        return {}


def slim(node: Any) -> Any:
    """Drop what validation does not use: titles, descriptions and defaults.

    Args:
        node: Any part of a JSON Schema.
    """
    if isinstance(node, list):
        return [slim(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {}
    for key, value in node.items():
        if key in ("properties", "$defs") and isinstance(value, dict):
            kept[key] = {name: slim(item) for name, item in value.items()}
        elif key not in ("title", "description", "default", "examples", "deprecated"):
            kept[key] = slim(value)
    return kept


def main() -> None:
    schema = AxolotlInputConfig.model_json_schema(schema_generator=Lenient)
    # Keys that Axolotl takes under two names, of which its schema has one.
    by_name = AxolotlInputConfig.model_json_schema(schema_generator=Lenient, by_alias=False)["properties"]
    schema["properties"] |= {name: by_name[name] for name in BY_NAME}
    for plugin, path in PLUGINS.items():
        module, _, name = f"axolotl.integrations.{path}".rpartition(".")
        home, _, title = plugin.rpartition(".")
        getattr(importlib.import_module(home), title)  # a plugin that is not there any more is an error
        extra = getattr(importlib.import_module(module), name).model_json_schema(schema_generator=Lenient)
        own = {key: {**part, "x-plugin": plugin} for key, part in extra.get("properties", {}).items()}
        schema["properties"] |= {key: part for key, part in own.items() if key not in schema["properties"]}
        schema.setdefault("$defs", {}).update(extra.get("$defs", {}))
    for key, names in NAMES.items():
        schema["properties"][key]["x-names"] = sorted(names)
    for name, field in AxolotlInputConfig.model_fields.items():
        if isinstance(field.deprecated, str) and name in schema["properties"]:
            schema["properties"][name]["x-deprecated"] = field.deprecated
    schema.pop("required", None)  # recipes are layers, and paths are computed: only Axolotl can tell what is missing
    schema = slim(schema)
    schema["additionalProperties"] = False  # Axolotl swallows unknown keys without a word
    schema["title"] = f"Axolotl {version('axolotl')} recipe"
    json.dump(schema, sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
