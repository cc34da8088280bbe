"""What proves an adapter, and how it is kept."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import pathlib
import shutil
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
from expecting import expectation
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
    """Provide a maker of an adapter's folder, with what is expected of it; keywords change adapter_config.json."""

    def builder(tensors: dict[str, np.ndarray] | None = None, write=save_file, never=(), expected=None, **changes: Any):
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        given = expectation(good_tensors(), "Qwen/Tiny") | (expected or {})
        (folder / "expected.json").write_text(json.dumps(given))
        (folder / "gradients.json").write_text(json.dumps({"never": list(never)}))
        config = {"r": 4, "target_modules": ["v_proj", "q_proj"], "base_model_name_or_path": "Qwen/Tiny", **changes}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        tensors = good_tensors() if tensors is None else tensors
        if write is save_file:
            save_file(tensors, folder / store.WEIGHTS)
        else:
            write(folder / store.WEIGHTS, tensors)
        return folder

    return builder


def verified(folder: pathlib.Path, **changes: Any) -> dict[str, Any]:
    return store.verify(folder, RECIPE | changes, folder / "expected.json")


def problems(folder: pathlib.Path, **changes: Any) -> list[str]:
    return verified(folder, **changes)["problems"]


# --- verify


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64])
def test_a_good_adapter(build, kind):
    facts = verified(build(good_tensors(kind=kind)))
    assert facts == {"problems": [], "modules": 4, "rank": 4, "parameters": 4 * (4 * 8 + 6 * 4), "untrained": 0}


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


COMMIT = "a" * 40


def test_the_commit_of_the_base_model(build):
    """A folder has none; PEFT's own null is no proof of one."""
    pinned = {"expected": {"revision": COMMIT}, "revision": COMMIT}
    assert problems(build(**pinned), model_revision=COMMIT) == []
    assert problems(build(**pinned | {"revision": None}), model_revision=COMMIT) == [
        f"revision of the base model is None, the recipe says {COMMIT}"
    ]
    assert problems(build(**pinned | {"expected": {"revision": "b" * 40}}), model_revision=COMMIT) == [
        f"expected.json is of revision '{'b' * 40}' of the base model, the recipe says {COMMIT}"
    ]
    assert problems(build(expected={"base_model": "/m/Tiny"}), base_model="/models/Tiny", model_revision=COMMIT) == []


def test_wrong_rank_in_the_config(build):
    found = problems(build(good_tensors(rank=8), r=8))
    assert found[0] == "rank is 8, the recipe says 4"
    assert f"tensor {name_of(0, 'q_proj', 'A')} has rank 8, and 4 is expected" in found


@pytest.mark.parametrize(("side", "shape"), [("A", (2, 8)), ("B", (6, 2))])
def test_wrong_rank_in_a_tensor(build, side, shape):
    name = name_of(1, "q_proj", side)
    assert problems(build(good_tensors() | {name: np.ones(shape, np.float32)})) == [
        f"tensor {name} has rank 2, and 4 is expected"
    ]


def test_other_targets_than_the_recipes(build):
    tensors = {name.replace("v_proj", "k_proj"): values for name, values in good_tensors().items()}
    assert problems(build(tensors)) == [
        "model.layers.0.self_attn.v_proj has no LoRA matrices, and the recipe trains it",
        "model.layers.1.self_attn.v_proj has no LoRA matrices, and the recipe trains it",
        "model.layers.0.self_attn.k_proj has LoRA matrices that the recipe does not train",
        "model.layers.1.self_attn.k_proj has LoRA matrices that the recipe does not train",
    ]


def test_a_pair_that_is_missing_or_of_another_layer(build):
    tensors = {name: values for name, values in good_tensors().items() if "layers.1.self_attn.v_proj" not in name}
    missing = "model.layers.1.self_attn.v_proj has no LoRA matrices, and the recipe trains it"
    assert problems(build(tensors)) == [missing]
    moved = {name_of(11, "v_proj", side): good_tensors()[name_of(1, "v_proj", side)] for side in "AB"}
    extra = "model.layers.11.self_attn.v_proj has LoRA matrices that the recipe does not train"
    assert problems(build(tensors | moved)) == [missing, extra]


