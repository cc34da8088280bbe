"""Which keys of a recipe exclude each other, and why."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable


def _is_set(value: Any) -> bool:
    return bool(value)


def _other_than(*harmless: Any) -> Callable[[Any], bool]:
    return lambda value: bool(value) and value not in harmless


@dataclasses.dataclass(frozen=True)
class Rivals:
    """Keys that say the same thing in different ways: of two layers, the later one's is meant.

    Attributes:
        sides: The ways; each maps its keys to a test of whether a value takes part.
        why: What goes wrong where two of them stand side by side, for messages.
    """

    sides: tuple[dict[str, Callable[[Any], bool]], ...]
    why: str


# Axolotl 0.21's axolotl/utils/schemas/validation.py refuses them side by side, where no other reason is given. A value
# that Axolotl counts as not set (false, 0) takes no part.
RIVALS = (
    Rivals(({"warmup_steps": _is_set}, {"warmup_ratio": _is_set}), "each says how long the warmup is"),
    # Axolotl takes saves_per_epoch beside save_strategy, and ignores the strategy without a message.
    Rivals(
        ({"save_steps": _is_set}, {"saves_per_epoch": _is_set}, {"save_strategy": _other_than("steps")}),
        "each says when a checkpoint is saved",
    ),
    Rivals(
        (
            {"eval_steps": _is_set},
            {"evals_per_epoch": _is_set},
            {"eval_strategy": _other_than("steps"), "evaluation_strategy": _other_than("steps")},
        ),
        "each says when to evaluate",
    ),
    Rivals(({"eval_strategy": _is_set}, {"evaluation_strategy": _is_set}), "the second is the first one's old name"),
    # `adapter: lora` takes both, and quantises to 8 bits.
    Rivals(({"load_in_4bit": _is_set}, {"load_in_8bit": _is_set}), "a model is loaded in one of the two"),
    Rivals(
        ({"load_in_4bit": _is_set, "load_in_8bit": _is_set}, {"model_quantization_config": _is_set}),
        "each says how the base model is quantised",
    ),
    # Axolotl takes both and trains in bf16. `bf16: auto` gives way to fp16 by itself.
    Rivals(
        ({"bf16": _other_than("auto"), "bfloat16": _is_set}, {"fp16": _is_set, "float16": _is_set}),
        "a training has one precision, and bf16 would win without a warning",
    ),
    Rivals(({"deepspeed": _is_set}, {"fsdp_config": _is_set}), "a model is divided by one of them"),
    Rivals(
        tuple(
            {key: _is_set}
            for key in (
                *("chunked_cross_entropy", "cut_cross_entropy"),
                *("liger_cross_entropy", "liger_fused_linear_cross_entropy"),
            )
        ),
        "each is a cross entropy of its own",
    ),
    Rivals(({"use_dft": _is_set}, {"use_eaft": _is_set}), "each is a loss of its own"),
    Rivals(({"model_type": _is_set}, {"type_of_model": _is_set}), "the second is Axolotl's own word for the first one"),
    # Axolotl adds up what both name. An empty list names nothing.
    Rivals(
        ({"lora_target_linear": _is_set}, {"lora_target_modules": _is_set}),
        "each says which modules are trained, and Axolotl would train those of both",
    ),
    Rivals(({"max_memory": _is_set}, {"gpu_memory_limit": _is_set}), "each limits the GPU's memory"),
    Rivals(
        ({"lr_groups": _is_set}, {"loraplus_lr_ratio": _is_set}), "each gives groups of weights their learning rates"
    ),
    Rivals(
        ({"neftune_noise_alpha": _is_set}, {"noisy_embedding_alpha": _is_set}), "the second is the first one's old name"
    ),
    Rivals(({"liger_glu_activation": _is_set}, {"liger_swiglu": _is_set}), "the second is the first one's old name"),
    Rivals(
        ({"sample_packing": _is_set}, {"batch_flattening": _other_than("auto")}),
        "each puts several examples into a row",
    ),
    # Axolotl reads chat_template_jinja only where chat_template does not name another one.
    Rivals(
        ({"chat_template": _other_than("jinja")}, {"chat_template_jinja": _is_set}),
        "the second would be ignored without a warning",
    ),
)


def _rivals_by_key() -> dict[str, list[tuple[Callable[[Any], bool], list[tuple[str, Callable[[Any], bool]]], str]]]:
    """Turn RIVALS round: of each key its own test, its rivals with theirs, and the reason, once for each group."""
    turned: dict[str, list[tuple[Callable[[Any], bool], list[tuple[str, Callable[[Any], bool]]], str]]] = {}
    for group in RIVALS:
        for side in group.sides:
            others = [item for other in group.sides if other is not side for item in other.items()]
            for key, takes_part in side.items():
                turned.setdefault(key, []).append((takes_part, others, group.why))
    return turned


_RIVALS_OF = _rivals_by_key()  # it is asked for every key of every layer, of hundreds of recipes


def rivals_of(recipe: dict[str, Any], key: str) -> list[tuple[str, str]]:
    """List the rivals of a key in a recipe, each with the reason.

    Args:
        recipe: Axolotl keys, be it of several layers.
        key: One of them.
    """
    rivals = []
    for own, others, why in _RIVALS_OF.get(key, ()) if key in recipe else ():
        if own(recipe[key]):
            rivals += [(other, why) for other, takes_part in others if other in recipe and takes_part(recipe[other])]
    return rivals
