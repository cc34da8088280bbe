"""What a rehearsal trains in the place of a recipe's base model, and what a CPU has to do otherwise with it."""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Optional

from ansible.module_utils.lora_forge.planning import base_models, memory, shrink

PROFILE = "rehearsal"  # the profile whose base model is made on the trainer
# What makes a tokenizer, as its maker publishes it; the first two have to be there.
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model"),
)
_NEEDED = 2
# With more tokens than this the logits take gigabytes, and a step a minute: less of the data is rehearsed then.
_MANY_TOKENS = 2**16
_LESS = {"sequence_len": 512, "micro_batch_size": 1, "eval_batch_size": 1, "gradient_accumulation_steps": 1}
_MOST_BYTES = 100 * 10**6  # of a file of a tokenizer; those with 262,144 tokens have a third of that


def find_base(recipe: Mapping[str, Any]) -> tuple[dict[str, Any], Optional[pathlib.Path]]:
    """Find the config.json of a recipe's base model, or what is known of models of its name.

    Args:
        recipe: With ``base_model``, and ``model_revision`` where it is no folder.

    Returns:
        What it holds, empty where the model is not known; and the folder that it lies in, if it does.
    """
    config, folder = memory.find_config(recipe)
    return config or base_models.family(memory.table_name(recipe.get("base_model"))), folder


def rehearse(real: Mapping[str, Any], find: Any = find_base) -> tuple[dict[str, Any], str]:
    """Find what to rehearse a recipe with: a shrunk copy of its base model.

    Args:
        real: The recipe as it is without the rehearsal's profile.
        find: Finds the config.json of its base model, and its folder.

    Returns:
        What ``PlannedRun.rehearsed`` holds, empty where the base is not known well enough: ``of`` (its name),
        ``config``, ``tokens``, ``names``, ``files`` (see :func:`shrink.shrink`), and where its own tokenizer is at hand
        ``tokenizer`` (file -> SHA-256) and ``folder``. Then why it is not known, or its tokenizer is of no use, in a
        sentence.
    """
    model = str(real.get("base_model") or "")
    config, folder = find(real)
    stand_in = f"a tiny Qwen3 is rehearsed in the place of {model}"
    if not config:
        return {}, f"{stand_in}, whose config.json is not on this machine, nor is it among the models that are known"
    try:
        small = shrink.shrink(config)
    except shrink.Unknown as error:
        return {}, f"{stand_in}: {error}"
    try:
        files = _tokenizer(folder) if folder else {}
    except ValueError as error:
        return {"of": model, **small}, f"a rehearsal learns its tokenizer from the data: {error}"
    own = {"tokenizer": files, "folder": str(folder)} if files else {}
    return {"of": model, **small, **own}, ""


def _tokenizer(folder: pathlib.Path) -> dict[str, str]:
    """Hash the files of a base model's own tokenizer; empty where it is not whole, a ValueError where one is broken."""
    hashes = {}
    for name in TOKENIZER:
        path = folder / name
        try:
            status = path.stat()
            if path.is_file() and status.st_size <= _MOST_BYTES:
                hashes[name] = _sha256(str(path), status.st_size, status.st_mtime_ns)
        except OSError:
            continue
    return hashes if set(TOKENIZER[:_NEEDED]) <= hashes.keys() else {}


@functools.cache
def _sha256(path: str, size: int, changed: int) -> str:
    """Hash a file, once for each plan; one that is no JSON, though it is called so, is a ValueError."""
    content = pathlib.Path(path).read_bytes()
    if path.endswith(".json"):
        try:
            sound = isinstance(json.loads(content), dict)
        except (ValueError, RecursionError):
            sound = False
        if not sound:
            raise ValueError(f"{path} is no JSON with keys")
    return hashlib.sha256(content).hexdigest()


def identity(rehearsed: Mapping[str, Any]) -> dict[str, Any]:
    """Give what of it decides what is learnt: not where its files lie.

    Args:
        rehearsed: Of :func:`rehearse`.
    """
    return {key: value for key, value in rehearsed.items() if key != "folder"}


def adapt(keys: dict[str, Any], rehearsed: Mapping[str, Any]) -> None:
    """Fit a rehearsal's recipe to the model that it trains; what it changes, configs/profiles/rehearsal.yml tells.

    Args:
        keys: The merged recipe, which is changed.
        rehearsed: Of :func:`rehearse`.
    """
    if not rehearsed:
        return
    config = rehearsed["config"]
    kind = shrink.KINDS[shrink.language_model(config)]
    keys["base_model"] = f"tiny-random-{config['model_type']}"
    keys["attn_implementation"] = kind.attention
    if not kind.packs:
        keys["sample_packing"] = False
        keys.pop("eval_sample_packing", None)
    text = config.get("text_config", config)
    if "tokenizer" in rehearsed and text.get("vocab_size", _MANY_TOKENS + 1) > _MANY_TOKENS:
        keys |= {key: min(most, keys[key]) if type(keys.get(key)) is int else most for key, most in _LESS.items()}
        steps = keys.get("max_steps")
        keys |= {"eval_steps": steps} if type(keys.get("eval_steps")) is int and type(steps) is int else {}
