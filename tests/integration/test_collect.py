"""watch.yml and collect.yml of runs whose recipe, data, agent or trainer's settings are others than when they started.

Real Ansible, and hosts behind a stand-in for ssh. All that may befall a run lies on one stage, for two commands.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import sys
from collections.abc import Iterator

import pytest
import yaml
from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.planned_run import Launched, PlannedCases, PlannedRun
from ansible.module_utils.lora_forge.planning import launch, provisioning
from ansible.module_utils.lora_forge.planning.run_record import keep_launched, update_record
from ansible.module_utils.lora_forge.text import canonical
from hostile import LOCK, PYTHON, Played, Stage
from seen import Seen

SHA256 = "5" * 64  # of the lock of then
CASES = "eval/of-then.jsonl"  # which is gone
# What is another one than at the launch, and whose run it is there.
THEN = {
    "the recipe is edited": "witness",
    "the data is edited": "mayor",
    "the agent's file is gone": "boot-crew",
    "the trainer's root and environment are others": "deacon",
    "the cases are gone": "polecat",
    "the environment of then is pruned": "gastown",
    "nothing": "refinery",
}


class Site(Stage):
    """A stage on which runs were launched some time ago, and have finished since."""

    def __init__(self, folder: pathlib.Path):
        super().__init__(folder)
        self.host("gpu")
        self.elsewhere = folder / "hosts/gpu/then"
        self.runs = {what: self.launched(what, agent) for what, agent in THEN.items()}

    def then(self, what: str, agent: str) -> PlannedRun:
        """Return a run as it was planned when it was launched."""
        run = self.planned("crew" if agent == "boot-crew" else agent, "gpu")
        recipe, data = run.recipe, run.datasets
        if what == "the recipe is edited":
            recipe = recipe | {"lora_r": 8}
        if what == "the data is edited":
            data = tuple(dataclasses.replace(file, path="gone.jsonl", sha256="6" * 64) for file in data)
        cases = PlannedCases(CASES, "7" * 64, 1) if what == "the cases are gone" else PlannedCases()
        is_same = what in ("nothing", "the trainer's root and environment are others")
        run_id = run.run_id if is_same else f"{agent}-0123456789ab"
        root = self.elsewhere if what == "the trainer's root and environment are others" else self.root("gpu")
        python = root / "env" / provisioning.environment_name(LOCK) / "bin/python"
        if not is_same or root == self.elsewhere:
            python = self.elsewhere / "python"
        if what == "the environment of then is pruned":
            python = self.elsewhere / "pruned/python"
        return dataclasses.replace(
            run, run_id=run_id, agent=agent, name=agent, recipe=recipe, datasets=data, cases=cases,
            recipe_sha256=store.sha256_text(canonical(recipe)), launched=Launched(str(root), str(python), SHA256),
        )  # fmt: skip

    def launched(self, what: str, agent: str) -> PlannedRun:
        run = self.then(what, agent)
        root = pathlib.Path(run.launched.root)
        (self.elsewhere / "runs").mkdir(parents=True, exist_ok=True)
        self.write_program(self.elsewhere / "python", PYTHON.format(python=sys.executable))
        model = pathlib.Path(launch.base_model_path(run, "/now"))
        model.mkdir(parents=True, exist_ok=True)
        (model / "config.json").write_text(json.dumps({"num_hidden_layers": 1}))
        made = self.finished("gpu", "crew" if agent == "boot-crew" else agent)
        run_dir = root / "runs" / run.run_id
        if made != run_dir:
            shutil.move(made, run_dir)
        self.adapter(run_dir / "output", run, str(model))
        (run_dir / "axolotl.yml").write_text(yaml.safe_dump(run.recipe))
        rundir.write_json(run_dir / "run.json", {"run_id": run.run_id, "backend": "process", "agent": agent})
        update_record(self.output, run.run_id, lambda record, now: record.launched("gpu", 0, now))
        keep_launched(self.output, run)
        return run


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


def role() -> list[str]:
    return ["-e", f"role={','.join(THEN.values())}"]


@pytest.fixture(scope="module")
def watched(site: Site) -> Played:
    return site.play("playbooks/watch.yml", *role())


@pytest.fixture(scope="module")
def collected(site: Site, watched: Played) -> Iterator[Played]:
    return site.play("playbooks/collect.yml", *role())


@pytest.mark.parametrize("what", THEN)
def test_what_was_launched_is_watched(site: Site, watched: Played, what: str) -> None:
    assert watched.code == 0, watched.text
    assert site.runs[what].run_id in watched.text


@pytest.mark.parametrize("what", THEN)
def test_what_was_launched_is_collected_by_what_was_kept_of_it(
    site: Site, collected: Played, what: str, seen: Seen
) -> None:
    run, home = site.runs[what], site.output / "adapters" / THEN[what]
    assert collected.code == 0, collected.text
    assert store.integrity_error(home / run.run_id, hashes=True) is None
    manifest = store.read_manifest(home / run.run_id)
    assert manifest is not None
    assert (manifest.recipe, manifest.lock_sha256, manifest.fingerprint) == (run.recipe, SHA256, run.fingerprint)
    assert [file.sha256 for file in manifest.datasets] == [file.sha256 for file in run.datasets]
    assert (home / "latest").is_symlink() == (what != "the cases are gone")
    assert f"{THEN[what]} is ready" in collected.text
    seen(
        f"since a run was launched, this is another one: {what}",
        "here",
        "`watch.yml` and `collect.yml` find it; its adapter is proven by the recipe that it was launched with",
    )


def test_what_is_left_out_is_said_with_the_command_that_does_it_later(site: Site, collected: Played) -> None:
    run_id = site.runs["the cases are gone"].run_id
    text = " ".join(collected.text.split())
    assert f"{run_id} is delivered, and not evaluated: " in text, collected.text
    assert f"Once that is right, playbooks/evaluate.yml -e run_id={run_id} evaluates it, and decides" in text


def test_a_rank_that_the_controller_did_not_launch_is_refused(site: Site, collected: Played) -> None:
    """A trainer's word on its own recipe counts for nothing."""
    run = site.then("the recipe is edited", "witness")
    run_dir = site.root("gpu") / "runs" / run.run_id
    shutil.rmtree(site.output / "adapters/witness")
    update_record(site.output, run.run_id, lambda record, now: record.launched("gpu", 1, now))
    other = dataclasses.replace(run, recipe=run.recipe | {"lora_r": 16})
    site.adapter(run_dir / "output", other, launch.base_model_path(run, "/now"))
    (run_dir / "axolotl.yml").write_text(yaml.safe_dump(other.recipe))
    rundir.write_json(run_dir / "run.json", {"run_id": run.run_id, "backend": "process", "recipe": other.recipe})
    played = site.play("playbooks/collect.yml", "-e", "role=witness")
    assert played.code != 0
    assert "rank is 16, the recipe says 8" in played.text
    assert not (site.output / "adapters/witness" / run.run_id).exists()
