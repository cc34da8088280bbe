"""Every agent's merged production recipe passes the pinned Axolotl's own validation."""

from __future__ import annotations

import json
import pathlib
import subprocess

from .conftest import CONVERGE, ROOT


def validate(environment: pathlib.Path, recipes: list[dict[str, object]]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(environment), str(ROOT / "tests/e2e/validate_recipes.py")],
        input=json.dumps(recipes),
        env={"PATH": "/usr/bin:/bin", "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "HOME": "/tmp"},
        capture_output=True,
        text=True,
        timeout=CONVERGE,
    )


def merged() -> list[dict[str, object]]:
    from ansible.module_utils.lora_forge import plan

    planner = plan.Planner(ROOT, ROOT / "output", {})
    paths = {"output_dir": "/run/output", "datasets": [{"path": "/data/x.jsonl", "type": "chat_template"}]}
    return [planner.merged(agent, "", "") | paths for agent in plan.AGENTS]


def test_all_seven_pass(environment: pathlib.Path) -> None:
    done = validate(environment, merged())
    assert "valid: 7" in done.stdout, done.stderr[-3000:]


def test_the_check_can_fail(environment: pathlib.Path) -> None:
    done = validate(environment, [merged()[0] | {"load_in_8bit": True, "load_in_4bit": False}])
    assert done.returncode != 0
    assert "valid" not in done.stdout
