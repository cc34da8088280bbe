"""What people read on the terminal while a playbook runs.

An action plugin tells, in its own process, a :class:`Line`. The project's callback (``callback_plugins/lora_forge.py``)
prints it under the heading of its stage, or draws it in place. Under any other callback standard output is that
callback's: lines go to standard error, as a program may read the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ansible.module_utils.lora_forge.text import printable, table
from ansible.utils.display import Display

# Whether the project's callback prints. It says so before Ansible forks, so that every task's process knows.
CALLBACK_IS_OURS = False
LONGEST = 4000  # letters of a line that is shown


class Line(str):
    """A text for people, and what it is about. It goes over Ansible's queue like any other text.

    Attributes:
        host: The trainer that it is about; "" where it is about none.
        run: The run whose progress it is; "" where it is none.
        stage: The stage that it begins; "" where it belongs to what is under way.
        progress: Steps done and planned; None where nothing is counted.
        figures: The newest figures of a progress, by their names, as they are written.
        passing: Whether it only holds until the next one, and is nothing to keep in a log.
        ends: Whether the seconds since its stage began are put behind it.
        screen: Whether it takes the place of the one before it, where that can be.
        color: One of Ansible's; "" for the terminal's own.
    """

    host: str
    run: str
    stage: str
    progress: tuple[int, int] | None
    figures: dict[str, str]
    passing: bool
    ends: bool
    screen: bool
    color: str

    def __new__(
        cls,
        text: str,
        host: str = "",
        run: str = "",
        stage: str = "",
        progress: tuple[int, int] | None = None,
        figures: dict[str, str] | None = None,
        passing: bool = False,
        ends: bool = False,
        screen: bool = False,
        color: str = "",
    ) -> Line:
        line = super().__new__(cls, printable(text, LONGEST))
        line.host, line.run, line.stage, line.progress = host, run, stage, progress
        line.figures = {name: printable(figure, LONGEST) for name, figure in (figures or {}).items()}
        line.passing, line.ends, line.screen = passing, ends, screen
        line.color = color
        return line


def tell(text: str, **about: Any) -> None:
    """Tell people something, while a task runs.

    Args:
        text: What; its lines are indented already.
        about: The attributes of :class:`Line`.
    """
    line = Line(text, **about)
    if CALLBACK_IS_OURS:
        Display().display(line, color=line.color or None)
    elif not line.passing:
        Display().display(str(line), color=line.color or None, stderr=True)


def show(
    columns: Sequence[str] = (),
    rows: Sequence[Sequence[Any]] = (),
    lines: Sequence[Any] = (),
    warnings: Sequence[Any] = (),
    screen: bool = False,
    host: str = "",
) -> None:
    """Show a table, lines below it, and warnings, marked.

    Args:
        columns: The headings of the table.
        rows: Its rows, as many cells each; without any there is no table.
        lines: What follows it.
        warnings: What comes last.
        screen: Whether it takes the place of the one before it, on a terminal.
        host: The host of the task that shows it.
    """
    text = [*(table(columns, rows) if rows else []), *map(str, lines)]
    if text:
        tell("\n".join(text), host=host, screen=screen)
    for line in warnings:
        tell(f"  ! {line}", host=host, color="yellow")
