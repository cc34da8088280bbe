"""What is written twice on purpose stays in step: documentation and argument specs, specs and defaults."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "library").glob("*.py"))
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())


def load(path: pathlib.Path):
    spec = importlib.util.spec_from_file_location(f"library_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_documentation_is_the_argument_spec(path: pathlib.Path) -> None:
    module = load(path)
    documented = yaml.safe_load(module.DOCUMENTATION)["options"]
    assert documented.keys() == module.ARGUMENTS.keys()
    for name, spec in module.ARGUMENTS.items():
        for key in ("type", "default", "choices", "required", "elements"):
            assert documented[name].get(key) == spec.get(key), f"{name}: {key}"
    assert yaml.safe_load(module.DOCUMENTATION)["module"] == path.stem
    assert yaml.safe_load(module.EXAMPLES)
    for name, entry in yaml.safe_load(module.RETURN).items():
        assert {"description", "returned", "type", "sample"} <= entry.keys(), name


def test_ansible_doc_reads_every_module() -> None:
    command = [str(ROOT / ".venv/bin/ansible-doc"), "-t", "module", "-M", "library", *(path.stem for path in MODULES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "training_run" in done.stdout


@pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
def test_argument_specs_are_the_defaults(role: pathlib.Path) -> None:
    options = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text())
    assert {name: option["default"] for name, option in options.items()} == defaults


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("roles/*/tasks/*.yml")), ids=lambda path: f"{path.parts[-3]}-{path.stem}"
)
def test_task_files_are_short(path: pathlib.Path) -> None:
    assert len(path.read_text().splitlines()) <= 80


@pytest.mark.parametrize("path", sorted((ROOT / "configs/agents").glob("*.yml")), ids=lambda path: path.stem)
def test_every_override_has_its_reason(path: pathlib.Path) -> None:
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", sorted((ROOT / "playbooks").glob("*.yml")), ids=lambda path: path.stem)
def test_playbooks_parse(path: pathlib.Path) -> None:
    command = [str(ROOT / ".venv/bin/ansible-playbook"), "--syntax-check", str(path), "-e", "role=witness"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.parametrize(
    ("inventory", "trainer"),
    [
        ("inventory/ssh.example.yml", "gpu-1.example.org"),
        ("inventory/this-gpu.example.yml", "localhost"),
        ("gpu.example.org,", "gpu.example.org"),
    ],
)
def test_the_example_inventories_plan(inventory: str, trainer: str, tmp_path: pathlib.Path) -> None:
    command = [str(ROOT / ".venv/bin/ansible-playbook"), "-i", inventory, "playbooks/plan.yml", "-e", "role=witness"]
    options = ["-e", f"datasets_dir={ROOT}/examples/datasets", "-e", f"output_dir={tmp_path}"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    (run,) = json.loads((tmp_path / "plan.json").read_text())["runs"]
    assert (run["trainer"], run["rehearsal"], run["estimate"]["memory_gib"]) == (trainer, False, 23.8)
