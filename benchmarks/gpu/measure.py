"""An Axolotl plugin that measures each step: seconds, tokens, loss, memory. ``plugins: [measure.MeasurePlugin]``.

It writes into the working directory, after each optimizer step: ``steps.jsonl``, an object more, and
``measured.json``, the memory until then. So a training that is cut off leaves what was measured.
"""

from __future__ import annotations

import json
import pathlib
import time
from typing import Any

import torch
from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

STEPS, MEASURED = pathlib.Path("steps.jsonl"), pathlib.Path("measured.json")
RESOLVED = (  # of Axolotl's configuration, as it was after its own defaults
    "attn_implementation", "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_offloading", "torch_compile", "optimizer",
    "micro_batch_size", "gradient_accumulation_steps", "pad_to_sequence_len", "sample_packing", "bf16", "tf32",
    "load_in_4bit", "liger_fused_linear_cross_entropy", "cut_cross_entropy",
)  # fmt: skip


def settle() -> None:
    """Wait until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Measure(TrainerCallback):
    """Times steps from end to end, so that loading data counts; counts what goes through the model."""

    def __init__(self, cfg: Any, trainer: Any):
        self.cfg = cfg
        self.pad = trainer.processing_class.pad_token_id
        self.counted: list[Any] = []  # of the micro batches of a step; read only when the step is over
        self.before = 0.0
        self.steps: dict[int, dict[str, Any]] = {}
        train = trainer.training_step

        def counting(model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            self.count(inputs)
            return train(model, inputs, *rest, **named)

        trainer.training_step = counting

    def count(self, inputs: Any) -> None:
        """Note tokens, positions, Σ s² and a sum that tells data apart, without waiting for the device.

        A document of s tokens has the positions 0 … s-1, and 1 + 3 + … + (2 s - 1) = s².
        """
        ids = inputs["input_ids"]
        real = (ids != self.pad).long()
        places = inputs.get("position_ids")
        if places is None:  # not packed: each row is a document
            places = torch.arange(ids.shape[-1], device=ids.device).expand_as(ids)
        places = places.reshape(ids.shape).long()
        sums = [real.sum(), torch.full_like(real.sum(), ids.numel()), (real * (2 * places + 1)).sum()]
        self.counted.append(torch.stack([*sums, (real * ids).sum()]))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        STEPS.unlink(missing_ok=True)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        settle()
        self.before = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        settle()
        now = time.perf_counter()
        tokens, positions, squares, data = (int(value) for value in torch.stack(self.counted).sum(0).tolist())
        micro = len(self.counted)
        self.counted.clear()
        self.steps[state.global_step] = {
            "step": state.global_step, "seconds": now - self.before, "tokens": tokens, "positions": positions,
            "squares": squares, "data": data, "micro_batches": micro,
        }  # fmt: skip
        self.before = now

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in (logs or {}) and state.global_step in self.steps:
            row = {**self.steps.pop(state.global_step), "loss": float(logs["loss"])}
            with STEPS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self.note()

    def note(self) -> None:
        """Write what Axolotl made of its configuration, and the peak of memory so far."""
        found: dict[str, Any] = {"resolved": {key: plain(self.cfg.get(key)) for key in RESOLVED}}
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            beside = total - free - torch.cuda.memory_reserved()  # the CUDA context, and what others hold
            found["memory"] = {
                "allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved(),
                "beside": beside, "total": total,
            }  # fmt: skip
        part = MEASURED.with_suffix(".part")
        part.write_text(json.dumps(found))
        part.replace(MEASURED)


def plain(value: Any) -> Any:
    """Return a value in a form that JSON can hold."""
    return json.loads(json.dumps(value, default=str))


class MeasurePlugin(BasePlugin):
    """Axolotl's plugin interface to :class:`Measure`."""

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[TrainerCallback]:
        return [Measure(cfg, trainer)]