@pytest.mark.parametrize("side", ["A", "B"])
def test_half_a_pair(build, side):
    tensors = good_tensors()
    del tensors[name_of(0, "q_proj", side)]
    assert problems(build(tensors)) == [f"model.layers.0.self_attn.q_proj lacks its {side} matrix"]


def test_a_pair_of_a_vision_tower(build):
    name = "base_model.model.model.visual.blocks.0.attn.qkv.lora_{}.weight"
    extra = {name.format(side): np.ones((4, 4), np.float32) for side in "AB"}
    assert problems(build(good_tensors() | extra)) == [
        "model.visual.blocks.0.attn.qkv has LoRA matrices that the recipe does not train"
    ]


def test_what_no_lora_is(build):
    extra = {"base_model.model.lm_head.weight": np.ones((2, 2), np.float32)}
    assert problems(build(good_tensors() | extra)) == ["tensor lm_head.weight is one that the recipe does not train"]


@pytest.mark.parametrize("shape", [(6, 10), (6, 4, 4), (24,), (10, 4)])
def test_another_shape(build, shape):
    name = name_of(1, "v_proj", "B")
    said = "rank 10, and 4" if shape == (6, 10) else f"shape {list(shape)}, and [6, 4]"
    facts = verified(build(good_tensors() | {name: np.ones(shape, np.float32)}))
    assert facts["problems"] == [f"tensor {name} has {said} is expected"]
    assert facts["parameters"] == 4 * (4 * 8 + 6 * 4) - 24 + math.prod(shape)


def test_an_adapter_of_other_kinds(build):
    """DoRA, ranks of their own, whole modules, embeddings, and experts that lie in one parameter."""
    tensors = good_tensors() | {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector": np.ones(6, np.float32),
        "base_model.model.lm_head.weight": np.zeros((9, 8), np.float32),
        "base_model.model.model.embed_tokens.lora_embedding_A": np.ones((2, 9), np.float32),
        "base_model.model.model.embed_tokens.lora_embedding_B": np.ones((8, 2), np.float32),
        "base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight": np.ones((16, 8), np.float32),
        "base_model.model.model.layers.0.mlp.experts.base_layer.lora_B.weight": np.ones((6, 16), np.float32),
    }
    folder = build(tensors, expected=expectation(tensors, "Qwen/Tiny"))
    assert verified(folder, lora_rank_pattern={"embed_tokens": 2}) == {
        "problems": [], "modules": 6, "rank": 4, "parameters": 4 * 56 + 6 + 72 + 18 + 16 + 128 + 96, "untrained": 0,
    }  # fmt: skip
    assert problems(folder) == [
        "expected.json gives base_model.model.model.embed_tokens.lora_embedding_A rank 2, the recipe says 4"
    ]
    del tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"]
    del tensors["base_model.model.lm_head.weight"]
    save_file(tensors, folder / store.WEIGHTS)
    assert problems(folder, lora_rank_pattern={"embed_tokens": 2}) == [
        "tensor lm_head.weight is missing, and the recipe trains it",
        "model.layers.0.self_attn.q_proj lacks its magnitude_vector matrix",
    ]
    name = "base_model.model.model.embed_tokens.lora_embedding_A"
    folder = build(tensors | {name: np.zeros((2, 9), np.float32)}, expected=expectation(tensors, "Qwen/Tiny"))
    assert problems(folder, lora_rank_pattern={"embed_tokens": 2}) == [
        f"tensor {name} is all zero: it was never trained"
    ]


