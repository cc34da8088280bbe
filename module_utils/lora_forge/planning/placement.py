"""Which run goes where: drafts of all runs, what a limit leaves alone, and the lanes of the others."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Optional

from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning.agents import listed
from ansible.module_utils.lora_forge.planning.fleet import (
    Fleet,
    Lane,
    Move,
    Trainer,
    group_alike,
    hosts_of,
    trainers_for,
)
from ansible.module_utils.lora_forge.planning.planner import Planner

Job = tuple[str, int]  # an agent, and which variant of its recipe; 0 where there is no sweep


@dataclasses.dataclass(frozen=True)
class Draft:
    """A run as it is planned before all lanes are assigned.

    Attributes:
        run: The run, on the trainer that comes first into question.
        only: The trainers on which it would be this same run, where it has a history; None where any will do.
    """

    run: PlannedRun
    only: Optional[frozenset[str]] = None


def draft_runs(
    planner: Planner, agents: Sequence[str], variants: Sequence[dict[str, Any]], fleet: Fleet
) -> dict[Job, Draft]:
    """Plan every variant of every agent, each as if it were alone.

    Args:
        planner: Has recipes, data and attempts.
        agents: Who is trained.
        variants: Recipe overrides of a sweep; one that is empty without.
        fleet: The trainers.

    Raises:
        UserError: What is wrong with a recipe or its data, or two variants are the same training.
    """
    drafts: dict[Job, Draft] = {}
    job_of: dict[str, Job] = {}
    for agent, number in itertools.product(agents, range(len(variants))):
        draft = _draft_run(planner, agent, variants[number], fleet)
        twin = job_of.setdefault(draft.run.run_id, (agent, number))
        if twin != (agent, number):
            raise UserError(
                f"variants {twin[1] + 1} and {number + 1} of the sweep are the same training ({draft.run.run_id}): "
                "they differ in nothing that decides what is learnt"
            )
        drafts[agent, number] = draft
    return drafts


def _draft_run(planner: Planner, agent: str, variant: dict[str, Any], fleet: Fleet) -> Draft:
    """Plan a variant of an agent where it was placed, or else on the first trainer that takes it."""
    ways = group_alike(trainers_for(fleet.remaining, agent) or fleet.remaining[:1])
    run, trainers = _plan_where_begun(planner, agent, ways, fleet.move, variant)
    by_name = fleet.by_name
    if run.placed and run.trainer in by_name:  # where it is decides on its hosts, GPUs and machine keys
        there = planner.plan_run(agent, by_name[run.trainer], fleet.move, variant)
        run = dataclasses.replace(there, why=run.why)
    if run.state == "ready":  # it came from whichever trainer it was placed on, and not from the first one
        run = dataclasses.replace(run, hosts=hosts_of(run.trainer, fleet))
    return Draft(run, frozenset(trainer.name for trainer in trainers) if has_history(run) else None)


def _plan_where_begun(
    planner: Planner, agent: str, ways: list[list[Trainer]], move: Move, variant: Optional[dict[str, Any]] = None
) -> tuple[PlannedRun, list[Trainer]]:
    """Plan one agent in the way in which there is something of it already, or else in the first one.

    Where hosts differ in profile or data, a run is another one on each; what was begun must hold.

    Args:
        planner: Has recipes, data and attempts.
        agent: The agent.
        ways: From :func:`group_alike`.
        move: See :meth:`Planner.plan_run`.
        variant: See :meth:`Planner.plan_run`.

    Returns:
        The run, a real one before a rehearsal, and the trainers of its way.

    Raises:
        UserError: What is wrong in the first way, where the agent can be trained in none.
    """
    planned: list[tuple[PlannedRun, list[Trainer]]] = []
    errors = []
    for trainers in ways:
        try:
            planned.append((planner.plan_run(agent, trainers[0], move, variant), trainers))
        except UserError as error:  # of no account as long as nobody has to train it there
            errors.append(error)
    if not planned:
        raise errors[0]
    return min(planned, key=lambda way: (not has_history(way[0]), has_history(way[0]) and way[0].rehearsal))


def has_history(run: PlannedRun) -> bool:
    """Tell whether there is something of a run already, be it an adapter, or that it was given up somewhere."""
    return run.state != "to train" or run.placed or bool(run.why)


def leave_alone(drafts: Mapping[Job, Draft], fleet: Fleet) -> tuple[dict[Job, Draft], list[str]]:
    """Leave out the runs that a limit does not reach: launched elsewhere, or taken by no trainer within it.

    Args:
        drafts: From :func:`draft_runs`.
        fleet: The trainers.

    Returns:
        The others, and a sentence on each kind of those that are left out.
    """
    elsewhere: dict[Job, str] = {}
    untaken: dict[Job, str] = {}
    for job, draft in drafts.items() if fleet.left_out else ():
        run = draft.run
        if run.state == "ready":
            continue
        if run.placed and run.state in ("to attach", "to resume") and run.trainer in fleet.untouched:
            elsewhere[job] = f"{run.run_id} on {run.trainer}"
        elif not trainers_for(fleet.remaining, run.agent) and not (run.placed and run.trainer in fleet.by_name):
            untaken[job] = run.agent
    sentences = []
    if elsewhere:
        sentences.append(
            f"left alone, as they were launched where --limit does not reach: {listed([*elsewhere.values()])}"
        )
    if untaken:
        names = listed(list(dict.fromkeys(untaken.values())))
        sentences.append(f"left alone, as every trainer within --limit declares other agents: {names}")
    return {job: draft for job, draft in drafts.items() if job not in elsewhere and job not in untaken}, sentences


def place_runs(planner: Planner, drafts: Mapping[Job, Draft], fleet: Fleet) -> tuple[PlannedRun, ...]:
    """Give each run its lane, and plan anew what goes to another trainer than its draft.

    Args:
        planner: What made the drafts.
        drafts: From :func:`draft_runs`.
        fleet: The trainers.

    Raises:
        UserError: A run was launched where it cannot be reached, or no trainer takes an agent.
    """
    runs = {job: draft.run for job, draft in drafts.items()}
    by_name = fleet.by_name
    weight = {job: run.estimate.work for job, run in runs.items() if run.state != "ready"}
    placed = {
        job: run
        for job, run in runs.items()
        if run.placed and (run.trainer in by_name or run.state in ("to attach", "to resume"))
    }
    for run in placed.values():
        _check_placement(run, fleet.remaining)
    held = {job: Lane.of(run) for job, run in placed.items()}
    only = {job: draft.only for job, draft in drafts.items() if draft.only is not None}
    for job, lane in assign_lanes(fleet.remaining, weight, held, only, fleet.move.trainers).items():
        run = runs[job]
        if lane.trainer != run.trainer:
            gone = run.trainer not in by_name  # nothing to attach to there, or it was refused above
            move = Move(everywhere=True) if gone else fleet.move
            run = planner.plan_run(run.agent, by_name[lane.trainer], move, run.variant)
        runs[job] = dataclasses.replace(run, lane=lane.number)
    return tuple(runs.values())


def _check_placement(run: PlannedRun, trainers: Iterable[Trainer]) -> None:
    """Refuse to plan a run that was launched where this inventory cannot reach it as it was.

    Raises:
        UserError: Its trainer is gone, or belongs to a gang now.
    """
    leader = next((trainer.name for trainer in trainers if run.trainer in (trainer.name, *trainer.members)), None)
    if leader is None:
        raise UserError(
            f"{run.run_id} was launched on {run.trainer}, which this inventory does not hold. Use the inventory that "
            f"does, or give the run up there and start on another trainer with -e move={run.trainer}"
        )
    if leader != run.trainer:
        raise UserError(
            f"{run.run_id} was launched on {run.trainer} alone, which now trains in a gang that {leader} leads. Use "
            "the inventory of that time, or give the run up there and start it anew with -e move=true"
        )


def assign_lanes(
    trainers: list[Trainer],
    weight: dict[Job, int],
    placed: dict[Job, Lane],
    only: Mapping[Job, Collection[str]] = MappingProxyType({}),
    given_up: Sequence[str] = (),
) -> dict[Job, Lane]:
    """Spread jobs over lanes: where they are already, then where they are declared, then by load.

    Longest first onto the least loaded lane (Graham 1969, «Bounds on multiprocessing timing anomalies»: at most 4/3 of
    the best that there is).

    Args:
        trainers: At least one.
        weight: What is to be trained, and its estimated work.
        placed: Lanes of unfinished runs.
        only: The trainers that come into question for a job, where not all of them do.
        given_up: Trainers that get nothing any more.

    Raises:
        UserError: No trainer takes an agent.
    """
    # First lanes before second ones: as long as there is a trainer without work, none gets two.
    lanes = sorted(
        (Lane(trainer.name, number) for trainer in trainers for number in range(trainer.lanes)),
        key=lambda lane: lane.number,
    )
    place = {lane: number for number, lane in enumerate(lanes)}
    of_trainer: dict[str, list[Lane]] = {}
    for lane in lanes:
        of_trainer.setdefault(lane.trainer, []).append(lane)
    load = dict.fromkeys(lanes, 0)
    assigned = {}
    for job in sorted(weight, key=lambda job: (job not in placed, -weight[job], job)):
        agent = job[0]
        held = placed.get(job)
        if held and held.trainer in of_trainer:  # a lane that is gone: any other one there
            candidates = [held] if held in load else of_trainer[held.trainer]
        else:
            takers = {trainer.name for trainer in trainers_for(trainers, agent)}
            takers = takers.intersection(only.get(job, takers))
            candidates = [lane for lane in lanes if lane.trainer in takers]
        if not candidates:
            remaining = f" that is left without {', '.join(given_up)}" if given_up else ""
            advice = "; or name others with -e role=…" if given_up else ""
            raise UserError(
                f"no trainer takes {agent}: every one{remaining} declares other agents; add it to one of them{advice}"
            )
        assigned[job] = min(candidates, key=lambda lane: (load[lane], place[lane]))
        load[assigned[job]] += weight[job]
    return assigned
