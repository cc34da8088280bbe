"""Canonical files on the controller: written once, by their content, and gone when nobody uses them."""

from __future__ import annotations

import json
import os
import pathlib

import pytest
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.data import dataset, staging
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import PlannedDataset

NOW, DAY = 1_800_000_000.0, 24 * 3600


@pytest.fixture
def data(tmp_path):
    """Write a file of some conversations, and return what is planned of it."""

    def writer(name: str = "w_train.jsonl", count: int = 2) -> PlannedDataset:
        turns = [{"who": "human", "value": "SECRET-ID"}, {"who": "gpt", "value": "b"}]
        lines = [json.dumps({"id": f"private {name}", "talk": [*turns] * (number + 1)}) for number in range(count)]
        (tmp_path / name).write_text("\n\n".join(lines) + "\n")
        reading = {"field_messages": "talk", "message_field_role": "who", "message_field_content": "value"}
        file = dataset.check_file(tmp_path / name, "train", 99, reading)
        return dataset.planned_dataset(file)

    return writer


def stage(tmp_path: pathlib.Path, *datasets: PlannedDataset, now: float = NOW) -> list[pathlib.Path]:
    with staging.staged(datasets, tmp_path, tmp_path / "output", now) as places:
        return [places[one.sha256] for one in datasets]


def test_nothing_but_what_is_trained_is_staged(data, tmp_path):
    planned = data()
    [place] = stage(tmp_path, planned)
    text = place.read_text()
    assert place == tmp_path / "output/staged" / f"{planned.sha256}.jsonl"
    assert store.sha256_file(place) == planned.sha256
    assert len(text.splitlines()) == 2
    assert "private" not in text
    assert (place.stat().st_mode & 0o777, place.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_it_is_written_once_and_mended_where_it_was_damaged(data, tmp_path):
    planned = data()
    [place] = stage(tmp_path, planned)
    inode, whole = place.stat().st_ino, place.read_bytes()
    (tmp_path / planned.path).unlink()
    assert stage(tmp_path, planned, now=NOW + DAY)[0].stat().st_ino == inode, "the source is not read again"
    data()
    place.write_bytes(whole[:-9])
    assert stage(tmp_path, planned)[0].read_bytes() == whole


def test_a_file_that_was_changed_after_the_plan_is_not_staged(data, tmp_path):
    planned = data()
    source = tmp_path / planned.path
    for content in (source.read_text().replace("SECRET", "OTHER"), "{", ""):
        source.write_text(content)
        with pytest.raises(UserError) as error:
            stage(tmp_path, planned)
        assert str(error.value).startswith(f"{source} was changed after the run was planned. Nothing was started; run")
        assert list((tmp_path / "output/staged").iterdir()) == []
    source.unlink()
    with pytest.raises(UserError, match="does not exist"):
        stage(tmp_path, planned)


def test_keys_that_are_not_trained_may_change_after_the_plan(data, tmp_path):
    planned = data()
    source = tmp_path / planned.path
    source.write_text(source.read_text().replace("private", "other"))
    assert stage(tmp_path, planned)[0].is_file()


def test_what_nobody_has_used_for_a_week_goes(data, tmp_path):
    old, new = data(), data("x_train.jsonl", 3)
    [place] = stage(tmp_path, old)
    left = place.with_name("0.part")
    left.write_text("cut off")
    os.utime(left, (NOW, NOW))
    stage(tmp_path, new, now=NOW + 6 * DAY)
    assert place.is_file()
    stage(tmp_path, old, now=NOW + 6 * DAY)  # which is a use
    stage(tmp_path, new, now=NOW + 8 * DAY)
    assert place.is_file()
    assert not left.exists()
    [kept] = stage(tmp_path, new, now=NOW + 14 * DAY)
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