# --- what a trainer says is expected


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "{", "[" * 200_000, '{"schema": 2}',
        '{"schema": 1, "base_model": "Qwen/Tiny", "revision": null}',
        *(
            json.dumps(expectation(good_tensors(), "Qwen/Tiny") | change)
            for change in (
                {"schema": "1"}, {"base_model": 7}, {"revision": 7}, {"tensors": {}}, {"tensors": []}, {"towers": {}},
                {"towers": [7]}, {"tensors": {name_of(0, "q_proj", "A"): [True, 8]}}, {"tensors": {"a": [2, 2]}},
                {"tensors": {name_of(0, "q_proj", "A"): [4.0, 8]}}, {"tensors": {name_of(0, "q_proj", "A"): [4, -8]}},
                {"tensors": {name_of(0, "q_proj", "A"): 8}}, {"tensors": {name_of(0, "q_proj", "A"): [10**9] * 2}},
                {"tensors": {name_of(0, "q_proj", "A"): [4, 8]}}, {"tensors": {name_of(0, "q_proj", "B"): [6, 4]}},
                {"tensors": {name_of(0, "q_proj", "A"): []}}, {"tensors": {name_of(0, "q_proj", "A"): [1] * 6}},
                {"tensors": {f"{name_of(0, 'q_proj', 'A')}{'x' * 500}": [4, 8]}},
                {"tensors": {f"{name_of(0, 'q_proj', 'A')}\x1b[2J": [4, 8]}},
            )
        ),
    ],
)  # fmt: skip
def test_an_expectation_of_another_form(build, text):
    folder = build()
    (folder / "expected.json").write_text(text)
    assert [said.partition(" is ")[0] for said in problems(folder)] == [str(folder / "expected.json")]
    (folder / "expected.json").unlink()
    assert problems(folder) == [
        f"{folder / 'expected.json'} is missing, or is no list of the tensors that the run makes; "
        "see what train.log says"
    ]


def test_an_expectation_of_more_tensors_than_a_model_has(build):
    many = {f"base_model.model.a.{number}.lora_A.weight": [4, 8] for number in range(200_001)}
    [said] = problems(build(expected={"tensors": many}))
    assert "is no list of the tensors" in said


def test_an_expectation_is_held_to_the_recipe(build):
    """What a trainer expects is its own word: an adapter of half the rank would be as expected."""
    halved = good_tensors(rank=2)
    assert problems(build(halved, expected=expectation(halved, "Qwen/Tiny"))) == [
        f"expected.json gives {name_of(0, 'q_proj', 'A')} rank 2, the recipe says 4"
    ]
    assert problems(build(expected={"base_model": "Qwen/Other"})) == [
        "expected.json is of base model 'Qwen/Other', the recipe says Qwen/Tiny"
    ]


# --- values


def test_what_no_gradient_reached_may_be_zero(build):
    name = name_of(1, "v_proj", "B")
    tensors = good_tensors() | {name: np.zeros((6, 4), np.float32)}
    facts = verified(build(tensors, never=[name, name_of(1, "v_proj", "A")]))
    assert (facts["problems"], facts["untrained"]) == ([], 1)
    assert problems(build(tensors, never=[name_of(0, "v_proj", "B")])) == [
        f"tensor {name} is all zero: it was never trained"
    ]


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"never": 7}', '{"never": [7, null, {}]}', "[" * 200_000])
def test_a_note_of_gradients_of_another_form_excuses_nothing(build, note):
    name = name_of(1, "v_proj", "B")
    folder = build(good_tensors() | {name: np.zeros((6, 4), np.float32)})
    (folder / "gradients.json").write_text(note)
    assert problems(folder) == [f"tensor {name} is all zero: it was never trained"]


def test_that_half_of_a_model_got_no_gradient_is_no_excuse(build):
    """But a tower that the recipe asks for may do without: where the data have no images none comes."""
    names = [name_of(layer, "v_proj", "B") for layer in (0, 1)]
    tensors = good_tensors() | {name: np.zeros((6, 4), np.float32) for name in names}
    assert problems(build(tensors, never=names)) == [
        "2 of 4 B matrices are all zero, as no gradient reached them: the training taught the model nothing there"
    ]
    towers = [f"model.layers.{layer}.self_attn.v_proj" for layer in (0, 1)]
    assert problems(build(tensors, never=names, expected={"towers": towers})) == []


def test_that_nothing_was_trained_is_excused_by_nothing(build):
    """Neither where all is said to be a tower, nor where all is said to have got no gradient."""
    modules = [f"model.layers.{layer}.self_attn.{module}" for layer in (0, 1) for module in ("q_proj", "v_proj")]
    names = [f"base_model.model.{module}.lora_B.weight" for module in modules]
    tensors = good_tensors() | {name: np.zeros((6, 4), np.float32) for name in names}
    said = "4 of 4 B matrices are all zero, as no gradient reached them: the training taught the model nothing there"
    for towers in (modules, modules[:1], []):
        [found] = problems(build(tensors, never=list(good_tensors()), expected={"towers": towers}))
        assert found == (said if len(towers) != 1 else said.replace("4 of 4", "3 of 3"))


