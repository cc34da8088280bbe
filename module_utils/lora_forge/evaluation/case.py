"""A case: what an adapter is asked, and what is expected of its answer."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from typing import Any

from ansible.module_utils.lora_forge.evaluation.checks import Check
from ansible.module_utils.lora_forge.text import canonical

MAX_NEW_TOKENS = 512


@dataclasses.dataclass(frozen=True)
class Case:
    """A case.

    Attributes:
        name: Unique in its file.
        line: Where it stands there, from 1.
        messages: What was said so far, in the canonical form of :mod:`conversation`; the assistant is next.
        tools: What it may call.
        expect: What its answer must say.
        forbid: What it must not.
        weight: In the score.
        max_new_tokens: How long an answer may be.
    """

    name: str
    line: int
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...]
    expect: tuple[Check, ...]
    forbid: tuple[Check, ...]
    weight: float = 1.0
    max_new_tokens: int = MAX_NEW_TOKENS

    @property
    def question(self) -> dict[str, Any]:
        """What a trainer is told: nothing of what is expected."""
        return {
            "messages": list(self.messages),
            "tools": list(self.tools),
            "max_new_tokens": self.max_new_tokens,
        }

    @property
    def key(self) -> str:
        """The SHA-256 of the question, in hex: answers are kept by it, so that other checks ask nothing anew."""
        return hashlib.sha256(canonical(self.question).encode()).hexdigest()

    @property
    def last_said(self) -> str:
        """What the answer is to."""
        return str(self.messages[-1]["content"])


@dataclasses.dataclass(frozen=True)
class Cases:
    """A file of cases.

    Attributes:
        path: The file.
        sha256: Of its bytes, in hex.
        cases: In their order.
        warnings: Sentences.
    """

    path: pathlib.Path
    sha256: str
    cases: tuple[Case, ...]
    warnings: tuple[str, ...] = ()
