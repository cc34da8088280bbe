"""Print a playbook's stages, progress and errors for people; with -v, everything as Ansible's own callback does."""

from __future__ import annotations

import atexit
import os
import pathlib
import shlex
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import ansible.module_utils
from ansible import constants, context
from ansible.plugins.callback.default import CallbackModule as Default
from ansible.utils.color import stringc

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge.controller import display as lines  # noqa: E402
from ansible.module_utils.lora_forge.controller import terminal  # noqa: E402
from ansible.module_utils.lora_forge.controller.threads import start_beside  # noqa: E402
from ansible.module_utils.lora_forge.text import printable  # noqa: E402

if TYPE_CHECKING:
    from ansible.module_utils.lora_forge.controller.progress_block import ProgressBlock

DOCUMENTATION = """
name: lora_forge
type: stdout
short_description: Stages, progress and errors for people
description:
  - Prints each stage as a heading with its host, tables and progress below it, and each error once, as a sentence.
  - On a terminal what is under way is drawn in place. Elsewhere, and with E(NO_COLOR), each progress is a line.
  - With C(-v) it prints what M(ansible.builtin.default#callback) prints, and the hosts that are ok, too.
  - The recap is printed where a trainer failed, and with C(-v); C(log_path) has it in any case.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
requirements:
  - set as C(stdout_callback) in ansible.cfg, as it is there
"""

HEADING = "cyan"
TICK = 0.5  # seconds between two drawings of what is under way, where nothing is told
PAUSE = 0.1  # seconds between two drawings at least
INTERRUPTED = "User interrupted execution"  # how Ansible says it


