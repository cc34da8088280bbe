"""Telling a webhook what became of a run: each event once, as output/runs/<run_id>.json notes what was told.

A command may die while it tells. Then nobody knows whether the message arrived, and the next command sends it again
with the same id, by which a receiver knows it. So does one that has waited in vain for another one's turn to end.
"""

from __future__ import annotations

import contextlib
import pathlib
import time
import uuid
from collections.abc import Iterator
from typing import Any, Optional

from ansible import constants
from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.controller.display import show, tell
from ansible.module_utils.lora_forge.controller.notes import note
from ansible.module_utils.lora_forge.controller.webhook import longest, post
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning.run_record import read_record, record_path
from ansible.module_utils.lora_forge.pods.claims import Claims, cost_by_run
from ansible.module_utils.lora_forge.results.notice import body, notice
from ansible.module_utils.lora_forge.text import duration, shown

LONGEST = 4000  # letters of what happened; a part of them may be a trainer's
SOON = 5.0  # seconds in which another command has mostly told, so that nobody is bothered with it
PATIENCE = 600.0  # seconds for which another command may tell; longer where all of its attempts may take that
IN_VAIN = "webhook-in-vain"  # in this command's temporary folder, once it has waited for as long


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
    with _turn(output, run, options["timeout"]) as alone:
        known = read_record(output, run.run_id)
        if since is not None and known.is_settled(event, since):
            return
        if silent and event not in known.telling:
            note(output, run, lambda record, now: record.settled(event, now))
            return
        _, telling = note(output, run, lambda record, now: record.tells(event, uuid.uuid4().hex))
        problem = _tell(event, run, shown(detail, LONGEST), options, progress or {}, telling.telling[event])
        if event in read_record(output, run.run_id).telling:  # or else nothing can be noted, and that was said
            note(output, run, lambda record, now: record.settled(event, now))
    what = f"«{run.agent}: {event}»"
    if not alone:
        beside = f"another command has begun to tell of {run.run_id} and does not end, so that this one told too"
        show(warnings=[f"{what} may arrive twice: {beside}"])
    if problem:
        show(warnings=[f"{what} {problem}"])


@contextlib.contextmanager
def _turn(output: pathlib.Path, run: PlannedRun, timeout: Any) -> Iterator[bool]:
    """Have the turn to tell of a run, as of two commands one tells; yield whether no other one is at it.

    Where another command has the turn and does not end, or nothing can be locked, who is there tells all the same: a
    message that arrives twice is known by its id, and what nobody tells is known to nobody. One that hangs may have
    begun to tell of many runs: it is waited for once in a command, and not once for each of them.
    """
    waited = pathlib.Path(constants.DEFAULT_LOCAL_TMP) / IN_VAIN
    with contextlib.ExitStack() as held:
        alone = True
        with contextlib.suppress(OSError):
            folder = record_path(output, run.run_id).parent
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f".{run.run_id}.told.lock"
            try:
                held.enter_context(rundir.locked(path, SOON))
            except BlockingIOError:
                alone = False
                if not waited.exists():
                    patience = PATIENCE
                    with contextlib.suppress(ValueError):  # a timeout that is no number is told with the message
                        patience = max(patience, longest(float(timeout)))
                    most = duration(patience)
                    tell(f"  {run.name}  another command tells the webhook of it: waiting, {most} at most")
                    try:
                        held.enter_context(rundir.locked(path, patience))
                        alone = True
                    except BlockingIOError:
                        waited.touch()
        yield alone


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
