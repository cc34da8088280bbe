"""W&B both ways: the real client against a server in memory, and the modules that ask, read records and upload them."""

from __future__ import annotations

import base64
import collections
import importlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import rundir
import wandb_server
from ansible.module_utils.lora_forge.results import wandb_client, wandb_filter, wandb_query, wandb_records
from ansible.module_utils.testing import patch_module_args
from lab import ROOT, eventually
from wandb_server import KEY, WandbServer
from wire import load

TIME = 600  # seconds for what is to come to its end, however slow the machine

LOG = """
import json, os, pathlib, signal, sys, time
import wandb

given = json.loads(sys.argv[1])
names = ("id", "name", "mode", "tags", "config")
run = wandb.init(project="lora-forge", resume="allow", **{name: given[name] for name in names})
print("a line for the console")
for number in range(given["points"]):
    run.log({"train/loss": 3 - number / 10, "word": f"point {number}"})
record = pathlib.Path(run.dir).parent / f"run-{run.id}.wandb"
# The client takes the machine's figures by its own clock: a run that ends before it had time to has none.
while not all(text.encode() in record.read_bytes() for text in (f"point {given['points'] - 1}", "memory_percent")):
    time.sleep(0.05)
if given["kill"]:
    os.kill(os.getpid(), signal.SIGKILL)
run.finish(given["exit_code"])
"""


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as made:
        yield made
        assert made.unknown == [], "the client asked for what the server does not know"


@pytest.fixture(scope="module", autouse=True)
def client() -> None:
    """Import the client once: the processes that ask are forked from this one, and need not do it again."""
    with mock.patch.dict(os.environ, WANDB_ERROR_REPORTING="false"):
        importlib.import_module("wandb.apis.public")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep tests from W&B's own server, from home and working folder, and from leaving a process behind."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    monkeypatch.setattr(wandb_records, "ASKING", TIME)
    yield
    assert [*home.iterdir(), *here.iterdir()] == []
    eventually(lambda: clients() == [])


def clients() -> list[str]:
    """List the client's processes that modules of this process started, by the home that was given to them."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    mine = f"PYTEST_XDIST_WORKER={worker}\0".encode() if worker else b""  # others clean up after themselves
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
            if b"/lora-forge-wandb-" in environment and mine in environment:
                found.append((process / "cmdline").read_bytes().decode())
        except OSError:
            continue  # it is gone, or somebody else's
    return found


def log(
    server: WandbServer, folder: pathlib.Path, run_id: str, points: int = 4, mode: str = "online", **given: Any
) -> pathlib.Path:
    """Log a run with the real client, in a process of its own; returns its record."""
    folder.mkdir(exist_ok=True)
    before = set(folder.glob("wandb/*run-*"))
    environment = {
        **os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "WANDB_DIR": str(folder), "HOME": str(folder),
        "WANDB_SILENT": "true", "WANDB__DISABLE_STATS": "false", "WANDB__TRANSACTION_LOG_FLUSH_INTERVAL": "0.2",
        "WANDB_ERROR_REPORTING": "false", **given.pop("env", {}),
    }  # fmt: skip
    known = {"id": run_id, "name": f"name of {run_id}", "mode": mode, "tags": ["witness"], "config": {"lr": 0.0002}}
    argument = {**known, "points": points, "kill": False, "exit_code": 0, **given}
    command = [sys.executable, "-c", LOG, json.dumps(argument)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=TIME)
    assert done.returncode == (-signal.SIGKILL if argument["kill"] else 0), done.stderr
    [made] = set(folder.glob("wandb/*run-*")) - before
    return made


def ask(server: WandbServer, *runs: str, timeout: float = TIME) -> dict[str, Any]:
    found = wandb_query.ask_server(list(runs), base_url=server.url, key=KEY, timeout=timeout)
    assert KEY not in repr(found)
    return found


def sync(server: WandbServer, folder: pathlib.Path) -> dict[str, Any]:
    found = wandb_records.sync_records(folder, base_url=server.url, key=KEY, timeout=TIME)
    assert KEY not in repr(found)
    return found


def module(capfd: pytest.CaptureFixture[str], name: str, check: bool = False, **given: Any) -> dict[str, Any]:
    """Call a module; all that it may print is its answer."""
    capfd.readouterr()
    alone = mock.patch("ansible.module_utils._internal.is_controller", False)  # whatever other tests have imported
    with alone, patch_module_args({"_ansible_check_mode": check, "timeout": TIME, **given}), pytest.raises(SystemExit):
        load(f"library/{name}").main()
    said = capfd.readouterr()
    assert KEY not in said.out
    assert said.err == ""
    return json.loads(said.out)


def steps(points: list[dict[str, Any]]) -> list[int]:
    return [point["_step"] for point in points]


# --- how a training begins to log -----------------------------------------------------------------------------------

BEGIN = """
import json, sys, types

