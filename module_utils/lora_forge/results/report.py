"""The report page: which adapters this controller has, how they were trained, and what they cost.

Everything is read below the output folder; nothing is asked of a host. What is damaged or missing is named in the page.
The page depends on what was read alone, not on the clock: the same data give the same bytes.
"""

from __future__ import annotations

import functools
import json
import math
import pathlib
import statistics
from collections.abc import Collection
from datetime import datetime, timezone
from typing import Any, Optional

import jinja2
from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.adapters import promotion, store
from ansible.module_utils.lora_forge.adapters.manifest import Cost
from ansible.module_utils.lora_forge.adapters.merit import EVALUATION, merit_of
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.evaluation.answers import ADAPTER
from ansible.module_utils.lora_forge.planning import variants
from ansible.module_utils.lora_forge.planning.agents import FOLDER
from ansible.module_utils.lora_forge.results import leaderboard, report_cases
from ansible.module_utils.lora_forge.results.report_pictures import (
    MEASURES,
    Point,
    ReportedRun,
    dashes,
    figure,
    finite_number,
    picture,
)
from ansible.module_utils.lora_forge.results.summary import interval_of, percent, scored, verdict
from ansible.module_utils.lora_forge.text import duration
from ansible.module_utils.lora_forge.trainer import run_state

_SHOWN = 6  # runs of an agent in its pictures: as many as a reader can tell apart
NOTHING = "–"
OWN = "own hardware"  # how costs.usd_spent words it
_STANDING = ("disputed", "verified")  # verdict and state of what is proven, and contradicted all the same


# --- what there is


def _read_points(path: pathlib.Path) -> tuple[dict[str, list[Point]], Optional[float]]:
    """Read the losses of a run's metrics.jsonl, and the median of its tokens a second.

    What a resume took back is left out. Minutes count from the first start on, pauses included.
    """
    events = rundir.read_events(path)[0]
    points: dict[str, list[Point]] = {name: [] for name in MEASURES}
    rates, minutes = [], 0.0
    before: Optional[dict[str, Any]] = None  # what the training said last, of the first start on
    for event in rundir.surviving_events(events):
        if event.get("event") == "begin" or (before and event.get("event") in ("log", "eval")):
            minutes += rundir.seconds_between(before or event, event) / 60
            before = event
        for name in MEASURES:
            if event.get("event") == {"loss": "log", "eval_loss": "eval"}[name] and event.get(name) is not None:
                value = float(event[name]) if run_state.finite(event[name]) else math.nan
                points[name].append(Point(event.get("step", 0), minutes, value, str(event[name])[:20]))
        if run_state.finite(event.get("tokens_per_second")):
            rates.append(event["tokens_per_second"])
    return points, statistics.median(rates) if rates else None


def _read_runs(home: pathlib.Path, disputed: set[str], warnings: list[str]) -> list[ReportedRun]:
    """Read the delivered runs of an agent, the newest first.

    Args:
        home: output/adapters/<agent>.
        disputed: Delivered runs of which the last status found a contradiction.
        warnings: What could not be read is added here.
    """
    promoted = promotion.points_to(home / promotion.LATEST)
    runs = []
    for folder in sorted(home.iterdir()):
        if folder.is_symlink() or not folder.is_dir() or folder.name.startswith("."):
            continue
        manifest = store.read_manifest(folder)
        if manifest is None:
            state = "is no JSON object, or empty" if (folder / store.MANIFEST).exists() else "is missing"
            warnings.append(f"{folder / store.MANIFEST} {state}: {folder.name} is left out")
            continue
        defect = store.integrity_error(folder)
        if defect:
            warnings.append(f"the adapter of {folder.name} is not whole: {defect}")
        verdict = "disputed" if folder.name in disputed or defect else manifest.verdict or NOTHING
        points, rate = _read_points(folder / "metrics.jsonl")
        runs.append(ReportedRun(home.name, folder.name, manifest, folder.name == promoted, points, rate, verdict))
    if promoted and promoted not in [run.run_id for run in runs]:
        warnings.append(f"{home / promotion.LATEST} points to {promoted}, and there is no such adapter")
    return sorted(runs, key=lambda run: (run.manifest.finished_at or 0, run.run_id), reverse=True)


