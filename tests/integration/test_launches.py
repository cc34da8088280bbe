"""Several runs that are launched on one host together, with real Ansible and hosts behind a stand-in for ssh."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import pathlib
import signal
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest
import rundir
from ansible.module_utils.lora_forge.planning.run_record import read_launched, read_record
from ansible.module_utils.lora_forge.planning.turns import run_files
from hook import serving
from hostile import PATIENCE, Played, Stage
from lab import eventually
from safetensors.numpy import save
from seen import Seen

AGENTS = ("witness", "mayor", "deacon", "polecat", "refinery")
LAUNCH = "playbooks/launch.yml"


class Fleet(Stage):
    """Hosts whose trainings go on until the test is over."""

    def host(self, name: str, *agents: str, **variables: object) -> pathlib.Path:
        root = super().host(name, *agents, **variables)
        python = next(root.glob("env/*/bin/python"))
        python.write_text(python.read_text().replace("exit 1;;", "exec sleep 600;;"))
        for agent in agents:
            self.model(name, agent)
        return root

    def launch(self, host: str, *agents: str, **environment: str) -> Played:
        return self.play(LAUNCH, "--limit", host, "-e", f"role={','.join(agents)}", **environment)

    def run_dir(self, host: str, agent: str) -> pathlib.Path:
        return self.root(host) / "runs" / self.planned(agent, host).run_id

    def names(self, host: str) -> collections.Counter[str]:
        """Count the connections of a host, by what they were for."""
        path = self.folder / "calls" / f"{host}.jsonl"
        return collections.Counter(json.loads(line)["name"] for line in path.read_text().splitlines())

    def forget(self, host: str) -> None:
        """Let a host be honest, and forget how it was called."""
        self.wrote.pop(host, None)
        (self.folder / "faces" / f"{host}.json").unlink(missing_ok=True)
        (self.folder / "calls" / f"{host}.jsonl").unlink(missing_ok=True)

    def turns(self, host: str) -> dict[str, int]:
        """Return the turns of the runs that a host was launched with, in their order."""
        noted = [rundir.read_json(path) for path in self.root(host).glob("runs/*/run.json") if path.is_file()]
        return {run["agent"]: run["turn"] for run in sorted(noted, key=lambda run: run.get("turn", 0))}

    def close(self) -> None:
        """Kill what trains, supervisors first."""
        for run_dir in self.folder.glob("hosts/*/root/runs/*"):
            noted = rundir.read_json(run_dir / "status.json").get("supervisor")
            if rundir.is_alive(noted):
                os.kill(noted["pid"], signal.SIGKILL)
            for pid in rundir.run_processes(run_dir):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def fleet(tmp_path: pathlib.Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.close()


def test_connections_do_not_grow_with_the_runs_of_a_host(fleet: Fleet) -> None:
    fleet.host("one", "witness")
    fleet.host("many", *AGENTS[1:])
    for host, agents in (("one", AGENTS[:1]), ("many", AGENTS[1:])):
        predicted = fleet.play(LAUNCH, "--check", "--limit", host, "-e", f"role={','.join(agents)}")
        assert predicted.code == 0, predicted.text
        assert not list(fleet.root(host).glob("runs/*"))
        assert not [agent for agent in agents if list(fleet.output.glob(f"runs/{agent}-*.json"))]
        fleet.forget(host)
        played = fleet.launch(host, *agents)
        assert played.code == 0, played.text
        assert len(played.lines(" started (process; attach: ")) == len(agents)
        assert len(played.lines(f"Launch ── {host}: ")) == len(played.lines("Launch ── ")) == 1, played.text
    assert fleet.names("many") == fleet.names("one")
    asked = {name: count for name, count in fleet.names("many").items() if name in ("rsync", "module:training_runs")}
    assert asked == {"rsync": 2, "module:training_runs": 1}  # the one rsync is the provisioning's
    assert list(fleet.turns("many").values()) == [1, 2, 3, 4]
    planned = [run["agent"] for run in json.loads((fleet.output / "plan.json").read_text())["runs"]]
    assert list(fleet.turns("many")) == planned, "in the order of the plan"
    for agent in AGENTS[1:]:
        run = fleet.planned(agent, "many")
        kept = read_launched(fleet.output, run.run_id)
        assert kept is not None, "what comes back will be held to it"
        assert (kept.recipe, kept.launched.root) == (run.recipe, str(fleet.root("many")))
        assert [file.sha256 for file in kept.datasets] == [file.sha256 for file in run.datasets]
    fleet.forget("many")
    again = fleet.play(LAUNCH, "-v", "--limit", "many", "-e", f"role={','.join(AGENTS[1:])}")
    assert (again.code, len(again.lines("already; attached to it"))) == (0, 4), again.text
    assert "many                       : ok=" in again.text
    assert "changed=0" in again.lines("many                       : ok=")[0]
    assert {"rsync": fleet.names("many")["rsync"], "start": fleet.names("many")["module:training_runs"]} == {
        "rsync": 1, "start": 0
    }  # fmt: skip


def test_what_goes_wrong_with_one_is_its_own_failure_and_the_others_start(fleet: Fleet, seen: Seen) -> None:
    root = fleet.host("many", *AGENTS)
    fleet.finished("many", "witness")
    (fleet.run_dir("many", "mayor") / "incoming/axolotl.yml/full").mkdir(parents=True)  # nothing can be sent to it
    (fleet.run_dir("many", "deacon") / "run.json").mkdir(parents=True)  # nor started here
    taken = fleet.planned("polecat", "many").run_id
    elsewhere = {"run_id": taken, "trainer": "other", "lane": 0, "state": "launched", "final": False, "noted_at": 4e9}
    hooks = fleet.write_inventory().parent / "hooks"
    hooks.mkdir()
    copy = {"content": json.dumps(elsewhere), "dest": str(fleet.output / f"runs/{taken}.json"), "mode": "0600"}
    tasks = [{"name": "Place it elsewhere", "ansible.builtin.copy": copy}]
    (hooks / "before_provision.yml").write_text(json.dumps(tasks))
    (fleet.output / "runs").mkdir(parents=True)
    with serving() as hook:
        played = fleet.launch("many", *AGENTS, LORA_FORGE_NOTIFY_URL=hook.url)
    errors = played.lines("ERROR  many: ")
    assert len(errors) == 3, played.text
    assert [line for line in errors if "the transfer with many failed" in line]
    assert [line for line in errors if "Is a directory" in line]
    assert [line for line in errors if f"{taken} is not started: another command has placed it on other meanw" in line]
    started = played.lines(" started (process; attach: ")
    assert (len(started), fleet.planned("refinery", "many").run_id in started[0]) == (1, True), played.text
    records = {agent: read_record(fleet.output, fleet.planned(agent, "many").run_id) for agent in AGENTS}
    assert {agent: bool(record.failures) for agent, record in records.items()} == {
        "witness": False, "mayor": True, "deacon": True, "polecat": True, "refinery": False
    }  # fmt: skip
    assert records["polecat"].failures["many"]["refused"] is True
    assert {agent: record.hosts["many"]["started"] for agent, record in records.items() if record.hosts} == {
        "witness": False, "refinery": True
    }  # fmt: skip
    assert sorted((told["event"], told["agent"]) for told in hook.told) == [("failed", "deacon"), ("failed", "mayor")]
    assert not (root / "runs" / taken / "programs").exists()
    seen(
        "of runs launched together one cannot be sent, one cannot start, one is another command's",
        "1 host",
        "three errors, each noted for its run alone; the finished one was attached to, the last one started",
    )


@pytest.mark.parametrize("lost", ["rsync", "module:training_runs"])
def test_a_connection_lost_in_a_launch_leaves_nothing_that_the_same_command_does_not_take_on(
    fleet: Fleet, lost: str, seen: Seen
) -> None:
    fleet.host("many", *AGENTS[:3])
    # The first transfer is the provisioning's. What was called has started all of them, and nobody hears of it.
    fleet.face("many", lost, "close" if lost == "rsync" else "lose", after=1 if lost == "rsync" else 0)
    played = fleet.launch("many", *AGENTS[:3])
    assert played.lines("ERROR  many"), played.text
    assert "Traceback" not in played.text
    runs = {agent: fleet.planned(agent, "many").run_id for agent in AGENTS[:3]}
    records = {agent: read_record(fleet.output, run_id) for agent, run_id in runs.items()}
    assert all(record.failures and not record.hosts for record in records.values())
    begun = [bool(rundir.read_json(fleet.run_dir("many", agent) / "run.json")) for agent in runs]
    assert begun == [lost != "rsync"] * 3
    launches = [rundir.read_json(fleet.run_dir("many", agent) / "run.json").get("launch") for agent in runs]
    fleet.forget("many")
    again = fleet.launch("many", *AGENTS[:3])
    assert again.code == 0, again.text
    assert len(again.lines("started (process" if lost == "rsync" else "already; attached to it")) == 3, again.text
    now = [rundir.read_json(fleet.run_dir("many", agent) / "run.json")["launch"] for agent in runs]
    assert lost == "rsync" or now == launches
    words = "of its files" if lost == "rsync" else "of the answer to its starts"
    seen(
        f"SSH is cut as several runs are launched: in the midst {words}",
        "1 host",
        "an error for all of them; the same command " + ("started each" if lost == "rsync" else "attached to each"),
    )


def test_what_another_command_has_started_meanwhile_is_not_touched(fleet: Fleet, seen: Seen) -> None:
    """As the other one starts the run, this one has looked, and has a checkpoint and another axolotl.yml to bring."""
    fleet.host("gpu", "witness")
    run_dir = fleet.run_dir("gpu", "witness")
    kept = fleet.output / "runs" / run_dir.name
    weights = {"adapter_model.safetensors": save({"lora_B": np.ones((2, 2), np.float32)}), "optimizer.pt": b"1"}
    fleet.checkpoint(kept, 5, **weights)
    rundir.append_event(kept / "metrics.jsonl", "log", step=5, planned=12, loss=3.0)
    logs = [fleet.folder / name for name in ("late.txt", "other.txt")]
    with contextlib.ExitStack() as left:

        def start(log: pathlib.Path, *options: str) -> subprocess.Popen[bytes]:
            process = fleet.start(log, LAUNCH, "-e", "role=witness", *options)
            left.callback(fleet.end, process)
            return process

        with run_files(fleet.output, run_dir.name):  # until the other one has started it
            late = start(logs[0], "-e", "run_wandb=offline")
            waits = f"another command fetches or delivers {run_dir.name}: waiting for it"
            eventually(lambda: late.poll() is not None or waits in logs[0].read_text())
            other = start(logs[1], "-e", f"output_dir={fleet.folder}/tmp/other")
            assert other.wait(PATIENCE) == 0, logs[1].read_text()
            assert " started (process; attach: " in logs[1].read_text()
            fleet.checkpoint(run_dir, 8, **weights)
            for step in range(1, 9):
                rundir.append_event(run_dir / "metrics.jsonl", "log", step=step, planned=12, loss=3.0)
            before = files(run_dir)
        assert late.wait(PATIENCE) == 0, logs[0].read_text()
    said = logs[0].read_text()
    after = files(run_dir)
    moving = {"status.json", "supervisor.log", ".now"}  # the supervisor's own
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)} - moving
    assert not changed, said
    assert rundir.last_complete(run_dir / "output") == 8
    assert f"gpu: {run_dir.name} was started by another command; attached to it" in said
    record = read_record(fleet.output, run_dir.name)
    assert (record.hosts["gpu"]["started"], record.failures) == (False, {})
    seen(
        "another command starts a run while this one is bringing its files and a checkpoint",
        "1 host",
        "none of its files changed; attached to it",
    )


def files(run_dir: pathlib.Path) -> dict[str, tuple[int, bytes]]:
    """Read what is in a run directory, by the paths below it."""
    found = [path for path in run_dir.rglob("*") if path.is_file()]
    return {str(path.relative_to(run_dir)): (path.stat().st_ino, path.read_bytes()) for path in found}
