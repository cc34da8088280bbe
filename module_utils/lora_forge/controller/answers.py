"""What a trainer may answer, by module: the form of each answer, and how long one is waited for.

A trainer may be anybody's machine. What it says is held to these forms before anything else sees it. Their types are
strict, their numbers finite and bounded, their texts and lists of limited length; what they do not name is dropped. So
is what Ansible itself would act on: facts, hosts for the inventory, warnings, files to show.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Optional

from ansible.module_utils.lora_forge import paths
from ansible.module_utils.lora_forge.text import printable, shown
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

# Seconds that one call of a module may take, beyond its option ``wait``. A question takes a second or two.
QUESTION = 60.0
LIMITS = {
    "base_model": 120.0,  # a fetch has 20 s to come up
    "checkpoint_prune": 900.0,  # some hundred GB are deleted, perhaps on a network's disk
    "environment_prune": 1800.0,  # every file of some environments is measured
    "gpu_check": 420.0,  # the program has 300 s of its own
    "gpu_info": 240.0,  # nvidia-smi has 20 s for each of some calls
    "lora_adapter_info": 1800.0,  # an adapter is read twice
    "recipe_check": 360.0,  # the program has 300 s of its own
    "trainer_environment": 3 * 3600.0,  # 7.5 GB are fetched, perhaps after another controller's build
    "training_run_evidence": 300.0,  # nvidia-smi, and systemd or tmux
    # Beyond twice the time for a checkpoint: a stop waits for a launch, which waits for a stop.
    "training_run": 300.0,
    "training_runs": 300.0,
}
COMMAND = 600.0  # a command that is no module: the longest one makes a rehearsal's model, on a slow disk
TRANSFER = 6 * 3600.0  # rsync ends by itself where no byte comes; this is for one that never ends

LONGEST = 4000  # letters of a text for people; what goes beyond is cut
_BRIEF = 500  # the same, of one run in a table of many
LARGEST = 32 * 1024 * 1024  # letters of an answer as it came: a training of 100 000 steps has 12 million
_LOG = 512 * 1024  # letters of a log; a module sends half of that at most

_FINITE = 1e15
_NODES = re.compile(r"\w[\w.,\[\]-]{0,999}", re.ASCII)
# A path with a space in it, or a letter that is not English, stands in quotes.
_ATTACH = re.compile(r"(tmux attach -t|journalctl (--user )?-u|tail -[fF]) ('?)[\w./~+@:][\w./~+@:, -]{0,1000}\3( -f)?")


def _inside(path: str) -> str:
    """Hold a path to the folder that it is meant from."""
    why = paths.flaw(path)
    if why:
        raise ValueError(f"it {why}")
    return path


def _bounded(figure: Any) -> Any:
    """Write a number as text that is beyond what is reckoned with: a loss may grow so before it is none."""
    is_number = isinstance(figure, float) or (type(figure) is int and abs(figure) < 1 << 63)
    return f"{figure:.4g}" if is_number and not abs(figure) <= _FINITE else figure


def _nodes(names: str) -> str:
    """Keep names of nodes, as Slurm writes a list of them."""
    return names if _NODES.fullmatch(names) else ""


def _attach(command: str) -> str:
    """Keep a command that people are shown, and may type, where it is one that ``backend.start`` makes."""
    return command if _ATTACH.fullmatch(command) else ""


Shown = Annotated[str, AfterValidator(lambda text: shown(text, LONGEST))]  # for people: cut, and no error
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]  # of a run, and of an agent
Device = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")]  # the UUID of a GPU
Path = Annotated[str, StringConstraints(max_length=1000)]  # on the trainer, and for it alone
Inside = Annotated[str, AfterValidator(_inside)]
Word = Annotated[str, StringConstraints(max_length=200)]
Attach = Annotated[str, AfterValidator(_attach)]
Nodes = Annotated[str, AfterValidator(_nodes)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=2**62)]
Whole = Annotated[int, Field(ge=-(2**62), le=2**62)]
Number = Annotated[float, Field(ge=-_FINITE, le=_FINITE)]
# A figure that a training logged; one that is not finite is logged as text, and what is too great is text here.
Figure = Annotated[
    Annotated[int, Field(ge=-(10**15), le=10**15)] | Number | Annotated[str, StringConstraints(max_length=40)],
    BeforeValidator(lambda value: _bounded(value)),
]
State = Literal["absent", "queued", "running", "stalled", "stopped", "failed", "finished", "unknown"]
Sentences = Annotated[list[Shown], Field(max_length=1000)]


class Form(BaseModel):
    """A part of an answer.

    Attributes:
        whole: Whether what was not answered is there all the same, with its default.
    """

    # Built when it is needed: a command asks for one or two of them.
    model_config = ConfigDict(
        strict=True, extra="ignore", allow_inf_nan=False, hide_input_in_errors=True, defer_build=True
    )
    whole: ClassVar[bool] = False


class Answer(Form):
    """The answer of a module that succeeded.

    Attributes:
        kept: What a failure may have besides its message; see RETURN of the module.
    """

    kept: ClassVar[tuple[str, ...]] = ()

    changed: bool = False


class Table(Form):
    """What the action ``show`` prints."""

    columns: Annotated[list[Word], Field(max_length=30)] = []
    rows: Annotated[list[Annotated[list[Shown | Whole | Number | None], Field(max_length=30)]],
                    Field(max_length=10_000)] = []  # fmt: skip
    lines: Sentences = []


class WandbRun(Form):
    """Where a run is logged."""

    whole = True

    mode: Optional[Word] = None
    run: Optional[Word] = None
    url: Optional[Path] = None


class DataCounts(Form):
    """What the length limit did to the data."""

    whole = True

    examples: Count = 0
    tokens: Count = 0
    longer: Count = 0
    dropped: Count = 0
    untrainable: Count = 0


class ProgressForm(Form):
    """``run_state.Progress``."""

    whole = True

    step: Optional[Count] = None
    planned: Optional[Count] = None
    epoch: Optional[Figure] = None
    loss_first: Optional[Figure] = None
    loss: Optional[Figure] = None
    eval_first: Optional[Figure] = None
    eval_loss: Optional[Figure] = None
    tokens_per_second: Optional[Number] = None
    adapter_step: Optional[Count] = None
    eval_adapter: Optional[Figure] = None
    seconds_per_step: Optional[Number] = None
    began_at: Optional[Number] = None
    last_event_at: Optional[Number] = None
    end_reason: Optional[Shown] = None
    wandb: Optional[WandbRun] = None
    data: Optional[DataCounts] = None
    ended: bool = False
    measured: Whole = 0
    answered: Optional[Count] = None
    asked: Optional[Count] = None


class Reason(Form):
    """Why a supervisor ended a run."""

    whole = True

    kind: Word = ""
    detail: Shown = ""


class StatusForm(Form):
    """Of a supervisor's status.json what is read on the controller."""

    state: Optional[Word] = None
    reason: Optional[Reason] = None
    starts: Optional[Count] = None
    started_at: Optional[Number] = None
    first_started_at: Optional[Number] = None
    finished_at: Optional[Number] = None
    seconds: Optional[Annotated[float, Field(ge=0, le=_FINITE)]] = None
    exit_code: Optional[Whole] = None
    resumed_from: Optional[Count] = None
    lane: Optional[Path] = None


