"""What an adapter has to consist of: expected.json, which the trainer writes before it trains, and what differs.

``roles/run/files/expected_adapter.py`` makes that file of the base model itself. It comes from the trainer like the
adapter: it is held to a form, and to the recipe, before anything is held to it.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Optional

from ansible.module_utils.lora_forge import paths, rundir
from ansible.module_utils.lora_forge.text import printable

SCHEMA = 1
_PREFIX = "base_model.model."  # PEFT's, before each name
_LORA = re.compile(
    r"base_model\.model\.(?P<module>.+?)\.(?P<part>lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))\b"
)
# Which dimension of a matrix is the rank.
_RANK_AT = {"lora_A": 0, "lora_B": 1, "lora_embedding_A": 0, "lora_embedding_B": 1}
_PAIRS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
# What begins at zero, and differs from it once it was trained. The other one of the pair begins at random.
_FROM_ZERO = ("lora_B", "lora_embedding_A")
_MOST_TENSORS, _LONGEST_NAME, _MOST_SIZES = 200_000, 500, 5
_MOST_VALUES = 10**11  # of a tensor


@dataclasses.dataclass(frozen=True)
class Expected:
    """What an adapter has to consist of.

    Attributes:
        base_model: As the trainer loads it.
        revision: The commit of it; None of a folder.
        tensors: Name -> shape.
        towers: Modules outside the language model that the recipe asks for.
    """

    base_model: str
    revision: Optional[str]
    tensors: dict[str, list[int]]
    towers: frozenset[str]


def read(path: pathlib.Path) -> Optional[Expected]:
    """Read an expected.json; None where there is none, or where it does not have the form of one.

    Args:
        path: The file. Another host may have written it.
    """
    data = rundir.read_json(path, paths.ADAPTER[rundir.EXPECTED])
    tensors, towers = data.get("tensors"), data.get("towers", [])
    base, revision = data.get("base_model"), data.get("revision")
    if data.get("schema") != SCHEMA or not isinstance(base, str) or not isinstance(revision, (str, type(None))):
        return None
    if not isinstance(tensors, dict) or not 0 < len(tensors) <= _MOST_TENSORS or not isinstance(towers, list):
        return None
    if not all(_is_name(name) and _is_shape(shape) for name, shape in tensors.items()) or not all(
        map(_is_name, towers)
    ):
        return None
    return Expected(base, revision, tensors, frozenset(towers)) if _are_pairs(tensors) else None


def _are_pairs(names: Iterable[str]) -> bool:
    """Tell whether there are LoRA matrices among the names of tensors, and none without the other one of its pair."""
    found: dict[str, set[str]] = collections.defaultdict(set)
    for match in filter(None, map(_LORA.match, names)):
        found[match["module"]].add(match["part"])
    pairs = [sum(part in parts for part in pair) for parts in found.values() for pair in _PAIRS]
    return any(pairs) and 1 not in pairs


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and value.isprintable()


def _is_shape(value: Any) -> bool:
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_SIZES:
        return False
    return all(type(size) is int and 0 < size <= _MOST_VALUES for size in value) and math.prod(value) <= _MOST_VALUES


def read_untrained(path: pathlib.Path) -> frozenset[str]:
    """Read the names of the tensors that no gradient reached, from gradients.json; none where it does not tell.

    Args:
        path: The file. Another host may have written it.
    """
    names = rundir.read_json(path, paths.ADAPTER[f"output/{rundir.GRADIENTS}"]).get("never")
    if not isinstance(names, list) or len(names) > _MOST_TENSORS:
        return frozenset()
    return frozenset(name for name in names if _is_name(name))


def is_same_base(base: str, wanted: str) -> bool:
    """Tell whether two names are of one base model: a folder of its name is the same model at another place."""
    at_place = base.startswith("/") or wanted.startswith("/")
    return base == wanted or (at_place and pathlib.PurePath(base).name == pathlib.PurePath(wanted).name)


def wanted_revision(recipe: dict[str, Any]) -> Optional[str]:
    """Return the commit of the base model that a recipe names; None where the model is a folder."""
    return None if str(recipe["base_model"]).startswith("/") else recipe.get("model_revision")


def recipe_problems(expected: Expected, recipe: dict[str, Any]) -> list[str]:
    """List what speaks against an expectation itself: it is of another base model, or of a rank that nobody asked for.

    Args:
        expected: What the trainer said.
        recipe: ``lora_r``, ``lora_rank_pattern``, ``base_model``, ``model_revision``.
    """
    problems = []
    if not is_same_base(expected.base_model, str(recipe["base_model"])):
        base = paths.quoted(expected.base_model)
        problems.append(f"{rundir.EXPECTED} is of base model {base}, the recipe says {recipe['base_model']}")
    wanted = wanted_revision(recipe)
    if expected.revision != wanted:
        problems.append(
            f"{rundir.EXPECTED} is of revision {paths.quoted(expected.revision)} of the base model, "
            f"the recipe says {wanted}"
        )
    ranks = {recipe["lora_r"], *(recipe.get("lora_rank_pattern") or {}).values()}
    for name, shape in expected.tensors.items():
        rank = _rank(name, shape)
        # Of experts that lie in one parameter the matrices lie in one tensor, too.
        fused = "experts" in name or recipe.get("lora_target_parameters")
        if rank is not None and rank not in ranks and not (fused and any(rank % one == 0 for one in ranks)):
            ranks_said = " or ".join(map(str, sorted(ranks)))
            problems.append(f"{rundir.EXPECTED} gives {brief(name)} rank {rank}, the recipe says {ranks_said}")
            break
    return problems


def _rank(name: str, shape: list[int]) -> Optional[int]:
    """Return the rank of a matrix by its shape; None of what has none."""
    match = _LORA.match(name)
    at = _RANK_AT.get(match["part"]) if match else None
    return shape[at] if at is not None and at < len(shape) else None


def differences(tensors: dict[str, list[int]], expected: Expected) -> list[str]:
    """List in what an adapter differs from what it has to consist of: a sentence for each module.

    Args:
        tensors: Name -> shape, of the adapter.
        expected: What it has to consist of.
    """
    problems = []
    lacking = _by_module(expected.tensors.keys() - tensors.keys())
    more = _by_module(tensors.keys() - expected.tensors.keys())
    whole = _by_module(expected.tensors)
    for module, parts in lacking.items():
        if parts == {""}:
            problems.append(f"tensor {brief(module)} is missing, and the recipe trains it")
        elif parts == whole[module]:
            problems.append(f"{brief(module)} has no {_said(parts)}, and the recipe trains it")
        else:
            problems.append(f"{brief(module)} lacks its {_said(parts)}")
    for module, parts in more.items():
        has = f"tensor {brief(module)} is one" if parts == {""} else f"{brief(module)} has {_said(parts)}"
        problems.append(f"{has} that the recipe does not train")
    for name in sorted(expected.tensors.keys() & tensors.keys(), key=_natural):
        shape, wanted = tensors[name], expected.tensors[name]
        if shape == wanted:
            continue
        rank, right = _rank(name, shape), _rank(name, wanted)
        at_rank = len(shape) == len(wanted) and sum(a != b for a, b in zip(shape, wanted)) == 1 and rank != right
        if at_rank:
            problems.append(f"tensor {brief(name)} has rank {rank}, and {right} is expected")
        else:
            problems.append(f"tensor {brief(name)} has shape {brief(shape)}, and {wanted} is expected")
    return problems


def counts(names: Iterable[str]) -> tuple[int, list[str], list[str]]:
    """Count the modules that are adapted, and list the matrices, none of which may be all zero after a training.

    Args:
        names: Of an adapter's tensors.

    Returns:
        How many modules; the matrices that begin at zero; those that begin at random.
    """
    found = {name: match for name, match in ((name, _LORA.match(name)) for name in names) if match}
    matrices = [(name, match["part"]) for name, match in found.items() if match["part"] in _RANK_AT]
    from_zero = [name for name, part in matrices if part in _FROM_ZERO]
    at_random = [name for name, part in matrices if part not in _FROM_ZERO]
    return len({match["module"] for match in found.values()}), from_zero, at_random


def zero_problems(
    zero: Iterable[str],
    from_zero: Sequence[str],
    at_random: Sequence[str],
    untrained: frozenset[str],
    towers: frozenset[str],
) -> list[str]:
    """List what is zero, though it was trained or never began so.

    What no gradient reached stays zero, as do layers that a model does not use. That most of a model is such a layer
    is nothing to believe: then nothing was trained.

    Args:
        zero: The tensors of the adapter that hold nothing but zero.
        from_zero: All matrices that begin so.
        at_random: All matrices that do not.
        untrained: What no gradient reached, as the training noted it.
        towers: Modules outside the language model, which may do without any. An adapter of nothing else may not.
    """
    empty = frozenset(zero)
    problems = [
        f"tensor {brief(name)} is all zero: it was never trained"
        for name in from_zero
        if name in empty and name not in untrained
    ]
    problems += [f"tensor {brief(name)} is all zero, and began at random" for name in at_random if name in empty]
    inside = [name for name in from_zero if module_of(name) not in towers] or from_zero
    excused = [name for name in inside if name in empty and name in untrained]
    if excused and 2 * len(excused) >= len(inside):
        problems.append(f"{len(excused)} of {len(inside)} B matrices are all zero, as no gradient reached them: "
                        "the training taught the model nothing there")  # fmt: skip
    return problems


def module_of(name: str) -> str:
    """Return the module that a tensor is of, as the model calls it."""
    match = _LORA.match(name)
    return (match["module"] if match else name.removeprefix(_PREFIX)).replace(".base_layer", "")


def _by_module(names: Iterable[str]) -> dict[str, set[str]]:
    """Sort names of tensors by their modules: the parts of each that are named."""
    found: dict[str, set[str]] = collections.defaultdict(set)
    for name in sorted(names, key=_natural):
        match = _LORA.match(name)
        found[match["module"] if match else name.removeprefix(_PREFIX)].add(match["part"] if match else "")
    return found


def _said(parts: set[str]) -> str:
    """Name the parts of a module's adapter."""
    if {"lora_A", "lora_B"} <= parts:
        return "LoRA matrices"
    return f"{' and '.join(sorted(part.removeprefix('lora_') for part in parts))} matrix"


def _natural(name: str) -> list[Any]:
    """Sort layer 2 before layer 10."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d{1,9})", name)]


def brief(value: Any) -> str:
    """Write what a file holds for a message: in one line, and not too long."""
    text = printable(str(value)).replace("\n", " ")
    return text if len(text) <= 200 else f"{text[:199]}…"
