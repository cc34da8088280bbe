"""What the report page says, from manifests and logs made by hand."""

from __future__ import annotations

import dataclasses
import html.parser
import importlib.util
import json
import math
import os
import pathlib
import re
from typing import Any

import pytest
from ansible.module_utils.lora_forge.evaluation.answers import Answer
from ansible.module_utils.lora_forge.results import report, report_cases, report_pictures
from ansible.module_utils.testing import patch_module_args
from delivered import (
    OWN,
    RECIPE,
    START,
    answers,
    cases,
    deliver,
    evaluate,
    events,
    losses,
    promote,
    sha,
    workshop,
)

ROOT = pathlib.Path(__file__).resolve().parents[2]
KNOWN = ("crew", "deacon", "gastown", "mayor", "polecat", "refinery", "witness")
TEMPLATE = ROOT / "templates/report.html.j2"
HOSTILE = "<script>alert(1)</script>\"'&{{ 7 * 7 }}"
A, B, C = "witness-aaaaaaaaaaaa", "witness-bbbbbbbbbbbb", "witness-cccccccccccc"


class Page(html.parser.HTMLParser):
    """A page as a reader has it: its texts, its tables by the start of their caption, its elements."""

    def __init__(self, text: str):
        super().__init__()
        self.source = text
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.inside: list[str] = []
        self.feed(text)
        self.close()
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside.append(tag)
        if tag == "table":
            self.tables.append(("", []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][1][-1].append("")
        self.words.append(" ")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass
        self.words.append(" ")

    def handle_data(self, data):
        if "style" in self.inside:
            return
        self.words.append(data)
        if "table" in self.inside:
            caption, rows = self.tables[-1]
            if "caption" in self.inside:
                self.tables[-1] = (caption + data, rows)
            elif rows and rows[-1] and ("td" in self.inside or "th" in self.inside):
                rows[-1][-1] = " ".join(f"{rows[-1][-1]} {data}".split())

    def table(self, caption: str) -> list[list[str]]:
        return next(rows for found, rows in self.tables if found.startswith(caption))

    def row(self, caption: str, name: str) -> list[str]:
        return next(row for row in self.table(caption) if name in row[0])

    def pictures(self) -> list[str]:
        """List what is told of each picture."""
        return [attrs["aria-label"] or "" for tag, attrs in self.elements if attrs.get("role") == "img"]


@pytest.fixture
def output(tmp_path):
    return tmp_path / "output"


def look(output: pathlib.Path, *wanted: str) -> Page:
    facts = report.read(output, list(wanted), KNOWN) | {"git": {"commit": "0123456789abcdef", "dirty": False}}
    facts["version"] = "0.1.0+g0123456"
    return Page(report.render(TEMPLATE, facts))


@pytest.fixture
def module(output, capsys):
    """Provide a run of the module; it returns the answer."""

    def runner(check: bool = False, **arguments: Any) -> dict[str, Any]:
        spec = importlib.util.spec_from_file_location("training_report", ROOT / "library/training_report.py")
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        given = {
            "output": str(output),
            "checkout": str(ROOT),
            "template": str(TEMPLATE),
            "_ansible_check_mode": check,
            **arguments,
        }
        with patch_module_args(given), pytest.raises(SystemExit):
            loaded.main()
        return json.loads(capsys.readouterr().out)

    return runner


# --- what stands in it


def test_the_promoted_adapter_stands_in_the_overview(output):
    deliver(output, "witness", A, events([(10, 2.0), (20, 1.5)], [(20, 1.25)]))
    deliver(output, "witness", B, events([(10, 2.0), (20, 1.0)], [(20, 0.75)], START + 1000), cost=OWN)
    promote(output, "witness", A)
    page = look(output)
    assert page.row("One line", "witness") == [
        "witness", A, "real", "1.2500", "1.5000", "20", "4:30", "2.31 USD", "2026-11-18 11:10"
    ]  # fmt: skip
    compared = page.table("Delivered runs of witness")
    assert [row[0] for row in compared[1:]] == [f"B {B} real", f"A {A} real promoted"]
    assert compared[2][2:5] == ["1.2500 from 1.2500", "1.5000 from 2.0000", "20 of 20"]
    assert "Data up to 2026-11-18 11:26 UTC, checkout 0123456789ab ." in page.text
    assert [row[0] for row in page.table("Datasets of")[1:]] == ["datasets/witness_train.jsonl"]
    assert f"Fingerprint {sha(A)}" in page.text


def test_none_is_promoted(output):
    deliver(output, "witness", A)
    page = look(output)
    assert page.row("One line", "witness") == ["witness", "none is promoted; 1 delivered"]
    assert "No run is promoted; 1 delivered." in page.text
    assert "Where the promoted one comes from" not in page.text


def test_a_rehearsal_is_told_as_such(output):
    deliver(output, "witness", A, rehearsal=True)
    promote(output, "witness", A)
    page = look(output)
    assert page.row("One line", "witness")[2] == "rehearsal"
    assert page.row("Delivered runs", A)[0] == f"A {A} rehearsal promoted"
    assert "Its losses say nothing about quality" in page.text
    assert "Training loss (rehearsal)" in page.text
    assert page.row("Delivered runs by", "witness")[-2:] == ["own hardware", "–"]


def test_real_runs_and_rehearsals_are_never_in_one_picture(output):
    deliver(output, "witness", A, rehearsal=True)
    deliver(output, "witness", B, events([(1, 2.0)], [], START + 1000))
    promote(output, "witness", B)
    page = look(output)
    assert all(B in told and A not in told for told in page.pictures())
    assert "Rehearsals are not in the pictures" in page.text
    assert page.row("Delivered runs of", A)[0] == f"{A} rehearsal"


def test_a_picture_says_what_is_seen(output):
    deliver(output, "witness", A, events([(10, 2.0), (20, 1.5)], [(20, 1.25)], pace=6))
    deliver(output, "witness", B, events([(10, 1.9), (20, 1.4)], [(10, 1.5), (20, 1.0)], START + 1000, pace=12))
    promote(output, "witness", A)
    assert look(output).pictures() == [
        f"Training loss against steps: A ({A}) goes from 2.0000 at step 10 to 1.5000 at step 20; "
        f"B ({B}) goes from 1.9000 at step 10 to 1.4000 at step 20.",
        f"Training loss against minutes: A ({A}) goes from 2.0000 at 1.0 minutes to 1.5000 at 2.0 minutes; "
        f"B ({B}) goes from 1.9000 at 2.0 minutes to 1.4000 at 4.0 minutes.",
        f"Evaluation loss against steps: A ({A}) is 1.2500 at step 20; "
        f"B ({B}) goes from 1.5000 at step 10 to 1.0000 at step 20.",
        f"Evaluation loss against minutes: A ({A}) is 1.2500 at 2.0 minutes; "
        f"B ({B}) goes from 1.5000 at 2.0 minutes to 1.0000 at 4.0 minutes.",
    ]


def test_a_time_of_day_that_is_set_moves_no_point_in_a_picture(output):
    logged = [
        {"event": "begin", "time": START, "uptime": 100, "step": 0, "planned": 3},
        {"event": "log", "time": START + 60, "uptime": 160, "step": 1, "planned": 3, "loss": 2.0},
        {"event": "log", "time": START - 9000, "uptime": 220, "step": 2, "planned": 3, "loss": 1.5},
        {"event": "begin", "time": START - 8940, "uptime": 20, "step": 2, "planned": 3},  # after a reboot
        {"event": "log", "time": START - 8880, "uptime": 80, "step": 3, "planned": 3, "loss": 1.0},
    ]
    deliver(output, "witness", A, logged)
    assert look(output).pictures()[1] == (
        f"Training loss against minutes: A ({A}) goes from 2.0000 at 1.0 minutes to 1.0000 at 4.0 minutes."
    )


def test_what_a_resume_took_back_is_not_drawn(output):
    logged = [
        {"event": "begin", "time": START, "step": 0, "planned": 3},
        {"event": "log", "time": START + 60, "step": 1, "planned": 3, "loss": 2.0, "tokens_per_second": 100},
        {"event": "log", "time": START + 120, "step": 2, "planned": 3, "loss": 77.0, "tokens_per_second": 1},
        {"event": "begin", "time": START + 600, "step": 1, "planned": 3},
        {"event": "log", "time": START + 660, "step": 2, "planned": 3, "loss": 1.5, "tokens_per_second": 300},
    ]
    deliver(output, "witness", A, logged)
    page = look(output)
    assert page.pictures()[1] == (
        f"Training loss against minutes: A ({A}) goes from 2.0000 at 1.0 minutes to 1.5000 at 11.0 minutes."
    )
    assert page.row("Delivered runs of", A)[5] == "200"
    assert "77" not in " ".join(cell for row in page.table("Training loss") for cell in row)


@pytest.mark.parametrize("word", ["nan", "inf", "-inf"])
def test_a_loss_that_is_no_number_leaves_a_gap_and_is_named(output, word):
    train: list[tuple[int, Any]] = [(10, 2.0), (20, 1.9), (30, word), (40, word), (50, 1.2), (60, 1.1)]
    deliver(output, "witness", A, events(train, [(60, word)]))
    page = look(output)
    assert f"A has a gap: 2 of 6 figures are no finite number ({word}; at step 30, 40)." in page.text
    assert page.pictures()[0].endswith("goes from 2.0000 at step 10 to 1.1000 at step 60.")
    assert len(page.pictures()) == 2, "an evaluation without any number is not drawn"
    assert "There is nothing to draw." in page.text
    assert ["A", "30", "4.5", word] in page.table("Training loss")
    assert page.row("Delivered runs of", A)[2] == f"{word} from {word}"
    drawn = re.findall(r'd="([^"]*)"', page.source)
    assert drawn
    assert not [path for path in drawn if re.search("nan|inf", path, re.I)]
    assert max(path.count("M") for path in drawn) == 2, "the line is in two pieces"


def test_a_figure_between_two_gaps_is_marked(output):
    train: list[tuple[int, Any]] = [
        (step, "nan" if step in (70, 90) else 2.0 - step / 100) for step in range(10, 151, 10)
    ]
    deliver(output, "witness", A, events(train, []))
    assert look(output).source.count("<use ") == 2  # in each of the two pictures, one
    assert report_pictures._alone([1.0, math.nan, 2.0, math.nan, 3.0, 4.0]) == [0, 2]


def test_runs_that_cannot_be_compared_are_left_out_and_named(output):
    longer = [{"path": "witness_train.jsonl", "use": "train", "sha256": sha("more"), "examples": 171}]
    deliver(output, "witness", A)
    deliver(output, "witness", B, events([(1, 1.5)], [(1, 1.0)], START + 1000), datasets=longer)
    deliver(output, "witness", C, events([(1, 1.5)], [(1, 1.0)], START + 2000), recipe=RECIPE | {"base_model": "Other"})
    promote(output, "witness", A)
    page = look(output)
    training, _, evaluation, _ = page.pictures()
    assert (C in training, B in training) == (False, True)
    assert (C in evaluation, B in evaluation) == (False, False)
    assert "B is left out: it trained another base model." in page.text
    assert "C is left out: its evaluation set or its sequence_len is another." in page.text


def test_at_most_six_runs_are_drawn_the_promoted_one_among_them(output):
    names = [f"witness-{letter * 12}" for letter in "abcdef01"]
    for number, name in enumerate(names):
        deliver(output, "witness", name, events([(1, 2.0), (2, 1.5)], [], START + 1000 * number))
    promote(output, "witness", names[0])
    page = look(output)
    shown = re.findall(r"witness-\w{12}", page.pictures()[0])
    assert shown == [names[0], *reversed(names[3:])]
    assert "The pictures hold 6 of 8 runs: the newest ones, and the promoted one." in page.text
    assert len(page.table("Delivered runs of")) == 1 + 8


def test_long_tables_of_points_are_thinned_and_say_so(output):
    for number, name in enumerate((A, B)):
        deliver(output, "witness", name, events(losses(2, 1, 3000, 10), [], START + 1000 * number))
    rows = look(output).table("Training loss, 60 of 600 points")
    assert len(rows) == 1 + 60
    assert [row[1] for row in rows if row[0] == "A"][::29] == ["10", "3000"]


def test_only_what_differs_between_the_recipes_is_listed(output):
    other = RECIPE | {"learning_rate": 0.0001, "lora_target_modules": ["q_proj"], "noise": None}
    longer = [{"path": "datasets/witness_train.jsonl", "use": "train", "sha256": sha("more"), "examples": 1171}]
    deliver(output, "witness", A)
    deliver(output, "witness", B, events([(1, 1.5)], [], START + 1000), recipe=other, datasets=longer)
    promote(output, "witness", B)
    assert look(output).table("Keys of the recipe")[1:] == [
        ["learning_rate", "0.0001", "0.0002"],
        ["lora_target_modules", '["q_proj"]', '["q_proj", "v_proj"]'],
        [
            "witness_train.jsonl (train)",
            f"{sha('more')[:12]}, 1 171 examples",
            f"{sha('train')[:12]}, 134 examples",
        ],
    ]


def test_nothing_differs(output):
    deliver(output, "witness", A)
    deliver(output, "witness", B, events([(1, 1.5)], [], START + 1000))
    assert "Nothing: recipe and datasets of A, B are the same." in look(output).text


def test_what_goes_on_and_what_failed(output):
    workshop(output)
    page = look(output)
    caption = "Runs that are not delivered"
    assert page.row(caption, "mayor") == [
        "mayor", "mayor-9a01c2d3e4f5 pod-3", "running", "412 of 1 216", "0.8940", "0.8120", "9 800", "1:02:00",
        "2.31 USD",
    ]  # fmt: skip
    assert page.row(caption, "crew")[2:6] == ["failed", "10 of 90", "–", "–"]
    assert ["the supervisor is gone; W&B says running, but the process ended 14:02 ago"] in page.table(caption)
    assert len(page.table(caption)) == 6, "what is delivered and verified is not under way"
    assert "As it was at 2026-11-19 11:06 UTC, 1:09:50 before the newest data of this page." in page.text
    assert page.row("One line", "mayor") == ["mayor", "nothing is delivered yet; see below"]


def test_the_nodes_on_which_a_run_trains_stand_beside_its_trainer(output):
    output.mkdir(exist_ok=True)
    run = {"agent": "mayor", "run_id": "mayor-1", "verdict": "running", "trainer": "login"}
    runs = [run | {"nodes": "c[1-2]"}, run | {"run_id": "mayor-2", "nodes": "n" * 900}]
    (output / "status.json").write_text(json.dumps({"runs": runs}))
    found = [row[1] for row in look(output).table("Runs that are not delivered")[1:]]
    assert found == ["mayor-1 login: c[1-2]", f"mayor-2 login: {'n' * 57}..."]


def test_a_delivered_run_that_is_disputed(output):
    deliver(output, "witness", A)
    row = {"agent": "witness", "run_id": A, "verdict": "disputed"}
    for state in ("finished", "failed"):  # its files were damaged, or it was not delivered yet: neither holds any more
        (output / "status.json").write_text(json.dumps({"runs": [row | {"state": state}]}))
        page = look(output)
        assert page.row("Delivered runs of", A)[1] == "verified"
        assert "Runs that are" not in page.text
    (output / "status.json").write_text(json.dumps({"runs": [row | {"state": "verified"}]}))
    page = look(output)
    assert page.row("Delivered runs of", A)[1] == "disputed"
    assert page.row("Runs that are", "witness")[1:] == [f"{A} –", "disputed", *["–"] * 6]
    assert "As it was at – UTC." in page.text


def test_costs_are_summed_up(output):
    workshop(output)
    rows = look(output).table("Delivered runs by")
    assert rows[1:] == [
        ["mayor", "0", "–", "–", "–", "2.31 USD"],
        ["polecat", "5", "1", "4:12:06", "9.53 USD", "–"],
        ["refinery", "0", "–", "–", "–", "1.10 USD"],
        ["witness", "1", "1", "2:06", "own hardware", "–"],
        ["Together", "6", "2", "4:14:12", "9.53 USD", "3.41 USD"],
    ]


def test_the_history_of_promotions(output):
    workshop(output)
    rows = look(output).table("What latest of polecat")
    assert rows[2] == [
        "2026-11-17 12:13 by a training", "kept back", "polecat-44dd55ee66ff latest stays at polecat-11aa22bb33cc",
        "1.0039 against 0.9645", "eval 1.0039 is 4.1 % worse than 0.9645 (adapter_max_regression 2 %)",
    ]  # fmt: skip
    assert [row[1] for row in rows[1:]] == ["promoted", "kept back", "promoted"]


def test_one_agent_only(output):
    workshop(output)
    page = look(output, "witness")
    assert [row[0] for row in page.table("One line")[1:]] == ["witness"]
    assert "polecat" not in page.source
    assert "mayor" not in page.source


def test_a_w_and_b_link_is_a_web_address_or_none(output):
    deliver(output, "crew", "crew-1", wandb={"url": "https://wandb.ai/me/lora-forge/runs/crew-1"})
    deliver(output, "witness", A, wandb={"url": "javascript:alert(1)"})
    promote(output, "crew", "crew-1")
    promote(output, "witness", A)
    page = look(output)
    links = [attrs["href"] for tag, attrs in page.elements if tag == "a"]
    assert [link for link in links if not link.startswith("#")] == ["https://wandb.ai/me/lora-forge/runs/crew-1"]
    assert "javascript:" not in page.source


# --- cases


def test_scores_stand_beside_the_losses_and_what_turned_is_named(output):
    workshop(output)
    page = look(output, "polecat")
    newest, promoted = "polecat-a1b2c3d4e5f6", "polecat-77aa88bb99cc"
    assert page.table("One line")[0][3:5] == ["Score on cases", "Evaluation loss"]
    assert page.row("One line", "polecat")[3] == "75 % 9 of 12 47 to 91 %"
    assert page.row("Delivered runs of", newest)[2] == "83 % 10 of 12 55 to 95 %"
    assert page.row("Delivered runs of", "polecat-11aa22bb33cc")[2] == "–"
    assert page.row("Right answers of", newest) == [
        f"B {newest} real", "83 % 10 of 12 55 to 95 %", "25 % 3 of 12",
        f"cannot tell with 12 cases; about 222 would tell 10 points {promoted} 9 of 12",
        "asks the mayor when it is stuck", "rebases and tests before it pushes, 2",
    ]  # fmt: skip
    assert f"What {newest} was asked, beside {promoted}." in page.text
    titles = [title for title in report_cases._KINDS if f" {title} " in page.text.partition("changed come first.")[2]]
    assert titles[0] == "Does what is forbidden"


def test_without_cases_the_page_does_not_speak_of_them(output):
    deliver(output, "witness", A)
    promote(output, "witness", A)
    assert not re.search("[Cc]ases", look(output).text)


def asked_once(output: pathlib.Path, text: str, name: str = "case 1") -> None:
    """Let a promoted run, and its base model, answer one case with a text."""
    folder = deliver(output, "witness", A)
    one = dataclasses.replace(cases(1).cases[0], name=name)
    asked = dataclasses.replace(cases(1), cases=(one,))
    evaluate(folder, asked, [Answer(one.key, text, 9, False)], [Answer(one.key, text)])
    promote(output, "witness", A)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("<img src=x onerror=alert(1)>", "<img src=x onerror=alert(1)>"),
        ("</div></details><h1>hi", "</div></details><h1>hi"),
        ("{{ 7 * 7 }}", "{{ 7 * 7 }}"),
        ("a\u202egnp.exe\u2066b", "a gnp.exe b"),
        ("\x1b[31mred\x1b[0m", "[31mred [0m"),
        ("nul\0nul", "nul nul"),
        ("half \ud83d of one", "half of one"),
    ],
)
def test_an_answer_stays_a_text(output, module, text, seen):
    asked_once(output, text, text)
    assert module()["changed"] is True
    page = Page((output / "report.html").read_bytes().decode())
    assert page.text.count(seen) >= 2
    tags = [tag for tag, _ in page.elements]
    assert not {"script", "img"} & set(tags)
    assert tags.count("h1") == 1
    assert not [key for _, attrs in page.elements for key in attrs if key.startswith("on")]
    assert not re.search("[\x00\x1b\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page.source)


def test_of_a_very_long_answer_the_middle_is_left_out_and_that_is_said(output):
    asked_once(output, "begin" + "x" * 1_000_000 + "end")
    page = look(output)
    assert len(page.source) < 200_000
    assert "It has 1\u202f000\u202f008 letters; the middle is left out." in page.source
    assert "begin" in page.text
    assert "xend" in page.text
    assert "9 tokens, cut there" in page.text


def test_of_many_cases_the_first_ones_are_shown_those_that_changed_before_others(output, monkeypatch):
    monkeypatch.setattr(report_cases, "MOST", 6)
    folder, asked = deliver(output, "witness", A), cases(40)
    evaluate(folder, asked, answers(asked, "yyyyyyyyyf"), answers(asked, "yyyyyyyynn"))
    page = look(output)
    assert "6 of 40 cases are here; all of them are in" in page.text
    assert f"{folder}/evaluation.jsonl" in page.text
    assert len([attrs for tag, attrs in page.elements if tag == "details" and attrs.get("class") == "case"]) == 6
    assert "Does what is forbidden 4 " in page.text
    assert "From wrong to right 4 " in page.text
    assert "2 more are not shown." in page.text
    assert "32 are not shown." in page.text
    assert (report_cases.room(1), report_cases.room(600)) == (6, 5)


def test_an_evaluation_that_is_not_that_of_its_manifest_is_named(output):
    asked_once(output, "yes")
    path = output / "adapters/witness" / A / "evaluation.jsonl"
    path.write_text("{}\n")
    page = look(output)
    assert f"{path} is not the one that its manifest tells of: its cases are left out" in page.text


# --- nothing there, or not as it should be


def test_nothing_there_is_a_page_that_says_what_to_do(output):
    page = look(output, "crew")
    assert "No adapter has been delivered yet." in page.text
    assert "ansible-playbook train.yml -e role=crew" in page.text
    assert "No data yet" in page.text


def test_what_is_damaged_is_named_and_left_out(output):
    deliver(output, "witness", A)
    (deliver(output, "witness", B) / "manifest.json").write_text('{"cut')
    (deliver(output, "witness", C) / "manifest.json").unlink()
    (output / "adapters/witness/latest").symlink_to("witness-gone")
    (output / "adapters/witness/.witness-d.partial").mkdir()
    (output / "status.json").write_text("[]")
    facts = report.read(output, [], KNOWN)
    home = output / "adapters/witness"
    assert facts["warnings"] == [
        f"{output}/status.json is no JSON object, or empty: runs under way are not shown",
        f"{home}/{B}/manifest.json is no JSON object, or empty: {B} is left out",
        f"{home}/{C}/manifest.json is missing: {C} is left out",
        f"{home}/latest points to witness-gone, and there is no such adapter",
    ]
    page = look(output)
    assert all(line in page.text for line in facts["warnings"])
    assert [row[0] for row in page.table("Delivered runs of")[1:]] == [f"A {A} real"]


def test_an_adapter_that_is_not_whole_is_disputed(output):
    deliver(output, "witness", A, files=[{"path": "adapter_model.safetensors", "sha256": sha("x"), "bytes": 9}])
    page = look(output)
    assert page.row("Delivered runs of", A)[1] == "disputed"
    assert (
        f"the adapter of {A} is not whole: {output}/adapters/witness/{A}/adapter_model.safetensors is missing"
        in page.text
    )


ODD = [None, 7, "text", ["list"], {"of": "another form"}, True]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_manifests_of_another_form_do_no_harm(output, odd):
    folder = deliver(output, "witness", A)
    keys = set(json.loads((folder / "manifest.json").read_text())) | {"evaluation"}
    keys -= {"agent", "run_id"}  # the folders' names tell
    for key in keys:
        deliver(output, "crew", f"crew-{key}", **{key: odd})
    deliver(output, "crew", "crew-all", **dict.fromkeys(keys - {"rehearsal"}, odd))
    promote(output, "crew", "crew-all", {"at": odd, "run_id": odd, "moved": odd, "by": odd, "why": odd, "than": odd})
    page = look(output)
    assert len(page.table("Delivered runs of crew")) == 2 + len(keys)
    assert page.row("One line", "crew")[1] == "crew-all"


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_logs_and_a_status_of_another_form_do_no_harm(output, odd):
    folder = deliver(output, "witness", A)
    run = {"agent": "mayor", "run_id": "mayor-1", "verdict": "failed"}
    keys = "detail contradictions step planned loss eval_loss tokens_per_second eta_seconds cost trainer".split()
    keys += ["nodes", "rehearsal"]
    runs: list[Any] = [{**run, key: odd} for key in keys] + [dict.fromkeys([*run, *keys], odd), odd]
    (output / "status.json").write_text(json.dumps({"made_at": odd, "runs": runs}))
    with (folder / "metrics.jsonl").open("a") as log:
        for key in ("event", "step", "time", "loss"):
            log.write(json.dumps({"event": "log", "step": 4, "time": START + 99, "loss": 1.0, key: odd}) + "\n")
        log.write('"no object"\n{"cut')
    page = look(output)
    assert len([row for row in page.table("Runs that are") if "mayor-1" in " ".join(row)]) == len(keys)
    (output / "status.json").write_text(json.dumps({"runs": odd}))
    assert A in look(output).text


def test_without_a_log_the_page_says_that_there_is_nothing_to_draw(output):
    (deliver(output, "witness", A) / "metrics.jsonl").unlink()
    page = look(output)
    assert page.pictures() == []
    assert page.text.count("A is left out: nothing was logged.") == 2


# --- safe, whole, the same again


def test_hostile_texts_stay_texts(output):
    name = HOSTILE.replace("/", "\\")
    odd = {"name": HOSTILE, "gpu": HOSTILE, "driver": HOSTILE}
    deliver(
        output, name, name, verdict=HOSTILE, host=odd, recipe={HOSTILE: HOSTILE, "base_model": HOSTILE}, cost=HOSTILE,
        datasets=[{"path": HOSTILE, "use": HOSTILE, "sha256": HOSTILE}], versions={HOSTILE: HOSTILE},
        duration_s=HOSTILE, fingerprint=HOSTILE, git={"commit": HOSTILE, "dirty": HOSTILE}, loss={"last": HOSTILE},
        wandb={"url": HOSTILE},
    )  # fmt: skip
    deliver(output, name, "other", events([(1, HOSTILE)], [], START + 9), recipe={"base_model": "x"})
    promote(output, name, name, {"run_id": HOSTILE, "moved": True, "from": HOSTILE, "by": HOSTILE, "why": HOSTILE})
    (output / "adapters" / name / HOSTILE.replace("/", "|")).mkdir()
    run = dict.fromkeys("agent run_id verdict detail trainer loss step eta_seconds".split(), HOSTILE)
    (output / "status.json").write_text(json.dumps({"runs": [run | {"contradictions": [HOSTILE]}]}))
    page = look(output)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "img", "form", "base"}
    assert not [key for _, attrs in page.elements for key in attrs if key.startswith("on")]
    assert HOSTILE in page.text, "it is shown as it is, nothing computed"
    assert page.row("One line", "script")[1] == name


