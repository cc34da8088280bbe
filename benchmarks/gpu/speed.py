"""How fast a GPU trains, and what makes it faster: the base recipe, then one change at a time, each in a fresh process.

    python benchmarks/gpu/speed.py --work /tmp/gpu [--seconds 540]
    python benchmarks/gpu/speed.py --work /tmp/gpu --only baseline,liger+mb4x2 [--repeats 2] [--steps 50]

The baseline is configs/base.yml, the users' recipe made valid, on a random model of Qwen2.5-7B's shape and on example
conversations; there is no evaluation, no checkpoint, and each step is logged. Names joined by ``+`` are changes made
together. Every process writes one JSON file into ``--results``/<GPU>/; what is there is not measured again, whichever
machine of this kind it comes from. So the same command goes on after it was cut off, or after ``--seconds``, when it
ends with status 3. It measures what is worth most first (:data:`ORDER`), and the steps that a process had come to when
the time was up are kept. ``gpu_table.py`` makes the table of docs/gpu.md of the files.

Each measurement is a process of its own: Axolotl's patches (Liger, LoRA kernels, attention) change classes until the
process ends, so a second variant in it would measure the first one's leavings. What is shared is on disk: the model,
which stays in the page cache, the tokenised data, and compiled kernels.

``--tiny`` does it on a CPU with the rehearsal's model and the variants that a CPU can run. Its figures mean nothing,
and are written into the work folder only.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import time
from typing import Any, Callable, Optional

import curves
import random_model
import yaml
from forge import (
    AGAIN,
    RESULTS,
    ROOT,
    die_with_parent,
    environment,
    facts,
    host_memory,
    import_forge,
    lines,
    load,
    make_idle,
    save,
)
from forge import results as results_folder

import_forge()
from ansible.module_utils.lora_forge.planning import memory, recipe  # noqa: E402
from ansible.module_utils.lora_forge.planning.layers import Layer, merge, read_layer  # noqa: E402

HERE = ROOT / "benchmarks/gpu"
SHORT, LONG, WARMUP = 13, curves.STEPS, 3  # steps of a process; of them those that are not counted
ENOUGH = 10  # measured steps that make a figure, even of a process that was cut off
CAP, CAP_STEP = 150.0, 8.0  # seconds that a process may take to start, and for each of its steps
FASTEST = "fastest"  # stands for what was fastest so far and is the same training
ROOM = 0.8  # share of the host's memory that offloaded activations may take
COMPUTED = ("datasets", "dataset_prepared_path", "output_dir", "plugins")  # of this machine; not in the results
LAST_WORDS = 600  # characters of a failure that are kept


def lacks_flash(package: str, kernel: str) -> Callable[[], Optional[str]]:
    """Make a condition: FlashAttention is there, as a wheel, or as the hub's kernel that Axolotl falls back to.

    Nothing is downloaded: the kernel must have been fetched before. Its folder is named as kernels 0.16 does it, or as
    older versions did.
    """

    def lacking() -> Optional[str]:
        home = pathlib.Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
        cache = os.environ.get("KERNELS_CACHE") or os.environ.get("HF_HUB_CACHE") or home / "hub"
        folders = [pathlib.Path(cache) / f"{kind}--{kernel.replace('/', '--')}" for kind in ("kernels", "models")]
        if importlib.util.find_spec(package) or any(folder.is_dir() for folder in folders):
            return None
        return (
            f"neither the package {package} nor, in the hub's cache, the kernel {kernel} is here; nothing is downloaded"
        )

    return lacking


@dataclasses.dataclass(frozen=True)
class Variant:
    """A change to the baseline.

    Attributes:
        changes: Axolotl keys.
        words: What it is, for the table.
        cpu: A CPU can run it.
        lacking: Says why it cannot be run here; None where it can.
        against: The variant that it is one change to, where that is not the baseline.
    """

    changes: dict[str, Any]
    words: str
    cpu: bool = False
    lacking: Callable[[], Optional[str]] = lambda: None
    against: str = "baseline"

    @property
    def same_training(self) -> bool:
        """Whether it changes machine keys only: all others train something else, and are reported, never a default."""
        return self.changes.keys() <= recipe.MACHINE_KEYS


def batch(micro: int) -> dict[str, Any]:
    """Return the keys that split the effective batch of 8 otherwise."""
    return {"micro_batch_size": micro, "gradient_accumulation_steps": 8 // micro}


KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
LIGER = dict.fromkeys(
    ("liger_fused_linear_cross_entropy", "liger_rms_norm", "liger_rope", "liger_glu_activation"), True
)
# Attention other than sdpa is measured at a micro batch of 1: there every one is given the same rows. At 2, Axolotl
# packs rows of 2 × sequence_len for it (multipack_real_batches), and transformers' FlashAttention tells packed
# documents apart in a batch of one row only.
VARIANTS = {
    "baseline": Variant({}, "configs/base.yml: sdpa (varlen), checkpointing, QLoRA, 2 × 4", cpu=True),
    "flash2": Variant(
        {"attn_implementation": "flash_attention_2"} | batch(1),
        "FlashAttention 2, 1 × 8",
        lacking=lacks_flash("flash_attn", "kernels-community/flash-attn2"),
        against="mb1x8",
    ),
    "flash3": Variant(
        {"attn_implementation": "flash_attention_3"} | batch(1),
        "FlashAttention 3, 1 × 8",
        lacking=lacks_flash("flash_attn_interface", "kernels-community/vllm-flash-attn3"),
        against="mb1x8",
    ),
    "flex": Variant({"attn_implementation": "flex_attention"} | batch(1), "flex attention, 1 × 8", against="mb1x8"),
    "no-lora-kernels": Variant(
        dict.fromkeys(KERNELS, False), "without Axolotl's LoRA kernels, which it switches on by itself", cpu=True
    ),
    "liger": Variant(LIGER, "Liger: fused linear cross entropy, RMS norm, rotary embedding, SwiGLU"),
    "liger-loss": Variant({"liger_fused_linear_cross_entropy": True}, "Liger: fused linear cross entropy alone"),
    "compile": Variant({"torch_compile": True}, "torch.compile"),
    "mb1x8": Variant(batch(1), "micro batch 1 × 8", cpu=True),
    "mb4x2": Variant(batch(4), "micro batch 4 × 2", cpu=True),
    "mb8x1": Variant(batch(8), "micro batch 8 × 1", cpu=True),
    "no-checkpointing": Variant({"gradient_checkpointing": False}, "without gradient checkpointing", cpu=True),
    "offload": Variant(
        {"activation_offloading": True} | batch(1),
        "all activations offloaded to the host, nothing recomputed, 1 × 8",
        against="mb1x8",
    ),
    "offload-checkpoints": Variant(
        {"activation_offloading": "hidden_states"}, "checkpoints of the layers offloaded to the host"
    ),
    "adamw-8bit": Variant({"optimizer": "adamw_bnb_8bit"}, "8-bit AdamW (bitsandbytes)"),
    "bf16-lora": Variant({"adapter": "lora", "load_in_4bit": False}, "LoRA on bf16 weights", cpu=True),
}


@dataclasses.dataclass(frozen=True)
class Wish:
    """A measurement that is wanted: a variant or :data:`FASTEST`, which repeat of it, and how many steps."""

    name: str
    repeat: int
    steps: int


PROMISING = ("liger+mb1x8+no-checkpointing", "liger+mb4x2", "liger")  # what may reach the goal
OTHERS = (
    "mb1x8", "flex", "flash3", "flash2", "compile", "no-lora-kernels", "mb4x2", "mb8x1", "adamw-8bit", "liger-loss",
    "no-checkpointing", "offload-checkpoints", "offload",
)  # fmt: skip
# By value, so that wherever it ends the comparison that matters is there. A long process is a repeat for speed, and
# the loss curve, too; the noise is judged by the baseline's third.
ORDER = [
    *(Wish(name, 1, SHORT) for name in ("baseline", *PROMISING)),
    Wish("baseline", 2, LONG),
    Wish(FASTEST, 2, LONG),
    Wish("bf16-lora", 1, SHORT),
    *(Wish(name, 1, SHORT) for name in OTHERS[:5]),
    Wish("baseline", 3, LONG),
    *(Wish(name, 1, SHORT) for name in OTHERS[5:]),
    Wish(FASTEST, 2, LONG),  # what was measured meanwhile may be faster
    *(Wish(name, 2, SHORT) for name in (*PROMISING, "bf16-lora", *OTHERS)),
]


def combined(name: str) -> Variant:
    """Return a variant by its name, or several joined by ``+``."""
    unknown = [part for part in name.split("+") if part not in VARIANTS]
    if unknown:
        raise SystemExit(f"there is no variant «{unknown[0]}»: {', '.join(VARIANTS)}")
    parts = [VARIANTS[part] for part in name.split("+")]
    if len(parts) == 1:
        return parts[0]
    changes = {key: value for part in parts for key, value in part.changes.items()}

    def reasons() -> Optional[str]:
        return next(filter(None, (part.lacking() for part in parts)), None)

    return Variant(changes, "; ".join(part.words for part in parts), all(part.cpu for part in parts), reasons)


def settings(variant: Variant, tiny: bool) -> dict[str, Any]:
    """Return the recipe of a variant, without paths.

    Args:
        variant: The change.
        tiny: The rehearsal's profile below it, and short sequences.
    """
    names = ["configs/base.yml", *(["configs/profiles/rehearsal.yml"] if tiny else [])]
    layers = [read_layer(ROOT / name, name) for name in names]
    if tiny:
        small = {"sequence_len": 256, "gradient_checkpointing": True, "max_steps": None, "save_steps": None}
        layers.append(Layer("--tiny", small))
    layers.append(Layer("variant", variant.changes))
    return recipe.with_plugins(merge(layers)[0])


def write_data(path: pathlib.Path, tokenizer: pathlib.Path, tokens: int, seed: int = 42) -> None:
    """Write conversations of all agents' example data, shuffled, again and again until there are enough tokens.

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
        warmup: Steps of each process that are not counted.
        tiny: On a CPU.
        deadline: Monotonic seconds.
    """

    def __init__(self, work: pathlib.Path, results: pathlib.Path, warmup: int, tiny: bool, deadline: float):
        self.work, self.results, self.tiny, self.deadline = work, results, tiny, deadline
        self.warmup = warmup
        self.not_begun: dict[str, str] = {}  # variants that failed before their first step, with the reason
        self.model = random_model.folder(work, tiny)
        self.data = work / "speed_train.jsonl"

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def prepare(self) -> None:
        """Make model and data, and measure the ceiling, each once; the ceiling once for each card."""
        random_model.provide(self.work, self.tiny)
        if not self.data.exists():
            keys = settings(VARIANTS["baseline"], self.tiny)
            step = recipe.effective_batch(keys) * int(keys["sequence_len"])
            # The same for every number of steps, so that a longer curve begins as a shorter one does.
            write_data(self.data, self.model / "tokenizer.json", int(1.3 * (8 if self.tiny else LONG) * step))
        about, known = facts(), load(self.results / "ceiling.json")
        if not known or known["gpu"].get("uuid") != about["gpu"].get("uuid"):
            make_idle(self.work)
            command = [sys.executable, str(HERE / "ceiling.py"), "--device", "cpu" if self.tiny else "cuda"]
            said = subprocess.check_output(
                command, env={**os.environ, **environment(self.tiny)}, text=True, timeout=300
            )
            save(self.results / "ceiling.json", json.loads(said.splitlines()[-1]) | about)

    def recipe(self, variant: Variant, folder: pathlib.Path, steps: int) -> dict[str, Any]:
        """Return what Axolotl gets: the variant's recipe, with paths and without evaluations and checkpoints."""
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
            "dataset_prepared_path": str(self.work / "prepared-speed"),
            "output_dir": str(folder / "output"),
            "val_set_size": 0,
            "save_strategy": "no",
            "max_steps": steps,
            "logging_steps": 1,
            "include_tkps": True,
            "plugins": [*keys.get("plugins", []), "lora_forge_axolotl.LoraForgePlugin", "measure.MeasurePlugin"],
        }  # fmt: skip

    def path(self, wish: Wish) -> pathlib.Path:
        return self.results / f"{wish.name}-{wish.repeat}.json"

    def found(self) -> list[dict[str, Any]]:
        """Read all measurements that have figures, of this machine and of earlier ones of its kind."""
        every = [load(path) for path in sorted(self.results.glob("*.json"))]
        return [one for one in every if one.get("status") == "measured"]

    def resolved(self, wish: Wish) -> Optional[Wish]:
        """Return a wish; the one for the fastest variant with its name, None while nothing beats the baseline."""
        if wish.name != FASTEST:
            return wish
        rates = {one["variant"]: rate(one) for one in self.found() if one["same_training"]}
        fastest = max(rates, key=lambda name: rates[name], default="baseline")
        return None if fastest == "baseline" else dataclasses.replace(wish, name=fastest)

    def done(self, wish: Wish) -> bool:
        """Tell whether a measurement of as many steps is there; what failed or was too slow is not tried again."""
        found = load(self.path(wish))
        if found.get("status") == "measured":
            return len(found["steps"]) >= wish.steps or bool(found.get("too_slow"))
        return self.failure(wish.name) is not None

    def failure(self, name: str) -> Optional[str]:
        """Say how a variant failed, in any repeat, here or in an earlier visit; None where it has not."""
        kept = (load(path) for path in sorted(self.results.glob(f"{name}-[0-9]*.json")))
        reasons = [one["reason"] for one in kept if one.get("status") == "failed"]
        return self.not_begun.get(name) or next(iter(reasons), None)

    def enough(self, wish: Wish) -> int:
        """Return how many steps of a process make a figure."""
        return min(wish.steps, self.warmup + ENOUGH)

    def needed(self, wish: Wish) -> float:
        """Return the seconds until a process has a figure, by the median of earlier ones; a slow one changes little."""
        before = [(one["seconds"], [step["seconds"] for step in one["steps"]]) for one in self.found()]
        if not before:
            return 0.0
        start = statistics.median(seconds - sum(steps) for seconds, steps in before)
        return start + self.enough(wish) * statistics.median(statistics.median(steps) for _, steps in before)

    def measure(self, wish: Wish) -> bool:
        """Measure with one process; return False when the time was up before its end."""
        variant = combined(wish.name)
        folder = self.work / "processes" / f"{wish.name}-{wish.repeat}"
        keys = self.recipe(variant, folder, wish.steps)
        kept = {key: value for key, value in keys.items() if key not in COMPUTED} | {"base_model": self.model.name}
        result: dict[str, Any] = {
            "variant": wish.name, "words": variant.words, "changes": variant.changes, "repeat": wish.repeat,
            "against": variant.against, "same_training": variant.same_training, "tiny": self.tiny,
            "warmup": self.warmup, "wanted": wish.steps, "recipe": kept, "batch": recipe.effective_batch(keys),
            **facts(),
        }  # fmt: skip
        lacking = variant.lacking() or self.unfit(variant, kept)
        if lacking:
            self.keep(wish, result | {"status": "skipped", "reason": lacking})
            return True
        if self.left() < self.needed(wish):
            return False
        if not self.tiny:
            make_idle(self.work)
        folder.mkdir(parents=True, exist_ok=True)
        for old in ("steps.jsonl", "measured.json"):
            (folder / old).unlink(missing_ok=True)
        (folder / "axolotl.yml").write_text(yaml.safe_dump(keys, sort_keys=True), encoding="utf-8")
        cap = (CAP + CAP_STEP * wish.steps) * (2 if self.tiny else 1)
        began = time.monotonic()
        code = None
        try:
            code = train(folder, self.tiny, min(cap, self.left()))
        finally:  # also when this program is told to end
            result["seconds"] = round(time.monotonic() - began, 1)
            too_slow = code is None and result["seconds"] >= cap
            self.conclude(wish, folder, result, code, too_slow)
        return code is not None or too_slow

    def unfit(self, variant: Variant, keys: dict[str, Any]) -> Optional[str]:
        """Say why this machine should not try a variant."""
        if self.tiny and not variant.cpu:
            return "a CPU cannot run it"
        needs, has = memory.host_bytes(keys), host_memory()
        if needs > ROOM * has:
            return f"up to {needs / 2**30:.0f} GiB would be offloaded to the host, which has {has / 2**30:.0f} GiB"
        return None

    def conclude(
        self, wish: Wish, folder: pathlib.Path, result: dict[str, Any], code: Optional[int], too_slow: bool
    ) -> None:
        """Keep what a process has measured, or why it has not.

        Args:
            wish: What was wanted.
            folder: Of the process.
            result: What is known of it.
            code: Its exit code; None when it was cut off.
            too_slow: It was cut off because it took too long, and not because the time was up.
        """
        steps, measured = lines(folder / "steps.jsonl"), load(folder / "measured.json")
        whole = code == 0 and len(steps) == wish.steps
        result |= measured | {"steps": steps, "ceiling": load(self.results / "ceiling.json")["flops_per_second"]}
        if whole or (code is None and len(steps) >= self.enough(wish)):
            result |= {"status": "measured", "too_slow": True} if too_slow else {"status": "measured"}
        elif code is None:
            why = "it took too long" if too_slow else "the time was up"
            about = f"{why}: {len(steps)} of {wish.steps} steps in {result['seconds']:.0f} s"
            result |= {"status": "failed" if too_slow else "cut off", "reason": about}
        else:
            result |= {"status": "failed", "reason": reason(folder / "log", code).replace(str(self.work), "…")}
        slow = too_slow and wish.name != "baseline"
        if result["status"] == "failed" and not steps and not slow and "out of memory" not in result["reason"]:
            # As likely the environment's fault as the variant's: nothing is known of it, and nothing is written. What
            # is only slow to begin, such as torch.compile, would be again.
            self.not_begun[wish.name] = result["reason"]
            print(f"  {wish.name} ({wish.repeat}): failed before its first step, {last(result)}", flush=True)
            return
        self.keep(wish, result)

    def keep(self, wish: Wish, result: dict[str, Any]) -> None:
        """Write a result, unless a better one is there: figures of more steps, of an earlier time."""
        before = load(self.path(wish))
        if before.get("status") != "measured" or (
            result["status"] == "measured" and len(result["steps"]) >= len(before["steps"])
        ):
            save(self.path(wish), result)
        if result["status"] == "measured":
            count = len(result["steps"]) - self.warmup
            said = f"{rate(result):.0f} tokens/s over {count} steps ({result['seconds']:.0f} s in all)"
        else:
            said = f"{result['status']}, {last(result)}"
        print(f"  {wish.name} ({wish.repeat}): {said}", flush=True)


