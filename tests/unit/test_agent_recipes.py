"""The recipe of an agent: its layers, read from a checkout, merged and checked."""

from __future__ import annotations

import json
import pathlib
import re

import pytest
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planning import recipe
from ansible.module_utils.lora_forge.planning.agent_recipes import AgentRecipes
from ansible.module_utils.lora_forge.planning.agents import Agents
from ansible.module_utils.lora_forge.planning.fleet import Trainer
from planned import one, said

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path):
    """Copy what a plan reads: configs and locks."""
    root = tmp_path / "checkout"
    for pattern in ("configs/**/*.*", "requirements/*.txt"):
        for path in ROOT.glob(pattern):
            copy = root / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return root


# --- the checkout that is planned from


def test_locks_that_pin_different_versions(checkout, tmp_path):
    lock = checkout / "requirements/trainer-cuda.txt"
    lock.write_text(re.sub(r"^axolotl==\S+", "axolotl==0.1.0", lock.read_text(), flags=re.MULTILINE))
    assert said(AgentRecipes, checkout, Agents(checkout), {}) == (
        "requirements/trainer-cpu.txt and requirements/trainer-cuda.txt pin different versions of axolotl; make both "
        "anew: make lock"
    )


@pytest.mark.parametrize("content", [None, "{"])
def test_a_schema_that_cannot_be_read(checkout, tmp_path, content):
    path = checkout / "configs/schema.json"
    path.unlink() if content is None else path.write_text(content)
    words = said(AgentRecipes, checkout, Agents(checkout), {})
    assert words.startswith("configs/schema.json cannot be read (")
    assert words.endswith("); make it anew with: make schema")


def test_files_are_named_as_they_lie_in_the_checkout(checkout, tmp_path):
    (checkout / "configs/agents/witness.yml").write_text("seed: 1\nsed: 2\n")
    recipes = AgentRecipes(checkout, Agents(checkout), {"lora_r": 0.5})
    assert said(recipes.merged_recipe, "witness", "", "") == (
        "-e '{\"recipe\": …}': «lora_r: 0.5» does not fit: expected a whole number\n"
        "configs/agents/witness.yml, line 2: Axolotl knows no key «sed»; did you mean «seed»?"
    )
    (checkout / "configs/agents/witness.yml").unlink()
    recipes = AgentRecipes(checkout, Agents(checkout), {"lora_r": 0.5})
    assert (
        said(recipes.merged_recipe, "witness", "", "") == "configs/agents/witness.yml is missing; every recipe needs it"
    )


def test_profiles_and_machines_go_by_their_names(checkout, tmp_path):
    recipes = AgentRecipes(checkout, Agents(checkout), {})
    for name in ("b", "a"):
        (checkout / f"configs/machines/{name}.yml").write_text("tf32: false\n")
    known = ", ".join(sorted(path.stem for path in (checkout / "configs/machines").glob("*.yml")))
    assert (
        said(recipes.merged_recipe, "witness", "", "c")
        == f"trainer_machine is «c», but configs/machines holds: {known}"
    )
    assert (
        said(recipes.merged_recipe, "witness", "c", "a") == "run_profile is «c», but configs/profiles holds: rehearsal"
    )
    assert recipes.merged_recipe("witness", "", "a")["tf32"] is False
    (checkout / "configs/machines/a.yml").write_text("lora_r: 8\n")
    recipes = AgentRecipes(checkout, Agents(checkout), {})
    assert "configs/machines/a.yml, line 1: «lora_r» decides what is learnt" in said(
        recipes.merged_recipe, "witness", "", "a"
    )
    assert (
        recipes.merged_recipe("witness", "rehearsal", "a")["lora_r"] == 64
    )  # a profile says everything about its machine


def test_the_layers_of_a_recipe_lie_over_each_other(checkout, tmp_path):
    (checkout / "configs/agents/witness.yml").write_text(
        "seed: 1\nlora_alpha: 1\nlora_dropout: 0.1\nweight_decay: 0.1\n"
    )
    (checkout / "configs/machines/m.yml").write_text("tf32: false\nlogging_steps: 7\n")
    recipes = AgentRecipes(checkout, Agents(checkout), {"lora_alpha": 2, "lora_dropout": 0.2, "logging_steps": 8})
    keys = recipes.merged_recipe("witness", "", "m", {"lora_dropout": 0.3})
    names = ("seed", "lora_alpha", "lora_dropout", "weight_decay", "tf32", "logging_steps", "max_grad_norm")
    assert [keys[name] for name in names] == [1, 2, 0.3, 0.1, False, 8, 1.0]


