"""Shrink a base model's config.json: a few layers of each kind, small widths, the same modules by the same names.

What a rehearsal trains. Its weights are random, so that nothing of the base is needed but this file; its modules are
the base's, so that what a recipe targets is found, hit and proven as on the base. Pure functions, no files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge.text import shown

HIDDEN = 64  # bitsandbytes quantises in blocks of 64
INNER = 128
HEAD_DIM = 32  # with 16 vLLM's engine dies at its first request
HEADS = 2
EXPERTS = 4
_FEWEST = 2  # layers, also where all are alike
_MOST = 1000  # layers of a model; more is no model's
_PATCHES = 4  # of an image, each way
_SOME = 60  # letters of a value that are shown, and ids that may end a turn


class Unknown(Exception):
    """A config.json that cannot be shrunk; its text says why."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a language model's config.json does not say of itself.

    Attributes:
        architecture: The class that its makers name, where config.json leaves it out.
        pattern: Gives the kind of each of so many layers, where ``layer_types`` is left out; None where all are alike.
        packs: Whether a CPU keeps packed conversations apart, in the same tests.
        attention: What transformers trains it with on a CPU; with eager, conversations are not kept apart.
    """

    architecture: str
    pattern: Optional[Callable[[Mapping[str, Any], int], list[str]]] = None
    packs: bool = True
    attention: str = "sdpa"


def _every(word: str, other: str, key: str, default: int) -> Callable[[Mapping[str, Any], int], list[str]]:
    """Make the pattern of models whose every n-th layer is another one; ``key`` of their config.json says n."""

    def pattern(text: Mapping[str, Any], layers: int) -> list[str]:
        every = text.get(key) or default
        if type(every) is not int or every < 1:
            raise Unknown(f"its {key} is {_said(every)}")
        return [other if (layer + 1) % every == 0 else word for layer in range(layers)]

    return pattern


def _qwen2_windows(text: Mapping[str, Any], layers: int) -> list[str]:
    slides = text.get("use_sliding_window") and text.get("sliding_window")
    first = text.get("max_window_layers", 28) if slides else layers
    return ["sliding_attention" if layer >= first else "full_attention" for layer in range(layers)]


_GEMMA3 = _every("sliding_attention", "full_attention", "sliding_window_pattern", 6)
_ALTERNATING = _every("sliding_attention", "full_attention", "", 2)
_HYBRID = _every("linear_attention", "full_attention", "full_attention_interval", 4)
_ATTENTION = ("full_attention", "sliding_attention", "linear_attention")
# By the language model's model_type. Patterns and defaults: transformers 5.20, models/<kind>/configuration_<kind>.py.
KINDS = {
    "gemma2": Kind("Gemma2ForCausalLM", _ALTERNATING),
    "gemma3_text": Kind("Gemma3ForCausalLM", _GEMMA3),
    "gpt_oss": Kind("GptOssForCausalLM", _ALTERNATING, packs=False, attention="eager"),
    "llama": Kind("LlamaForCausalLM"),
    "mistral": Kind("MistralForCausalLM"),
    "ministral3": Kind("Ministral3ForCausalLM"),
    "phi3": Kind("Phi3ForCausalLM"),
    "qwen2": Kind("Qwen2ForCausalLM", _qwen2_windows),
    "qwen3": Kind("Qwen3ForCausalLM", _qwen2_windows),
    "qwen3_moe": Kind("Qwen3MoeForCausalLM"),
    "qwen3_next": Kind("Qwen3NextForCausalLM", _HYBRID, packs=False),
    "qwen3_5_text": Kind("Qwen3_5ForCausalLM", _HYBRID, packs=False),
    "smollm3": Kind("SmolLM3ForCausalLM"),
}


@dataclasses.dataclass(frozen=True)
class Tower:
    """A model that sees: its language model is one of :data:`KINDS`.

    Attributes:
        architecture: As of :class:`Kind`.
        text: The ``model_type`` of its language model, where config.json leaves it out.
        vision: That of its vision tower.
        tokens: The keys of config.json that hold ids of tokens, each with the token.
        names: What its processor calls tokens, each with the token.
        files: What its processor reads, by file name.
    """

    architecture: str
    text: str
    vision: str
    tokens: dict[str, str]
    names: dict[str, str]
    files: dict[str, dict[str, Any]]


_GEMMA_TOKENS = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")
TOWERS = {
    "gemma3": Tower(
        "Gemma3ForConditionalGeneration",
        "gemma3_text",
        "siglip_vision_model",
        dict(zip(("boi_token_index", "eoi_token_index", "image_token_index"), _GEMMA_TOKENS)),
        dict(zip(("boi_token", "eoi_token", "image_token"), _GEMMA_TOKENS)),
        {
            "preprocessor_config.json": {
                "image_processor_type": "Gemma3ImageProcessor",
                "processor_class": "Gemma3Processor",
            }
        },
    ),
    "mistral3": Tower(
        "Mistral3ForConditionalGeneration",
        "mistral",
        "pixtral",
        {"image_token_index": "[IMG]"},
        {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"},
        {
            "preprocessor_config.json": {
                "image_processor_type": "PixtralImageProcessor",
                "processor_class": "PixtralProcessor",
            }
        },
    ),
    "qwen3_5": Tower(
        "Qwen3_5ForConditionalGeneration",
        "qwen3_5_text",
        "qwen3_5_vision",
        {
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
        },
        {},
        {
            "preprocessor_config.json": {
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": "Qwen3VLProcessor",
            },
            "video_preprocessor_config.json": {
                "video_processor_type": "Qwen3VLVideoProcessor",
                "processor_class": "Qwen3VLProcessor",
            },
        },
    ),
}


def language_model(config: Mapping[str, Any]) -> str:
    """Name the ``model_type`` of the language model of a config.json; empty where it has none.

    Args:
        config: What config.json holds.
    """
    text, tower = config.get("text_config"), TOWERS.get(_name(config))
    named = _name(text) if isinstance(text, Mapping) else ""
    return named or (tower.text if tower else _name(config))


def _name(config: Mapping[str, Any]) -> str:
    name = config.get("model_type")
    return name if isinstance(name, str) else ""


def shrink(config: Mapping[str, Any]) -> dict[str, Any]:
    """Shrink a model.

    Args:
        config: What config.json holds; keys that its maker left out are at transformers' defaults.

    Returns:
        ``config``: what a small model's config.json holds, its vocabulary and ids of tokens those of the base.
        ``tokens`` (key of that file -> token), ``names`` (a processor's name for a token -> token) and ``files``
        (name -> JSON) of a model that sees: what a tokenizer and a processor of its own have to have.

    Raises:
        Unknown: It is of another kind, or makes no sense.
    """
    kind, name = language_model(config), _name(config)
    tower = TOWERS.get(name)
    if kind not in KINDS or (tower is None and kind != name):
        known = shown(name, _SOME) or "which it does not tell"
        raise Unknown(f"its kind, {known}, is none of those that are rehearsed")
    try:
        if tower is None:
            small = _shrink_text(config, kind) | {"architectures": [KINDS[kind].architecture]}
            return {"config": small, "tokens": {}, "names": {}, "files": {}}
        text = _shrink_text(config.get("text_config") or {}, kind)
        vision = _shrink_vision(config.get("vision_config") or {}, tower.vision)
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise Unknown(f"its config.json makes no sense ({shown(str(error), 2 * _SOME)})") from None
    small = {"model_type": name, "architectures": [tower.architecture], "text_config": text, "vision_config": vision}
    small |= _keep(config) | {"dtype": "float32"} | ({"mm_tokens_per_image": _PATCHES} if name == "gemma3" else {})
    small |= {"vision_feature_layer": -1} if name == "mistral3" else {}
    return {"config": small, "tokens": tower.tokens, "names": tower.names, "files": tower.files}


def _shrink_text(text: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Shrink the part of a config.json that is the language model's."""
    layers = text.get("num_hidden_layers", _MOST)
    if type(layers) is not int or not 0 < layers <= _MOST:
        raise Unknown(f"it has {_said(layers)} layers")
    layers = min(layers, 256) if "num_hidden_layers" not in text else layers
    kept, pattern = _kept_layers(text, kind, layers)
    heads, kv_heads = text.get("num_attention_heads", HEADS), text.get("num_key_value_heads")
    small = {
        **_keep(text),
        "model_type": kind,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": len(kept),
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS if kv_heads == heads or (kv_heads is None and kind != "mistral") else 1,
        "head_dim": HEAD_DIM,
        "dtype": "float32",
        "use_cache": True,
    }
    small |= {"layer_types": pattern} if pattern else {}
    if kind == "smollm3":
        small["no_rope_layers"] = [_ropes(text, layer) for layer in kept]
    if kind == "qwen2":
        small["max_window_layers"] = next((at for at, of in enumerate(pattern) if of[0] == "s"), len(kept))
    if kind in ("gemma2", "gemma3_text"):
        small["query_pre_attn_scalar"] = HEAD_DIM
    if kind in ("qwen3_5_text", "qwen3_next"):  # twice as many value heads as key heads, as theirs
        small |= {"linear_key_head_dim": HEAD_DIM, "linear_value_head_dim": HEAD_DIM}
        small |= {"linear_num_key_heads": HEADS, "linear_num_value_heads": 2 * HEADS}
    small |= _experts(text, kind, kept)
    rotary = int(HEAD_DIM * _partial(text, kind))
    for key in ("rope_scaling", "rope_parameters"):
        if text.get(key) is not None:
            if not isinstance(text[key], Mapping):
                raise Unknown(f"its {key} is {_said(text[key])}")
            each = {of: _shrink_rope(one, rotary // 2) for of, one in text[key].items() if of in _ATTENTION and one}
            small[key] = each or _shrink_rope(text[key], rotary // 2)
    return small


# What a small model has from the base as it is; others wrote it, so all else is left out.
_FLAGS = frozenset(
    {
        *("attention_bias", "mlp_bias", "multimodal_projector_bias", "norm_topk_prob", "tie_word_embeddings"),
        *("output_router_logits", "truncate", "mrope_interleaved", "use_bidirectional_attention"),
        *("use_sliding_window", "vision_use_head"),
    }
)
_TOKEN = (-1, 10**6)
_POSITIONS = (1, 10**9)
_FEW = (1, 16)
_SHARE = (0.0, 1.0)
_RATIO = (1e-3, 1e9)
# Each with its bounds, far beyond any model's; between whole ones are whole numbers.
_NUMBERS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "image_token_id", "video_token_id"), _TOKEN),
    **dict.fromkeys(("vision_start_token_id", "vision_end_token_id", "image_token_index"), _TOKEN),
    **dict.fromkeys(("boi_token_index", "eoi_token_index"), _TOKEN),
    **dict.fromkeys(("max_position_embeddings", "original_max_position_embeddings", "sliding_window"), _POSITIONS),
    **dict.fromkeys(("in_channels", "num_channels", "temporal_patch_size", "linear_conv_kernel_dim"), _FEW),
    "vocab_size": (1, 10**6),
    "patch_size": (1, 64),
    "spatial_merge_size": (1, _PATCHES),
    **dict.fromkeys(("attention_dropout", "embd_pdrop", "resid_pdrop", "rms_norm_eps", "layer_norm_eps"), _SHARE),
    **dict.fromkeys(("partial_rotary_factor", "router_aux_loss_coef"), _SHARE),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "swiglu_alpha", "swiglu_limit"), _RATIO),
    **dict.fromkeys(("factor", "attention_factor", "low_freq_factor", "high_freq_factor"), _RATIO),
    **dict.fromkeys(("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "llama_4_scaling_beta"), _RATIO),
    **dict.fromkeys(("rope_theta", "rope_local_base_freq"), (1.0, 1e12)),
}
_TURNED = frozenset({"default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional", "su"})
_ACTIVATIONS = frozenset(
    {"gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2", "silu", "swish", "mish"}
)
_WORDS = {
    **dict.fromkeys(("hidden_act", "hidden_activation", "projector_hidden_act"), _ACTIVATIONS),
    **dict.fromkeys(("rope_type", "type"), _TURNED),
}


def _keep(config: Mapping[str, Any]) -> dict[str, Any]:
    """Take over what a small model has from the base as it is.

    Args:
        config: Of a model, or of a part of it.

    Raises:
        Unknown: Something of that makes no sense.
    """
    kept = {key: config[key] for key in (*_FLAGS, *_NUMBERS, *_WORDS) if config.get(key) is not None}
    for key, value in kept.items():
        values = value if key == "eos_token_id" and isinstance(value, list) and 0 < len(value) <= _SOME else [value]
        if not all(_is_sound(key, one) for one in values):
            raise Unknown(f"its {key} is {_said(value)}")
        if key in _NUMBERS and isinstance(_NUMBERS[key][0], float):
            kept[key] = float(value)  # transformers takes no 30 for 30.0
    return kept


def _is_sound(key: str, value: Any) -> bool:
    if key in _FLAGS:
        return isinstance(value, bool)
    if key in _WORDS:
        return isinstance(value, str) and value in _WORDS[key]
    least, most = _NUMBERS[key]
    return type(value) in ((int,) if isinstance(least, int) else (int, float)) and least <= value <= most


def _said(value: Any) -> str:
    """Write a value of somebody else's file so that it can be shown."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "a mapping"
    return shown(repr(value), _SOME)


def _kept_layers(text: Mapping[str, Any], kind: str, layers: int) -> tuple[list[int], list[str]]:
    """Choose one layer of each kind, two at least, and name the kinds of their attention, where there are several.

    Returns:
        The numbers of the chosen layers, and the new ``layer_types``; empty where the model knows no such thing.
    """
    own = text.get("layer_types")
    if own:
        types = own[:layers]
        strange = next((one for one in types if one not in _ATTENTION), None)
        if strange is not None or ("linear_attention" in types) > (KINDS[kind].pattern is _HYBRID):
            raise Unknown(f"it has layers of {_said(strange or 'linear_attention')}")
    else:
        pattern = KINDS[kind].pattern
        types = pattern(text, layers) if pattern else []
    alike: dict[Any, int] = {}
    for layer in range(layers):
        of = types[layer] if layer < len(types) else ""
        alike.setdefault((of, _is_dense(text, layer), kind != "smollm3" or _ropes(text, layer)), layer)
    kept = sorted(alike.values())
    kept = kept if len(kept) >= _FEWEST else [kept[0]] * _FEWEST
    return kept, [types[layer] for layer in kept] if types and kind != "mistral" else []


def _ropes(text: Mapping[str, Any], layer: int) -> int:
    """Tell whether a layer of SmolLM3 turns its queries, as its config.json does: 1 or 0."""
    listed = text.get("no_rope_layers")
    if isinstance(listed, list) and layer < len(listed):
        return int(bool(listed[layer]))
    return int((layer + 1) % int(text.get("no_rope_layer_interval") or 4) != 0)


def _is_dense(text: Mapping[str, Any], layer: int) -> bool:
    """Tell whether a layer of a model of experts has none (Qwen's ``mlp_only_layers`` and ``decoder_sparse_step``)."""
    step = int(text.get("decoder_sparse_step") or 1)
    listed = text.get("mlp_only_layers") or []
    if len(listed) > _MOST:
        raise Unknown(f"its mlp_only_layers are {len(listed)}")
    return layer in listed or (layer + 1) % step != 0


def _experts(text: Mapping[str, Any], kind: str, kept: list[int]) -> dict[str, Any]:
    if kind == "gpt_oss":
        return {"num_local_experts": EXPERTS, "num_experts_per_tok": 2, "experts_per_token": 2}
    if kind not in ("qwen3_moe", "qwen3_next"):
        return {}
    dense = [place for place, layer in enumerate(kept) if _is_dense(text, layer)]
    more = {"shared_expert_intermediate_size": INNER} if kind == "qwen3_next" else {}
    return {
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": HIDDEN,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
        **more,
    }


def _partial(text: Mapping[str, Any], kind: str) -> float:
    """Tell which share of a head is turned."""
    default = 0.25 if kind in ("qwen3_5_text", "qwen3_next") else 1.0
    for where in (text.get("rope_parameters"), text.get("rope_scaling"), text):
        if isinstance(where, Mapping) and where.get("partial_rotary_factor") is not None:
            share = where["partial_rotary_factor"]
            if not _is_sound("partial_rotary_factor", share) or HEAD_DIM * share < 2:
                raise Unknown(f"its partial_rotary_factor is {_said(share)}")
            return float(share)
    return default


def _shrink_rope(rope: Mapping[str, Any], pairs: int) -> dict[str, Any]:
    """Fit what says how positions are turned to narrow heads.

    Args:
        rope: ``rope_scaling`` or ``rope_parameters``, or what they hold for a kind of attention.
        pairs: Of dimensions that are turned, of a head.
    """
    small = _keep(rope)
    for key in ("short_factor", "long_factor"):
        if rope.get(key) is not None:
            factors = rope[key]
            small[key] = [factors[at * len(factors) // pairs] for at in range(pairs)]
            if not all(_is_sound("factor", factor) for factor in small[key]):
                raise Unknown(f"its {key} is no list of numbers")
    if rope.get("mrope_section") is not None:
        small["mrope_section"] = _share_out(pairs, rope["mrope_section"])
    return small


def _share_out(total: int, weights: list[Any]) -> list[int]:
    """Share a number out in the given proportions, in whole numbers that add up to it."""
    if not 0 < len(weights) <= _SOME or not all(type(weight) is int and 0 < weight <= _MOST for weight in weights):
        raise ValueError("shares that are no whole numbers")
    whole = sum(weights)
    shares = [total * weight // whole for weight in weights]
    for place in range(total - sum(shares)):
        shares[place % len(shares)] += 1
    return shares


def _shrink_vision(vision: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Shrink a vision tower: one layer, an image of a few patches."""
    small = _keep(vision) | {"model_type": kind, "dtype": "float32", "hidden_size": HIDDEN, "intermediate_size": HIDDEN}
    if kind == "qwen3_5_vision":
        return small | {
            "depth": 1,
            "num_heads": HEADS,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": _PATCHES**2,
            "deepstack_visual_indexes": [],
        }
    patch = small.setdefault("patch_size", 14)
    small |= {"num_hidden_layers": 1, "num_attention_heads": HEADS, "image_size": _PATCHES * patch}
    return small | ({"head_dim": HEAD_DIM} if kind == "pixtral" else {})
