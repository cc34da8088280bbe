"""The cases of an agent: what its adapter is asked after a training, and what is expected of the answers.

A line of ``eval/<agent>.jsonl`` is a case: what was said so far, in the forms that datasets have, and checks. The form
``{"system": …, "user": …, "expected_behaviors": […]}`` is read as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Optional

from ansible.module_utils.lora_forge.data import conversation, jsonl
from ansible.module_utils.lora_forge.data.conversation import Flaw, Keys
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.evaluation.case import MAX_NEW_TOKENS, Case, Cases
from ansible.module_utils.lora_forge.evaluation.checks import LOOSE, Check, check_of
from ansible.module_utils.lora_forge.text import canonical, nearest, shown

LONGEST_ANSWER = 32_768  # tokens
MOST = 10_000  # cases of a file
EXAMPLE = (
    '{"name": "…", "messages": [{"role": "user", "content": "…"}], "expect": [{"contains": "…"}], "forbid": [{"regex": '
    '"…"}]}'
)
_LONGEST_NAME = 120
_TELLING = 20  # letters of a message that tell a case from others
_SHOWN = 5  # problems of one file
_KEYS = ("name", "messages", "conversations", "system", "tools", "expect", "forbid", "weight", "max_new_tokens",
         "metadata")  # fmt: skip
_BEHAVIOURS = "expected_behaviors"
_THEIRS = ("role", "scenario", "system", "user", _BEHAVIOURS, "forbidden_behaviors", "name", "weight", "tools",
           "max_new_tokens", "metadata", "id")  # fmt: skip

# «runs gt hook to see what is there»: a program and its first words, up to a word of prose.
_RUNS = re.compile(
    r"(?:should |must |will )?(?:runs?|executes?|calls?|invokes?|uses?|issues?)\s+(?P<command>\S.*)", re.I
)
_QUOTED = re.compile(r"`([^`\n]{2,200})`")
_PROGRAM = re.compile(r"[a-z][a-z0-9_.-]{0,15}$")
_PROSE = frozenset(
    "a about after all an and any as at before by command correctly first for from if in instead into its of on once "
    "or properly rather so that the then this to tool until when where which while with".split()
)


def find_file(folder: pathlib.Path, agent: str) -> Optional[pathlib.Path]:
    """Return the file of an agent's cases; None where it has none."""
    path = folder / f"{agent}.jsonl"
    return path if path.exists() or path.is_symlink() else None


def read(path: pathlib.Path) -> Cases:
    """Read a file of cases.

    Raises:
        UserError: It cannot be read, or with the lines of it that are no case, and why.
    """
    digest, cases, problems = hashlib.sha256(), [], []
    names: dict[str, int] = {}
    with jsonl.opened(path) as file:
        for number, line in jsonl.lines(path, file, f"case: {EXAMPLE}"):
            digest.update(line)
            if not line.strip():
                continue
            try:
                case = read_case(line, number)
            except (Flaw, UserError) as error:
                problems.append(f"{path}, line {number}: {error}")
                continue
            except RecursionError:
                problems.append(f"{path}, line {number}: is nested too deeply to be read")
                continue
            if case.name in names:
                problems.append(
                    f"{path}, line {number}: the name «{case.name}» is that of line {names[case.name]}, too; each case "
                    "needs one of its own"
                )
            names.setdefault(case.name, number)
            cases.append(case)
            if len(cases) > MOST:
                raise UserError(f"{path} holds more than {MOST} cases; each is asked of each adapter. Choose some")
    if problems:
        more = len(problems) - _SHOWN
        raise UserError("\n".join(problems[:_SHOWN] + ([f"{path}: {more} more lines are wrong"] if more > 0 else [])))
    if not cases:
        raise UserError(f"{path} holds no case; take the file away, or write one: {EXAMPLE}")
    return Cases(path, digest.hexdigest(), tuple(cases), tuple(_warnings(path, cases)))


def known_cases(asked: Sequence[Case], files: Iterable[pathlib.Path]) -> list[str]:
    """Name the cases of which the last message stands in training data: they prove memory, and nothing else.

    Args:
        asked: The cases.
        files: Of the training data; a file that cannot be read is another check's.
    """
    needles = {case.name: _written(case.last_said) for case in asked if len(case.last_said) >= _TELLING}
    found: dict[str, None] = {}
    for path in files:
        with contextlib.suppress(OSError, ValueError), path.open("rb") as file:  # an empty file cannot be mapped
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
                found |= dict.fromkeys(
                    name for name, ways in needles.items() if any(text.find(way) >= 0 for way in ways)
                )
    return [case.name for case in asked if case.name in found]


def _written(text: str) -> set[bytes]:
    """Return a text as JSON may hold it, within quotation marks."""
    return {json.dumps(text, ensure_ascii=plain).encode("utf-8", "replace") for plain in (False, True)}


def _warnings(path: pathlib.Path, cases: Sequence[Case]) -> list[str]:
    loose = [case.name for case in cases if any(check.kind == LOOSE for check in (*case.expect, *case.forbid))]
    if not loose:
        return []
    named = ", ".join(loose[:_SHOWN]) + (f" and {len(loose) - _SHOWN} more" if len(loose) > _SHOWN else "")
    return [
        f"{path}: of {len(loose)} of {len(cases)} cases something expected is matched by its words alone, which proves "
        f"little ({named}). expect, with contains, regex or tool, says what must be there"
    ]


