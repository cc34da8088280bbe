"""Sweeps: what belongs together, the leader board."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning import variants
from ansible.module_utils.lora_forge.results import leaderboard
from delivered import answers, cases, evaluate
from planned import planned_run

DATA = [{"use": "train", "sha256": "t"}, {"use": "val", "sha256": "v"}]


def variants_of(*ranks: int) -> list[PlannedRun]:
    return [planned_run(agent="witness", run_id=f"witness-{rank}", variant={"lora_r": rank}) for rank in ranks]


@pytest.fixture
def deliver(tmp_path):
    def make(run_id: str, eval_loss: Any, **recipe: Any) -> None:
        keys = {"base_model": "m", "sequence_len": 64, **recipe}
        folder = tmp_path / "adapters/witness" / run_id
        folder.mkdir(parents=True)
        manifest = {
            "run_id": run_id, "verdict": "verified", "recipe": keys, "datasets": DATA, "duration_s": 61.0,
            "loss": {"last": 0.5, "eval_last": eval_loss}, "steps": {"reached": 8, "planned": 8},
            "cost": {"usd": 0.25},
        }  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return make


def board(output: pathlib.Path, *ranks: int) -> list[tuple[Any, str, str]]:
    made = leaderboard.planned_leaderboards(output, variants_of(*ranks))["witness"]
    return [(row.place, row.run_id, row.why) for row in made.rows]


def test_the_best_comes_first_and_what_says_nothing_has_no_place(tmp_path, deliver):
    deliver("witness-8", 0.9), deliver("witness-16", 0.7), deliver("witness-32", 0.6, sequence_len=128)
    deliver("witness-64", "nan"), deliver("witness-4", 0.7001)
    assert board(tmp_path, 4, 8, 16, 64, 128) == [
        (1, "witness-16", ""), (2, "witness-4", ""), (3, "witness-8", ""),
        (None, "witness-64", "not comparable: one of them has no finite eval loss"),
        (None, "witness-128", "not verified"),
    ]  # fmt: skip
    assert board(tmp_path, 64) == [(None, "witness-64", "not comparable: no finite eval loss")]


def test_what_was_evaluated_otherwise_is_not_ranked(tmp_path, deliver):
    deliver("witness-8", 0.9), deliver("witness-16", 0.95), deliver("witness-32", 0.6, sequence_len=128)
    assert board(tmp_path, 8, 16, 32) == [
        (1, "witness-8", ""), (2, "witness-16", ""),
        (None, "witness-32", "not comparable: sequence_len 128 instead of 64"),
    ]  # fmt: skip


def test_the_cells(tmp_path, deliver):
    deliver("witness-8", 0.9)
    (tmp_path / "adapters/witness/latest").symlink_to("witness-8")
    first, second = leaderboard.table_rows(leaderboard.planned_leaderboards(tmp_path, variants_of(8, 16))["witness"])
    assert first == ["1", "lora_r 8", "witness-8 *", "–", "0.9000", "0.5000", 8, "1:01", "$0.25"]
    assert second == ["–", "lora_r 16", "witness-16", "–", "not verified", "–", "–", "–", "–"]
    assert len(first) == len(leaderboard.COLUMNS)


def answer(output: pathlib.Path, rank: int, letters: str, count: int = 0) -> None:
    """Let a delivered run answer cases: y rightly, n wrongly, f with what is forbidden, - not at all."""
    asked = cases(count or len(letters))
    evaluate(output / f"adapters/witness/witness-{rank}", asked, answers(asked, letters), answers(asked, "n"))


def made(output: pathlib.Path, *ranks: int) -> leaderboard.Board:
    return leaderboard.planned_leaderboards(output, variants_of(*ranks))["witness"]


def test_those_that_were_asked_the_same_cases_are_ranked_by_score_and_equal_ones_by_loss(tmp_path, deliver):
    deliver("witness-4", 0.5), deliver("witness-8", 0.9), deliver("witness-16", 0.7), deliver("witness-32", 0.6)
    answer(tmp_path, 4, "n" * 9), answer(tmp_path, 8, "y" * 9)
    answer(tmp_path, 16, "y" * 8 + "n"), answer(tmp_path, 32, "n" + "y" * 8)
    found = made(tmp_path, 4, 8, 16, 32)
    assert [row[:5] for row in leaderboard.table_rows(found)] == [
        ["1", "lora_r 8", "witness-8", "100 % of 9", "0.9000"],
        ["2 ≈", "lora_r 32", "witness-32", "89 % of 9", "0.6000"],
        ["3 ≈", "lora_r 16", "witness-16", "89 % of 9", "0.7000"],
        ["4", "lora_r 4", "witness-4", "0 % of 9", "0.5000"],
    ]
    assert found.ranking == [
        "by score on the same 9 cases, equal scores by eval loss", "≈ these cases cannot tell it from the first one"
    ]  # fmt: skip
    variants.write_sweeps(tmp_path, variants_of(4, 8))
    told = leaderboard.summary_lines(tmp_path, ["witness"])
    assert told[0].endswith(": 2 of 2 verified, by score")
    assert told[1:] == [
        "      1  100 % of 9  eval 0.9  lora_r 8  witness-8", "      2  0 % of 9  eval 0.5  lora_r 4  witness-4"
    ]  # fmt: skip


def test_losses_that_cannot_be_compared_do_not_keep_scores_from_it(tmp_path, deliver):
    deliver("witness-8", "nan"), deliver("witness-16", 0.7), deliver("witness-32", 0.6, sequence_len=128)
    for rank, letters in ((8, "yyn"), (16, "nnn"), (32, "ynn")):
        answer(tmp_path, rank, letters)
    assert board(tmp_path, 8, 16, 32) == [(1, "witness-8", ""), (2, "witness-32", ""), (3, "witness-16", "")]
    variants.write_sweeps(tmp_path, variants_of(8))
    assert leaderboard.summary_lines(tmp_path, ["witness"])[1] == "      1  67 % of 3  lora_r 8  witness-8"


def test_what_does_something_forbidden_comes_behind(tmp_path, deliver):
    deliver("witness-8", 0.5), deliver("witness-16", 0.7)
    answer(tmp_path, 8, "yyf"), answer(tmp_path, 16, "nnn")
    assert board(tmp_path, 8, 16) == [(1, "witness-16", ""), (2, "witness-8", "")]
    assert made(tmp_path, 8, 16).ranking[1] == (
        "witness-8 comes behind those that do nothing forbidden: it does in looks at its hook first"
    )


def test_where_fewer_answered_the_same_cases_the_loss_ranks_and_that_is_said(tmp_path, deliver):
    deliver("witness-8", 0.5), deliver("witness-16", 0.7), deliver("witness-32", 0.6)
    answer(tmp_path, 8, "nnn"), answer(tmp_path, 16, "yyy"), answer(tmp_path, 32, "yy-")
    found = made(tmp_path, 8, 16, 32)
    assert [row.run_id for row in found.rows] == ["witness-8", "witness-32", "witness-16"]
    assert found.ranking == ["by eval loss: 2 of 3 have answered the same cases"]


def test_with_the_scores_in_front_what_has_no_such_score_has_no_place(tmp_path, deliver):
    deliver("witness-8", "nan"), deliver("witness-16", "nan"), deliver("witness-32", 0.6), deliver("witness-64", "nan")
    answer(tmp_path, 8, "nnn"), answer(tmp_path, 16, "yyy"), answer(tmp_path, 32, "yy-")
    answer(tmp_path, 64, "yyyy")
    found = made(tmp_path, 8, 16, 32, 64, 128)
    assert [(row.place, row.why) for row in found.rows] == [
        (1, ""), (2, ""), (None, "not comparable: 1 of 3 cases not answered"), (None, "not comparable: other cases"),
        (None, "not verified"),
    ]  # fmt: skip
    assert leaderboard.table_rows(found)[2][3:5] == ["not comparable: 1 of 3 cases not answered", "0.6000"]


def test_a_merit_of_other_weights_says_nothing(tmp_path, deliver):
    deliver("witness-8", 0.9), deliver("witness-16", 0.7)
    answer(tmp_path, 8, "yyy"), answer(tmp_path, 16, "nnn")
    path = tmp_path / "adapters/witness/witness-8/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][0]["sha256"] = "f" * 64
    path.write_text(json.dumps(manifest))
    assert [row.run_id for row in made(tmp_path, 8, 16).rows] == ["witness-16", "witness-8"]


def test_what_belongs_together_is_noted_once(tmp_path):
    variants.write_sweeps(tmp_path, variants_of(8, 16))
    (known,) = variants.read_sweeps(tmp_path)
    assert (known["agent"], [one["run_id"] for one in known["runs"]]) == ("witness", ["witness-8", "witness-16"])
    variants.write_sweeps(tmp_path, variants_of(8, 16))
    assert variants.read_sweeps(tmp_path) == [known]
    variants.write_sweeps(tmp_path, variants_of(8, 32))
    assert len(variants.read_sweeps(tmp_path)) == 2
    known = ["witness"]
    assert len(leaderboard.summary_lines(tmp_path, known, ["witness"])) == 2
    newest = leaderboard.summary_lines(tmp_path, known)
    assert len(newest) == 1  # who asks for an agent is told of all of its
    assert newest == leaderboard.summary_lines(tmp_path, known, ["witness"])[:1]
    assert leaderboard.summary_lines(tmp_path, ["mayor"])[0] == (
        newest[0] + "; there is no configs/agents/witness.yml any more"
    )
