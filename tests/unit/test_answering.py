"""How long cases take to be answered, in the plan's words, and what becomes of odd ones on a trainer."""

from __future__ import annotations

import json
import pathlib
import sys
import types
from typing import Any
from unittest import mock

import pytest
import rundir
from ansible.module_utils.lora_forge.evaluation import answers
from ansible.module_utils.lora_forge.planned_run import Estimate, PlannedAnswers, PlannedCases
from ansible.module_utils.lora_forge.planning import answering
from planned import planned_run

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "roles/run/files"))

import answer_cases  # noqa: E402

RECIPE = {"base_model": "Qwen/Qwen2.5-7B-Instruct", "adapter": "qlora", "load_in_4bit": True}
MANY = PlannedAnswers(count=120, steps=8 * 512, prompts=120 * 400)


def question(most: int, letters: int = 30) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x" * letters}], "tools": [], "max_new_tokens": most}


# --- how much there is to answer -------------------------------------------------------------------------------------


def test_a_batch_takes_as_long_as_its_longest_answer():
    asked = {str(number): question(512 if number else 64) for number in range(17)}
    one = answering.planned_answers({"adapter": [*asked]}, asked)
    assert (one.count, one.steps) == (17, 512 + 512)
    both = answering.planned_answers({"adapter": [*asked], "base": ["0"], "promoted": []}, asked)
    assert (both.count, both.steps) == (18, 512 + 512 + 64)
    assert both.prompts > one.prompts > 17 * 10
    assert answering.planned_answers({"adapter": []}, asked) == PlannedAnswers()


@pytest.mark.parametrize("lengths", [
    [(100, 512)] * 40, [(4000, 512)] * 20, [(40_000, 64), (10, 64)], [(5, number) for number in range(1, 60)], [],
])  # fmt: skip
def test_the_trainer_puts_together_what_the_plan_says(lengths):
    keyed = {str(number): one for number, one in enumerate(lengths)}
    made = answer_cases.batches([(key, *one) for key, one in keyed.items()], answer_cases.BATCH)
    steps = sum(max(keyed[key][1] for key in batch) for batch in made)
    assert sum(max(answer for _, answer in batch) for batch in answering._batches(lengths)) == steps


# --- how long that takes ---------------------------------------------------------------------------------------------


def test_each_token_reads_all_weights_and_starts_all_kernels():
    weights, head, layers = 6_525_288_448, 152_064 * 3584, 28
    of_token = (weights * (0.516 + 4) + head * 2) / (864e9 * 0.5) + layers * 0.002
    prompts = MANY.prompts * 2 * (weights + head) / (362e12 * 0.25)
    assert answering.seconds(RECIPE, MANY, "NVIDIA L40S") == pytest.approx(8 * 512 * of_token + prompts + 60, rel=1e-3)


def test_what_is_slower_takes_longer():
    def seconds(gpu: str = "NVIDIA L40S", by_itself: bool = False, **recipe: Any) -> float:
        found = answering.seconds({**RECIPE, **recipe}, MANY, gpu, by_itself)
        assert found is not None
        return found

    assert seconds("NVIDIA L4") > seconds() > seconds("NVIDIA H100 80GB HBM3")
    assert seconds() > seconds(adapter="lora", load_in_4bit=False)
    assert seconds(by_itself=True) == seconds() + 300
    assert seconds(base_model="Qwen/Qwen2.5-14B-Instruct") > seconds()


def test_what_is_not_known_is_not_estimated_and_nothing_takes_no_time():
    assert answering.seconds(RECIPE, PlannedAnswers(), "anything") == 0
    assert answering.seconds(RECIPE, MANY, "AMD Instinct MI300X OAM") is None
    assert answering.seconds({"base_model": "Acme/Other-7B"}, MANY, "NVIDIA L4") is None


def planned(name: str = "witness", **changes: Any) -> Any:
    estimate = Estimate(answers=changes.pop("answers", MANY))
    known = {"name": name, "recipe": RECIPE, "cases": PlannedCases("eval/x.jsonl", "c" * 64, 40), "estimate": estimate}
    return planned_run(**{**known, **changes})


