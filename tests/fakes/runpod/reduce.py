#!/usr/bin/env python3
"""Reduce RunPod's official OpenAPI description to what lora-forge uses: shapes and limits, no prose.

tests/fakes/runpod/reduce.py OPENAPI >tests/fakes/runpod/contract.json
"""

from __future__ import annotations

import datetime
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

OPERATIONS = {
    "/v2/pods": ("get", "post"),
    "/v2/pods/{id}": ("get", "patch", "delete"),
    "/v2/pods/{id}/action": ("post",),
    "/v2/pods/{id}/logs": ("get",),
    "/v2/catalog/gpus": ("get",),
    "/v2/catalog/gpus/{id}": ("get",),
    "/v2/catalog/datacenters": ("get",),
    "/v2/network-volumes": ("get",),
    "/v2/network-volumes/{id}": ("get",),
    "/v2/billing/pods": ("get",),
}
# What decides whether a request or an answer is right. The rest of a description is for people.
KEYWORDS = set(
    "$ref type enum const format pattern properties required dependentRequired additionalProperties "
    "unevaluatedProperties items uniqueItems minItems maxItems minProperties maxProperties minLength maxLength minimum "
    "maximum exclusiveMinimum exclusiveMaximum multipleOf allOf anyOf oneOf not if then else "
    "parameters name in style explode schema requestBody content responses".split()
)
NAMED = ("properties", "content", "responses")  # their keys are names, not keywords


def reduced(official: dict[str, Any], read: str) -> dict[str, Any]:
    """Return the part of a description that is used.

    Args:
        official: An OpenAPI 3.1 description, in whole or reduced before.
        read: The date on which it was read, as YYYY-MM-DD.

    Raises:
        KeyError: It lacks an operation that is used.
    """
    paths = {}
    for path, methods in OPERATIONS.items():
        item = official["paths"][path]
        shared = {"parameters": _bare(item["parameters"])} if "parameters" in item else {}
        paths[path] = shared | {method: _bare(item[method]) for method in methods}
    components: dict[str, dict[str, Any]] = {}
    waiting = list(_references(paths))
    while waiting:
        _, _, kind, name = waiting.pop().split("/")
        if name not in components.setdefault(kind, {}):
            components[kind][name] = _bare(official["components"][kind][name])
            waiting += _references(components[kind][name])
    return {
        "openapi": official["openapi"],
        "info": {"title": "What lora-forge uses of RunPod", "version": official["info"]["version"], "x-read": read},
        "paths": paths,
        "components": {kind: dict(sorted(parts.items())) for kind, parts in sorted(components.items())},
    }


def _bare(part: Any, named: bool = False) -> Any:
    """Strip a part of a description of what no check looks at; ``named``: its keys are names."""
    if isinstance(part, list):
        return [_bare(entry) for entry in part]
    if not isinstance(part, dict):
        return part
    return {key: _bare(value, key in NAMED and not named) for key, value in part.items() if named or key in KEYWORDS}


def _references(part: Any) -> Iterator[str]:
    """List what a part refers to, as «#/components/schemas/Pod»."""
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        part = list(part.values())
    if isinstance(part, list):
        for entry in part:
            yield from _references(entry)


def laid_out(document: dict[str, Any]) -> str:
    """Write a reduced description as a file, a line for each operation and component, so that changes are seen."""
    return _lines(document, 3) + "\n"


def _lines(part: Any, depth: int) -> str:
    if depth == 0 or not isinstance(part, dict):
        return json.dumps(part)
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {_lines(value, depth - 1)}" for key, value in part.items()) + "\n}"


if __name__ == "__main__":
    description = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.stdout.write(laid_out(reduced(description, datetime.date.today().isoformat())))
