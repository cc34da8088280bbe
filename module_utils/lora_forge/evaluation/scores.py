"""Scores over cases, and whether two of them differ. Pure functions; weights count in scores, and not in the test."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Optional

from ansible.module_utils.lora_forge.json_record import JsonRecord

ALPHA = 0.05  # two-sided: how often two equal adapters may be told apart
POWER = 0.8  # how often a difference is to be seen that is there
DIFFERENCE = 0.1  # of two scores: 10 points
_Z = statistics.NormalDist().inv_cdf(1 - ALPHA / 2)
_Z_POWER = statistics.NormalDist().inv_cdf(POWER)


@dataclasses.dataclass(frozen=True)
class Score(JsonRecord):
    """How many cases were right.

    Attributes:
        share: The right ones' part of the weight of all, 0 to 1; None without cases.
        low: Lower end of its 95 % interval.
        high: Upper end.
        right: How many were right.
        cases: How many were asked and could be checked.
    """

    share: Optional[float] = None
    low: Optional[float] = None
    high: Optional[float] = None
    right: int = 0
    cases: int = 0


def score(rows: Sequence[tuple[float, bool]]) -> Score:
    """Score cases, with Wilson's interval for a share (Wilson, 1927).

    It is of use at 0 and at 1, too, where a standard error would be 0. Weights make fewer cases of many: Kish's
    effective number, (Σw)² / Σw² (Kish, 1965), takes the place of n.

    Args:
        rows: Of each case its weight, above 0, and whether it was right.
    """
    if not rows:
        return Score()
    whole = math.fsum(weight for weight, _ in rows)
    share = math.fsum(weight for weight, right in rows if right) / whole
    count = whole**2 / math.fsum(weight**2 for weight, _ in rows)
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    reach = _Z / (1 + _Z**2 / count) * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    low, high = max(0.0, middle - reach), min(1.0, middle + reach)
    # The ends that are known exactly are not left to rounding.
    return Score(share, 0.0 if share == 0 else low, 1.0 if share == 1 else high, sum(r for _, r in rows), len(rows))


@dataclasses.dataclass(frozen=True)
class Comparison(JsonRecord):
    """Two adapters over the same cases, case by case.

    Attributes:
        cases: How many both were asked.
        gained: Names of those that only the first got right.
        lost: Names of those that only the second got right.
        p: How likely it is that two equal ones differ as much or more, 0 to 1.
        verdict: ``better``, ``worse``, or ``cannot tell``.
        needed: How many cases it takes to tell a difference of 10 points.
    """

    cases: int = 0
    gained: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    p: float = 1.0
    verdict: str = "cannot tell"
    needed: int = 0


def compare(ours: Mapping[str, bool], theirs: Mapping[str, bool]) -> Comparison:
    """Compare two adapters over the cases that both were asked.

    Args:
        ours: Of each case, by its name, whether the one in question was right.
        theirs: The same of the other one.
    """
    both = [name for name in ours if name in theirs]
    gained = tuple(name for name in both if ours[name] and not theirs[name])
    lost = tuple(name for name in both if theirs[name] and not ours[name])
    p = sign_test(len(gained), len(lost))
    told = p < ALPHA
    verdict = "better" if told and len(gained) > len(lost) else "worse" if told else "cannot tell"
    return Comparison(len(both), gained, lost, p, verdict, cases_needed(len(gained) + len(lost), len(both)))


def sign_test(gained: int, lost: int) -> float:
    """Return the two-sided probability of the exact sign test: of McNemar's, exact (Edwards, 1948; McNemar, 1947).

    Cases that both got right, or neither, say nothing of which is better.

    Args:
        gained: Cases that only the one got right.
        lost: Cases that only the other got right.
    """
    changed = gained + lost
    tail = sum(math.comb(changed, number) for number in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**changed)


def cases_needed(changed: int, cases: int) -> int:
    """Return how many cases it takes to tell a difference of 10 points, four times of five (Connor, 1987).

    (z₁ √ψ + z₂ √(ψ − δ²))² / δ², where δ is the difference and ψ the share of cases in which two adapters differ. That
    is taken from what was seen, with a case more of each kind, and is no less than δ.

    Args:
        changed: Cases in which the two differ.
        cases: All cases.
    """
    share = max((changed + 1) / (cases + 2), DIFFERENCE)
    return math.ceil((_Z * math.sqrt(share) + _Z_POWER * math.sqrt(share - DIFFERENCE**2)) ** 2 / DIFFERENCE**2)
