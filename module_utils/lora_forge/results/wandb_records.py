"""What W&B's client recorded on disk: read, and uploaded where W&B does not have it.

`wandb leet inspect` reads and `wandb sync` uploads, each in a process that is killed when its time is up. What is
uploaded is a copy, with what a trainer may say in a record (:mod:`wandb_filter`).
"""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import pathlib
import re
import sys
import time
from typing import Any, Optional

from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.results import wandb_client as client
from ansible.module_utils.lora_forge.results.wandb_filter import Place, copy_record
from ansible.module_utils.lora_forge.results.wandb_query import ask_server
from ansible.module_utils.lora_forge.trainer import run_state

_DEPTH = 4  # folders deep, records are looked for: adapters/<agent>/<run_id>/wandb/<record>
ASKING = 20  # seconds that a sync leaves for its questions


def _record_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """List the records below a folder, by their folders' names, which begin with the time; the link latest-run is none.

    Raises:
        UserError: The folder is not there.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; a W&B record is a folder run-… or offline-run-… of the client")

    def linked(file: pathlib.Path) -> bool:
        return any((folder / part).is_symlink() for part in file.relative_to(folder).parents if part.name)

    files = [file for depth in range(_DEPTH + 1) for file in folder.glob("*/" * depth + "run-*.wandb")]
    return sorted(
        itertools.filterfalse(linked, files), key=lambda file: (file.parent.name.removeprefix("offline-"), str(file))
    )


def read_records(folder: pathlib.Path, timeout: float = 20, history: int = 0) -> dict[str, Any]:
    """Read what the client recorded below a folder; what was cut off is read as far as it goes.

    Args:
        folder: A record, or a folder that holds some.
        timeout: Seconds for the whole.
        history: How many last points of each.

    Returns:
        runs: one ``wandb_client.entry`` for each record, with «synced», whether `wandb sync` left its mark; state:
        finished, failed or unfinished, by the record of its end; heartbeat_at: when it was written to last. error: as
        of ``wandb_query.ask_server``.

    Raises:
        UserError: The folder is not there.
    """
    files = _record_files(folder)
    with client.temporary_home() as scratch, concurrent.futures.ThreadPoolExecutor(2) as pool:
        env, deadline = client.environment(scratch), time.monotonic() + timeout
        runs = list(pool.map(lambda file: _read_record(file, env, deadline, history), files))
    return {"runs": runs, "error": next((run["error"] for run in runs if run["error"]), None)}


def _read_record(file: pathlib.Path, env: dict[str, str], deadline: float, history: int) -> client.Entry:
    def inspect(*flags: str) -> str:
        # What `wandb leet inspect` starts; that itself takes two seconds of CPU before it gets there.
        command = [str(client.package() / "bin/wandb-core"), "leet", "inspect", "--no-observability", *flags, "--json"]
        path = file.absolute()
        command += ["--run-file", str(path), str(path.parent.parent)]
        status, output, complaints = client.run_command(command, env, deadline - time.monotonic())
        if status != 0:
            raise _Unread("timeout" if status is None else "answer", complaints)
        return output

    known: client.Entry = client.entry(str(file.parent), synced=file.with_suffix(".wandb.synced").exists())
    try:
        outline = json.loads(inspect("--summary"))
        records = [json.loads(line) for line in inspect().splitlines()]
    except _Unread as error:
        kind, complaint = error.args
        return known | {"error": client.error_entry(kind, f"the record {file}", complaint)}
    except ValueError as error:
        return known | {"error": client.error_entry("answer", f"the record {file}", str(error))}
    try:
        return known | _facts(outline, records, history)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:  # what no client writes
        return known | {"error": client.error_entry("answer", f"the record {file}", str(error))}


def _facts(outline: dict[str, Any], records: list[dict[str, Any]], history: int) -> dict[str, Any]:
    """Pick what is known of a run from what the client read of its record."""
    ended = {None: "unfinished", 0: "finished"}
    points = [
        client.shown_metrics(client.json_value(record["history"]["item"]))
        for record in records
        if record["type"] == "history"
    ]
    figures = [record["stats"]["item"] for record in records if record["type"] == "stats"]
    return {
        "id": outline["run_id"] or None,
        "name": outline["name"] or outline["run_id"] or None,
        "path": "/".join(filter(None, (outline["entity"], outline["project"], outline["run_id"]))) or None,
        "state": ended.get(outline["exit_code"], "failed"),
        "heartbeat_at": client.iso(client.parse_time(outline["last_write"])),
        "step": outline["step"],
        "summary": client.shown_metrics(client.json_value(outline["summary"])),
        "history": points[-history:] if history else [],
        "system": {name: value for item in figures for name, value in client.system_figures(item).items()},
        "tags": outline["tags"],
        "config": client.json_value(outline["config"]),
    }


class _Unread(Exception):
    """The kind of an error, and what the client said of it."""


# --- from here to there ----------------------------------------------------------------------------------------------


def sync_records(
    folder: pathlib.Path,
    entity: str = "",
    base_url: str = "",
    key: str = "",
    timeout: float = 300,
    check: bool = False,
) -> dict[str, Any]:
    """Upload every record that W&B does not have yet; records of one run become one run there.

    The client's own mark says that a record was uploaded. A run that was followed online, and one whose record was
    cut off, never gets it: W&B itself is asked whether it has the end of it. Its client would upload it again.

    What was recorded offline, and went on online, stays here: uploaded afterwards, it would end the run a second time,
    and put its own older figures in the place of the last ones.

    Args:
        folder: A folder that holds records of runs that have ended.
        entity: Empty: the records', or the key's default.
        base_url: Empty: WANDB_BASE_URL, or the client's default.
        key: Empty: WANDB_API_KEY.
        timeout: Seconds for the whole.
        check: Predict only.

    Returns:
        changed; synced: the records that were uploaded; left_out: those that W&B does not have, and cannot get; url: of
        the newest run, empty when W&B was not asked with success; error: as of ``wandb_query.ask_server``.

    Raises:
        UserError: The folder is not there.
    """
    key, deadline = client.given_key(key), time.monotonic() + timeout
    local = read_records(folder, timeout)
    records = [
        _placed(run) for run in local["runs"] if run["id"]
    ]  # one that ended before anything was written is empty
    if not records:
        return {"changed": False, "synced": [], "left_out": [], "url": "", "error": local["error"]}
    uploaded, error = _uploaded_runs(records, entity, base_url, key, deadline)
    left_out = [run["asked"] for run in records if _was_passed_by(uploaded, run)]
    waiting = [run for run in records if not _is_uploaded(uploaded, run)]
    done: list[client.Entry] = []
    if not waiting:
        error = None  # W&B was asked for the URL only
    elif check and not error:
        done = waiting
    elif not error:
        complaint, marked = _upload(waiting, entity, base_url, key, deadline)
        uploaded, error = _uploaded_runs(records, entity, base_url, key, deadline)
        done = [run for run in waiting if _is_uploaded(uploaded, run | {"synced": run["asked"] in marked})]
        for run in done:
            _mark(run)
        left = [run["asked"] for run in waiting if run not in done]
        if not left:
            error = None
        elif not error:
            complaint = complaint or "the client did not say why it uploaded nothing"
            error = client.error_entry(client.kind_of(complaint), f"the upload of {', '.join(left)}", complaint, key)
    newest = uploaded.get(records[-1]["id"]) or {}
    answer = {"changed": bool(done), "synced": [run["asked"] for run in done], "url": newest.get("url") or ""}
    return client.scrubbed({**answer, "left_out": left_out, "error": error or local["error"]}, key)


def _uploaded_runs(
    records: list[client.Entry], entity: str, base_url: str, key: str, deadline: float
) -> tuple[dict[str, client.Entry], Optional[client.Error]]:
    """Ask what W&B has of the runs, by id; a run or a project that is not there yet is no error."""

    def place(record: client.Entry) -> list[str]:
        return ["", "", *record["path"].split("/")[:-1]][-2:]

    uploaded: dict[str, client.Entry] = {}
    for (owner, project), group in itertools.groupby(sorted(records, key=place), key=place):
        ids = sorted({record["id"] for record in group})
        left = max(1.0, min(ASKING, deadline - time.monotonic()))
        answer = ask_server(ids, entity or owner, project or "uncategorized", base_url, key, left)
        if answer["error"] and answer["error"]["kind"] not in ("run_not_found", "no_project"):
            return uploaded, answer["error"]
        uploaded |= {run["id"]: run for run in answer["runs"] if run["id"]}
    return uploaded, None


def _is_uploaded(uploaded: dict[str, client.Entry], record: client.Entry) -> bool:
    """Tell whether W&B has a record: by the client's mark, or as its run ended there, no earlier than the record."""
    run = uploaded.get(record["id"])
    if record["synced"] or not run:
        return bool(record["synced"])
    times = [each["summary"].get("_timestamp") for each in (run, record)]
    last = [time if run_state.finite(time) else 0 for time in times]  # a trainer may have written anything
    return run["state"] in ("finished", "failed") and last[0] >= last[1]


