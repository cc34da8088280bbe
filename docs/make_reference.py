"""Write docs/reference: every module, action, role and option, as the code itself documents them (`make reference`).

    make_reference.py [FOLDER]

Modules, actions and the inventory plugin come from ``ansible-doc``, roles from their argument_specs, the options of the
command line from playbooks/meta/argument_specs.yml. Which playbooks read an option is found in playbooks and roles. The
pages depend on the checkout alone: the same on every Python and every ansible-core that the controller may have.
"""

from __future__ import annotations

import configparser
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Optional

import yaml
from jinja2 import Environment, nodes

ROOT = pathlib.Path(__file__).resolve().parents[1]
HEAD = "<!-- Made by docs/make_reference.py; do not edit. To make it anew: make reference -->\n\n"
FOOT = "\n---\n\nThis page is generated from {} by `make reference`.\n"
IMPORTED_ONLY = ("runs", "summary")  # playbooks that are no commands
PLAN = "roles/run/tasks/plan.yml"
PATIENCE = "trainer_answer_timeout"
CONDITIONS = ("when", "until", "failed_when", "changed_when")  # expressions without braces around them
ROLES = {  # in the order of the page of options; what an option of theirs is about
    "run": "runs: how they are started, watched, stopped, logged, told of",
    "trainer": "hosts that train",
    "pod": "pods of RunPod",
    "adapter": "what is delivered",
    "converge": "the way from a host to an adapter",
}
# What users set in their environment: what it means, by where it is read.
ENVIRONMENT: dict[str, dict[str, str]] = {
    "On the controller": {
        "RUNPOD_API_KEY": "RunPod's key, with read and write access. Without it nothing can be rented, and the "
        "inventory does not tell which pods are live.",
        "RUNPOD_API_URL": "Where RunPod's API is; by default RunPod's own. It takes https, but for this machine.",
        "SSL_CERT_FILE": "Certificates that are trusted in the place of the system's when RunPod is asked.",
        "REQUESTS_CA_BUNDLE": "Certificates, a file or a folder, that are trusted too when RunPod is asked.",
        "LORA_FORGE_PODS": "Where claims, pinned host keys and the checkout's own key pair lie; by default `.pods` in "
        "the checkout. The option `pod_state_dir` goes before it.",
        "LORA_FORGE_OWNER": "Another owner's id: the inventory shows that one's pods, and commands act for it.",
        "LORA_FORGE_NOTIFY_URL": "A webhook that is told what became of a run. The option `run_notify_url` goes before "
        "it.",
        "LORA_FORGE_JUDGE_KEY": "The key of the endpoint that `eval_judge_url` names, where it takes one. It goes "
        "nowhere else.",
        "LORA_FORGE_AXOLOTL": "An environment with the locks' Axolotl, or its Python, for the plan's check of recipes. "
        "The option `axolotl_environment` goes before it.",
        "WANDB_API_KEY": "W&B's key. With it runs are logged online, unless `run_wandb` says otherwise, and what was "
        "recorded offline is uploaded. It goes to the trainer for a run that is logged online.",
        "WANDB_BASE_URL": "A W&B server of your own; by default W&B's. It goes to the trainer, too.",
        "WANDB_MODE": "`offline` or `disabled`: the default of `run_wandb`, beside a key too, and nothing is uploaded.",
        "WANDB_HTTP_PROXY": "Handed to W&B's client when the controller asks W&B.",
        "WANDB_HTTPS_PROXY": "Handed to W&B's client when the controller asks W&B.",
        "WANDB_INSECURE_DISABLE_SSL": "Handed to W&B's client when the controller asks W&B.",
        "HF_TOKEN": "A token of Hugging Face's hub, for gated and private models. It goes to the fetch of the base "
        "model alone.",
        "HF_HUB_CACHE": "The hub's cache on this machine, in which the plan looks for a base model's config.json to "
        "estimate the memory that a training takes.",
        "HF_HOME": "The folder with that cache, where HF_HUB_CACHE is not set.",
        "XDG_CACHE_HOME": "The folder with that one, where neither is set.",
        "UV_PYTHON_INSTALL_MIRROR": "Where uv on a trainer fetches CPython from, where `trainer_python_download` lets "
        "it.",
    },
    "On a trainer": {
        "UV_FIND_LINKS": "A folder of wheels from which environments are made. `make` heeds it on the controller.",
        "PIP_FIND_LINKS": "The same, where UV_FIND_LINKS is not set; for `make`, too.",
        "UV_PYTHON_INSTALL_DIR": "Where uv keeps CPythons; they are looked for there.",
        "XDG_DATA_HOME": "The folder with `uv/python`, where UV_PYTHON_INSTALL_DIR is not set.",
        "PYENV_ROOT": "Where pyenv keeps CPythons; they are looked for there.",
        "UV_CACHE_DIR": "uv's own: where its cache lies.",
        "HF_ENDPOINT": "The hub's own: where it is, for what fetches a base model.",
        "HTTPS_PROXY": "A proxy on the way to the hub, for what fetches a base model.",
    },
}
# What the code reads of the environment that no user sets for it: the system's, Ansible's, torchrun's, our processes'.
NOT_THE_USERS = frozenset(
    "PATH HOME RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT CUDA_VISIBLE_DEVICES "
    "HF_HUB_OFFLINE TRITON_CACHE_DIR TERM ANSIBLE_CONFIG SLURM_JOB_ID "
    "SLURM_RESTART_COUNT".split()
)


