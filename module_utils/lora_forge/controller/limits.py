"""What ``--limit`` means here: it picks trainers, and all is planned and concluded on localhost as without it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ansible.module_utils.lora_forge.controller.hooks import pattern
from ansible.module_utils.lora_forge.planning.agents import listed


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
