"""The report page: which adapters this controller has, how they were trained, and what they cost.

Everything is read below the output folder; nothing is asked of a host. What is damaged or missing is named in the page.
The page depends on what was read alone, not on the clock: the same data give the same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import pathlib
import re
import statistics
import xml.etree.ElementTree as ElementTree
from datetime import datetime, timezone
from typing import Any, NamedTuple, Optional

import jinja2
from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.adapters import promotion, store
from ansible.module_utils.lora_forge.agents import AGENTS
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planning import variants
from ansible.module_utils.lora_forge.results import leaderboard
from ansible.module_utils.lora_forge.text import duration, nearest
from ansible.module_utils.lora_forge.trainer import run_state
from markupsafe import Markup

_SHOWN = 6  # runs of an agent in its pictures: as many as a reader can tell apart
_ROWS = 60  # of a table of points, about
_FEW = 12  # points of a line that are each marked
NOTHING = "–"
OWN = "own hardware"  # how money.spent words it
_STANDING = ("disputed", "verified")  # verdict and state of what is proven, and contradicted all the same
_MEASURES = {"loss": "Training loss", "eval_loss": "Evaluation loss"}
# Of the lines, in the order in which runs are shown: on and off, in units of the picture.
_DASHES: tuple[tuple[float, ...], ...] = ((), (7, 3), (2, 2.5), (9, 3, 2, 3), (4, 2), (9, 3, 2, 3, 2, 3))
WIDTH, HEIGHT = 420, 250  # of a picture; near a phone's width, so that its text stays readable there
# Drawn with these, which stand for the page's own colours: CSS variables follow light and dark, figures would not.
INK, GRID, RUN = "#010101", "#020202", "#0300{:02}"
_COLOURS = (
    (re.compile(INK), "var(--muted)"),
    (re.compile(GRID), "var(--line)"),
    (re.compile(r"#0300(\d)(\d)"), r"var(--run-\2)"),
)


class _Point(NamedTuple):
    """A logged figure: at which step, how many minutes after the training began, the figure (NaN where it is none)."""

    step: int
    minutes: float
    value: float
    said: str  # as it was logged


@dataclasses.dataclass
class _Run:
    """A delivered run.

    Attributes:
        agent: Whose it is.
        run_id: Its name, which is its folder's.
        manifest: Its manifest, whatever is in it.
        promoted: Whether ``latest`` points to it.
        points: What was logged, for each of MEASURES.
        tokens_per_second: The median of what was logged; None where nothing was.
        verdict: What is true of it.
        letter: Its name in the pictures; empty where it is in none.
    """

    agent: str
    run_id: str
    manifest: dict[str, Any]
    promoted: bool
    points: dict[str, list[_Point]]
    tokens_per_second: Optional[float]
    verdict: str
    letter: str = ""

    @property
    def rehearsal(self) -> bool:
        return promotion.is_rehearsal(self.manifest)

    @property
    def place(self) -> int:
        """Its place among the runs shown: decides colour and dash."""
        return ord(self.letter) - ord("A")


# --- what there is


def _fact(data: Any, path: str) -> Any:
    """What stands at ``a.b.c`` in nested objects; None where there is nothing, or something else on the way."""
    for key in path.split("."):
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _read_points(path: pathlib.Path) -> tuple[dict[str, list[_Point]], Optional[float]]:
    """The losses of a run's metrics.jsonl, and the median of its tokens a second.

    What a resume took back is left out. Minutes count from the first start on, pauses included.
    """
    events = [
        event
        for event in rundir.read_events(path)[0]
        if isinstance(event.get("step", 0), int) and run_state.finite(event.get("time"))
    ]
    began = next((event["time"] for event in events if event.get("event") == "begin"), None)
    points: dict[str, list[_Point]] = {name: [] for name in _MEASURES}
    rates = []
    for event in rundir.surviving_events(events):
        for name in _MEASURES:
            if event.get("event") == {"loss": "log", "eval_loss": "eval"}[name] and event.get(name) is not None:
                value = float(event[name]) if run_state.finite(event[name]) else math.nan
                minutes = (event["time"] - (began or event["time"])) / 60
                points[name].append(_Point(event.get("step", 0), minutes, value, str(event[name])[:20]))
        if run_state.finite(event.get("tokens_per_second")):
            rates.append(event["tokens_per_second"])
    return points, statistics.median(rates) if rates else None


def _read_runs(home: pathlib.Path, disputed: set[str], warnings: list[str]) -> list[_Run]:
    """The delivered runs of an agent, the newest first.

    Args:
        home: output/adapters/<agent>.
        disputed: Delivered runs of which the last look found a contradiction.
        warnings: What could not be read is added here.
    """
    promoted = promotion.points_to(home / promotion.LATEST)
    runs = []
    for folder in sorted(home.iterdir()):
        if folder.is_symlink() or not folder.is_dir() or folder.name.startswith("."):
            continue
        manifest = rundir.read_json(folder / store.MANIFEST)
        if not manifest:
            state = "is no JSON object, or empty" if (folder / store.MANIFEST).exists() else "is missing"
            warnings.append(f"{folder / store.MANIFEST} {state}: {folder.name} is left out")
            continue
        told = str(manifest.get("verdict") or NOTHING)
        flaw = store.integrity_error(folder)
        if flaw:
            warnings.append(f"the adapter of {folder.name} is not whole: {flaw}")
        if folder.name in disputed or flaw:
            told = "disputed"
        points, rate = _read_points(folder / "metrics.jsonl")
        runs.append(_Run(home.name, folder.name, manifest, folder.name == promoted, points, rate, told))
    if promoted and promoted not in [run.run_id for run in runs]:
        warnings.append(f"{home / promotion.LATEST} points to {promoted}, and there is no such adapter")
    return sorted(runs, key=lambda run: (_number(run.manifest.get("finished_at")) or 0, run.run_id), reverse=True)


def _number(value: Any) -> Optional[float]:
    return value if run_state.finite(value) and not isinstance(value, bool) else None


def _objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; none where it is no list. What is read here may hold anything."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _texts(value: Any) -> list[str]:
    """The texts of a list; none where it is no list."""
    return [str(one) for one in value] if isinstance(value, list) else []


def pairs(value: Any) -> list[tuple[str, Any]]:
    """Names and values of an object; none where it is no object."""
    return list(value.items()) if isinstance(value, dict) else []


def read(output: pathlib.Path, wanted: list[str]) -> dict[str, Any]:
    """Everything that the page shows.

    Args:
        output: The output folder.
        wanted: Agents; empty for all of which there is anything.

    Returns:
        agents (see :func:`_agent_facts`), under_way (runs that are not delivered, or disputed, from status.json),
        waiting (agents that have no other runs), looked_at (when, epoch seconds), up_to (the newest time in the data),
        costs, warnings, wanted.

    Raises:
        UserError: There is no such agent.
    """
    warnings: list[str] = []
    status = rundir.read_json(output / "status.json")
    if not status and (output / "status.json").exists():
        warnings.append(f"{output / 'status.json'} is no JSON object, or empty: what goes on is not shown")
    looked = _objects(status.get("runs"))
    # A verified one: its files are looked at here, and may have been repaired since; so may it have been delivered.
    disputed = {str(run.get("run_id")) for run in looked if (run.get("verdict"), run.get("state")) == _STANDING}
    adapters = output / "adapters"
    homes = sorted(path for path in adapters.iterdir() if path.is_dir()) if adapters.is_dir() else []
    there = {home.name for home in homes}
    for name in wanted:
        if name not in there and name not in AGENTS:
            hint = nearest(name, AGENTS) or "."
            raise UserError(f"there is no agent «{name}»{hint} Agents: {', '.join(AGENTS)}")
    homes = [home for home in homes if not wanted or home.name in wanted]
    runs = {home.name: _read_runs(home, disputed, warnings) for home in homes}
    delivered = {run.run_id for found in runs.values() for run in found}
    meant = [run for run in looked if not wanted or run.get("agent") in wanted]
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
    times = [status.get("made_at"), *(line.get("at") for lines in history.values() for line in lines)]
    times += [run.manifest.get("finished_at") for found in runs.values() for run in found]
    return {
        "agents": agents,
        "waiting": sorted({str(run.get("agent")) for run in under_way} - {agent["name"] for agent in agents}),
        "under_way": sorted(under_way, key=lambda run: (str(run.get("agent")), str(run.get("run_id")))),
        "looked_at": _number(status.get("made_at")),
        "up_to": max((time for time in map(_number, times) if time), default=None),
        "costs": costs(runs, [run for run in meant if str(run.get("run_id")) not in delivered]),
        "warnings": warnings,
        "wanted": wanted,
    }


def _agent_facts(number: int, name: str, runs: list[_Run], history: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page tells of an agent.

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
    return {
        "name": name,
        "anchor": f"agent-{number}",
        "runs": runs,
        "lead": lead,
        "promoted": lead if lead.promoted else None,
        "shown": shown,
        "notes": notes,
        "pictures": [_picture(f"agent-{number}-{measure}", measure, shown) for measure in _MEASURES],
        "recipes": _recipe_differences(shown),
        "datasets": _dataset_differences(shown),
        "history": sorted(history, key=lambda line: _number(line.get("at")) or 0, reverse=True),
    }


def sweeps(output: pathlib.Path, agent: str) -> list[dict[str, Any]]:
    """The leader boards of an agent: {name, rows} for each sweep, the newest first.

    Args:
        output: The output folder.
        agent: Whose.
    """
    return [
        {
            "name": one["name"],
            "rows": leaderboard.leaderboard(output, one),
        }
        for one in variants.read_sweeps(output, [agent])
    ]


# --- what runs have in common


def _yardstick(manifest: dict[str, Any]) -> Optional[tuple[Any, Any]]:
    """What a run was evaluated on: the evaluation set's hash and sequence_len; None where nobody can tell."""
    try:
        found = promotion.evaluation_of(manifest)
        return found["sha256"], found["sequence_len"]
    except (AttributeError, KeyError, TypeError):
        return None


