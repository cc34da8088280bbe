"""Rules of chat templates that need no tokenizer: what Axolotl's own ones leave out, and whom they do not suit.

What only a tokenizer can tell is asked where there is one, by roles/run/files/template_check.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible.module_utils.lora_forge.planning.layers import Layer, quote_value

DEFAULT = "tokenizer_default"
_ALL = frozenset({"reasoning_content", "tool_calls", "tool_role", "tools"})
_TOOLS = frozenset({"tool_calls", "tool_role", "tools"})
_TURNS = frozenset({"tool_role"})
_LIST = frozenset({"tools"})
_NONE: frozenset[str] = frozenset()
# What each template that comes with Axolotl 0.21 has in what it renders of a conversation with tools and reasoning, and
# Axolotl tokenises without an error; a test holds this against Axolotl. It is in the words of a dataset's needs.
KNOWS = {
    **dict.fromkeys(("qwen3", "qwen3_5"), _ALL),
    **dict.fromkeys(("command_a_tool_use", "jamba", "llama3_2_vision", "llama4", "qwen_25"), _TOOLS),
    **dict.fromkeys(("exaone4", "falcon_h1"), _TURNS | _LIST),
    "command_a_rag": frozenset({"tool_calls", "tool_role"}),
    **dict.fromkeys(("gemma4", "gemma4_unified", "mistral_v2v3", "mistral_v3_tekken"), _LIST),
    **dict.fromkeys(("chatml", "deepseek_v3", "exaone", "llama3", "llava", "qwen2_vl"), _TURNS),
    **dict.fromkeys(
        (
            *("alpaca", "aya", "cohere", "command_a", "deepseek_v2", "gemma", "gemma3", "gemma3n", "metharme"),
            *("mistral_v1", "mistral_v7_tekken", "nemotron_h", "phi_3", "phi_35", "phi_4", "pixtral"),
        ),
        _NONE,
    ),
}
_WORDS = {
    "reasoning_content": "reasoning (reasoning_content)",
    "tool_calls": "calls of tools (tool_calls)",
    "tool_role": "answers of tools (turns by tool)",
    "tools": "lists of tools (tools)",
}
# Templates whose turns end with <|im_end|>, which is a token of Qwen's and of whoever took it over.
_IM_END = frozenset({"chatml", "qwen_25", "qwen3", "qwen3_5", "qwen2_vl"})
# Models under their makers' own names, whose vocabulary has no <|im_end|>. A name with any other word in it may be
# somebody's training with another vocabulary, such as Hermes or OpenOrca.
_WITHOUT_IM_END = re.compile(
    r"(meta-)?(code-?)?(?P<kind>llama|gemma|mistral|mixtral|ministral)"
    r"([-_.]?(\d[\d.x]*[bkme]?|[ev]\d[\d.]*b?|it|instruct|chat|hf|base|pt|small|large|nemo|vision|text|bnb|4bit|unsloth))*",
    re.IGNORECASE,
)
# Keys with which a vocabulary may have it after all.
_VOCABULARY = ("added_tokens_overrides", "eot_tokens", "special_tokens", "tokenizer_config", "tokens")


def problems(recipe: dict[str, Any], origin: dict[str, Layer]) -> list[str]:
    """List what is wrong with the template of a recipe, as far as names tell.

    Args:
        recipe: A merged recipe without other problems.
        origin: The layer of each key.
    """
    template = recipe.get("chat_template")
    if template and recipe.get("tokenizer_use_mistral_common"):
        return []  # Axolotl says so itself
    name = str(recipe.get("base_model", "")).rstrip("/").rpartition("/")[2]
    found = _WITHOUT_IM_END.fullmatch(name)
    if template in _IM_END and found and not any(recipe.get(key) for key in _VOCABULARY):
        return [
            f"{origin['chat_template'].where('chat_template')}: «chat_template: {quote_value(template)}» ends a turn "
            f"with <|im_end|>, which is no token of {recipe['base_model']}: nothing that is learnt would end a turn. "
            f"Write «chat_template: {DEFAULT}», the model's own; a base model without one takes "
            f"«{_own_template(found['kind'].lower())}»"
        ]
    return []


def _own_template(kind: str) -> str:
    return {"llama": "llama3", "gemma": "gemma3"}.get(kind, "mistral_v3_tekken")


def data_problems(recipe: dict[str, Any], origin: dict[str, Layer], needs: Mapping[str, str]) -> list[str]:
    """Refuse a template of Axolotl's that would drop what the data has, without a word.

    Args:
        recipe: The merged recipe.
        origin: The layer of each key.
        needs: What the data has, in the words of a dataset's needs, each with a place that has it.
    """
    template = recipe.get("chat_template")
    known = set(needs) & _ALL  # whether it takes the order of turns, only its tokenizer can tell
    lost = sorted(known - KNOWS.get(str(template), _ALL))
    if not lost:
        return []
    places = "; ".join(dict.fromkeys(needs[need] for need in lost))
    able = [name for name in ("qwen_25", "qwen3", "qwen3_5", "llama4") if known <= KNOWS[name]]
    return [
        f"{origin['chat_template'].where('chat_template')}: «chat_template: {quote_value(template)}» leaves out "
        f"{', '.join(_WORDS[need] for need in lost)}, which the data has ({places}), so that nothing of it would be "
        f"learnt. Write «chat_template: {DEFAULT}» where the base model's own knows it, or one of {', '.join(able)}"
    ]
