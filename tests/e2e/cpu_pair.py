"""Axolotl's training where several processes share a CPU: what it asks of GPUs for them is answered in their place."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

os.environ["ACCELERATE_USE_CPU"] = "true"
torch.cuda.can_device_access_peer = lambda *devices: True  # before Axolotl is imported, which asks for it

from axolotl.cli import config, train  # noqa: E402


def load_cfg(*args: Any, **options: Any) -> Any:
    cfg = config.load_cfg(*args, **options)
    cfg.device_map = {"": "cpu"}  # it counts GPUs by the rank
    return cfg


if __name__ == "__main__":
    train.load_cfg = load_cfg
    train.do_cli(sys.argv[1])
