"""Documentation of the action of this name: no module, and nothing that runs on a host."""

DOCUMENTATION = r"""
---
module: start_runs
short_description: Start the runs of a trainer, or attach to them
description:
  - Asks once what is there, brings what is missing in one transfer, which has what several runs need once, and has
    M(training_runs) start them in their order. Whatever is alive or finished is left alone.
  - What goes wrong with one run is its own failure, which RV(failures) has, and the others go on. Where the transfer of
    all fails, the files of each are sent by themselves. A connection that is lost ends what was not started until then.
  - A run that takes a fetched checkpoint along has a transfer of its own.
  - A run of a gang is not started where another host has failed in this command, and stopped again where one fails
    meanwhile.
options:
  lanes:
    description: The GPUs to train on, by UUID, or words that begin with cpu; in a list or with commas. They go before
      O(gpus).
    type: raw
    default: []
  gpus:
    description: The UUIDs of the GPUs that the trainer has.
    type: list
    elements: str
    default: []
  module:
    description: The Python module that trains.
    type: str
    default: axolotl.cli.train
  address:
    description: The address under which the other hosts of a gang reach this one.
    type: str
    default: ''
  port:
    description: The port where the hosts of a gang meet; each lane has the next one.
    type: int
    default: 29400
  timeout:
    description: Seconds that the hosts of a gang wait for each other.
    type: int
    default: 900
  public:
    description: Whether the hosts of a gang may meet at a public address.
    type: bool
    default: false
  wandb:
    description: How W&B is used.
    type: str
    choices: [online, offline, disabled]
    default: offline
  wandb_server:
    description: A W&B server of one's own; empty for W&B's.
    type: str
    default: ''
  stop_timeout:
    required: false
    default: 120
  lane_dir:
    description: Where lanes are locked, a folder in which every user of the host may write; /tmp when left out.
    type: str
  secrets:
    description: Secret environment variables of the trainer processes.
    type: dict
    required: true
  refusals:
    description: Of each run that must not begin, by its id, why, as M(preflight) returns it.
    type: dict
    default: {}
  backend:
    description: What keeps the supervisor running.
    type: str
    choices: [auto, systemd, tmux, process, slurm]
    required: true
  environment:
    description: Further variables of the trainer processes, which are no secrets.
    type: dict
    default: {}
  slurm:
    description: With Slurm what a job asks for.
    type: dict
    default: {}
  slurm_jobs:
    description: With Slurm how many jobs of the trainer run at once; 0 for any number.
    type: int
    default: 0
  gpu_check:
    description: With Slurm further options of the check of a node's GPU.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Predicts what would be brought, and which runs would be started.
extends_documentation_fragment:
  - lora_forge
  - lora_forge.action
  - lora_forge.runs
  - lora_forge.root
  - lora_forge.output
  - lora_forge.lock
  - lora_forge.transfer
  - lora_forge.stop_timeout
"""

EXAMPLES = r"""
- name: Start them, or attach to them
  start_runs:
    runs: "{{ run_plans }}"
    root: /workspace/lora-forge
    output: output
    lock: trainer-cuda
    transfer: {timeout: 60, options: []}
    secrets: {}
    backend: auto
"""

RETURN = r"""
runs:
  description: Of the runs that were started, would be in check mode, or need no start, the C(run_id), the C(agent),
    whether it was C(changed), and the C(state) that it was in before, as M(training_run_info) concludes it.
  returned: always
  type: list
  elements: dict
  sample: [{run_id: witness-3f9a2c1b77e0, agent: witness, changed: true, state: absent}]
failures:
  description: Of the others the C(run_id), the C(agent), and in C(msg) why. It is C(refused) where another command has
    placed it elsewhere, or another host of its gang cannot take part.
  returned: always
  type: list
  elements: dict
  sample: [{run_id: mayor-9a01c2d3e4f5, agent: mayor, msg: 'mayor-9a01c2d3e4f5 is not started: …', refused: true}]
"""
