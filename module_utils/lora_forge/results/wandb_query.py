"""W&B asked about runs, all of them at once, by its public API.

`wandb.Api` works in a process of its own, that is killed when its time is up, with a home folder that is thrown away.
"""

from __future__ import annotations

import concurrent.futures
import email.utils
import http.client
import math
import multiprocessing
import multiprocessing.connection
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from ansible.module_utils.lora_forge.results import wandb_client as client

# Left to itself the client tries again for hours, and then does not say why. When asked, it is to say why in time. When
# it uploads it is left to itself: once it gives up on a stream it marks the record as uploaded all the same.
_RETRIES = {"RETRY_MAX": "2", "RETRY_WAIT_MIN_SECONDS": "0.5", "RETRY_WAIT_MAX_SECONDS": "2"}
_HISTORY_STEPS = 1000  # points are looked for within so many last steps: one page of the server's


def ask_server(
    asked: list[str],
    entity: str = "",
    project: str = "lora-forge",
    base_url: str = "",
    key: str = "",
    timeout: float = 20,
    history: int = 0,
) -> dict[str, Any]:
    """Ask W&B about runs, all of them at once.

    Args:
        asked: Ids or display names; of several with one display name the newest is meant.
        entity: Empty: the key's default.
        project: The runs' project.
        base_url: Empty: WANDB_BASE_URL, or the client's default.
        key: Empty: WANDB_API_KEY.
        timeout: Seconds for the whole.
        history: How many last points of each run.

    Returns:
        entity and base_url as they were used; runs, one ``wandb_client.entry`` for each that was asked; error: None, or
        kind and msg of what is wrong.
    """
    key, base_url = client.given_key(key), base_url or os.environ.get("WANDB_BASE_URL", "")
    answer: dict[str, Any] = {"entity": entity, "base_url": base_url, "error": None}
    answer["runs"] = [client.entry(name) for name in asked]
    if key:
        _fill(answer, (asked, entity, project, key, timeout, history))
    else:
        answer["error"] = client.error_entry("no_key", base_url or "W&B's service")
    missing = [run for run in answer["runs"] if not run["id"]]
    if missing and not answer["error"]:
        where = f"{answer['base_url']}, {answer['entity']}/{project}, {', '.join(run['asked'] for run in missing)}"
        answer["error"] = client.error_entry("run_not_found", where)
    for run in missing:
        run["error"] = answer["error"]
    return client.scrubbed(answer, key)


def _fill(answer: dict[str, Any], question: tuple[Any, ...]) -> None:
    """Add what a child process learns of W&B within the question's time."""
    client.package()
    timeout = question[4]
    deadline = time.monotonic() + timeout
    fork = multiprocessing.get_context("fork")  # a module has no file that another interpreter could import
    with client.temporary_home() as folder:
        receiver, sender = fork.Pipe(duplex=False)
        retries = {f"WANDB__GRAPHQL_{name}": value for name, value in _RETRIES.items()}
        env = client.environment(folder, answer["base_url"]) | retries
        process = fork.Process(target=_child, args=(sender, env, *question), daemon=True)
        process.start()
        sender.close()
        try:
            while not answer.get("done"):
                if not receiver.poll(max(0.0, deadline - time.monotonic())):
                    answer["error"] = client.error_entry(
                        "timeout", answer["base_url"] or "its service", f"{timeout:g} s"
                    )
                    break
                answer |= receiver.recv()
            process.join(2 if answer.get("done") else 0)
        except EOFError:
            answer["error"] = client.error_entry("answer", "its client", "it died")
        finally:
            process.kill()
            process.join()
            receiver.close()
    answer.pop("done", None)


def _child(sender: multiprocessing.connection.Connection, env: dict[str, str], *question: Any) -> None:
    """Tell the parent, piece by piece, what W&B answers; nothing else comes out of here."""
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # found anew, by this environment
    os.chdir(env["HOME"])
    try:
        import wandb

        try:
            for piece in _answers(wandb, env.get("WANDB_BASE_URL", ""), *question):
                sender.send(piece)
        finally:
            wandb.teardown()
    except BaseException as error:  # whatever it is, a user is to read a sentence
        sender.send(
            {"error": client.error_entry("answer", "its client", f"{type(error).__name__}: {error}", question[3])}
        )
    sender.send({"done": True})


def _answers(
    wandb: Any, base_url: str, asked: list[str], entity: str, project: str, key: str, timeout: float, history: int
) -> Iterator[dict[str, Any]]:
    base_url = base_url or wandb.Settings().base_url
    yield {"base_url": base_url}
    where = base_url
    try:
        api = wandb.Api(overrides={"base_url": base_url}, api_key=key, timeout=max(1, math.ceil(timeout) - 2))
        entity = entity or api.default_entity
        yield {"entity": entity}
        if not asked:
            return
        where = f"{base_url}, {entity}/{project}"
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            clock = pool.submit(_server_clock_skew, base_url)
            either = [{"name": {"$in": asked}}, {"displayName": {"$in": asked}}]
            listed = api.runs(f"{entity}/{project}", {"$or": either}, order="-created_at", per_page=100, lazy=False)
            by_name: dict[str, Any] = {}
            for run in listed:
                by_name.setdefault(run.name, run)
            by_name |= {run.id: run for run in listed}
            now = time.time() + clock.result()
            entries = [_seen(by_name[name], name, now) if name in by_name else client.entry(name) for name in asked]
            yield {"runs": entries}
            if history:
                for run, points in zip(entries, pool.map(lambda name: _last(by_name.get(name), history), asked)):
                    run["history"] = points
                yield {"runs": entries}
    except Exception as error:
        yield {"error": client.error_entry(client.kind_of(str(error)), where, str(error), key)}


def _seen(run: Any, asked: str, now: float) -> client.Entry:
    """Turn a run of the public API into an entry; now is the server's."""
    beat = client.parse_time(run.heartbeat_at)
    summary = client.json_value(run.summary_metrics or {})
    steps = [summary.get("_step"), (run.history_keys or {}).get("lastStep")]
    reached = [step for step in steps if isinstance(step, (int, float)) and step >= 0]
    return client.entry(
        asked,
        id=run.id,
        name=run.name,
        path=f"{run.entity}/{run.project}/{run.id}",
        state=run.state,
        heartbeat_at=client.iso(beat),
        heartbeat_age=None if beat is None else max(0.0, round(now - beat, 1)),
        step=int(max(reached)) if reached else None,  # the one or the other may come from a cache
        summary=client.shown_metrics(summary),
        url=run.url,
        system=client.system_figures(run.system_metrics or {}),
        tags=list(run.tags or []),
        config=client.json_value(run.config or {}),
    )


def _last(run: Any, count: int) -> list[dict[str, Any]]:
    if run is None:
        return []
    last = (run.history_keys or {}).get("lastStep") or 0
    points = run.scan_history(min_step=max(0, int(last) + 1 - _HISTORY_STEPS), page_size=_HISTORY_STEPS)
    return [client.shown_metrics(client.json_value(point)) for point in points][-count:]


def _server_clock_skew(base_url: str) -> float:
    """Tell by how many seconds the server's clock is ahead, by the Date of an answer; 0 where it tells none."""
    try:
        with urllib.request.urlopen(urllib.request.Request(base_url, method="HEAD"), timeout=5) as answer:
            header = answer.headers["Date"]
    except urllib.error.HTTPError as refusal:  # has a Date too
        header = refusal.headers["Date"]
    except (OSError, ValueError, http.client.HTTPException):
        return 0.0
    date = email.utils.parsedate_tz(header) if header else None
    return email.utils.mktime_tz(date) - time.time() if date else 0.0
