"""Bringing a run's checkpoints to the controller, so that a trainer that is lost loses nothing."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

from ansible.module_utils.lora_forge.controller.actions import ForgeAction
from ansible.module_utils.lora_forge.controller.display import show
from ansible.module_utils.lora_forge.trainer import runs


def fetch_checkpoint(
    action: ForgeAction,
    agent: str,
    checkpoint: dict[str, Any],
    run_dir: str,
    kept: pathlib.Path,
    transfer: dict[str, Any],
) -> bool:
    """Fetch a whole checkpoint, and drop the ones before it. One that is cut off is not whole: nothing resumes from it.

    Args:
        action: Who fetches.
        agent: Whose run it is.
        checkpoint: Its ``step``, and its ``files`` below the run directory.
        run_dir: The run directory on the trainer.
        kept: The folder on the controller, laid out as a run directory.
        transfer: How files come over: ``timeout`` and ``options`` of the action transfer.

    Returns:
        Whether it is here; that it is not is a warning.
    """
    asked = {"from": run_dir, "files": [*checkpoint["files"], "metrics.jsonl"], "to": str(kept), **transfer}
    try:
        answer = action.run_action("transfer", asked)
    except Exception as error:  # whatever it is, no training fails by it
        answer = {"failed": True, "msg": str(error)}
    if answer.get("failed"):
        reason = str(answer.get("msg") or "it failed").splitlines()[0]
        show(warnings=[f"checkpoint {checkpoint['step']} was not fetched; the next one is tried again ({reason})"])
        return False
    rows, _ = runs.prune_plan(kept, keep=0)
    for row in rows:
        if not row["keep"]:
            shutil.rmtree(row["path"], ignore_errors=True)
    show(lines=[f"  {agent}  checkpoint {checkpoint['step']} is on the controller"], host=action.host)
    return True
