"""What may be wrong with a page: each check returns sentences, «file:line: what; what to do», and none for a good page.

The checks run no process and touch no network: a command is held against what it names, by Ansible's own parsers of
command lines, the Makefile, the roles' specs and Axolotl's schema. That it works is for tests/e2e/test_docs.py.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import json
import os
import pathlib
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import jsonschema
import pages
import yaml
from ansible.module_utils.lora_forge.controller import hooks
from ansible.module_utils.lora_forge.planning import options
from ansible.module_utils.lora_forge.planning.agents import Agents
from ansible.module_utils.lora_forge.text import nearest
from ansible.parsing.splitter import parse_kv
from pages import Block, Page

AGENTS = Agents(pages.ROOT).names
LANGUAGES = ("sh", "text", "yaml", "json", "ini", "mermaid", "python", "jinja")
NEEDS = ("a GPU", "an account", "a host of your own")
ELLIPSIS = "…"  # what the reader is to fill in
# Programs of others that a page may tell the reader to run. Of the project's own there is no list: they are looked for.
OTHERS = frozenset(
    "apt cat cd cp curl docker export git grep head jq less ln loginctl ls mkdir mv nvidia-smi pip podman pyenv"
    " python3 rm rsync scontrol scp sed source ssh ssh-keygen ssh-keyscan tail tar tmux touch uv xdg-open".split()
)
ANSIBLE = {
    "ansible": ("ansible.cli.adhoc", "AdHocCLI"),
    "ansible-doc": ("ansible.cli.doc", "DocCLI"),
    "ansible-inventory": ("ansible.cli.inventory", "InventoryCLI"),
    "ansible-playbook": ("ansible.cli.playbook", "PlaybookCLI"),
}
# Where a machine's own paths may begin in an example: the user's disks, and places that every Linux or every pod has.
ANYBODYS = tuple(
    f"/{name}/"
    for name in "data dev etc home/me mnt opt proc run scratch srv start.sh sys tmp usr var workspace".split()
)
# Folders beside an inventory in which files are the user's own, and files that pages have the reader write.
OF_THE_USER = (
    *("inventory/hooks/", "inventory/group_vars/", "inventory/host_vars/"),
    *("configs/groups.yml", "configs/agents/boot.yml"),
)
OF_THE_READER = ("boot", "patrol")  # an agent and a group that pages have the reader make
PASSING_OPTIONS = ("train", "plan", "rehearse-runpod")  # targets whose ARGS go to ansible-playbook
NO_OPTIONS = frozenset(["name", "run_stal_timeout"])  # what looks like one: any name, a slip that a page shows as such
SUFFIXES = "cfg|html|ini|j2|json|jsonl|log|md|png|py|sh|toml|txt|yaml|yml"
OPTION_NAME = re.compile(rf"(?:{'|'.join(options.HOST_VARIABLE_PREFIXES)})\w*[a-z0-9]")
VARIABLE = re.compile(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b")


class Project:
    """What the checkout holds, as far as pages name it.

    Args:
        root: The project's folder.
    """

    def __init__(self, root: pathlib.Path):
        self.root = root

    @functools.cached_property
    def files(self) -> frozenset[str]:
        """Paths of all files of the project, but not of what is made in it."""
        found = set()
        made = ("output", "__pycache__", "node_modules")
        ours = (".ci", ".github")
        for folder, below, names in os.walk(self.root):
            here = pathlib.Path(folder).relative_to(self.root)
            below[:] = [name for name in below if name not in made and (not name.startswith(".") or name in ours)]
            found |= {(here / name).as_posix() for name in names if not name.endswith(".pyc")}
        return frozenset(found)

    @functools.cached_property
    def folders(self) -> frozenset[str]:
        """Paths of all folders with files of the project."""
        return frozenset(parent.as_posix() for file in self.files for parent in pathlib.PurePath(file).parents[:-1])

    @functools.cached_property
    def words(self) -> frozenset[str]:
        """Words of all that is no page and no data: programs, playbooks, configuration. Names of files are words."""
        found = {pathlib.PurePath(file).name for file in self.files}
        for file in self.files:
            path = pathlib.PurePath(file)
            ours = path.name in ("test_docs.py", "page_checks.py")  # they name what does not exist
            if path.suffix in (".py", ".yml", ".sh", ".j2", ".toml", ".cfg", ".in", "") and not ours:
                text = self.read(file)
                found |= set(re.findall(rf"[\w-]+(?:\.(?:{SUFFIXES})\b)?", text)) | set(re.findall(r"\w+", text))
        return frozenset(found)

    @functools.cached_property
    def functions(self) -> frozenset[str]:
        """Names of functions and methods, which a page about the code may name."""
        found = set()
        for file in self.files:
            if file.endswith(".py") and not file.startswith("tests/"):
                tree = ast.parse((self.root / file).read_text(encoding="utf-8"))
                found |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        return frozenset(found)

    @functools.cached_property
    def said(self) -> frozenset[tuple[str, ...]]:
        """All sentences that the project may print, in words, with a NUL for what is filled in."""
        found = set()
        for file in self.files:
            if file == "Makefile" or (file.startswith(("playbooks/", "roles/")) and file.endswith(".yml")):
                found.add(tuple(re.sub(r"(?s)\{\{.*?\}\}|\$\(\w+\)|%d", "\0", self.read(file)).split()))
            elif file.endswith(".py") and file.startswith(("action_plugins/", "library/", "module_utils/", "roles/")):
                for node in ast.walk(ast.parse(self.read(file))):
                    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                    read = [getattr(part, "value", None) if isinstance(part, ast.Constant) else "\0" for part in parts]
                    found.add(tuple("".join(part for part in read if isinstance(part, str)).split()))
        return frozenset(found)

    @functools.cached_property
    def typed(self) -> str:
        """All commands of pages that tests/e2e/test_docs.py runs, and that are to work."""
        blocks = [block for page in pages.read_pages(self.root) for block in page.blocks]
        return "".join(block.text for block in blocks if block.runs == 0)

    @functools.cached_property
    def makefile(self) -> str:
        """The Makefile."""
        return (self.root / "Makefile").read_text(encoding="utf-8")

    @functools.cached_property
    def targets(self) -> frozenset[str]:
        """Make's targets."""
        return frozenset(re.findall(r"^([a-z][a-z0-9-]*):", self.makefile, re.MULTILINE))

    @functools.cached_property
    def recipes(self) -> Mapping[str, str]:
        """What each target of make does."""
        return dict(re.findall(r"^([a-z][a-z0-9-]*):.*\n((?:\t.*\n)*)", self.makefile, re.MULTILINE))

    def read(self, file: str) -> str:
        """Return the text of one of the files."""
        return (self.root / file).read_text(encoding="utf-8", errors="ignore")

    @functools.cached_property
    def make_variables(self) -> frozenset[str]:
        """Variables that the Makefile reads."""
        return frozenset(re.findall(r"\$[({](\w+)", self.makefile))

    @functools.cached_property
    def modules(self) -> frozenset[str]:
        """Names of the project's modules."""
        return frozenset(path.stem for path in self.root.glob("library/*.py"))

    @functools.cached_property
    def plugins(self) -> frozenset[str]:
        """Names of the project's modules and plugins."""
        return self.modules | {path.stem for path in self.root.glob("*_plugins/*.py")}

    def module_options(self, name: str) -> Mapping[str, Any]:
        """Return the options of one of the project's modules.

        Args:
            name: One of ``modules``.
        """
        spec = importlib.util.spec_from_file_location(f"documented_{name}", self.root / f"library/{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.ARGUMENTS

    @functools.cached_property
    def specs(self) -> Mapping[str, Mapping[str, Any]]:
        """What roles and playbooks say of their options."""
        of_playbooks = yaml.safe_load(self.read("playbooks/meta/argument_specs.yml"))["argument_specs"]["main"][
            "options"
        ]
        return {**of_playbooks, **options.read_specs(self.root)}

    @functools.cached_property
    def internal(self) -> frozenset[str]:
        """Variables that the plays set themselves."""
        return options.read_internal_names(self.root)

    @functools.cached_property
    def recipe_keys(self) -> Mapping[str, Any]:
        """Axolotl's keys, and what each takes."""
        return json.loads((self.root / "configs/schema.json").read_text(encoding="utf-8"))

    def exists(self, path: str) -> bool:
        """Tell whether the project has a file or folder; in a path with placeholders, one that fits.

        Args:
            path: From the checkout. ``<agent>``, ``{agent}``, ``*`` and ``…`` stand for anything.
        """
        path = path.removeprefix("./").rstrip("/")
        if not re.search(r"[<{*…]", path):
            return path in self.files or path in self.folders
        escaped = re.escape(re.sub(r"<[^>]*>|\{[^}]*\}|…|\*+", "\0", path)).replace(re.escape("\0"), ".*")
        return any(re.fullmatch(escaped, known) for known in self.files | self.folders)


# --- Blocks


def check_blocks(page: Page, project: Project) -> list[str]:
    """Check that each block says what it is, and each one of commands how it is known to work."""
    found = [(line, "this is code because it is indented; put it between fences") for line in page.indented]
    for block in page.blocks:
        if block.language not in LANGUAGES:
            found.append((block.line, f"a block of «{block.language}»; say what it is: {', '.join(LANGUAGES)}"))
        elif block.language == "sh":
            found += [(block.line, sentence) for sentence in _marker_problems(block, project)]
        elif block.marker.startswith(("run", "tested by", "needs")):
            found.append((block.line, f"«{block.marker}» stands above a block of {block.language}; only sh is run"))
        else:
            found += [(block.line, sentence) for sentence in _configuration_problems(block, project)]
    return _at(page, found)


def _marker_problems(block: Block, project: Project) -> Iterator[str]:
    kind, _, rest = block.marker.partition(": ")
    if block.runs is not None:
        return
    if kind == "needs":
        if rest not in NEEDS:
            yield f"it needs «{rest}»; known is {', '.join(NEEDS)}"
    elif kind == "tested by" and rest:
        tests, names = rest.split(", "), _tested_names(block)
        if missing := [path for path in tests if not project.exists(path)]:
            yield f"it is tested by {', '.join(missing)}, which does not exist"
            return
        untested = [name for name in names if not any(_mentions(project, path, name) for path in tests)]
        idle = [path for path in tests if not any(_mentions(project, path, name) for name in names)]
        if untested:
            yield f"it is tested by {rest}, which does not mention {', '.join(untested)}; name the test that does"
        elif idle:
            yield f"{', '.join(idle)} mentions nothing of it; name the tests that do, and no others"
    else:
        what = (
            f"«{block.marker}» is no kind of block"
            if block.marker
            else "nothing says how these commands are known to work"
        )
        yield f"{what}; put <!-- run -->, <!-- tested by: tests/… --> or <!-- needs: {NEEDS[0]} --> directly above"


def _tested_names(block: Block) -> list[str]:
    """List what a test of a block must mention: playbooks, make's targets, modules, and programs that have none."""
    names = []
    for command in block.commands():
        for words in _parts(command.text):
            program, *rest = _bare(words) or [""]
            if program == "make":
                names += [f"make {word}" for word in rest if re.fullmatch(r"[a-z][a-z0-9-]*", word)]
            elif program == "ansible-playbook":
                names += [pathlib.PurePath(word).name for word in rest if re.fullmatch(r"[\w/-]+\.yml", word) and
                          rest[rest.index(word) - 1] not in ("-i", "--inventory")]  # fmt: skip
            elif program == "ansible" and "-m" in rest[:-1]:
                names.append(rest[rest.index("-m") + 1])
            elif program not in ("", "cd", "export"):
                names.append(program)
    return [*dict.fromkeys(names)]


def _mentions(project: Project, path: str, name: str) -> bool:
    """Tell whether a test names something, itself or by what it shares with others.

    That is the conftest.py beside it, and the files of tests/ that it names. A target of make is named, too, by a
    target that makes it, and by a file that its recipe runs.
    """
    below = {file for file in project.files if file == path or file.startswith(f"{path.rstrip('/')}/")}
    shared = (pathlib.PurePath(path).parent / "conftest.py").as_posix()
    text = "\n".join(map(project.read, sorted({*below, shared} & project.files)))
    if path == "tests/e2e/test_docs.py":
        text += project.typed
    text += "\n".join(project.read(file) for file in re.findall(r"tests/[\w/.-]+\.\w+", text) if file in project.files)
    if not name.startswith("make "):
        return _has(text, name)
    target = name.removeprefix("make ")
    makers = [target]
    for made in makers:  # which grows: make test makes check, which makes unit
        makers += [one for one, recipe in project.recipes.items() if one not in makers and _makes(recipe, made)]
    files = set(re.findall(r"[\w/.-]+\.(?:py|yml|sh)", project.recipes.get(target, ""))) - {"tests/system-packages.sh"}
    return any(re.search(rf"\bmake\b.*(?<![\w-]){maker}(?![\w-])", text) for maker in makers) or any(
        _has(text, file) for file in files
    )


def _makes(recipe: str, target: str) -> bool:
    return any("$(MAKE)" in line and _has(line, target) for line in recipe.splitlines())


def _has(text: str, word: str) -> bool:
    return bool(re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text))


