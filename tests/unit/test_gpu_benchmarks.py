"""What the GPU benchmarks compute: FLOPs, noise, the model's shape, variants, the table. No GPU, no training."""

from __future__ import annotations

import json
import math
import pathlib
import random
import sys
import tarfile
import types

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks/gpu"))

import curves  # noqa: E402
import flops  # noqa: E402
import forge  # noqa: E402
import gpu_table  # noqa: E402
import proof  # noqa: E402
import random_model  # noqa: E402
import speed  # noqa: E402
import visit  # noqa: E402
from ansible.module_utils.lora_forge.planning import memory, recipe, recipe_problems  # noqa: E402
from ansible.module_utils.lora_forge.planning.layers import Layer, read_layer  # noqa: E402
from curves import Curve  # noqa: E402
from flops import Load, Shape  # noqa: E402

SMALL = Shape(linear=1000, head=100, layers=2, width=8)
QWEN = gpu_table.shape({"base_model": "Qwen2.5-7B-Instruct"})


# FLOPs


def test_attention_is_half_of_all_pairs():
    """One document of 4 tokens, 2 layers of width 8: two products of 4 × 8 × 4, 2 FLOPs each, and half of them."""
    assert flops.attention_forward(SMALL, 4 * 4) == 2 * (2 * (2 * 4 * 8 * 4)) // 2 == 512


def test_model_flops_by_hand():
    """10 tokens as documents of 4 and 6; the four of padding are no work."""
    load = Load(tokens=10, positions=14, squares=4**2 + 6**2)
    assert flops.model_flops(SMALL, load) == 4 * 1100 * 10 + 3 * (2 * 2 * 52 * 8)


def test_what_is_computed_twice_is_no_model_flop():
    load = Load(tokens=10, positions=14, squares=52)
    needed = flops.model_flops(SMALL, load)
    plain = flops.hardware_flops(SMALL, load, checkpointing=False)
    assert plain == needed + 4 * 1100 * 4
    assert flops.hardware_flops(SMALL, load, checkpointing=True) == plain + 2 * 1000 * 14 + 2 * 2 * 52 * 8
    assert flops.hardware_flops(SMALL, Load(10, 10, 52), checkpointing=False) == needed


def test_packing_makes_attention_cheaper():
    """Eight documents of 512 tokens in a row of 4096 need an eighth of the attention of one of 4096."""
    packed, whole = Load(4096, 4096, 8 * 512**2), Load(4096, 4096, 4096**2)
    weights = 4 * (QWEN.linear + QWEN.head) * 4096
    assert (flops.model_flops(QWEN, whole) - weights) == 8 * (flops.model_flops(QWEN, packed) - weights)


def test_qwen_by_hand():
    """6.53 billion weights in linear modules and 0.54 in the head: 28.3 GFLOPs a token, and attention a tenth of it."""
    assert Shape(6_525_288_448, 152064 * 3584, 28, 3584) == QWEN
    assert flops.model_flops(QWEN, Load(1, 1, 0)) == 4 * 7_070_285_824
    attention = 3 * flops.attention_forward(QWEN, 4096**2) / 4096
    assert attention == 6 * 28 * 3584 * 4096 == pytest.approx(2.47e9, rel=0.01)


def test_share():
    assert flops.share(400, 2.0, 1000.0) == 0.2


# Curves


def curve(seed: int, noise: float, steps: int = 50, shift: float = 0.0, drift: float = 0.0, batch: int = 8) -> Curve:
    rolled = random.Random(seed)
    losses = [12 - step / 25 + rolled.gauss(0, noise) + shift + drift * step / steps for step in range(steps)]
    return Curve(losses, list(range(steps)), batch)


BASELINE = [curve(1, 0.05), curve(2, 0.05)]


def test_what_lies_within_the_noise_is_the_same():
    assert curves.differences(BASELINE, curve(3, 0.05)) == []
    assert curves.differences(BASELINE, BASELINE[0]) == []


def test_the_noise_is_that_of_the_repeats_or_of_bf16():
    quiet = [curve(1, 0.0), curve(1, 0.0)]
    mean = sum(quiet[0].losses) / 50
    assert curves.tolerance(quiet) == pytest.approx(mean / 256)
    assert curves.differences(quiet, curve(1, 0.0, shift=mean / 300)) == []
    assert len(curves.differences(quiet, curve(1, 0.0, shift=mean / 200))) == 2
    spread = [Curve([1.0] * 50, [0] * 50, 8), Curve([1.2] * 50, [0] * 50, 8)]  # 0.1 from their mean, each
    assert curves.tolerance(spread) == pytest.approx(3 * 0.1)


