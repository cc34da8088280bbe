"""The fleet: the trainers of an inventory, their gangs and lanes, and whom they take."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.data import dataset
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import TRAINER_ROOT, PlannedRun
from ansible.module_utils.lora_forge.planning import launch
from ansible.module_utils.lora_forge.planning.agents import FOLDER, Agents, listed, split_names
from ansible.module_utils.lora_forge.text import nearest
from ansible.module_utils.lora_forge.trainer import slurm_options

# What :func:`trainers_of` reads of a host.
HOST_VARIABLES = (
    "agents", "datasets_dir", "eval_dir", "inventory_dir", "pod_gpu_count", "pod_gpus", "run_gpus", "run_hosts",
    "run_backend", "run_environment", "run_lanes", "run_profile", "run_slurm", "run_slurm_jobs",
    "run_slurm_max_gpu_hours", "run_stop_timeout", "trainer_gpu_count", "trainer_machine", "trainer_root",
)  # fmt: skip

OUTSIDE = "outside_limit"  # the group, in memory alone, of the hosts that --limit leaves out; not there without one
JOBS = 100  # of a cluster at once, where the inventory does not say: Slurm queues what it cannot start

# What the hosts of a gang must have in common, and the variables that say it.
_ALIKE = {
    "hosts": "run_hosts",
    "gpus": "run_gpus",
    "lanes": "number of lanes (run_lanes, trainer_gpu_count)",
    "agents": "agents",
    "profile": "run_profile",
    "machine": "trainer_machine",
    "datasets_dir": "datasets_dir",
    "eval_dir": "eval_dir",
}


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A trainer as the inventory declares it.

    Attributes:
        name: Its inventory name.
        profile: A file of configs/profiles/, or empty.
        machine: A file of configs/machines/, or empty.
        datasets_dir: Where the datasets of the agents it trains lie on the controller.
        eval_dir: Where their cases lie there.
        agents: The agents it is meant for; empty for any.
        root: Where everything lies on it.
        lanes: How many runs it trains at once.
        gpus: How many GPUs a run takes there, of each host or node.
        hosts: How many hosts a run takes.
        nodes: How many nodes a run takes, where it is the login node of a cluster.
        members: The hosts of its gang, itself among them; empty where a run takes one.
        groups: The groups of the inventory that may be its gang.
        rented: Whether it is a pod.
        gpu_names: The GPUs that it may have, as RunPod calls them; empty where the inventory does not say.
        slurm: Whether it is the login node of a cluster, whose Slurm says which runs start when.
        gpu_hours: The most that a job of it may take; None where nothing bounds it.
    """

    name: str
    profile: str = ""
    machine: str = ""
    datasets_dir: str = "output/datasets"
    eval_dir: str = "eval"
    agents: tuple[str, ...] = ()
    root: str = TRAINER_ROOT
    lanes: int = 1
    gpus: int = 1
    hosts: int = 1
    nodes: int = 1
    members: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    rented: bool = False
    gpu_names: tuple[str, ...] = ()
    slurm: bool = False
    gpu_hours: Optional[float] = None

    @property
    def processes(self) -> int:
        """How many processes train a run there, one a GPU."""
        return self.gpus * self.hosts * self.nodes


@dataclasses.dataclass(frozen=True, order=True)
class Lane:
    """Where a run trains: a trainer's name, and the number of one of its lanes, from 0."""

    trainer: str
    number: int = 0

    @classmethod
    def of(cls, run: PlannedRun) -> Lane:
        """Return the lane that a run is planned on."""
        return cls(run.trainer, run.lane)


@dataclasses.dataclass(frozen=True)
class Move:
    """Which placements of unfinished runs are let go.

    Attributes:
        everywhere: Whether all of them are.
        trainers: Those that are given up: what was placed there is let go, and they get nothing any more.
    """

    everywhere: bool = False
    trainers: tuple[str, ...] = ()

    def lets_go(self, trainer: str) -> bool:
        """Tell whether what was placed on a trainer is let go."""
        return self.everywhere or trainer in self.trainers


