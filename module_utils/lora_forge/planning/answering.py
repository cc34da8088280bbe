"""How long a trainer takes to answer cases: what is open of them, and what a GPU makes of that. Pure functions."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from ansible.module_utils.lora_forge.planned_run import PlannedAnswers, PlannedRun
from ansible.module_utils.lora_forge.planning import memory

# From the makers' data sheets: dense bf16 TFLOPS with fp32 accumulation, and GB/s of memory, of each name the slowest
# card. The first word that a GPU's id holds counts.
CARDS = {
    "B200": (2250, 8000), "H200": (989, 4800), "H100 NVL": (835, 3900), "H100 PCIe": (756, 2000), "H100": (989, 3350),
    "GH200": (989, 4000), "A100": (312, 1555), "A40": (150, 696), "A6000": (155, 768), "RTX 6000 Ada": (364, 960),
    "RTX PRO 6000": (504, 1597), "L40S": (362, 864), "L40": (181, 864), "L4": (60, 300), "RTX 5090": (210, 1792),
    "RTX 4090": (165, 1008), "RTX 3090": (71, 936), "A5000": (111, 768),
}  # fmt: skip
SLOWEST = min(CARDS, key=lambda name: CARDS[name][1])
UTILISATION = 0.25  # of the TFLOPS, in QLoRA: an assumption on the careful side, not measured
_BANDWIDTH = 0.5  # of the GB/s, in generation, the keys and values among what is read; an assumption too
# Seconds that a layer takes for a token, however fast the memory is: a hundred kernels, with LoRA's matrices beside
# each linear module, are started from Python one by one, at 10 to 20 µs. An assumption too.
_LAYER = 0.002
_UNPACKED = 4.0  # bytes of a quantised weight more: it is written in bf16 and read again for each token
_LOADING = 60.0  # seconds, for whichever adapter is loaded besides
_STARTING = 300.0  # seconds of a process of its own, which loads the base model anew
# What answer_cases.py puts together: questions at once, and tokens of prompts and answers at once.
_BATCH, _BATCH_TOKENS = 16, 32_768
_CHARS_PER_TOKEN = 3.0  # of a question, with all that a chat template writes about it


def card_of(gpu: str) -> Optional[tuple[float, float]]:
    """Return the TFLOPS and the GB/s of a GPU, by its name or RunPod's id; None where it is not known."""
    return next((figures for word, figures in CARDS.items() if re.search(rf"\b{word}\b", gpu, re.I)), None)


def planned_answers(ask: Mapping[str, Sequence[str]], questions: Mapping[str, Mapping[str, Any]]) -> PlannedAnswers:
    """Say how much there is to answer.

    Args:
        ask: By who is asked, the keys of the questions.
        questions: By their keys, as ``Case.question`` gives them.
    """
    lengths = {key: (_tokens(question), int(question["max_new_tokens"])) for key, question in questions.items()}
    batches = [batch for keys in ask.values() for batch in _batches([lengths[key] for key in keys])]
    asked = [lengths[key] for keys in ask.values() for key in keys]
    return PlannedAnswers(
        count=len(asked),
        steps=sum(max(answer for _, answer in batch) for batch in batches),
        prompts=sum(prompt for prompt, _ in asked),
    )


def _tokens(question: Mapping[str, Any]) -> int:
    text = json.dumps([question["messages"], question["tools"]], ensure_ascii=False)
    return math.ceil(len(text) / _CHARS_PER_TOKEN)


def _batches(lengths: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Put questions together as answer_cases.py does.

    Args:
        lengths: Of each question the tokens of its prompt, and those that its answer may have.
    """
    made: list[list[tuple[int, int]]] = []
    longest = 0
    for prompt, answer in sorted(lengths, key=lambda one: (one[1], one[0])):
        longest = max(longest, prompt + answer)
        if not made or len(made[-1]) == _BATCH or longest * (len(made[-1]) + 1) > _BATCH_TOKENS:
            made.append([])
            longest = prompt + answer
        made[-1].append((prompt, answer))
    return made


def seconds(recipe: dict[str, Any], answers: PlannedAnswers, gpu: str, by_itself: bool = False) -> Optional[float]:
    """Estimate how long a GPU takes to answer, at most: as if each answer had all the tokens that it may have.

    For each token of a batch all weights are read once (Pope et al. 2022, «Efficiently Scaling Transformer Inference»,
    section 2.1: generation is bound by the memory): weights × bytes / (GB/s × _BANDWIDTH), and layers × _LAYER is
    spent on starting kernels. Prompts take 2 N FLOPs a token, N as in ``costs.training_hours``. Loading is added.

    Args:
        recipe: The run's.
        answers: What there is to answer.
        gpu: Its name, or RunPod's id.
        by_itself: See :func:`is_by_itself`.

    Returns:
        None where the model or the GPU is not known.
    """
    if not answers.count:
        return 0.0
    model, card = memory.find_model(recipe), card_of(gpu)
    if model is None or card is None:
        return None
    teraflops, gigabytes = card
    of_weight = memory.weight_bytes(recipe)
    of_weight += _UNPACKED if of_weight < memory.BF16 else 0.0
    head = model.vocab * model.hidden
    read = model.linear_weights() * of_weight + head * memory.BF16
    token = read / (gigabytes * 1e9 * _BANDWIDTH) + model.layers * _LAYER
    prompts = answers.prompts * 2 * (model.linear_weights() + head) / (teraflops * 1e12 * UTILISATION)
    return answers.steps * token + prompts + _LOADING + _STARTING * by_itself


def is_by_itself(evaluates: str, processes: int) -> bool:
    """Tell whether a process of its own answers, which loads the base model: after several that train, or without any.

    Args:
        evaluates: The run whose adapter is asked; empty for a training.
        processes: How many train it.
    """
    return bool(evaluates) or processes > 1


def describe(runs: Sequence[PlannedRun], gpus: Mapping[str, Sequence[str]]) -> list[str]:
    """Say how many answers are wanted, and how long that takes at most: a line for all agents with the same.

    Args:
        runs: The planned runs.
        gpus: By the name of a trainer the GPUs that it may have, as far as the inventory says.
    """
    lines: dict[str, list[str]] = {}
    for run in runs:
        if run.state != "ready" and run.estimate.answers.count:
            lines.setdefault(_described(run, gpus.get(run.trainer, ())), []).append(run.name)
    return [f"{', '.join(names)}: {words}" for words, names in lines.items()]


def _described(run: PlannedRun, gpus: Sequence[str]) -> str:
    count = run.estimate.answers.count
    words = f"{count} answers" if run.evaluates else f"answers its cases at the end, {count} answers"
    if run.rehearsal:
        return f"{words}, a few seconds"
    known = [gpu for gpu in gpus if card_of(gpu)] or [SLOWEST]
    by_itself = is_by_itself(run.evaluates, run.processes)
    times = {gpu: seconds(run.recipe, run.estimate.answers, gpu, by_itself) for gpu in known}
    gpu, longest = max(times.items(), key=lambda one: one[1] or 0.0)
    if longest is None:
        return f"{words}; how long that takes is not known"
    minutes = math.ceil(longest / 60)
    return f"{words}, {minutes} min at most on {gpu if gpus else f'an {gpu}, less on a faster GPU'}"
