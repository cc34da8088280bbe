"""Who is trained: the files of configs/agents/, what they say besides Axolotl's keys, and the groups of agents.

A file is all that makes an agent. Which agents there are is read once for a command (:class:`Agents`), and each file
when it is first needed.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

from ansible.module_utils.lora_forge.agents import EVERYBODY, agent_of, name_problem
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planning.layers import Layer, quote_value, read_layer
from ansible.module_utils.lora_forge.text import nearest

FOLDER = "configs/agents"
GROUPS = "configs/groups.yml"
OWN_KEYS = ("extends", "data_of")  # of an agent's file: no keys of Axolotl's, and part of no fingerprint
NOBODY = (
    "role is given, and empty. Name agents or groups, with commas between, or all; without any role every agent of the "
    "inventory is meant"
)
SHOWN = 10  # names that a sentence lists


def split_names(wanted: Any) -> list[str]:
    """List what an option names: a list, or words with commas between."""
    names = wanted if isinstance(wanted, list) else str(wanted or "").split(",")
    return [name for name in (str(name).strip() for name in names) if name]


def everybody(wanted: Any) -> bool:
    """Tell whether ``all`` is named: whoever there is something of, be their files there or not."""
    return split_names(wanted) == [EVERYBODY]


def listed(names: Sequence[str]) -> str:
    """List names in a sentence: the first ones, and how many more."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@dataclasses.dataclass(frozen=True)
class AgentFile:
    """What a file of configs/agents/ holds.

    Attributes:
        layer: Its Axolotl keys.
        own: What it says under :data:`OWN_KEYS`, as it stands there.
    """

    layer: Layer
    own: dict[str, Any]

    def where(self, key: str) -> str:
        """Quote one of the file's own keys, with its place, for messages."""
        return f"{self.layer.where(key)}: «{key}: {quote_value(self.own[key])}»"