def _configuration_problems(block: Block, project: Project) -> Iterator[str]:
    """Check that YAML and JSON are, and that options in them exist."""
    try:
        if block.language == "json":
            read = [json.loads(block.text)]
        elif block.language == "yaml":
            read = [*yaml.safe_load_all(block.text)]
        else:
            if block.language == "mermaid" and not re.search(
                r"^(flowchart \w+|sequenceDiagram)$", block.text, re.MULTILINE
            ):
                yield "this is no chart that a page has had so far: flowchart or sequenceDiagram"
            return
    except (ValueError, yaml.YAMLError) as error:
        yield f"this is no {block.language.upper()}: {' '.join(str(error).split())}"
        return
    for name, value in _pairs(read, project.plugins) if block.language == "yaml" else ():
        if options.is_checked(name) and name not in project.internal:
            yield from _option_problems(name, value, project)


def _pairs(node: Any, modules: Collection[str]) -> Iterator[tuple[str, Any]]:
    """List names and values of an inventory or of tasks, but not what modules are given."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key not in modules:
                yield str(key), value
                yield from _pairs(value, modules)
    elif isinstance(node, list):
        for value in node:
            yield from _pairs(value, modules)


# --- Commands


def check_commands(page: Page, project: Project) -> list[str]:
    """Check each command of blocks and in backticks: that it parses, and that all it names exists."""
    found = []
    for block in page.blocks:
        for command in block.commands() if block.language == "sh" else ():
            if ELLIPSIS in re.sub(r"(['\"]).*?\1", "", command.text) and block.runs is not None:
                found.append((command.line, f"it is run as it stands, and holds «{ELLIPSIS}»; write it out"))
            if not block.runs:  # what is to fail may name what does not exist
                found += [(command.line, sentence) for sentence in _command_problems(command.text, page, project)]
    bare = [block.line for block in page.blocks if block.language == "sh" and _needs_path(block)]
    if bare and ".venv/bin" not in page.text:
        found.append((bare[0], "nothing says where ansible-playbook is; say once that .venv/bin is on the PATH"))
    for line, code in page.codes:
        if text := _inline_command(re.sub(r"<[a-z_ -]+>", ELLIPSIS, code)):
            found += [(line, sentence) for sentence in _command_problems(text, page, project, inline=True)]
    return _at(page, found)


def _needs_path(block: Block) -> bool:
    return any(words[0] in ANSIBLE for command in block.commands() for words in _parts(command.text))


def _inline_command(code: str) -> str:
    """Make a whole command of what stands in backticks; empty where it is none."""
    first, _, rest = code.partition(" ")
    first = first.removeprefix(".venv/bin/")
    if (first in ANSIBLE or first == "make") and rest:
        return code
    if (first == "train.yml" or re.fullmatch(r"playbooks/\w+\.yml", first)) and rest.startswith("-"):
        return f"ansible-playbook {code}"
    if first in ("-e", "-i", "--check") and rest:
        return f"ansible-playbook {code} train.yml"
    return ""


def _parts(text: str) -> list[list[str]]:
    try:
        return pages.Command(0, text).parts()
    except ValueError:
        return []


def _bare(words: list[str]) -> list[str]:
    """Leave out what stands before the program, and where the program lies in the controller's environment."""
    words = [*words]
    while words and (re.match(r"\w+=", words[0]) or words[0] in ("sudo", "time", "-E")):
        words.pop(0)
    return [words[0].removeprefix(".venv/bin/"), *words[1:]] if words else []


