"""What stands on the terminal, from what is told and when. Pure: it prints nothing, and its clock is given to it."""

from __future__ import annotations

import dataclasses
import re
import textwrap
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from ansible.module_utils.lora_forge.controller import ssh_words
from ansible.module_utils.lora_forge.controller.display import Line
from ansible.module_utils.lora_forge.text import duration

RULE = 60  # columns of a heading that stands alone
# The stage that an action or a module begins on a host. What is not here goes on in the one that the host is in.
STAGES = {
    "training_plan": "Plan",
    "runpod_pod": "Rent",
    "run_hook": "Hook",
    "provision": "Provision",
    "gpu_info": "Provision",
    "base_model": "Provision",
    "trainer_environment": "Provision",
    "fetch_model": "Provision",
    "start_runs": "Launch",
    "deliver_run": "Watch",
    "watch": "Watch",
    "stop_run": "Stop",
    "lora_adapter_summary": "",
    "lora_adapter_evaluation": "",
    "training_status": "",
}
# What is told when a stage ends that may have told nothing, or not when it ended.
ENDS = {"Provision": "fit to train"}
_DETAILS = 10  # lines of what a command printed as it failed
_LONG = 1000  # letters of such a line
_ITEM = 80  # letters of a loop's item that failed
_MAYBE_SECRET = re.compile(r"url|env|key|token|secret|pass", re.IGNORECASE)
PLANNING = "Plan"
_CHANGING = {"Rent", "Provision", "Launch", "Watch"}
_WORTH_TELLING = 1.0  # seconds that such a stage took


@dataclasses.dataclass
class Row:
    """What is under way, as it is drawn in place.

    Attributes:
        who: The agent or the host.
        stage: What it does.
        text: How far it is, or what it waits for.
        since: When that began, in seconds of the clock.
        progress: Steps done and planned; None where nothing is counted.
        figures: The newest figures, by their names.
    """

    who: str
    stage: str
    text: str
    since: float
    progress: tuple[int, int] | None = None
    figures: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Stage:
    name: str
    since: float
    task: str
    told: bool = False


class Terminal:
    """Headings for stages, what is told under them, and rows for what is under way.

    Args:
        draws: Whether rows are drawn in place; otherwise each progress is a line.
        now: The clock, in seconds.
        checks: Whether it is check mode, in which no stage makes anything.
    """

    def __init__(self, draws: bool, now: Callable[[], float] = time.monotonic, checks: bool = False):
        self._draws, self._now, self._checks = draws, now, checks
        self._stages: dict[str, _Stage] = {}  # of each host
        self._runs: dict[tuple[str, str], Row] = {}  # of each host and run
        self._heading = ""  # the stage under whose heading one would print now
        self.screen = ""  # a table that is drawn anew again and again

    def begin(self, host: str, stage: str | None, task: str) -> list[Line]:
        """Note that a task begins on a host; return what is to be printed of the stage that it ends.

        Args:
            host: The host.
            stage: The stage that the task begins; None if it goes on in the one that the host is in.
            task: What the task does, in words.
        """
        before = self._stages.get(host)
        if stage is None:
            return []
        if before and before.name == stage:
            before.task = task
            return []
        printed = self.end(host)
        if stage:
            self._stages[host] = _Stage(stage, self._now(), task)
        return printed

    def end(self, host: str, failed: bool = False) -> list[Line]:
        """Note that a host is done with its stage; return what is to be printed of that.

        Args:
            host: The host.
            failed: Whether it failed: then it is told as an error, elsewhere.
        """
        stage = self._stages.pop(host, None)
        self.forget(host)
        if stage is None or failed or self._checks or stage.name not in ENDS:
            return []
        if self._now() - stage.since < _WORTH_TELLING and not stage.told:
            return []
        self._stages[host] = stage
        printed = self.tell(Line(f"  {host}: {ENDS[stage.name]}", host=host, ends=True))
        del self._stages[host]
        return printed

    def forget(self, host: str) -> None:
        """Forget the progress of what a host was doing.

        Args:
            host: The host.
        """
        for key in [key for key in self._runs if key[0] == host]:
            del self._runs[key]

    def hosts(self) -> list[str]:
        """List the hosts that are in a stage."""
        return list(self._stages)

    def tell(self, line: Line) -> list[Line]:
        """Return what is to be printed of something that is told.

        Args:
            line: What is told.
        """
        printed = self.begin(line.host, line.stage, "") if line.stage else []
        stage = self._stages.get(line.host)
        if line.screen and self._draws:
            self.screen = str(line)
            return printed
        if line.run and line.progress:
            row = self._runs.setdefault((line.host, line.run), Row(line.run, "Watch", "", self._now()))
            # Before its first step nobody knows how many there are to be: what it waits for, and for how long.
            row.progress = line.progress if line.progress[1] else None
            row.text = line.strip().removeprefix(line.run).strip()
            row.figures = {**row.figures, **line.figures}
        if stage and line.passing and not line.progress:
            stage.task = line.strip().removeprefix(f"{line.host}: ")
        if line.passing or (line.run and line.progress and self._draws):
            return printed
        if stage:
            stage.told = True
            seconds = self._now() - stage.since
            if line.ends and seconds >= _WORTH_TELLING:
                first, *others = line.split("\n")
                first += f", {duration(seconds) if seconds >= 60 else f'{seconds:.0f} s'}"
                line = _with(line, "\n".join([first, *others]))
        return printed + self._under_heading(line, stage.name if stage else self._heading)

    def _under_heading(self, line: Line, stage: str) -> list[Line]:
        """Put a heading before what is told where the last one was another one."""
        if stage == self._heading or not stage:
            return [line]
        self._heading = stage
        names = f"  {line.host}: ", f"  {line.run}  "
        if line.host and line.startswith(names) and not line.progress:
            return [_with(line, f"{stage} ── {line[2:]}")]
        return [Line(f"{stage} ".ljust(RULE, "─")), line]

    def finish(self) -> list[Line]:
        """End the stages of all hosts, as a play is over; return what is to be printed of that."""
        printed = [line for host in self.hosts() for line in self.end(host)]
        if self.screen:
            printed.append(Line(self.screen))
            self.screen = ""
        return printed

    def rows(self) -> list[Row]:
        """List what is under way, for drawing."""
        watched = {host for host, _ in self._runs}
        waiting = [
            Row(host, stage.name, stage.task, stage.since)
            for host, stage in self._stages.items()
            if host not in watched
        ]
        return [*self._runs.values(), *waiting]


