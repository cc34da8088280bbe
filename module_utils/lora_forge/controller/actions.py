"""What the action plugins of this project have in common."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.plugins.loader import action_loader


class ForgeAction(ActionBase):
    """An action plugin that is done by its ``act``.

    Options that several tasks share may come together, as C(common); what a task names itself goes before them.
    """

    host = ""
    task_vars: Any = None

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        self.task_vars = task_vars or {}
        self.host = self.task_vars.get("inventory_hostname", "")
        args = dict(self._task.args)
        return result | self.act({**args.pop("common", {}), **args})

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Return what the action returns.

        Args:
            args: Its options.
        """
        raise NotImplementedError

    def run_module(self, name: str, args: dict[str, Any]) -> dict[str, Any]:
        """Run a module on the host, and return its answer.

        Args:
            name: The module's.
            args: Its options.
        """
        return self._execute_module(name, args, task_vars=self.task_vars)

    def run_action(self, name: str, args: dict[str, Any]) -> dict[str, Any]:
        """Run another action plugin for the host, as Ansible's own template runs copy, and return its answer.

        Args:
            name: The other plugin's.
            args: Its options.
        """
        task = self._task.copy()
        task.args = args
        other = self._shared_loader_obj.action_loader.get(
            name,
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._templar,
            shared_loader_obj=self._shared_loader_obj,
        )
        return other.run(task_vars=self.task_vars)


def load_actions(*names: str) -> None:
    """Load the action plugins that one runs, at its import: what a task's process loads is lost with it."""
    for name in names:
        action_loader.get(name, class_only=True)
