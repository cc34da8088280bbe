"""Answer an agent's cases: with the adapter that was trained, with its base model, and with the promoted adapter.

The training's own process does it at its end, as the model is loaded there (lora_forge_axolotl.py). Started by itself,
``answer_cases.py`` in a run directory loads the base model as Axolotl loads it for that recipe, on one GPU, and goes on
where an earlier start was cut off; so it is where several processes have trained. What is expected of an answer is not
known here: that is the controller's.

``questions.json``: ``{"schema": 1, "questions": {key: {"messages": […], "tools": […], "max_new_tokens": 512}}, "ask":
{"adapter": [key, …], "base": […], "promoted": […]}}``. ``answers.jsonl``, a line for each answer: ``{"who": …, "key":
…, "text": …, "tokens": …, "ended": …, "weights": …, "template": …}``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Optional

import rundir

SCHEMA = 1
QUESTIONS = pathlib.Path("questions.json")
ANSWERS = pathlib.Path(rundir.ANSWERS)
METRICS = pathlib.Path("metrics.jsonl")
STOPS = (pathlib.Path("stop"), pathlib.Path(rundir.STOPPING))
FOLDERS = (pathlib.Path("adapter"), pathlib.Path("output"))  # where an adapter lies: given by itself, or trained here
PROMOTED = pathlib.Path("promoted")  # the folder of the adapter that others are held against
WEIGHTS = "adapter_model.safetensors"
ADAPTER, BASE, OTHER = "adapter", "base", "promoted"  # who is asked
BATCH = 16  # conversations at once
BATCH_TOKENS = 32_768  # of prompts and answers at once: what a GPU holds beside the weights
PULSE = 60.0  # seconds between two signs of life while a batch is answered
TOO_LONG = "the question is longer than the model takes"
REFUSED = "the chat template does not take the question"
UNLOADABLE = "it cannot be loaded"  # of the promoted adapter; the controller knows it by these words


class Interrupted(Exception):
    """A stop was asked for; what was answered is kept."""


def open_questions(noted: dict[str, Any], answered: set[tuple[str, str]]) -> dict[str, list[str]]:
    """Return whom to ask what is not answered yet, the adapter first: a pod may end in the midst of it.

    Args:
        noted: questions.json.
        answered: Pairs of who and key.
    """
    asked = noted.get("ask") if noted.get("schema") == SCHEMA else None
    return {
        who: [key for key in (asked or {}).get(who, ()) if (who, key) not in answered] for who in (ADAPTER, BASE, OTHER)
    }


def read_answered(path: pathlib.Path = ANSWERS) -> set[tuple[str, str]]:
    """Read which answers an earlier start has left; a line that was cut off counts as none, and is cut away."""
    lines, end = rundir.read_lines(path)
    if path.exists() and path.stat().st_size > end:
        os.truncate(path, end)
    return {(str(line.get("who")), str(line.get("key"))) for line in lines if isinstance(line.get("text"), str)}


def digest(path: pathlib.Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def render(tokenizer: Any, question: dict[str, Any]) -> Optional[list[int]]:
    """Return the tokens of a question as a server makes them, by the adapter's own template; None if that refuses."""
    try:
        text = tokenizer.apply_chat_template(
            question["messages"], tools=question["tools"] or None, add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # whatever a template raises: it costs this question, and no other one
        print(f"{REFUSED}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return None
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def ending_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end an answer: those of the model and the tokenizer, and what ends a turn in the template.

    A base model's own end may never have been trained where the template ends turns with another token.
    """
    given = getattr(model.generation_config, "eos_token_id", None)
    ends = set(given if isinstance(given, (list, tuple)) else [given]) | {tokenizer.eos_token_id}
    said = "markanswer"
    turns = [{"role": "user", "content": "markquestion"}, {"role": "assistant", "content": said}]
    with contextlib.suppress(Exception):  # a template that takes no such conversation
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        after = tokenizer(text.rpartition(said)[2], add_special_tokens=False)["input_ids"]
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        ends |= {token for token in after[:1] if token in special}
    return sorted(token for token in ends if token is not None)


def batches(lengths: Sequence[tuple[str, int, int]], widest: int) -> Iterator[list[str]]:
    """Put questions of like lengths together.

    Args:
        lengths: Of each question its key, the tokens of its prompt, and those that its answer may have.
        widest: How many at once, at most.
    """
    batch: list[str] = []
    longest = 0
    for key, prompt, answer in sorted(lengths, key=lambda one: (one[2], one[1], one[0])):
        longest = max(longest, prompt + answer)
        if batch and (len(batch) == widest or longest * (len(batch) + 1) > BATCH_TOKENS):
            yield batch
            batch, longest = [], prompt + answer
        batch.append(key)
    if batch:
        yield batch


class Pulse:
    """What transformers calls after each token of a batch: gives a sign of life, and ends the batch for a stop.

    Args:
        stop: Tells whether to stop.
        tell: Gives the sign.
    """

    def __init__(self, stop: Callable[[], bool], tell: Callable[[], None]):
        self.stop, self.tell = stop, tell
        self.stopped = False
        self.told = time.monotonic()

    def __call__(self, ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        if time.monotonic() - self.told > PULSE:
            self.tell()
            self.told = time.monotonic()
        self.stopped = self.stopped or self.stop()
        return torch.full((len(ids),), self.stopped, dtype=torch.bool, device=ids.device)


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], most: int, ends: list[int], pulse: Any = None
) -> list[list[int]]:
    """Let a model go on greedily; return the new tokens of each, the one that ended it left out.

    Args:
        model: The model, in the state in which it is to answer.
        tokenizer: Its tokenizer.
        prompts: Tokens.
        most: New tokens of each.
        ends: Tokens that end an answer.
        pulse: Called after each token; None for nothing.
    """
    import torch

    width = max(map(len, prompts))
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    ids = torch.tensor([[fill] * (width - len(one)) + one for one in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts], device=model.device)
    with torch.inference_mode():
        made = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=most, do_sample=False, num_beams=1, use_cache=True,
            temperature=None, top_p=None, top_k=None, repetition_penalty=1.0, eos_token_id=ends, pad_token_id=fill,
            stopping_criteria=[pulse] if pulse else None,
        )  # fmt: skip
    answers = []
    for row in made[:, width:].tolist():
        end = next((at for at, token in enumerate(row) if token in ends), len(row))
        answers.append(row[:end])
    return answers


@contextlib.contextmanager
def answering(model: Any) -> Iterator[None]:
    """Put a model that was trained into the state in which it answers, and back."""
    training, cache = model.training, model.config.use_cache
    checkpointing = getattr(model, "is_gradient_checkpointing", False)
    model.eval()
    model.config.use_cache = True
    if checkpointing:
        model.gradient_checkpointing_disable()
    try:
        yield
    finally:
        model.train(training)
        model.config.use_cache = cache
        if checkpointing:
            model.gradient_checkpointing_enable()


@contextlib.contextmanager
def asked(model: Any, who: str) -> Iterator[None]:
    """Switch to whom is asked: the adapter, the base model without it, or the promoted adapter, which is loaded."""
    if who == BASE:
        with model.disable_adapter():
            yield
    elif who == OTHER:
        model.set_adapter(OTHER)
        try:
            yield
        finally:
            model.set_adapter("default")
            model.delete_adapter(OTHER)
    else:
        yield


def load_promoted(model: Any) -> tuple[str, bool]:
    """Load the promoted adapter beside the one in question, which is evaluated whatever becomes of that.

    Args:
        model: PEFT's.

    Returns:
        Why it cannot be loaded, and nothing where it is; and whether that is the adapter's own fault. Want of memory
        or of a library, a disk or a GPU that fails say nothing of it.
    """
    import torch

    try:
        model.load_adapter(str(PROMOTED), adapter_name=OTHER, is_trainable=False)
    except Exception as error:  # whatever PEFT raises of an adapter that does not fit its base model
        with contextlib.suppress(Exception):  # of what was loaded before that nothing is to stay
            model.delete_adapter(OTHER)
        passing = isinstance(error, (MemoryError, OSError, ImportError, torch.OutOfMemoryError))
        passing = passing or any(word in str(error) for word in ("memory", "CUDA error"))
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        print(f"the promoted adapter is not asked: {why}", file=sys.stderr, flush=True)
        return f"{UNLOADABLE}: {why}", not passing
    return "", False


def write(answer: dict[str, Any]) -> None:
    """Add an answer."""
    rundir.append_line(ANSWERS, answer)


def tell(done: int, count: int) -> None:
    """Say how far it is."""
    rundir.append_event(METRICS, "answers", answered=done, asked=count)


def answer_all(
    model: Any,
    tokenizer: Any,
    adapter: pathlib.Path,
    stop: Callable[[], bool],
    widest: int = BATCH,
    tell: Callable[[int, int], None] = tell,
) -> int:
    """Answer what is open; each answer is on the disk as soon as it is there.

    Args:
        model: PEFT's, on its device.
        tokenizer: The adapter's own.
        adapter: Its folder, with the weights that ``model`` has.
        stop: Tells whether to stop.
        widest: Questions at once, at most.
        tell: Is told how many of how many have been answered.

    Returns:
        How many answers were given.

    Raises:
        Interrupted: A stop was asked for.
    """
    import torch

    noted = rundir.read_json(QUESTIONS)
    left = open_questions(noted, read_answered())
    count = sum(map(len, left.values()))
    if not count:
        return 0
    asked_keys = dict.fromkeys(key for keys in left.values() for key in keys)
    prompts = {key: render(tokenizer, noted["questions"][key]) for key in asked_keys}
    takes = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)
    ends = ending_tokens(model, tokenizer)
    template = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()
    weights = {ADAPTER: digest(adapter / WEIGHTS), BASE: ""}
    if left[OTHER]:
        weights[OTHER] = digest(PROMOTED / WEIGHTS)
    done = 0
    tell(done, count)
    with answering(model):
        for who, keys in left.items():
            if not keys:
                continue
            limits = {key: int(noted["questions"][key]["max_new_tokens"]) for key in keys}
            common = {"who": who, "weights": weights[who], "template": template}
            why, lasts = load_promoted(model) if who == OTHER else ("", False)
            if why:
                for key in keys if lasts else ():
                    write(common | {"key": key, "text": "", "tokens": 0, "ended": False, "error": why})
                continue
            fitting, ready = [], dict[str, list[int]]()
            for key in keys:
                prompt = prompts[key]
                if prompt is None or len(prompt) >= takes:
                    why = REFUSED if prompt is None else TOO_LONG
                    write(common | {"key": key, "text": "", "tokens": 0, "ended": False, "error": why})
                    done += 1
                else:
                    limits[key] = min(limits[key], takes - len(prompt))
                    fitting.append((key, len(prompt), limits[key]))
                    ready[key] = prompt
            waiting = list(batches(fitting, widest))
            with asked(model, who):
                while waiting:
                    if stop():
                        raise Interrupted
                    batch = waiting.pop(0)
                    began, pulse = time.monotonic(), Pulse(stop, functools.partial(tell, done, count))
                    try:
                        most = max(limits[key] for key in batch)
                        answers = generate(model, tokenizer, [ready[key] for key in batch], most, ends, pulse)
                    except torch.OutOfMemoryError:
                        if len(batch) == 1:
                            raise
                        torch.cuda.empty_cache()
                        half = len(batch) // 2
                        waiting[:0] = [batch[:half], batch[half:]]
                        continue
                    if pulse.stopped:
                        raise Interrupted
                    seconds = round((time.monotonic() - began) / len(batch), 3)
                    for key, tokens in zip(batch, answers):
                        kept = tokens[: limits[key]]
                        text = tokenizer.decode(kept, skip_special_tokens=False)
                        row = {"key": key, "text": text, "tokens": len(kept), "ended": len(tokens) < limits[key]}
                        write(common | row | {"seconds": seconds})
                    done += len(batch)
                    tell(done, count)
    return done


def answer_after_training(output: pathlib.Path, model: Any, stop: Callable[[], bool]) -> None:
    """Answer with the model of a training that has just ended, with the weights that it has saved.

    Args:
        output: Where they are, with the tokenizer.
        model: PEFT's.
        stop: Tells whether to stop.
    """
    import peft
    import safetensors.torch
    import transformers

    if stop() or not hasattr(model, "disable_adapter"):
        return
    # Said first: from here on whatever ends this process, be it the host's memory, costs answers and not the adapter.
    count = sum(map(len, open_questions(rundir.read_json(QUESTIONS), read_answered()).values()))
    if not count:
        return
    tell(0, count)
    # What is delivered is what is saved, be it rounded or of an earlier step.
    peft.set_peft_model_state_dict(model, safetensors.torch.load_file(output / WEIGHTS, device=str(model.device)))
    with contextlib.suppress(Interrupted):
        answer_all(model, transformers.AutoTokenizer.from_pretrained(output), output, stop)


def load_and_answer(
    adapter: pathlib.Path, stop: Callable[[], bool], widest: int, tell: Callable[[int, int], None]
) -> None:
    """Load base model and adapter in a process of its own, and answer; see :func:`answer_all`."""
    import lora_forge_axolotl
    from axolotl.cli.config import load_cfg
    from axolotl.cli.utils import load_model_and_tokenizer

    lora_forge_axolotl.LoraForgePlugin.trains = False
    alone = {"fsdp_config": None, "fsdp_version": None, "deepspeed": None}  # this process has the whole model
    cfg = load_cfg("axolotl.yml", lora_model_dir=str(adapter), tokenizer_config=str(adapter), **alone)
    model, tokenizer, _ = load_model_and_tokenizer(cfg=cfg, inference=True)
    answer_all(model, tokenizer, adapter, stop, widest, tell)


def main() -> int:
    """Load the base model and the adapter as Axolotl does, and answer what is open: ``answer_cases.py [BATCH]``.

    With an adapter that was trained here it is the end of a training. With one that was brought it is all that happens,
    and it tells of its begin, its answers and its end as a training does of its steps.
    """
    widest = int(sys.argv[1]) if len(sys.argv) > 1 else BATCH
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))

    def stop() -> bool:
        return bool(stopping) or any(path.exists() for path in STOPS)

    brought, trained = FOLDERS
    if not (brought / WEIGHTS).exists():
        with contextlib.suppress(Interrupted):
            load_and_answer(trained, stop, widest, tell)
        return 0
    before, noted = read_answered(), rundir.read_json(QUESTIONS)
    planned = sum(map(len, open_questions(noted, set()).values()))
    at = planned - sum(map(len, open_questions(noted, before).values()))
    rundir.append_event(METRICS, "begin", step=at, planned=planned)

    def tell_steps(done: int, count: int) -> None:
        step = planned - count + done
        rundir.append_event(METRICS, "answers", answered=step, asked=planned, step=step, planned=planned)

    if at < planned:
        try:
            load_and_answer(brought, stop, widest, tell_steps)
        except Interrupted:
            return 0  # without an end: the supervisor knows what that means
    rundir.append_event(METRICS, "end", step=planned, planned=planned)
    return 0


if __name__ == "__main__":
    sys.exit(main())
