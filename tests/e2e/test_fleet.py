"""A fleet: three hosts over SSH, one of them with two lanes; all real but the training itself, which takes a second."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import rundir
import yaml
from fleet_hosts import DEAD_PORT, ENVIRONMENT, PORT, Hosts, container

from .conftest import eventually, stand_in

ALL = ["crew", "deacon", "gastown", "mayor", "polecat", "refinery", "witness"]


class Fleet:
    """The hosts, an inventory of them that a test may change, and what the controller has."""

    def __init__(self, hosts: Hosts):
        self.hosts = hosts
        hosts.reset()
        self.changes: dict[str, dict[str, Any]] = {}
        self.groups: dict[str, list[str]] = {}

    def change(self, **hosts: dict[str, Any]) -> None:
        """Give hosts other variables, by the names they have without «host-»."""
        self.changes = {f"host-{name[1:]}": variables for name, variables in hosts.items()}

    def play(self, playbook: str, *arguments: str, dead: bool = False) -> tuple[int, str]:
        self.hosts.write_inventory("fleet.yml", 3, DEAD_PORT if dead else PORT)
        path = self.hosts.home / "fleet.yml"
        inventory = yaml.safe_load(path.read_text())
        for name, variables in self.changes.items():
            inventory["trainers"]["hosts"][name] |= variables
        inventory |= {name: {"hosts": {host: {} for host in hosts}} for name, hosts in self.groups.items()}
        path.write_text(yaml.safe_dump(inventory))
        command = ["ansible-playbook", "-i", str(path), playbook, *arguments]
        taken = self.hosts.clock(command, {"ANSIBLE_LOCAL_TEMP": str(self.hosts.home / "tmp")}, fails=True)
        return taken.code, taken.text

    def planned(self, roles: str) -> dict[str, dict[str, Any]]:
        """Return the planned runs by agent."""
        code, text = self.play("playbooks/plan.yml", "-e", f"role={roles}")
        assert code == 0, text
        return {run["agent"]: run for run in rundir.read_json(self.hosts.output / "plan.json")["runs"]}

    def run_dir(self, number: int, run_id: str) -> pathlib.Path:
        """Return a run's directory on a host, made before its launch for what a test puts there, with its programs."""
        path = self.hosts.root(number) / "runs" / run_id
        (path / rundir.PROGRAMS).mkdir(parents=True, exist_ok=True)
        return path

    def placed(self) -> dict[str, tuple[str, int]]:
        """Return where each run was launched: trainer and lane, by agent."""
        noted = [rundir.read_json(path) for path in (self.hosts.output / "runs").glob("*.json")]
        return {one["run_id"].partition("-")[0]: (one["trainer"], one["lane"]) for one in noted if "trainer" in one}

    def status(self, number: int, agent: str) -> dict[str, Any]:
        (run_dir,) = (self.hosts.root(number) / "runs").glob(f"{agent}-*")
        return rundir.read_json(run_dir / "status.json")

    def verified(self) -> list[str]:
        found = (self.hosts.output / "adapters").glob("*/latest/manifest.json")
        return sorted(path.parts[-3] for path in found if json.loads(path.read_text())["verdict"] == "verified")


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with Hosts(3, stub=1.5) as made:
        yield made


@pytest.fixture
def fleet(hosts: Hosts) -> Fleet:
    return Fleet(hosts)


