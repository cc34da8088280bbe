"""An action plugin that calls other ones, as Ansible's own template calls copy."""

from __future__ import annotations

from typing import Any


def call_action(action: Any, name: str, args: dict[str, Any], task_vars: Any) -> dict[str, Any]:
    """Run another action plugin for the same host, and return its answer.

    Args:
        action: The ``ActionBase`` that calls.
        name: The other plugin's.
        args: Its options.
        task_vars: The task's variables.
    """
    task = action._task.copy()
    task.args = args
    other = action._shared_loader_obj.action_loader.get(
        name,
        task=task,
        connection=action._connection,
        play_context=action._play_context,
        loader=action._loader,
        templar=action._templar,
        shared_loader_obj=action._shared_loader_obj,
    )
    return other.run(task_vars=task_vars)
