"""The GPU check computes what it says, in the real environment; on a CPU, where 4-bit layers work too."""

from __future__ import annotations

import json
import pathlib
import subprocess

from ansible.module_utils.lora_forge import gpu

from .conftest import CONVERGE, ROOT

FOLDER = ROOT / "roles/trainer/files"


def run(environment: pathlib.Path, *arguments: str) -> tuple[int, dict[str, object], str]:
    done = subprocess.run([str(environment), *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=CONVERGE)
    assert done.stdout.count("\n") == 1, done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def test_a_cpu_passes(environment: pathlib.Path) -> None:
    code, answer, _ = run(environment, "gpu_check.py", "--device", "cpu")
    assert (code, answer["ok"], answer["device"], answer["error"]) == (0, True, "cpu", None)
    assert answer["bf16_tflops"] > 0
    assert answer["seconds"] > 0


def test_wrong_results_are_noticed(environment: pathlib.Path) -> None:
    code = "import gpu_check as g; g.{} = 0.0001; raise SystemExit(g.main(['--device', 'cpu']))"
    for tolerance, words in (
        ("BF16_TOLERANCE", "a product of bf16 matrices is off by 0.002 of its size; 0.0001 is tolerated."),
        ("NF4_TOLERANCE", "the output of a 4-bit layer is off by 0."),
    ):
        ended, answer, errors = run(environment, "-c", code.format(tolerance))
        assert (ended, answer["ok"]) == (1, False)
        assert answer["error"].startswith(words)
        assert answer["error"].endswith("This GPU computes wrongly: replace it")
        assert "Traceback" not in errors


def test_no_cuda(environment: pathlib.Path) -> None:
    code, answer, errors = run(environment, "gpu_check.py", "--lane", "GPU-1")
    assert (code, answer["ok"], answer["device"]) == (1, False, None)
    built = environment.parents[1].resolve().name  # that of the CUDA lock where no build for CPUs can be had
    assert answer["error"].startswith(
        "the torch of this environment is built for CPUs. Set trainer_lock: trainer-cuda for this host"
        if built.startswith("trainer-cpu-")
        else "there is no GPU here: no NVIDIA driver was found."
    )
    assert "Traceback" not in errors


def test_the_gpu_gate_knows_every_attention_of_axolotl(environment: pathlib.Path) -> None:
    code = "import json; from axolotl.utils.schemas import enums; print(json.dumps(sorted(enums.CANONICAL_ATTN_IMPLS)))"
    done = subprocess.run([str(environment), "-c", code], capture_output=True, text=True, timeout=CONVERGE, check=True)
    assert set(json.loads(done.stdout.splitlines()[-1])) <= gpu.ATTENTION.keys()
