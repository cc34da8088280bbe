"""Which attempt at a recipe is meant: an adapter that is there, a run to go on with, or a new one."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from ansible.module_utils.lora_forge import version
from ansible.module_utils.lora_forge.planning import recipe
from ansible.module_utils.lora_forge.planning.attempts import Attempt, Attempts
from ansible.module_utils.lora_forge.planning.run_record import update_record
from planned import one, said, told

ROOT = pathlib.Path(__file__).resolve().parents[2]


# --- of one recipe


def test_never_trained(make, run_id):
    assert told(one(make())) == (run_id, "to train", "", "here")


def test_ready(make, deliver, run_id):
    deliver(run_id)
    assert told(one(make())) == told(one(make(verify=True))) == (run_id, "ready", "", "here")


def test_another_version_of_lora_forge_trains_nothing_again(make, deliver, run_id, monkeypatch):
    deliver(run_id)  # with a manifest that names no lora-forge
    monkeypatch.setattr(version, "VERSION", "9.9.9")
    assert told(one(make())) == (run_id, "ready", "", "here")


def test_a_damaged_adapter_is_trained_again(make, deliver, run_id):
    folder = deliver(run_id)
    (folder / "weights").write_bytes(b"123")
    assert told(one(make())) == (run_id, "to train", f"{folder / 'weights'} has 3 bytes instead of 5", "here")


def test_verify_finds_changed_content(make, deliver, run_id):
    folder = deliver(run_id)
    (folder / "weights").write_bytes(b"54321")
    (folder / "manifest.json").touch()
    assert one(make()).state == "ready"
    assert one(make(verify=True)).why == f"{folder / 'weights'} has changed since it was verified"


def test_a_launched_run_is_attached_to(make, note, run_id):
    note(run_id, final=False, state="running")
    assert told(one(make())) == (run_id, "to attach", "launched before", "here")
    assert told(one(make(fresh=True))) == (run_id, "to attach", "launched before", "here")


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_a_failed_run_is_resumed(make, note, run_id, state):
    note(run_id, final=True, state=state)
    assert told(one(make())) == (run_id, "to resume", f"{state} before", "here")


def test_fresh_makes_the_next_attempt_once(make, deliver, note, run_id):
    deliver(run_id)
    assert told(one(make(fresh=True)))[:3] == (f"{run_id}-2", "to train", "a fresh attempt was asked for")
    note(f"{run_id}-2", final=False)
    assert told(one(make(fresh=True)))[:2] == (f"{run_id}-2", "to attach")
    assert told(one(make()))[:2] == (f"{run_id}-2", "to attach")
    note(f"{run_id}-2", final=True, state="failed")
    assert told(one(make(fresh=True)))[:2] == (f"{run_id}-3", "to train")


def test_attempts_are_counted_as_numbers(make, note, run_id):
    for number in ("-2", "-9", "-10", "-x", "0"):
        note(f"{run_id}{number}", final=True, state="failed")
    assert one(make(fresh=True)).run_id == f"{run_id}-11"


def test_an_earlier_verified_one_stays_ready(make, deliver, note, run_id):
    deliver(run_id)
    note(f"{run_id}-2", final=True, state="failed")
    assert told(one(make())) == (run_id, "ready", f"{run_id}-2 failed later", "here")


# --- of one recipe, closer


def attempted(attempt: Attempt) -> tuple[str, str, str, dict[str, Any]]:
    assert (attempt.fingerprint, attempt.axolotl) == ("a" * 64, "0.21.0")
    return attempt.run_id, attempt.state, attempt.why, attempt.placement


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ({}, ("to train", "")),
        ({"trainer": ""}, ("to attach", "launched before")),
        ({"final": True}, ("to train", "")),
        ({"final": True, "state": "verified"}, ("to train", "")),
        ({"final": True, "state": "failed"}, ("to resume", "failed before")),
        ({"final": False, "state": "failed"}, ("to attach", "launched before")),
    ],
)
def test_what_a_placement_makes_of_an_attempt(tmp_path, placement, expected):
    runs_ = tmp_path / "runs"
    runs_.mkdir()
    if placement:
        (runs_ / f"witness-{'a' * 12}.json").write_text(json.dumps(placement))
    attempt = Attempts(tmp_path, "0.21.0").find("witness", "a" * 64)
    run_id, *found, kept = attempted(attempt)
    assert (run_id, *found) == (f"witness-{'a' * 12}", *expected)
    assert {key: kept.get(key) for key, value in placement.items() if value} == {
        k: v for k, v in placement.items() if v
    }


def test_what_failed_before_it_was_launched_is_no_attempt(tmp_path, deliver):
    first = f"witness-{'a' * 12}"
    output = tmp_path / "output"
    known, fresh = (Attempts(output, "0.21.0", fresh=fresh) for fresh in (False, True))
    update_record(output, first, lambda record, now: record.failed_on("gpu-1", "no GPU", now).settled("failed", now))
    assert attempted(known.find("witness", "a" * 64)) == (first, "to train", "", {})
    deliver(first)
    update_record(output, f"{first}-2", lambda record, now: record.failed_on("gpu-1", "no GPU", now))
    assert attempted(known.find("witness", "a" * 64))[:2] == (first, "ready")
    assert attempted(fresh.find("witness", "a" * 64))[:2] == (f"{first}-2", "to train")


def test_attempts_of_other_recipes_do_not_count(tmp_path):
    first = f"witness-{'a' * 12}"
    (tmp_path / "runs").mkdir()
    for name in (f"{first}b", f"{first}-x", f"{first}-2-3", f"mayor-{'a' * 12}", f"x{first}-9"):
        (tmp_path / f"runs/{name}.json").write_text('{"final": true, "state": "failed"}')
    for fresh in (False, True):
        attempt = Attempts(tmp_path, "0.21.0", fresh=fresh).find("witness", "a" * 64)
        assert attempted(attempt) == (first, "to train", "", {})


def test_attempts_are_known_from_their_folders_too(tmp_path, deliver):
    first = f"witness-{'a' * 12}"
    known, fresh = (Attempts(tmp_path / "output", "0.21.0", fresh=fresh) for fresh in (False, True))
    folder = deliver(f"{first}-3")
    (folder.parent / f"{first}-7").touch()  # no folder
    assert attempted(known.find("witness", "a" * 64)) == (f"{first}-3", "ready", "", {})
    (folder / "weights").unlink()
    missing = f"{folder / 'weights'} is missing"
    assert attempted(known.find("witness", "a" * 64)) == (f"{first}-3", "to train", missing, {})
    assert attempted(fresh.find("witness", "a" * 64)) == (f"{first}-3", "to train", missing, {})


def test_the_newest_of_the_earlier_ones_that_are_whole_stays_ready(tmp_path, deliver, note):
    first = f"witness-{'a' * 12}"
    known, fresh = (Attempts(tmp_path / "output", "0.21.0", fresh=fresh) for fresh in (False, True))
    for number in ("", "-2", "-3"):
        folder = deliver(f"{first}{number}")
    (folder / "weights").unlink()
    note(f"{first}-4", final=True, state="failed")
    assert attempted(known.find("witness", "a" * 64))[:3] == (
        f"{first}-2",
        "ready",
        f"{first}-4 failed later",
    )
    assert attempted(fresh.find("witness", "a" * 64))[:3] == (
        f"{first}-5", "to train", "a fresh attempt was asked for",
    )  # fmt: skip
    note(f"{first}-4", final=False)
    assert attempted(known.find("witness", "a" * 64))[:2] == (f"{first}-4", "to attach")


# --- a new version of Axolotl


@pytest.fixture
def updated(make, data, deliver, monkeypatch, tmp_path):
    """Deliver an adapter of Axolotl 0.19 where the locks pin the version of today; return its run_id."""
    data()
    pinned = recipe.pinned_version
    with monkeypatch.context() as then:
        then.setattr(recipe, "pinned_version", lambda lock, name: "0.19.0" if name == "axolotl" else pinned(lock, name))
        run = one(make())
    folder = deliver(run.run_id)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"run_id": run.run_id, "fingerprint": run.fingerprint, "versions": {"axolotl": "0.19.0"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder.parent / "latest").symlink_to(run.run_id)
    return run.run_id


def test_the_plan_tells_what_is_trained_anew_because_of_axolotl(make, updated):
    made = make()
    assert one(made).state == "to train"
    assert one(made).run_id != updated
    assert one(made).axolotl == recipe.pinned_version(ROOT / "requirements/trainer-cuda.txt", "axolotl")
    [said] = [line for line in made.warnings if "Axolotl" in line]
    assert said.startswith(f"witness has {updated}, of Axolotl 0.19.0; the locks pin {one(made).axolotl} now.")
    assert said.endswith("-e keep_axolotl=0.19 keeps what there is")


def test_an_adapter_of_an_older_axolotl_is_kept_when_asked(make, updated):
    for keep in ("0.19", "0.19.0"):
        made = make(keep=keep)
        assert (one(made).run_id, one(made).state, one(made).axolotl) == (updated, "ready", "0.19.0")
        assert not [line for line in made.warnings if "Axolotl" in line]


def test_it_need_not_be_what_latest_points_to(make, updated, tmp_path):
    (tmp_path / "output/adapters/witness/latest").unlink()
    assert one(make(keep="0.19")).run_id == updated
    assert [line for line in make().warnings if line.startswith(f"witness has {updated}, of Axolotl 0.19.0")]


def test_a_variant_is_kept_too(make, data, deliver, monkeypatch, tmp_path):
    data()
    variants = [{}, {"lora_alpha": 48}]
    pinned = recipe.pinned_version
    with monkeypatch.context() as then:
        then.setattr(recipe, "pinned_version", lambda lock, name: "0.19.0" if name == "axolotl" else pinned(lock, name))
        runs = make(variants=variants).runs
    for run in runs:
        folder = deliver(run.run_id)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest |= {"run_id": run.run_id, "fingerprint": run.fingerprint, "versions": {"axolotl": "0.19.0"}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    kept = make(variants=variants, keep="0.19").runs
    assert [(run.run_id, run.state) for run in kept] == [(run.run_id, "ready") for run in runs]


@pytest.mark.parametrize("keep", ["0", "newest", "0.19beta", "v0.19"])
def test_what_is_no_version_is_refused(make, data, keep):
    data()
    assert said(lambda: make(keep=keep)) == f"keep_axolotl is «{keep}»; it is a version of Axolotl, such as 0.19"


def test_another_version_than_that_of_what_there_is_is_refused(make, updated):
    """Somebody who wants to keep what there is does not want to pay for another one because of a slip."""
    assert said(lambda: make(keep="0.18")) == (
        f"keep_axolotl is 0.18, but witness has {updated}, of Axolotl 0.19.0; -e keep_axolotl=0.19 keeps that"
    )


def test_what_is_at_work_already_is_not_dropped_for_what_is_kept(make, updated, tmp_path):
    run = one(make())
    (tmp_path / "output/runs").mkdir(exist_ok=True)
    (tmp_path / f"output/runs/{run.run_id}.json").write_text(json.dumps({"trainer": run.trainer}))
    assert (one(make(keep="0.19")).run_id, one(make(keep="0.19")).state) == (run.run_id, "to attach")


@pytest.mark.parametrize("change", ["recipe", "data", "files", "fresh"])
def test_nothing_else_is_kept(make, data, updated, tmp_path, change):
    if change == "data":
        data(count=11)
    if change == "files":
        (tmp_path / "output/adapters/witness" / updated / "weights").unlink()
    made = make(
        keep="0.19",
        recipe={"lora_alpha": 48} if change == "recipe" else {},
        fresh=change == "fresh",
    )
    assert one(made).state == "to train"
    assert one(made).run_id != updated
    assert not [line for line in made.warnings if "Axolotl" in line]


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"versions": 3}', '{"versions": {"axolotl": null}}'])
def test_a_manifest_that_says_nothing_of_axolotl_is_passed_over(make, updated, tmp_path, manifest):
    (tmp_path / "output/adapters/witness" / updated / "manifest.json").write_text(manifest)
    assert one(make(keep="0.19")).state == "to train"
