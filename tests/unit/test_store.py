"""What proves an adapter, and how it is kept."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import pathlib
from typing import Any

import numpy as np
import pytest
from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.adapters.manifest import (
    Cost,
    Dataset,
    Evaluation,
    Host,
    Losses,
    Manifest,
    Steps,
)
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.version import VERSION
from delivered import planned
from safetensors.numpy import save_file

RECIPE = {"lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"], "base_model": "Qwen/Tiny"}


def name_of(layer: int, module: str, side: str) -> str:
    return f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{side}.weight"


def good_tensors(layers: int = 2, rank: int = 4, kind: Any = np.float32) -> dict[str, np.ndarray]:
    tensors = {}
    for layer, module in itertools.product(range(layers), RECIPE["lora_target_modules"]):
        tensors[name_of(layer, module, "A")] = np.full((rank, 8), 0.5, kind)
        tensors[name_of(layer, module, "B")] = np.full((6, rank), -0.25, kind)
    return tensors


def write_bf16(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    """Write a BF16 file by hand: the upper halves of float32."""
    header, data = {}, b""
    for name, values in tensors.items():
        raw = (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.fixture
def build(tmp_path):
    """Provide a maker of an adapter's folder; keywords change adapter_config.json."""

    def builder(tensors: dict[str, np.ndarray] | None = None, write=save_file, layers: int = 2, **changes: Any):
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        config = {"r": 4, "target_modules": ["v_proj", "q_proj"], "base_model_name_or_path": "Qwen/Tiny", **changes}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "config.json").write_text(json.dumps({"num_hidden_layers": layers}))
        tensors = good_tensors() if tensors is None else tensors
        if write is save_file:
            save_file(tensors, folder / store.WEIGHTS)
        else:
            write(folder / store.WEIGHTS, tensors)
        return folder

    return builder


def problems(folder: pathlib.Path) -> list[str]:
    return store.verify(folder, RECIPE)["problems"]


# --- verify


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64])
def test_a_good_adapter(build, kind):
    facts = store.verify(build(good_tensors(kind=kind)), RECIPE)
    assert facts == {"problems": [], "pairs": 4, "rank": 4, "layers": 2, "parameters": 4 * (4 * 8 + 6 * 4)}


def test_a_good_bf16_adapter(build):
    large = {name_of(0, "q_proj", "A"): np.full((4, 8), 3e38, np.float32)}
    assert problems(build(good_tensors() | large, write_bf16)) == []


def test_a_header_of_odd_length_is_read(build):
    def odd(path, tensors):
        write_bf16(path, tensors)
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        pad = 1 + length % 2  # the data then begins at an odd byte
        text = raw[8 : 8 + length] + b" " * pad
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])

    folder = build(write=odd)
    assert int.from_bytes((folder / store.WEIGHTS).read_bytes()[:8], "little") % 2 == 1
    assert problems(folder) == []


def test_a_base_model_in_a_local_folder_is_the_same_model(build):
    assert problems(build(base_model_name_or_path="/workspace/models/Tiny")) == []


def test_wrong_base_model(build):
    assert problems(build(base_model_name_or_path="Qwen/Other")) == [
        "base model is Qwen/Other, the recipe says Qwen/Tiny"
    ]


def test_wrong_rank_in_the_config(build):
    found = problems(build(good_tensors(rank=8), r=8))
    assert found == ["rank is 8, the recipe says 4"]


def test_wrong_rank_in_a_tensor(build):
    tensors = good_tensors()
    tensors[name_of(1, "q_proj", "A")] = np.ones((2, 8), np.float32)
    assert problems(build(tensors)) == ["model.layers.1.self_attn.q_proj: shapes [2, 8] and [6, 4] do not have rank 4"]


def test_wrong_target_modules(build):
    tensors = {name.replace("v_proj", "k_proj"): values for name, values in good_tensors().items()}
    found = problems(build(tensors, target_modules=["q_proj", "k_proj"]))
    assert "target modules are ['k_proj', 'q_proj'], the recipe says ['q_proj', 'v_proj']" in found
    assert "v_proj has no LoRA matrices in layer(s) 0, 1" in found
    assert "model.layers.0.self_attn.k_proj is no target of the recipe" in found


def test_missing_layer(build):
    assert problems(build(good_tensors(layers=2), layers=3)) == [
        "q_proj has no LoRA matrices in layer(s) 2",
        "v_proj has no LoRA matrices in layer(s) 2",
    ]


def test_a_layer_missing_for_one_module_is_seen_without_a_model_config(build):
    tensors = {name: values for name, values in good_tensors().items() if "layers.1.self_attn.v_proj" not in name}
    folder = build(tensors)
    (folder / "config.json").unlink()
    assert problems(folder) == ["v_proj has no LoRA matrices in layer(s) 1"]


def test_layers_of_a_multimodal_model_are_found(build):
    folder = build()
    (folder / "config.json").write_text(json.dumps({"text_config": {"num_hidden_layers": 3}}))
    assert store.verify(folder, RECIPE)["layers"] == 3
    assert len(problems(folder)) == 2


