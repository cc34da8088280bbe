"""Telling a webhook what became of a run: each event once, as output/runs/<run_id>.json notes what was told.

A command may die while it tells. Then nobody knows whether the message arrived, and the next command sends it again
with the same id, by which a receiver knows it.
"""

from __future__ import annotations

import contextlib
import pathlib
import time
import uuid
from collections.abc import Iterator
from typing import Any, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.controller.display import show
from ansible.module_utils.lora_forge.controller.notes import note
from ansible.module_utils.lora_forge.controller.webhook import post
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning.run_record import read_record, record_path
from ansible.module_utils.lora_forge.pods.claims import Claims, cost_by_run
from ansible.module_utils.lora_forge.results.notice import body, notice
from ansible.module_utils.lora_forge.text import shown

LONGEST = 4000  # letters of what happened; a part of them may be a trainer's
PATIENCE = 600.0  # seconds that another command may take to tell, more than all of its attempts


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
        silent: It is no news: note that it is settled, and tell nobody, unless a command died while it told.
    """
    output, url = pathlib.Path(options["output"]), str(options["url"] or "").strip()
    if not url or event not in options["events"]:
        note(output, run, lambda record, now: record.settled(event, now))
        return
    with _turn(output, run) as is_ours:
        known = read_record(output, run.run_id)
        if not is_ours or (since is not None and known.is_settled(event, since)):
            return
        if silent and event not in known.telling:
            note(output, run, lambda record, now: record.settled(event, now))
            return
        _, telling = note(output, run, lambda record, now: record.tells(event, uuid.uuid4().hex))
        problem = _tell(event, run, shown(detail, LONGEST), options, progress or {}, telling.telling[event])
        if event in read_record(output, run.run_id).telling:  # or else nothing can be noted, and that was said
            note(output, run, lambda record, now: record.settled(event, now))
    if problem:
        show(warnings=[f"«{run.agent}: {event}» {problem}"])


@contextlib.contextmanager
def _turn(output: pathlib.Path, run: PlannedRun) -> Iterator[bool]:
    """Have the turn to tell of a run, as of two commands one tells; yield whether it is ours.

    It is not where another command has it and does not end. Where nothing can be locked, who is there tells.
    """
    with contextlib.ExitStack() as held:
        is_ours = True
        try:
            folder = record_path(output, run.run_id).parent
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(rundir.locked(folder / f".{run.run_id}.told.lock", PATIENCE))
        except BlockingIOError:
            is_ours = False
        except OSError:
            pass
        yield is_ours


def _tell(
    event: str, run: PlannedRun, detail: str, options: dict[str, Any], progress: dict[str, Any], message: str
) -> str:
    """Send a message, by its id; return what went wrong, without the address, and nothing where it was taken."""
    url, now = str(options["url"]).strip(), time.time()
    try:
        usd = _cost(pathlib.Path(options["output"]), run, str(options.get("pods") or ""), now)
        told = notice(event, run, detail, progress, usd, now, message)
        problem = post(url, body(told, options["form"], url), float(options["timeout"]))
    except Exception as error:  # of claims or manifests that are damaged; its words could hold the address
        return f"was not told: the message could not be made ({type(error).__name__})"
    return f"was not sent: the address in run_notify_url {problem}" if problem else ""


def _cost(output: pathlib.Path, run: PlannedRun, pods: str, now: float) -> float:
    """Return what a run has cost in USD, as status, report and manifests have it."""
    if not pods:
        return 0.0
    costs = cost_by_run(Claims(pathlib.Path(pods)).list_all(), output / "adapters", now)
    manifest = store.read_manifest(output / "adapters" / run.agent / run.run_id)
    return float(costs.get(run.run_id, (manifest and manifest.cost.usd) or 0.0))
