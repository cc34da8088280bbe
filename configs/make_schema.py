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
from pydantic.json_schema import GenerateJsonSchema

PLUGIN_ARGS = (
    "axolotl.integrations.liger.args.LigerArgs",
    "axolotl.integrations.cut_cross_entropy.args.CutCrossEntropyArgs",
)


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
    for path in PLUGIN_ARGS:
        module, _, name = path.rpartition(".")
        extra = getattr(importlib.import_module(module), name).model_json_schema(schema_generator=Lenient)
        schema["properties"] |= extra.get("properties", {})
        schema.setdefault("$defs", {}).update(extra.get("$defs", {}))
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
