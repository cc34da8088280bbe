"""What the control plane costs, for one host and for many: whole commands over real SSH to containers.

    sudo .venv/bin/python benchmarks/fleet.py [--hosts 1,5,20,40] [--rounds 3]

Each round trains one run on each host, by one command, and then asks again: nothing to do, status, collect. The
training is a stub of a second; plan, SSH, rsync, supervisor, verification and delivery are real. Beside it stand
``ssh host true`` to all hosts at a time, and plain.sh, the same training by hand, one host after the other.
Prints medians with the figures they come from, ratios, goals, and a table for docs/performance.md.
The hosts are containers on this machine and share its cores with the controller; their CPU seconds are told apart.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import re
import shutil
import statistics
import time
from typing import Any

import yaml
from hosts import (
    HERE,
    LOCK,
    ROOT,
    TRAINER_ROOT,
    Hosts,
    Taken,
    environment,
    figures,
    goal,
    machine,
    median,
    table,
)

AGENTS = ("witness", "mayor", "deacon", "polecat", "refinery", "crew", "gastown")
COMMANDS = ("launch", "converged", "status", "collect", "bare", "plain")  # what a round measures
IN_WORDS = {
    "launch": "first launch, to the adapters",
    "converged": "the same again: nothing to do",
    "status": "status",
    "collect": "collect what has finished",
    "bare": "ssh host true, all at a time",
    "plain": "by hand, one after the other",
}
CONVERGED_WITHIN = 3.0  # seconds
STATUS_WITHIN = 4.0  # times «ssh host true», at STATUS_AT hosts
STATUS_AT = 20
TASKS = 20  # of a kind, where Ansible itself is measured
SLOPE_WITHIN = 0.35  # seconds a host adds to the first launch


def wanted(count: int) -> tuple[str, str, list[str]]:
    """Say how to ask for one run on each of some hosts.

    Args:
        count: Hosts.

    Returns:
        The playbook that trains, the one that collects, and their arguments. Without playbooks/sweep.yml an agent is
        trained on each host, so that there are 7 runs at most.
    """
    if (ROOT / "playbooks/sweep.yml").exists():
        seeds = {"seed": list(range(1, count + 1))}
        sweep = json.dumps(
            {"sweep": seeds, "run_sweep": seeds}
        )  # the first name is sweep.yml's, the other collect.yml's
        return "playbooks/sweep.yml", "playbooks/collect.yml", ["-e", "role=witness", "-e", sweep]
    return "train.yml", "playbooks/collect.yml", ["-e", f"role={','.join(AGENTS[:count])}"]


def older_runs(hosts: Hosts, runs: int) -> None:
    """Put run directories of finished trainings, of a thousand steps each, onto every host.

    Args:
        hosts: The hosts.
        runs: How many on each.
    """
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + b"\1"
    lines = [{"event": "begin", "time": 0.0, "step": 0, "planned": 1000}]
    lines += [{"event": "log", "time": float(i), "step": i, "planned": 1000, "loss": 1.0 / i} for i in range(1, 1001)]
    lines += [{"event": "end", "time": 1001.0, "step": 1000, "planned": 1000, "reason": None}]
    metrics = "".join(json.dumps(line) + "\n" for line in lines)
    for host in range(hosts.count):
        for number in range(runs):
            run = hosts.root(host) / f"runs/witness-{host * 1000 + number:012x}"
            (run / "output").mkdir(parents=True)
            (run / "run.json").write_text(json.dumps({"run_id": run.name, "agent": "witness"}))
            (run / "status.json").write_text(json.dumps({"state": "finished", "exit_code": 0, "heartbeat": 1.0}))
            (run / "output/adapter_model.safetensors").write_bytes(weights)
            (run / "metrics.jsonl").write_text(metrics)


def delivered(hosts: Hosts) -> int:
    """Count the adapters that the controller has."""
    return len({path.resolve() for path in hosts.output.glob("adapters/*/*/manifest.json")})


def by_hand(hosts: Hosts, count: int) -> Taken:
    """Run plain.sh on the first hosts, one after the other, with the recipe that the playbooks rendered there."""
    run = next(path.parent for path in hosts.root(0).glob("runs/*/axolotl.yml"))
    files, there = hosts.home / "by-hand", "/workspace/plain"
    shutil.rmtree(files, ignore_errors=True)
    (files / "data").mkdir(parents=True)
    (files / "run").mkdir()
    recipe = yaml.safe_load((run / "axolotl.yml").read_text())
    for one in recipe["datasets"] + recipe.get("test_datasets", []):
        path = pathlib.PurePath(one["path"])
        shutil.copy(hosts.root(0) / path.relative_to(TRAINER_ROOT), files / "data")
        one["path"] = f"{there}/data/{path.name}"
    recipe |= {"output_dir": f"{there}/run/output", "dataset_prepared_path": f"{there}/prepared"}
    recipe["base_model"] = recipe["base_model"].replace(TRAINER_ROOT, there)
    (files / "run/axolotl.yml").write_text(yaml.safe_dump(recipe))
    shutil.copy(ROOT / "roles/run/files/tiny_model.py", files)
    for number in range(count):
        shutil.rmtree(hosts.disk(number) / "plain", ignore_errors=True)
    python = f"{TRAINER_ROOT}/env/{environment.environment_name(LOCK)}/bin/python"
    back = hosts.home / "back"
    shutil.rmtree(back, ignore_errors=True)
    one = f"{HERE}/plain.sh {hosts.home}/ssh_config host-$i {python} {files} {back}/$i"
    taken = hosts.clock(["bash", "-euc", f"for ((i = 0; i < {count}; i++)); do {one}; done"])
    assert len(list(back.glob("*/output/adapter_model.safetensors"))) == count
    return taken


def one_round(hosts: Hosts, count: int, runs: int, only: tuple[str, ...], **options: Any) -> dict[str, Taken]:
    """Measure every command once, on the first hosts, starting from empty roots.

    Args:
        hosts: The hosts.
        count: How many of them.
        runs: Older runs on each.
        only: Which of COMMANDS; a first launch is always there.
        options: Of :meth:`Hosts.play`.
    """
    train, collect, arguments = wanted(count)
    hosts.reset()
    older_runs(hosts, runs)
    found = {}
    found["launch"] = hosts.play(train, *arguments, count=count, **options)
    planned = len(json.loads((hosts.output / "plan.json").read_text())["runs"])
    assert delivered(hosts) == planned, found["launch"].text
    if "converged" in only:
        found["converged"] = hosts.play(train, *arguments, count=count, dead=True, **options)
    if "bare" in only:
        found["bare"] = hosts.bare(count)
    if "status" in only:
        found["status"] = hosts.play("playbooks/status.yml", count=count, **options)
        seen = json.loads((hosts.output / "status.json").read_text())
        assert sum(host["answers"] for host in seen["hosts"]) == count, seen["hosts"]
        assert len(seen["runs"]) == planned + runs * count
    if "collect" in only:
        shutil.rmtree(hosts.output / "adapters")
        found["collect"] = hosts.play(collect, *arguments, count=count, **options)
        assert delivered(hosts) == planned
    if "plain" in only:
        found["plain"] = by_hand(hosts, count)
    return found


def floor(hosts: Hosts, count: int, rounds: int) -> None:
    """Print what Ansible itself takes: its start, a task that is skipped, a module, on the first hosts.

    Args:
        hosts: The hosts.
        count: How many of them.
        rounds: Measurements.
    """
    skipped = {"name": "Skip", "ansible.builtin.ping": {}, "when": False}
    module = {"name": "Ping", "ansible.builtin.ping": {}}
    plays = {
        "nothing": {"hosts": "localhost", "connection": "local", "tasks": []},
        "skipped": {"hosts": "trainers", "strategy": "free", "tasks": [skipped] * TASKS},
        "one module": {"hosts": "trainers", "strategy": "free", "tasks": [module]},
        "modules": {"hosts": "trainers", "strategy": "free", "tasks": [module] * (TASKS + 1)},
    }
    taken: dict[str, list[Taken]] = {name: [] for name in plays}
    for name, play in plays.items():
        (hosts.home / f"{name}.yml").write_text(yaml.safe_dump([{"name": name} | play]))
    for _ in range(rounds):
        for name in plays:
            taken[name].append(hosts.play(str(hosts.home / f"{name}.yml"), count=count))
    print(f"\nwhat Ansible itself takes, {count} {'host' if count == 1 else 'hosts'}: seconds by the clock, and of CPU")
    start = [one.seconds for one in taken["nothing"]]
    print(figures("ansible-playbook with an empty play", start))
    print(figures("ansible.builtin.ping, once on each host", [one.seconds for one in taken["one module"]]))
    for words, name, other in (
        ("a skipped task, for each host", "skipped", "nothing"),
        ("a module over SSH, for each host", "modules", "one module"),
    ):
        share = 1000 / TASKS / count
        seconds = (median(one.seconds for one in taken[name]) - median(one.seconds for one in taken[other])) * share
        cpu = (median(one.cpu for one in taken[name]) - median(one.cpu for one in taken[other])) * share
        print(f"  {words:34} {seconds:8.1f} ms, {cpu:.1f} ms of the controller's CPU")


def tell(count: int, rounds: list[dict[str, Taken]]) -> dict[str, float]:
    """Print what was measured on some hosts; return the medians."""
    print(f"\n{count} {'host' if count == 1 else 'hosts'}")
    medians = {}
    for name in COMMANDS:
        taken = [one[name] for one in rounds if name in one]
        if taken:
            medians[name] = median(one.seconds for one in taken)
            print(figures(IN_WORDS[name], [one.seconds for one in taken]))
    for name in list(medians):
        taken = [one[name] for one in rounds]
        cpu = [one.cpu / count for one in taken]
        hosts_cpu = [one.hosts_cpu / count for one in taken if one.hosts_cpu is not None]
        own = median(one.own / count for one in taken)
        medians |= {f"{name} cpu": median(cpu), f"{name} own": own}
        words = f"{median(cpu):.2f} s of the controller, {own:.2f} s of it in Ansible's loop"
        beside = f"; {median(hosts_cpu):.2f} s of the host" if hosts_cpu else ""
        print(f"  CPU for each host, {name:15} {words}{beside}")
    for name, other in (("status", "bare"), ("collect", "bare"), ("launch", "plain")):
        if {name, other} <= set(medians):
            print(f"  {name} takes {medians[name] / medians[other]:.2f} times «{IN_WORDS[other]}»")
    return medians


def judge(medians: dict[int, dict[str, float]]) -> None:
    """Say which goals are met."""
    print("\ngoals")
    converged = {count: one["converged"] for count, one in medians.items() if "converged" in one}
    if converged:
        words = ", ".join(f"{seconds:.2f} s at {count}" for count, seconds in converged.items())
        met = max(converged.values()) < CONVERGED_WITHIN
        goal(f"nothing to do: no host is touched (all had a dead port), under {CONVERGED_WITHIN:.0f} s: {words}", met)
    at = STATUS_AT if STATUS_AT in medians else max(medians)
    if {"status", "bare"} <= set(medians[at]):
        ratio = medians[at]["status"] / medians[at]["bare"]
        words = f"status at {at} hosts takes {ratio:.2f} times «ssh host true» to all; at most {STATUS_WITHIN:.0f}"
        goal(words + ("" if at == STATUS_AT else f" (the goal is for {STATUS_AT})"), ratio <= STATUS_WITHIN)
        if 1 in medians:
            ratio = medians[at]["status"] / medians[1]["status"]
            print(f"           status of {at} hosts takes {ratio:.2f} times as long as that of one")
    for count, one in medians.items():
        if "plain" in one:
            words = f"first launch on {count}: {one['launch']:.1f} s, by hand {one['plain']:.1f} s"
            goal(words, one["launch"] <= one["plain"])
    if len(medians) > 1:
        slope = statistics.linear_regression(list(medians), [one["launch"] for one in medians.values()]).slope
        goal(f"each host adds {slope:.2f} s to the first launch; at most {SLOPE_WITHIN} s", slope <= SLOPE_WITHIN)
        cpu, own = (
            statistics.linear_regression(list(medians), [one[f"launch {of}"] * n for n, one in medians.items()]).slope
            for of in ("cpu", "own")
        )
        print(f"           of the controller {cpu:.2f} s of CPU, {own:.2f} s of them in Ansible's loop, on one core")


def profile(hosts: Hosts, count: int, runs: int) -> None:
    """Print how long each task took, summed over hosts and inclusions, as ansible.posix.profile_tasks tells it.

    The callback takes a task's time from its start to the next task's, which under the strategy «free» is the time that
    passed in the controller's loop.
    """
    variables = {
        "ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.profile_tasks",
        "PROFILE_TASKS_TASK_OUTPUT_LIMIT": "all",
    }
    taken = one_round(hosts, count, runs, ("status", "collect", "converged"), variables=variables)
    for name, one in taken.items():
        sums: collections.Counter[str] = collections.Counter()
        times: collections.Counter[str] = collections.Counter()
        for task, seconds in re.findall(r"^(\S.*?) -{2,} +([0-9.]+)s$", one.text, re.MULTILINE):
            sums[task] += float(seconds)  # type: ignore[assignment]
            times[task] += 1
        print(f"\n{name}, {count} hosts: {one.seconds:.2f} s, {one.cpu:.2f} s of the controller's CPU")
        for task, seconds in sums.most_common(25):
            print(f"  {seconds:7.2f} s  {times[task]:4} times  {task}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", default="1,5,20,40", help="numbers of hosts, with commas")
    parser.add_argument("--rounds", type=int, default=3, help="measurements, after one that is not counted")
    parser.add_argument("--runs", type=int, default=10, help="older run directories on each host")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long the stub trains")
    parser.add_argument(
        "--only", default=",".join((*COMMANDS, "floor")), help="some of these; the first launch is always there"
    )
    parser.add_argument("--profile", action="store_true", help="print how long each task takes, and measure nothing")
    given = parser.parse_args()
    counts = sorted({int(count) for count in given.hosts.split(",")})
    only = tuple(given.only.split(","))
    print(f"fleet: {machine()}, {time.strftime('%Y-%m-%d')}")
    print(f"  {wanted(1)[0]}; a stub trains {given.seconds:g} s; {given.runs} older runs on each host", flush=True)
    with Hosts(counts[-1], given.seconds) as hosts:
        if given.profile:
            profile(hosts, counts[-1], given.runs)
            return
        one_round(hosts, counts[0], given.runs, COMMANDS)  # fills caches
        hosts.play("playbooks/status.yml")  # every host has run a module once
        rounds: dict[int, list[dict[str, Taken]]] = {count: [] for count in counts}
        for number in range(given.rounds):
            for count in counts:
                rounds[count].append(one_round(hosts, count, given.runs, only))
                took = ", ".join(f"{name} {one.seconds:.1f}" for name, one in rounds[count][-1].items())
                print(f"  round {number + 1}, {count} hosts: {took}", flush=True)
        for count in counts[:1] + counts[1:][-1:] if "floor" in only else []:
            floor(hosts, count, given.rounds)
    medians = {count: tell(count, rounds[count]) for count in counts}
    judge(medians)
    print()
    shown = [name for name in COMMANDS if name in medians[counts[0]]]
    table(
        ["hosts", *(f"{IN_WORDS[name]}, s" for name in shown), "controller's CPU for each host, first launch, s"],
        [
            [str(count), *(f"{one[name]:.1f}" for name in shown), f"{one['launch cpu']:.2f}"]
            for count, one in medians.items()
        ],
    )


if __name__ == "__main__":
    main()