for name in ("axolotl", "axolotl.integrations", "axolotl.integrations.base", "transformers", "gang"):
    sys.modules[name] = types.ModuleType(name)  # what the plugin is a part of, and this is not about
sys.modules["axolotl.integrations.base"].BasePlugin = sys.modules["transformers"].TrainerCallback = object
sys.path[:0] = json.loads(sys.argv[1])
import lora_forge_axolotl

lora_forge_axolotl.WANDB_TIMEOUT = float(sys.argv[2])
cfg = types.SimpleNamespace(use_wandb=True, wandb_project="lora-forge", wandb_entity=None, wandb_name=None)
lora_forge_axolotl.start_wandb(cfg)
import wandb

wandb.finish()
"""


def begin(server: WandbServer, folder: pathlib.Path, timeout: float = TIME) -> dict[str, Any]:
    """Let the plugin begin a W&B run, of a trainer with a long name; returns what it noted."""
    folder.mkdir()
    known = {"run_id": "witness-b", "agent": "witness", "host": "gpu." * 20, "rehearsal": False, "fingerprint": "f",
             "recipe_sha256": "r", "datasets": []}  # fmt: skip
    rundir.write_json(folder / "run.json", known)
    paths = [str(ROOT / "roles/run/files"), str(ROOT / "module_utils/lora_forge")]
    environment = {
        **os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "HOME": str(folder), "WANDB_MODE": "online",
        "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false",
    }  # fmt: skip
    command = [sys.executable, "-c", BEGIN, json.dumps(paths), str(timeout)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=TIME)
    assert done.returncode == 0, done.stderr
    [event] = rundir.read_events(folder / "metrics.jsonl")[0]
    return event


def test_the_tag_of_a_long_name_is_cut_as_w_and_b_refuses_it_whole(server, tmp_path):
    event = begin(server, tmp_path / "a")
    assert (event["mode"], event["wanted"], event["run"]) == ("online", "online", "tester/lora-forge/witness-b")
    assert server.runs["witness-b"]["tags"] == ["witness", ("gpu." * 20)[:64]]
    assert server.runs["witness-b"]["config"]["lora_forge"]["value"]["recipe_sha256"] == "r"


@pytest.mark.parametrize("faults", [{"status": 429, "times": 2}, {"status": 500, "times": 2}, {"slow": 1, "times": 3}])
def test_what_passes_while_a_training_begins_to_log_costs_nothing(server, tmp_path, faults):
    server.fail(only="graphql", **faults)
    assert begin(server, tmp_path / "a")["mode"] == "online"
    assert server.state()["runs"]["witness-b"]["state"] == "finished"
    assert server.faults == wandb_server.FAULTS


def test_a_training_that_cannot_have_w_and_b_says_that_it_wanted_it(server, tmp_path):
    server.fail(down=True)
    event = begin(server, tmp_path / "a", timeout=3)
    assert (event["mode"], event["wanted"]) == ("offline", "online")
    assert [*(tmp_path / "a/wandb").glob("offline-run-*-witness-b/*.wandb")]


# --- what is logged ------------------------------------------------------------------------------------------------


def test_a_run_is_logged_resumed_asked_for_and_not_uploaded_again(server, tmp_path, capfd, monkeypatch):
    log(server, tmp_path / "a", "witness-1", exit_code=3)
    run = server.state()["runs"]["witness-1"]
    assert (run["state"], run["exit_code"], run["displayName"]) == ("failed", 3, "name of witness-1")
    assert (run["tags"], run["config"]["lr"]["value"]) == (["witness"], 0.0002)
    assert [line.split(" ", 1)[1] for line in run["console"]] == ["a line for the console"]
    assert "system.memory_percent" in run["events"][-1]
    log(server, tmp_path / "a", "witness-1", points=2, config={"more": 1})
    run = server.state()["runs"]["witness-1"]
    assert (run["state"], run["starts"], steps(run["history"])) == ("finished", 2, [0, 1, 2, 3, 4, 5])
    assert run["config"].keys() == {"lr", "more", "_wandb"}

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    told = module(capfd, "wandb_run_info", runs=["witness-1", "name of witness-1"], history=3)
    assert (told["changed"], told["entity"], told["base_url"]) == (False, "tester", server.url)
    by_id, by_name = told["runs"]
    assert by_id["asked"] == "witness-1"
    assert {**by_name, "asked": "witness-1", "heartbeat_age": by_id["heartbeat_age"]} == by_id
    assert (by_id["path"], by_id["state"], by_id["step"]) == ("tester/lora-forge/witness-1", "finished", 5)
    assert by_id["url"] == f"{server.url}/tester/lora-forge/runs/witness-1"
    beat = server.runs["witness-1"]["heartbeat"]
    assert abs(wandb_client.parse_time(by_id["heartbeat_at"]) - beat) <= 1  # the server tells whole seconds
    assert 0 <= by_id["heartbeat_age"] <= time.time() - beat + 2
    assert (by_id["summary"]["train/loss"], by_id["summary"]["_step"]) == (2.9, 5)
    assert "_wandb" not in by_id["summary"]
    assert "_wandb" not in by_id["config"]
    assert steps(by_id["history"]) == [3, 4, 5]
    assert "memory_percent" in by_id["system"]
    assert (by_id["tags"], by_id["config"], by_id["error"]) == (["witness"], {"lr": 0.0002, "more": 1}, None)
    assert module(capfd, "wandb_run_info")["entity"] == "tester"

    # No mark says that its records were uploaded, as they went up by themselves; but W&B has all of it.
    streamed = server.operations["file_stream"]
    told = module(capfd, "wandb_sync", path=str(tmp_path / "a"))
    assert (told["changed"], told["synced"], told["url"]) == (False, [], by_id["url"])
    assert server.operations["file_stream"] == streamed


def test_records_of_one_run_are_read_predicted_and_uploaded_once(server, tmp_path, capfd):
    folder = tmp_path / "adapters/witness/witness-2/wandb"
    records = [shutil.copytree(log(server, tmp_path / "a", "witness-2", count, "offline"), folder / str(count))
               for count in (3, 2)]  # fmt: skip
    (folder / "latest-run").symlink_to(records[1])
    assert server.runs == {}

    told = module(capfd, "wandb_run_info", record=str(tmp_path / "adapters"), history=2)
    one, two = sorted(told["runs"], key=lambda run: run["asked"], reverse=True)
    assert [one["asked"], two["asked"]] == [str(record) for record in records]
    assert (one["id"], one["path"], one["name"]) == ("witness-2", "lora-forge/witness-2", "name of witness-2")
    assert (one["state"], one["step"], one["synced"]) == ("finished", 2, False)
    assert (one["url"], one["heartbeat_age"], one["error"]) == (None, None, None)
    assert steps(one["history"]) == [1, 2]
    assert (one["summary"]["train/loss"], one["config"], one["tags"]) == (2.8, {"lr": 0.0002}, ["witness"])
    assert "memory_percent" in one["system"]
    assert set(one) - {"synced"} == set(wandb_client.entry(""))

    given = {"path": str(tmp_path / "adapters"), "base_url": server.url, "api_key": KEY}
    told = module(capfd, "wandb_sync", check=True, **given)
    assert (told["changed"], sorted(told["synced"])) == (True, sorted(map(str, records)))
    assert server.runs == {}
    told = module(capfd, "wandb_sync", **given)
    assert (told["changed"], sorted(told["synced"])) == (True, sorted(map(str, records)))
    assert told["url"] == f"{server.url}/tester/lora-forge/runs/witness-2"
    assert list(server.runs) == ["witness-2"]
    run = server.state()["runs"]["witness-2"]
    assert (run["state"], steps(run["history"])) == ("finished", [0, 1, 2, 3, 4])
    streamed, url = server.operations["file_stream"], told["url"]
    told = module(capfd, "wandb_sync", **given)
    assert (told["changed"], told["synced"], told["url"]) == (False, [], url)
    assert server.operations["file_stream"] == streamed
    (tmp_path / "latest").symlink_to(folder.parent)
    assert [run["synced"] for run in wandb_records.read_records(tmp_path / "latest", TIME)["runs"]] == [True, True]
    # What is uploaded needs no key any more.
    told = module(capfd, "wandb_sync", **{**given, "api_key": ""})
    assert (told["changed"], told.get("failed"), told["url"]) == (False, None, "")


def test_a_record_of_a_trainer_uploads_no_file_and_belongs_to_the_planned_run(server, tmp_path):
    """It names files by their paths, and whose run it is; this machine's client would do as it says."""
    wandb_pb = importlib.import_module("wandb.proto.wandb_internal_pb2")
    secret = tmp_path / "secret"
    secret.write_text("the controller's own")
    adapter = tmp_path / "adapters/witness/witness-2"
    record = shutil.copytree(log(server, tmp_path / "a", "other", 3, "offline"), adapter / "wandb/offline-run-1-other")
    manifest = {"run_id": "witness-2", "recipe": {"wandb_project": "lora-forge", "wandb_entity": "team"}}
    rundir.write_json(adapter / "manifest.json", manifest)
    (file,) = record.glob("*.wandb")
    files, artifact, run = wandb_pb.Record(num=90), wandb_pb.Record(num=91), wandb_pb.Record(num=92)
    files.files.files.add(path=str(secret), policy=0)
    artifact.artifact.type, artifact.artifact.name, artifact.artifact.finalize = "x", "x", True
    artifact.artifact.manifest.version, artifact.artifact.manifest.storage_policy = 1, "wandb-storage-policy-v1"
    artifact.artifact.manifest.contents.add(path="x", digest="x", local_path=str(secret), size=20)
    run.run.run_id, run.run.entity, run.run.project = "promoted", "theirs", "theirs"
    lines = [wandb_pb.Record.FromString(one) for one in wandb_filter._records(file.open("rb"))]
    with file.open("wb") as new:
        new.write(wandb_filter._MAGIC)
        for one in [*lines[:-1], files, artifact, run, lines[-1]]:
            wandb_filter._append(new, one.SerializeToString())
    found = sync(server, tmp_path / "adapters")
    assert (found["error"], found["synced"]) == (None, [str(record)])
    assert found["url"] == f"{server.url}/team/lora-forge/runs/witness-2"
    assert list(server.runs) == ["witness-2"]
    assert not [name for name in server.runs["witness-2"]["files"] if "secret" in name]
    assert steps(server.state()["runs"]["witness-2"]["history"]) == [0, 1, 2]
    assert sync(server, tmp_path / "adapters")["changed"] is False


