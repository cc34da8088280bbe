"""The GPU check computes what it says, in the real environment; on a CPU, where 4-bit layers work too."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable

import pytest
from ansible.module_utils.lora_forge.trainer import gpu_fitness

from .conftest import CONVERGE, ROOT

FOLDER = ROOT / "roles/trainer/files"


def run(environment: pathlib.Path, *arguments: str, **variables: str) -> tuple[int, dict[str, object], str]:
    done = subprocess.run(
        [str(environment), *arguments],
        cwd=FOLDER,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=CONVERGE,
    )
    assert done.stdout.count("\n") == 1, done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def test_a_cpu_passes(environment: pathlib.Path) -> None:
    code, answer, _ = run(environment, "gpu_check.py", "--device", "cpu")
    assert (code, answer["ok"], answer["device"], answer["error"]) == (0, True, "cpu", None)
    assert answer["bf16_tflops"] >= 0  # 0.0 is what a slow or busy machine rounds to
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


def compiles(environment: pathlib.Path) -> bool:
    """Tell whether this machine has what compiling C for an interpreter takes."""
    code = "import os, sysconfig; print(os.path.exists(sysconfig.get_path('include', 'posix_prefix') + '/Python.h'))"
    done = subprocess.run([str(environment), "-c", code], capture_output=True, text=True, check=True)
    return done.stdout == "True\n" and any(shutil.which(name) for name in ("gcc", "clang"))


def for_cuda(environment: pathlib.Path) -> bool:
    """Tell whether the environment's torch is the build for CUDA, as it is where one for CPUs cannot be had."""
    return not environment.parents[1].resolve().name.startswith("trainer-cpu-")


@pytest.fixture
def cuda(environment: pathlib.Path) -> pathlib.Path:
    """Return the Python of an environment with Triton, on a machine that compiles for it."""
    if not for_cuda(environment):
        pytest.skip("the environment is built for CPUs, without Triton")
    if not compiles(environment):
        pytest.skip("no C compiler, or no C headers of the environment's Python, is here")
    return environment


def test_no_cuda(environment: pathlib.Path) -> None:
    code, answer, errors = run(environment, "gpu_check.py", "--lane", "GPU-1")
    assert (answer["ok"], answer["device"]) == (False, None)
    assert code == (86 if for_cuda(environment) and not compiles(environment) else 1)
    words = "there is no GPU here: no NVIDIA driver was found."
    if not for_cuda(environment):
        words = "the torch of this environment is built for CPUs. Set trainer_lock: trainer-cuda for this host"
    elif not compiles(environment):
        words = "Triton compiles C before the first step"
    assert words in answer["error"]
    assert "Traceback" not in errors


def test_a_host_without_a_c_compiler(cuda: pathlib.Path, tmp_path: pathlib.Path) -> None:
    code, answer, errors = run(cuda, "gpu_check.py", PATH=str(tmp_path))
    assert code == 86  # no fault of the GPU: another pod of the same image would have none either
    assert answer["error"].startswith("there is no C compiler on this host, and Triton compiles C before")
    assert "gcc and libc6-dev" in answer["error"]
    assert "Traceback" not in errors


COMPILE = """
import sysconfig, gpu_check as g
known = sysconfig.get_paths()
sysconfig.get_paths = lambda *rest, **named: {{**known, {}}}
try:
    g.compile_c()
    print("it compiles")
except g.CannotCompile as error:
    print(g.sentence(error))
"""


@pytest.fixture
def compiling(cuda: pathlib.Path, tmp_path: pathlib.Path) -> Callable[..., str]:
    """Compile, with other paths of Python or other variables; return what the check would say."""

    def said(paths: str = "", **variables: str) -> str:
        command = [str(cuda), "-c", COMPILE.format(paths)]
        environ = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache"), **variables}
        return subprocess.run(command, cwd=FOLDER, env=environ, capture_output=True, text=True, check=True).stdout

    return said


def test_a_compiler_that_fails(compiling: Callable[..., str], tmp_path: pathlib.Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'cc: fatal error: cannot find ld' >&2\nexit 1\n")
    compiler.chmod(0o755)
    words = "C does not compile on this host (cc: fatal error: cannot find ld), and Triton"
    assert compiling(CC=str(compiler)).startswith(words)
    assert f"No such file or directory: '{tmp_path}/none'" in compiling(CC=str(tmp_path / "none"))
    assert compiling() == "it compiles\n"


def test_a_host_without_the_headers_of_python(
    cuda: pathlib.Path, compiling: Callable[..., str], tmp_path: pathlib.Path
) -> None:
    said = compiling(f"'include': {str(tmp_path)!r}")
    version = subprocess.check_output([str(cuda), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], text=True)
    assert said.startswith(f"the C headers of the environment's Python {version.strip()} are missing")
    assert f"Debian, Ubuntu: python{version.strip()}-dev;" in said


KERNEL = """
import torch, gpu_check as g
g.kernel(torch, "cpu")
g.TRITON_TOLERANCE = -1.0
try:
    g.kernel(torch, "cpu")
except g.Unfit as error:
    print(error)
"""
COMPILED = """
import triton, gpu_check as g
from triton.backends.compiler import GPUTarget
source = triton.compiler.ASTSource(g.line(), {"values": "*fp32", "results": "*fp32", "block": "constexpr"},
                                   {"block": 256})
for capability in (80, 90, 120):
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    print(capability, made.asm["cubin"][:4] == b"\\x7fELF")
"""


def test_the_kernel_computes_what_it_says_and_compiles_for_gpus(cuda: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Triton's interpreter runs it on the CPU; its compiler needs no GPU, and its own assembler comes with it."""

    def said(code: str, **variables: str) -> str:
        command, where = [str(cuda), "-c", code], {"TRITON_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(
            command, cwd=FOLDER, env={**os.environ, **where, **variables}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "the result of a Triton kernel is off by 0.000" in said(KERNEL, TRITON_INTERPRET="1")
    assert said(COMPILED) == "80 True\n90 True\n120 True\n"


def test_the_gpu_gate_knows_every_attention_of_axolotl(environment: pathlib.Path) -> None:
    code = "import json; from axolotl.utils.schemas import enums; print(json.dumps(sorted(enums.CANONICAL_ATTN_IMPLS)))"
    done = subprocess.run([str(environment), "-c", code], capture_output=True, text=True, timeout=CONVERGE, check=True)
    assert set(json.loads(done.stdout.splitlines()[-1])) <= gpu_fitness.ATTENTION.keys()