def _command_problems(text: str, page: Page, project: Project, inline: bool = False) -> Iterator[str]:
    try:
        parts = pages.Command(0, text).parts()
    except ValueError as error:
        yield f"bash cannot read «{text}»: {error}"
        return
    if not inline and re.search(r"(?<![<\d])<[a-z_]+>", text):
        yield f"«{text}»: bash takes <…> as a redirection; write {ELLIPSIS}, or an example"
        return
    if inline and any(part[:1] != parts[0][:1] for part in parts[1:]):
        parts = [_unsplit(text)]  # run_notify_form=json|slack: a choice, and no pipe
    for words in parts:
        program, *rest = _bare(words) or [""]
        if program == "make":
            yield from _make_problems(rest, page, project)
        elif program in ANSIBLE:
            yield from _ansible_problems(program, rest, page, project, inline)
        elif program == "export":
            continue  # names of variables are looked at wherever they stand
        elif "/" in program and not program.startswith(("/", "~", "$")):
            if not project.exists(program) and not _is_made(program):
                yield f"there is no program {program}"
        elif program and program not in OTHERS and program not in ("python", ELLIPSIS):
            alike = nearest(program, OTHERS | ANSIBLE.keys())
            yield f"{program} is no known program{alike or '; add it to OTHERS in tests/page_checks.py'}"
        for word in rest if program not in ANSIBLE else ():
            if _is_of_the_project(word, project) and not _is_there(word, page, project, inline):
                yield f"there is no {word} in the project"


