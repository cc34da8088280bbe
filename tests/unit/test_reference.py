"""The reference in docs/ is what the code says, and the code says all that there is."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from ansible.module_utils.lora_forge.controller import display
from ansible.module_utils.lora_forge.planning import launch, options
from ansible.plugins.loader import fragment_loader
from ansible.utils.plugin_docs import get_docstring

ROOT = pathlib.Path(__file__).resolve().parents[2]
ACTIONS = sorted((ROOT / "library/actions").glob("*.py"))
PLUGINS = {path.stem: path for path in (ROOT / "action_plugins").glob("*.py") if not path.stem.startswith("on_")}
PASSED_ON = {"fetch_model": {"wait", "since"}}  # to base_model, all but these


def load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load("docs/make_reference.py")


def documented(name: str) -> dict[str, Any]:
    """Give the options of a module or an action, as ansible-doc has them."""
    fragment_loader.add_directory(str(ROOT / "doc_fragments"))
    path = next(path for path in (ROOT / f"library/{name}.py", ROOT / f"library/actions/{name}.py") if path.exists())
    return get_docstring(str(path), fragment_loader, is_module=True)[0]["options"]


# --- the pages ------------------------------------------------------------------------------------------------------


def test_the_pages_are_what_the_code_says() -> None:
    folder = ROOT / "docs/reference"
    kept = {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*.md")}
    made = reference.pages()
    stale = sorted(name for name in kept.keys() | made.keys() if kept.get(name) != made.get(name))
    assert not stale, f"docs/reference/ is not what the code says ({', '.join(stale)}): run make reference"


def test_a_page_of_what_is_gone_goes_too(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "pages", lambda: {"modules/here.md": "here\n", "options.md": "all\n"})
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/gone.md").write_text("gone\n")
    reference.main(str(tmp_path))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.md")) == [
        "modules/here.md",
        "options.md",
    ]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("As O(state=present) says, or V(ready).", "As `state=present` says, or `ready`."),
        ("The RV(mark) of C(<root>/env), by E(HF_TOKEN)", "The `mark` of `<root>/env`, by `HF_TOKEN`"),
        ("B(never) I(twice)", "**never** *twice*"),
        ("See L(the page, https://example.org/a) or U(https://example.org)", "See [the page](https://example.org/a) or "
         "<https://example.org>"),
        ("Asks M(watch) and M(ansible.builtin.fail)", "Asks [`watch`](watch.md) and `ansible.builtin.fail`"),
        ("pod_* in <root>, a|b, LORA_FORGE_RUN", "pod\\_\\* in &lt;root>, a\\|b, LORA_FORGE_RUN"),
        ("C(a (b) c) of RAM (GB)", "`a (b) c` of RAM (GB)"),
        (["One.", "Two\n  more."], "One.<br>Two more."),
    ],
)  # fmt: skip
def test_ansibles_markup_becomes_markdown(text: Any, written: str) -> None:
    assert reference.markdown(text, ["watch"]) == written


# --- modules and actions --------------------------------------------------------------------------------------------


def test_every_action_is_documented_once() -> None:
    modules = {path.stem for path in (ROOT / "library").glob("*.py")}
    actions = {path.stem for path in ACTIONS}
    assert not modules & actions
    assert actions == PLUGINS.keys() - modules


@pytest.mark.parametrize("path", ACTIONS, ids=lambda path: path.stem)
def test_documentation_of_an_action_is_no_program(path: pathlib.Path) -> None:
    """Without an interpreter line Ansible refuses to run it on a host, where the action is not found."""
    text = path.read_text(encoding="utf-8")
    assert text.startswith('"""')
    body = ast.parse(text).body
    assert [type(node) for node in body] == [ast.Expr, ast.Assign, ast.Assign, ast.Assign]
    doc, examples, values, _ = get_docstring(str(path), _fragments(), is_module=True)
    assert doc["module"] == path.stem
    assert f"{path.stem}:" in examples
    for name, spec in doc["options"].items():
        assert {"description", "type"} <= spec.keys(), name
        assert not (spec.get("required") and "default" in spec), name
    for name, spec in values.items():
        assert {"description", "returned", "type", "sample"} <= spec.keys(), name


def _fragments() -> Any:
    fragment_loader.add_directory(str(ROOT / "doc_fragments"))
    return fragment_loader


def test_ansible_runs_no_documentation_as_a_module(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "ansible", "adhoc", "localhost", "-m", "fail_again"]
    environ = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "ANSIBLE_LIBRARY": str(ROOT / "library"),
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode != 0
    assert "missing interpreter line" in done.stdout


