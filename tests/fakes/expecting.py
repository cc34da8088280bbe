"""What a training leaves besides its adapter, so that the adapter can be proven: expected.json and gradients.json.

For stand-ins that make up an adapter: the files fit it. It is copied beside stub_axolotl.py, and imports nothing else.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, Optional


def expectation(tensors: Mapping[str, Any], base_model: str, revision: Optional[str] = None) -> dict[str, Any]:
    """Return the expected.json of an adapter.

    Args:
        tensors: Name -> array, of the adapter.
        base_model: As the trainer loads it.
        revision: Its commit; None of a folder.
    """
    return {
        "schema": 1,
        "base_model": base_model,
        "revision": revision,
        "model_type": "qwen3",
        "tensors": {name: list(values.shape) for name, values in tensors.items()},
        "parameters": {},
        "towers": [],
        "unmatched": [],
    }


def leave(
    run_dir: pathlib.Path,
    tensors: Mapping[str, Any],
    base_model: str,
    revision: Optional[str] = None,
    never: Collection[str] = (),
) -> None:
    """Write both files into a run directory whose output/ is there.

    Args:
        run_dir: The run directory.
        tensors: Name -> array, of the adapter.
        base_model: As the trainer loads it.
        revision: Its commit; None of a folder.
        never: The tensors that no gradient reached.
    """
    (run_dir / "expected.json").write_text(json.dumps(expectation(tensors, base_model, revision)))
    (run_dir / "output/gradients.json").write_text(json.dumps({"never": sorted(never)}))
