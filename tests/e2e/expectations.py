"""Ask expected_adapter.py about some models, and the plugin's note of gradients: ``expectations.py <folder>``.

Runs in the trainer's environment. The folder holds a folder of a config.json for each model, and cases.json: name ->
{"model": …, keys of the recipe}. Prints JSON last: what is expected of each case, or the sentence that refuses it.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import types
from typing import Any


def gradients(folder: pathlib.Path) -> dict[str, Any]:
    """Have the callback note what gets no gradient, in a training that is stopped and resumed."""
    import torch
    from lora_forge_axolotl import GradientCallback

    model = torch.nn.ModuleDict(
        {name: torch.nn.Linear(2, 2, bias=False) for name in ("seen", "later", "zero", "never")}
    )
    args = types.SimpleNamespace(output_dir=str(folder), load_best_model_at_end=False)
    said: dict[str, Any] = {}

    def start(step: int, *reached: str) -> GradientCallback:
        callback = GradientCallback()
        state = types.SimpleNamespace(global_step=step, is_local_process_zero=True, best_model_checkpoint=None)
        callback.on_train_begin(args, state, None, model=model)
        model["zero"].weight.grad = torch.zeros(2, 2)
        for name in reached:
            model[name].weight.grad = torch.ones(2, 2)
        callback.on_pre_optimizer_step(args, state, None)
        model.zero_grad()
        callback.on_pre_optimizer_step(args, state, None)  # of a step that reached nothing
        state.global_step = step + 2
        (folder / f"checkpoint-{step + 2}").mkdir()
        callback.on_save(args, state, None)
        callback.on_train_end(args, state, None)
        said[str(step)] = [
            json.loads(path.read_text())["never"]
            for path in (folder / f"checkpoint-{step + 2}/gradients.json", folder / "gradients.json")
        ]
        return callback

    start(0, "seen")
    start(2, "later")
    return said


def written(folder: pathlib.Path) -> dict[str, Any]:
    """Say what the plugin makes of an expected.json that is there: name of the case -> whether it is made anew."""
    import axolotl.loaders
    import expected_adapter
    import lora_forge_axolotl

    axolotl.loaders.load_tokenizer = lambda cfg: None
    expected_adapter.expected = lambda cfg, tokenizer: {"made": True}
    cfg = types.SimpleNamespace(base_model="Acme/Tiny")
    pinned = {"schema": 1, "base_model": "Acme/Tiny", "revision": "c0ffee"}
    cases = {
        "of its commit": pinned,
        "of a folder": pinned | {"revision": None},
        "of another base": pinned | {"base_model": "Acme/Other"},
        "of another form": pinned | {"schema": 2},
        "cut": None,
        "second host": None,
    }
    anew = {}
    os.chdir(folder)
    for name, there in cases.items():
        pathlib.Path("expected.json").write_text(json.dumps(there) if there else '{"cut')
        os.environ.update(RANK="1" if name == "second host" else "0", LOCAL_RANK="0")
        lora_forge_axolotl.expect(cfg)
        anew[name] = "made" in pathlib.Path("expected.json").read_text()
    return anew


def main() -> None:
    import expected_adapter
    import torch
    import yaml
    from lora_forge_axolotl import saved_name

    folder = pathlib.Path(sys.argv[1])
    answers: dict[str, Any] = {}
    torch.manual_seed(1)
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        path = folder / "axolotl.yml"
        path.write_text(yaml.safe_dump(case))
        try:
            answers[name] = expected_adapter.expected(expected_adapter.configuration(path))
        except expected_adapter.Refused as error:
            answers[name] = str(error)
    drawn = torch.rand(1).item()
    torch.manual_seed(1)
    wrapped = "module.base_model.model._orig_mod.layers.0._checkpoint_wrapped_module.q_proj.lora_B.default.weight"
    answers["undisturbed"] = drawn == torch.rand(1).item()
    answers["saved name"] = saved_name(wrapped)
    answers["gradients"] = gradients(folder)
    answers["written"] = written(folder)
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
