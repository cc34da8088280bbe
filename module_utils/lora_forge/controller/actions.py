"""What the action plugins of this project have in common: above all, the one gate for what a trainer says."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.json_utils import _filter_non_json_lines
from ansible.module_utils.lora_forge.controller import ssh_words
from ansible.module_utils.lora_forge.controller.display import tell
from ansible.module_utils.lora_forge.controller.pulse import SHORTEST, Pulse
from ansible.module_utils.lora_forge.controller.watchdog import Watchdog
from ansible.module_utils.lora_forge.text import shown
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import action_loader

_LONGEST = 20_000  # letters of why an action failed, perhaps for hundreds of runs
_TAIL = 10  # lines of what a host printed instead of an answer
_CLOSED_WITHIN = 5.0  # seconds for ssh to end a connection that several commands share
# An answer to whether a host is there comes behind what is sent to it: a few MB wait their turn, on a slow line.
_BEHIND_A_TRANSFER = 4.0
_INTERPRETER = re.compile(r"/[\w./+-]{1,250}")


class ForgeAction(ActionBase):
    """An action plugin that is done by its ``act``.

    Options that several tasks share may come together, as C(common); what a task names itself goes before them.

    Whatever runs on a host goes through :meth:`run_module` or :meth:`run_command`, which bound how long that takes and
    what comes back. An answer is held to the form in ``controller/answers.py``. Nothing of it but that reaches Ansible.
    """

    host = ""
    task_vars: Any = None
    _running = ""  # the module that is being run
    _parsed: Any = None  # its answer, as it came

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        self.task_vars = task_vars or {}
        self.host = self.task_vars.get("inventory_hostname", "")
        args = dict(self._task.args)
        answer = result | self.act({**args.pop("common", {}), **args})
        if answer.get("failed"):  # what failed is noted, and told, and part of it may be what a host said
            answer["msg"] = shown(str(answer.get("msg") or "it failed"), _LONGEST)
        # The only fact that stays: which Python Ansible found there, for the tasks that follow.
        python = str(self._discovered_interpreter)
        if self._discovered_interpreter_key and _INTERPRETER.fullmatch(python):
            answer["ansible_facts"] = {self._discovered_interpreter_key: python}
        return answer

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Return what the action returns.

        Args:
            args: Its options.
        """
        raise NotImplementedError

    def run_module(self, name: str, args: dict[str, Any], python: str = "") -> dict[str, Any]:
        """Run a module on the host, and return its answer, held to its form.

        Args:
            name: The module's.
            args: Its options.
            python: The interpreter that it is run with; empty for the host's own.

        Raises:
            AnsibleConnectionFailure: The host cannot be reached, or did not answer in time.
        """
        answers = _answers()
        task_vars = {**self.task_vars, "ansible_python_interpreter": python} if python else self.task_vars
        self._running, self._parsed = name, None
        with self._guarded(name, answers.limit(name, args, self._patience())):
            returned = self._execute_module(name, dict(args), task_vars=task_vars)
        answer = returned if self._parsed is None else self._parsed
        self._parsed = None
        return answers.hold(name, answer, self._who())

    def run_command(self, command: str) -> dict[str, Any]:
        """Run a shell command on the host; return its C(rc), and what it printed as text that may be shown.

        Args:
            command: The command.

        Raises:
            AnsibleConnectionFailure: The host cannot be reached, or did not answer in time.
        """
        answers = _answers()
        with self._guarded("a command", answers.COMMAND * self._patience() / answers.QUESTION):
            made = self._low_level_execute_command(command)
        return {"rc": made["rc"], **{name: shown(made[name], answers.LONGEST) for name in ("stdout", "stderr")}}

    @contextlib.contextmanager
    def transferring(self) -> Iterator[None]:
        """Bound how long a transfer takes, and what it prints.

        Raises:
            AnsibleConnectionFailure: It took too long.
        """
        answers = _answers()
        seconds = answers.TRANSFER * self._patience() / answers.QUESTION
        with self._guarded("a transfer", seconds, _BEHIND_A_TRANSFER):
            yield

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
        answer = other.run(task_vars=self.task_vars)
        answer.pop("ansible_facts", None)
        return answer

    def _who(self) -> str:
        """Return the host that is asked, which a task may name itself."""
        other = self._task.delegate_to
        return other if isinstance(other, str) and other else self.host

    def _patience(self) -> float:
        """Return the seconds that the host has for a question.

        Raises:
            AnsibleActionFail: The option is none.
        """
        given = (self.task_vars or {}).get("trainer_answer_timeout")
        if given is None:
            return float(_answers().QUESTION)
        value = self._templar.template(given)
        with contextlib.suppress(TypeError, ValueError):
            if 0 < float(value) < 1e6:
                return float(value)
        raise AnsibleActionFail(f"trainer_answer_timeout is {value!r}; it must be a number of seconds above 0")

    def cleanup(self, force: bool = False) -> None:
        """Remove what Ansible may have laid on the host where it may not pipe a module; in vain counts, too."""
        if self._connection._shell.tmpdir is None:
            return
        with contextlib.suppress(AnsibleError), self._guarded("a command", self._patience()):
            super().cleanup(force)

    def ssh_command(self) -> list[str]:
        """Return the command line of Ansible's own ssh to the host, without the host: its keys, jumps, shared socket.

        A program that hands ssh a password is left out, as the shared connection is open.
        """
        connection = self._connection
        program = connection.get_option("ssh_executable")
        words = [word.decode() for word in connection._build_command(program, "ssh")]
        if words[0] != program:
            for end in connection.sshpass_pipe or ():  # made for that program
                os.close(end)
            connection.sshpass_pipe = None
        return words[words.index(program) :]

    def _pulse(self, holds: float) -> Pulse | None:
        """Return what asks the host, beside a call, whether it is there; None where no ssh leads to it.

        Args:
            holds: How many times as long as usual an answer is waited for.
        """
        if self._connection.transport != "ssh":
            return None
        try:
            program, *options = self.ssh_command()
        except AnsibleError:  # the call itself says so
            return None
        host, who = str(self._connection.get_option("host")), self._who()
        # The first word on an option counts. Nobody is asked for a password, and nothing is shared that was not there.
        own = ("BatchMode=yes", "ControlMaster=no", "ForwardAgent=no", "ClearAllForwardings=yes", "LogLevel=QUIET",
               # Ansible's own is shorter: to give up on a connection would pass for an answer.
               f"ConnectTimeout={math.ceil(max(self._patience(), SHORTEST) * holds)}")  # fmt: skip
        words = [program, *(word for option in own for word in ("-o", option)), *options, host, "exit"]

        def knock() -> subprocess.Popen[bytes]:
            nothing = subprocess.DEVNULL
            return subprocess.Popen(words, stdin=nothing, stdout=nothing, stderr=nothing)

        return Pulse(knock, lambda said: tell(f"  {who}: {said}", host=who), self._patience(), holds)

    def _close_shared(self) -> None:
        """End the connection that commands share, as it leads nowhere; the next command makes a new one."""
        with contextlib.suppress(AnsibleError, OSError, subprocess.SubprocessError):
            program, *options = self.ssh_command()
            subprocess.run(
                [program, "-O", "exit", *options, str(self._connection.get_option("host"))],
                stdin=subprocess.DEVNULL, capture_output=True, timeout=_CLOSED_WITHIN, check=False,
            )  # fmt: skip

    @contextlib.contextmanager
    def _guarded(self, what: str, seconds: float, holds: float = 1.0) -> Iterator[None]:
        """Bound one call to the host in time and memory, and clean its errors, whose words come from the host.

        Args:
            what: The call, in words.
            seconds: How long it may take.
            holds: How many times as long as usual a host may be silent meanwhile.
        """
        pulse = self._pulse(holds)
        watchdog = Watchdog(seconds, pulse)
        longest = _answers().LONGEST
        try:
            with watchdog:
                yield
        except AnsibleError as error:
            lost = isinstance(error, AnsibleConnectionFailure)
            words = shown(str(error), longest)
            words = (lost and ssh_words.explain(self._who(), words, ssh_words.LOGIN, ssh_words.ACCOUNT)) or words
            if words == str(error):
                raise
            kind = AnsibleConnectionFailure if lost else AnsibleError
            raise kind(words) from None
        if watchdog.bark:
            if pulse is not None and pulse.silent:
                self._close_shared()
            raise AnsibleConnectionFailure(
                f"{self._who()} {watchdog.bark.format(what=what)}. See what hangs there; where it is only slow, a "
                "higher trainer_answer_timeout helps"
            )

    def _parse_returned_data(self, res: dict[str, Any], *profile: Any) -> Any:
        """Read a module's answer as plain JSON, and keep it from Ansible, which would act on some of its keys."""
        self._parsed = self._read(res)
        # What Ansible goes on with is a dict in ansible-core 2.19, and an object of its own in 2.21.
        return super()._parse_returned_data({**res, "rc": 0, "stdout": "{}", "stderr": ""}, *profile)

    def _read(self, res: dict[str, Any]) -> Any:
        answers, text = _answers(), str(res.get("stdout") or "")
        if len(text) > answers.LARGEST:
            why = f"it has {len(text) / 1e6:.0f} MB"
        else:
            try:
                return json.loads(_filter_non_json_lines(text, objects_only=True)[0])
            except RecursionError:
                why = "it is nested too deep"
            except ValueError:
                why = f"it is no JSON; the exit status is {res.get('rc')}"
        said = str(res.get("stderr") or "").strip() or text[-answers.LONGEST :].strip()
        tables = [ssh_words.ACCOUNT, *([ssh_words.PYTHON] if res.get("rc") in (126, 127) else [])]
        known = ssh_words.explain(self._who(), f"{said}\n{text[-answers.LONGEST :]}", *tables)
        if known:
            return {"failed": True, "msg": known}
        lines = [why, *said[-answers.LONGEST :].splitlines()[-_TAIL:]]
        return answers.misfit(self._who(), self._running, "\n".join(lines))


def load_actions(*names: str) -> None:
    """Load what an action needs while it asks hosts, at its import: what a task's process loads is lost with it.

    Args:
        names: Of the action plugins that it runs.
    """
    _answers()
    for name in names:
        action_loader.get(name, class_only=True)


def _answers() -> Any:
    """Return the forms of answers. They are loaded by what asks a host alone, as that takes a fifth of a second."""
    return importlib.import_module("ansible.module_utils.lora_forge.controller.answers")
