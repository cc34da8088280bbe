"""How fast a GPU trains, and what makes it faster: the base recipe, then one change at a time, each in a fresh process.

    python benchmarks/gpu/speed.py --work /tmp/speed [--only baseline,liger] [--repeats 2] [--steps 15] [--seconds 540]
    python benchmarks/gpu/speed.py --work /tmp/speed --only baseline,liger+mb4x2 --steps 55     # loss curves, too

The baseline is configs/base.yml, the users' recipe made valid, on a random model of Qwen2.5-7B's shape and on example
conversations; there is no evaluation, no checkpoint, and each step is logged. Names joined by ``+`` are changes made
together. Every process writes one JSON file into ``--results``/<GPU>/; what is there is not measured again, so that
the same command goes on after it was cut off, or after ``--seconds``, when it ends with status 3. ``gpu_table.py``
makes the table of docs/gpu.md of them.

``--tiny`` does it on a CPU with the rehearsal's model and the variants that a CPU can run. Its figures mean nothing,
and are written into the work folder only.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import random
import subprocess
import sys
import time
from typing import Any, Callable, Optional

import random_model
import yaml
from forge import AGAIN, RESULTS, ROOT, environment, facts, gpu_facts, import_forge, lines, load, save, slug

import_forge()
from ansible.module_utils.lora_forge import recipe  # noqa: E402

HERE = ROOT / "benchmarks/gpu"
STARTUP = 90.0  # seconds that a process is thought to need at least before any was seen
COMPUTED = ("datasets", "dataset_prepared_path", "output_dir", "plugins")  # of this machine; not in the results
LAST_WORDS = 600  # characters of a failure that are kept


def lacks(module: str) -> Callable[[], Optional[str]]:
    """A condition: a Python package is there."""
    return lambda: None if importlib.util.find_spec(module) else f"the package {module} is not installed"


def lacks_kernel(name: str) -> Callable[[], Optional[str]]:
    """A condition: a kernel of the Hugging Face Hub was fetched before; a measurement downloads nothing."""
    cache = pathlib.Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub"
    folder = cache / f"models--{name.replace('/', '--')}"
    return lambda: (
        None if folder.is_dir() else f"the kernel {name} is not in the hub's cache, and nothing is downloaded"
    )


@dataclasses.dataclass(frozen=True)
class Variant:
    """A change to the baseline.

    Attributes:
        changes: Axolotl keys.
        words: What it is, for the table.
        cpu: A CPU can run it.
        lacking: Says why it cannot be run here; None where it can.
    """

    changes: dict[str, Any]
    words: str
    cpu: bool = False
    lacking: Callable[[], Optional[str]] = lambda: None

    @property
    def same_training(self) -> bool:
        """Whether it changes machine keys only: all others train something else, and are reported, never a default."""
        return self.changes.keys() <= recipe.MACHINE_KEYS


KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
LIGER = dict.fromkeys(
    ("liger_fused_linear_cross_entropy", "liger_rms_norm", "liger_rope", "liger_glu_activation"), True
)
VARIANTS = {
    "baseline": Variant({}, "configs/base.yml: sdpa (varlen), checkpointing, QLoRA, 2 × 4", cpu=True),
    "flash2": Variant(
        {"attn_implementation": "flash_attention_2"}, "FlashAttention 2 (wheel)", lacking=lacks("flash_attn")
    ),
    "flash2-hub": Variant(
        {"attn_implementation": "kernels-community/flash-attn2"},
        "FlashAttention 2 (kernel of the hub)",
        lacking=lacks_kernel("kernels-community/flash-attn2"),
    ),
    "flash3-hub": Variant(
        {"attn_implementation": "kernels-community/flash-attn3"},
        "FlashAttention 3 (kernel of the hub)",
        lacking=lacks_kernel("kernels-community/flash-attn3"),
    ),
    "flex": Variant({"attn_implementation": "flex_attention"}, "flex attention"),
    "no-lora-kernels": Variant(
        dict.fromkeys(KERNELS, False), "without Axolotl's LoRA kernels, which it switches on by itself", cpu=True
    ),
    "liger": Variant(LIGER, "Liger: fused linear cross entropy, RMS norm, rotary embedding, SwiGLU"),
    "liger-loss": Variant({"liger_fused_linear_cross_entropy": True}, "Liger: fused linear cross entropy alone"),
    "compile": Variant({"torch_compile": True}, "torch.compile"),
    "mb1x8": Variant({"micro_batch_size": 1, "gradient_accumulation_steps": 8}, "micro batch 1 × 8", cpu=True),
    "mb4x2": Variant({"micro_batch_size": 4, "gradient_accumulation_steps": 2}, "micro batch 4 × 2", cpu=True),
    "mb8x1": Variant({"micro_batch_size": 8, "gradient_accumulation_steps": 1}, "micro batch 8 × 1", cpu=True),
    "no-checkpointing": Variant({"gradient_checkpointing": False}, "without gradient checkpointing", cpu=True),
    "offload": Variant({"activation_offloading": True}, "checkpointed activations offloaded to the host"),
    "adamw-8bit": Variant({"optimizer": "adamw_bnb_8bit"}, "8-bit AdamW (bitsandbytes)"),
    "bf16-lora": Variant({"adapter": "lora", "load_in_4bit": False}, "LoRA on bf16 weights", cpu=True),
}


def combined(name: str) -> Variant:
    """A variant by its name, or several that are joined by ``+``."""
    unknown = [part for part in name.split("+") if part not in VARIANTS]
    if unknown:
        raise SystemExit(f"there is no variant «{unknown[0]}»: {', '.join(VARIANTS)}")
    parts = [VARIANTS[part] for part in name.split("+")]
    if len(parts) == 1:
        return parts[0]
    changes = {key: value for part in parts for key, value in part.changes.items()}
    reasons = lambda: next(filter(None, (part.lacking() for part in parts)), None)  # noqa: E731
    return Variant(changes, "; ".join(part.words for part in parts), all(part.cpu for part in parts), reasons)


def settings(variant: Variant, tiny: bool) -> dict[str, Any]:
    """The recipe of a variant, without paths.

    Args:
        variant: The change.
        tiny: The rehearsal's profile below it, and short sequences.
    """
    names = ["configs/base.yml", *(["configs/profiles/rehearsal.yml"] if tiny else [])]
    layers = [recipe.read_layer(ROOT / name, name) for name in names]
    if tiny:
        small = {"sequence_len": 256, "gradient_checkpointing": True, "max_steps": None, "save_steps": None}
        layers.append(recipe.Layer("--tiny", small))
    layers.append(recipe.Layer("variant", variant.changes))
    return recipe.with_plugins(recipe.merge(layers)[0])


def write_data(path: pathlib.Path, tokenizer: pathlib.Path, tokens: int, seed: int = 42) -> None:
    """Conversations of all agents' example data, shuffled, again and again until there are enough tokens.

    The lengths are those of the examples, as packing and attention depend on them; one epoch is enough, so that no step
    is cut short at an epoch's end.
    """
    from tokenizers import Tokenizer

    known = Tokenizer.from_file(str(tokenizer))
    found = [
        line for name in random_model.CORPUS for line in name.read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    length = {
        line: sum(len(known.encode(turn["value"]).ids) for turn in json.loads(line)["conversations"]) for line in found
    }
    order, total = random.Random(seed), 0
    with path.with_suffix(".part").open("w", encoding="utf-8") as file:
        while total < tokens:
            order.shuffle(found)
            for line in found:
                file.write(line + "\n")
                total += length[line]
    path.with_suffix(".part").replace(path)


class Bench:
    """Measurements in a work folder.

    Args:
        work: The folder: model, data, processes.
        results: Where the JSON files go.
        steps: Steps of each process.
        warmup: How many of them are not counted.
        tiny: On a CPU.
        deadline: Monotonic seconds.
    """

    def __init__(self, work: pathlib.Path, results: pathlib.Path, steps: int, warmup: int, tiny: bool, deadline: float):
        self.work, self.results, self.tiny, self.deadline = work, results, tiny, deadline
        self.steps, self.warmup = steps, warmup
        self.model = work / ("tiny" if tiny else "Qwen2.5-7B-Instruct")
        self.notes = load(work / "notes.json")

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def prepare(self) -> None:
        """Make model and data, and measure the ceiling, each once."""
        random_model.make(self.model, self.tiny)
        keys = settings(VARIANTS["baseline"], self.tiny)
        step = recipe.effective_batch(keys) * int(keys["sequence_len"])
        self.data = self.work / f"data-{self.steps}_train.jsonl"
        if not self.data.exists():
            write_data(self.data, self.model / "tokenizer.json", int(1.3 * self.steps * step))
        if not (self.results / "ceiling.json").exists():
            command = [
                sys.executable,
                str(HERE / "measure.py"),
                "--ceiling",
                "--device",
                "cpu" if self.tiny else "cuda",
            ]
            said = subprocess.check_output(
                command, env={**os.environ, **environment(self.tiny)}, text=True, timeout=300
            )
            save(self.results / "ceiling.json", json.loads(said.splitlines()[-1]) | facts())

    def recipe(self, variant: Variant, folder: pathlib.Path) -> dict[str, Any]:
        """What Axolotl gets: the variant's recipe, with paths and without evaluations and checkpoints."""
        keys = settings(variant, self.tiny)
        for key in ("model_revision", "eval_steps", "eval_sample_packing", "saves_per_epoch", "wandb_project"):
            keys.pop(key, None)
        mappings = {"role": "from", "content": "value"}
        return keys | {
            "base_model": str(self.model),
            "datasets": [
                {"path": str(self.data), "ds_type": "json", "type": "chat_template", "split": "train",
                 "field_messages": "conversations", "message_property_mappings": mappings}
            ],
            "dataset_prepared_path": str(self.work / "prepared"),
            "output_dir": str(folder / "output"),
            "val_set_size": 0,
            "save_strategy": "no",
            "max_steps": self.steps,
            "logging_steps": 1,
            "include_tkps": True,
            "plugins": [*keys.get("plugins", []), "lora_forge_axolotl.LoraForgePlugin", "measure.MeasurePlugin"],
        }  # fmt: skip

    def path(self, name: str, repeat: int) -> pathlib.Path:
        return self.results / f"{name}-{repeat}.json"

    def done(self, name: str, repeat: int) -> bool:
        """Whether a measurement is there, with as many steps; what was skipped or failed is not tried again."""
        found = load(self.path(name, repeat))
        return bool(found) and (found["status"] != "measured" or len(found["steps"]) >= self.steps)

    def measure(self, name: str, repeat: int) -> bool:
        """One process; False when the time was up before its end."""
        variant = combined(name)
        needed = self.notes.get(f"seconds-{self.steps}", 0 if self.tiny else STARTUP) * 1.1
        result: dict[str, Any] = {
            "variant": name, "words": variant.words, "changes": variant.changes, "repeat": repeat,
            "same_training": variant.same_training, "tiny": self.tiny, "warmup": self.warmup, **facts(),
        }  # fmt: skip
        lacking = variant.lacking()
        if self.tiny and not variant.cpu:
            lacking = lacking or "a CPU cannot run it"
        if lacking:
            save(self.path(name, repeat), result | {"status": "skipped", "reason": lacking})
            print(f"  {name}: skipped, {lacking}", flush=True)
            return True
        if self.left() < needed:
            return False
        folder = self.work / "processes" / f"{name}-{repeat}"
        folder.mkdir(parents=True, exist_ok=True)
        for old in ("steps.jsonl", "measured.json"):
            (folder / old).unlink(missing_ok=True)
        keys = self.recipe(variant, folder)
        (folder / "axolotl.yml").write_text(yaml.safe_dump(keys, sort_keys=True), encoding="utf-8")
        began = time.monotonic()
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "axolotl.cli.train", "axolotl.yml"], cwd=folder, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment(self.tiny)},
            )  # fmt: skip
            try:
                code = process.wait(max(1.0, self.left()))
            except BaseException as stop:  # the time is up, or Ctrl-C: nothing may hold the GPU
                process.kill()
                process.wait()
                if isinstance(stop, subprocess.TimeoutExpired):
                    return False
                raise
        took = time.monotonic() - began
        steps, measured = lines(folder / "steps.jsonl"), load(folder / "measured.json")
        kept = {key: value for key, value in keys.items() if key not in COMPUTED} | {"base_model": self.model.name}
        result |= {"seconds": round(took, 1), "recipe": kept, "batch": recipe.effective_batch(keys)}
        if code == 0 and len(steps) == self.steps and measured:
            self.notes[f"seconds-{self.steps}"] = max(took, self.notes.get(f"seconds-{self.steps}", 0))
            save(self.work / "notes.json", self.notes)
            ceiling = load(self.results / "ceiling.json")["flops_per_second"]
            save(
                self.path(name, repeat), result | measured | {"status": "measured", "steps": steps, "ceiling": ceiling}
            )
            rate = sum(one["tokens"] for one in steps[self.warmup :]) / sum(
                one["seconds"] for one in steps[self.warmup :]
            )
            print(
                f"  {name}: {rate:.0f} tokens/s over {len(steps) - self.warmup} steps ({took:.0f} s in all)", flush=True
            )
        else:
            why = reason(folder / "log", code)
            why = why.replace(str(self.work), "…")
            save(self.path(name, repeat), result | {"status": "failed", "reason": why})
            print(f"  {name}: failed, {why.splitlines()[-1]}", flush=True)
        return True