def test_what_was_recorded_offline_before_the_run_went_on_online_is_named_and_not_uploaded(server, tmp_path, capfd):
    record = log(server, tmp_path / "a", "witness-2", 3, "offline")
    log(server, tmp_path / "a", "witness-2", points=2)
    before = server.state()["runs"]["witness-2"]
    assert (before["state"], len(before["history"])) == ("finished", 2)
    given = {"path": str(tmp_path / "a"), "base_url": server.url, "api_key": KEY}
    for check in (True, False):
        told = module(capfd, "wandb_sync", check, **given)
        assert (told["changed"], told["synced"], told["left_out"]) == (False, [], [str(record)])
        [warning] = told["warnings"]
        assert f"W&B does not have {record}: it was recorded offline, and the run went on online" in str(warning)
    assert server.state()["runs"]["witness-2"] == before
    assert not [*record.glob("*.synced")]


def test_an_offline_record_that_was_cut_off_is_uploaded_with_the_next_one_and_not_missed(server, tmp_path):
    log(server, tmp_path / "a", "witness-2", 3, "offline", kill=True)
    log(server, tmp_path / "a", "witness-2", 2, "offline")
    found = sync(server, tmp_path / "a")
    assert (found["error"], len(found["synced"]), found["left_out"]) == (None, 2, [])
    assert steps(server.state()["runs"]["witness-2"]["history"]) == [0, 1, 2, 3, 4]
    found = sync(server, tmp_path / "a")
    assert (found["error"], found["synced"], found["left_out"]) == (None, [], [])


