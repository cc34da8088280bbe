"""The gate: which adapter ``latest`` points to, what the history says of it, and what people are told."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import pytest
from ansible.module_utils.lora_forge import adapter, promotion, summary
from ansible.module_utils.lora_forge.errors import ForgeError
from ansible.module_utils.testing import patch_module_args
from wire import load

TRAIN = {"use": "train", "sha256": "t"}
VAL = {"use": "val", "sha256": "v"}
KEYS = {"sequence_len": 4096, "val_set_size": 0, "seed": 42}
SPLIT = KEYS | {"val_set_size": 0.05}


def manifest(
    run_id: str, loss: Any = 0.882, rehearsal: bool = False, keys: Any = KEYS, sets: Any = (TRAIN, VAL)
) -> Any:
    """A verified run's; the later its letter, the later it finished."""
    return {
        "run_id": run_id,
        "agent": "witness",
        "verdict": "verified",
        "rehearsal": rehearsal,
        "finished_at": 1_795_000_000.0 + ord(run_id[-1]),
        "steps": {"reached": 12, "planned": 12},
        "loss": {"first": 2.0, "last": 1.0, "eval_first": 2.0, "eval_last": loss},
        "starts": 1,
        "duration_s": 60.0,
        "cost": {"usd": 0.0},
        "recipe": keys,
        "datasets": list(sets),
        "evaluation": promotion.evaluation(keys, list(sets), loss),
    }


class Home:
    """output/adapters/witness."""

    def __init__(self, adapters: pathlib.Path):
        self.path = adapters / "witness"

    def deliver(self, run_id: str, *given: Any, **changes: Any) -> Home:
        folder = self.path / run_id
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.log").write_text("log")
        files = [{"path": "train.log", "bytes": 3, "sha256": adapter.sha256_text("log")}]
        (folder / "manifest.json").write_text(json.dumps(manifest(run_id, *given, **changes) | {"files": files}))
        return self

    def train(self, run_id: str, *given: Any, regression: float = 0.02, **changes: Any) -> bool:
        """A training delivers a run; returns whether latest moved."""
        self.deliver(run_id, *given, **changes)
        return promotion.promote(self.path, run_id, regression)

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
    found = promotion.evaluation(KEYS, [VAL, TRAIN, {"use": "val", "sha256": "a"}], 1.5)
    assert found == {
        "source": "file",
        "sha256": adapter.sha256_text('[["a","v"],{}]'),
        "sequence_len": 4096,
        "base_model": None,
        "eval_loss": 1.5,
    }
    assert promotion.evaluation(SPLIT, [TRAIN], 1.5) | {"sha256": None} == found | {"source": "split", "sha256": None}
    assert promotion.evaluation(SPLIT, [TRAIN], 1.5)["sha256"] == adapter.sha256_text(
        '[{"seed":42,"train":["t"],"val_set_size":0.05},{}]'
    )
    assert promotion.evaluation(KEYS, [TRAIN], None) == {
        "source": "none",
        "sha256": None,
        "sequence_len": 4096,
        "base_model": None,
        "eval_loss": None,
    }


@pytest.mark.parametrize(
    ("keys", "sets"),
    [(SPLIT | {"seed": 7}, [TRAIN]), (SPLIT | {"val_set_size": 0.1}, [TRAIN]), (SPLIT, [VAL | {"use": "train"}])],
)
def test_another_split_is_another_set(keys, sets) -> None:
    assert promotion.evaluation(keys, sets, 1)["sha256"] != promotion.evaluation(SPLIT, [TRAIN], 1)["sha256"]


@pytest.mark.parametrize("loss", ["nan", float("nan"), float("inf"), None])
def test_a_loss_that_is_not_finite_is_none(loss) -> None:
    assert promotion.evaluation(KEYS, [VAL], loss)["eval_loss"] is None


def test_older_manifests_are_read_alike() -> None:
    new = manifest("witness-a")
    old = {key: value for key, value in new.items() if key != "evaluation"}
    assert promotion.evaluation_of(old) == promotion.evaluation_of(new)
    assert promotion.evaluation_of({"run_id": "witness-a"})["sha256"] is None


# --- the decision

A = manifest("witness-a", 0.882)
NONE = {"keys": KEYS, "sets": (TRAIN,)}
OTHER = "not comparable with witness-a "


