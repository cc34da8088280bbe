"""What many runs of one host cost to launch, beside one: whole commands over real SSH, to a host or to a Slurm cluster.

    sudo .venv/bin/python benchmarks/launches.py [--runs 1,20] [--rounds 3] [--slurm]

Each round launches a sweep of so many runs (``sweep.yml -e detach=true``) from an empty root, and launches it again,
when all are there. Counted are the connections, by a program in ssh's place; ratios are taken within a round.
The host, or the cluster of three machines, is made of containers, and shares the cores with the controller.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, Callable

import yaml
from hosts import ROOT, Hosts, Taken, clock, goal, machine, median, table

sys.path.insert(0, str(ROOT / "tests/hosts"))
SSH = '#!/bin/sh\necho >>{calls}\nexec ssh "$@"\n'
MOST = 2  # connections that 20 runs may take more than one does


@contextlib.contextmanager
def plain() -> Iterator[tuple[pathlib.Path, dict[str, Any], Callable[[], None]]]:
    """Have a host that is no cluster; give its inventory, the variables beside it, and what empties its root."""
    with Hosts(1, 600.0) as hosts:

        def reset() -> None:
            hosts.reset()

        yield hosts.home / "1.yml", {"output_dir": str(hosts.output)}, reset


@contextlib.contextmanager
def cluster() -> Iterator[tuple[pathlib.Path, dict[str, Any], Callable[[], None]]]:
    """Have a Slurm cluster of which two nodes train; give the same as :func:`plain`."""
    import slurm

    with slurm.Cluster(trains=True) as made, tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "hosts.yml"
        path.write_text(yaml.safe_dump({"trainers": {"hosts": {"cluster": made.trainer(run_wandb="disabled")}}}))

        def reset() -> None:
            made.ssh("scancel --user=ann", check=False)
            made.sh("login", "rm -rf /home/ann/lora-forge")
            shutil.rmtree(pathlib.Path(folder) / "output", ignore_errors=True)
            made.furnish("600")

        yield path, {"output_dir": f"{folder}/output"}, reset


def launch(inventory: pathlib.Path, variables: dict[str, Any], runs: int) -> tuple[Taken, int]:
    """Launch a sweep; return what that took, and how many connections."""
    with tempfile.TemporaryDirectory(prefix="lora-forge-") as folder:
        calls, ssh = pathlib.Path(folder) / "calls", pathlib.Path(folder) / "ssh"
        ssh.write_text(SSH.format(calls=calls))
        ssh.chmod(0o755)
        calls.touch()
        asked = {"role": "witness", "sweep": {"seed": [*range(1, runs + 1)]}, "detach": True, **variables,
                 "ansible_ssh_executable": str(ssh)}  # fmt: skip
        command = ["ansible-playbook", "-i", str(inventory), "playbooks/sweep.yml", "-e", json.dumps(asked)]
        sockets = pathlib.Path(folder) / "c"
        try:
            taken = clock(command, pathlib.Path(folder) / "log", {"ANSIBLE_SSH_CONTROL_PATH_DIR": str(sockets)})
        finally:
            for socket in sockets.glob("*"):
                subprocess.run(["ssh", "-O", "exit", "-o", f"ControlPath={socket}", "host"], capture_output=True)
        return taken, len(calls.read_text().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", default="1,20", help="numbers of runs, with commas")
    parser.add_argument("--rounds", type=int, default=3, help="measurements")
    parser.add_argument("--slurm", action="store_true", help="on a Slurm cluster, and not on a host of one's own")
    given = parser.parse_args()
    counts = sorted({int(count) for count in given.runs.split(",")})
    print(f"launches: {machine()}, {time.strftime('%Y-%m-%d')}, {'Slurm' if given.slurm else 'a host'}", flush=True)
    found: dict[tuple[int, str], list[tuple[Taken, int]]] = {}
    with (cluster if given.slurm else plain)() as (inventory, variables, reset):
        for number in range(given.rounds):
            for count in counts:
                reset()
                for what in ("launch", "again"):
                    taken, calls = launch(inventory, variables, count)
                    found.setdefault((count, what), []).append((taken, calls))
                    figures = f"{taken.seconds:.1f} s, {taken.cpu:.1f} s of the controller's CPU, {calls} connections"
                    print(f"  round {number + 1}, {count} runs, {what}: {figures}", flush=True)
        reset()
    print()
    words = {"launch": "first launch", "again": "the same again"}
    table(
        ["runs", "", "seconds", "controller's CPU, s", "connections"],
        [
            [str(count), words[what], f"{median(one.seconds for one, _ in taken):.1f}",
             f"{median(one.cpu for one, _ in taken):.1f}", f"{median(calls for _, calls in taken):.0f}"]
            for (count, what), taken in found.items()
        ],
    )  # fmt: skip
    few, many = counts[0], counts[-1]
    if few < many:
        more = median(found[many, "launch"][at][1] - found[few, "launch"][at][1] for at in range(given.rounds))
        goal(f"{many} runs take {more:.0f} connections more than {few}; at most {MOST}", more <= MOST)
        ratio = median(found[many, "launch"][at][0].cpu / found[few, "launch"][at][0].cpu for at in range(given.rounds))
        print(f"           and {ratio:.1f} times the controller's CPU, within a round")


if __name__ == "__main__":
    main()
