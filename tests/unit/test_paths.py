"""Which paths of another host are taken, and how large what lies there may be."""

from __future__ import annotations

import os
import pathlib

import pytest
from ansible.module_utils.lora_forge import paths

WRONG = [
    ("", "is no path"), (None, "is no path"), (7, "is no path"), (["a"], "is no path"), ({"a": 1}, "is no path"),
    ("/etc/passwd", "is no path below a folder"), ("~/.bashrc", "is no path below a folder"),
    ("..", "leads out of its folder"), ("../x", "leads out of its folder"), ("a/../../x", "leads out of its folder"),
    ("output/..", "leads out of its folder"), ("a//b", "has an empty part"), ("a/", "has an empty part"),
    ("./a", "has an empty part"), ("a/./b", "has an empty part"), (".", "has an empty part"),
    ("a\nb", "has characters that no such path has"), ("a\0b", "has characters that no such path has"),
    ("a\x1b[2Jb", "has characters that no such path has"), ("a\\..\\b", "has characters that no such path has"),
    ("\u202egpj.exe", "has characters that no such path has"), ("\udcff", "has characters that no such path has"),
    ("a" * 256, "is longer than 255 characters"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "why"), WRONG)
def test_a_path_that_leads_nowhere_below_a_folder_is_refused_with_its_reason(path, why):
    assert paths.flaw(path) == why
    assert paths.adapter_limit(path) is None
    assert paths.checkpoint_limit(path) is None


@pytest.mark.parametrize("path", ["a", "output/adapter_model.safetensors", "..a/b..", "a b", "Übung", "a" * 255])
def test_any_other_path_is_one(path):
    assert paths.flaw(path) is None


@pytest.mark.parametrize(
    "path",
    [
        "sitecustomize.py", "output/sitecustomize.py", "output/checkpoint-4/optimizer.pt", "adapter_model.safetensors",
        "output/training_args.bin", "wandb/run-1-a/run-a.wandb.synced", "wandb/latest-run/run-a.wandb",
        "wandb/run-1-a/files/config.yaml", "wandb/run-1-a/../run-b.wandb", "wandb/run-1-a/run-a/b.wandb",
        "output/adapter_config.json\n", "wandb/run-1-a/run-a.wandb\n", "manifest.json", "env", "run.json",
    ],
)  # fmt: skip
def test_what_is_no_part_of_an_adapter(path):
    assert paths.adapter_limit(path) is None


def test_the_parts_of_an_adapter_have_a_size_that_they_may_have():
    for path in (*paths.ADAPTER, "wandb/offline-run-20260101_000000-witness-1/run-witness-1.wandb"):
        assert 0 < (paths.adapter_limit(path) or 0) <= 32 << 30


@pytest.mark.parametrize(
    "name",
    [
        "training_args.bin", "sitecustomize.py", "pytorch_model.bin", "adapter_model.bin", "custom_checkpoint_0.pkl",
        "optimizer.pt.py", "deep/optimizer.pt", "rng_state_0.pth.py", "rng_state_x.pth", "complete.json",
        "optimizer_0/.metadata", "global_step4/mp_rank_00_model_states.pt",
    ],
)  # fmt: skip
def test_what_nothing_is_resumed_from_on_another_host(name):
    assert paths.checkpoint_limit(name) is None


@pytest.mark.parametrize(
    "name",
    ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_7.pth", "scaler.pt"],
)
def test_what_a_training_is_resumed_from(name):
    assert paths.checkpoint_limit(name)
    assert not paths.is_sharded(name)


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp.bin", "optimizer_0/.metadata", "optimizer.bin",
        "global_step12/mp_rank_00_model_states.pt", "latest", "zero_to_fp32.py", "__0_0.distcp",
    ],
)  # fmt: skip
def test_a_checkpoint_in_parts_is_told(name):
    assert paths.is_sharded(name)


def test_what_is_said_is_quoted_in_one_short_line():
    assert paths.quoted("a\nb\x1b[2J") == "'a\\nb\\x1b[2J'"
    assert len(paths.quoted("x" * 10_000)) == 80


def test_everything_else_in_a_folder_is_a_stranger(tmp_path):
    (tmp_path / "output/deep").mkdir(parents=True)
    for name in ("output/a", "output/deep/b", "c", "extra"):
        (tmp_path / name).write_text("x")
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/under").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    wanted = ["output/a", "output/deep/b", "c", "link/passwd", "pipe", "missing/file"]
    assert paths.strangers(tmp_path, wanted) == ["extra", "folder", "link", "pipe"]
    (tmp_path / "c").unlink()
    (tmp_path / "c").symlink_to("output/a")
    assert "c" in paths.strangers(tmp_path, wanted)
    assert paths.strangers(tmp_path / "nowhere", wanted) == []


def test_a_way_through_a_link_is_told(tmp_path):
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "real/deep/file").write_text("x")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real/name").symlink_to("deep/file")
    home = pathlib.Path(tmp_path)
    assert not paths.through_link(home, "real/deep/file")
    assert not paths.through_link(home / "link", "deep/file"), "where the way begins may be a link"
    assert paths.through_link(home, "link/deep/file")
    assert paths.through_link(home, "real/name")
    assert not paths.through_link(home, "real/missing")
