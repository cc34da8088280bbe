"""What a Slurm cluster's controller is asked while runs are launched and watched, and how soon a job starts.

    sudo .venv/bin/python benchmarks/cluster.py [--rounds 3] [--runs 10] [--seconds 150] [--checkout .]

On the cluster of tests/hosts/slurm.py, whose trainings are a stub that takes an hour. Slurm's own count of requests
(``sdiag``) says what one user's commands ask: while a sweep is launched, while it is followed, and while
``status.yml -e watch=true`` stands on the screen. The latter two last ``--seconds``, from which an hour is reckoned.
Then further single runs are launched on the warm trainer, with nothing else in the queue: from the command to the first
word of the job's supervisor. ``--checkout`` names another checkout whose commands are measured, to compare.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import yaml
from hosts import ENVIRONMENT, ROOT, figures, machine

sys.path.insert(0, str(ROOT / "tests/hosts"))
import slurm

# Room for all runs at once.
NODES = {"NodeName": "c[1-2] CPUs=64 RealMemory=64000 Gres=gpu:2 State=UNKNOWN"}
STEPS = 600  # of a training; a step takes 6 s


class Bench:
    """The cluster, and the commands of a checkout on it.

    Args:
        cluster: It.
        home: A folder for their output.
        checkout: Whose commands are measured.
    """

    def __init__(self, cluster: slurm.Cluster, home: pathlib.Path, checkout: pathlib.Path):
        self.cluster, self.home, self.checkout = cluster, home, checkout
        self.runs = cluster.home / "ann/lora-forge/runs"
        asks = {"partition": "gpu", "time": "0-2", "cpus": 1, "memory": "100M"}
        data = str(ROOT / "examples/datasets")
        host = cluster.trainer(run_slurm=asks, run_wandb="disabled", datasets_dir=data, output_dir=str(home / "output"))
        (home / "hosts.yml").write_text(yaml.safe_dump({"trainers": {"hosts": {"login": host}}}))

    @contextlib.contextmanager
    def playing(self, *words: str, seed: int = 0) -> Iterator[subprocess.Popen[bytes]]:
        """Run a playbook, and interrupt it in the end; what it launched goes on. Another seed makes another run."""
        recipe = {"max_steps": STEPS, "save_steps": STEPS, "eval_steps": STEPS, "warmup_steps": 1, "seed": seed}
        command = ["ansible-playbook", "-i", str(self.home / "hosts.yml"), *words, "-e", json.dumps({"recipe": recipe})]
        env = {**ENVIRONMENT, "ANSIBLE_CONFIG": str(self.checkout / "ansible.cfg"), "PYTHONUNBUFFERED": "1"}
        env |= {"ANSIBLE_HOME": str(self.home / "ansible"), "LORA_FORGE_PODS": str(self.home / "pods")}
        with (self.home / "log.txt").open("wb") as log:
            process = subprocess.Popen(command, cwd=self.checkout, env=env, stdin=subprocess.DEVNULL, stdout=log,
                                       stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            process.wait(60)

    def until(self, process: subprocess.Popen[bytes], words: str) -> None:
        """Wait until a playbook has printed something."""
        log = self.home / "log.txt"
        slurm.eventually(
            lambda: process.poll() is not None or re.search(words, log.read_text()), words, log.read_text, 600
        )
        if process.poll() is not None:
            raise SystemExit(log.read_text())

    def rate(self, seconds: float) -> float:
        """Count for a while; return what an hour comes to."""
        before, began = self.cluster.requests("ann"), time.monotonic()
        time.sleep(seconds)
        return (self.cluster.requests("ann") - before) * 3600 / (time.monotonic() - began)

    def soon(self, number: int) -> tuple[float, float]:
        """Launch one more run; return the seconds until it is submitted, and until its supervisor says a word."""
        known, began = {*self.runs.iterdir()}, time.time()
        with self.playing("train.yml", "-e", "role=witness", seed=number):
            found = slurm.eventually(
                lambda: [path for path in {*self.runs.iterdir()} - known if (path / "claim.json").exists()], "a job",
                (self.home / "log.txt").read_text, 600,
            )  # fmt: skip
            submitted = (found[0] / "run.json").stat().st_mtime - began
        return submitted, (found[0] / "claim.json").stat().st_mtime - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="how many runs are timed to the start of their job")
    parser.add_argument("--runs", type=int, default=10, help="how many are watched")
    parser.add_argument("--seconds", type=float, default=150.0, help="for how long requests are counted")
    parser.add_argument("--checkout", type=pathlib.Path, default=ROOT, help="whose commands are measured")
    given = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder, slurm.Cluster(NODES, trains=True) as cluster:
        cluster.furnish(str(STEPS * 6))
        bench = Bench(cluster, pathlib.Path(folder), given.checkout.resolve())
        sweep = json.dumps({"sweep": {"lora_r": [8 * number for number in range(1, given.runs + 1)]}})
        before = cluster.requests("ann")
        with bench.playing("playbooks/sweep.yml", "-e", "role=witness", "-e", sweep) as process:
            bench.until(process, r"step +\d+/")
            asked = cluster.requests("ann") - before
            print(figures(f"to launch {given.runs} runs", [asked], "requests", 0), flush=True)
            print(figures("following them", [bench.rate(given.seconds)], "requests an hour", 0), flush=True)
        with bench.playing("playbooks/status.yml", "-e", "watch=true") as process:
            bench.until(process, "running")
            print(figures("status.yml -e watch=true", [bench.rate(given.seconds)], "requests an hour", 0), flush=True)
        cluster.clear()
        times = [bench.soon(number) for number in range(1, given.rounds + 1)]
        print(figures("train.yml to the submission", [submitted for submitted, _ in times]))
        print(figures("train.yml to the job's first word", [begun for _, begun in times]))


if __name__ == "__main__":
    main()
