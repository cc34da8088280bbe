"""Noting in output/runs/<run_id>.json what a command did with a run, whatever stands in the way of that."""

from __future__ import annotations

import pathlib
import time
from typing import Callable

from ansible.module_utils.lora_forge.controller.display import show
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning.run_record import RunRecord, update_record


def note(
    output: pathlib.Path, run: PlannedRun, change: Callable[[RunRecord, float], RunRecord], check: bool = False
) -> tuple[RunRecord, RunRecord]:
    """Change what is noted of a run. What cannot be written is a warning, and is told and acted on all the same.

    Args:
        output: The controller's output folder.
        run: The planned run.
        change: Makes the new record of the present one and the time.
        check: Write nothing.

    Returns:
        The record before and after; where it could not be written, as it would be.
    """
    now = max(time.time(), run.planned_at)  # it is this command's, also where the clock was set back meanwhile
    try:
        return update_record(output, run.run_id, change, check, now)
    except OSError as error:
        show(warnings=[f"what became of {run.run_id} could not be noted: {error}"])
        return update_record(output, run.run_id, change, True, now)
