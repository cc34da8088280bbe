"""Checkouts and hosts for the end-to-end tests: real Ansible, real uv, real Axolotl, a fresh trainer root each."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any, Callable

import pytest
import rundir
import sandbox
import slurm
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLAYBOOK = ROOT / ".venv/bin/ansible-playbook"
# In this order; those of pods wait long, and leave the processor to others.
LONGEST = (
    "test_faults.py",
    "test_learning.py",
    "test_gang.py",
    "test_fleet.py",
    "test_docs.py",
    "test_rehearsal.py",
    "test_wandb.py",
    "test_pods.py",
)
CONVERGE = 600  # seconds that anything may take, on a slow machine and beside others


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest first, so that none of them begins last and runs alone."""

    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def eventually(condition: Callable[[], Any], what: str | Callable[[], str]) -> Any:
    """Wait until a condition holds, for as long as the slowest machine may take.

    Args:
        condition: What must become true.
        what: It in words, for the failure; a function says it as it is then.

    Returns:
        What the condition returned.
    """
    deadline = time.monotonic() + CONVERGE
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {CONVERGE} s: {what() if callable(what) else what}")


def hold(run_dir: pathlib.Path, step: int) -> None:
    """Have a training with the plugin ``hold.Hold`` wait after a step.

    Args:
        run_dir: Of the run, which may be planned only.
        step: How many are done when it waits.
    """
    (run_dir / rundir.PROGRAMS).mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "tests/fakes/hold.py", run_dir / rundir.PROGRAMS)
    rundir.write_json(run_dir / "hold", step)


def release(run_dir: pathlib.Path) -> None:
    """Let a training go on that waits."""
    (run_dir / "hold").unlink()


def stand_in(run_dir: pathlib.Path) -> None:
    """Bring what trains in Axolotl's place, on a host with ``run_module: stub_axolotl``.

    Args:
        run_dir: Of the run, which may be planned only.
    """
    (run_dir / rundir.PROGRAMS).mkdir(parents=True, exist_ok=True)
    for name in ("stub_axolotl.py", "expecting.py"):
        shutil.copy(ROOT / "tests/fakes" / name, run_dir / rundir.PROGRAMS)


def planned(output: pathlib.Path, agent: str) -> str:
    """Return the run of an agent that was planned last."""
    runs = json.loads((output / "plan.json").read_text())["runs"]
    return next(run["run_id"] for run in runs if run["agent"] == agent)