def test_half_a_pair(build):
    tensors = good_tensors()
    del tensors[name_of(0, "q_proj", "B")]
    assert problems(build(tensors)) == ["model.layers.0.self_attn.q_proj has only its A matrix"]


def test_extra_tensor(build):
    extra = {"base_model.model.lm_head.weight": np.ones((2, 2), np.float32)}
    assert problems(build(good_tensors() | extra)) == ["tensor base_model.model.lm_head.weight is no LoRA matrix"]


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("write", [save_file, write_bf16])
def test_all_zero_b(build, zero, write):
    name = name_of(1, "v_proj", "B")
    tensors = good_tensors() | {name: np.full((6, 4), zero, np.float32)}
    assert problems(build(tensors, write)) == [f"tensor {name} is all zero: it was never trained"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize(
    ("kind", "write"),
    [(np.float32, save_file), (np.float16, save_file), (np.float64, save_file), (np.float32, write_bf16)],
    ids=["F32", "F16", "F64", "BF16"],
)
def test_values_that_are_not_finite(build, bad, side, kind, write):
    tensors = good_tensors(kind=kind)
    name = name_of(0, "v_proj", side)
    tensors[name][1, 1] = tensors[name][2, 3] = bad
    assert problems(build(tensors, write)) == [f"tensor {name} holds 2 values that are NaN or infinite"]


def test_tensors_longer_than_a_chunk_are_read_to_the_end(build, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 5)
    tensors = good_tensors()
    tensors[name_of(0, "q_proj", "B")][-1, -1] = np.nan
    assert problems(build(tensors)) == [f"tensor {name_of(0, 'q_proj', 'B')} holds 1 values that are NaN or infinite"]


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_file(build, keep):
    path = build() / store.WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    [found] = problems(path.parent)
    assert found.startswith(f"{path} cannot be read: ")


def test_files_that_are_missing(build):
    folder = build()
    (folder / store.WEIGHTS).unlink()
    assert problems(folder)[0].startswith(f"{folder / store.WEIGHTS} cannot be read: ")
    (folder / "adapter_config.json").write_text("{")
    assert problems(folder) == [f"{folder / 'adapter_config.json'} is missing or not JSON"]


# --- listing, deliver, missing


@pytest.fixture
def run_dir(build, tmp_path):
    """Make a finished run on its trainer."""
    source = tmp_path / "run"
    source.mkdir()
    build().rename(source / "output")
    for name, needed in store.FILES.items():
        if needed and not (source / name).exists():
            (source / name).write_text(f"this is {name}")
    return source


@pytest.fixture
def home(tmp_path):
    return tmp_path / "adapters" / "witness"


def manifest(run_id: str = "witness-1", **changes: Any) -> Manifest:
    known = {"recipe": RECIPE, "base_model": RECIPE["base_model"], "lora": {"layers": 2}}
    return Manifest.from_dict({"run_id": run_id, "verdict": "verified", "rehearsal": False, **known, **changes})


def test_listing_names_what_is_there(run_dir):
    rows = {row["path"]: row for row in store.list_files(run_dir)}
    assert set(rows) == {name for name, needed in store.FILES.items() if needed}
    assert rows["train.log"] == {
        "path": "train.log",
        "name": "train.log",
        "bytes": 17,
        "sha256": store.sha256_text("this is train.log"),
    }


def test_listing_names_the_file_that_is_missing(run_dir):
    (run_dir / "output/tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"output/tokenizer\.json is missing, so the adapter is not whole"):
        store.list_files(run_dir)


def test_deliver_brings_it_whole(run_dir, home):
    files = store.list_files(run_dir)
    final = store.deliver(run_dir, home, files, manifest())
    assert final == home / "witness-1"
    assert {path.name for path in final.iterdir()} == {row["name"] for row in files} | {"manifest.json"}
    written = json.loads((final / "manifest.json").read_text())
    assert written["files"] == [{"path": r["name"], "sha256": r["sha256"], "bytes": r["bytes"]} for r in files]
    assert [path.name for path in home.iterdir()] == ["witness-1"]
    assert store.integrity_error(final) is None
    assert store.integrity_error(final, hashes=True) is None


def test_a_hash_mismatch_leaves_nothing_half_made(run_dir, home):
    files = store.list_files(run_dir)
    (run_dir / "train.log").write_text("another text here")
    with pytest.raises(UserError, match=r"train\.log is not what the trainer listed; run the same command again"):
        store.deliver(run_dir, home, files, manifest())
    assert not home.exists()


def test_an_adapter_that_does_not_hold_up_is_not_delivered(run_dir, home):
    save_file(good_tensors(layers=1), run_dir / "output" / store.WEIGHTS)
    with pytest.raises(UserError, match=r"witness-1 does not hold up: q_proj has no LoRA matrices in layer\(s\) 1; v_"):
        store.deliver(run_dir, home, store.list_files(run_dir), manifest())
    assert list(home.iterdir()) == []


def test_deliver_replaces_a_damaged_one_and_leftovers(run_dir, home):
    final = store.deliver(run_dir, home, store.list_files(run_dir), manifest())
    (final / store.WEIGHTS).write_bytes(b"cut")
    (final / "stray").write_text("x")
    (home / ".witness-1.partial").mkdir()
    (home / ".witness-1.partial" / "old").write_text("x")
    store.deliver(run_dir, home, store.list_files(run_dir), manifest())
    assert store.integrity_error(final, hashes=True) is None
    assert not (final / "stray").exists()
    assert not (final / "old").exists()
    assert [path.name for path in home.iterdir()] == ["witness-1"]


def test_missing(run_dir, home):
    assert store.integrity_error(home / "witness-1") == "never trained"
    final = store.deliver(run_dir, home, store.list_files(run_dir), manifest())
    log = final / "train.log"
    whole = log.read_text()
    log.write_text("short")
    assert store.integrity_error(final) == f"{log} has 5 bytes instead of 17"
    log.unlink()
    assert store.integrity_error(final) == f"{log} is missing"
    log.write_text(whole)
    assert store.integrity_error(final) is None
    (final / "manifest.json").write_text(json.dumps({"verdict": "failed", "files": []}))
    assert store.integrity_error(final) == f"{final} has no manifest of a verified adapter"


@pytest.mark.parametrize(("newer", "hashes", "seen"), [(True, False, True), (False, False, False), (False, True, True)])
def test_changed_content_of_the_same_size(run_dir, home, newer, hashes, seen):
    final = store.deliver(run_dir, home, store.list_files(run_dir), manifest())
    log = final / "train.log"
    log.write_text(log.read_text().upper())
    written = (final / "manifest.json").stat().st_mtime + (9 if newer else -9)
    os.utime(log, (written, written))
    assert store.integrity_error(final, hashes) == (f"{log} has changed since it was verified" if seen else None)


def test_a_copy_with_new_times_is_still_whole(run_dir, home):
    final = store.deliver(run_dir, home, store.list_files(run_dir), manifest())
    os.utime(final / "train.log", (2e9, 2e9))
    assert store.integrity_error(final) is None


# --- verify, closer


def test_names_with_an_adapters_name_in_them_are_the_same_matrices(build):
    tensors = {name.replace(".weight", ".default.weight"): values for name, values in good_tensors().items()}
    assert problems(build(tensors)) == []


@pytest.mark.parametrize("name", ["x.base_model.model.a.lora_A.weight", "base_model.model.a.lora_C.weight"])
def test_names_that_only_resemble_a_matrix(build, name):
    assert f"tensor {name} is no LoRA matrix" in problems(build(good_tensors() | {name: np.ones((4, 4), np.float32)}))


def test_the_b_matrix_alone(build):
    tensors = good_tensors()
    del tensors[name_of(0, "q_proj", "A")]
    assert problems(build(tensors)) == ["model.layers.0.self_attn.q_proj has only its B matrix"]


def test_a_wrong_rank_in_the_b_matrix(build):
    tensors = good_tensors() | {name_of(0, "v_proj", "B"): np.ones((6, 2), np.float32)}
    assert problems(build(tensors)) == ["model.layers.0.self_attn.v_proj: shapes [4, 8] and [6, 2] do not have rank 4"]


@pytest.mark.parametrize("side", ["A", "B"])
def test_a_tensor_that_is_no_matrix(build, side):
    name = name_of(1, "v_proj", side)
    tensors = good_tensors() | {name: np.ones((4, 4, 4), np.float32)}
    facts = store.verify(build(tensors), RECIPE)
    assert [said.partition(":")[0] for said in facts["problems"]] == ["model.layers.1.self_attn.v_proj"]
    assert facts["parameters"] == 4 * (4 * 8 + 6 * 4) - good_tensors()[name].size


def test_layers_whose_shapes_differ(build):
    tensors = good_tensors() | {name_of(1, "q_proj", "B"): np.ones((10, 4), np.float32)}
    assert problems(build(tensors)) == ["q_proj has different shapes in different layers: [(8, 6), (8, 10)]"]
    tensors = good_tensors() | {name_of(1, "q_proj", "A"): np.ones((4, 10), np.float32)}
    assert problems(build(tensors)) == ["q_proj has different shapes in different layers: [(8, 6), (10, 6)]"]


def test_a_target_that_no_layer_has(build):
    folder = build({name: values for name, values in good_tensors().items() if "q_proj" in name})
    (folder / "config.json").unlink()
    assert problems(folder) == ["v_proj has no LoRA matrices in layer(s) 0, 1"]
    assert problems(build({})) == [f"{kind} has no LoRA matrices in layer(s) 0, 1" for kind in ("q_proj", "v_proj")]
    (folder / "config.json").unlink()
    assert problems(folder) == [f"{kind} has no LoRA matrices in layer(s) at all" for kind in ("q_proj", "v_proj")]


def test_a_module_that_is_no_target_is_told_beside_what_else_is_wrong(build):
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    assert problems(build(good_tensors() | {name: np.ones((4, 8), np.float32)})) == [
        "model.layers.0.mlp.up_proj has only its A matrix",
        "model.layers.0.mlp.up_proj is no target of the recipe",
    ]


def test_layers_that_are_said_come_before_those_of_the_config(build):
    facts = store.verify(build(layers=7), RECIPE, 2)
    assert (facts["problems"], facts["layers"]) == ([], 2)
    assert store.verify(build(layers=2), RECIPE, 3)["problems"] == [
        "q_proj has no LoRA matrices in layer(s) 2",
        "v_proj has no LoRA matrices in layer(s) 2",
    ]


def test_what_is_known_of_an_adapter_that_cannot_be_read(build):
    folder = build()
    (folder / store.WEIGHTS).write_bytes(b"\x01")
    facts = store.verify(folder, RECIPE, 2)
    assert len(facts.pop("problems")) == 1
    assert facts == {"pairs": 0, "rank": 4, "layers": 2, "parameters": 0}
    (folder / "adapter_config.json").unlink()
    facts = store.verify(folder, RECIPE, 2)
    assert facts["rank"] is None
    assert len(facts["problems"]) == 1


def test_everything_that_is_wrong_is_told(build):
    tensors = good_tensors(layers=1) | {name_of(0, "q_proj", "B"): np.zeros((6, 4), np.float32)}
    found = problems(build(tensors, r=8, target_modules=None, base_model_name_or_path="Qwen/Other"))
    assert found[:3] == [
        "rank is 8, the recipe says 4",
        "target modules are [], the recipe says ['q_proj', 'v_proj']",
        "base model is Qwen/Other, the recipe says Qwen/Tiny",
    ]
    assert any("do not have rank 8" in said for said in found)
    assert any("has no LoRA matrices in layer(s) 1" in said for said in found)
    assert found[-1].endswith("is all zero: it was never trained")


def test_the_same_name_of_another_owner_in_a_folder_is_the_same_model(build):
    """A folder keeps the model's name alone."""
    facts = store.verify(build(base_model_name_or_path="Qwen/Tiny"), RECIPE | {"base_model": "/models/Tiny"})
    assert facts["problems"] == []


def test_a_matrix_a_of_zeros_is_no_proof_against_a_training(build):
    assert problems(build(good_tensors() | {name_of(0, "q_proj", "A"): np.zeros((4, 8), np.float32)})) == []


def test_a_type_that_no_adapter_has(build):
    name = name_of(0, "q_proj", "A")
    tensors = good_tensors() | {
        name: np.ones((4, 8), np.int64),
        name_of(1, "v_proj", "B"): np.zeros((6, 4), np.float32),
    }
    assert problems(build(tensors)) == [
        f"tensor {name} has type I64",
        f"tensor {name_of(1, 'v_proj', 'B')} is all zero: it was never trained",
    ]


@pytest.mark.parametrize("at", [(0, 0), (3, 3), (5, 3)])
def test_one_value_is_enough_for_a_matrix_b(build, monkeypatch, at):
    monkeypatch.setattr(store, "CHUNK", 5)
    values = np.zeros((6, 4), np.float32)
    values[at] = -1e-30
    assert problems(build(good_tensors() | {name_of(0, "q_proj", "B"): values})) == []


def test_metadata_is_no_tensor(build):
    def with_metadata(path, tensors):
        save_file(tensors, path, metadata={"format": "pt"})

    folder = build(write=with_metadata)
    assert problems(folder) == []
    header = store.read_header(folder / store.WEIGHTS)
    assert set(header) == set(good_tensors())
    first = header[name_of(0, "q_proj", "A")]
    assert (first["dtype"], first["shape"], first["end"] - first["begin"]) == ("F32", [4, 8], 128)


# --- the chat template


def trained_with(run_dir, *texts):
    for text in texts:
        rundir.append_event(run_dir / "metrics.jsonl", "template", sha256=hashlib.sha256(text.encode()).hexdigest())


def test_the_template_that_is_delivered_is_the_one_that_was_trained(run_dir):
    (run_dir / "output/chat_template.jinja").write_text("{{ x }}ü\n")
    assert store.template_problems(run_dir) == [], "of older runs nothing is known"
    trained_with(run_dir, "{{ x }}ü\n", "{{ x }}ü\n")  # a run that was resumed
    assert store.template_problems(run_dir) == []
    trained_with(run_dir, "{{ y }}")
    [said] = store.template_problems(run_dir)
    assert said.startswith("its tokenizer's chat template is not the one that its data was rendered with")


def test_a_template_in_the_tokenizers_configuration(run_dir):
    trained_with(run_dir, "{{ x }}")
    [said] = store.template_problems(run_dir)
    assert said.startswith("its tokenizer has no chat template, though it was trained with one")
    path = run_dir / "output/tokenizer_config.json"
    path.write_text(json.dumps({"chat_template": "{{ x }}"}))
    assert store.template_problems(run_dir) == []
    path.write_text(json.dumps({"chat_template": "{{ y }}"}))
    assert len(store.template_problems(run_dir)) == 1


def test_a_template_that_is_no_text(run_dir):
    trained_with(run_dir, "{{ x }}")
    (run_dir / "output/chat_template.jinja").write_bytes(b"\xff")
    [said] = store.template_problems(run_dir)
    assert "chat_template.jinja cannot be read" in said


# --- listing, closer


def test_listing_without_checksums_and_with_what_may_be_there(run_dir):
    (run_dir / "output/chat_template.jinja").write_text("{{ x }}")
    rows = {row["path"]: row for row in store.list_files(run_dir, checksums=False)}
    assert rows["output/chat_template.jinja"] == {
        "path": "output/chat_template.jinja",
        "name": "chat_template.jinja",
        "bytes": 7,
    }
    assert not any("sha256" in row for row in rows.values())


def test_wandbs_records_come_with_their_folders(run_dir):
    for start in ("offline-run-20260101_000000-a", "run-20260102_000000-a"):
        folder = run_dir / "wandb" / start
        folder.mkdir(parents=True)
        (folder / "run-a.wandb").write_text(start)
        (folder / "notes.txt").write_text("of no account")
    (run_dir / "wandb/latest-run").symlink_to("run-20260102_000000-a")
    names = ["wandb/offline-run-20260101_000000-a/run-a.wandb", "wandb/run-20260102_000000-a/run-a.wandb"]
    rows = [row for row in store.list_files(run_dir) if row["path"].startswith("wandb/")]
    assert rows == [
        {"path": name, "name": name, "bytes": len(text), "sha256": store.sha256_text(text)}
        for name, text in ((name, name.split("/")[1]) for name in names)
    ]
    assert not any("sha256" in row for row in store.list_files(run_dir, checksums=False))


# --- what speaks against a run, and its manifest


COUNTS = {"examples": 40, "tokens": 400, "longer": 3, "dropped": 2, "untrainable": 1}


def observed(**changes: Any) -> dict[str, Any]:
    """Return what training_run_info returns of a run that ended well."""
    done = {
        "step": 12, "planned": 12, "loss": 1.0, "loss_first": 2.0, "eval_first": 1.9, "eval_loss": 1.1,
        "adapter_step": 8, "eval_adapter": 1.0, "end_reason": None, "data": COUNTS, "wandb": {"mode": "offline"},
    }  # fmt: skip
    status = {"exit_code": 0, "starts": 2, "first_started_at": 1000.0, "finished_at": 1060.26}
    return {"state": "finished", "detail": "", "status": status, "progress": done, **changes}


def test_a_run_that_is_not_finished_speaks_against_its_adapter():
    assert store.run_problems(observed()) == []
    assert store.run_problems(observed(state="stalled", detail="no step for 9 s")) == [
        "the run is stalled: no step for 9 s"
    ]
    failed = observed(state="failed", detail="x")
    failed["status"]["exit_code"] = 1
    assert store.run_problems(failed) == ["the run is failed: x", "the trainer's exit code is 1"]


def test_a_manifest_says_everything_that_is_known():
    file = {"path": "/d/witness_train.jsonl", "use": "train", "sha256": "d", "examples": 4}
    run = planned(
        "witness-1", fingerprint="f" * 64, recipe=RECIPE, recipe_sha256="r" * 64, datasets=[{**file, "entry": {}}]
    )
    lora = {"pairs": 4, "rank": 4, "layers": 2, "parameters": 224}
    proof = {**lora, "problems": [], "versions": {"torch": "2", "lora-forge": "0.0"}}  # its own word for ours
    known = {
        "base_model": "/models/Tiny", "host": Host("gpu-1", "A100"), "lock_sha256": "l",
        "git": {"commit": "0123456789", "dirty": True},
        "evaluation": Evaluation("file", "e", 64, "m", 1.0), "cost": Cost(1.5, 0.5, "RunPod's bill", ("p",)),
    }  # fmt: skip
    made = store.make_manifest(run, observed(), proof, **known).as_dict()
    expected = {
        "schema_version": 1,
        "run_id": "witness-1",
        "agent": "witness",
        "fingerprint": "f" * 64,
        "verdict": "verified",
        "rehearsal": False,
        "base_model": "/models/Tiny",
        "recipe": RECIPE,
        "recipe_sha256": "r" * 64,
        "lock_sha256": "l",
        "datasets": [file],
        "data": COUNTS,
        "lora": lora,
        "versions": {"torch": "2", "lora-forge": f"{VERSION}+g0123456.dirty"},
        "host": {"name": "gpu-1", "gpu": "A100", "driver": None},
        "steps": {"reached": 12, "planned": 12, "adapter": 8},
        "loss": {"first": 2.0, "last": 1.0, "eval_first": 1.9, "eval_last": 1.1, "eval_adapter": 1.0},
        "evaluation": {
            "source": "file",
            "sha256": "e",
            "sequence_len": 64,
            "base_model": "m",
            "eval_loss": 1.0,
        },
        "starts": 2,
        "started_at": 1000.0,
        "finished_at": 1060.26,
        "duration_s": 60.3,
        "cost": {"usd": 1.5, "usd_per_hour": 0.5, "source": "RunPod's bill", "pods": ["p"]},
        "wandb": {"mode": "offline"},
        "git": {"commit": "0123456789", "dirty": True},
    }
    assert made == expected
    assert json.dumps(made) == json.dumps(expected)  # in this order too, as people read it
    bare = observed()
    bare["progress"] |= {"wandb": None, "data": None}
    for gone in ("first_started_at", "finished_at"):
        partial = {**bare, "status": {key: value for key, value in bare["status"].items() if key != gone}}
        made = store.make_manifest(run, partial, proof, **known).as_dict()
        assert (made["duration_s"], made["wandb"], made["data"]) == (None, {}, None)


def test_hardware_of_ones_own_has_no_pods():
    own = {"usd": 0.0, "usd_per_hour": 0.0, "source": "own hardware"}
    assert Cost.from_dict(own).as_dict() == own


# --- what was delivered


def test_every_delivered_adapter_once(tmp_path):
    for name in ("witness/witness-1", "mayor/mayor-1", "mayor/mayor-2"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "manifest.json").write_text("{}")
    (tmp_path / "witness/latest").symlink_to("witness-1")
    (tmp_path / "witness/half").mkdir()
    assert sorted(path.name for path in store.delivered_folders(tmp_path)) == ["mayor-1", "mayor-2", "witness-1"]


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    written = manifest(
        agent="witness", started_at=1.5, finished_at=2, starts=1, loss={"first": "nan", "last": 1}, cost={"usd": 1},
        datasets=[{"path": "d", "use": "val", "sha256": "s", "examples": 3}], data=COUNTS, host={"name": "gpu-1"},
        files=[{"path": "train.log", "sha256": "s", "bytes": 3}], evaluation={"sha256": "e"}, wandb={"url": "u"},
    )  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(written.as_dict()))
    assert store.read_manifest(tmp_path) == written
    assert (written.loss.first, written.loss.last, written.finished_at, written.host.name) == ("nan", 1, 2, "gpu-1")


@pytest.mark.parametrize("content", [None, "", "{cut", "[]", "{}", "7"])
def test_where_there_is_no_manifest(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    assert store.read_manifest(tmp_path) is None


ODD = [None, 7, -1.5, "text", [], ["list"], [{"of": 1}], {}, {"of": "another form"}, True, 10**400, math.nan, math.inf]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_a_damaged_manifest_is_read_as_far_as_it_goes(tmp_path, odd):
    whole = manifest(starts=3, finished_at=9.0).as_dict()
    for key in [field.name for field in dataclasses.fields(Manifest)]:
        (tmp_path / "manifest.json").write_text(json.dumps({**whole, key: odd, "other": odd}))
        found = store.read_manifest(tmp_path)
        assert found is not None
        rest = {field.name: getattr(found, field.name) for field in dataclasses.fields(found) if field.name != key}
        assert rest == {name: getattr(manifest(starts=3, finished_at=9.0), name) for name in rest}
        assert json.loads(json.dumps(found.as_dict()))


@pytest.mark.parametrize(
    ("key", "value", "unknown"),
    [
        ("run_id", 7, None), ("rehearsal", "no", None), ("rehearsal", 0, None), ("starts", True, None),
        ("starts", 2.5, None), ("started_at", "x", None), ("started_at", True, None), ("duration_s", math.nan, None),
        ("recipe", [], {}), ("datasets", 7, ()), ("datasets", [7], (Dataset(),)), ("files", {}, None),
        ("data", None, None), ("steps", [1], Steps()), ("steps", {"reached": "12", "planned": 9}, Steps(None, 9)),
        ("loss", {"last": "nan", "first": [1]}, Losses(last="nan")), ("cost", {"usd": "1"}, Cost()),
        ("cost", {"usd": 1, "pods": ["p", 7]}, Cost(usd=1, pods=("p",))), ("cost", {"usd": 10**400}, Cost()),
        ("evaluation", {"sha256": "s", "eval_loss": "low"}, Evaluation(sha256="s")),
    ],
)  # fmt: skip
def test_a_value_of_a_wrong_type_is_not_known(key, value, unknown):
    assert getattr(Manifest.from_dict({key: value}), key) == unknown


def test_a_manifest_that_does_not_say_is_a_rehearsals():
    assert Manifest().is_rehearsal is True
    assert Manifest(rehearsal=True).is_rehearsal is True
    assert Manifest(rehearsal=False).is_rehearsal is False


@pytest.mark.parametrize(
    "row",
    ["text", {"path": 7, "sha256": "a"}, {"path": "train.log"}, {"sha256": "a"}, {"path": "train.log", "sha256": None}],
)
def test_a_manifest_whose_list_is_damaged(run_dir, home, row):
    final = store.deliver(run_dir, home, store.list_files(run_dir), manifest())
    written = json.loads((final / "manifest.json").read_text())
    written["files"].append(row)
    (final / "manifest.json").write_text(json.dumps(written))
    assert store.integrity_error(final) == f"{final / 'manifest.json'} is damaged"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"verdict": "verified"}', '{"verdict": "verified", "files": {}}'])
def test_a_manifest_that_says_nothing(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    assert store.integrity_error(tmp_path) == f"{tmp_path} has no manifest of a verified adapter"


def test_a_file_as_old_as_the_manifest_is_taken_by_its_size(run_dir, home):
    final = store.deliver(run_dir, home, store.list_files(run_dir), manifest())
    log = final / "train.log"
    log.write_text(log.read_text().upper())
    written = (final / "manifest.json").stat().st_mtime_ns
    os.utime(log, ns=(written, written))
    assert store.integrity_error(final) is None
    os.utime(log, ns=(written, written + 1))
    assert store.integrity_error(final) == f"{log} has changed since it was verified"


# --- deliver, closer


def test_a_delivery_keeps_the_folders_of_records(run_dir, home):
    record = run_dir / "wandb/run-1-a/run-a.wandb"
    record.parent.mkdir(parents=True)
    record.write_text("record")
    final = store.deliver(run_dir, home, store.list_files(run_dir), manifest())
    assert (final / "wandb/run-1-a/run-a.wandb").read_text() == "record"
    assert store.integrity_error(final, hashes=True) is None


def test_a_delivery_is_held_against_the_model_that_was_loaded_and_its_layers(run_dir, home):
    files = store.list_files(run_dir)
    loaded = manifest(base_model="/models/Other")
    with pytest.raises(UserError, match="does not hold up: base model is Qwen/Tiny, the recipe says /models/Other"):
        store.deliver(run_dir, home, files, loaded)
    with pytest.raises(UserError, match=r"q_proj has no LoRA matrices in layer\(s\) 2; v_proj has no LoRA matrices"):
        store.deliver(run_dir, home, files, manifest(lora={"layers": 3}))
    assert list(home.iterdir()) == []
    recipe = RECIPE | {"base_model": "Qwen/Other"}
    assert store.deliver(run_dir, home, files, manifest(recipe=recipe)).name == "witness-1"


def test_a_delivery_replaces_what_an_earlier_one_left_in_the_middle(run_dir, home):
    files = store.list_files(run_dir)
    store.deliver(run_dir, home, files, manifest())
    (home / ".witness-1.replaced/wandb").mkdir(parents=True)  # a crash between two renames
    final = store.deliver(run_dir, home, files, manifest(loss={"last": 1}))
    assert json.loads((final / "manifest.json").read_text())["loss"]["last"] == 1
    assert [path.name for path in home.iterdir()] == ["witness-1"]


def test_a_second_adapter_leaves_the_first_one_alone(run_dir, home):
    files = store.list_files(run_dir)
    store.deliver(run_dir, home, files, manifest())
    store.deliver(run_dir, home, files, manifest("witness-2"))
    assert sorted(path.name for path in home.iterdir()) == ["witness-1", "witness-2"]
    with pytest.raises(FileNotFoundError):
        store.deliver(run_dir / "nowhere", home, files, manifest("witness-3"))
    assert sorted(path.name for path in home.iterdir()) == ["witness-1", "witness-2"]


def test_values_are_counted_over_all_chunks(build, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 5)
    tensors = good_tensors()
    name = name_of(0, "q_proj", "B")
    tensors[name][0, 0] = tensors[name][-1, 0] = np.inf
    assert problems(build(tensors)) == [f"tensor {name} holds 2 values that are NaN or infinite"]


@pytest.mark.parametrize("value", [2.0, -2.0, 1e-45])
def test_a_value_of_a_single_bit_is_one(build, value):
    assert problems(build(good_tensors() | {name_of(0, "q_proj", "B"): np.full((6, 4), value, np.float32)})) == []


# --- a trainer that is not to be trusted


def listed(**changes: Any) -> list[dict[str, Any]]:
    """Return a list of an adapter's files, as a trainer answers it; ``row`` is one more."""
    row = changes.pop("row", None)
    rows = [{"path": name, "name": "x", "bytes": 3, "sha256": "a" * 64} for name in store.FILES]
    return [*rows, *([row] if row is not None else [])]


def test_the_names_in_an_adapters_folder_are_ours(run_dir):
    rows = store.checked_files(listed())
    assert {row["path"]: row["name"] for row in rows} == {path: path.rpartition("/")[2] for path in store.FILES}
    assert store.checked_files(store.list_files(run_dir)) == store.list_files(run_dir)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"path": "/home/user/.bashrc"}, r"'/home/user/\.bashrc' among the adapter's files, which is no path below"),
        ({"path": "../../../.ssh/authorized_keys"}, "which leads out of its folder"),
        ({"path": "output/../../x"}, "which leads out of its folder"),
        ({"path": "manifest.json"}, "which is none of what an adapter consists of"),
        ({"path": "output/modeling.py"}, "which is none of what an adapter consists of"),
        ({"path": "wandb/settings"}, "which is none of what an adapter consists of"),
        ({"path": None}, "None among the adapter's files, which is no path"),
        ({"path": ["train.log"]}, "which is no path"),
        ("train.log", "which is no path"),
        (7, "which is no path"),
        ({"path": "train.log"}, "'train.log' twice"),
        ({"path": "wandb/run-1-a/run-a.wandb", "bytes": 1 << 50}, "has 1125899906842624 bytes, and such a file has"),
        ({"path": "wandb/run-1-a/run-a.wandb", "bytes": -1}, "has -1 bytes"),
        ({"path": "wandb/run-1-a/run-a.wandb", "bytes": "3"}, "has '3' bytes"),
        ({"path": "wandb/run-1-a/run-a.wandb", "bytes": True}, "has True bytes"),
        ({"path": "wandb/run-1-a/run-a.wandb", "sha256": "x"}, "no SHA-256"),
        ({"path": "wandb/run-1-a/run-a.wandb", "sha256": None}, "no SHA-256"),
    ],
)
def test_a_list_that_names_anything_else_is_refused(row, words, tmp_path):
    row = {"name": "x", "bytes": 3, "sha256": "a" * 64, **row} if isinstance(row, dict) else row
    with pytest.raises(UserError, match=words):
        store.checked_files(listed(row=row))
    with pytest.raises(UserError, match=words):
        store.deliver(tmp_path, tmp_path / "home", listed(row=row), manifest())
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("rows", [None, "text", {}, [[]], 7])
def test_a_list_that_is_none_is_refused(rows):
    with pytest.raises(UserError, match="the trainer"):
        store.checked_files(rows)


