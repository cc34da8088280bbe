"""Which keys of a recipe exclude each other, and why."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any


@dataclasses.dataclass(frozen=True)
class Rivals:
    """Keys that say the same thing in different ways: of two layers, the later one's is meant.

    Attributes:
        sides: The ways; each maps its keys to their values that take no part, beside those that are not set.
        why: What goes wrong where two of them stand side by side, for messages.
    """

    sides: tuple[dict[str, tuple[str, ...]], ...]
    why: str


# Axolotl 0.21's axolotl/utils/schemas/validation.py refuses them side by side, where no other reason is given. A value
# that Axolotl counts as not set (false, 0) takes no part.
RIVALS = (
    Rivals(({"warmup_steps": ()}, {"warmup_ratio": ()}), "each says how long the warmup is"),
    # Axolotl takes saves_per_epoch beside save_strategy, and ignores the strategy without a message.
    Rivals(
        ({"save_steps": ()}, {"saves_per_epoch": ()}, {"save_strategy": ("steps",)}),
        "each says when a checkpoint is saved",
    ),
    Rivals(
        (
            {"eval_steps": ()},
            {"evals_per_epoch": ()},
            {"eval_strategy": ("steps",), "evaluation_strategy": ("steps",)},
        ),
        "each says when to evaluate",
    ),
    Rivals(({"eval_strategy": ()}, {"evaluation_strategy": ()}), "the second is the first one's old name"),
    # `adapter: lora` takes both, and quantises to 8 bits.
    Rivals(({"load_in_4bit": ()}, {"load_in_8bit": ()}), "a model is loaded in one of the two"),
    Rivals(
        ({"load_in_4bit": (), "load_in_8bit": ()}, {"model_quantization_config": ()}),
        "each says how the base model is quantised",
    ),
    # Axolotl takes both and trains in bf16. `bf16: auto` gives way to fp16 by itself.
    Rivals(
        ({"bf16": ("auto",), "bfloat16": ()}, {"fp16": (), "float16": ()}),
        "a training has one precision, and bf16 would win without a warning",
    ),
    Rivals(({"deepspeed": ()}, {"fsdp_config": ()}), "a model is divided by one of them"),
    Rivals(
        tuple(
            {key: ()}
            for key in (
                *("chunked_cross_entropy", "cut_cross_entropy"),
                *("liger_cross_entropy", "liger_fused_linear_cross_entropy"),
            )
        ),
        "each is a cross entropy of its own",
    ),
    Rivals(({"use_dft": ()}, {"use_eaft": ()}), "each is a loss of its own"),
    Rivals(({"model_type": ()}, {"type_of_model": ()}), "the second is Axolotl's own word for the first one"),
    # Axolotl adds up what both name. An empty list names nothing.
    Rivals(
        ({"lora_target_linear": ()}, {"lora_target_modules": ()}),
        "each says which modules are trained, and Axolotl would train those of both",
    ),
    Rivals(({"max_memory": ()}, {"gpu_memory_limit": ()}), "each limits the GPU's memory"),
    Rivals(({"lr_groups": ()}, {"loraplus_lr_ratio": ()}), "each gives groups of weights their learning rates"),
    Rivals(({"neftune_noise_alpha": ()}, {"noisy_embedding_alpha": ()}), "the second is the first one's old name"),
    Rivals(({"liger_glu_activation": ()}, {"liger_swiglu": ()}), "the second is the first one's old name"),
    Rivals(
        ({"sample_packing": ()}, {"batch_flattening": ("auto",)}),
        "each puts several examples into a row",
    ),
    # Axolotl reads chat_template_jinja only where chat_template does not name another one.
    Rivals(
        ({"chat_template": ("jinja",)}, {"chat_template_jinja": ()}),
        "the second would be ignored without a warning",
    ),
)


@functools.cache  # it is asked for every key of every layer, of hundreds of recipes
def _rivals_by_key() -> dict[str, list[tuple[tuple[str, ...], list[tuple[str, tuple[str, ...]]], str]]]:
    """Turn RIVALS round: of each key what is harmless, its rivals with theirs, and the reason, once for each group."""
    turned: dict[str, list[tuple[tuple[str, ...], list[tuple[str, tuple[str, ...]]], str]]] = {}
    for group in RIVALS:
        for side in group.sides:
            others = [item for other in group.sides if other is not side for item in other.items()]
            for key, harmless in side.items():
                turned.setdefault(key, []).append((harmless, others, group.why))
    return turned


def _takes_part(value: Any, harmless: tuple[str, ...]) -> bool:
    return bool(value) and value not in harmless


def rivals_of(recipe: dict[str, Any], key: str) -> list[tuple[str, str]]:
    """List the rivals of a key in a recipe, each with the reason.

    Args:
        recipe: Axolotl keys, be it of several layers.
        key: One of them.
    """
    rivals = []
    for own, others, why in _rivals_by_key().get(key, ()) if key in recipe else ():
        if _takes_part(recipe[key], own):
            rivals += [
                (other, why) for other, harmless in others if other in recipe and _takes_part(recipe[other], harmless)
            ]
    return rivals