def test_what_begins_at_random_is_never_zero(build):
    name = name_of(1, "v_proj", "A")
    tensors = good_tensors() | {name: np.zeros((4, 8), np.float32)}
    assert problems(build(tensors, never=[name])) == [f"tensor {name} is all zero, and began at random"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_alpha": 1}, "lora_alpha of adapter_config.json is 1, and the recipe makes it 8"),
        ({"lora_alpha": None}, "lora_alpha of adapter_config.json is None, and the recipe makes it 8"),
        ({"use_rslora": True}, "use_rslora of adapter_config.json is True, and the recipe makes it False"),
        ({"use_dora": True}, "use_dora of adapter_config.json is True, and the recipe makes it False"),
    ],
)
def test_how_much_an_adapter_adds_is_the_recipes(build, changes, said):
    assert problems(build(lora_alpha=8), lora_alpha=8) == []
    assert problems(build(**{"lora_alpha": 8, **changes}), lora_alpha=8) == [said]
    scaled = {"use_rslora": True, "use_dora": True}
    assert problems(build(lora_alpha=8, **scaled), lora_alpha=8, peft_use_rslora=True, peft_use_dora=True) == []


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
    (source / "output/expected.json").rename(source / "expected.json")
    for name, needed in store.FILES.items():
        if needed and not (source / name).exists():
            (source / name).write_text(f"this is {name}")
    return source


@pytest.fixture
def home(tmp_path):
    return tmp_path / "adapters" / "witness"


def manifest(run_id: str = "witness-1", **changes: Any) -> Manifest:
    known = {"recipe": RECIPE, "base_model": RECIPE["base_model"]}
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
    with pytest.raises(UserError, match=r"witness-1 does not hold up: model\.layers\.1\.self_attn\.q_proj has no LoRA"):
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


def test_an_adapter_from_before_there_was_an_expectation_is_whole(run_dir, home):
    final = store.deliver(run_dir, home, store.list_files(run_dir), manifest())
    written = json.loads((final / "manifest.json").read_text())
    for name in ("expected.json", "gradients.json"):
        (final / name).unlink()
        written["files"] = [file for file in written["files"] if file["path"] != name]
    (final / "manifest.json").write_text(json.dumps(written | {"lora": {"pairs": 4, "rank": 4, "layers": 2}}))
    assert store.integrity_error(final, hashes=True) is None


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


def test_what_is_known_of_an_adapter_that_cannot_be_read(build):
    folder = build()
    (folder / store.WEIGHTS).write_bytes(b"\x01")
    facts = verified(folder)
    assert len(facts.pop("problems")) == 1
    assert facts == {"modules": 0, "rank": 4, "parameters": 0, "untrained": 0}
    (folder / "adapter_config.json").unlink()
    facts = verified(folder)
    assert facts["rank"] is None
    assert len(facts["problems"]) == 1


def test_everything_that_is_wrong_is_told(build):
    tensors = good_tensors(layers=1) | {name_of(0, "q_proj", "B"): np.zeros((6, 4), np.float32)}
    found = problems(build(tensors, r=8, base_model_name_or_path="Qwen/Other"))
    assert found == [
        "rank is 8, the recipe says 4",
        "base model is Qwen/Other, the recipe says Qwen/Tiny",
        "model.layers.1.self_attn.q_proj has no LoRA matrices, and the recipe trains it",
        "model.layers.1.self_attn.v_proj has no LoRA matrices, and the recipe trains it",
        f"tensor {name_of(0, 'q_proj', 'B')} is all zero: it was never trained",
    ]