@pytest.mark.soak
def test_one_host_is_lost_and_the_others_go_on(fleet: Fleet) -> None:
    """No role: the whole inventory. One host declares agents, one has two lanes, one cannot be written to."""
    fleet.change(
        h0={"run_lanes": ["cpu-0", "cpu-1"]}, h1={"agents": ["mayor", "deacon"]}, h2={"trainer_root": "/proc/forge"}
    )
    code, text = fleet.play("playbooks/plan.yml")
    assert code == 0, text
    assert "host-0 lane 1: " in text
    assert "host-0 lane 2: " in text
    assert "host-1: deacon, mayor, one after the other; about " in text
    planned = {run["agent"]: run for run in rundir.read_json(fleet.hosts.output / "plan.json")["runs"]}
    lost = [agent for agent, run in planned.items() if run["trainer"] == "host-2"]
    assert lost
    assert not (fleet.hosts.root(0) / "runs").exists(), "the plan touched a host"

    code, text = fleet.play("train.yml")
    assert code != 0, text
    assert fleet.verified() == sorted(set(ALL) - set(lost)), text
    assert fleet.placed() == {agent: (planned[agent]["trainer"], planned[agent]["lane"]) for agent in fleet.verified()}
    for agent in lost:
        assert f"{agent} is not ready: {planned[agent]['run_id']} on host-2: host-2: " in text
    assert f"{7 - len(lost)} of 7 are verified. The same command goes on with the others" in text
    assert "Traceback" not in text
    on_first = [(agent, run["lane"]) for agent, run in planned.items() if run["trainer"] == "host-0"]
    assert {lane for _, lane in on_first} == {0, 1}
    assert all(fleet.status(0, agent)["lane"] == f"cpu-{lane}" for agent, lane in on_first)

    code, text = fleet.play("train.yml", "-e", "move=host-2")
    assert code == 0, text
    assert fleet.verified() == ALL
    launched = [agent for agent in ALL if f"{agent}-" in text and f": {planned[agent]['run_id']} started" in text]
    assert sorted(launched) == sorted(lost), "what was there already was trained again"
    assert not {"host-2"} & {trainer for trainer, _ in fleet.placed().values()}

    shutil.rmtree(fleet.hosts.output / "adapters")
    code, text = fleet.play("playbooks/collect.yml")  # from wherever each was trained
    assert code == 0, text
    assert fleet.verified() == ALL

    code, text = fleet.play("train.yml", dead=True)  # a connection to a host fails
    assert code == 0, text
    assert text.count("is ready already") == 7


def test_a_run_that_fails_stops_no_other_one_on_its_host(fleet: Fleet) -> None:
    fleet.change(h1={"agents": ["mayor"]}, h2={"agents": ["mayor"]})
    fleet.play("playbooks/plan.yml", "-e", "role=crew,witness")
    runs = {run["agent"]: run for run in rundir.read_json(fleet.hosts.output / "plan.json")["runs"]}
    assert {run["trainer"] for run in runs.values()} == {"host-0"}
    crash = fleet.hosts.root(0) / "runs" / runs["crew"]["run_id"] / "crash"
    crash.parent.mkdir(parents=True)
    crash.touch()
    code, text = fleet.play("train.yml", "-e", "role=crew,witness")
    assert code != 0, text
    assert fleet.verified() == ["witness"], text
    assert f"crew is not ready: {runs['crew']['run_id']} on host-0: " in text
    assert "RuntimeError: made to crash" in " ".join(text.split()), text
    crash.unlink()
    code, text = fleet.play("train.yml", "-e", "role=crew,witness")
    assert code == 0, text
    assert fleet.verified() == ["crew", "witness"]


def test_a_sweep_is_spread_ranked_and_free_the_second_time(fleet: Fleet) -> None:
    grid = json.dumps({"sweep": {"lora_r": [8, 16, 32], "lora_alpha": [16, 32]}})
    code, text = fleet.play("playbooks/sweep.yml", "-e", "role=witness", "-e", grid)
    assert code == 0, text
    runs = rundir.read_json(fleet.hosts.output / "plan.json")["runs"]
    assert sorted(run["trainer"] for run in runs) == [f"host-{number}" for number in (0, 0, 1, 1, 2, 2)]
    assert fleet.verified() == [], "a sweep moved latest by itself"
    board = [line.split() for line in text.splitlines() if " lora_alpha " in line and "witness-" in line]
    places = [line[0] for line in board if line[0].isdigit()]
    assert places == ["1", "2", "3", "4", "5", "6"], text

    code, text = fleet.play("playbooks/sweep.yml", "-e", "role=witness", "-e", grid, "-e", "promote=true", dead=True)
    assert code == 0, text
    best = next(run["run_id"] for run in runs if run["variant"] == {"lora_r": 32, "lora_alpha": 32})
    assert (fleet.hosts.output / "adapters/witness/latest").resolve().name == best
    assert f"latest points to {best}" in text
    code, text = fleet.play("playbooks/status.yml", "-e", "role=witness")
    assert code == 0, text
    assert "6 of 6 verified" in text
    [first] = [line for line in text.splitlines() if line.split()[:2] == ["1", "eval"]]
    assert f"lora_r 32, lora_alpha 32  {best}" in first
    code, text = fleet.play("playbooks/report.yml", "-e", "role=witness")
    assert code == 0, text
    page = (fleet.hosts.output / "report.html").read_text()
    assert page.index("lora_r 32, lora_alpha 32<") < page.index("lora_r 8, lora_alpha 16<")


def begun(run_dir: pathlib.Path) -> bool:
    return any(event["event"] == "begin" for event in rundir.read_events(run_dir / "metrics.jsonl")[0])


