"""Answers that RunPod's description allows, made at random from its own schemas, for Hypothesis."""

from __future__ import annotations

import functools
import json
import pathlib
import urllib.parse
from collections.abc import Callable
from typing import Any

from ansible.module_utils.lora_forge.pods.runpod import Answer
from contract import Description
from hypothesis import strategies as st

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
NUMBER = st.floats(allow_nan=False, allow_infinity=False, width=32)


class Described:
    """A server that gives any answer of a description, as the client's transport.

    Args:
        path: The description.
        draw: Hypothesis' own, which chooses.
    """

    def __init__(self, path: pathlib.Path, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.schemas, self.draw = _schemas(path), draw
        self.given: list[Any] = []

    def __call__(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None, seconds: float, stream: bool
    ) -> Answer:
        description = self.schemas.description
        operation = description.operation(method, urllib.parse.urlsplit(url).path)
        assert operation
        status, response = next((int(code), part) for code, part in operation.responses.items() if code[0] == "2")
        content = description.resolved(response).get("content", {})
        if "application/json" not in content:
            return Answer(status, {}, b"")
        answer = self.draw(self.schemas.of(content["application/json"]["schema"]))
        self.given.append(answer)
        return Answer(status, {"content-type": "application/json"}, json.dumps(answer).encode())


class _Schemas:
    """What the schemas of a description allow, each made once."""

    def __init__(self, path: pathlib.Path) -> None:
        self.description = Description(path)
        self.made: dict[str, st.SearchStrategy[Any]] = {}

    def of(self, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        """Return all that a schema allows, as far as this description uses JSON Schema."""
        text = json.dumps(schema)
        if text not in self.made:
            self.made[text] = self.values(self.description.resolved(schema))
        return self.made[text]

    def values(self, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        choices = schema.get("anyOf") or [{"type": kind} for kind in schema["type"]] if _open(schema) else []
        if choices:
            rest = {key: value for key, value in schema.items() if key not in ("anyOf", "type")}
            return st.one_of(*(self.of({**rest, **choice}) for choice in choices))
        if "allOf" in schema:
            parts = [self.of(part) for part in schema["allOf"]]
            if len(parts) == 1:
                return parts[0]
            return st.tuples(*parts).map(lambda made: {key: value for part in made for key, value in part.items()})
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        return self.of_type(schema)

    def of_type(self, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        kind = schema.get("type")
        if kind == "object":
            named, needed = schema.get("properties", {}), set(schema.get("required", ()))
            made = {name: self.of(part) for name, part in named.items()}
            fixed = st.fixed_dictionaries(
                {name: made[name] for name in made if name in needed},
                optional={name: made[name] for name in made if name not in needed},
            )
            more = schema.get("additionalProperties")
            if not isinstance(more, dict):
                return fixed
            return st.tuples(st.dictionaries(TEXT, self.of(more), max_size=2), fixed).map(lambda two: two[0] | two[1])
        if kind == "array":
            return st.lists(self.of(schema["items"]), max_size=3)
        if kind == "string":
            if "pattern" in schema:
                return st.from_regex(schema["pattern"], fullmatch=True)
            if schema.get("format") == "date-time":
                return st.datetimes(timezones=st.timezones()).map(lambda when: when.isoformat())
            return TEXT.filter(lambda made: len(made) >= schema.get("minLength", 0))
        if kind == "integer":
            return st.integers(schema.get("minimum", -10), schema.get("maximum", 99999))
        return {"number": NUMBER, "boolean": st.booleans(), "null": st.none()}[str(kind)]


_schemas = functools.cache(_Schemas)


def _open(schema: dict[str, Any]) -> bool:
    """Whether a schema leaves a choice of types."""
    return "anyOf" in schema or isinstance(schema.get("type"), list)
