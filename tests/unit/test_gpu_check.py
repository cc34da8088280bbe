"""gpu_check.py run on a trainer, and what its end means: the GPU's fault, or the image's."""

from __future__ import annotations

import json
import pathlib
import sys
import time

import pytest
from ansible.module_utils.lora_forge.trainer import gpu_check

REPORT = {"ok": True, "device": "NVIDIA A100", "bf16_tflops": 243.1, "seconds": 14.2, "error": None}
FACTS = {"device": "NVIDIA A100", "bf16_tflops": 243.1, "seconds": 14.2}


@pytest.mark.parametrize(
    ("status", "printed", "errors", "problem", "bad_gpu"),
    [
        (0, json.dumps(REPORT), "a warning of torch's", "", False),
        (1, json.dumps({**REPORT, "error": "it computes wrongly"}), "a warning", "it computes wrongly", True),
        (86, json.dumps({**REPORT, "error": "no C compiler"}), "", "no C compiler", False),
        (139, "", "Segmentation fault\n", "Segmentation fault", True),
        (-9, "", "", "gpu_check.py ended with -9 and said nothing", True),
        (2, "no such option", "", "no such option", True),
        (0, "[]", "", "[]", True),
    ],
)
def test_what_the_end_of_the_program_means(status, printed, errors, problem, bad_gpu):
    facts, said, bad = gpu_check.read_report(status, printed, errors)
    assert (said, bad) == (problem, bad_gpu)
    assert facts == (FACTS if printed.startswith("{") else dict.fromkeys(FACTS))


@pytest.fixture
def program(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "gpu_check.py"


def test_it_is_run_with_the_lane_and_the_options(program):
    program.write_text(f"import json, sys; print(json.dumps({{**{REPORT}, 'device': ' '.join(sys.argv[1:])}}))")
    facts, problem, bad = gpu_check.compute(sys.executable, program, ["GPU-1", "GPU-2"], ["--device", "cpu"], 60)
    assert (facts["device"], problem, bad) == ("--lane GPU-1,GPU-2 --device cpu", "", False)


def test_one_that_hangs_with_all_it_started_is_ended_and_said(program):
    program.write_text("import subprocess; subprocess.run(['sleep', '600'])")
    began = time.monotonic()
    _, problem, bad = gpu_check.compute(sys.executable, program, [], [], 0.5)
    assert problem.startswith("the GPU does not answer: nothing was computed within 0.5 s, though nvidia-smi is fine.")
    assert (bad, time.monotonic() - began < 60) == (True, True)


def test_without_the_environments_python_nothing_computes(program):
    _, problem, bad = gpu_check.compute("/nowhere/python", program, [], [], 60)
    assert (problem, bad) == ("/nowhere/python cannot be started: No such file or directory", True)
