"""What the plan of many agents costs: whole commands, on a copy of the checkout with agents of their own.

    .venv/bin/python benchmarks/plan.py [--agents 600] [--rounds 3]

Each agent is a file and a small dataset. Measured are the plan of all of them where nothing is there, and a train.yml
that finds every adapter there and has nothing to do. No host is touched, and no root or podman is needed. Prints
medians in seconds of the clock and of the processor: on a machine that others use, the second one is the figure to look
at.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

from hosts import ROOT, figures, goal, machine, median

PLANNED_WITHIN = 10.0  # seconds, 600 agents
CONVERGED_WITHIN = 5.0
COPIED = ("action_plugins", "callback_plugins", "configs", "doc_fragments", "inventory", "inventory_plugins", "library",
          "module_utils", "playbooks", "requirements", "roles", "templates", "ansible.cfg", "train.yml")  # fmt: skip


def copy_checkout(home: pathlib.Path, count: int) -> pathlib.Path:
    """Copy what commands read of the checkout, with agents a000, a001 … and their data; return the copy."""
    root = home / "checkout"
    root.mkdir()
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name, **({"symlinks": True} if (ROOT / name).is_dir() else {}))
    for path in (root / "configs/agents").glob("*.yml"):
        if path.stem != "witness":  # which others extend
            path.unlink()
    (home / "data").mkdir()
    for number in range(count):
        name = f"a{number:03}"
        keys = "extends: witness\nlora_r: 32\n" if number % 2 else "lora_r: 16\n"
        (root / f"configs/agents/{name}.yml").write_text(keys)
        rows = [
            [{"from": "human", "value": f"{name} {turn}"}, {"from": "gpt", "value": "a" * 200}] for turn in range(10)
        ]
        text = "".join(json.dumps({"conversations": row}) + "\n" for row in rows)
        (home / "data" / f"{name}_train.jsonl").write_text(text)
    return root


def deliver_all(root: pathlib.Path) -> int:
    """Put an adapter in the place of every planned run; return how many."""
    runs = json.loads((root / "output/plan.json").read_text())["runs"]
    for run in runs:
        folder = root / "output/adapters" / run["agent"] / run["run_id"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights").write_bytes(b"12345")
        row = {"path": "weights", "bytes": 5, "sha256": hashlib.sha256(b"12345").hexdigest()}
        manifest = {"run_id": run["run_id"], "agent": run["agent"], "verdict": "verified", "files": [row]}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return len(runs)


def clock(root: pathlib.Path, playbook: str) -> tuple[float, float]:
    """Run a playbook on all agents; return its seconds of the clock, and of the processor with all that it started."""
    program = pathlib.Path(sys.executable).with_name("ansible-playbook")
    words = [str(program), playbook, "-e", f"datasets_dir={root.parent / 'data'}"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    settings = os.environ | {"ANSIBLE_CONFIG": str(root / "ansible.cfg")}
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, env=settings)
    taken, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{playbook} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return taken, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = copy_checkout(pathlib.Path(folder), given.agents)
        planned = [clock(root, "playbooks/plan.yml") for _ in range(given.rounds)]
        delivered = deliver_all(root)
        converged = [clock(root, "train.yml") for _ in range(given.rounds)]
    print(f"{given.agents} agents, {delivered} runs")
    for name, rounds in (("plan", planned), ("converged", converged)):
        print(figures(f"{name}, by the clock", [wall for wall, _ in rounds]))
        print(figures(f"{name}, of the processor", [cpu for _, cpu in rounds]))
    goal(f"a plan within {PLANNED_WITHIN:g} s", median(wall for wall, _ in planned) <= PLANNED_WITHIN)
    goal(f"converged within {CONVERGED_WITHIN:g} s", median(wall for wall, _ in converged) <= CONVERGED_WITHIN)


if __name__ == "__main__":
    main()
