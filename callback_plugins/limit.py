"""Let ``--limit`` pick the trainers: Ansible would leave out localhost, where all is planned, and do nothing."""

from __future__ import annotations

import pathlib
from typing import Any, NoReturn

import ansible.module_utils
from ansible import context
from ansible.plugins.callback import CallbackBase

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge.controller import limits  # noqa: E402
from ansible.module_utils.lora_forge.controller.display import show  # noqa: E402
from ansible.module_utils.lora_forge.planning.fleet import OUTSIDE  # noqa: E402

DOCUMENTATION = """
name: limit
type: aggregate
short_description: A limit picks trainers, and never leaves out localhost
description:
  - The plan, and all that is concluded, runs on localhost. With a C(--limit) that leaves it out no task would run. This
    has localhost play all the same; every other host of the inventory that the limit leaves out stays out.
  - The hosts that are left out become the group C(outside_limit), by which the plan and others know them.
  - A limit that holds neither a trainer nor localhost ends the command with 4 and a sentence, as for no host that can
    be reached. So does one that leaves out a name which the inventory does not have.
  - Any other name that the inventory does not have is a warning, as by Ansible's own default.
"""

ROOT = pathlib.Path(__file__).resolve().parents[1]
UNREACHED = 4


def is_ours(play: Any) -> bool:
    """Tell whether a play stands in a playbook of this checkout."""
    return pathlib.Path(play.get_path().rpartition(":")[0]).is_relative_to(ROOT / "playbooks")


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """The callback; see its documentation."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "limit"

    def __init__(self) -> None:
        super().__init__()
        self._outside: list[str] | None = None  # the hosts that the limit leaves out, once that was asked
        self._names_localhost = False

    def v2_playbook_on_start(self, playbook: Any) -> None:
        limit, plays = context.CLIARGS.get("subset"), playbook.get_plays()
        ours = any(map(is_ours, plays))
        if not limit or not (ours or self._outside):
            return
        inventory = plays[0].get_variable_manager()._inventory
        if self._outside is None:  # a later playbook of the same command finds another limit, our own
            self._check_names(inventory)
            within = {host.name for host in inventory.get_hosts("all")}
            self._outside = [name for name in inventory.hosts if name not in within]
            self._names_localhost = bool(inventory.get_hosts("localhost"))
            inventory.add_group(OUTSIDE)
            for name in self._outside:
                inventory.add_host(name, group=OUTSIDE)
        here = ["localhost"] if ours or self._names_localhost else []
        played = {host.name for name in here for host in inventory.get_hosts(name, ignore_limits=True)}
        inventory.subset(limits.subset([name for name in self._outside if name not in played], here))
        groups = inventory.get_groups_dict()
        trainers = groups.get("trainers", list(inventory.hosts))
        if ours and (why := limits.problem(limit, trainers, self._outside, self._names_localhost)):
            self._refuse(why)

    def _check_names(self, inventory: Any) -> None:
        """Tell what the limit names that the inventory does not have."""
        names = [*inventory.hosts, *inventory.groups]
        warnings, errors = limits.unknown_names(
            inventory._subset, names, lambda name: bool(inventory.get_hosts(name, ignore_limits=True))
        )
        show(warnings=warnings)
        if errors:
            self._refuse("\n".join(errors))

    def _refuse(self, why: str) -> NoReturn:
        self._display.error(why)
        raise SystemExit(UNREACHED)
