"""The plan: agents × recipes × datasets × trainers -> runs. Reads the controller's files, touches no host."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection, Sequence
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning.agents import Agents, gone_sentence, kept_agents, listed
from ansible.module_utils.lora_forge.planning.fleet import Trainer, check_trainers, default_agents
from ansible.module_utils.lora_forge.planning.placement import draft_runs, leave_alone, place_runs
from ansible.module_utils.lora_forge.planning.planner import Planner


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is planned.

    Attributes:
        runs: By agent, in the order in which they were asked for, and variant.
        warnings: What may not be meant, in sentences.
        origins: Of each run_id, where each key of its recipe stands.
        data: What dataset files hold besides plain turns, in a line for each.
    """

    runs: tuple[PlannedRun, ...]
    warnings: list[str] = dataclasses.field(default_factory=list)
    origins: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    data: tuple[str, ...] = ()


def make(
    root: pathlib.Path,
    output: pathlib.Path,
    wanted: Any,
    trainers: Sequence[Trainer],
    overrides: dict[str, Any],
    fresh: bool = False,
    move: Any = False,
    verify: bool = False,
    variants: Sequence[dict[str, Any]] = ({},),
    keep: str = "",
    say: Callable[[str], None] = lambda _: None,
    agents: Optional[Agents] = None,
    outside: Collection[str] = (),
) -> Plan:
    """Plan everything.

    Args:
        root: The checkout.
        output: Where adapters and placements are kept.
        wanted: What ``-e role=…`` says; None for all that the inventory declares.
        trainers: The trainers of the inventory.
        overrides: Axolotl keys from the command line.
        fresh: Make new attempts.
        move: Let go of earlier placements: of all, or of those on the named trainers.
        verify: Hash adapters that are there.
        variants: Recipe overrides of a sweep; every agent is trained with each of them.
        keep: See :class:`Planner`.
        say: Tells people what they wait for.
        agents: Those of the checkout, where they were read already.
        outside: The hosts that a limit leaves out. Nothing is placed there, and what was launched there is left alone.

    Raises:
        UserError: Anything that is wrong, before a host is touched.
    """
    known = agents or Agents(root)
    fleet = check_trainers(trainers, known, move, output, outside)
    planner = Planner(root, output, overrides, keep, fresh, verify, say, known)
    selected = known.select(wanted, kept_agents(output)) or default_agents(
        fleet.leaders, known, planner.warnings, fleet.left_out
    )
    gone = [agent for agent in selected if agent not in known.names]
    if gone:
        raise UserError(f"{gone_sentence(gone[0])}. To train it, write that file again; {{}} in it will do")
    reached, sentences = leave_alone(draft_runs(planner, selected, variants, fleet), fleet)
    if sentences and not reached:
        raise UserError("\n".join(["nothing is to be done within --limit", *sentences]))
    planner.warnings += sentences
    runs = place_runs(planner, reached, fleet)
    return Plan(runs, merge_warnings(planner.warnings, selected), planner.origins, planner.data)


def merge_warnings(warnings: list[str], agents: Sequence[str]) -> list[str]:
    """Give each warning once: what is said of several agents in the same words is said of all of them at once."""
    agents_of: dict[tuple[bool, str], list[str]] = {}
    for warning in warnings:
        agent, colon, words = warning.partition(": ")
        known = bool(colon) and agent in agents
        agents_of.setdefault((known, words if known else warning), []).append(agent)
    return [
        f"{listed(list(dict.fromkeys(names)))}: {words}" if known else words
        for (known, words), names in agents_of.items()
    ]
