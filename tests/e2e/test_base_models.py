"""Every family of base models: planned as a rehearsal, shrunk, trained by real Axolotl on the CPU, and proven.

``make models`` trains all of them and writes the table of docs/base-models.md; ``make test`` trains the quick ones.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
from typing import Any

import pytest
import rundir
import yaml
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning import launch, plan
from ansible.module_utils.lora_forge.planning.fleet import Trainer
from families import FAMILIES

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/base-models.md"
# One row holds all conversations, and a step one row or all of them: so packed and unpacked ones see the same.
SMALL = {
    "sequence_len": 1024, "micro_batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 3, "save_steps": 3,
    "warmup_steps": 0, "val_set_size": 0, "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "learning_rate": 1e-3,
}  # fmt: skip
TALK = [
    ("Which branch is it?", "The one that was pushed last night, hazel."),
    ("Does the test pass?", "It does not. The third case fails since the last merge, and I have told the mayor."),
    ("Who has the lock?", "Nobody. It was left by a worker that is gone, so it may be removed."),
    ("And now?", "Now it waits for its review."),
]


@dataclasses.dataclass
class Trained:
    """A training of a family.

    Attributes:
        run: As it was planned.
        folder: Its run directory.
    """

    run: PlannedRun
    folder: pathlib.Path

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in rundir.read_events(self.folder / "metrics.jsonl")[0] if event["event"] == kind]

    def log(self) -> str:
        return (self.folder / "train.log").read_text(encoding="utf-8")[-3000:]


def prepare(home: pathlib.Path, name: str, python: pathlib.Path, **keys: Any) -> Trained:
    """Plan a rehearsal of a family and stage it, as a launch does."""
    base = home / "bases" / FAMILIES[name].example.partition(",")[0]
    base.mkdir(parents=True, exist_ok=True)
    (base / "config.json").write_text(json.dumps(FAMILIES[name].config))
    data = home / "data"
    data.mkdir(exist_ok=True)
    talks = [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]} for ask, say in TALK
    ]
    (data / "witness_train.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    root = home / "trainer"
    trainer = Trainer("here", "rehearsal", root=str(root), datasets_dir=str(data))
    made = plan.make(ROOT, home / "output", "witness", [trainer], {**SMALL, "base_model": str(base), **keys})
    (run,) = made.runs
    variables = launch.template_variables(run, str(root), "disabled")
    text = yaml.safe_dump({**variables["recipe"], "datasets": variables["datasets"]})
    for file in launch.input_files(run, ROOT, text, home, []):
        path = root / file["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file["content"]) if "content" in file else shutil.copyfile(file["src"], path)
    options = launch.TrainerOptions(str(root), str(python))
    subprocess.run(launch.tiny_model_command(run, options), check=True)
    folder = pathlib.Path(launch.run_dir(run, str(root)))
    rundir.write_json(folder / "run.json", launch.plan_launch(run, "here", options).run_json(run.run_id))
    return Trained(run, folder)


@pytest.fixture(scope="module")
def trained(request, tmp_path_factory, environment) -> dict[tuple[str, str], Trained]:
    """Train the families of the chosen tests, each as planned and without packing, all after one import of torch."""
    names = {item.callspec.params["name"] for item in request.session.items if "trained" in item.fixturenames}
    made = {}
    for name in sorted(names):
        home = tmp_path_factory.mktemp("family")
        made[name, "planned"] = prepare(home, name, environment)
        if made[name, "planned"].run.recipe["sample_packing"]:
            alone = {"sample_packing": False, "micro_batch_size": len(TALK), "max_steps": 1}
            made[name, "alone"] = prepare(home, name, environment, **alone)
    settings = launch.training_environment("cpu", str(tmp_path_factory.getbasetemp()), "disabled", "")
    subprocess.run(
        [str(environment), str(ROOT / "tests/fakes/train_families.py"), *(str(one.folder) for one in made.values())],
        env={**os.environ, **settings, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    return made


def each(names: Any = FAMILIES) -> Any:
    marks = {name: [] if FAMILIES[name].quick else [pytest.mark.models] for name in names}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in marks.items()])


@each()
def test_it_trains(trained, name):
    one = trained[name, "planned"]
    assert (one.folder / "exit.txt").read_text() == "0", one.log()
    assert [event["step"] for event in one.events("log")] == [1, 2, 3]
    assert one.run.rehearsed["quantised"]
    assert (one.folder / "output/adapter_model.safetensors").exists()


@each()
def test_packed_conversations_are_kept_apart(trained, name):
    planned = trained[name, "planned"]
    if not planned.run.recipe["sample_packing"]:
        assert name.startswith("Qwen3.5")  # it packs on a GPU only, and is rehearsed without
        return
    alone = trained[name, "alone"]
    assert (alone.folder / "exit.txt").read_text() == "0", alone.log()
    packed, apart = planned.events("log")[0], alone.events("log")[0]
    assert packed["loss"] == pytest.approx(apart["loss"], rel=1e-4)
    assert packed["grad_norm"] == pytest.approx(apart["grad_norm"], rel=1e-2)
