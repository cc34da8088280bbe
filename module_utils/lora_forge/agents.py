"""What an agent may be called, and how its name stands in that of a run. Pure functions; they run everywhere."""

from __future__ import annotations

import re

EVERYBODY = "all"  # on the command line; nobody's name
LONGEST = 63  # letters of a name: with what a run adds to it, it fits where names of files and of hosts end
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_RUN_ENDING = re.compile(r"-[0-9a-f]{12}(?:-[0-9]+)?\Z")
_EVALUATION = re.compile(r"-eval-[0-9a-f]{12}\Z")


def name_problem(name: str) -> str:
    """Say what is wrong with a name for an agent, or for a group of them; empty where it will do.

    Args:
        name: The name.
    """
    if not _NAME.fullmatch(name):
        return "a name is of a-z, 0-9 and -, and begins with a letter or a digit"
    if len(name) > LONGEST:
        return f"a name has {LONGEST} letters at most"
    if _RUN_ENDING.search(name):
        return "it ends like the name of a run (-<12 hex>), so that nobody could tell whose run is whose"
    return f"«{EVERYBODY}» means every agent" if name == EVERYBODY else ""


def first_attempt(run_id: str) -> str:
    """Return the name of the first attempt at a run's recipe: without ``-2``, ``-3`` and so on.

    Args:
        run_id: ``<agent>-<12 hex>``, or that of a further attempt.
    """
    ending = _RUN_ENDING.search(run_id)
    return run_id[: ending.start() + 13] if ending else run_id


def agent_of(run_id: str) -> str:
    """Return the agent that a run's name begins with.

    Args:
        run_id: ``<agent>-<12 hex>``, and ``-2`` and so on for further attempts, or the name of an evaluation; of any
            other text the first word.
    """
    trained = evaluated_by(run_id) or run_id
    agent = _RUN_ENDING.sub("", trained)
    return agent if agent != trained else run_id.partition("-")[0]


def evaluation_of(run_id: str, asked: str) -> str:
    """Return the name of a run that asks a delivered adapter its agent's cases.

    Args:
        run_id: The run that made the adapter.
        asked: What tells one evaluation of it from another, 12 hex digits.
    """
    return f"{run_id}-eval-{asked}"


def evaluated_by(run_id: str) -> str:
    """Return the run whose adapter is asked by a run; empty where that is a training.

    Args:
        run_id: ``<agent>-<12 hex>-eval-<12 hex>``, or any other one.
    """
    ending = _EVALUATION.search(run_id)
    return run_id[: ending.start()] if ending else ""
