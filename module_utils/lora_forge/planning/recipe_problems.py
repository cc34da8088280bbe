"""What is refused of a recipe before Axolotl is asked, in sentences that name file, line, key and remedy."""

from __future__ import annotations

import json
import re
from typing import Any, Optional

import jsonschema
from ansible.module_utils.lora_forge.data import conversation
from ansible.module_utils.lora_forge.planning.layers import Layer, merge_and_tell, quote_value
from ansible.module_utils.lora_forge.planning.recipe import (
    BATCH,
    COMMIT,
    COMPUTED_KEYS,
    DROPOUT_KERNELS,
    KERNEL_PLUGINS,
    LORA_KERNELS,
    MACHINE_KEYS,
    RECORD_KEYS,
    effective_batch,
    unusual_dropout,
)
from ansible.module_utils.lora_forge.planning.rivals import rivals_of
from ansible.module_utils.lora_forge.text import nearest

NEEDED = ("base_model", "sequence_len", "lora_r")  # the plan and the adapter's proof read them
TARGETS = ("lora_target_modules", "lora_target_linear", "lora_target_parameters")  # any of them says what is adapted
_MOST = 100_000_000  # of what is counted in a recipe; more is a slip of the hand
_LARGEST_BATCH = 1_000_000  # sequences of a step
# Figures: above or from the first one on, up to the second one.
_RANGES: dict[str, tuple[float, bool, float]] = {
    "learning_rate": (0, False, 1),
    "lora_alpha": (0, False, _MOST),
    "lora_dropout": (0, True, 0.99),
    "max_grad_norm": (0, True, _MOST),
    "neftune_noise_alpha": (0, True, 1000),
    **dict.fromkeys(
        (
            *("early_stopping_patience", "eval_steps", "evals_per_epoch", "logging_steps", "save_steps"),
            *("save_total_limit", "saves_per_epoch", "tensor_parallel_size", "context_parallel_size"),
        ),
        (0, True, _MOST),
    ),
    "warmup_ratio": (0, True, 1),
    "warmup_steps": (0, True, _MOST),
    "weight_decay": (0, True, 10),
}
# What other programs, and people, call Axolotl's keys, where the nearest spelling would be another key or none.
SYNONYMS = {
    "alpha": "lora_alpha",
    "cutoff_len": "sequence_len",
    "dataset": "datasets",
    "dropout": "lora_dropout",
    "epochs": "num_epochs",
    "gradient_accumulation": "gradient_accumulation_steps",
    "lora_rank": "lora_r",
    "lr": "learning_rate",
    "lr_scheduler_type": "lr_scheduler",
    "max_length": "sequence_len",
    "max_seq_len": "sequence_len",
    "max_seq_length": "sequence_len",
    "model": "base_model",
    "model_max_length": "sequence_len",
    "model_name": "base_model",
    "model_name_or_path": "base_model",
    "modules_to_save": "lora_modules_to_save",
    "neftune_alpha": "neftune_noise_alpha",
    "num_train_epochs": "num_epochs",
    "optim": "optimizer",
    "packing": "sample_packing",
    "patience": "early_stopping_patience",
    "per_device_train_batch_size": "micro_batch_size",
    "r": "lora_r",
    "rank": "lora_r",
    "revision": "model_revision",
    "revision_of_model": "model_revision",  # Axolotl knows it, and the plan reads the other one
    "scheduler": "lr_scheduler",
    "target_modules": "lora_target_modules",
    "template": "chat_template",
    "use_dora": "peft_use_dora",
    "use_rslora": "peft_use_rslora",
    "warmup": "warmup_steps",
}
# What learns from something else than conversations, or from other data than is checked here.
_OTHER_TRAININGS = {
    **dict.fromkeys(
        ("rl", "reward_model", "process_reward_model"), "what is trained here learns from conversations alone (SFT)"
    ),
    "pretraining_dataset": "what is trained here are the conversations of datasets, and a trainer is offline",
    "streaming": "the files are staged, and read as a whole; take it out",
}
# Of a dataset's entry: what leads to a dataset elsewhere, or into another kind of file than lines of JSON.
_ELSEWHERE = ("data_files", "name", "revision", "trust_remote_code")
_CONVERSATIONS = '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'
_LIST_OF_TEXT = {"items": {"type": "string"}, "type": "array"}
_TYPES = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text",
          "array": "a list", "object": "a mapping"}  # fmt: skip