def playing(
    arguments: tuple[str, ...], cwd: pathlib.Path, log: pathlib.Path, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start ansible-playbook as a user would, in a session of its own; what it prints goes to a file."""
    return subprocess.Popen(
        [str(PLAYBOOK), *arguments],
        cwd=cwd,
        env={
            **os.environ,
            "PATH": f"{PLAYBOOK.parent}:{os.environ['PATH']}",
            "ANSIBLE_NOCOLOR": "1",
            **(environment or {}),
        },
        stdin=subprocess.DEVNULL,
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


class Checkout:
    """A copy of the project with an output folder and a trainer root of its own; environments are shared."""

    def __init__(self, home: pathlib.Path):
        self.home = home
        self.trainer = home / ".trainer"
        self.environment: dict[str, str] = {}  # of its user's shell
        listed = subprocess.check_output(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, text=True
        )
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (home / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, home / name)
        (ROOT / ".trainer/env").mkdir(parents=True, exist_ok=True)
        self.trainer.mkdir()
        (self.trainer / "env").symlink_to(ROOT / ".trainer/env")

    def play(self, *arguments: str, playbook: str = "train.yml", timeout: float = CONVERGE) -> tuple[int, str]:
        """Run a playbook as a user would; returns its exit code and what it printed."""
        done = subprocess.run(
            [str(PLAYBOOK), playbook, "-e", f"run_lane_dir={self.home}", *arguments],
            cwd=self.home,
            env={
                **os.environ,
                "PATH": f"{PLAYBOOK.parent}:{os.environ['PATH']}",
                "ANSIBLE_NOCOLOR": "1",
                **self.environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        return done.returncode, done.stdout

    def planned(self, agent: str, *arguments: str) -> str:
        """Return what a run of an agent will be called."""
        code, text = self.play("-e", f"role={agent}", *arguments, playbook="playbooks/plan.yml")
        assert code == 0, text
        return planned(self.home / "output", agent)

    def plan(self) -> dict[str, Any]:
        return json.loads((self.home / "output/plan.json").read_text())["runs"][0]

    def run_dir(self, run_id: str) -> pathlib.Path:
        return self.trainer / "runs" / run_id

    def latest(self, agent: str = "witness") -> pathlib.Path:
        return self.home / "output/adapters" / agent / "latest"

    def manifest(self, agent: str = "witness") -> dict[str, Any]:
        return json.loads((self.latest(agent) / "manifest.json").read_text())

    def kill_everything(self) -> None:
        for status in self.trainer.glob("runs/*/status.json"):
            supervisor = rundir.read_json(status).get("supervisor")
            if rundir.is_alive(supervisor):
                os.kill(supervisor["pid"], signal.SIGKILL)
            for pid in rundir.run_processes(status.parent):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def environment() -> pathlib.Path:
    """Return the Python of the CPU lock's environment, made by the project's own playbook; by one process for all."""
    with (pathlib.Path(os.environ["LORA_FORGE_SANDBOX"]) / "environment").open("a+") as made_in_this_sandbox:
        fcntl.flock(made_in_this_sandbox, fcntl.LOCK_EX)
        if not made_in_this_sandbox.tell():
            done = subprocess.run(
                [str(PLAYBOOK), "playbooks/provision.yml", "-e", "role=witness", "-e", "fresh=true"],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout
            made_in_this_sandbox.write("made")
    from ansible.module_utils.lora_forge.trainer import environment as made

    return ROOT / ".trainer/env" / made.environment_name(ROOT / "requirements/trainer-cpu.txt") / "bin/python"


@pytest.fixture
def checkout(tmp_path: pathlib.Path, environment: pathlib.Path) -> Iterator[Checkout]:
    made = Checkout(tmp_path / "lora-forge")
    yield made
    made.kill_everything()


class Host:
    """A test host, as somebody at its console sees it. Its disk is a folder here."""

    def __init__(self, name: str, root: str):
        self.name = name
        self.disk, self.shared = sandbox.hosts_state() / "disk", ROOT / ".hosts/shared"
        self.runs = self.disk / root / "runs"

    def sh(self, command: str, check: bool = True) -> str:
        done = subprocess.run(
            ["podman", "exec", f"{sandbox.name()}-{self.name}", "sh", "-c", command],
            capture_output=True,
            text=True,
            timeout=CONVERGE,
        )
        assert not check or done.returncode == 0, f"{self.name}: {command}: {done.stdout}{done.stderr}"
        return done.stdout

    def restart(self, grace: int) -> None:
        """Reboot: SIGTERM to what PID 1 chooses, SIGKILL to everything after the grace, in seconds."""
        environment = {**os.environ, "CONTAINERS_CONF": str(ROOT / "tests/hosts/containers.conf")}
        subprocess.run(
            ["podman", "restart", "--time", str(grace), f"{sandbox.name()}-{self.name}"],
            check=True, capture_output=True, timeout=CONVERGE, env=environment,
        )  # fmt: skip

    def status(self, run_id: str) -> dict[str, Any]:
        return rundir.read_json(self.runs / run_id / "status.json")

    def events(self, run_id: str, kind: str) -> list[dict[str, Any]]:
        events, _ = rundir.read_events(self.runs / run_id / "metrics.jsonl")
        return [event for event in events if event["event"] == kind]

    def step(self, run_id: str) -> int:
        return max((event["step"] for event in self.events(run_id, "log")), default=0)

    def whole(self, run_id: str) -> int:
        return rundir.last_complete(self.runs / run_id / "output")

    def supervisors(self) -> int:
        # The command line of a tmux server holds the same words.
        return int(self.sh("pgrep -fc '^[^ ]*python[^ ]* [^ ]*/supervisor.py' || true"))


class Playing:
    """ansible-playbook at work in the background."""

    def __init__(self, process: subprocess.Popen[bytes], log: pathlib.Path):
        self.process, self.log = process, log

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def says(self, pattern: str) -> str:
        """Wait until it has printed something; returns the first match."""

        def found() -> Any:
            match = re.search(pattern, self.text())
            return match or (self.process.poll() is not None and "ended")

        match = eventually(found, f"«{pattern}» in\n{self.text()}")
        assert match != "ended" or re.search(pattern, self.text()), f"it never said «{pattern}»:\n{self.text()}"
        return re.search(pattern, self.text()).group(0)  # type: ignore[union-attr]

    def wait(self, seconds: float = CONVERGE) -> int:
        return self.process.wait(seconds)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Controller:
    """A controller of its own: an output folder, and an inventory that names some of the test hosts.

    Args:
        home: An empty folder.
        trainers: Host names with their variables.
        recipe: Recipe overrides.
    """

    def __init__(self, home: pathlib.Path, trainers: dict[str, Any], recipe: dict[str, Any]):
        self.home, self.output = home, home / "output"
        home.mkdir(parents=True, exist_ok=True)
        known = {"output_dir": str(self.output), "recipe": recipe, "run_wandb": "disabled"}
        known["watch_unreachable_timeout"] = CONVERGE
        inventory = {"trainers": {"hosts": trainers}, "all": {"vars": known}}
        (home / "trainers.yml").write_text(yaml.safe_dump(inventory))
        self.started: list[Playing] = []

    def start(self, *arguments: str, playbook: str = "train.yml") -> Playing:
        log = self.home / f"play-{len(self.started)}.log"
        where = ("-i", str(ROOT / "tests/hosts/inventory.yml"), "-i", str(self.home / "trainers.yml"))
        self.started.append(Playing(playing((playbook, *where, *arguments), ROOT, log), log))
        return self.started[-1]

    def play(self, *arguments: str, playbook: str = "train.yml", seconds: float = CONVERGE) -> tuple[int, str]:
        played = self.start(*arguments, playbook=playbook)
        return played.wait(seconds), played.text()

    def run_id(self, agent: str) -> str:
        """Return the run of an agent that was planned last."""
        return planned(self.output, agent)

    def plan(self, agents: str) -> str:
        """Plan some agents; returns what the run of the first of them will be called."""
        code, text = self.play("-e", f"role={agents}", playbook="playbooks/plan.yml")
        assert code == 0, text
        return self.run_id(agents.partition(",")[0])

    def verdicts(self) -> dict[str, str]:
        """Return what playbooks/status.yml concluded last, by run."""
        return {run["run_id"]: run["verdict"] for run in rundir.read_json(self.output / "status.json")["runs"]}

    def manifest(self, agent: str) -> dict[str, Any]:
        return rundir.read_json(self.output / "adapters" / agent / "latest/manifest.json")


@pytest.fixture(scope="session")
def hosts() -> Iterator[dict[str, Host]]:
    """Provide the test hosts of tests/hosts, made anew, and removed in the end."""

    def run(name: str) -> None:
        done = subprocess.run(
            [str(PLAYBOOK), "-i", "tests/hosts/inventory.yml", f"tests/hosts/{name}.yml"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout

    run("create")
    yield {
        "vm": Host("vm", "vm"),
        "lin": Host("vm", "lin"),
        "pod": Host("pod", "lora-forge"),
        "bare": Host("bare", "bare"),
    }
    run("destroy")


@pytest.fixture
def controllers(tmp_path: pathlib.Path, hosts: dict[str, Host]) -> Iterator[Callable[..., Controller]]:
    """Provide a maker of controllers; what they left running ends with the test, on the hosts too."""
    made: list[Controller] = []

    def make(trainers: dict[str, Any], **recipe: Any) -> Controller:
        made.append(Controller(tmp_path / str(len(made)), trainers, recipe))
        return made[-1]

    yield make
    for controller in made:
        for played in controller.started:
            played.kill()
    for host in hosts.values():
        host.sh("pkill -9 -f '[s]upervisor.py'; pkill -9 -f '[a]xolotl.cli.train'", check=False)


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[slurm.Cluster]:
    """Provide a Slurm cluster of tests/hosts, made anew, and removed in the end."""
    with slurm.Cluster() as made:
        yield made


@pytest.fixture
def slurm_cgroups(slurm_cluster: slurm.Cluster) -> None:
    """Skip a test that is about how Slurm ends a job's processes where it has no cgroups to do so."""
    if slurm_cluster.without_cgroup:
        pytest.skip(slurm_cluster.without_cgroup)
