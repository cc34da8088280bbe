#!/usr/bin/env python3
"""Mutation testing of what decides: mutmut changes one thing at a time, and a unit test must notice.

It works on a copy of the checkout, in a temporary folder. What mutmut changes: operators, comparisons, numbers, names
and keys, arguments, assignments, in functions and methods without decorators. Tables at the top of a module stay as
they are.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import sandbox

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCE = pathlib.Path("ansible/module_utils/lora_forge")  # the path says what the tests import
# What decides, and the unit tests that belong to it.
TESTS = {
    "planning/layers": ("layers", "rules"),
    "planning/rivals": ("rules",),
    "planning/recipe": ("recipe", "rules"),
    "planning/recipe_problems": ("recipe_problems", "rules"),
    "planning/rules": ("rules",),
    "planning/spelling": ("spelling", "rules"),
    "planning/templates": ("templates",),
    "planning/validation": ("validation",),
    "planning/plan": ("plan", "placement"),
    "planning/planner": ("plan", "placement", "agent_data", "steps", "estimates"),
    "planning/placement": ("placement",),
    "planning/plan_table": ("plan_table", "evaluations"),
    "planning/agent_recipes": ("agent_recipes", "rules"),
    "planning/agent_data": ("agent_data",),
    "planning/estimates": ("estimates", "plan"),
    "planning/found_runs": ("found_runs", "agents"),
    "planning/attempts": ("attempts",),
    "planning/answering": ("answering", "costs"),
    "planning/evaluations": ("evaluations",),
    "planning/steps": ("steps",),
    "planning/agents": ("agents",),
    "planning/fleet": ("fleet", "placement"),
    "planning/options": ("options",),
    "planning/launch": ("launch",),
    "planning/run_record": ("run_record",),
    "planning/turns": ("turns",),
    "planning/questions": ("questions",),
    "data/cases": ("cases",),
    "evaluation/checks": ("checks",),
    "evaluation/tool_calls": ("checks",),
    "evaluation/scores": ("scores",),
    "evaluation/answers": ("merit", "questions"),
    "adapters/expectation": ("store",),
    "adapters/merit": ("merit",),
    "adapters/store": ("store",),
    "adapters/promotion": ("promotion",),
    "pods/claims": ("costs", "lifecycle"),
    "pods/costs": ("costs", "lifecycle"),
    "pods/finding": ("lifecycle", "lifecycle_hostile"),
    "pods/offers": ("lifecycle", "lifecycle_living", "spending"),
    "pods/release": ("lifecycle", "lifecycle_hostile", "lifecycle_living"),
    "pods/watching": ("lifecycle", "lifecycle_hostile", "lifecycle_living"),
    "trainer/runs": ("runs_at_rest",),
    "trainer/launching": ("runs_at_rest",),
    "trainer/stopping": ("runs_at_rest",),
    "trainer/pruning": ("runs_at_rest",),
    "trainer/saved": ("runs_at_rest",),
    "trainer/run_state": ("verdict", "watch"),
    "results/verdict": ("verdict",),
}
NOTICED = ("killed", "timeout")  # what mutmut calls a change that made a test fail, or run without end
SEED = 1  # of --sample: the same mutants each time


@dataclasses.dataclass
class Outcome:
    """What became of a module's mutants.

    Attributes:
        module: Its name.
        states: Of each mutant that was tried: killed, timeout, survived, no tests …
        diffs: The change of each one that no test noticed.
    """

    module: str
    states: dict[str, str]
    diffs: dict[str, str]

    @property
    def killed(self) -> int:
        """How many a test noticed, be it by not coming to an end."""
        return sum(state in NOTICED for state in self.states.values())

    def row(self) -> str:
        tried = len(self.states)
        return (
            f"{self.module:20}{tried:8}{self.killed:8}{tried - self.killed:10}{100 * self.killed / (tried or 1):8.1f}"
        )


def tests_of(module: str) -> list[str]:
    """Return the test files of a module that are there."""
    paths = [f"tests/unit/test_{name}.py" for name in TESTS[module]]
    return [path for path in paths if (ROOT / path).exists()]


def copy(folder: pathlib.Path, module: str) -> None:
    """Lay the checkout out for mutmut: what it mutates in ``folder``, what the tests run on in ``folder/mutants``.

    A copy that is there already gets the tests and sources of now; what is known of a module stays until it changes.
    """
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    inside = folder / "mutants"
    (inside / SOURCE).mkdir(parents=True, exist_ok=True)
    (folder / SOURCE).mkdir(parents=True, exist_ok=True)
    if not (inside / "module_utils").is_symlink():
        (inside / "module_utils").symlink_to(SOURCE.parent)
    for name in filter(None, listed.stdout.split("\0")):
        source = ROOT / name
        ours = name.startswith("module_utils/lora_forge/")
        part = source.relative_to(ROOT / "module_utils/lora_forge") if ours else pathlib.Path()
        target = folder / SOURCE / part if ours else inside / name
        if not source.exists() or (target.exists() and target.stat().st_mtime_ns == source.stat().st_mtime_ns):
            continue
        if ours and str(part.with_suffix("")) == module:  # its mutants are others now
            for old in (f"{module}.py", f"{module}.py.meta"):
                (inside / SOURCE / old).unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)
    (inside / "mutmut-stats.json").unlink(missing_ok=True)  # which test reaches which function
    (folder / "setup.cfg").write_text(
        f"[mutmut]\nsource_paths={SOURCE}\nonly_mutate={SOURCE}/{module}.py\nuse_git_change_detection=false\n"
        "track_dependencies=false\ntimeout_constant=5\ntimeout_multiplier=12\n"
        "pytest_add_cli_args_test_selection=\n  " + "\n  ".join(tests_of(module)) + "\n"
    )


def names_only(node: Any) -> Iterator[Any]:
    """Yield mutmut's changes of a string, but not of a text for people: how a sentence is worded decides nothing."""
    from mutmut.mutation.mutators import operator_string

    if " " not in getattr(node, "value", " "):
        yield from operator_string(node)


