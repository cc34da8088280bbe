"""In Axolotl's place: a training of two hosts that sums a number over all of them at each step, on the CPU.

It reports, stops and saves as roles/run/files/lora_forge_axolotl.py does, through the same gang.py, and checks that all
processes are at the same step.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time

import gang
import rundir
import torch
import yaml
from torch import distributed

METRICS, OUTPUT = pathlib.Path("metrics.jsonl"), pathlib.Path("output")
recipe = yaml.safe_load(pathlib.Path(sys.argv[1]).read_text())
planned = int(recipe["max_steps"])
distributed.init_process_group("gloo")
rank, world = distributed.get_rank(), distributed.get_world_size()
step = max((number for number, _ in rundir.checkpoints(OUTPUT)), default=0)
rundir.append_event(METRICS, "begin", step=step, planned=planned, epoch=0)
stopped = False
while step < planned and not stopped:
    time.sleep(0.3 if pathlib.Path("slow").exists() else 0.01)
    step += 1
    total = torch.tensor([float(step), 1.0])
    distributed.all_reduce(total)
    assert total.tolist() == [step * world, world], f"rank {rank} is at step {step}, all together at {total.tolist()}"
    rundir.append_event(METRICS, "log", step=step, planned=planned, loss=2.0 / step, world=world)
    stopped = gang.agreed(gang.stop_wanted())
    if stopped:
        rundir.append_event(METRICS, "stop", step=step, planned=planned, reason="asked")
    if step % int(recipe["save_steps"]) == 0 or stopped:
        checkpoint = OUTPUT / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "state.json").write_text(json.dumps({"step": step, "host": os.uname().nodename}))
        gang.barrier()
        rundir.mark_complete(checkpoint, step)
rundir.append_event(METRICS, "end", step=step, planned=planned, reason=None)
distributed.destroy_process_group()
