"""The options of the roles as inventories give them, held against the roles' own specs.

Ansible checks the options of a role when the role is called, which may be after something was rented. What an
inventory, or ``-e``, says of a trainer is known before. What reads or checks reads files of the checkout, and for names
that nobody knows those of the user; the others are pure.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import pathlib
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.lora_forge.planning import recipe
from ansible.module_utils.lora_forge.planning.agents import NOBODY, split_names
from ansible.module_utils.lora_forge.planning.layers import quote_value
from ansible.module_utils.lora_forge.text import nearest

HOST_VARIABLE_PREFIXES = ("adapter_", "converge_", "pod_", "run_", "trainer_")  # of each role that has options
# Options that have another name by now: the old one, and the new one.
RENAMED_OPTIONS = {"run_lane": "run_lanes"}
# The same for values, by their option.
RENAMED_VALUES = {"run_notify_on": {"money": "over_budget"}}
INVENTORY_FACTS = ("pod_id", "pod_status", "pod_usd_per_hour")  # what inventory_plugins/runpod.py tells of a live pod
_ALIKE = 0.75  # difflib's ratio from which on a name is a slip, and no variable of the user's own
_MEANT = {"agent": "role"}  # what people call an option by, and difflib does not find
_NOT_THE_USERS = ("ansible_", "awx_", "tower_")  # what Ansible sets, and AWX in each of its jobs
_BESIDE = ("group_vars", "host_vars", "hooks")  # folders beside an inventory that are the user's own
_MOST_FILES, _MOST_BYTES = 2000, 1 << 20  # of the user's that are looked through for a name
_SHOWN = 3  # hosts that are named
_CHARACTERS = 60  # of a value that are shown
_KINDS = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "list": "a list",
          "dict": "a mapping"}  # fmt: skip
# What numbers may be: seconds, money and counts are finite and not below nothing, and these are in ranges of their own.
_RANGE = (0, 1_000_000_000)
_RANGES = {"run_rendezvous_port": (1, 65_535)}
_ELEMENTS = {"str": "texts", "dict": "mappings"}


def read_specs(checkout: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Read what the roles say of their options.

    Args:
        checkout: The project's folder.

    Returns:
        The spec of each option of any entry point, by its name.
    """
    specs: dict[str, dict[str, Any]] = {}
    for path in sorted(checkout.glob("roles/*/meta/argument_specs.yml")):
        for entry in _load(path)["argument_specs"].values():
            specs |= entry.get("options", {})
    return specs


def read_internal_names(checkout: pathlib.Path) -> frozenset[str]:
    """List the variables that the project's own plays set: no options, and no slips of a user's.

    Args:
        checkout: The project's folder.
    """
    paths = [*checkout.glob("roles/*/tasks/*.yml"), *checkout.glob("playbooks/**/*.yml")]
    return frozenset(INVENTORY_FACTS).union(*(_names_set_by(_load(path)) for path in paths))


def _load(path: pathlib.Path) -> Any:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML has it
    return yaml.load(path.read_text(encoding="utf-8"), loader)


