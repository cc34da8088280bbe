"""An Axolotl plugin for tests: a training is told to stop at the step that a file ``halt`` names."""

from __future__ import annotations

import os
import pathlib
import signal
from typing import Any

from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

FILE = pathlib.Path("halt")


class Callback(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if FILE.exists() and state.global_step + 1 == int(FILE.read_text()):
            os.kill(os.getpid(), signal.SIGTERM)


class Halt(BasePlugin):
    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[TrainerCallback]:
        return [Callback()]