def _recipe_differences(runs: list[_Run]) -> list[tuple[str, list[str]]]:
    """The recipe's keys that are not the same in all runs: key, and its value in each run."""
    recipes = [found if isinstance(found := run.manifest.get("recipe"), dict) else {} for run in runs]
    return _differing({key: [_text(one.get(key)) for one in recipes] for one in recipes for key in one})


def _dataset_differences(runs: list[_Run]) -> list[tuple[str, list[str]]]:
    """The datasets that are not the same in all runs: name, and the start of its hash with its examples in each run."""
    columns = []
    for run in runs:
        columns.append(
            {
                f"{pathlib.PurePath(str(one.get('path'))).name} ({one.get('use', 'train')})": (
                    f"{str(one.get('sha256'))[:12]}, {whole(one.get('examples'))} examples"
                )
                for one in _objects(run.manifest.get("datasets"))
            }
        )
    return _differing({name: [one.get(name, NOTHING) for one in columns] for one in columns for name in one})


def _differing(rows: dict[str, list[str]]) -> list[tuple[str, list[str]]]:
    return [(str(name), cells) for name, cells in sorted(rows.items()) if len(set(cells)) > 1]


def _text(value: Any) -> str:
    if value is None:
        return NOTHING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def costs(runs: dict[str, list[_Run]], others: list[dict[str, Any]]) -> dict[str, Any]:
    """What all runs have cost: rows by agent, and their total.

    Args:
        runs: Delivered runs by agent.
        others: Runs that are not delivered, as they were last seen.

    Returns:
        rows and total; each with delivered and own (runs), seconds, usd, and others_usd.
    """
    rows = []
    for name in sorted({*runs, *(str(run.get("agent")) for run in others)}):
        mine = [run.manifest for run in runs.get(name, [])]
        row = {
            "agent": name,
            "delivered": len(mine),
            "own": sum(_fact(one, "cost.source") == OWN for one in mine),
            "seconds": sum(_number(one.get("duration_s")) or 0 for one in mine),
            "usd": sum(_number(_fact(one, "cost.usd")) or 0 for one in mine),
            "others_usd": sum(_number(_fact(one, "cost.usd")) or 0 for one in others if str(one.get("agent")) == name),
        }
        rows += [row] if row["delivered"] or row["others_usd"] else []
    keys = ("delivered", "own", "seconds", "usd", "others_usd")
    return {"rows": rows, "total": {key: sum(row[key] for row in rows) for key in keys}}


