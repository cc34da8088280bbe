"""The leader board of a sweep: the variants of one recipe, by their score on the same cases, or by eval loss."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Collection, Sequence
from typing import Any, Optional

from ansible.module_utils.lora_forge.adapters import merit, promotion, store
from ansible.module_utils.lora_forge.adapters.manifest import Evaluation, Figure, Manifest, Merit
from ansible.module_utils.lora_forge.evaluation import scores
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning import variants
from ansible.module_utils.lora_forge.planning.agents import FOLDER, listed
from ansible.module_utils.lora_forge.results.summary import share_of
from ansible.module_utils.lora_forge.text import duration

COLUMNS = ["place", "variant", "run", "score", "eval loss", "loss", "steps", "time", "cost"]
NOTHING = "–"
EVEN = "≈"
_NOT_VERIFIED = "not verified"
_SHOWN = 5  # places that are told of below the table of all runs


@dataclasses.dataclass(frozen=True)
class Standing:
    """Where a run of a sweep stands.

    Attributes:
        place: From 1; None where it cannot be compared, or is not verified.
        label: What is varied in it, in words.
        run_id: Its name.
        score: The adapter's, on its agent's cases.
        eval_loss: The adapter's; None where it is not finite, or there is none.
        loss: The training's last one.
        steps: That it reached.
        seconds: That it took.
        usd: That it cost.
        promoted: Whether ``latest`` points to it.
        why: There is no place; empty where there is one.
        even: Whether the cases cannot tell it from the first one.
        broken: Names of the cases in which it does what is forbidden.
    """

    place: Optional[int]
    label: str
    run_id: str
    score: scores.Score
    eval_loss: Optional[float]
    loss: Figure
    steps: Optional[int]
    seconds: Optional[float]
    usd: Optional[float]
    promoted: bool
    why: str
    even: bool = False
    broken: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Board:
    """A leader board.

    Attributes:
        by_score: Whether it is ranked by the score on the same cases; else by eval loss.
        rows: The first one first; then those without a place.
        ranking: How it is ranked, in sentences.
    """

    by_score: bool
    rows: list[Standing]
    ranking: list[str]

    @property
    def verified(self) -> int:
        """How many of its runs are."""
        return sum(row.why != _NOT_VERIFIED for row in self.rows)


def summary_lines(output: pathlib.Path, known: Collection[str], agents: Collection[str] = ()) -> list[str]:
    """Sum up the leader boards, for what stands under the table of all runs.

    Args:
        output: Where adapters are kept.
        known: The agents of the checkout.
        agents: Only theirs; empty for the newest one of each.
    """
    lines = []
    sweeps = variants.read_sweeps(output, agents)
    if not agents:
        sweeps = list({sweep["agent"]: sweep for sweep in reversed(sweeps)}.values())[::-1]
    for sweep in sweeps:
        board = noted_leaderboard(output, sweep)
        gone = "" if sweep["agent"] in known else f"; there is no {FOLDER}/{sweep['agent']}.yml any more"
        by = ", by score" if board.by_score else ""
        lines.append(f"    sweep {sweep['name']}: {board.verified} of {len(board.rows)} verified{by}{gone}")
        for row in board.rows[:_SHOWN]:
            figures = [share_of(row.score)] if board.by_score else []
            figures += [] if row.eval_loss is None else [f"eval {row.eval_loss:.4g}"]
            if row.place:
                lines.append(f"      {_place(row)}  {'  '.join(figures)}  {row.label}  {row.run_id}")
    return lines


def noted_leaderboard(output: pathlib.Path, sweep: dict[str, Any]) -> Board:
    """Make the :func:`leaderboard` of a sweep that was noted: of ``variants.read_sweeps``."""
    labels = [(run["run_id"], run.get("label") or variants.variant_label(run["variant"])) for run in sweep["runs"]]
    return leaderboard(output, sweep["agent"], labels)


def planned_leaderboards(output: pathlib.Path, runs: Sequence[PlannedRun]) -> dict[str, Board]:
    """Make the :func:`leaderboard` of each agent whose planned runs are variants."""
    labels: dict[str, list[tuple[str, str]]] = {}
    for run in runs:
        if run.variant:
            labels.setdefault(run.agent, []).append((run.run_id, variants.variant_label(run.variant)))
    return {agent: leaderboard(output, agent, mine) for agent, mine in labels.items()}


def table_rows(board: Board) -> list[list[Any]]:
    """Lay out a board as rows of the table with :data:`COLUMNS`; why there is no place stands where it is ranked by."""

    def figure(value: Any) -> str:
        return f"{value:.4f}" if isinstance(value, (int, float)) else NOTHING

    return [
        [
            _place(row),
            row.label,
            row.run_id + (" *" if row.promoted else ""),
            row.why if row.why and board.by_score else share_of(row.score),
            row.why if row.why and not board.by_score else figure(row.eval_loss),
            figure(row.loss),
            row.steps or NOTHING,
            duration(row.seconds) if row.seconds is not None else NOTHING,
            f"${row.usd:.2f}" if row.usd else NOTHING,
        ]
        for row in board.rows
    ]


def _place(row: Standing) -> str:
    return f"{row.place} {EVEN}" if row.even else str(row.place or NOTHING)


def leaderboard(output: pathlib.Path, agent: str, labels: Sequence[tuple[str, str]]) -> Board:
    """Rank runs: the best first, then what cannot be compared with it, then what is not there.

    The score ranks where no fewer runs have answered all of the same cases than have losses that can be compared.
    Equal scores go by the loss, and what does something forbidden comes last: the gate would not have it.

    Args:
        output: Where adapters are kept.
        agent: Whose runs.
        labels: Each run's id, and what is varied in it, in words.
    """
    home = output / "adapters" / agent
    promoted = promotion.points_to(home / promotion.LATEST)
    entries = []
    for run_id, label in labels:
        manifest = store.read_manifest(home / run_id)
        known, found = manifest or Manifest(), merit.merit_of(manifest) or Merit()
        evaluation = promotion.evaluation_of(manifest) if manifest else Evaluation()
        row = Standing(
            place=None,
            label=label,
            run_id=run_id,
            score=found.score,
            eval_loss=evaluation.eval_loss,
            loss=known.loss.last,
            steps=known.steps.reached,
            seconds=known.duration_s,
            usd=known.cost.usd,
            promoted=promoted == run_id,
            why="" if manifest else _NOT_VERIFIED,
            broken=found.broken,
        )
        entries.append(_Entry(row, evaluation, found))
    entries.sort(key=lambda entry: (entry.row.why, entry.loss))
    yardstick = _yardstick([entry.evaluation for entry in entries if entry.row.eval_loss is not None])
    told = [entry.cases for entry in entries if entry.cases]
    cases = max(told, key=told.count, default=None)
    if cases and told.count(cases) >= sum(not entry.row.why and not entry.differs(yardstick) for entry in entries):
        return _by_score(home, entries, cases, yardstick)
    rows = [entry.placed(entry.differs(yardstick)) for entry in entries]
    said = [f"by eval loss: {told.count(cases)} of {len(entries)} have answered the same cases"] if cases else []
    return Board(False, _numbered(rows), said or ["by eval loss"])


@dataclasses.dataclass(frozen=True)
class _Entry:
    row: Standing
    evaluation: Evaluation
    merit: Merit

    @property
    def loss(self) -> float:
        return math.inf if self.row.eval_loss is None else self.row.eval_loss

    @property
    def cases(self) -> Optional[tuple[str, int]]:
        """What it was asked: the cases, and how many of them could be checked; None where it has not answered all."""
        return (self.merit.cases_sha256, self.merit.score.cases) if self.merit.decides else None

    def differs(self, yardstick: Optional[Evaluation]) -> str:
        """Say why its loss cannot be compared; empty where it can."""
        return promotion.difference(self.evaluation, yardstick) if yardstick else "no finite eval loss"

    def lacks(self, cases: tuple[str, int]) -> str:
        """Say why its score cannot be compared; empty where it can."""
        if self.merit.unanswered:
            return f"{self.merit.unanswered} of {self.merit.cases} cases not answered"
        return "" if self.cases == cases else "other cases" if self.cases else "no cases answered"

    def placed(self, why: str) -> Standing:
        """Return its row, with what speaks against a place."""
        return dataclasses.replace(self.row, why=self.row.why or (f"not comparable: {why}" if why else ""))


def _yardstick(evaluations: list[Evaluation]) -> Optional[Evaluation]:
    """Return the first one, so that of the best run, of those that can be compared with the most others."""

    def comparable(evaluation: Evaluation) -> int:
        return sum(not promotion.difference(evaluation, other) for other in evaluations)

    return max(evaluations, key=comparable, default=None)


def _numbered(rows: list[Standing]) -> list[Standing]:
    """Give a place to each row against which nothing speaks; the others come behind, those that are there first."""
    placed = [row for row in rows if not row.why]
    others = sorted((row for row in rows if row.why), key=lambda row: row.why == _NOT_VERIFIED)
    return [dataclasses.replace(row, place=place) for place, row in enumerate(placed, 1)] + others


def _by_score(
    home: pathlib.Path, entries: list[_Entry], cases: tuple[str, int], yardstick: Optional[Evaluation]
) -> Board:
    """Rank by score; the entries are in the order of their losses."""

    def order(entry: _Entry) -> tuple[bool, float, float]:
        loss = math.inf if entry.differs(yardstick) else entry.loss
        return bool(entry.row.broken), -(entry.row.score.share or 0), loss

    rows = _numbered([entry.placed(entry.lacks(cases)) for entry in sorted(entries, key=order)])
    first = merit.right_answers(home / rows[0].run_id)
    rows = [
        dataclasses.replace(row, even=_is_even(first, merit.right_answers(home / row.run_id)))
        if row.place and row.place > 1 and not row.broken
        else row
        for row in rows
    ]
    said = [f"by score on the same {cases[1]} cases, equal scores by eval loss"]
    if any(row.even for row in rows):
        said.append(f"{EVEN} these cases cannot tell it from the first one")
    said += [
        f"{row.run_id} comes behind those that do nothing forbidden: it does in {listed(row.broken)}"
        for row in rows
        if row.place and row.broken
    ]
    return Board(True, rows, said)


def _is_even(first: dict[str, bool], other: dict[str, bool]) -> bool:
    return scores.compare(first, other).verdict == "cannot tell"
