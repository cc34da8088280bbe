"""As much of GraphQL as the W&B client speaks: a document read, and an answer shaped by it; and its filters of runs."""

from __future__ import annotations

import collections
import re
from typing import Any

WORD = re.compile(r"[_A-Za-z]\w*|\.\.\.|[{}()]|\"(?:\\.|[^\"\\])*\"|\$\w+|[^\s,]")


class Gap(Exception):
    """Something asked for that the local server does not know."""


def parse(document: str) -> tuple[str, list[Any], dict[str, list[Any]]]:
    """Split a document into its operation's name, its selection and its fragments.

    A selection is a list of (answer's key, field, selection or None) and of fragments' names. Arguments are left out,
    as everything that matters here arrives as a variable.
    """
    words = collections.deque(WORD.findall(re.sub(r"#.*", "", document)))

    def skip_arguments() -> None:
        depth = 0
        while words and (depth or words[0] == "("):
            depth += {"(": 1, ")": -1}.get(words.popleft(), 0)

    def selection() -> list[Any]:
        words.popleft()
        found: list[Any] = []
        while words[0] != "}":
            name = words.popleft()
            if name == "...":
                fragment = words.popleft()
                if fragment == "on":
                    words.popleft()
                    found += selection()
                else:
                    found.append(fragment)
                continue
            key = name
            if words[0] == ":":
                words.popleft()
                name = words.popleft()
            skip_arguments()
            found.append((key, name, selection() if words[0] == "{" else None))
        words.popleft()
        return found

    operation, chosen, fragments = "", [], {}
    while words:
        kind, name = words.popleft(), words.popleft()
        skip_arguments()
        while words[0] != "{":
            words.popleft()  # on Run
        if kind == "fragment":
            fragments[name] = selection()
        else:
            operation, chosen = name, selection()
    return operation, chosen, fragments


def shape(value: Any, chosen: list[Any] | None, fragments: dict[str, list[Any]]) -> Any:
    """Return what a selection takes of a value.

    Raises:
        Gap: A field that the value does not have.
    """
    if isinstance(value, list):
        return [shape(one, chosen, fragments) for one in value]
    if chosen is None or value is None:
        return value
    found: dict[str, Any] = {}
    for field in chosen:
        if isinstance(field, str):
            found |= shape(value, fragments[field], fragments)
        elif field[1] not in value:
            raise Gap(f"field {field[1]}")
        else:
            found[field[0]] = shape(value[field[1]], field[2], fragments)
    return found


def matches(view: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Tell whether a run passes a filter in MongoDB's terms, as far as they are known here.

    Raises:
        Gap: A word that is not.
    """
    for key, value in wanted.items():
        if key in ("$or", "$and"):
            if not (any if key == "$or" else all)(matches(view, one) for one in value):
                return False
        elif key not in ("name", "displayName", "state"):
            raise Gap(f"filter {key}")
        elif isinstance(value, dict) and value.keys() != {"$in"}:
            raise Gap(f"filter {', '.join(value)}")
        elif view[key] not in (value["$in"] if isinstance(value, dict) else [value]):
            return False
    return True