def test_a_run_that_w_and_b_lost_sight_of_is_uploaded_afterwards(server, tmp_path):
    server.fail(down=True, only="file_stream")
    record = log(server, tmp_path / "a", "witness-3", points=5, env={"WANDB_FINISH_TIMEOUT": "3"})
    assert server.struck
    server.fail()
    assert (server.state()["runs"]["witness-3"]["state"], server.runs["witness-3"]["history"]) == ("running", [])
    server.change("witness-3", heartbeat_age=301)
    assert ask(server, "witness-3")["runs"][0]["state"] == "crashed"
    found = sync(server, tmp_path / "a")
    assert (found["error"], found["changed"], found["synced"]) == (None, True, [str(record)])
    run = server.state()["runs"]["witness-3"]
    assert (run["state"], steps(run["history"])) == ("finished", [0, 1, 2, 3, 4])
    assert sync(server, tmp_path / "a")["changed"] is False


# --- records that are not whole ------------------------------------------------------------------------------------


def test_a_record_that_was_cut_off_is_read_and_uploaded_as_far_as_it_goes(server, tmp_path, capfd):
    record = log(server, tmp_path / "a", "witness-4", 20, "offline", kill=True)
    [file] = record.glob("*.wandb")
    whole, cut = wandb_records.read_records(record, TIME, history=99), tmp_path / "cut/run"
    [run] = whole["runs"]
    assert (run["state"], run["step"], steps(run["history"])) == ("unfinished", 19, list(range(20)))
    cut.mkdir(parents=True)
    (cut / file.name).write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    [run] = wandb_records.read_records(cut, TIME, history=99)["runs"]
    assert run["state"] == "unfinished"
    assert 0 < run["step"] < 19
    assert steps(run["history"]) == list(range(run["step"] + 1))

    # One that a crash left empty, and one that is none: the one has nothing to upload, the other is told.
    for name, content in (("empty", b""), ("none", b"something else, of some length" * 9)):
        (tmp_path / "cut" / name).mkdir()
        (tmp_path / "cut" / name / "run-x.wandb").write_bytes(content)
    given = {"path": str(tmp_path / "cut"), "base_url": server.url, "api_key": KEY}
    told = module(capfd, "wandb_sync", **given)
    assert (told["failed"], told["kind"], told["synced"]) == (True, "answer", [str(cut)])
    assert str(tmp_path / "cut/none/run-x.wandb") in told["msg"]
    there = server.state()["runs"]["witness-4"]
    assert (there["state"], steps(there["history"])) == ("failed", steps(run["history"]))
    shutil.rmtree(tmp_path / "cut/none")
    told = module(capfd, "wandb_sync", **given)
    assert (told["changed"], told["synced"]) == (False, [])
    [run] = wandb_records.read_records(tmp_path / "cut/empty", TIME)["runs"]
    assert (run["id"], run["state"], run["step"], run["error"]) == (None, "unfinished", None, None)