def test_a_list_without_the_weights_or_with_too_many_records_is_refused():
    with pytest.raises(UserError, match=r"lacks output/adapter_model\.safetensors"):
        store.checked_files([row for row in listed() if "safetensors" not in row["path"]])
    many = [{**listed()[0], "path": f"wandb/run-{number}-a/run-a.wandb"} for number in range(1001)]
    with pytest.raises(UserError, match="files, which no adapter has"):
        store.checked_files([*listed(), *many])


@pytest.mark.parametrize("link", ["train.log", "output"])
def test_nothing_is_delivered_through_a_link(run_dir, home, tmp_path, link):
    files = store.list_files(run_dir)
    (run_dir / link).rename(tmp_path / "secret")
    (run_dir / link).symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="is a link, or lies behind one, and is not followed"):
        store.deliver(run_dir, home, files, manifest())
    assert not home.exists()


def test_a_size_other_than_was_listed_is_refused(run_dir, home):
    files = store.list_files(run_dir)
    (run_dir / "train.log").write_text("longer than it was when it was listed")
    with pytest.raises(UserError, match=r"train\.log is not what the trainer listed"):
        store.deliver(run_dir, home, files, manifest())


@pytest.mark.parametrize("length", [1 << 62, (64 << 20) + 1, 5000])
def test_a_header_that_would_fill_the_memory_is_not_read(build, length):
    path = build() / store.WEIGHTS
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    [found] = problems(path.parent)
    assert found == f"{path} cannot be read: its header would have {length:,} bytes"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_model_name_or_path": "Evil/Tiny"}, "base model is Evil/Tiny, the recipe says Qwen/Tiny"),
        ({"auto_mapping": {"parent_library": "evil"}}, "adapter_config.json has evil imported (auto_mapping)"),
        ({"auto_mapping": "evil"}, "adapter_config.json has None imported (auto_mapping)"),
        ({"megatron_config": {}}, "adapter_config.json has a megatron_config"),
        ({"auto_map": {"AutoModel": "Evil/code--m.C"}}, "its files have code loaded from Evil/code--m.C (auto_map)"),
        ({"r": "4"}, "rank is 4, the recipe says 4"),
        ({"target_modules": 7}, "target modules are [], the recipe says"),
        ({"target_modules": [{}]}, "target modules are ['{}'], the recipe says"),
        ({"base_model_name_or_path": "\x1b[2J" + "x" * 9999}, "base model is  [2Jxxx"),
    ],
)
def test_a_configuration_that_leads_elsewhere_is_a_problem(build, changes, words):
    found = problems(build(**changes))
    assert any(words in sentence for sentence in found), found
    assert all(len(sentence) < 400 and sentence.isprintable() for sentence in found)