_LIMITS = {"minimum": "of at least", "maximum": "of at most", "exclusiveMinimum": "above", "exclusiveMaximum": "below"}


def problems(
    recipe: dict[str, Any], origin: dict[str, Layer], schema: dict[str, Any], fine: Optional[set[str]] = None
) -> list[str]:
    """List everything wrong with a merged recipe that the controller can see.

    Args:
        recipe: The merged recipe, before paths are added.
        origin: The layer of each key.
        schema: configs/schema.json.
        fine: Keys with values that have passed before, by the same schema; gets those that pass. Hundreds of agents
            have most of them in common, and the schema is slow.

    Returns:
        Sentences that name file, line, key and remedy.
    """
    sentences = []
    known = schema["properties"]
    for key, value in recipe.items():
        where = origin[key].where(key)
        if key in COMPUTED_KEYS:
            sentences.append(f"{where}: «{key}» is computed for every run; take it out")
        elif key not in known:
            hint = f"; it is called «{SYNONYMS[key]}»" if key in SYNONYMS else nearest(key, known)
            sentences.append(f"{where}: Axolotl knows no key «{key}»{hint}")
        elif key in _OTHER_TRAININGS and value:
            sentences.append(f"{where}: «{key}: {quote_value(value)}»: {_OTHER_TRAININGS[key]}")
        elif "x-deprecated" in known[key]:
            sentences.append(f"{where}: «{key}» has been replaced. {known[key]['x-deprecated'].strip()}")
        elif key == "datasets":
            sentences += _dataset_problems(value, where, schema)
        else:
            value_key = f"{key}: {value!r}"
            found = [] if fine and value_key in fine else _type_problems(key, value, where, schema)
            if fine is not None and not found:
                fine.add(value_key)
            sentences += found or _name_problems(key, value, where, recipe, schema)
            plugin = known[key].get("x-plugin", "")
            named = {name.rpartition(".")[2] for name in _plugins(recipe)} if plugin else set()
            if plugin and plugin not in KERNEL_PLUGINS and plugin.rpartition(".")[2] not in named:
                sentences.append(
                    f"{where}: «{key}» is a key of {plugin}, which «plugins» does not name: it would do nothing"
                )
    return sentences


def _plugins(recipe: dict[str, Any]) -> list[str]:
    """List the plugins that a recipe names, also where they are none that can be."""
    named = recipe.get("plugins")
    return [str(plugin) for plugin in named] if isinstance(named, list) else []


def _name_problems(key: str, value: Any, where: str, recipe: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Refuse a name that neither Axolotl nor transformers knows; somebody's own plugin may bring another one."""
    names = schema["properties"][key].get("x-names", [])
    own = [plugin for plugin in _plugins(recipe) if not plugin.startswith("axolotl.")]
    if not isinstance(value, str) or not names or value in names or own:
        return []
    return [f"{where}: «{key}: {value}» is none that Axolotl knows{nearest(value, names)}"]


def _dataset_problems(items: Any, where: str, schema: dict[str, Any]) -> list[str]:
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return [f"{where}: «datasets» must be a list of mappings"]
    sentences = []
    known = schema["$defs"]["SFTDataset"]["properties"]
    for number, item in enumerate(items, 1):
        place = f"{where}: datasets, item {number}"
        sentences += _entry_problems(item, place)
        for key in item:
            if key not in known:
                sentences.append(f"{place}: Axolotl knows no key «{key}» there{nearest(key, known)}")
            else:
                sentences += _type_problems(key, item[key], place, {**schema, "properties": known})
        if len(items) > 1 and not item.get("path"):
            sentences.append(f"{place} names no «path»; where there are several, each says which file it is for")
    return sentences


def _entry_problems(item: dict[str, Any], place: str) -> list[str]:
    """List what an entry of the datasets asks for that is not done here."""
    kind, sentences = item.get("type", "chat_template"), []
    if kind not in ("chat_template", None):
        sentences.append(
            f"{place}: «type: {quote_value(kind)}»: what is trained here are conversations, type: chat_template. "
            f"Convert its lines to {_CONVERSATIONS}"
        )
    elsewhere = [key for key in _ELSEWHERE if item.get(key)]
    elsewhere += [key for key, here in (("ds_type", "json"), ("split", "train")) if item.get(key, here) != here]
    if elsewhere:
        sentences.append(
            f"{place}: «{elsewhere[0]}» is for a dataset of the hub or another kind of file; what is trained on here "
            "are files of JSON lines on this machine. Take it out"
        )
    mapped = item.get("message_property_mappings")
    for key in mapped if isinstance(mapped, dict) else ():
        if key not in conversation.MAPPED:
            sentences.append(
                f"{place}: message_property_mappings: «{key}» is not read of a turn; "
                f"{', '.join(conversation.MAPPED)} are"
            )
    roles = item.get("roles")
    for role in roles if isinstance(roles, dict) else ():
        if role not in conversation.ROLES:
            sentences.append(
                f"{place}: roles: «{role}» is no speaker of a chat template; {', '.join(conversation.ROLES)} are"
            )
    if item.get("conversation"):
        sentences.append(f"{place}: «conversation» is read by nothing any more; name the template with chat_template")
    return sentences


def _type_problems(key: str, value: Any, where: str, schema: dict[str, Any]) -> list[str]:
    part = {**schema["properties"][key], "$defs": schema.get("$defs", {})}
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(part).iter_errors(value))
    if error is None:
        return []
    return [f"{where}: «{key}: {json.dumps(value, default=str)}» does not fit: {_expected(part)}"]


