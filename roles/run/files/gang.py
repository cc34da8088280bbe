"""The processes of a run on several GPUs, hosts or nodes: they start from one checkpoint, and stop at one step.

torchrun starts it in each process: ``gang.py <module> <arguments…>``. It runs in the trainer's environment with the run
directory as working directory; ``rundir.py`` lies beside it, in the folder that PYTHONPATH names.
"""

from __future__ import annotations

import datetime
import os
import pathlib
import runpy
import sys
import time
from typing import Any

import rundir
import torch
from torch import distributed

OUTPUT = pathlib.Path("output")
STOP = pathlib.Path(rundir.STOPPING)
SEEN_WITHIN = 90.0  # seconds in which a node is to see what another one wrote: shared folders may show what is old
TIMEOUT = datetime.timedelta(minutes=5)  # to agree; what loads models and data has its own


def agreed(wanted: bool, device: Any = "cpu") -> bool:
    """Tell whether any process wants something, so that all of them do it at the same step.

    Args:
        wanted: Whether this one does.
        device: Where the process group computes.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return wanted
    flag = torch.tensor(int(wanted), device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag.item())


def stop_wanted() -> bool:
    """Tell whether the supervisor asks for a stop: torchrun would give a checkpoint half a minute at most."""
    return STOP.exists()


def barrier() -> None:
    """Wait until every process is here; nothing where there is one."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()


def common_checkpoint(output: pathlib.Path, store: Any, rank: int, world: int) -> int:
    """Find the newest checkpoint that is whole on every host; newer ones are renamed aside, on all of them.

    Args:
        output: Axolotl's output_dir, on this host.
        store: Where the processes meet: ``set`` notes a value, ``get`` waits for one.
        rank: This process among all.
        world: How many processes there are.

    Returns:
        Its step; 0 where there is none.
    """
    step = rundir.last_complete(output)
    if rank and rundir.ONE_FOLDER in os.environ:
        newest, until = int(store.get("step 0")), time.monotonic() + SEEN_WITHIN
        while (step := rundir.last_complete(output)) < newest and time.monotonic() < until:
            time.sleep(0.5)
    store.set(f"step {rank}", str(step))
    common = min(int(store.get(f"step {other}")) for other in range(world))
    if rundir.writes():
        for number, path in rundir.checkpoints(output):
            if number > common:
                path.rename(path.with_name(f"incomplete-{path.name}-{os.getpid()}"))
    store.set(f"tidy {rank}", "")
    for other in range(world):
        store.get(f"tidy {other}")
    return common


def main() -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # torchrun's own store: a process group for this alone would stand in the way of the one that trains.
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.TCPStore(address, port, is_master=False, timeout=TIMEOUT)
    step = common_checkpoint(OUTPUT, distributed.PrefixStore("lora-forge", store), rank, world)
    del store
    if rank == 0:
        print(f"{world} processes start from step {step}", flush=True)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