def test_a_shift_and_a_drift_are_seen():
    allowed = curves.tolerance(BASELINE)
    assert "its loss is" in curves.differences(BASELINE, curve(3, 0.05, shift=2 * allowed))[0]
    (found,) = curves.differences(BASELINE, curve(3, 0.0, drift=1.4 * allowed))
    assert "drifted by +" in found
    assert len(curves.differences(BASELINE, curve(3, 0.0, drift=-4 * allowed))) == 2


def test_other_data_and_another_batch_are_other_trainings():
    other = Curve(BASELINE[0].losses, [*range(20), 99, *range(21, 50)], 16)
    assert curves.differences(BASELINE, other) == [
        "the effective batch is 16 instead of 8",
        "from step 21 on it is trained on other data",
    ]
    late = Curve([*BASELINE[0].losses, 9.0], [*range(50), 99], 8)
    assert curves.differences([*BASELINE[:1], Curve([*BASELINE[1].losses, 9.0], range(51), 8)], late) == []


def test_too_little_is_said():
    assert curves.differences(BASELINE[:1], BASELINE[0]) == ["the baseline was not repeated, so its noise is not known"]
    assert curves.differences(BASELINE, curve(3, 0.05, steps=49)) == ["only 49 of 50 steps were compared"]
    assert curves.differences(BASELINE, Curve([*[math.nan] * 50], range(50), 8)) == ["its loss is not finite"]


# The model


def test_the_random_model_has_the_exact_shape():
    """7,615,616,512 parameters, as the real Qwen2.5-7B."""
    files = random_model.shapes(random_model.QWEN)
    shapes = [shape for groups in files.values() for group in groups for shape in group.values()]
    assert sum(math.prod(shape) for shape in shapes) == 7_615_616_512
    assert len(files) == 29
    model = memory.from_config(random_model.QWEN)
    linear = sum(math.prod(shape) for shape in shapes if len(shape) == 2)
    assert linear == model.linear_weights() + model.embedding_weights()


def test_a_tied_head_is_written_once():
    tied = random_model.shapes(random_model.QWEN | {"tie_word_embeddings": True})
    assert not any("lm_head.weight" in group for groups in tied.values() for group in groups)


# Variants


def test_the_baseline_is_the_base_recipe():
    assert (
        speed.settings(speed.VARIANTS["baseline"], tiny=False)
        == read_layer(ROOT / "configs/base.yml", "configs/base.yml").keys
    )
    assert speed.VARIANTS["baseline"].changes == {}


@pytest.mark.parametrize("name", speed.VARIANTS)
def test_every_variant_keeps_the_effective_batch_and_is_known_to_axolotl(name):
    keys = speed.settings(speed.VARIANTS[name], tiny=False)
    assert recipe.effective_batch(keys) == 8
    assert keys["sequence_len"] == 4096
    schema = json.loads((ROOT / "configs/schema.json").read_text())
    layer = Layer(name, speed.VARIANTS[name].changes)
    assert recipe_problems.problems(layer.keys, dict.fromkeys(layer.keys, layer), schema) == []


def test_other_trainings_are_told_apart():
    other = {name for name, variant in speed.VARIANTS.items() if not variant.same_training}
    assert other == {"adamw-8bit", "bf16-lora"}
    assert not speed.combined("liger+bf16-lora").same_training


def test_changes_can_be_made_together():
    both = speed.combined("liger+mb4x2")
    assert both.changes == speed.LIGER | {"micro_batch_size": 4, "gradient_accumulation_steps": 2}
    assert (both.cpu, speed.combined("mb4x2+no-checkpointing").cpu) == (False, True)
    assert speed.combined("mb4x2+flash2").lacking() == speed.VARIANTS["flash2"].lacking() is not None
    # The promising ones keep the effective batch, too.
    for name in speed.PROMISING:
        assert recipe.effective_batch(speed.settings(speed.combined(name), tiny=False)) == 8
    with pytest.raises(SystemExit, match="there is no variant «nonsense»"):
        speed.combined("liger+nonsense")


def test_attention_is_compared_where_every_one_is_given_the_same_rows():
    """At a micro batch of 1: at 2 Axolotl packs longer rows for all but sdpa."""
    others = {name for name, variant in speed.VARIANTS.items() if "attn_implementation" in variant.changes}
    assert others == {"flash2", "flash3", "flex"}
    for name in others:
        variant, against = speed.VARIANTS[name], speed.VARIANTS[speed.VARIANTS[name].against]
        assert variant.changes.items() >= against.changes.items()
        assert len(variant.changes) == len(against.changes) + 1


