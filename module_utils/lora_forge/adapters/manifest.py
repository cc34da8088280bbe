"""What is written beside a delivered adapter, in its manifest.json: what it was made of, where, and at what cost."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional, Union

from ansible.module_utils.lora_forge.evaluation.scores import Comparison, Score
from ansible.module_utils.lora_forge.json_record import JsonRecord

SCHEMA_VERSION = 1
Figure = Union[float, str, None]  # a logged loss; NaN and infinity are logged as text


@dataclasses.dataclass(frozen=True)
class Dataset(JsonRecord):
    """A file that it was trained or evaluated on: PlannedDataset, as far as it is kept."""

    path: Optional[str] = None
    use: Optional[str] = None
    sha256: Optional[str] = None
    examples: Optional[int] = None


@dataclasses.dataclass(frozen=True)
class Counts(JsonRecord):
    """What became of all its examples: how many they were, of how many tokens, and how many were cut or dropped."""

    examples: int = 0
    tokens: int = 0
    longer: int = 0
    dropped: int = 0
    untrainable: int = 0


@dataclasses.dataclass(frozen=True)
class Matrices(JsonRecord):
    """The LoRA matrices: modules that have some, their rank, all values, and matrices that no gradient reached."""

    modules: Optional[int] = None
    rank: Optional[int] = None
    parameters: Optional[int] = None
    untrained: Optional[int] = None


@dataclasses.dataclass(frozen=True)
class Host(JsonRecord):
    """The trainer: its inventory name, its first GPU, and that one's driver."""

    name: Optional[str] = None
    gpu: Optional[str] = None
    driver: Optional[str] = None


@dataclasses.dataclass(frozen=True)
class Steps(JsonRecord):
    """Steps that were reached and planned, and the step that the adapter is of."""

    reached: Optional[int] = None
    planned: Optional[int] = None
    adapter: Optional[int] = None


@dataclasses.dataclass(frozen=True)
class Losses(JsonRecord):
    """The first and the last loss of both kinds, and the adapter's own eval loss."""

    first: Figure = None
    last: Figure = None
    eval_first: Figure = None
    eval_last: Figure = None
    eval_adapter: Figure = None


@dataclasses.dataclass(frozen=True)
class Evaluation(JsonRecord):
    """What a run was evaluated on, and how that ended: see ``promotion.evaluation``."""

    source: Optional[str] = None
    sha256: Optional[str] = None
    sequence_len: Optional[int] = None
    base_model: Optional[str] = None
    eval_loss: Optional[float] = None


@dataclasses.dataclass(frozen=True)
class Merit(JsonRecord):
    """How well an adapter does on its agent's cases: see ``merit.evaluate``.

    Attributes:
        cases_sha256: Of the file of cases, in hex.
        weights_sha256: Of the adapter's weights, in hex.
        evaluation_sha256: Of evaluation.jsonl, in hex.
        cases: How many there are.
        unanswered: How many of them the adapter has not answered.
        unchecked: How many answers could not be checked, as no judge was there.
        score: The adapter's.
        base: Its base model's.
        over_base: The two, case by case.
        against: The run_id of the adapter that was promoted then; empty without one.
        than: That one's score.
        over_promoted: The two, case by case.
        unloadable: Why that one could not be loaded, in a trainer's words; empty where nobody tried, or it has answered
            some of the cases.
        broken: Names of the cases in which the adapter did what is forbidden.
        judge: The model that was asked where a check is for a judge; empty for none.
        unjudged: How many checks of all answers have no verdict of a judge.
        why_unjudged: Why, in a sentence; empty where all have one.
    """

    cases_sha256: str = ""
    weights_sha256: str = ""
    evaluation_sha256: str = ""
    cases: int = 0
    unanswered: int = 0
    unchecked: int = 0
    score: Score = dataclasses.field(default_factory=Score)
    base: Score = dataclasses.field(default_factory=Score)
    over_base: Comparison = dataclasses.field(default_factory=Comparison)
    against: str = ""
    than: Score = dataclasses.field(default_factory=Score)
    over_promoted: Comparison = dataclasses.field(default_factory=Comparison)
    unloadable: str = ""
    broken: tuple[str, ...] = ()
    judge: str = ""
    unjudged: int = 0
    why_unjudged: str = ""

    @property
    def decides(self) -> bool:
        """Whether it can: the adapter has answered all cases, and some could be checked."""
        return self.score.cases > 0 and not self.unanswered


