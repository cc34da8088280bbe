"""W&B as the controller sees it: what it says of runs, what its client recorded, and how the one becomes the other.

The wandb package does it all: `wandb.Api` asks, `wandb leet inspect` reads, `wandb sync` uploads. Each works in a
process of its own, that is killed when its time is up, with a home folder that is thrown away.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import datetime
import email.utils
import http.client
import importlib.util
import itertools
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any, Optional

from ansible.module_utils.lora_forge.errors import UserError

# Of the client's many variables, those that say how to reach W&B. All others (mode, entity, run id …) stay outside.
KEPT = ("WANDB_BASE_URL", "WANDB_HTTP_PROXY", "WANDB_HTTPS_PROXY", "WANDB_INSECURE_DISABLE_SSL")
# Left to itself the client tries again for hours, and then does not say why. When asked, it is to say why in time. When
# it uploads it is left to itself: once it gives up on a stream it marks the record as uploaded all the same.
_RETRIES = {"RETRY_MAX": "2", "RETRY_WAIT_MIN_SECONDS": "0.5", "RETRY_WAIT_MAX_SECONDS": "2"}
_SHOWN = ("_step", "_timestamp", "_runtime")  # of the client's own keys
_HISTORY_STEPS = 1000  # points are looked for within so many last steps: one page of the server's
_DEPTH = 4  # folders deep, records are looked for: adapters/<agent>/<run_id>/wandb/<record>
_SHORTEST = 8  # characters of anything that could be a key
_SAID = 200  # characters of what W&B, or its client, said
ASKING = 20  # seconds that a sync leaves for its questions

_Entry = dict[str, Any]
Error = dict[str, str]


def entry(asked: str, **known: Any) -> _Entry:
    """A run of which nothing is known but what is given."""
    unknown = dict.fromkeys(("id", "name", "path", "state", "heartbeat_at", "heartbeat_age", "step", "url", "error"))
    return {"asked": asked, **unknown, "summary": {}, "history": [], "system": {}, "tags": [], "config": {}, **known}


# --- errors --------------------------------------------------------------------------------------------------------


def error_entry(kind: str, where: str, said: str = "", key: str = "") -> Error:
    """A kind of error in words: what was found, where, and what to do.

    Args:
        kind: no_key, bad_key, no_project, run_not_found, rate_limit, timeout, server_down or answer.
        where: W&B's address, or a file; for no_project and run_not_found what is missing too.
        said: What W&B, or its client, said.
        key: Taken out of it, should it be there.
    """
    said = " ".join(_scrubbed(said, key).split()).rpartition("while retrying: ")[2]
    said = re.sub(r"^Failed to verify credentials with \S+: ", "", said)
    said = f" ({said[:_SAID]}…)" if len(said) > _SAID else f" ({said})" if said else ""
    new_key = "in W&B's user settings, and: export WANDB_API_KEY=…"
    words = {
        "no_key": f"no key for {where}: WANDB_API_KEY is not set. Make one {new_key}",
        "bad_key": f"{where} does not accept the key{said}. Make a new one {new_key}",
        "no_project": f"{where}: no such project, or the key may not see it. Look at entity and project; its first run "
        "makes a project",
        "run_not_found": f"{where}: no such run. It has not been uploaded yet, or was deleted",
        "rate_limit": f"{where} takes no more requests for now{said}. Wait a minute and run the same command again",
        "timeout": f"{where} gave no answer in time{said}. Run the same command again, or give it more time",
        "server_down": f"{where} cannot be reached, or is out of order{said}. Run the same command again in a while",
        "answer": f"{where} gave an answer that is of no use{said}. Its own words say why",
    }
    return {"kind": kind, "msg": f"W&B: {words[kind]}"}


def _kind_of(said: str) -> str:
    """The kind of an error, by the client's words (it has no other way to tell)."""
    for kind, pattern in (
        ("bad_key", r"\b401\b|\b403\b|not logged in|API key must|API key invalid|permission denied"),
        ("rate_limit", r"\b429\b|rate limit"),
        ("no_project", r"Could not find project"),
        ("timeout", r"did not respond in time|deadline exceeded|i/o timeout|Client\.Timeout|timed out"),
        ("server_down", r"\b(HTTP|error) 5\d\d|dial tcp|connection re(fused|set)|no such host|Post \x22"),
    ):
        if re.search(pattern, said, re.IGNORECASE):
            return kind
    return "answer"