def _unsplit(text: str) -> list[str]:
    return shlex.split(text, comments=True)


def _make_problems(words: list[str], page: Page, project: Project) -> Iterator[str]:
    target = next((word for word in words if re.fullmatch(r"[a-z][a-z0-9-]*", word)), "")
    for word in words:
        name, is_variable, value = word.partition("=")
        if is_variable and name.isidentifier():
            if name not in project.make_variables:
                yield f"make knows no variable {name}{nearest(name, project.make_variables)}"
            yield from _make_variable_problems(target, name, value, page, project)
        elif word.startswith("-") or word == ELLIPSIS:
            continue
        elif word not in project.targets:
            yield f"there is no make target «{word}»{nearest(word, project.targets)}"


def _make_variable_problems(target: str, name: str, value: str, page: Page, project: Project) -> Iterator[str]:
    if _is_placeholder(value):
        return
    places = {"MODULE": "module_utils/lora_forge/{}.py", "SCENARIO": "tests/molecule/{}", "BENCH": "benchmarks/{}.py"}
    if name == "role":
        yield from _role_problems(value)
    elif name in places:
        for one in value.split():
            if not project.exists(places[name].format(one)):
                yield f"{name}={value} names {places[name].format(one)}, which does not exist"
    elif name == "ARGS" and target in PASSING_OPTIONS:
        yield from _ansible_problems("ansible-playbook", [*_unsplit(value), "train.yml"], page, project)
    elif name == "ARGS":
        for word in _unsplit(value):
            if word.startswith("tests/") and not project.exists(word.partition("::")[0]):
                yield f"there is no {word}"


