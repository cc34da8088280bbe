"""What the benchmarks share: the hosts of tests/fakes, and how figures are printed."""

from __future__ import annotations

import os
import pathlib
import signal
import statistics
import sys
from collections.abc import Iterable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests/fakes"))
from fleet_hosts import (  # noqa: F401
    DEAD_PORT,
    ENVIRONMENT,
    LOCK,
    PORT,
    ROOT,
    TRAINER_ROOT,
    Hosts,
    Taken,
    clock,
    environment,
    sh,
    store,
)

HERE = ROOT / "benchmarks"
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is removed then, too


def median(figures: Iterable[float]) -> float:
    return statistics.median(figures)


def figures(name: str, values: list[float], unit: str = "s", digits: int = 2) -> str:
    """Write one line: the median, and all figures it is the median of."""
    each = ", ".join(f"{value:.{digits}f}" for value in values)
    return f"  {name:34} {median(values):8.{digits}f} {unit}   ({each})"


def goal(words: str, met: bool) -> None:
    """Say whether a goal is met."""
    print(f"  {'met    ' if met else 'NOT MET'}  {words}", flush=True)


def table(head: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def machine() -> str:
    """Describe the machine: cores, memory and what else keeps it busy."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = next(
        (line.partition(":")[2].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")),
        os.uname().machine,
    )  # fmt: skip
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, load before {os.getloadavg()[0]:.1f}"
