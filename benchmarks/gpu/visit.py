"""One visit to a machine with a GPU: check, proof, speed, within a time; one file of results, whatever ends it.

    python3 benchmarks/gpu/visit.py --work /tmp/gpu --out FOLDER [--site ARCHIVE] [--seconds 540]

Neither Ansible nor a network is needed. ``--site`` is an archive of site-packages, where the machine's Python has no
Axolotl of its own. In ``--out`` two files are kept up to date while it measures: ``results.tar.gz``, to be unpacked
into benchmarks/gpu/results/, and ``logs.tar.gz`` with what the processes said. What earlier visits brought into that
folder is not done again, so that each visit goes on where the one before ended. Status 3: there is more to do.

The GPU gate's own check (roles/trainer/files/gpu_check.py) runs while the model is made. What it says is kept, and
nothing waits for its opinion: a visit is short, and the proof says more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from typing import Any, Optional

import forge
import random_model

HERE = forge.ROOT / "benchmarks/gpu"
CHECK = forge.ROOT / "roles/trainer/files/gpu_check.py"
CHECK_SECONDS = 120  # of it, as a CUDA call can hang for ever
PROOF_SECONDS = 300  # of the proof; then speed has its turn, and the proof the next visit
ROOM = 40e9  # bytes of a work folder: packages, a model of 15 GB, checkpoints, tokenised data, kernels
SPARE = 10  # seconds at the end, to pack
PACK_EVERY = 15  # seconds
TAIL = 400_000  # bytes of a log that are kept
LOGS = (
    "*.log", "processes/*/log", "processes/*/steps.jsonl", "processes/*/axolotl.yml", "runs/*/*.log", "runs/*/*.jsonl",
    "runs/*/status.json", "runs/*/axolotl.yml",
)  # fmt: skip


def unpack(archive: pathlib.Path, site: pathlib.Path) -> None:
    """Unpack an archive of site-packages, once, and let its bytecode be made while the model is."""
    if site.exists():
        return
    for left in forge.left_behind(site):  # by a visit that was cut off
        shutil.rmtree(left, ignore_errors=True)
    part = site.with_name(f"{site.name}.partial.{os.getpid()}")
    with tarfile.open(archive) as packed:
        packed.extractall(part, filter="data")
    part.rename(site)
    subprocess.Popen(
        [sys.executable, "-m", "compileall", "-q", "-j", "0", str(site)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=forge.die_with_parent,
    )  # fmt: skip


def room(work: pathlib.Path) -> None:
    """Refuse a work folder that the visit would fill, before it has cost minutes.

    Raises:
        SystemExit: It has less room than :data:`ROOM`, with what lies there already.
    """
    there = sum(path.stat().st_size for path in work.rglob("*") if path.is_file() and not path.is_symlink())
    free = shutil.disk_usage(work).free
    if free + there < ROOM:
        raise SystemExit(
            f"{work} has {free / 1e9:.0f} GB of room, and a visit needs {ROOM / 1e9:.0f} GB. Name another folder by "
            "--work; one in memory will do, such as /dev/shm/gpu where that has the room"
        )


def bring_back(earlier: pathlib.Path, results: pathlib.Path) -> None:
    """Put the results of earlier visits where this one goes on; what it has already written stays."""
    for path in earlier.glob("*/*.json"):
        here = results / path.relative_to(earlier)
        if not here.exists():
            here.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, here)


def pack(work: pathlib.Path, out: pathlib.Path) -> None:
    """Write both archives anew, each in one piece."""
    results = [path for path in sorted((work / "results").glob("*/*.*")) if path.suffix in (".json", ".txt")]
    logs = [path for pattern in LOGS for path in sorted(work.glob(pattern)) if path.is_file()]
    for name, top, paths in (("results", work / "results", results), ("logs", work, logs)):
        part = out / f".{name}.part"
        with tarfile.open(part, "w:gz") as packed:
            for path in paths:
                with contextlib.suppress(OSError), path.open("rb") as file:
                    size = path.stat().st_size
                    about = packed.gettarinfo(str(path), arcname=str(path.relative_to(top)))
                    about.size = size if name == "results" else min(size, TAIL)
                    file.seek(size - about.size)
                    packed.addfile(about, file)
        part.replace(out / f"{name}.tar.gz")


class Visit:
    """What the parts of a visit share.

    Args:
        work: The folder that all programs work in.
        out: Where the archives go.
        results: Where the results go that are of this kind of GPU.
        deadline: Monotonic seconds.
        env: Variables of the programs.
        tiny: On a CPU.
    """

    def __init__(
        self, work: pathlib.Path, out: pathlib.Path, results: pathlib.Path, deadline: float, env: dict[str, str],
        tiny: bool,
    ):  # fmt: skip
        self.work, self.out, self.results, self.deadline, self.env = work, out, results, deadline, env
        self.tiny = ["--tiny"] if tiny else []
        self.began = time.monotonic()

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def say(self, what: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {time.monotonic() - self.began:4.0f} s {what}", flush=True)

    def start(self, command: list[str], **more: Any) -> subprocess.Popen[Any]:
        return subprocess.Popen(
            [sys.executable, "-u", *command], env=self.env, stdin=subprocess.DEVNULL,
            preexec_fn=forge.die_with_parent, **more,
        )  # fmt: skip

    def program(self, name: str, *options: str, seconds: Optional[float] = None) -> int:
        """Run one of the programs beside this one, packing meanwhile; return its exit status.

        Args:
            name: Of the program.
            options: Its own.
            seconds: After which it is ended; None for one that sees to its time itself.
        """
        self.say(name)
        began = time.monotonic()
        child = self.start([str(HERE / f"{name}.py"), *options, *self.tiny])
        try:
            while True:
                try:
                    code = child.wait(PACK_EVERY)
                    break
                except subprocess.TimeoutExpired:
                    pack(self.work, self.out)
                if seconds is not None and time.monotonic() - began > seconds:
                    return forge.AGAIN
        finally:  # told to end, and it was not over: it ends as at its deadline
            if child.poll() is None:
                child.terminate()
                try:
                    child.wait(SPARE)
                except subprocess.TimeoutExpired:
                    child.kill()
        self.say(f"{name} ended with {code} after {time.monotonic() - began:.0f} s")
        return code

    def model(self) -> int:
        """Make the model; beside it inspect the GPU, and check it."""
        self.results.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            asked = subprocess.run(["nvidia-smi", "-q"], capture_output=True, text=True, timeout=60)
            (self.results / "nvidia-smi.txt").write_text(asked.stdout + asked.stderr, encoding="utf-8")
        log = self.work / "gpu_check.log"
        device = ["--device", "cpu"] if self.tiny else []
        with log.open("wb") as errors:
            check = self.start([str(CHECK), *device], stdout=subprocess.PIPE, stderr=errors)
            try:
                model = random_model.folder(self.work, bool(self.tiny))
                code = 0 if model.exists() else self.program("random_model", str(model), seconds=self.left())
                said = check.communicate(timeout=max(1.0, min(CHECK_SECONDS, self.left())))[0].decode(errors="replace")
                try:
                    answer = dict(json.loads(said))
                except ValueError:
                    answer = {"ok": False, "error": f"it said no JSON, but: {said[-300:]}"}
            except subprocess.TimeoutExpired:
                answer = {"ok": False, "error": "the GPU does not answer: it computed nothing in time"}
            finally:
                check.kill()
        try:
            status = check.wait(5)
        except subprocess.TimeoutExpired:  # stuck in the driver, it outlives its signal
            status = None
        forge.save(self.results / "gpu_check.json", answer | {"exit": status, **forge.facts()})
        self.say(f"gpu_check: {'ok' if answer['ok'] else answer['error']}, {answer.get('seconds')} s")
        return code

    def go(self, only: Optional[str]) -> list[int]:
        """Do all of it, in the order of worth; return the exit statuses."""
        shared = ["--work", str(self.work), "--results", str(self.work / "results")]
        codes = [self.model()]
        if codes != [0]:
            return codes
        if not forge.load(self.results / "proof.json").get("proven"):
            seconds = min(PROOF_SECONDS, self.left())
            codes.append(self.program("proof", *shared, "--seconds", f"{seconds:.0f}"))
        if self.left() > 0:
            named = ["--only", only] if only else []
            codes.append(self.program("speed", *shared, "--seconds", f"{self.left():.0f}", *named))
        else:
            codes.append(forge.AGAIN)
        return codes


def told_to_end(number: int, frame: object) -> None:
    """End on SIGTERM: what runs now ends as at its deadline, and is packed; a second one changes nothing."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(forge.AGAIN)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder with 40 GB of room")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="where results.tar.gz and logs.tar.gz go")
    parser.add_argument("--site", type=pathlib.Path, help="an archive of site-packages")
    parser.add_argument("--seconds", type=float, default=540, help="for all of it; %(default)s")
    parser.add_argument("--only", help="variants of speed.py; by default all, by worth")
    parser.add_argument("--commit", help="what is measured, where there is no checkout of git")
    parser.add_argument("--tiny", action="store_true", help="on a CPU; tries the programs only")
    given = parser.parse_args()
    deadline = time.monotonic() + given.seconds - SPARE
    work, out = given.work.resolve(), given.out.resolve()
    for folder in (work, out):
        folder.mkdir(parents=True, exist_ok=True)
    given.results = work / "results"
    results = forge.results(given, work)
    if not given.tiny:
        room(work)
        bring_back(forge.RESULTS, work / "results")
    env = dict(os.environ) | ({forge.COMMIT: given.commit} if given.commit else {})
    # Compiled kernels are kept from process to process.
    env |= {"TRITON_CACHE_DIR": str(work / "cache/triton"), "TORCHINDUCTOR_CACHE_DIR": str(work / "cache/inductor")}
    visit = Visit(work, out, results, deadline, env, given.tiny)
    signal.signal(signal.SIGTERM, told_to_end)
    try:
        if given.site:
            env["PYTHONPATH"] = os.pathsep.join([str(work / "site"), *filter(None, [env.get("PYTHONPATH")])])
            visit.say("site")
            unpack(given.site, work / "site")
        codes = visit.go(given.only)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # or it could leave an archive of the time before
        pack(work, out)
    visit.say(f"{out / 'results.tar.gz'}: unpack it into benchmarks/gpu/results/")
    raise SystemExit(next((code for code in codes if code not in (0, forge.AGAIN)), max(codes)))


if __name__ == "__main__":
    main()