def _ansible_problems(
    program: str, words: list[str], page: Page, project: Project, inline: bool = False
) -> Iterator[str]:
    """Have Ansible's own parser read the command line, and look at what it names."""
    words = [word for word in words if word != ELLIPSIS]
    while words[-1:] in (["-e"], ["-i"], ["-m"], ["-a"]):  # what is to be filled in stood behind it
        words.pop()
    module, name = ANSIBLE[program]
    command = getattr(importlib.import_module(module), name)([program])
    command.init_parser()
    complaint = []

    def error(message: str) -> None:
        complaint.append(message)
        raise SystemExit(2)

    command.parser.error = error
    try:
        read = command.parser.parse_args(words)
    except SystemExit:
        yield f"{program} does not take this: {' '.join(complaint)}"
        return
    for inventory in getattr(read, "inventory", None) or ():
        path = os.path.relpath(inventory, os.getcwd()) if os.path.isabs(inventory) else inventory
        if "," not in path and not _is_placeholder(path) and not _is_there(path, page, project, inline):
            yield f"there is no inventory {path}; where an example is to be copied, the page must say so"
    if program == "ansible-playbook":
        for playbook in read.args:
            if not _is_placeholder(playbook) and not project.exists(playbook):
                yield f"there is no playbook {playbook}{nearest(playbook, project.files)}"
    for given in getattr(read, "extra_vars", None) or ():
        if inline and "=" not in given and given.isidentifier():  # the option is spoken of, and not given
            given += f"={ELLIPSIS}"
        yield from _extra_vars_problems(given, project)
    if program == "ansible":
        yield from _module_problems(read.module_name, read.module_args, project)
    if program == "ansible-doc" and read.type == "module":
        for one in read.args:
            if not (_is_placeholder(one) or one.isupper() or one in project.plugins or _is_module(one, project)):
                yield f"there is no module {one}{nearest(one, project.modules)}"
    if program == "ansible-doc" and read.type == "role":
        for one in read.args:
            if not one.isupper() and not project.exists(f"roles/{one}"):
                yield f"there is no role {one}"


def _is_module(name: str, project: Project) -> bool:
    if name in project.modules:
        return True
    return importlib.util.find_spec(f"ansible.modules.{name.removeprefix('ansible.builtin.')}") is not None


