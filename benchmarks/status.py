#!/usr/bin/env python3
"""How long `playbooks/status.yml` takes for one host and for many: over real SSH to containers.

    sudo .venv/bin/python benchmarks/status.py [--hosts 20] [--runs 10] [--rounds 3]

Makes the containers from the tests' image (tests/hosts/image.sh) with run directories of finished trainings in each,
times whole commands in turn, prints seconds and their ratio, and removes everything. Needs root and podman.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time
from typing import Any

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]
PORT = 42400  # of the first host, on 127.0.0.1
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}",
    "CONTAINERS_CONF": str(ROOT / "tests/hosts/containers.conf"),
}


def sh(*command: str, **options: Any) -> str:
    return subprocess.run(
        command, check=True, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, **options
    ).stdout.strip()


def finished_run(folder: pathlib.Path, number: int) -> None:
    """A run directory as a finished training leaves it: a thousand steps in metrics.jsonl."""
    run = folder / f"witness-{number:012x}"
    (run / "output").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"run_id": run.name, "agent": "witness"}))
    (run / "status.json").write_text(json.dumps({"state": "finished", "exit_code": 0, "heartbeat": 1.0}))
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (run / "output/adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\1")
    lines = [{"event": "begin", "time": 0.0, "step": 0, "planned": 1000}]
    lines += [{"event": "log", "time": float(i), "step": i, "planned": 1000, "loss": 1.0 / i} for i in range(1, 1001)]
    lines += [{"event": "end", "time": 1001.0, "step": 1000, "planned": 1000, "reason": None}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def start(home: pathlib.Path, hosts: int, runs: int) -> None:
    """Containers with sshd, their pinned keys, and an inventory for one of them and for all."""
    image = sh("tests/hosts/image.sh")
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / "key"))
    for number in range(runs):
        finished_run(home / "root/runs", number)
    known = []
    for number in range(hosts):
        name = f"lora-forge-bench-{number}"
        sh("podman", "run", "--detach", "--quiet", "--replace", "--name", name,
           "--publish", f"127.0.0.1:{PORT + number}:22",
           "--volume", f"{home}/root:/workspace/lora-forge:ro",
           "--env", f"PUBLIC_KEY={(home / 'key.pub').read_text()}", image, "/pod.sh")  # fmt: skip
    for number in range(hosts):
        deadline = time.monotonic() + 60
        while True:
            read = ["podman", "exec", f"lora-forge-bench-{number}", "cat", "/etc/ssh/ssh_host_ed25519_key.pub"]
            done = subprocess.run(read, env=ENVIRONMENT, capture_output=True, text=True)
            if done.returncode == 0 or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        known.append(f"[127.0.0.1]:{PORT + number} {done.stdout}")
    (home / "known_hosts").write_text("".join(known))
    shared = {
        "ansible_host": "127.0.0.1",
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(home / "key"),
        # A connection of its own for every measurement: what stays open from the last one would flatter it.
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={home}/known_hosts -o ControlMaster=no -o ControlPath=none",
        "output_dir": str(home / "output"),
    }
    for count in (1, hosts):
        named = {f"host-{number}": {"ansible_port": PORT + number} for number in range(count)}
        made = {"trainers": {"hosts": named, "vars": shared}}
        (home / f"{count}.yml").write_text(yaml.safe_dump(made))


def measure(home: pathlib.Path, count: int, runs: int) -> float:
    """Seconds of one whole command."""
    began = time.monotonic()
    sh("ansible-playbook", "-i", str(home / f"{count}.yml"), "playbooks/status.yml")
    took = time.monotonic() - began
    seen = json.loads((home / "output/status.json").read_text())
    assert sum(host["answers"] for host in seen["hosts"]) == count, seen["hosts"]
    assert len(seen["runs"]) == runs
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", type=int, default=20)
    parser.add_argument("--runs", type=int, default=10, help="run directories on each host")
    parser.add_argument("--rounds", type=int, default=3, help="measurements, after one that is not counted")
    given = parser.parse_args()
    home = pathlib.Path(tempfile.mkdtemp(prefix="lora-forge-bench-"))
    try:
        start(home, given.hosts, given.runs)
        measure(home, given.hosts, given.runs)
        taken: dict[int, list[float]] = {1: [], given.hosts: []}
        for _ in range(given.rounds):
            for count, figures in taken.items():
                figures.append(measure(home, count, given.runs))
        for count, figures in taken.items():
            each = ", ".join(f"{figure:.2f}" for figure in figures)
            print(f"{count:3} hosts, {given.runs} runs on each: median {statistics.median(figures):.2f} s of {each}")
        ratio = statistics.median(taken[given.hosts]) / statistics.median(taken[1])
        print(f"{given.hosts} hosts take {ratio:.2f} times as long as one")
    finally:
        names = [f"lora-forge-bench-{number}" for number in range(given.hosts)]
        subprocess.run(
            ["podman", "rm", "--force", "--ignore", "--time", "0", *names], env=ENVIRONMENT, stdout=subprocess.DEVNULL
        )
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
