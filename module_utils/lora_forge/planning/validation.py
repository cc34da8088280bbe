"""Axolotl's own validation of planned recipes, on the controller, before anything is rented.

Only Axolotl knows all of its rules between keys, and only an environment of the trainers' locks has Axolotl. Where this
machine has one, it is asked in a process of its own; what it has taken once is not asked again. Where the configuration
of a base model is on this machine, too, the same process holds the recipe against it. A trainer does so in any case,
before the weights are there (the action ``preflight``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.data import dataset
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning import launch, memory, recipe
from ansible.module_utils.lora_forge.planning.fleet import Trainer
from ansible.module_utils.lora_forge.planning.plan import Plan
from ansible.module_utils.lora_forge.text import canonical
from ansible.module_utils.lora_forge.trainer import environment, preflight

PROGRAM = "roles/run/files/preflight.py"
BESIDE = ("roles/run/files/expected_adapter.py", "roles/run/files/template_check.py")  # what it imports of ours
TAKEN = "axolotl_takes.json"  # below the output folder: what Axolotl has taken, the newest last
KEPT = 1000
TIMEOUT = 300  # seconds; five recipes took 30 on two shared cores, nearly all of it imports
_UNKNOWN = "8.0"  # an A100's, which all that this project does runs on

# Compute capabilities by the words that GPUs are called by, RunPod's and nvidia-smi's (NVIDIA's «CUDA GPU Compute
# Capability»). Of two that fit, the first one decides.
_CAPABILITIES = (
    (r"B300", "10.3"),
    (r"B200|GB200", "10.0"),
    (r"H100|H200|GH200", "9.0"),
    (r"RTX PRO \d000|RTX 50\d0", "12.0"),
    (r"\bL4\b|\bL40S?\b|RTX 40\d0|Ada\b", "8.9"),
    (r"A100|A30\b", "8.0"),
    (r"A40\b|A10G?\b|A16\b|RTX 30\d0|RTX A\d000", "8.6"),
    (r"\bT4\b|RTX 20\d0|Quadro RTX", "7.5"),
    (r"V100", "7.0"),
)


def compute_capability(names: Sequence[str]) -> str:
    """Find the least compute capability among GPUs, of which any may be taken; an A100's where one is not known.

    Args:
        names: As RunPod or nvidia-smi calls them; empty where nobody knows.
    """
    known = [next((number for words, number in _CAPABILITIES if re.search(words, name)), _UNKNOWN) for name in names]
    return min(known, key=_as_numbers) if known else _UNKNOWN


def _as_numbers(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))


def capabilities(run: PlannedRun, names: Sequence[str]) -> dict[str, Any]:
    """Tell what Axolotl would find of the GPU that a run is for (``gpu_capabilities`` in axolotl/cli/config.py).

    Args:
        run: The run's plan.
        names: The GPUs that it may get; empty where nobody knows.
    """
    if run.rehearsal:
        return {"bf16": False, "fp8": False, "tf32": False, "n_gpu": 1, "compute_capability": None}
    capability = compute_capability(names)
    return {
        "bf16": _as_numbers(capability) >= (8, 0),
        "fp8": _as_numbers(capability) >= (9, 0),
        "tf32": _as_numbers(capability) >= (8, 0),
        "n_gpu": run.processes,
        "compute_capability": f"sm_{capability.replace('.', '')}",
    }


def rendered(run: PlannedRun, root: str) -> dict[str, Any]:
    """Give what the run's axolotl.yml will hold, but for where its data and results lie, which decides nothing.

    Args:
        run: The run's plan.
        root: The trainer's root.
    """
    variables = launch.template_variables(run, root, "offline")
    sets = {key: [{**item, "path": "data.jsonl"} for item in variables[key]] for key in ("datasets", "test_datasets")}
    folders = {"output_dir": "output", "dataset_prepared_path": "prepared"}
    return {**variables["recipe"], **folders, **{key: value for key, value in sets.items() if value}}


def find_environment(
    checkout: pathlib.Path, roots: Sequence[str], locks: Sequence[str], named: str
) -> Optional[pathlib.Path]:
    """Find the Python of an environment of the present locks on this machine, or None.

    Args:
        checkout: The project's folder; the default inventory's trainer is in it.
        roots: The trainers' roots, one of which may be this machine's.
        locks: The lock files, from the checkout on.
        named: An environment, or its Python, that the user names; it goes before all others.

    Raises:
        UserError: What is named is no environment.
    """
    if named:
        path = pathlib.Path(os.path.expanduser(named))
        python = path / "bin/python" if path.is_dir() else path
        if not os.access(python, os.X_OK):
            raise UserError(f"axolotl_environment is {named}; name an environment, or its Python, on this machine")
        return python
    names = [environment.environment_name(checkout / lock) for lock in locks]
    places = [checkout / ".trainer", *map(pathlib.Path, dict.fromkeys(roots)), environment.IMAGE]
    homes = [place / "env" / name for place in places for name in names]
    return next((home / "bin/python" for home in homes if environment.is_complete(home) and _trusted(home)), None)


def _trusted(home: pathlib.Path) -> bool:
    """Tell whether a folder is this user's or root's; one with the name of a trainer's root may be anybody's."""
    return home.stat().st_uid in (os.getuid(), 0)


@dataclasses.dataclass(frozen=True)
class Question:
    """A recipe that Axolotl is asked about.

    Attributes:
        run: The run's plan.
        recipe: What its axolotl.yml will hold.
        capabilities: From :func:`capabilities`.
        mark: What its answer is known by.
        model: The base model's folder on this machine, with its config.json at least; empty where there is none.
    """

    run: PlannedRun
    recipe: dict[str, Any]
    capabilities: dict[str, Any]
    mark: str
    model: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Write it as the program takes it."""
        given = {"recipe": self.recipe, "capabilities": self.capabilities, "model": self.model, "write": ""}
        return {**given, "needs": dataset.needs(self.run.datasets)}