def _module_problems(name: str, arguments: Any, project: Project) -> Iterator[str]:
    if not _is_module(name, project):
        yield f"there is no module {name}{nearest(name, project.modules)}"
        return
    if name not in project.modules:
        return
    known = project.module_options(name)
    given = parse_kv(arguments) if isinstance(arguments, str) else arguments
    for option in given.keys() - known.keys():
        yield f"the module {name} has no option {option}{nearest(option, known)}"


def _extra_vars_problems(given: str, project: Project) -> Iterator[str]:
    """Check what ``-e`` is given: names, and values of those that have rules."""
    if given.startswith("@"):
        return
    if given.startswith(("{", "[")):
        try:
            variables = yaml.safe_load(given)
        except yaml.YAMLError:
            variables = None
        if not isinstance(variables, dict):
            yield f"-e '{given}' is no mapping"
            return
    else:
        variables = parse_kv(given)
        if "_raw_params" in variables:
            yield f"-e {given} gives no option a value; write -e name=value"
            return
    for name, value in variables.items():
        yield from _option_problems(name, value, project)


def _option_problems(name: str, value: Any, project: Project) -> Iterator[str]:
    """Check an option's name and, unless it is to be filled in, its value."""
    if name == ELLIPSIS:
        return
    if name in options.RENAMED_OPTIONS:
        yield f"{name} is called {options.RENAMED_OPTIONS[name]} now"
        return
    if name not in project.specs and name not in NO_OPTIONS:
        yield f"there is no option {name}{nearest(name, project.specs)}"
    if _is_placeholder(value):
        return
    if name == "role":
        yield from _role_problems(str(value))
    elif name == "recipe":
        yield from _recipe_problems(value, project)
    elif name == "sweep":
        for variant in value if isinstance(value, list) else [value]:
            for key, tried in variant.items():
                for one in tried if isinstance(value, dict) else [tried]:
                    yield from _recipe_problems({key: one}, project)
    else:
        for one in value.split("|") if isinstance(value, str) else [value]:  # choices that a sentence names
            yield from options.option_errors({name: one}, project.specs)


def _role_problems(value: str) -> Iterator[str]:
    for agent in value.split(","):
        if agent not in ("all", *AGENTS, *OF_THE_READER) and not _is_placeholder(agent):
            yield f"there is no agent «{agent}»{nearest(agent, AGENTS)}"


def _recipe_problems(recipe: Any, project: Project) -> Iterator[str]:
    if not isinstance(recipe, dict):
        yield f"recipe is «{recipe}»; it takes a mapping of Axolotl's keys"
        return
    known = project.recipe_keys["properties"]
    for key, value in recipe.items():
        if key == ELLIPSIS:
            continue
        if key not in known:
            yield f"a recipe has no key {key}{nearest(key, known)}"
        elif not _is_placeholder(value) and value is not None:
            rule = {**known[key], "$defs": project.recipe_keys.get("$defs", {})}
            for error in jsonschema.Draft202012Validator(rule).iter_errors(value):
                yield f"the recipe's {key}: {error.message}"


def _is_placeholder(value: Any) -> bool:
    return isinstance(value, str) and (not value or bool(re.search(r"[…<$*]|\{\{", value)))


# --- Names of paths, options, variables


def check_names(page: Page, project: Project) -> list[str]:
    """Check that the paths, files, options and environment variables in backticks exist."""
    found = []
    for line, code in page.codes:
        beside = page.text.splitlines()[line - 1]
        if options.RENAMED_OPTIONS.get(code, "\0") not in beside:  # else the page tells of the new name
            found += [(line, sentence) for sentence in _name_problems(code, page, project)]
    for block in page.blocks:
        if block.language == "sh":
            found += [(block.line, f"nothing reads the variable {name}")
                      for name in _variables(block.text) if name not in project.words]  # fmt: skip
    return _at(page, found)