def keys_read(tree: ast.AST, mapping: str) -> Iterator[tuple[str, bool]]:
    """List what is read of a mapping by its name, and whether it has to be there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and _is(node.value, mapping) and isinstance(node.slice, ast.Constant):
            yield node.slice.value, True
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is(node.func.value, mapping):
            if node.func.attr in ("get", "pop") and isinstance(node.args[0], ast.Constant):
                yield node.args[0].value, node.func.attr == "pop" and len(node.args) == 1
        elif (
            isinstance(node, ast.Compare) and isinstance(node.left, ast.Constant) and _is(node.comparators[0], mapping)
        ):
            yield node.left.value, False
        elif isinstance(node, (ast.DictComp, ast.GeneratorExp, ast.SetComp)):
            loop = node.generators[0]
            inner = [one for one in ast.walk(node) if isinstance(one, ast.Subscript) and _is(one.value, mapping)]
            if inner and isinstance(loop.iter, ast.Tuple):
                yield from ((one.value, not loop.ifs) for one in loop.iter.elts if isinstance(one, ast.Constant))


def _is(node: ast.expr, name: str) -> bool:
    """Tell whether something is a name, or that attribute of ``self``."""
    if isinstance(node, ast.Attribute):
        return node.attr == name and _is(node.value, "self")
    return isinstance(node, ast.Name) and node.id == name


def handed_on(tree: ast.AST) -> Iterator[str]:
    """List the options that an action takes for others, which it hands all of its own to."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        given = node.args[-1] if node.args else None
        added: set[str] = set()
        while isinstance(given, ast.BinOp):
            if isinstance(given.right, ast.Dict):
                added |= {key.value for key in given.right.keys if isinstance(key, ast.Constant)}
            given = given.left
        if given is None or not _is(given, "args"):
            continue
        if node.func.attr == "run_action":
            assert isinstance(node.args[0], ast.Constant)
            yield from documented(node.args[0].value).keys() - added - {"run", "others", "awaited"}
        elif node.func.attr == "from_dict":
            yield from launch.TrainerOptions.__dataclass_fields__.keys() - added - {"leader"}  # of the other host


@pytest.mark.parametrize("name", [path.stem for path in ACTIONS])
def test_every_option_that_an_action_reads_is_documented(name: str) -> None:
    tree = ast.parse(PLUGINS[name].read_text(encoding="utf-8"))
    read = list(keys_read(tree, "args"))
    names = {option for option, _ in read} | set(handed_on(tree)) | {"common"}
    if name in PASSED_ON:
        names |= documented("base_model").keys() - PASSED_ON[name]
    if name == "show":
        names |= inspect.signature(display.show).parameters.keys() - {"host", "screen"}  # which the plugins give it
    told = documented(name)
    assert told.keys() == names
    loose = {option for option, needed in read if not needed}
    assert not [option for option in sorted(loose) if told[option].get("required")]


def test_the_options_of_a_webhook_are_documented() -> None:
    tree = ast.parse((ROOT / "module_utils/lora_forge/controller/notify.py").read_text(encoding="utf-8"))
    read = dict(keys_read(tree, "options"))
    told = documented("watch")["notify"]["suboptions"]
    assert {name: spec.get("required", False) for name, spec in told.items()} == read


def test_the_options_of_a_trainer_are_documented() -> None:
    read = {name for name, _ in keys_read(ast.parse(PLUGINS["provision"].read_text(encoding="utf-8")), "given")}
    assert documented("provision")["trainer"]["suboptions"].keys() == read


# --- options and the environment ------------------------------------------------------------------------------------

PLAIN = reference.plain_options()
FILES = sorted([*ROOT.glob("playbooks/*.yml"), *ROOT.glob("roles/*/tasks/*.yml"), *ROOT.glob("roles/*/vars/*.yml"),
                *ROOT.glob("roles/*/defaults/*.yml")])  # fmt: skip


def test_every_option_stands_on_the_page_once() -> None:
    lines = reference.options_page().splitlines()
    rows = [line for line in lines if line.startswith("| `") and len(re.findall(r"(?<!\\)\|", line)) == 6]
    shown = [line.split("`")[1] for line in rows]
    assert sorted(shown) == sorted(options.read_specs(ROOT).keys() | PLAIN.keys())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_playbooks_and_roles_take_of_the_user_is_an_option(path: pathlib.Path) -> None:
    """What need not be set is the user's, but for what our own plays, roles or Ansible itself set."""
    asked = reference.asked_for(reference.read_yaml(str(path.relative_to(ROOT))))
    known = options.read_specs(ROOT).keys() | PLAIN.keys() | options.read_internal_names(ROOT)
    assert sorted(name for name in asked - known if not name.startswith(("ansible_", "__"))) == []


def test_options_that_nobody_reads_are_none() -> None:
    read = reference.readers()
    assert sorted(name for name in [*PLAIN, *options.read_specs(ROOT)] if name not in read) == []


def test_host_variables_of_the_plan_are_options() -> None:
    known = options.read_specs(ROOT).keys() | PLAIN.keys()
    assert set(reference.host_variables()) - known == {"inventory_dir"}  # Ansible's


def test_a_default_of_the_command_is_that_of_its_readers() -> None:
    """The list is held against the literal after ``| default``; what is omitted or computed there has none here."""
    found: dict[str, list[Any]] = {}
    for path in FILES:
        for tree in reference.expressions(reference.read_yaml(str(path.relative_to(ROOT)))):
            for node in tree.find_all(reference.nodes.Filter):
                if node.name == "default" and isinstance(node.node, reference.nodes.Name) and node.args:
                    literal = isinstance(node.args[0], reference.nodes.Literal)
                    found.setdefault(node.node.name, []).append(node.args[0].as_const() if literal else None)
    for name, spec in PLAIN.items():
        if "default" in spec:
            assert set(map(str, found[name])) == {str(spec["default"])}, name


def test_playbooks_that_need_no_plan_are_told_from_those_that_do() -> None:
    read = reference.readers()
    assert read["confirm"] == {"reap"}
    assert read["lines"] == read["run_log_lines"] == {"logs"}  # the former by a default of the role's
    assert read["sweep"] == {"sweep"}
    assert "train" in read["detach"]
    assert not read["recipe"] & {"promote", "reap", "release", "report", "status"}


def test_every_variable_of_the_environment_is_told_of() -> None:
    told = {name for names in reference.ENVIRONMENT.values() for name in names}
    assert sorted(reference.environment_read().keys() - told - reference.NOT_THE_USERS) == []
    folders = ("inventory_plugins", "library", "module_utils", "roles")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yml")]
    words = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    assert sorted(name for name in told if name not in words) == []
