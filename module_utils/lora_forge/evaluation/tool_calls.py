"""Calls of tools in what a model wrote: each chat template has a form of its own. Pure functions over foreign text.

The forms are those of the templates that transformers' model pages and vLLM's tool parsers document: Hermes and Qwen,
Qwen3-Coder and Qwen3.5, Llama 3, Mistral, Granite, Phi-4, DeepSeek, gpt-oss, Gemma 3.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

MOST = 64  # calls that are looked at in one answer
# Tokens that begin or end what a model says, and calls, and are no part of it.
CONTROL = re.compile(
    r"<\|[a-z_]{1,40}\|>|<\|[a-z_]{1,40}>|<[a-z_]{1,40}\|>|<(?:start|end)_of_turn>|<｜[^｜<>\n]{1,40}｜>|</?s>|<eos>|<bos>"
)

_XML = re.compile(r"<function=([^<>\n]{1,200})>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^<>\n]{1,200})>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
# As text in the data of agents: <tool_call name="NAME">{…}; gpt-oss: to=functions.NAME … <|message|>{…};
# Mistral: [TOOL_CALLS]NAME[ARGS]{…}; DeepSeek: …▁sep｜>NAME\n```json\n{…}
_NAMED = re.compile(
    r"(?:to=functions\.(?P<a>[\w.-]{1,200})[^{}]{0,200}?<\|message\|>|\[TOOL_CALLS\]\s*(?P<b>[\w.-]{1,200})\[ARGS\]|"
    r"tool▁sep｜>(?P<c>[\w.-]{1,200})\s*```json|<tool_call name=\"(?P<d>[\w.-]{1,200})\">)\s*(?=\{)"
)
_PYTHON = re.compile(r"```tool_code\n(.*?)(?:```|\Z)", re.DOTALL)
_DECODER = json.JSONDecoder()


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a tool.

    Attributes:
        name: Of the tool.
        arguments: Its arguments; values are text where the form has no types.
    """

    name: str
    arguments: dict[str, Any]


def find(answer: str) -> list[Call]:
    """Find the calls of tools in an answer, in whichever form it has them.

    Args:
        answer: What the model wrote, with its special tokens.
    """
    calls: list[Call] = []
    for found in (_in_json, _in_xml, _after_names, _in_python):
        for call in found(answer):
            if call not in calls:
                calls.append(call)
            if len(calls) == MOST:
                return calls
    return calls


def _in_json(answer: str) -> Iterator[Call]:
    """Yield objects with a name and arguments, wherever they stand: Hermes, Qwen, Llama 3, Mistral, Granite, Phi-4."""
    at, tried = answer.find("{"), 0
    while at >= 0 and tried < 20 * MOST:
        tried += 1
        try:
            value, end = _DECODER.raw_decode(answer, at)
        except (ValueError, RecursionError):
            at = answer.find("{", at + 1)
            continue
        call = _call(value)
        if call:
            yield call
        at = answer.find("{", end)


def _call(value: Any) -> Call | None:
    if not isinstance(value, dict):
        return None
    value = value["function"] if isinstance(value.get("function"), dict) else value
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    if isinstance(value.get("name"), str) and isinstance(arguments, dict):
        return Call(value["name"], arguments)
    return None


def _in_xml(answer: str) -> Iterator[Call]:
    for name, body in _XML.findall(answer):
        arguments: dict[str, Any] = {key: _typed(value) for key, value in _PARAMETER.findall(body)}
        if not arguments and body.strip().startswith("{"):  # Llama 3.1's own form for custom tools
            with contextlib.suppress(ValueError, RecursionError):
                given = json.loads(body)
                arguments = given if isinstance(given, dict) else {}
        yield Call(name.strip(), arguments)


def _typed(text: str) -> Any:
    """Read a value that may be JSON: a form of tags has no types."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _after_names(answer: str) -> Iterator[Call]:
    for found in _NAMED.finditer(answer):
        with contextlib.suppress(ValueError, RecursionError):
            arguments, _ = _DECODER.raw_decode(answer, found.end())
            if isinstance(arguments, dict):
                yield Call(next(filter(None, found.groups())), arguments)


def _in_python(answer: str) -> Iterator[Call]:
    """Yield calls in Python's form, as Gemma 3 writes them; they are read, and never run."""
    for code in _PYTHON.findall(answer):
        try:
            tree = ast.parse(code.strip()[:20_000])
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                with contextlib.suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                    keywords = {one.arg: ast.literal_eval(one.value) for one in node.keywords if one.arg}
                    if node.func.id != "print":
                        yield Call(node.func.id, keywords)
