"""The GPU benchmarks, with a stand-in for Axolotl: what is done in which order, what is kept, what is continued."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time

import pytest
from lab import PATIENCE, ROOT, eventually

sys.path.insert(0, str(ROOT / "benchmarks/gpu"))

import forge
import proof
import random_model
import speed
import visit as visit_module

STAND_IN = """
import json, os, pathlib, sys, time
keys = pathlib.Path("axolotl.yml").read_text()
steps = int(keys.split("max_steps: ")[1].split()[0])
pathlib.Path("measured.json").write_text('{"resolved": {}}')
if "FAILS" in os.environ:
    sys.exit(os.environ["FAILS"])
micro = int(keys.split("micro_batch_size: ")[1].split()[0])
with open("steps.jsonl", "a") as file:
    for step in range(steps + 1):
        row = {"tokens": 1000 * micro, "positions": 1000, "squares": 1, "data": 1, "seconds": 1.0, "loss": 1.0}
        if step:
            print(json.dumps(row), file=file, flush=True)
        if step and "lora_mlp_kernel: false" in keys and "lora_embedding_kernel: false" in keys:
            sys.exit("ValueError: not today")
        if os.environ.get("HANGS_AT") == str(step):
            pathlib.Path("hangs").touch()
            time.sleep(600)
"""


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Provide a bench with model, data and ceiling, and a stand-in for Axolotl."""
    (tmp_path / "axolotl/cli").mkdir(parents=True)
    for name in ("__init__", "cli/__init__"):
        (tmp_path / f"axolotl/{name}.py").touch()
    (tmp_path / "axolotl/cli/train.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in ("HANGS_AT", "FAILS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "speed_train.jsonl").touch()
    forge.save(tmp_path / "results/tiny/ceiling.json", {"flops_per_second": 1.0, "gpu": forge.gpu_facts()})
    return speed.Bench(tmp_path, tmp_path / "results/tiny", 1, True, time.monotonic() + 3600)


@pytest.fixture
def hangs(bench, monkeypatch):
    """Let the stand-in hang at a step; its time is up as soon as it does."""
    wait = subprocess.Popen.wait

    def until_it_hangs(process: subprocess.Popen, timeout: float | None = None) -> int:
        if timeout and "axolotl.cli.train" in process.args:
            eventually(lambda: [*bench.work.glob("processes/*/hangs")])
            timeout = 0.1
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", until_it_hangs)
    return lambda step: monkeypatch.setenv("HANGS_AT", str(step))


def test_what_is_measured_is_kept_and_not_measured_again(bench):
    wish = speed.Wish("baseline", 1, 13)
    assert not bench.done(wish)
    assert bench.measure(wish)
    assert bench.done(wish)
    found = forge.load(bench.path(wish))
    assert (found["status"], len(found["steps"]), found["tiny"]) == ("measured", 13, True)
    assert found["commit"]
    assert speed.rate(found) == 2000
    assert not bench.done(speed.Wish("baseline", 1, 50))


def test_a_failure_has_its_reason_and_is_not_tried_again(bench):
    wish = speed.Wish("no-lora-kernels", 1, 13)
    assert bench.measure(wish)
    assert forge.load(bench.path(wish))["reason"] == "exit code 1: ValueError: not today"
    assert bench.done(wish)
    assert bench.done(speed.Wish("no-lora-kernels", 2, 50))  # a repeat would fail as well
    assert not bench.done(speed.Wish("baseline", 1, 13))


def test_a_failure_before_the_first_step_is_no_result(bench, monkeypatch, capsys):
    """It is as likely the environment's: the next visit tries it again, and this one no other repeat of it."""
    monkeypatch.setenv("FAILS", "ModuleNotFoundError: No module named 'x'")
    wish = speed.Wish("mb4x2", 1, 13)
    assert bench.measure(wish)
    said = "mb4x2 (1): failed before its first step, exit code 1: ModuleNotFoundError: No module named 'x'"
    assert said in capsys.readouterr().out
    assert not bench.path(wish).exists()
    assert bench.done(speed.Wish("mb4x2", 2, 13))
    assert not bench.done(speed.Wish("mb1x8", 1, 13))
    later = speed.Bench(bench.work, bench.results, 1, True, bench.deadline)
    assert not later.done(wish)
    monkeypatch.delenv("FAILS")
    assert later.measure(wish)
    assert forge.load(bench.path(wish))["status"] == "measured"


