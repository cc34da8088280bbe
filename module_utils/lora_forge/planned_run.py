"""A run as it was planned: what output/plan.json holds of it, and what passes from the plan to all that follows."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

from ansible.module_utils.lora_forge.json_record import JsonRecord

TRAINER_ROOT = "/workspace/lora-forge"  # where everything lies on a trainer whose inventory does not say


@dataclasses.dataclass(frozen=True)
class PlannedDataset(JsonRecord):
    """A dataset file of a run.

    Attributes:
        path: Where it is on the controller; a relative path is meant from the checkout.
        use: ``train`` or ``val``.
        sha256: Of its canonical form, in hex: that is what is staged.
        examples: How many conversations it holds.
        entry: What Axolotl's configuration says of it, without its path.
        reading: What a recipe says of how its lines are read, which the canonical form has settled.
        needs: What the chat template has to know and to take, in the words of ``conversation.NEEDS`` and ``ORDER``,
            with the first line that has it.
    """

    path: str
    use: str
    sha256: str
    examples: int
    entry: dict[str, Any] = dataclasses.field(default_factory=dict)
    reading: dict[str, Any] = dataclasses.field(default_factory=dict)
    needs: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PlannedCases(JsonRecord):
    """The cases that an adapter is asked.

    Attributes:
        path: Their file on the controller; a relative path is meant from the checkout. Empty where there is none.
        sha256: Of its bytes, in hex.
        count: How many cases it holds.
    """

    path: str = ""
    sha256: str = ""
    count: int = 0


@dataclasses.dataclass(frozen=True)
class PlannedAnswers(JsonRecord):
    """What is to be answered at the end of a training; what is known already is left out.

    Attributes:
        count: Answers, of the adapter, its base model and the promoted adapter.
        steps: Tokens that are made one after the other, at most: of each batch those of its longest answer.
        prompts: Tokens of all questions.
    """

    count: int = 0
    steps: int = 0
    prompts: int = 0


@dataclasses.dataclass(frozen=True)
class Estimate(JsonRecord):
    """What a run is thought to take.

    Attributes:
        tokens: In its training set, once.
        steps: Optimizer steps.
        work: Tokens over all epochs, padding included: what its time goes by.
        memory_gib: Of GPU memory; None where it is not known, and for a rehearsal.
        memory_floor_gib: What the weights alone take; None where it is not known, and for a rehearsal.
        memory_classes: ``memory_gib`` with other files of configs/machines/, where one of them may be wanted.
        answers: To its agent's cases.
    """

    tokens: int = 0
    steps: int = 0
    work: int = 0
    memory_gib: Optional[float] = None
    memory_floor_gib: Optional[float] = None
    memory_classes: dict[str, float] = dataclasses.field(default_factory=dict)
    answers: PlannedAnswers = dataclasses.field(default_factory=PlannedAnswers)


@dataclasses.dataclass(frozen=True)
class Launched(JsonRecord):
    """With what a run was launched on its first host, as the controller noted it then; empty where it has not.

    Attributes:
        root: The trainer's root.
        python: The Python of the trainer's environment.
        lock_sha256: Of the lock that this was made from, in hex.
    """

    root: str = ""
    python: str = ""
    lock_sha256: str = ""


@dataclasses.dataclass(frozen=True)
class PlannedRun(JsonRecord):
    """One agent's training on one trainer, or on the hosts of a gang; or an evaluation, which asks a delivered adapter.

    Attributes:
        run_id: Its name.
        agent: Who is trained.
        name: The agent, with what is varied in a sweep: what people read.
        variant: The overrides of a sweep; empty without one.
        fingerprint: SHA-256 of all that decides what is learnt, in hex.
        trainer: The inventory name of the host that leads.
        placed: Whether it was placed there before, and is not ready.
        lane: The number of its lane there, from 0.
        state: ``to train``, ``to resume``, ``to attach``, ``ready`` …
        why: Why it is in that state, for people; may be empty.
        rehearsal: Whether a tiny random model is trained.
        rehearsed: Of which base model that is a shrunk copy, as ``planning/rehearsal.py`` says it; empty where
            the base is not known, and where none is rehearsed.
        recipe: The merged Axolotl configuration, without paths.
        recipe_sha256: Of its canonical JSON, in hex.
        axolotl: The version of Axolotl that the fingerprint holds.
        datasets: Its files.
        cases: What its adapter is asked; no part of the fingerprint.
        gpus: How many GPUs of a host it takes.
        hosts: Those that train it, the leading one first.
        nodes: How many nodes of a cluster its job takes; its GPUs are those of one.
        estimate: What it is thought to take.
        planned_at: When it was planned, in epoch seconds; what is noted of it from then on is this command's.
        evaluates: The run whose delivered adapter is asked its agent's cases; empty for a training.
        against: The run whose adapter that one is held against; empty for the promoted one.
        launched: With what it was launched, where that is to be gone by, whatever the inventory says now.
        by_notes: Whether it is none that is planned now: another recipe was launched, or there is no sound one.
    """

    run_id: str
    agent: str
    name: str
    fingerprint: str
    trainer: str
    state: str
    rehearsal: bool
    recipe: dict[str, Any]
    recipe_sha256: str
    axolotl: str
    datasets: tuple[PlannedDataset, ...]
    hosts: tuple[str, ...]
    cases: PlannedCases = dataclasses.field(default_factory=PlannedCases)
    variant: dict[str, Any] = dataclasses.field(default_factory=dict)
    rehearsed: dict[str, Any] = dataclasses.field(default_factory=dict)
    placed: bool = False
    lane: int = 0
    why: str = ""
    gpus: int = 1
    nodes: int = 1
    estimate: Estimate = dataclasses.field(default_factory=Estimate)
    planned_at: float = 0.0
    evaluates: str = ""
    against: str = ""
    launched: Launched = dataclasses.field(default_factory=Launched)
    by_notes: bool = False

    @property
    def adapter(self) -> str:
        """The run that makes, or has made, the adapter that it is about."""
        return self.evaluates or self.run_id

    @property
    def processes(self) -> int:
        """How many processes train it, one a GPU, on all hosts and nodes."""
        return len(self.hosts) * self.nodes * self.gpus
