"""What the API promises: its problem answers, and its OpenAPI description as a check of every request and answer.

contract.json is the description reduced to what is used (reduce.py); it is held to always. Where the environment's
RUNPOD_OPENAPI names the official description, or a newer one, that is held to as well.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import http
import json
import os
import pathlib
import re
import threading
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

import jsonschema
import referencing
import referencing.jsonschema

OWN = pathlib.Path(__file__).with_name("contract.json")
HERE = "urn:openapi"  # what a description is called among its own references
CLOSED = "urn:closed"  # the same, where no object has a property that is not described
# Lists page when they are asked to. That is newer than the description.
PAGING, PAGES = ("limit", "cursor"), "pagination"


class Problem(Exception):
    """An error answer, as application/problem+json.

    Args:
        status: The HTTP status.
        detail: What went wrong, for people; of no capacity it is the only sign.
        errors: The single violations of a request that breaks the contract.
        headers: More headers, such as Retry-After.
    """

    def __init__(
        self, status: int, detail: str, errors: list[str] | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{status}: {detail}")
        self.status, self.headers = status, dict(headers or {})
        self.body: dict[str, Any] = {"title": http.HTTPStatus(status).phrase, "status": status, "detail": detail}
        if errors:
            self.body["errors"] = errors


@dataclasses.dataclass(frozen=True)
class Operation:
    """One method of one path of the description; ``pointer`` is where it stands there."""

    pointer: str
    parameters: list[dict[str, Any]]
    content: dict[str, Any]
    responses: dict[str, Any]


class Contract:
    """All that requests and answers are held to.

    Args:
        openapi: A description beside our own, or None.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not JSON.
    """

    def __init__(self, openapi: pathlib.Path | None = None) -> None:
        self.descriptions = [_description(path) for path in (OWN, openapi) if path]

    @classmethod
    def given(cls) -> Contract:
        """Make one that also has the description that RUNPOD_OPENAPI names, where it names one."""
        named = os.environ.get("RUNPOD_OPENAPI")
        return cls(pathlib.Path(named) if named else None)

    def request_errors(
        self, method: str, path: str, query: Mapping[str, list[str]], headers: Mapping[str, str], body: Any
    ) -> list[str]:
        """Tell what is wrong with a request, so that the API refuses it.

        Args:
            method: In capitals.
            path: As it was sent, without the query.
            query: Each parameter's values.
            headers: Of the request; names in any case.
            body: Parsed, or None when there was none.
        """
        return _first(each.request_errors(method, path, query, headers, body) for each in self.descriptions)

    def undeclared(self, method: str, path: str, query: Mapping[str, list[str]]) -> list[str]:
        """Query parameters that are not described; the API ignores them, so that nobody else would tell."""
        return _first(each.undeclared(method, path, query) for each in self.descriptions)

    def answer_errors(self, method: str, path: str, status: int, media: str, body: Any) -> list[str]:
        """Tell what is wrong with an answer; a field that is not described is, as we would have invented it.

        Args:
            method: Of the request, in capitals.
            path: Of the request, without the query.
            status: The HTTP status.
            media: The Content-Type.
            body: Parsed; None when there is none, or it is a stream.
        """
        return _first(each.answer_errors(method, path, status, media, body) for each in self.descriptions)


def _first(errors: Iterable[list[str]]) -> list[str]:
    """Return what the first description finds that finds anything: two would say the same twice."""
    return next(filter(None, errors), [])


class Description:
    """One OpenAPI 3.1 file; the methods are those of :class:`Contract`."""

    def __init__(self, path: pathlib.Path) -> None:
        self.document = json.loads(path.read_text(encoding="utf-8"))
        closed = {**self.document, "components": {**self.document["components"]}}
        closed["components"]["schemas"] = {
            name: _closed(schema) for name, schema in self.document["components"]["schemas"].items()
        }
        resource = referencing.jsonschema.DRAFT202012.create_resource
        self.registry: referencing.Registry[Any] = referencing.Registry().with_resources(
            [(HERE, resource(self.document)), (CLOSED, resource(closed))]
        )
        self.validators: dict[str, jsonschema.Draft202012Validator] = {}
        self.lock = threading.Lock()

    def operation(self, method: str, path: str) -> Operation | None:
        """Find the operation that serves a path, or None."""
        for template, item in self.document["paths"].items():
            if method.lower() in item and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
                found = item[method.lower()]
                parameters = [
                    self.resolved(parameter)
                    for parameter in [*item.get("parameters", []), *found.get("parameters", [])]
                ]
                return Operation(
                    pointer=_pointer("paths", template, method.lower()),
                    parameters=parameters,
                    content=found.get("requestBody", {}).get("content", {}),
                    responses=found["responses"],
                )
        return None

    def request_errors(
        self, method: str, path: str, query: Mapping[str, list[str]], headers: Mapping[str, str], body: Any
    ) -> list[str]:
        operation = self.operation(method, path)
        if operation is None:
            return [f"{method} {path} is not described"]
        errors = []
        for parameter in operation.parameters:
            name = parameter["name"]
            sent = query.get(name, [])[-1:] if parameter["in"] == "query" else []
            if parameter["in"] == "header" and headers.get(name):
                sent = [headers[name].split("/")[0]]  # the ids of log events are a time and a number
            if parameter.get("required") and parameter["in"] in ("query", "header") and not sent:
                errors.append(f"{parameter['in']}.{name}: is required")
            for word in sent:
                value = self._typed(word, parameter)
                errors += [
                    error.replace("$", f"{parameter['in']}.{name}", 1)
                    for error in self._errors(parameter["schema"], value)
                ]
        if operation.content:
            if headers.get("Content-Type", "").split(";")[0].strip() not in operation.content:
                errors.append(f"header.Content-Type: must be {' or '.join(operation.content)}")
            errors += self._at(f"{operation.pointer}/requestBody/content/application~1json/schema", body)
        return errors

    def undeclared(self, method: str, path: str, query: Mapping[str, list[str]]) -> list[str]:
        operation = self.operation(method, path)
        parameters = operation.parameters if operation else []
        known = {*PAGING, *(parameter["name"] for parameter in parameters if parameter["in"] == "query")}
        return [f"query.{name}: is not described" for name in query if name not in known]

    def answer_errors(self, method: str, path: str, status: int, media: str, body: Any) -> list[str]:
        operation = self.operation(method, path)
        if operation is None:
            return [] if status >= 400 else [f"{method} {path} is not described"]
        response = operation.responses.get(str(status), operation.responses.get("default"))
        if response is None:
            return [f"status {status} is not described"]
        content = self.resolved(response).get("content")
        if not content:
            return [] if body is None else [f"status {status} has no body"]
        if media not in content:
            return [f"{media} is not described for status {status}"]
        if isinstance(body, dict):
            body = {key: value for key, value in body.items() if key != PAGES}
        if media == "text/event-stream":
            return []
        return self._errors(_closed(content[media]["schema"]) | {"unevaluatedProperties": False}, body, CLOSED)

    def resolved(self, part: dict[str, Any]) -> dict[str, Any]:
        """Return a part of the description, or what it refers to."""
        while "$ref" in part:
            keys = [_unescaped(key) for key in part["$ref"].removeprefix("#/").split("/")]
            part = self.document
            for key in keys:
                part = part[key]
        return part

    def _typed(self, word: str, parameter: dict[str, Any]) -> Any:
        """Read a parameter's text as the type that its schema wants; what does not fit stays a text, and is refused."""
        schema = self.resolved(parameter["schema"])
        if schema.get("type") == "array" and not parameter.get("explode", True):
            return word.split(",")
        if schema.get("type") == "integer" and re.fullmatch(r"-?\d+", word):
            return int(word)
        if schema.get("type") == "boolean" and word in ("true", "false"):
            return word == "true"
        return word

    def _at(self, pointer: str, value: Any) -> list[str]:
        return self._errors({"$ref": f"#{urllib.parse.quote(pointer)}"}, value)

    def _errors(self, schema: dict[str, Any], value: Any, where: str = HERE) -> list[str]:
        """Tell what breaks a schema of the description, in the words of the API («$.name: …»)."""
        # The schema stands alone, so its references must name the document.
        key = json.dumps(schema, sort_keys=True).replace('"$ref": "#', f'"$ref": "{where}#')
        with self.lock:
            if key not in self.validators:
                self.validators[key] = jsonschema.Draft202012Validator(
                    json.loads(key), registry=self.registry, format_checker=FORMATS
                )
            validator = self.validators[key]
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


_description = functools.cache(Description)  # tests start many simulators
FORMATS = jsonschema.FormatChecker(())


@FORMATS.checks("date-time", raises=ValueError)
def _is_date_time(value: object) -> bool:
    """Tell whether a text is a time with its zone; ValueError when it is no time at all."""
    return not isinstance(value, str) or datetime.datetime.fromisoformat(value).tzinfo is not None


def _closed(schema: Any) -> Any:
    """Close a schema: no object below it has properties that are not named; its own object stays open."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {key: _closed(part) for key, part in schema.items()}
    if "properties" in schema:
        shut["properties"] = {
            name: _closed(part) | {"unevaluatedProperties": False} for name, part in schema["properties"].items()
        }
    if "items" in schema:
        shut["items"] |= {"unevaluatedProperties": False}
    return shut


def _pointer(*keys: str) -> str:
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in keys)


def _unescaped(key: str) -> str:
    return key.replace("~1", "/").replace("~0", "~")