class CallbackModule(Default):  # type: ignore[misc]
    """The callback; see its documentation."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "lora_forge"

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()
        self._ansible_display = self._display.display
        # Ansible forks while it holds this lock, so that no process inherits a drawing that is half done.
        self._lock = self._display._lock
        self._terminal = terminal.Terminal(draws=False, checks=bool(context.CLIARGS.get("check")))
        self._block: ProgressBlock | None = None
        self._draw_from = 0.0
        self._over = threading.Event()
        self._launched: dict[str, tuple[str, str]] = {}
        self._pods: dict[str, tuple[float, float]] = {}
        self._ordering: set[str] = set()  # hosts whose pod is being ordered: it may be there, and cost, already
        self._watched: dict[tuple[str, str], None] = {}  # hosts and runs whose progress was told and that go on
        self._errors: set[tuple[str, str]] = set()
        self._begun: set[str] = set()  # stages
        self._is_planning = False

    @property
    def _is_verbose(self) -> bool:
        return bool(self._display.verbosity)

    def set_options(self, *args: Any, **kwargs: Any) -> None:
        super().set_options(*args, **kwargs)
        lines.CALLBACK_IS_OURS = True
        self._display.display = self._write
        self._ask, self._ask_until = self._display.prompt, self._display.prompt_until
        self._display.prompt, self._display.prompt_until = self._prompt, self._prompt_until
        atexit.register(self._leave)
        if self._is_verbose:
            return
        if sys.stdout.isatty() and not constants.ANSIBLE_NOCOLOR and os.environ.get("TERM", "dumb") != "dumb":
            # Here, as it takes a twentieth of a second, and is for a terminal alone.
            from ansible.module_utils.lora_forge.controller.progress_block import ProgressBlock

            self._block = ProgressBlock(sys.stdout)
            self._terminal = terminal.Terminal(draws=True, checks=bool(context.CLIARGS.get("check")))
            start_beside(self._tick)

    def _print(self, *args: Any, **kwargs: Any) -> None:
        """Print by Ansible's own method, at once: into a pipe it would come in blocks of some thousand letters.

        Where nobody reads any longer, as behind ``| head``, the command goes on without a word: an error here would end
        the thread that Ansible's workers wait for.
        """
        try:
            self._ansible_display(*args, **kwargs)
            if os.getpid() == self._pid:
                (sys.stderr if kwargs.get("stderr") else sys.stdout).flush()
        except BrokenPipeError:
            stream = sys.stderr if kwargs.get("stderr") else sys.stdout
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)

    # What is printed, and drawn. Workers come through here, too: Ansible's own method hands it on to this process.

    def _write(self, msg: str, *args: Any, **kwargs: Any) -> None:
        if os.getpid() != self._pid:
            self._print(msg, *args, **kwargs)
            return
        with self._lock:
            if isinstance(msg, lines.Line) and msg.run and msg.progress:
                self._watched[msg.host, msg.run] = None
            if isinstance(msg, lines.Line) and not self._is_verbose:
                self._tell(self._terminal.tell(msg))
            elif isinstance(msg, lines.Line) and msg.passing and msg.run:
                return  # only what is drawn says how far a run is that is not watched yet
            elif INTERRUPTED in msg and not self._over.is_set():
                self._erase()
                self._print("Interrupted.", stderr=True)  # what goes on follows: no error
            else:
                self._erase()
                self._print(str(msg) if isinstance(msg, lines.Line) else msg, *args, **kwargs)

    def _prompt(self, *args: Any, **kwargs: Any) -> Any:
        """Ask, as Ansible does, and draw nothing over the question meanwhile."""
        with self._lock:
            self._erase()
            return self._ask(*args, **kwargs)

    def _prompt_until(self, *args: Any, **kwargs: Any) -> Any:
        """Ask for a task, in the same way; in a worker this hands the question on to this process."""
        if os.getpid() != self._pid:
            return self._ask_until(*args, **kwargs)
        with self._lock:
            self._erase()
            return self._ask_until(*args, **kwargs)

    def _tell(self, printed: list[lines.Line]) -> None:
        with self._lock:
            if printed:
                self._erase()
            for line in printed:
                self._print_line(line)
            self._draw()

    def _print_line(self, line: lines.Line) -> None:
        text = str(line)
        if self._block and line.color:  # warnings: a command in them is seldom copied, and they are long
            text = terminal.wrap(text, self._block.width)
        length = terminal.heading(text)
        if self._block and length == len(text):
            text = text[: self._block.width]  # a rule
            length = len(text)
        self._print(stringc(text[:length], HEADING) + text[length:] if length else text, color=line.color or None,
                    screen_only=True)  # fmt: skip
        self._print(text, log_only=True)

    def _erase(self) -> None:
        if self._block:
            self._block.erase()

    def _draw(self) -> None:
        # Fifty hosts that each tell something would spend their time on drawing; what is left out comes with the tick.
        if self._block and not self._over.is_set() and time.monotonic() >= self._draw_from:
            self._block.draw(self._terminal.rows(), self._terminal.screen)
            self._draw_from = time.monotonic() + PAUSE

    def _tick(self) -> None:
        while not self._over.wait(TICK):
            with self._lock:
                self._draw()

    # The events. With -v they are Ansible's own callback's.

    def get_option(self, option: str, hostname: str | None = None) -> Any:
        """Return an option; with ``-v`` nothing is hidden."""
        if self._is_verbose and option in ("display_ok_hosts", "display_skipped_hosts"):
            return True
        return super().get_option(option, hostname)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._is_planning = play.get_name().startswith(terminal.PLANNING)
        if self._is_verbose:
            super().v2_playbook_on_play_start(play)
            return
        self._play = play
        self._tell(self._terminal.finish())

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        if self._is_verbose:
            super().v2_playbook_on_task_start(task, is_conditional)

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        stage = terminal.STAGES.get(task.action)
        if task.action == "runpod_pod" and task.args.get("state") == "absent":
            stage = "Release"
        elif task.action == "runpod_pod" and not self._is_planning and not context.CLIARGS.get("check"):
            self._ordering.add(host.name)
        if self._is_planning and stage:
            stage = terminal.PLANNING
        self._begun |= {stage} if stage else set()
        if self._is_verbose:
            super().v2_runner_on_start(host, task)
            return
        doing = task.name.rpartition("| ")[2] if task.name else task.action
        with self._lock:
            self._tell(self._terminal.begin(host.name, stage, doing))

    def v2_runner_on_ok(self, result: Any) -> None:
        self._note(result)
        if self._is_verbose:
            super().v2_runner_on_ok(result)
            return
        self._handle_warnings(result.result)
        if not result.task.loop:
            self._say(result)

    def v2_runner_item_on_ok(self, result: Any) -> None:
        if self._is_verbose:
            super().v2_runner_item_on_ok(result)
            return
        self._handle_warnings(result.result)
        self._say(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._note(result)
        if self._is_verbose:
            super().v2_runner_on_failed(result, ignore_errors)
        elif not ignore_errors and not (result.task.loop and "results" in result.result):
            # Of runs that were launched together each has its own error.
            several = result.result.get("failures") if result.task.action == "fail_again" else None
            for failure in several or [{}]:
                self._fail(result, answer={**result.result, **failure})

    def v2_runner_item_on_failed(self, result: Any) -> None:
        if self._is_verbose:
            super().v2_runner_item_on_failed(result)
        elif not result.task.ignore_errors:
            self._fail(result, str(self._get_item_label(result.result)))

    def v2_runner_on_unreachable(self, result: Any) -> None:
        if self._is_verbose:
            super().v2_runner_on_unreachable(result)
        elif not result.task.ignore_unreachable:
            self._fail(result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._ordering.discard(result.host.name)
        if self._is_verbose:
            super().v2_runner_on_skipped(result)

    def v2_runner_item_on_skipped(self, result: Any) -> None:
        if self._is_verbose:
            super().v2_runner_item_on_skipped(result)

    def v2_playbook_on_include(self, included_file: Any) -> None:
        if self._is_verbose:
            super().v2_playbook_on_include(included_file)

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        if self._is_verbose:
            super().v2_playbook_on_handler_task_start(task)

    def v2_playbook_on_no_hosts_matched(self) -> None:
        if self._is_verbose:
            super().v2_playbook_on_no_hosts_matched()

    def v2_playbook_on_no_hosts_remaining(self) -> None:
        if self._is_verbose:
            super().v2_playbook_on_no_hosts_remaining()

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._tell(self._terminal.finish())
        self._launched, self._pods, self._ordering, self._watched = {}, {}, set(), {}  # the summary told of them
        self._finish()
        if self._is_verbose:
            super().v2_playbook_on_stats(stats)
            return
        for host in sorted(stats.processed):  # a log of one's own, log_path, has it in any case
            self._print(f"{host}: {self._counts(stats, host)}", log_only=True)
        # The controller's own plays say enough: what is not ready, and why.
        hosts = stats.processed if (set(stats.failures) | set(stats.dark)) - {"localhost"} else ()
        for host in sorted(hosts):
            self._print(f"{host}: {self._counts(stats, host)}", color=constants.COLOR_SKIP, screen_only=True)
        if context.CLIARGS.get("check"):
            self._print("This was a check: nothing was changed.", color=constants.COLOR_SKIP)

    def _counts(self, stats: Any, host: str) -> str:
        return "  ".join(f"{name}={count}" for name, count in stats.summarize(host).items() if count)

    def _print_task_banner(self, task: Any) -> None:
        if self._is_verbose:
            super()._print_task_banner(task)
            return
        self._last_task_banner = task._uuid
        self._display.display(task.get_name().strip(), color=constants.COLOR_SKIP)

    def _say(self, result: Any) -> None:
        """Print what a debug task is there to print."""
        if result.task.action in constants._ACTION_DEBUG:
            answer = dict(result.result)
            self._clean_results(answer, result.task.action)
            message = answer.get("msg")
            text = message if isinstance(message, str) else self._dump_results(answer).strip()
            self._display.display(printable(text, lines.LONGEST))

    def _fail(self, result: Any, item: str = "", answer: dict[str, Any] | None = None) -> None:
        """Print an error; one that a rescue raises again, once."""
        host, answer, task = result.host.name, result.result if answer is None else answer, result.task
        self._handle_warnings(answer)
        if answer.get("told") and self._play.hosts == ["localhost"]:
            return  # the summary's lines say it already; no trainer's answer may say so
        place = terminal.origin(getattr(result, "exception", None)) or task.get_path()
        shown_host = "" if self._play.hosts == ["localhost"] else host
        text = terminal.error_text(answer, shown_host, place, item)
        # The public attribute warns where an action's name is a template.
        action = getattr(task, "_resolved_action", None) or task.action
        is_sentence = "unreachable" in answer or terminal.explains_itself(action)
        with self._lock:
            self._terminal.end(host, failed=True)
            is_known = (host, text) in self._errors
            self._errors.add((host, text))
            if is_known and is_sentence:
                self._draw()
                return
            self._erase()
            shown = printable(text, lines.LONGEST)
            if not is_sentence and place not in shown:
                shown += printable(f"\n       in the task «{task.get_name().strip()}», {place}")
            self._print(
                terminal.wrap(shown, self._block.width) if self._block else shown,
                color=constants.COLOR_ERROR,
                stderr=self.get_option("display_failed_stderr"),
            )
            self._draw()

    def _note(self, result: Any) -> None:
        """Note what would go on if the command were interrupted."""
        answer, action, host = result.result, result.task.action, result.host.name
        with self._lock:
            self._terminal.forget(host)
            if action in ("deliver_run", "watch", "stop_run"):
                self._watched = {key: None for key in self._watched if key[0] != host}
        if action == "start_runs":
            going = [run for run in answer.get("runs", ()) if run["state"] != "finished"]
            self._launched |= {run["run_id"]: (run["agent"], host) for run in going}
        elif action == "deliver_run":
            self._launched.pop(answer.get("run_id"), None)
            self._tell(self._terminal.end(host))
        elif action == "runpod_pod" and not self._is_planning:
            self._ordering.discard(host)
            self._pods.pop(host, None)
            if budget := answer.get("budget"):
                self._pods[host] = budget["usd_per_hour"], budget["deadline"]

    # The end.

    def _finish(self) -> None:
        self._over.set()
        with self._lock:
            self._erase()

    def _leave(self) -> None:
        """Say what goes on where the command was interrupted: then nothing has summed up."""
        if os.getpid() != self._pid or self._over.is_set():
            return
        self._finish()
        if self._play is None:
            return
        sources = [
            source for source in context.CLIARGS.get("inventory") or () if source not in constants.DEFAULT_HOST_LIST
        ]
        here = os.path.join(os.getcwd(), "")
        inventory = "".join(f"-i {shlex.quote(source.removeprefix(here))} " for source in sources)
        runs = [(name, *launched) for name, launched in self._launched.items()]
        known = {host for _, _, host in runs}
        # A run of a sweep is named after its agent and what is varied.
        runs += [(name, name.partition(" ")[0], host) for host, name in self._watched if host not in known]
        pods = [(pod, *costs) for pod, costs in self._pods.items()]
        given = context.CLIARGS.get("extra_vars") or ()
        options = "".join(f" -e {shlex.quote(text)}" for text in given if terminal.is_repeated(text))
        if text := terminal.what_goes_on(runs, pods, inventory, self._ordering, options, self._begun):
            self._print(text)
            sys.stdout.flush()
