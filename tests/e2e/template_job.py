"""Ask template_check of tokenizers of several families, and of every template that Axolotl brings; prints JSON.

Runs in the trainer's environment, with roles/run/files on the path.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import template_check
from axolotl.prompt_strategies import chat_template
from axolotl.utils.chat_templates.base import _CHAT_TEMPLATES
from axolotl.utils.dict import DictDefault
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
MISTRAL = ["<s>", "</s>", "[INST]", "[/INST]"]
GEMMA = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]


def tokenizer(special: list[str], end: str, begin: str | None, template: str | None) -> Any:
    """Make one that knows every byte, and these tokens."""
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=end, bos_token=begin, pad_token=special[0])
    fast.chat_template = _CHAT_TEMPLATES[template] if template else None
    return fast


FAMILIES = {
    "qwen": tokenizer(QWEN, "<|im_end|>", None, "qwen3"),
    "qwen-base": tokenizer(QWEN, "<|endoftext|>", None, "qwen_25"),
    "llama": tokenizer(LLAMA, "<|eot_id|>", "<|begin_of_text|>", "llama3"),
    "llama-base": tokenizer(LLAMA, "<|end_of_text|>", "<|begin_of_text|>", None),
    "mistral": tokenizer(MISTRAL, "</s>", "<s>", "mistral_v3_tekken"),
    "gemma": tokenizer(GEMMA, "<eos>", "<bos>", "gemma3"),
}
ASKED = [
    *((family, "tokenizer_default", (), {}) for family in FAMILIES),
    *((family, "chatml", (), {}) for family in ("qwen", "llama", "mistral", "gemma")),
    ("gemma", "tokenizer_default", (), {"eot_tokens": ["<end_of_turn>"]}),
    ("qwen", "llama3", (), {}),
    ("qwen", "chatml", ("tool_role", "tools"), {}),
    ("qwen", "chatml", ("tool_calls", "tool_role", "tools"), {}),
    ("qwen", "qwen_25", ("tool_calls", "tool_role", "tools"), {}),
    ("qwen", "qwen_25", ("reasoning_content",), {}),
    ("qwen", "tokenizer_default", ("reasoning_content", "tool_calls", "tool_role", "tools"), {}),
    ("gemma", "gemma3", ("tool_role",), {"eot_tokens": ["<end_of_turn>"]}),
    ("gemma", "gemma3", ("system",), {"eot_tokens": ["<end_of_turn>"]}),
    ("gemma", "gemma3", tuple(template_check.ORDER), {"eot_tokens": ["<end_of_turn>"]}),
    ("qwen", "tokenizer_default", tuple(template_check.ORDER), {}),
    ("qwen", "chatml", ("system",), {"datasets": [{"drop_system_message": True}]}),
    ("qwen", "qwen3", (), {"datasets": [{"train_on_eos": "none"}]}),
]


def configured(family: str, template: str, **more: Any) -> Any:
    entry = {"field_messages": "messages", "message_property_mappings": {"role": "role", "content": "content"}}
    return DictDefault(
        {"base_model": family, "chat_template": template, "sequence_len": 512, "datasets": [entry], **more}
    )


def known(template: str) -> list[str]:
    """List what a template has of a conversation, by itself."""
    strategy = chat_template.load(FAMILIES["begin"], configured("begin", template), {})
    found = []
    for need, (_, conversation, marks) in template_check.NEEDS.items():
        try:
            shown = template_check.rendered(strategy, conversation)
        except Exception:
            continue
        if all(mark in shown for mark in marks):
            found.append(need)
    return found


def main() -> None:
    logging.disable(logging.CRITICAL)
    said = [
        [
            family,
            template,
            list(needs),
            template_check.check(cfg, FAMILIES[family], dict.fromkeys(needs, "a.jsonl, line 3")),
        ]
        for family, template, needs, more in ASKED
        for cfg in [configured(family, template, **more)]
    ]
    others = [
        template_check.warnings(configured("qwen", template, **more), FAMILIES["qwen"])
        for template, more in (("tokenizer_default", {}), ("chatml", {"chat_template_kwargs": {"x": 1}}))
    ]
    FAMILIES["begin"] = tokenizer([*QWEN, "<s>"], "<|im_end|>", "<s>", "qwen3")
    print(
        json.dumps({"said": said, "warnings": others, "knows": {name: known(name) for name in sorted(_CHAT_TEMPLATES)}})
    )


if __name__ == "__main__":
    main()
