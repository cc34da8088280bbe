"""In torchrun's place on each node of a job: the first node has the stand-in for Axolotl train, the others go with it.

They meet over the network where the supervisor says; who loses another one dies of it. Told to end, they end as
torchrun does: what trains is told too, and the last words are torchrun's. ``pair.py <command of the stand-in>``.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import rundir

PATIENCE = 60.0  # seconds
RANK, WORLD = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
HOST, _, PORT = os.environ["PET_RDZV_ENDPOINT"].rpartition(":")
TOLD: list[int] = []


def on_sigterm(number: int, frame: Any) -> None:
    TOLD.append(number)


def end(code: int) -> None:
    if TOLD:
        sys.exit(f"torch.distributed.elastic.multiprocessing.api.SignalException: Process {os.getpid()} got signal: 15")
    sys.exit(code)


def lead() -> None:
    """Train with the others, and say to them when it is done."""
    with socket.create_server(("", int(PORT))) as server:
        server.settimeout(PATIENCE)
        others = [server.accept()[0] for _ in range(WORLD - 1)]
    training = subprocess.Popen(sys.argv[1:])
    while training.poll() is None:
        if TOLD or pathlib.Path(rundir.STOPPING).exists():
            training.terminate()
        lost = [one for one in select.select(others, [], [], 0.05)[0] if not one.recv(1)]
        if lost and not TOLD:
            training.kill()
            training.wait()
            print("RuntimeError: Connection closed by peer", file=sys.stderr)
            end(1)
    for one in others:
        with contextlib.suppress(OSError):
            one.sendall(b"." if training.returncode == 0 else b"!")
    end(0 if training.returncode == 0 else 1)


def follow() -> None:
    """Go with the first one to its end."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            first = socket.create_connection((HOST, int(PORT)), timeout=5)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    first.settimeout(0.1)
    word = None
    while word is None and not TOLD and not pathlib.Path(f"crash-{RANK}").exists():
        with contextlib.suppress(TimeoutError, socket.timeout):
            word = first.recv(1)
    pathlib.Path(f"crash-{RANK}").unlink(missing_ok=True)
    while TOLD and word is None:  # what trains beside it writes its checkpoint
        with contextlib.suppress(TimeoutError, socket.timeout):
            word = first.recv(1)
    end(0 if word == b"." else 1)


signal.signal(signal.SIGTERM, on_sigterm)
noted = {"rank": RANK, "node": os.environ["SLURMD_NODENAME"], "pid": os.getpid(),
         **{name: os.environ.get(name) for name in ("PET_RDZV_ID", "CUDA_VISIBLE_DEVICES", "LORA_FORGE_ONE_FOLDER")},
         "cores": os.environ.get("SLURM_CPUS_ON_NODE")}  # fmt: skip
with open("nodes.txt", "a") as file:
    file.write(json.dumps(noted) + "\n")
lead() if RANK == 0 else follow()