@pytest.mark.parametrize("name", ["wandb_run_info", "wandb_sync"])
def test_a_folder_that_is_not_there_is_told_and_one_without_records_is_nothing(name, tmp_path, capfd):
    option = {"wandb_run_info": "record", "wandb_sync": "path"}[name]
    told = module(capfd, name, **{option: str(tmp_path / "nowhere")})
    assert told["failed"]
    assert told["msg"].startswith(f"{tmp_path}/nowhere is no folder")
    told = module(capfd, name, **{option: str(tmp_path / "here")})
    assert (told["changed"], told.get("failed")) == (False, None)
    assert told.get("runs", told.get("synced")) == []


def test_without_the_client_it_says_how_to_get_it(tmp_path, capfd, monkeypatch):
    nothing = types.SimpleNamespace(util=types.SimpleNamespace(find_spec=lambda name: None))
    monkeypatch.setattr(wandb_client, "importlib", nothing)
    (tmp_path / "run-x.wandb").touch()
    for name, option in (("wandb_run_info", {"runs": ["x"]}), ("wandb_sync", {"path": str(tmp_path)})):
        told = module(capfd, name, **option, api_key=KEY)
        assert told["failed"]
        assert told["msg"].startswith("the package wandb is missing in the controller's environment")


# --- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "kind", "words"),
    [
        ({"down": True}, "server_down", "cannot be reached, or is out of order (Post"),
        ({"status": 503}, "server_down", "out of order (HTTP 503"),
        ({"status": 429}, "rate_limit", "takes no more requests for now (HTTP 429"),
        ({"bad_key": True}, "bad_key", "does not accept the key (user is not logged in). Make a new one"),
        ({"status": 404}, "answer", "an unusable answer (returned error 404"),
        ({"slow": 3600}, "timeout", "gave no answer in time"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_told_by_its_kind_and_in_time(faults, kind, words, server):
    server.new_run("witness-5")
    server.fail(**faults)
    found = ask(server, "witness-5", timeout=5 if kind == "timeout" else TIME)
    assert found["error"]["kind"] == kind
    assert f"W&B: {server.url}" in found["error"]["msg"]
    assert words in found["error"]["msg"]
    assert "\n" not in found["error"]["msg"]
    assert [run["error"] for run in found["runs"]] == [found["error"]]


def test_what_passes_is_not_even_noticed(server):
    server.new_run("witness-5")
    server.fail(status=500, times=2)
    found = ask(server, "witness-5")
    assert (found["error"], found["runs"][0]["state"]) == (None, "running")
    assert server.faults == wandb_server.FAULTS


def test_the_known_is_told_when_something_is_not(server, capfd):
    server.new_run("witness-5")
    server.new_run("other", project="elsewhere")
    given = {"base_url": server.url, "api_key": KEY}
    told = module(capfd, "wandb_run_info", runs=["nope", "witness-5", "other"], **given)
    assert (told["failed"], told["kind"]) == (True, "run_not_found")
    assert told["msg"].startswith(f"W&B: {server.url}, tester/lora-forge, nope, other: no such run.")
    assert [run["asked"] for run in told["runs"]] == ["nope", "witness-5", "other"]
    assert [run["state"] for run in told["runs"]] == [None, "running", None]
    assert [bool(run["error"]) for run in told["runs"]] == [True, False, True]
    told = module(capfd, "wandb_run_info", runs=["witness-5"], project="nix", **given)
    assert (told["kind"], told["msg"].partition(": no")[0]) == ("no_project", f"W&B: {server.url}, tester/nix")


def test_a_key_that_is_wrong_uploads_nothing_and_the_right_one_does_later(server, tmp_path, capfd):
    record = log(server, tmp_path / "a", "witness-6", 2, "offline")
    given = {"path": str(record), "base_url": server.url}
    for key in ("short", "9" * 40):
        told = module(capfd, "wandb_sync", api_key=key, **given)
        assert (told["failed"], told["changed"], told["kind"], told["synced"]) == (True, False, "bad_key", [])
        assert "9" * 40 not in json.dumps(told)
    assert not [*record.glob("*.synced"), *server.runs]
    told = module(capfd, "wandb_sync", api_key=KEY, entity="team", **given)
    assert (told["changed"], told["synced"]) == (True, [str(record)])
    assert told["url"] == f"{server.url}/team/lora-forge/runs/witness-6"
    assert server.runs["witness-6"]["entity"] == "team"


@pytest.mark.soak
def test_an_upload_that_breaks_off_is_told_and_made_good_by_the_next(server, tmp_path, monkeypatch):
    record = log(server, tmp_path / "a", "witness-7", 3, "offline")
    server.fail(status=500, only="file_stream")
    communicate = subprocess.Popen.communicate

    def until_refused(process: subprocess.Popen[str], timeout: float | None = None) -> tuple[str, str]:
        """Cut the time of an upload once it has met the fault: its client would go on trying for hours."""
        if timeout and "sync" in process.args:
            eventually(lambda: server.struck)
            timeout = 0.1
        return communicate(process, timeout=timeout)

    with monkeypatch.context() as patch:
        patch.setattr(wandb_client.subprocess.Popen, "communicate", until_refused)
        found = sync(server, record)
    assert (found["changed"], found["synced"]) == (False, [])
    assert found["error"]["kind"] == "timeout"
    assert str(record) in found["error"]["msg"]
    assert not [*record.glob("*.synced")]
    server.fail()
    found = sync(server, record)
    assert (found["error"], found["synced"]) == (None, [str(record)])
    run = server.state()["runs"]["witness-7"]
    assert (run["state"], steps(run["history"])) == ("finished", [0, 1, 2])


def test_the_key_is_taken_out_of_whatever_holds_it(server):
    server.new_run("witness-8")["config"] = {"env": {"value": {"WANDB_API_KEY": KEY, KEY: [f"Bearer {KEY}"]}}}
    found = ask(server, "witness-8")
    assert found["runs"][0]["config"] == {"env": {"WANDB_API_KEY": "<key>", "<key>": ["Bearer <key>"]}}

    def refuse(**_: Any) -> None:
        raise RuntimeError(f"api:{KEY}@host: {basic(KEY)} {'x' * 150} {KEY}")

    client = types.SimpleNamespace(Api=refuse)
    pieces = list(wandb_query._answers(client, "http://w", ["x"], "", "p", KEY, 20, 0))
    assert pieces[-1]["error"]["kind"] == "answer"
    assert "api:<key>@host" in pieces[-1]["error"]["msg"]
    assert KEY[:12] not in repr(pieces)
    assert basic(KEY)[:12] not in repr(pieces)


# --- clocks and lies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [-7200, 7200])
def test_the_age_of_a_heartbeat_is_by_the_servers_clock(skew, server, monkeypatch):
    urlopen = urllib.request.urlopen  # in the process that asks, too: it is forked from this one
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: urlopen(request, timeout=TIME))
    server.new_run("witness-9")
    server.change("witness-9", heartbeat_age=120)
    beat = server.runs["witness-9"]["heartbeat"]
    server.fail(skew=skew)
    [run] = ask(server, "witness-9")["runs"]
    assert 118 <= run["heartbeat_age"] <= time.time() - beat + 2  # both clocks are told in whole seconds
    assert abs(wandb_client.parse_time(run["heartbeat_at"]) - (beat + skew)) <= 1


def test_w_and_b_can_be_made_to_lie_and_of_two_with_one_name_the_newest_is_meant(server):
    server.new_run("old")
    server.new_run("new")
    for run_id in ("old", "new"):
        server.change(run_id, displayName="witness", summary={"_step": 7, "loss": float("nan"), "_wandb": {}})
    server.change("new", state="running", heartbeat_age=9999, complete=True, exit_code=0)
    [run] = ask(server, "witness")["runs"]
    assert (run["id"], run["state"], run["step"]) == ("new", "running", 7)
    assert run["summary"] == {"_step": 7, "loss": "nan"}
    assert run["heartbeat_age"] > 9000
    server.change("new", state=None)
    assert ask(server, "witness")["runs"][0]["state"] == "finished"
    assert ask(server, "old")["runs"][0]["id"] == "old"


# --- the server in memory ------------------------------------------------------------------------------------------


def basic(key: str) -> str:
    """Write a key as it goes over the wire."""
    return base64.b64encode(f"api:{key}".encode()).decode()


def post(server: WandbServer, path: str, body: dict[str, Any], key: str = KEY) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Basic {basic(key)}", "Content-Type": "application/json"}
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=TIME) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refusal:
        return refusal.code, json.load(refusal)


