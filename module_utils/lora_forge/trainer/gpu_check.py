"""Running gpu_check.py on a trainer, and what its end means.

Runs on trainers: Python 3.9 or newer, standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

NO_COMPILER = 86  # exit status of gpu_check.py
_LONGEST = 4000  # letters of what it says


def compute(
    python: str, program: pathlib.Path, lane: Sequence[str], options: Sequence[str], timeout: float
) -> tuple[dict[str, Any], str, bool]:
    """Run the program, and read its answer.

    Args:
        python: The Python of the environment.
        program: gpu_check.py.
        lane: The UUIDs of the GPUs; empty for all.
        options: Further options of the program.
        timeout: Seconds that it may take.

    Returns:
        ``device``, ``bf16_tflops`` and ``seconds`` of the program's report; what is wrong, or an empty text; and
        whether another machine may do better.
    """
    command = [python, str(program), "--lane", ",".join(lane), *options]
    # Files, as pipes would be waited for as long as anything holds them: a process that hangs in a driver has no end.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
        except OSError as error:
            return {}, f"{python} cannot be started: {error.strerror}", True
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            said = f"the GPU does not answer: nothing was computed within {timeout:g} s, though nvidia-smi is fine. "
            return {}, said + "Reboot the host; replace a rented one", True
        return read_report(status, _end(out), _end(err))


def read_report(status: int, printed: str, errors: str) -> tuple[dict[str, Any], str, bool]:
    """Read what the program printed, as :func:`compute` returns it.

    Args:
        status: Its exit status.
        printed: Its standard output.
        errors: Its standard error.
    """
    try:
        report = json.loads(printed)
    except ValueError:
        report = None
    known = report if isinstance(report, dict) else {}
    facts = {name: known.get(name) for name in ("device", "bf16_tflops", "seconds")}
    if status == 0 and known:
        return facts, "", False
    said = known.get("error") or errors.strip() or printed.strip()
    return facts, str(said or f"gpu_check.py ended with {status} and said nothing"), status != NO_COMPILER


def _end(file: Any) -> str:
    """Return the end of what was written into a file."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST))
    return str(file.read().decode("utf-8", "replace"))