def _name_problems(code: str, page: Page, project: Project) -> Iterator[str]:
    path = re.sub(r"^(?=(?:unit|integration|e2e)/)", "tests/", code.partition("::")[0])
    if " " not in path and _is_of_the_project(path, project):
        if not _is_there(path, page, project):
            yield f"there is no {path} in the project{nearest(path, project.files | project.folders)}"
    elif re.fullmatch(rf"[\w.-]+\.(?:{SUFFIXES})", code):
        if code not in project.words and not _is_example(code):
            yield f"nothing is called {code}{nearest(code, (name for name in project.words if '.' in name))}"
    elif match := re.fullmatch(rf"({OPTION_NAME.pattern})(?:(?:=|: )(.+))?", code):
        name, value = match[1], match[2]
        if name in options.RENAMED_OPTIONS:
            yield f"{name} is called {options.RENAMED_OPTIONS[name]} now"
        elif name in project.specs:
            if value is not None:
                read = value if "=" in code.partition(value)[0] else _yaml(value)
                yield from _option_problems(name, read, project)
        elif name not in project.internal | project.functions | project.plugins | NO_OPTIONS:
            yield f"there is no option {name}{nearest(name, project.specs)}"
    elif re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", code):
        keys = project.recipe_keys["properties"]
        if code not in project.words and code not in keys:
            yield f"nothing is called {code}{nearest(code, keys)}"
    for name in _variables(code):
        if name not in project.words:
            yield f"nothing reads the variable {name}{nearest(name, project.words)}"


def _variables(text: str) -> Iterable[str]:
    return dict.fromkeys(VARIABLE.findall(text))


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _is_of_the_project(word: str, project: Project) -> bool:
    """Tell whether a word is a path that begins in the checkout, or in the rooms of module_utils."""
    first, slash, rest = word.removeprefix("./").partition("/")
    if not re.fullmatch(r"[\w.@<>{}*…/-]+", word):
        return False
    if not slash:
        return word in project.files
    rooms = {folder.rpartition("/")[2] for folder in project.folders if folder.count("/") == 2 and
             folder.startswith("module_utils/lora_forge/")}  # fmt: skip
    return first in project.folders or (first in rooms and rest.endswith(".py"))


def _is_there(path: str, page: Page, project: Project, inline: bool = True) -> bool:
    """Tell whether a path exists, is made, is the user's own, or is a copy of an example.

    A page that gives such a copy to a command must say so. In backticks, in a sentence, it is only spoken of.
    """
    if project.exists(path) or project.exists(f"module_utils/lora_forge/{path}") or _is_made(path):
        return True
    if path.startswith(OF_THE_USER) and (not path.startswith("inventory/hooks/") or _is_hook(path)):
        return True
    example = re.sub(r"\.yml$", ".example.yml", path)
    return example != path and project.exists(example) and (inline or _says(page, example, project))


def _is_hook(path: str) -> bool:
    name = pathlib.PurePath(path).stem
    return name in (*hooks.NAMES, "hooks")


def _says(page: Page, example: str, project: Project) -> bool:
    """Tell whether a page names an example's file, or leads to a page that does."""
    if example in page.text:
        return True
    for _, target in page.links:
        file = os.path.normpath(os.path.join(page.folder, target.partition("#")[0]))
        if file in project.files and file.endswith(".md") and example in project.read(file):
            return True
    return False


def _is_made(path: str) -> bool:
    return path.startswith((".venv/", ".trainer/", "output/", ".hosts/", ".pods/", "benchmarks/gpu/results/"))


def _is_example(name: str) -> bool:
    """Tell whether a file's name is one that the user chooses."""
    return bool(re.match(r"(my|your)[-_]", name))


# --- Tables of options


def check_tables(page: Page, project: Project) -> list[str]:
    """Check that tables of options give the types and defaults of their specs; what is no value there is for people."""
    found = []
    columns: list[str] = []
    for number, line in enumerate(page.text.splitlines(), 1):
        if not line.startswith("|"):
            columns = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        columns = columns or [cell.strip() for cell in cells]
        if columns[:3] == ["variable", "type", "default"] and len(cells) == len(columns):
            found += [(number, sentence) for sentence in _row_problems(cells, project)]
    return _at(page, found)


def _row_problems(cells: list[str], project: Project) -> Iterator[str]:
    names = [name for name in re.findall(r"`(\w+)`", cells[0]) if name in project.specs]
    values = cells[2].split(" and ") if " and " in cells[2] else cells[2:3] * len(names)
    for name, value in zip(names, values):
        spec = project.specs[name]
        kind = spec.get("type", "str")
        if cells[1] not in {"str": ("str", "path"), "raw": ("list", "str")}.get(kind, (kind,)):
            yield f"{name} is of the type {kind}, and not {cells[1]}"
        shown = re.match(r"`([^`]*)`|[\d.]+", value)
        if shown and "default" in spec and _yaml(shown[1] or shown[0]) != spec["default"]:
            yield f"the default of {name} is {spec['default']}, and not {shown[1] or shown[0]}"


# --- Messages


