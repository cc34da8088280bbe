"""What goes to a trainer is laid out first, and is what was planned; what a failed transfer means is said."""

from __future__ import annotations

import hashlib
import os
import pathlib
import subprocess

import pytest
from ansible.module_utils.lora_forge.controller import transfer
from ansible.module_utils.lora_forge.errors import UserError


def test_each_file_stands_at_its_place(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text("{}\n")
    sha256 = hashlib.sha256(b"{}\n").hexdigest()
    tree = tmp_path / "tree"
    total = transfer.build_tree(tree, [
        {"path": f"datasets/{sha256}/a.jsonl", "src": str(source), "sha256": sha256},
        {"path": "runs/w-1/axolotl.yml", "content": "seed: 42\n"},
    ])  # fmt: skip
    assert (tree / "datasets" / sha256 / "a.jsonl").read_text() == "{}\n"
    assert (tree / "runs/w-1/axolotl.yml").read_text() == "seed: 42\n"
    assert total == 12


@pytest.mark.parametrize(("text", "words"), [(None, "is gone"), ("[]", "was changed after the run was planned")])
def test_what_is_not_as_it_was_planned_is_refused(tmp_path, text, words):
    source = tmp_path / "a.jsonl"
    if text is not None:
        source.write_text(text)
    with pytest.raises(UserError, match=f"{source} {words}.*othing was started"):
        transfer.build_tree(tmp_path / "tree", [{"path": "a.jsonl", "src": str(source), "sha256": "0" * 64}])


def test_a_trainer_that_does_not_answer():
    refused = (
        "Failed to connect to the host via ssh: Warning: x\nssh: connect to host gpu-2 port 22: Connection refused"
    )
    first, second = transfer.connection_error("gpu-2", refused).splitlines()
    assert first == "gpu-2 does not answer: ssh: connect to host gpu-2 port 22: Connection refused"
    assert second.startswith("What runs there goes on. When it answers again, the same command goes on; -e move=gpu-2")
    assert transfer.connection_error("gpu-2", "").startswith("gpu-2 does not answer: no answer")
    changed = (
        "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\n  ssh-keygen -R gpu-2\nHost key verification failed."
    )
    told = transfer.connection_error("gpu-2", changed)
    assert changed in told
    assert "nothing was sent to it" in told
    assert "move" not in told


def test_new_content_is_compared_with_the_newest_file_of_its_name(tmp_path):
    def ready(*files):
        asked = [{"path": path, "sha256": "0"} for path in files] + [{"path": "supervisor.py", "src": "/s"}]
        subprocess.run(["sh", "-c", transfer.prepare_command(str(tmp_path / "it's here"), asked)], check=True)

    data = tmp_path / "it's here/datasets"
    ready("datasets/aa/crew train.jsonl")
    assert not data.exists(), "the first content has nothing to compare with"
    for name, when in (("aa", 2), ("bb", 1)):
        (data / name).mkdir(parents=True)
        (data / name / "crew train.jsonl").write_text(name)
        os.utime(data / name / "crew train.jsonl", (when, when))
    ready("datasets/bb/crew train.jsonl", "datasets/cc/crew train.jsonl", "datasets/cc/mayor.jsonl")
    assert (data / f"cc/{transfer.PARTIAL}/crew train.jsonl").read_text() == "aa"
    assert [path.name for path in (data / "cc").rglob("*") if path.is_file()] == ["crew train.jsonl"]
    assert not (data / f"bb/{transfer.PARTIAL}").exists(), "what is there is not sent"


def test_what_goes_beside_a_file_is_compared_with_it(tmp_path):
    def ready(*files):
        asked = [{"path": f"runs/w-1/incoming/{name}", "like": f"runs/w-1/{name}", "content": "1"} for name in files]
        subprocess.run(["sh", "-c", transfer.prepare_command(str(tmp_path), asked)], check=True)

    run = tmp_path / "runs/w-1"
    ready("axolotl.yml")
    assert not run.exists()
    (run / "programs").mkdir(parents=True)
    (run / "programs/it's.py").write_text("1")
    ready("axolotl.yml", "programs/it's.py", "programs")
    assert [path.name for path in (run / "incoming").rglob("*") if path.is_file()] == ["it's.py"]
    (run / "programs/it's.py").unlink()
    (run / "programs/it's.py").write_text("2")
    ready("programs/it's.py")
    assert (run / "incoming/programs/it's.py").read_text() == "1", "what has come already is not lost"
    ready(*(f"{number}-{'x' * 200}" for number in range(1000)))  # more than a shell takes is left out


def mode(path: pathlib.Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_root_is_its_users_alone_where_it_is_made_and_what_is_private_below_it_where_it_is_there(tmp_path):
    def ready(root: pathlib.Path) -> None:
        subprocess.run(["sh", "-c", transfer.prepare_command(str(root), [])], check=True)

    ready(tmp_path / "workspace/forge")
    assert (mode(tmp_path / "workspace"), mode(tmp_path / "workspace/forge")) == (0o755, 0o700)
    shared, elsewhere = tmp_path / "shared", tmp_path / "elsewhere"
    for folder in (*(shared / name for name in ("env", "runs", "datasets", "other")), elsewhere):
        folder.mkdir(parents=True)
    (shared / "models").symlink_to(elsewhere)
    ready(shared)
    names = ("", "env", "runs", "datasets", "other", "models")
    assert [mode(shared / name) for name in names] == [0o755, 0o755, 0o700, 0o700, 0o755, 0o755]


def test_what_is_copied_is_its_users_alone(tmp_path):
    tree, to = tmp_path / "tree", tmp_path / "to"
    transfer.build_tree(tree, [{"path": "datasets/aa/crew.jsonl", "content": "1"}])
    transfer.copy(tree, to)
    assert [mode(to / name) for name in ("datasets", "datasets/aa", "datasets/aa/crew.jsonl")] == [0o700, 0o700, 0o600]


def test_on_one_machine_only_what_differs_is_copied(tmp_path):
    tree, to = tmp_path / "tree", tmp_path / "to"
    transfer.build_tree(tree, [{"path": "same", "content": "1"}, {"path": "deep/new", "content": "2"}])
    to.mkdir()
    (to / "same").write_text("1")
    before = (to / "same").stat().st_mtime_ns
    assert transfer.copy(tree, to, dry=True) == ["deep/new"]
    assert not (to / "deep").exists()
    assert transfer.copy(tree, to) == ["deep/new"]
    assert (to / "deep/new").read_text() == "2"
    assert (to / "deep/new").stat().st_mode & 0o777 == 0o600
    assert (to / "same").stat().st_mtime_ns == before
    assert sorted(path.name for path in to.rglob("*")) == ["deep", "new", "same"], "a part was left"
    (to / "same").write_text("x")
    assert transfer.copy(tree, to) == ["same"]


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("bash: line 1: rsync: command not found", "rsync is needed on both ends"),
        ("rsync is not found on the controller", "rsync is needed on both ends"),
        ('rsync: write failed on "/w/a": No space left on device (28)', "The disk is full"),
        ('rsync: [receiver] mkstemp "/w/.a" failed: Permission denied (13)', "Set trainer_root to a folder"),
        ("root@gpu: Permission denied (publickey).", "Correct ansible_user or ansible_ssh_private_key_file"),
        (
            "protocol version mismatch -- is your shell clean?\n(see the rsync man page for an explanation)\n"
            "rsync error: protocol incompatibility (code 2) at compat.c(622) [sender=3.2.7]",
            "Let ~/.bashrc, ~/.profile and their like print to terminals only",
        ),
        (
            'rsync: [receiver] failed to set permissions on "/w/.a": Operation not permitted (1)',
            "Each user of a host needs a trainer_root of its own",
        ),
        ("sudo: a password is required", "Let that login use sudo without a password"),
        ("client_loop: send disconnect: Broken pipe", "The same command goes on where it was cut"),
    ],
)
def test_a_failed_transfer_says_what_to_do(said, advice):
    told = transfer.transfer_error("gpu-1", said)
    assert "gpu-1" in told
    assert said in told
    assert advice in told
