"""What the documentation of several modules says alike; C(extends_documentation_fragment) names it.

ansible-doc finds it through C(doc_fragment_plugins) of ansible.cfg. A module never needs it to run. What a module says
itself goes before what stands here.

RETURN has none, as ansible-core 2.19 does not read them there. The inventory plugin has none either: Ansible reads a
plugin's documentation when it loads the plugin, and would not load it where a fragment is not found.
"""

from __future__ import annotations


class ModuleDocFragment:
    """The fragments: one for every module, and one for each group of options that several modules take."""

    # Of every module and action. Each says itself what it does in check mode, or that it reads only.
    DOCUMENTATION = r"""
attributes:
  check_mode:
    support: full
  diff_mode:
    description: Shows nothing.
    support: none
  platform:
    description: Where it runs.
    support: full
    platforms: posix
author:
  - lora-forge
"""

    READS_ONLY = r"""
attributes:
  check_mode:
    description: Reads only.
"""

    # Of every action that no module is beside.
    ACTION = r"""
options:
  common:
    description: Options of this action that several tasks share, as one mapping. What the task names itself goes before
      them.
    type: dict
    default: {}
attributes:
  action:
    description: Runs on the controller, in Ansible's own process, and asks the host by modules.
    support: full
"""

    RUN_DIR = r"""
options:
  run_dir:
    description: The run directory on the trainer.
    type: path
    required: true
"""

    ROOT = r"""
options:
  root:
    description: Where everything of lora-forge lies on the trainer.
    type: path
    required: true
"""

    OUTPUT = r"""
options:
  output:
    description: Where adapters, the records of runs and the plan are kept on the controller.
    type: path
    required: true
"""

    RUN = r"""
options:
  run:
    description: The run, as planned.
    type: dict
    required: true
"""

    RUNS = r"""
options:
  runs:
    description: The runs, as planned.
    type: list
    elements: dict
    required: true
"""

    TRANSFER = r"""
options:
  transfer:
    description: C(timeout) and C(options) of M(transfer), for what goes over on the way.
    type: dict
    required: true
"""

    PULL = r"""
options:
  pull:
    description: Whether the newest whole checkpoint is fetched to the controller, from which the run goes on elsewhere.
    type: bool
    required: true
"""

    STOP_TIMEOUT = r"""
options:
  stop_timeout:
    description: Seconds that a training has for its checkpoint when it is stopped.
    type: int
    required: true
"""

    # Of what keeps asking a trainer.
    UNREACHABLE_TIMEOUT = r"""
options:
  unreachable_timeout:
    description: Seconds that a lost connection is ridden out.
    type: float
    required: true
"""

    STALL_TIMEOUT = r"""
options:
  stall_timeout:
    description: Seconds without a step after which a training counts as stalled.
    type: float
"""

    BUDGET = r"""
options:
  budget:
    description: What the trainer costs and may cost, as M(runpod_pod) returns it; empty for one of your own.
    type: dict
    default: {}
"""

    NOTIFY = r"""
options:
  notify:
    description: Which webhook is told of what, and where it is noted.
    type: dict
    required: true
    suboptions:
      output:
        description: Where the records of runs are kept on the controller.
        type: path
        required: true
      url:
        description: The webhook; empty for none.
        type: str
        required: true
      form:
        description: What it is sent; V(auto) is V(slack) for hooks.slack.com, and V(json) for all others.
        type: str
        choices: [auto, json, slack]
        required: true
      events:
        description: Which events it is told of.
        type: list
        elements: str
        choices: [finished, decision, failed, stalled, over_budget]
        required: true
      timeout:
        description: Seconds it may take to answer.
        type: float
        required: true
      pods:
        description: Where the claims of rented pods lie, which tell what a run has cost; empty where nothing costs.
        type: str
        default: ''
"""

    QUIET = r"""
options:
  quiet:
    description: Whether no webhook is told that the run was lost, as another attempt may do better.
    type: bool
    required: true
"""

    LOCK = r"""
options:
  lock:
    description: The name of the trainer's lock in C(requirements/), from which its environment is made.
    type: str
    choices: [trainer-cpu, trainer-cuda]
    required: true
"""

    ADAPTERS = r"""
options:
  adapters:
    description: The folder of all adapters.
    type: path
    required: true
"""

    GATE = r"""
options:
  promote_by:
    description:
      - What decides whether C(latest) moves. V(score) goes by the agent's cases, and by the eval loss where they cannot
        tell or there are none; V(loss) by that alone; V(human) moves nothing.
    type: str
    choices: [score, loss, human]
    default: score
  max_regression:
    description: By which share the eval loss may be above the promoted one's; 0.02 is 2 %.
    type: float
    default: 0.02
  promote_unknown:
    description: What happens where nothing says which of the two is better. V(keep) leaves C(latest) where it is,
      V(move) moves it, unless more cases were lost than won.
    type: str
    choices: [keep, move]
    default: keep
"""

    JUDGE = r"""
options:
  judge_url:
    description: The base URL of an OpenAI-style endpoint that answers checks of the kind C(judge); empty for none. Its
      key, where it takes one, is in E(LORA_FORGE_JUDGE_KEY).
    type: str
    default: ''
  judge_model:
    description: The model that is asked there.
    type: str
    default: ''
"""

    AGENTS = r"""
options:
  agents:
    description:
      - Whose runs or adapters, as C(-e role=…) names them - agents, and groups of C(configs/groups.yml). An agent
        whose file is gone will do as long as there is something of it.
      - By default everybody's. A name that is given, and empty, is an error.
    type: raw
"""

    CHECKOUT = r"""
options:
  checkout:
    description: The project's folder, with the agents' files in it.
    type: path
    required: true
"""

    # Of what can wait for something new.
    BASE_MODEL = r"""
options:
  model:
    description: A model of the hub (owner/name), or the absolute path of a folder on the trainer.
    type: str
    required: true
  revision:
    description: Branch, tag or commit. Empty is main, as it was when the model was fetched.
    type: str
    default: ''
  home:
    description: What HF_HOME is for the training. The model comes into C(hub) in it.
    type: path
    required: true
  python:
    description: A Python with huggingface_hub, on the trainer. Empty only tells, and starts nothing.
    type: str
    default: ''
  program:
    description: C(fetch_model.py) on the trainer, with C(rundir.py) beside it. Needed with O(python).
    type: path
  hf_token:
    description: For gated and private models. Empty leaves the trainer's own, if it has one.
    type: str
    default: ''
"""

    NEWS = r"""
options:
  wait:
    description: Seconds to wait for something to differ from O(since).
    type: float
    default: 0
  since:
    description: The RV(mark) of an earlier answer.
    type: str
    default: ''
"""

    WANDB = r"""
options:
  entity:
    type: str
    default: ''
  base_url:
    description: W&B's address; by default the variable E(WANDB_BASE_URL), or the service's own.
    type: str
    default: ''
  api_key:
    description: W&B's key; by default the variable E(WANDB_API_KEY).
    type: str
    default: ''
  timeout:
    description: Seconds for the whole.
    type: int
"""

    RUNPOD = r"""
options:
  api_key:
    description: RunPod's key; by default the variable E(RUNPOD_API_KEY).
    type: str
  api_url:
    description: Where the API is; by default the variable E(RUNPOD_API_URL), or RunPod's own.
    type: str
"""

    RUNPOD_CLAIMS = r"""
options:
  state_dir:
    description: Where claims, pinned host keys and the checkout's own key pair lie.
    type: path
    required: true
  owner:
    description: Another owner's id, to act for that one; empty for this checkout.
    type: str
    default: ''
"""

    RUNPOD_OFFERS = r"""
options:
  gpus:
    description: GPU types by RunPod's id or name, in the order in which they are tried.
    type: list
    elements: str
    default: []
  gpu_count:
    description: GPUs of the pod.
    type: int
    default: 1
  clouds:
    description: Where it may be.
    type: list
    elements: str
    choices: [SECURE, COMMUNITY]
    default: [SECURE]
  max_usd_per_hour:
    description: The most that the pod may cost an hour.
    type: float
    default: 0
  min_cuda:
    description: The lowest CUDA version of the machine's driver.
    type: str
    default: "13.0"
  data_centers:
    description: Where it may be; empty for anywhere.
    type: list
    elements: str
    default: []
"""
