"""What a device reaches in a bf16 product of two square matrices, sustained: ``ceiling.py [--device cpu]``.

It needs torch alone. Each size is computed for as long as a training's clocks need to settle, and only then measured:
the first milliseconds of a cool GPU are faster than anything it keeps up.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

SIZES = {"cuda": (4096, 8192, 16384), "cpu": (256,)}
WARMUP, SECONDS = {"cuda": 1.0, "cpu": 0.05}, {"cuda": 1.0, "cpu": 0.05}  # of each size
ROUND = 2e13  # FLOPs after which the clock is read: some hundredths of a second of a large GPU


def rate(device: str, size: int, seconds: float) -> float:
    """Measure FLOPs a second over at least so many seconds."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    once = 2 * size**3
    products = max(1, round((ROUND if device == "cuda" else once) / once))
    done, began, now = 0, time.perf_counter(), 0.0
    while now - began < seconds:
        for _ in range(products):
            left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        done += products
        now = time.perf_counter()
    return done * once / (now - began)


def measure(device: str) -> dict[str, object]:
    """Measure the rate of each size, and return the rates and the highest of them."""
    found = {}
    for size in SIZES[device]:
        rate(device, size, WARMUP[device])
        found[size] = rate(device, size, SECONDS[device])
    return {"by_size": found, "flops_per_second": max(found.values()), "seconds": SECONDS[device]}


def main() -> None:
    parser = argparse.ArgumentParser(description="What the device reaches in a bf16 product.")
    parser.add_argument("--device", choices=SIZES, default="cuda")
    print(json.dumps(measure(parser.parse_args().device)))


if __name__ == "__main__":
    main()
