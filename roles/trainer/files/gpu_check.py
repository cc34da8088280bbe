"""Compute something real on each GPU: ``gpu_check.py [--device cuda|cpu] [--lane UUID,…]``.

Runs in the trainer's environment, and answers what nvidia-smi cannot: whether this torch, this Triton and this
bitsandbytes compute, and compute rightly, on this very GPU. It prints one line of JSON on standard output

    {"ok": bool, "device": name, "bf16_tflops": of the slowest, "seconds": of everything, "error": sentence or null}

and exits with 0, or with 1 when the GPU is not fit. What libraries print goes to standard error. A CUDA call can hang
for ever: who runs it sets the time limit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from typing import Any, Optional

SIZE = 2048  # rows and columns of the two matrices: 17 billion operations, 8 MiB each in bf16
REPEATS = 20  # products that are timed on a GPU, after one that is not; a CPU takes one
# Error of a result over the size of the exact one (Frobenius norms). bf16 has 8 bits: 0.002 is usual.
BF16_TOLERANCE = 0.01
NF4_TOLERANCE = 0.2  # 4 bits a weight: 0.09 is usual
TRITON_TOLERANCE = 1e-6  # float32

# Before its first kernel Triton compiles C on the host (triton/backends/nvidia/driver.c). Here are the same headers of
# the system, without CUDA's own, which Triton brings.
STUB = """
#include <dlfcn.h>
#include <stdbool.h>
#include <stdlib.h>
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "lora_forge_stub", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_lora_forge_stub(void) { return PyModule_Create(&module); }
"""
NEEDS_C = "Triton compiles C before the first step of a training"

# What CUDA says when it fails, and what that means. The first match decides. {message} is CUDA's, {python} the
# environment's.
FAILURES = (
    (
        r"Failed to find C compiler",
        "there is no C compiler on this host, and " + NEEDS_C + ". Install one (Debian, Ubuntu: gcc and libc6-dev; "
        "Fedora: gcc), or name it by the variable CC",
    ),
    (
        r"Python\.h: No such file|'Python\.h' file not found",
        "the C headers of the environment's Python {python} are missing on this host (Python.h), and "
        + NEEDS_C
        + ". Install them (Debian, Ubuntu: python{python}-dev; Fedora: python{python}-devel), or take a CPython that "
        "uv fetches, which brings its own: trainer_python_download: true, and delete the environment's folder below "
        "env/ in the trainer's root",
    ),
    (
        r"C does not compile",
        "{message}, and " + NEEDS_C + ". Install a whole compiler (Debian, Ubuntu: gcc and libc6-dev; Fedora: gcc)",
    ),
    (
        r"Error 804\b|forward compatibility",
        "the NVIDIA driver is older than the CUDA of this container's image (error 804, forward compatibility). "
        "Update the driver, use an image of an older CUDA, or take a host with a newer driver",
    ),
    (
        r"Error 802\b|system not yet initialized",
        "the GPUs of this host are not initialised (error 802): NVIDIA's fabric manager does not run. Start "
        "nvidia-fabricmanager on the host; replace a rented one",
    ),
    (
        r"no kernel image",
        "this GPU is too old, or too new, for the torch of the environment (no kernel image). Take another GPU, or "
        "lock a torch that supports it",
    ),
    (
        r"driver version is insufficient|driver on your system is too old",
        "the NVIDIA driver is too old for the CUDA that the environment's torch is built with (CUDA driver version is "
        "insufficient). Update the driver, or take a host with a newer one",
    ),
    (
        r"Found no NVIDIA driver",
        "there is no GPU here: no NVIDIA driver was found. Start the container with its GPUs (docker run --gpus all), "
        "or take a host that has a GPU",
    ),
    (
        r"out of memory",
        "the GPU has not even 1 GiB of memory left (out of memory): something else holds it. nvidia-smi names it, but "
        "not from inside another container; end it, or take another GPU",
    ),
    (
        r"[Uu]ncorrectable ECC",
        "the memory of this GPU is faulty (uncorrectable ECC error). Reset it or reboot; replace a rented host",
    ),
    (
        r"not compiled with CUDA",
        "the torch of this environment is built for CPUs. Set trainer_lock: trainer-cuda for this host",
    ),
    (
        r"No module named|cannot import name|cannot open shared object",
        "the environment is not whole ({message}). Delete its folder below env/ in the trainer's root, and run again",
    ),
)
BROKEN = (
    "CUDA does not work on this host, even where nvidia-smi looks fine ({message}). Such bad hosts are known: "
    "reboot it, and replace a rented one"
)


class Unfit(Exception):
    """A result that is wrong; says how, and what to do."""


NO_COMPILER = 86  # exit status: no fault of the GPU, and another machine with the same image has it too


class CannotCompile(Exception):
    """The C compiler is missing, or failed; says what it said."""

    def __init__(self, message: str):
        super().__init__(f"C does not compile on this host ({message})")


def sentence(error: BaseException) -> str:
    """Put a failure into words, with the remedy."""
    if isinstance(error, Unfit):
        return str(error)
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, CannotCompile):
        text = str(error)
    message = " ".join(text.split())[:300]
    for pattern, meaning in FAILURES:
        if re.search(pattern, text):
            return meaning.format(message=message, python=f"{sys.version_info[0]}.{sys.version_info[1]}")
    return BROKEN.format(message=message)


def compare(what: str, torch: Any, result: Any, exact: Any, tolerance: float) -> None:
    """Hold a result against the exact one, which a CPU computed in float32.

    Raises:
        Unfit: It is not finite, or further off than the tolerance.
    """
    result = result.detach().float().cpu()
    advice = "This GPU computes wrongly: replace it"
    if not torch.isfinite(result).all():
        raise Unfit(f"{what} has values that are not finite. {advice}")
    off = float((result - exact).norm() / exact.norm())
    if off > tolerance:
        raise Unfit(f"{what} is off by {off:.3f} of its size; {tolerance} is tolerated. {advice}")


def multiply(torch: Any, device: str) -> float:
    """Multiply two bf16 matrices; returns 10**12 operations a second."""
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(SIZE, SIZE, generator=generator).bfloat16() for _ in range(2))
    exact = left.float() @ right.float()
    left, right = left.to(device), right.to(device)
    repeats = 1
    if device == "cuda":
        repeats = REPEATS
        left @ right  # the first one loads cuBLAS
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        product = left @ right
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    compare("a product of bf16 matrices", torch, product, exact, BF16_TOLERANCE)
    return float(2 * SIZE**3 * repeats / seconds / 1e12)


def quantised(torch: Any, device: str) -> None:
    """Run a 4-bit layer forward, and its gradient back to the input, as QLoRA does."""
    import bitsandbytes

    torch.manual_seed(1)
    layer = bitsandbytes.nn.Linear4bit(512, 256, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    weight = layer.weight.data.clone()
    layer = layer.to(device)  # this quantises
    inputs = torch.randn(64, 512).bfloat16()
    pull = torch.randn(64, 256).bfloat16()  # the gradient of the output
    given = inputs.clone().to(device).requires_grad_()
    output = layer(given)
    output.backward(pull.to(device))
    compare("the output of a 4-bit layer", torch, output, inputs.float() @ weight.T, NF4_TOLERANCE)
    compare("the gradient of a 4-bit layer", torch, given.grad, pull.float() @ weight, NF4_TOLERANCE)


def compile_c() -> None:
    """Compile a C extension as Triton does it, with its compiler and its paths.

    Raises:
        CannotCompile: It does not compile; with what the compiler said.
    """
    from triton.runtime import build

    with tempfile.TemporaryFile() as log:
        kept = os.dup(2)
        os.dup2(log.fileno(), 2)  # the compiler's own words go there, and Triton's error does not have them
        try:
            build.compile_module_from_src(STUB, "lora_forge_stub")
        except Exception as error:
            log.seek(0)
            errors = [line for line in log.read().decode(errors="replace").splitlines() if "error" in line]
            raise CannotCompile(errors[0] if errors else str(error)) from error
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def line() -> Any:
    """Compute, as a Triton kernel: results = 2 × values + 1."""
    import triton
    import triton.language as tl

    @triton.jit
    def compute(values, results, block: tl.constexpr):  # type: ignore[no-untyped-def]
        places = tl.program_id(0) * block + tl.arange(0, block)
        tl.store(results + places, 2 * tl.load(values + places) + 1)

    return compute


def kernel(torch: Any, device: str) -> None:
    """Compile a Triton kernel for the device, and run it: Axolotl's LoRA kernels and Liger are made of such."""
    values = torch.randn(4096, generator=torch.Generator().manual_seed(1))
    given = values.to(device)
    results = torch.zeros_like(given)
    line()[(4096 // 256,)](given, results, block=256)
    compare("the result of a Triton kernel", torch, results, 2 * values + 1, TRITON_TOLERANCE)


def check(device: str, report: dict[str, Any]) -> None:
    """Do everything; what is found out is added to the report as it goes."""
    import torch

    if device == "cuda":
        if torch.version.cuda:
            compile_c()
        torch.cuda.init()  # unlike is_available(), it says why it fails
    for number in range(torch.cuda.device_count() if device == "cuda" else 1):
        report["device"] = "cpu"
        if device == "cuda":
            torch.cuda.set_device(number)
            report["device"] = torch.cuda.get_device_name()
        speed = round(multiply(torch, device), 3)
        report["bf16_tflops"] = min(speed, report["bf16_tflops"] or speed)
        quantised(torch, device)
        if device == "cuda":
            kernel(torch, device)


def main(arguments: Optional[list[str]] = None) -> int:
    parser = argparse.ArgumentParser(description="Compute something real on a GPU.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--lane", default="", metavar="UUID", help="the GPUs, with commas; default: all")
    given = parser.parse_args(arguments)
    if given.lane:
        os.environ["CUDA_VISIBLE_DEVICES"] = given.lane  # read when CUDA starts
    os.environ["HF_HUB_OFFLINE"] = "1"  # bitsandbytes looks for faster kernels on the hub
    report: dict[str, Any] = {"ok": False, "device": None, "bf16_tflops": None, "seconds": None, "error": None}
    answer = os.dup(1)
    os.dup2(2, 1)
    began, status = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # or a compiler that is gone would not be missed
        try:
            check(given.device, report)
            report["ok"] = True
        except Exception as error:  # whatever it is, the answer is a sentence
            report["error"] = sentence(error)
            status = NO_COMPILER if isinstance(error, CannotCompile) else 1
    report["seconds"] = round(time.monotonic() - began, 1)
    sys.stdout.flush()
    with os.fdopen(answer, "w", encoding="utf-8") as out:
        out.write(json.dumps(report, ensure_ascii=False) + "\n")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
