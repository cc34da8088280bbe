"""What proves an adapter, and how it is kept."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
from typing import Any

import numpy as np
import pytest
from ansible.module_utils.lora_forge import adapter
from ansible.module_utils.lora_forge.errors import ForgeError
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
    """A BF16 file by hand: the upper halves of float32."""
    header, data = {}, b""
    for name, values in tensors.items():
        raw = (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.fixture
def build(tmp_path):
    """Makes an adapter's folder; keywords change adapter_config.json."""

    def builder(tensors: dict[str, np.ndarray] | None = None, write=save_file, layers: int = 2, **changes: Any):
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        config = {"r": 4, "target_modules": ["v_proj", "q_proj"], "base_model_name_or_path": "Qwen/Tiny", **changes}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "config.json").write_text(json.dumps({"num_hidden_layers": layers}))
        tensors = good_tensors() if tensors is None else tensors
        if write is save_file:
            save_file(tensors, folder / adapter.WEIGHTS)
        else:
            write(folder / adapter.WEIGHTS, tensors)
        return folder

    return builder


def problems(folder: pathlib.Path) -> list[str]:
    return adapter.verify(folder, RECIPE)["problems"]


# --- verify


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64])
def test_a_good_adapter(build, kind):
    facts = adapter.verify(build(good_tensors(kind=kind)), RECIPE)
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
    assert int.from_bytes((folder / adapter.WEIGHTS).read_bytes()[:8], "little") % 2 == 1
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
    assert adapter.verify(folder, RECIPE)["layers"] == 3
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
    monkeypatch.setattr(adapter, "CHUNK", 5)
    tensors = good_tensors()
    tensors[name_of(0, "q_proj", "B")][-1, -1] = np.nan
    assert problems(build(tensors)) == [f"tensor {name_of(0, 'q_proj', 'B')} holds 1 values that are NaN or infinite"]


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_file(build, keep):
    path = build() / adapter.WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    [found] = problems(path.parent)
    assert found.startswith(f"{path} cannot be read: ")


def test_files_that_are_missing(build):
    folder = build()
    (folder / adapter.WEIGHTS).unlink()
    assert problems(folder)[0].startswith(f"{folder / adapter.WEIGHTS} cannot be read: ")
    (folder / "adapter_config.json").write_text("{")
    assert problems(folder) == [f"{folder / 'adapter_config.json'} is missing or not JSON"]


# --- listing, deliver, missing


@pytest.fixture
def run_dir(build, tmp_path):
    """A finished run on its trainer."""
    source = tmp_path / "run"
    source.mkdir()
    build().rename(source / "output")
    for name, needed in adapter.FILES.items():
        if needed and not (source / name).exists():
            (source / name).write_text(f"this is {name}")
    return source


@pytest.fixture
def home(tmp_path):
    return tmp_path / "adapters" / "witness"


def manifest(run_id: str = "witness-1", **changes: Any) -> dict[str, Any]:
    known = {"recipe": RECIPE, "base_model": RECIPE["base_model"], "lora": {"layers": 2}}
    return {"run_id": run_id, "verdict": "verified", "rehearsal": False, **known, **changes}


def test_listing_names_what_is_there(run_dir):
    rows = {row["path"]: row for row in adapter.listing(run_dir)}
    assert set(rows) == {name for name, needed in adapter.FILES.items() if needed}
    assert rows["train.log"] == {
        "path": "train.log",
        "name": "train.log",
        "bytes": 17,
        "sha256": adapter.sha256_text("this is train.log"),
    }


def test_listing_names_the_file_that_is_missing(run_dir):
    (run_dir / "output/tokenizer.json").unlink()
    with pytest.raises(ForgeError, match=r"output/tokenizer\.json is missing, so the adapter is not whole"):
        adapter.listing(run_dir)


def test_deliver_brings_it_whole(run_dir, home):
    files = adapter.listing(run_dir)
    final = adapter.deliver(run_dir, home, files, manifest())
    assert final == home / "witness-1"
    assert {path.name for path in final.iterdir()} == {row["name"] for row in files} | {"manifest.json"}
    written = json.loads((final / "manifest.json").read_text())
    assert written["files"] == [{"path": r["name"], "sha256": r["sha256"], "bytes": r["bytes"]} for r in files]
    assert [path.name for path in home.iterdir()] == ["witness-1"]
    assert adapter.missing(final) is None
    assert adapter.missing(final, hashes=True) is None


def test_a_hash_mismatch_leaves_nothing_half_made(run_dir, home):
    files = adapter.listing(run_dir)
    (run_dir / "train.log").write_text("another text here")
    with pytest.raises(ForgeError, match=r"train\.log is not what the trainer listed; run the same command again"):
        adapter.deliver(run_dir, home, files, manifest())
    assert list(home.iterdir()) == []


def test_an_adapter_that_does_not_hold_up_is_not_delivered(run_dir, home):
    save_file(good_tensors(layers=1), run_dir / "output" / adapter.WEIGHTS)
    with pytest.raises(
        ForgeError, match=r"witness-1 does not hold up: q_proj has no LoRA matrices in layer\(s\) 1; v_"
    ):
        adapter.deliver(run_dir, home, adapter.listing(run_dir), manifest())
    assert list(home.iterdir()) == []


def test_deliver_replaces_a_damaged_one_and_leftovers(run_dir, home):
    final = adapter.deliver(run_dir, home, adapter.listing(run_dir), manifest())
    (final / adapter.WEIGHTS).write_bytes(b"cut")
    (final / "stray").write_text("x")
    (home / ".witness-1.partial").mkdir()
    (home / ".witness-1.partial" / "old").write_text("x")
    adapter.deliver(run_dir, home, adapter.listing(run_dir), manifest())
    assert adapter.missing(final, hashes=True) is None
    assert not (final / "stray").exists()
    assert not (final / "old").exists()
    assert [path.name for path in home.iterdir()] == ["witness-1"]


def test_missing(run_dir, home):
    assert adapter.missing(home / "witness-1") == "never trained"
    final = adapter.deliver(run_dir, home, adapter.listing(run_dir), manifest())
    log = final / "train.log"
    whole = log.read_text()
    log.write_text("short")
    assert adapter.missing(final) == f"{log} has 5 bytes instead of 17"
    log.unlink()
    assert adapter.missing(final) == f"{log} is missing"
    log.write_text(whole)
    assert adapter.missing(final) is None
    (final / "manifest.json").write_text(json.dumps({"verdict": "failed", "files": []}))
    assert adapter.missing(final) == f"{final} has no manifest of a verified adapter"


@pytest.mark.parametrize(("newer", "hashes", "seen"), [(True, False, True), (False, False, False), (False, True, True)])
def test_changed_content_of_the_same_size(run_dir, home, newer, hashes, seen):
    final = adapter.deliver(run_dir, home, adapter.listing(run_dir), manifest())
    log = final / "train.log"
    log.write_text(log.read_text().upper())
    written = (final / "manifest.json").stat().st_mtime + (9 if newer else -9)
    os.utime(log, (written, written))
    assert adapter.missing(final, hashes) == (f"{log} has changed since it was verified" if seen else None)


def test_a_copy_with_new_times_is_still_whole(run_dir, home):
    final = adapter.deliver(run_dir, home, adapter.listing(run_dir), manifest())
    os.utime(final / "train.log", (2e9, 2e9))
    assert adapter.missing(final) is None
