"""Whose pods they are: an owner id belongs to one folder, whatever becomes of that."""

from __future__ import annotations

import json
import shutil

import pytest
import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.pods.claims import Claims


@pytest.fixture
def first(tmp_path):
    """Provide a folder with an owner id."""
    folder = tmp_path / "first/.pods"
    assert Claims(folder).owner
    return folder


def note(folder, **changes):
    path = folder / "owner.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def may_act(folder) -> bool:
    try:
        Claims(folder).assert_own_place()
    except UserError:
        return False
    return True


def test_a_copy_beside_the_first_one_gets_an_id_of_its_own(first, tmp_path):
    owner = Claims(first).owner
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    copy = Claims(tmp_path / "second/.pods")
    assert copy.owner != owner
    assert copy.copied_from == owner
    again = Claims(tmp_path / "second/.pods")
    assert (again.owner, again.copied_from) == (copy.owner, owner)
    assert Claims(first).owner == owner
    assert may_act(tmp_path / "second/.pods")


def test_a_copy_of_a_folder_that_is_named_is_one_too(first, tmp_path):
    shutil.copytree(first, tmp_path / "elsewhere")
    assert Claims(tmp_path / "elsewhere").owner != Claims(first).owner


def test_a_copy_does_not_act_on_what_the_first_one_claims(first, tmp_path):
    Claims(first).open_claim("pod-1", [], 0)
    shutil.copytree(first, tmp_path / "copy")
    assert Claims(tmp_path / "copy").find_open("pod-1") is None
    assert Claims(first).find_open("pod-1")


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "/nowhere/.pods"},  # moved on its file system
        {"device": 0},  # its file system is mounted anew
        {"inode": 0},  # restored from a backup, or the folder of a container that is made anew
        {"inode": 0, "device": 0},
        {"machine": "another", "device": 0},  # a network's file system, seen from another machine
        {"machine": ""},
    ],
)
def test_a_folder_that_only_looks_different_keeps_its_id(first, changes):
    owner = Claims(first).owner
    note(first, **changes)
    assert Claims(first).owner == owner
    assert may_act(first)
    now = rundir.read_json(first / "owner.json")
    assert (now["path"], now["inode"]) == (str(first), first.stat().st_ino)


def test_a_folder_that_was_moved_keeps_its_id(first, tmp_path):
    owner = Claims(first).owner
    (tmp_path / "first").rename(tmp_path / "second")
    assert Claims(tmp_path / "second/.pods").owner == owner
    assert may_act(tmp_path / "second/.pods")


@pytest.mark.parametrize(
    "changes", [{"path": "/nowhere/.pods", "inode": 0}, {"inode": 0, "machine": "another"}], ids=["moved", "machine"]
)
def test_where_nothing_can_tell_pods_are_seen_and_neither_ordered_nor_released(first, changes):
    owner = Claims(first).owner
    if not rundir.read_json(first / "owner.json")["machine"]:
        note(first, **{**changes, "path": "/nowhere"})  # this machine has no id
    else:
        note(first, **changes)
    claims = Claims(first)
    assert claims.owner == owner
    with pytest.raises(UserError, match=r"no pod is ordered or released. If it was moved here, or restored: rm "):
        claims.assert_own_place()
    (first / "owner.json").unlink()  # as the sentence says
    assert Claims(first).owner == owner
    assert may_act(first)


def test_in_doubt_the_id_can_be_named(first):
    note(first, path="/nowhere", inode=0)
    assert not may_act(first)
    Claims(first, Claims(first).owner).assert_own_place()


def test_an_id_that_was_put_there_by_hand_is_taken(first):
    (first / "owner").write_text("cafe01\n")
    assert Claims(first).owner == "cafe01"
    assert may_act(first)


def test_a_folder_that_bound_nothing_is_bound_when_it_is_next_looked_at(first, tmp_path):
    owner = Claims(first).owner
    (first / "owner.json").unlink()
    assert Claims(first).owner == owner
    shutil.copytree(first, tmp_path / "copy")
    assert Claims(tmp_path / "copy").owner != owner


def test_a_claim_that_is_being_released_is_for_nothing_and_not_renewed(tmp_path):
    claims = Claims(tmp_path)
    claim = claims.open_claim("pod-1", ["a"], 0, state="releasing", deadline=5.0)
    assert not claims.renew(claim.name, 9.0)
    assert claims.read(claim.name).deadline == 5.0
    assert claims.read("") is None


def test_reap_says_that_a_checkout_is_a_copy(desk, tmp_path):
    desk.pod()
    assert desk.call("runpod_pod_info")["show"]["lines"][0] == "  1 pods, 0.86 USD/h together"
    shutil.copytree(desk.state_dir, tmp_path / "copy")
    desk.clock.sleep(7200)
    answer = desk.call("runpod_pod_info", state_dir=str(tmp_path / "copy"))
    assert (answer["unclaimed"], [pod["mine"] for pod in answer["pods"]]) == ([], [False])
    assert answer["show"]["lines"][-1].startswith("  this is a copy, with the owner id ")
    assert not desk.leave(state_dir=str(tmp_path / "copy"))["changed"]
    assert desk.ids == ["pod1"]


def test_an_id_that_a_power_cut_emptied_is_what_was_bound(first):
    owner = Claims(first).owner
    (first / "owner").write_text("")
    assert Claims(first).owner == owner


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"name": 3}', '{"name": ["x"], "host": "pod-1"}'])
def test_a_damaged_claim_stops_nothing_and_its_pod_is_taken_over(rig, damage):
    name = rig.ready().claim.name
    rig.claims.path_of(name).write_text(damage)
    assert rig.claims.list_all() == []
    assert rig.claims.read(name) is None
    progress = rig.ready()
    assert (progress.claim.name, progress.claim.taken_over, rig.ids) == (name, True, ["pod1"])
