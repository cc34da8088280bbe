"""The cases in the report page: of one run of an agent what was asked, and each answer beside the others."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from ansible.module_utils.lora_forge.adapters import merit
from ansible.module_utils.lora_forge.evaluation.answers import ADAPTER, BASE, PROMOTED
from ansible.module_utils.lora_forge.json_record import JsonRecord
from ansible.module_utils.lora_forge.results.report_pictures import ReportedRun
from ansible.module_utils.lora_forge.text import shown

MOST = 100  # cases of an agent
MOST_OF_ALL = 2000  # of all agents together: a page of some tens of megabytes is still opened by a browser
FEWEST = 5  # of an agent, however many there are
_LETTERS = 6000  # of an answer, or a message
_OF_CHECK = 400
NAMES = {BASE: "Base model", PROMOTED: "Promoted then", ADAPTER: "This run"}
# Kinds of cases, in the order in which they are shown: title, badge, whether they are open.
_BROKEN, _LOST, _GAINED = "Does what is forbidden", "From right to wrong", "From wrong to right"
_KINDS = {
    _BROKEN: ("bad", True),
    _LOST: ("bad", True),
    _GAINED: ("good", True),
    "Wrong before and after": ("", False),
    "Wrong": ("", False),
    "Not answered": ("", False),
    "Not checked": ("", False),
    "Right before and after": ("", False),
    "Right": ("", False),
}


@dataclasses.dataclass(frozen=True)
class _Held(JsonRecord):
    check: str = ""
    forbidden: bool = False
    held: Optional[bool] = None


@dataclasses.dataclass(frozen=True)
class _Said(JsonRecord):
    text: str = ""
    tokens: int = 0
    ended: bool = True
    right: Optional[bool] = None
    checks: tuple[_Held, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Row(JsonRecord):
    """A line of evaluation.jsonl, as far as it is shown."""

    case: str = ""
    weight: float = 1.0
    messages: tuple[dict[str, Any], ...] = ()
    answers: dict[str, Any] = dataclasses.field(default_factory=dict)

    def said(self) -> dict[str, _Said]:
        """Return by who was asked what they said."""
        return {who: _Said.from_dict(self.answers[who]) for who in NAMES if isinstance(self.answers.get(who), dict)}


@dataclasses.dataclass(frozen=True)
class Text:
    """A text as it is shown.

    Attributes:
        text: Fit to be shown; of a very long one the middle is left out.
        letters: How many it has; 0 where all of them are shown.
    """

    text: str
    letters: int = 0


def room(agents: int) -> int:
    """Return how many cases of an agent a page shows that has so many agents with cases."""
    return max(FEWEST, min(MOST, MOST_OF_ALL // max(1, agents)))


def compare_cases(run: ReportedRun, folder: pathlib.Path, most: int) -> Optional[dict[str, Any]]:
    """Lay out what a run was asked; None where its evaluation is not there, or is one of other weights.

    Args:
        run: The run.
        folder: Its folder.
        most: How many cases are shown, at most; those that changed come first.

    Returns:
        run, against (who it is held against, in words), file (where all of it stands), cases (how many there are), left
        (how many are not shown) and kinds: title, badge, open, count (of all) and cases of each kind of which there are
        any.
    """
    lines, known = merit.read(folder)
    if known is None:
        return None
    rows = [_Row.from_dict(line) for line in lines]
    other = PROMOTED if known.over_promoted.cases else BASE
    sorted_out: dict[str, list[_Row]] = {title: [] for title in _KINDS}
    for row in rows:
        sorted_out[_kind(row.said(), other)].append(row)
    left, kinds = most, []
    for title, mine in sorted_out.items():
        badge, is_open = _KINDS[title]
        if mine:
            cases = [_shown_case(row) for row in mine[: max(0, left)]]
            kinds.append({"title": title, "badge": badge, "open": is_open, "count": len(mine), "cases": cases})
        left -= len(mine)
    return {
        "run": run,
        "against": known.against if other == PROMOTED else "its base model",
        "file": str(folder / merit.EVALUATION),
        "cases": len(rows),
        "left": max(0, -left),
        "kinds": kinds,
    }


def _kind(said: Mapping[str, _Said], other: str) -> str:
    """Tell what became of a case, against the one that the run is held against."""
    ours, theirs = said.get(ADAPTER), said[other].right if other in said else None
    if ours is None:
        return "Not answered"
    if any(check.forbidden and check.held for check in ours.checks):
        return _BROKEN
    if ours.right is None:
        return "Not checked"
    if theirs is None:
        return "Right" if ours.right else "Wrong"
    if ours.right != theirs:
        return _GAINED if ours.right else _LOST
    return f"{'Right' if ours.right else 'Wrong'} before and after"


def _shown_case(row: _Row) -> dict[str, Any]:
    """Lay out a case: name, weight, before (messages), prompt (the last one), answers, and checks with what held."""
    said = row.said()
    messages = [(shown(str(each.get("role") or ""), 40), _content(each)) for each in row.messages]
    return {
        "name": shown(row.case, 200),
        "weight": row.weight,
        "before": messages[:-1],
        "prompt": messages[-1:],
        "answers": [(NAMES[who], one, _text(one.text)) for who, one in said.items()],
        "checks": _checks(list(said.values())),
    }


def _checks(said: Sequence[_Said]) -> list[tuple[str, bool, list[Optional[_Held]]]]:
    """List the checks of a case: what it is, whether it is of what is forbidden, and what came of each answer."""
    most = max((one.checks for one in said), key=len, default=())
    return [
        (
            shown(check.check, _OF_CHECK),
            check.forbidden,
            [one.checks[number] if number < len(one.checks) else None for one in said],
        )
        for number, check in enumerate(most)
    ]


def _content(message: Mapping[str, Any]) -> Text:
    """Return what a message says, its calls of tools behind it."""
    content = message.get("content")
    parts = [content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)] if content else []
    parts += [json.dumps(message["tool_calls"], ensure_ascii=False)] if message.get("tool_calls") else []
    return _text("\n".join(parts))


def _text(text: str) -> Text:
    """Make a text fit to be shown: nothing in it moves, hides or turns what stands around it."""
    return Text(shown(text, _LETTERS), len(text) if len(text) > _LETTERS else 0)