def test_one_kind_of_mistake_is_told_before_the_next(checkout, tmp_path):
    wrong = {"sead": 1, "lora_r": 0, "base_model": "Acme/Tiny", "model_revision": None}
    for known, first in (("sead", "knows no key"), ("lora_r", "must be above 0"), ("base_model", "model_revision")):
        words = said(AgentRecipes(checkout, Agents(checkout), wrong).merged_recipe, "witness", "", "")
        assert first in words
        assert "\n" not in words
        del wrong[known]


@pytest.mark.parametrize("slip", [{"optimizer": "adamww"}, {"num_epochs": "few"}, {"tf32": "yes, please"}])
def test_a_slip_in_what_a_rehearsal_replaces_is_found_in_the_rehearsal(checkout, tmp_path, slip):
    [key] = slip
    path = checkout / "configs/agents/witness.yml"
    path.write_text(json.dumps(slip))
    assert f"configs/agents/witness.yml, line 1: «{key}: " in said(
        AgentRecipes(checkout, Agents(checkout), {}).merged_recipe, "witness", "rehearsal", ""
    )


def test_a_slip_in_a_rehearsal_is_told_once(checkout, tmp_path):
    (checkout / "configs/agents/witness.yml").write_text("lora_dropout: 5\n")
    words = said(AgentRecipes(checkout, Agents(checkout), {}).merged_recipe, "witness", "rehearsal", "")
    assert len(words.splitlines()) == 1


# --- what a recipe says


def test_unknown_profile_and_override_are_errors(make, data):
    data()
    with pytest.raises(UserError, match=r"run_profile is «rehersal», but configs/profiles holds: rehearsal"):
        make(trainers=[Trainer("here", "rehersal", datasets_dir=str(data.folder))])
    with pytest.raises(UserError, match=r"-e '.*': Axolotl knows no key «epochs»"):
        make(recipe={"epochs": 3})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("sequence_len", None, "the recipe has no «sequence_len»; every run needs it"),
        ("lora_r", None, "the recipe has no «lora_r»; every run needs it"),
        ("sequence_len", 0, "«sequence_len: 0» must be above 0"),
        ("micro_batch_size", 0, "«micro_batch_size: 0» must be above 0"),
        ("gradient_accumulation_steps", -1, "«gradient_accumulation_steps: -1» must be above 0"),
        ("val_set_size", 1.0, "«val_set_size: 1.0» must be a share from 0 to below 1"),
        ("wandb_project", "team/project", "«wandb_project: team/project» must have no / "),
        ("lora_target_modules", [], "«lora_target_modules» names no module"),
    ],
)
def test_values_that_make_no_run(make, data, key, value, said):
    data()
    with pytest.raises(UserError, match=re.escape(said)):
        make(recipe={key: value})


@pytest.mark.parametrize(
    "key", ["gradient_accumulation_steps", "val_set_size", "max_steps", "warmup_steps", "datasets"]
)
def test_keys_that_may_be_removed(make, data, key):
    data()
    steps = 12 if key == "gradient_accumulation_steps" else 3
    assert one(make(recipe={key: None})).estimate.steps == steps


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (
            {"base_model": "Acme/Tiny"},
            r"is another model than the one whose «model_revision» stands in configs/base.yml",
        ),
        ({"base_model": "Acme/Tiny", "model_revision": None}, "needs a «model_revision»"),
        ({"model_revision": None}, "needs a «model_revision»"),
        ({"base_model": "~/model"}, "give its absolute path on the trainer"),
        ({"base_model": "./model"}, "give its absolute path on the trainer"),
    ],
)
def test_a_base_model_is_pinned_or_a_folder(make, data, recipe, words):
    data()
    with pytest.raises(UserError, match=words):
        make(recipe=recipe)