class FactsForm(Form):
    """Of run.json what is read on the controller."""

    run_id: Optional[Name] = None
    agent: Optional[Name] = None
    fingerprint: Optional[Word] = None
    rehearsal: Optional[bool] = None
    backend: Optional[Word] = None
    hosts: Optional[Annotated[list[Word], Field(max_length=1000)]] = None
    processes: Optional[Count] = None
    attach_command: Optional[Attach] = None


class Event(Form):
    """A line of metrics.jsonl. Those of a kind that nobody knows are passed over by who reads them."""

    event: Word
    time: Optional[Number] = None
    step: Optional[Count] = None
    planned: Optional[Count] = None
    answered: Optional[Count] = None
    asked: Optional[Count] = None
    loss: Optional[Figure] = None
    eval_loss: Optional[Figure] = None
    tokens_per_second: Optional[Number] = None
    mode: Optional[Word] = None
    wanted: Optional[Word] = None

    @model_validator(mode="after")
    def _has_its_step(self) -> Event:
        if self.event in ("log", "eval") and (self.step is None or self.planned is None):
            raise ValueError("it has no step")
        return self


class Checkpoint(Form):
    """The newest whole checkpoint."""

    whole = True

    step: Count = 0
    files: Annotated[list[Inside], Field(max_length=1000)] = []