def test_flash_attention_comes_as_a_wheel_or_from_the_cache_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("KERNELS_CACHE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    lacking = speed.lacks_flash("no_such_package", "kernels-community/flash-attn2")
    assert lacking().endswith("the kernel kernels-community/flash-attn2 is here; nothing is downloaded")
    assert speed.lacks_flash("json", "kernels-community/flash-attn2")() is None
    (tmp_path / "hub/kernels--kernels-community--flash-attn2").mkdir(parents=True)
    assert lacking() is None
    monkeypatch.setenv("KERNELS_CACHE", str(tmp_path / "elsewhere"))
    assert lacking() is not None


def test_offloading_is_not_tried_on_a_host_that_cannot_hold_it(tmp_path, monkeypatch):
    bench = speed.Bench(tmp_path, tmp_path, 3, False, 0)
    variant = speed.VARIANTS["offload"]
    keys = speed.settings(variant, tiny=False)
    monkeypatch.setattr(speed, "host_memory", lambda: 40.0 * 2**30)
    assert bench.unfit(variant, keys).endswith("GiB would be offloaded to the host, which has 40 GiB")
    monkeypatch.setattr(speed, "host_memory", lambda: 256.0 * 2**30)
    assert bench.unfit(variant, keys) is None
    assert 0 < forge.host_memory() < float("inf")


def test_liger_brings_its_plugin():
    assert speed.settings(speed.VARIANTS["liger"], tiny=False)["plugins"] == ["axolotl.integrations.liger.LigerPlugin"]
    assert "plugins" not in speed.settings(speed.VARIANTS["mb4x2"], tiny=False)


def test_the_reason_of_a_failure(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "[INFO] begun\nTraceback (most recent call last):\n  x\ntorch.OutOfMemoryError: CUDA out of memory.\n"
    )
    assert speed.reason(log, 1) == "exit code 1: torch.OutOfMemoryError: CUDA out of memory."
    log.write_text("one\ntwo\n")
    assert speed.reason(log, -9) == "exit code -9: one\ntwo"


# What is measured in which order; what is kept, and what is continued, is in tests/integration


def test_the_order_is_one_of_worth():
    order = speed.wishes([], 2, None, False)
    first = ["baseline", "liger+mb1x8+no-checkpointing", "liger+mb4x2"]  # what a visit of nine minutes comes to
    assert [wish.name for wish in order[:4]] == [*first, "liger"] == ["baseline", *speed.PROMISING]
    assert order[4:6] == [speed.Wish("baseline", 2, 50), speed.Wish(speed.FASTEST, 2, 50)]
    assert {part for wish in order for part in wish.name.split("+")} == {*speed.VARIANTS, speed.FASTEST}
    assert all(wish.steps >= speed.WARMUP + speed.ENOUGH for wish in order)
    assert speed.wishes(["liger"], 2, None, False) == [speed.Wish("liger", 1, 13), speed.Wish("liger", 2, 13)]
    with pytest.raises(SystemExit, match="nonsense"):
        speed.wishes(["nonsense"], 1, None, False)


# The proof and a visit


def test_the_proof_changes_what_it_must_and_is_told_a_loss_that_falls(tmp_path):
    prover = proof.Proof(tmp_path, "witness", proof.MAX_STEPS, False)
    assert prover.changed.keys() == {*proof.OVERRIDDEN, "val_set_size", "eval_sample_packing"}
    assert proof.Proof.rising(12.5, 12.25) == []
    for first, last in ((12.25, 12.5), (12.5, 12.5), (12.5, "nan"), (12.5, float("nan")), (None, None)):
        assert "the loss did not fall" in proof.Proof.rising(first, last)[0]


def test_a_visit_packs_its_results_and_its_logs(tmp_path):
    work, out = tmp_path / "work", tmp_path / "out"
    out.mkdir()
    forge.save(work / "results/card/baseline-1.json", {"steps": [1]})
    (work / "results/card/nvidia-smi.txt").write_text("a card")
    (work / "results/card/baseline-2.part").write_text("half")
    (work / "processes/baseline-1").mkdir(parents=True)
    (work / "processes/baseline-1/log").write_text("x" * visit.TAIL + "the end")
    visit.pack(work, out)
    assert sorted(path.name for path in out.iterdir()) == ["logs.tar.gz", "results.tar.gz"]
    with tarfile.open(out / "results.tar.gz") as packed:
        packed.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11 of Debian 12 has none
        packed.extractall(tmp_path / "unpacked")
    assert forge.load(tmp_path / "unpacked/card/baseline-1.json") == {"steps": [1]}
    assert sorted(path.name for path in (tmp_path / "unpacked/card").iterdir()) == ["baseline-1.json", "nvidia-smi.txt"]
    with tarfile.open(out / "logs.tar.gz") as packed:
        text = packed.extractfile("processes/baseline-1/log").read()
    assert (len(text), text[-7:]) == (visit.TAIL, b"the end")
    forge.save(work / "results/card/baseline-1.json", {"steps": [1, 2]})
    visit.bring_back(tmp_path / "unpacked", work / "results")
    assert forge.load(work / "results/card/baseline-1.json") == {"steps": [1, 2]}
    visit.bring_back(tmp_path / "unpacked", tmp_path / "next")
    assert forge.load(tmp_path / "next/card/baseline-1.json") == {"steps": [1]}


def test_a_work_folder_without_room_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(visit.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=39e9))
    with pytest.raises(SystemExit, match=r"has 39 GB of room, and a visit needs 40 GB.*/dev/shm"):
        visit.room(tmp_path)
    with (tmp_path / "model").open("wb") as there:
        there.truncate(1_000_000_000)  # what an earlier visit has made; it takes no room on the disk
    visit.room(tmp_path)