def test_a_folder_and_another_commit_are_fine(make, data):
    data()
    assert "model_revision" not in make(recipe={"base_model": "/models/mine"}).runs[0].recipe
    assert make(recipe={"model_revision": "abc0" * 10}).runs[0].recipe["model_revision"] == "abc0" * 10
    own = {"base_model": "Acme/Tiny", "model_revision": "abc0" * 10}
    assert make(recipe=own).runs[0].recipe["base_model"] == "Acme/Tiny"


def test_a_rehearsals_model_is_made_and_needs_no_commit(checkout, tmp_path):
    recipes = AgentRecipes(checkout, Agents(checkout), {"model_revision": "abc0" * 10})
    assert recipes.merged_recipe("witness", "rehearsal", "")["model_revision"] == "abc0" * 10
    folder = AgentRecipes(checkout, Agents(checkout), {"base_model": "/models/mine", "model_revision": "abc0" * 10})
    assert "model_revision" not in folder.merged_recipe("witness", "", "")
    assert folder.merged_recipe("witness", "rehearsal", "")["model_revision"] == "abc0" * 10


# --- files that it names


def test_deepspeed_needs_its_package_and_its_file_is_read_here(make, data, tmp_path, monkeypatch):
    data()
    config = {"zero_optimization": {"stage": 3}}
    with pytest.raises(UserError, match=r"«deepspeed» needs a package that requirements/trainer-cuda.txt does not pin"):
        make(recipe={"deepspeed": config})
    monkeypatch.setattr(recipe, "pinned_version", lambda lock, package: "0.19.0")
    plain = one(make()).run_id
    assert one(make(recipe={"deepspeed": config})).recipe["deepspeed"] == config
    path = tmp_path / "zero3.json"
    path.write_text(json.dumps(config))
    run = one(make(recipe={"deepspeed": str(path)}))
    assert (run.recipe["deepspeed"], run.run_id) == (config, plain)
    with pytest.raises(
        UserError, match=r"«deepspeed: no.json» must name a JSON file, from the checkout on: .*/no.json"
    ):
        make(recipe={"deepspeed": "no.json"})


def test_deepspeed_is_looked_for_in_the_lock_that_the_other_one_is_made_of(checkout, tmp_path):
    config = {"zero_optimization": {"stage": 2}}
    recipes = AgentRecipes(checkout, Agents(checkout), {"deepspeed": config})
    for profile in ("rehearsal", ""):
        assert said(recipes.merged_recipe, "witness", profile, "") == (
            "«deepspeed» needs a package that requirements/trainer-cuda.txt does not pin: add a line «deepspeed» to "
            "requirements/trainer-cuda.in, then make lock; or use fsdp_config, which needs nothing more"
        )
    with (checkout / "requirements/trainer-cuda.txt").open("a") as file:
        file.write("deepspeed==0.19.0\n")
    for profile in ("rehearsal", ""):
        assert recipes.merged_recipe("witness", profile, "")["deepspeed"] == config


def test_a_deepspeed_file_that_cannot_be_read(checkout, tmp_path):
    with (checkout / "requirements/trainer-cuda.txt").open("a") as file:
        file.write("deepspeed==0.19.0\n")
    recipes = AgentRecipes(checkout, Agents(checkout), {"deepspeed": "zero.json"})
    path = checkout / "zero.json"
    for content in (None, "{"):
        if content:
            path.write_text(content)
        words = said(recipes.merged_recipe, "witness", "", "")
        assert words.startswith(f"«deepspeed: zero.json» must name a JSON file, from the checkout on: {path}: ")
    path.write_text('{"stage": "α"}')
    assert recipes.merged_recipe("witness", "", "")["deepspeed"] == {"stage": "α"}


def test_a_template_in_a_file_is_read_here(make, data, tmp_path):
    data()
    path = tmp_path / "mine.jinja"
    path.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    [from_file] = make(recipe={"chat_template": "jinja", "chat_template_jinja": str(path)}).runs
    [written] = make(recipe={"chat_template": "jinja", "chat_template_jinja": path.read_text()}).runs
    assert from_file.recipe["chat_template_jinja"] == path.read_text()
    assert from_file.run_id == written.run_id
