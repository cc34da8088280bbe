"""How fast a dataset is checked and staged, and what memory that takes.

    .venv/bin/python benchmarks/dataset_check.py [--megabytes 1000] [--bytes 4000] [--rounds 3]

Writes a file of conversations of some bytes each, and reads it as the plan does, then as a start of a run does. Each
is a process of its own, so that its largest memory is its own, too; that of a file of ten conversations is what the
imports take.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pathlib
import random
import resource
import tempfile
import time

from hosts import figures, machine
from staging import WORDS

from ansible.module_utils.lora_forge.data import dataset, staging  # isort: skip  (hosts makes it importable)


def write(path: pathlib.Path, size: int, length: int) -> int:
    """Write conversations of some bytes each until a file has its size; return how many."""
    rng, count, written = random.Random(0), 0, 0
    text = " ".join(f"{rng.choice(WORDS)} {rng.randrange(10**6)}" for _ in range(10**5))
    with path.open("w") as file:
        while written < size:
            turns = []
            for speaker in ("human", "gpt") * 4:
                start = rng.randrange(len(text) - length)
                turns.append({"from": speaker, "value": text[start : start + length // 8 - 30]})
            written += file.write(json.dumps({"id": count, "conversations": turns}) + "\n")
            count += 1
    return count


def measure(work: pathlib.Path, path: pathlib.Path, answer: multiprocessing.Queue[tuple[float, float, float]]) -> None:
    """Check a file and stage it; answer with the CPU seconds of both, and the MiB of memory that were used at most."""
    began = time.process_time()
    planned = dataset.planned_dataset(dataset.check_file(path, "train", 4096, say=print))
    checked = time.process_time()
    with staging.staged([planned], work, work):
        done = time.process_time()
    answer.put((checked - began, done - checked, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=200, help="of the file")
    parser.add_argument("--bytes", type=int, default=4000, help="of a conversation")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(f"dataset_check: {machine()}, {time.strftime('%Y-%m-%d')}")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path, small = pathlib.Path(folder) / "x.jsonl", pathlib.Path(folder) / "small.jsonl"
        write(small, 10 * given.bytes, given.bytes)
        count = write(path, given.megabytes * 10**6, given.bytes)
        megabytes = path.stat().st_size / 1e6
        for number in range(given.rounds + 1):
            with tempfile.TemporaryDirectory(dir=folder) as work:
                spawned = multiprocessing.get_context("spawn")
                answer = spawned.Queue()
                process = spawned.Process(target=measure, args=(pathlib.Path(work), path if number else small, answer))
                process.start()
                found.append(answer.get())
                process.join()
    (_, _, imports), *rounds = found
    print(f"  the data: {count:,} conversations, {megabytes:,.0f} MB")
    print(figures("check, in a CPU second", [megabytes / checked for checked, _, _ in rounds], "MB/s", 1))
    print(figures("stage, in a CPU second", [megabytes / staged for _, staged, _ in rounds], "MB/s", 1))
    print(figures("memory at most", [most for _, _, most in rounds], "MiB", 0), f"; {imports:.0f} of it for imports")


if __name__ == "__main__":
    main()
