#!/usr/bin/env python3
"""A W&B server in memory, for the real client: what it records, uploads later and asks.

Covered, for the client 0.31.0 (`wandb.init`, `wandb sync`, `wandb.Api`):
    - runs over GraphQL and file streams: made, resumed, config, summary, history, console lines, system metrics,
      heartbeats, the end with its exit code, tags, display names; names of uploaded files, not their contents;
    - the state as the service tells it: running; finished or failed by exit code; crashed when heartbeats stay away;
    - the public API: viewer, default entity, one run, runs of a project (by name or display name, with $in and $or),
      history, system metrics; keys: HTTP 401 for one that is not known;
    - faults, switched at run time (:data:`FAULTS`), and runs that lie (POST /sim/runs/<id>).
Not covered: artifacts, sweeps, launch, media and tables, reports, alerts, saved files, the web pages; other filters
and orders, paging, sampling of long histories, parquet exports; rate limit headers, forks, rewinds, deletion; rights
beyond those of one user with one team.
Assumed, as the client does not show it: how late a heartbeat may be (`crash_after`), what exactly a refusal says, that
a run begins to run again when it is resumed, and that points with one `_step` are one point, of which the last counts.

An operation, field or path that is not known is refused with HTTP 400 and noted in the state's «unknown».

    wandb_server.py serve [--port 0] [--url-file FILE] [--crash-after SECONDS]     until SIGTERM or SIGINT

    GET  /sim/state          {runs: {id: run}, faults, operations: {name: times}, unknown: [what]}
    POST /sim/faults         {"down": true}, {"status": 429, "only": "file_stream", "times": 3}; {} for none
    POST /sim/runs/<id>      {"state": "running", "heartbeat_age": 3600, "summary": {…}, …}: what W&B shall say of it
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import datetime
import email.utils
import gzip
import http.server
import json
import os
import pathlib
import signal
import socket
import struct
import sys
import threading
import time
import urllib.parse
from typing import Any, Callable

from wandb_graphql import Gap, matches, parse, shape

KEY = "0123456789" * 4
ENTITY, TEAM = "tester", "team"
FAULTS = {
    "down": False,  # connections are dropped
    "status": 0,  # this HTTP status is all that comes back
    "slow": 0.0,  # seconds before every answer
    "bad_key": False,  # no key is known
    "skew": 0.0,  # seconds that the server's clock is ahead
    "only": "all",  # graphql, file_stream or all: what the faults above touch; the clock is one for all
    "times": 0,  # for so many requests, then all is well again; 0 for no end
}
STREAMS = {"wandb-history.jsonl": "history", "wandb-events.jsonl": "events", "output.log": "console"}


class WandbServer:
    """The server, in threads of this process; a context manager.

    Args:
        port: 0 for one that is free.
        crash_after: Seconds without a heartbeat after which a run counts as crashed.
        keys: The API keys that are known.

    Attributes:
        url: What WANDB_BASE_URL shall be.
        runs: By id; see :meth:`new_run`. «history», «events» and «console» hold lines as they were sent.
        faults: As :data:`FAULTS`; :meth:`fail` sets them.
        operations: How often each GraphQL operation, and the file stream, was asked.
        struck: How many requests a fault has met.
        unknown: What was asked and is not known.
    """

    def __init__(self, port: int = 0, crash_after: float = 300, keys: tuple[str, ...] = (KEY,)):
        self.crash_after, self.keys = crash_after, keys
        self.runs: dict[str, dict[str, Any]] = {}
        self.faults: dict[str, Any] = dict(FAULTS)
        self.operations: collections.Counter[str] = collections.Counter()
        self.unknown: list[str] = []
        self.struck = 0
        self.lock = threading.RLock()
        self.http = _Http(("127.0.0.1", port), _handler(self))
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def __enter__(self) -> WandbServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    # --- what tests do ---------------------------------------------------------------------------------------------

    def fail(self, **faults: Any) -> None:
        """Set the faults, all others are off; none for a server that is well."""
        if not faults.keys() <= FAULTS.keys():
            raise Gap(f"fault {', '.join(faults.keys() - FAULTS.keys())}")
        with self.lock:
            self.faults = {**FAULTS, **faults}

    def change(self, run_id: str, **changes: Any) -> None:
        """Let W&B say something else of a run; state None: the truth again; heartbeat_age in seconds."""
        with self.lock:
            run = self.runs[run_id]
            if "heartbeat_age" in changes:
                run["heartbeat"] = time.time() - changes.pop("heartbeat_age")
            if "state" in changes:
                run["told"] = changes.pop("state")
            if not changes.keys() <= run.keys():
                raise Gap(f"field {', '.join(changes.keys() - run.keys())}")
            run.update(changes)

    def state(self) -> dict[str, Any]:
        """Return everything as plain values; a run's history as W&B would show it."""
        with self.lock:
            runs = {
                name: run | {"state": self.state_of(run), "history": points(run)} for name, run in self.runs.items()
            }
            said = {"runs": runs, "faults": self.faults, "operations": self.operations, "unknown": self.unknown}
            return json.loads(json.dumps(said))

    # --- runs ------------------------------------------------------------------------------------------------------

    def new_run(self, run_id: str, entity: str = ENTITY, project: str = "lora-forge") -> dict[str, Any]:
        """Add a run that nobody logs to."""
        now = time.time()
        self.runs[run_id] = {
            "id": run_id, "entity": entity, "project": project, "displayName": run_id, "config": {}, "summary": {},
            "history": [], "events": [], "console": [], "tags": [], "notes": None, "group": None, "jobType": None,
            "created": now, "heartbeat": now, "complete": False, "exit_code": None, "told": None, "starts": 1,
            "files": [],
        }  # fmt: skip
        return self.runs[run_id]

    def state_of(self, run: dict[str, Any]) -> str:
        """Return the state as the service would tell it."""
        if run["told"]:
            return str(run["told"])
        if run["complete"]:
            return "failed" if run["exit_code"] else "finished"
        return "crashed" if time.time() - run["heartbeat"] > self.crash_after else "running"

    def moment(self, when: float) -> str:
        """Write a time as the server's clock has it, in its own form."""
        at = datetime.datetime.fromtimestamp(when + self.faults["skew"], datetime.timezone.utc)
        return at.strftime("%Y-%m-%dT%H:%M:%SZ")

    def view(self, run: dict[str, Any]) -> dict[str, Any]:
        """Return a run as GraphQL has it."""
        history = points(run)
        system = {key: value for event in run["events"] for key, value in event.items() if not key.startswith("_")}
        return {
            **{name: run[name] for name in ("displayName", "tags", "notes", "group", "jobType")},
            "id": base64.b64encode(f"Run:{run['id']}".encode()).decode(), "name": run["id"], "projectId": "1",
            "project": self.project(run["entity"], run["project"]), "state": self.state_of(run), "commit": None,
            "config": json.dumps(run["config"]), "description": None, "sweepName": None, "readOnly": False,
            "createdAt": self.moment(run["created"]), "heartbeatAt": self.moment(run["heartbeat"]),
            "user": {"name": ENTITY, "username": ENTITY}, "wandbConfig": json.dumps({"t": {}}),
            "summaryMetrics": json.dumps(run["summary"]), "systemMetrics": json.dumps(system),
            "historyLineCount": len(run["history"]), "historyTail": tail(history), "logLineCount": len(run["console"]),
            "eventsLineCount": len(run["events"]), "eventsTail": tail(run["events"]),
            "historyKeys": {
                "sets": [], "keys": {key: {} for point in history for key in point},
                "lastStep": history[-1].get("_step", -1) if history else -1,
            },
            "history": [json.dumps(point) for point in history], "events": [json.dumps(one) for one in run["events"]],
            "parquetHistory": {"liveData": [], "parquetUrls": []},
        }  # fmt: skip

    def project(self, entity: str, name: str) -> dict[str, Any] | None:
        """Return a project as GraphQL has it, without its runs; None when there is none."""
        if not any((run["entity"], run["project"]) == (entity, name) for run in self.runs.values()):
            return None
        owner = {"id": f"Entity:{entity}", "name": entity}
        return {"id": f"Project:{name}", "internalId": "1", "name": name, "entity": owner, "readOnly": False}

    # --- GraphQL ---------------------------------------------------------------------------------------------------

    def graphql(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Answer a GraphQL request: status and body."""
        name, chosen, fragments = parse(body["query"])
        resolver: Callable[[dict[str, Any]], dict[str, Any]] | None = getattr(self, f"on_{name}", None)
        self.operations[name] += 1
        if resolver is None:
            raise Gap(f"operation {name}")
        return 200, {"data": shape(resolver(body.get("variables") or {}), chosen, fragments)}

    def on_Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        """Say whose key it is."""
        viewer = {
            "id": "User:1", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": "tester@example.org",
            "flags": "{}", "admin": False, "deletedAt": None, "apiKeys": {"edges": []},
            "teams": {"edges": [{"node": {"name": name}} for name in (ENTITY, TEAM)]},
        }  # fmt: skip
        return {"viewer": viewer}

    on_GetViewer = on_GetDefaultEntity = on_Viewer

    def on_ServerFeaturesQuery(self, _: dict[str, Any]) -> dict[str, Any]:
        """Offer no feature beyond the oldest."""
        return {"serverInfo": {"features": []}}

    def on_OrganizationCoreWeaveOrganizationID(self, _: dict[str, Any]) -> dict[str, Any]:
        """Answer that the entity belongs to no customer of the service's cloud."""
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def on_UpsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:
        """Make a run, or change it; one that had ended runs again."""
        entity = given.get("entity") or ENTITY
        if entity not in (ENTITY, TEAM):
            raise LookupError(f"entity {entity} not found during upsertBucket")
        known = base64.b64decode(given.get("id") or "").decode().removeprefix("Run:")
        run_id = known or given["name"]
        inserted = run_id not in self.runs
        run = self.new_run(run_id, entity, given.get("project") or "uncategorized") if inserted else self.runs[run_id]
        if run["complete"]:
            run |= {"complete": False, "exit_code": None, "starts": run["starts"] + 1}
        run["heartbeat"] = time.time()
        for key in ("displayName", "notes", "tags", "jobType"):
            run[key] = given.get(key) or run[key]
        run["group"] = given.get("groupName") or run["group"]
        for key, name in (("config", "config"), ("summaryMetrics", "summary")):
            run[name] = json.loads(given[key]) if given.get(key) else run[name]
        return {"upsertBucket": {"bucket": self.view(run), "inserted": inserted}}

    def on_RunResumeStatus(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return what there is of a run that may be resumed."""
        found = self.on_Run({**given, "entity": given.get("entity") or ENTITY})["project"]
        return {"model": found and {**found, "bucket": found["run"]}}

    def on_CreateRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        """Say where to upload files to."""
        urls = [{"name": name, "uploadUrl": f"{self.url}/storage/{given['run']}/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": urls}}

    def on_Run(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return one run, or something of it."""
        project = self.project(given["entity"], given["project"])
        run = self.runs.get(given.get("name") or given.get("run") or given["runName"])
        mine = run and (run["entity"], run["project"]) == (given["entity"], given["project"])
        return {"project": project and {**project, "run": self.view(run) if run and mine else None}}

    on_RunFullHistory = on_RunHistoryKeys = on_RunParquetHistory = on_Run

    def on_HistoryPage(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the points of a run within a range of steps."""
        found = self.on_Run(given)
        run = (found["project"] or {}).get("run")
        if run:
            steps = range(given["minStep"], given["maxStep"])
            run["history"] = [line for line in run["history"] if json.loads(line)["_step"] in steps]
        return found

    def on_Runs(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the runs of a project that a filter lets through, by their age."""
        project = self.project(given["entity"], given["project"])
        if given.get("order") not in ("+created_at", "-created_at"):
            raise Gap(f"order {given.get('order')}")
        runs = sorted(self.runs.values(), key=lambda run: run["created"], reverse=given["order"].startswith("-"))
        mine = [run for run in runs if (run["entity"], run["project"]) == (given["entity"], given["project"])]
        views = [self.view(run) for run in mine]
        wanted = json.loads(given.get("filters") or "{}")
        edges = [{"node": view, "cursor": view["name"]} for view in views if matches(view, wanted)]
        page = {"endCursor": None, "hasNextPage": False}
        return {"project": project and {**project, "runCount": len(edges), "runs": {"edges": edges, "pageInfo": page}}}

    # --- file streams ----------------------------------------------------------------------------------------------

    def stream(self, run_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Take in what a file stream brings: lines at their offsets, a heartbeat, the end."""
        if run_id not in self.runs:
            raise LookupError(f"run {run_id} not found")
        run = self.runs[run_id]
        run["heartbeat"] = time.time()
        for name, piece in (body.get("files") or {}).items():
            lines, start = piece["content"], piece.get("offset", 0)
            if name == "wandb-summary.json":
                run["summary"] = json.loads(lines[-1])
            elif name in STREAMS:
                taken = lines if name == "output.log" else [json.loads(line) for line in lines]
                run[STREAMS[name]][start : start + len(taken)] = taken
            else:
                raise Gap(f"stream {name}")
        if body.get("complete"):
            run |= {"complete": True, "exit_code": body.get("exitcode", 0)}
        return {"exitcode": None, "limits": {}}

    # --- requests --------------------------------------------------------------------------------------------------

    def strike(self, kind: str) -> dict[str, Any]:
        """Count a request of a kind, and return the faults that it meets."""
        with self.lock:
            if self.faults["only"] not in ("all", kind):
                return dict(FAULTS)
            met = dict(self.faults)
            self.struck += any(met[fault] for fault in ("down", "status", "slow", "bad_key"))
            if met["times"]:
                self.faults["times"] -= 1
                if not self.faults["times"]:
                    self.faults = {**FAULTS, "skew": met["skew"]}
            return met

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Answer a request that no fault has met: status and body."""
        with self.lock:
            try:
                if path.startswith("/storage/"):
                    _, _, run_id, name = path.split("/", 3)
                    self.runs[run_id]["files"].append(name)
                    return 200, {}
                if method == "HEAD" or path.startswith("/sdk/otel/"):  # telemetry is of no interest
                    return 200, {}
                given = json.loads(body or b"{}")
                if path == "/graphql":
                    return self.graphql(given)
                if path.endswith("/file_stream"):
                    self.operations["file_stream"] += 1
                    return 200, self.stream(path.split("/")[4], given)
                if path == "/sim/state":
                    return 200, self.state()
                if path == "/sim/faults":
                    self.fail(**given)
                    return 200, self.faults
                if path.startswith("/sim/runs/"):
                    self.change(path.rpartition("/")[2], **given)
                    return 200, {}
                raise Gap(f"path {method} {path}")
            except Gap as gap:
                self.unknown.append(str(gap))
                return 400, {"errors": [{"message": f"the local W&B server does not know the {gap}"}]}
            except LookupError as error:
                return 404, {"errors": [{"message": str(error.args[0])}], "data": None}


def points(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a run's history as W&B shows it: one point per step."""
    by_step = {point.get("_step", number): point for number, point in enumerate(run["history"])}
    return [by_step[step] for step in sorted(by_step)]


def tail(lines: list[dict[str, Any]]) -> str:
    """Return the last line, in the form in which a client that resumes wants it."""
    return json.dumps([json.dumps(line) for line in lines[-1:]])


class _Http(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # the client has hung up
            super().handle_error(request, client_address)


def _handler(server: WandbServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # header and body in one piece

        def log_message(self, *words: Any) -> None:
            pass

        def date_time_string(self, timestamp: float | None = None) -> str:
            return email.utils.formatdate((timestamp or time.time()) + server.faults["skew"], usegmt=True)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urllib.parse.urlsplit(self.path).path
            kind = next((kind for kind in ("graphql", "file_stream") if path.endswith(f"/{kind}")), "")
            met = FAULTS if path.startswith(("/sim/", "/sdk/")) else server.strike(kind)
            time.sleep(met["slow"])
            if met["down"]:  # a reset, not an orderly end
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
            elif met["status"]:
                self.send(met["status"], {"error": f"fault {met['status']}"})
            elif kind and (met["bad_key"] or self.key() not in server.keys):
                self.send(401, {"errors": [{"message": "user is not logged in", "path": [kind]}], "data": None})
            else:
                packed = self.headers.get("Content-Encoding") == "gzip"
                self.send(*server.answer(self.command, path, gzip.decompress(body) if packed else body))

        do_GET = do_PUT = do_HEAD = do_POST

        def key(self) -> str:
            """Return the request's key, which comes as a password."""
            with contextlib.suppress(ValueError):
                word = (self.headers.get("Authorization") or "").removeprefix("Basic ")
                return base64.b64decode(word).decode().partition(":")[2]
            return ""

        def send(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    return Handler


def main() -> int:
    """Serve until a signal says that it is enough."""
    parser = argparse.ArgumentParser(description="A W&B server in memory, for tests.")
    serve = parser.add_subparsers(required=True).add_parser("serve", help="serve until SIGTERM or SIGINT")
    serve.add_argument("--port", type=int, default=0, help="0 for one that is free")
    serve.add_argument("--url-file", type=pathlib.Path, help="where to write the URL once it listens")
    serve.add_argument("--crash-after", type=float, default=300, help="seconds without a heartbeat")
    options = parser.parse_args()
    over = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, lambda *_: over.set())
    with WandbServer(options.port, options.crash_after) as server:
        if options.url_file:
            draft = options.url_file.with_name(f"{options.url_file.name}.part")
            draft.write_text(server.url)
            os.replace(draft, options.url_file)
        print(f"listening on {server.url}", flush=True)
        over.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
