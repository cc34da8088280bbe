"""Make the rehearsal's base model: config.json, a tokenizer, and for the common kinds random weights.

Runs in the trainer's environment. It imports neither torch nor transformers, so it takes a second instead of twenty.
The same corpus and seed give the same files, byte for byte. Weights that are not made here are made by the training
itself, which has imported what they need (lora_forge_axolotl.py).
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# The model where nothing is known of the recipe's base.
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 32,  # with 16 vLLM's engine dies at its first request
    "hidden_act": "silu",
    "hidden_size": 64,  # bitsandbytes quantises in blocks of 64
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "max_position_embeddings": 4096,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "use_cache": True,
    "use_sliding_window": False,
}
# Kinds whose weights are made here, and which of their projections have a bias; the others' in the training.
BIASES = {
    "llama": (),
    "mistral": (),
    "qwen2": ("q_proj", "k_proj", "v_proj"),
    "qwen3": (),
    "smollm3": (),
}
# A turn as ChatML has it; tools, what is called and what comes back as Qwen's models have them. Whatever the data
# holds is rendered, and the token that ends each turn is learnt.
TEMPLATE = r"""{%- if tools %}
{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
{{- '# Tools\n\n<tools>' }}
{%- for tool in tools %}{{- '\n' + (tool | tojson) }}{%- endfor %}
{{- '\n</tools><|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{%- if not (tools and loop.first and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.reasoning_content %}{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{%- endif %}
{%- if message.content %}{{- message.content }}{%- endif %}
{%- for call in message.tool_calls or [] %}
{%- set call = call.function or call %}
{{- '\n<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}
{{- call.arguments if call.arguments is string else call.arguments | tojson }}
{{- '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""


def texts(paths: list[pathlib.Path]) -> Iterator[str]:
    """Yield what dataset files hold in text, as they are staged (turns and tools as JSON) or as people write them."""
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if not line.strip():
                    continue
                record = json.loads(line)
                turns = record.get("conversations") or record.get("messages") or []
                for turn in json.loads(turns) if isinstance(turns, str) else turns:
                    for key in ("value", "content", "reasoning_content"):
                        if isinstance(turn.get(key), str):
                            yield turn[key]
                    if turn.get("tool_calls"):
                        yield json.dumps(turn["tool_calls"], ensure_ascii=False)
                tools = record.get("tools")
                if tools:
                    yield tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)


def make_tokenizer(paths: list[pathlib.Path], vocab_size: int, special: list[str] = SPECIAL) -> Tokenizer:
    """Train a byte-level BPE tokenizer on the datasets themselves."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts(paths),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def make_weights(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Draw random weights under the names that transformers gives them.

    Args:
        config: Of a kind in :data:`BIASES`, with its vocabulary's size.
        seed: The same one makes the same weights.
    """
    rng = np.random.default_rng(seed)
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    vocab, biases = config["vocab_size"], BIASES[config["model_type"]]

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0.0, config.get("initializer_range", 0.02), shape).astype(np.float32)

    def ones(size: int) -> np.ndarray:
        return np.ones(size, np.float32)

    weights = {"model.embed_tokens.weight": normal(vocab, hidden), "model.norm.weight": ones(hidden)}
    if not config.get("tie_word_embeddings", config["model_type"] == "smollm3"):
        weights["lm_head.weight"] = normal(vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        weights |= {
            f"{at}.input_layernorm.weight": ones(hidden),
            f"{at}.post_attention_layernorm.weight": ones(hidden),
            f"{at}.self_attn.q_proj.weight": normal(q, hidden),
            f"{at}.self_attn.k_proj.weight": normal(kv, hidden),
            f"{at}.self_attn.v_proj.weight": normal(kv, hidden),
            f"{at}.self_attn.o_proj.weight": normal(hidden, q),
            f"{at}.mlp.gate_proj.weight": normal(inner, hidden),
            f"{at}.mlp.up_proj.weight": normal(inner, hidden),
            f"{at}.mlp.down_proj.weight": normal(hidden, inner),
        }
        weights |= {f"{at}.self_attn.{name}.bias": normal(q if name == "q_proj" else kv) for name in biases}
        if config["model_type"] == "qwen3":
            weights |= {f"{at}.self_attn.{name}_norm.weight": ones(head) for name in "qk"}
    return weights


def write_tokenizer(folder: pathlib.Path, corpus: list[pathlib.Path], vocab_size: int, given: dict[str, Any]) -> None:
    """Train a tokenizer, write its files with a chat template, and fit the vocabulary of ``given["config"]`` to it."""
    named = dict.fromkeys([*given.get("tokens", {}).values(), *given.get("names", {}).values()])
    tokenizer = make_tokenizer(corpus, vocab_size, [*SPECIAL, *named])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": given["config"].get("max_position_embeddings", 4096),
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }
    settings |= {"extra_special_tokens": given["names"]} if given.get("names") else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    ids = {
        "vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
    }
    config = given["config"]
    config.get("text_config", config).update(ids)
    config.update({key: tokenizer.token_to_id(token) for key, token in given.get("tokens", {}).items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, help="folder to make; complete once it exists")
    parser.add_argument("corpus", type=pathlib.Path, nargs="+", help="dataset files the tokenizer learns from")
    parser.add_argument("--given", type=pathlib.Path, help="folder with model.json (config, tokens, names, files) and "
                        "the tokenizer's files, where it has one; without it the model is a Qwen3")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocab-size", type=int, default=2048)
    args = parser.parse_args()
    if args.out.exists():
        return
    made = args.out.with_name(f"{args.out.name}.partial.{os.getpid()}")
    made.mkdir(parents=True)
    try:
        given = json.loads((args.given / "model.json").read_text()) if args.given else {"config": dict(CONFIG)}
        if args.given and (args.given / "tokenizer.json").exists():
            for path in args.given.iterdir():
                if path.name != "model.json":
                    shutil.copyfile(path, made / path.name)
        else:
            write_tokenizer(made, args.corpus, args.vocab_size, given)
        config = given["config"]
        for name, content in {**given.get("files", {}), "config.json": config}.items():
            (made / name).write_text(json.dumps(content, indent=2))
        if config["model_type"] in BIASES:
            save_file(make_weights(config, args.seed), made / "model.safetensors", metadata={"format": "pt"})
        try:
            made.rename(args.out)
        except OSError:
            if not args.out.exists():  # else another process was first; its files are the same
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


if __name__ == "__main__":
    main()
