"""The pictures of the report page: how a loss went, as inline SVG, with the same figures as a table and in words."""

from __future__ import annotations

import dataclasses
import io
import math
import re
import xml.etree.ElementTree as ElementTree
from typing import Any, NamedTuple, Optional

from ansible.module_utils.lora_forge.adapters import promotion
from ansible.module_utils.lora_forge.adapters.manifest import Manifest
from ansible.module_utils.lora_forge.trainer import run_state
from markupsafe import Markup

_ROWS = 60  # of a table of points, about
_FEW = 12  # points of a line that are each marked
NOTHING = "–"
MEASURES = {"loss": "Training loss", "eval_loss": "Evaluation loss"}
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


class Point(NamedTuple):
    """A logged figure: at which step, how many minutes after the training began, the figure (NaN where it is none)."""

    step: int
    minutes: float
    value: float
    logged: str  # as text


@dataclasses.dataclass
class ReportedRun:
    """A delivered run.

    Attributes:
        agent: Whose it is.
        run_id: Its name, which is its folder's.
        manifest: Its manifest.
        promoted: Whether ``latest`` points to it.
        points: What was logged, for each of MEASURES.
        tokens_per_second: The median of what was logged; None where nothing was.
        verdict: What is true of it.
        letter: Its name in the pictures; empty where it is in none.
    """

    agent: str
    run_id: str
    manifest: Manifest
    promoted: bool
    points: dict[str, list[Point]]
    tokens_per_second: Optional[float]
    verdict: str
    letter: str = ""

    @property
    def rehearsal(self) -> bool:
        return self.manifest.is_rehearsal

    @property
    def place(self) -> int:
        """Its place among the runs shown: decides colour and dash."""
        return ord(self.letter) - ord("A")


def picture(name: str, measure: str, runs: list[ReportedRun]) -> dict[str, Any]:
    """Draw a measure of some runs against steps and against minutes.

    Args:
        name: The start of the pictures' ids.
        measure: One of MEASURES.
        runs: The leading one first. Only runs with its base model are drawn, and for the evaluation only those that
            were measured as it was.

    Returns:
        title; svgs (two, or none where nothing was logged); notes (sentences on what is not drawn, and why);
        rows (letter, step, minutes, figure as logged) thinned to about ROWS; and points, their number before that.
    """
    title = MEASURES[measure]
    base = runs[0].manifest.recipe.get("base_model")
    notes, drawn = [], []
    for run in runs:
        if run.manifest.recipe.get("base_model") != base:
            notes.append(f"{run.letter} is left out: it trained another base model.")
        elif measure == "eval_loss" and _yardstick(run) != _yardstick(runs[0]):
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
            courses = "; ".join(_course(run, points, key) for run, points in lines)
            sentence = f"{title} against {'steps' if key == 'step' else 'minutes'}: {courses}."
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


def _gaps(letter: str, points: list[Point]) -> list[str]:
    """Write a sentence on figures that are no numbers; none where all are."""
    bad = [point for point in points if not math.isfinite(point.value)]
    if not bad:
        return []
    logged, steps = ", ".join(sorted({point.logged for point in bad})), ", ".join(str(point.step) for point in bad[:5])
    where = f"at step {steps}{' …' if len(bad) > 5 else ''}"
    return [f"{letter} has a gap: {len(bad)} of {len(points)} figures are no finite number ({logged}; {where})."]


def _course(run: ReportedRun, points: list[Point], key: str) -> str:
    """Tell from where to where a line goes."""
    finite = [point for point in points if math.isfinite(point.value)]
    name = f"{run.letter} ({run.run_id})"
    if not finite:
        return f"{name} has no finite figure"
    first, last = (
        f"{figure(point.value)} at {f'step {point.step}' if key == 'step' else f'{point.minutes:.1f} minutes'}"
        for point in (finite[0], finite[-1])
    )
    return f"{name} is {first}" if len(finite) == 1 else f"{name} goes from {first} to {last}"


def _thinned(points: list[Point], room: int) -> list[Point]:
    """Pick at most so many of the points, evenly, with the first and the last."""
    if len(points) <= room:
        return points
    return [points[round(at * (len(points) - 1) / (room - 1))] for at in range(room)]


def _draw(
    name: str, sentence: str, across: str, lines: list[tuple[ReportedRun, list[tuple[float, float]]]], dots: bool
) -> Markup:
    """Draw a picture as inline SVG, with text as text, colours as CSS variables, and ids of its own.

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
        drawing = Figure(
            figsize=(WIDTH / 72, HEIGHT / 72), dpi=72, facecolor="none"
        )  # a pixel is a unit of the picture
        canvas = FigureCanvasSVG(drawing)
        left, right, bottom, top = 54, 24, 42, 12  # margins
        size = ((WIDTH - left - right) / WIDTH, (HEIGHT - bottom - top) / HEIGHT)
        axes = drawing.add_axes((left / WIDTH, bottom / HEIGHT, *size), facecolor="none")
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
    """List which figures have none beside them, so that no line would show them."""
    around = [math.nan, *values, math.nan]
    return [
        at
        for at, value in enumerate(values)
        if math.isfinite(value) and not math.isfinite(around[at]) and not math.isfinite(around[at + 2])
    ]


def _inline(text: str, sentence: str) -> Markup:
    """Turn Matplotlib's SVG file into an element of a page.

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
    svg = ElementTree.tostring(root, encoding="unicode")
    for pattern, variable in _COLOURS:
        svg = pattern.sub(variable, svg)
    svg = svg.replace("font-family: 'DejaVu Sans'; ", "")  # that of the page, then
    return Markup(re.sub(r"\s*\n\s*", " ", svg))  # every character was written by ElementTree, which escapes


def _yardstick(run: ReportedRun) -> tuple[Optional[str], Optional[int]]:
    """Tell what a run was evaluated on: the evaluation set's hash and sequence_len; None where nobody can tell."""
    evaluation = promotion.evaluation_of(run.manifest)
    return evaluation.sha256, evaluation.sequence_len


def finite_number(value: Any) -> Optional[float]:
    """Return a finite number; None for whatever else stands there."""
    return value if run_state.finite(value) and not isinstance(value, bool) else None


def figure(value: Any) -> str:
    """Write a loss, with as many digits as tell runs apart."""
    known = finite_number(value)
    if known is None or not math.isfinite(known):
        return NOTHING if value is None else str(value)[:20]
    return f"{known:.4f}" if abs(known) < 1000 else f"{known:.4g}"


def dashes(place: int) -> str:
    """Tell how a run's line is dashed, for SVG."""
    return " ".join(map(str, _DASHES[place]))
