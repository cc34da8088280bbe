"""Hold recipes against Axolotl's own validation. Runs on the controller, in an environment of the trainers' locks.

``validate_recipes.py <pid of who asks> <seconds>`` reads from standard input a JSON list of {"recipe": …,
"capabilities": …}: what axolotl.yml holds, and what Axolotl would find of the GPU. The last line that it prints is
JSON: the version of Axolotl, of each recipe a list of sentences against it, empty where it is taken, and the plugins
that are not here. Nothing is loaded or asked of a hub. It ends with who asks, and after the seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import signal
import sys
from typing import Any


def bound(parent: int, seconds: int) -> None:
    """End with the process that asks, and after a time: whoever interrupts it does not wait for its children."""
    with contextlib.suppress(AttributeError):  # Linux alone has it
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit("whoever asked is gone")
    signal.alarm(seconds)


if __name__ == "__main__":
    bound(int(sys.argv[1]), int(sys.argv[2]))  # before what takes long

from axolotl.integrations.base import PluginManager  # noqa: E402
from axolotl.utils.config import prepare_plugins, validate_config  # noqa: E402
from axolotl.utils.dict import DictDefault  # noqa: E402
from pydantic import ValidationError  # noqa: E402

TORCH = importlib.metadata.version("torch").partition("+")[0]


def there(plugin: str) -> bool:
    """Tell whether a plugin can be loaded here: Axolotl's own always, one of the user's unless it is only there."""
    try:
        return plugin.startswith("axolotl.") or importlib.util.find_spec(plugin.rpartition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def problems(recipe: dict[str, Any], capabilities: dict[str, Any]) -> list[str]:
    """List what Axolotl says against a recipe."""
    PluginManager.get_instance().plugins.clear()  # those of the recipe before bring keys of their own, and defaults
    recipe["plugins"] = [plugin for plugin in recipe.get("plugins") or [] if there(plugin)]
    try:
        prepare_plugins(DictDefault(recipe))
        validate_config(DictDefault(recipe), capabilities=capabilities, env_capabilities={"torch_version": TORCH})
    except ValidationError as error:
        return list(dict.fromkeys(map(sentence, error.errors(include_url=False))))
    except (ValueError, DeprecationWarning, NotImplementedError) as error:
        return [str(error)]
    except Exception as error:  # on a trainer it would end the training as well
        return [f"{type(error).__name__}: {error}"]
    return []


def sentence(error: Any) -> str:
    """Put an error of pydantic's into words: which key, unless its own message tells, and what."""
    message = error["msg"].removeprefix("Value error, ")
    return f"{'.'.join(map(str, error['loc']))}: {message}" if error["loc"] else message


def main() -> None:
    questions = json.load(sys.stdin)
    named = {plugin for question in questions for plugin in question["recipe"].get("plugins") or []}
    answers = [problems(question["recipe"], question["capabilities"]) for question in questions]
    left_out = sorted(plugin for plugin in named if not there(plugin))
    print(json.dumps({"axolotl": importlib.metadata.version("axolotl"), "problems": answers, "left_out": left_out}))


if __name__ == "__main__":
    main()