def test_the_same_name_of_another_owner_in_a_folder_is_the_same_model(build):
    """A folder keeps the model's name alone."""
    assert problems(build(), base_model="/models/Tiny") == []


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
    path.write_text(json.dumps({"chat_template": "{{ y }}\ud800"}))
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
    status = {"exit_code": 0, "starts": 2, "first_started_at": 1000.0, "finished_at": 400.0, "seconds": 60.26}
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
    lora = {"modules": 4, "rank": 4, "parameters": 224, "untrained": 0}
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
        "finished_at": 400.0,
        "duration_s": 60.26,  # whatever the time of day was set to meanwhile
        "cost": {"usd": 1.5, "usd_per_hour": 0.5, "source": "RunPod's bill", "pods": ["p"]},
        "wandb": {"mode": "offline"},
        "git": {"commit": "0123456789", "dirty": True},
    }
    assert made == expected
    assert json.dumps(made) == json.dumps(expected)  # in this order too, as people read it
    bare = observed()
    bare["progress"] |= {"wandb": None, "data": None}
    del bare["status"]["seconds"]
    made = store.make_manifest(run, bare, proof, **known).as_dict()
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
    [
        "text", {"path": 7, "sha256": "a"}, {"path": "train.log"}, {"sha256": "a"},
        {"path": "train.log", "sha256": None}, {"path": "a\0b", "sha256": "a"}, {"path": "\ud800", "sha256": "a"},
        {"path": "../witness-2/train.log", "sha256": "a"},
    ],
)  # fmt: skip
def test_a_manifest_whose_list_is_damaged(run_dir, home, row):
    final = store.deliver(run_dir, home, store.list_files(run_dir), manifest())
    written = json.loads((final / "manifest.json").read_text())
    written["files"].append(row)
    (final / "manifest.json").write_text(json.dumps(written))
    assert store.integrity_error(final) == f"{final / 'manifest.json'} is damaged"


def test_a_folder_in_the_place_of_a_file(run_dir, home):
    final = store.deliver(run_dir, home, store.list_files(run_dir), manifest())
    (final / "train.log").unlink()
    (final / "train.log").mkdir()
    assert store.integrity_error(final, hashes=True) == f"{final / 'train.log'} is no file"


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


def test_a_delivery_is_held_against_the_model_that_was_loaded(run_dir, home):
    files = store.list_files(run_dir)
    loaded = manifest(base_model="/models/Other")
    with pytest.raises(UserError, match="does not hold up: base model is Qwen/Tiny, the recipe says /models/Other"):
        store.deliver(run_dir, home, files, loaded)
    assert list(home.iterdir()) == []
    recipe = RECIPE | {"base_model": "Qwen/Other"}
    assert store.deliver(run_dir, home, files, manifest(recipe=recipe)).name == "witness-1"


def test_a_delivery_replaces_what_an_earlier_one_left_in_the_middle(run_dir, home):
    files = store.list_files(run_dir)
    store.deliver(run_dir, home, files, manifest())
    (home / "witness-1/manifest.json").unlink()  # a crash while it made way
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
        ({"revision": {"a": "\x1b[2J"}}, "revision of the base model is {'a': '\\x1b[2J'}, the recipe says None"),
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


def test_of_very_many_problems_the_first_ones_are_told(build):
    extra = {f"evil\x1b.{number}": np.ones((2, 2), np.float32) for number in range(1000)}
    found = problems(build(good_tensors() | extra))
    assert (len(found), found[-1]) == (21, "and 980 more")
    assert all(sentence.isprintable() for sentence in found)


def test_a_layer_whose_number_is_no_number(build):
    tensors = good_tensors()
    name = name_of(0, "q_proj", "A")
    tensors[name.replace("layers.0", f"layers.{'9' * 5000}")] = tensors.pop(name)
    told = problems(build(tensors))
    assert told
    assert max(map(len, told)) < 500


def test_what_an_earlier_fetch_left_with_another_content_is_fetched_anew(run_dir, tmp_path):
    """A power cut leaves NULs of the right size and time, which rsync would keep for ever."""
    files = store.checked_files(store.list_files(run_dir))
    incoming = tmp_path / "incoming"
    shutil.copytree(run_dir, incoming)
    nul, short = "output/adapter_model.safetensors", "train.log"
    (incoming / nul).write_bytes(bytes((run_dir / nul).stat().st_size))
    (incoming / short).write_bytes((run_dir / short).read_bytes()[:-1])  # rsync goes on with it
    assert store.drop_damaged(incoming, files) == [nul]
    assert not (incoming / nul).exists()
    assert (incoming / short).exists()
    assert store.drop_damaged(incoming, files) == []
    assert store.drop_damaged(tmp_path / "none", files) == []
