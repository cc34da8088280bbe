"""Hold a chat template against the base model's tokenizer and the data. Runs in the trainer's environment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def load_base_tokenizer(cfg: Any) -> Any:
    """Load the base model's tokenizer, with its own chat template."""
    from axolotl.loaders import load_tokenizer

    return load_tokenizer(cfg)


def check(cfg: Any, tokenizer: Any, needs: Iterable[str] = ()) -> list[str]:
    """List what is wrong with the template that a run trains with."""
    return []


def warnings(cfg: Any, tokenizer: Any) -> list[str]:
    """List what a server has to know of it."""
    return []