def test_memory_that_runs_out_in_the_first_step_is_a_result(bench, monkeypatch):
    monkeypatch.setenv("FAILS", "torch.OutOfMemoryError: CUDA out of memory.")
    wish = speed.Wish("mb4x2", 1, 13)
    assert bench.measure(wish)
    assert forge.load(bench.path(wish))["status"] == "failed"
    assert speed.Bench(bench.work, bench.results, 1, True, bench.deadline).done(wish)


def test_what_cannot_run_here_may_run_elsewhere(bench):
    wish = speed.Wish("flex", 1, 13)
    assert bench.measure(wish)
    assert forge.load(bench.path(wish))["reason"] == "a CPU cannot run it"
    assert not bench.done(wish)


@pytest.mark.parametrize(("at", "status"), [(11, "measured"), (10, "cut off")])
def test_the_steps_until_the_time_was_up_are_kept(bench, hangs, at, status):
    """One for warming up and ten that count make a figure; it is measured again, and no shorter one takes its place."""
    hangs(at)
    wish = speed.Wish("baseline", 1, 50)
    assert not bench.measure(wish)
    found = forge.load(bench.path(wish))
    assert (found["status"], len(found["steps"])) == (status, at)
    assert not bench.done(wish)
    assert bench.done(speed.Wish("baseline", 1, 11)) == (status == "measured")
    bench.keep(wish, found | {"status": "cut off", "reason": "the time was up", "steps": []})
    assert len(forge.load(bench.path(wish))["steps"]) == (at if status == "measured" else 0)


def test_one_that_is_too_slow_does_not_hold_up_the_others(bench, hangs, monkeypatch):
    hangs(2)
    monkeypatch.setattr(speed, "CAP", 0.0)
    monkeypatch.setattr(speed, "CAP_STEP", 0.0)
    wish = speed.Wish("baseline", 1, 13)
    assert bench.measure(wish)
    assert forge.load(bench.path(wish))["reason"].startswith("it took too long: 2 of 13 steps in ")
    assert bench.done(wish)
    assert bench.needed(wish) == 0  # and is no measure for what others need


def test_one_that_never_begins_is_no_result(bench, hangs, monkeypatch):
    hangs(0)
    monkeypatch.setattr(speed, "CAP", 0.0)
    monkeypatch.setattr(speed, "CAP_STEP", 0.0)
    wish = speed.Wish("baseline", 1, 13)
    assert bench.measure(wish)
    assert bench.failure("baseline").startswith("it took too long: 0 of 13 steps in ")
    assert not bench.path(wish).exists()


def test_what_a_process_needs_is_told_by_the_median(bench):
    for repeat, start in enumerate((40, 45, 400), 1):
        step = {"seconds": 5.0, "tokens": 1}
        one = {"status": "measured", "seconds": start + 65, "steps": [step] * 13}
        forge.save(bench.path(speed.Wish("baseline", repeat, 13)), one)
    assert bench.needed(speed.Wish("liger", 1, 13)) == 45 + 11 * 5
    bench.deadline = time.monotonic() + 90
    assert not bench.measure(speed.Wish("mb4x2", 1, 13))
    assert not bench.path(speed.Wish("mb4x2", 1, 13)).exists()


def test_the_fastest_is_the_one_that_was_measured(bench):
    wish = speed.Wish(speed.FASTEST, 2, 13)
    assert bench.resolved(wish) is None
    bench.measure(speed.Wish("baseline", 1, 13))
    assert bench.resolved(wish) is None
    for name in ("mb4x2", "mb1x8", "bf16-lora"):
        bench.measure(speed.Wish(name, 1, 13))
    assert bench.resolved(wish) == speed.Wish("mb4x2", 2, 13)


