"""The layers of a recipe: how one is read, and whose value holds where several are laid over each other."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterable
from typing import Any, Optional

import yaml
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planning.rivals import rivals_of

_SHOWN = 40  # letters of a value in a message
_LARGEST_FILE = 1 << 20  # bytes
_DEEPEST = 50  # lists and mappings in each other
_MOST_VALUES = 20_000  # of one key; a few lines with YAML's anchors make millions
_BITS = 64  # of a number
_NO_TEXT = re.compile(r"[\0\ud800-\udfff]")


@dataclasses.dataclass
class Layer:
    """One layer of a recipe.

    Attributes:
        source: Where it comes from, for messages.
        keys: Its Axolotl keys.
        lines: The line of each key; empty when it is no file.
    """

    source: str
    keys: dict[str, Any]
    lines: dict[Any, int] = dataclasses.field(default_factory=dict)

    def where(self, key: Any) -> str:
        """Tell where a key stands, for messages."""
        return f"{self.source}, line {self.lines[key]}" if key in self.lines else self.source


def read_layer(path: pathlib.Path, name: str) -> Layer:
    """Read a YAML file of Axolotl keys.

    Args:
        path: The file.
        name: What messages call it.

    Raises:
        UserError: Missing, too large, not YAML, tabs, duplicate keys, not a mapping, a value that JSON has not.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise UserError(f"{name}: more than {_LARGEST_FILE >> 20} MiB, which is no file of «key: value» lines")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{name} is missing; every recipe needs it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    for number, line in enumerate(text.splitlines(), 1):
        if "\t" in line[: len(line) - len(line.lstrip())]:
            raise UserError(f"{name}, line {number}: a tab in the indentation; YAML takes spaces only")
    try:
        loader = _Loader(text)
        loader.name = name
        node = loader.get_single_node()
        keys = loader.construct_document(node) if node else {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}, line {mark.line + 1}" if mark else name
        raise UserError(f"{where}: not YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(keys, dict):
        raise UserError(f"{name}: holds a {type(keys).__name__}; it must hold «key: value» lines")
    lines = {loader.construct_object(key): key.start_mark.line + 1 for key, _ in node.value} if node else {}
    layer = Layer(name, keys, lines)
    if wrong := value_problems(layer):
        raise UserError("\n".join(wrong))
    return dataclasses.replace(layer, keys={key: _with_text_keys(value) for key, value in keys.items()})


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys, and names the line of whatever it cannot read."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > _DEEPEST:
            line = self.peek_event().start_mark.line + 1
            raise UserError(f"{self.name}, line {line}: more than {_DEEPEST} lists and mappings lie in each other")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        # As SafeLoader has it of a date that does not exist, endless digits, «!!bool x», «!!timestamp x».
        except (ValueError, KeyError, AttributeError) as error:
            raise yaml.constructor.ConstructorError(None, None, _unreadable(node, error), node.start_mark) from None


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _value in node.value:
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
            continue  # construct_mapping refuses keys that are no scalars; merge keys are flattened below
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if key in seen:
            raise UserError(f"{node.start_mark.name}, lines {seen[key]} and {line}: «{key}» stands twice; keep one")
        seen[key] = line
    loader.flatten_mapping(node)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _unreadable(node: yaml.Node, error: Exception) -> str:
    """Say why a value that has the form of a number, a date or the like is none."""
    kind = node.tag.rpartition(":")[2]
    if kind == "int" and len(node.value) > _SHOWN:
        return f"a number of {len(node.value)} digits"
    why = f": {error}" if kind == "timestamp" and isinstance(error, ValueError) else ""  # which part of a date is wrong
    return f"«{_cut(str(node.value))}» is no {_TAGS.get(kind, kind)}{why}"


_TAGS = {"bool": "true or false", "float": "number", "int": "whole number", "timestamp": "date"}


def _with_text_keys(value: Any) -> Any:
    """Write numbers that are keys of mappings as JSON does, such as the GPUs of max_memory."""
    if isinstance(value, list):
        return [_with_text_keys(item) for item in value]
    return {str(key): _with_text_keys(item) for key, item in value.items()} if isinstance(value, dict) else value


def value_problems(layer: Layer) -> list[str]:
    """List the values of a layer that are no plain ones, though YAML and Ansible read them: a date, infinity.

    Whatever reads a recipe later may rely on it: each value is what JSON has, and of a sane size.

    Args:
        layer: As it was read, be it of a file or of the command line.
    """
    return [
        f"{layer.where(key)}: «{key}» holds {found}" for key, value in layer.keys.items() if (found := _strange(value))
    ]


def _strange(value: Any) -> str:
    """Name what no recipe can hold of a value; empty where there is nothing."""
    waiting, seen = [(value, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if seen > _MOST_VALUES:
            return f"more than {_MOST_VALUES:,} values"
        if isinstance(value, (dict, list)):
            if depth >= _DEEPEST:
                return f"more than {_DEEPEST} lists and mappings in each other"
            if odd := [key for key in value if type(key) not in (str, int)] if isinstance(value, dict) else []:
                return f"the key «{odd[0]}», which YAML takes for no text; put it in quotes"
            items = [*value, *value.values()] if isinstance(value, dict) else value
            waiting += [(item, depth + 1) for item in reversed(items)]
        elif found := _strange_scalar(value):
            return found
    return ""


def _strange_scalar(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}, which is no number"
    if isinstance(value, (int, float)):
        return f"a number of more than {_BITS} bits; write a smaller one" if abs(value) >= 1 << _BITS else ""
    if isinstance(value, str):
        odd = _NO_TEXT.search(value)
        return f"the character U+{ord(odd[0]):04X}, which cannot stand in a text; leave it out" if odd else ""
    if value is None:
        return ""
    kind = "binary data" if isinstance(value, bytes) else f"a {type(value).__name__}"
    return f"{kind} ({_cut(str(value))}); numbers, text, lists and mappings are read: put a text in quotes"


def merge(layers: Iterable[Layer]) -> tuple[dict[str, Any], dict[str, Layer]]:
    """Lay layers over each other, the last one on top: a null removes a key, and a key its rivals of earlier layers.

    Returns:
        The recipe, and for each key the layer it comes from.
    """
    recipe, origin, _ = merge_and_tell(layers)
    return recipe, origin


def merge_and_tell(layers: Iterable[Layer]) -> tuple[dict[str, Any], dict[str, Layer], list[tuple[str, str, Layer]]]:
    """Do what :func:`merge` does, and list the rivals that gave way: the new key, the rival, the rival's layer."""
    recipe: dict[str, Any] = {}
    origin: dict[str, Layer] = {}
    removed: list[tuple[str, str, Layer]] = []
    for layer in layers:
        for key, value in layer.keys.items():
            origin[key] = layer
            if value is None:
                recipe.pop(key, None)
            else:
                recipe[key] = value
        for key in layer.keys:
            for rival, _ in rivals_of(recipe, key):
                if origin[rival] is not layer:
                    removed.append((key, rival, origin[rival]))
                    del recipe[rival]
    return recipe, {key: origin[key] for key in recipe}, removed


def replacement_notes(layers: list[Layer], quiet: Optional[Layer] = None) -> list[str]:
    """Tell of each key of an earlier layer that gave way to a rival which the merged recipe has.

    Args:
        layers: The layers, the last one on top.
        quiet: A layer whose replacements are no news.
    """
    recipe, origin, removed = merge_and_tell(layers)
    return [
        f"{key} of {origin[key].source} takes the place of {rival} of {layer.source}"
        for key, rival, layer in removed
        if key in recipe and rival not in recipe and origin[key] is not quiet
    ]


def quote_value(value: Any) -> str:
    """Quote a value for a message, as YAML has it, and not too long."""
    return _cut(json.dumps(value, ensure_ascii=False, default=str))


def _cut(text: str) -> str:
    """Shorten a text for a message."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
