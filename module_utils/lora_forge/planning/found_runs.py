"""Runs to stop or to look at. Whatever has become of recipes and data since, it keeps nobody from finding them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Optional

from ansible.module_utils.lora_forge.agents import EVERYBODY, agent_of, evaluated_by
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning.agents import (
    FOLDER,
    Agents,
    everybody,
    gone_sentence,
    kept_agents,
    listed,
)
from ansible.module_utils.lora_forge.planning.fleet import Fleet, Trainer, check_trainers, default_agents, hosts_of
from ansible.module_utils.lora_forge.planning.placement import (
    Draft,
    Job,
    draft_runs,
    has_history,
    leave_alone,
    place_runs,
)
from ansible.module_utils.lora_forge.planning.plan import Plan, merge_warnings
from ansible.module_utils.lora_forge.planning.planner import Planner
from ansible.module_utils.lora_forge.planning.run_record import RunRecord, noted_runs, read_record


def find(
    root: pathlib.Path,
    output: pathlib.Path,
    wanted: Any,
    trainers: Sequence[Trainer],
    overrides: dict[str, Any],
    agents: Agents,
    move: Any = False,
    outside: Collection[str] = (),
    **options: Any,
) -> Plan:
    """Find the runs of agents, by recipes and data where these are good, and by what was noted.

    Of an agent that can be planned these are the run of its recipe, and all others that were launched and have not
    ended: of another recipe, or of a sweep. Of an agent that cannot be planned they are all that were noted. Of what is
    known from notes alone there is no recipe: it can be stopped and looked at, and not trained.

    Args:
        root: The checkout.
        output: Where adapters and placements are kept.
        wanted: What ``-e role=…`` says; None for all that the inventory declares. With ``all`` an agent without a file
            is meant, too, as long as a run of it has not ended.
        trainers: The trainers of the inventory.
        overrides: Axolotl keys from the command line.
        agents: Those of the checkout.
        move: See :func:`plan.make`.
        outside: The hosts that a limit leaves out.
        options: Others of :class:`Planner`.

    Raises:
        UserError: The inventory is wrong, or nothing is found, and why is known.
    """
    trainers = [_without_gone_agents(trainer, agents) for trainer in trainers]
    fleet = check_trainers(trainers, agents, move, output, outside)
    warnings: list[str] = []
    selected = agents.select(wanted, kept_agents(output)) or default_agents(
        fleet.leaders, agents, warnings, fleet.left_out
    )
    noted = _noted(output)
    if everybody(wanted):
        noted |= {agent: [run for run in noted[agent] if not run.final] for agent in noted.keys() - selected}
        selected += [agent for agent in sorted(noted.keys() - selected) if noted[agent]]
    planner: Optional[Planner] = None
    drafts: dict[Job, Draft] = {}
    errors: dict[str, str] = {}  # of agents that cannot be planned
    for agent in selected:
        if agent in agents.names:
            try:
                planner = planner or Planner(root, output, overrides, agents=agents, asks=False, **options)
                drafts |= draft_runs(planner, [agent], [{}], fleet)
            except UserError as error:
                errors[agent] = str(error)
    placed, sentences = _place(planner, drafts, fleet) if planner else ({}, [])
    warnings += planner.warnings if planner else []
    runs = _gather({agent: noted.get(agent, []) for agent in selected}, drafts, placed, errors, fleet, warnings)
    if not runs and (sentences or errors):
        within = ["nothing is to be done within --limit"] if fleet.left_out and not errors else []
        raise UserError("\n".join([*within, *sentences, *errors.values()]))
    warnings += sentences
    for agent, why in errors.items():
        first = why.partition("\n")[0]
        warnings.append(f"{agent}: it cannot be planned, and its runs are those that were noted: {first}")
    if away := [f"{run.run_id} on {run.trainer}" for run in runs if not run.hosts]:
        limit = ", or its limit," if fleet.left_out else ""
        warnings.append(f"left alone, as they were trained where this inventory{limit} does not reach: {listed(away)}")
    origins, data = (planner.origins, tuple(planner.data)) if planner else ({}, ())
    return Plan(tuple(runs), merge_warnings(warnings, selected), origins, data)


def _without_gone_agents(trainer: Trainer, agents: Agents) -> Trainer:
    """Return a trainer without agents that have no file: an inventory may name one for longer than it has one."""
    there = {*agents.names, *agents.groups, EVERYBODY}
    return dataclasses.replace(trainer, agents=tuple(agent for agent in trainer.agents if agent in there))


def _place(planner: Planner, drafts: Mapping[Job, Draft], fleet: Fleet) -> tuple[dict[str, PlannedRun], list[str]]:
    """Place what can be reached; return the runs by agent, and sentences on the others."""
    reached, sentences = leave_alone(drafts, fleet)
    placed: dict[str, PlannedRun] = {}
    for job, draft in reached.items():
        try:
            (placed[job[0]],) = place_runs(planner, {job: draft}, fleet)
        except UserError as error:
            sentences.append(str(error))
    return placed, sentences


def _noted(output: pathlib.Path) -> dict[str, list[RunRecord]]:
    """Read what was noted of runs that were launched, by agent; of evaluations only where answers are still to come."""
    noted: dict[str, list[RunRecord]] = {}
    for run_id in noted_runs(output):
        record = read_record(output, run_id)
        if record.trainer and not (evaluated_by(run_id) and record.delivered_at):
            noted.setdefault(agent_of(run_id), []).append(record)
    return noted


def _gather(
    noted: Mapping[str, Sequence[RunRecord]],
    drafts: Mapping[Job, Draft],
    placed: Mapping[str, PlannedRun],
    errors: Collection[str],
    fleet: Fleet,
    warnings: list[str],
) -> list[PlannedRun]:
    """List what was planned and what was noted, by agent; see :func:`find`."""
    runs: list[PlannedRun] = []
    for agent, records in noted.items():
        if draft := drafts.get((agent, 0)):
            others = [one for one in records if not one.final or evaluated_by(one.run_id)]
            others = [one for one in others if one.run_id != draft.run.run_id]
            found = _by_record(others, "launched with another recipe", fleet, warnings)
            now = placed.get(agent)
            runs += [now] if now and (has_history(now) or not found) else []  # or there is nothing of it to look at
        else:
            why = "its recipe is not known" if agent in errors else f"no {FOLDER}/{agent}.yml"
            found = _by_record(records, why, fleet, warnings)
            if not found and agent not in errors:
                limit = " within --limit" if fleet.left_out else ""
                warnings.append(f"{agent}: {gone_sentence(agent)}. No run of it is on a host of this inventory{limit}")
        runs += found
    return runs


def _by_record(records: Iterable[RunRecord], why: str, fleet: Fleet, warnings: list[str]) -> list[PlannedRun]:
    """Return runs of which nothing is known but what was noted, and warn of those that are elsewhere."""
    runs = []
    for record in records:
        hosts, asked = hosts_of(record.trainer, fleet), evaluated_by(record.run_id)
        if not hosts and asked:
            continue
        if not hosts:
            where = "--limit leaves out" if record.trainer in fleet.untouched else "this inventory does not hold"
            warnings.append(f"{record.run_id} is left alone: it is on {record.trainer}, which {where}")
            continue
        state = "to attach" if not record.final else "ready" if record.state == "finished" else "to resume"
        runs.append(
            PlannedRun(
                run_id=record.run_id,
                agent=agent_of(record.run_id),
                name=asked or agent_of(record.run_id),
                fingerprint="",
                trainer=record.trainer,
                placed=state != "ready",
                lane=record.lane,
                state=state,
                why="an evaluation" if asked else why,
                rehearsal=False,
                recipe={},
                recipe_sha256="",
                axolotl="",
                datasets=(),
                hosts=hosts[:1] if asked else hosts,  # one of a gang answers
                evaluates=asked,
            )
        )
    return runs
