"""What is written twice on purpose stays in step: documentation and argument specs, specs and defaults."""

from __future__ import annotations

import importlib.util
import pathlib

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