def test_a_model_that_was_cut_off_is_made_anew(tmp_path, monkeypatch):
    left = tmp_path / "tiny.partial.999999999"
    left.mkdir()
    monkeypatch.setitem(sys.modules, "tiny_model", types.SimpleNamespace(main=lambda: (tmp_path / "tiny").mkdir()))
    monkeypatch.setattr(sys, "argv", [])
    random_model.make(tmp_path / "tiny", True)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


# The table


def process(name: str, repeat: int, seconds: float, **more) -> dict:
    """Return what speed.py writes, with made-up figures."""
    step = {"tokens": 32000, "positions": 32768, "squares": 32000 * 2000, "data": 7, "micro_batches": 4}
    steps = [{**step, "step": number, "seconds": seconds, "loss": 12 - number / 25} for number in range(1, 61)]
    keys = speed.settings(speed.combined(name), tiny=False) | {"base_model": "Qwen2.5-7B-Instruct"}
    return {
        "variant": name, "words": speed.combined(name).words, "repeat": repeat, "status": "measured", "tiny": False,
        "same_training": speed.combined(name).same_training, "warmup": 5, "steps": steps, "recipe": keys, "batch": 8,
        "ceiling": 7e14, "memory": {"reserved": 22 * 2**30, "beside": 2**30, "allocated": 0, "total": 80 * 2**30},
        "against": speed.combined(name).against, "gpu": {"name": "A pretended GPU"}, "versions": {}, "date": "today",
        **more,
    }  # fmt: skip


FOUND = [
    process("baseline", 1, 4.0), process("baseline", 2, 4.0), process("liger", 1, 2.0), process("bf16-lora", 1, 1.0),
    {**process("flex", 1, 1.0), "status": "failed", "reason": "exit code 1: no | kernel"},
]  # fmt: skip


def test_the_table_of_figures():
    head, _, baseline, bf16, liger, flex = gpu_table.table(gpu_table.rows(FOUND))
    assert head.startswith("| variant | what it changes | tokens/s |")
    needed = 4 * 7_070_285_824 * 32000 + 6 * 28 * 3584 * 32000 * 2000
    assert f"| 8,000 (8,000, 8,000) | 1.00 | {needed / 4 / 7e14:.3f}" in baseline
    assert baseline.endswith("| 23.0 | 24.4 (+6%) |  |")
    assert "| 16,000 | 2.00 |" in liger
    assert liger.endswith("| yes |")
    assert "| 32,000 | 4.00 |" in bf16
    assert bf16.endswith("| no: other training |")
    assert "| failed: exit code 1: no / kernel |" in flex


def test_the_goals_are_judged_by_the_same_training_alone():
    speedup, share, estimated = gpu_table.goals(gpu_table.rows(FOUND), "NVIDIA H100 80GB HBM3")
    assert "met, 2.00 × (liger)" in speedup
    assert "not met" not in speedup
    assert share.startswith("- MFU at least 0.45 on an H100: met, 0.")
    assert share.endswith("(liger).")
    assert "not met" in estimated
    assert "not measured" in gpu_table.goals([], "")[0]