@dataclasses.dataclass(frozen=True)
class Fleet:
    """The trainers of an inventory, checked, of each gang its first host alone.

    Attributes:
        leaders: All of them but those that a limit leaves out.
        remaining: Those that may get work, at least one.
        move: Which placements are let go, and which trainers are given up.
        left_out: Those that a limit leaves out, whole gangs; what was launched there is left alone.
    """

    leaders: list[Trainer]
    remaining: list[Trainer]
    move: Move
    left_out: tuple[Trainer, ...] = ()

    @property
    def by_name(self) -> dict[str, Trainer]:
        """Those that may get work, by their names."""
        return {trainer.name: trainer for trainer in self.remaining}

    @property
    def untouched(self) -> frozenset[str]:
        """The names of all hosts that a limit leaves out."""
        return frozenset(name for trainer in self.left_out for name in (trainer.name, *trainer.members))


def trainers_of(
    hosts: Sequence[str],
    hostvars: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    datasets_dir: Optional[str] = None,
    eval_dir: Optional[str] = None,
) -> list[Trainer]:
    """Read trainers from the variables of their hosts, and gangs from the groups of the inventory.

    Args:
        hosts: The hosts that train.
        hostvars: Of each of them, those of HOST_VARIABLES that are set.
        groups: The names of the inventory's groups, and their hosts.
        datasets_dir: Where the datasets of all of them lie on the controller; None for what each host says.
        eval_dir: The same of the cases.

    Raises:
        UserError: What counts GPUs or hosts is no number.
    """
    trainers = []
    for host in hosts:
        known = hostvars.get(host, {})
        rehearsal = known.get("run_profile") == "rehearsal"
        least = 0 if rehearsal else 1
        gpus, size = _count(host, known, "run_gpus", least), _count(host, known, "run_hosts", least)
        in_slurm = known.get("run_backend") == "slurm"
        nodes, size = (max(1, size), 1) if in_slurm else (1, size)  # of a cluster the inventory knows no nodes
        members, fitting = find_gang(host, size, groups)
        environment = known.get("run_environment") or {}
        if wrong := [] if _is_open_ended(environment) else launch.environment_problems(environment):
            raise UserError(f"{host}: {'; '.join(wrong)}")
        gpu_hours = _check_slurm(host, known, 0 if rehearsal else gpus, nodes) if in_slurm else None
        folder = known.get("datasets_dir") or Trainer.datasets_dir if datasets_dir is None else datasets_dir
        asked = known.get("eval_dir") or Trainer.eval_dir if eval_dir is None else eval_dir
        for name, path in (("datasets_dir", folder), ("eval_dir", asked)):
            if not isinstance(path, str):
                raise UserError(f"{name} of {host} is «{path}»; it must be the path of a folder")
        pod_gpus = known.get("pod_gpus") or []
        trainers.append(
            Trainer(
                name=host,
                profile=known.get("run_profile") or "",
                machine=known.get("trainer_machine") or "",
                datasets_dir=os.path.expanduser(folder),  # a shell leaves ~ as it is in quotes and behind «=»
                eval_dir=os.path.expanduser(asked),
                agents=tuple(split_names(known.get("agents"))),
                root=str(known.get("trainer_root", Trainer.root)),
                lanes=_count(host, known, "run_slurm_jobs", 1, JOBS) if in_slurm else _count_lanes(host, known, gpus),
                gpus=gpus,
                hosts=size,
                nodes=nodes,
                members=members,
                groups=fitting,
                rented="pod_gpus" in known,
                gpu_names=tuple(split_names(pod_gpus if isinstance(pod_gpus, list) else [pod_gpus])),
                slurm=in_slurm,
                gpu_hours=gpu_hours,
            )
        )
    return trainers


