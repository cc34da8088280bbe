"""Print a table or a few lines for people; ``debug`` would be hidden with the ok lines."""

from __future__ import annotations

import sys
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()


def table(columns: list[str], rows: list[list[Any]]) -> list[str]:
    """Lay out rows under their columns, numbers to the right.

    Args:
        columns: The headings.
        rows: As many cells each; anything ``str`` takes.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells)]
    numeric = [bool(cells) and all(cell[:1].isdigit() or cell == "–" for cell in column) for column in zip(*cells)]
    numeric = numeric or [False] * len(columns)

    def line(row: list[str]) -> str:
        parts = [cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, numeric)]
        return ("  " + "  ".join(parts)).rstrip()

    return [line(columns), *map(line, cells)]


class ActionModule(ActionBase):
    """``show``: C(columns) and C(rows) make a table, C(lines) follow it, C(warnings) come last, marked.

    C(screen) clears a terminal first; elsewhere it does nothing.
    """

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        args = self._task.args
        if boolean(args.get("screen") or False) and sys.stdout.isatty():
            display.display("\033[H\033[2J", newline=False)
        for line in table(args["columns"], args["rows"]) if args.get("rows") else []:
            display.display(line)
        for line in args.get("lines") or []:
            display.display(str(line))
        for line in args.get("warnings") or []:
            display.display(f"  ! {line}", color="bright yellow")
        return result | {"changed": False}