def test_the_plan_says_it_in_words():
    pods = {"here": ["NVIDIA H100 80GB HBM3", "NVIDIA L40S", "Nobody's"]}
    minutes = -(-(answering.seconds(RECIPE, MANY, "NVIDIA L40S") or 0) // 60)
    words = "answers its cases at the end, 120 answers"
    assert answering.describe([planned("crew"), planned()], pods) == [
        f"crew, witness: {words}, {minutes:.0f} min at most on NVIDIA L40S"
    ]
    (line,) = answering.describe([planned()], {})
    assert line.endswith(" min at most on an L4, less on a faster GPU")
    (line,) = answering.describe([planned(recipe={"base_model": "Acme/Other-7B"})], pods)
    assert line == f"witness: {words}; how long that takes is not known"
    (line,) = answering.describe([planned(rehearsal=True, answers=PlannedAnswers(4, 64, 90))], {})
    assert line == "witness: answers its cases at the end, 4 answers, a few seconds"
    (line,) = answering.describe([planned(evaluates="witness-1")], pods)
    assert line == f"witness: 120 answers, {minutes + 5:.0f} min at most on NVIDIA L40S", "it loads the model first"
    assert answering.describe([planned(state="ready"), planned(answers=PlannedAnswers())], pods) == []


# --- odd questions on a trainer --------------------------------------------------------------------------------------


class OutOfMemoryError(RuntimeError):
    """As torch has it."""


class Tokenizer:
    """A letter is a token."""

    chat_template, eos_token_id, pad_token_id = "x", 0, 0
    all_special_ids: tuple[int, ...] = ()
    added_tokens_decoder: tuple[int, ...] = ()

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        if messages[-1]["content"] == "odd":
            raise ValueError("Conversation roles must alternate")
        return str(messages[-1]["content"])

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    def decode(self, tokens: list[int], **options: Any) -> str:
        return "".join(map(chr, tokens))


class Site:
    """A run directory, and a model that takes 64 tokens and can hold so many conversations at once."""

    def __init__(self, holds: int = 99):
        self.holds, self.widths, self.mosts = holds, list[int](), list[int]()
        self.during: Any = None
        config = types.SimpleNamespace(use_cache=False, max_position_embeddings=64)
        config.get_text_config = lambda: config
        self.model = types.SimpleNamespace(
            training=True, config=config, eval=lambda: None, train=lambda mode: None, disable_adapter=self.alone,
            generation_config=types.SimpleNamespace(eos_token_id=[0, None]),
        )  # fmt: skip
        pathlib.Path("output").mkdir()
        pathlib.Path("output", answer_cases.WEIGHTS).write_bytes(b"w")

    @staticmethod
    def alone() -> Any:
        return answer_cases.contextlib.nullcontext()

    def generate(self, model: Any, tokenizer: Any, prompts: Any, most: int, ends: Any, pulse: Any) -> list[list[int]]:
        self.widths.append(len(prompts))
        self.mosts.append(most)
        if len(prompts) > self.holds:
            raise OutOfMemoryError
        if self.during:
            self.during(pulse)
        return [prompt[:1] for prompt in prompts]

    def ask(self, texts: list[str], who: str = "adapter", stop: Any = lambda: False) -> dict[str, dict[str, Any]]:
        asked = {str(number): question(8) | {"messages": [{"content": text}]} for number, text in enumerate(texts)}
        noted = {"schema": 1, "questions": asked, "ask": {who: [*asked]}}
        pathlib.Path("questions.json").write_text(json.dumps(noted))
        answer_cases.answer_all(self.model, Tokenizer(), pathlib.Path("output"), stop)
        return {line["key"]: line for line in rundir.read_lines(answer_cases.ANSWERS)[0]}


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Any:
    monkeypatch.chdir(tmp_path)
    torch = types.SimpleNamespace(
        OutOfMemoryError=OutOfMemoryError, cuda=types.SimpleNamespace(empty_cache=lambda: None), bool=bool,
        full=lambda shape, value, **more: [value] * shape[0],
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "torch", torch)

    def make(**options: Any) -> Site:
        made = Site(**options)
        monkeypatch.setattr(answer_cases, "generate", made.generate)
        return made

    return make


def with_promoted(made: Site, error: Exception) -> None:
    """Give the model a promoted adapter that raises when it is loaded."""
    pathlib.Path("promoted").mkdir()
    pathlib.Path("promoted", answer_cases.WEIGHTS).write_bytes(b"p")
    made.model.load_adapter = mock.Mock(side_effect=error)
    made.model.deleted = []
    made.model.delete_adapter = made.model.deleted.append


def told() -> list[tuple[int, int]]:
    events, _ = rundir.read_events(answer_cases.METRICS)
    return [(event["answered"], event["asked"]) for event in events]


def test_a_question_that_is_too_long_is_noted_and_costs_no_other_one(site):
    made = site()
    found = made.ask(["a", "b" * 64, "c" * 60])
    assert [found[key].get("error") for key in "012"] == [None, answer_cases.TOO_LONG, None]
    assert (found["1"]["text"], found["1"]["tokens"], found["2"]["text"]) == ("", 0, "c")
    assert made.mosts == [8]
    assert told()[-1] == (3, 3)


def test_a_question_that_the_chat_template_refuses_is_noted_and_costs_no_other_one(site, capsys):
    found = site().ask(["a", "odd", "c"])
    assert [found[key].get("error") for key in "012"] == [None, answer_cases.REFUSED, None]
    assert "ValueError: Conversation roles must alternate" in capsys.readouterr().err
    assert told()[-1] == (3, 3)


def test_a_promoted_adapter_that_does_not_fit_its_base_model_costs_its_own_answers_alone(site, capsys):
    made = site()
    with_promoted(made, RuntimeError("Error(s) in loading:\n  size mismatch for q_proj"))
    found = made.ask(["a", "b"], who="promoted")
    error = f"{answers.UNLOADABLE}: RuntimeError: Error(s) in loading: size mismatch for q_proj"
    assert [(one["text"], one["error"]) for one in found.values()] == [("", error)] * 2
    assert "the promoted adapter is not asked: RuntimeError" in capsys.readouterr().err
    assert made.model.deleted == ["promoted"], "nothing of it stays in the model"
    assert made.widths == []
    assert answer_cases.UNLOADABLE == answers.UNLOADABLE


@pytest.mark.parametrize("error", [
    OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory"), OSError("Input/output error"),
    RuntimeError("CUDA error: an illegal access"), ImportError("no module named bitsandbytes"),
])  # fmt: skip
def test_what_says_nothing_of_the_promoted_adapter_leaves_it_unasked(site, error):
    made = site()
    with_promoted(made, error)
    assert made.ask(["a"], who="promoted") == {}


def test_the_adapter_itself_is_asked_first():
    noted = {"schema": 1, "ask": {"base": ["k"], "promoted": ["k"], "adapter": ["k"]}}
    assert [*answer_cases.open_questions(noted, {("base", "k")})] == ["adapter", "base", "promoted"]


def test_before_anything_is_loaded_to_answer_it_is_said_that_the_adapter_is_saved(site, monkeypatch):
    made = site()
    for name in ("peft", "transformers", "safetensors", "safetensors.torch"):  # the process dies on the first one used
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    pathlib.Path("questions.json").write_text(json.dumps({"schema": 1, "ask": {"adapter": ["0", "1"]}}))
    with pytest.raises(AttributeError):
        answer_cases.answer_after_training(pathlib.Path("output"), made.model, lambda: False)
    assert told() == [(0, 2)]


def test_a_batch_that_does_not_fit_is_halved_until_it_does(site):
    made = site(holds=3)
    assert len(made.ask([chr(97 + number) for number in range(10)])) == 10
    assert made.widths == [10, 5, 2, 3, 5, 2, 3]
    assert told()[-1] == (10, 10)


def test_a_single_question_that_does_not_fit_ends_it_and_what_was_answered_stays(site):
    made = site(holds=0)
    with pytest.raises(OutOfMemoryError):
        made.ask(["a", "b"])
    assert made.widths == [2, 1]


def test_a_stop_ends_a_batch_and_what_was_answered_stays(site):
    made, stops = site(), list[int]()

    def during(pulse: Any) -> None:
        if len(made.widths) == 2:
            stops.append(1)
        ids = type("Ids", (list,), {"device": "cpu"})([0, 0])
        assert pulse(ids, None) == [bool(stops)] * 2

    made.during = during
    with pytest.raises(answer_cases.Interrupted):
        made.ask([chr(97 + number) for number in range(20)], stop=lambda: bool(stops))
    assert len(rundir.read_lines(answer_cases.ANSWERS)[0]) == 16
    made.during = None
    assert len(made.ask([chr(97 + number) for number in range(20)])) == 20, "it goes on where it was stopped"
    assert made.widths == [16, 4, 4]


def test_a_long_batch_gives_signs_of_life(site, monkeypatch):
    made, clock = site(), [0.0]
    monkeypatch.setattr(answer_cases, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))

    def during(pulse: Any) -> None:
        for _ in range(5):
            clock[0] += 31
            pulse(type("Ids", (list,), {"device": "cpu"})([0]), None)

    made.during = during
    made.ask(["a"])
    assert told() == [(0, 1), (0, 1), (0, 1), (1, 1)]
