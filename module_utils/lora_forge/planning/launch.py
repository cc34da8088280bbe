"""What a run is launched with, worked out on the controller: lane, command line, environment, paths, files."""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import json
import pathlib
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge import paths, rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.json_record import JsonRecord
from ansible.module_utils.lora_forge.planned_run import PlannedDataset, PlannedRun
from ansible.module_utils.lora_forge.planning import rehearsal
from ansible.module_utils.lora_forge.text import canonical
from ansible.module_utils.lora_forge.trainer.launching import Launch

_RUN_FILES = (
    "supervisor.py",
    "slurm_job.py",
    "lora_forge_axolotl.py",
    "answer_cases.py",
    "expected_adapter.py",
    "gang.py",
)  # of roles/run/files; rundir.py comes with them
# What comes from an earlier trainer of a run; complete.json is the controller's own.
_CARRIED = re.compile(r"metrics\.jsonl|output/checkpoint-\d+/(?:complete\.json|([^/]+))")
_PLUGIN = "lora_forge_axolotl.LoraForgePlugin"
RENDEZVOUS = "PET_RDZV_ID"  # the variable that torchrun takes --rdzv-id from
TINY_MODEL = "tiny_model.py"
ASKS = "answer_cases.py"  # the program of an evaluation
# Variables that are not the inventory's to give: what is set for each training, and who is who among its processes.
_OURS = re.compile(
    r"PYTHON.*|(LORA_FORGE|PET|TORCHELASTIC|SLURM)_.*|(LOCAL_|GROUP_|ROLE_|NODE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|"
    r"CUDA_VISIBLE_DEVICES|HF_HOME|(HF|HUGGINGFACE)_HUB_(CACHE|OFFLINE)|TRANSFORMERS_(CACHE|OFFLINE)|"
    r"WANDB_(MODE|BASE_URL)|TORCH_FORCE_.*|TOKENIZERS_PARALLELISM|AXOLOTL_DO_NOT_TRACK"
)
# Those by which Accelerate is told what a recipe says: another training, under the name of the same one.
_LEARNT = re.compile(r"(ACCELERATE|FSDP)_.*")
_SECRET = re.compile(r".*(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)", re.IGNORECASE)
_PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")  # in an address


def resolved(name: str) -> list[str]:
    """List the addresses of a name; none where it is not known here, or is an address."""
    try:
        return sorted({str(entry[4][0]) for entry in socket.getaddrinfo(name, None)})
    except (OSError, UnicodeError):
        return []


@dataclasses.dataclass(frozen=True)
class TrainerOptions(JsonRecord):
    """What the inventory, and the trainer itself, say of how it trains.

    Attributes:
        root: The trainer's root.
        python: The Python of its environment.
        module: What trains.
        lanes: The GPUs to train on, by UUID; they go before ``gpus``.
        gpus: The UUIDs of the GPUs that it has.
        address: Under which the other hosts of a gang reach it.
        leader: Under which it reaches the first host of a gang.
        port: Where the hosts of a gang meet; each lane has the next one, as lanes train at once. Where the nodes of a
            job meet, the job's id decides.
        timeout: Seconds that the hosts of a gang wait for each other.
        public: Whether they may meet at a public address.
        wandb: ``online``, ``offline`` or ``disabled``.
        wandb_server: A W&B server of one's own; empty for W&B's.
        stop_timeout: Seconds that the trainer has for its checkpoint when it is stopped.
        lane_dir: Where lanes are locked; None for the usual folder.
        backend: What keeps the supervisor running, or ``auto``.
        slurm: What a job of Slurm asks for.
        slurm_jobs: How many of its jobs run at once.
        gpu_check: Further options of gpu_check.py, which a job of Slurm runs on its node.
        environment: Further variables of the training's environment, which are no secrets.
    """

    root: str
    python: str
    module: str = "axolotl.cli.train"
    lanes: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    address: str = ""
    leader: str = ""
    port: int = 29400
    timeout: int = 900
    public: bool = False
    wandb: str = "offline"
    wandb_server: str = ""
    stop_timeout: int = 120
    lane_dir: Optional[str] = None
    backend: str = "auto"
    slurm: dict[str, Any] = dataclasses.field(default_factory=dict)
    slurm_jobs: int = 0
    gpu_check: tuple[str, ...] = ()
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrainerOptions:
        """Read them from the options of a task, where any value may be text, and ``lanes`` a text with commas."""
        numbers = {name: int(data[name]) for name in ("port", "timeout", "stop_timeout", "slurm_jobs") if name in data}
        lanes = data.get("lanes") or []
        lanes = [str(lane).strip() for lane in (lanes.split(",") if isinstance(lanes, str) else lanes)]
        # Ansible's own reading of a flag is not at hand where the benchmarks import this.
        public = str(data.get("public", "")).lower() in ("true", "yes", "on", "1")
        return super().from_dict(
            {
                **data,
                **numbers,
                "public": public,
                "lanes": [*filter(None, lanes)],
                "lane_dir": data.get("lane_dir") or None,
            }
        )