def model_here(run: PlannedRun) -> tuple[str, list[Any]]:
    """Find a run's base model on this machine, as far as a recipe can be held against it.

    Args:
        run: The run's plan.

    Returns:
        Its folder, empty where there is none; and what changes when its files do.
    """
    folder = None if run.rehearsal else memory.find_config(run.recipe)[1]
    if folder is None:
        return "", []
    marks = []
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(OSError):  # a link of the hub's cache whose file is gone
            seen = path.stat()
            if path.suffix != ".safetensors":
                marks.append([path.name, seen.st_size, seen.st_mtime_ns])
    return str(folder), marks


def questions(runs: Sequence[PlannedRun], trainers: Sequence[Trainer], asked_of: str) -> list[Question]:
    """List what to ask about the runs that will be started.

    Args:
        runs: The plan.
        trainers: Who trains.
        asked_of: What an answer depends on besides: the locks, and the program that asks.

    Returns:
        Nothing where all of them are rehearsals: they cost nothing, and begin with the same validation.
    """
    by_name = {trainer.name: trainer for trainer in trainers}
    starting = [run for run in runs if run.state in ("to train", "to resume")]
    if all(run.rehearsal for run in starting):
        return []
    asked = []
    for run in starting:
        trainer = by_name.get(run.trainer, Trainer(run.trainer))
        keys, gpu = rendered(run, trainer.root), capabilities(run, trainer.gpu_names)
        model, files = model_here(run)
        mark = hashlib.sha256(
            canonical([keys, gpu, model, files, list(dataset.needs(run.datasets)), asked_of]).encode()
        ).hexdigest()
        asked.append(Question(run, keys, gpu, mark, model))
    return asked


