"""Trainers of which some are hostile, real playbooks over them, and what must not have happened afterwards.

The hosts are folders of one stage, reached by the stand-in ``hostile_ssh.py``: each runs on this machine what it is
asked to run, and a face says where it does something else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any

import expecting
import numpy as np
import rundir
import yaml
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning import launch, plan, provisioning
from ansible.module_utils.lora_forge.planning.fleet import Trainer
from lab import ROOT
from safetensors.numpy import save_file

SSH = pathlib.Path(__file__).with_name("hostile_ssh.py")
LOCK = ROOT / "requirements/trainer-cpu.txt"
LARGEST = 1 << 30  # bytes of a file that a command may write
PATIENCE = 300.0  # seconds after which a command counts as one that never ends
# What no answer may bring to a terminal: control characters, and those that turn the direction of a line.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# The Python of a trainer's environment. What it trains with only says what it was given.
PYTHON = """#!/bin/sh
case "$1 $2" in
  "-m axolotl.cli.train" | "-m torch.distributed.run")
    echo "$@" >training-command.txt
    env >training-environment.txt
    umask >>training-environment.txt
    exit 1;;
esac
exec {python} "$@"
"""
# What is in the checkout, and no file of it, or what only a person or another test writes to meanwhile.
PASSED_OVER = {
    ".git",
    ".venv",
    ".trainer",
    ".hosts",
    ".hypothesis",
    ".site-docs",
    "__pycache__",
    "docs",
    "tests",
    "output",
}
# Of a stage, what commands write to, and the test itself.
OPEN = {"faces", "texts", "output", "hosts", "calls", "ansible", "tmp", "sung", "pods", "none"}


def snapshot(*folders: pathlib.Path, leave_out: Iterable[str] = ()) -> dict[str, tuple[int, int]]:
    """Note size and time of everything below some folders."""
    found = {}
    for folder in folders:
        for top, names, files in os.walk(folder):
            names[:] = [name for name in names if name not in leave_out and not name.endswith("_cache")]
            for name in (*names, *(name for name in files if name not in leave_out)):
                path = os.path.join(top, name)
                with contextlib.suppress(FileNotFoundError):  # another test's, gone meanwhile
                    stat = os.lstat(path)
                    found[path] = (0, 0) if name in names else (stat.st_size, stat.st_mtime_ns)
    return found


def limit_files() -> None:
    """Keep a command that is taken in from filling the disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@dataclasses.dataclass(frozen=True)
class Played:
    """What came of a command.

    Attributes:
        text: What it printed.
        code: Its exit code.
        ended: Whether it came to its end by itself.
    """

    text: str
    code: int
    ended: bool

    def lines(self, word: str) -> list[str]:
        """List the lines that hold a word."""
        return [line for line in self.text.splitlines() if word in line]


