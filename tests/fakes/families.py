"""Base models of every family that is trained in the tests, as the config.json of one of them has it."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of base models.

    Attributes:
        example: One of them, by its name on the hub.
        config: What matters of its config.json; widths are shrunk anyway.
        quick: Whether ``make soak`` trains it, too.
        targets: ``lora_target_modules``, where the seven names of configs/base.yml do not suit it.
        watch: What to watch for, for docs/base-models.md.
    """

    example: str
    config: dict[str, Any]
    quick: bool = False
    targets: Any = None
    watch: str = ""


def _text(kind: str, layers: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **more,
    }


_MROPE = {
    "mrope_interleaved": True,
    "mrope_section": [11, 11, 10],
    "rope_type": "default",
    "rope_theta": 10_000_000,
    "partial_rotary_factor": 0.25,
}
_QWEN35 = _text("qwen3_5_text", 32, 16, 4, rope_parameters=_MROPE)
_LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
# Of the language model alone: by name they are in the vision tower, too.
_LANGUAGE = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
_TOWER = "by name the seven projections are in its vision tower, too: name them by a regular expression"
_HYBRID = "packs on a GPU only; `in_proj_*` and `out_proj` of its linear attention are none of the seven projections"
FAMILIES = {
    "Qwen2.5": Family("Qwen/Qwen2.5-7B-Instruct", _text("qwen2", 28, 28, 4)),
    "Qwen3": Family("Qwen/Qwen3-8B", _text("qwen3", 36, 32, 8)),
    "Qwen3 MoE": Family(
        "Qwen/Qwen3-30B-A3B",
        _text("qwen3_moe", 48, 32, 4, num_experts=128, num_experts_per_tok=8),
        quick=True,
        watch="`gate_proj`, `up_proj` and `down_proj` are its experts, each with an adapter of its own: a large one",
    ),
    "Qwen3.5 text": Family("Qwen/Qwen3.5-9B, its language model alone", _QWEN35, watch=_HYBRID),
    "Qwen3.5": Family(
        "Qwen/Qwen3.5-9B",
        {"model_type": "qwen3_5", "text_config": _QWEN35, "vision_config": {"model_type": "qwen3_5_vision"}},
        quick=True,
        watch=_HYBRID,
    ),
    "Llama 3": Family("meta-llama/Llama-3.1-8B-Instruct", _text("llama", 32, 32, 8, rope_scaling=_LLAMA3)),
    "Mistral": Family("mistralai/Mistral-7B-Instruct-v0.3", _text("mistral", 32, 32, 8, sliding_window=None)),
    "Mistral 3": Family(
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        {
            "model_type": "mistral3",
            "text_config": _text("mistral", 40, 32, 8, sliding_window=None),
            "vision_config": {"model_type": "pixtral", "patch_size": 14, "head_dim": 64},
        },
        targets=_LANGUAGE,
        watch=_TOWER,
    ),
    "Gemma 2": Family("google/gemma-2-9b-it", _text("gemma2", 42, 16, 8, sliding_window=4096)),
    "Gemma 3 text": Family("google/gemma-3-1b-it", _text("gemma3_text", 26, 4, 1, sliding_window=512), quick=True),
    "Gemma 3": Family(
        "google/gemma-3-4b-it",
        {
            "model_type": "gemma3",
            "text_config": _text(
                "gemma3_text", 34, 8, 4, sliding_window=1024, rope_scaling={"factor": 8.0, "rope_type": "linear"}
            ),
            "vision_config": {"model_type": "siglip_vision_model", "patch_size": 14, "vision_use_head": False},
        },
        targets=_LANGUAGE,
        watch=_TOWER,
    ),
    "SmolLM3": Family("HuggingFaceTB/SmolLM3-3B", _text("smollm3", 36, 16, 4)),
    "Phi-4": Family(
        "microsoft/phi-4",
        _text("phi3", 40, 40, 10, sliding_window=None),
        targets=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
        watch="its modules are `qkv_proj`, `o_proj`, `gate_up_proj` and `down_proj`",
    ),
    "gpt-oss": Family(
        "openai/gpt-oss-20b",
        _text("gpt_oss", 24, 64, 8, num_local_experts=32, quantization_config={"quant_method": "mxfp4"}),
        watch="`attn_implementation: eager`, as transformers has no sdpa for it, and so without packing",
    ),
}

HEAD = (
    "| family | for example | trained and proven | packs on a CPU | ~GPU memory | what to watch for |",
    "|---|---|---|---|---|---|",
)


def table(seen: dict[str, dict[str, bool]], memory: dict[str, str]) -> str:
    """Write the table of docs/base-models.md.

    Args:
        seen: Of each family whose tests passed: ``packs``, whether packed conversations were kept apart on the CPU.
        memory: Of each family, what a training of its example is thought to need.
    """
    rows = [
        f"| {name} | {family.example} | {'yes' if name in seen else 'no'} "
        f"| {'yes' if seen.get(name, {}).get('packs') else 'no'} | {memory[name]} | {family.watch or '–'} |"
        for name, family in FAMILIES.items()
    ]
    return "\n".join([*HEAD, *rows])
