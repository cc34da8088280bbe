"""Documentation of the action of this name: no module, and nothing that runs on a host."""

DOCUMENTATION = r"""
---
module: start_run
short_description: Start a run on its trainer, or attach to it
description:
  - Asks what is there, brings what is missing, and starts the supervisor by M(training_run). Whatever is alive or
    finished is left alone.
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
  leader:
    description: The address under which this host reaches the first one of its gang.
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
    description: Secret environment variables of the trainer process, as M(training_run) takes them.
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
  slurm:
    description: With Slurm what a job asks for.
    type: dict
    default: {}
  gpu_check:
    description: With Slurm further options of the check of a node's GPU.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Predicts what would be brought, and whether the run would be started.
extends_documentation_fragment:
  - lora_forge
  - lora_forge.action
  - lora_forge.run
  - lora_forge.root
  - lora_forge.output
  - lora_forge.lock
  - lora_forge.transfer
  - lora_forge.stop_timeout
"""

EXAMPLES = r"""
- name: Start it, or attach to it
  start_run:
    run: "{{ run_plan }}"
    root: /workspace/lora-forge
    output: output
    lock: trainer-cuda
    transfer: {timeout: 60, options: []}
    secrets: {}
    backend: auto
"""

RETURN = r"""
state:
  description: What the run was before, as M(training_run_info) concludes it.
  returned: success
  type: str
  sample: absent
run_id:
  description: Which run it is.
  returned: when its trainer answered
  type: str
  sample: witness-3f9a2c1b77e0
agent:
  description: Whose.
  returned: when its trainer answered
  type: str
  sample: witness
refused:
  description: Whether it was not started, or stopped again, because another host of its gang cannot take part.
  returned: failure
  type: bool
  sample: true
"""
