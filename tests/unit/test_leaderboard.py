"""Sweeps: what belongs together, the leader board."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning import variants
from ansible.module_utils.lora_forge.results import leaderboard
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
    rows = leaderboard.planned_leaderboards(output, variants_of(*ranks))["witness"]
    return [(row.place, row.run_id, row.why) for row in rows]


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
    first, second = (
        leaderboard.table_row(row) for row in leaderboard.planned_leaderboards(tmp_path, variants_of(8, 16))["witness"]
    )
    assert first == [1, "lora_r 8", "witness-8 *", "0.9000", "0.5000", 8, "1:01", "$0.25"]
    assert second == ["–", "lora_r 16", "witness-16", "not verified", "–", "–", "–", "–"]
    assert len(first) == len(leaderboard.COLUMNS)


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
