"""The benchmarks of the control plane, which no test runs: they find what they are made of."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMED = re.search(r"^BENCH \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", NAMED[1].split() if NAMED else [])
def test_a_benchmark_tells_what_it_measures(name: str) -> None:
    program = ROOT / "benchmarks" / f"{name}.py"
    done = subprocess.run([sys.executable, program, "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--rounds" in done.stdout
