"""Runs to stop, to look at or to collect. Whatever has become of recipes and data since, they are found."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Optional

from ansible.module_utils.lora_forge.agents import EVERYBODY, agent_of, evaluated_by
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import Launched, PlannedRun
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
from ansible.module_utils.lora_forge.planning.run_record import RunRecord, noted_runs, read_launched, read_record


def find(
    root: pathlib.Path,
    output: pathlib.Path,
    wanted: Any,
    trainers: Sequence[Trainer],
    overrides: dict[str, Any],
    agents: Agents,
    move: Any = False,
    outside: Collection[str] = (),
    collect: bool = False,
    live: Optional[Collection[str]] = None,
    **options: Any,
) -> Plan:
    """Find the runs of agents, by recipes and data where these are good, and by what was noted.

    Of an agent that can be planned these are the run of its recipe, and all others that were launched and have not
    ended: of another recipe, or of a sweep. Of an agent that cannot be planned they are all that were noted. Of what is
    known from notes alone there is no recipe: it can be stopped and looked at, and not trained.

    To collect, those are meant that may have an adapter which is not here: under way as far as is known, or finished.
    They are as they were launched, whatever is planned now.

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
        collect: Find what is to be watched and collected.
        live: The pods that are rented; None where that is not known.
        options: Others of :class:`Planner`.

    Raises:
        UserError: The inventory is wrong, or nothing is found, and why is known.
    """
    trainers = [_without_gone_agents(trainer, agents) for trainer in trainers]
    fleet = check_trainers(trainers, agents, move, output, outside)
    warnings: list[str] = []
    planner: Optional[Planner] = None
    drafts: dict[Job, Draft] = {}
    errors: dict[str, str] = {}  # of agents that cannot be planned
    nobody: list[str] = []  # why nobody is meant where nobody is named
    selected = agents.select(wanted, kept_agents(output))
    if not selected:
        try:
            selected = default_agents(fleet.leaders, agents, warnings, fleet.left_out)
        except UserError as error:
            nobody = [str(error)]
    noted = _noted(output, collect)
    if everybody(wanted) or wanted is None:
        for agent in sorted(noted.keys() - selected):
            left = [one for one in noted[agent] if _is_open(one, collect)]
            noted[agent] = left if wanted else [one for one in left if hosts_of(one.trainer, fleet)]
            selected += [agent] if noted[agent] else []
    for agent in selected:
        if agent in agents.names:
            try:
                planner = planner or Planner(root, output, overrides, agents=agents, asks=collect, **options)
                drafts |= draft_runs(planner, [agent], [{}], fleet)
            except UserError as error:
                errors[agent] = str(error)
    placed, sentences = _place(planner, drafts, fleet) if planner else ({}, [])
    sentences += nobody
    warnings += planner.warnings if planner and collect else []  # what ends a run, or shows its log, trains nothing
    finder = Finder(output, fleet, collect, live, warnings)
    runs = finder.gather({agent: noted.get(agent, []) for agent in selected}, drafts, placed, errors)
    if not runs and (sentences or errors):
        head = "nothing is to be done within --limit" if fleet.left_out and not errors else ""
        if errors and collect and any(noted.get(agent) for agent in errors):
            head = "of what was launched nothing is left to collect, and what there is now cannot be planned:"
        raise UserError("\n".join([*filter(None, [head]), *sentences, *errors.values()]))
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


def _noted(output: pathlib.Path, collect: bool) -> dict[str, list[RunRecord]]:
    """Read what was noted of runs that were launched, by agent; of evaluations only where answers are still to come.

    Those are collected by what has asked them, with the cases of then.
    """
    noted: dict[str, list[RunRecord]] = {}
    for run_id in noted_runs(output):
        record, asks = read_record(output, run_id), bool(evaluated_by(run_id))
        if record.trainer and not (asks and (record.delivered_at or collect)):
            noted.setdefault(agent_of(run_id), []).append(record)
    return noted


def _is_open(record: RunRecord, collect: bool) -> bool:
    """Tell whether a run has not ended; to collect, also whether it has finished, and its adapter is not here."""
    if collect:
        return not record.delivered_at and (not record.final or record.state == "finished")
    return not record.final


@dataclasses.dataclass(frozen=True)
class Finder:
    """Makes runs of what was planned and what was noted.

    Attributes:
        output: Where records are kept.
        fleet: The trainers.
        collect: See :func:`find`.
        live: See :func:`find`.
        warnings: Gets a sentence on each run that is left alone.
    """

    output: pathlib.Path
    fleet: Fleet
    collect: bool
    live: Optional[Collection[str]]
    warnings: list[str]

    def gather(
        self,
        noted: Mapping[str, Sequence[RunRecord]],
        drafts: Mapping[Job, Draft],
        placed: Mapping[str, PlannedRun],
        errors: Collection[str],
    ) -> list[PlannedRun]:
        """List what was planned and what was noted, by agent; see :func:`find`."""
        runs: list[PlannedRun] = []
        for agent, records in noted.items():
            if draft := drafts.get((agent, 0)):
                others = [one for one in records if _is_open(one, self.collect) or evaluated_by(one.run_id)]
                others = [one for one in others if one.run_id != draft.run.run_id]
                found = self.by_record(others, "launched with another recipe")
                now = placed.get(agent)
                if now and (has_history(now) or not found):  # or there is nothing of it to look at
                    record = next((one for one in records if one.run_id == now.run_id), None)
                    runs.append(self.as_launched(now, record) if self.collect and record else now)
                elif now and self.collect:
                    self.warnings.append(
                        f"{agent}: nothing was launched with the recipe and data of now ({now.run_id}); train.yml "
                        "trains that. Collected is what was launched before"
                    )
            else:
                why = "its recipe is not known" if agent in errors else f"no {FOLDER}/{agent}.yml"
                found = self.by_record([one for one in records if not self.collect or _is_open(one, True)], why)
                if not found and agent not in errors:
                    limit = " within --limit" if self.fleet.left_out else ""
                    left = "to collect " if self.collect else ""
                    self.warnings.append(
                        f"{agent}: {gone_sentence(agent)}. No run of it {left}is on a host of this inventory{limit}"
                    )
            runs += found
        return runs

    def as_launched(self, now: PlannedRun, record: RunRecord) -> PlannedRun:
        """Return a run as it was launched, where what is planned now is the same one and goes on where that is.

        Machine keys and the place of files on its trainer are no part of its fingerprint, and may be others now.
        """
        launched = read_launched(self.output, now.run_id)
        if launched is None or not now.placed or now.trainer != record.trainer:
            return now
        own = ("state", "why", "trainer", "placed", "lane", "hosts", "cases", "estimate", "name", "variant")
        kept = dataclasses.replace(launched, **{name: getattr(now, name) for name in own})
        return dataclasses.replace(kept, launched=self.place(launched, record, now.hosts))

    def place(self, launched: PlannedRun, record: RunRecord, hosts: Sequence[str]) -> Launched:
        """Return with what a run was launched where it is; the hosts of a gang may have roots of their own."""
        if launched.trainer != record.trainer:
            return Launched()
        return launched.launched if len(hosts) == 1 else dataclasses.replace(launched.launched, root="")

    def by_record(self, records: Iterable[RunRecord], why: str) -> list[PlannedRun]:
        """Return runs that are none of what is planned, and warn of those that cannot be had."""
        runs = []
        for record in records:
            hosts, asked = hosts_of(record.trainer, self.fleet), evaluated_by(record.run_id)
            launched = read_launched(self.output, record.run_id) if self.collect else None
            alone = self.why_alone(record, bool(hosts), launched)
            if alone and not asked:
                self.warnings.append(f"{record.run_id} is left alone: {alone}")
            if alone:
                continue
            state = "to attach" if not record.final or self.collect else "to resume"
            state = "ready" if record.state == "finished" and not self.collect else state
            run = launched or PlannedRun(
                run_id=record.run_id,
                agent=agent_of(record.run_id),
                name=asked or agent_of(record.run_id),
                fingerprint="",
                trainer=record.trainer,
                state=state,
                rehearsal=False,
                recipe={},
                recipe_sha256="",
                axolotl="",
                datasets=(),
                hosts=(),
            )
            runs.append(
                dataclasses.replace(
                    run,
                    trainer=record.trainer,
                    placed=state != "ready",
                    lane=record.lane,
                    state=state,
                    why="an evaluation" if asked else why,
                    hosts=hosts[:1] if asked else hosts,  # one of a gang answers
                    evaluates=asked,
                    launched=self.place(run, record, hosts),
                    by_notes=True,
                )
            )
        return runs

    def why_alone(self, record: RunRecord, reached: bool, launched: Optional[PlannedRun]) -> str:
        """Say why a run is left alone; empty where it is not."""
        trainer = record.trainer
        if not reached:
            where = "--limit leaves out" if trainer in self.fleet.untouched else "this inventory does not hold"
            return f"it is on {trainer}, which {where}"
        if not self.collect:
            return ""
        rented = {one.name for one in self.fleet.leaders if one.rented}
        if self.live is not None and trainer in rented and trainer not in self.live:
            return f"it was launched on {trainer}, which is not rented, as far as is known"
        if launched is None:
            return "its recipe was not kept when it was launched. With that, and its data, the same command finds it"
        return ""
