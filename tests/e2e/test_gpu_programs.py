"""The GPU benchmarks in the trainer's environment: what they rest on, and one tiny measurement by real Axolotl."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess

import pytest

from .conftest import CONVERGE, ROOT

QUIET = {"AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(environment: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(environment), *arguments],
        cwd=ROOT,
        env={**os.environ, **QUIET},
        capture_output=True,
        text=True,
        timeout=CONVERGE,
    )


@pytest.mark.soak
def test_what_they_rest_on(environment: pathlib.Path) -> None:
    """Tokens, padding and Σ s² are counted, transformers reads the model, Axolotl accepts all variants on an H100."""
    done = run(environment, "tests/e2e/gpu_programs.py")
    assert "valid: 19" in done.stdout, done.stderr[-3000:]


@pytest.mark.soak
def test_memory_is_followed_through_the_real_modules(environment: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Two layers, short rows: each way of training of one model, and the estimate of the same."""
    out, page = tmp_path / "simulated.json", tmp_path / "page.md"
    page.write_text("before\n<!-- simulated: written by benchmarks/gpu/memory_simulation.py -->\n"
                    "<!-- end of what is simulated -->\nafter\n")  # fmt: skip
    command = ("benchmarks/gpu/memory_simulation.py", "--only", "gemma-3-1b,llama-3.1-8b", "--layers", "2")
    done = run(environment, *command, "--length", "512", "--out", str(out), "--page", str(page))
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["versions"]["axolotl"]
    assert all(0.9 < row["ratio"] < 1.1 for row in found["rows"])
    live = {row["case"]: row["live"] - row["static"] for row in found["rows"]}
    assert len(live) == 5
    # Rows of 512 tokens: the logits of Llama 3 are 512 × 128,256 × 12 bytes, and nothing else is as large.
    assert 0.73 < live["llama-3.1-8b 1×512"] < 0.85
    assert live["llama-3.1-8b 1×512 fused"] < 0.5
    assert page.read_text().startswith("before\n")
    assert "| llama-3.1-8b 1×512 fused |" in page.read_text()


@pytest.mark.soak
def test_a_tiny_measurement(environment: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = ("benchmarks/gpu/speed.py", "--tiny", "--work", str(tmp_path), "--only", "mb4x2,flex", "--repeats", "1")
    command += ("--steps", "3", "--seconds", "390")
    done = run(environment, *command)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "flex (1): skipped, a CPU cannot run it" in done.stdout
    found = json.loads((tmp_path / "results/tiny/mb4x2-1.json").read_text())
    assert (found["status"], found["batch"], len(found["steps"])) == ("measured", 8, 3)
    assert found["ceiling"] > 0
    for step in found["steps"]:
        assert step["positions"] == 8 * 256
        assert 0 < step["tokens"] <= step["positions"]
        assert step["tokens"] <= step["squares"] <= 256 * step["tokens"]
        assert (step["micro_batches"], step["seconds"] > 0, 6 < step["loss"] < 9) == (2, True, True)
    resolved = found["resolved"]
    assert (resolved["micro_batch_size"], resolved["attn_implementation"]) == (4, "sdpa")
    assert "all is measured" in run(environment, *command).stdout


PREPARED = """
import pathlib, sys, time
sys.path.insert(0, "benchmarks/gpu")
import {program} as made
work = pathlib.Path({work!r})
{call}.prepare()
assert made.random_model.folder(work, True).is_dir()
held = sorted({{"torch", "transformers", "bitsandbytes", "tiny_model"}} & set(sys.modules))  # what makes a model
print("imported:", *held)
"""


def test_who_measures_has_not_begun_cuda(environment: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Its context would be memory of the GPU that its own idle check takes for somebody else's."""
    calls = {
        "proof": "made.Proof(work, 'witness', 20, True)",
        "speed": "made.Bench(work, work / 'results', 1, True, time.monotonic() + 600)",
    }
    for program, call in calls.items():
        work = tmp_path / program
        done = run(environment, "-c", PREPARED.format(program=program, work=str(work), call=call))
        assert done.stdout.splitlines()[-1:] == ["imported:"], done.stdout + done.stderr[-3000:]
