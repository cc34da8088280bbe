"""How long a GPU waits: from «SSH answers» to the first step, and from the last step to «the host may go».

    sudo .venv/bin/python benchmarks/idle_gpu.py [--rounds 3]

A real rehearsal with Axolotl on one container, over SSH, with the environment in place and SSH answering, as on a pod
that keeps its volume. On a rented GPU each of these seconds costs money. The rehearsal's model is tiny and its device
the CPU, so that loading a model of 7B takes longer than here; what is ours does not depend on it, nor on how long the
steps between take.
"""

from __future__ import annotations

import argparse
import calendar
import json
import pathlib
import re
import time
from typing import Any

from hosts import Hosts, figures, goal, machine, median, table

ROLE = "witness"
WITHIN = 60.0  # seconds
STAMP = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3})\] \[[A-Z]+\] \[axolotl\.")
PHASES = (  # name, whose it is, from, to
    ("SSH answers to launch", "ours", "begun", "launched"),
    ("launch to first step", "Axolotl's", "launched", "stepped"),
    ("  import", "Axolotl's", "launched", "imported"),
    ("  data", "Axolotl's", "imported", "tokenised"),
    ("  model and trainer", "Axolotl's", "tokenised", "ready"),
    ("  first evaluation and step", "Axolotl's", "ready", "stepped"),
    ("last step to the end of the process", "Axolotl's", "last_step", "ended"),
    ("end of the process to adapter delivered", "ours", "ended", "delivered"),
    ("adapter delivered to end of the command", "ours", "delivered", "over"),
)


def logged(log: pathlib.Path) -> list[float]:
    """Return the epoch seconds of Axolotl's own lines in train.log; the containers' clock shows UTC."""
    return [
        calendar.timegm(time.strptime(when, "%Y-%m-%d %H:%M:%S")) + int(ms) / 1000
        for when, ms in STAMP.findall(log.read_text(errors="replace"))
    ]


def one_round(hosts: Hosts) -> dict[str, float]:
    """Do a rehearsal from a root with nothing but the environment; return when things happened, in epoch seconds."""
    hosts.reset()
    at = {"begun": time.time()}
    hosts.play("train.yml", "-e", f"role={ROLE}")
    at["over"] = time.time()
    manifest = next(hosts.output.glob(f"adapters/{ROLE}/*-*/manifest.json"))
    run = hosts.root(0) / "runs" / manifest.parent.name
    status = json.loads((run / "status.json").read_text())
    events: list[dict[str, Any]] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    def times(kind: str) -> list[float]:
        return [event["time"] for event in events if event["event"] == kind]

    at |= {
        "launched": status["first_started_at"],
        "imported": logged(run / "train.log")[0],  # the first line of its own: the plugin is loaded
        "tokenised": times("data")[-1],
        "ready": times("begin")[0],
        "stepped": times("log")[0],
        "last_step": times("log")[-1],
        "ended": status["finished_at"],
        "delivered": manifest.stat().st_mtime,
    }
    return at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="measurements, after one that is not counted")
    given = parser.parse_args()
    print(f"idle GPU: {machine()}, {time.strftime('%Y-%m-%d')}", flush=True)
    taken: list[dict[str, float]] = []
    with Hosts(1) as hosts:
        one_round(hosts)  # reads the packages from the disk
        for number in range(given.rounds):
            taken.append(one_round(hosts))
            print(f"  round {number + 1}: {taken[-1]['over'] - taken[-1]['begun']:.1f} s", flush=True)
    rows = []
    idle = dict.fromkeys(("ours", "Axolotl's"), 0.0)
    for name, whose, since, until in PHASES:
        values = [at[until] - at[since] for at in taken]
        print(figures(f"{name} ({whose})", values))
        rows.append([name.strip() if name[0] != " " else f"– {name.strip()}", whose, f"{median(values):.1f}"])
        if name[0] != " " and until != "over":
            idle[whose] += median(values)
    shares = ", ".join(f"{whose} {seconds:.1f} s" for whose, seconds in idle.items())
    print(f"  a GPU waits {sum(idle.values()):.1f} s in all: {shares}")
    goal(f"of our making, downloads left out: {idle['ours']:.1f} s; under {WITHIN:.0f}", idle["ours"] < WITHIN)
    print()
    table(["", "whose", "s"], rows)


if __name__ == "__main__":
    main()