def _objects(value: Any) -> list[dict[str, Any]]:
    """Pick the objects of a list; none where it is no list. What is read here may hold anything."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _texts(value: Any) -> list[str]:
    """Return the items of a list as texts; none where it is no list."""
    return [str(item) for item in value] if isinstance(value, list) else []


def read(output: pathlib.Path, wanted: list[str], known_agents: Collection[str]) -> dict[str, Any]:
    """Read everything that the page shows.

    Args:
        output: The output folder.
        wanted: Agents; empty for all of which there is anything.
        known_agents: Those of the checkout.

    Returns:
        agents (see :func:`_agent_facts`), under_way (runs that are not delivered, or disputed, from status.json),
        waiting (agents that have no other runs), looked_at (when, epoch seconds), up_to (the newest time in the data),
        costs, warnings, wanted.
    """
    warnings: list[str] = []
    status = rundir.read_json(output / "status.json")
    if not status and (output / "status.json").exists():
        warnings.append(f"{output / 'status.json'} is no JSON object, or empty: runs under way are not shown")
    known = _objects(status.get("runs"))
    # A verified one: its files are looked at here, and may have been repaired since; so may it have been delivered.
    disputed = {str(run.get("run_id")) for run in known if (run.get("verdict"), run.get("state")) == _STANDING}
    adapters = output / "adapters"
    homes = sorted(path for path in adapters.iterdir() if path.is_dir()) if adapters.is_dir() else []
    homes = [home for home in homes if not wanted or home.name in wanted]
    runs = {home.name: _read_runs(home, disputed, warnings) for home in homes}
    delivered = {run.run_id for mine in runs.values() for run in mine}
    meant = [run for run in known if not wanted or run.get("agent") in wanted]
    under_way = [
        run
        for run in meant
        if (str(run.get("run_id")) in disputed or str(run.get("run_id")) not in delivered)
        and run.get("verdict") not in ("absent", "verified")
    ]
    history = {home.name: promotion.history(home) for home in homes}
    agents = [
        _agent_facts(number, name, runs[name], history[name]) | {"sweeps": sweeps(output, name)}
        for number, name in enumerate(runs)
        if runs[name]
    ]
    asked = [agent for agent in agents if agent["evaluated"]]
    for agent in asked:
        run = agent["evaluated"]
        folder = adapters / agent["name"] / run.run_id
        agent["cases"] = report_cases.compare_cases(run, folder, report_cases.room(len(asked)))
        if agent["cases"] is None:
            warnings.append(f"{folder / EVALUATION} is not the one that its manifest tells of: its cases are left out")
    for agent in agents:
        if agent["name"] not in known_agents:
            agent["notes"].insert(0, f"There is no {FOLDER}/{agent['name']}.yml any more: nothing trains this agent.")
    times = [status.get("made_at"), *(line.get("at") for lines in history.values() for line in lines)]
    times += [run.manifest.finished_at for mine in runs.values() for run in mine]
    return {
        "agents": agents,
        "waiting": sorted({str(run.get("agent")) for run in under_way} - {agent["name"] for agent in agents}),
        "under_way": sorted(under_way, key=lambda run: (str(run.get("agent")), str(run.get("run_id")))),
        "looked_at": finite_number(status.get("made_at")),
        "up_to": max((time for time in map(finite_number, times) if time), default=None),
        "costs": costs(runs, [run for run in meant if str(run.get("run_id")) not in delivered]),
        "warnings": warnings,
        "wanted": wanted,
    }


def _agent_facts(number: int, name: str, runs: list[ReportedRun], history: list[dict[str, Any]]) -> dict[str, Any]:
    """Gather what the page tells of an agent.

    The leading run is the promoted one, or else the newest. Runs of its kind (real, or rehearsal) are shown beside it:
    figures of the two kinds mean different things.

    Args:
        number: Of the agent in the page; part of the ids of its pictures.
        name: Of the agent.
        runs: Its delivered runs, the newest first; one at least.
        history: The lines of its history.jsonl.
    """
    lead = next((run for run in runs if run.promoted), runs[0])
    kind = [run for run in runs if run.rehearsal == lead.rehearsal and run is not lead]
    shown = [lead, *kind[: _SHOWN - 1]]
    for place, run in enumerate(shown):
        run.letter = chr(ord("A") + place)
    notes = []
    if len(kind) >= _SHOWN:
        notes.append(f"The pictures hold {_SHOWN} of {len(kind) + 1} runs: the newest ones, and the promoted one.")
    if len(runs) > len(kind) + 1:
        others = "Real runs" if lead.rehearsal else "Rehearsals"
        notes.append(f"{others} are not in the pictures: their losses mean something else.")
    merits = {run.run_id: found for run in runs if (found := merit_of(run.manifest))}
    return {
        "name": name,
        "anchor": f"agent-{number}",
        "runs": runs,
        "lead": lead,
        "promoted": lead if lead.promoted else None,
        "shown": shown,
        "notes": notes,
        "pictures": [picture(f"agent-{number}-{measure}", measure, shown) for measure in MEASURES],
        "merits": merits,
        "evaluated": next((run for run in runs if run.run_id in merits and run.rehearsal == lead.rehearsal), None),
        "cases": None,
        "recipes": _recipe_differences(shown),
        "datasets": _dataset_differences(shown),
        "history": sorted(history, key=lambda line: finite_number(line.get("at")) or 0, reverse=True),
    }


def sweeps(output: pathlib.Path, agent: str) -> list[dict[str, Any]]:
    """Make the leader boards of an agent: {name, board} for each sweep, the newest first.

    Args:
        output: The output folder.
        agent: Whose.
    """
    return [
        {"name": sweep["name"], "board": leaderboard.noted_leaderboard(output, sweep)}
        for sweep in variants.read_sweeps(output, [agent])
    ]


# --- what runs have in common


def _recipe_differences(runs: list[ReportedRun]) -> list[tuple[str, list[str]]]:
    """List the recipe's keys that are not the same in all runs: key, and its value in each run."""
    recipes = [run.manifest.recipe for run in runs]
    return _differing({key: [_text(each.get(key)) for each in recipes] for recipe in recipes for key in recipe})


