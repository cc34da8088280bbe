"""The variants of a recipe that a sweep trains, and which runs belong together: one file each."""

from __future__ import annotations

import hashlib
import itertools
import pathlib
import time
from collections.abc import Iterable, Sequence
from typing import Any

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.agents import name_problem
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.text import canonical

_FOLDER = "sweeps"  # of output/
_FORMS = (
    'a grid: -e \'{"sweep": {"lora_r": [16, 64], "learning_rate": [1.0e-4, 2.0e-4]}}\', '
    'or a list: -e \'{"sweep": [{"lora_r": 16}, {"lora_r": 64, "num_epochs": 4}]}\''
)


def expand_sweep(given: Any) -> list[dict[str, Any]]:
    """List the variants of a sweep: recipe overrides, one mapping for each.

    Args:
        given: A grid (key -> list of values; every combination is a variant, the last key varies fastest), or the list
            of variants itself.

    Raises:
        UserError: It is neither, or empty.
    """
    if isinstance(given, dict) and given:
        lacking = [key for key, values in given.items() if not isinstance(values, list) or not values]
        if lacking:
            raise UserError(f"sweep: «{lacking[0]}» needs a list of values, such as {lacking[0]}: [1, 2]")
        return [dict(zip(given, values)) for values in itertools.product(*given.values())]
    if isinstance(given, list) and given and all(isinstance(variant, dict) and variant for variant in given):
        return given
    raise UserError(f"sweep must be {_FORMS}")


def variant_label(variant: dict[str, Any]) -> str:
    """Say what a variant changes: «lora_r 16, learning_rate 0.0001»."""
    return ", ".join(f"{key} {canonical(value).strip(chr(34))}" for key, value in variant.items())


def write_sweeps(output: pathlib.Path, runs: Sequence[PlannedRun]) -> None:
    """Write down which runs are variants of each other, one file an agent: ``sweeps/<agent>-<8 hex>.json``.

    Args:
        output: Where adapters are kept.
        runs: The planned runs, those of an agent in the user's order.
    """
    for agent in dict.fromkeys(run.agent for run in runs):
        theirs = [run for run in runs if run.agent == agent]
        rows = [{"run_id": run.run_id, "variant": run.variant, "label": variant_label(run.variant)} for run in theirs]
        mark = hashlib.sha256(canonical(sorted(run.run_id for run in theirs)).encode()).hexdigest()[:8]
        path = output / _FOLDER / f"{agent}-{mark}.json"
        if rundir.read_json(path).get("runs") != rows:
            path.parent.mkdir(parents=True, exist_ok=True)
            rundir.write_json(path, {"name": path.stem, "agent": agent, "runs": rows, "made_at": round(time.time(), 3)})


def read_sweeps(output: pathlib.Path, agents: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Read the sweeps that were noted, newest first; a damaged file is passed over.

    Args:
        output: Where adapters are kept.
        agents: Only theirs; empty for all.
    """
    sweeps = [rundir.read_json(path) | {"name": path.stem} for path in (output / _FOLDER).glob("*.json")]
    wanted = set(agents)
    known = [sweep for sweep in sweeps if isinstance(sweep.get("agent"), str)]
    known = [sweep for sweep in known if not name_problem(sweep["agent"])]
    whole = [sweep for sweep in known if (not wanted or sweep["agent"] in wanted) and _is_whole(sweep.get("runs"))]
    return sorted(whole, key=lambda sweep: (sweep.get("made_at") or 0, sweep["name"]), reverse=True)


def _is_whole(runs: Any) -> bool:
    return (
        isinstance(runs, list)
        and bool(runs)
        and all(
            isinstance(run, dict) and isinstance(run.get("run_id"), str) and isinstance(run.get("variant"), dict)
            for run in runs
        )
    )
