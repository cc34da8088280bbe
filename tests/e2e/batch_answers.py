"""Let tiny random models answer questions of unlike lengths, alone and in one batch. Runs in the trainer's environment.

Prints for each family how many answers of the batch differ from those given alone, and how many would if the padding on
the left were taken for text.
"""

from __future__ import annotations

import json
import types

import answer_cases
import torch
import transformers

SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300, "max_position_embeddings": 256,
    "initializer_range": 0.3, "tie_word_embeddings": False,  # or a random model would repeat what it was told last
}  # fmt: skip
FAMILIES: dict[str, dict[str, object]] = {
    "Qwen2": {}, "Qwen3": {}, "Llama": {}, "Gemma": {}, "Gemma2": {"sliding_window": 8},
    "Gemma3Text": {"sliding_window": 8},
}  # fmt: skip
ENDS, NEW = [1], 24
TOKENIZER = types.SimpleNamespace(pad_token_id=0)


def differing(model: object, prompts: list[list[int]], alone: list[list[int]]) -> int:
    together = answer_cases.generate(model, TOKENIZER, prompts, NEW, ENDS)
    return sum(one != other for one, other in zip(together, alone))


def main() -> None:
    found = {}
    torch.manual_seed(0)
    prompts = [torch.randint(2, 300, (5 + 7 * number % 40,)).tolist() for number in range(16)]
    width = max(map(len, prompts))
    for name, more in FAMILIES.items():
        config = getattr(transformers, f"{name}Config")(**SIZES, **more)
        model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        alone = [answer_cases.generate(model, TOKENIZER, [one], NEW, ENDS)[0] for one in prompts]
        padded = [[TOKENIZER.pad_token_id] * (width - len(one)) + one for one in prompts]
        found[name] = differing(model, prompts, alone), differing(model, padded, alone)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