@pytest.mark.soak
def test_a_host_that_does_not_answer_any_more_is_given_up(fleet: Fleet) -> None:
    """It has a run, which trains on, as far as anybody knows; the others go on, and so does its run elsewhere."""
    roles = "crew,mayor,witness"
    planned = fleet.planned(roles)
    [lost] = [agent for agent, run in planned.items() if run["trainer"] == "host-1"]
    run_dir = fleet.run_dir(1, planned[lost]["run_id"])
    (run_dir / "hold").touch()
    code, text = fleet.play("playbooks/launch.yml", "-e", f"role={roles}")
    assert code == 0, text
    assert text.count("with the same options watches and collects it") == 3
    eventually(lambda: begun(run_dir), "its first step")

    fleet.change(h1={"ansible_port": DEAD_PORT})
    code, text = fleet.play("train.yml", "-e", f"role={roles}")
    assert code != 0, text
    assert fleet.verified() == sorted({"crew", "mayor", "witness"} - {lost}), text
    said = f"{lost} is not ready: {planned[lost]['run_id']} on host-1: host-1 does not answer: "
    assert said in text
    assert f"port {DEAD_PORT}: Connection refused" in text
    assert "2 of 3 are verified" in text
    assert fleet.placed()[lost] == ("host-1", 0)

    code, text = fleet.play("train.yml", "-e", f"role={roles}", "-e", "move=host-1")
    assert code == 0, text
    assert fleet.verified() == ["crew", "mayor", "witness"]
    assert fleet.placed()[lost][0] != "host-1"
    assert fleet.status(1, lost)["state"] == "running"
    (run_dir / "hold").unlink()
    eventually(lambda: fleet.status(1, lost)["state"] == "finished", "the end of the one that was given up")


@pytest.mark.soak
def test_lanes_train_at_once(fleet: Fleet) -> None:
    fleet.change(h0={"run_lanes": ["cpu-0", "cpu-1"]}, h1={"agents": ["witness"]}, h2={"agents": ["witness"]})
    runs = [fleet.run_dir(0, run["run_id"]) for run in fleet.planned("crew,mayor").values()]
    for run_dir in runs:
        (run_dir / "hold").touch()
    code, text = fleet.play("playbooks/launch.yml", "-e", "role=crew,mayor")
    assert code == 0, text
    eventually(lambda: all(map(begun, runs)), "both at once")
    assert {fleet.status(0, agent)["lane"] for agent in ("crew", "mayor")} == {"cpu-0", "cpu-1"}
    for run_dir in runs:
        (run_dir / "hold").unlink()
    code, text = fleet.play("train.yml", "-e", "role=crew,mayor")
    assert code == 0, text
    assert fleet.verified() == ["crew", "mayor"]


@pytest.mark.soak
def test_a_gang_trains_together_or_not_at_all(fleet: Fleet) -> None:
    """Two runs of two hosts through torchrun, one after the other, to their adapters; and one host that is not fit."""

    def member(number: int, **changes: Any) -> dict[str, Any]:
        command = ["podman", "inspect", "--format", "{{.NetworkSettings.IPAddress}}", container(number)]
        address = subprocess.check_output(command, env=ENVIRONMENT, text=True).strip()
        agents = ["crew", "deacon"]
        return {"run_hosts": 2, "run_address": address, "run_module": "stub_axolotl", "agents": agents, **changes}

    fleet.groups = {"pair": ["host-1", "host-2"]}
    fleet.change(h0={"agents": ["mayor"]}, h1=member(1), h2=member(2, trainer_root="/proc/forge"))
    planned = fleet.planned("crew,deacon")
    run_id = planned["crew"]["run_id"]
    for number in (1, 2):
        for run in planned.values():
            stand_in(fleet.run_dir(number, run["run_id"]))
    for detach in ("true", "false"):
        code, text = fleet.play("train.yml", "-e", "role=crew", "-e", f"detach={detach}")
        assert code != 0, text
        assert f"crew is not ready: {run_id} on host-1: host-2: " in text
        assert fleet.status(1, "crew").get("state") in (None, "stopped"), text

    fleet.change(h0={"agents": ["mayor"]}, h1=member(1), h2=member(2))
    code, text = fleet.play("train.yml", "-e", "role=crew,deacon")
    assert code == 0, text
    assert fleet.verified() == ["crew", "deacon"]
    for agent in ("crew", "deacon"):
        assert fleet.placed()[agent] == ("host-1", 0)
        eventually(lambda agent=agent: fleet.status(2, agent)["state"] == "finished", "the other host's end")
