"""The logs of a run on its trainer, read piece by piece as they grow. Python 3.9 or newer."""

from __future__ import annotations

import os
import pathlib
import re
import time
from typing import Any

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.trainer import runs, slurm_queue

CHUNK = 256 * 1024  # bytes of a log that are read at once
OVER = (*rundir.FINAL_STATES, "absent")  # no log grows after these
LAST_LINE = 2.0  # seconds after the final state within which a job's supervisor has written its last line
_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours, and the cursor's moves between progress bars


def read_log(
    run_dir: pathlib.Path, log: str = "train", offset: int = -1, lines: int = 50, seconds: float = 0
) -> dict[str, Any]:
    """Read on in a log of a run, and wait for text where there is none.

    A line that is not ended yet (a progress bar in motion, mostly) comes along when the time is up or the run is
    over: followed with a long wait, a bar makes one line in that time.

    Args:
        run_dir: The run directory.
        log: ``train`` or ``supervisor``.
        offset: From where to read, as an earlier answer said; below 0 the end of the log is read, without waiting.
        lines: How many lines of the end.
        seconds: The longest wait for text, or for the end of the run.

    Returns:
        text (whole lines, see :func:`_readable`), offset (where to read on), state (of ``runs.observe``),
        more (text was left, as it is too much for one answer).

    Raises:
        UserError: Nothing was ever started in the run directory, or lines is negative.
    """
    if lines < 0:
        raise UserError(f"lines is {lines}; it must be 0 or more")
    path = run_dir / f"{log}.log"
    deadline = time.monotonic() + seconds
    gathered, queue = seconds == 0, slurm_queue.Queue()
    while True:
        seen = runs.observe(run_dir, queue=queue)  # before the log is read: what a run that is over wrote is all there
        if offset < 0 and seen.state == "absent" and not path.exists():
            raise UserError(
                f"there is no log of {run_dir.name}: nothing was ever started in {run_dir} on this trainer. "
                "train.yml starts it; if it was trained elsewhere, its log is there"
            )
        # Slurm may say for a while yet that a job is there.
        quiet = seen.facts.get("backend") == "slurm" and (seen.silent_for or 0.0) > LAST_LINE
        ended = seen.state in OVER and (quiet or not seen.alive)
        late = time.monotonic() >= deadline
        rows, end, more = _read_rows(path, offset, lines, unfinished=ended or late)
        if rows and not (gathered or ended or late or more):
            gathered = True  # what follows within a second comes in the same round trip
            time.sleep(1)
            continue
        # A supervisor that has written its final state is about to write its last line.
        if ended or late or more or ((rows or offset < 0) and seen.state not in OVER):
            text = "".join(f"{row}\n" for row in rows)
            return {"text": text, "offset": end, "state": seen.state, "more": more}
        time.sleep(0.5)


def _read_rows(path: pathlib.Path, offset: int, lines: int, unfinished: bool) -> tuple[list[str], int, bool]:
    """Read lines of a log from an offset on, the offset behind them, and whether more whole lines may follow at once.

    Args:
        path: The log.
        offset: Where to begin; below 0, the last lines are wanted. An offset beyond the end is that of an older log.
        lines: How many last lines.
        unfinished: Take a last line without its end, too.
    """
    try:
        with rundir.open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            begin = max(0, size - CHUNK) if offset < 0 else offset if offset <= size else 0
            file.seek(begin)
            data = file.read(CHUNK)
    except FileNotFoundError:
        return [], 0, False
    more = begin + len(data) < size
    whole = data.rfind(b"\n") + 1
    if (more and whole) or not (more or unfinished):
        data = data[:whole]
    end = begin + len(data)
    if offset >= 0:
        return _readable(data), end, more
    if begin:
        data = data[data.find(b"\n") + 1 :]  # the middle of a line
    rows = _readable(data)
    return rows[max(0, len(rows) - lines) :], end, more


def _readable(data: bytes) -> list[str]:
    """Split a log into lines worth reading: without terminal codes, and of a progress bar its last picture."""
    rows = []
    for row in _TERMINAL_CODE.sub("", data.decode("utf-8", "replace")).split("\n"):
        pictures = row.rstrip("\r").split("\r")
        if len(pictures) == 1:
            rows.append(pictures[0])
        else:  # blanks wipe a bar out; what is written over them is no part of it
            rows += [picture.strip() for picture in pictures if picture.strip()][-1:]
    return rows if rows[-1:] != [""] else rows[:-1]