def _names_set_by(node: Any) -> Iterator[str]:
    """List the variables that a play or a task sets: vars, facts, what is registered, the turn of a loop."""
    if isinstance(node, list):
        for item in node:
            yield from _names_set_by(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("register", "loop_var"):
                yield value
            elif key in ("vars", "ansible.builtin.set_fact", "ansible.builtin.add_host"):
                yield from value
            else:
                yield from _names_set_by(value)


def is_checked(name: Any) -> bool:
    """Tell whether a host variable is to be handed to :func:`check_trainer_options`, by its name.

    A file of variables may have a number for one, which is nobody's option.
    """
    return isinstance(name, str) and name.startswith(HOST_VARIABLE_PREFIXES)


def option_errors(variables: Mapping[str, Any], specs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Tell what is wrong with the values of options, by Ansible's own rules, and which have another name by now.

    Args:
        variables: What is given. A value with a Jinja expression in it is passed over.
        specs: From :func:`read_specs`.

    Returns:
        Sentences, without the host. None of them shows a value of an option whose spec has ``no_log``, or that takes a
        mapping.
    """
    sentences = []
    for name, value in variables.items():
        if name in RENAMED_OPTIONS:
            sentences.append(f"{name} is called {RENAMED_OPTIONS[name]} now; rename it")
        elif name in specs and not _has_expression(value):
            sentences += _value_errors(name, value, specs[name])
    return sentences


def _has_expression(value: Any) -> bool:
    return any(mark in str(value) for mark in ("{{", "{%"))


def _value_errors(name: str, value: Any, spec: Mapping[str, Any]) -> list[str]:
    low, high = _RANGES.get(name, _RANGE)
    if spec.get("type") in ("int", "float") and not _is_between(low, value, high):
        return [f"{name} is «{_quoted(value)}»; it takes {_expected(spec)} from {low} to {high:,}"]
    rule = {key: spec[key] for key in ("type", "elements", "choices", "default") if key in spec}
    result = ArgumentSpecValidator({name: rule}).validate({name: value})
    if not result.error_messages:
        return []
    taken = result.validated_parameters.get(name)  # as Ansible understands it: «a, b» may be a list
    choices = spec.get("choices", [])
    refused = [item for item in (taken if isinstance(taken, list) else [taken]) if item not in choices]
    secret = spec.get("no_log") or spec.get("type") == "dict"  # as pod_env may hold
    if not choices or secret:
        shown = "is of another kind" if secret else f"is «{_quoted(value)}»"
        return [f"{name} {shown}; it takes {_expected(spec)}"]
    renamed = RENAMED_VALUES.get(name, {})
    verb = "holds" if spec.get("type") == "list" else "is"
    return [
        f"{name} {verb} «{item}», which is called {renamed[item]} now"
        if isinstance(item, str) and item in renamed
        else f"{name} {verb} «{_quoted(item)}»; it takes {', '.join(map(str, choices))}{nearest(item, choices)}"
        for item in refused
    ]


def _is_between(low: int, value: Any, high: int) -> bool:
    """Tell whether a number is in a range; not a number is in none, and what is none at all is passed over.

    It comes before Ansible's own check of whole numbers, which has no answer for «inf», and none in time for
    «1e999999999».
    """
    with contextlib.suppress(TypeError, ValueError):
        try:
            return low <= float(value) <= high
        except OverflowError:  # a whole number that is larger than any other one
            return False
    return True


def _quoted(value: Any) -> str:
    text = value if isinstance(value, str) else quote_value(value)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 1]}…"


def _expected(spec: Mapping[str, Any]) -> str:
    """Say what an option takes, in a few words."""
    kind = spec.get("type", "str")
    elements = f" of {_ELEMENTS[spec['elements']]}" if spec.get("elements") in _ELEMENTS else ""
    return _KINDS.get(kind, kind) + elements


def misspelt_option(name: str, options: Iterable[str]) -> str:
    """Find the option of the same role that a name is so alike that it must be meant; empty where there is none.

    Args:
        name: A variable with a role's prefix that is no option.
        options: The names of all options.
    """
    prefix = next(prefix for prefix in HOST_VARIABLE_PREFIXES if name.startswith(prefix))
    own = [option.removeprefix(prefix) for option in options if option.startswith(prefix)]
    return "".join(prefix + match for match in difflib.get_close_matches(name.removeprefix(prefix), own, 1, _ALIKE))


def check_trainer_options(
    checkout: pathlib.Path, hosts: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], list[str]]:
    """Hold what is said of the trainers against the specs of all roles, before anything is rented or started.

    Args:
        checkout: The project's folder.
        hosts: The variables of each trainer; those that :func:`is_checked` does not name are passed over.

    Returns:
        What is wrong, and what is only strange, in sentences. A name with a role's prefix that is like an option's is
        wrong; any other may be a variable of the user's own, and is strange.
    """
    specs = read_specs(checkout)
    given = {name for variables in hosts.values() for name in variables if is_checked(name)}
    unknown = given - specs.keys() - RENAMED_OPTIONS.keys()
    if unknown:
        unknown -= read_internal_names(checkout)
    misspelt = {name: misspelt_option(name, specs) for name in sorted(unknown)}
    wrong: dict[str, list[str]] = {}
    strange: dict[str, list[str]] = {}
    for host, variables in hosts.items():
        for sentence in option_errors(variables, specs):
            wrong.setdefault(sentence, []).append(host)
        for name, meant in misspelt.items():
            if name in variables and meant:
                words = f"there is no option {name}; did you mean «{meant}»? A variable of your own needs another name"
                wrong.setdefault(words, []).append(host)
            elif name in variables:
                strange.setdefault(f"there is no option {name}; it is ignored", []).append(host)
    return _with_hosts(wrong), _with_hosts(strange)


def check_command_options(
    checkout: pathlib.Path, given: Mapping[str, Any], inventories: Iterable[str] = ()
) -> tuple[list[str], list[str]]:
    """Hold what a command was given by ``-e`` against what playbooks and roles read: names, and the kinds of values.

    Args:
        checkout: The project's folder.
        given: The variables, by their names.
        inventories: The inventories of the command, by their paths; what is none is passed over.

    Returns:
        What is wrong, and what is only strange, in sentences. A name that is like an option's is wrong. Any other one
        may be a variable of the user's own, and is strange where neither the inventories nor what lies beside them has
        it.
    """
    options = {name: value for name, value in given.items() if is_checked(name)}
    specs = read_command_specs(checkout)
    plain = {name: value for name, value in given.items() if name in specs}
    wrong = [f"-e: {sentence}" for sentence in option_errors(plain, specs)]
    if "role" in given and not split_names(given["role"]):  # -e role=$UNSET must not mean everybody
        wrong.append(f"-e: {NOBODY}")
    unknown = [name for name in given if name not in {*specs, *options} and not name.startswith(_NOT_THE_USERS)]
    keys = read_recipe_keys(checkout) if unknown else ()
    strange = []
    for name in unknown:
        head, _, key = name.partition(".")
        meant = _MEANT.get(name) or "".join(difflib.get_close_matches(name, specs, 1, _ALIKE))
        if name in keys or (head in specs and key in keys):
            advice = json.dumps({"recipe": {key or name: given[name]}}, default=str)
            wrong.append(f"-e: {key or name} is a key of recipes, and no option; write -e '{advice}'")
        elif meant:
            wrong.append(
                f"-e: there is no option {name}; did you mean «{meant}»? A variable of your own needs another name"
            )
        else:
            strange.append(name)
    misspelt, ignored = check_trainer_options(checkout, {"-e": options})
    if not strange and not ignored:
        return wrong + misspelt, []
    texts = [*read_user_texts(inventories), *map(str, given.values())]
    used = {word for text in texts for word in re.findall(r"\w+", text)}
    unread = [name for name in strange if name not in used]
    odd = [f"-e: nothing reads {name}: it is no option, and nothing of your inventory" for name in unread]
    ours = {name: value for name, value in options.items() if name not in used}
    return wrong + misspelt, odd + check_trainer_options(checkout, {"-e": ours})[1]


def configuration_error(checkout: pathlib.Path, read: str, named: str, here: pathlib.Path) -> str:
    """Say what to do where Ansible has not read the checkout's own ansible.cfg; empty where it has.

    Its settings decide, among others, that what a host answers never becomes a variable.

    Args:
        checkout: The project's folder.
        read: The file of settings that Ansible has read; empty for none.
        named: What ANSIBLE_CONFIG says; empty where it says nothing.
        here: The working directory.
    """
    ours = checkout / "ansible.cfg"
    with contextlib.suppress(OSError):
        if read and ours.samefile(read):
            return ""
    remedy = f"cd {checkout}, and run the command there"
    if named:
        remedy = "ANSIBLE_CONFIG says so: unset ANSIBLE_CONFIG"
    elif here.samefile(checkout):
        remedy = f"make it a file that you may read: {ours}"
        if here.stat().st_mode & stat.S_IWOTH:
            remedy = (
                "it is passed over where everybody may write into its folder: "
                f"chmod o-w {checkout}, or, where that changes nothing, export ANSIBLE_CONFIG={ours}"
            )
    return f"Ansible has read {read or 'no ansible.cfg'} in place of {ours}, whose settings lora-forge needs; {remedy}"


def read_command_specs(checkout: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Read what playbooks and roles take besides the roles' options, by name.

    Args:
        checkout: The project's folder.
    """
    listed = _load(checkout / "playbooks" / "meta" / "argument_specs.yml")["argument_specs"].values()
    return {name: spec for entry in listed for name, spec in entry["options"].items()}


def read_recipe_keys(checkout: pathlib.Path) -> Collection[str]:
    """Read Axolotl's keys: one of them among the options was meant for the recipe.

    Args:
        checkout: The project's folder.

    Raises:
        UserError: The schema cannot be read.
    """
    return frozenset(recipe.read_schema(checkout)["properties"])


def read_user_texts(inventories: Iterable[str]) -> list[str]:
    """Read the files in which a user's own variables may stand: inventories, and what lies beside them for Ansible.

    Args:
        inventories: Paths of files and folders; what is none, such as a list of hosts, is passed over.
    """
    files: set[pathlib.Path] = set()
    for path in map(pathlib.Path, inventories):
        folder = path if path.is_dir() else path.parent
        beside = [folder / name for name in _BESIDE]
        files |= {path} if path.is_file() else set()
        files |= {found for place in ([path] if path.is_dir() else []) + beside for found in place.rglob("*")}
    texts = []
    for path in sorted(files)[:_MOST_FILES]:
        with contextlib.suppress(OSError):  # who may not read it does not use it
            if path.is_file() and path.stat().st_size <= _MOST_BYTES:
                texts.append(path.read_text(encoding="utf-8", errors="replace"))
    return texts


def _with_hosts(sentences: Mapping[str, Collection[str]]) -> list[str]:
    """Put the hosts that a sentence is about before it: the first ones, and how many more."""
    lines = []
    for sentence, hosts in sentences.items():
        more = f" and {len(hosts) - _SHOWN} more" if len(hosts) > _SHOWN else ""
        lines.append(f"{', '.join([*hosts][:_SHOWN])}{more}: {sentence}")
    return lines