def reason(log: pathlib.Path, code: int) -> str:
    """The last words of a process that failed, from the line of its error on."""
    text = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [
        line
        for line in text
        if line.split(":")[0].endswith(("Error", "Exception", "Warning")) and " " not in line.split(":")[0]
    ]
    return f"exit code {code}: " + (errors[-1] if errors else "\n".join(text[-3:]))[:LAST_WORDS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder with 20 GB of room")
    parser.add_argument("--only", default=",".join(VARIANTS), help="variants, with commas; joined by + they are one")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--steps", type=int, help="of each process; 15, with --tiny 4")
    parser.add_argument("--warmup", type=int, help="steps that are not counted; 5, with --tiny 1")
    parser.add_argument("--seconds", type=float, default=540, help="after which it ends, with status 3")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--tiny", action="store_true", help="on a CPU; measures nothing of worth")
    given = parser.parse_args()
    began = time.monotonic()
    work = given.work.resolve()
    results = work / "results" if given.tiny else given.results / slug(gpu_facts().get("name", ""))
    if not given.tiny and results == given.results:
        raise SystemExit("nvidia-smi names no GPU here; --tiny tries the programs on a CPU")
    steps, warmup = given.steps or (4 if given.tiny else 15), given.warmup
    work.mkdir(parents=True, exist_ok=True)
    warmup = (1 if given.tiny else 5) if warmup is None else warmup
    bench = Bench(work, results, steps, warmup, given.tiny, began + given.seconds)
    names = given.only.split(",")
    for name in names:
        combined(name)
    bench.prepare()
    wanted = [
        (name, repeat) for repeat in range(1, given.repeats + 1) for name in names if not bench.done(name, repeat)
    ]
    for number, (name, repeat) in enumerate(wanted):
        if not bench.measure(name, repeat):
            left = ", ".join(f"{name} ({repeat})" for name, repeat in wanted[number:])
            print(f"the time is up; the same command goes on with: {left}")
            raise SystemExit(AGAIN)
    print(f"all is measured: {results}")


if __name__ == "__main__":
    main()
