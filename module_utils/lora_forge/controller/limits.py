"""What ``--limit`` means here: it picks trainers, and all is planned and concluded on localhost as without it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Callable

from ansible.module_utils.lora_forge.controller.hooks import pattern
from ansible.module_utils.lora_forge.planning.agents import listed
from ansible.module_utils.lora_forge.text import nearest


def subset(outside: Sequence[str], besides: Sequence[str]) -> str:
    """Return the limit to play by, which holds hosts that are added later, too.

    Args:
        outside: The hosts that are not played.
        besides: Names of hosts that are, and that Ansible does not count among all: localhost, where it is implicit.
    """
    return ",".join(["all", *besides, *([f"!{pattern(*outside)}"] if outside else [])])


def problem(limit: str, trainers: Sequence[str], outside: Collection[str], names_localhost: bool) -> str:
    """Say why nothing could be done within a limit; empty where something can.

    Args:
        limit: What the command was given.
        trainers: Those of the inventory.
        outside: The hosts that the limit leaves out.
        names_localhost: Whether it holds localhost, which is enough for what looks at the controller's files alone.
    """
    if names_localhost or not {*trainers} <= {*outside}:
        return ""
    there = f"Trainers: {listed(trainers)}" if trainers else "It has none; -i … names another one"
    return f"--limit {limit} names no trainer of the inventory, so that nothing would be done. {there}"


def unknown_names(
    patterns: Sequence[str], names: Collection[str], is_matched: Callable[[str], bool]
) -> tuple[list[str], list[str]]:
    """Say what a limit names that is nowhere in the inventory, though it names others that are.

    Args:
        patterns: Those of the limit, as Ansible has split it; files are read already.
        names: All hosts and groups of the inventory; a group may have no host at present.
        is_matched: Tells whether Ansible finds a host by a pattern.

    Returns:
        Warnings, of what was to be picked: Ansible passes it over, too, and less is done than was meant, which can be
        made good. Errors, of what was to be left out: it would not be, and what is done to a host stays done.
    """
    warnings, errors = [], []
    for given in patterns:
        name = given[1:] if given[:1] in ("!", "&") else given
        if not name or name in names or is_matched(name):
            continue
        hint = nearest(name, names) or "."
        if given.startswith("!") and not re.search(r"[*?\[~]", name):  # a pattern may well match nothing at present
            way_out = "Correct it, or take it out of the limit"
            errors.append(f"--limit leaves out «{name}», and the inventory has no such host or group{hint} {way_out}")
        elif not given.startswith("!"):
            warnings.append(f"--limit: the inventory has no host or group «{name}»{hint} It is passed over")
    return warnings, errors
