"""What a recipe's keys do to what is learnt: real Axolotl, QLoRA on a CPU, a tiny model."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
from typing import Any

import pytest
import rundir
import yaml
from ansible.module_utils.lora_forge.data import staging
from ansible.module_utils.lora_forge.planning import launch, plan, recipe
from ansible.module_utils.lora_forge.planning.fleet import Trainer

from .conftest import CONVERGE, ROOT

pytestmark = pytest.mark.soak  # a dozen trainings: five minutes of a core

PROGRAMS = ("lora_forge_axolotl.py", "answer_cases.py", "expected_adapter.py", "gang.py")
# So fast that it learns something, and loses it again: evaluations of 7.56, 7.56, 7.38, 7.35, 7.58 and 7.55.
WILD = {
    "learning_rate": 0.03, "lr_scheduler": "constant_with_warmup", "warmup_steps": 3, "max_steps": 5, "eval_steps": 1,
}  # fmt: skip
SAME = 1e-5  # 8e-8 was seen; sums in another order differ, and a leak between packed conversations is 0.1
SMALL = {"sequence_len": 128, "max_steps": 3, "eval_steps": 3, "save_steps": 3, "lora_dropout": 0}


class Bench:
    """A trainer's root with runs in it, and what became of them.

    Args:
        root: Its folder.
        python: Of the trainer's environment.
        datasets: The folder of the datasets.
    """

    def __init__(self, root: pathlib.Path, python: pathlib.Path, datasets: pathlib.Path):
        self.root, self.python, self.datasets = root, python, datasets
        self.folders: dict[str, pathlib.Path] = {}
        self.planned: dict[str, dict[str, Any]] = {}

    def lay(self, name: str, keys: dict[str, Any], agent: str = "witness", halt: int = 0) -> None:
        """Plan a rehearsal with some keys changed, and lay it out as a launch does.

        Args:
            name: Of the training.
            keys: Of its recipe, besides the rehearsal's.
            agent: Whose data it has.
            halt: The step at which it is told to stop.
        """
        trainer = Trainer("here", "rehearsal", datasets_dir=str(self.datasets))
        planned = plan.make(ROOT, self.root / "output", agent, [trainer], keys).runs[0]
        run, data = planned.as_dict(), [launch.dataset_path(str(self.root), one) for one in planned.datasets]
        with staging.staged(planned.datasets, ROOT, self.root / "output") as places:
            for one, path in zip(planned.datasets, map(pathlib.Path, data)):
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(places[one.sha256], path)
        folder = self.folders[name] = self.root / "runs" / name
        folder.mkdir(parents=True)
        for program in PROGRAMS:
            shutil.copy(ROOT / "roles/run/files" / program, folder)
        shutil.copy(ROOT / "module_utils/lora_forge/rundir.py", folder)
        if halt:
            (folder / "halt").write_text(str(halt))
        model = pathlib.Path(launch.base_model_path(planned, str(self.root)))
        if not model.exists():
            model.parent.mkdir(exist_ok=True)
            tiny = [str(self.python), str(ROOT / "roles/run/files/tiny_model.py"), str(model)]
            subprocess.run([*tiny, *data], check=True, timeout=CONVERGE)
        given = launch.template_variables(planned, str(self.root), "disabled")
        text = given["recipe"] | {key: given[key] for key in ("datasets", "test_datasets") if given[key]}
        text |= {"output_dir": str(folder / "output"), "dataset_prepared_path": str(self.root / "prepared")}
        text.pop("wandb_project", None)
        text["plugins"] = [*text["plugins"], *(["halt.Halt"] if halt else [])]
        (folder / "axolotl.yml").write_text(yaml.safe_dump(text))
        rundir.write_json(folder / "run.json", {"run_id": name, "agent": agent, "host": "here", "rehearsal": True})
        self.planned[name] = run

    def enliven(self) -> None:
        """Have the models made with larger weights: the head of a tiny one hardly prefers one token to another."""
        for config in self.root.glob("models/*/config.json"):
            rundir.write_json(config, rundir.read_json(config) | {"initializer_range": 0.3})
            (config.parent / "model.safetensors").unlink(missing_ok=True)  # the training makes it anew

    def train(self, *names: str, **environment: str) -> None:
        """Train what was laid out: all, or some."""
        train(self.python, [self.folders[name] for name in names or self.folders], **environment)

    def log(self, name: str) -> str:
        return (self.folders[name] / "train.log").read_text(errors="replace")

    def events(self, name: str, kind: str) -> list[dict[str, Any]]:
        assert (self.folders[name] / "exit_code").read_text() == "0", f"{name}: {self.log(name)[-3000:]}"
        events, _ = rundir.read_events(self.folders[name] / "metrics.jsonl")
        return [event for event in events if event["event"] == kind]

    def figures(self, name: str) -> list[float]:
        """Return all that a training logged of loss, gradients and evaluations."""
        steps = [(event["loss"], event["grad_norm"]) for event in self.events(name, "log")]
        return [*(figure for pair in steps for figure in pair), *self.evaluated(name).values()]

    def evaluated(self, name: str) -> dict[int, float]:
        return {event["step"]: event["eval_loss"] for event in self.events(name, "eval")}

    def weights(self, name: str, checkpoint: str = "") -> bytes:
        return (self.folders[name] / "output" / checkpoint / "adapter_model.safetensors").read_bytes()


def train(python: pathlib.Path, folders: list[pathlib.Path], **environment: str) -> None:
    """Train in some folders, one after the other, by a process that imports Axolotl once."""
    told = {**launch.training_environment("cpu", str(folders[0].parents[1]), "disabled", ""), **environment}
    places = ("roles/run/files", "module_utils/lora_forge", "tests/fakes")
    path = os.pathsep.join(str(ROOT / place) for place in places)
    done = subprocess.run(
        [str(python), str(ROOT / "tests/e2e/trainings.py"), *map(str, folders)],
        env={**os.environ, **told, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=2 * CONVERGE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, environment: pathlib.Path) -> dict[str, Bench]:
    """Do all trainings of the quick tests in one process: otherwise each of them would import Axolotl anew."""
    examples, benches = ROOT / "examples/datasets", {}
    for lay, data in ((machine_keys, None), (one_seed, examples), (worse, None), (small_data, None)):
        root = tmp_path_factory.mktemp(lay.__name__)
        benches[lay.__name__] = Bench(root, environment, data or root)
        lay(benches[lay.__name__])
    train(environment, [folder for bench in benches.values() for folder in bench.folders.values()])
    return benches


# --- machine keys ---------------------------------------------------------------------------------------------------

# Each machine key that a CPU can run, changed from what the others train with.
CHANGES: dict[str, dict[str, Any]] = {
    "1 × 8": {"micro_batch_size": 1, "gradient_accumulation_steps": 8},
    "4 × 2": {"micro_batch_size": 4, "gradient_accumulation_steps": 2},
    "8 × 1": {"micro_batch_size": 8, "gradient_accumulation_steps": 1},
    "recomputed": {"gradient_checkpointing": True},
    "recomputed the old way": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "eager attention": {"attn_implementation": "eager"},
    "data loaders": {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 2, "dataloader_pin_memory": True},
    "memory": {"low_cpu_mem_usage": True, "gc_collect_steps": 1, "torch_empty_cache_steps": 1},
    "data": {"dataset_num_proc": 2, "pad_to_sequence_len": False},
    "packed by a mask": {"sdpa_varlen": False},
    "chunked loss": {"chunked_cross_entropy": True, "chunked_cross_entropy_num_chunks": 2},
}
# Those that need a GPU, several of them, or a package that is not there; and what is only told, or how packing starts.
ELSEWHERE = frozenset(
    """
    activation_offloading bf16 bfloat16 float16 fp16 tf32 nf4_backend torch_compile torch_compile_backend
    torch_compile_mode torch_compile_regional cut_cross_entropy cut_cross_entropy_accum_c_fp32
    cut_cross_entropy_c_grad_chunk_size liger_cross_entropy liger_fused_linear_cross_entropy liger_glu_activation
    liger_layer_norm liger_rms_norm liger_rope lora_embedding_kernel lora_mlp_kernel
    lora_o_kernel lora_qkv_kernel fa_varlen_kwargs_in_collator flash_attn_cross_entropy flash_attn_fuse_mlp
    ddp_find_unused_parameters ddp_timeout deepspeed fsdp_config fsdp_version device_map max_memory
    unfrozen_parameters_on_cpu include_tkps sample_packing_mp_start_method
    """.split()
)


def machine_keys(bench: Bench) -> None:
    conversations = "".join(talk(number, 4) for number in range(150))  # four or so of them in a row
    (bench.datasets / "witness_train.jsonl").write_text(conversations)
    bench.lay("as it is", SMALL)
    for name, change in CHANGES.items():
        bench.lay(name, SMALL | change)
    bench.lay("not evaluated before", SMALL | {"eval_on_start": False})


def test_machine_keys_do_not_change_what_is_learnt(trained: dict[str, Bench]) -> None:
    bench, tried = trained["machine_keys"], {key for change in CHANGES.values() for key in change}
    assert tried | ELSEWHERE >= recipe.MACHINE_KEYS, "a machine key that no training tries"
    assert not tried & ELSEWHERE
    expected = bench.figures("as it is")
    assert len(expected) == 8  # three steps, and evaluations before the first and after the last
    # bitsandbytes would pack the weights at the first evaluation, and let no gradient pass from then on. (A CPU without
    # AVX512-BF16 cannot show it.)
    assert bench.figures("not evaluated before") == pytest.approx([*expected[:6], expected[7]], rel=SAME)
    found = {name: bench.figures(name) for name in CHANGES}
    assert found == {name: pytest.approx(expected, rel=SAME) for name in CHANGES}


# --- the seed, and the best of a training ---------------------------------------------------------------------------


def one_seed(bench: Bench) -> None:
    drawn = SMALL | {"lora_dropout": 0.05}
    bench.lay("once", drawn)
    bench.lay("again", drawn)
    bench.lay("another seed", drawn | {"seed": 7})
    bench.lay("too fast", SMALL | WILD)
    bench.lay("too fast, and the last one is wanted", SMALL | WILD | {"load_best_model_at_end": False})


def test_one_seed_is_one_adapter_and_the_best_one_is_delivered(trained: dict[str, Bench]) -> None:
    bench = trained["one_seed"]
    assert bench.figures("once") == bench.figures("again")
    assert bench.weights("once") == bench.weights("again")
    assert bench.figures("once") != bench.figures("another seed")

    evaluated = bench.evaluated("too fast")
    best = min((loss, step) for step, loss in evaluated.items() if step)[1]
    assert best < 5, f"nothing was lost, so this shows nothing: {evaluated}"
    assert bench.events("too fast", "end")[0]["adapter"] == best
    assert bench.weights("too fast") == bench.weights("too fast", f"checkpoint-{best}")
    last = "too fast, and the last one is wanted"
    assert bench.evaluated(last) == evaluated
    assert bench.events(last, "end")[0]["adapter"] == 5
    assert bench.weights(last) == bench.weights(last, "checkpoint-5")
    assert bench.weights(last) != bench.weights("too fast")


def test_a_stop_in_the_middle_changes_nothing_of_what_is_delivered(
    tmp_path: pathlib.Path, environment: pathlib.Path
) -> None:
    bench = Bench(tmp_path, environment, ROOT / "examples/datasets")
    falling = SMALL | {"learning_rate": 0.002, "max_steps": 8, "eval_steps": 2, "save_steps": 2}
    wild = SMALL | WILD
    patient = falling | {"early_stopping_patience": 1}
    bench.lay("patient", patient)
    bench.lay("patient, and stopped", patient, halt=4)
    bench.lay("wild", wild)
    bench.lay("wild, and stopped", wild, halt=4)
    bench.lay("wild, stopped and moved", wild, halt=4)
    bench.lay("wild, with one checkpoint", wild | {"save_total_limit": 1}, halt=4)
    bench.train()

    # With one checkpoint to keep, the one of the stop stays, and not only the best.
    assert (bench.folders["wild, with one checkpoint"] / "output/checkpoint-4").is_dir()
    stopped = [name for name in bench.folders if "stopped" in name]
    for name in stopped:
        assert bench.events(name, "end")[0]["step"] == 4
        (bench.folders[name] / "halt").unlink()
    moved = bench.folders["wild, stopped and moved"] / "output"
    for checkpoint in moved.glob("checkpoint-*"):  # another pod is given the newest one alone
        if checkpoint.name != "checkpoint-4":
            shutil.rmtree(checkpoint)
    bench.train(*stopped)

    for name in ("patient", "wild"):
        assert bench.evaluated(f"{name}, and stopped") == bench.evaluated(name)
        ends = bench.events(name, "end")[-1], bench.events(f"{name}, and stopped", "end")[-1]
        assert [(end["step"], end["adapter"], end["reason"]) for end in ends[:1]] == [
            (end["step"], end["adapter"], end["reason"]) for end in ends[1:]
        ]
        assert bench.weights(f"{name}, and stopped") == bench.weights(name)
    [*_, end] = bench.events("wild, stopped and moved", "end")
    left = {step: loss for step, loss in bench.evaluated("wild, stopped and moved").items() if step >= 4}
    assert end["adapter"] == min(left, key=lambda step: left[step])
    assert "is not here; the best of what follows is delivered" in bench.log("wild, stopped and moved")


def worse(bench: Bench) -> None:
    (bench.datasets / "witness_train.jsonl").write_text("".join(talk(number, 4) for number in range(80)))
    unlike = json.dumps({"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "x y z " * 200}]})
    (bench.datasets / "witness_val.jsonl").write_text(unlike + "\n")
    bench.lay("worse", SMALL | {**WILD, "learning_rate": 1, "warmup_steps": 2, "max_steps": 2})
    bench.enliven()


def test_what_has_learnt_nothing_yet_is_never_the_best(trained: dict[str, Bench]) -> None:
    """The first step of a warmup has a learning rate of 0: its adapter does nothing, and could not be proven."""
    bench = trained["worse"]
    evaluated = bench.evaluated("worse")
    assert evaluated[0] == evaluated[1] < evaluated[2], "this shows nothing"
    assert bench.events("worse", "end")[0]["adapter"] == 2
    assert not (bench.folders["worse"] / "output/checkpoint-1").exists()


# --- small data -----------------------------------------------------------------------------------------------------


def talk(number: int, size: int) -> str:
    turns = [{"from": "human", "value": f"Question {number}?"}, {"from": "gpt", "value": f"answer {number} " * size}]
    return json.dumps({"conversations": turns}) + "\n"


SIZES = {"crew": (91, 2), "mayor": (30, 2), "deacon": (1, 2), "refinery": (20, 60)}


def small_data(bench: Bench) -> None:
    whole = {"max_steps": None, "num_epochs": 3, "eval_steps": 2, "save_steps": 2, "warmup_steps": 1}
    for agent, (count, size) in SIZES.items():
        (bench.datasets / f"{agent}_train.jsonl").write_text("".join(talk(number, size) for number in range(count)))
        length = 128 if agent == "refinery" else 4096  # there each conversation fills a row
        bench.lay(agent, SMALL | whole | {"sequence_len": length}, agent)


def test_small_data_takes_the_steps_that_the_plan_says(trained: dict[str, Bench]) -> None:
    bench = trained["small_data"]
    planned = {agent: run["estimate"]["steps"] for agent, run in bench.planned.items()}
    assert planned == {"crew": 33, "mayor": 11, "deacon": 1, "refinery": 6}
    assert {agent: bench.events(agent, "end")[0]["step"] for agent in SIZES} == planned
    packed = {agent: run["recipe"]["sample_packing"] for agent, run in bench.planned.items()}
    assert packed == {"crew": False, "mayor": False, "deacon": False, "refinery": True}
    assert {agent: bool(bench.evaluated(agent)) for agent in SIZES} == {**dict.fromkeys(SIZES, True), "deacon": False}