@pytest.mark.parametrize(
    ("path", "query", "gap"),
    [
        ("/graphql", "query Strange { viewer { id } }", "operation Strange"),
        ("/graphql", "query Viewer { viewer { id shoeSize } }", "field shoeSize"),
        ("/graphql", 'query Runs($a: B) { project(name: $a) { runs(filters: "{}") { more } } }', "order None"),
        ("/strange", "", "path POST /strange"),
    ],
)  # fmt: skip
def test_the_server_refuses_loudly_what_it_does_not_know(path, query, gap):
    with WandbServer() as server:
        status, said = post(server, path, {"query": query, "variables": {"entity": "a", "project": "b"}})
        assert (status, server.unknown) == (400, [gap])
        assert gap in said["errors"][0]["message"]
        assert server.state()["unknown"] == [gap]


def test_the_server_answers_in_the_form_of_the_question(server):
    query = """query Viewer { me: viewer { ...Mine teams(first: 1) { edges { node { name } } } } } # all of them
        fragment Mine on User { id who: username }"""
    status, said = post(server, "/graphql", {"query": query})
    teams = {"edges": [{"node": {"name": "tester"}}, {"node": {"name": "team"}}]}
    assert (status, said) == (200, {"data": {"me": {"id": "User:1", "who": "tester", "teams": teams}}})
    assert post(server, "/graphql", {"query": query}, "9" * 40)[0] == 401


