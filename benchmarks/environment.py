"""How long a trainer's environment takes: made by uv, as on a trainer, against pip, from the same lock, hashes checked.

    .venv/bin/python benchmarks/environment.py [--rounds 3] [--pip-rounds 1]

«Cold» means with an empty cache, «warm» with the cache that the cold run filled, each time into a new environment. Both
look for packages in the default index, or in UV_DEFAULT_INDEX; the lock is the CUDA one, which has everything there.
pip is given ``--no-deps``, as the lock is complete, and pip takes a name with an extra for one that is not pinned; and
``--no-compile``, as uv leaves that to the first import.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import tempfile
import time

from hosts import ROOT, clock, environment, figures, goal, machine, median, table

LOCK = ROOT / "requirements/trainer-cuda.txt"
COLD_GOAL, WARM_GOAL = 8.0, 50.0  # times as fast as pip
# What the trainer_environment module does, in a process of its own.
MAKE = """
import pathlib, sys
import ansible.module_utils
ansible.module_utils.__path__.append(sys.argv[1])
from ansible.module_utils.lora_forge.trainer import environment
environment.ensure(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]), sys.argv[4], sys.argv[6], sys.argv[5])
"""


class Bench:
    """A folder with caches and environments, on the disk where environments lie.

    Args:
        home: The folder.
    """

    def __init__(self, home: pathlib.Path):
        self.home = home
        self.python = environment.interpreter("", False, ROOT / ".trainer")
        self.uv = str(ROOT / ".venv/bin/uv")

    def uv_once(self) -> float:
        """Return the seconds that uv takes for an environment, as the role makes it."""
        root = self.home / "env"
        shutil.rmtree(root, ignore_errors=True)
        command = [
            str(ROOT / ".venv/bin/python"), "-c", MAKE, str(ROOT / "module_utils"), str(root), str(LOCK), self.uv, "",
            self.python,
        ]  # fmt: skip
        taken = clock(command, self.home / "log", {"UV_CACHE_DIR": str(self.home / "uv-cache")})
        assert environment.is_complete(root / environment.environment_name(LOCK))
        return taken.seconds

    def pip_once(self) -> float:
        """Return the seconds that venv and pip take for the same lock, without resolving, as uv does it."""
        root = self.home / "pip"
        shutil.rmtree(root, ignore_errors=True)
        install = f"{root}/bin/python -m pip install --quiet --no-deps --no-compile --require-hashes -r {LOCK}"
        variables = {
            "PIP_CACHE_DIR": str(self.home / "pip-cache"),
            "PIP_CONFIG_FILE": os.devnull,  # uv does not read it either
        }
        if os.environ.get("UV_DEFAULT_INDEX"):
            variables["PIP_INDEX_URL"] = os.environ["UV_DEFAULT_INDEX"]
        command = ["sh", "-euc", f"{self.python} -m venv {root}; {install}"]
        return clock(command, self.home / "log", variables).seconds

    def cold(self, tool: str) -> float:
        """Return the seconds with an empty cache; leave it full.

        Args:
            tool: uv or pip.
        """
        shutil.rmtree(self.home / f"{tool}-cache", ignore_errors=True)
        return self.uv_once() if tool == "uv" else self.pip_once()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="measurements with uv")
    parser.add_argument("--pip-rounds", type=int, default=1, help="measurements with pip, which takes minutes")
    given = parser.parse_args()
    print(
        f"environment: {environment.packages(LOCK)} packages of {LOCK.name}; {machine()}, {time.strftime('%Y-%m-%d')}"
    )
    (ROOT / ".trainer").mkdir(exist_ok=True)
    home = pathlib.Path(tempfile.mkdtemp(prefix="bench-", dir=ROOT / ".trainer"))
    taken: dict[str, list[float]] = {"uv cold": [], "uv warm": [], "pip cold": [], "pip warm": []}
    try:
        bench = Bench(home)
        for tool, rounds in (("uv", given.rounds), ("pip", given.pip_rounds)):
            for _ in range(rounds):
                taken[f"{tool} cold"].append(bench.cold(tool))
                once = bench.uv_once if tool == "uv" else bench.pip_once
                taken[f"{tool} warm"].append(once())
                print(
                    f"  {tool}: cold {taken[f'{tool} cold'][-1]:.1f} s, warm {taken[f'{tool} warm'][-1]:.2f} s",
                    flush=True,
                )
    finally:
        shutil.rmtree(home, ignore_errors=True)
    for name, values in taken.items():
        print(figures(name, values))
    medians = {name: median(values) for name, values in taken.items()}
    print("\ngoals")
    for kind, least in (("cold", COLD_GOAL), ("warm", WARM_GOAL)):
        ratio = medians[f"pip {kind}"] / medians[f"uv {kind}"]
        goal(f"{kind}: uv is {ratio:.1f} times as fast as pip; at least {least:.0f}", ratio >= least)
    print()
    table(
        ["", "uv, s", "pip, s", "ratio"],
        [
            [kind, f"{medians[f'uv {kind}']:.1f}", f"{medians[f'pip {kind}']:.1f}",
             f"{medians[f'pip {kind}'] / medians[f'uv {kind}']:.1f}"]
            for kind in ("cold", "warm")
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
