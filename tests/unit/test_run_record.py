"""What the controller notes of a run: where it was placed, how it ended, what went wrong in this command."""

from __future__ import annotations

import json
import pathlib
import threading
from functools import partial
from typing import Any

import pytest
import rundir
from ansible.module_utils.lora_forge.planning.run_record import RunRecord, read_record, update_record

RUN = "witness-0"


class Note:
    """Changes a record at a time that is set by hand, and tells whether that was news."""

    def __init__(self, output: pathlib.Path):
        self.output, self.now = output, 100.0

    def __call__(self, change: str, *args: Any, check: bool = False, **more: Any) -> bool:
        self.now += 1
        method = partial(getattr(RunRecord, change), **more)
        before, after = update_record(
            self.output, RUN, lambda record, now: method(record, *args, now=now), check, self.now
        )
        return before != after

    @property
    def record(self) -> RunRecord:
        return read_record(self.output, RUN)

    @property
    def file(self) -> dict[str, Any]:
        return rundir.read_json(self.output / f"runs/{RUN}.json")


@pytest.fixture
def note(tmp_path: pathlib.Path) -> Note:
    return Note(tmp_path)


def test_a_placement_is_as_earlier_versions_wrote_it(note: Note) -> None:
    assert note("launched", "gpu-1", 1)
    assert note.file == {
        "run_id": RUN, "trainer": "gpu-1", "lane": 1, "state": "launched", "final": False, "detail": "",
        "noted_at": 101.0,
    }  # fmt: skip
    assert note("ended", "stopped", "gpu-1")
    assert (note.file["state"], note.file["final"], note.file["lane"]) == ("stopped", True, 1)


def test_what_is_known_is_no_news(note: Note) -> None:
    assert note("launched", "gpu-1", 0)
    assert not note("launched", "gpu-1", 0)
    assert note("ended", "finished", "gpu-1", check=True)
    assert note.record.state == "launched"
    assert note("ended", "finished", "gpu-1")
    assert not note("ended", "finished", "gpu-1")


def test_a_file_of_an_earlier_version_is_no_news(note: Note) -> None:
    (note.output / "runs").mkdir()
    rundir.write_json(
        note.output / f"runs/{RUN}.json", {"run_id": RUN, "trainer": "gpu-1", "state": "failed", "final": True}
    )
    assert not note("ended", "failed", "gpu-1")


def test_an_adapter_that_is_no_good_stays_so_until_the_run_is_launched_again(note: Note) -> None:
    note("ended", "finished", "gpu-1")
    assert note("ended", "failed", "gpu-1", detail="tensor q is all zero")
    assert not note("ended", "finished", "gpu-1")  # somebody looks at its trainer again
    assert note.record.detail == "tensor q is all zero"
    assert not note("ended", "failed", "gpu-1", detail="tensor q is all zero")
    assert note("launched", "gpu-1", 0)
    assert note("ended", "finished", "gpu-1")


def test_what_went_wrong_counts_for_the_command_that_noted_it(note: Note) -> None:
    note("failed_on", "b", "no GPU")
    planned = note.now + 0.5
    note("failed_on", "a", "disk full")
    record = note.record
    assert record.failures_of(["a", "b"], planned) == {"a": "disk full"}
    assert record.failure(["b", "a"], 0) == "no GPU"
    assert record.failure(["c"], 0) == ""
    assert note.file.keys() == {"run_id", "failures"}  # it was never placed


def test_a_launch_forgets_what_went_wrong_on_its_own_host_alone(note: Note) -> None:
    note("failed_on", "a", "disk full")
    note("failed_on", "b", "no GPU")
    note("launched", "a", 0)
    note("on_host", "a", True)
    assert note.record.failures_of(["a", "b"], 0) == {"b": "no GPU"}
    assert (note.record.trainer, note.record.state) == ("a", "launched")


def test_the_hosts_of_a_gang_that_started_it(note: Note) -> None:
    note("on_host", "old", True)
    planned = note.now + 0.5
    note("on_host", "a", True)
    note("on_host", "b", False)
    assert note.record.hosts_of(["a", "b", "old"], planned) == ["a", "b"]
    assert note.record.hosts_of(["a", "b", "old"], planned, started=True) == ["a"]


def test_what_was_told_holds_until_the_next_launch(note: Note) -> None:
    assert not note.record.is_settled("failed")
    note("settled", "failed")
    assert note.record.is_settled("failed")
    assert note.record.is_settled("failed", note.now)
    assert not note.record.is_settled("failed", note.now + 1)
    assert not note.record.is_settled("stalled")
    note("ended", "failed", "gpu-1")
    note("launched", "gpu-1", 0)
    assert not note.record.is_settled("failed")


