"""A block of rows at the end of the terminal that is drawn anew in place."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TextIO

from ansible.module_utils.lora_forge.controller.terminal import Row
from ansible.module_utils.lora_forge.text import duration
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BAR = 24  # columns
ORDER = ("loss", "eval", "speed", "eta")  # of the figures
SETTLE = 0.4  # seconds before something is drawn: what is over sooner would only flicker


class ProgressBlock:
    """The block. Who calls it keeps others from printing at the same time.

    Args:
        file: The terminal.
        now: The clock of the rows, in seconds.
    """

    def __init__(self, file: TextIO, now: Callable[[], float] = time.monotonic):
        self._console, self._now = Console(file=file, highlight=False), now
        self._live: Live | None = None

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        return self._console.width

    def draw(self, rows: Sequence[Row], screen: str = "") -> None:
        """Draw rows, in the place of those that are there.

        Args:
            rows: What is under way.
            screen: A text above them.
        """
        rows = [row for row in rows if row.progress or self._now() - row.since >= SETTLE]
        if not rows and not screen:
            self.erase()
            return
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True,
                              redirect_stdout=False, redirect_stderr=False)  # fmt: skip
            self._live.start()
            self._console.show_cursor(True)  # a command that is killed must not leave the terminal without one
        parts: list[RenderableType] = [Text(screen, no_wrap=True, overflow="ellipsis")] if screen else []
        self._live.update(Group(*parts, self._table(rows)), refresh=True)

    def erase(self) -> None:
        """Take the block away, so that something can be printed in its place."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _table(self, rows: Sequence[Row]) -> Table:
        """Lay out the rows."""
        table = Table.grid(padding=(0, 2, 0, 0))
        for _ in range(3):
            table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for row in rows:
            elapsed = duration(self._now() - row.since)
            if row.progress:
                done, planned = row.progress
                share = Text(f"{done:>{len(str(planned))}}/{planned} {done / max(planned, 1):4.0%}")
                bar = ProgressBar(total=max(planned, 1), completed=done, width=BAR,
                                  complete_style="cyan", finished_style="green")  # fmt: skip
                table.add_row(
                    f"  {row.who}", bar, share, "  ".join(row.figures[name] for name in ORDER if name in row.figures)
                )
            else:
                table.add_row(f"  {row.who}", Text(row.stage, style="cyan"), Text(elapsed), Text(row.text, style="dim"))
        return table
