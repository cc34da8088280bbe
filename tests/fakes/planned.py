"""A planned run, of which a test says only what it is about; what tests of the plan ask of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning.fleet import Trainer

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


def said(call: Callable[..., Any], *given: Any, **options: Any) -> str:
    """Return the words of the user's error that a call ends with."""
    with pytest.raises(UserError) as error:
        call(*given, **options)
    return str(error.value)


def trainers(data: Any, *names: str, **agents: tuple[str, ...]) -> list[Trainer]:
    """Return trainers on the data of a test; some declare agents, by their names."""
    return [Trainer(name, datasets_dir=str(data.folder), agents=agents.get(name, ())) for name in names]