def _was_passed_by(uploaded: dict[str, client.Entry], record: client.Entry) -> bool:
    """Tell whether a record was made offline and never uploaded, while its run went on, and ended, at W&B."""
    offline = pathlib.Path(record["asked"]).name.startswith("offline-")
    return offline and not record["synced"] and _is_uploaded(uploaded, record)


def _mark(record: client.Entry) -> None:
    """Leave the client's mark on a record that was uploaded; it leaves none on one that was cut off."""
    for file in pathlib.Path(record["asked"]).glob("*.wandb"):
        file.with_suffix(".wandb.synced").touch()


def _place(record: pathlib.Path) -> Optional[Place]:
    """Tell whose run a delivered record is of, by the adapter that it lies beside; None where it lies beside none.

    Args:
        record: Its folder.
    """
    manifest = store.read_manifest(record.absolute().parents[1])
    if manifest is None or not manifest.run_id:
        return None
    entity, project = (str(manifest.recipe.get(f"wandb_{name}") or "") for name in ("entity", "project"))
    return Place(manifest.run_id, entity, project)


def _placed(record: client.Entry) -> client.Entry:
    """Return a record as one of the run that was planned, whatever stands in it."""
    place = _place(pathlib.Path(record["asked"]))
    if place is None:
        return record
    path = "/".join(filter(None, (place.entity, place.project, place.run_id)))
    return record | {"id": place.run_id, "path": path}