# --- reading --------------------------------------------------------------------------------------------------------


def ansible_doc(kind: str, names: Iterable[str]) -> dict[str, Any]:
    """Ask ansible-doc.

    Args:
        kind: module, inventory or role.
        names: Of what.

    Raises:
        SystemExit: It fails, or knows one of them not.
    """
    asked = sorted(names)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    command = [sys.executable, "-m", "ansible", "doc", "--json", "-t", kind, *asked]
    process = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    )
    if process.returncode:
        raise SystemExit(process.stderr.strip())
    answer = json.loads(process.stdout)
    if lacking := sorted(set(asked) - answer.keys()):
        raise SystemExit(f"ansible-doc has nothing on {', '.join(lacking)}")
    return {name: answer[name] for name in asked}


def stems(pattern: str) -> list[str]:
    return sorted(path.stem for path in ROOT.glob(pattern))


@functools.cache
def read_yaml(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def role_options(role: str) -> dict[str, dict[str, Any]]:
    """Give the options of all entry points of a role, in the order of its specs."""
    specs = read_yaml(f"roles/{role}/meta/argument_specs.yml")["argument_specs"]
    options: dict[str, dict[str, Any]] = {}
    for entry in specs.values():
        options |= entry["options"]
    return options


def plain_options() -> dict[str, dict[str, Any]]:
    """Give the options of the command line that no role's name begins, in the order of their specs."""
    options = dict(read_yaml("playbooks/meta/argument_specs.yml")["argument_specs"]["main"]["options"])
    for role in ROLES:
        options |= {name: spec for name, spec in role_options(role).items() if not name.startswith(f"{role}_")}
    return options


def computed_names() -> set[str]:
    """List the options whose default is an expression."""
    defaults = [read_yaml(f"roles/{role}/defaults/main.yml").items() for role in ROLES]
    return {name for items in defaults for name, value in items if "{{" in str(value)}


# --- who reads what -------------------------------------------------------------------------------------------------


def expressions(node: Any, key: str = "") -> Iterator[nodes.Template]:
    """Parse every Jinja expression below a node of YAML.

    Args:
        node: A play, a task, a variable's value.
        key: What it stands under.
    """
    if isinstance(node, dict):
        for name, value in node.items():
            yield from expressions(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value, key)
    elif isinstance(node, str):
        text = f"{{{{ {node} }}}}" if key in CONDITIONS and "{{" not in node else node
        if "{{" in text or "{%" in text:
            yield Environment().parse(text)


def names_in(node: Any) -> set[str]:
    """List the variables that the expressions below a node name."""
    return {name.name for tree in expressions(node) for name in tree.find_all(nodes.Name)}


def asked_for(node: Any) -> set[str]:
    """List the variables that need not be set: those with ``| default(…)`` or ``is defined`` behind them."""
    found = set()
    for tree in expressions(node):
        marked = [one for one in tree.find_all(nodes.Filter) if one.name == "default"]
        marked += [one for one in tree.find_all(nodes.Test) if one.name in ("defined", "undefined")]
        found |= {one.node.name for one in marked if isinstance(one.node, nodes.Name)}
    return found


def reached(path: str, seen: Optional[set[str]] = None) -> set[str]:
    """List the files of plays and tasks that a playbook leads to, itself among them.

    Args:
        path: Below the checkout.
        seen: Those that are listed already.
    """
    seen = set() if seen is None else seen
    if path not in seen:
        seen.add(path)
        for other in _calls(read_yaml(path), pathlib.PurePath(path).parent):
            reached(str(other), seen)
    return seen


def _calls(node: Any, folder: pathlib.PurePath) -> Iterator[pathlib.PurePath]:
    if isinstance(node, list):
        for item in node:
            yield from _calls(item, folder)
    elif isinstance(node, dict):
        for key, value in node.items():
            name = key.removeprefix("ansible.builtin.")
            if name in ("include_role", "import_role"):
                yield pathlib.PurePath(f"roles/{value['name']}/tasks/{value.get('tasks_from', 'main')}.yml")
            elif name in ("include_tasks", "import_tasks", "import_playbook"):
                yield folder / value
            else:
                yield from _calls(value, folder)


def commands() -> list[str]:
    """List the playbooks that are commands."""
    return [name for name in stems("playbooks/*.yml") if name not in IMPORTED_ONLY]


def readers() -> dict[str, set[str]]:
    """Tell of each variable which playbooks read it, be it by a default or a variable of a role's."""
    values: dict[str, Any] = {}
    for path in sorted([*ROOT.glob("roles/*/defaults/main.yml"), *ROOT.glob("roles/*/vars/main.yml")]):
        values |= yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    known = {name: names_in(value) for name, value in values.items()}
    found: dict[str, set[str]] = {}
    for playbook in commands():
        for name in _all_names(reached(f"playbooks/{playbook}.yml"), known):
            found.setdefault(name, set()).add(playbook)
    return found


@functools.cache
def askers() -> set[str]:
    """Name the actions that ask a host; each gives it as long as the option :data:`PATIENCE` says."""
    plugins = (ROOT / "action_plugins").glob("*.py")
    return {path.stem for path in plugins if re.search(r"^load_actions\(", path.read_text("utf-8"), re.MULTILINE)}


def tasks_in(node: Any) -> Iterator[dict[str, Any]]:
    """List the mappings in a file of tasks, or of plays, those of blocks too."""
    for item in node if isinstance(node, list) else []:
        if isinstance(item, dict):
            yield item
            for value in item.values():
                yield from tasks_in(value)


@functools.cache
def _names_of(path: str) -> frozenset[str]:
    """List the variables that a file of plays or tasks names; most files are reached from many playbooks."""
    tasks = read_yaml(path)
    names = names_in(tasks)
    if path == PLAN:
        names |= set(host_variables())
    if any(name in askers() for task in tasks_in(tasks) for name in task):
        names.add(PATIENCE)
    return frozenset(names)


def _all_names(paths: Iterable[str], known: Mapping[str, set[str]]) -> set[str]:
    names: set[str] = set().union(*map(_names_of, paths))
    left = list(names)
    while left:
        new = known.get(left.pop(), set()) - names
        names |= new
        left += new
    return names


def host_variables() -> tuple[str, ...]:
    """Name the variables of hosts that the plan reads by itself."""
    return _module("planning.fleet").HOST_VARIABLES


def _module(name: str) -> Any:
    import importlib

    import ansible.module_utils

    if str(ROOT / "module_utils") not in ansible.module_utils.__path__:
        ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
    return importlib.import_module(f"ansible.module_utils.lora_forge.{name}")


def variables_read(path: pathlib.Path) -> set[str]:
    """List the environment variables that a file reads: YAML with Jinja, or Python."""
    patterns = [r"environ(?:\.get\(|\[)[\"'](\w+)[\"']", r"env_fallback, \[\"(\w+)\"\]", r"env:\n\s+- name: (\w+)"]
    if path.suffix == ".yml":
        patterns = [r"lookup\('ansible\.builtin\.env', '(\w+)'\)"]
    text = path.read_text(encoding="utf-8")
    return {name for pattern in patterns for name in re.findall(pattern, text)}


def environment_read() -> dict[str, set[str]]:
    """Tell of each environment variable that modules, plugins and roles read which files do."""
    client = _module("results.wandb_client")
    kept = str(pathlib.Path(client.__file__).resolve().relative_to(ROOT))
    found = {name: {kept} for name in client.KEPT}
    plugins = ("action_plugins", "callback_plugins", "inventory_plugins")
    for folder in (*plugins, "library", "module_utils", "playbooks", "roles"):
        for path in sorted([*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.yml")]):
            for name in variables_read(path):
                found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return found


# --- Markdown -------------------------------------------------------------------------------------------------------

MARKUP = re.compile(r"\b(RV|HORIZONTALLINE|[BCEILMOPRUV])(?:\(((?:[^()]|\([^()]*\))*)\))?")


def markdown(text: Any, pages: Iterable[str] = ()) -> str:
    """Turn Ansible's markup into Markdown, in one line.

    Args:
        text: A description; of a list each item is a paragraph.
        pages: Names of modules that have a page beside the one that this stands on.
    """
    if isinstance(text, list):
        return "<br>".join(markdown(item, pages) for item in text)
    made, end, text = [], 0, " ".join(str(text).split())
    for match in MARKUP.finditer(text):
        letter, inner = match.groups()
        if inner is None and letter != "HORIZONTALLINE":
            continue
        made += [plain(text[end : match.start()]), _marked(letter, inner or "", pages)]
        end = match.end()
    return "".join(made) + plain(text[end:])


def _marked(letter: str, inner: str, pages: Iterable[str]) -> str:
    first, _, second = (part.strip() for part in inner.partition(","))
    if letter == "B":
        return f"**{plain(inner)}**"
    if letter == "I":
        return f"*{plain(inner)}*"
    if letter == "L":
        return f"[{plain(first)}]({second})"
    if letter == "R":
        return plain(first)
    if letter == "U":
        return f"<{inner}>"
    if letter == "M" and inner in pages:
        return f"[{code(inner)}]({inner}.md)"
    if letter == "P":
        return code(inner.partition("#")[0])
    return "<hr>" if letter == "HORIZONTALLINE" else code(inner)


def plain(text: str) -> str:
    """Escape what Markdown or HTML would take for a mark."""
    return re.sub(r"([*\[\]|`]|(?<!\w)_|_(?!\w))", r"\\\1", text).replace("<", "&lt;")


def code(value: Any) -> str:
    """Write a value as code; in a cell of a table, too."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = text.replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def table(columns: list[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def kind(spec: Mapping[str, Any]) -> str:
    """Say what type an option or a value has."""
    name = spec.get("type", "str")
    return f"{name} of {spec['elements']}" if spec.get("elements") else name


def default(spec: Mapping[str, Any], computed: bool = False) -> str:
    """Write an option's default.

    Args:
        spec: The option's.
        computed: Whether it is an expression, which the description puts into words.
    """
    if spec.get("required"):
        return "**required**"
    value = spec.get("default")
    if value is None:
        return "computed" if computed else ""
    return code(json.dumps(value) if value == "" else value)


def meaning(spec: Mapping[str, Any], pages: Iterable[str] = ()) -> str:
    """Describe an option: what it means, what it takes, which environment variable stands in for it."""
    parts = [markdown(spec["description"], pages)]
    if spec.get("choices"):
        one = "Any of" if spec.get("type") == "list" else "One of"
        parts.append(f"{one} {', '.join(map(code, spec['choices']))}.")
    if spec.get("env"):
        parts.append(f"By default the environment's {', '.join(code(one['name']) for one in spec['env'])}.")
    return " ".join(parts)


def option_rows(options: Mapping[str, Any], pages: Iterable[str], above: str = "") -> Iterator[list[str]]:
    """Write options as rows, those that are required first, each with its suboptions below it."""
    for name in sorted(options, key=lambda one: (not options[one].get("required", False), one)):
        spec = options[name]
        yield [code(above + name), kind(spec), default(spec), meaning(spec, pages)]
        yield from option_rows(spec.get("suboptions") or {}, pages, f"{above}{name}.")


# --- pages ----------------------------------------------------------------------------------------------------------


def module_kind(name: str) -> str:
    """Say what a name of a task stands for."""
    plugin = ROOT / f"action_plugins/{name}.py"
    if not (ROOT / f"library/{name}.py").exists():
        return "action"
    target = plugin.readlink().name if plugin.is_symlink() else ""
    if target == "on_controller.py":
        return "module in Ansible's own process"
    return "module with an action" if plugin.exists() and not target else "module"


def source_of(name: str) -> str:
    action = not (ROOT / f"library/{name}.py").exists()
    return f"library/actions/{name}.py" if action else f"library/{name}.py"


def module_page(name: str, docs: Mapping[str, Any], what: str, source: str, pages: list[str]) -> str:
    """Write the page of a module, an action or the inventory plugin.

    Args:
        name: Its name.
        docs: What ansible-doc says of it.
        what: What it is.
        source: The file that documents it.
        pages: The names that have a page beside this one.
    """
    doc = docs["doc"]
    parts = [f"# {name}\n\n{markdown(doc['short_description'])} ({what}).\n"]
    description = doc["description"] if isinstance(doc["description"], list) else [doc["description"]]
    parts.append("".join(f"- {markdown(line, pages)}\n" for line in description))
    if doc.get("options"):
        rows = option_rows(doc["options"], pages)
        parts.append("## Options\n\n" + table(["name", "type", "default", "meaning"], rows))
    if doc.get("attributes"):
        rows = ([code(one), spec["support"], markdown(spec.get("description", ""), pages)
                 + (f" {code(spec['platforms'])}" if spec.get("platforms") else "")]
                for one, spec in sorted(doc["attributes"].items()))  # fmt: skip
        parts.append("## Attributes\n\n" + table(["name", "support", "what"], rows))
    if docs.get("examples"):
        parts.append(f"## Examples\n\n```yaml\n{docs['examples'].strip()}\n```\n")
    if docs.get("return"):
        values = docs["return"]
        rows = ([code(one), kind(spec), markdown(spec["returned"], pages), markdown(spec["description"], pages)]
                for one, spec in values.items())  # fmt: skip
        sample = {one: spec["sample"] for one, spec in values.items() if "sample" in spec}
        dumped = yaml.safe_dump(sample, allow_unicode=True, sort_keys=False, width=100)
        parts.append("## Return values\n\n" + table(["name", "type", "returned", "meaning"], rows))
        parts.append(f"```yaml\n{dumped}```\n")
    return HEAD + "\n".join(parts) + FOOT.format(code(source))


def module_pages() -> dict[str, str]:
    """Write the pages of modules, actions and the inventory plugin, and their index."""
    names = sorted([*stems("library/*.py"), *stems("library/actions/*.py")])
    inventories = stems("inventory_plugins/*.py")
    docs = {**ansible_doc("module", names), **ansible_doc("inventory", inventories)}
    what = {name: module_kind(name) for name in names} | dict.fromkeys(inventories, "inventory plugin")
    source = {name: source_of(name) for name in names} | {one: f"inventory_plugins/{one}.py" for one in inventories}
    pages = {f"modules/{name}.md": module_page(name, docs[name], what[name], source[name], names) for name in docs}
    rows = ([f"[{code(name)}]({name}.md)", what[name], markdown(docs[name]["doc"]["short_description"])]
            for name in sorted(docs))  # fmt: skip
    sources = "what `ansible-doc` says of `library/`, `library/actions/` and `inventory_plugins/`"
    intro = (
        "# Modules, actions and the inventory plugin\n\nA module runs on a host, or on the controller where a task "
        "says so. An action runs in Ansible's own process on the controller, and asks the host by modules. In the "
        "checkout `ansible-doc NAME` shows the same, of the inventory plugin `ansible-doc -t inventory runpod`.\n\n"
    )
    pages["modules/index.md"] = HEAD + intro + table(["name", "kind", "what"], rows) + FOOT.format(sources)
    return pages


def role_page(role: str, entries: Mapping[str, Any]) -> str:
    """Write the page of a role.

    Args:
        role: Its name.
        entries: What ansible-doc says of its entry points.
    """
    options, computed = role_options(role), computed_names()
    source = f"roles/{role}/meta/argument_specs.yml"
    main = entries["main"]
    parts = [f"# {role}\n\n{markdown(main['short_description'])}.\n"]
    parts.append("".join(f"{markdown(line)}\n" for line in _lines(main.get("description"))))
    rows = []
    for name in [*options_order(role)]:
        entry = entries[name]
        taken = entry.get("options", {}).keys()
        lacking = [one for one in options if one not in taken]
        which = "all" if not lacking else f"all but {', '.join(map(code, lacking))}" if len(lacking) < 4 else (
            ", ".join(code(one) for one in options if one in taken))  # fmt: skip
        rows.append([code(name), markdown(entry["short_description"]), which])
    parts.append("## Entry points\n\n" + table(["name", "what", "options"], rows))
    rows = [[code(name), kind(spec), default(spec, name in computed), meaning(spec)] for name, spec in options.items()]
    parts.append("## Options\n\n" + table(["name", "type", "default", "meaning"], rows))
    return HEAD + "\n".join(parts) + FOOT.format(code(source))


def options_order(role: str) -> list[str]:
    return list(read_yaml(f"roles/{role}/meta/argument_specs.yml")["argument_specs"])


def _lines(text: Any) -> list[str]:
    return [] if not text else text if isinstance(text, list) else [text]


def role_pages() -> dict[str, str]:
    """Write the pages of the roles, and their index."""
    docs = {name: answer["entry_points"] for name, answer in ansible_doc("role", ROLES).items()}
    pages = {f"roles/{role}.md": role_page(role, docs[role]) for role in docs}
    rows = ([f"[{code(role)}]({role}.md)", markdown(docs[role]["main"]["short_description"]),
             ", ".join(code(entry) for entry in options_order(role))] for role in sorted(docs))  # fmt: skip
    sources = code("roles/*/meta/argument_specs.yml")
    intro = "# Roles\n\nIn the checkout `ansible-doc -t role NAME` shows the same.\n\n"
    pages["roles/index.md"] = HEAD + intro + table(["role", "what", "entry points"], rows) + FOOT.format(sources)
    return pages


def options_page() -> str:
    """Write the page of all options and environment variables."""
    read_by, computed, users = readers(), computed_names(), environment_read()
    planning = {name for name in commands() if PLAN in reached(f"playbooks/{name}.yml")}

    def section(options: Mapping[str, Any]) -> str:
        rows = []
        for name, spec in options.items():
            known = read_by.get(name, set())
            who = ["all that plan", *sorted(known - planning)] if known >= planning else sorted(known)
            rows.append([code(name), kind(spec), default(spec, name in computed), meaning(spec), ", ".join(who)])
        return table(["name", "type", "default", "meaning", "read by"], rows)

    parts = [f"{HEAD}# Options\n\n{OPTIONS_INTRO.format(', '.join(sorted(planning)))}"]
    parts.append("## Of the command\n\n" + section(plain_options()))
    for role, about in ROLES.items():
        own = {name: spec for name, spec in role_options(role).items() if name.startswith(f"{role}_")}
        parts.append(f"## {role}_…\n\nOf the role [{role}](roles/{role}.md), about {about}.\n\n{section(own)}")
    parts.append(f"## Old names\n\nThe plan says so where one is still used.\n\n{old_names()}")
    parts.append(f"## Of ansible-playbook\n\n{ansible_options()}")
    for where, names in ENVIRONMENT.items():
        rows = [[code(name), plain_code(text), ", ".join(map(code, sorted(_rooms(users.get(name, ())))))]
                for name, text in names.items()]  # fmt: skip
        title = "Environment variables: " + where[0].lower() + where[1:]
        parts.append(f"## {title}\n\n" + table(["name", "meaning", "read in"], rows))
    specs = "`playbooks/meta/argument_specs.yml`, `roles/*/meta/argument_specs.yml`"
    return "\n".join(parts) + FOOT.format(f"{specs}, playbooks, roles, modules and `docs/make_reference.py` itself")


def old_names() -> str:
    """Write the options and values that have another name by now."""
    renamed = _module("planning.options")
    rows = [[code(old), code(new)] for old, new in renamed.RENAMED_OPTIONS.items()]
    rows += [[f"{code(option)}: {code(old)}", f"{code(option)}: {code(new)}"]
             for option, values in renamed.RENAMED_VALUES.items() for old, new in values.items()]  # fmt: skip
    return table(["old", "now"], rows)


def plain_code(text: str) -> str:
    """Escape a text in which backticks mark code already."""
    return "`".join(part if number % 2 else plain(part) for number, part in enumerate(text.split("`")))


def _rooms(paths: Iterable[str]) -> set[str]:
    """Name files as readers know them: a role, a room of module_utils, a module."""
    return {re.sub(r"^((?:roles|module_utils/lora_forge)/\w+)/.*", r"\1", path) for path in paths}


OPTIONS_INTRO = """\
Give an option with `-e name=value`, as a variable of a host or a group in an inventory, or in a file with `-e @file.yml`.
What is no text is best given as JSON: `-e '{{"run_notify_on": ["failed"]}}'`. On the command line it holds for all hosts.
The plan checks the options of the roles on every trainer, so that a misspelt one is found before anything is started.

- *Type*: `raw` is a text, a list or a mapping, as the meaning says.
- *Default* is «computed» where it depends on something else, which the meaning says, and empty where there is none.
- *Read by* names the playbooks of `playbooks/` that read the option in one of their steps, even if it makes no
  difference there. «All that plan» are those that begin with a plan: {}. `train.yml` is `playbooks/train.yml`.
"""  # noqa: E501 - one paragraph


def ansible_options() -> str:
    """Write what lora-forge makes of Ansible's own options."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "ansible.cfg", encoding="utf-8")
    given = settings["defaults"]
    rows = [
        [code("-i"), code(given["inventory"]), "The inventory: who trains."],
        [code("--check"), "", "Predict, and change nothing."],
        [code("-v"), "", "Show each task as Ansible does, with its result and the recap: see [what the terminal "
         "shows](../terminal.md#more-less-or-for-a-program)."],
        [code("--forks"), code(given["forks"]), "How many hosts Ansible works on at once. A command that watches keeps "
         "one for each host that trains; the plan says so where there are fewer."],
    ]  # fmt: skip
    return table(["name", "default", "meaning"], rows)


def pages() -> dict[str, str]:
    """Write all pages, by their paths below docs/reference."""
    return {**module_pages(), **role_pages(), "options.md": options_page()}


def main(folder: str = str(ROOT / "docs/reference")) -> None:
    target, made = pathlib.Path(folder), pages()
    for path in sorted([*target.glob("modules/*.md"), *target.glob("roles/*.md")]):
        if str(path.relative_to(target)) not in made:
            path.unlink()
    for name, text in made.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