MAKER = """
import os, pathlib, sys
if "FAILS" in os.environ:
    sys.exit(os.environ["FAILS"])
pathlib.Path(sys.argv[1]).mkdir()
(pathlib.Path(sys.argv[1]) / "made").write_text(" ".join([str(os.getpid()), *sys.argv[2:]]))
"""


@pytest.mark.parametrize("tiny", [True, False])
def test_the_model_is_made_by_another_process_before_the_gpu_is_looked_at(tmp_path, monkeypatch, tiny):
    """CUDA's context in this one would be memory that its own idle check takes for somebody else's."""
    (tmp_path / "maker.py").write_text(MAKER)
    monkeypatch.setattr(random_model, "__file__", str(tmp_path / "maker.py"))
    prover = proof.Proof(tmp_path, "witness", 20, tiny)
    looked = []
    monkeypatch.setattr(proof, "make_idle", lambda work: looked.append(prover.model.is_dir()))
    prover.prepare()
    pid, *options = (prover.model / "made").read_text().split()
    assert (pid == str(os.getpid()), options) == (False, ["--tiny"] * tiny)
    assert looked == ([] if tiny else [True])
    random_model.provide(tmp_path, tiny)  # what is there is left alone
    assert (prover.model / "made").read_text().split()[0] == pid


def test_a_model_that_cannot_be_made_ends_it_in_words(tmp_path, monkeypatch):
    (tmp_path / "maker.py").write_text(MAKER)
    monkeypatch.setattr(random_model, "__file__", str(tmp_path / "maker.py"))
    monkeypatch.setenv("FAILS", "no room")
    with pytest.raises(SystemExit, match=r"the model could not be made: .*maker\.py .*tiny --tiny ended with 1; see"):
        random_model.provide(tmp_path, True)


def test_the_ceiling_is_that_of_this_very_card(bench, monkeypatch):
    (bench.work / "ceiling.py").write_text("print('{\"flops_per_second\": 2.0}')")
    monkeypatch.setattr(speed, "HERE", bench.work)
    bench.prepare()
    assert forge.load(bench.results / "ceiling.json")["flops_per_second"] == 1
    forge.save(bench.results / "ceiling.json", {"flops_per_second": 1.0, "gpu": {"uuid": "GPU-of-another-machine"}})
    bench.prepare()
    found = forge.load(bench.results / "ceiling.json")
    assert (found["flops_per_second"], found["gpu"]) == (2, forge.gpu_facts())