def _dataset_differences(runs: list[ReportedRun]) -> list[tuple[str, list[str]]]:
    """List the datasets that are not the same in all runs: name, and in each run the start of its hash and its size."""
    columns = [
        {
            f"{pathlib.PurePath(str(file.path)).name} ({file.use or 'train'})": (
                f"{str(file.sha256)[:12]}, {whole(file.examples)} examples"
            )
            for file in run.manifest.datasets
        }
        for run in runs
    ]
    return _differing({name: [each.get(name, NOTHING) for each in columns] for column in columns for name in column})


def _differing(rows: dict[str, list[str]]) -> list[tuple[str, list[str]]]:
    return [(str(name), cells) for name, cells in sorted(rows.items()) if len(set(cells)) > 1]


def _text(value: Any) -> str:
    if value is None:
        return NOTHING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def costs(runs: dict[str, list[ReportedRun]], others: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum up what all runs have cost: rows by agent, and their total.

    Args:
        runs: Delivered runs by agent.
        others: Runs that are not delivered, as they were last seen.

    Returns:
        rows and total; each with delivered and own (runs), seconds, usd, and others_usd.
    """
    rows = []
    for name in sorted({*runs, *(str(run.get("agent")) for run in others)}):
        manifests = [run.manifest for run in runs.get(name, [])]
        undelivered = [Cost.from_dict(run.get("cost")) for run in others if str(run.get("agent")) == name]
        row = {
            "agent": name,
            "delivered": len(manifests),
            "own": sum(manifest.cost.source == OWN for manifest in manifests),
            "seconds": sum(manifest.duration_s or 0 for manifest in manifests),
            "usd": sum(manifest.cost.usd or 0 for manifest in manifests),
            "others_usd": sum(cost.usd or 0 for cost in undelivered),
        }
        rows += [row] if row["delivered"] or row["others_usd"] else []
    keys = ("delivered", "own", "seconds", "usd", "others_usd")
    return {"rows": rows, "total": {key: sum(row[key] for row in rows) for key in keys}}


# --- for people


def whole(value: Any) -> str:
    """Write a count, its thousands apart."""
    known = finite_number(value)
    return NOTHING if known is None else f"{known:,.0f}".replace(",", "\u202f")


def _span(value: Any) -> str:
    """Write seconds as 0:34 or 1:02:09."""
    known = finite_number(value)
    return NOTHING if known is None else duration(known)


def _when(value: Any) -> str:
    """Write seconds since the epoch as a date and a time in UTC."""
    try:
        return datetime.fromtimestamp(float(value), timezone.utc).strftime("%Y-%m-%d %H:%M")
    except (TypeError, ValueError, OverflowError, OSError):
        return NOTHING


def usd(value: Any) -> str:
    """Write an amount of money."""
    known = finite_number(value)
    return NOTHING if known is None else f"{known:,.2f}\u00a0USD"


def cost(noted: Any) -> str:
    """Write what a run cost, by its manifest or by the last status."""
    known = noted if isinstance(noted, Cost) else Cost.from_dict(noted)
    if known.gpu_hours and not known.usd:
        return known.words
    return OWN if known.source == OWN and not known.usd else usd(known.usd)


def link(url: Any) -> Optional[str]:
    """Return a web address; None for whatever else stands there, which a browser might run."""
    return url if isinstance(url, str) and url.startswith(("https://", "http://")) else None


# --- the page


def render(template: pathlib.Path, facts: dict[str, Any]) -> str:
    """Write the page as HTML.

    Args:
        template: templates/report.html.j2, or one like it.
        facts: From :func:`read`, and of ``version.py``: ``git`` from ``git_facts``, ``version`` from ``full_version``.

    Raises:
        UserError: The template does not hold up.
    """
    try:
        return _compiled(template.read_text(encoding="utf-8")).render(facts)
    except jinja2.TemplateError as error:
        line = getattr(error, "lineno", None)
        raise UserError(f"{template}{f', line {line}' if line else ''}: {error}") from None


@functools.cache
def _compiled(text: str) -> jinja2.Template:
    """Prepare a template to be filled in; that takes longer than to fill it in."""
    jinja = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    filters = (figure, whole, _span, _when, usd, cost, dashes, link, _texts, merit_of)
    words = (interval_of, percent, scored, verdict)
    jinja.filters |= {function.__name__.lstrip("_"): function for function in (*filters, *words)}
    jinja.globals |= {"nothing": NOTHING, "own": OWN, "own_answers": report_cases.NAMES[ADAPTER]}
    return jinja.from_string(text)


def write(path: pathlib.Path, data: bytes, check: bool = False) -> bool:
    """Write a file where it differs, so that a reader sees the old one or the new one; True where it differs."""
    if path.exists() and path.read_bytes() == data:
        return False
    if not check:
        path.parent.mkdir(parents=True, exist_ok=True)
        rundir.write_bytes(path, data, mode=0o666)
    return True