class Seen(Answer):
    """What is seen of a run, once and among others: ``run_state.Observation`` without what only a watcher asks for."""

    state: State
    detail: Shown
    status: StatusForm
    alive: bool
    progress: ProgressForm
    eta_seconds: Optional[Number]
    checkpoint: Checkpoint
    facts: FactsForm
    silent_for: Optional[Number]
    nodes: Nodes = ""


class TrainingRunInfo(Seen):
    """``training_run_info``."""

    events: Annotated[list[Event], Field(max_length=300_000)]  # as many as LARGEST holds of real ones
    token: Word
    log_tail: Optional[Shown] = None
    others: Annotated[dict[Name, ProgressForm], Field(max_length=1000)]
    over: Annotated[list[Name], Field(max_length=1000)]


class GpuUse(Form):
    """A GPU, and how busy it is."""

    whole = True

    index: Optional[Count] = None
    uuid: Optional[Device] = None
    name: Optional[Word] = None
    memory_mib: Optional[Count] = None
    used_mib: Optional[Count] = None
    use: Optional[Count] = None


class ListedRunForm(Seen):
    """``run_state.ListedRun``."""

    run_id: Name
    agent: Name
    detail: Annotated[str, AfterValidator(lambda text: shown(text, _BRIEF))]
    gpu: Optional[GpuUse] = None
    gpu_busy: Optional[Number] = None


class TrainerInfo(Answer):
    """``trainer_info``."""

    runs: Annotated[list[ListedRunForm], Field(max_length=10_000)]
    gpus: Annotated[list[GpuUse], Field(max_length=1000)]
    missing: Annotated[list[Path], Field(max_length=10_000)] = []


class Gpu(GpuUse):
    """A GPU as nvidia-smi knows it."""

    free_mib: Optional[Count] = None
    compute_capability: Optional[Word] = None
    ecc_errors: Optional[Count] = None
    remap_pending: Optional[bool] = None
    remap_failure: Optional[bool] = None
    retired_pending: Optional[bool] = None
    recovery_action: Optional[Word] = None
    mig: Optional[bool] = None
    fault: Optional[Word] = None


class GpuProcess(Form):
    """A process that uses a GPU."""

    gpu_uuid: Optional[Word] = None
    pid: Count
    name: Shown
    used_mib: Optional[Count] = None
    run: Optional[Path] = None


class GpuInfo(Answer):
    """``gpu_info``."""

    kept = ("driver", "gpus", "processes", "runs", "problems", "warnings_found")

    driver: Optional[Word]
    gpus: Annotated[list[Gpu], Field(max_length=1000)]
    processes: Annotated[list[GpuProcess], Field(max_length=10_000)]
    runs: Annotated[list[Path], Field(max_length=10_000)]
    problems: Sentences
    warnings_found: Sentences


class GpuCheck(Answer):
    """``gpu_check``."""

    kept = ("bad_gpu",)

    device: Optional[Word]
    bf16_tflops: Optional[Number]
    seconds: Optional[Number]
    bad_gpu: Optional[bool] = None


class BaseModelState(Answer):
    """``base_model``."""

    kept = ("error",)

    state: Literal["absent", "fetching", "present", "failed"]
    described: Path
    folder: Path
    bytes: Count
    total_bytes: Count
    bytes_per_second: Optional[Number]
    error: Shown
    mark: Word


class PrunedCheckpoint(Form):
    """A checkpoint, and whether it stays."""

    path: Path
    step: Optional[Count]
    eval_loss: Optional[Figure]
    bytes: Count
    keep: bool
    why: Shown


class CheckpointPrune(Answer):
    """``checkpoint_prune``."""

    checkpoints: Annotated[list[PrunedCheckpoint], Field(max_length=10_000)]
    freed: Count
    show: Table
    left_alone: Shown


