"""Every agent's merged production recipe passes the pinned Axolotl's own validation."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess

from ansible.module_utils.lora_forge import plan, recipe

from .conftest import CONVERGE, ROOT


def validate(environment: pathlib.Path, recipes: list[dict[str, object]]) -> list[str]:
    """What Axolotl says against each recipe; nothing of one that it takes."""
    quiet = {"AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(environment), str(ROOT / "tests/e2e/validate_recipes.py")],
        input=json.dumps(recipes), env={**os.environ, **quiet}, capture_output=True, text=True, timeout=CONVERGE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_all_seven_pass_and_a_wrong_one_does_not(environment: pathlib.Path) -> None:
    planner = plan.Planner(ROOT, ROOT / "output", {})
    paths = {"output_dir": "/run/output", "datasets": [{"path": "/data/x.jsonl", "type": "chat_template"}]}
    recipes = [planner.merged(agent, "", "") | paths for agent in plan.AGENTS]
    wrong = recipes[0] | {"load_in_8bit": True, "load_in_4bit": False}
    *answers, refusal = validate(environment, [*recipes, wrong])
    assert answers == [""] * 7
    assert "load qlora in 8bit" in refusal


def test_axolotl_takes_every_machine_class(environment: pathlib.Path) -> None:
    """As a run is given it, with the plugins that its keys need."""
    planner = plan.Planner(ROOT, ROOT / "output", {})
    paths = {"output_dir": "/run/output", "datasets": [{"path": "/data/x.jsonl", "type": "chat_template"}]}
    names = sorted(path.stem for path in (ROOT / "configs/machines").glob("*.yml"))
    recipes = [recipe.with_plugins(planner.merged("witness", "", name)) | paths for name in names]
    assert dict(zip(names, validate(environment, recipes))) == dict.fromkeys(names, "")


def test_a_package_that_brings_a_plugin_is_refused(environment: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Axolotl loads what a package's entry points name, without a word in the recipe; our plugin ends that."""
    (tmp_path / "stranger-1.dist-info").mkdir()
    (tmp_path / "stranger-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1\n")
    points = tmp_path / "stranger-1.dist-info/entry_points.txt"
    code = "from lora_forge_axolotl import LoraForgePlugin; LoraForgePlugin().register({})"
    path = os.pathsep.join(map(str, (tmp_path, ROOT / "roles/run/files", ROOT / "module_utils/lora_forge")))
    said = []
    for group in ("axolotl.plugins", "axolotl.model_support", "of.something.else"):
        points.write_text(f"[{group}]\nmine = stranger:Plugin\n")
        done = subprocess.run(
            [str(environment), "-c", code],
            env={**os.environ, "PYTHONPATH": path, "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True, text=True, timeout=CONVERGE,
        )  # fmt: skip
        said.append("registered" if done.returncode == 0 else done.stderr.splitlines()[-1])
    assert said[0] == said[1]
    assert said[0].startswith("RuntimeError: Axolotl loads stranger:Plugin by itself")
    assert said[2] == "registered"