def test_the_servers_history_is_by_step_and_its_lines_by_offset(server):
    server.new_run("r")
    for offset, steps_sent in ((0, [0, 1]), (1, [1, 2]), (3, [2, 3])):
        lines = [json.dumps({"_step": step, "sent": offset}) for step in steps_sent]
        stream = {"files": {"wandb-history.jsonl": {"offset": offset, "content": lines}}}
        assert post(server, "/files/tester/lora-forge/r/file_stream", stream)[0] == 200
    assert len(server.runs["r"]["history"]) == 5
    points = server.state()["runs"]["r"]["history"]
    assert [(point["_step"], point["sent"]) for point in points] == [(0, 0), (1, 1), (2, 3), (3, 3)]
    assert post(server, "/files/tester/lora-forge/nix/file_stream", {})[0] == 404


def test_the_server_is_a_program_whose_faults_are_switched_over_http(tmp_path):
    program = pathlib.Path(wandb_server.__file__)
    where = tmp_path / "url"
    command = [sys.executable, str(program), "serve", "--url-file", str(where), "--crash-after", "3600"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        eventually(where.exists)
        server: Any = types.SimpleNamespace(url=where.read_text())
        assert post(server, "/sim/faults", {"status": 429, "only": "graphql", "times": 1})[1]["status"] == 429
        upsert = {"query": "mutation UpsertBucket { upsertBucket { inserted } }", "variables": {"name": "r"}}
        made = {"data": {"upsertBucket": {"inserted": True}}}
        assert [post(server, "/graphql", upsert) for _ in range(2)] == [(429, {"error": "fault 429"}), (200, made)]
        said = collections.Counter()
        for changes in ({}, {"heartbeat_age": 3601}, {"state": "running"}, {"state": None}):
            assert post(server, "/sim/runs/r", changes)[0] == 200
            with urllib.request.urlopen(f"{server.url}/sim/state", timeout=TIME) as answer:
                said[json.load(answer)["runs"]["r"]["state"]] += 1
        assert said == {"running": 2, "crashed": 2}
        assert post(server, "/sim/faults", {"on_fire": True})[0] == 400
        assert post(server, "/sim/runs/nix", {"state": "running"})[0] == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIME) == 0
    finally:
        process.kill()
        process.wait()
