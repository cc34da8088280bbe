"""What people read on the terminal while a playbook runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from ansible.module_utils.lora_forge.text import table
from ansible.utils.display import Display


def show(
    columns: Sequence[str] = (),
    rows: Sequence[Sequence[Any]] = (),
    lines: Sequence[Any] = (),
    warnings: Sequence[Any] = (),
    screen: bool = False,
) -> None:
    """Print a table, lines below it, and warnings, marked.

    Args:
        columns: The headings of the table.
        rows: Its rows, as many cells each; without any there is no table.
        lines: What follows it.
        warnings: What comes last.
        screen: Clear a terminal first; elsewhere it does nothing.
    """
    display = Display()
    if screen and sys.stdout.isatty():
        display.display("\033[H\033[2J", newline=False)
    for line in table(columns, rows) if rows else []:
        display.display(line)
    for line in lines:
        display.display(str(line))
    for line in warnings:
        display.display(f"  ! {line}", color="bright yellow")
