"""Scores and comparisons: held against figures that others published, and against an independent count."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from ansible.module_utils.lora_forge.evaluation import scores
from hypothesis import given
from hypothesis import strategies as some


def plain(right: int, cases: int) -> scores.Score:
    return scores.score([(1.0, number < right) for number in range(cases)])


# Newcombe (1998), Statistics in Medicine 17, table I, method 3: Wilson's interval without correction.
@pytest.mark.parametrize(
    ("right", "cases", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_wilsons(right, cases, low, high):
    made = plain(right, cases)
    assert (made.low, made.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_all_right_is_no_certainty():
    made = plain(20, 20)
    assert (made.share, made.high, made.right, made.cases) == (1.0, 1.0, 20, 20)
    assert made.low == pytest.approx(1 - 0.1611, abs=5e-5)


def test_nothing_asked_is_no_score():
    assert scores.score([]) == scores.Score()


def test_weights_count_in_the_share_and_widen_the_interval():
    even, uneven = scores.score([(2.0, True), (2.0, False)] * 4), scores.score([(7.0, True), (1.0, False)] * 4)
    assert (even.share, uneven.share) == (0.5, 0.875)
    assert even == plain(4, 8)  # equal weights are no weights
    heavy = scores.score([(7.0, True), (7.0, False)] + [(1.0, True), (1.0, False)] * 3)
    assert heavy.share == 0.5
    assert heavy.high - heavy.low > even.high - even.low  # two cases carry most of it


@given(some.lists(some.tuples(some.floats(0.001, 1000), some.booleans()), min_size=1, max_size=60))
def test_an_interval_holds_its_share_within_0_and_1(rows):
    made = scores.score(rows)
    assert 0 <= made.low <= made.share <= made.high <= 1


def counted(gained: int, lost: int) -> Fraction:
    """Count among all ways in which cases can fall those that are as far from even, or further."""
    changed = gained + lost
    far = abs(gained - lost)
    ways = itertools.product((0, 1), repeat=changed)
    return Fraction(sum(abs(2 * sum(way) - changed) >= far for way in ways), 2**changed)


PAIRS = [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (3, 0), (2, 1), (4, 0), (5, 0), (0, 5), (6, 0), (0, 6), (5, 1), (7, 1),
         (1, 7), (8, 1), (6, 3), (9, 2), (2, 9), (7, 7), (10, 3), (11, 3)]  # fmt: skip


@pytest.mark.parametrize(("gained", "lost"), PAIRS)
def test_the_probability_is_exact(gained, lost):
    assert scores.sign_test(gained, lost) == float(counted(gained, lost))


def outcomes(gained: int, lost: int, both: int = 0, neither: int = 0) -> tuple[dict[str, bool], dict[str, bool]]:
    kinds = [(True, False)] * gained + [(False, True)] * lost + [(True, True)] * both + [(False, False)] * neither
    names = [f"case {number}" for number in range(len(kinds))]
    return ({name: kind[0] for name, kind in zip(names, kinds)}, {name: kind[1] for name, kind in zip(names, kinds)})


@pytest.mark.parametrize(
    ("gained", "lost", "verdict"),
    [(1, 0, "cannot tell"), (5, 0, "cannot tell"), (6, 0, "better"), (0, 6, "worse"), (7, 1, "cannot tell"),
     (8, 1, "better"), (1, 8, "worse"), (0, 0, "cannot tell"), (30, 30, "cannot tell")],
)  # fmt: skip
def test_a_verdict_needs_enough_cases_that_differ(gained, lost, verdict):
    made = scores.compare(*outcomes(gained, lost, both=3, neither=2))
    assert made.verdict == verdict
    assert made.cases == gained + lost + 5
    assert (len(made.gained), len(made.lost)) == (gained, lost)


def test_the_cases_that_differ_are_named_and_others_are_passed_over():
    made = scores.compare(
        {"a": True, "b": False, "c": True, "new": False}, {"a": False, "b": True, "c": True, "old": True}
    )
    assert (made.cases, made.gained, made.lost) == (3, ("a",), ("b",))


def test_the_number_of_cases_that_would_do_follows_how_often_two_differ():
    # Connor (1987): δ 0.1, ψ 0.1 and 0.2, two-sided 5 %, power 80 %: 77 and 155.
    assert [scores.cases_needed(changed, 998) for changed in (99, 199)] == [77, 155]
    assert scores.cases_needed(0, 1000) == 77  # fewer cannot differ by 10 points
    assert scores.cases_needed(1, 5) > 155


@given(some.integers(0, 60), some.integers(0, 60))
def test_the_verdict_does_not_depend_on_which_is_named_first(gained, lost):
    ours, theirs = outcomes(gained, lost)
    other = {"better": "worse", "worse": "better", "cannot tell": "cannot tell"}
    assert scores.compare(theirs, ours).verdict == other[scores.compare(ours, theirs).verdict]
