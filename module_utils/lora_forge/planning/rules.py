"""Rules between the keys of a recipe: what is put right with a message, what is refused, what deserves a warning.

Whatever is wrong here, Axolotl would refuse on the trainer, or a training would end without an adapter that can be
proven. What is known to Axolotl alone is asked of it, in validation.py.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Callable

from ansible.module_utils.lora_forge.planning import recipe as recipes
from ansible.module_utils.lora_forge.planning import rehearsal, shrink
from ansible.module_utils.lora_forge.planning.layers import Layer, quote_value

# A trainer is offline (launch.environment), so that creating a repository is the end of a training that names one.
_PUSHES = ("hub_model_id", "hub_strategy", "hub_revision", "push_dataset_to_hub")
# Of a training on pictures. With them Axolotl reads conversations as late as pictures need it (ProcessingStrategy): it
# would find none in what is staged, nor read tools or which turns are trained. A multimodal model trains without them.
_PICTURES = ("processor_type", "processor_kwargs", "image_size", "image_resize_algorithm", "skip_prepare_dataset")
# Attention that needs a package besides Axolotl's own, or else a kernel of the hub. It is how fast, not what is learnt.
_FLASH = {"flash_attention_2": "flash-attn", "flash_attention_3": "flash-attn-3", "flash_attention_4": "flash-attn-4"}
# Attention with which Axolotl packs rows of micro_batch_size × sequence_len, unless multipack_real_batches is set
# (ATTN_IMPLS_SUPPORTING_PACKING in axolotl/utils/schemas/enums.py, 0.21).
_LONG_ROWS = frozenset(
    {
        *("flash_attention_2", "flash_attention_3", "flash_attention_4", "flash_attention_torch", "flex_attention"),
        *("xformers", "sage", "kernels-community/flash-attn2", "kernels-community/flash-attn3"),
        "kernels-community/sage-attention",
    }
)
_STEPS = (None, 0, "steps")  # says nothing of epochs
# Axolotl's plugin switches it on by itself, unless the recipe says otherwise.
CUT = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"
_CUT_PACKAGE = "cut-cross-entropy"
PACKAGES = (*_FLASH.values(), _CUT_PACKAGE)


def apply_rules(recipe: dict[str, Any], origin: dict[str, Layer], pinned: Collection[str]) -> list[str]:
    """Put right what has one sensible meaning; the recipe is changed in place.

    Args:
        recipe: The merged recipe, without problems of its keys one by one.
        origin: The layer of each key.
        pinned: Of :data:`PACKAGES`, those that the locks pin.

    Returns:
        What was done, in sentences.
    """
    changes = []
    attention = str(recipe.get("attn_implementation"))
    if attention in _FLASH and _FLASH[attention] not in pinned:
        changes.append(
            f"attn_implementation is sdpa in place of {attention} of {origin['attn_implementation'].source}: that "
            f"needs {_FLASH[attention]}, which no lock pins, and a trainer is offline. What is learnt is the same"
        )
        recipe["attn_implementation"] = "sdpa"
    kind = shrink.language_model(rehearsal.find_base(recipe)[0])
    wanted = shrink.KINDS[kind].attention if kind in shrink.KINDS else "sdpa"
    if recipe.get("attn_implementation") == "sdpa" != wanted:
        changes.append(
            f"attn_implementation is {wanted} in place of sdpa of {origin['attn_implementation'].source}: transformers "
            f"has no sdpa for {recipe['base_model']}"
        )
        recipe["attn_implementation"] = wanted
    if recipe.get("attn_implementation") == "eager" == wanted and recipe.get("sample_packing"):
        changes.append(
            f"sample_packing of {origin['sample_packing'].source} is left out: with eager attention "
            f"{recipe['base_model']} mixes packed conversations. attn_implementation: flex_attention packs (untried)"
        )
        recipe["sample_packing"] = False
    pushes = [key for key in _PUSHES if recipe.get(key)]
    if pushes:
        changes.append(
            f"{_list(pushes)} of {origin[pushes[0]].source} {_are(pushes)} left out: a trainer is offline and pushes "
            "nothing. The adapter is delivered to this machine; publish it from here"
        )
        for key in pushes:
            del recipe[key]
    pictures = [key for key in _PICTURES if recipe.get(key)]
    if pictures:
        changes.append(
            f"{_list(pictures)} of {origin[pictures[0]].source} {_are(pictures)} left out: text alone is trained, also "
            "on a model that sees"
        )
        for key in pictures:
            del recipe[key]
    if not recipe.get("sample_packing"):
        recipe.pop("eval_sample_packing", None)  # Axolotl would pack the evaluation of a training that does not pack
    micro, accumulation = (int(recipe.get(key, 1)) for key in recipes.BATCH)
    if (
        recipe.get("sample_packing")
        and recipe.get("attn_implementation") in _LONG_ROWS
        and not recipe.get("multipack_real_batches")
        and micro > 1
    ):
        recipe |= {recipes.BATCH[0]: 1, recipes.BATCH[1]: micro * accumulation}
        origin |= dict.fromkeys(recipes.BATCH, origin["attn_implementation"])
        changes.append(
            f"{' and '.join(recipes.BATCH)} are 1 and {micro * accumulation} in place of {micro} and {accumulation}: "
            f"with {recipe['attn_implementation']} Axolotl packs rows as long as a whole micro batch, and steps would "
            "hold other data than with sdpa"
        )
    changes += _early_stopping(recipe, origin)
    return changes


def _early_stopping(recipe: dict[str, Any], origin: dict[str, Layer]) -> list[str]:
    """Give early stopping the steps that Axolotl wants of it, where a recipe counts by epochs.

    Axolotl turns evaluations an epoch into this same share of all steps, but after it has asked for the steps. How many
    steps an epoch has is known to it alone, so that checkpoints by epochs become those of the evaluations: when one is
    saved decides nothing that is learnt.
    """
    if not recipe.get("early_stopping_patience"):
        return []
    changes = []
    by_epoch = next(
        (key for key in ("evals_per_epoch", "eval_strategy", "evaluation_strategy") if recipe.get(key) not in _STEPS),
        "",
    )
    evaluations = 1 if recipe.get(by_epoch) == "epoch" else recipe.get(by_epoch)
    if isinstance(evaluations, (int, float)) and not recipe.get("eval_steps"):
        share = 1 / (float(evaluations) * float(recipe.get("num_epochs", 1)))
        if share < 1:
            changes.append(
                f"early stopping counts in steps: eval_steps is {share:.4g} of the training in place of "
                f"{by_epoch} {recipe[by_epoch]}, which is the same"
            )
            recipe["eval_steps"] = share
            origin["eval_steps"] = origin.pop(by_epoch)
            del recipe[by_epoch]
    if not recipe.get("eval_steps") or recipe.get("save_steps"):
        return changes
    saves = next((key for key in ("saves_per_epoch", "save_strategy") if recipe.get(key)), "")
    if saves and recipe[saves] in ("no", "best"):
        return changes  # what cannot be had beside early stopping, and problems() refuses
    recipe["save_steps"] = recipe["eval_steps"]
    origin["save_steps"] = origin["early_stopping_patience"]
    place = f", in place of {saves} of {origin[saves].source}" if saves and recipe[saves] != "steps" else ""
    if place:
        del recipe[saves], origin[saves]
    changes.append(f"early stopping needs a checkpoint at its evaluations: save_steps is eval_steps{place}")
    return changes


def problems(recipe: dict[str, Any], origin: dict[str, Layer], pinned: Collection[str]) -> list[str]:
    """List what makes no training, although each key is right by itself.

    Args:
        recipe: The recipe, after :func:`apply_rules`.
        origin: The layer of each key.
        pinned: Of :data:`PACKAGES`, those that the locks pin.
    """
    sentences = []

    def quoted(key: str) -> str:
        return f"{origin[key].where(key)}: «{key}: {quote_value(recipe[key])}»"

    adapter = recipe.get("adapter")
    if adapter not in ("lora", "qlora"):
        where = quoted("adapter") if adapter else "the recipe has no «adapter», so that all weights would be trained"
        sentences.append(f"{where}; what is trained here is «lora» or «qlora»")
    if adapter == "qlora" and recipe.get("load_in_8bit"):
        sentences.append(
            f"{quoted('load_in_8bit')} and «adapter: qlora»: QLoRA is in 4 bits; for 8 bits write «adapter: lora»"
        )
    elif adapter == "qlora" and not recipe.get("load_in_4bit"):
        sentences.append(f"{quoted('adapter')} needs «load_in_4bit: true»; without quantisation write «adapter: lora»")
    if recipe.get("batch_size"):
        sentences.append(
            f"{quoted('batch_size')}: write gradient_accumulation_steps instead, which is batch_size / micro_batch_size"
        )
    metric = recipe.get("metric_for_best_model")
    if metric not in (None, "loss", "eval_loss") or (metric and recipe.get("greater_is_better")):
        key = "greater_is_better" if metric in ("loss", "eval_loss") else "metric_for_best_model"
        sentences.append(
            f"{quoted(key)}: adapters are compared by their evaluation loss, the lower the better; take it out"
        )
    if recipe.get("save_strategy") == "best" and not recipe.get("metric_for_best_model"):
        sentences.append(f"{quoted('save_strategy')} needs «metric_for_best_model», such as eval_loss")
    cut = recipe.get("cut_cross_entropy", CUT in (recipe.get("plugins") or []))
    if cut and _CUT_PACKAGE not in pinned:
        named = "cut_cross_entropy" if "cut_cross_entropy" in recipe else "plugins"
        where = quoted(named) if named != "plugins" else f"{origin[named].where(named)}: «{CUT}»"
        sentences.append(
            f"{where} needs a package that requirements/trainer-cuda.txt does not pin, Axolotl's {_CUT_PACKAGE}. "
            "Use liger_fused_linear_cross_entropy or chunked_cross_entropy, which need nothing more; or add it to "
            "requirements/trainer-cuda.in, then make lock"
        )
    return sentences + _stopping_problems(recipe, quoted)


def _stopping_problems(recipe: dict[str, Any], quoted: Callable[[str], str]) -> list[str]:
    if not recipe.get("early_stopping_patience"):
        return []
    every, saves, need = (
        recipe.get("eval_steps"),
        recipe.get("save_steps"),
        f"{quoted('early_stopping_patience')} needs",
    )
    other = next(
        (key for key in ("evals_per_epoch", "eval_strategy", "evaluation_strategy") if recipe.get(key) not in _STEPS),
        "",
    )
    if not every and other and recipe[other] != "no":
        return [f"{need} more than one evaluation, and {quoted(other)} makes a single one. Give eval_steps"]
    if not every:
        return [f"{need} «eval_steps»" + (f" in place of {quoted(other)}" if other else "")]
    if not saves:
        other = next(key for key in ("saves_per_epoch", "save_strategy") if recipe.get(key))
        return [f"{need} «save_steps», a multiple of eval_steps, in place of {quoted(other)}"]
    if saves % every:
        return [f"{need} a save_steps that is a multiple of eval_steps; {quoted('save_steps')}, {quoted('eval_steps')}"]
    return []


def evaluation_problems(
    recipe: dict[str, Any], origin: dict[str, Layer], held_out: bool
) -> tuple[list[str], list[str]]:
    """Leave out when to evaluate where nothing is evaluated: Axolotl refuses it; the recipe is changed in place.

    Args:
        recipe: The recipe, after it was adapted to its data.
        origin: The layer of each key.
        held_out: Whether there are datasets to evaluate with.

    Returns:
        What was done, and what is wrong, in sentences.
    """
    if held_out or recipe.get("val_set_size"):
        return [], []
    if recipe.get("early_stopping_patience"):
        where = origin["early_stopping_patience"].where("early_stopping_patience")
        return [], [
            f"{where}: «early_stopping_patience» needs evaluations, and nothing is evaluated: «val_set_size: 0», and "
            "there is no dataset for validation"
        ]
    keys = [key for key in ("eval_steps", "eval_strategy", "evaluation_strategy") if recipe.get(key) not in (None, 0)]
    keys = [key for key in keys if recipe[key] != "no"]
    for key in keys:
        del recipe[key]
    if not keys:
        return [], []
    return [f"nothing is evaluated (val_set_size is 0), so {_list(keys)} {_are(keys)} left out"], []


def notes(recipe: dict[str, Any], origin: dict[str, Layer]) -> list[str]:
    """Tell of keys that do not do what they say.

    Args:
        recipe: The recipe, after :func:`apply_rules`.
        origin: The layer of each key.
    """
    sentences, kernels = [], recipes.lora_kernels(recipe)
    # patch_manager rewrites the attention before Liger's plugin gives its module another rotary embedding, and the
    # rewritten one keeps what it found; the kernel for the MLP is put in the place of the forward that Liger brought.
    for key, others in (("liger_rope", ("lora_qkv_kernel", "lora_o_kernel")),
                        ("liger_glu_activation", ("lora_mlp_kernel",))):  # fmt: skip
        covering = [other for other in others if other in kernels]
        if recipe.get(key) and covering:
            sentences.append(
                f"{key} of {origin[key].source} does nothing beside {_list(covering)}, which Axolotl has for LoRA "
                "unless the recipe says otherwise"
            )
    if "/" in str(recipe.get("attn_implementation")):
        sentences.append(
            f"attn_implementation of {origin['attn_implementation'].source} is a kernel of the hub, and a trainer is "
            "offline: it must lie in models/hub below trainer_root already"
        )
    if recipe.get("adapter") == "lora" and recipe.get("load_in_4bit"):
        sentences.append(
            "adapter: lora trains on an unquantised model: Axolotl loads in 4 bits for qlora alone, and load_in_4bit "
            f"of {origin['load_in_4bit'].source} does nothing"
        )
    if recipe.get("default_system_message"):
        sentences.append(
            f"default_system_message of {origin['default_system_message'].source} does nothing: no template of "
            "Axolotl's has a place for it. Write it into the data, as a system turn"
        )
    for key in ("deepspeed", "fsdp_config"):
        if recipe.get(key):
            sentences.append(
                f"with {key} of {origin[key].source} checkpoints are in parts that are read by running what is in "
                "them: none is fetched, and on another trainer the run would begin anew"
            )
    return sentences


def _list(words: Collection[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _are(words: Collection[str]) -> str:
    return "are" if len(words) > 1 else "is"
