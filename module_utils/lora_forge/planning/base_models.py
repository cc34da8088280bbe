"""Dimensions of common base models, each from the ``config.json`` that its maker published beside the weights.

Only what memory depends on, under transformers' names. A model that is not here is known as soon as its config.json is
at hand: see ``memory.find_config``.
"""

from __future__ import annotations

import re
from typing import Any


def _config(
    kind: str, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int, tied: bool,
    head_dim: int = 0, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim or hidden // heads,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        **more,
    }


def _gemma(*dimensions: Any, **more: Any) -> dict[str, Any]:
    return _config(*dimensions, hidden_activation="gelu_pytorch_tanh", **more)


# By the last part of the model's name, in lower case, without «-instruct», «-it» and the like.
CONFIGS = {
    "qwen2.5-0.5b": _config("qwen2", 896, 4864, 24, 14, 2, 151936, True),
    "qwen2.5-1.5b": _config("qwen2", 1536, 8960, 28, 12, 2, 151936, True),
    "qwen2.5-3b": _config("qwen2", 2048, 11008, 36, 16, 2, 151936, True),
    "qwen2.5-7b": _config("qwen2", 3584, 18944, 28, 28, 4, 152064, False),
    "qwen2.5-14b": _config("qwen2", 5120, 13824, 48, 40, 8, 152064, False),
    "qwen2.5-32b": _config("qwen2", 5120, 27648, 64, 40, 8, 152064, False),
    "qwen2.5-72b": _config("qwen2", 8192, 29568, 80, 64, 8, 152064, False),
    "qwen3-0.6b": _config("qwen3", 1024, 3072, 28, 16, 8, 151936, True, 128),
    "qwen3-1.7b": _config("qwen3", 2048, 6144, 28, 16, 8, 151936, True, 128),
    "qwen3-4b": _config("qwen3", 2560, 9728, 36, 32, 8, 151936, True, 128),
    "qwen3-8b": _config("qwen3", 4096, 12288, 36, 32, 8, 151936, False, 128),
    "qwen3-14b": _config("qwen3", 5120, 17408, 40, 40, 8, 151936, False, 128),
    "qwen3-32b": _config("qwen3", 5120, 25600, 64, 64, 8, 151936, False, 128),
    "llama-3.1-8b": _config("llama", 4096, 14336, 32, 32, 8, 128256, False),
    "llama-3.1-70b": _config("llama", 8192, 28672, 80, 64, 8, 128256, False),
    "llama-3.2-1b": _config("llama", 2048, 8192, 16, 32, 8, 128256, True),
    "llama-3.2-3b": _config("llama", 3072, 8192, 28, 24, 8, 128256, True),
    "llama-3.3-70b": _config("llama", 8192, 28672, 80, 64, 8, 128256, False),
    "mistral-7b-v0.3": _config("mistral", 4096, 14336, 32, 32, 8, 32768, False, sliding_window=None),
    "mistral-nemo-2407": _config("mistral", 5120, 14336, 40, 32, 8, 131072, False, 128, sliding_window=None),
    "mistral-small-24b-2501": _config("mistral", 5120, 32768, 40, 32, 8, 131072, False, 128, sliding_window=None),
    "gemma-2-2b": _gemma("gemma2", 2304, 9216, 26, 8, 4, 256000, True, 256, sliding_window=4096),
    "gemma-2-9b": _gemma("gemma2", 3584, 14336, 42, 16, 8, 256000, True, 256, sliding_window=4096),
    "gemma-3-1b": _gemma("gemma3_text", 1152, 6912, 26, 4, 1, 262144, True, 256, sliding_window=512),
    "phi-4": _config("phi3", 5120, 17920, 40, 40, 10, 100352, False, sliding_window=None),
}

_GEMMA3 = {
    "model_type": "gemma3",
    "text_config": {"model_type": "gemma3_text"},
    "vision_config": {"model_type": "siglip_vision_model", "patch_size": 14, "vision_use_head": False},
}
_MISTRAL3 = {"model_type": "mistral3", "text_config": {"model_type": "mistral"}, "vision_config": {"patch_size": 14}}
_QWEN35 = {
    "model_type": "qwen3_5",
    "text_config": {
        "model_type": "qwen3_5_text",
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000_000,
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "partial_rotary_factor": 0.25,
        },
    },
    "vision_config": {"model_type": "qwen3_5_vision"},
}
# Of which kind other common models are, by name: enough to rehearse one, not to estimate its memory. What is left out
# is at transformers' defaults. Source: transformers 5.20, the checkpoints that models/*/configuration_*.py name.
_FAMILIES = (
    (r"qwen3\.5-\d+(\.\d+)?b", _QWEN35),
    (r"qwen3(-coder)?-\d+b-a\d+b.*", {"model_type": "qwen3_moe"}),
    (r"gemma-3-(4|12|27)b", _GEMMA3),
    (r"gemma-3-(270m|1b)", {"model_type": "gemma3_text"}),
    (r"gemma-2-\d+b", {"model_type": "gemma2"}),
    (r"mistral-small-3\.\d-24b-\d+", _MISTRAL3),
    (r"gpt-oss-(20|120)b", {"model_type": "gpt_oss"}),
    (r"smollm3-3b", {"model_type": "smollm3"}),
    (r"llama-3(\.\d)?-\d+b", {"model_type": "llama", "num_key_value_heads": 8, "num_attention_heads": 32}),
)


def family(name: str) -> dict[str, Any]:
    """Tell of which kind a model is, as its config.json would; empty where nobody knows.

    Args:
        name: As in :data:`CONFIGS`.
    """
    return next((dict(config) for pattern, config in _FAMILIES if re.fullmatch(pattern, name)), {})
