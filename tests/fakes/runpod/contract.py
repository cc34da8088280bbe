"""What the API promises: its problem answers, and its official OpenAPI description as a check of every exchange."""

from __future__ import annotations

import dataclasses
import datetime
import http
import json
import pathlib
import re
import threading
import urllib.parse
from collections.abc import Mapping
from typing import Any

import jsonschema
import referencing
import referencing.jsonschema

HERE = "urn:openapi"  # what the description is called among its own references
UNDESCRIBED = "pagination"  # lists have it when they are asked to page; it is newer than the description


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
    """The official description.

    Args:
        path: The OpenAPI 3.1 file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not JSON.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.document = json.loads(path.read_text(encoding="utf-8"))
        resource = referencing.jsonschema.DRAFT202012.create_resource(self.document)
        self.registry: referencing.Registry[Any] = referencing.Registry().with_resource(HERE, resource)
        self.validators: dict[str, jsonschema.Draft202012Validator] = {}
        self.lock = threading.Lock()

    def operation(self, method: str, path: str) -> Operation | None:
        """The operation that serves a path, or None."""
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
        """What is wrong with a request; a query parameter that is not described is ignored, as the real API does.

        Args:
            method: In capitals.
            path: As it was sent, without the query.
            query: Each parameter's values.
            headers: Of the request; names in any case.
            body: Parsed, or None when there was none.
        """
        operation = self.operation(method, path)
        if operation is None:
            return []
        errors = []
        for parameter in operation.parameters:
            name = parameter["name"]
            sent = query.get(name, [])[-1:] if parameter["in"] == "query" else []
            if parameter["in"] == "header" and headers.get(name):
                sent = [headers[name].split("/")[0]]  # the ids of log events are a time and a number
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

    def answer_errors(self, method: str, path: str, status: int, media: str, body: Any) -> list[str]:
        """What is wrong with an answer of the simulator's own; nothing for a path that is not described."""
        operation = self.operation(method, path)
        if operation is None:
            return []
        response = operation.responses.get(str(status)) or operation.responses.get("default")
        if response is None:
            return [f"status {status} is not described"]
        content = self.resolved(response).get("content")
        if not content:
            return [] if body is None else [f"status {status} has no body"]
        if media not in content:
            return [f"{media} is not described for status {status}"]
        if isinstance(body, dict):
            body = {key: value for key, value in body.items() if key != UNDESCRIBED}
        return [] if media == "text/event-stream" else self._errors(content[media]["schema"], body)

    def resolved(self, part: dict[str, Any]) -> dict[str, Any]:
        """A part of the description, or what it refers to."""
        while "$ref" in part:
            keys = [_unescaped(key) for key in part["$ref"].removeprefix("#/").split("/")]
            part = self.document
            for key in keys:
                part = part[key]
        return part

    def _typed(self, word: str, parameter: dict[str, Any]) -> Any:
        """A parameter's text as the type that its schema wants; what does not fit stays a text and is refused."""
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

    def _errors(self, schema: dict[str, Any], value: Any) -> list[str]:
        """What breaks a schema of the description, in the words of the API («$.name: …»)."""
        key = json.dumps(schema, sort_keys=True)
        with self.lock:
            if key not in self.validators:
                # The schema stands alone, so its references must name the document.
                whole = json.loads(key.replace('"$ref": "#', f'"$ref": "{HERE}#'))
                self.validators[key] = jsonschema.Draft202012Validator(
                    whole, registry=self.registry, format_checker=FORMATS
                )
            validator = self.validators[key]
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


FORMATS = jsonschema.FormatChecker(())


@FORMATS.checks("date-time", raises=ValueError)
def _is_date_time(value: object) -> bool:
    """Whether a text is a time with its zone; ValueError when it is no time at all."""
    return not isinstance(value, str) or datetime.datetime.fromisoformat(value).tzinfo is not None


def _pointer(*keys: str) -> str:
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in keys)


def _unescaped(key: str) -> str:
    return key.replace("~1", "/").replace("~0", "~")