def _count_lanes(host: str, known: Mapping[str, Any], gpus: int) -> int:
    """Count the lanes that a host declares, as the plan touches none: its GPUs, named or counted, by those of a run."""
    lanes = known.get("run_lanes") or []
    named = len(split_names(",".join(map(str, lanes)) if isinstance(lanes, list) else lanes))
    if known.get("run_profile") == "rehearsal":
        return named or 1
    variable = "trainer_gpu_count" if "trainer_gpu_count" in known else "pod_gpu_count"
    return (named or _count(host, known, variable, 0)) // gpus


def _check_slurm(host: str, known: Mapping[str, Any], gpus: int, nodes: int) -> Optional[float]:
    """Refuse what a login node of Slurm cannot be told; return the most GPU hours of a job, None where nothing says.

    What has a value with a Jinja expression in it is held to the same once the host is there.
    """
    asked = known.get("run_slurm") or {}
    open_ended = _is_open_ended(asked)
    stop_timeout = _count(host, known, "run_stop_timeout", 0, 120)
    wrong = [] if open_ended else slurm_options.problems(asked, gpus, stop_timeout)
    hours = None if open_ended or wrong else slurm_options.hours_of(asked)
    cards = gpus * nodes
    try:
        most = float(known.get("run_slurm_max_gpu_hours") or 0)  # the command line's is text
    except (TypeError, ValueError):
        most = 0.0
        wrong.append(
            f"run_slurm_max_gpu_hours is «{known['run_slurm_max_gpu_hours']}»; it must be a number, 0 for no cap"
        )
    if not open_ended and not wrong and (capped := slurm_options.over_cap(asked, cards, most)):
        wrong.append(capped)
    for variable in ("run_lanes", "pod_gpus"):
        if known.get(variable):
            wrong.append(f"{variable} is not for run_backend slurm: Slurm gives a job its GPUs")
    if wrong:
        raise UserError(f"{host}: {'; '.join(wrong)}")
    return None if hours is None or not cards else hours * cards


def _is_open_ended(value: Any) -> bool:
    """Tell whether a value has a Jinja expression in it, and so is known on the host alone."""
    return any(mark in str(value) for mark in ("{{", "{%"))


def _count(host: str, known: Mapping[str, Any], variable: str, least: int, otherwise: int = 1) -> int:
    value = known.get(variable, otherwise)
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if number < least:
        raise UserError(f"{variable} of {host} is «{value}»; it must be a whole number, {least} or more")
    return number


