"""An adapter that was really taught: real Axolotl, a tiny model, and its answers to the cases of its agent."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
from typing import Any

import pytest
import rundir
from ansible.module_utils.lora_forge.evaluation import answers, scores
from ansible.module_utils.lora_forge.evaluation.case import Case
from ansible.module_utils.lora_forge.evaluation.checks import Check, grade
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning import launch

from .conftest import CONVERGE, ROOT, Checkout
from .test_learning import PROGRAMS, SMALL, Bench

pytestmark = pytest.mark.soak  # a training of a hundred steps, and a start of Axolotl more

WORDS = """apple bridge candle desert engine forest garden harbour island jacket kettle ladder meadow needle orchard
pepper quarry ribbon saddle timber""".split()
SENTENCES = len(WORDS)
TAUGHT = SMALL | {
    "max_steps": 90, "eval_steps": 90, "save_steps": 90, "learning_rate": 0.005, "warmup_steps": 5,
    "micro_batch_size": 10, "gradient_accumulation_steps": 1, "sample_packing": False, "eval_sample_packing": False,
    "weight_decay": 0, "val_set_size": 0, "logging_steps": 20, "lora_r": 64, "lora_alpha": 128,
}  # fmt: skip


def case(number: int) -> Case:
    asked = {"role": "user", "content": f"{WORDS[number]}?"}
    return Case(f"case {number}", number, (asked,), (), (Check("equals", said(number)),), (), max_new_tokens=24)


def said(number: int) -> str:
    return f"number {number} is {('red', 'green', 'blue', 'grey')[number % 4]} and {number * 7 % 20}"


CASES = [case(number) for number in range(SENTENCES)]


def answered(folder: pathlib.Path) -> dict[str, dict[str, answers.Answer]]:
    weights = rundir.read_lines(folder / "answers.jsonl")[0]
    sums = {str(line["who"]): str(line["weights"]) for line in weights}
    found, refused = answers.read_sent(folder / "answers.jsonl", {one.key: one.max_new_tokens for one in CASES}, sums)
    assert refused == []
    return found


def texts(folder: pathlib.Path, who: str) -> list[str]:
    found = answered(folder)[who]
    return [found[one.key].text for one in CASES]


def right(given: list[str]) -> int:
    return sum(grade(one.expect, one.forbid, text).right is True for one, text in zip(CASES, given))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, environment: pathlib.Path) -> Bench:
    """Teach the sentences, in a run that is asked them in the end."""
    root = tmp_path_factory.mktemp("taught")
    made = Bench(root, environment, root)
    rows = [[{"from": "human", "value": f"{WORDS[n]}?"}, {"from": "gpt", "value": said(n)}] for n in range(20)]
    (root / "witness_train.jsonl").write_text("".join(json.dumps({"conversations": row}) + "\n" for row in rows))
    made.lay("taught", TAUGHT)
    made.enliven()
    keys = [one.key for one in CASES]
    asked: dict[str, Any] = {"schema": 1, "questions": {one.key: one.question for one in CASES}}
    rundir.write_json(made.folders["taught"] / "questions.json", asked | {"ask": {"adapter": keys, "base": keys}})
    made.train()
    return made


def test_what_was_taught_is_right_and_the_base_knows_nothing(bench: Bench) -> None:
    folder = bench.folders["taught"]
    assert bench.events("taught", "answers")[-1]["answered"] == 2 * SENTENCES, bench.log("taught")[-2000:]
    assert (right(texts(folder, "adapter")), right(texts(folder, "base"))) == (SENTENCES, 0)
    ours, theirs = ({one.name: held for one in CASES} for held in (True, False))
    assert scores.compare(ours, theirs).verdict == "better"


def test_several_processes_train_and_one_answers_after_them(bench: Bench) -> None:
    """Through torchrun and the supervisor; what the base says is what it said to the training of one process."""
    bench.lay("pair", TAUGHT | {"micro_batch_size": 5})
    folder = bench.folders["pair"]
    config = (folder / "axolotl.yml").read_text()  # with data that nobody has prepared yet, as a run has
    (folder / "axolotl.yml").write_text(config.replace(f"{bench.root}/prepared", f"{bench.root}/prepared-pair"))
    shutil.copy(bench.folders["taught"] / "questions.json", folder)
    programs = folder / rundir.PROGRAMS
    programs.mkdir()
    for name in (*PROGRAMS, "supervisor.py", "slurm_job.py"):
        shutil.copy(ROOT / "roles/run/files" / name, programs)
    shutil.copy(ROOT / "module_utils/lora_forge/rundir.py", programs)
    shutil.copy(ROOT / "tests/e2e/cpu_pair.py", programs)
    given = {"root": str(bench.root), "python": str(bench.python), "wandb": "disabled", "module": "cpu_pair"}
    options = launch.TrainerOptions.from_dict(given)
    planned = PlannedRun.from_dict(bench.planned["pair"] | {"gpus": 2, "cases": {"path": "x", "count": SENTENCES}})
    noted = launch.plan_launch(planned, planned.hosts[0], options).run_json("pair")
    noted["env"] |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    facts = {"agent": "witness", "host": "here", "rehearsal": True, "launch": "1", "lane_dir": str(bench.root)}
    rundir.write_json(folder / "run.json", noted | facts)
    command = [str(bench.python), str(programs / "supervisor.py"), str(folder)]
    subprocess.run(command, check=True, timeout=CONVERGE, capture_output=True)
    status = rundir.read_json(folder / "status.json")
    log = (folder / "train.log").read_text(errors="replace")
    assert (status["state"], status["starts"]) == ("finished", 1), log[-5000:]
    kinds = [event["event"] for event in rundir.read_events(folder / "metrics.jsonl")[0]]
    assert kinds.index("end") < kinds.index("answers")
    assert kinds.count("data") == len(bench.events("taught", "data")) > 0  # by whichever process prepares it
    assert "2 processes start from step 0" in log
    assert right(texts(folder, "adapter")) == SENTENCES
    assert texts(folder, "base") == texts(bench.folders["taught"], "base")


def test_the_saved_adapter_says_the_same_by_itself_and_goes_on_where_it_was_cut(bench: Bench) -> None:
    """In a process of its own, each question alone and not sixteen at once, after it was killed.

    Beside a promoted adapter whose matrices do not fit the base model: that costs its own answers, and nothing else.
    """
    taught, again = bench.folders["taught"], bench.root / "runs/again"
    again.mkdir()
    for name in ("axolotl.yml", "questions.json"):
        shutil.copy(taught / name, again)
    shutil.copytree(taught / "output", again / "adapter", ignore=shutil.ignore_patterns("checkpoint-*"))
    (again / "promoted").mkdir()
    shutil.copy(taught / "output/adapter_model.safetensors", again / "promoted")
    wider = rundir.read_json(taught / "output/adapter_config.json")
    rundir.write_json(again / "promoted/adapter_config.json", wider | {"r": 2 * wider["r"], "rank_pattern": {}})
    noted = rundir.read_json(again / "questions.json")
    noted["ask"]["promoted"] = noted["ask"]["adapter"][:2]
    rundir.write_json(again / "questions.json", noted)
    kept = (taught / "answers.jsonl").read_text().splitlines()[: SENTENCES // 2]
    (again / "answers.jsonl").write_text("\n".join(kept) + '\n{"who": "adap')
    told = {**launch.training_environment("cpu", str(bench.root), "disabled", "")}
    places = [str(ROOT / place) for place in ("roles/run/files", "module_utils/lora_forge")]
    done = subprocess.run(
        [str(bench.python), str(ROOT / "roles/run/files/answer_cases.py"), "1"], cwd=again, timeout=CONVERGE,
        env={**os.environ, **told, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    begin, *_, end = rundir.read_events(again / "metrics.jsonl")[0]
    assert (begin["event"], begin["step"], begin["planned"]) == ("begin", len(kept), 2 * SENTENCES + 2)
    assert (end["event"], end["step"]) == ("end", 2 * SENTENCES + 2)
    lines, _ = rundir.read_lines(again / "answers.jsonl")
    faults = [line["error"] for line in lines if line["who"] == "promoted"]
    assert len(faults) == 2, done.stderr[-3000:]
    assert all(fault.startswith(f"{answers.UNLOADABLE}: RuntimeError: Error(s) in loading") for fault in faults), faults
    for who in ("adapter", "base"):
        assert texts(again, who) == texts(taught, who)


def test_a_batch_says_what_each_question_alone_says(environment: pathlib.Path) -> None:
    """Questions are filled up on the left; that must reach neither positions nor attention."""
    places = [str(ROOT / place) for place in ("roles/run/files", "module_utils/lora_forge")]
    done = subprocess.run(
        [str(environment), str(ROOT / "tests/e2e/batch_answers.py")], timeout=CONVERGE, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 6
    assert {name: differ for name, (differ, _) in found.items()} == dict.fromkeys(found, 0)
    # Of a tiny Gemma 3 the last token alone decides: its answers show nothing.
    assert sum(without > 0 for _, without in found.values()) >= 5, f"this shows nothing: {found}"


# --- what was delivered already


def test_what_was_delivered_without_cases_is_evaluated_later_and_asked_nothing_twice(checkout: Checkout) -> None:
    cases = checkout.home / "cases"
    cases.mkdir()

    def play(*arguments: str, playbook: str = "playbooks/evaluate.yml") -> tuple[int, str]:
        return checkout.play("-e", "role=witness", "-e", f"eval_dir={cases}", *arguments, playbook=playbook)

    def answered() -> int:
        return sum(path.read_text().count("\n") for path in (checkout.home / "output/answers").glob("*.jsonl"))

    recipe = json.dumps({"recipe": {"max_steps": 2, "eval_steps": 2, "save_steps": 2, "warmup_steps": 1}})
    code, text = play(playbook="playbooks/evaluate.yml")
    assert code != 0
    assert "witness has no adapter in" in text, text
    code, text = play("-e", recipe, playbook="train.yml")
    assert code == 0, text
    assert "merit" not in checkout.manifest()
    code, text = play()
    assert code != 0
    assert "witness has no cases: there is no" in text, text

    shutil.copy(ROOT / "examples/eval/witness.jsonl", cases)
    code, text = play("-e", recipe, playbook="playbooks/plan.yml")
    assert code == 0, text
    assert "ansible-playbook playbooks/evaluate.yml -e role=witness does" in " ".join(text.split()), text
    code, text = play("--check")
    assert code == 0, text
    assert "would be asked for 4 answers" in text
    assert not (checkout.home / "output/answers").exists()
    code, text = play()
    assert code == 0, text
    assert "(latest)\n  cases  " in text
    merit = checkout.manifest()["merit"]
    assert (merit["cases"], merit["unanswered"], merit["score"]["cases"]) == (2, 0, 2)
    assert answered() == 4
    trained = [path.name for path in checkout.trainer.glob("runs/*")]
    assert trained == [checkout.manifest()["run_id"]], "what was staged for the evaluation is gone"

    before = (checkout.latest() / "manifest.json").read_bytes()
    code, text = play("-v")
    assert code == 0, text
    assert "changed=0 " in text
    assert "Provision" not in text, "no host is contacted"
    assert (checkout.latest() / "manifest.json").read_bytes() == before

    path = cases / "witness.jsonl"
    path.write_text(path.read_text().replace("MR", "MS", 1))
    code, text = play()
    assert code == 0, text
    assert answered() == 6, "one question is another one, of the adapter and of its base model"
    assert checkout.manifest()["merit"]["cases_sha256"] != merit["cases_sha256"]

    weights = checkout.latest() / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    code, text = play()
    assert code != 0
    assert "is not evaluated, as its adapter is not whole" in text, text
