"""A model of Qwen2.5-7B's exact shape with random weights, and a tokenizer trained on the example data.

    python benchmarks/gpu/random_model.py FOLDER [--tiny]

For speed, memory and the proof only the shape matters, and real weights are 15 GB that not every machine can fetch.
Ids of the small tokenizer lie below the vocabulary of 152064, of which every row is computed all the same. With
``--tiny`` it is the rehearsal's model for CPUs (roles/run/files/tiny_model.py).
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

from forge import ROOT, die_with_parent, left_behind

sys.path.insert(0, str(ROOT / "roles/run/files"))

CORPUS = sorted((ROOT / "examples/datasets").glob("*_train.jsonl"))
TOKENS = 8192  # at most; the example data gives fewer
QWEN = {  # https://huggingface.co/Qwen/Qwen2.5-7B-Instruct/blob/main/config.json
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}


def shapes(config: dict[str, Any]) -> dict[str, list[dict[str, tuple[int, ...]]]]:
    """Return the tensors of a Qwen2 model under the names that transformers gives them.

    Args:
        config: Of config.json.

    Returns:
        File name -> groups of {name: shape}. Each layer is a file of its own.
    """
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = hidden // config["num_attention_heads"]
    keys = config["num_key_value_heads"] * head
    count = config["num_hidden_layers"]
    files: dict[str, list[dict[str, tuple[int, ...]]]] = {}
    for layer in range(count):
        at = f"model.layers.{layer}"
        files[f"model-{layer + 1:05d}-of-{count + 1:05d}.safetensors"] = [
            {
                f"{at}.input_layernorm.weight": (hidden,),
                f"{at}.post_attention_layernorm.weight": (hidden,),
                f"{at}.self_attn.q_proj.weight": (hidden, hidden),
                f"{at}.self_attn.q_proj.bias": (hidden,),
                f"{at}.self_attn.k_proj.weight": (keys, hidden),
                f"{at}.self_attn.k_proj.bias": (keys,),
                f"{at}.self_attn.v_proj.weight": (keys, hidden),
                f"{at}.self_attn.v_proj.bias": (keys,),
                f"{at}.self_attn.o_proj.weight": (hidden, hidden),
                f"{at}.mlp.gate_proj.weight": (inner, hidden),
                f"{at}.mlp.up_proj.weight": (inner, hidden),
                f"{at}.mlp.down_proj.weight": (hidden, inner),
            }
        ]
    outer = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        outer["lm_head.weight"] = (vocab, hidden)
    files[f"model-{count + 1:05d}-of-{count + 1:05d}.safetensors"] = [outer]
    return files


def write_weights(folder: pathlib.Path, config: dict[str, Any], seed: int = 0) -> None:
    """Write random weights in bf16, as transformers initialises them, and their index; on the GPU if there is one."""
    import torch
    from safetensors.torch import save_file

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    index, total = {}, 0
    for name, groups in shapes(config).items():
        tensors = {}
        for tensor, shape in (item for group in groups for item in group.items()):
            made = torch.zeros(shape, device=device, dtype=torch.bfloat16)
            if tensor.endswith("norm.weight"):
                made.fill_(1)
            elif tensor.endswith(".weight"):
                made.normal_(0.0, config["initializer_range"], generator=generator)
            tensors[tensor] = made.cpu()
            index[tensor] = name
            total += made.numel() * 2
        save_file(tensors, folder / name, metadata={"format": "pt"})
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1)
    (folder / "model.safetensors.index.json").write_text(text)


def folder(work: pathlib.Path, tiny: bool) -> pathlib.Path:
    """Return where the model lies in a work folder."""
    return work / ("tiny" if tiny else "Qwen2.5-7B-Instruct")


def provide(work: pathlib.Path, tiny: bool) -> pathlib.Path:
    """Have the model made by a process of its own, unless it is there; return its folder.

    CUDA, once begun in a process, holds memory of the GPU until that process ends. Who measures must not.

    Raises:
        SystemExit: It could not be made.
    """
    out = folder(work, tiny)
    if not out.exists():
        command = [sys.executable, __file__, str(out), *(["--tiny"] if tiny else [])]
        code = subprocess.run(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent).returncode
        if code:
            raise SystemExit(f"the model could not be made: {' '.join(command)} ended with {code}; see above")
    return out


def make(out: pathlib.Path, tiny: bool, config: dict[str, Any] = QWEN, corpus: list[pathlib.Path] = CORPUS) -> None:
    """Make the model's folder; what is there already is left alone.

    Args:
        out: The folder, complete once it exists.
        tiny: The rehearsal's model in the place of the large one.
        config: Of the large one.
        corpus: Dataset files the tokenizer learns from.
    """
    if out.exists():
        return
    for left in left_behind(out):  # by one that was killed: gigabytes
        shutil.rmtree(left, ignore_errors=True)
    import tiny_model

    if tiny:
        sys.argv = ["tiny_model.py", str(out), *map(str, corpus)]
        out.parent.mkdir(parents=True, exist_ok=True)
        tiny_model.main()
        return
    made = out.with_name(f"{out.name}.partial.{os.getpid()}")
    made.mkdir(parents=True)
    try:
        tokenizer = tiny_model.make_tokenizer(corpus, TOKENS)
        ids = {token: tokenizer.token_to_id(token) for token in tiny_model.SPECIAL}
        tokenizer.save(str(made / "tokenizer.json"))
        kept = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config["max_position_embeddings"],
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
        }
        (made / "tokenizer_config.json").write_text(json.dumps(kept, indent=2))
        whole = config | {"eos_token_id": ids["<|im_end|>"], "bos_token_id": ids["<|endoftext|>"]}
        (made / "config.json").write_text(json.dumps(whole, indent=2))
        write_weights(made, config)
        made.rename(out)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="to make; complete once it exists")
    parser.add_argument("--tiny", action="store_true", help="the rehearsal's model, for a CPU")
    given = parser.parse_args()
    make(given.folder.resolve(), given.tiny)
    size = sum(file.stat().st_size for file in given.folder.iterdir())
    print(f"{given.folder}: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