def _expected(part: dict[str, Any]) -> str:
    """Say what a schema takes, in a few words."""
    options = part.get("anyOf", [part])
    words: list[str] = []
    for option in options:
        if "$ref" in option:
            option = part["$defs"].get(option["$ref"].rpartition("/")[2], {})
        if "enum" in option:
            words.append("one of " + ", ".join(map(str, option["enum"])))
        elif "const" in option:
            words.append(str(option["const"]))
        elif option.get("type") == "object" and (option.get("additionalProperties") or {}) == _LIST_OF_TEXT:
            words.append("a mapping to lists of texts")
        elif option.get("type") not in (None, "null"):
            limits = [f"{word} {option[name]}" for name, word in _LIMITS.items() if name in option]
            words.append(" ".join([_TYPES.get(option["type"], option["type"]), *limits]))
    return "expected " + (" or ".join(dict.fromkeys(words)) or "another form")


def contradictions(recipe: dict[str, Any], origin: dict[str, Layer]) -> list[str]:
    """List rivals that are left in a merged recipe: they stand in one layer, and nobody can say which is meant.

    Args:
        recipe: The merged recipe.
        origin: The layer of each key.
    """
    return [
        f"{origin[key].where(key)}: «{key}: {quote_value(recipe[key])}», and {origin[rival].where(rival)}: "
        f"«{rival}: {quote_value(recipe[rival])}»: {why}. Keep one of them"
        for key in recipe
        for rival, why in rivals_of(recipe, key)
        if key < rival
    ]


def range_problems(recipe: dict[str, Any], origin: dict[str, Layer]) -> list[str]:
    """List what fits Axolotl's schema and still makes no run: keys that the plan and an adapter's proof need.

    Args:
        recipe: A merged recipe without other problems.
        origin: The layer of each key.
    """
    linear = ("lora_target_modules",) if recipe.get("lora_target_linear") else ()
    needed = (key for key in NEEDED if key not in linear)
    sentences = [f"the recipe has no «{key}»; every run needs it" for key in needed if key not in recipe]
    for key in ("sequence_len", *BATCH, "num_epochs", "lora_r", "max_steps"):
        if not 0 < recipe.get(key, 1) <= _MOST:
            more = f" and {_MOST:,} at most" if recipe[key] > _MOST else ""
            more += "; leave it out for all epochs" if key == "max_steps" else ""
            sentences.append(f"{origin[key].where(key)}: «{key}: {quote_value(recipe[key])}» must be above 0{more}")
    if not sentences and effective_batch(recipe) > _LARGEST_BATCH:
        place = next(key for key in BATCH if key in recipe)
        sentences.append(
            f"{origin[place].where(place)}: «{place}: {recipe[place]}» makes steps of {effective_batch(recipe):,} "
            f"sequences (micro_batch_size × gradient_accumulation_steps); {_LARGEST_BATCH:,} at most"
        )
    for key, (low, itself, high) in _RANGES.items():
        value = recipe.get(key, low if itself else high)
        if isinstance(value, str) or not (low <= value <= high and (itself or value > low)):
            said = f"from {low} on" if itself else f"above {low}"
            sentences.append(
                f"{origin[key].where(key)}: «{key}: {quote_value(value)}» must be a number {said} and {high:,} at most"
            )
    if not 0 <= recipe.get("val_set_size", 0) < 1:
        where = origin["val_set_size"].where("val_set_size")
        sentences.append(f"{where}: «val_set_size: {recipe['val_set_size']}» must be a share from 0 to below 1")
    project = str(recipe.get("wandb_project", ""))
    if re.search(r"[/\\#?%:]", project) or len(project) > 128:  # W&B's own rule
        where = origin["wandb_project"].where("wandb_project")
        sentences.append(
            f"{where}: «wandb_project: {project}» must have no / \\ # ? % : in it, and 128 characters at most"
        )
    if not any(recipe.get(key) for key in TARGETS):
        at = origin.get("lora_target_modules")
        where = f"{at.where('lora_target_modules')}: " if at else ""
        sentences.append(f"{where}«lora_target_modules» names no module, so that nothing would be trained")
    return sentences


