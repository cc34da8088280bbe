"""What makes a trainer fit to train: what goes there, which models it needs, what is said of its environment."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import pytest
from ansible.module_utils.lora_forge.planned_run import Estimate, PlannedRun
from ansible.module_utils.lora_forge.planning import provisioning
from ansible.module_utils.lora_forge.trainer.environment import environment_name

ROOT = pathlib.Path(__file__).resolve().parents[2]
MADE = {"adopted": False, "seconds": 13.2, "packages": 238, "built_from": "trainer-cpu",
        "python": "/r/env/trainer-cpu-0/bin/python"}  # fmt: skip


def run(model: str, rehearsal: bool = False, **recipe: Any) -> PlannedRun:
    return PlannedRun(
        run_id="crew-0", agent="crew", name="crew", fingerprint="f", trainer="gpu-1", state="to train",
        rehearsal=rehearsal, recipe={"base_model": model, **recipe}, recipe_sha256="c", axolotl="0.21", datasets=(),
        hosts=("gpu-1",),
    )  # fmt: skip


def provision(*runs: PlannedRun, lock: str = "trainer-cuda", **changes: Any) -> provisioning.Provision:
    return provisioning.Provision(checkout=ROOT, root="/r", lock=lock, runs=runs, **changes)


def brought(wanted: provisioning.Provision) -> set[str]:
    assert all(pathlib.Path(file["src"]).is_file() for file in wanted.files)
    return {file["path"] for file in wanted.files}


def test_a_rehearsal_gets_locks_and_the_gpu_check():
    wanted = provision(run("tiny", rehearsal=True), lock="trainer-cpu")
    assert wanted.models == []
    assert brought(wanted) == {
        "requirements/trainer-cpu.txt", "requirements/trainer-cuda.txt", "requirements/uv.txt", "gpu_check.py",
    }  # fmt: skip


def test_what_fetches_a_model_comes_where_one_is_needed_and_uv_where_none_is_named():
    wanted = provision(run("owner/name"), uv="/usr/bin/uv")
    assert brought(wanted) == {
        "requirements/trainer-cuda.txt", "requirements/hub.txt", "gpu_check.py", "fetch_model.py", "rundir.py",
        "preflight/preflight.py", "preflight/expected_adapter.py", "preflight/template_check.py",
    }  # fmt: skip


def test_each_model_is_needed_once():
    runs = [run("b/b"), run("a/a", model_revision=None), run("b/b", model_revision="v1"), run("b/b"), run("t", True)]
    assert provision(*runs).models == [
        {"model": "b/b", "revision": ""}, {"model": "a/a", "revision": ""}, {"model": "b/b", "revision": "v1"},
    ]  # fmt: skip


def test_how_an_environment_is_asked_for():
    given = {"python": "3.13", "python_download": True, "torch_backend": "cpu"}
    assert provision(lock="trainer-cpu", **given).environment == {
        "root": "/r", "lock": "/r/requirements/trainer-cpu.txt", "uv": "", "uv_lock": "/r/requirements/uv.txt",
        "instead": "/r/requirements/trainer-cuda.txt", **given,
    }  # fmt: skip
    named = provision(uv="/usr/bin/uv").environment
    assert named["uv"] == "/usr/bin/uv"
    assert not {"uv_lock", "instead"} & named.keys()


def test_a_gpu_must_do_for_the_run_that_needs_most():
    runs = [
        dataclasses.replace(run("a/a", bf16="auto"), estimate=Estimate(memory_gib=24.5, memory_floor_gib=5.25)),
        dataclasses.replace(run("b/b"), estimate=Estimate(memory_gib=16.0, memory_floor_gib=7.0)), run("t", True),
    ]  # fmt: skip
    lock = {"lock": "/r/requirements/trainer-cuda.txt"}
    recipes = [{"base_model": "a/a", "bf16": "auto"}, {"base_model": "b/b"}, {"base_model": "t"}]
    assert provision(*runs).gpu == {**lock, "memory_gib": 24.5, "memory_floor_gib": 7.0, "recipes": recipes}
    unknown = {"memory_gib": None, "memory_floor_gib": None}
    assert provision(run("t", True)).gpu == {**lock, **unknown, "recipes": recipes[2:]}
    assert provision().gpu == {**lock, **unknown, "recipes": []}


def test_an_environments_python_is_known_before_it_is_made():
    name = environment_name(ROOT / "requirements/trainer-cuda.txt")
    assert (
        provisioning.environment_python("/r", provisioning.lock_path(ROOT, "trainer-cuda"))
        == f"/r/env/{name}/bin/python"
    )
    assert name in provisioning.environment_names(ROOT)
    assert len(set(provisioning.environment_names(ROOT))) == 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"interpreter": "/usr/bin/python3.13"}, "made in 13.2 s (238 packages, /usr/bin/python3.13)"),
        ({}, "made in 13.2 s (238 packages)"),
        ({"adopted": True}, "found in the image (238 packages)"),
    ],
)
def test_what_is_said_of_an_environment(answer, words):
    news = provisioning.environment_news("vm", "trainer-cpu", {**MADE, **answer})
    assert news == {"lines": [f"  vm: environment {words}"]}


def test_one_that_took_the_place_of_another_is_warned_of():
    news = provisioning.environment_news("vm", "trainer-cpu", {**MADE, "built_from": "trainer-cuda"})
    assert news["warnings"] == [
        "vm: no build of torch for CPUs can be had from here; the one for CUDA took its place. To try again, delete "
        "/r/env/trainer-cpu-0"
    ]
