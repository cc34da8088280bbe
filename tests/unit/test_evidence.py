"""What a trainer gathers of a run for whoever helps."""

from __future__ import annotations

import os

from ansible.module_utils.lora_forge.trainer import evidence


def test_packages_are_told_by_name_and_version_and_what_pip_could_not_delete_is_none(tmp_path):
    for name in ("torch-2.14.0+cu130", "ruamel.yaml-0.18", "~orch-2.13.0"):
        (tmp_path / f"lib/python3.12/site-packages/{name}.dist-info").mkdir(parents=True)
    assert evidence.installed(tmp_path) == {"torch": "2.14.0+cu130", "ruamel.yaml": "0.18"}


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence.gpu, "query", lambda: {})
    for name in ("axolotl.yml", "train.log"):
        os.mkfifo(tmp_path / name)
    found = evidence.gather(tmp_path, tmp_path / "env")
    assert (found["axolotl_yml"], found["train_log"]) == ("", "")
