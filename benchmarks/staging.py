"""What goes over the wire for a training: by the project's own playbook, against one plain ``rsync -az``.

    sudo .venv/bin/python benchmarks/staging.py [--conversations 1000] [--rounds 3]

Trains on one container, with a stub for Axolotl, on data that is new, unchanged, and one conversation longer, and
counts what rsync itself counts (its «sent» and «received», without SSH's share): files to the host, and the adapter
back. The measure is one ``rsync -az`` of the same files, under names that stay, into one folder: both compress.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import re
import shutil
import time

from hosts import TRAINER_ROOT, Hosts, figures, machine, median, sh, store, table

WORDS = "branch review merge queue worker task town report disk patch test line file caller owner worktree".split()
COUNT = re.compile(r"sent ([\d,.]+) bytes\s+received ([\d,.]+) bytes")
ROLE = "witness"


@dataclasses.dataclass(frozen=True)
class Wire:
    """Bytes on the wire, both directions together.

    Attributes:
        there: For what goes to the host.
        back: For what comes from it.
        transfers: How many times rsync was called.
    """

    there: int
    back: int
    transfers: int


def conversation(number: int) -> str:
    """Return a line of a dataset, of some 2,000 characters; the same number gives the same line."""
    rng = random.Random(number)

    def words(count: int) -> str:
        return " ".join(f"{rng.choice(WORDS)}-{rng.randrange(10**6)}" for _ in range(count))

    turns = [{"from": "human", "value": words(40)}, {"from": "gpt", "value": words(110)}]
    return json.dumps({"conversations": turns}) + "\n"


def counted(text: str) -> int:
    """Return the bytes of a transfer, both directions, from the end of rsync's output."""
    return sum(int(re.sub(r"\D", "", figure)) for figure in COUNT.findall(text)[-1])


def logged(text: str) -> Wire:
    """Return what the transfers of a log took, one after the other."""
    found = re.findall(r"(building|receiving) file list(.*?received [\d,.]+ bytes)", text, re.DOTALL)
    there = [counted(words) for kind, words in found if kind == "building"]
    back = [counted(words) for kind, words in found if kind == "receiving"]
    return Wire(sum(there), sum(back), len(found))


class Bench:
    """One host, its data, and a mirror for plain rsync."""

    def __init__(self, hosts: Hosts):
        self.hosts = hosts
        self.data, self.mirror = hosts.home / "data", hosts.home / "mirror"

    def train(self, *arguments: str) -> Wire:
        """Train once by the playbook; return what all its transfers took."""
        log = self.hosts.home / "rsync.log"
        log.unlink(missing_ok=True)
        options = json.dumps({"trainer_rsync_options": [f"--log-file={log}"], "datasets_dir": str(self.data)})
        self.hosts.play("train.yml", "-e", f"role={ROLE}", "-e", options, *arguments)
        return logged(log.read_text())

    def plain(self) -> Wire:
        """Bring the files of the newest run with one rsync, and its adapter back with another."""
        root = self.hosts.root(0)
        planned = json.loads((self.hosts.output / "plan.json").read_text())["runs"]
        run = root / "runs" / planned[0]["run_id"]
        shutil.rmtree(self.mirror, ignore_errors=True)
        for name in ("data", "run", "locks"):
            (self.mirror / name).mkdir(parents=True)
        shutil.copy2(self.data / f"{ROLE}_train.jsonl", self.mirror / "data")
        for path in (*run.glob("*.py"), run / "axolotl.yml"):
            shutil.copy2(path, self.mirror / "run")
        for path in (*root.glob("requirements/*"), *root.glob("*.py")):
            shutil.copy2(path, self.mirror / "locks")
        ssh = f"ssh -F {self.hosts.home}/ssh_config"
        there = sh("rsync", "-az", "--stats", "-e", ssh, f"{self.mirror}/", "host-0:/workspace/plain/")
        files = self.hosts.home / "files"
        files.write_text("".join(f"{row['path']}\n" for row in store.list_files(run, checksums=False)))
        into = self.hosts.home / "back"
        shutil.rmtree(into, ignore_errors=True)
        back = sh("rsync", "-az", "--stats", "-e", ssh, f"--files-from={files}",
                  f"host-0:{TRAINER_ROOT}/runs/{run.name}/", f"{into}/")  # fmt: skip
        return Wire(counted(there), counted(back), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--conversations", type=int, default=1000, help="of the new data, some 2 kB each")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(f"staging: {machine()}, {time.strftime('%Y-%m-%d')}")
    found: dict[str, list[tuple[Wire, Wire]]] = {}
    with Hosts(1, 0.2) as hosts:
        bench = Bench(hosts)
        bench.data.mkdir()
        train = bench.data / f"{ROLE}_train.jsonl"
        for number in range(given.rounds):
            hosts.reset()
            train.write_text("".join(conversation(line) for line in range(given.conversations)))
            size = train.stat().st_size
            for case, arguments in (
                ("new data", ()),
                ("the same data, another run", ("-e", "fresh=true")),
                ("one conversation more", ()),
            ):
                if case == "one conversation more":
                    with train.open("a") as file:
                        file.write(conversation(given.conversations))
                pair = bench.train(*arguments), bench.plain()
                found.setdefault(case, []).append(pair)
                print(f"  round {number + 1}, {case}: {pair[0]} by the playbook, {pair[1]} by rsync -az", flush=True)
    print(f"  the data: {given.conversations} conversations, {size:,} bytes")
    rows = []
    for case, pairs in found.items():
        print(f"\n{case}, bytes")
        medians = []
        for words, values in (
            ("to the host, playbook", [ours.there for ours, _ in pairs]),
            ("to the host, rsync -az", [plain.there for _, plain in pairs]),
            ("back, playbook", [ours.back for ours, _ in pairs]),
            ("back, rsync -az", [plain.back for _, plain in pairs]),
        ):
            print(figures(words, [float(value) for value in values], "B", 0))
            medians.append(median(values))
        rows.append([
            case, *(f"{value:,.0f}" for value in medians[:2]), f"{medians[0] / medians[1]:.2f}",
            *(f"{value:,.0f}" for value in medians[2:]), f"{medians[2] / medians[3]:.2f}",
        ])  # fmt: skip
    print()
    table(["", "to the host, bytes", "rsync -az", "ratio", "back, bytes", "rsync -az", "ratio"], rows)


if __name__ == "__main__":
    main()
