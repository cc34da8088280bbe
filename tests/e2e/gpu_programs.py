"""What the GPU benchmarks rest on, held against the real torch, transformers and Axolotl, in the trainer's environment.

Prints ``valid: N`` for N variants that Axolotl accepts on an H100 with torch 2.11; the first thing that does not hold
ends it with 1.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import tempfile
import types

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part) for part in ("benchmarks/gpu", "roles/run/files", "module_utils/lora_forge")]

import measure  # noqa: E402
import random_model  # noqa: E402
import speed  # noqa: E402
import torch  # noqa: E402
from axolotl.cli.config import prepare_plugins  # noqa: E402
from axolotl.utils.config import validate_config  # noqa: E402
from axolotl.utils.dict import DictDefault  # noqa: E402
from axolotl.utils.samplers import MultipackBatchSampler  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

H100 = {"bf16": True, "fp8": True, "tf32": True, "n_gpu": 1, "n_node": 1, "compute_capability": "sm_90"}
PAD = 9


def counting() -> None:
    """Check the counts of two rows of packed documents (3 and 2; 4) with padding, and of a batch not packed."""
    trainer = types.SimpleNamespace(
        processing_class=types.SimpleNamespace(pad_token_id=PAD), training_step=lambda model, inputs: "trained"
    )
    cfg = dict.fromkeys(measure.RESOLVED)
    callback = measure.Measure(cfg, trainer)
    state = types.SimpleNamespace(global_step=1)
    ids = torch.tensor([[1, 1, 1, 2, 2, PAD], [3, 3, 3, 3, PAD, PAD]])
    places = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 1]])
    callback.on_train_begin(None, state, None)
    assert trainer.training_step(None, {"input_ids": ids, "position_ids": places}) == "trained"
    assert trainer.training_step(None, {"input_ids": torch.tensor([[5, 5, PAD]])}) == "trained"
    callback.on_step_end(None, state, None)
    callback.on_log(None, state, None, logs={"loss": "2.5"})
    (row,) = [json.loads(line) for line in measure.STEPS.read_text().splitlines()]
    assert row.pop("seconds") > 0
    assert row == {
        "step": 1, "tokens": 11, "positions": 15, "squares": 9 + 4 + 16 + 4, "data": 3 + 4 + 12 + 10,
        "micro_batches": 2, "loss": 2.5,
    }, row  # fmt: skip
    assert json.loads(measure.MEASURED.read_text())["resolved"].keys() == cfg.keys()


def model() -> None:
    """Check that transformers reads the random model, down to the last tensor."""
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = random_model.QWEN | small | {"num_key_value_heads": 2, "vocab_size": 8192, "max_window_layers": 2}
    folder = pathlib.Path("model")
    random_model.make(folder, False, config)
    loaded, about = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(about.values()), about
    weight = loaded.model.layers[1].mlp.up_proj.weight
    assert weight.dtype == torch.bfloat16
    assert abs(weight.float().std().item() - 0.02) < 0.001
    assert loaded.model.norm.weight.eq(1).all()
    assert loaded.model.layers[0].self_attn.q_proj.bias.eq(0).all()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id == loaded.config.bos_token_id != tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer("A gate, a convoy.").input_ids) == "A gate, a convoy."


def packing() -> None:
    """Check that rows of sequence_len, as sdpa has them, are the same in each step however the batch is divided."""
    lengths = torch.randint(20, 400, (300,), generator=torch.Generator().manual_seed(1)).numpy()
    rows = []
    for micro in (1, 2, 4, 8):
        sampler = MultipackBatchSampler(range(300), micro, 1024, lengths, bin_size=200, num_processes=1)
        rows.append([row for batch in sampler for row in batch])
    whole = len(rows[-1])
    assert whole >= 40
    assert all(one[:whole] == rows[-1] for one in rows)


def variants() -> int:
    """Check that Axolotl accepts every variant, and those that are measured together."""
    names = [*speed.VARIANTS, *speed.PROMISING]
    bench = speed.Bench(pathlib.Path("work"), pathlib.Path("results"), 3, False, 0)
    for name in names:
        variant = speed.combined(name)
        cfg = DictDefault(bench.recipe(variant, pathlib.Path("run"), 13))
        prepare_plugins(cfg)
        checked = validate_config(cfg, capabilities=H100, env_capabilities={"torch_version": "2.11.0"})
        for key, value in variant.changes.items():
            assert checked[key] == value, (name, key, checked[key])
        on = [bool(checked[key]) for key in speed.KERNELS[:3]]
        assert on == [name != "no-lora-kernels"] * 3, (name, on)
        assert checked.pad_to_sequence_len, name
    return len(names)


with tempfile.TemporaryDirectory() as work:
    os.chdir(work)
    counting()
    model()
    packing()
    count = variants()
    os.chdir("/")
print(f"valid: {count}")
