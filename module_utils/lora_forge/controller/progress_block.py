"""A block of rows at the end of the terminal that is drawn anew in place."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TextIO

from ansible.module_utils.lora_forge.controller.terminal import Row
from ansible.module_utils.lora_forge.text import duration
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BARS = (24, 16, 8, 0)  # columns: the longest that leaves room for all figures; steps, so that it does not tremble
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
        # What is higher than the terminal could not be taken away again: its top has left the screen.
        room = max(self._console.height - 1, 1)
        above = screen.split("\n")[:room] if screen else []
        parts: list[RenderableType] = [Text("\n".join(above), no_wrap=True, overflow="ellipsis")] if above else []
        room -= len(above)
        shown = rows if len(rows) <= room else rows[: max(room - 1, 0)]
        if shown:
            parts.append(self._table(shown))
        if len(shown) < len(rows) and room:
            parts.append(Text(f"  and {len(rows) - len(shown)} more", style="dim"))
        self._live.update(Group(*parts), refresh=True)

    def erase(self) -> None:
        """Take the block away, so that something can be printed in its place."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _table(self, rows: Sequence[Row]) -> Table:
        """Lay out the rows; on a narrow terminal the bar gives way first, and then the figures."""
        shares, moving = [self._share(row) for row in rows], [row for row in rows if row.progress]
        who, stages = [f"  {row.who}" for row in rows], [row.stage for row in rows if not row.progress]
        figures = max((cell_len(_figures(row)) for row in moving), default=0)

        def left(bar: int) -> int:
            taken = who, [*stages, "━" * bar], shares
            return self.width - sum(max(map(cell_len, column)) + 2 for column in taken) - 1

        bar = next((size for size in BARS if left(size) >= figures), 0) if moving else 0
        room = left(bar)
        table = Table.grid(padding=(0, 2, 0, 0))
        for _ in range(4):
            table.add_column(no_wrap=True)
        for row, share in zip(rows, shares):
            text = Text(row.text, style="dim")
            middle: RenderableType = Text(row.stage, style="cyan")
            if row.progress:
                done, planned = row.progress
                text = Text(_figures(row))
                middle = Text("")
                if bar:
                    middle = ProgressBar(total=max(planned, 1), completed=done, width=bar,
                                         complete_style="cyan", finished_style="green")  # fmt: skip
            if room > 0:
                text.truncate(room, overflow="ellipsis")
            else:
                text = Text("")
            table.add_row(f"  {row.who}", middle, share, text)
        return table

    def _share(self, row: Row) -> str:
        """Write how far a row is, or for how long it waits."""
        if not row.progress:
            return duration(self._now() - row.since)
        done, planned = row.progress
        return f"{done:>{len(str(planned))}}/{planned} {done / max(planned, 1):4.0%}"


def _figures(row: Row) -> str:
    """Write the figures of a row in their order."""
    return "  ".join(row.figures[name] for name in ORDER if name in row.figures)