def find_gang(host: str, size: int, groups: Mapping[str, Sequence[str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Find the group of the inventory that holds a host and so many others as a run takes.

    Args:
        host: The host.
        size: How many hosts a run takes; one makes no gang.
        groups: The names of the inventory's groups, and their hosts.

    Returns:
        The hosts of the first such group, and the names of all that may be meant; another one of the same hosts is
        none of them.
    """
    members: tuple[str, ...] = ()
    fitting: list[str] = []
    for group, hosts in groups.items():
        fits = size > 1 and len(hosts) == size and host in hosts and group not in ("all", "ungrouped", OUTSIDE)
        if fits and sorted(hosts) != sorted(members):
            members = members or tuple(hosts)
            fitting.append(group)
    return members, tuple(fitting)


def check_agents(trainer: Trainer, agents: Agents) -> Trainer:
    """Check the agents and groups that a trainer names, and return it with each agent once.

    Args:
        trainer: The trainer.
        agents: Those of the checkout.

    Raises:
        UserError: There is no such agent.
    """
    if not trainer.agents:
        return trainer
    try:
        return dataclasses.replace(trainer, agents=tuple(agents.select(list(trainer.agents))))
    except UserError as error:
        raise UserError(f"agents of {trainer.name}: {error}") from None


def check_gangs(trainers: list[Trainer]) -> list[Trainer]:
    """Check the gangs, and return the trainers, of each gang its first host alone, which speaks for the others.

    Raises:
        UserError: A host has no gang, or the hosts of one are not alike.
    """
    by_name = {trainer.name: trainer for trainer in trainers}
    for trainer in trainers:
        if len(trainer.groups) > 1:
            raise UserError(
                f"{trainer.name}: run_hosts is {trainer.hosts}, and the groups {', '.join(trainer.groups)} each hold "
                "it and so many hosts; which one is its gang? Let one group alone have that size"
            )
    for trainer in trainers:
        if trainer.hosts > 1 and len(trainer.members) != trainer.hosts:
            raise UserError(
                f"{trainer.name}: run_hosts is {trainer.hosts}, and no group of the inventory holds it and "
                f"{trainer.hosts - 1} more; make one with the hosts that train together"
            )
        if trainer.hosts > 1 and trainer.rented:
            raise UserError(f"{trainer.name} is a pod, and pods do not reach each other; run_hosts is for other hosts")
        for name in trainer.members:
            if name not in by_name:
                raise UserError(f"{name} is of {trainer.name}'s gang, but no trainer; add it to the group trainers")
            differ = [word for key, word in _ALIKE.items() if getattr(by_name[name], key) != getattr(trainer, key)]
            if differ:
                raise UserError(
                    f"the hosts of {trainer.name}'s gang ({', '.join(trainer.members)}) are not alike: {name} has "
                    f"another {', '.join(differ)}; what a gang has in common is set as variables of its group"
                )
    return [trainer for trainer in trainers if trainer.members[:1] in ((), (trainer.name,))]


def parse_move(move: Any, trainers: Sequence[Trainer], output: pathlib.Path) -> Move:
    """Read what ``-e move=…`` says: true, or names of trainers. Who names a host of a gang gives the gang up.

    Args:
        move: What it says.
        trainers: All of the inventory.
        output: Where placements are kept; a trainer that the inventory no longer holds is known from there.

    Raises:
        UserError: There is no such trainer.
    """
    word = str(move or "").strip().lower()
    if word in ("true", "yes", "1"):
        return Move(everywhere=True)
    named = [] if word in ("", "false", "no", "0") else split_names(move)
    known = [trainer.name for trainer in trainers]
    lost = [name for name in named if name not in known]
    placed = {rundir.read_json(path).get("trainer") for path in (output / "runs").glob("*.json")} if lost else set()
    for name in lost:
        if name not in placed:
            hint = nearest(name, known) or "."
            raise UserError(f"-e move={name}: there is no trainer «{name}»{hint} Trainers: {', '.join(known)}")
    gang = [member for trainer in trainers if trainer.name in named for member in trainer.members]
    return Move(trainers=tuple(dict.fromkeys(named + gang)))


def check_trainers(
    trainers: Sequence[Trainer], agents: Agents, move: Any, output: pathlib.Path, outside: Collection[str] = ()
) -> Fleet:
    """Check the trainers of an inventory, and set those aside that are given up, or that a limit leaves out.

    Args:
        trainers: All of them.
        agents: Those of the checkout.
        move: What ``-e move=…`` says.
        output: Where placements are kept.
        outside: The hosts that a limit leaves out; a gang that holds one of them is left out with it.

    Raises:
        UserError: One of them cannot train, they make no gang, or none is left.
    """
    if not trainers:
        raise UserError("the inventory holds no host to train on. See inventory/local.yml for the smallest one")
    checked = [check_agents(trainer, agents) for trainer in trainers]
    for trainer in checked:
        if not trainer.root.startswith("/"):
            raise UserError(
                f"trainer_root of {trainer.name} is «{trainer.root}»; it must be an absolute path on that host"
            )
        if trainer.lanes < 1:
            raise UserError(f"{trainer.name} has no lane: it has fewer GPUs than run_gpus asks for")
    leaders = check_gangs(checked)
    let_go = parse_move(move, checked, output)
    left_out = tuple(trainer for trainer in leaders if {trainer.name, *trainer.members}.intersection(outside))
    within = [trainer for trainer in leaders if trainer not in left_out]
    if not within:
        whole = "; a gang trains with all of its hosts" if any(trainer.members for trainer in left_out) else ""
        raise UserError(
            f"--limit leaves no host to train on{whole}. Trainers: {listed([trainer.name for trainer in checked])}"
        )
    remaining = [trainer for trainer in within if trainer.name not in let_go.trainers]
    if not remaining:
        limit = " within --limit" if left_out else ""
        raise UserError(
            f"-e move={','.join(let_go.trainers)} leaves no host to train on{limit}; add one to the inventory"
            + (", or to the limit" if limit else "")
        )
    return Fleet(within, remaining, let_go, left_out)


def hosts_of(trainer: str, fleet: Fleet) -> tuple[str, ...]:
    """List the hosts on which the runs of a trainer lie, the leading one first; none where nobody may ask it.

    A host that belongs to a gang by now has its earlier runs to itself.

    Args:
        trainer: Its name; the inventory may not hold it any more, or a limit leave it out.
        fleet: The trainers.
    """
    for leader in fleet.leaders:
        if trainer == leader.name:
            return leader.members or (trainer,)
        if trainer in leader.members:
            return (trainer,)
    return ()


def trainers_for(trainers: list[Trainer], agent: str) -> list[Trainer]:
    """List the trainers that take an agent: those that declare it, or else those that declare none."""
    declaring = [trainer for trainer in trainers if agent in trainer.agents]
    return declaring or [trainer for trainer in trainers if not trainer.agents]


def group_alike(trainers: list[Trainer]) -> list[list[Trainer]]:
    """Group trainers by what a run of theirs would be: it goes by profile and data."""
    ways: dict[tuple[str, str], list[Trainer]] = {}
    for trainer in trainers:
        ways.setdefault((trainer.profile, trainer.datasets_dir), []).append(trainer)
    return list(ways.values())


def default_agents(
    trainers: list[Trainer], agents: Agents, warnings: list[str], left_out: Sequence[Trainer] = ()
) -> list[str]:
    """List the agents of a whole inventory: those that its trainers declare, and where one takes any, all with data.

    Args:
        trainers: At least one, from :func:`check_agents`.
        agents: Those of the checkout.
        warnings: Gets a sentence on who is left out.
        left_out: Trainers that a limit leaves out. What they alone declare stays theirs.

    Raises:
        UserError: The checkout has no agent, a file of one cannot be read, or a limit leaves out all who would train.
    """
    if left_out:
        theirs = {agent for trainer in left_out for agent in trainer.agents}
        theirs -= {agent for trainer in trainers for agent in trainer.agents}
        wanted = [agent for agent in default_agents(trainers, agents, warnings) if agent not in theirs]
        if not wanted:
            raise UserError(
                f"--limit leaves out the trainers that declare {listed(sorted(theirs))}, and there is nobody else to "
                "train; name agents with -e role=…"
            )
        return wanted
    if not agents.names:
        raise UserError(f"{FOLDER} holds no agent. A file {FOLDER}/<agent>.yml makes one; {{}} in it will do")
    declared = {agent for trainer in trainers for agent in trainer.agents}
    rest = next((trainer for trainer in trainers if not trainer.agents), None)
    if rest is None:
        return [agent for agent in agents.names if agent in declared]
    folder = pathlib.Path(rest.datasets_dir)
    own = {agent for agent in agents.names if dataset.find_files(folder, [agent], "train")}
    shared = {agent for agent in agents.names if agent not in own and own.intersection(agents.data_of(agent))}
    taken = declared | own | shared
    lacking = [agent for agent in agents.names if agent not in taken]
    if lacking and taken:
        warnings.append(f"left out: {listed(lacking)}; there is no such file as {folder}/{lacking[0]}_train.jsonl")
    return [agent for agent in agents.names if agent in taken] or list(agents.names)
