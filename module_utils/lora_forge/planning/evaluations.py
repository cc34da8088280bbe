"""Plan evaluations: delivered adapters that are asked their agent's cases, each by a run of its own.

Nothing of a recipe or of data is read: an adapter's manifest says how it was trained.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Optional

from ansible.module_utils.lora_forge.adapters import promotion
from ansible.module_utils.lora_forge.adapters.manifest import Manifest
from ansible.module_utils.lora_forge.agents import agent_of, evaluation_of
from ansible.module_utils.lora_forge.data import cases
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.evaluation.answers import WHO
from ansible.module_utils.lora_forge.planned_run import Estimate, PlannedCases, PlannedRun
from ansible.module_utils.lora_forge.planning import answering, memory, questions, rehearsal, variants
from ansible.module_utils.lora_forge.planning.agents import Agents, everybody, kept_agents, listed, one_of
from ansible.module_utils.lora_forge.planning.fleet import Fleet, Lane, Trainer, check_trainers, trainers_for
from ansible.module_utils.lora_forge.planning.placement import Job, assign_lanes
from ansible.module_utils.lora_forge.planning.plan import Plan
from ansible.module_utils.lora_forge.planning.run_record import read_record
from ansible.module_utils.lora_forge.text import canonical, nearest

# What spreads one model over several GPUs; an evaluation takes one.
_SPREADING = (
    "context_parallel_size", "deepspeed", "dp_replicate_size", "dp_shard_size", "fsdp", "fsdp_config", "fsdp_version",
    "tensor_parallel_size",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Asked:
    """An adapter that is in question, before it has its place.

    Attributes:
        run: Its evaluation, on the trainer that comes first into question.
        takers: The names of the trainers that come into question.
        count: How many answers are wanted of a trainer; none where all are known, or another run brings them.
        warnings: What is to be said of its cases.
    """

    run: PlannedRun
    takers: tuple[str, ...]
    count: int
    warnings: tuple[str, ...] = ()


def make(
    root: pathlib.Path,
    output: pathlib.Path,
    wanted: Any,
    trainers: Sequence[Trainer],
    known: Agents,
    move: Any = False,
    run_id: str = "",
    against: str = "",
    verify: bool = False,
    outside: Collection[str] = (),
) -> Plan:
    """Plan the evaluation of delivered adapters.

    Args:
        root: The checkout.
        output: Where adapters, answers and placements are kept.
        wanted: What ``-e role=…`` says; None for all agents that have adapters and cases.
        trainers: The trainers of the inventory.
        known: The agents of the checkout.
        move: Which placements are let go, and which trainers get nothing.
        run_id: The run whose adapter is evaluated; empty for each agent's promoted one, and its newest.
        against: The run whose adapter it is held against; empty for the promoted one.
        verify: Hash the files of adapters; those that go to a trainer are hashed in any case.
        outside: The hosts that a limit leaves out.

    Raises:
        UserError: Anything that is wrong, before a host is touched.
    """
    fleet = check_trainers(trainers, known, move, output, outside)
    kept = kept_agents(output)
    if wanted is None and run_id:
        wanted = agent_of(run_id)
    named = [] if everybody(wanted) else known.select(wanted, kept)
    if run_id or against:
        one_of(named, wanted)
    asked: list[Asked] = []
    problems: list[str] = []
    for agent in named or sorted(kept):
        try:
            asked += ask_agent(root, output, agent, fleet, run_id, against, verify)
        except UserError as error:
            problems.append(str(error))
    if problems and (named or not asked):
        raise UserError("\n".join(problems))
    if not asked:
        raise UserError("nothing is delivered yet, so that there is nothing to evaluate; train.yml trains")
    warnings = list(dict.fromkeys(warning for one in asked for warning in one.warnings))
    return Plan(tuple(place(asked, fleet, output)), warnings + problems)


def ask_agent(
    root: pathlib.Path,
    output: pathlib.Path,
    agent: str,
    fleet: Fleet,
    run_id: str = "",
    against: str = "",
    verify: bool = False,
) -> list[Asked]:
    """Say what an agent's adapters are asked.

    Args:
        root: The checkout.
        output: Where adapters and answers are kept.
        agent: The agent.
        fleet: The trainers.
        run_id: See :func:`make`.
        against: See :func:`make`.
        verify: See :func:`make`.

    Raises:
        UserError: It has no adapter or no cases, an adapter is damaged, or no trainer can ask it.
    """
    home = output / "adapters" / agent
    manifests = promotion.delivered_manifests(home)
    sweeps = {
        row["run_id"]: row.get("variant") or {}
        for sweep in variants.read_sweeps(output, [agent])
        for row in sweep["runs"]
    }
    for name in filter(None, (run_id, against)):
        if name not in manifests:
            raise UserError(_no_adapter(agent, home, manifests, name))
    targets = [run_id] if run_id else in_question(home, manifests, sweeps)
    if not targets:
        raise UserError(_no_adapter(agent, home, manifests))
    found: list[Asked] = []
    covered: dict[str, set[str]] = {}  # of each model the questions that another run asks it
    for name in targets:
        try:
            manifest = questions.whole_manifest(home / name, verify)
        except UserError as error:
            if not found:
                raise
            # The promoted one is damaged: the newest one is evaluated all the same.
            found[-1] = dataclasses.replace(found[-1], warnings=(*found[-1].warnings, str(error)))
            continue
        if against and manifests[against].is_rehearsal != manifest.is_rehearsal:
            raise UserError(f"{name} and {against} cannot be compared: one of them is a rehearsal")
        takers = takers_of(agent, name, manifest, fleet)
        run = PlannedRun(
            run_id=name,
            agent=agent,
            name=name,
            variant=sweeps.get(name, {}),
            fingerprint=str(manifest.fingerprint or ""),
            trainer=takers[0].name,
            state="ready",
            rehearsal=manifest.is_rehearsal,
            recipe=_recipe(manifest),
            recipe_sha256=str(manifest.recipe_sha256 or ""),
            axolotl=str(manifest.versions.get("axolotl") or ""),
            datasets=(),
            hosts=(takers[0].name,),
            cases=find_cases(agent, takers),
            evaluates=name,
            against=against if against != name else "",
        )
        made = questions.cases_of(run, root)
        assert made is not None
        candidate = questions.delivered_candidate(run, manifest, home)
        ask, left_out = questions.without_damaged(
            run, questions.open_questions(run, made, candidate, output), candidate.promoted, home, verify
        )
        models = candidate.models
        left = {who: [key for key in ask.get(who, ()) if key not in covered.get(models[who], ())] for who in models}
        for who, keys in left.items():
            covered.setdefault(models[who], set()).update(keys)
        mark = canonical([[models.get(who, "") for who in WHO], sorted(case.key for case in made.cases)])
        answers = answering.planned_answers(left, {case.key: case.question for case in made.cases})
        gib = None if run.rehearsal else memory.estimate(run.recipe)
        run = dataclasses.replace(
            run,
            run_id=evaluation_of(name, hashlib.sha256(mark.encode()).hexdigest()[:12]),
            estimate=Estimate(
                steps=answers.count,
                answers=answers,
                memory_gib=gib,
                memory_floor_gib=None if run.rehearsal else memory.floor(run.recipe),
            ),
        )
        warnings = (*made.warnings, left_out) if left_out else made.warnings
        found.append(Asked(run, tuple(trainer.name for trainer in takers), answers.count, warnings))
    return found


def in_question(
    home: pathlib.Path, manifests: Mapping[str, Manifest], sweeps: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """List the adapters of an agent that are evaluated where none is named: the newest, and the promoted one.

    A rehearsal counts as long as there is nothing else. Of a sweep's variants those count that were promoted.

    Args:
        home: output/adapters/<agent>.
        manifests: Of what is delivered, by run id, the oldest first.
        sweeps: The runs of its sweeps.
    """
    promoted = promotion.points_to(home / promotion.LATEST)
    real = [name for name, manifest in manifests.items() if not manifest.is_rehearsal] or list(manifests)
    newest = [name for name in real if name not in sweeps][-1:]
    return list(dict.fromkeys(name for name in (*newest, promoted) if name in manifests))


def _no_adapter(agent: str, home: pathlib.Path, manifests: Mapping[str, Manifest], name: str = "") -> str:
    if not manifests:
        return (
            f"{agent} has no adapter in {home}, so that there is nothing to evaluate. To train one: ansible-playbook "
            f"train.yml -e role={agent}"
        )
    delivered = f"Delivered: {listed(list(manifests))}"
    if not name:
        return f"say which adapter of {agent} to evaluate, with -e run_id=…: none is promoted. {delivered}"
    return f"{agent} has no adapter «{name}» in {home}{nearest(name, manifests) or '.'} {delivered}"


def takers_of(agent: str, run_id: str, manifest: Manifest, fleet: Fleet) -> list[Trainer]:
    """List the trainers that may ask an adapter, the one that has trained it first, and alone where it is there.

    Its base model is there already. A rehearsal's is on no other one.

    Args:
        agent: Whose.
        run_id: The run that made it.
        manifest: Its manifest.
        fleet: The trainers.

    Raises:
        UserError: There is none.
    """
    takers = trainers_for(fleet.remaining, agent) or fleet.remaining
    takers = [trainer for trainer in takers if (trainer.profile == rehearsal.PROFILE) == manifest.is_rehearsal]
    if not takers:
        raise UserError(
            f"{run_id} is a rehearsal, and no trainer of this inventory rehearses; use the one it was trained with"
            if manifest.is_rehearsal
            else f"{run_id} is a real adapter, and every trainer of this inventory only rehearses; name one with a "
            "GPU, such as -i inventory/ssh.yml"
        )
    home = [trainer for trainer in takers if manifest.host.name in (trainer.name, *trainer.members)]
    return home or takers


def find_cases(agent: str, takers: Sequence[Trainer]) -> PlannedCases:
    """Find and check the cases of an agent where the trainers that may ask say.

    Args:
        agent: The agent.
        takers: The trainers.

    Raises:
        UserError: There are none, or what is in their file is no case.
    """
    folders = list(dict.fromkeys(trainer.eval_dir for trainer in takers))
    for folder in folders:
        path = cases.find_file(pathlib.Path(folder), agent)
        if path is not None:
            made = cases.read(path)
            return PlannedCases(str(path), made.sha256, len(made.cases))
    raise UserError(
        f"{agent} has no cases: there is no {pathlib.Path(folders[0]) / f'{agent}.jsonl'}. -e eval_dir=… says where to "
        "look; docs/evaluation.md says what a case is"
    )


def _recipe(manifest: Manifest) -> dict[str, Any]:
    """Return the recipe by which an adapter's base model is loaded on one GPU.

    A rehearsal's has the name of the very model that it was rehearsed with, of which the weights are random.
    """
    recipe = {key: value for key, value in manifest.recipe.items() if key not in _SPREADING}
    if manifest.is_rehearsal:
        recipe["base_model"] = pathlib.PurePath(str(manifest.base_model)).name
    return recipe


def place(asked: Sequence[Asked], fleet: Fleet, output: pathlib.Path) -> list[PlannedRun]:
    """Give each evaluation that needs a trainer its lane: one GPU of one host, also where trainings take several.

    Args:
        asked: The evaluations.
        fleet: The trainers.
        output: Where placements are kept.

    Raises:
        UserError: One was launched where this inventory cannot reach it.
    """
    single = [  # whom they train is of no account here: who may ask whom is known
        dataclasses.replace(trainer, lanes=trainer.lanes * trainer.gpus, gpus=1, hosts=1, members=(), agents=())
        for trainer in fleet.remaining
    ]
    runs: dict[Job, PlannedRun] = {}
    held: dict[Job, Lane] = {}
    only: dict[Job, tuple[str, ...]] = {}
    weight: dict[Job, int] = {}
    for number, one in enumerate(asked):
        job = (one.run.agent, number)
        runs[job] = one.run
        if not one.count:
            continue
        only[job], weight[job] = one.takers, one.count
        runs[job], lane = _settle(one.run, fleet, output)
        if lane is not None:
            held[job] = lane
    for job, lane in assign_lanes(single, weight, held, only, fleet.move.trainers).items():
        runs[job] = dataclasses.replace(runs[job], trainer=lane.trainer, hosts=(lane.trainer,), lane=lane.number)
    return list(runs.values())


def _settle(run: PlannedRun, fleet: Fleet, output: pathlib.Path) -> tuple[PlannedRun, Optional[Lane]]:
    """Return an evaluation that has to be asked, in its state, and the lane that it has already."""
    record = read_record(output, run.run_id)
    anew = dataclasses.replace(run, state="to evaluate")
    if not record.state or record.delivered_at or fleet.move.lets_go(record.trainer):
        return anew, None
    there, ended = record.trainer in fleet.by_name, record.state in ("failed", "stopped")
    if not there and ended:
        return anew, None
    if not there:
        raise UserError(
            f"{run.run_id} was launched on {record.trainer}, which this inventory does not hold. Use the inventory "
            f"that does, or give it up there and ask another trainer with -e move={record.trainer}"
        )
    state, why = ("to resume", f"{record.state} before") if ended else ("to attach", "launched before")
    return dataclasses.replace(run, state=state, why=why, placed=True), Lane(record.trainer, record.lane)
