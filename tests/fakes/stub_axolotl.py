"""A training of a second or so in the place of Axolotl's: the files that a real one leaves, with nothing learnt.

Runs in the run directory, in the trainer's environment, where rundir.py and expecting.py are found:
``stub.py --seconds 1 axolotl.yml``.
The adapter has a pair of matrices for every target module of the recipe, in the shapes of the base model, so that
verification has the same to do as after a training. W&B is left out. It waits while there is a file ``hold``, which may
name the number of steps to do first. Told to stop, it writes a checkpoint, from which it goes on.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import signal
import struct
import time
from typing import Any

import expecting
import numpy as np
import rundir
import yaml
from safetensors.numpy import save_file


def shapes(model: pathlib.Path) -> dict[str, list[int]]:
    """Name -> shape of the tensors in a model's safetensors file."""
    with (model / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}


def adapter(recipe: dict[str, Any], model: pathlib.Path) -> dict[str, np.ndarray]:
    """Return an A and a B for every target module of every layer."""
    rng = np.random.default_rng(int(recipe.get("seed", 0)))
    rank, tensors = recipe["lora_r"], {}
    for name, shape in shapes(model).items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in recipe["lora_target_modules"]:
            for side, size in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
                values = rng.normal(0.0, 0.02, size).astype(np.float32)
                tensors[f"base_model.model.{module}.lora_{side}.weight"] = values
    return tensors


def write_adapter(folder: pathlib.Path, recipe: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Write weights, their configuration, and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": recipe["base_model"],
        "r": recipe["lora_r"],
        "lora_alpha": recipe["lora_alpha"],
        "lora_dropout": recipe["lora_dropout"],
        "target_modules": recipe["lora_target_modules"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(pathlib.Path(recipe["base_model"]) / name, folder / name)
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}\n")


def held(step: int) -> bool:
    """Tell whether a test has the training wait after so many steps."""
    try:
        return step >= int(pathlib.Path("hold").read_text() or 0)
    except FileNotFoundError:
        return False


def main() -> None:
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", type=pathlib.Path, help="axolotl.yml")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long all steps take together")
    given = parser.parse_args()
    recipe = yaml.safe_load(given.recipe.read_text())
    model, output = pathlib.Path(recipe["base_model"]), pathlib.Path(recipe["output_dir"])
    metrics = pathlib.Path("metrics.jsonl")
    planned = int(recipe["max_steps"])
    tensors = adapter(recipe, model)
    if pathlib.Path("crash").exists():
        raise SystemExit("RuntimeError: made to crash")
    floor = 7.0 + 1.0 / recipe["lora_r"] + 0.1 / recipe["lora_alpha"]  # so that variants of a recipe differ
    history: list[dict[str, Any]] = []
    rundir.append_event(metrics, "data", examples=45, tokens=65479, longer=0, dropped=0, untrainable=0)
    first = rundir.last_complete(output)
    rundir.append_event(metrics, "begin", step=first, planned=planned, epoch=first / planned)
    for step in range(first + 1, planned + 1):
        while held(step - 1) and not told:
            time.sleep(0.05)
        time.sleep(given.seconds / planned)
        at = {"step": step, "planned": planned, "epoch": step / planned}
        loss = floor + 1.0 / step
        history.append({"step": step, "epoch": at["epoch"], "loss": loss, "learning_rate": recipe["learning_rate"]})
        rundir.append_event(metrics, "log", **at, loss=loss, grad_norm=0.3, learning_rate=1e-4, tokens_per_second=5e3)
        print(json.dumps(history[-1]), flush=True)
        if step % int(recipe["eval_steps"]) == 0 or step == planned:
            rundir.append_event(metrics, "eval", **at, eval_loss=loss + 0.05)
        if step % int(recipe["save_steps"]) == 0 or step == planned or told:
            checkpoint = output / f"checkpoint-{step}"
            write_adapter(checkpoint, recipe, tensors)
            weights = (checkpoint / "adapter_model.safetensors").stat().st_size
            (checkpoint / "optimizer.pt").write_bytes(bytes(2 * weights))  # Adam keeps two figures for each
            (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": history}))
            rundir.mark_complete(checkpoint, step)
            rundir.append_event(metrics, "save", step=step, planned=planned, checkpoint=checkpoint.name)
        if told:
            return
    write_adapter(output, recipe, tensors)
    shutil.copyfile(model / "config.json", output / "config.json")
    expecting.leave(pathlib.Path(), tensors, recipe["base_model"])
    state = {"global_step": planned, "max_steps": planned, "log_history": history}
    (output / "trainer_state.json").write_text(json.dumps(state, indent=1))
    rundir.append_event(metrics, "end", step=planned, planned=planned, reason=None)


if __name__ == "__main__":
    main()