class PrunedEnvironment(Form):
    """An environment that no lock names."""

    name: Word
    path: Path
    bytes: Count
    shared: Count
    used_by: Shown
    removed: bool


class EnvironmentPrune(Answer):
    """``environment_prune``."""

    environments: Annotated[list[PrunedEnvironment], Field(max_length=10_000)]
    freed: Count
    show: Table


class TrainerEnvironment(Answer):
    """``trainer_environment``."""

    python: Path
    adopted: bool
    built_from: Word
    interpreter: Optional[Path] = None
    packages: Count
    seconds: Number


class TrainingLog(Answer):
    """``training_log``."""

    text: Annotated[str, StringConstraints(max_length=_LOG)]
    offset: Count
    state: State
    more: bool


class SeenClosely(Seen):
    """A run of which its events are told, too."""

    events: Annotated[list[Event], Field(max_length=1000)]


class GpuLook(Form):
    """``gpu.query``."""

    driver: Optional[Word]
    gpus: Annotated[list[Gpu], Field(max_length=1000)]
    processes: Annotated[list[GpuProcess], Field(max_length=1000)]
    error: Optional[Shown]


class HostFacts(Form):
    """What machine a host is, and how much of it is free."""

    kernel: Word = ""
    distribution: Word = ""
    python: Word = ""
    cpus: Optional[Count] = None
    memory_bytes: Optional[Count] = None
    memory_free_bytes: Optional[Count] = None
    disk_bytes: Optional[Count] = None
    disk_free_bytes: Optional[Count] = None


class Installed(Form):
    """What is installed in an environment."""

    name: Word
    packages: Annotated[dict[Name, Word], Field(max_length=2000)]


class TrainingRunEvidence(Answer):
    """``training_run_evidence``."""

    seen: SeenClosely
    train_log: Annotated[str, StringConstraints(max_length=_LOG)]
    supervisor_log: Annotated[str, StringConstraints(max_length=_LOG)]
    axolotl_yml: Annotated[str, StringConstraints(max_length=_LOG)]
    unit: Shown
    gpu: GpuLook
    host: HostFacts
    environment: Installed


class TrainingRun(Answer):
    """``training_run``."""


class StartedRun(Form):
    """What came of the start of a run."""

    run_id: Name
    changed: bool = False
    backend: Optional[Word] = None
    attach_command: Optional[Attach] = None
    message: Optional[Shown] = None
    refused: Optional[Shown] = None


class TrainingRuns(Answer):
    """``training_runs``."""

    runs: Annotated[list[StartedRun], Field(max_length=1000)]


class Leash(Form):
    """What a pod's leash says of itself."""

    alive: bool
    answer: Optional[Shown] = None
    beat: Optional[Number] = None
    beat_age: Optional[Number] = None
    deadline: Optional[Number] = None
    lacks: Optional[Shown] = None
    missing: Optional[Annotated[list[Word], Field(max_length=20)]] = None
    pod: Optional[Word] = None
    renewals: Optional[Count] = None
    state: Optional[Word] = None
    status: Optional[Count] = None
    word: Optional[Shown] = None


class PodLeash(Answer):
    """``pod_leash``."""

    leash: Leash


class AdapterFile(Form):
    """A file that is delivered."""

    path: Inside
    name: Inside
    bytes: Count
    sha256: Sha256


class AdapterInfo(Answer):
    """``lora_adapter_info``."""

    problems: Sentences
    modules: Count
    rank: Optional[Count]
    parameters: Count
    untrained: Count
    files: Annotated[list[AdapterFile], Field(max_length=10_000)]
    versions: Annotated[dict[Word, Word], Field(max_length=100)]


class RecipeAnswer(Form):
    """What is said about the recipe of a run."""

    run_id: Name
    problems: Annotated[list[Shown], Field(max_length=100)]
    refused: Annotated[list[Shown], Field(max_length=100)]
    warnings: Annotated[list[Shown], Field(max_length=100)]
    unknown: Shown
    tensors: Count
    parameters: Count