def test_a_share_of_another_gpu_is_no_goal():
    share = gpu_table.goals(gpu_table.rows(FOUND), "NVIDIA H200")[1]
    assert "met" not in share
    assert share.endswith("(liger); the goal of 0.45 is one for an H100.")


def test_short_curves_prove_nothing():
    short = [{**one, "steps": one["steps"][:20]} for one in FOUND]
    made = {row.name: row for row in gpu_table.rows(short)}
    assert gpu_table.same(made["liger"], made["baseline"]) == "not yet: so far (20 of 50 steps)"
    assert "1.00 × (baseline)" in gpu_table.goals(list(made.values()), "")[0]
    alone = {row.name: row for row in gpu_table.rows(FOUND[1:])}
    assert gpu_table.same(alone["liger"], alone["baseline"]) == "not compared"


def test_a_short_repeat_does_not_spoil_the_curves_of_the_long_ones():
    first = {**FOUND[0], "steps": FOUND[0]["steps"][:13]}
    found = [first, FOUND[1], process("baseline", 3, 4.0), process("liger", 2, 2.0)]
    found.append({**process("liger", 1, 2.0), "steps": first["steps"]})
    made = {row.name: row for row in gpu_table.rows(found)}
    assert gpu_table.same(made["liger"], made["baseline"]) == "yes"


def test_a_change_to_another_variant_is_held_against_that_one():
    text = "\n".join(gpu_table.table(gpu_table.rows([*FOUND[:3], process("mb1x8", 1, 5.0), process("flex", 1, 4.0)])))
    assert "| 1.00 (1.25 × mb1x8) |" in text
    assert "| 0.80 |" in text


def test_nothing_is_computed_twice_where_activations_are_offloaded():
    computed = {}
    for name in ("mb1x8", "offload", "offload-checkpoints"):
        (row,) = gpu_table.rows([process(name, 1, 4.0)])
        computed[name] = row.hfu[0]
    assert computed["offload"] < computed["mb1x8"] == computed["offload-checkpoints"]


def test_figures_of_a_cpu_are_refused():
    with pytest.raises(ValueError, match="no measurement"):
        gpu_table.rows([process("baseline", 1, 4.0, tiny=True)])


def test_the_document_says_that_nothing_is_measured_while_nothing_is(tmp_path):
    out = tmp_path / "gpu.md"
    out.write_text(f"# Title\n{gpu_table.BEGIN}\nold\n{gpu_table.END}\nThe end.\n")
    gpu_table.write(tmp_path / "none", out)
    text = out.read_text()
    assert gpu_table.NOTHING in text
    assert "old" not in text
    assert text.startswith("# Title\n")
    assert text.endswith(f"{gpu_table.END}\nThe end.\n")
    for number, one in enumerate(FOUND):
        forge.save(tmp_path / f"results/card/{number}.json", one)
    forge.save(tmp_path / "results/card/ceiling.json", {"flops_per_second": 7e14})
    forge.save(tmp_path / "results/card/gpu_check.json", {"ok": True})
    gpu_table.write(tmp_path / "results", out)
    text = out.read_text()
    assert gpu_table.NOTHING not in text
    assert "### A pretended GPU" in text
    assert "Ceiling: 700 TFLOP/s" in text
    assert "cards" not in text
    forge.save(tmp_path / "results/card/9.json", process("baseline", 3, 4.0, gpu={"name": "x", "uuid": "GPU-2"}))
    gpu_table.write(tmp_path / "results", out)
    assert "Measured on 2 cards of this name" in out.read_text()
    assert "The proof has not been run." in text


def test_the_document_is_in_step_with_the_results(tmp_path):
    copy = tmp_path / "gpu.md"
    copy.write_text((ROOT / "docs/gpu.md").read_text())
    gpu_table.write(forge.RESULTS, copy)
    assert copy.read_text() == (ROOT / "docs/gpu.md").read_text()


def test_the_proof_in_words():
    proven = {
        "proven": True, "agent": "witness", "changed": {"base_model": [], "max_steps": []}, "steps": {"reached": 24},
        "lora": {"parameters": 161480704}, "killed": {"killed_at": 9, "checkpoint": 8},
        "loss": {"loss_first": 12.5, "loss": 12.25},
    }  # fmt: skip
    words = gpu_table.proof_line(proven)
    assert "161,480,704 weights; killed with SIGKILL at step 9, resumed from step 8" in words
    assert words.endswith("the loss fell from 12.500 to 12.250.")
    assert gpu_table.proof_line({"proven": False, "problems": ["it is failed"]}) == "**Not proven:** it is failed."