def _upload(records: list[client.Entry], entity: str, base_url: str, key: str, deadline: float) -> tuple[str, set[str]]:
    """Upload copies of records.

    Returns:
        What the client complained of (its exit status says nothing: it is 0 for a wrong key), and the records on which
        it left its mark.
    """
    with client.temporary_home() as folder:
        copies: dict[str, pathlib.Path] = {}
        for number, run in enumerate(records):
            record = pathlib.Path(run["asked"]).absolute()
            copy = copies[run["asked"]] = pathlib.Path(folder, "records", str(number), record.name)
            copy.mkdir(parents=True)
            for file in record.glob("*.wandb"):
                copy_record(file, copy / f"run-{run['id']}.wandb", _place(record))
        paths = [str(copy) for copy in copies.values()]
        options = ["--include-online", *(["--entity", entity] if entity else [])]
        seconds = deadline - time.monotonic() - min(ASKING, (deadline - time.monotonic()) / 4)
        env = client.environment(folder, base_url, key) | {"WANDB_SILENT": "false"}
        command = [sys.executable, "-m", "wandb", "sync", *options, *paths]
        status, output, complaints = client.run_command(command, env, seconds)
        marked = {asked for asked, copy in copies.items() if any(copy.glob("*.wandb.synced"))}
        if status is None:
            return "timed out", marked
        lines = [line for line in (output + complaints).splitlines() if re.search(r"error|failed", line, re.IGNORECASE)]
        return " ".join(line.removeprefix("wandb: ") for line in lines), marked