def plan_launch(run: PlannedRun, host: str, options: TrainerOptions) -> Launch:
    """Work out what a run is launched with on one of its hosts.

    Args:
        run: The run.
        host: The host's name in the inventory.
        options: Its options.

    Raises:
        ValueError: The host is none of the run's.
    """
    in_slurm = options.backend == "slurm"
    # GPUs are Slurm's to give: it says by CUDA_VISIBLE_DEVICES which, and that they are there its node alone can tell.
    lane = f"slurm {run.lane + 1}" if in_slurm else lane_name(run, options.lanes, options.gpus)
    asks = bool(run.evaluates)
    environment = training_environment(
        lane,
        options.root,
        "disabled" if asks else options.wandb,
        options.wandb_server,
        deepspeed=bool(run.recipe.get("deepspeed")),
    )
    gate = [options.python, f"{options.root}/gpu_check.py", *options.gpu_check]
    if in_slurm:
        del environment["CUDA_VISIBLE_DEVICES"]
    return Launch(
        command=[options.python, f"{rundir.PROGRAMS}/{ASKS}"] if asks else training_command(run, host, options),
        lane=lane,
        lane_dir=options.lane_dir,
        environment={**{name: str(value) for name, value in options.environment.items()}, **environment},
        slurm=options.slurm if in_slurm else {},
        at_once=options.slurm_jobs if in_slurm else 0,
        gate=gate if in_slurm and not run.rehearsal else [],
        stop_timeout=options.stop_timeout,
        prepared=None if asks else prepared_path(run, options.root),
        processes=run.processes,
        nodes=run.nodes,
        port=options.port if run.nodes > 1 else 0,
        answer_command=answer_command(run, host, options),
        facts=run_facts(run, host),
    )


def check_rendezvous(run: PlannedRun, options: TrainerOptions, resolve: Callable[[str], list[str]] = resolved) -> None:
    """Refuse a gang whose hosts would meet where anybody can come: torch believes whoever speaks to it there.

    Args:
        run: The run.
        options: Those of one of its hosts.
        resolve: Finds the addresses of a name.

    Raises:
        UserError: An address is public, and nobody has said that it may be.
    """
    if len(run.hosts) < 2 or options.public:
        return
    for address in dict.fromkeys((options.leader, options.address)):
        found = next(filter(is_public, [address, *resolve(address)]), None)
        if found:
            at = address if found == address else f"{address} ({found})"
            raise UserError(
                f"the hosts of {run.run_id} would meet at {at}, a public address. Whoever reaches run_rendezvous_port "
                "there can run code in the training. Set run_address to an address in a network of their own, or "
                "run_rendezvous_public to true where a firewall lets nobody else through"
            )


def is_public(address: str) -> bool:
    """Tell whether an address is one of the Internet's; a name is none."""
    try:
        return ipaddress.ip_address(address.strip("[]").partition("%")[0]).is_global
    except ValueError:
        return False


def dataset_path(root: str, dataset: PlannedDataset) -> str:
    """Return where a dataset lies on its trainer: by its content, so that no cache outlives a change of it."""
    return f"{root}/datasets/{dataset.sha256}/{pathlib.PurePath(dataset.path).name}"