def test_a_standstill_is_news_again_after_a_start_though_nobody_saw_how_the_last_one_ended(note: Note) -> None:
    note("launched", "gpu-1", 0)
    note("on_host", "gpu-1", True)
    for event in ("stalled", "failed"):
        note("settled", event)
    note("on_host", "gpu-1", False)  # somebody attaches
    assert note.record.is_settled("stalled")
    note("launched", "gpu-1", 0)
    note("on_host", "gpu-1", True)
    assert (note.record.is_settled("stalled"), note.record.is_settled("failed")) == (False, True)


def test_a_message_keeps_its_id_until_its_event_is_settled_or_news_again(note: Note) -> None:
    def tell(event: str, message: str) -> None:
        update_record(note.output, RUN, lambda record, now: record.tells(event, message))

    note("launched", "gpu-1", 0)
    for message in ("one", "two"):  # the command that began with the first one has died
        tell("failed", message)
        tell("stalled", message)
    assert note.record.telling == {"failed": "one", "stalled": "one"}
    note("settled", "failed")
    assert note.record.telling == {"stalled": "one"}
    note("on_host", "gpu-1", False)
    assert note.record.telling == {"stalled": "one"}
    note("on_host", "gpu-1", True)
    assert note.record.telling == {}
    tell("failed", "three")
    note("ended", "failed", "gpu-1")
    note("launched", "gpu-1", 0)
    assert note.record.telling == {}


def test_a_delivery_is_of_this_command_or_of_an_earlier_one() -> None:
    assert not RunRecord(RUN).is_delivered(0)
    assert RunRecord(RUN, delivered_at=5.0).is_delivered(5.0)
    assert not RunRecord(RUN, delivered_at=5.0).is_delivered(6.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        json.dumps({"lane": "two", "failures": [], "hosts": {"a": 3}, "notified": None, "final": "yes"}),
        json.dumps({"hosts": {"a": {"at": "noon"}}, "notified": {"failed": "noon"}}),
    ],
)
def test_a_damaged_file_is_an_empty_record(note: Note, text: str) -> None:
    (note.output / "runs").mkdir()
    (note.output / f"runs/{RUN}.json").write_text(text)
    record = note.record
    assert (record.run_id, record.lane, record.failures, record.final) == (RUN, 0, {}, False)
    assert (record.hosts_of(["a"], 0), record.failure(["a"], 0)) == ([], "")
    assert note("launched", "gpu-1", 0)


def test_hosts_that_note_at_the_same_time_lose_nothing(tmp_path: pathlib.Path) -> None:
    def fail(host: str) -> None:
        for number in range(20):
            change = partial(RunRecord.failed_on, host=f"{host}{number}", message="x")
            update_record(tmp_path, RUN, lambda record, now, change=change: change(record, now=now))

    threads = [threading.Thread(target=fail, args=(host,)) for host in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_record(tmp_path, RUN).failures) == 80


def test_the_hosts_of_one_launch_have_one_word_and_those_of_the_next_another(tmp_path):
    def launch(word: str) -> str:
        change = lambda record, now: record.launched("gpu-1", 0, now, word)  # noqa: E731
        return update_record(tmp_path, "crew-1", change)[1].rendezvous

    assert [launch("first"), launch("second")] == ["first", "first"]
    path = tmp_path / "runs/crew-1.json"
    assert path.stat().st_mode & 0o777 == 0o600
    update_record(tmp_path, "crew-1", lambda record, now: record.ended("stopped", "gpu-1", now))
    assert [launch("third"), launch("fourth")] == ["third", "third"]
    alone = update_record(tmp_path, "w-1", lambda record, now: record.launched("gpu-1", 0, now))[1]
    assert (alone.rendezvous, "rendezvous" in alone.as_dict()) == ("", False)


def test_a_gang_that_an_earlier_version_launched_gets_a_word(tmp_path):
    before = RunRecord("crew-1").launched("gpu-1", 0, 1.0)
    assert before.launched("gpu-1", 0, 2.0, "word").rendezvous == "word"


def test_what_another_command_has_placed_since_the_plan_is_not_started_elsewhere():
    placed = RunRecord("crew-1").launched("gpu-1", 0, 50.0)
    assert placed.taken_by("gpu-2", since=49.0) == "gpu-1"
    assert placed.taken_by("gpu-1", since=49.0) == ""  # that is an attachment
    assert placed.taken_by("gpu-2", since=51.0) == ""  # the plan knew of it, and -e move let it go
    assert placed.ended("stopped", "gpu-1", 60.0).taken_by("gpu-2", since=49.0) == ""
    assert RunRecord("crew-1").taken_by("gpu-2", since=0.0) == ""