# --- pictures


def _picture(name: str, measure: str, runs: list[_Run]) -> dict[str, Any]:
    """A measure of some runs against steps and against minutes.

    Args:
        name: The start of the pictures' ids.
        measure: One of MEASURES.
        runs: The leading one first. Only runs with its base model are drawn, and for the evaluation only those that
            were measured as it was.

    Returns:
        title; svgs (two, or none where nothing was logged); notes (sentences on what is not drawn, and why);
        rows (letter, step, minutes, figure as logged) thinned to about ROWS; and points, their number before that.
    """
    title = _MEASURES[measure]
    base = _fact(runs[0].manifest, "recipe.base_model")
    notes, drawn = [], []
    for run in runs:
        if _fact(run.manifest, "recipe.base_model") != base:
            notes.append(f"{run.letter} is left out: it trained another base model.")
        elif measure == "eval_loss" and _yardstick(run.manifest) != _yardstick(runs[0].manifest):
            notes.append(f"{run.letter} is left out: its evaluation set or its sequence_len is another.")
        elif not run.points[measure]:
            notes.append(f"{run.letter} is left out: nothing was logged.")
        else:
            drawn.append(run)
            notes += _gaps(run.letter, run.points[measure])
    lines = [(run, run.points[measure]) for run in drawn]
    svgs = []
    if any(math.isfinite(point.value) for _, points in lines for point in points):
        for key, across in (("step", "step"), ("minutes", "minutes since the start")):
            told = "; ".join(_course(run, points, key) for run, points in lines)
            sentence = f"{title} against {'steps' if key == 'step' else 'minutes'}: {told}."
            curves = [(run, [(getattr(point, key), point.value) for point in points]) for run, points in lines]
            svgs.append(_draw(f"{name}-{key}", sentence, across, curves, dots=measure == "eval_loss"))
    room = max(2, _ROWS // max(1, len(lines)))
    rows = [(run.letter, *point) for run, points in lines for point in _thinned(points, room)]
    return {
        "title": title,
        "svgs": svgs,
        "notes": notes,
        "rows": rows,
        "points": sum(len(points) for _, points in lines),
    }


def _gaps(letter: str, points: list[_Point]) -> list[str]:
    """A sentence on figures that are no numbers; none where all are."""
    bad = [point for point in points if not math.isfinite(point.value)]
    if not bad:
        return []
    said, steps = ", ".join(sorted({point.said for point in bad})), ", ".join(str(point.step) for point in bad[:5])
    more = " …" if len(bad) > 5 else ""
    return [
        f"{letter} has a gap: {len(bad)} of {len(points)} figures are no finite number ({said}; at step {steps}{more})."
    ]


def _course(run: _Run, points: list[_Point], key: str) -> str:
    """From where to where a line goes, in words."""
    found = [point for point in points if math.isfinite(point.value)]
    name = f"{run.letter} ({run.run_id})"
    if not found:
        return f"{name} has no finite figure"
    first, last = (
        f"{_figure(point.value)} at {f'step {point.step}' if key == 'step' else f'{point.minutes:.1f} minutes'}"
        for point in (found[0], found[-1])
    )
    return f"{name} is {first}" if len(found) == 1 else f"{name} goes from {first} to {last}"


def _thinned(points: list[_Point], room: int) -> list[_Point]:
    """At most so many of the points, evenly, with the first and the last."""
    if len(points) <= room:
        return points
    return [points[round(at * (len(points) - 1) / (room - 1))] for at in range(room)]


def _draw(
    name: str, sentence: str, across: str, lines: list[tuple[_Run, list[tuple[float, float]]]], dots: bool
) -> Markup:
    """A picture as inline SVG, with text as text, colours as CSS variables, and ids of its own.

    Args:
        name: The start of its ids.
        sentence: What is seen, for those who do not see it.
        across: What goes along the x axis.
        lines: Runs with x and y; the leading one first. A y that is NaN leaves a gap.
        dots: Mark every point.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "DejaVu Sans",  # comes with Matplotlib: the same layout everywhere
        "font.size": 11,
        "text.color": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.edgecolor": GRID,
        "axes.formatter.useoffset": False,
        "lines.scale_dashes": False,
    }
    with matplotlib.rc_context(settings):
        made = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72, facecolor="none")  # a pixel is a unit of the picture
        canvas = FigureCanvasSVG(made)
        left, right, bottom, top = 54, 24, 42, 12  # margins
        size = ((WIDTH - left - right) / WIDTH, (HEIGHT - bottom - top) / HEIGHT)
        axes = made.add_axes((left / WIDTH, bottom / HEIGHT, *size), facecolor="none")
        ends = []
        for run, points in reversed(lines):  # the leading one on top
            axes.plot(
                *zip(*points),
                color=RUN.format(run.place),
                linewidth=2.6 if run.letter == "A" else 1.6,
                linestyle=(0, _DASHES[run.place]) if _DASHES[run.place] else "-",
                marker="o",
                markevery=None if dots or len(points) <= _FEW else _alone([y for _, y in points]),
                markersize=5 if run.letter == "A" else 3.6,
                clip_on=False,
            )
            ends += [(run, point) for point in points if math.isfinite(point[1])][-1:]
        axes.set_xlim(left=min(0, axes.get_xlim()[0] if any(x < 0 for _, points in lines for x, _ in points) else 0))
        axes.set_xlabel(across, labelpad=8)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=across == "step"))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y", color=GRID, linewidth=1)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, pad=6)
        axes.spines[["top", "left", "right"]].set_visible(False)
        placed: list[tuple[float, float]] = []
        for (x, y), run in sorted(
            ((tuple(axes.transData.transform(point)), run) for run, point in ends), key=lambda end: end[0][1]
        ):
            y = max([y, *(lower + 12 for other, lower in placed if abs(other - x) < 14)])  # no letter upon another
            placed.append((x, y))
            axes.annotate(
                run.letter, (x + 7, y), xycoords="figure pixels", va="center", color=RUN.format(run.place),
                fontweight="bold", annotation_clip=False,
            )  # fmt: skip
        file = io.StringIO()
        canvas.print_svg(file)
    return _inline(file.getvalue(), sentence)


def _alone(values: list[float]) -> list[int]:
    """Which figures have none beside them, so that no line would show them."""
    around = [math.nan, *values, math.nan]
    return [
        at
        for at, value in enumerate(values)
        if math.isfinite(value) and not math.isfinite(around[at]) and not math.isfinite(around[at + 2])
    ]


def _inline(text: str, sentence: str) -> Markup:
    """Matplotlib's SVG file as an element of a page.

    Its style sheet would reach the whole page, its metadata hold the date, and of its ids only those that are used are
    unique: they go.
    """
    root = ElementTree.fromstring(text)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key in [key for key in element.attrib if key.endswith("}href")]:
            element.set("href", element.attrib.pop(key))
        if element.tag in ("svg", "g"):
            element.attrib.pop("id", None)
        if element.tag == "text":
            element.attrib.pop("transform", None)  # by 0 degrees
            if RUN[:5] in element.attrib["style"]:
                element.set("class", "end")
    for child in list(root):
        if child.tag == "metadata" or child.find("style") is not None:
            root.remove(child)
    root.attrib = {
        "class": "chart",
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": sentence,
    }
    made = ElementTree.tostring(root, encoding="unicode")
    for pattern, variable in _COLOURS:
        made = pattern.sub(variable, made)
    made = made.replace("font-family: 'DejaVu Sans'; ", "")  # that of the page, then
    return Markup(re.sub(r"\s*\n\s*", " ", made))  # every character was written by ElementTree, which escapes


# --- for people


def _figure(value: Any) -> str:
    """A loss, with as many digits as tell runs apart."""
    number = _number(value)
    if number is None or not math.isfinite(number):
        return NOTHING if value is None else str(value)[:20]
    return f"{number:.4f}" if abs(number) < 1000 else f"{number:.4g}"


def whole(value: Any) -> str:
    """A count, its thousands apart."""
    number = _number(value)
    return NOTHING if number is None else f"{number:,.0f}".replace(",", "\u202f")


def _span(value: Any) -> str:
    """Seconds as 0:34 or 1:02:09."""
    number = _number(value)
    return NOTHING if number is None else duration(number)


def _when(value: Any) -> str:
    """Seconds since the epoch as a date and a time in UTC."""
    try:
        return datetime.fromtimestamp(float(value), timezone.utc).strftime("%Y-%m-%d %H:%M")
    except (TypeError, ValueError, OverflowError, OSError):
        return NOTHING


def usd(value: Any) -> str:
    """An amount of money."""
    number = _number(value)
    return NOTHING if number is None else f"{number:,.2f}\u00a0USD"


def cost(found: Any) -> str:
    """What a run cost, from its manifest or from the last look at it."""
    return OWN if _fact(found, "source") == OWN and not _fact(found, "usd") else usd(_fact(found, "usd"))


def _dashes(place: int) -> str:
    """How a run's line is dashed, for SVG."""
    return " ".join(map(str, _DASHES[place]))


def link(url: Any) -> Optional[str]:
    """A web address; None for whatever else stands there, which a browser might run."""
    return url if isinstance(url, str) and url.startswith(("https://", "http://")) else None


# --- the page


def render(template: pathlib.Path, facts: dict[str, Any]) -> str:
    """The page as HTML.

    Args:
        template: templates/report.html.j2, or one like it.
        facts: From :func:`read`, and ``git``: from ``adapter.git_facts``.

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
    """A template, ready to be filled in; that takes longer than to fill it in."""
    made = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {
        one.__name__.lstrip("_"): one
        for one in (_figure, whole, _span, _when, usd, cost, _dashes, link, _objects, _texts, pairs)
    }
    made.globals |= {"fact": _fact, "adapter_loss": store.adapter_loss, "nothing": NOTHING, "own": OWN}
    return made.from_string(text)


def write(path: pathlib.Path, data: bytes, check: bool = False) -> bool:
    """Write a file where it differs, so that a reader sees the old one or the new one; True where it differs."""
    if path.exists() and path.read_bytes() == data:
        return False
    if not check:
        path.parent.mkdir(parents=True, exist_ok=True)
        rundir.write_bytes(path, data, mode=0o666)
    return True
