"""One visit to a machine with a GPU: proof, then speed, within a time; one file of results, whatever ends it.

    python3 benchmarks/gpu/visit.py --work /tmp/gpu --out FOLDER [--site ARCHIVE] [--seconds 540]

Neither Ansible nor a network is needed. ``--site`` is an archive of site-packages, where the machine's Python has no
Axolotl of its own. In ``--out`` two files are kept up to date while it measures: ``results.tar.gz``, to be unpacked
into benchmarks/gpu/results/, and ``logs.tar.gz`` with what the processes said. What earlier visits brought into that
folder is not done again, so that each visit goes on where the one before ended. Status 3: there is more to do.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from typing import Optional

import forge

HERE = forge.ROOT / "benchmarks/gpu"
PROOF_SECONDS = 300  # of the proof and what precedes it; then speed has its turn, and the proof the next visit
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
    part = site.with_name(f"{site.name}.partial.{os.getpid()}")
    with tarfile.open(archive) as packed:
        packed.extractall(part, filter="data")
    part.rename(site)
    subprocess.Popen(
        [sys.executable, "-m", "compileall", "-q", "-j", "0", str(site)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def bring_back(earlier: pathlib.Path, results: pathlib.Path) -> None:
    """Put the results of earlier visits where this one goes on; what it has already written stays."""
    for path in earlier.glob("*/*.json"):
        here = results / path.relative_to(earlier)
        if not here.exists():
            here.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, here)


def pack(work: pathlib.Path, out: pathlib.Path) -> None:
    """Write both archives anew, each in one piece."""
    results = [path for path in sorted((work / "results").glob("*/*.json")) if path.is_file()]
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
        work: The folder that both programs work in.
        out: Where the archives go.
        deadline: Monotonic seconds.
        env: Variables of the programs.
    """

    def __init__(self, work: pathlib.Path, out: pathlib.Path, deadline: float, env: dict[str, str]):
        self.work, self.out, self.deadline, self.env = work, out, deadline, env
        self.child: Optional[subprocess.Popen[bytes]] = None

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def program(self, name: str, *options: str) -> int:
        """Run one of the programs beside this one, packing meanwhile; its exit status."""
        print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        command = [sys.executable, "-u", str(HERE / f"{name}.py"), "--work", str(self.work), *options]
        command += ["--results", str(self.work / "results")]
        self.child = subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL, preexec_fn=forge.die_with_parent)
        while True:
            try:
                return self.child.wait(PACK_EVERY)
            except subprocess.TimeoutExpired:
                pack(self.work, self.out)

    def stopped(self, number: int, frame: object) -> None:
        """SIGTERM: what runs now ends as at its deadline, and is packed."""
        if self.child and self.child.poll() is None:
            self.child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(SPARE)
        pack(self.work, self.out)
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
    env = dict(os.environ) | ({forge.COMMIT: given.commit} if given.commit else {})
    if given.site:
        unpack(given.site, work / "site")
        env["PYTHONPATH"] = os.pathsep.join([str(work / "site"), *filter(None, [env.get("PYTHONPATH")])])
    # Compiled kernels are kept from process to process.
    env |= {"TRITON_CACHE_DIR": str(work / "cache/triton"), "TORCHINDUCTOR_CACHE_DIR": str(work / "cache/inductor")}
    if not given.tiny:
        bring_back(forge.RESULTS, work / "results")
    visit = Visit(work, out, deadline, env)
    signal.signal(signal.SIGTERM, visit.stopped)
    options = ["--tiny"] if given.tiny else []
    given.results = work / "results"
    proof = forge.results(given, work) / "proof.json"
    codes = []
    try:
        if not forge.load(proof).get("proven"):
            seconds = min(PROOF_SECONDS, visit.left())
            codes.append(visit.program("proof", "--seconds", f"{seconds:.0f}", *options))
        if visit.left() > 0:
            only = ["--only", given.only] if given.only else []
            codes.append(visit.program("speed", "--seconds", f"{visit.left():.0f}", *only, *options))
        else:
            codes.append(forge.AGAIN)
    finally:
        pack(work, out)
    print(f"{out / 'results.tar.gz'}: unpack it into benchmarks/gpu/results/")
    raise SystemExit(next((code for code in codes if code not in (0, forge.AGAIN)), max(codes)))


if __name__ == "__main__":
    main()