# --- the client's processes ----------------------------------------------------------------------------------------


def _package() -> pathlib.Path:
    """Where the client is installed.

    Raises:
        UserError: It is not.
    """
    spec = importlib.util.find_spec("wandb")
    if not spec or not spec.origin:
        raise UserError(f"the package wandb is missing in the controller's environment ({sys.executable}); run: make")
    return pathlib.Path(spec.origin).parent


@contextlib.contextmanager
def temporary_home() -> Iterator[str]:
    """A folder for all that the client writes besides; it may still write while it is removed."""
    with tempfile.TemporaryDirectory(prefix="lora-forge-wandb-", ignore_cleanup_errors=True) as folder:
        yield folder


def environment(folder: str, base_url: str = "", key: str = "") -> dict[str, str]:
    """The client's environment: its home is a folder, and it keeps silent.

    Args:
        folder: The folder.
        base_url: W&B's address; empty: as the environment says.
        key: The key, for processes that need it.
    """
    found = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_") or name in KEPT}
    found |= {"HOME": folder, "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "NO_COLOR": "1"}
    found |= {f"WANDB_{name}_DIR": folder for name in ("CONFIG", "CACHE", "DATA")}
    found |= {"WANDB_DIR": folder, "TMPDIR": folder}  # it leaves folders behind
    found |= {"WANDB_BASE_URL": base_url} if base_url else {}
    return found | ({"WANDB_API_KEY": key} if key else {})


def run(command: list[str], env: dict[str, str], seconds: float) -> tuple[Optional[int], str, str]:
    """Run a command of the client: exit status (None: its time was up and it was killed), output, complaints."""
    process = subprocess.Popen(
        command, env=env, cwd=env["HOME"], start_new_session=True, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        said, complained = process.communicate(timeout=max(0.1, seconds))
        return process.returncode, said, complained
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # what it started ends by itself when it sees that
        said, complained = process.communicate()
        return None, said, complained


# --- the server ----------------------------------------------------------------------------------------------------


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
        entity and base_url as they were used; runs, one :func:`entry` for each that was asked; error: None, or kind
        and msg of what is wrong.
    """
    key, base_url = _given_key(key), base_url or os.environ.get("WANDB_BASE_URL", "")
    found: dict[str, Any] = {"entity": entity, "base_url": base_url, "error": None}
    found["runs"] = [entry(name) for name in asked]
    if key:
        _fill(found, (asked, entity, project, key, timeout, history))
    else:
        found["error"] = error_entry("no_key", base_url or "W&B's service")
    missing = [run for run in found["runs"] if not run["id"]]
    if missing and not found["error"]:
        where = f"{found['base_url']}, {found['entity']}/{project}, {', '.join(run['asked'] for run in missing)}"
        found["error"] = error_entry("run_not_found", where)
    for run in missing:
        run["error"] = found["error"]
    return _scrubbed(found, key)


def _fill(found: dict[str, Any], question: tuple[Any, ...]) -> None:
    """Add what a child process learns of W&B within the question's time."""
    _package()
    timeout = question[4]
    deadline = time.monotonic() + timeout
    fork = multiprocessing.get_context("fork")  # a module has no file that another interpreter could import
    with temporary_home() as folder:
        receiver, sender = fork.Pipe(duplex=False)
        retries = {f"WANDB__GRAPHQL_{name}": value for name, value in _RETRIES.items()}
        env = environment(folder, found["base_url"]) | retries
        process = fork.Process(target=_child, args=(sender, env, *question), daemon=True)
        process.start()
        sender.close()
        try:
            while not found.get("done"):
                if not receiver.poll(max(0.0, deadline - time.monotonic())):
                    found["error"] = error_entry("timeout", found["base_url"] or "its service", f"{timeout:g} s")
                    break
                found |= receiver.recv()
            process.join(2 if found.get("done") else 0)
        except EOFError:
            found["error"] = error_entry("answer", "its client", "it died")
        finally:
            process.kill()
            process.join()
            receiver.close()
    found.pop("done", None)


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
        sender.send({"error": error_entry("answer", "its client", f"{type(error).__name__}: {error}", question[3])})
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
            entries = [_seen(by_name[name], name, now) if name in by_name else entry(name) for name in asked]
            yield {"runs": entries}
            if history:
                for one, points in zip(entries, pool.map(lambda name: _last(by_name.get(name), history), asked)):
                    one["history"] = points
                yield {"runs": entries}
    except Exception as error:
        yield {"error": error_entry(_kind_of(str(error)), where, str(error), key)}


def _seen(run: Any, asked: str, now: float) -> _Entry:
    """A run of the public API as an entry; now is the server's."""
    beat = parse_time(run.heartbeat_at)
    summary = json_value(run.summary_metrics or {})
    steps = [summary.get("_step"), (run.history_keys or {}).get("lastStep")]
    reached = [step for step in steps if isinstance(step, (int, float)) and step >= 0]
    return entry(
        asked,
        id=run.id,
        name=run.name,
        path=f"{run.entity}/{run.project}/{run.id}",
        state=run.state,
        heartbeat_at=iso(beat),
        heartbeat_age=None if beat is None else max(0.0, round(now - beat, 1)),
        step=int(max(reached)) if reached else None,  # the one or the other may come from a cache
        summary=shown_metrics(summary),
        url=run.url,
        system=_system(run.system_metrics or {}),
        tags=list(run.tags or []),
        config=json_value(run.config or {}),
    )


def _last(run: Any, count: int) -> list[dict[str, Any]]:
    if run is None:
        return []
    last = (run.history_keys or {}).get("lastStep") or 0
    points = run.scan_history(min_step=max(0, int(last) + 1 - _HISTORY_STEPS), page_size=_HISTORY_STEPS)
    return [shown_metrics(json_value(point)) for point in points][-count:]


def _server_clock_skew(base_url: str) -> float:
    """By how many seconds the server's clock is ahead of this one, by the Date of an answer; 0 where it tells none."""
    try:
        with urllib.request.urlopen(urllib.request.Request(base_url, method="HEAD"), timeout=5) as answer:
            said = answer.headers["Date"]
    except urllib.error.HTTPError as refusal:  # has a Date too
        said = refusal.headers["Date"]
    except (OSError, ValueError, http.client.HTTPException):
        return 0.0
    date = email.utils.parsedate_tz(said) if said else None
    return email.utils.mktime_tz(date) - time.time() if date else 0.0


# --- values --------------------------------------------------------------------------------------------------------


def json_value(value: Any) -> Any:
    """A value as JSON has it: what is not finite becomes text, what is no value at all its words."""
    if isinstance(value, dict):
        return {str(key): json_value(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def shown_metrics(values: dict[str, Any]) -> dict[str, Any]:
    """Metrics without the client's own, but with its step and times."""
    return {key: value for key, value in values.items() if not key.startswith("_") or key in _SHOWN}


def _system(values: dict[str, Any]) -> dict[str, Any]:
    """Figures of the machine; the server's have a word in front."""
    return {key.removeprefix("system."): json_value(value) for key, value in values.items() if not key.startswith("_")}


def parse_time(text: Optional[str]) -> Optional[float]:
    """A time as W&B writes it (UTC where it says nothing), in epoch seconds."""
    if not text:
        return None
    text = re.sub(r"(\.\d{6})\d+", r"\1", text.replace("Z", "+00:00"))  # nanoseconds are more than Python reads
    when = datetime.datetime.fromisoformat(text)
    return (when if when.tzinfo else when.replace(tzinfo=datetime.timezone.utc)).timestamp()


def iso(when: Optional[float]) -> Optional[str]:
    """Epoch seconds as text, in UTC."""
    at = None if when is None else datetime.datetime.fromtimestamp(when, datetime.timezone.utc)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ") if at else None


def server_of(url: str) -> str:
    """Whose server an address is of, be it the client's or that of a run's page; empty for none."""
    host = urllib.parse.urlsplit(url).netloc.rpartition("@")[2]
    return "wandb.ai" if host in ("api.wandb.ai", "www.wandb.ai") else host


def _given_key(key: str) -> str:
    """The key as it was given, or else that of the environment."""
    return (key or os.environ.get("WANDB_API_KEY", "")).strip()


def _scrubbed(value: Any, key: str) -> Any:
    """A value without the key, wherever it may have got to; what is shorter than any key is left alone."""
    if isinstance(value, dict):
        return {_scrubbed(name, key): _scrubbed(one, key) for name, one in value.items()}
    if isinstance(value, list):
        return [_scrubbed(one, key) for one in value]
    if not isinstance(value, str) or len(key) < _SHORTEST:
        return value
    sent = base64.b64encode(f"api:{key}".encode()).decode()  # as it goes over the wire
    return value.replace(key, "<key>").replace(sent, "<key>")


# --- records -------------------------------------------------------------------------------------------------------


def _record_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The records below a folder, by their folders' names, which begin with the time; the link latest-run is none.

    Raises:
        UserError: The folder is not there.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; a W&B record is a folder run-… or offline-run-… of the client")

    def linked(file: pathlib.Path) -> bool:
        return any((folder / part).is_symlink() for part in file.relative_to(folder).parents if part.name)

    found = [file for depth in range(_DEPTH + 1) for file in folder.glob("*/" * depth + "run-*.wandb")]
    whole = itertools.filterfalse(linked, found)
    return sorted(whole, key=lambda file: (file.parent.name.removeprefix("offline-"), str(file)))


def read(folder: pathlib.Path, timeout: float = 20, history: int = 0) -> dict[str, Any]:
    """What the client recorded below a folder; what was cut off is read as far as it goes.

    Args:
        folder: A record, or a folder that holds some.
        timeout: Seconds for the whole.
        history: How many last points of each.

    Returns:
        runs: one :func:`entry` for each record, with «synced», whether `wandb sync` left its mark; state: finished,
        failed or unfinished, by the record of its end; heartbeat_at: when it was written to last. error: as of
        :func:`ask_server`.

    Raises:
        UserError: The folder is not there.
    """
    files = _record_files(folder)
    with temporary_home() as scratch, concurrent.futures.ThreadPoolExecutor(2) as pool:
        env, deadline = environment(scratch), time.monotonic() + timeout
        runs = list(pool.map(lambda file: _record(file, env, deadline, history), files))
    return {"runs": runs, "error": next((run["error"] for run in runs if run["error"]), None)}


def _record(file: pathlib.Path, env: dict[str, str], deadline: float, history: int) -> _Entry:
    def inspect(*flags: str) -> str:
        # What `wandb leet inspect` starts; that itself takes two seconds of CPU before it gets there.
        command = [str(_package() / "bin/wandb-core"), "leet", "inspect", "--no-observability", *flags, "--json"]
        path = file.absolute()
        command += ["--run-file", str(path), str(path.parent.parent)]
        status, said, complained = run(command, env, deadline - time.monotonic())
        if status != 0:
            raise _Unread("timeout" if status is None else "answer", complained)
        return said

    known: _Entry = entry(str(file.parent), synced=file.with_suffix(".wandb.synced").exists())
    try:
        told = json.loads(inspect("--summary"))
        records = [json.loads(line) for line in inspect().splitlines()]
    except _Unread as error:
        kind, said = error.args
        return known | {"error": error_entry(kind, f"the record {file}", said)}
    except ValueError as error:
        return known | {"error": error_entry("answer", f"the record {file}", str(error))}
    ended = {None: "unfinished", 0: "finished"}
    points = [shown_metrics(json_value(record["history"]["item"])) for record in records if record["type"] == "history"]
    figures = [record["stats"]["item"] for record in records if record["type"] == "stats"]
    return known | {
        "id": told["run_id"] or None,
        "name": told["name"] or told["run_id"] or None,
        "path": "/".join(filter(None, (told["entity"], told["project"], told["run_id"]))) or None,
        "state": ended.get(told["exit_code"], "failed"),
        "heartbeat_at": iso(parse_time(told["last_write"])),
        "step": told["step"],
        "summary": shown_metrics(json_value(told["summary"])),
        "history": points[-history:] if history else [],
        "system": {name: value for item in figures for name, value in _system(item).items()},
        "tags": told["tags"],
        "config": json_value(told["config"]),
    }


class _Unread(Exception):
    """The kind of an error, and what the client said of it."""


# --- from here to there --------------------------------------------------------------------------------------------


def sync(
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
        the newest run, empty when W&B was not asked with success; error: as of :func:`ask_server`.

    Raises:
        UserError: The folder is not there.
    """
    key, deadline = _given_key(key), time.monotonic() + timeout
    local = read(folder, timeout)
    records = [run for run in local["runs"] if run["id"]]  # one that ended before its first word was written is empty
    if not records:
        return {"changed": False, "synced": [], "left_out": [], "url": "", "error": local["error"]}
    there, error = _there(records, entity, base_url, key, deadline)
    left_out = [run["asked"] for run in records if _passed(there, run)]
    waiting = [run for run in records if not _has(there, run)]
    done: list[_Entry] = []
    if not waiting:
        error = None  # W&B was asked for the URL only
    elif check and not error:
        done = waiting
    elif not error:
        said = _upload(waiting, entity, base_url, key, deadline)
        there, error = _there(records, entity, base_url, key, deadline)
        done = [run for run in waiting if _has(there, run | {"synced": _marked(run)})]
        for run in done:
            _mark(run)
        left = [run["asked"] for run in waiting if run not in done]
        if not left:
            error = None
        elif not error:
            said = said or "the client did not say why it uploaded nothing"
            error = error_entry(_kind_of(said), f"the upload of {', '.join(left)}", said, key)
    newest = there.get(records[-1]["id"]) or {}
    found = {"changed": bool(done), "synced": [run["asked"] for run in done], "url": newest.get("url") or ""}
    return _scrubbed({**found, "left_out": left_out, "error": error or local["error"]}, key)


def _there(
    records: list[_Entry], entity: str, base_url: str, key: str, deadline: float
) -> tuple[dict[str, _Entry], Optional[Error]]:
    """What W&B has of the runs, by id; a run or a project that is not there yet is no error."""

    def place(record: _Entry) -> list[str]:
        return ["", "", *record["path"].split("/")[:-1]][-2:]

    found: dict[str, _Entry] = {}
    for (owner, project), group in itertools.groupby(sorted(records, key=place), key=place):
        ids = sorted({record["id"] for record in group})
        left = max(1.0, min(ASKING, deadline - time.monotonic()))
        answer = ask_server(ids, entity or owner, project or "uncategorized", base_url, key, left)
        if answer["error"] and answer["error"]["kind"] not in ("run_not_found", "no_project"):
            return found, answer["error"]
        found |= {run["id"]: run for run in answer["runs"] if run["id"]}
    return found, None


def _has(there: dict[str, _Entry], record: _Entry) -> bool:
    """Whether W&B has a record: by the client's mark, or as the run has ended there, no earlier than the record."""
    run = there.get(record["id"])
    if record["synced"] or not run:
        return bool(record["synced"])
    last = [one["summary"].get("_timestamp") or 0 for one in (run, record)]
    return run["state"] in ("finished", "failed") and last[0] >= last[1]


def _passed(there: dict[str, _Entry], record: _Entry) -> bool:
    """Whether a record was made offline and never uploaded, while its run went on, and ended, at W&B."""
    return pathlib.Path(record["asked"]).name.startswith("offline-") and not record["synced"] and _has(there, record)


def _mark(record: _Entry) -> None:
    """Leave the client's mark on a record that was uploaded; it leaves none on one that was cut off."""
    for file in pathlib.Path(record["asked"]).glob("*.wandb"):
        file.with_suffix(".wandb.synced").touch()


def _marked(record: _Entry) -> bool:
    return any(pathlib.Path(record["asked"]).glob("*.wandb.synced"))


def _upload(records: list[_Entry], entity: str, base_url: str, key: str, deadline: float) -> str:
    """Upload records; returns what the client complained of. Its exit status says nothing: it is 0 for a wrong key."""
    with temporary_home() as folder:
        paths = [str(pathlib.Path(run["asked"]).absolute()) for run in records]
        options = ["--include-online", *(["--entity", entity] if entity else [])]
        seconds = deadline - time.monotonic() - min(ASKING, (deadline - time.monotonic()) / 4)
        env = environment(folder, base_url, key) | {"WANDB_SILENT": "false"}
        command = [sys.executable, "-m", "wandb", "sync", *options, *paths]
        status, said, complained = run(command, env, seconds)
        if status is None:
            return "timed out"
        lines = [line for line in (said + complained).splitlines() if re.search(r"error|failed", line, re.IGNORECASE)]
        return " ".join(line.removeprefix("wandb: ") for line in lines)
