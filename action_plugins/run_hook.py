"""Run the user's own task file for a host: apart from everything of ours, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import ansible.module_utils
from ansible import context
from ansible.errors import AnsibleError

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
from ansible.module_utils.lora_forge import rundir  # noqa: E402
from ansible.module_utils.lora_forge.controller import hooks  # noqa: E402
from ansible.module_utils.lora_forge.controller.actions import ForgeAction, load_actions  # noqa: E402
from ansible.module_utils.lora_forge.controller.display import show  # noqa: E402
from ansible.module_utils.lora_forge.trainer.run_state import LIVING  # noqa: E402

load_actions()

MARKER = "LORA_FORGE_HOOK"


class ActionModule(ForgeAction):
    """``run_hook``: library/actions/run_hook.py says what it takes and returns."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Run the file, where there is one and the host is free."""
        host, name = self.host, args["name"]
        file = hooks.hook_file(str(self.task_vars.get("inventory_dir") or ""), name)
        if file is None:
            return {"changed": False, "skipped": True, "msg": f"there is no hooks/{name}.yml beside the inventory"}
        after = name == "after_release"
        trains = self.training(args["root"]) if after else ""
        if trains:
            show(lines=[f"  {host}: hooks/{file.name} is left out: {trains}"], host=host)
            return {"changed": False}
        began = time.monotonic()
        problem = self.play(file, args)
        if problem and not after:
            return {"changed": False, "failed": True, "msg": f"hooks/{file.name} failed on {host}: {problem}"}
        if problem:
            show(warnings=[f"{host}: hooks/{file.name} failed: {problem}"], host=host)
        else:
            show(lines=[f"  {host}: hooks/{file.name} is done ({time.monotonic() - began:.0f} s)"], host=host)
        return {"changed": not self._task.check_mode}

    def training(self, root: str) -> str:
        """Say why the host is not free; empty where it is."""
        try:
            snapshot = self.run_module("trainer_info", {"root": root})
        except AnsibleError:
            snapshot = {"failed": True}
        if snapshot.get("failed"):
            return "the host does not answer"
        living = [run["run_id"] for run in snapshot["runs"] if run["state"] in LIVING]
        return f"{', '.join(living)} still trains there" if living else ""

    def play(self, file: pathlib.Path, args: dict[str, Any]) -> str:
        """Run the file for the host; return what went wrong, or nothing."""
        with (
            tempfile.TemporaryDirectory(prefix="lora-forge-") as folder,
            _passwords(self._play_context, self._loader, folder) as given,
        ):
            home = pathlib.Path(folder)
            playbook, variables = home / "hook.yml", home / "variables.json"
            playbook.write_text(json.dumps(hooks.playbook(file, self.host)))
            os.close(os.open(variables, os.O_WRONLY | os.O_CREAT, 0o600))
            variables.write_text(json.dumps(hooks.variables(self.task_vars, args["runs"])))
            words = hooks.command(
                sys.executable, playbook, variables, self.host, dict(context.CLIARGS), self._task.check_mode
            )
            environment = {
                **os.environ,
                "ANSIBLE_STDOUT_CALLBACK": "default",
                "ANSIBLE_NOCOLOR": "1",
                MARKER: folder,  # every process it starts inherits this; Ansible's workers have sessions of their own
            }
            process = subprocess.Popen(
                [*words, *given], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, errors="replace", env=environment,
            )  # fmt: skip
            try:
                output, _ = process.communicate(timeout=float(args["timeout"]))
            except subprocess.TimeoutExpired:
                for pid in rundir.run_processes(home, MARKER):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                process.wait()
                return f"it took longer than {args['timeout']} s (converge_hook_timeout)"
        return hooks.failure(output) if process.returncode else ""


@contextlib.contextmanager
def _passwords(play_context: Any, loader: Any, folder: str) -> Iterator[list[str]]:
    """Hand on passwords that were asked for at the start, in files that are gone in the end; nobody is asked again."""
    words: list[str] = []
    for option, value in (("connection", play_context.password), ("become", play_context.become_pass)):
        if value:
            path = _secret_file(folder, option, str(value).encode())
            words += [f"--{option}-password-file", path]
    for number, (name, secret) in enumerate(loader._vault.secrets or ()):
        words += ["--vault-id", f"{name}@{_secret_file(folder, f'vault-{number}', secret.bytes)}"]
    yield words


def _secret_file(folder: str, name: str, secret: bytes) -> str:
    path = os.path.join(folder, name)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    return path
