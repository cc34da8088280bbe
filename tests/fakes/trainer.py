"""A stand-in for Axolotl: "trains" with short delays and reports as roles/run/files/lora_forge_axolotl.py does.

It runs in the run directory, with ``rundir`` on PYTHONPATH, and reads its settings from the environment as
``FAKE_<NAME>`` (see SETTINGS). A file ``go`` in the run directory lets it go on from where it hangs or stays. Like
Axolotl it resumes from the highest checkpoint number without looking.
"""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import signal
import struct
import sys
import time
from typing import Any, Optional

import rundir

SETTINGS: dict[str, Any] = {
    "STEPS": 8,  # planned steps
    "DELAY": 0.03,  # seconds a step takes
    "SAVE_EVERY": 2,
    "SAVE_TAKES": 0.0,  # seconds
    "EVAL_EVERY": 2,
    "SAY": "",  # printed to the log at the start
    "CRASH_AT": 0,  # exit 1 when this step would end
    "CRASH_SAY": "RuntimeError: made to crash",  # the last words of a crash
    "CRASH_ONCE": 0,  # 1: only the first start crashes
    "EXIT0_AT": 0,  # exit 0 at this step without a word
    "EXIT0_RESUMED": 0,  # 1: a resumed start exits 0 at once
    "EARLY_STOP_AT": 0,
    "HANG_AT": 0,  # hear nothing any more, after this step
    "STAY_AT": 0,  # go no further than this step, until a stop is wanted
    "BROKEN": 0,  # 1: it dies before its first step, whatever it resumes from
    "FORGET": 0,  # 1: it begins at step 0 although there are checkpoints
    "HANG_FIRST": 0,  # 1: it never begins, as one that waits for other hosts
    "BACK_TO": 0,  # the first resume goes back to this step, as a gang does where another host has no later one
    "NAN_AT": 0,
    "IGNORE_TERM": 0,
    "WORKER": "",  # "child": a data loader worker, needed for a checkpoint; "daemon": one in its own session
    "ADAPTER": "whole",  # or "empty": safetensors without a tensor; "none": no file
    "ANSWER": "",  # after its end it answers cases, and then "crash": exits 1; "kill": is killed; "hang": hears nothing
    "FILL": 0,  # 1: a checkpoint fills the disk
    "EAT": 0,  # megabytes that it takes at its third step
}
METRICS = pathlib.Path("metrics.jsonl")
OUTPUT = pathlib.Path("output")
GO = pathlib.Path("go")


def safetensors(tensors: dict[str, Any], data: bytes) -> bytes:
    header = json.dumps(tensors).encode()
    return len(header).to_bytes(8, "little") + header + data


WEIGHTS = safetensors({"lora_B": {"dtype": "F32", "shape": [500], "data_offsets": [0, 2000]}}, b"\1" * 2000)
ADAPTERS = {"whole": WEIGHTS, "empty": safetensors({}, b"")}