def read_case(line: bytes, number: int) -> Case:
    """Read a line.

    Args:
        line: Its bytes.
        number: Its number, from 1.

    Raises:
        Flaw: It is no JSON, or its turns cannot be read.
        UserError: Anything else is wrong with it, in words that go on from «FILE, line 3: ».
    """
    record = conversation.parse(line)
    try:
        canonical(record).encode()
    except UnicodeEncodeError:
        raise UserError("holds half of a character (a surrogate such as \\ud83d), which is no text") from None
    if not isinstance(record, dict):
        raise UserError(f"holds a JSON {type(record).__name__}, not an object; a case is {EXAMPLE}")
    theirs = _BEHAVIOURS in record or ("user" in record and "messages" not in record)
    known = _THEIRS if theirs else _KEYS
    for key in record:
        if key not in known:
            hint = nearest(str(key), known) or f"; known: {', '.join(known)}"
            raise UserError(f"«{shown(str(key), 40)}» is no key of a case{hint}")
    if theirs:
        turns, expect, forbid, usual = _read_theirs(record, number)
    else:
        if not any(key in record for key in ("messages", "conversations")):
            raise UserError(f"has no «messages»; a case is {EXAMPLE}")
        turns, expect, forbid = record, _checks(record, "expect"), _checks(record, "forbid")
        usual = f"case {number}"
    _, messages, tools = conversation.read_turns(turns, Keys())
    if messages[-1]["role"] == "assistant":
        raise Flaw("answered", "ends with what the assistant says; a case ends before that, and «expect» says it")
    if messages[-1]["role"] == "system":
        raise Flaw("nothing asked", "ends with a system turn; it has to end with a turn of the user, or of a tool")
    if not expect and not forbid:
        raise UserError("has neither «expect» nor «forbid», so that no answer could be wrong")
    return Case(
        name=_name(record, usual),
        line=number,
        messages=tuple({key: value for key, value in turn.items() if key != "train"} for turn in messages),
        tools=tuple(tools),
        expect=tuple(expect),
        forbid=tuple(forbid),
        weight=_number(record, "weight", 1.0, 1e-3, 1e3),
        max_new_tokens=_length(record),
    )


def _checks(record: dict[str, Any], key: str) -> list[Check]:
    given = record.get(key)
    if given is None:
        return []
    if isinstance(given, dict):
        given = [given]
    if not isinstance(given, list):
        raise UserError(f'«{key}» must be a list of checks, such as [{{"contains": "gt hook"}}]')
    checks = []
    for number, one in enumerate(given, 1):
        try:
            checks.append(check_of(one))
        except UserError as error:
            raise UserError(f"{key} {number}: {error}") from None
    return checks


def _read_theirs(record: dict[str, Any], number: int) -> tuple[dict[str, Any], list[Check], list[Check], str]:
    """Read the form with a system message, what the user says, and behaviours in words."""
    said = record.get("user")
    if not isinstance(said, str) or not said.strip():
        raise UserError("«user» must be what the user says, a text that is not empty")
    expect, forbid = (
        [check for text in _texts(record, key) for check in behaviour(text)]
        for key in (_BEHAVIOURS, "forbidden_behaviors")
    )
    turns = {"messages": [{"role": "user", "content": said}]}
    system = record.get("system")
    if isinstance(system, str) and system.strip():
        turns["messages"].insert(0, {"role": "system", "content": system})
    elif system not in (None, ""):
        raise UserError(f"«system» must be text, not {type(system).__name__}")
    scenario = record.get("scenario")
    return turns | {"tools": record.get("tools")}, expect, forbid, str(scenario or f"case {number}")


def _texts(record: dict[str, Any], key: str) -> list[str]:
    given = record.get(key) or []
    if not isinstance(given, list) or not all(isinstance(text, str) and text.strip() for text in given):
        raise UserError(f"«{key}» must be a list of texts")
    return given


def behaviour(text: str) -> list[Check]:
    """Make checks of a behaviour in words: a command in it must be there literally; else its words are looked for.

    Args:
        text: Such as ``runs gt hook``, ``answers with `gt peek` ``, or ``escalates to the mayor``.
    """
    quoted = _QUOTED.findall(text)
    if quoted:
        return [Check("contains", command) for command in quoted]
    found = _RUNS.match(text.strip().rstrip("."))
    words = found["command"].split() if found else []
    end = next((at for at, word in enumerate(words) if word.lower().strip(",;:") in _PROSE), len(words))
    command = [word.rstrip(",;:") for word in words[:end]]
    # One word alone may be the name of anything: «runs tests».
    if len(command) > 1 and _PROGRAM.match(command[0]):
        return [Check("contains", " ".join(command))]
    return [Check(LOOSE, text.strip())]


def _name(record: dict[str, Any], usual: str) -> str:
    name = record.get("name", usual)
    if not isinstance(name, str) or not name.strip():
        raise UserError("«name» must be a text that is not empty")
    name = " ".join(name.split())
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise UserError(f"«name» must be printable, and no longer than {_LONGEST_NAME} letters")
    return name


def _number(record: dict[str, Any], key: str, default: float, least: float, most: float) -> float:
    value = record.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise UserError(f"«{key}» must be a number, not {shown(canonical(value), 40)}")
    if not least <= value <= most:
        raise UserError(f"«{key}» is {shown(str(value), 40)}; it must be from {least:g} to {most:g}")
    return float(value)


def _length(record: dict[str, Any]) -> int:
    value = record.get("max_new_tokens", MAX_NEW_TOKENS)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError("«max_new_tokens» must be a whole number of tokens")
    return int(_number(record, "max_new_tokens", MAX_NEW_TOKENS, 1, LONGEST_ANSWER))
