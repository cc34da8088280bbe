"""The checks of a case: what an answer must say, and what it must not. An answer comes from a trainer: it is input."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Optional, Protocol

import jsonschema
import referencing
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.evaluation import tool_calls
from ansible.module_utils.lora_forge.text import shown

KINDS = ("equals", "contains", "regex", "json", "tool", "judge")
LOOSE = "loosely"  # a kind of our own: a sentence on what is expected, of which the words are looked for
SECONDS = 2.0  # that a check may take: a pattern can take for ever on a text that is made for it
ENOUGH = 0.5  # of the words of a sentence that is matched loosely

_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_FENCED = re.compile(r"```[a-zA-Z]*\n(.*?)(?:```|\Z)", re.DOTALL)
_WORD = re.compile(r"[a-z0-9][a-z0-9_.-]*[a-z0-9]|[a-z0-9]")
_STOP_WORDS = frozenset(
    "a about after all an and any are as at be before but by can does first for from has have if in into is it its of "
    "on or out own so such than that the their them then there they this those to up was what when where which while "
    "who will with without not no only must should may do".split()
)


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that an answer must say, or must not.

    Attributes:
        kind: One of ``KINDS``, or ``LOOSE``.
        wanted: A text; of ``json`` a schema, of ``tool`` an object with ``name`` and a schema of ``arguments``.
    """

    kind: str
    wanted: Any

    def __str__(self) -> str:
        text = self.wanted if isinstance(self.wanted, str) else json.dumps(self.wanted, ensure_ascii=False)
        return f"{self.kind} «{shown(text, 200)}»"


class TooLong(Exception):
    """A check did not end in its time."""


def check_of(given: Any) -> Check:
    """Read a check as a case has it: an object with one of ``KINDS``.

    Raises:
        UserError: It is none, in words that go on from «expect 1: ».
    """
    known = ", ".join(KINDS)
    if not isinstance(given, dict) or len(given) != 1:
        raise UserError(f"must be an object with one of {known}, not {shown(json.dumps(given), 80)}")
    (kind, wanted), *_ = given.items()
    if kind not in KINDS:
        raise UserError(f"«{shown(kind, 40)}» is no check; known: {known}")
    if kind == "json":
        _check_schema(wanted, "json")
    elif kind == "tool":
        _check_tool(wanted)
    elif not isinstance(wanted, str) or not wanted.strip():
        raise UserError(f"«{kind}» must be a text that is not empty")
    if kind == "regex":
        try:
            re.compile(wanted)
        except (re.error, RecursionError, OverflowError) as error:
            raise UserError(f"«regex» is no pattern of Python's: {error}") from None
    return Check(kind, wanted)


def _check_tool(wanted: Any) -> None:
    if not isinstance(wanted, dict) or not isinstance(wanted.get("name"), str) or not wanted["name"]:
        raise UserError("«tool» needs the «name» of a tool")
    strange = [key for key in wanted if key not in ("name", "arguments")]
    if strange:
        raise UserError(f"«tool» takes «name» and «arguments» (a JSON schema), not «{shown(strange[0], 40)}»")
    if "arguments" in wanted:
        _check_schema(wanted["arguments"], "arguments")


def _check_schema(schema: Any, key: str) -> None:
    if not isinstance(schema, (dict, bool)):
        raise UserError(f"«{key}» must be a JSON schema, an object")
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise UserError(f"«{key}» is no JSON schema: {shown(error.message, 200)}") from None
    try:
        valid(schema, {})  # a reference that leads nowhere is found here, and not when answers have been paid for
    except referencing.exceptions.Unresolvable as error:
        raise UserError(f"«{key}» has a reference that leads nowhere: {shown(str(error), 200)}") from None


def valid(schema: Any, value: Any) -> bool:
    """Tell whether a value fits a JSON schema (draft 2020-12). Nothing is fetched: references lead into the schema."""
    validator = jsonschema.Draft202012Validator(schema, registry=referencing.Registry())
    try:
        return bool(validator.is_valid(value))
    except RecursionError:  # a schema that leads back into itself follows an answer however deep that is
        return False


def visible(answer: str) -> str:
    """Return what a reader sees of an answer: without its thoughts, and without tokens that control a conversation."""
    return tool_calls.CONTROL.sub("", _THOUGHTS.sub("", answer)).strip()