class Trainer:
    """One training, from its begin to its end."""

    def __init__(self) -> None:
        self.set = {name: type(value)(os.environ.get(f"FAKE_{name}", value)) for name, value in SETTINGS.items()}
        self.step = 0
        self.stop_wanted = False
        self.worker = 0

    def report(self, event: str, **values: Any) -> None:
        rundir.append_event(METRICS, event, step=self.step, planned=self.set["STEPS"], **values)

    def on_sigterm(self, number: int, frame: Any) -> None:
        self.stop_wanted = True

    def start_worker(self) -> None:
        kind = self.set["WORKER"]
        if not kind:
            return
        self.worker = os.fork()
        if self.worker:
            with pathlib.Path("workers.txt").open("a") as file:
                file.write(f"{self.worker}\n")
            return
        os.close(guard.fileno())
        if kind == "daemon":
            os.setsid()
        while True:
            time.sleep(1)

    def resume(self) -> None:
        if self.set["BACK_TO"] and list(rundir.checkpoints(OUTPUT)) and not pathlib.Path("went-back").exists():
            pathlib.Path("went-back").touch()
            for step, path in rundir.checkpoints(OUTPUT):
                if step > self.set["BACK_TO"]:
                    path.rename(path.with_name(f"incomplete-{path.name}"))
        found = [] if self.set["FORGET"] else list(rundir.checkpoints(OUTPUT))
        if found:
            self.step, path = found[-1]
            if (path / "adapter_model.safetensors").read_bytes() != WEIGHTS:
                raise SystemExit("SafetensorError: Error while deserializing header: incomplete metadata")
            assert json.loads((path / "trainer_state.json").read_text())["global_step"] == self.step

    def save(self) -> None:
        if self.set["WORKER"] == "child" and os.waitpid(self.worker, os.WNOHANG)[0]:
            raise SystemExit("RuntimeError: DataLoader worker is killed by signal: Terminated")
        path = OUTPUT / f"checkpoint-{self.step}"
        path.mkdir(parents=True, exist_ok=True)
        time.sleep(self.set["SAVE_TAKES"])
        (path / "trainer_state.json").write_text(json.dumps({"global_step": self.step}))
        (path / "adapter_model.safetensors").write_bytes(WEIGHTS)
        if self.set["FILL"]:
            with (path / "optimizer.pt").open("wb", buffering=0) as file:
                while file.write(b"\0" * 4096):
                    pass
        rundir.mark_complete(path, self.step)
        self.report("save", checkpoint=path.name)

    def misbehave(self) -> None:
        once = pathlib.Path("crashed")
        if self.step == self.set["CRASH_AT"] and not (self.set["CRASH_ONCE"] and once.exists()):
            once.touch()
            raise SystemExit(self.set["CRASH_SAY"])
        if self.step == 3:
            _ = os.urandom(1 << 20) * self.set["EAT"]
        if self.step == self.set["EXIT0_AT"]:
            raise SystemExit(0)
        while self.step == self.set["HANG_AT"] and not GO.exists():
            time.sleep(0.02)

    def stay(self) -> None:
        while self.step == self.set["STAY_AT"] and not self.stop_wanted and not GO.exists():
            time.sleep(0.02)

    def train(self) -> None:
        steps = self.set["STEPS"]
        self.resume()
        resumed = self.step
        with pathlib.Path("starts.txt").open("a") as file:
            file.write(f"{os.getpid()} {self.step}\n")
        if resumed and self.set["EXIT0_RESUMED"]:
            raise SystemExit(0)
        if self.set["BROKEN"]:
            raise SystemExit("ImportError: no such library")
        self.start_worker()
        while self.set["HANG_FIRST"]:
            time.sleep(0.05)
        signal.signal(signal.SIGTERM, signal.SIG_IGN if self.set["IGNORE_TERM"] else self.on_sigterm)
        self.report("begin", epoch=0)
        self.report("step")
        reason: Optional[str] = None
        while self.step < steps and not self.stop_wanted:
            time.sleep(self.set["DELAY"])
            self.step += 1
            self.misbehave()
            loss = "nan" if self.step == self.set["NAN_AT"] else 2.0 / self.step
            self.report("log", epoch=self.step / steps, loss=loss, tokens_per_second=100.0)
            self.stay()
            if self.stop_wanted and self.step < steps:
                self.report("stop", reason="SIGTERM")
            if self.step % self.set["EVAL_EVERY"] == 0 or self.step == steps:
                self.report("eval", epoch=self.step / steps, eval_loss=2.1 / self.step)
            if self.step % self.set["SAVE_EVERY"] == 0 or self.step == steps or self.stop_wanted:
                self.save()
            if self.step == self.set["EARLY_STOP_AT"]:
                reason = "early stopping"
                break
        OUTPUT.mkdir(exist_ok=True)
        if self.set["ADAPTER"] in ADAPTERS:
            (OUTPUT / "adapter_model.safetensors").write_bytes(ADAPTERS[self.set["ADAPTER"]])
        (OUTPUT / "trainer_state.json").write_text(json.dumps({"global_step": self.step}))
        self.report("end", reason=reason)
        self.answer()

    def answer(self) -> None:
        if self.set["ANSWER"]:
            rundir.append_event(METRICS, "answers", answered=1, asked=3)
        if self.set["ANSWER"] == "crash":
            raise SystemExit("torch.OutOfMemoryError: CUDA out of memory")
        if self.set["ANSWER"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        while self.set["ANSWER"] == "hang":
            time.sleep(0.02)


guard = open("fake.lock", "a")
try:  # by no flock: it may run in a folder that is without
    fcntl.fcntl(guard, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
except BlockingIOError:
    pathlib.Path("overlap").touch()  # two trainers at once: no test may see this file

if __name__ == "__main__":
    trainer = Trainer()
    print(trainer.set["SAY"], "token:", os.environ.get("HF_TOKEN"), flush=True)
    if trainer.set["IGNORE_TERM"]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    trainer.train()
    if trainer.set["WORKER"] == "child":
        os.kill(trainer.worker, signal.SIGKILL)
    sys.exit(0)