@dataclasses.dataclass(frozen=True)
class Cost(JsonRecord):
    """What the run has cost.

    Attributes:
        usd: The whole.
        usd_per_hour: Of its last pod; 0 on hardware of one's own.
        source: Where ``usd`` is from, in words.
        pods: The ids of its pods.
        usd_by_clock: What ``usd`` was before the bill came.
        gpu_hours: That a cluster has given it: its time of training × GPUs.
    """

    usd: Optional[float] = None
    usd_per_hour: Optional[float] = None
    source: Optional[str] = None
    pods: Optional[tuple[str, ...]] = None
    usd_by_clock: Optional[float] = None
    gpu_hours: Optional[float] = None

    @property
    def words(self) -> str:
        """What it is in a table: ``$2.31`` or ``1.5 GPUh``; empty for nothing."""
        return f"${self.usd:.2f}" if self.usd else f"{self.gpu_hours:.1f} GPUh" if self.gpu_hours else ""

    def as_dict(self) -> dict[str, Any]:
        """Write it as JSON has it, without what does not apply."""
        return {key: value for key, value in super().as_dict().items() if value is not None}


@dataclasses.dataclass(frozen=True)
class DeliveredFile(JsonRecord):
    """A file of the adapter: its path in the adapter's folder, SHA-256 in hex, and size."""

    path: Optional[str] = None
    sha256: Optional[str] = None
    bytes: Optional[int] = None


@dataclasses.dataclass(frozen=True)
class Manifest(JsonRecord):
    """What is known of a delivered adapter; None, or empty, is what is not known.

    Attributes:
        schema_version: Of the file's form.
        run_id: The run that made it.
        agent: Who was trained.
        fingerprint: Of the run, see PlannedRun.
        verdict: ``verified``.
        rehearsal: Whether a tiny random model was trained.
        base_model: As the trainer loaded it.
        recipe: The run's, see PlannedRun.
        recipe_sha256: Of its canonical JSON, in hex.
        lock_sha256: Of the lock file of the trainer's environment, in hex.
        datasets: The run's files.
        data: What became of their examples.
        lora: Its matrices.
        versions: Of the packages that trained it, by name, and of the lora-forge that delivered it.
        host: Where it was trained.
        steps: How far.
        loss: How well.
        evaluation: What its eval losses were measured on.
        merit: How well it does on its agent's cases; None without cases.
        starts: How often the training was started.
        started_at: When it first was, in epoch seconds.
        finished_at: When it ended, in epoch seconds.
        duration_s: Seconds that it trained, in all its starts together, by clocks that nobody can set.
        cost: What it cost.
        wandb: The run at W&B: mode, run and url; empty without one.
        git: Of the checkout: commit, and whether files of it were changed (dirty).
        files: What was delivered; None before that.
    """

    schema_version: Optional[int] = None
    run_id: Optional[str] = None
    agent: Optional[str] = None
    fingerprint: Optional[str] = None
    verdict: Optional[str] = None
    rehearsal: Optional[bool] = None
    base_model: Optional[str] = None
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)
    recipe_sha256: Optional[str] = None
    lock_sha256: Optional[str] = None
    datasets: tuple[Dataset, ...] = ()
    data: Optional[Counts] = None
    lora: Matrices = dataclasses.field(default_factory=Matrices)
    versions: dict[str, Any] = dataclasses.field(default_factory=dict)
    host: Host = dataclasses.field(default_factory=Host)
    steps: Steps = dataclasses.field(default_factory=Steps)
    loss: Losses = dataclasses.field(default_factory=Losses)
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
    merit: Optional[Merit] = None
    starts: Optional[int] = None
    started_at: Optional[float] = None
    finished_at: Optional[float] = None
    duration_s: Optional[float] = None
    cost: Cost = dataclasses.field(default_factory=Cost)
    wandb: dict[str, Any] = dataclasses.field(default_factory=dict)
    git: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: Optional[tuple[DeliveredFile, ...]] = None

    def as_dict(self) -> dict[str, Any]:
        """Write it as manifest.json has it."""
        data = super().as_dict()
        return {key: value for key, value in data.items() if key not in ("files", "merit") or value is not None}

    @property
    def is_rehearsal(self) -> bool:
        """Whether it counts as a rehearsal's, as does one that does not say."""
        return self.rehearsal is not False

    @property
    def adapter_loss(self) -> Figure:
        """The adapter's eval loss, as it was logged; where that is not told apart, the training's last one."""
        return self.loss.eval_last if self.loss.eval_adapter is None else self.loss.eval_adapter