def is_repeated(option: str) -> bool:
    """Tell whether a text given by ``-e`` stands in the commands that are named after an interruption.

    Args:
        option: As it was given. One that may hold a secret, by its names, is never shown.
    """
    return not option.startswith("role=") and not _MAYBE_SECRET.search(option)


def what_goes_on(
    runs: Iterable[tuple[str, str, str]],
    pods: Iterable[tuple[str, float, float]],
    inventory: str,
    ordering: Iterable[str] = (),
    options: str = "",
    begun: Collection[str] = (),
) -> str:
    """Say what goes on when a command is interrupted, what that costs, and how to come back or stop it.

    A run is found by what it is trained with, so the commands that are named have the options of this one.

    Args:
        runs: Name, agent and host of what was launched or attached to, and is not delivered.
        pods: Name, US dollars an hour, and the time (seconds since the epoch) at which the leash ends it.
        inventory: The options that name the inventory, as they were given, with a space behind; "" for the default one.
        ordering: Names of pods that were being ordered.
        options: The other options of the command, with a space before; "" for none.
        begun: The stages that any host was in.

    Returns:
        The text; "" where the command would have changed nothing.
    """
    runs, pods = list(runs), list(pods)
    lines = [f"{name} keeps running on {host}; the same command attaches to it." for name, _, host in runs]
    if not runs and _CHANGING.intersection(begun):
        lines.append("Nothing was launched by this command; the same command begins where this one ended.")
    elif not runs and PLANNING in begun:
        lines.append("Nothing was started.")
    for agent in dict.fromkeys(agent for _, agent, _ in runs):
        follow = f"playbooks/logs.yml -e role={agent} -e follow=true{options}"
        lines.append(f"Follow the log of {agent}: ansible-playbook {inventory}{follow}")
        lines.append(
            f"Stop {agent} with a checkpoint: ansible-playbook {inventory}playbooks/stop.yml -e role={agent}{options}"
        )
    for pod, price, deadline in pods:
        until = f", until {time.strftime('%Y-%m-%d %H:%M', time.localtime(deadline))} at most" if deadline else ""
        lines.append(f"{pod} costs {price:.2f} USD/h{until}. Give it up: ansible-playbook {inventory}"
                     f"playbooks/release.yml -e pod={pod}")  # fmt: skip
    for pod in sorted(ordering):
        lines.append(f"{pod} was being ordered: it may be rented, and cost, already. The same command takes it on. "
                     f"Give it up: ansible-playbook {inventory}playbooks/release.yml -e pod={pod}")  # fmt: skip
    return "\n".join(f"  {line}" for line in lines)


