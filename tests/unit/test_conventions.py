"""What is written twice on purpose stays in step: documentation and argument specs, specs and defaults."""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from ansible.module_utils.lora_forge.planned_run import TRAINER_ROOT
from ansible.plugins.loader import fragment_loader
from ansible.utils.plugin_docs import get_docstring

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "library").glob("*.py"))
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())


def load(path: pathlib.Path):
    spec = importlib.util.spec_from_file_location(f"library_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documentation(path: pathlib.Path) -> dict[str, Any]:
    """Give the documentation of a module as ansible-doc has it, with what it takes from doc_fragments/."""
    fragment_loader.add_directory(str(ROOT / "doc_fragments"))
    return get_docstring(str(path), fragment_loader, is_module=True)[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_documentation_is_the_argument_spec(path: pathlib.Path) -> None:
    module = load(path)
    documented = documentation(path)["options"]
    assert documented.keys() == module.ARGUMENTS.keys()
    for name, spec in module.ARGUMENTS.items():
        for key in ("type", "default", "choices", "required", "elements"):
            assert documented[name].get(key) == spec.get(key), f"{name}: {key}"
    assert documentation(path)["module"] == path.stem
    assert yaml.safe_load(module.EXAMPLES)
    for name, entry in yaml.safe_load(module.RETURN).items():
        assert {"description", "returned", "type", "sample"} <= entry.keys(), name


def entry_points(role: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Give the options of each entry point of a role."""
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    return {entry: spec["options"] for entry, spec in specs.items()}


@pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
def test_argument_specs_are_the_defaults(role: pathlib.Path) -> None:
    """A default that is computed stands among the defaults alone: in specs Ansible would compute it for every call."""
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text())
    options = {name: spec for entry in entry_points(role).values() for name, spec in entry.items()}
    assert {name for name in options if name.startswith(f"{role.name}_")} == defaults.keys()
    plain = {name: value for name, value in defaults.items() if "{{" not in str(value)}
    assert {name: spec["default"] for name, spec in options.items() if "default" in spec} == plain


def test_a_trainers_root_is_the_same_in_yaml_and_in_python() -> None:
    defaults = yaml.safe_load((ROOT / "roles/trainer/defaults/main.yml").read_text())
    assert defaults["trainer_root"] == TRAINER_ROOT


@pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
def test_an_option_is_the_same_in_all_entry_points(role: pathlib.Path) -> None:
    entries = entry_points(role)
    for options in entries.values():
        assert options.items() >= {name: spec for name, spec in entries["main"].items() if name in options}.items()


def calls(node: Any) -> Iterator[tuple[str, str]]:
    """List the roles that tasks call, each with the entry point."""
    if isinstance(node, list):
        for item in node:
            yield from calls(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("ansible.builtin.include_role", "ansible.builtin.import_role"):
                yield value["name"], value.get("tasks_from", "main")
            yield from calls(value)


def test_every_entry_point_has_its_options_checked() -> None:
    paths = [*ROOT.glob("playbooks/**/*.yml"), *ROOT.glob("roles/*/tasks/*.yml")]
    called = {call for path in paths for call in calls(yaml.safe_load(path.read_text()))}
    specified = {(role.name, entry) for role in ROLES for entry in entry_points(role)}
    assert called <= specified
    assert specified - called <= {("run", "main")}  # for playbooks of others
    for role, entry in specified:
        assert (ROOT / "roles" / role / "tasks" / f"{entry}.yml").exists()


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("roles/*/tasks/*.yml")), ids=lambda path: f"{path.parts[-3]}-{path.stem}"
)
def test_task_files_are_short(path: pathlib.Path) -> None:
    assert len(path.read_text().splitlines()) <= 80


@pytest.mark.parametrize("path", sorted((ROOT / "configs/agents").glob("*.yml")), ids=lambda path: path.stem)
def test_every_override_has_its_reason(path: pathlib.Path) -> None:
    assert path.read_text().startswith("# ")


def test_every_play_says_its_strategy() -> None:
    """A strategy of the user's own must not take its place: under free, hosts are not grouped, nor errors fatal."""
    for path in sorted((ROOT / "playbooks").glob("*.yml")):
        for play in yaml.safe_load(path.read_text(encoding="utf-8")):
            assert "hosts" not in play or play.get("strategy") in ("linear", "free"), f"{path.name}: {play['name']}"


def test_what_playbooks_use_lies_beside_them() -> None:
    """There Ansible finds it whatever it was told of paths, so that check_command can say what is wrong."""
    for name in ("action_plugins", "callback_plugins", "inventory_plugins", "library", "module_utils", "roles"):
        assert (ROOT / "playbooks" / name).resolve() == ROOT / name