class RecipeCheck(Answer):
    """``recipe_check``."""

    answers: Annotated[list[RecipeAnswer], Field(max_length=1000)]
    left_out: Shown


class SlurmCheck(Answer):
    """``slurm_check``."""

    version: Shown


FORMS: dict[str, type[Answer]] = {
    "base_model": BaseModelState,
    "checkpoint_prune": CheckpointPrune,
    "environment_prune": EnvironmentPrune,
    "gpu_check": GpuCheck,
    "gpu_info": GpuInfo,
    "lora_adapter_info": AdapterInfo,
    "pod_leash": PodLeash,
    "recipe_check": RecipeCheck,
    "slurm_check": SlurmCheck,
    "trainer_environment": TrainerEnvironment,
    "trainer_info": TrainerInfo,
    "training_log": TrainingLog,
    "training_run": TrainingRun,
    "training_run_evidence": TrainingRunEvidence,
    "training_run_info": TrainingRunInfo,
    "training_runs": TrainingRuns,
}


def limit(module: str, args: Mapping[str, Any], patience: float = QUESTION) -> float:
    """Return the seconds that one call of a module may take.

    One that starts runs begins none after the seconds of its option ``within``: what follows is the start of one.

    Args:
        module: Its name.
        args: Its options.
        patience: Seconds that a question may take; what takes longer by its nature has as many times more.
    """
    own = LIMITS.get(module, QUESTION) * patience / QUESTION
    ended = {"training_run": [args], "training_runs": args.get("runs") or [{}]}.get(module, [])
    stop = 2 * max((float(run.get("stop_timeout") or 120) for run in ended), default=0.0)
    return own + float(args.get("wait") or args.get("within") or 0) + stop


def hold(module: str, answer: Any, host: str) -> dict[str, Any]:
    """Hold what a host answered to the form of the module's answer.

    Args:
        module: The module that it answered for.
        answer: What it answered.
        host: The host.

    Returns:
        The answer, of plain values, with what its form names and nothing else; or a failure of the host alone:
        C(failed), C(msg) in words, and of the rest what the form lets a failure keep.
    """
    form = FORMS[module]
    if not isinstance(answer, dict):
        return misfit(host, module, "it is no object")
    if answer.get("failed"):
        return _failure(form, answer)
    try:
        return _plain(form.model_validate(answer)) | {"changed": answer.get("changed", False)}
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        return misfit(host, module, f"{shown(place, 100)}: {shown(first['msg'], 200)}")


def misfit(host: str, module: str, why: str) -> dict[str, Any]:
    """Return the failure of a host whose answer is none.

    Args:
        host: The host.
        module: The module that it answered for.
        why: What is wrong with the answer.
    """
    return {"failed": True, "msg": f"{host}: its answer to {module} does not fit: {why}"}


def _failure(form: type[Answer], answer: dict[str, Any]) -> dict[str, Any]:
    """Return of a failure its message, and what its form lets it keep, as far as that fits."""
    kept: dict[str, Any] = {}
    for name in filter(answer.__contains__, form.kept):
        held = form.model_construct()
        with contextlib.suppress(ValidationError):
            held.__pydantic_validator__.validate_assignment(held, name, answer[name])
            kept[name] = _plain(getattr(held, name))
    changed = {"changed": True} if answer.get("changed") is True else {}
    return {**changed, "failed": True, "msg": _reason(answer), **kept}


def _reason(answer: dict[str, Any]) -> str:
    """Return why a module failed. One that broke has its reason in an exception, as ansible-core 2.19 writes it."""
    exception = answer.get("exception")
    event = exception.get("event") if isinstance(exception, dict) else None
    told = answer.get("msg"), event.get("msg") if isinstance(event, dict) else exception
    reasons = (text.strip() for text in told if isinstance(text, str))
    return shown(next(filter(None, reasons), "it failed"), LONGEST)


def _plain(value: Any) -> Any:
    """Return a value without forms; its texts are printable."""
    if isinstance(value, Form):
        names = type(value).model_fields if value.whole else value.model_fields_set
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields if name in names}
    if isinstance(value, dict):
        return {printable(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return printable(value) if isinstance(value, str) else value