def check_messages(page: Page, project: Project) -> list[str]:
    """Check that the project says what a column «message» quotes. What is filled in there is an example, or ``…``."""
    found, quotes = [], False
    for number, line in enumerate(page.text.splitlines(), 1):
        quotes = line.startswith("| message |") or (quotes and line.startswith("|"))
        for message in re.findall(r"`([^`]+)`", line.split(" | ")[0]) if quotes else ():
            for part in re.split(rf"[;:,.](?= |$)|\S*{ELLIPSIS}\S*", message):
                words = part.split()
                if len(words) > 1 and not _is_said(words, project):
                    found.append((number, f"nothing says «{' '.join(words)}» any more; quote what is said now"))
    return _at(page, found)


def _is_said(words: list[str], project: Project) -> bool:
    """Tell whether words are a part of a sentence, and half of them or more are not what is filled in."""
    return any(_in_common(words, said[place:]) * 2 >= len(words) for said in project.said for place in range(len(said)))


def _in_common(words: list[str], said: tuple[str, ...]) -> int:
    """Count how many words are the sentence's own; -1 where they are not how it begins."""
    if not words or not said:
        return -1 if words else 0
    word = said[0].strip(".,;:'\"")
    if "\0" not in word:
        rest = _in_common(words[1:], said[1:]) if word == words[0] else -1
        return rest + 1 if rest >= 0 else -1
    pattern = re.compile(re.escape(word).replace("\0", ".*"))
    return max(_in_common(words[many:], said[1:]) if pattern.fullmatch(" ".join(words[:many])) else -1
               for many in range(3))  # fmt: skip


# --- Links


def check_links(page: Page, everything: Mapping[str, Page], project: Project) -> list[str]:
    """Check that links and pictures lead somewhere, on GitHub and on the site that MkDocs makes.

    Args:
        page: The page.
        everything: All pages, by path.
        project: What else there is.
    """
    found = []
    for line, target in page.links:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = os.path.normpath(os.path.join(page.folder, path)) if path else page.path
        if path.startswith("/") or file.startswith(".."):
            found.append((line, f"{target} leads out of the checkout; link relative to the page"))
        elif page.path.startswith("docs/") and not file.startswith("docs/"):
            found.append((line, f"{target} is no page of the site; name {file} in backticks instead"))
        elif file not in everything and not project.exists(file):
            found.append((line, f"{target} leads nowhere: there is no {file}{nearest(file, project.files)}"))
        elif anchor and file in everything:
            other = everything[file]
            here, there = other.anchors_on_github(), other.anchors_on_the_site()
            if anchor not in here:
                found.append((line, f"{target}: {file} has no such heading on GitHub{nearest(anchor, here)}"))
            elif file.startswith("docs/") and anchor not in there:
                words = 'GitHub and MkDocs name this heading in two ways; put <a id="…"></a> before it'
                found.append((line, f"{target}: {words}"))
    return _at(page, found)


def check_reachable(everything: Mapping[str, Page]) -> list[str]:
    """Check that one comes from README to every page by links, as there is no menu on GitHub."""
    seen, coming = set(), ["README.md"]
    while coming:
        path = coming.pop()
        if path in seen or path not in everything:
            continue
        seen.add(path)
        page = everything[path]
        coming += [os.path.normpath(os.path.join(page.folder, target.partition("#")[0])) for _, target in page.links]
    return [f"{path}:1: no links lead here from README.md; link it where a reader would look for it"
            for path in sorted(everything.keys() - seen) if path.startswith("docs/")]  # fmt: skip


# --- The rest


def check_paths_of_machines(page: Page, project: Project) -> list[str]:
    """Check that no path is of the machine on which the page was written."""
    found = []
    for number, line in enumerate(page.text.splitlines(), 1):
        for found_path in re.findall(r"(?<![\w.:/<>~)}\]*…-])/[a-zA-Z][\w.-]*(?:/[\w.-]+)*", line):
            path = found_path.rstrip(".")
            if str(project.root) in path or not f"{path}/".startswith(ANYBODYS):
                found.append((number, f"{path} is a path of some machine; use a relative one, or one below /data"))
    return _at(page, found)


def check_length(page: Page, most: int) -> list[str]:
    """Check that a page is no longer than it may be, in lines."""
    lines = len(page.text.splitlines())
    return [
        f"{page.path}:{most + 1}: {lines} lines; it may have {most}. Move what is no overview to a page of docs/"
    ] * (lines > most)


def _at(page: Page, found: Iterable[tuple[int, str]]) -> list[str]:
    return [f"{page.path}:{line}: {sentence}" for line, sentence in dict.fromkeys(found)]
