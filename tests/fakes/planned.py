"""A planned run, of which a test says only what it is about; the one run of a plan."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.lora_forge.planned_run import PlannedRun

_DEFAULTS: dict[str, Any] = {
    "run_id": "witness-0123456789ab",
    "agent": "witness",
    "name": "witness",
    "fingerprint": "0123456789ab" + 52 * "0",
    "trainer": "here",
    "state": "to train",
    "rehearsal": False,
    "recipe": {},
    "recipe_sha256": 64 * "0",
    "axolotl": "0.21.0",
    "datasets": (),
}


def planned_run(**values: Any) -> PlannedRun:
    """Return a run of which some values are given; where it trains, its trainer is its only host."""
    known = _DEFAULTS | values
    return PlannedRun(**{"hosts": (known["trainer"],), **known})


def one(made: Any) -> PlannedRun:
    """Return the only run of a plan."""
    [run] = made.runs
    return run


def told(run: PlannedRun) -> tuple[str, str, str, str]:
    """Return what a plan decides on a run: its name, its state, why, and where."""
    return run.run_id, run.state, run.why, run.trainer