class Found(Protocol):
    """What a judge found: whether a sentence is true of an answer, and why."""

    @property
    def holds(self) -> bool: ...

    @property
    def why(self) -> str: ...


def holds(check: Check, answer: str) -> bool:
    """Tell whether a check holds of an answer. What is for a judge is none of these.

    Args:
        check: The check.
        answer: What the model wrote, with its special tokens.

    Raises:
        TooLong: It did not end in its time.
    """
    text = visible(answer)
    if check.kind == "equals":
        return text == check.wanted.strip()
    if check.kind == "contains":
        return " ".join(check.wanted.split()) in " ".join(text.split())
    if check.kind == LOOSE:
        return _matches_loosely(check.wanted, text)
    with bounded():
        if check.kind == "regex":
            return re.search(check.wanted, text) is not None
        if check.kind == "json":
            return any(valid(check.wanted, value) for value in _documents(text))
        return any(
            call.name == check.wanted["name"] and valid(check.wanted.get("arguments", True), call.arguments)
            for call in tool_calls.find(answer)
        )


def _documents(text: str) -> Iterator[Any]:
    """Yield the JSON document that an answer is, or those that it shows in code blocks."""
    for part in (text, *_FENCED.findall(text)):
        with contextlib.suppress(ValueError, RecursionError):
            yield json.loads(part, parse_constant=_refuse)


def _refuse(constant: str) -> Any:
    raise ValueError(f"JSON knows no {constant}")


def _stems(text: str) -> set[str]:
    """Return the words of a text that mean something, each by its beginning: runs, running and run are one."""
    return {word[:4] for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS}


def _matches_loosely(sentence: str, text: str) -> bool:
    wanted = _stems(sentence)
    return bool(wanted) and len(wanted & _stems(text)) >= ENOUGH * len(wanted)


@contextlib.contextmanager
def bounded(seconds: float = SECONDS) -> Iterator[None]:
    """End what takes longer. Python's matching looks for signals as it goes on; only the main thread may wait so.

    Raises:
        TooLong: It did.
    """

    def end(number: int, frame: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, end)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # somebody else's, such as a task's timeout
            signal.setitimer(signal.ITIMER_REAL, max(left - seconds, 0.01))


@dataclasses.dataclass(frozen=True)
class Graded:
    """What came of one case.

    Attributes:
        right: Whether all that is expected was there, and nothing that is forbidden; None where nothing could be
            checked.
        results: Of each check, what it is, whether it held, and whether that is as it should be.
        broken: The checks of what is forbidden that held.
        skipped: How many could not be checked.
    """

    right: Optional[bool]
    results: tuple[dict[str, Any], ...]
    broken: tuple[str, ...] = ()
    skipped: int = 0


def grade(
    expect: Sequence[Check],
    forbid: Sequence[Check],
    answer: str,
    judged: Callable[[str], Optional[Found]] = lambda sentence: None,
) -> Graded:
    """Check an answer.

    A check that does not end in its time has failed: what is expected was not seen, and what is forbidden was not ruled
    out.

    Args:
        expect: What it must say.
        forbid: What it must not.
        answer: What the model wrote, with its special tokens.
        judged: Finds what a judge says of a sentence; None where it was not asked, or has not said.
    """
    results = []
    for check, forbidden in [(check, False) for check in expect] + [(check, True) for check in forbid]:
        held: Optional[bool] = None
        row: dict[str, Any] = {"check": str(check), "kind": check.kind, "forbidden": forbidden}
        if check.kind == "judge":
            verdict = judged(check.wanted)
            held = verdict.holds if verdict else None
            row |= {"why": verdict.why} if verdict else {}
        else:
            try:
                held = holds(check, answer)
            except TooLong:
                held = forbidden
        row["held"] = held
        results.append(row | {"fine": None if held is None else held is not forbidden})
    known = [row["fine"] is not None for row in results]
    return Graded(
        right=right_by(results, known),
        results=tuple(results),
        broken=tuple(str(row["check"]) for row in results if row["forbidden"] and row["held"]),
        skipped=known.count(False),
    )


def right_by(results: Sequence[Mapping[str, Any]], counts: Sequence[bool]) -> Optional[bool]:
    """Tell whether an answer is right by some of its checks; None by none.

    Args:
        results: Of all of them, as :class:`Graded` has them.
        counts: Of each, whether it counts.
    """
    known = [bool(row["fine"]) for row, count in zip(results, counts) if count]
    return all(known) if known else None
