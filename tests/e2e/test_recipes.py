"""Recipes, the project's own and those that people bring, before the pinned Axolotl's own validation."""

from __future__ import annotations

import itertools
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from ansible.module_utils.lora_forge.planning import recipe, validation
from ansible.module_utils.lora_forge.planning.agent_recipes import AgentRecipes
from ansible.module_utils.lora_forge.planning.agents import Agents
from brought import brought
from planned import planned_run

from .conftest import CONVERGE, ROOT, Checkout, eventually

A100 = {"bf16": True, "fp8": False, "tf32": True, "n_gpu": 1, "compute_capability": "sm_80"}
PATHS = {"output_dir": "/run/output", "datasets": [{"path": "/data/x.jsonl", "type": "chat_template"}]}


def validate(environment: pathlib.Path, recipes: list[dict[str, Any]]) -> list[str]:
    """Return Axolotl's objections to each recipe; an empty one for a recipe that it accepts."""
    asked = [validation.Question(planned_run(), one, A100, "") for one in recipes]
    answers = validation.ask_axolotl(environment, ROOT, asked, CONVERGE)["answers"]
    return ["\n".join(answer["problems"]) for answer in answers]


def own(home: pathlib.Path) -> list[dict[str, Any]]:
    """Return the recipes of the seven agents, and two that are wrong."""
    merged = AgentRecipes(ROOT, Agents(ROOT), {})
    recipes = [merged.merged_recipe(agent, "", "") | PATHS for agent in merged.agents.names]
    wrong = recipes[0] | {"load_in_8bit": True, "load_in_4bit": False}
    misspelt = recipes[0] | {"plugins": ["axolotl.integrations.ligr.LigerPlugin"]}
    return [*recipes, wrong, misspelt]


TAKEN = [one for one in brought() if not one.refused]


def taken(home: pathlib.Path) -> list[dict[str, Any]]:
    """Return the recipes that people bring: as they are planned, and then without the rules between keys."""
    asked = [
        question
        for number, one in enumerate(TAKEN)
        for question in validation.questions(one.planned(home / str(number)).runs, [], "")
    ]
    assert len(asked) == len(TAKEN)
    return [one.recipe for one in asked] + [one.plain() | PATHS for one in TAKEN]


MACHINES = sorted(path.stem for path in (ROOT / "configs/machines").glob("*.yml"))


def machines(home: pathlib.Path) -> list[dict[str, Any]]:
    """Return a recipe on every machine class, as a run is given it: with the plugins that its keys need."""
    merged = AgentRecipes(ROOT, Agents(ROOT), {})
    return [recipe.with_plugins(merged.merged_recipe("witness", "", name)) | PATHS for name in MACHINES]


@pytest.fixture(scope="module")
def said(environment: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Return Axolotl's objections to all of them, asked at once: each time it is imported anew."""
    recipes = {ask.__name__: ask(tmp_path_factory.mktemp(ask.__name__)) for ask in (own, taken, machines)}
    answers = iter(validate(environment, [one for asked in recipes.values() for one in asked]))
    return {name: list(itertools.islice(answers, len(asked))) for name, asked in recipes.items()}


def test_all_seven_pass_and_a_wrong_one_does_not(said: dict[str, list[str]]) -> None:
    *answers, refusal, unknown = said["own"]
    assert answers == [""] * 7
    assert refusal == "Can't load qlora in 8bit"
    assert "axolotl.integrations.ligr" in unknown


def test_what_asks_axolotl_ends_with_who_wants_to_know(environment: pathlib.Path) -> None:
    """Ctrl-C ends Ansible's worker, which has no time to end others."""
    code = (
        "import os, subprocess, sys\n"
        "command = [*sys.argv[1:], str(os.getpid()), '600']\n"
        "child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)\n"
        "print(child.pid, flush=True)\nchild.wait()\n"
    )
    program = str(ROOT / validation.PROGRAM)
    with subprocess.Popen([sys.executable, "-c", code, str(environment), program], stdout=subprocess.PIPE) as asking:
        assert asking.stdout
        child = pathlib.Path(f"/proc/{asking.stdout.readline().decode().strip()}")
        asking.kill()
    eventually(lambda: not (child / "cmdline").exists() or not (child / "cmdline").read_bytes(), "it ends, too")


def test_what_the_plan_takes_axolotl_takes(said: dict[str, list[str]]) -> None:
    """And what the rules between keys put right, it refuses without them."""
    planned, plain = said["taken"][: len(TAKEN)], said["taken"][len(TAKEN) :]
    assert dict(zip((one.name for one in TAKEN), planned)) == {one.name: "" for one in TAKEN}
    for one, objections in zip(TAKEN, plain):
        assert one.plainly in objections, one.name
        assert bool(one.plainly) == bool(objections), f"{one.name}: {objections}"


@pytest.mark.soak
def test_the_plan_asks_axolotl_once_and_says_where_a_refused_key_stands(checkout: Checkout) -> None:
    agent, asks = checkout.home / "configs/agents/crew.yml", "Axolotl checks what is new in the recipes of"

    def planned() -> tuple[int, str]:
        options = ("-i", "gpu-1,", "-e", "role=crew,mayor", "-e", "datasets_dir=examples/datasets")
        code, text = checkout.play(*options, playbook="playbooks/plan.yml")
        return code, " ".join(text.split())

    agent.write_text("# as somebody brings it\nactivation_offloading: true\ngradient_checkpointing: false\n")
    code, text = planned()
    assert code != 0
    assert f"{asks} crew, mayor" in text
    assert (
        "Axolotl refuses the recipe of crew: activation_offloading requires gradient_checkpointing "
        "(activation_offloading: configs/agents/crew.yml, line 2; "
        "gradient_checkpointing: configs/agents/crew.yml, line 3)"
    ) in text
    assert not (checkout.home / "output/plan.json").exists()
    agent.write_text("# as it should be\nactivation_offloading: true\n")
    code, text = planned()
    assert code == 0, text
    assert f"{asks} crew, which" in text  # the mayor's was taken the first time
    code, text = planned()
    assert code == 0, text
    assert asks not in text


def test_axolotl_takes_every_machine_class(said: dict[str, list[str]]) -> None:
    assert dict(zip(MACHINES, said["machines"])) == dict.fromkeys(MACHINES, "")


STRANGER = """
import importlib, pathlib, sys
from lora_forge_axolotl import LoraForgePlugin

for group in ("axolotl.plugins", "axolotl.model_support", "of.something.else"):
    pathlib.Path(sys.argv[1]).write_text(f"[{group}]\\nmine = stranger:Plugin\\n")
    importlib.invalidate_caches()
    try:
        LoraForgePlugin().register({})
        print("registered")
    except RuntimeError as error:
        print(error)
"""


def test_a_package_that_brings_a_plugin_is_refused(environment: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Axolotl loads what a package's entry points name, without a word in the recipe; our plugin ends that."""
    (tmp_path / "stranger-1.dist-info").mkdir()
    (tmp_path / "stranger-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1\n")
    path = os.pathsep.join(map(str, (tmp_path, ROOT / "roles/run/files", ROOT / "module_utils/lora_forge")))
    done = subprocess.run(
        [str(environment), "-c", STRANGER, str(tmp_path / "stranger-1.dist-info/entry_points.txt")],
        env={**os.environ, "PYTHONPATH": path, "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=CONVERGE,
    )  # fmt: skip
    said = done.stdout.splitlines()[-3:]
    assert said[0] == said[1], done.stderr[-3000:]
    assert said[0].startswith("Axolotl loads stranger:Plugin by itself")
    assert said[2] == "registered"