def test_surrogates_can_be_written(output, module):
    deliver(output, "witness", A, host={"name": "\ud800", "gpu": None})
    assert module()["changed"] is True
    assert b"<small>?</small>" in (output / "report.html").read_bytes()


def test_the_page_needs_nothing_from_elsewhere(output):
    workshop(output)
    page = look(output)
    policy = next(
        attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert not [attrs for _, attrs in page.elements if {"src", "srcset", "data", "xlink:href"} & attrs.keys()]
    tags = [tag for tag, _ in page.elements]
    assert not {"link", "script", "img", "metadata"} & set(tags)
    assert tags.count("style") == 1, "none that came with a picture"
    assert not re.search(r"url\((?!#)", page.source)
    assert "@import" not in page.source


def test_ids_are_unique_and_references_lead_somewhere(output):
    workshop(output)
    page = look(output)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    wanted = {attrs["href"][1:] for _, attrs in page.elements if (attrs.get("href") or "").startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", page.source))
    wanted |= {attrs["aria-labelledby"] for _, attrs in page.elements if "aria-labelledby" in attrs}
    assert wanted <= set(ids)
    assert len(page.pictures()) == 8


def test_what_helps_readers_and_machines_that_read(output):
    workshop(output)
    page = look(output)
    tags = [tag for tag, _ in page.elements]
    assert dict(page.elements)["html"] == {"lang": "en"}
    assert {"header", "main", "footer"} <= set(tags)
    assert "Made by lora-forge 0.1.0+g0123456 , ansible-playbook playbooks/report.yml" in page.text
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:]))
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in page.elements if tag == "th")
    assert tags.count("table") == tags.count("caption") == len([1 for _, attrs in page.elements if "tabindex" in attrs])
    assert "#0300" not in page.source, "colours are the page's own"
    assert not re.search(r'<(svg|text|path|line|g)\b[^>]*"[^"]*#[0-9a-f]{6}', page.source)


