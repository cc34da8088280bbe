"""The user's own task files at named points of a training: hooks/<name>.yml beside the inventory. Pure functions."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any, Optional

NAMES = ("before_provision", "after_release")
_CONNECTION = (  # of a pod, which no inventory file knows
    "ansible_host",
    "ansible_port",
    "ansible_user",
    "ansible_ssh_private_key_file",
    "ansible_ssh_common_args",
)
_VALUES = {  # of the command line that called us, which a playbook of its own needs too
    "remote_user": "--user",
    "private_key_file": "--private-key",
    "connection": "--connection",
    "timeout": "--timeout",
    "ssh_common_args": "--ssh-common-args",
    "ssh_extra_args": "--ssh-extra-args",
    "become_method": "--become-method",
    "become_user": "--become-user",
}


def hook_file(inventory_dir: str, name: str) -> Optional[pathlib.Path]:
    """Return a hook's file, or None where there is none.

    Args:
        inventory_dir: The folder of the inventory that holds the host; empty for a host of the command line.
        name: One of NAMES.
    """
    path = pathlib.Path(inventory_dir) / "hooks" / f"{name}.yml"
    return path if inventory_dir and path.is_file() else None


def hook_lines(inventory_dirs: Mapping[str, str]) -> list[str]:
    """Return what the plan says of hooks, a line for each set of hosts that have the same.

    Args:
        inventory_dirs: Of each host, the folder of its inventory.
    """
    hosts: dict[tuple[pathlib.Path, ...], list[str]] = {}
    for host, folder in inventory_dirs.items():
        files = tuple(path for path in (hook_file(folder, name) for name in NAMES) if path)
        if files:
            hosts.setdefault(files, []).append(host)
    return [
        f"  {', '.join(names)}: tasks of your own: {', '.join(f'hooks/{path.name}' for path in files)}"
        for files, names in hosts.items()
    ]


def playbook(file: pathlib.Path, host: str) -> list[dict[str, Any]]:
    """Return a playbook that runs a task file on one host.

    Args:
        file: The task file.
        host: The host's inventory name.
    """
    include = {"name": f"Run hooks/{file.name}", "ansible.builtin.include_tasks": {"file": str(file)}}
    return [{"name": file.stem, "hosts": pattern(host), "gather_facts": False, "tasks": [include]}]


def pattern(*hosts: str) -> str:
    """Return a pattern that Ansible matches with these hosts alone, whatever there is in their names.

    Args:
        hosts: Their inventory names, one at least; a name may hold a space, or be a pattern of others.
    """
    escaped = ("".join(letter if letter.isalnum() else rf"\U{ord(letter):08x}" for letter in host) for host in hosts)
    names = "|".join(escaped)
    return rf"~\A({names})\Z" if len(hosts) > 1 else rf"~\A{names}\Z"


def variables(known: Mapping[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the tasks get besides the inventory: ``forge_runs``, and how a pod is reached.

    Args:
        known: The host's variables.
        runs: The planned runs of the host.
    """
    reached = {name: known[name] for name in _CONNECTION if "pod_gpus" in known and name in known}
    return {"forge_runs": [{key: run[key] for key in ("run_id", "agent")} for run in runs], **reached}


def command(
    python: str, playbook: pathlib.Path, variables: pathlib.Path, host: str, options: Mapping[str, Any], check: bool
) -> list[str]:
    """Return the command line that runs a hook: with the inventory and the options of the command that called us.

    Args:
        python: The controller's interpreter.
        playbook: From :func:`playbook`, in a file.
        variables: From :func:`variables`, in a file.
        host: The host's inventory name.
        options: The options of the calling command, as Ansible's ``context.CLIARGS`` has them.
        check: Whether nothing may be changed.
    """
    words = [python, "-m", "ansible", "playbook", str(playbook), f"--limit={pattern(host)}"]
    for source in options.get("inventory") or ():
        words += ["--inventory", str(source)]
    for value in options.get("extra_vars") or ():
        words += ["--extra-vars", value if isinstance(value, str) else json.dumps(value)]
    words += ["--extra-vars", f"@{variables}"]
    for name, option in _VALUES.items():
        if options.get(name):
            words += [option, str(options[name])]
    return words + (["--become"] if options.get("become") else []) + (["--check"] if check else [])


def failure(output: str) -> str:
    """Return why a playbook failed, in a line of its output.

    Args:
        output: All that it printed.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("[ERROR]", "ERROR!"))]
    marked = errors or [line for line in lines if line.startswith(("fatal:", "failed:"))]
    # The last one ended it; those before it were ignored or rescued.
    return (marked[-1:] or lines or ["it printed nothing"])[0][:500]