class Agents:
    """The agents of a checkout, and their groups.

    What is wrong with the name of a file, or with a group, is no reason to keep somebody from stopping a run: it stands
    in ``problems``, for the plan of what starts something.

    Args:
        root: The checkout.

    Attributes:
        names: All agents, in the order of their names.
        groups: Of each group its agents, without groups that are wrong.
        problems: What is wrong with names of files and with groups, in sentences.
    """

    def __init__(self, root: pathlib.Path):
        self.root = root
        self.problems: list[str] = []
        self.names: tuple[str, ...] = tuple(sorted(self._read_names()))
        self.groups: dict[str, tuple[str, ...]] = self._read_groups()
        self._files: dict[str, AgentFile] = {}

    def _read_names(self) -> list[str]:
        names = []
        folder = self.root / FOLDER
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name.startswith(".") or path.name.endswith("~"):
                continue  # what an editor leaves
            problem = name_problem(path.stem) if path.suffix == ".yml" else "here lie files <agent>.yml alone"
            if problem:
                self.problems.append(f"{FOLDER}/{path.name}: {problem}. Rename it, or put it elsewhere")
            else:
                names.append(path.stem)
        return names

    def _read_groups(self) -> dict[str, tuple[str, ...]]:
        if not (self.root / GROUPS).exists():
            return {}
        try:
            layer = read_layer(self.root / GROUPS, GROUPS)
        except UserError as error:
            self.problems.append(str(error))
            return {}
        groups = {}
        for name, members in layer.keys.items():
            problem = self._group_problem(name, members, layer.keys)
            if problem:
                self.problems.append(f"{layer.where(name)}: {problem}")
            else:
                groups[str(name)] = tuple(dict.fromkeys(members))
        return groups

    def _group_problem(self, name: Any, members: Any, groups: Collection[Any]) -> str:
        """Say what is wrong with a group among others; empty where nothing is."""
        if not isinstance(name, str):
            return f"a group cannot be called «{name}», which is how YAML reads its name; put that in quotes"
        if name_problem(name):
            return f"a group cannot be called «{name}»: {name_problem(name)}"
        if name in self.names:
            return f"«{name}» is a group, and an agent ({FOLDER}/{name}.yml); give one of them another name"
        if not isinstance(members, list) or not members or not all(isinstance(member, str) for member in members):
            return f"the group «{name}» must be a list of agents, such as {name}: [witness, deacon]"
        unknown = next((member for member in members if member not in self.names), None)
        if unknown is None:
            return ""
        if unknown in groups:
            return f"the group «{name}» has «{unknown}», which is a group; groups hold agents alone, so name its agents"
        return f"the group «{name}» has «{unknown}», which is no agent{nearest(unknown, self.names)}"

    def select(self, wanted: Any, kept: Collection[str] = ()) -> list[str]:
        """List the agents that are named: agents and groups, in a list or with commas between, or ``all``.

        Args:
            wanted: What ``-e role=…`` says, or ``agents`` of a host; None where nobody is named.
            kept: Names that will do besides, as there is something of them.

        Returns:
            Each agent once; none where nobody is named.

        Raises:
            UserError: A name is not known, or something was given and names nobody.
        """
        if wanted is None:
            return []
        names = split_names(wanted)
        if not names:
            raise UserError(NOBODY)
        if everybody(wanted):
            return list(self.names)
        selected: list[str] = []
        for name in names:
            if name in self.groups:
                selected += self.groups[name]
            elif name in self.names or name in kept:
                selected.append(name)
            else:
                raise UserError(self._unknown(name))
        return list(dict.fromkeys(selected))

    def _unknown(self, name: str) -> str:
        hint = nearest(name, [*self.names, *self.groups]) or "."
        groups = f". Groups: {listed(list(self.groups))}" if self.groups else ""
        problems = "".join(f"\n{problem}" for problem in self.problems)  # the name may be meant by one of them
        return f"there is no agent «{name}»{hint} Agents: {listed(self.names)}{groups}{problems}"

    def file(self, name: str) -> AgentFile:
        """Read an agent's file, once for each command.

        Raises:
            UserError: It cannot be read, or is no mapping.
        """
        if name not in self._files:
            source = f"{FOLDER}/{name}.yml"
            layer = read_layer(self.root / source, source)
            own = {key: layer.keys.pop(key) for key in OWN_KEYS if key in layer.keys}
            self._files[name] = AgentFile(layer, own)
        return self._files[name]

    def layers(self, name: str) -> list[Layer]:
        """Return an agent's layers of a recipe: that of the agent which it extends, where it does, and its own.

        Raises:
            UserError: A file cannot be read, or what it extends is no agent, or extends another one itself.
        """
        file = self.file(name)
        if "extends" not in file.own:
            return [file.layer]
        other = file.own["extends"]
        if other == name or other not in self.names:
            hint = nearest(other, [known for known in self.names if known != name]) or "."
            raise UserError(f"{file.where('extends')} must name another agent{hint} Agents: {listed(self.names)}")
        extended = self.file(other)
        if "extends" in extended.own:
            raise UserError(
                f"{file.where('extends')}, and {extended.where('extends')}: an agent that is extended extends no other "
                "one. Let both extend the same, or copy what you need"
            )
        return [extended.layer, file.layer]

    def takes_all(self, name: str) -> bool:
        """Tell whether an agent learns from everybody's data, whoever that is."""
        return self.file(name).own.get("data_of") == EVERYBODY

    def data_of(self, name: str) -> list[str]:
        """List the agents whose data an agent learns from where it has none of its own; most have none.

        Raises:
            UserError: Its file cannot be read, or names nobody, or itself alone.
        """
        file = self.file(name)
        if "data_of" not in file.own:
            return []
        given = file.own["data_of"]
        try:
            others = self.select(given if isinstance(given, (str, list)) else []) if given else []
        except UserError as error:
            raise UserError(f"{file.where('data_of')}: {error}") from None
        others = [other for other in others if other != name]
        if not others and given != EVERYBODY:
            raise UserError(f"{file.where('data_of')} must be a list of other agents, or {EVERYBODY}")
        return others


def kept_agents(output: pathlib.Path) -> frozenset[str]:
    """List the agents of which there is something, be their files there or not: adapters, or runs that were noted.

    Args:
        output: Where adapters and records are kept.
    """
    adapters = output / "adapters"
    names = {path.name for path in adapters.iterdir() if path.is_dir()} if adapters.is_dir() else set()
    names |= {agent_of(path.stem) for path in (output / "runs").glob("*.json")}
    return frozenset(name for name in names if not name_problem(name))


def gone_sentence(name: str) -> str:
    """Say of an agent without a file what that means."""
    return f"there is no {FOLDER}/{name}.yml, so that nothing trains {name}; what there is of it is kept"


def one_of(names: Sequence[str], asked: Any) -> str:
    """Return the only agent that was named.

    Raises:
        UserError: It is not one.
    """
    if len(names) != 1:
        raise UserError(f"one agent is wanted here, and «{asked}» is {listed(names)}")
    return names[0]