def origin(error: Any) -> str:
    """Return where Ansible found what is wrong, as path:line:column; "" where it does not say.

    Args:
        error: What a task result has as its exception. Its parts have no promise, so any of them may be missing.
    """
    place, event = "", getattr(error, "event", None)
    while event is not None:
        context = str(getattr(event, "formatted_source_context", None) or "")
        place = context.partition("\n")[0].removeprefix("Origin: ").strip() or place
        event = getattr(getattr(event, "chain", None), "event", None)
    return place


def heading(line: str) -> int:
    """Return how many letters of a line are its heading.

    Args:
        line: What is printed.
    """
    name, _, rest = line.partition(" ")
    return len(line) if rest.startswith("───") else len(name) if rest.startswith("── ") else 0


def wrap(text: str, width: int) -> str:
    """Wrap what is too long for a terminal at words, further lines indented under the first.

    Args:
        text: What is printed: words, and no table.
        width: Columns.
    """
    return "\n".join(
        "\n".join(
            textwrap.wrap(
                line, width, break_long_words=False, break_on_hyphens=False, subsequent_indent=" " * _hanging(line),
            )
        )
        if len(line) > width
        else line
        for line in text.split("\n")
    )  # fmt: skip


def _hanging(line: str) -> int:
    """Return how far the second line of a text is indented: under an error's words, or two more than the first."""
    return 7 if line.startswith("ERROR  ") else len(line) - len(line.lstrip()) + (0 if line.startswith(" " * 7) else 2)


def explains_itself(action: str) -> bool:
    """Tell whether an action fails with a sentence for people, and not with what a program of any kind returned.

    Args:
        action: Its full name. This project's own are in no collection.
    """
    collection, _, name = action.rpartition(".")
    return name in ("fail", "assert", "validate_argument_spec") or collection in ("", "ansible.legacy")


def error_text(answer: Mapping[str, Any], host: str, place: str = "", item: str = "") -> str:
    """Return a failed task's result as a sentence.

    Args:
        answer: The result.
        host: Where it failed; "" where that is no news.
        place: The file and line that are at fault, if it is Ansible that failed and not what the task does.
        item: Of a loop; "" where it is none.
    """
    hidden = "it failed; why is hidden by no_log" if answer.get("censored") else "it failed"
    # A file that cannot be included has a reason; Ansible has printed all of it already.
    message = str(answer.get("msg") or str(answer.get("reason") or hidden).partition("\n")[0]).strip()
    is_ansibles = message.startswith("Task failed: ") and not message.startswith("Task failed: Action failed: ")
    for prefix in ("Task failed: ", "Action failed: ", "Module failed: "):
        message = message.removeprefix(prefix)
    if answer.get("assertion"):
        message += f" ({answer['assertion']})"
    if item and item not in message and not answer.get("censored"):
        message += f" (item {item[:_ITEM]})"
    explained = bool(host) and message.startswith(f"{host} ") and "\n" in message  # what to do stands in it
    if "unreachable" in answer and host and not message.startswith(host):
        message = f"{host} does not answer: {ssh_words.own_words(message)}"
    elif host and not message.startswith(host):
        message = f"{host}: {message}"
    if "unreachable" in answer:
        message += "" if explained else "\nWhat runs there goes on. When it answers again, so does the same command"
    elif is_ansibles and place:
        message += f"\n{place}"
    printed = (str(answer.get(name) or "").strip() for name in ("module_stderr", "stderr", "module_stdout", "stdout"))
    details = next(filter(None, printed), "")
    if details and details not in message:
        message = "\n".join([message, *(line[:_LONG] for line in details.splitlines()[-_DETAILS:])])
    first, *others = message.splitlines()
    return "\n".join([f"ERROR  {first}", *(f"       {line}" for line in others)])


def _with(line: Line, text: str) -> Line:
    """Return the same line with another text."""
    return Line(text, **vars(line))