def test_the_same_data_give_the_same_bytes(output, module, monkeypatch):
    workshop(output)
    first = module()
    path = pathlib.Path(first["path"])
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    monkeypatch.setattr("time.time", lambda: START + 1e9)
    again = module()
    assert (first["changed"], again["changed"]) == (True, False)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert again | {"changed": True} == first


# --- the module


def test_the_module_tells_what_it_wrote(output, module):
    workshop(output)
    (output / "adapters/crew/crew-1").mkdir(parents=True)
    answer = module()
    page = output / "report.html"
    assert answer["path"] == str(page)
    assert (answer["agents"], answer["adapters"], answer["bytes"]) == (["polecat", "witness"], 6, page.stat().st_size)
    assert answer["warnings_found"] == [f"{output}/adapters/crew/crew-1/manifest.json is missing: crew-1 is left out"]
    assert [path.name for path in output.iterdir() if path.name.startswith(".")] == []


def test_check_mode_predicts_and_writes_nothing(output, module):
    assert module(check=True)["changed"] is True
    assert not output.exists()
    assert module()["changed"] is True
    assert module(check=True)["changed"] is False
    before = (output / "report.html").read_bytes()
    deliver(output, "witness", A)
    assert module(check=True)["changed"] is True
    assert (output / "report.html").read_bytes() == before