def program(bench, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, speed.__file__, "--tiny", "--work", str(bench.work), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_the_same_command_goes_on_when_the_time_was_up(bench, monkeypatch):
    only = ("--only", "baseline,mb4x2", "--repeats", "1", "--steps", "13")
    monkeypatch.setenv("HANGS_AT", "5")
    first = program(bench, *only, "--seconds", "2")
    assert first.returncode == forge.AGAIN == 3, first.stderr
    assert "the time is up; the same command goes on with: baseline (1), mb4x2 (1)" in first.stdout
    monkeypatch.delenv("HANGS_AT")
    second = program(bench, *only)
    assert (second.returncode, second.stdout.count("2000 tokens/s")) == (0, 1), second.stderr
    assert second.stdout.endswith("results/tiny\n")
    assert program(bench, *only).stdout.startswith("all is measured: ")


def test_a_broken_environment_ends_it_at_the_baseline(bench, monkeypatch):
    """Or every variant would fail for the same reason, one after the other."""
    only = ("--only", "baseline,mb4x2", "--repeats", "1", "--steps", "13")
    monkeypatch.setenv("FAILS", "ModuleNotFoundError: No module named 'x'")
    broken = program(bench, *only)
    assert broken.returncode == 1
    assert "the baseline failed, and nothing is measured without it: exit code 1: ModuleNotFound" in broken.stderr
    assert "Traceback" not in broken.stderr
    assert sorted(path.name for path in bench.results.iterdir()) == ["ceiling.json"]
    assert not (bench.work / "processes/mb4x2-1").exists()
    monkeypatch.delenv("FAILS")
    mended = program(bench, *only)
    assert (mended.returncode, mended.stdout.count("tokens/s")) == (0, 2), mended.stderr


def test_a_baseline_that_the_gpu_cannot_hold_ends_it_until_its_file_is_deleted(bench, monkeypatch):
    only = ("--only", "baseline,mb4x2", "--repeats", "1", "--steps", "13")
    monkeypatch.setenv("FAILS", "torch.OutOfMemoryError: CUDA out of memory.")
    assert f"delete {bench.results}/baseline-*.json" in program(bench, *only).stderr
    monkeypatch.delenv("FAILS")
    again = program(bench, *only)
    assert (again.returncode, "CUDA out of memory" in again.stderr) == (1, True)
    bench.path(speed.Wish("baseline", 1, 13)).unlink()
    assert program(bench, *only).returncode == 0


def test_a_variant_that_fails_before_its_first_step_leaves_more_to_do(bench, monkeypatch):
    monkeypatch.setenv("FAILS", "ImportError: no kernel")
    done = program(bench, "--only", "mb4x2,mb1x8", "--steps", "13")
    assert done.returncode == forge.AGAIN
    assert done.stdout.count("failed before its first step") == 2  # and no repeat
    assert done.stdout.endswith("tried again by the same command: mb4x2, mb1x8\n")


def test_a_program_that_is_told_to_end_keeps_its_steps(bench, monkeypatch):
    monkeypatch.setenv("HANGS_AT", "11")
    command = [sys.executable, speed.__file__, "--tiny", "--work", str(bench.work), "--only", "baseline"]
    with subprocess.Popen([*command, "--steps", "50"], stdout=subprocess.DEVNULL) as running:
        eventually(lambda: (bench.work / "processes/baseline-1/hangs").exists() or running.poll() is not None)
        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENCE) == forge.AGAIN
    assert len(forge.load(bench.path(speed.Wish("baseline", 1, 50)))["steps"]) == 11


VISIT = """
import os, pathlib, sys, time
sys.path.insert(0, {benchmarks!r})
import forge, visit
here = pathlib.Path({here!r})
visit.HERE, visit.CHECK, visit.PACK_EVERY = here, here / "check.py", 0.2
visit.main()
"""
PART = """
import json, os, pathlib, signal, sys, time
name = pathlib.Path(__file__).stem
work = pathlib.Path(os.environ["WORK"])
with (work / "order.log").open("a") as file:
    print(name, *sys.argv[1:], file=file)
if name == "check":
    print(json.dumps({"ok": False, "error": "no C compiler", "seconds": 0.1}))
    sys.exit(1)
if name == "random_model":
    pathlib.Path(sys.argv[1]).mkdir()
else:
    (work / "results/tiny" / f"{name}-begun.json").write_text("{}")
if os.environ.get("HANGS") == name:
    signal.signal(signal.SIGTERM, lambda *_: ((work / "results/tiny" / f"{name}.json").write_text("{}"), sys.exit(3)))
    (work / "hangs").touch()  # last: who waits for it sends SIGTERM at once
    time.sleep(600)
sys.exit(int(os.environ.get(f"{name}_ends", "0")))
"""


@pytest.fixture
def visiting(tmp_path, monkeypatch):
    """Provide a visit with stand-ins for its programs; order.log holds how they were called, in order."""
    monkeypatch.setenv("WORK", str(tmp_path / "work"))
    (tmp_path / "programs").mkdir()
    for name in ("check", "random_model", "proof", "speed"):
        (tmp_path / f"programs/{name}.py").write_text(PART)
    (tmp_path / "visit.py").write_text(
        VISIT.format(benchmarks=str(ROOT / "benchmarks/gpu"), here=str(tmp_path / "programs"))
    )
    options = ["--tiny", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--seconds", "520"]

    def start(**variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "visit.py"), *options], env={**os.environ, **variables},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    return start


def unpacked(tmp_path) -> set[str]:
    """List what a visit brings."""
    found = set()
    for name in ("results", "logs"):
        with tarfile.open(tmp_path / f"out/{name}.tar.gz") as packed:
            found |= {*packed.getnames()}
    return found


