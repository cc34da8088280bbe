"""Read a layer of a recipe as it is meant: old names, numbers that YAML takes for text, a template in an entry.

What is put right here has exactly one meaning, and is the same training as if it had been written in today's words.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from ansible.module_utils.lora_forge.planning.layers import Layer, quote_value

# Axolotl's flags of earlier versions, and what they stand for; it reads them like that itself (``AttnImplementation``).
_ATTENTION = {
    "eager_attention": "eager",
    "flash_attention": "flash_attention_2",
    "flex_attention": "flex_attention",
    "sage_attention": "sage",
    "sdp_attention": "sdpa",
    "xformers_attention": "xformers",
}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# What recipes from elsewhere name, and each run has of its own; why none of it is lost.
_OWN_FOLDERS = {
    "output_dir": "each run has a folder of its own, and its adapter is delivered to output/adapters",
    "dataset_prepared_path": "each run keeps its prepared data in its own folder",
}
_TEMPLATE = ("chat_template", "chat_template_jinja")


def respell(layer: Layer, schema: dict[str, Any]) -> tuple[Layer, list[str], list[str]]:
    """Read a layer as it is meant.

    Args:
        layer: As it was written.
        schema: configs/schema.json.

    Returns:
        The layer in today's words, what was done that people should know, and what cannot be read, in sentences.
    """
    keys, lines = dict(layer.keys), dict(layer.lines)
    for flag in [key for key in keys if key in _ATTENTION]:
        if keys[flag] is True and "attn_implementation" not in keys:
            keys["attn_implementation"] = _ATTENTION[flag]
            if flag in lines:
                lines["attn_implementation"] = lines[flag]
        elif keys[flag]:
            continue  # beside another word on it: nobody can say which is meant, and problems() names the key
        del keys[flag]
    notes = []
    for key in [key for key in _OWN_FOLDERS if key in keys]:
        if keys.pop(key) is not None:
            notes.append(f"{key} of {layer.source} is left out: {_OWN_FOLDERS[key]}")
    known = schema["properties"]
    for key, value in keys.items():
        if key in known and key != "datasets":
            keys[key] = read_numbers(value, known[key], schema.get("$defs", {}))
    respelt = dataclasses.replace(layer, keys=keys, lines=lines)
    if not _is_list_of_mappings(keys.get("datasets")):
        return respelt, notes, []
    entry = {"properties": schema["$defs"]["SFTDataset"]["properties"]}
    keys["datasets"] = [read_numbers(item, entry, schema.get("$defs", {})) for item in keys["datasets"]]
    for item in keys["datasets"]:
        # What is staged is always the same form, so that how ShareGPT names things is settled.
        if str(item.get("type")).partition(".")[0].partition(":")[0] == "sharegpt":
            item["type"] = "chat_template"
    said, wrong = _lift_template(respelt)
    return respelt, notes + said, wrong


def _is_list_of_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def read_numbers(value: Any, part: dict[str, Any], defs: dict[str, Any]) -> Any:
    """Make numbers of texts that are numbers, where a schema takes a number: YAML reads 2e-4 as text.

    Args:
        value: Any value of a recipe.
        part: Its schema.
        defs: What the schema refers to.
    """
    forms = _forms(part, defs)
    if isinstance(value, dict):
        known = {key: sub for form in forms for key, sub in form.get("properties", {}).items()}
        return {key: read_numbers(sub, known[key], defs) if key in known else sub for key, sub in value.items()}
    if isinstance(value, list):
        items: dict[str, Any] = next((form["items"] for form in forms if isinstance(form.get("items"), dict)), {})
        return [read_numbers(item, items, defs) for item in value]
    if not isinstance(value, str) or not _NUMBER.fullmatch(value):
        return value
    types = {form.get("type") for form in forms}
    number = float(value)
    if number.is_integer() and ("integer" in types or ("number" in types and value.lstrip("+-").isdigit())):
        return int(number)
    return number if "number" in types and abs(number) != float("inf") else value


def _forms(part: dict[str, Any], defs: dict[str, Any]) -> list[dict[str, Any]]:
    """List the forms that a schema takes, without references and alternatives."""
    if "$ref" in part:
        return _forms(defs.get(part["$ref"].rpartition("/")[2], {}), defs)
    if "anyOf" in part:
        return [form for option in part["anyOf"] for form in _forms(option, defs)]
    return [part]


def _lift_template(layer: Layer) -> tuple[list[str], list[str]]:
    """Move the chat template of dataset entries to the top; the layer is changed in place.

    Axolotl trains with an entry's own template, and delivers the top one with the tokenizer.

    Args:
        layer: One with entries.

    Returns:
        What was done, and what contradicts itself, in sentences.
    """
    keys, place = layer.keys, layer.where("datasets")
    named = []
    for number, item in enumerate(keys["datasets"], 1):
        own = {key: item.pop(key) for key in _TEMPLATE if item.get(key)}
        named += [(number, own)] if own else []
    if not named:
        return [], []
    first, template = named[0]
    for number, other in named[1:]:
        if other != template:
            return [], [
                f"{place}: datasets, items {first} and {number}: {_quoted(template)} and {_quoted(other)}; an adapter "
                "is served with one template, so that all of its data has to be trained with one"
            ]
    top = {key: keys[key] for key in _TEMPLATE if keys.get(key)}
    if not top:
        keys |= template
        layer.lines.update({key: layer.lines["datasets"] for key in template if "datasets" in layer.lines})
        return [
            f"{_quoted(template)} of the datasets of {layer.source} is taken for the whole recipe: it is the template "
            "that is trained, and so the one that is delivered"
        ], []
    if top == template:
        return [], []
    key = next(iter(top))
    return [], [
        f"{place}: datasets, item {first}: {_quoted(template)}, and {layer.where(key)}: {_quoted(top)}: the first one "
        "would be trained and the second one delivered. Keep one of them"
    ]


def _quoted(keys: dict[str, Any]) -> str:
    return " and ".join(f"«{key}: {quote_value(value)}»" for key, value in keys.items())