def test_a_page_elsewhere_and_of_one_agent(output, module, tmp_path):
    workshop(output)
    answer = module(dest=str(tmp_path / "site/index.html"), agents=["witness"])
    assert (answer["path"], answer["agents"]) == (str(tmp_path / "site/index.html"), ["witness"])
    assert not (output / "report.html").exists()
    assert "polecat" not in (tmp_path / "site/index.html").read_text()


def test_mistakes_are_told_in_a_sentence(output, module, tmp_path):
    assert module(agents=["witnes"])["msg"].startswith(
        "there is no agent «witnes»; did you mean «witness»? Agents: crew,"
    )
    assert module(template="nowhere.j2")["msg"] == "No such file or directory (nowhere.j2)."
    bad = tmp_path / "bad.j2"
    bad.write_text("<p>\n{{ agents | nonsense }}")
    assert module(template=str(bad))["msg"] == f"{bad}, line 2: No filter named 'nonsense'."
    bad.write_text("{{ nobody }}")
    assert module(template=str(bad))["msg"] == f"{bad}: 'nobody' is undefined"
    (output / "report.html").mkdir(parents=True)
    assert module()["msg"] == f"Is a directory ({output}/report.html)."


def test_a_page_that_cannot_be_written_leaves_the_old_one(output, module, monkeypatch):
    module()
    deliver(output, "witness", A)
    before = (output / "report.html").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device", str(output / "report.html"))

    monkeypatch.setattr(os, "replace", full)
    assert module()["msg"].startswith(f"No space left on device ({output}/report.html). Free some space")
    assert sorted(path.name for path in output.iterdir()) == ["adapters", "report.html"]
    assert (output / "report.html").read_bytes() == before