def base_model_path(run: PlannedRun, root: str) -> str:
    """Name the base model as the trainer finds it: the recipe's, or a rehearsal's, which goes by the data it learnt.

    Args:
        run: The run.
        root: The trainer's root.
    """
    name: str = run.recipe["base_model"]
    if not run.rehearsal:
        return name
    root = run.launched.root or root
    if run.evaluates:  # its recipe has the name of the very model that it was rehearsed with
        return f"{root}/models/{name}"
    learnt = "".join(dataset.sha256 for dataset in run.datasets)
    learnt += canonical(rehearsal.identity(run.rehearsed)) if run.rehearsed else ""
    return f"{root}/models/{name}-{hashlib.sha256(learnt.encode()).hexdigest()[:12]}"


def tiny_model_command(run: PlannedRun, options: TrainerOptions) -> list[str]:
    """Write the command line that makes a rehearsal's model on its trainer."""
    model = base_model_path(run, options.root)
    data = [dataset_path(options.root, dataset) for dataset in run.datasets]
    given = ["--given", f"{model}.given"] if run.rehearsed else []
    return [options.python, f"{options.root}/{TINY_MODEL}", model, *data, *given]


def _model_files(run: PlannedRun, programs: pathlib.Path) -> list[dict[str, Any]]:
    """List what makes a rehearsal's model, as :func:`input_files` does."""
    files: list[dict[str, Any]] = [{"path": TINY_MODEL, "src": str(programs / TINY_MODEL)}]
    if not run.rehearsed:
        return files
    given, folder = f"{base_model_path(run, '.')[2:]}.given", pathlib.Path(str(run.rehearsed.get("folder")))
    parts = {key: run.rehearsed[key] for key in ("config", "tokens", "names", "files")}
    files.append({"path": f"{given}/model.json", "content": json.dumps(parts, indent=2, sort_keys=True)})
    return files + [
        {"path": f"{given}/{name}", "src": str(folder / name), "sha256": sha256}
        for name, sha256 in run.rehearsed.get("tokenizer", {}).items()
    ]


def template_variables(run: PlannedRun, root: str, wandb: str) -> dict[str, Any]:
    """Collect the variables of templates/axolotl.yml.j2: the recipe, the datasets, and what every run needs.

    Args:
        run: The run.
        root: The trainer's root.
        wandb: ``online``, ``offline`` or ``disabled``.

    Returns:
        run_id, recipe, datasets, test_datasets.
    """
    computed = {
        "base_model": base_model_path(run, root),
        "output_dir": f"{run_dir(run, root)}/output",
        "dataset_prepared_path": prepared_path(run, root),
        "auto_resume_from_checkpoints": True,
        "include_tkps": True,
        "plugins": [*run.recipe.get("plugins", []), _PLUGIN],
        "wandb_mode": wandb,
    }
    entries: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for dataset in run.datasets:
        entries[dataset.use].append({**dataset.entry, "path": dataset_path(root, dataset), "split": "train"})
    if run.evaluates:
        # Axolotl reads no data where nothing is trained, and takes no recipe that names none: neither one without any,
        # nor one with evaluations of nothing.
        none = {"path": f"{run_dir(run, root)}/questions.json", "type": "chat_template", "split": "train"}
        entries = {"train": [none], "val": [] if run.recipe.get("val_set_size") else [none]}
    return {
        "run_id": run.run_id,
        "recipe": {**run.recipe, **computed},
        "datasets": entries["train"],
        "test_datasets": entries["val"],
    }


def run_dir(run: PlannedRun, root: str) -> str:
    """Return the run directory on a trainer; that of a run which was launched elsewhere on it is there."""
    return f"{run.launched.root or root}/runs/{run.run_id}"


def prepared_path(run: PlannedRun, root: str) -> str:
    """Return where Axolotl keeps a run's tokenised data."""
    return f"{root}/prepared/{run.run_id}"