def test_code_is_loaded_from_the_base_model_alone(build):
    folder = build(auto_mapping={"base_model_class": "Q", "parent_library": "transformers.models.qwen2.modeling_qwen2"})
    tokenizer = {"auto_map": {"AutoTokenizer": ["Qwen/Tiny--tokenization.T", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert problems(folder) == []
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": ["Evil/x--t.T", None]}))
    assert problems(folder) == ["its files have code loaded from Evil/x--t.T (auto_map), not Qwen/Tiny"]


@pytest.mark.parametrize("text", ["[" * 200_000, '{"text_config": 7}', '{"text_config": {"num_hidden_layers": "2"}}'])
def test_a_model_configuration_of_another_form_is_passed_over(build, text):
    folder = build()
    (folder / "config.json").write_text(text)
    assert store.verify(folder, RECIPE)["layers"] is None
    assert problems(folder) == []


def test_of_very_many_problems_the_first_ones_are_told(build):
    extra = {f"evil\x1b.{number}": np.ones((2, 2), np.float32) for number in range(1000)}
    found = problems(build(good_tensors() | extra))
    assert (len(found), found[-1]) == (21, "and 980 more")
    assert all(sentence.isprintable() for sentence in found)


@pytest.mark.parametrize("layers", [2**62, 10_001, -1])
def test_layers_that_no_model_has(build, layers):
    """A trainer says how many there are; what it says is not counted up to."""
    (problem,) = store.verify(build(good_tensors()), RECIPE, layers)["problems"]
    assert problem == f"its base model would have {layers} layers"


def test_a_layer_whose_number_is_no_number(build):
    tensors = good_tensors()
    name = name_of(0, "q_proj", "A")
    tensors[name.replace("layers.0", f"layers.{'9' * 5000}")] = tensors.pop(name)
    told = problems(build(tensors))
    assert told
    assert max(map(len, told)) < 500