class Stage:
    """A controller with a home, an output folder and trainers.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder, self.output, self.home = folder, folder / "output", folder / "home"
        self.hosts: dict[str, dict[str, Any]] = {}
        self.wrote: dict[str, list[dict[str, Any]]] = {}
        self.texts = 0
        for name in ("home/.ssh", "hosts", "faces", "calls", "texts", "ansible", "tmp", "sung"):
            (folder / name).mkdir(parents=True)
        (self.home / ".bashrc").write_text("# the user's own\n")
        (self.home / ".ssh/known_hosts").write_text("")
        self.canary = folder / "canary"
        self.write_program(self.canary, f"#!/bin/sh\n: >{folder}/sung/$$\nexit 1\n")
        self.ssh = folder / "ssh"
        self.write_program(self.ssh, f'#!/bin/sh\nexec {sys.executable} -S -E {SSH} {folder} "$@"\n')

    def write_program(self, path: pathlib.Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    # --- trainers

    def host(self, name: str, *agents: str, **variables: Any) -> pathlib.Path:
        """Add a trainer that has its environment; returns its root."""
        root = self.folder / "hosts" / name / "root"
        home = root / "env" / provisioning.environment_name(LOCK)
        (home / "bin").mkdir(parents=True)
        self.write_program(home / "bin/python", PYTHON.format(python=sys.executable))
        (home / ".complete").touch()
        known = {"agents": list(agents)} if agents else {}
        self.hosts[name] = {**known, "trainer_root": str(root), **variables}
        return root

    def root(self, name: str) -> pathlib.Path:
        """Return a trainer's root."""
        return self.folder / "hosts" / name / "root"

    def face(self, name: str, on: str, do: str, **rule: Any) -> None:
        """Say what a host does about a call: the first face that fits it counts.

        Args:
            name: The host.
            on: ``module:<name>``, ``module`` for all of them, ``rsync``, ``command`` or ``*``; behind a space, a word
                of the command.
            do: ``say`` (``text``), ``add`` (``more`` over the honest answer, ``blur`` behind each of its sentences),
                ``half`` (``text``, and then silence), ``hang``, ``endless``, ``close``, ``lose`` (it does what it was
                told, and closes), or ``serve`` (``new`` in the place of ``old``).
            rule: What belongs to it; ``after``, how often the host is honest before.
        """
        if "text" in rule:
            self.texts += 1
            path = self.folder / "texts" / str(self.texts)
            path.write_bytes(rule["text"] if isinstance(rule["text"], bytes) else rule["text"].encode())
            rule["text"] = str(path)
        self.wrote.setdefault(name, []).append({"on": on, "do": do, **rule})
        (self.folder / "faces" / f"{name}.json").write_text(json.dumps(self.wrote[name]))

    def did(self, name: str) -> set[str]:
        """Tell which calls a host answered as its face says."""
        path = self.folder / "calls" / f"{name}.jsonl"
        calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return {call["name"] for call in calls if call["did"]}

    def commands(self, name: str) -> list[str]:
        """List the command lines that a host was called with."""
        path = self.folder / "calls" / f"{name}.jsonl"
        return [json.loads(line)["command"] for line in path.read_text().splitlines()] if path.exists() else []

    # --- runs

    def planned(self, agent: str, trainer: str) -> PlannedRun:
        """Return an agent's run as a plan makes it."""
        where = Trainer(trainer, datasets_dir=str(ROOT / "examples/datasets"), profile="rehearsal")
        (run,) = plan.make(ROOT, self.folder / "none", agent, [where], {}).runs
        return run

    def model(self, name: str, agent: str) -> pathlib.Path:
        """Leave a rehearsal's model on a host, so that none is made."""
        path = pathlib.Path(launch.base_model_path(self.planned(agent, name), str(self.root(name))))
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps({"num_hidden_layers": 1}))
        return path

    def finished(self, name: str, agent: str) -> pathlib.Path:
        """Leave a run on a host as a training that came to its end leaves it; returns the run directory."""
        run = self.planned(agent, name)
        run_dir, model = self.root(name) / "runs" / run.run_id, self.model(name, agent)
        output = run_dir / "output"
        output.mkdir(parents=True)
        self.adapter(output, run, str(model))
        metrics, planned = run_dir / "metrics.jsonl", 12
        rundir.append_event(metrics, "begin", step=0, planned=planned, epoch=0)
        for step in range(1, planned + 1):
            at = {"step": step, "planned": planned, "epoch": step / planned}
            rundir.append_event(metrics, "log", **at, loss=3.0 - step / 10)
        rundir.append_event(metrics, "eval", step=planned, planned=planned, epoch=1, eval_loss=2.0)
        rundir.append_event(metrics, "end", step=planned, planned=planned, reason=None)
        (run_dir / "train.log").write_text("trained\n")
        (run_dir / "axolotl.yml").write_text(yaml.safe_dump(run.recipe))
        (output / "trainer_state.json").write_text(json.dumps({"global_step": planned, "max_steps": planned}))
        now = time.time()
        rundir.write_json(run_dir / "status.json", {
            "state": "finished", "exit_code": 0, "starts": 1, "started_at": now - 60, "finished_at": now,
        })  # fmt: skip
        facts = launch.run_facts(run, name)
        rundir.write_json(run_dir / "run.json", {"run_id": run.run_id, "backend": "process", **facts})
        return run_dir

    def adapter(self, output: pathlib.Path, run: PlannedRun, model: str) -> None:
        """Write an adapter of one layer, with its tokenizer."""
        rank, modules, tensors = run.recipe["lora_r"], run.recipe["lora_target_modules"], {}
        for module in modules:
            name = f"base_model.model.model.layers.0.part.{module}"
            tensors[f"{name}.lora_A.weight"] = np.ones((rank, 4), np.float32)
            tensors[f"{name}.lora_B.weight"] = np.ones((4, rank), np.float32)
        save_file(tensors, output / "adapter_model.safetensors")
        expecting.leave(output.parent, tensors, model)
        config = {"peft_type": "LORA", "r": rank, "target_modules": modules, "base_model_name_or_path": model}
        config["lora_alpha"] = run.recipe["lora_alpha"]
        (output / "adapter_config.json").write_text(json.dumps(config))
        (output / "config.json").write_text(json.dumps({"num_hidden_layers": 1}))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (output / name).write_text("{}")

    def checkpoint(self, run_dir: pathlib.Path, step: int, **files: bytes) -> pathlib.Path:
        """Leave a whole checkpoint in a run directory, of which complete.json may say more than is true."""
        path = run_dir / f"output/checkpoint-{step}"
        path.mkdir(parents=True)
        for name, data in {"trainer_state.json": b'{"global_step": %d}' % step, **files}.items():
            (path / name).write_bytes(data)
        rundir.mark_complete(path, step)
        return path

    # --- commands

    def write_inventory(self) -> pathlib.Path:
        shared = {
            "ansible_ssh_executable": str(self.ssh),
            "ansible_python_interpreter": sys.executable,
            "datasets_dir": "examples/datasets",
            "run_profile": "rehearsal",
            "run_backend": "process",
            "run_lane_dir": str(self.folder / "tmp"),
            "trainer_lock": LOCK.stem,
            "trainer_uv": "/bin/false",  # the environment is there
            "run_wandb": "disabled",
        }
        path = self.folder / "hosts.yml"
        everybody = {"vars": {"output_dir": str(self.output)}}
        path.write_text(yaml.safe_dump({"all": everybody, "trainers": {"hosts": self.hosts, "vars": shared}}))
        return path

    def play(self, playbook: str, *options: str, **environment: str) -> Played:
        """Run a playbook over the hosts, from the checkout, with the stage's home.

        Args:
            playbook: Its path in the checkout.
            options: Further arguments.
            environment: Added to its environment.
        """
        log = self.folder / "log.txt"
        process = self.start(log, playbook, *options, **environment)
        try:
            code, ended = process.wait(PATIENCE), True
        except subprocess.TimeoutExpired:
            code, ended = -1, False
        finally:
            self.end(process)
        return Played(log.read_text("utf-8", "surrogateescape"), code, ended)

    def start(self, log: pathlib.Path, playbook: str, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a playbook as :meth:`play` does; :meth:`end` is for whoever starts it.

        Args:
            log: Where it prints to.
            playbook: Its path in the checkout.
            options: Further arguments.
            environment: Added to its environment.
        """
        known = {
            "HOME": str(self.home), "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.folder / "ansible/cp"), "TMPDIR": str(self.folder / "tmp"),
            "ANSIBLE_NOCOLOR": "1", "PYTHONUNBUFFERED": "1", "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}",
            "LORA_FORGE_PODS": str(self.folder / "pods"), **environment,
        }  # fmt: skip
        # Axolotl's own check of the recipes takes ten seconds of a core, and asks no host.
        command = [
            "ansible-playbook",
            "-i",
            str(self.write_inventory()),
            playbook,
            "-e",
            "run_will_start=false",
            *options,
        ]
        with log.open("wb") as out:
            return subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **known}, stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=limit_files,
            )  # fmt: skip

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """End a command with all that it started, silent hosts among them; Ansible's workers have own sessions."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        sign = f"ANSIBLE_HOME={self.folder / 'ansible'}\0".encode()
        for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if sign in path.read_bytes():
                    os.kill(int(path.parts[2]), signal.SIGKILL)

    # --- what is left

    def watch_over(self) -> Guard:
        """Note what there is, to compare it with what is there later."""
        return Guard(self)


class Guard:
    """What a hostile host has no business with: the user's home, the checkout, and whatever lies beside the output."""

    def __init__(self, stage: Stage):
        self.stage = stage
        self.before = self.look()

    def look(self) -> dict[str, tuple[int, int]]:
        own = snapshot(self.stage.folder, leave_out=OPEN)
        own = {path: what for path, what in own.items() if not path.endswith(("/log.txt", "/hosts.yml"))}
        checkout = snapshot(ROOT, leave_out=PASSED_OVER) if not self.stage.folder.is_relative_to(ROOT) else {}
        return {**own, **checkout}

    def changes(self) -> list[str]:
        """List what was made, changed or removed, and «canary» where a program of the attacker's ran."""
        now = self.look()
        found = [path for path in {*self.before, *now} if self.before.get(path) != now.get(path)]
        return sorted(found) + ["canary"] * bool(list((self.stage.folder / "sung").iterdir()))