def model_problems(recipe: dict[str, Any], origin: dict[str, Layer], layers: list[Layer]) -> list[str]:
    """Refuse a base model that may not be the one that is meant: nothing is downloaded unpinned.

    Args:
        recipe: A merged recipe without other problems.
        origin: The layer of each key.
        layers: All layers, the last one on top.
    """
    begun = str(recipe.get("lora_model_dir") or "/")
    if not begun.startswith("/"):
        return [
            f"{origin['lora_model_dir'].where('lora_model_dir')}: «lora_model_dir: {begun}» is looked for on the "
            "trainer; give its absolute path there"
        ]
    model, revision = str(recipe["base_model"]), recipe.get("model_revision")
    where = f"{origin['base_model'].where('base_model')}: «base_model: {model}»"
    if model.startswith(("~", ".")):
        return [f"{where} looks like a folder; give its absolute path on the trainer"]
    if model.startswith("/"):
        return []
    if not revision:
        return [f"{where} needs a «model_revision», the commit to fetch: nothing is downloaded unpinned"]
    if layers.index(origin["base_model"]) > layers.index(origin["model_revision"]):
        pinned = origin["model_revision"].where("model_revision")
        return [
            f"{where} is another model than the one whose «model_revision» stands in {pinned}; give its own beside it"
        ]
    if not re.fullmatch(COMMIT, str(revision)):
        return [
            f"{origin['model_revision'].where('model_revision')}: «model_revision: {quote_value(revision)}» is no "
            "commit, and a branch or a tag may be another model tomorrow. Give the 40 digits of the commit: the hub "
            f"shows them on the page of {model}, Files and versions, History"
        ]
    return []


def machine_problems(layer: Layer, below: dict[str, Any]) -> list[str]:
    """List what a machine file may not do: hold training keys, or change the effective batch.

    Args:
        layer: The machine file.
        below: The recipe it is laid over.
    """
    sentences = [
        f"{layer.where(key)}: «{key}» decides what is learnt; a machine file may only hold machine keys. "
        "Put it into configs/agents/ or configs/base.yml"
        for key in layer.keys
        if key not in MACHINE_KEYS | RECORD_KEYS
    ]
    merged, _, removed = merge_and_tell([Layer("the recipe below", below), layer])
    sentences += [
        f"{layer.where(key)}: «{key}» would take the place of «{rival}», which decides what is learnt; a machine file "
        "may not do that"
        for key, rival, _ in removed
        if rival not in MACHINE_KEYS | RECORD_KEYS
    ]
    named = next((key for key in layer.keys if key in LORA_KERNELS), "")
    if named and not sentences and unusual_dropout(merged) != unusual_dropout(below):
        sentences.append(
            f"{layer.where(named)}: «{named}» changes which LoRA kernels train. With «lora_dropout: "
            f"{merged['lora_dropout']}» that decides what is learnt, as {' and '.join(DROPOUT_KERNELS)} draw the "
            "dropout otherwise. Put it into configs/agents/ or configs/base.yml, or train without a dropout"
        )
    try:
        before, after = effective_batch(below), effective_batch(merged)
    except (TypeError, ValueError, OverflowError):
        return sentences  # a wrong type or no number, which problems() names
    if before != after:
        sentences.append(
            f"{layer.source}: micro_batch_size × gradient_accumulation_steps becomes {after} instead of {before}; "
            "a machine file must keep the product"
        )
    return sentences
