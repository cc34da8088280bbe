"""Telling a webhook what became of a run: each event once, as output/runs/<run_id>.json notes what was told."""

from __future__ import annotations

import pathlib
import time
from typing import Any, Optional

from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.controller.display import show
from ansible.module_utils.lora_forge.controller.notes import note
from ansible.module_utils.lora_forge.controller.webhook import post
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.pods.claims import Claims, cost_by_run
from ansible.module_utils.lora_forge.results.notice import body, notice
from ansible.module_utils.lora_forge.text import shown

LONGEST = 4000  # letters of what happened; a part of them may be a trainer's


def notify(
    event: str,
    run: PlannedRun,
    detail: str,
    options: dict[str, Any],
    progress: Optional[dict[str, Any]] = None,
    since: Optional[float] = None,
    silent: bool = False,
) -> None:
    """Tell of an event where that is wanted, and note that it is settled. Whatever goes wrong is a mere warning.

    Args:
        event: One of ``notice.EVENTS``.
        run: Whose.
        detail: What happened, in a sentence.
        options: ``output`` (the controller's output folder), ``url`` (a secret; empty for nobody), ``form``, ``events``
            (of which it is told), ``timeout`` (seconds), ``pods`` (the folder of claims; empty where nothing costs).
        progress: How far the run is known to be.
        since: It is told only if it was not settled at or after this time; by default always.
        silent: It is no news: note that it is settled, and tell nobody.
    """
    output, url = pathlib.Path(options["output"]), str(options["url"] or "").strip()
    before, _ = note(output, run, lambda record, now: record.settled(event, now))
    if silent or not url or event not in options["events"] or (since is not None and before.is_settled(event, since)):
        return
    now = time.time()
    try:
        usd = _cost(output, run, str(options.get("pods") or ""), now)
        told = notice(event, run, shown(detail, LONGEST), progress or {}, usd, now)
        problem = post(url, body(told, options["form"], url), float(options["timeout"]))
    except Exception as error:  # of claims or manifests that are damaged; its words could hold the address
        show(warnings=[f"«{run.agent}: {event}» was not told: the message could not be made ({type(error).__name__})"])
        return
    if problem:
        show(warnings=[f"«{run.agent}: {event}» was not sent: the address in run_notify_url {problem}"])


def _cost(output: pathlib.Path, run: PlannedRun, pods: str, now: float) -> float:
    """Return what a run has cost in USD, as status, report and manifests have it."""
    if not pods:
        return 0.0
    costs = cost_by_run(Claims(pathlib.Path(pods)).list_all(), output / "adapters", now)
    manifest = store.read_manifest(output / "adapters" / run.agent / run.run_id)
    return float(costs.get(run.run_id, (manifest and manifest.cost.usd) or 0.0))