def lane_name(run: PlannedRun, named: Sequence[str], gpus: Sequence[str]) -> str:
    """Name what a run has to itself: the UUIDs of its GPUs, with commas between them, or a word that begins with cpu.

    Args:
        run: The run.
        named: What the inventory says to train on; it goes before what the trainer has.
        gpus: The UUIDs of the trainer's GPUs.
    """
    cards = list(named) or ([] if run.rehearsal else list(gpus))
    lanes = [",".join(cards[at : at + run.gpus]) for at in range(0, len(cards), run.gpus)] or ["cpu"]
    return lanes[run.lane % len(lanes)]


def training_command(run: PlannedRun, host: str, options: TrainerOptions) -> list[str]:
    """Write the command line of a run on one of its hosts, in its run directory.

    A single process is started directly. For several there is torchrun, which waits for all of them; the launcher that
    Axolotl has would end before them.

    Args:
        run: The run; its first host leads.
        host: The host's name in the inventory.
        options: Its options.

    Raises:
        ValueError: The host is none of the run's.
    """
    if run.processes == 1:
        return [options.python, "-m", options.module, "axolotl.yml"]
    meet: list[Any] = ["--standalone"]
    settings: dict[str, Any] = {"join_timeout": options.timeout, "read_timeout": options.timeout}
    if run.nodes > 1:  # where is known when the job has its nodes; its supervisor says so
        meet = ["--nnodes", run.nodes, "--rdzv-backend", "c10d", "--rdzv-conf", _listed(settings)]
    elif len(run.hosts) > 1:
        rank = run.hosts.index(host)
        settings = {"is_host": rank == 0, **settings}
        # Not its id: whoever is on the host reads a command line. It comes by RENDEZVOUS, among the secrets.
        meet = ["--nnodes", len(run.hosts), "--node-rank", rank, "--rdzv-backend", "c10d",
                "--rdzv-endpoint", f"{options.leader}:{options.port + run.lane}",
                "--rdzv-conf", _listed(settings),
                "--local-addr", options.address]  # fmt: skip
    launcher = [options.python, "-m", "torch.distributed.run", "--nproc-per-node", run.gpus]
    return [str(word) for word in (*launcher, *meet, f"{rundir.PROGRAMS}/gang.py", options.module, "axolotl.yml")]


def _listed(settings: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in settings.items())


def answer_command(run: PlannedRun, host: str, options: TrainerOptions) -> list[str]:
    """Write the command line that answers an agent's cases where several processes have trained.

    It is one of the first host's, with a model of its own: after a training that was divided by FSDP or DeepSpeed no
    process has the whole one, and whichever did would let the others wait for it. Empty where nothing is asked, where
    one process trains, which answers itself, and on the other hosts of a gang.

    Args:
        run: The run; its first host leads.
        host: The host's name in the inventory.
        options: Its options.
    """
    if run.processes == 1 or not run.cases.path or host != run.hosts[0]:
        return []
    return [options.python, f"{rundir.PROGRAMS}/answer_cases.py"]


def training_environment(
    lane: str, root: str, wandb: str, wandb_server: str, deepspeed: bool = False
) -> dict[str, str]:
    """Collect the environment variables of a training that are no secrets.

    Args:
        lane: Of :func:`lane_name`.
        root: The trainer's root.
        wandb: ``online``, ``offline`` or ``disabled``.
        wandb_server: A W&B server of one's own; empty for W&B's.
        deepspeed: Whether DeepSpeed divides the model.
    """
    # A checkpoint that came from another host is data: what is read of it may not name a function to call. DeepSpeed
    # cannot read its own in this way; they come from no other host.
    data_only = {} if deepspeed else {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}
    return {
        "AXOLOTL_DO_NOT_TRACK": "1",
        "CUDA_VISIBLE_DEVICES": "" if lane.startswith("cpu") else lane,
        # The environment is made for this: what is compiled once saves each later start 8 s.
        "PYTHONDONTWRITEBYTECODE": "",
        "HF_HOME": f"{root}/models/hub",
        "HF_HUB_OFFLINE": "1",  # what a run needs was fetched before
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": wandb,
        **({"WANDB_BASE_URL": wandb_server} if wandb_server else {}),
        **data_only,
    }


