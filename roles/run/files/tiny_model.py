"""Make the rehearsal's base model: a tiny Qwen3 with random weights and a tokenizer of its own.

Runs in the trainer's environment. It imports neither torch nor transformers, so it takes a second
instead of twenty. The same corpus and seed give the same files, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,  # bitsandbytes quantises in blocks of 64
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "use_cache": True,
    "use_sliding_window": False,
}


def texts(paths: list[pathlib.Path]):
    """Yield every turn's text of dataset files, as they are staged (turns as text) or as people write them."""
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    record = json.loads(line)
                    turns = record.get("conversations") or record.get("messages") or []
                    for turn in json.loads(turns) if isinstance(turns, str) else turns:
                        yield str(turn.get("value", turn.get("content", "")))


def make_tokenizer(paths: list[pathlib.Path], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer on the datasets themselves."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts(paths),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def make_weights(vocab_size: int, seed: int) -> dict[str, np.ndarray]:
    """Random weights under the names transformers gives a Qwen3 model."""
    rng = np.random.default_rng(seed)
    hidden, inner, head = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    q, kv = CONFIG["num_attention_heads"] * head, CONFIG["num_key_value_heads"] * head

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0.0, CONFIG["initializer_range"], shape).astype(np.float32)

    def ones(size: int) -> np.ndarray:
        return np.ones(size, np.float32)

    weights = {"model.embed_tokens.weight": normal(vocab_size, hidden), "model.norm.weight": ones(hidden)}
    for layer in range(CONFIG["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        weights |= {
            f"{at}.input_layernorm.weight": ones(hidden),
            f"{at}.post_attention_layernorm.weight": ones(hidden),
            f"{at}.self_attn.q_proj.weight": normal(q, hidden),
            f"{at}.self_attn.k_proj.weight": normal(kv, hidden),
            f"{at}.self_attn.v_proj.weight": normal(kv, hidden),
            f"{at}.self_attn.o_proj.weight": normal(hidden, q),
            f"{at}.self_attn.q_norm.weight": ones(head),
            f"{at}.self_attn.k_norm.weight": ones(head),
            f"{at}.mlp.gate_proj.weight": normal(inner, hidden),
            f"{at}.mlp.up_proj.weight": normal(inner, hidden),
            f"{at}.mlp.down_proj.weight": normal(hidden, inner),
        }
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, help="folder to make; complete once it exists")
    parser.add_argument("corpus", type=pathlib.Path, nargs="+", help="dataset files the tokenizer learns from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocab-size", type=int, default=2048)
    args = parser.parse_args()
    if args.out.exists():
        return
    made = args.out.with_name(f"{args.out.name}.partial.{os.getpid()}")
    made.mkdir(parents=True)
    try:
        tokenizer = make_tokenizer(args.corpus, args.vocab_size)
        vocab_size = -(-tokenizer.get_vocab_size() // 64) * 64
        ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
        tokenizer.save(str(made / "tokenizer.json"))
        (made / "tokenizer_config.json").write_text(
            json.dumps(
                {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "model_max_length": CONFIG["max_position_embeddings"],
                    "eos_token": "<|im_end|>",
                    "pad_token": "<|endoftext|>",
                    "clean_up_tokenization_spaces": False,
                },
                indent=2,
            )
        )
        config = CONFIG | {
            "vocab_size": vocab_size,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        }
        (made / "config.json").write_text(json.dumps(config, indent=2))
        save_file(make_weights(vocab_size, args.seed), made / "model.safetensors", metadata={"format": "pt"})
        try:
            made.rename(args.out)
        except OSError:
            if not args.out.exists():  # else another process was first; its files are the same
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


if __name__ == "__main__":
    main()
