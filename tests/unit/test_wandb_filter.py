"""A trainer's record of a W&B run, read with the client's own description of it: what stays, and what never does."""

from __future__ import annotations

import pathlib
import struct
import zlib
from typing import Any

import pytest
from ansible.module_utils.lora_forge.results import wandb_filter
from ansible.module_utils.lora_forge.results.wandb_filter import Place, copy_record, filtered

pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
PLACE = Place("witness-1", "mine", "lora-forge")
STAYS = ["history", "summary", "output", "config", "stats", "metric", "output_raw", "run", "exit", "final", "header",
         "footer"]  # fmt: skip


def read(path: pathlib.Path) -> list[Any]:
    """Read a record file by another way than the program does: as a whole, block by block."""
    data, found, parts = path.read_bytes(), [], b""
    assert data[:7] == b":W&B\xe1\xbe\x00"
    for block in range(0, len(data), 32768):
        at, end = max(block, 7), min(block + 32768, len(data))
        while end - at >= 7:
            checksum, length, kind = struct.unpack_from("<IHB", data, at)
            piece = data[at + 7 : at + 7 + length]
            assert zlib.crc32(bytes([kind]) + piece) == checksum
            parts = piece if kind in (1, 2) else parts + piece
            if kind in (1, 4):
                found.append(pb.Record.FromString(parts))
            at += 7 + length
    return found


def write(path: pathlib.Path, records: list[Any]) -> None:
    with path.open("wb") as file:
        file.write(b":W&B\xe1\xbe\x00")
        for record in records:
            wandb_filter._append(file, record.SerializeToString())


def example(name: str) -> Any:
    record = pb.Record(num=7)
    getattr(record, name).SetInParent()
    return record


def test_the_numbers_are_those_of_the_client():
    kinds = {field.name: field.number for field in pb.Record.DESCRIPTOR.oneofs_by_name["record_type"].fields}
    assert wandb_filter._PLAIN | {wandb_filter._RUN} == {kinds[name] for name in STAYS}
    run = {field.name: field.number for field in pb.RunRecord.DESCRIPTOR.fields}
    assert (run["run_id"], run["entity"], run["project"]) == (1, 2, 3)
    kept = ["config", "summary", "run_group", "job_type", "display_name", "notes", "tags", "starting_step",
            "start_time", "resumed", "runtime", "resume"]  # fmt: skip
    assert {run[name] for name in kept} == wandb_filter._RUN_KEPT
    assert pb.Record.DESCRIPTOR.fields_by_name["num"].number == 1


@pytest.mark.parametrize("name", [field.name for field in pb.Record.DESCRIPTOR.oneofs_by_name["record_type"].fields])
def test_kinds_that_are_not_for_a_trainer_to_write_go(name):
    kept = filtered(example(name).SerializeToString(), PLACE)
    assert bool(kept) is (name in STAYS)
    if kept:
        assert pb.Record.FromString(kept).WhichOneof("record_type") == name
        assert pb.Record.FromString(kept).num == 7


def test_a_run_is_of_the_plans_place_whatever_the_record_says():
    record = pb.Record(num=2, uuid="u")
    record.control.mailbox_slot = "slot"
    record.run.run_id, record.run.entity, record.run.project = "other", "theirs", "their-project"
    record.run.display_name, record.run.host, record.run.sweep_id = "a name", "host", "sweep"
    record.run.tags.append("witness")
    record.run.git.remote_url = "https://x"
    record.run.settings.item.add(key="k", value_json="v")
    record.run.start_time.seconds = 5
    record.run.config.update.add(key="lr", value_json="1")
    twice = record.SerializeToString() + b""
    found = pb.Record.FromString(filtered(twice, PLACE))
    assert (found.run.run_id, found.run.entity, found.run.project) == PLACE
    assert (found.run.display_name, list(found.run.tags), found.run.start_time.seconds) == ("a name", ["witness"], 5)
    assert found.run.config.update[0].key == "lr"
    assert not any((found.run.host, found.run.sweep_id, found.uuid))
    assert not any((found.HasField("control"), found.run.HasField("git"), found.run.HasField("settings")))
    default = pb.Record.FromString(filtered(twice, Place("witness-1", "", "")))
    assert (default.run.run_id, default.run.entity, default.run.project) == ("witness-1", "", "")
    own = pb.Record.FromString(filtered(twice, None))
    assert (own.run.run_id, own.run.entity, own.run.project) == ("other", "theirs", "their-project")


@pytest.mark.parametrize(
    "record",
    [
        b"", b"\xff", b"\xff" * 20, b"\x12", b"\x12\x7f", b"\x13", b"\x10\x05", b"\x8a\x01\x02\xff\xff", b"\x09\x00",
        example("history").SerializeToString() + example("files").SerializeToString() + b"\x12\x00",
        example("history").SerializeToString() + example("exit").SerializeToString(),
    ],
)  # fmt: skip
def test_what_is_no_record_or_more_than_one_goes(record):
    assert filtered(record, PLACE) == b""


def test_a_file_is_copied_without_what_goes(tmp_path):
    long = pb.Record(num=3)
    long.output_raw.line = "x" * 100_000  # over several blocks
    history = pb.Record(num=4)
    history.history.item.add(key="loss", value_json="1.5")
    evil = pb.Record(num=5)
    evil.files.files.add(path="/home/user/.ssh/id_rsa")
    for size in (0, 20, 32741, 32742, 32747, 32748, 32761, 40_000):  # whatever is left of a block
        fill = pb.Record(num=6)
        fill.output_raw.line = "y" * size
        records = [fill, evil, long, history, fill, evil, history]
        write(tmp_path / "old", records)
        copy_record(tmp_path / "old", tmp_path / "new", PLACE)
        assert read(tmp_path / "new") == [fill, long, history, fill, history]
        assert b"id_rsa" not in (tmp_path / "new").read_bytes()


@pytest.mark.parametrize("damage", ["cut", "checksum", "length", "kind", "magic", "empty"])
def test_a_damaged_file_is_copied_as_far_as_it_goes(tmp_path, damage):
    first, second = example("history"), example("exit")
    write(tmp_path / "old", [first, second])
    data = bytearray((tmp_path / "old").read_bytes())
    at = 7 + 7 + len(first.SerializeToString())
    if damage == "cut":
        del data[-1:]
    elif damage == "magic":
        data[0] = 0
    elif damage == "empty":
        data.clear()
    else:
        data[at + {"checksum": 0, "length": 5, "kind": 6}[damage]] ^= 0x7F
    (tmp_path / "old").write_bytes(data)
    copy_record(tmp_path / "old", tmp_path / "new", PLACE)
    assert read(tmp_path / "new") == ([] if damage in ("magic", "empty") else [first])


def test_a_record_that_would_fill_the_memory_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb_filter, "_LARGEST", 50_000)
    large, small = pb.Record(), example("exit")
    large.output_raw.line = "x" * 200_000
    write(tmp_path / "old", [large, small])
    copy_record(tmp_path / "old", tmp_path / "new", PLACE)
    assert read(tmp_path / "new") == [small]


def test_a_record_of_very_many_fields_goes():
    """Taken apart it would take forty times its size in memory."""
    history = b"\x12\x00"
    assert filtered(b"\x08\x01" * 9000 + history, None)
    assert filtered(b"\x08\x01" * 11_000 + history, None) == b""
