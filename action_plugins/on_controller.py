"""Run a module for the controller in this process: nothing is packed, no other Python starts, nothing connects.

The links to this file beside it name the modules that run this way; each has an ``answer`` in library/.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import pathlib
from collections.abc import Callable, Container, Iterable, Mapping
from functools import partial
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleError, AnsibleUndefinedVariable
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
from ansible.module_utils.lora_forge.controller.display import show, tell  # noqa: E402
from ansible.module_utils.lora_forge.errors import UserError, error_message  # noqa: E402


def load(name: str) -> Any:
    """Import a module of library/ by its name."""
    spec = importlib.util.spec_from_file_location(f"lora_forge_{name}", ROOT / "library" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_host_options(
    hostvars: Any,
    hosts: Iterable[str],
    is_option: Callable[[str], bool],
    elsewhere: Container[str],
    options: Container[str],
) -> Any:
    """Template the options among the variables of hosts; what cannot be templated yet is left out.

    Args:
        hostvars: Ansible's.
        hosts: Whose variables.
        is_option: Takes the names that are of interest.
        elsewhere: Names that the command line says, for all hosts: check_command has checked them.
        options: The names of options. Any other one may be the user's own and is no concern of ours: it has no value.
    """
    values: dict[str, dict[str, Any]] = {}
    for host in hosts:
        known: Mapping[str, Any] = hostvars[host]
        values[host] = {}
        for name in (name for name in known if is_option(name) and name not in elsewhere):
            with contextlib.suppress(AnsibleError, TypeError, ValueError):
                values[host][name] = json.loads(json.dumps(known[name])) if name in options else None
    return values


def read_host_variables(
    hostvars: Any, hosts: Iterable[str], names: Iterable[str], later: Container[str] = ()
) -> dict[str, dict[str, Any]]:
    """Template some variables of hosts; one that is not set, or is nothing but another one that is not, is left out.

    Args:
        hostvars: Ansible's.
        hosts: Whose variables.
        names: Which; each other one costs time on hundreds of hosts, or cannot be templated yet.
        later: Those of them that the host itself is asked about: with their expressions, where these have no value yet.
    """
    values: dict[str, dict[str, Any]] = {}
    for host in hosts:
        known: Mapping[str, Any] = hostvars[host]
        values[host] = {}
        for name in names:
            if name in known:
                try:
                    values[host][name] = known[name]
                except AnsibleUndefinedVariable:
                    raw = hostvars.raw_get(host)[name]
                    if name in later:
                        values[host][name] = raw
                    elif not isinstance(raw, str):  # a list would be shorter than was meant
                        raise
    return values


# Once, and not in every task's process: Ansible imports a plugin before it forks.
NAME = __name__.rpartition(".")[2]
MODULE = None if NAME == "on_controller" else load(NAME)


class ActionModule(ActionBase):
    """Any module with a link to this file: its options and its answer are those of the module."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        assert MODULE is not None, "this file is for links to it"
        host = task_vars["inventory_hostname"]
        self._task.args = json.loads(json.dumps(dict(self._task.args)))  # plain values, as a module gets them
        _, given = self.validate_argument_spec(MODULE.ARGUMENTS)
        extra = load_extra_vars(self._loader)
        if names := getattr(MODULE, "HOST_VARIABLES", ()):
            hostvars = task_vars["hostvars"]
            known = [host for host in given["hosts"] if host in hostvars]
            variables = read_host_variables(hostvars, known, names, getattr(MODULE, "CHECKED_ON_HOSTS", ()))
            options = read_host_options(hostvars, known, MODULE.IS_HOST_OPTION, extra, MODULE.read_options(ROOT))
            given["host_variables"] |= json.loads(json.dumps(variables))
            given["host_options"] |= options
        if "command_options" in MODULE.ARGUMENTS:
            given["command_options"] |= json.loads(json.dumps(extra))
            given["inventories"] = given["inventories"] or list(task_vars.get("ansible_inventory_sources") or ())
        if "config_file" in MODULE.ARGUMENTS:
            given["config_file"] = task_vars.get("ansible_config_file") or ""
        telling = {"say": partial(tell, host=host)} if getattr(MODULE, "TELLS", False) else {}
        about = getattr(MODULE, "about", None)
        if about and Display().verbosity:
            Display().v(about(given))
        try:
            answer = MODULE.answer(given, self._task.check_mode, **telling)
            show(**answer.get("show", {}), host=host)  # a table, lines and warnings for people
            return result | answer
        except (UserError, OSError) as error:
            return result | {"failed": True, "msg": error_message(error)}