def check(
    made: Plan,
    trainers: Sequence[Trainer],
    checkout: pathlib.Path,
    output: pathlib.Path,
    locks: Sequence[str],
    *,
    named: str = "",
    remember: bool = True,
    say: Callable[[str], None] = lambda _: None,
    timeout: float = TIMEOUT,
) -> list[str]:
    """Have Axolotl check what is planned; what it has taken before is not asked again.

    Args:
        made: From ``plan.make``.
        trainers: Who trains.
        checkout: The project's folder.
        output: Where adapters and placements are kept, and what Axolotl has taken.
        locks: The lock files, from the checkout on.
        named: See :func:`find_environment`.
        remember: Whether what it takes is noted.
        say: Tells people what they wait for.
        timeout: Seconds it may take.

    Returns:
        Why it was not asked, in a sentence; nothing where all is well.

    Raises:
        UserError: With everything that Axolotl says against the recipes.
    """
    axolotl = recipe.pinned_version(checkout / locks[0], "axolotl")
    taken = _taken(output)
    basis = b"".join((checkout / name).read_bytes() for name in (*locks, PROGRAM, *BESIDE))
    asked_of = hashlib.sha256(basis + named.encode()).hexdigest()  # what is named may be another environment
    asked = [question for question in questions(made.runs, trainers, asked_of) if question.mark not in taken]
    if not asked:
        return []
    python = find_environment(checkout, [trainer.root for trainer in trainers], locks, named)
    if python is None:
        return [
            "Axolotl's own check of the recipes was left out: no environment of requirements/trainer-*.txt is on this "
            "machine. A rehearsal makes one (ansible-playbook train.yml); -e axolotl_environment=… names one elsewhere"
        ]
    agents = ", ".join(dict.fromkeys(question.run.agent for question in asked))
    say(f"  Axolotl checks what is new in the recipes of {agents}, which takes a while")
    try:
        answer = ask_axolotl(python, checkout, asked, timeout)
    except UserError as error:
        return [f"Axolotl's own check of the recipes was left out: {error}"]
    if answer["axolotl"] != axolotl:
        return [
            f"Axolotl's own check of the recipes was left out: {python} has Axolotl {answer['axolotl']}, and the locks "
            f"pin {axolotl}"
        ]
    answers = list(zip(asked, answer["answers"]))
    refused = [
        f"{reason}: {add_locations(problem, made.origins.get(question.run.run_id, {}))}"
        for question, one in answers
        for reason, problem in objections(question.run, one)
    ]
    accepted = [question.mark for question, one in answers if not objections(question.run, one)]
    if remember:
        output.mkdir(parents=True, exist_ok=True)
        rundir.write_json(output / TAKEN, [*taken, *dict.fromkeys(accepted)][-KEPT:])
    if refused:
        raise UserError("\n".join(dict.fromkeys(refused)))
    left_out = ", ".join(map(_printable, answer["left_out"]))
    said = [f"Axolotl's own check left out plugins that are not on this machine: {left_out}"] if left_out else []
    told = [(question.run, sentence) for question, one in answers for sentence in one["warnings"]]
    return said + [f"{run.name}: {_printable(sentence)}" for run, sentence in told]


def objections(run: PlannedRun, one: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List what is said against a recipe: who says it of whose, and the sentence.

    Args:
        run: Its run.
        one: The answer about it.
    """
    base = f"the recipe of {run.name} does not go with its base model {run.recipe['base_model']}"
    said = [(f"Axolotl refuses the recipe of {run.name}", text) for text in one["problems"]]
    return said + [(base, text) for text in one["refused"]]


def add_locations(sentence: str, origins: Mapping[str, str]) -> str:
    """Add to a sentence of Axolotl's where the keys that it names stand.

    Args:
        sentence: The sentence.
        origins: Of each key of the recipe, where it stands.
    """
    sentence = _printable(sentence)
    keys = dict.fromkeys(word for word in re.findall(r"[a-z]\w*_\w+|(?<=`)\w+(?=`)", sentence) if word in origins)
    places = "; ".join(f"{key}: {origins[key]}" for key in keys)
    return sentence + (f" ({places})" if places else "")


def _printable(text: str) -> str:
    """Put a foreign text into one line, without what a terminal would obey."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _taken(output: pathlib.Path) -> list[str]:
    with contextlib.suppress(OSError, ValueError):
        known = json.loads((output / TAKEN).read_text(encoding="utf-8"))
        return [mark for mark in known if isinstance(mark, str)] if isinstance(known, list) else []
    return []


def ask_axolotl(
    python: pathlib.Path, checkout: pathlib.Path, asked: Sequence[Question], timeout: float
) -> dict[str, Any]:
    """Run the program in the trainers' environment.

    Raises:
        UserError: It gave no answer.
    """
    paths = (checkout / "roles/run/files", checkout / "module_utils/lora_forge")  # our plugin, and what it imports
    given = [question.as_dict() for question in asked]
    return preflight.ask(str(python), str(checkout / PROGRAM), given, timeout, paths)
