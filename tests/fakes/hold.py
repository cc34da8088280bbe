"""A plugin of Axolotl's that holds a training between two steps for as long as a test needs.

It lies among the programs of the run, where Axolotl finds it by its name: ``plugins: [hold.Hold]``. A file ``hold`` in
the run directory holds the number of steps that are done when the training stops to wait, with their checkpoint
written. It goes on once that file is gone, or names a later step, or when the run is stopped.
"""

from __future__ import annotations

import pathlib
import time
from typing import Any

from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

FILE = pathlib.Path(__file__).resolve().parents[1] / "hold"


def held(step: int) -> bool:
    """Tell whether a training waits after so many steps."""
    try:
        return step >= int(FILE.read_text() or 0)
    except FileNotFoundError:
        return False


class Waiting(TrainerCallback):
    """Waits before a step begins: what belongs to the one before is done by then. A stop ends the waiting."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        while held(state.global_step) and not self.stopping():
            time.sleep(0.05)

    def stopping(self) -> bool:
        """Tell whether lora_forge_axolotl was told to stop, or the processes of a gang are."""
        told = any(getattr(callback, "stop_wanted", False) for callback in self.trainer.callback_handler.callbacks)
        return told or (FILE.parent / "stopping").exists()


class Hold(BasePlugin):
    """Axolotl's plugin interface to :class:`Waiting`."""

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[TrainerCallback]:
        return [Waiting(trainer)]