def without_case(test: str) -> str:
    """Name a test without its case, that is with all of them, where the case's name has a backslash.

    pytest keeps the name of a case and escapes it again whenever a process collects it, so mutmut would not find it.
    """
    return test.partition("[")[0] if "\\" in test else test


def try_module(folder: pathlib.Path, module: str, sample: int) -> None:
    """Try the mutants of one module, in a process of its own; mutmut keeps what it found beside the mutated file.

    Args:
        folder: From :func:`copy`.
        module: Its name.
        sample: Try so many, chosen by chance; 0 for all. Those that a test has noticed are not tried again.
    """
    os.chdir(folder)
    log = os.open("mutmut.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import mutmut.__main__ as program
    from mutmut.mutation import file_mutation, mutators
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.runners import harness
    from mutmut.utils.format_utils import get_mutant_name

    operators = [
        (kind, names_only if op is mutators.operator_string else op) for kind, op in mutators.mutation_operators
    ]
    mutators.mutation_operators[:] = operators
    named = harness.PytestRunner._pytest_args_regular_run
    harness.PytestRunner._pytest_args_regular_run = lambda runner, tests: named(runner, list(map(without_case, tests)))
    path = SOURCE / f"{module}.py"
    made = file_mutation.mutate_file_contents(str(path), path.read_text(encoding="utf-8"))
    names = [get_mutant_name(path, name) for name in made.mutant_names]
    if sample and sample < len(names):
        names = sorted(random.Random(SEED).sample(names, sample))
    pathlib.Path("chosen.json").write_text(json.dumps(names))
    noticed = states(folder, module)
    left = [name for name in names if noticed.get(name) not in NOTICED]
    if left:
        program.cli.main(["run", "--max-children", "1", *left], standalone_mode=False)
    noticed = states(folder, module)
    lived = [name for name in names if noticed[name] not in NOTICED]
    pathlib.Path("diffs.json").write_text(json.dumps({name: get_diff_for_mutant(name, path=path) for name in lived}))


def states(folder: pathlib.Path, module: str) -> dict[str, str]:
    """Return what mutmut noted of a module's mutants."""
    from mutmut.stats import status_by_exit_code

    path = folder / "mutants" / SOURCE / f"{module}.py.meta"
    if not path.exists():
        return {}
    noted = json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
    return {name: status_by_exit_code[code] for name, code in noted.items()}


def outcome(folder: pathlib.Path, module: str, sample: int) -> Outcome:
    """Try a module's mutants, and say what became of them."""
    copy(folder, module)
    process = multiprocessing.get_context("fork").Process(target=try_module, args=(folder, module, sample))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"mutmut failed over {module}:\n{(folder / 'mutmut.log').read_text(encoding='utf-8')[-4000:]}")
    chosen = json.loads((folder / "chosen.json").read_text())
    noted = states(folder, module)
    tried = {name: noted[name] for name in chosen}
    return Outcome(module, tried, json.loads((folder / "diffs.json").read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"{', '.join(TESTS)}; all of them without")
    parser.add_argument("--sample", type=int, default=0, help="try so many of a module's mutants, always the same ones")
    parser.add_argument("--show", action="store_true", help="print the changes that no test noticed")
    parser.add_argument(
        "--keep",
        type=pathlib.Path,
        metavar="FOLDER",
        help="where the copies stay: called again, it tries what was left",
    )
    asked = parser.parse_args()
    unknown = set(asked.modules) - set(TESTS)
    if unknown:
        parser.error(f"no such module: {', '.join(sorted(unknown))}; there are {', '.join(TESTS)}")
    place = sandbox.Sandbox()  # one for all the runs of pytest
    with contextlib.closing(place), tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        folder = asked.keep.resolve() if asked.keep else pathlib.Path(temporary)
        print(f"{'module':20}{'mutants':>8}{'killed':>8}{'survived':>10}{'%':>8}", flush=True)
        for module in asked.modules or TESTS:
            found = outcome(folder / module, module, asked.sample)
            print(found.row(), flush=True)
            if asked.show:
                print("\n".join(found.diffs.values()), flush=True)


if __name__ == "__main__":
    main()