@pytest.mark.parametrize(
    ("candidate", "promoted", "move", "comparable", "why"),
    [
        (manifest("b", 0.912), None, True, None, "nothing was promoted"),
        (manifest("b", 0.912), manifest("r", 0.1, True), True, None, "a rehearsal always makes way"),
        (manifest("b", 9.0, True), manifest("r", 0.1, True), True, None, "a rehearsal always makes way"),
        (manifest("b", 0.1, True), A, False, None, "a rehearsal never displaces a real adapter"),
        (manifest("b", 0.8), A, True, True, "eval 0.8 is 9.3 % better than witness-a's 0.882"),
        (manifest("b", 0.882), A, True, True, "eval 0.882 is as good as witness-a's 0.882"),
        (manifest("b", 0.89), A, True, True, "eval 0.89 is 0.907 % worse than witness-a's 0.882"),
        (manifest("b", 0.8996), A, True, True, "eval 0.8996 is 2 % worse than witness-a's 0.882"),
        (manifest("b", 0.912), A, False, True,
         "eval 0.912 is 3.4 % worse than witness-a's 0.882 (adapter_max_regression 2 %)"),
        (manifest("b", 0.9, sets=(TRAIN, {"use": "val", "sha256": "w"})), A, True, False,
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
    found = promotion.decide(candidate, promoted, False, 0.02)
    assert (found.move, found.comparable, found.why) == (move, comparable, why)
    assert found.eval_loss == candidate["evaluation"]["eval_loss"]
    assert found.than == (promoted["evaluation"]["eval_loss"] if promoted else None)


def test_a_rehearsal_waits_where_a_real_adapter_is_though_it_is_not_promoted() -> None:
    assert promotion.decide(manifest("b", 1, True), None, True, 0.02).move is False
    assert promotion.decide(manifest("b", 1, True), manifest("r", 2, True), True, 0.02).move is False
    assert promotion.decide(manifest("b", 1), None, True, 0.02).move is True


@pytest.mark.parametrize(("share", "move"), [(0, False), (0.03, False), (0.035, True), (float("inf"), True)])
def test_the_limit_is_the_users(share, move) -> None:
    assert promotion.decide(manifest("b", 0.912), A, True, share).move is move


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


def test_an_eval_loss_that_is_no_number_takes_no_empty_place(home) -> None:
    assert home.train("witness-a", "nan") is False
    assert not (home.path / "latest").is_symlink()
    assert promotion.word(home.path, "witness-a").startswith("latest points to nothing: its eval loss is nan. By hand:")
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


@pytest.mark.parametrize("flaw", ["gone", "damaged", "no link", "elsewhere"])
def test_where_latest_leads_nowhere_the_next_one_takes_it(home, flaw) -> None:
    home.train("witness-a", 0.5)
    home.train("witness-b", 0.9)
    if flaw == "damaged":
        (home.path / "witness-a/train.log").write_text("cut off")
    elif flaw == "elsewhere":
        (home.path / "latest").unlink()
        (home.path / "latest").symlink_to("/tmp")
    else:
        (home.path / "latest").unlink()
        if flaw == "gone":
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
    with pytest.raises(ForgeError, match=r"latest is no symbolic link, so it cannot be moved to witness-a; put it"):
        home.train("witness-a")
    assert (home.path / "latest").is_dir()


@pytest.mark.parametrize("share", [-0.1, float("nan")])
def test_a_share_that_makes_no_sense(home, share) -> None:
    with pytest.raises(ForgeError, match=r"adapter_max_regression is .*give a share from 0 on"):
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
    with pytest.raises(ForgeError, match=says):
        promotion.promote_by_hand(home.path, run_id)
    assert home.latest == "witness-a"
    assert len(home.lines) == 1


def test_nothing_is_delivered(home) -> None:
    with pytest.raises(ForgeError, match="Nothing is delivered yet"):
        promotion.promote_by_hand(home.path, "witness-a")
    assert not home.path.exists()


def play(home: Home, capsys: Any, check: bool = False, **given: Any) -> dict[str, Any]:
    """The module, as a task calls it."""
    module = load("library/lora_adapter_promotion")
    given = {"adapters": str(home.path.parent), "agent": "witness", "_ansible_check_mode": check, **given}
    with patch_module_args(given), pytest.raises(SystemExit):
        module.main()
    return json.loads(capsys.readouterr().out)


def test_the_module_tells_and_moves(home, capsys) -> None:
    assert play(home, capsys)["word"].startswith("witness has no adapter in ")
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
    assert found["word"].endswith("playbooks/promote.yml -e role=witness -e run_id=…")

    found = play(home, capsys, check=True, run_id="witness-b")
    assert (found["changed"], found["word"], home.latest) == (True, "latest would point to witness-b", "witness-a")
    found = play(home, capsys, run_id="witness-b")
    assert (found["changed"], found["word"], home.latest) == (True, "latest points to witness-b", "witness-b")
    found = play(home, capsys, run_id="witness-b")
    assert (found["changed"], found["promoted"]) == (False, "witness-b")
    assert found["word"] == "latest points to witness-b already"


def test_who_asks_has_it_decided_on_again_and_noted_once(home, capsys) -> None:
    home.train("witness-a", 0.9)
    home.train("witness-b", 0.91, regression=0.0)
    assert home.latest == "witness-a"
    gate = {"run_id": "witness-b", "max_regression": 0.0}
    count = len(home.lines)
    assert play(home, capsys, **gate)["changed"] is False
    assert len(home.lines) == count
    gate["max_regression"] = 0.05
    found = play(home, capsys, check=True, **gate)
    assert (found["changed"], found["word"], home.latest) == (True, "latest would point to witness-b", "witness-a")
    assert len(home.lines) == count
    assert play(home, capsys, **gate)["changed"] is True
    assert home.latest == "witness-b"
    assert play(home, capsys, **gate)["changed"] is False
    assert promotion.promote(home.path, "witness-a", 0.05) is False  # collected again: nobody asked


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


# --- what people read at the end


def ready(home: Home, run_id: str, state: str = "to train") -> str:
    promoted = summary.points_to(home.path / "latest") == run_id
    found = json.loads((home.path / run_id / "manifest.json").read_text())
    word = promotion.word(home.path, run_id)
    return "\n".join(summary.ready({"agent": "witness", "state": state}, found, home.path, promoted, word))


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