def environment_problems(given: Any) -> list[str]:
    """Say what is wrong with run_environment.

    Args:
        given: What the inventory says.

    Returns:
        Sentences; empty where nothing is.
    """
    if not isinstance(given, Mapping):
        return ["run_environment must be a mapping, such as {NCCL_SOCKET_IFNAME: ib0}"]
    found = []
    for name, value in given.items():
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", str(name)):
            found.append(f"run_environment: «{str(name)[:60]}» is no name of a variable")
        elif _OURS.fullmatch(str(name)):
            found.append(f"run_environment: {name} is set by lora-forge itself")
        elif _LEARNT.fullmatch(str(name)):
            found.append(f"run_environment: {name} decides what is learnt; the recipe says that")
        elif _SECRET.fullmatch(str(name)) or _PASSWORD.search(str(value)):
            found.append(f"run_environment: {name} looks like a secret, which others could read there")
        elif isinstance(value, bool) or not isinstance(value, (str, int, float)) or re.search("[\0\n]", str(value)):
            found.append(f"run_environment: {name} must be a text of one line, or a number")
    return found


def run_facts(run: PlannedRun, host: str) -> dict[str, Any]:
    """Collect what run.json keeps of a planned run, for people and later questions.

    Args:
        run: The run.
        host: Where it trains.
    """
    return {
        "agent": run.agent,
        "fingerprint": run.fingerprint,
        "rehearsal": run.rehearsal,
        "recipe_sha256": run.recipe_sha256,
        "datasets": [dataset.sha256 for dataset in run.datasets],
        "host": host,
        "hosts": list(run.hosts),
        **({"evaluates": run.evaluates} if run.evaluates else {}),
    }


def arriving(files: Sequence[dict[str, Any]], folder: str) -> list[dict[str, Any]]:
    """Let what goes into a run directory arrive beside what is there, as another command may have started the run.

    Args:
        files: As :func:`input_files` lists them.
        folder: The run directory below the trainer's root.
    """
    own = f"{folder}/"
    return [
        {**file, "path": f"{own}{rundir.INCOMING}/{file['path'][len(own) :]}", "like": file["path"]}
        if file["path"].startswith(own)
        else file
        for file in files
    ]


def input_files(
    run: PlannedRun,
    checkout: pathlib.Path,
    axolotl: str,
    kept: pathlib.Path,
    checkpoint: Sequence[str],
    datasets: Mapping[str, pathlib.Path],
) -> list[dict[str, Any]]:
    """List what a run needs on its trainer, as ``transfer`` takes it: paths below the trainer's root.

    Args:
        run: The run.
        checkout: The project's folder.
        axolotl: The text of axolotl.yml.
        kept: What was fetched of the run from an earlier trainer.
        checkpoint: The files of it that the run goes on from.
        datasets: The canonical files of its data, by their SHA-256.

    Raises:
        UserError: One of those is none that a run goes on from.
    """
    for name in checkpoint:
        match = _CARRIED.fullmatch(name)
        if paths.flaw(name) or not match or (match[1] and paths.checkpoint_limit(match[1]) is None):
            raise UserError(
                f"{paths.quoted(name)} in {kept} is no part of a checkpoint that is taken to another trainer. Delete "
                "that folder, and the run begins anew"
            )
    folder, programs = run_dir(run, ".")[2:], checkout / "roles/run/files"
    own = f"{folder}/{rundir.PROGRAMS}"
    files = [
        {"path": dataset_path(".", dataset)[2:], "src": str(datasets[dataset.sha256]), "sha256": dataset.sha256}
        for dataset in run.datasets
    ]
    files += [{"path": f"{own}/{name}", "src": str(programs / name)} for name in _RUN_FILES]
    files += [{"path": f"{folder}/{name}", "src": str(kept / name)} for name in checkpoint]
    if run.rehearsal and not run.evaluates:
        files += _model_files(run, programs)
    files.append({"path": f"{own}/rundir.py", "src": str(checkout / "module_utils/lora_forge/rundir.py")})
    files.append({"path": f"{folder}/axolotl.yml", "content": axolotl})
    return files
