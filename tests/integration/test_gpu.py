"""What nvidia-smi says of real processes, and what becomes of one that hangs."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import rundir
from ansible.module_utils.lora_forge.trainer import gpu
from lab import ROOT, eventually

SMI = str(ROOT / "tests/fakes/nvidia-smi")


def test_a_process_of_a_run_is_known_by_its_marker(tmp_path, monkeypatch):
    run_dir = str(tmp_path / "witness-0")
    with subprocess.Popen(["sleep", "600"], env={**os.environ, rundir.MARKER: run_dir}) as trainer:
        try:
            monkeypatch.setenv("FAKE_GPU", f"busy:{trainer.pid}")
            answer = gpu.query(SMI, timeout=600)
        finally:
            trainer.kill()
    assert [(process["pid"], process["run"]) for process in answer["processes"]] == [(trainer.pid, run_dir)]
    assert run_dir in answer["runs"]


def test_one_that_hangs_is_killed_with_all_it_started(tmp_path, monkeypatch):
    program = str(shutil.copy(SMI, tmp_path))  # a path that no other process has in its command line
    monkeypatch.setenv("FAKE_GPU", "hanging")

    def left() -> list[bytes]:
        lines = []
        for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            try:
                lines.append(path.read_bytes())
            except OSError:
                continue
        return [line for line in lines if program.encode() in line]

    answer_or_hang = subprocess.Popen.communicate

    def once_it_hangs(process: subprocess.Popen[str], timeout: float) -> tuple[str, str]:
        eventually(lambda: len(left()) == 2)  # with its child
        return answer_or_hang(process, timeout=timeout)

    monkeypatch.setattr(gpu.subprocess.Popen, "communicate", once_it_hangs)
    answer = gpu.query(program, timeout=0.7)
    assert answer["error"] == (
        f"{program} hangs: no answer within 0.7 s, so the driver is stuck. Reboot the host; replace a rented one"
    )
    eventually(lambda: left() == [])  # a killed child is init's to clear away
