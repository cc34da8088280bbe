"""The gate: which adapter ``latest`` points to, what the history says of it, and what people are told."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
from ansible.module_utils.lora_forge.adapters import promotion, store
from ansible.module_utils.lora_forge.adapters.manifest import Cost, Dataset, Evaluation, Losses, Manifest, Merit, Steps
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.evaluation import scores
from ansible.module_utils.lora_forge.results import summary
from ansible.module_utils.testing import patch_module_args
from delivered import planned
from wire import load

ROOT = pathlib.Path(__file__).resolve().parents[2]

TRAIN = Dataset(use="train", sha256="t")
VAL = Dataset(use="val", sha256="v")
KEYS = {"sequence_len": 4096, "val_set_size": 0, "seed": 42}
SPLIT = KEYS | {"val_set_size": 0.05}


def manifest(
    run_id: str,
    loss: Any = 0.882,
    rehearsal: bool = False,
    keys: Any = KEYS,
    sets: Any = (TRAIN, VAL),
    merit: Merit | None = None,
) -> Manifest:
    """Return the manifest of a verified run; the later its letter, the later it finished."""
    return Manifest(
        run_id=run_id,
        agent="witness",
        verdict="verified",
        rehearsal=rehearsal,
        finished_at=1_795_000_000.0 + ord(run_id[-1]),
        steps=Steps(12, 12),
        loss=Losses(2.0, 1.0, 2.0, loss),
        starts=1,
        duration_s=60.0,
        cost=Cost(0.0),
        recipe=keys,
        datasets=tuple(sets),
        evaluation=promotion.evaluation(keys, sets, loss),
        merit=merit,
    )


def gate(share: float = 0.02) -> promotion.Gate:
    """By the loss, as far as it can be compared; what cannot be moves latest."""
    return promotion.Gate(max_regression=share, unknown="move")


class Home:
    """output/adapters/witness."""

    def __init__(self, adapters: pathlib.Path):
        self.path = adapters / "witness"

    def deliver(self, run_id: str, *given: Any, **changes: Any) -> Home:
        folder = self.path / run_id
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.log").write_text("log")
        files = [{"path": "train.log", "bytes": 3, "sha256": store.sha256_text("log")}]
        (folder / "manifest.json").write_text(
            json.dumps(manifest(run_id, *given, **changes).as_dict() | {"files": files})
        )
        return self

    def train(self, run_id: str, *given: Any, regression: float = 0.02, **changes: Any) -> bool:
        """Deliver a run as a training does; return whether latest moved."""
        self.deliver(run_id, *given, **changes)
        return promotion.promote(self.path, run_id, gate(regression))

    @property
    def latest(self) -> str:
        return os.readlink(self.path / "latest")

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / "history.jsonl").read_text().splitlines()]

    def told(self, *keys: str) -> list[Any]:
        return [tuple(line[key] for key in keys) for line in self.lines]


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "adapters")


# --- what a run was evaluated on


def test_equal_sets_have_equal_sums() -> None:
    several = [VAL, TRAIN, Dataset(use="val", sha256="a")]
    assert promotion.evaluation(KEYS, several, 1.5) == Evaluation(
        source="file", sha256=store.sha256_text('[["a","v"],{}]'), sequence_len=4096, base_model=None, eval_loss=1.5
    )
    assert promotion.evaluation(SPLIT, [TRAIN], 1.5) == Evaluation(
        source="split",
        sha256=store.sha256_text('[{"seed":42,"train":["t"],"val_set_size":0.05},{}]'),
        sequence_len=4096,
        base_model=None,
        eval_loss=1.5,
    )
    assert promotion.evaluation(KEYS, [TRAIN], None) == Evaluation(source="none", sequence_len=4096)


@pytest.mark.parametrize(
    ("keys", "sets"),
    [
        (SPLIT | {"seed": 7}, [TRAIN]),
        (SPLIT | {"val_set_size": 0.1}, [TRAIN]),
        (SPLIT, [Dataset(use="train", sha256="v")]),
    ],
)
def test_another_split_is_another_set(keys, sets) -> None:
    assert promotion.evaluation(keys, sets, 1).sha256 != promotion.evaluation(SPLIT, [TRAIN], 1).sha256


@pytest.mark.parametrize("loss", ["nan", float("nan"), float("inf"), None])
def test_a_loss_that_is_not_finite_is_none(loss) -> None:
    assert promotion.evaluation(KEYS, [VAL], loss).eval_loss is None


def test_older_manifests_are_read_alike() -> None:
    new = manifest("witness-a")
    old = dataclasses.replace(new, evaluation=Evaluation())
    assert promotion.evaluation_of(old) == promotion.evaluation_of(new) == new.evaluation
    assert promotion.evaluation_of(Manifest(run_id="witness-a")).sha256 is None


# --- the decision

A = manifest("witness-a", 0.882)
NONE = {"keys": KEYS, "sets": (TRAIN,)}
OTHER = "not comparable with witness-a "


@pytest.mark.parametrize(
    ("candidate", "promoted", "move", "comparable", "why"),
    [
        (manifest("b", 0.912), None, True, None, "nothing was promoted before"),
        (manifest("b", 0.912), manifest("r", 0.1, True), True, None, "a rehearsal always makes way"),
        (manifest("b", 9.0, True), manifest("r", 0.1, True), True, None, "a rehearsal always makes way"),
        (manifest("b", 0.1, True), A, False, None, "a rehearsal never displaces a real adapter"),
        (manifest("b", 0.8), A, True, True, "eval 0.8 is 9.3 % better than witness-a's 0.882"),
        (manifest("b", 0.882), A, True, True, "eval 0.882 is as good as witness-a's 0.882"),
        (manifest("b", 0.89), A, True, True, "eval 0.89 is 0.907 % worse than witness-a's 0.882"),
        (manifest("b", 0.8996), A, True, True, "eval 0.8996 is 2 % worse than witness-a's 0.882"),
        (manifest("b", 0.912), A, False, True,
         "eval 0.912 is 3.4 % worse than witness-a's 0.882 (adapter_max_regression 2 %)"),
        (manifest("b", 0.9, sets=(TRAIN, Dataset(use="val", sha256="w"))), A, True, False,
         OTHER + "(another evaluation set)"),
        (manifest("b", 9.0, keys=SPLIT, sets=(TRAIN,)), A, True, False, OTHER + "(another evaluation set)"),
        (manifest("b", 9.0, keys=KEYS | {"sequence_len": 2048}), A, True, False,
         OTHER + "(sequence_len 2048 instead of 4096)"),
        (manifest("b", 0.5, keys=KEYS | {"base_model": "other"}), A, True, False,
         OTHER + "(base model other instead of None)"),
        (manifest("b", 0.5, keys=KEYS | {"train_on_inputs": True}), A, True, False, OTHER + "(another evaluation set)"),
        (manifest("b", None, **NONE), A, True, False, OTHER + "(one of them has no evaluation set)"),
        (manifest("b", 9.0), manifest("witness-a", None, **NONE), True, False,
         OTHER + "(one of them has no evaluation set)"),
        *[(manifest("b", loss, rehearsal), holder, False, False, f"its eval loss is {loss}")
          for loss, rehearsal, holder in (("nan", False, A), ("nan", False, None), ("inf", True, None),
                                          ("nan", False, manifest("r", 0.1, True)))],
        (manifest("b", None), A, True, False, OTHER + "(one of them has no finite eval loss)"),
        (manifest("b", 0.9), manifest("witness-a", "inf"), True, False,
         OTHER + "(one of them has no finite eval loss)"),
    ],
)  # fmt: skip
def test_decide(candidate, promoted, move, comparable, why) -> None:
    found = promotion.decide(candidate, promoted, False, gate(0.02))
    assert (found.move, found.comparable, found.why) == (move, comparable, why)
    assert found.eval_loss == candidate.evaluation.eval_loss
    assert found.than == (promoted.evaluation.eval_loss if promoted else None)


def test_a_rehearsal_waits_where_a_real_adapter_is_though_it_is_not_promoted() -> None:
    assert promotion.decide(manifest("b", 1, True), None, True, gate(0.02)).move is False
    assert promotion.decide(manifest("b", 1, True), manifest("r", 2, True), True, gate(0.02)).move is False
    assert promotion.decide(manifest("b", 1), None, True, gate(0.02)).move is True


@pytest.mark.parametrize(("share", "move"), [(0, False), (0.03, False), (0.035, True), (float("inf"), True)])
def test_the_limit_is_the_users(share, move) -> None:
    assert promotion.decide(manifest("b", 0.912), A, True, gate(share)).move is move


# --- latest and its history


def test_latest_moves_and_stays_and_every_decision_is_a_line(home) -> None:
    assert home.train("witness-r", 7.0, True) is True
    assert home.train("witness-a", 0.882) is True
    assert home.train("witness-b", 0.912) is False
    assert home.latest == "witness-a"
    assert home.train("witness-s", 0.1, True) is False
    assert home.train("witness-c", 0.87) is True
    assert home.latest == "witness-c"
    assert (home.path / "latest/manifest.json").is_file()
    assert home.told("run_id", "from", "moved", "by", "eval_loss", "than") == [
        ("witness-r", None, True, "training", 7.0, None),
        ("witness-a", "witness-r", True, "training", 0.882, 7.0),
        ("witness-b", "witness-a", False, "training", 0.912, 0.882),
        ("witness-s", "witness-a", False, "training", 0.1, 0.882),
        ("witness-c", "witness-a", True, "training", 0.87, 0.882),
    ]
    assert all(line["at"] > 1e9 and line["why"] for line in home.lines)
    assert sorted(path.name for path in home.path.iterdir() if not path.name.startswith("witness")) == [
        "history.jsonl", "latest",
    ]  # fmt: skip


@pytest.mark.parametrize("nan", ["nan", math.nan])  # as it is logged, and as JSON of Python's has it
def test_an_eval_loss_that_is_no_number_takes_no_empty_place(home, nan) -> None:
    assert home.train("witness-a", nan) is False
    assert not (home.path / "latest").is_symlink()
    assert promotion.message(home.path, "witness-a").startswith(
        "latest points to nothing: its eval loss is nan. By hand:"
    )
    assert home.train("witness-b", 0.9) is True
    assert home.train("witness-c", "nan") is False
    assert home.latest == "witness-b"


def test_a_run_is_decided_on_once(home) -> None:
    home.train("witness-a", 0.882)
    home.train("witness-b", 0.912)
    home.train("witness-c", 0.88)
    before = (home.path / "history.jsonl").read_bytes(), (home.path / "latest").lstat().st_ino
    assert home.train("witness-a", 0.882) is False  # it held latest earlier
    assert home.train("witness-b", 0.912, regression=0.9) is False  # it was refused
    assert home.train("witness-c", 0.88) is False  # it holds latest
    assert ((home.path / "history.jsonl").read_bytes(), (home.path / "latest").lstat().st_ino) == before


@pytest.mark.parametrize("defect", ["gone", "damaged", "no link", "elsewhere"])
def test_where_latest_leads_nowhere_the_next_one_takes_it(home, defect) -> None:
    home.train("witness-a", 0.5)
    home.train("witness-b", 0.9)
    if defect == "damaged":
        (home.path / "witness-a/train.log").write_text("cut off")
    elif defect == "elsewhere":
        (home.path / "latest").unlink()
        (home.path / "latest").symlink_to("/tmp")
    else:
        (home.path / "latest").unlink()
        if defect == "gone":
            (home.path / "latest").symlink_to("witness-z")
    assert home.train("witness-b", 0.9) is True  # refused before, and decided on again
    assert home.latest == "witness-b"
    assert home.lines[-1]["from"] is None


def test_a_rehearsal_does_not_take_it_from_a_damaged_real_adapter(home) -> None:
    home.train("witness-a", 0.5)
    (home.path / "witness-a/train.log").unlink()
    assert home.train("witness-r", 7.0, True) is False
    assert home.latest == "witness-a"


@pytest.mark.parametrize("cut", ['{"run_id": "witness-x", "mov', "\0\0\0", "[]\n", '{"a": 1}\n', '"text"\n'])
def test_a_line_that_a_crash_cut_off_takes_nothing_with_it(home, cut) -> None:
    home.train("witness-a", 0.882)
    with (home.path / "history.jsonl").open("a") as file:
        file.write(cut)
    assert home.train("witness-b", 0.912) is False
    assert [line["run_id"] for line in promotion.history(home.path)] == ["witness-a", "witness-b"]
    assert home.train("witness-b", 0.912, regression=1) is False


def test_a_crash_between_the_link_and_its_line_is_healed(home, monkeypatch) -> None:
    home.train("witness-a", 0.882)
    with monkeypatch.context() as patched:
        patched.setattr(promotion, "_note", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            home.train("witness-b", 0.88)
    assert home.latest == "witness-b"
    assert home.train("witness-c", 0.95) is False
    assert home.told("run_id", "from", "moved") == [
        ("witness-a", None, True),
        ("witness-b", "witness-a", True),
        ("witness-c", "witness-b", False),
    ]
    assert home.train("witness-b", 0.88) is False


def test_an_output_without_history_gets_one(home) -> None:
    home.deliver("witness-a", 0.882)
    (home.path / "latest").symlink_to("witness-a")
    assert home.train("witness-b", 0.912) is False
    assert home.told("run_id", "moved", "by") == [("witness-a", True, "unknown"), ("witness-b", False, "training")]


def test_a_folder_in_the_place_of_latest_is_left_alone(home) -> None:
    home.path.mkdir(parents=True)
    (home.path / "latest").mkdir()
    with pytest.raises(UserError, match=r"latest is no symbolic link, so it cannot be moved to witness-a; put it"):
        home.train("witness-a")
    assert (home.path / "latest").is_dir()


@pytest.mark.parametrize("share", [-0.1, float("nan")])
def test_a_share_that_makes_no_sense(home, share) -> None:
    with pytest.raises(UserError, match=r"adapter_max_regression is .*give a share from 0 on"):
        home.train("witness-a", regression=share)


# --- by hand


def test_by_hand_overrides_the_gate_and_the_training_keeps_to_it(home) -> None:
    home.train("witness-a", 0.882)
    home.train("witness-b", 0.912)
    assert promotion.promote_by_hand(home.path, "witness-b", check=True) is True
    assert home.latest == "witness-a"
    assert promotion.promote_by_hand(home.path, "witness-b") is True
    assert home.latest == "witness-b"
    line = home.lines[-1]
    assert (line["by"], line["moved"], line["from"]) == ("hand", True, "witness-a")
    assert line["why"] == "by hand; eval 0.912 is 3.4 % worse than witness-a's 0.882"
    before = (home.path / "history.jsonl").read_bytes()
    assert promotion.promote_by_hand(home.path, "witness-b") is False
    assert home.train("witness-a", 0.882) is False
    assert (home.path / "history.jsonl").read_bytes() == before
    assert home.train("witness-c", 0.92) is True  # held against what was promoted by hand


@pytest.mark.parametrize(
    ("run_id", "says"),
    [
        (
            "witness-aa",
            r"has no adapter «witness-aa» in .*; did you mean «witness-a»\? Delivered: witness-a, witness-c,",
        ),
        ("../mayor", r"has no adapter «\.\./mayor» in .*/witness\. Delivered: witness-a"),
        ("latest", "has no adapter «latest»"),
        ("witness-c", "witness-c is not whole: .*train.log has changed since it was verified. The training that made"),
        (
            "witness-r",
            r"witness-r is a rehearsal, with a tiny random model, and witness has a real adapter \(witness-c\)",
        ),
    ],
)
def test_what_is_not_promoted_even_by_hand(home, run_id, says) -> None:
    home.train("witness-a")
    home.deliver("witness-r", 1, True)
    log = home.deliver("witness-c").path / "witness-c/train.log"
    log.write_text("LOG")
    os.utime(log, (1e9, 1e9))  # older than the manifest: only its hash tells
    with pytest.raises(UserError, match=says):
        promotion.promote_by_hand(home.path, run_id)
    assert home.latest == "witness-a"
    assert len(home.lines) == 1


def test_nothing_is_delivered(home) -> None:
    with pytest.raises(UserError, match="Nothing is delivered yet"):
        promotion.promote_by_hand(home.path, "witness-a")
    assert not home.path.exists()


def play(home: Home, capsys: Any, check: bool = False, **given: Any) -> dict[str, Any]:
    """Run the module as a task calls it."""
    module = load("library/lora_adapter_promotion")
    given = {
        "adapters": str(home.path.parent),
        "checkout": str(ROOT),
        "agent": "witness",
        "_ansible_check_mode": check,
        **given,
    }
    with patch_module_args(given), pytest.raises(SystemExit):
        module.main()
    return json.loads(capsys.readouterr().out)


def test_to_train_an_agent_whose_file_is_gone_is_no_advice(home, capsys) -> None:
    (home.path.parent / "oldtimer").mkdir(parents=True)
    message = play(home, capsys, agent="oldtimer")["message"]
    assert message.startswith("oldtimer has no adapter in ")
    assert "there is no configs/agents/oldtimer.yml, so that nothing trains oldtimer" in message
    assert "train.yml" not in message


def test_the_module_tells_and_moves(home, capsys) -> None:
    assert play(home, capsys)["message"].startswith("witness has no adapter in ")
    home.train("witness-r", 7.0, True)
    home.train("witness-a", 0.882)
    home.train("witness-b", 0.912)
    home.train("witness-c", "nan")
    promotion.promote_by_hand(home.path, "witness-a")
    found = play(home, capsys)
    assert (found["changed"], found["promoted"]) == (False, "witness-a")
    assert [(row["run_id"], row["eval_loss"], row["promoted"], row["comparable"]) for row in found["adapters"]] == [
        ("witness-r", 7.0, False, "no: one of them is a rehearsal"),
        ("witness-c", None, False, "no: one of them has no finite eval loss"),
        ("witness-b", 0.912, False, "yes"),
        ("witness-a", 0.882, True, ""),
    ]
    assert found["message"].endswith("playbooks/promote.yml -e role=witness -e run_id=…")

    found = play(home, capsys, check=True, run_id="witness-b")
    assert (found["changed"], found["message"], home.latest) == (True, "latest would point to witness-b", "witness-a")
    found = play(home, capsys, run_id="witness-b")
    assert (found["changed"], found["message"], home.latest) == (True, "latest points to witness-b", "witness-b")
    found = play(home, capsys, run_id="witness-b")
    assert (found["changed"], found["promoted"]) == (False, "witness-b")
    assert found["message"] == "latest points to witness-b already"


def test_who_asks_has_it_decided_on_again_and_noted_once(home, capsys) -> None:
    home.train("witness-a", 0.9)
    home.train("witness-b", 0.91, regression=0.0)
    assert home.latest == "witness-a"
    given = {"run_id": "witness-b", "max_regression": 0.0}
    count = len(home.lines)
    assert play(home, capsys, **given)["changed"] is False
    assert len(home.lines) == count
    given["max_regression"] = 0.05
    found = play(home, capsys, check=True, **given)
    assert (found["changed"], found["message"], home.latest) == (True, "latest would point to witness-b", "witness-a")
    assert len(home.lines) == count
    assert play(home, capsys, **given)["changed"] is True
    assert home.latest == "witness-b"
    assert play(home, capsys, **given)["changed"] is False
    assert promotion.promote(home.path, "witness-a", gate(0.05)) is False  # collected again: nobody asked


@pytest.mark.parametrize(
    ("agent", "says"),
    [
        ("", "say whose adapter to promote: -e role=witness. Agents: crew,"),
        ("witnes", "there is no agent «witnes»; did you mean «witness»? Agents:"),
        ("../x", "there is no agent «../x». Agents:"),
    ],
)
def test_an_agent_that_is_none(home, capsys, agent, says) -> None:
    found = play(home, capsys, agent=agent)
    assert found["failed"]
    assert found["msg"].startswith(says)


@pytest.mark.parametrize("odd", ["high", None, [], 1e308])
def test_a_damaged_score_is_none(home, odd) -> None:
    home.deliver("witness-a", 0.9, merit=Merit(score=scores.score([(1.0, True)])))
    path = home.path / "witness-a/manifest.json"
    made = json.loads(path.read_text())
    for key in ("share", "low", "high"):
        path.write_text(json.dumps(made | {"merit": {"score": made["merit"]["score"] | {key: odd}}}))
        [row] = promotion.overview(home.path)
        assert (row["score"], promotion.table_row(row)[1]) == (None, "–")


# --- somebody decides


def test_where_people_decide_nothing_moves_and_the_command_is_shown_each_time(home) -> None:
    human = promotion.Gate("human")
    home.deliver("witness-a", 0.882)
    assert promotion.promote(home.path, "witness-a", human) is False
    command = "ansible-playbook playbooks/promote.yml -e role=witness -e run_id=witness-a"
    for state in ("to train", "ready"):
        assert f"adapter_promote is human: somebody decides. By hand: {command}" in ready(home, "witness-a", state)
    assert promotion.waits(home.path, "witness-a")
    assert promotion.promote(home.path, "witness-a", human) is False
    promotion.promote_by_hand(home.path, "witness-a")
    assert not promotion.waits(home.path, "witness-a")
    home.deliver("witness-b", 0.1)
    assert promotion.promote(home.path, "witness-b", human) is False
    assert "latest stays at witness-a: adapter_promote is human" in ready(home, "witness-b")
    assert home.latest == "witness-a"


def test_a_refused_one_waits_for_nobody(home) -> None:
    home.train("witness-a", 0.5)
    home.train("witness-b", 0.9)
    assert not promotion.waits(home.path, "witness-b")
    assert not promotion.waits(home.path, "witness-x")


def test_the_first_rehearsal_waits_for_somebody_too(home) -> None:
    home.deliver("witness-r", 7.0, True)
    promotion.promote(home.path, "witness-r", promotion.Gate("human"))
    assert "run_id=witness-r" in promotion.message(home.path, "witness-r")
    assert promotion.promote_by_hand(home.path, "witness-r") is True


def test_without_cases_what_cannot_be_compared_stays_and_it_is_said_how_to_compare_it(home) -> None:
    home.deliver("witness-a", 0.9, keys=SPLIT, sets=(TRAIN,))
    assert promotion.promote(home.path, "witness-a", promotion.Gate())
    home.deliver("witness-b", 0.1, keys=SPLIT, sets=(Dataset(use="train", sha256="new"),))
    assert not promotion.promote(home.path, "witness-b", promotion.Gate())
    said = ready(home, "witness-b")
    assert "latest stays at witness-a: not comparable with witness-a (another evaluation set)" in said
    for way in ("eval/<agent>.jsonl", "<agent>_val.jsonl", "adapter_promote_unknown=move", "run_id=witness-b"):
        assert way in said


def test_the_list_shows_scores_with_their_intervals_and_which_one_is_promoted(home, capsys) -> None:
    def merit(right: int, cases: int, file: str) -> Merit:
        return Merit(cases_sha256=file, score=scores.score([(1.0, number < right) for number in range(cases)]))

    home.deliver("witness-a", 0.9, merit=merit(17, 20, "x"))
    home.deliver("witness-b", 0.8, merit=merit(3, 5, "y"))
    home.deliver("witness-c", 0.7)
    promotion.promote_by_hand(home.path, "witness-a")
    shown = play(home, capsys)["show"]
    rows = [dict(zip(shown["columns"], row)) for row in shown["rows"]]
    assert [(row["run"], row["score"], row["n"], row["95 %"], row["eval loss"], row["promoted"]) for row in rows] == [
        ("witness-c", "–", "–", "–", "0.7", ""),
        ("witness-b", "60 %", "5 (other cases)", "23 to 88 %", "0.8", ""),
        ("witness-a", "85 %", "20", "64 to 95 %", "0.9", "latest"),
    ]


# --- what people read at the end


def ready(home: Home, run_id: str, state: str = "to train") -> str:
    promoted = promotion.points_to(home.path / "latest") == run_id
    found = store.read_manifest(home.path / run_id)
    assert found
    message = promotion.message(home.path, run_id)
    return "\n".join(summary.ready_lines(planned(run_id, state=state), found, home.path, promoted, message))


def test_the_summary_says_what_became_of_latest(home) -> None:
    hint = "By hand: ansible-playbook playbooks/promote.yml -e role=witness -e run_id="
    home.train("witness-a", 0.882)
    assert f"{home.path}/latest → witness-a" in ready(home, "witness-a")
    assert "stays" not in ready(home, "witness-a")

    home.train("witness-b", 0.912)
    refused = (
        "latest stays at witness-a: eval 0.912 is 3.4 % worse than its 0.882 (adapter_max_regression 2 %). "
        f"{hint}witness-b"
    )
    assert f"  {refused}" in ready(home, "witness-b").splitlines()
    assert f"  {refused}" in ready(home, "witness-b", "ready").splitlines()

    home.train("witness-c", 9.0, keys=KEYS | {"sequence_len": 8192})
    assert (
        "  not comparable with witness-a (sequence_len 8192 instead of 4096)" in ready(home, "witness-c").splitlines()
    )
    assert "latest → witness-c" in ready(home, "witness-c")
    assert len(ready(home, "witness-c", "ready").splitlines()) == 1

    # An earlier one, of which the gate said nothing about the promoted one of today.
    assert f"  latest stays at witness-c. {hint}witness-b" in ready(home, "witness-b", "ready").splitlines()

    home.train("witness-r", 7.0, True)
    assert "  latest stays at witness-c: a rehearsal never displaces a real adapter" in ready(home, "witness-r")
    assert "run_id=witness-r" not in ready(home, "witness-r")


def test_figures_that_are_text_do_not_break_the_summary(home) -> None:
    home.train("witness-a", "nan")
    assert "eval 2 → nan" in ready(home, "witness-a")


# --- the parts, closer


def test_what_a_run_without_a_word_on_its_split_was_evaluated_on() -> None:
    bare = {key: value for key, value in KEYS.items() if key != "val_set_size"}
    assert promotion.evaluation(bare, [TRAIN], 1).source == "none"
    two = [Dataset(use=use, sha256=sha256) for use, sha256 in (("train", "b"), ("train", "a"), ("other", "c"))]
    unseeded = {"val_set_size": 0.1, "base_model": "m", "chat_template": "chatml", "seed": None}
    assert promotion.evaluation(unseeded, two, 1) == Evaluation(
        source="split",
        sha256=store.sha256_text('[{"seed":null,"train":["a","b"],"val_set_size":0.1},{"chat_template":"chatml"}]'),
        sequence_len=None,
        base_model="m",
        eval_loss=1,
    )


@pytest.mark.parametrize("key", promotion.MASKING)
def test_what_is_masked_otherwise_is_another_set(key) -> None:
    assert promotion.evaluation(KEYS | {key: "x"}, [VAL], 1).sha256 != promotion.evaluation(KEYS, [VAL], 1).sha256


@pytest.mark.parametrize("damage", [{"datasets": [{"use": "val"}]}, {"datasets": [7]}, {"recipe": []}, {"datasets": 7}])
def test_a_manifest_that_is_damaged_has_no_evaluation_set_and_keeps_its_loss(damage) -> None:
    found = promotion.evaluation_of(Manifest.from_dict({"loss": {"eval_last": 1.5}, **damage}))
    assert found == promotion.evaluation({}, [], 1.5)
    assert (found.sha256, found.eval_loss) == (None, 1.5)


def test_the_loss_that_counts_is_that_of_the_adapter_which_was_delivered() -> None:
    later = Manifest(run_id="witness-b", rehearsal=False, recipe=KEYS, datasets=(TRAIN, VAL))
    best = dataclasses.replace(later, loss=Losses(eval_adapter=0.8, eval_last=1.2))
    last = dataclasses.replace(later, loss=Losses(eval_adapter=None, eval_last=1.2))
    assert promotion.evaluation_of(best).eval_loss == 0.8
    assert promotion.evaluation_of(last).eval_loss == 1.2
    promoted = manifest("witness-a", 0.882)
    assert promotion.decide(best, promoted, True, gate(0.02)).move
    assert not promotion.decide(last, promoted, True, gate(0.02)).move


def test_what_a_manifest_says_of_its_evaluation_counts_and_nothing_else() -> None:
    plain = manifest("witness-a").as_dict()
    found = promotion.evaluation_of(
        Manifest.from_dict({**plain, "evaluation": {"sha256": "s", "eval_loss": 3.0, "other": 1}})
    )
    assert (found.sha256, found.eval_loss, found.source) == ("s", 3.0, "file")
    lost = Manifest.from_dict({**plain, "loss": None, "evaluation": None})
    assert promotion.evaluation_of(lost).eval_loss is None


@pytest.mark.parametrize(
    ("loss", "than", "words"),
    [
        (0.1, 0, "eval 0.1 is 10 % worse than x's 0"),
        (-0.5, -1.0, "eval -0.5 is 50 % worse than x's -1"),
        (1.23456, 2.0, "eval 1.235 is 38.3 % better than x's 2"),
        (0, 0, "eval 0 is as good as x's 0"),
    ],
)
def test_two_losses_in_words(loss, than, words) -> None:
    assert promotion.compared(loss, than, "x") == words


def test_a_loss_at_the_limit_passes() -> None:
    assert promotion.decide(manifest("b", 1.5), manifest("witness-a", 1.0), False, gate(0.5)).move is True
    assert promotion.decide(manifest("b", 1.51), manifest("witness-a", 1.0), False, gate(0.5)).move is False
    assert promotion.decide(manifest("b", -0.4), manifest("witness-a", -1.0), False, gate(0.5)).move is False


def test_what_is_delivered_is_told_from_the_oldest_on(home) -> None:
    for run_id in ("witness-c", "witness-a", "witness-b", "witness-d"):
        home.deliver(run_id)
    finished = {"witness-a": 5.0, "witness-b": None, "witness-c": 4.0, "witness-d": 5.0}
    for run_id, at in finished.items():
        path = home.path / run_id / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"finished_at": at}))
    (home.path / "latest").symlink_to("witness-a")
    home.deliver(".witness-e.partial")
    failed = home.deliver("witness-f").path / "witness-f/manifest.json"
    failed.write_text(json.dumps(json.loads(failed.read_text()) | {"verdict": "failed"}))
    (home.path / "note.txt").write_text("x")
    assert list(promotion.delivered_manifests(home.path)) == ["witness-b", "witness-c", "witness-a", "witness-d"]
    assert promotion.delivered_manifests(home.path / "nobody") == {}


def test_the_promoted_one_is_known_by_its_folder(home) -> None:
    assert promotion.current_manifest(home.path) is None
    home.deliver("witness-a")
    (home.path / "latest").symlink_to("witness-a")
    (home.path / "witness-a").rename(home.path / "witness-z")
    assert promotion.current_manifest(home.path) is None
    (home.path / "latest").unlink()
    (home.path / "latest").symlink_to("witness-z")
    found = promotion.current_manifest(home.path)
    assert found
    assert (found.run_id, found.agent) == ("witness-z", "witness")
    (home.path / "latest").unlink()
    home.deliver("latest")  # a folder in its place
    assert promotion.current_manifest(home.path) is None


def test_a_line_of_the_history_says_everything(home, monkeypatch) -> None:
    monkeypatch.setattr(promotion.time, "time", lambda: 1_764_000_000.12345)
    home.train("witness-a", 0.882)
    home.train("witness-b", 0.912)
    home.train("witness-c", 9.0, keys=KEYS | {"sequence_len": 8})
    promotion.promote_by_hand(home.path, "witness-b")
    first, refused, other, hand = home.lines
    assert first == {
        "at": 1_764_000_000.123, "run_id": "witness-a", "from": None, "moved": True, "by": "training",
        "why": "nothing was promoted before", "comparable": None, "eval_loss": 0.882, "than": None,
    }  # fmt: skip
    assert refused == {
        "at": 1_764_000_000.123, "run_id": "witness-b", "from": "witness-a", "moved": False, "by": "training",
        "why": "eval 0.912 is 3.4 % worse than witness-a's 0.882 (adapter_max_regression 2 %)", "comparable": True,
        "eval_loss": 0.912, "than": 0.882,
    }  # fmt: skip
    assert (other["moved"], other["comparable"]) == (True, False)
    assert hand == {
        "at": 1_764_000_000.123, "run_id": "witness-b", "from": "witness-c", "moved": True, "by": "hand",
        "why": "by hand; not comparable with witness-c (sequence_len 4096 instead of 8)", "comparable": False,
        "eval_loss": 0.912, "than": 9.0,
    }  # fmt: skip


def test_a_move_that_nobody_noted_gets_a_line_of_its_own(home) -> None:
    home.train("witness-a", 0.882)
    home.deliver("witness-b", 0.7)
    (home.path / "latest").unlink()
    (home.path / "latest").symlink_to("witness-b")
    home.train("witness-c", 0.9)
    line = home.lines[1]
    assert {key: line[key] for key in line if key != "at"} == {
        "run_id": "witness-b", "from": "witness-a", "moved": True, "by": "unknown",
        "why": "latest was found there; nobody had noted it", "comparable": None, "eval_loss": 0.7, "than": None,
    }  # fmt: skip
    assert len(home.lines) == 3


def test_an_unnoted_move_after_a_refusal_comes_from_the_one_that_was_promoted(home) -> None:
    home.train("witness-a", 0.5)
    home.train("witness-b", 0.9)
    home.deliver("witness-d", 0.7)
    (home.path / "latest").unlink()
    (home.path / "latest").symlink_to("witness-d")
    home.train("witness-c", 0.9)
    assert home.told("run_id", "from")[2] == ("witness-d", "witness-a")


def test_a_prediction_changes_nothing(home) -> None:
    home.deliver("witness-a", 0.882)
    assert promotion.promote(home.path, "witness-a", gate(0.02), check=True) is True
    assert sorted(path.name for path in home.path.iterdir()) == ["witness-a"]
    home.train("witness-a", 0.882)
    home.deliver("witness-b", 0.912)
    assert promotion.promote(home.path, "witness-b", gate(0.02), check=True) is False
    assert promotion.promote(home.path, "witness-b", gate(0.5), check=True) is True
    assert len(home.lines) == 1
    assert promotion.promote(home.path, "witness-a", gate(0), check=True) is False


def test_by_hand_where_nothing_was_promoted(home) -> None:
    home.deliver("witness-a", 0.882)
    assert promotion.promote_by_hand(home.path, "witness-a", check=True) is True
    assert not (home.path / "latest").is_symlink()
    assert promotion.promote_by_hand(home.path, "witness-a") is True
    [told] = home.told("run_id", "from", "by", "why")
    assert told == ("witness-a", None, "hand", "by hand; nothing was promoted before")


def test_by_hand_a_rehearsal_where_there_is_no_real_one(home) -> None:
    home.train("witness-r", 7.0, True)
    home.train("witness-s", 9.0, True)
    assert promotion.promote_by_hand(home.path, "witness-r") is True
    assert home.latest == "witness-r"


def test_by_hand_says_what_is_there(home) -> None:
    home.deliver("witness-a").deliver("witness-r", 1.0, True)
    words = {
        "witness-aa": f"witness has no adapter «witness-aa» in {home.path}; did you mean «witness-a»? Delivered: "
        "witness-a, witness-r",
        "zzzzz": f"witness has no adapter «zzzzz» in {home.path}. Delivered: witness-a, witness-r",
        "witness-r": "witness-r is a rehearsal, with a tiny random model, and witness has a real adapter (witness-a); "
        "a rehearsal never displaces one",
    }
    for run_id, says in words.items():
        with pytest.raises(UserError) as error:
            promotion.promote_by_hand(home.path, run_id)
        assert str(error.value) == says


def test_by_hand_a_folder_in_the_place_of_latest_stops_it_before_anything_is_noted(home) -> None:
    home.deliver("witness-a")
    (home.path / "latest").mkdir()
    for check in (True, False):
        with pytest.raises(
            UserError, match="latest is no symbolic link, so it cannot be moved to witness-a; put it else"
        ):
            promotion.promote_by_hand(home.path, "witness-a", check)
    assert not (home.path / "history.jsonl").exists()


def test_all_that_may_be_promoted(home) -> None:
    home.train("witness-a", 0.882)
    home.train("witness-b", 0.912)
    home.train("witness-c", 0.8, keys=KEYS | {"sequence_len": 8})
    (home.path / "witness-b/train.log").write_text("cut off")
    rows = promotion.overview(home.path)
    defect = f"{home.path / 'witness-b/train.log'} has 7 bytes instead of 3"
    assert rows == [
        {
            "run_id": run_id,
            "rehearsal": False,
            "score": None,
            "eval_loss": loss,
            "steps": {"reached": 12, "planned": 12},
            "finished_at": 1_795_000_000.0 + ord(run_id[-1]),
            "promoted": run_id == "witness-c",
            "comparable": "" if run_id == "witness-c" else "no: sequence_len 4096 instead of 8",
            "defect": defect if run_id == "witness-b" else None,
        }
        for run_id, loss in (("witness-c", 0.8), ("witness-b", 0.912), ("witness-a", 0.882))
    ]
    (home.path / "latest").unlink()
    assert {(row["promoted"], row["comparable"]) for row in promotion.overview(home.path)} == {(False, "")}


ODD = (7, None, "\ud800", [], {"a": 7}, 1e308)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield from places(value[key], (*at, key))


def test_no_value_in_a_manifest_stops_who_reads_it(home) -> None:
    home.train("witness-a", 0.9, keys=SPLIT)
    home.deliver("witness-b", 0.8, keys=SPLIT)
    path = home.path / "witness-b/manifest.json"
    text = path.read_text()
    for place, odd in itertools.product(places(json.loads(text)), ODD):
        damaged = {"": json.loads(text)}
        *way, last = ("", *place)
        functools.reduce(lambda part, key: part[key], way, damaged)[last] = odd
        path.write_text(json.dumps(damaged[""]))
        with contextlib.suppress(UserError):
            promotion.promote(home.path, "witness-b", gate(0.02), check=True)
        rows = [promotion.table_row(row) for row in promotion.overview(home.path)]
        assert "witness-a" in {row[0] for row in rows}, (place, odd)
        ready(home, "witness-a")


def test_a_run_that_is_not_delivered_or_not_whole_is_refused_in_words(home) -> None:
    home.deliver("witness-a")
    with pytest.raises(UserError, match=r"witness has no adapter «witness-b» in .*Delivered: witness-a"):
        promotion.promote(home.path, "witness-b", gate(0.02))
    (home.path / "witness-a/train.log").unlink()
    with pytest.raises(UserError, match=r"witness-a is not whole: .*train\.log is missing"):
        promotion.promote(home.path, "witness-a", gate(0.02), asked=True)
    assert not (home.path / "latest").is_symlink()


def test_a_refusal_is_noted_once_where_latest_leads_nowhere(home) -> None:
    for _ in range(2):
        assert home.train("witness-a", "nan") is False
    assert home.told("run_id", "moved") == [("witness-a", False)]


def test_what_became_of_latest_in_a_word(home) -> None:
    hint = "By hand: ansible-playbook playbooks/promote.yml -e role=witness -e run_id="
    home.deliver("witness-a", 0.882)
    assert promotion.message(home.path, "witness-a") == f"latest points to nothing. {hint}witness-a"
    home.train("witness-a", 0.882)
    assert promotion.message(home.path, "witness-a") == ""
    home.train("witness-b", 0.912)
    home.train("witness-b", 0.912)
    (home.path / "latest").unlink()
    assert promotion.message(home.path, "witness-b") == f"latest points to nothing. {hint}witness-b"
    home.deliver("witness-r", 1.0, True)
    assert promotion.message(home.path, "witness-r") == "latest points to nothing"


def test_the_newest_decision_on_a_run_is_told(home) -> None:
    home.train("witness-a", 0.882)
    home.train("witness-b", 0.912)
    promotion.promote(home.path, "witness-b", gate(0.01), asked=True)
    assert "worse than its 0.882 (adapter_max_regression 2 %)" in promotion.message(home.path, "witness-b")
    home.train("witness-c", 0.8)
    promotion.promote(home.path, "witness-b", gate(0.01), asked=True)
    assert "14 % worse than its 0.8 (adapter_max_regression 1 %)" in promotion.message(home.path, "witness-b")
    assert promotion.message(home.path, "witness-a").startswith("latest stays at witness-c. By hand")


@pytest.mark.parametrize("moved", [True, False])
def test_a_run_that_only_another_ones_line_names_is_known(home, moved) -> None:
    home.deliver("witness-a", 0.5).deliver("witness-b", 0.9)
    (home.path / "latest").symlink_to("witness-b" if moved else "witness-a")
    line = {"run_id": "witness-b", "from": "witness-a", "moved": moved, "why": "x"}
    (home.path / "history.jsonl").write_text(json.dumps(line) + "\n")
    assert home.train("witness-a", 0.5) is False  # it held latest before there was a history
    assert home.train("witness-c", 9.0) is False
    assert home.told("run_id") == [("witness-b",), ("witness-c",)]


def test_by_hand_even_one_whose_eval_loss_is_no_number(home) -> None:
    home.train("witness-a", 0.5)
    home.train("witness-b", "nan")
    assert promotion.promote_by_hand(home.path, "witness-b") is True
    assert home.latest == "witness-b"
    assert home.told("run_id", "moved", "by")[-1] == ("witness-b", True, "hand")


def test_by_hand_a_move_that_nobody_noted_is_noted_first(home) -> None:
    home.deliver("witness-a", 0.5).deliver("witness-b", 0.9)
    (home.path / "latest").symlink_to("witness-a")
    promotion.promote_by_hand(home.path, "witness-b")
    assert home.told("run_id", "from", "by") == [("witness-a", None, "unknown"), ("witness-b", "witness-a", "hand")]


@pytest.mark.parametrize("line", ['{"run_id": "witness-a"}', '{"moved": true}'])
def test_a_line_that_says_too_little_is_passed_over(home, line) -> None:
    home.path.mkdir(parents=True)
    (home.path / "history.jsonl").write_text(line + "\n")
    assert promotion.history(home.path) == []
    assert home.train("witness-a", 0.5) is True


def test_the_history_is_written_as_people_read_it(home) -> None:
    home.train("witness-a", 0.5)
    home.train("witness-b", 0.5, keys=KEYS | {"base_model": "modèle"})
    assert "base model modèle instead of None" in (home.path / "history.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("gone", ["recipe", "datasets"])
def test_an_older_manifest_without_a_part_keeps_what_the_others_say(gone) -> None:
    whole = Manifest(recipe=KEYS, datasets=(VAL,), loss=Losses(eval_last=1.5))
    found = promotion.evaluation_of(dataclasses.replace(whole, **{gone: type(getattr(whole, gone))()}))
    assert found.eval_loss == 1.5
    assert (found.source, found.sequence_len) == (("file", None) if gone == "recipe" else ("none", 4096))