def test_a_visit_in_its_order(visiting, tmp_path):
    with visiting(speed_ends="3") as visit:
        said, _ = visit.communicate(timeout=PATIENCE)
    assert visit.returncode == forge.AGAIN, said
    order = (tmp_path / "work/order.log").read_text().splitlines()
    assert sorted(line.split()[0] for line in order[:2]) == ["check", "random_model"]
    assert [line.split()[0] for line in order[2:]] == ["proof", "speed"]
    assert float(order[2].partition("--seconds ")[2].split()[0]) == visit_module.PROOF_SECONDS
    assert 400 < float(order[3].partition("--seconds ")[2].split()[0]) <= 510
    assert "gpu_check: no C compiler" in said
    assert {"tiny/gpu_check.json", "gpu_check.log", "tiny/speed-begun.json"} <= unpacked(tmp_path)
    check = forge.load(tmp_path / "work/results/tiny/gpu_check.json")
    assert (check["ok"], check["error"], check["exit"]) == (False, "no C compiler", 1)


@pytest.mark.parametrize(("part", "status"), [("proof", 1), ("speed", 1), ("random_model", 1)])
def test_a_part_that_fails_is_the_visits_status(visiting, tmp_path, part, status):
    with visiting(**{f"{part}_ends": str(status)}) as visit:
        said, _ = visit.communicate(timeout=PATIENCE)
    assert visit.returncode == status, said
    order = (tmp_path / "work/order.log").read_text()
    assert ("speed" in order) == (part != "random_model")  # there is nothing to measure without a model


@pytest.mark.parametrize("part", ["random_model", "proof", "speed"])
def test_a_visit_that_is_told_to_end_packs_what_there_is(visiting, tmp_path, part):
    with visiting(HANGS=part) as visit:
        eventually(lambda: (tmp_path / "work/hangs").exists() or visit.poll() is not None)
        for _ in range(3):  # impatience changes nothing
            visit.send_signal(signal.SIGTERM)
        said, _ = visit.communicate(timeout=PATIENCE)
    assert visit.returncode == forge.AGAIN, said
    brought = unpacked(tmp_path)
    assert "tiny/gpu_check.json" in brought or part == "random_model"
    assert part == "random_model" or f"tiny/{part}.json" in brought  # it had the time to end
    if part == "proof":
        assert "tiny/speed-begun.json" not in brought
    with visiting() as visit:
        said, _ = visit.communicate(timeout=PATIENCE)
    assert visit.returncode == 0, said
    assert "tiny/speed-begun.json" in unpacked(tmp_path)


def test_a_visit_that_is_killed_has_packed_before(visiting, tmp_path):
    with visiting(HANGS="speed") as visit:
        eventually(lambda: (tmp_path / "out/logs.tar.gz").exists() or visit.poll() is not None)  # the second of two
        eventually(lambda: "tiny/speed-begun.json" in unpacked(tmp_path) or visit.poll() is not None)
        visit.kill()
        visit.communicate(timeout=PATIENCE)
    assert {"tiny/speed-begun.json", "tiny/gpu_check.json"} <= unpacked(tmp_path)


def test_a_measurement_has_the_gpu_to_itself(tmp_path, monkeypatch):
    """What a run of this work folder left is ended; anybody else is named."""
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
    left = subprocess.Popen(
        command, env={"LORA_FORGE_RUN_DIR": str(tmp_path / "runs/witness-1")}, stdout=subprocess.PIPE
    )
    left.stdout.readline()
    (tmp_path / "runs/witness-1").mkdir(parents=True)
    answers = iter(["70000", "70000", "3"])
    monkeypatch.setattr(forge, "smi", lambda *query: [next(answers)])
    forge.make_idle(tmp_path)
    assert left.wait(PATIENCE) == -signal.SIGKILL
    left.stdout.close()
    monkeypatch.setattr(forge, "smi", lambda *query: ["123, python, 69000"] if "apps" in query[0] else ["70000"])
    with pytest.raises(SystemExit, match=r"the GPU is in use: 70000 MiB, by 123, python, 69000\. Nothing is"):
        forge.make_idle(tmp_path, 0)
