"""W&B for real: the client in Axolotl and the client in the modules, and a local server between them."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

import pytest
import rundir
from seen import Seen
from wandb_server import FAULTS, KEY, WandbServer

from .conftest import Checkout, eventually, hold, release

WITNESS = ("-e", "role=witness")
SHORT = {"max_steps": 4, "save_steps": 2, "eval_steps": 4, "warmup_steps": 1, "gradient_accumulation_steps": 1}
# Axolotl keeps its configuration there as an artifact: not covered by the server, and no training ends by it.
ARTIFACTS = {"operation ArtifactType", "operation CreateArtifact"}
LONG = {**SHORT, "max_steps": 8, "eval_steps": 8, "plugins": ["hold.Hold"]}


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as made:
        yield made
        assert set(made.unknown) <= ARTIFACTS, "the client asked for what the server does not know"


def holding(folder: pathlib.Path, secret: str) -> list[pathlib.Path]:
    """List the files below a folder that hold a secret."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if "env/" not in str(path) and secret.encode() in path.read_bytes()]


@pytest.mark.soak
def test_one_run_there_for_one_run_here_through_a_dead_server_and_a_stop(
    checkout: Checkout, server: WandbServer, seen: Seen
) -> None:
    checkout.environment = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}
    long = (*WITNESS, "-e", json.dumps({"recipe": LONG}))
    run_dir = checkout.run_dir(checkout.planned("witness", *long))
    hold(run_dir, 2)
    code, text = checkout.play(*long, "-e", "detach=true")
    assert code == 0, text
    run_id = run_dir.name
    for status in (429, 500):  # while the training begins to log: the client tries again
        server.fail(status=status, times=1, only="graphql")
        eventually(lambda: server.faults == FAULTS, f"a request that met {status}")

    def step() -> int:
        events, _ = rundir.read_events(run_dir / "metrics.jsonl")
        return max((event["step"] for event in events if event["event"] == "log"), default=0)

    eventually(lambda: server.runs.get(run_id, {}).get("history"), "a point of the history")
    eventually(lambda: step() == 2, "two steps")
    run = server.runs[run_id]
    assert run["tags"] == ["witness", "localhost", "rehearsal"]
    noted = run["config"]["lora_forge"]["value"]
    assert (noted["run_id"], noted["fingerprint"]) == (run_id, checkout.plan()["fingerprint"])
    assert noted["recipe_sha256"] == checkout.plan()["recipe_sha256"]
    assert noted["datasets"] == [one["sha256"] for one in checkout.plan()["datasets"]]

    server.change(run_id, state="crashed")  # as W&B says when heartbeats came late
    code, text = checkout.play(*long, playbook="playbooks/status.yml")
    assert code == 0, text
    assert f"{run_id}: W&B says crashed, but the process is alive, at step " in text
    (row,) = rundir.read_json(checkout.home / "output/status.json")["runs"]
    assert (row["verdict"], row["state"]) == ("disputed", "running")
    seen("W&B says «crashed» of a run that lives", "localhost", "disputed, and the sentence why; the run goes on")
    server.change(run_id, state=None)

    server.fail(down=True)
    hold(run_dir, 4)
    eventually(lambda: step() == 4, "two steps with W&B down")
    code, text = checkout.play(*long, playbook="playbooks/stop.yml")
    assert code == 0, text
    code, text = checkout.play(*long, playbook="playbooks/status.yml")
    assert code == 0, text
    assert "W&B" in text
    assert f"{run_id}  localhost  " in text
    server.fail()
    reached = step()
    assert reached == 5
    release(run_dir)

    code, text = checkout.play(*long)
    assert code == 0, text
    assert checkout.manifest()["verdict"] == "verified"
    assert checkout.manifest()["wandb"]["url"] == f"{server.url}/tester/lora-forge/runs/{run_id}"
    run = server.state()["runs"][run_id]
    assert (run["state"], run["exit_code"]) == ("finished", 0)
    starts = [event for event in rundir.read_events(run_dir / "metrics.jsonl")[0] if event["event"] == "wandb"]
    assert [(start["mode"], start["run"]) for start in starts] == [("online", f"tester/lora-forge/{run_id}")] * 2
    assert run["summary"]["train/global_step"] == 8
    assert list(server.runs) == [run_id]
    assert holding(checkout.home, KEY) == []
    seen(
        "W&B goes down in mid-run",
        "localhost",
        f"the training went on to step {reached}; stopped, and resumed with W&B back: the same W&B run, finished",
    )

    # What is proven stays so, whatever W&B says.
    server.change(run_id, state="crashed")
    code, text = checkout.play(*WITNESS, playbook="playbooks/status.yml")
    assert code == 0, text
    assert [run["verdict"] for run in rundir.read_json(checkout.home / "output/status.json")["runs"]] == ["verified"]


def test_a_key_that_is_wrong_is_found_before_anything_starts(checkout: Checkout, server: WandbServer) -> None:
    checkout.environment = {"WANDB_API_KEY": "x" * 40, "WANDB_BASE_URL": server.url}
    code, text = checkout.play(*WITNESS)
    assert code != 0
    assert "WANDB_API_KEY" in text
    assert "x" * 40 not in text
    assert not (checkout.trainer / "runs").exists()
    # To stop a run, or to look at one, no key is needed.
    code, text = checkout.play(*WITNESS, playbook="playbooks/stop.yml")
    assert code == 0, text


@pytest.mark.soak
def test_offline_when_wandb_is_down_and_uploaded_once_the_run_is_collected(
    checkout: Checkout, server: WandbServer, seen: Seen
) -> None:
    checkout.environment = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}
    short = (*WITNESS, "-e", json.dumps({"recipe": SHORT}))
    server.fail(down=True)
    code, text = checkout.play(*short, "-e", "detach=true")
    assert code == 0, text
    assert "W&B" in text, "the plan says that W&B does not answer"
    run_id = checkout.plan()["run_id"]
    events = checkout.run_dir(run_id) / "metrics.jsonl"

    def mode() -> list[str]:
        return [event["mode"] for event in rundir.read_events(events)[0] if event["event"] == "wandb"]

    eventually(mode, "a W&B run")
    assert mode() == ["offline"]
    server.fail()
    code, text = checkout.play(*short)
    assert code == 0, text
    assert checkout.manifest()["verdict"] == "verified"
    run = server.state()["runs"][run_id]
    assert (run["state"], run["summary"]["train/global_step"]) == ("finished", 4)
    assert run["tags"] == ["witness", "localhost", "rehearsal"]
    assert checkout.manifest()["wandb"]["mode"] == "offline"
    assert "W&B could not be had at the start: the run is recorded offline" in text
    seen("W&B is down when a training begins", "localhost", "recorded offline; verified, then uploaded")
