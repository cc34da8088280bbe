"""Every family of base models: planned as a rehearsal, shrunk, trained by real Axolotl on the CPU, and proven.

``make models`` trains all of them and writes the table of docs/base-models.md; ``make soak`` trains the quick ones.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
from typing import Any

import families
import numpy as np
import pytest
import rundir
import yaml
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.data import staging
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning import launch, memory, plan
from ansible.module_utils.lora_forge.planning.fleet import Trainer
from families import FAMILIES
from safetensors.numpy import load_file, save_file

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


SEEN: dict[str, dict[str, bool]] = {}  # families that were trained and proven, and whose damages were refused


@dataclasses.dataclass
class Trained:
    """A training of a family.

    Attributes:
        run: As it was planned.
        folder: Its run directory.
    """

    run: PlannedRun
    folder: pathlib.Path

    @property
    def recipe(self) -> dict[str, Any]:
        """What its adapter is held against: the recipe, with the base model as the trainer finds it."""
        root = str(self.folder.parents[1])
        return self.run.recipe | {"base_model": launch.base_model_path(self.run, root)}

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
    targets = {"lora_target_modules": FAMILIES[name].targets} if FAMILIES[name].targets else {}
    overrides = {**SMALL, **targets, "base_model": str(base), **keys}
    made = plan.make(ROOT, home / "output", "witness", [trainer], overrides)
    (run,) = made.runs
    variables = launch.template_variables(run, str(root), "disabled")
    text = yaml.safe_dump({**variables["recipe"], "datasets": variables["datasets"]})
    with staging.staged(run.datasets, ROOT, home / "output") as canonical:
        for file in launch.input_files(run, ROOT, text, home, [], canonical):
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
    items = [item for item in request.session.items if hasattr(item, "callspec") and "trained" in item.fixturenames]
    compared = {item.callspec.params["name"] for item in items if "packed" in item.name}
    made = {}
    for name in sorted({item.callspec.params["name"] for item in items}):
        home = tmp_path_factory.mktemp("family")
        made[name, "planned"] = prepare(home, name, environment)
        if name in compared and made[name, "planned"].run.recipe["sample_packing"]:
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


QUICK = tuple(name for name in FAMILIES if FAMILIES[name].quick)


def each(quick: tuple[str, ...] = QUICK) -> Any:
    marks = {name: [pytest.mark.soak if name in quick else pytest.mark.models] for name in FAMILIES}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in marks.items()])


@each()
def test_it_trains(trained, name):
    one = trained[name, "planned"]
    assert (one.folder / "exit.txt").read_text() == "0", one.log()
    assert [event["step"] for event in one.events("log")] == [1, 2, 3]
    assert one.run.rehearsed["quantised"]
    facts = store.verify(one.folder / "output", one.recipe, one.folder / rundir.EXPECTED)
    assert facts["problems"] == []
    assert facts["modules"] >= 8


Tensors = dict[str, Any]


def _first(tensors: Tensors, side: str) -> str:
    # The matrices of experts lie in one tensor, whose rank is that of all of them together.
    return sorted(name for name in tensors if f".lora_{side}." in name and "experts" not in name)[0]


def _without(tensors: Tensors, *names: str) -> Tensors:
    return {name: values for name, values in tensors.items() if name not in names}


def lacks_pair(tensors: Tensors) -> Tensors:
    a = _first(tensors, "A")
    return _without(tensors, a, a.replace(".lora_A.", ".lora_B."))


def lacks_side(tensors: Tensors) -> Tensors:
    return _without(tensors, _first(tensors, "B"))


def has_a_pair_of_a_tower(tensors: Tensors) -> Tensors:
    at = "base_model.model.model.visual.blocks.0.attn.q_proj.lora_"
    return tensors | {f"{at}A.weight": np.ones((8, 64), "f4"), f"{at}B.weight": np.ones((64, 8), "f4")}


def is_of_another_rank(tensors: Tensors) -> Tensors:
    a = _first(tensors, "A")
    return tensors | {a: np.ones((4, tensors[a].shape[1]), "f4")}


def holds_nan(tensors: Tensors) -> Tensors:
    a = _first(tensors, "A")
    return tensors | {a: np.full_like(tensors[a], np.nan)}


def has_a_zero_b(tensors: Tensors) -> Tensors:
    b = _first(tensors, "B")
    return tensors | {b: np.zeros_like(tensors[b])}


def has_another_layer(tensors: Tensors) -> Tensors:
    return tensors | {
        name.replace(".layers.1.", ".layers.7."): values for name, values in tensors.items() if ".layers.1." in name
    }


def is_of_another_width(tensors: Tensors) -> Tensors:
    a = _first(tensors, "A")
    return tensors | {a: np.ones((8, 96), "f4")}


# How an adapter is damaged -> what is said of it.
DAMAGES = {
    lacks_pair: "has no LoRA matrices, and the recipe trains it",
    lacks_side: "lacks its B matrix",
    has_a_pair_of_a_tower: "model.visual.blocks.0.attn.q_proj has LoRA matrices that the recipe does not train",
    is_of_another_rank: "has rank 4, and 8 is expected",
    holds_nan: "values that are NaN or infinite",
    has_a_zero_b: "is all zero: it was never trained",
    has_another_layer: "that the recipe does not train",
    is_of_another_width: "has shape [8, 96], and",
}


@each()
def test_damage_is_refused_by_name(trained, name, tmp_path):
    one = trained[name, "planned"]
    source = one.folder / "output"
    for path in source.glob("*.json"):
        shutil.copy(path, tmp_path)
    whole, weights = load_file(source / store.WEIGHTS), tmp_path / store.WEIGHTS

    def problems(**recipe: Any) -> str:
        return "\n".join(store.verify(tmp_path, one.recipe | recipe, one.folder / rundir.EXPECTED)["problems"])

    for damage, said in DAMAGES.items():
        save_file(damage(whole), weights)
        assert said in problems(), damage.__name__
    save_file(whole, weights)
    assert problems() == ""
    assert "base model is" in problems(base_model="Qwen/Other", model_revision="a" * 40)
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    assert "cannot be read" in problems()
    SEEN[name] = {"packs": bool(one.run.recipe["sample_packing"])}


@each(("Gemma 3 text",))  # with a window, where it is hardest
def test_packed_conversations_are_kept_apart(trained, name):
    planned = trained[name, "planned"]
    if not planned.run.recipe["sample_packing"]:
        assert name in ("Qwen3.5", "Qwen3.5 text", "gpt-oss")  # a CPU would mix them, so they are rehearsed without
        return
    alone = trained[name, "alone"]
    assert (alone.folder / "exit.txt").read_text() == "0", alone.log()
    packed, apart = planned.events("log")[0], alone.events("log")[0]
    assert packed["loss"] == pytest.approx(apart["loss"], rel=1e-4)
    assert packed["grad_norm"] == pytest.approx(apart["grad_norm"], rel=1e-2)


def memory_of(name: str) -> str:
    """Say what a training of a family's example is thought to need with configs/base.yml, where that is known."""
    recipe = yaml.safe_load((ROOT / "configs/base.yml").read_text(encoding="utf-8"))
    size = memory.estimate(recipe | {"base_model": FAMILIES[name].example, "model_revision": None})
    return "not known" if size is None else f"{size:.0f} GiB"


@pytest.mark.models
def test_the_page_of_base_models_says_what_was_seen():
    """Written by ``make models``, which names the page; otherwise it has to be right already."""
    table = families.table(SEEN, {name: memory_of(name) for name in FAMILIES})
    text = PAGE.read_text(encoding="utf-8")
    made = re.sub(r"(<!-- begin -->\n).*?(\n<!-- end -->)", lambda found: found[1] + table + found[2], text, flags=re.S)
    if os.environ.get("LORA_FORGE_MODELS"):
        PAGE.write_text(made, encoding="utf-8")
    assert made == PAGE.read_text(encoding="utf-8")
    assert SEEN.keys() == FAMILIES.keys()