def last(result: dict[str, Any]) -> str:
    """Return the last line of a reason."""
    return str(result["reason"]).splitlines()[-1]


def rate(result: dict[str, Any]) -> float:
    """Return the tokens a second of a measurement, over the steps after its warm-up."""
    steps = result["steps"][result["warmup"] :]
    return float(sum(step["tokens"] for step in steps) / sum(step["seconds"] for step in steps))


def train(folder: pathlib.Path, tiny: bool, seconds: float) -> Optional[int]:
    """Train in a folder; return the exit code, or None when it was ended after so many seconds."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "axolotl.cli.train", "axolotl.yml"], cwd=folder, stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment(tiny)}, start_new_session=True,
            preexec_fn=die_with_parent,
        )  # fmt: skip
        try:
            return process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            return None
        finally:  # whatever happens, Ctrl-C too: nothing may hold the GPU
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def reason(log: pathlib.Path, code: int) -> str:
    """Return the end of a failed process's output, from the line of its error on."""
    text = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [
        line
        for line in text
        if line.split(":")[0].endswith(("Error", "Exception", "Warning")) and " " not in line.split(":")[0]
    ]
    return f"exit code {code}: " + (errors[-1] if errors else "\n".join(text[-3:]))[:LAST_WORDS]


def wishes(names: list[str], repeats: int, steps: Optional[int], tiny: bool) -> list[Wish]:
    """List what is to be measured, in order.

    Args:
        names: Variants that were asked for; none for :data:`ORDER`.
        repeats: Of each of them.
        steps: Of each process; None for as many as are worth it.
        tiny: Four, if nothing else is said.
    """
    steps = steps or (4 if tiny else None)
    if not names:
        return [dataclasses.replace(wish, steps=steps or wish.steps) for wish in ORDER]
    for name in names:
        combined(name)
    return [Wish(name, repeat, steps or SHORT) for repeat in range(1, repeats + 1) for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder with 20 GB of room")
    parser.add_argument("--only", help="variants, with commas; joined by + they are one. Without it all, by worth")
    parser.add_argument("--repeats", type=int, default=2, help="with --only")
    parser.add_argument("--steps", type=int, help=f"of each process; {SHORT} or {LONG}, with --tiny 4")
    parser.add_argument("--warmup", type=int, help=f"steps that are not counted; {WARMUP}, with --tiny 1")
    parser.add_argument("--seconds", type=float, default=540, help="after which it ends, with status 3")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--tiny", action="store_true", help="on a CPU; measures nothing of worth")
    given = parser.parse_args()
    deadline = time.monotonic() + given.seconds
    wanted = wishes(given.only.split(",") if given.only else [], given.repeats, given.steps, given.tiny)
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    warmup = (1 if given.tiny else WARMUP) if given.warmup is None else given.warmup
    bench = Bench(work, results_folder(given, work), warmup, given.tiny, deadline)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(AGAIN))  # what was measured is kept
    bench.prepare()
    for number, general in enumerate(wanted):
        wish = bench.resolved(general)
        if wish and not bench.done(wish) and not bench.measure(wish):
            left = dict.fromkeys(f"{one.name} ({one.repeat})" for one in wanted[number:] if not bench.done(one))
            print(f"the time is up; the same command goes on with: {', '.join(left)}")
            raise SystemExit(AGAIN)
        why = bench.failure("baseline") if wish and wish.name == "baseline" else None
        if why:
            kept = "" if bench.not_begun else f" and delete {bench.results}/baseline-*.json"
            raise SystemExit(
                f"the baseline failed, and nothing is measured without it: {why}. The whole log is "
                f"{work}/processes/baseline-*/log. Mend what it names{kept}; then the same command goes on"
            )
    if bench.not_begun:
        print(f"failed before their first step, and tried again by the same command: {', '.join(bench.not_begun)}")
        raise SystemExit(AGAIN)
    print(f"all is measured: {bench.results}")


if __name__ == "__main__":
    main()
